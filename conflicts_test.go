package replicator_test

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
)

// seer is a ghost that knows which changes could have been known to the maker of each.
type seer struct {
	mu       sync.Mutex // guards what follows
	made     map[replicator.Stamp]ghost
	reported []sighting
}

// ghost is one change: by stamp, what was known when it was made.
type ghost struct {
	key, value string
	deleted    bool
	past       map[replicator.Stamp]bool
	raced      bool // something was merged meanwhile, which may have been known, too
}

type sighting struct {
	by string
	replicator.Conflict
}

func newSeer() *seer { return &seer{made: map[replicator.Stamp]ghost{}} }

// watch has a node tell the seer of conflicts.
func (s *seer) watch(n *node, also ...func(replicator.Conflict)) func(o *replicator.Options) {
	return func(o *replicator.Options) {
		o.OnConflict = func(c replicator.Conflict) {
			if *story {
				fmt.Printf("%s sees %s: %v beats %v, here: %v, uncertain: %v\n", n.name, c.Key, c.Won, c.Lost, c.LostHere, c.Uncertain)
			}
			s.mu.Lock()
			s.reported = append(s.reported, sighting{n.name, c})
			s.mu.Unlock()
			for _, f := range also {
				f(c)
			}
		}
	}
}

// write has a node make a change, and notes what it knew: all that was merged there,
// and what the makers of that knew.
func (s *seer) write(n *node, key, value string, deleted bool) {
	past, head := map[replicator.Stamp]bool{}, n.r.Status().Head
	for _, row := range n.index() {
		past[row.Stamp] = true
		s.mu.Lock()
		maps.Copy(past, s.made[row.Stamp].past)
		s.mu.Unlock()
	}
	if deleted {
		value = ""
		n.delete(key)
	} else {
		n.put(key, value)
	}
	stamp := n.r.Token().Stamp()
	if *story {
		fmt.Println(n.name, "writes", key, stamp)
	}
	s.mu.Lock()
	s.made[stamp] = ghost{key, value, deleted, past, n.r.Status().Head != head+1}
	s.mu.Unlock()
}

// check fails if a pair was reported of which one had seen the other, unless that is said
// to be uncertain, and returns how many are.
func (s *seer) check(t *testing.T) (certain, uncertain int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reported {
		won, lost := s.made[r.Won.Stamp], s.made[r.Lost.Stamp]
		require.Equal(t, 1, r.Won.Compare(r.Lost), "%+v", r)
		require.Equal(t, string(r.Key), won.key)
		require.Equal(t, string(r.Key), lost.key)
		for _, side := range []struct {
			value []byte
			ghost
		}{{r.WonValue, won}, {r.LostValue, lost}} {
			require.Equal(t, side.value == nil, side.deleted, "%s: %q", r.Key, side.value)
			require.Equal(t, side.ghost.value, string(side.value), "%+v", r)
		}
		if r.Uncertain {
			uncertain++
			continue
		}
		certain++
		require.False(t, won.past[r.Lost.Stamp], "%s: %s: %v had seen %v", r.by, r.Key, r.Won, r.Lost)
		require.False(t, lost.past[r.Won.Stamp], "%s: %s: %v had seen %v", r.by, r.Key, r.Lost, r.Won)
	}
	return certain, uncertain
}

// checkAll fails if a change that nobody had seen who wrote its key later is lost, and
// was not reported as such.
func (s *seer) checkAll(t *testing.T, final map[string]replicator.Row) (lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reported := map[replicator.Stamp]bool{}
	for _, r := range s.reported {
		reported[r.Lost.Stamp] = true
	}
	seen, raced := map[replicator.Stamp]bool{}, map[string]bool{}
	for _, g := range s.made {
		raced[g.key] = raced[g.key] || g.raced
		for stamp := range g.past {
			if s.made[stamp].key == g.key {
				seen[stamp] = true
			}
		}
	}
	for stamp, g := range s.made {
		if final[g.key].Stamp == stamp || seen[stamp] || raced[g.key] {
			continue
		}
		lost++
		require.True(t, reported[stamp], "%s: %v was lost to %v, unseen, and not reported", g.key, stamp, final[g.key])
	}
	return lost
}

// TestConflictsAreOwned: what a handler and a reader of Status do to the slices of a conflict is
// seen by nobody else.
func TestConflictsAreOwned(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		told := 0
		source.open(mergesNothing) // the two are to meet at n
		n.open(func(o *replicator.Options) {
			o.OnConflict = func(c replicator.Conflict) {
				told++
				for _, b := range [][]byte{c.Key, c.WonValue, c.LostValue} {
					clear(b)
				}
			}
		})
		feed := n.r.Here()
		c.net.Isolate(n.name)
		source.put("key", "a value")
		source.put("key", "another value")
		n.put("key", "a loser")
		c.net.Heal()
		require.NoError(t, n.sync())
		synctest.Wait()
		require.Equal(t, 1, told)
		for range 2 {
			last := n.r.Status().Conflicts.Last
			require.Equal(t, "key", string(last[0].Key))
			clear(last[0].Key)
		}
		for change, err := range n.r.Changes(t.Context(), feed) {
			require.NoError(t, err)
			if change.Conflict == nil {
				continue
			}
			require.Equal(t, "key a loser another value", fmt.Sprintf("%s %s %s", change.Conflict.Key, change.Conflict.LostValue, change.Conflict.WonValue))
			break
		}
	})
}

// TestConflictsAreSeen over random schedules of three replicas: what is reported as
// certain is, and with no restarts nothing is lost that was not reported.
func TestConflictsAreSeen(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var certain, uncertain, lost int
	t.Run("seeds", func(t *testing.T) {
		eachSeed(t, budget(60, 120, 3000), func(t *testing.T, seed int64) {
			inSeeded(t, seed, 3, func(t *testing.T, c *cluster) {
				a, b, l := seeConflicts(t, c)
				mu.Lock()
				defer mu.Unlock()
				certain, uncertain, lost = certain+a, uncertain+b, lost+l
			})
		})
	})
	t.Logf("%d certain, %d uncertain; %d changes lost unseen without a restart", certain, uncertain, lost)
	if *seed == 0 {
		require.Positive(t, certain)
		require.Positive(t, uncertain)
		require.Positive(t, lost)
	}
}

func seeConflicts(t *testing.T, c *cluster) (certain, uncertain, lost int) {
	s := newSeer()
	calm := c.rng.IntN(2) == 0 // no restarts
	pages := 1 + c.rng.IntN(4)
	backlog := []int{0, 1, 2000}[c.rng.IntN(3)]
	byKey := c.rng.IntN(2) == 0
	c.paging = func(o replicator.Options) *replicator.Options {
		o.BacklogBytes = backlog
		return replicator.WithPages(o, pages, func() bool { return byKey })
	}
	switch c.rng.IntN(3) {
	case 0:
		c.mesh()
	case 1:
		c.link(1, 0)
		c.link(1, 2)
	default:
		c.link(0, 1)
		c.link(2, 1)
		c.link(0, 2)
	}
	if c.rng.IntN(2) == 0 {
		c.durableEvery = 3 * time.Second
	}
	open := func() {
		for _, n := range c.nodes {
			if n.r == nil {
				n.open(s.watch(n))
			}
		}
	}
	open()
	backups := []*simtest.Disk{}
	for i := range 60 {
		n := c.nodes[c.rng.IntN(3)]
		what := c.rng.IntN(24)
		if *story {
			fmt.Println(i, n.name, what, calm)
		}
		switch {
		case what < 13:
			for range 1 + c.rng.IntN(3) {
				s.write(n, fmt.Sprint("key ", c.rng.IntN(12)), fmt.Sprint("value ", i, " of ", n.name), c.rng.IntN(8) == 0)
			}
		case what < 16:
			time.Sleep(time.Duration(c.rng.IntN(30)) * time.Millisecond)
		case what < 18:
			time.Sleep(time.Duration(c.rng.IntN(3000)) * time.Millisecond)
		case what < 20:
			c.net.Isolate(n.name)
		case what < 21:
			c.net.Heal()
		case what < 22:
			c.net.SetDelay(n.name, c.nodes[c.rng.IntN(3)].name, time.Duration(c.rng.IntN(20))*time.Millisecond)
		case what < 23:
			c.net.Isolate(n.name)
			c.net.Heal()
		case calm:
		case c.rng.IntN(3) == 0:
			n.powerCut()
		case c.rng.IntN(3) == 0:
			n.kill()
		case c.rng.IntN(3) == 0:
			n.close()
			backups = append(backups, n.disk.Copy())
		case len(backups) > 0: // its own, or that of another one
			n.replaceDisk(backups[c.rng.IntN(len(backups))].Copy())
			n.boot = c.newBoot()
		}
		open()
	}
	c.net.Heal()
	c.settleDown()
	certain, uncertain = s.check(t)
	if calm {
		lost = s.checkAll(t, c.nodes[0].index())
		for _, n := range c.nodes {
			require.Zero(t, n.r.Status().Conflicts.Dropped)
		}
	}
	return certain, uncertain, lost
}
