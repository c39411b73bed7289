package replicator_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// The tests of the invariants that it takes several replicas to hold or break.
// The numbers are those of the design's section 5.

// pageSize is how many records come in one page at most.
const pageSize = 500

// carried returns how many records of peer's a node was sent since it was opened.
func (n *node) carried(peer *node) (records int64) {
	id := peer.r.Status().ID
	for _, p := range n.r.Status().Peers {
		if p.ID == id {
			records = p.RecordsIn
		}
	}
	return records
}

// cursor returns how far a node has merged peer's log, as it would be found
// after a restart.
func (n *node) cursor(peer *node) replicator.Cursor {
	c, err := replicator.StoredCursor(n.db, peer.r.Status().ID)
	require.NoError(n.c.t, err)
	return c
}

// index returns what a node knows of each key.
func (n *node) index() map[string]replicator.Row { return indexOf(n.c.t, n.db) }

func indexOf(t testing.TB, db *leveldb.DB) map[string]replicator.Row {
	rows, err := replicator.IndexRows(db)
	require.NoError(t, err)
	return rows
}

// fill puts keys in the order of their numbers.
func (n *node) fill(prefix string, from, to, size int) {
	for i := from; i < to; i++ {
		n.put(fmt.Sprintf("%s%05d", prefix, i), fmt.Sprint(n.name, i, strings.Repeat("v", size)))
	}
}

// order is the order of changes as the design has it, for comparison.
func order(a, b replicator.Entry) int {
	hash := func(e replicator.Entry) uint64 {
		sum := sha256.Sum256([]byte(e.Value))
		return binary.BigEndian.Uint64(sum[:])
	}
	switch {
	case a.Clock != b.Clock:
		return cmp.Compare(a.Clock, b.Clock)
	case a.Origin != b.Origin:
		return cmp.Compare(a.Origin, b.Origin)
	case a.Deleted != b.Deleted:
		if a.Deleted {
			return 1
		}
		return -1
	case a.Deleted:
		return 0
	}
	return cmp.Compare(hash(a), hash(b))
}

// randomEntry is a change to one of few keys, with one of few clocks and origins,
// so that all ways of a tie occur.
func randomEntry(rng *rand.Rand, number int) replicator.Entry {
	e := replicator.Entry{Key: fmt.Sprint("key ", rng.IntN(6)), Value: fmt.Sprint("value ", number)}
	switch rng.IntN(8) {
	case 0: // taken in from before there was a Replicator
		e.Value = fmt.Sprint("old value ", rng.IntN(3))
		sum := sha256.Sum256([]byte(e.Value))
		e.Origin = replicator.Origin(binary.BigEndian.Uint64(sum[:]) &^ (1 << 63))
	default:
		e.Clock = uint64(rng.IntN(4))
		e.Origin = replicator.Origin(1<<63 + uint64(rng.IntN(4)))
		e.Deleted = rng.IntN(3) == 0
	}
	if e.Deleted {
		e.Value = ""
	}
	return e
}

// TestInvariant4TotalInAnyOrder gives the same changes to several replicas, in
// another order and grouping each, some of them twice, and with restarts.
func TestInvariant4TotalInAnyOrder(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 10; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer letSettle()
				rng := rand.New(rand.NewPCG(seed, 4))
				var entries []replicator.Entry
				winners := map[string]replicator.Entry{}
				for i := range 80 {
					e := randomEntry(rng, i)
					entries = append(entries, e)
					if w, has := winners[e.Key]; !has || order(e, w) > 0 {
						winners[e.Key] = e
					}
				}
				var first replicator.Digest
				for replica := range 6 {
					onDisk(t, newSimDisk(), func(db *leveldb.DB) {
						r := openPlain(t, db, "boot")
						defer func() { require.NoError(t, r.Close()) }()
						all := append(slices.Clone(entries), entries[:20]...)
						rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
						for len(all) > 0 {
							all = all[mergeSome(t, r, all, 1+rng.IntN(8)):]
							if rng.IntN(10) == 0 {
								require.NoError(t, r.Close())
								r = openPlain(t, db, "boot")
							}
						}
						found := readRows(t, db)
						require.Len(t, found.index, len(winners))
						for key, w := range winners {
							require.Equal(t, w.Version, found.index[key].Version, key)
							require.Equal(t, w.Value, found.data[key], key)
						}
						require.NoError(t, found.checkData())
						require.NoError(t, found.checkLog())
						digest, err := r.Digest()
						require.NoError(t, err)
						if replica == 0 {
							first = digest
						}
						require.Equal(t, first, digest)
						// Once more, all of it: nothing is new.
						head := r.Status().Head
						mergeSome(t, r, entries[:1], 1)
						for i := range entries {
							mergeSome(t, r, entries[i:], 1)
						}
						require.Equal(t, head, r.Status().Head, "merge is not idempotent")
					})
				}
			})
		})
	}
}

// mergeSome merges up to most entries in one go, as many as have different keys,
// and returns how many that were.
func mergeSome(t *testing.T, r *replicator.Replicator, entries []replicator.Entry, most int) int {
	var page []replicator.Entry
	for _, e := range entries[:min(most, len(entries))] {
		if slices.ContainsFunc(page, func(o replicator.Entry) bool { return o.Key == e.Key }) {
			break
		}
		page = append(page, e)
	}
	slices.SortFunc(page, func(a, b replicator.Entry) int { return cmp.Compare(a.Key, b.Key) })
	commit, err := replicator.Examine(r, page...)
	require.NoError(t, err)
	_, err = commit()
	require.NoError(t, err)
	return len(page)
}

// TestInvariant4TotalExchange lets writers meet others in all orders. Whoever has
// met all of them holds the greatest of their changes.
func TestInvariant4TotalExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const writers = 3
		orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
		c := newCluster(t, 4, writers+len(orders))
		defer c.close()
		for i := range orders {
			for w := range writers {
				c.link(writers+i, w)
			}
		}
		c.net.Partition([]string{"nobody"})
		for _, n := range c.nodes {
			c.net.Isolate(n.name)
		}
		c.open()
		winners := map[string]replicator.Entry{}
		for step := range 150 {
			n := c.nodes[c.rng.IntN(writers)]
			key, value := fmt.Sprint("key ", c.rng.IntN(25)), fmt.Sprint("value ", step)
			if c.rng.IntN(3) == 0 {
				value = ""
				n.delete(key)
			} else {
				n.put(key, value)
			}
			v, err := n.r.Version([]byte(key))
			require.NoError(t, err)
			if e := (replicator.Entry{Version: v, Key: key, Value: value}); order(e, winners[key]) > 0 || winners[key].Key == "" {
				winners[key] = e
			}
		}
		for step := range writers {
			for i, o := range orders {
				c.net.Partition([]string{c.nodes[writers+i].name, c.nodes[o[step]].name})
				for _, n := range c.nodes {
					if n != c.nodes[writers+i] && n != c.nodes[o[step]] {
						c.net.Isolate(n.name)
					}
				}
				collector := c.nodes[writers+i]
				require.Error(t, collector.sync(), "the others are out of reach")
			}
		}
		for _, n := range c.nodes[writers:] {
			s := n.state()
			require.Len(t, s.versions, len(winners))
			for key, w := range winners {
				require.Equal(t, w.Version, s.versions[key], "%s at %s", key, n.name)
				require.Equal(t, w.Value, s.values[key], "%s at %s", key, n.name)
			}
		}
		c.converge()
	})
}

// TestInvariant4TotalWrittenInBetween has a key written between the two halves of
// a merge.
func TestInvariant4TotalWrittenInBetween(t *testing.T) {
	t.Parallel()
	at := func(clock uint64, deleted bool) replicator.Version {
		return replicator.Version{Stamp: replicator.Stamp{Clock: clock, Origin: 1<<63 + 1}, Deleted: deleted}
	}
	put := func(t *testing.T, r *replicator.Replicator) {
		require.NoError(t, r.Put([]byte("key"), []byte("local"), nil))
	}
	remove := func(t *testing.T, r *replicator.Replicator) { require.NoError(t, r.Delete([]byte("key"), nil)) }
	merge := func(e replicator.Entry) func(t *testing.T, r *replicator.Replicator) {
		return func(t *testing.T, r *replicator.Replicator) { mergeSome(t, r, []replicator.Entry{e}, 1) }
	}
	for name, c := range map[string]struct {
		before, between func(t *testing.T, r *replicator.Replicator)
		arrives         replicator.Version
		value           string // that is there in the end
		merged          int
	}{
		"put before an older put":        {put, put, at(0, false), "local", 0},
		"put before an older put, new":   {nil, put, at(0, false), "local", 0},
		"put before an older delete":     {nil, put, at(0, true), "local", 0},
		"delete before an older put":     {nil, remove, at(0, false), "", 0},
		"delete before a newer put":      {put, remove, at(99, false), "arrived", 1},
		"put before a newer put":         {put, put, at(99, false), "arrived", 1},
		"put before a newer delete":      {put, put, at(99, true), "", 1},
		"merge before an older merge":    {put, merge(replicator.Entry{Version: at(70, false), Key: "key", Value: "other"}), at(60, false), "other", 0},
		"merge before a newer merge":     {put, merge(replicator.Entry{Version: at(50, false), Key: "key", Value: "other"}), at(60, false), "arrived", 1},
		"delete merged before the put":   {nil, merge(replicator.Entry{Version: at(60, true), Key: "key"}), at(60, false), "", 0},
		"the same merge before a merge":  {nil, merge(replicator.Entry{Version: at(60, false), Key: "key", Value: "arrived"}), at(60, false), "arrived", 0},
		"nothing in between":             {put, nil, at(99, false), "arrived", 1},
		"older, and nothing in between":  {func(t *testing.T, r *replicator.Replicator) { put(t, r); put(t, r) }, nil, at(0, false), "local", 0},
		"put and put before a newer put": {nil, func(t *testing.T, r *replicator.Replicator) { put(t, r); remove(t, r); put(t, r) }, at(99, false), "arrived", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer letSettle()
				onDisk(t, newSimDisk(), func(db *leveldb.DB) {
					r := openPlain(t, db, "boot")
					defer r.Close()
					// So that local stamps are above clock 0.
					require.NoError(t, r.Put([]byte("a"), nil, nil))
					if c.before != nil {
						c.before(t, r)
					}
					// The key is one of several, which win in any case.
					page := []replicator.Entry{
						{Version: at(100, false), Key: "b", Value: "b"},
						{Version: c.arrives, Key: "key", Value: "arrived"},
						{Version: at(100, true), Key: "z"},
					}
					commit, err := replicator.Examine(r, page...)
					require.NoError(t, err)
					if c.between != nil {
						require.NoError(t, r.Put([]byte("unrelated"), nil, nil))
						c.between(t, r)
					}
					merged, err := commit()
					require.NoError(t, err)
					require.Equal(t, c.merged+2, merged)
					value, err := r.Get([]byte("key"), nil)
					if c.value == "" {
						require.ErrorIs(t, err, leveldb.ErrNotFound)
					} else {
						require.NoError(t, err)
					}
					require.Equal(t, c.value, string(value))
					require.NoError(t, replicator.CheckConsistent(r))
					found := readRows(t, db)
					require.NoError(t, found.checkData())
					require.NoError(t, found.checkLog())
					// What is written here now is above all that was merged.
					put(t, r)
					v, err := r.Version([]byte("key"))
					require.NoError(t, err)
					require.Greater(t, v.Clock, uint64(100))
				})
			})
		})
	}
}

// TestInvariant4TotalUnderRaces lets merges race each other and local writes to
// the same keys. The version of a key never goes back, the greatest stays, and a
// local change is above all that was there before it.
func TestInvariant4TotalUnderRaces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		onDisk(t, newSimDisk(), func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			const rounds = 400
			key := func(n int) string { return fmt.Sprint("key ", n) }
			var greatest [4]struct {
				sync.Mutex
				replicator.Entry
			}
			offer := func(n int, e replicator.Entry) {
				g := &greatest[n]
				g.Lock()
				defer g.Unlock()
				if order(e, g.Entry) > 0 {
					g.Entry = e
				}
			}
			var running atomic.Int64
			var wg sync.WaitGroup
			start := func(work func(rng *rand.Rand, i int)) {
				running.Add(1)
				seed := uint64(running.Load())
				wg.Go(func() {
					defer running.Add(-1)
					rng := rand.New(rand.NewPCG(seed, 4))
					for i := range rounds {
						work(rng, i)
					}
				})
			}
			for m := range 3 { // they merge what is about as new as what is written here
				start(func(rng *rand.Rand, i int) {
					var page []replicator.Entry
					for n := range greatest {
						e := replicator.Entry{Key: key(n), Value: fmt.Sprint("merged ", m, i), Version: replicator.Version{
							Stamp:   replicator.Stamp{Clock: max(2, r.Status().Clock) - 2 + uint64(rng.IntN(5)), Origin: replicator.Origin(1<<63 + uint64(m))},
							Deleted: rng.IntN(4) == 0,
						}}
						if e.Deleted {
							e.Value = ""
						}
						page = append(page, e)
					}
					commit, err := replicator.Examine(r, page...)
					assert.NoError(t, err)
					_, err = commit()
					assert.NoError(t, err)
					for n, e := range page {
						// One that made the same stamp twice would be to blame itself.
						e.Value = ""
						offer(n, e)
					}
				})
			}
			for w := range 3 {
				start(func(rng *rand.Rand, i int) {
					n := rng.IntN(len(greatest))
					before, _ := r.Version([]byte(key(n)))
					assert.NoError(t, r.Put([]byte(key(n)), fmt.Append(nil, "local ", w, i), nil))
					after, err := r.Version([]byte(key(n)))
					assert.NoError(t, err)
					assert.Positive(t, after.Compare(before.Stamp), "a local write is not above what was there")
					offer(n, replicator.Entry{Version: after})
				})
			}
			seen := [len(greatest)]replicator.Version{}
			for running.Load() > 0 {
				for n := range greatest {
					v, err := r.Version([]byte(key(n)))
					if err == leveldb.ErrNotFound {
						continue
					}
					require.NoError(t, err)
					require.GreaterOrEqual(t, v.Compare(seen[n].Stamp), 0, "%s went back from %v to %v", key(n), seen[n], v)
					seen[n] = v
				}
			}
			wg.Wait()
			found := readRows(t, db)
			for n := range greatest {
				require.Equal(t, greatest[n].Stamp, found.index[key(n)].Stamp, key(n))
			}
			require.NoError(t, found.checkData())
			require.NoError(t, found.checkLog())
			epoch, local := r.Status().Epoch, 0
			latest, above := map[string]replicator.Stamp{}, uint64(0)
			for _, row := range found.log {
				require.GreaterOrEqual(t, row.Compare(latest[row.Key]), 0, "record %d: %s went back", row.Seq, row.Key)
				latest[row.Key] = row.Stamp
				if row.Origin == epoch {
					local++
					require.True(t, row.Clock > above || row.Seq == 1, "record %d: clock %d follows %d", row.Seq, row.Clock, above)
				}
				above = max(above, row.Clock)
			}
			t.Logf("%d records, %d of them local", len(found.log), local)
			require.NoError(t, replicator.CheckConsistent(r))
		})
	})
}

// TestInvariant5Verbatim sends changes down a chain, over the log and over full
// pulls, and compares their stamps to those that their origins gave them.
func TestInvariant5Verbatim(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5, 5)
		defer c.close()
		for i := range c.nodes[1:] {
			c.link(i+i%2, i+1-i%2) // dialled from alternating sides
		}
		// Both ends held keys before; one of them is the same.
		original := map[string]replicator.Version{}
		for i, n := range []*node{c.nodes[0], c.nodes[4]} {
			onDisk(t, n.disk, func(db *leveldb.DB) {
				require.NoError(t, db.Put([]byte("both"), []byte("equal"), nil))
				require.NoError(t, db.Put(fmt.Append(nil, "old ", i), make([]byte, 3000*i), nil))
			})
		}
		c.open()
		note := func(n *node, keys ...string) {
			for _, key := range keys {
				v, err := n.r.Version([]byte(key))
				require.NoError(t, err)
				original[key] = v
			}
		}
		compare := func() {
			for _, n := range c.nodes {
				versions := n.state().versions
				for key, v := range original {
					require.Equal(t, v, versions[key], "%s at %s", key, n.name)
				}
				require.Len(t, versions, len(original))
			}
			c.check()
		}
		time.Sleep(time.Second)
		note(c.nodes[0], "both", "old 0")
		note(c.nodes[4], "both", "old 1")
		c.converge()
		compare()
		heads := map[*node]uint64{}
		for _, n := range c.nodes {
			heads[n] = n.r.Status().Head
		}
		c.net.Partition([]string{"n0"}, []string{"n4"})
		for i, n := range []*node{c.nodes[0], c.nodes[4]} {
			for j := range 60 {
				key := fmt.Sprint("key ", i, j)
				switch j % 4 {
				case 0:
					n.delete(key)
				case 1:
					n.put(key, strings.Repeat("fetched", 1000))
				default:
					n.put(key, "sent along")
				}
				note(n, key)
			}
		}
		c.converge()
		compare()
		for i, n := range c.nodes { // each change was committed once, and only once
			own := 0
			if i%4 == 0 {
				own = 60
			}
			require.EqualValues(t, 120, n.r.Status().Head-heads[n], "%s, which made %d itself", n.name, own)
		}

		// One in the middle starts from nothing, and passes on what it is given.
		c.nodes[2].replaceDisk(newSimDisk())
		c.converge()
		compare()
		for _, n := range c.nodes {
			n.kill()
		}
		c.nodes[3].powerCut()
		c.converge()
		compare()
		c.nodes[2].put("key 01", "a new change is above the old one")
		require.Positive(t, second2(c.nodes[2].r.Version([]byte("key 01"))).Compare(original["key 01"].Stamp))
		note(c.nodes[2], "key 01")
		c.converge()
		compare()
	})
}

func second2(v replicator.Version, _ error) replicator.Version { return v }

// TestInvariant6Quiet lets a mesh agree, and then looks for anything that is
// written or sent.
func TestInvariant6Quiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 6, 3).mesh()
		defer c.close()
		open := func() {
			for _, n := range c.nodes { // goleveldb's compactions would be writes, too
				if n.r == nil {
					openWith(n, &opt.Options{
						WriteBuffer: 8 << 20, DisableSeeksCompaction: true, CompactionL0Trigger: 1000, DisableLargeBatchTransaction: true,
					}, func(*replicator.Options) {})
				}
			}
		}
		open()
		write := func(nodes ...*node) {
			for i := range 300 {
				n := nodes[i%len(nodes)]
				key := fmt.Sprint("key ", c.rng.IntN(150))
				switch c.rng.IntN(5) {
				case 0:
					n.delete(key)
				case 1:
					n.put(key, strings.Repeat("x", 5000))
				default:
					n.put(key, fmt.Sprint("value ", i))
				}
			}
		}
		for name, before := range map[string]func(){
			"first":            func() { write(c.nodes...) },
			"after a conflict": func() { c.net.Isolate("n1"); write(c.nodes...) },
			"after a kill":     func() { write(c.nodes...); c.nodes[0].kill() },
			"after a cut":      func() { write(c.nodes...); time.Sleep(time.Second); c.nodes[1].powerCut() },
			"after a wipe":     func() { write(c.nodes[0]); c.nodes[2].replaceDisk(newSimDisk()) },
			"one writer":       func() { write(c.nodes[2]) },
		} {
			before()
			open()
			c.converge()
			time.Sleep(2 * time.Second) // until all is acknowledged
			c.round(t)
			c.quiet(t, name, 40, func() {})
			c.quiet(t, name+", with broken connections", 5, func() {
				c.net.Partition([]string{"n0"}, []string{"n1"}, []string{"n2"})
				time.Sleep(time.Duration(c.rng.IntN(1000)) * time.Millisecond)
				c.net.Heal()
			})
		}
	})
}

// TestInvariant6QuietEchoes counts the records that are sent: each once, and none
// back to where it came from, over the log and over full pulls.
func TestInvariant6QuietEchoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 6, 2).mesh()
		defer c.close()
		c.net.Partition([]string{"n1"})
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		for round := range 3 {
			beforeA, beforeB := a.carried(b), b.carried(a)
			c.net.Heal()
			for i := range 20 {
				a.fill(fmt.Sprint("a", round, i), 0, 30, 100*i)
				b.fill(fmt.Sprint("b", round, i), 0, 20, 0)
				time.Sleep(time.Duration(c.rng.IntN(300)) * time.Millisecond)
			}
			c.converge()
			time.Sleep(2 * time.Second)
			require.EqualValues(t, 20*20, a.carried(b)-beforeA)
			require.EqualValues(t, 20*30, b.carried(a)-beforeB)
			c.net.Partition([]string{"n1"})
		}
	})
}

// round lets all nodes sync.
func (c *cluster) round(t *testing.T) {
	for _, n := range c.nodes {
		require.NoError(t, n.sync())
	}
}

// quiet checks that rounds write nothing and send no records.
func (c *cluster) quiet(t *testing.T, name string, rounds int, before func()) {
	type activity struct {
		writes, syncs   int64
		head            uint64
		in, out, logged int64
	}
	measure := func() (all []activity) {
		for _, n := range c.nodes {
			status := n.r.Status()
			a := activity{n.disk.Writes(), n.disk.Syncs(), status.Head, 0, 0, int64(status.LogRecords)}
			for _, p := range status.Peers {
				a.in += p.RecordsIn
				a.out += p.RecordsOut
				require.Zero(t, p.Behind, "%s: %s is ahead of %s", name, p.Addr, n.name)
				require.Zero(t, p.Unconfirmed, "%s: %s has not acknowledged to %s", name, p.Addr, n.name)
			}
			all = append(all, a)
		}
		return all
	}
	was := measure()
	for range rounds {
		before()
		c.round(t)
		time.Sleep(time.Duration(c.rng.IntN(30)) * time.Second)
	}
	require.Equal(t, was, measure(), name)
}

// covered checks that all of a peer's changes that a cursor covers are here.
func covered(cursor replicator.Cursor, peer, here map[string]replicator.Row) error {
	for key, row := range peer {
		covers := row.Seq <= cursor.Checkpoint
		switch {
		case cursor.Log:
			covers = covers || cursor.Reached <= row.Seq && row.Seq <= cursor.Upper
		case cursor.Full:
			covers = row.Seq <= cursor.Upper && key <= cursor.Key
		}
		if covers && here[key].Compare(row.Stamp) < 0 {
			return fmt.Errorf("key %q: the cursor %+v covers %v, here is %v", key, cursor, row, here[key])
		}
	}
	return nil
}

// TestInvariant7CheckpointedNotEarly looks at the disk of a node at each of its
// operations during a full pull and a log pull, while the source writes on: the
// checkpoint found there covers nothing that is not there.
func TestInvariant7CheckpointedNotEarly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 7, 2)
		defer c.close()
		c.link(1, 0)
		source, n := c.nodes[0], c.nodes[1]
		c.open()
		c.converge()
		type image struct {
			disk *simDisk
			id   replicator.DatabaseID
		}
		id := source.r.Status().ID
		var images []image
		var mu sync.Mutex
		// observe captures images, and lets the source write a little every now and
		// then. Unlike in the rest of a test, any goroutine may call this.
		observe := func() {
			n.disk.SetFault(func(_ simOp, _ storage.FileDesc, i int64) error {
				mu.Lock()
				defer mu.Unlock()
				images = append(images, image{n.disk.Copy(), id})
				if i%7 == 0 {
					assert.NoError(t, source.r.Put(fmt.Appendf(nil, "k%05d", i*37%1200), fmt.Append(nil, "moved ", i), nil))
				}
				return nil
			})
		}
		for _, kind := range []string{"full", "log", "full again"} {
			c.net.Isolate("n1")
			for i := range 1200 {
				key := fmt.Sprintf("k%05d", c.rng.IntN(1200))
				switch {
				case i%100 == 0:
					source.put(key, strings.Repeat("fetched", 400))
				case i%9 == 0:
					source.delete(key)
				default:
					source.put(key, fmt.Sprint(kind, i))
				}
			}
			if kind == "full again" {
				n.powerCut()
				n.open()
			}
			observe()
			c.net.Heal()
			require.NoError(t, n.sync())
			time.Sleep(time.Second)
			n.disk.SetFault(nil)
		}
		c.converge()
		index := source.index()
		scans := map[string]int{}
		require.Greater(t, len(images), 50)
		for i, im := range images {
			onDisk(t, im.disk.Copy(), func(db *leveldb.DB) {
				cursor, err := replicator.StoredCursor(db, im.id)
				require.NoError(t, err)
				require.NoError(t, covered(cursor, index, indexOf(t, db)), "image %d", i)
				scans[fmt.Sprint("log ", cursor.Log, ", full ", cursor.Full)]++
			})
		}
		t.Log(len(images), "images:", scans)
		require.Len(t, scans, 3, "scans of each kind were caught in the middle")

		// From any of them, one sync leads to the end.
		n.close()
		for i := 0; i < len(images); i += 1 + len(images)/10 {
			n.replaceDisk(images[i].disk.Copy())
			if i%2 == 0 {
				n.powerCut()
			}
			n.open()
			require.NoError(t, n.sync())
			require.True(t, n.state().equal(source.state()), "image %d", i)
		}
		c.converge()
	})
}

// TestInvariant7CheckpointedNotTwice cuts the connections of a long pull at random
// bytes, and kills the puller now and then. What was merged is not sent again.
func TestInvariant7CheckpointedNotTwice(t *testing.T) {
	t.Parallel()
	const records = 4000
	for _, kind := range []string{"full", "log"} {
		for _, kills := range []bool{false, true} {
			name := kind
			if kills {
				name += " with kills"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newCluster(t, 7, 2)
					defer c.close()
					c.link(1, 0)
					source, n := c.nodes[0], c.nodes[1]
					c.open()
					if kind == "log" {
						source.put("first", "")
						c.converge()
					}
					c.net.Isolate("n1")
					source.fill("k", 0, records, 20)
					head, sent := n.r.Status().Head, int64(0)
					base := n.carried(source)
					cuts, killed := c.cutAt(40_000), 0
					c.net.Heal()
					for syncs := 0; n.sync() != nil; syncs++ {
						require.Less(t, syncs, 500, "no progress")
						if kills {
							sent += n.carried(source) - base
							base = 0
							n.kill()
							n.open()
							killed++
						}
					}
					sent += n.carried(source) - base
					t.Logf("%d records in %d connections, with %d kills: %d were sent", records, cuts.Load(), killed, sent)
					require.Greater(t, cuts.Load(), int64(5))
					require.GreaterOrEqual(t, sent, int64(records))
					// A process may die with a page that it has not committed yet.
					require.LessOrEqual(t, sent, int64(records+killed*pageSize))
					require.EqualValues(t, head+records, n.r.Status().Head, "something was merged twice")
					c.converge()
				})
			})
		}
	}
}

// cutAt lets each connection be cut after up to some number of bytes, and counts
// the connections.
func (c *cluster) cutAt(bytes int) *atomic.Int64 {
	count := new(atomic.Int64)
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
	c.net.SetCut(func(string, string) int {
		count.Add(1)
		return rng.IntN(bytes)
	})
	return count
}

// TestInvariant7CheckpointedValues cuts the connections in the middle of large
// values: those that have arrived are not fetched again.
func TestInvariant7CheckpointedValues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 7, 2)
		defer c.close()
		c.link(1, 0)
		source, n := c.nodes[0], c.nodes[1]
		c.open()
		const records, size, frame = 700, 6000, 512 << 10
		source.fill("k", 0, records, size)
		c.net.Partition([]string{"n1"})
		start := c.net.Bytes("n0", "n1")
		cuts := c.cutAt(1_500_000)
		c.net.Heal()
		for syncs := 0; n.sync() != nil; syncs++ {
			require.Less(t, syncs, 200, "no progress")
		}
		sent := c.net.Bytes("n0", "n1") - start
		t.Logf("%d bytes of values in %d connections: %d were sent", records*size, cuts.Load(), sent)
		require.LessOrEqual(t, sent, records*(size+200)+cuts.Load()*(frame+pageSize*100))
		require.EqualValues(t, records, n.r.Status().Head)
		c.converge()
	})
}

// TestInvariant7CheckpointedScans watches the cursor of pulls that are cut again
// and again while the source writes on: a scan is finished before a new one
// starts, over restarts too.
func TestInvariant7CheckpointedScans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 77, 2)
		defer c.close()
		c.link(1, 0)
		source, n := c.nodes[0], c.nodes[1]
		c.net.Partition([]string{"n1"})
		c.open()
		source.fill("k", 0, 3000, 10)
		var was replicator.Cursor
		finished, resumed := map[string]int{}, 0
		watch := func(is replicator.Cursor) {
			require.GreaterOrEqual(t, is.Checkpoint, was.Checkpoint)
			require.GreaterOrEqual(t, is.Seen, was.Seen)
			switch {
			case was.Log && is.Log && is.Checkpoint == was.Checkpoint:
				resumed++
				require.Equal(t, was.Upper, is.Upper, "another scan began before the last one was finished")
				require.LessOrEqual(t, is.Reached, was.Reached)
			case was.Log:
				finished["log"]++
				require.GreaterOrEqual(t, is.Checkpoint, was.Upper)
			case was.Full && is.Full && was.Upper > 0:
				resumed++
				require.Equal(t, was.Upper, is.Upper)
				require.GreaterOrEqual(t, is.Key, was.Key)
			case was.Full && was.Upper > 0:
				finished["full"]++
				require.GreaterOrEqual(t, is.Checkpoint, was.Upper)
			}
			was = is
		}
		c.cutAt(30_000)
		c.net.Heal()
		for step := range 30 {
			before := source.index()
			err := n.sync()
			watch(n.cursor(source))
			if err == nil {
				here := n.index()
				for key, row := range before {
					require.GreaterOrEqual(t, here[key].Compare(row.Stamp), 0, "SyncNow returned without %s", key)
				}
			}
			for range 700 {
				source.put(fmt.Sprintf("k%05d", c.rng.IntN(4000)), fmt.Sprint("step ", step))
			}
			switch step % 4 {
			case 1:
				n.kill()
			case 3:
				n.close()
			}
			n.open()
			watch(n.cursor(source))
		}
		t.Log(resumed, "resumed,", finished, "finished")
		require.Greater(t, resumed, 4)
		require.Positive(t, finished["full"])
		require.Positive(t, finished["log"])
		c.converge()
	})
}

// TestInvariant8Verified changes a source, or the one that pulls from it, behind
// the other's back. It comes to the right kind of pull, and to equal states.
func TestInvariant8Verified(t *testing.T) {
	t.Parallel()
	const base, more = 700, 40
	// Each case starts with a copy of both disks, with base keys, and more keys
	// written and merged after that; it ends with what has to be sent. A backup of
	// a machine that was not booted since counts as continued.
	type pair struct {
		*cluster
		source, n         *node
		sourceWas, nWas   *simDisk
		sourceBoot, nBoot int
	}
	restore := func(n *node, disk *simDisk, boot int) {
		n.replaceDisk(disk.Copy())
		n.boot = boot
		n.open()
	}
	const full, log, nothing = "full", "log", "nothing"
	for name, c := range map[string]struct {
		change func(p *pair)
		want   string
		exact  int // records, of a pull of the log
	}{
		"nothing": {func(p *pair) {}, nothing, 0},
		"source restarted": {func(p *pair) {
			p.source.close()
			p.source.open()
			p.source.fill("new", 0, more, 0)
		}, log, more},
		"source killed": {func(p *pair) {
			p.source.fill("new", 0, more, 0)
			p.source.kill()
			p.source.open()
			p.source.fill("new", more, 2*more, 0)
		}, log, 2 * more},
		"source restarted often": {func(p *pair) {
			for i := range 20 {
				p.source.kill()
				p.source.open()
				p.source.fill("new", i, i+1, 0)
			}
		}, log, 20},
		"source lost power": {func(p *pair) {
			p.source.powerCut()
			p.source.open()
			p.source.fill("new", 0, more, 0)
		}, full, 0},
		"source restored":             {func(p *pair) { restore(p.source, p.sourceWas, p.sourceBoot) }, full, 0},
		"source restored, other boot": {func(p *pair) { restore(p.source, p.sourceWas, p.newBoot()) }, full, 0},
		"source restored, up to the checkpoint": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			p.source.fill("new", 0, more, 0)
		}, full, 0},
		"source restored, beyond the checkpoint": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			p.source.fill("new", 0, 2*more, 0)
		}, full, 0},
		"source restored, epochs beyond the checkpoint": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			for i := range 2 * more {
				p.source.fill("new", i, i+1, 0)
				p.source.kill()
				p.source.open()
			}
		}, full, 0},
		"source said to be recovered": {func(p *pair) {
			p.source.close()
			openWith(p.source, nil, func(o *replicator.Options) { o.Recovered = true })
		}, full, 0},
		"source expired up to the checkpoint": {func(p *pair) {
			head := p.source.r.Status().Head
			p.source.fill("new", 0, more, 0)
			p.source.close()
			onDisk(t, p.source.disk, func(db *leveldb.DB) { require.NoError(t, replicator.ExpireLog(db, head+1)) })
			p.source.open()
		}, log, more},
		"source expired beyond the checkpoint": {func(p *pair) {
			head := p.source.r.Status().Head
			p.source.fill("new", 0, more, 0)
			p.source.close()
			onDisk(t, p.source.disk, func(db *leveldb.DB) { require.NoError(t, replicator.ExpireLog(db, head+2)) })
			p.source.open()
		}, full, 0},
		"puller restarted": {func(p *pair) {
			p.n.close()
			p.n.open()
			p.source.fill("new", 0, more, 0)
		}, log, more},
		"puller killed":               {func(p *pair) { p.n.kill(); p.n.open() }, nothing, 0},
		"puller lost power":           {func(p *pair) { p.n.powerCut(); p.n.open() }, full, 0},
		"puller restored":             {func(p *pair) { restore(p.n, p.nWas, p.nBoot) }, log, more},
		"puller restored, other boot": {func(p *pair) { restore(p.n, p.nWas, p.newBoot()) }, full, 0},
		"puller wiped":                {func(p *pair) { p.n.replaceDisk(newSimDisk()); p.n.open() }, full, 0},
		"puller said to be recovered": {func(p *pair) {
			p.n.close()
			openWith(p.n, nil, func(o *replicator.Options) { o.Recovered = true })
		}, full, 0},
		"both restored": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			restore(p.n, p.nWas, p.nBoot)
		}, nothing, 0},
		"both restored, source written": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			restore(p.n, p.nWas, p.nBoot)
			p.source.fill("new", 0, more, 0)
		}, log, more},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pair{cluster: newCluster(t, 8, 2)}
				defer p.close()
				p.link(1, 0)
				p.source, p.n = p.nodes[0], p.nodes[1]
				p.open()
				p.source.fill("k", 0, base, 0)
				p.converge()
				time.Sleep(time.Second)
				p.sourceWas, p.nWas = p.source.disk.Copy(), p.n.disk.Copy()
				p.sourceBoot, p.nBoot = p.source.boot, p.n.boot
				p.source.fill("more", 0, more, 0)
				p.converge()
				time.Sleep(time.Second)
				p.net.Partition([]string{"n1"})
				c.change(p)
				keys := len(p.source.index())
				before := p.n.carried(p.source)
				p.net.Heal()
				require.NoError(t, p.n.sync())
				here := p.n.index()
				for key, row := range p.source.index() {
					require.GreaterOrEqual(t, here[key].Compare(row.Stamp), 0, "SyncNow returned without %s", key)
				}
				p.converge()
				time.Sleep(time.Second) // until what moved the checkpoint only is stored
				sent := p.n.carried(p.source) - before
				switch c.want {
				case full:
					require.GreaterOrEqual(t, sent, int64(keys))
					require.LessOrEqual(t, sent, int64(keys+3*more))
				default:
					require.EqualValues(t, c.exact, sent)
				}
				cursor := p.n.cursor(p.source)
				require.Equal(t, p.source.r.Status().Head, cursor.Checkpoint)
				require.False(t, cursor.Full || cursor.Log)
				// From here on, the log is enough.
				before = p.n.carried(p.source)
				p.source.fill("last", 0, 3, 0)
				p.converge()
				require.EqualValues(t, 3, p.n.carried(p.source)-before)
			})
		})
	}
	t.Run("source wiped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 8, 2)
			defer c.close()
			c.link(0, 1)
			c.link(1, 0)
			c.open()
			c.nodes[0].fill("k", 0, base, 0)
			c.converge()
			c.nodes[0].replaceDisk(newSimDisk())
			c.nodes[0].open()
			require.NoError(t, c.nodes[0].sync())
			require.EqualValues(t, base, c.nodes[0].carried(c.nodes[1]))
			require.Len(t, c.nodes[0].state().values, base)
			c.converge()
			require.Zero(t, c.nodes[1].carried(c.nodes[0]))
		})
	})
}

// TestInvariant8VerifiedCleanMark closes a database while goleveldb has yet to
// write the table of a journal that it has rotated and never synced. If a power
// cut leaves the clean mark, it leaves all that was written before it.
func TestInvariant8VerifiedCleanMark(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		disk := newSimDisk()
		db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 8 << 10, DisableLargeBatchTransaction: true})
		require.NoError(t, err)
		r := openPlain(t, db, "boot")
		const changes = 50
		var images []*simDisk
		var mu sync.Mutex // guards images
		disk.SetFault(func(op simOp, fd storage.FileDesc, _ int64) error {
			mu.Lock()
			images = append(images, disk.PowerCut(nil))
			mu.Unlock()
			if op == simCreate && fd.Type == storage.TypeTable {
				time.Sleep(time.Second)
			}
			return nil
		})
		for i := range changes {
			require.NoError(t, r.Put(fmt.Append(nil, i), make([]byte, 200), nil))
		}
		require.NoError(t, r.Close())
		images = append(images, disk.PowerCut(nil))
		require.NoError(t, db.Close())
		marked := 0
		for i, image := range images {
			onDisk(t, image, func(db *leveldb.DB) {
				if isClean(t, db) {
					marked++
					require.Len(t, readRows(t, db).log, changes, "image %d of %d", i, len(images))
				}
			})
		}
		require.Positive(t, marked)
	})
}

// TestInvariant8VerifiedEpochs reopens a source so often that it has just not
// forgotten the epoch of a checkpoint, and then once more.
func TestInvariant8VerifiedEpochs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const keys, known = 30, 1024
		c := newCluster(t, 8, 2)
		defer c.close()
		c.link(1, 0)
		c.open()
		source, n := c.nodes[0], c.nodes[1]
		source.fill("k", 0, keys, 0)
		c.converge()
		c.net.Partition([]string{"n1"})
		source.close()
		onDisk(t, source.disk, func(db *leveldb.DB) {
			for range known - 2 {
				r := openPlain(t, db, fmt.Sprint("boot ", source.boot))
				require.NoError(t, r.Put([]byte("key"), nil, nil))
				require.NoError(t, r.Close())
			}
		})
		was := n.disk.Copy()
		for _, sent := range []int{1, keys + 1} {
			source.open()
			source.put("key", "")
			n.replaceDisk(was.Copy())
			n.open()
			c.net.Heal()
			require.NoError(t, n.sync())
			require.EqualValues(t, sent, n.carried(source))
			require.True(t, n.state().equal(source.state()))
			c.net.Partition([]string{"n1"})
			source.close()
		}
	})
}

// TestInvariant8VerifiedBeforeSyncNow restores a source, which makes as many new
// changes as it has lost. A checkpoint that is not verified yet must not satisfy
// SyncNow: no page is sent while it is called.
func TestInvariant8VerifiedBeforeSyncNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8, 2)
		defer c.close()
		c.link(1, 0)
		c.open()
		source, n := c.nodes[0], c.nodes[1]
		source.fill("k", 0, 20, 0)
		was := source.disk.Copy()
		source.fill("lost", 0, 10, 0)
		c.converge()
		time.Sleep(time.Second)
		c.net.Partition([]string{"n1"})
		source.replaceDisk(was)
		openWith(source, &opt.Options{DisableBlockCache: true}, func(*replicator.Options) {})
		source.fill("new", 0, 10, 0)
		require.NoError(t, source.db.CompactRange(util.Range{}))
		_, _ = source.get("k00000") // opens the table
		blocked := make(chan struct{})
		source.disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
			if op == simRead {
				<-blocked
			}
			return nil
		})
		c.net.Heal()
		synced := make(chan error, 1)
		go func() { synced <- n.sync() }()
		time.Sleep(5 * time.Second)
		returned := len(synced) > 0
		close(blocked)
		require.False(t, returned, "SyncNow returned, and no page had been sent")
		require.NoError(t, <-synced)
		_, has := n.get("new00009")
		require.True(t, has)
		c.converge()
	})
}

// TestInvariant8VerifiedSwept has a source lose power, sweep its log, and die
// before it writes anything: its log goes on above what was there.
func TestInvariant8VerifiedSwept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8, 2)
		defer c.close()
		c.link(1, 0)
		c.open()
		source, n := c.nodes[0], c.nodes[1]
		source.fill("k", 0, 30, 0)
		c.converge()
		time.Sleep(time.Second)
		c.net.Partition([]string{"n1"})
		source.powerCut()
		for range 3 {
			source.open()
			time.Sleep(time.Second)
			status := source.r.Status()
			require.Equal(t, status.Head+1, status.Floor)
			source.kill()
		}
		source.open()
		source.fill("new", 0, 5, 0)
		c.net.Heal()
		require.NoError(t, n.sync())
		require.True(t, n.state().equal(source.state()))
		source.kill()
		c.converge()
	})
}

// TestInvariant8VerifiedIdle has a source lose power, be pulled in full, and then
// be opened and closed without a change: its checkpoints stay what they are.
func TestInvariant8VerifiedIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8, 2)
		defer c.close()
		c.link(1, 0)
		c.open()
		source, n := c.nodes[0], c.nodes[1]
		source.fill("k", 0, 50, 0)
		c.converge()
		source.powerCut()
		source.open()
		c.converge()
		before := n.carried(source)
		for range 4 {
			source.close()
			source.open()
			c.converge()
			time.Sleep(time.Second)
		}
		require.Equal(t, before, n.carried(source), "records were sent again")
	})
}

// TestInvariant8VerifiedRecovered opens a database that has lost log records and
// the clock's ceiling, but not the index rows that were written with them: their
// sequences and clocks are not given out again.
func TestInvariant8VerifiedRecovered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		onDisk(t, newSimDisk(), func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			for i := range 20 {
				require.NoError(t, r.Put(fmt.Append(nil, i), nil, nil))
			}
			require.NoError(t, r.Close())
			require.NoError(t, replicator.LoseLog(db, 10))
			r, err := replicator.Open(db, &replicator.Options{Recovered: true})
			require.NoError(t, err)
			status := r.Status()
			require.Greater(t, status.Head, uint64(19))
			require.Greater(t, status.Clock, uint64(19))
			require.Equal(t, status.Head+1, status.Floor)
			for i := range 20 {
				require.NoError(t, r.Put(fmt.Append(nil, "new", i), nil, nil))
			}
			require.NoError(t, replicator.CheckConsistent(r))
			require.NoError(t, r.Close())
		})
	})
}

// largeValue is larger than the write buffer of a node's database.
var largeValue = make([]byte, 100<<10)

// holdCommit starts to write largeValue under a key, and returns when the value can
// be read, while the commit has yet to be over: leveldb is held up in what it does
// then with a batch that is larger than its write buffer. goOn lets it; over tells
// how the write ended.
func (n *node) holdCommit(key string, write func() error) (goOn func(), over <-chan error) {
	release, rotating := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	n.disk.SetFault(func(op simOp, fd storage.FileDesc, _ int64) error {
		if op != simCreate || fd.Type != storage.TypeJournal {
			return nil
		}
		if value, err := n.db.Get([]byte(key), nil); err == nil && len(value) == len(largeValue) && once.CompareAndSwap(false, true) {
			close(rotating)
			<-release
		}
		return nil
	})
	ended := make(chan error, 1)
	go func() { ended <- write() }()
	<-rotating
	return sync.OnceFunc(func() { close(release) }), ended
}

// TestInvariant8VerifiedUnpublished has a commit take its time after leveldb has
// shown it to readers: goleveldb does so if a batch is larger than its write
// buffer. A peer that has read the record does not come to doubt the log for it.
func TestInvariant8VerifiedUnpublished(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8, 2)
		defer c.close()
		c.link(1, 0)
		c.open()
		source, n := c.nodes[0], c.nodes[1]
		source.fill("k", 0, 100, 10)
		c.converge()
		time.Sleep(time.Second)
		c.net.Partition([]string{"n1"})
		for i := range 5 { // so many that the log as a whole is looked at
			source.put(fmt.Sprint("more", i), "")
		}
		goOn, over := source.holdCommit("large", func() error { return source.r.Put([]byte("large"), largeValue, nil) })
		defer goOn()
		before := n.carried(source)
		require.EqualValues(t, 105, source.r.Status().Head, "the record is visible, and its commit is not over")
		var writes atomic.Int64
		n.disk.SetFault(func(simOp, storage.FileDesc, int64) error {
			if writes.Add(1) == 300 {
				goOn() // or time would never pass
			}
			return nil
		})
		c.net.Heal()
		time.Sleep(time.Minute)
		require.EqualValues(t, 6, n.carried(source)-before, "more than the log was pulled")
		_, has := n.get("large")
		require.True(t, has)
		for range 5 { // each session asks for a page at once
			c.net.Partition([]string{"n1"})
			c.net.Heal()
			time.Sleep(3 * time.Second)
			require.EqualValues(t, 6, n.carried(source)-before, "more than the log was pulled in another session")
		}
		goOn()
		require.NoError(t, <-over)
		c.converge()
		require.EqualValues(t, 6, n.carried(source)-before)
	})
}

// TestInvariant9ConsistentUnpublished has a peer sync with a source while a commit
// can be seen that is not over. The record that it supersedes is not passed over
// without the one that takes its place.
func TestInvariant9ConsistentUnpublished(t *testing.T) {
	t.Parallel()
	for name, overwrite := range map[string]func(source *node) error{
		"put": func(source *node) error { return source.r.Put([]byte("k"), largeValue, nil) },
		"merge": func(source *node) error {
			version := replicator.Version{Stamp: replicator.Stamp{Clock: 1000, Origin: 1 << 63}}
			commit, err := replicator.Examine(source.r, replicator.Entry{Key: "k", Version: version, Value: string(largeValue)})
			if err == nil {
				_, err = commit()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 9, 2)
				defer c.close()
				c.link(1, 0)
				c.open()
				source, n := c.nodes[0], c.nodes[1]
				source.fill("first", 0, 10, 0)
				c.converge()
				time.Sleep(time.Second) // what was merged is acknowledged, so nothing waits for a commit
				c.net.Partition([]string{"n1"})
				source.put("k", "old")
				source.put("other", "")
				goOn, over := source.holdCommit("k", func() error { return overwrite(source) })
				defer goOn()
				c.net.Heal()
				require.NoError(t, n.sync())
				_, has := n.get("k")
				require.True(t, has)
				goOn()
				require.NoError(t, <-over)
				c.converge()
			})
		})
	}
}

// halfway lets n1 pull from n0, in a scan of several pages, during which the keys
// that are to come last move up the log. It freezes the network at the end of the
// scan: n1 has a checkpoint, does not have the keys, and knows that more is to
// come. It returns what SyncNow, called before that, will return.
func halfway(c *cluster, full bool) (synced chan error, moved int) {
	const base, keys = 10, 4*pageSize - 100
	source, n := c.nodes[0], c.nodes[1]
	c.link(1, 0)
	if full {
		c.net.Partition([]string{"n1"})
	}
	c.open()
	if !full {
		source.fill("base", 0, base, 0)
		c.converge()
		time.Sleep(time.Second)
		c.net.Partition([]string{"n1"})
	}
	// A log is read from its end, the state in key order.
	moved = pageSize / 2
	source.fill("k", 0, keys, 10)
	start := n.r.Status().Head
	var stage atomic.Int64
	n.disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
		if op != simWrite {
			return nil
		}
		switch head := n.r.Status().Head; {
		case head == start && n.r.Status().Peers[0].RecordsIn >= pageSize && stage.CompareAndSwap(0, 1):
			for i := range moved {
				key := fmt.Sprintf("k%05d", i)
				if err := source.r.Put([]byte(key), []byte("moved"), nil); err != nil {
					panic(err)
				}
			}
		case head == start+2*pageSize && stage.CompareAndSwap(1, 2):
			synctest.Wait() // the last page has arrived, the one after it is not asked for
			c.net.Freeze("n0", "n1")
		}
		return nil
	})
	synced = make(chan error, 1)
	c.net.Heal()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		synced <- n.r.SyncNow(ctx)
	}()
	time.Sleep(100 * time.Millisecond) // not synctest.Wait, which one goroutine may call at a time
	n.disk.SetFault(nil)
	require.EqualValues(c.t, 2, stage.Load())
	return synced, moved
}

// TestInvariant8VerifiedSeen restores a source to a moment that the checkpoint is
// at, but before the greatest head at which a page was read: the keys that had
// moved away in between are back where they were passed over.
func TestInvariant8VerifiedSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 8, 2)
		defer c.close()
		source, n := c.nodes[0], c.nodes[1]
		var was *simDisk
		// The copy is made when the source has all keys, but none has moved.
		source.disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
			if op == simWrite && source.r != nil && source.r.Status().Head == 10+4*pageSize-100 && was == nil {
				was = source.disk.Copy()
			}
			return nil
		})
		synced, moved := halfway(c, false)
		source.disk.SetFault(nil)
		require.NotNil(t, was)
		cursor := n.cursor(source)
		require.Less(t, cursor.Checkpoint, cursor.Seen)
		require.False(t, cursor.Log)
		before := n.carried(source)
		c.net.Partition([]string{"n1"})
		<-synced
		source.replaceDisk(was.Copy())
		source.open()
		require.Equal(t, cursor.Checkpoint, source.r.Status().Head)
		source.fill("other", 0, 2*moved, 0)
		c.net.Thaw("n0", "n1")
		c.net.Heal()
		require.NoError(t, n.sync())
		require.True(t, n.state().equal(source.state()))
		require.GreaterOrEqual(t, n.carried(source)-before, int64(len(source.index())))
		c.converge()
	})
}

// TestInvariant9ConsistentSeen freezes a pull when its first scan is over, but keys
// have moved up the log behind it: that satisfies no SyncNow, and is not
// acknowledged.
func TestInvariant9ConsistentSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 9, 2)
		defer c.close()
		source, n := c.nodes[0], c.nodes[1]
		synced, moved := halfway(c, false)
		for range 5 {
			cursor := n.cursor(source)
			require.False(t, cursor.Log, "the scan is over")
			require.EqualValues(t, 10+4*pageSize-100, cursor.Checkpoint)
			require.EqualValues(t, int(cursor.Checkpoint)+moved, cursor.Seen)
			_, has := n.get("k00000")
			require.False(t, has)
			require.Empty(t, synced, "SyncNow returned without what was there at the call")
			require.EqualValues(t, 10, cursor.Settled, "what is not there is going to be acknowledged")
			require.EqualValues(t, 10, c.acknowledged(source, n))
			require.NotEqual(t, "in sync", n.r.Status().Peers[0].State)
			time.Sleep(time.Second)
		}
		c.net.Thaw("n0", "n1")
		require.NoError(t, <-synced)
		require.True(t, n.state().equal(source.state()))
		time.Sleep(time.Second)
		require.Equal(t, source.r.Status().Head, c.acknowledged(source, n))
		require.Equal(t, source.r.Status().Head, n.cursor(source).Settled)
		c.converge()
	})
}

// acknowledged returns up to where a peer has told n to have made its log durable.
func (c *cluster) acknowledged(n, peer *node) uint64 {
	id := peer.r.Status().ID
	for _, p := range n.r.Status().Peers {
		if p.ID == id {
			return p.Acknowledged
		}
	}
	return 0
}

// TestInvariant9ConsistentValues overwrites keys in the midst of the reading of
// pages and values. Whatever a peer is found to have, at any moment, is what was
// written with that stamp; and SyncNow returns with all that was there at the call.
func TestInvariant9ConsistentValues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 9, 2)
		defer c.close()
		c.link(1, 0)
		source, n := c.nodes[0], c.nodes[1]
		n.open()
		n.delete("nothing") // so that large values are fetched from the beginning
		// What was there at first is read from the disk, block by block, and nobody
		// else reads that: nothing is compacted later.
		openWith(source, &opt.Options{DisableBlockCache: true, WriteBuffer: 32 << 20, DisableLargeBatchTransaction: true},
			func(*replicator.Options) {})
		const keys = 2 * pageSize
		written := map[replicator.Stamp]string{}
		var mu sync.Mutex // guards the writer's turn, and written
		count := 0
		overwrite := func(first, n int) {
			var batch leveldb.Batch
			var values []string
			for i := range n {
				key := fmt.Sprintf("k%05d", first+i)
				count++
				values = append(values, fmt.Sprint(count, " of ", key, strings.Repeat("v", count%4*500)))
				batch.Put([]byte(key), []byte(values[i]))
			}
			if err := source.r.Write(&batch, nil); err != nil {
				panic(err)
			}
			v, err := source.r.Version(fmt.Appendf(nil, "k%05d", first))
			if err != nil {
				panic(err)
			}
			for i, value := range values {
				written[replicator.Stamp{Clock: v.Clock + uint64(i), Origin: v.Origin}] = value
			}
		}
		overwrite(0, keys)
		require.NoError(t, source.db.CompactRange(util.Range{}))
		rng := rand.New(rand.NewPCG(9, 9))
		source.disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
			// Who has the turn reads, too.
			if op == simRead && mu.TryLock() {
				defer mu.Unlock()
				if n := 1 + rng.IntN(keys/3); count < 14*keys && rng.IntN(6) == 0 {
					overwrite(rng.IntN(keys-n), n)
				}
			}
			return nil
		})
		observed := map[replicator.Stamp]string{}
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				found := readRows(t, n.db)
				for key, row := range found.index {
					if was, has := observed[row.Stamp]; has && was != found.data[key] {
						assert.Equal(t, was, found.data[key], "the value of %s changed without its stamp", key)
						return
					}
					observed[row.Stamp] = found.data[key]
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
		for round := range 10 {
			mu.Lock()
			before := source.index()
			mu.Unlock()
			require.NoError(t, n.sync())
			here := n.index()
			for key, row := range before {
				require.GreaterOrEqual(t, here[key].Compare(row.Stamp), 0, "round %d: SyncNow returned without %s", round, key)
			}
			mu.Lock()
			for range pageSize {
				overwrite(rng.IntN(keys), 1)
			}
			mu.Unlock()
		}
		source.disk.SetFault(nil)
		c.converge()
		close(done)
		wg.Wait()
		for stamp, value := range observed {
			require.Equal(t, written[stamp], value, "at %v", stamp)
		}
		t.Logf("%d writes, %d of them observed", count, len(observed))
		require.Greater(t, len(observed), keys)
	})
}

// TestInvariant9ConsistentFetches overwrites all keys in the midst of the reading
// of values that a peer fetches, and looks at all that the peer ever commits.
func TestInvariant9ConsistentFetches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 9, 2)
		defer c.close()
		c.link(1, 0)
		source, n := c.nodes[0], c.nodes[1]
		n.open()
		n.delete("nothing") // so that large values are fetched from the beginning
		openWith(source, &opt.Options{DisableBlockCache: true, WriteBuffer: 8 << 20, DisableLargeBatchTransaction: true},
			func(*replicator.Options) {})
		const keys = 30
		written := map[replicator.Stamp]string{}
		overwrite := func(text string) {
			var batch leveldb.Batch
			clock := source.r.Status().Clock
			for i := range keys {
				value := fmt.Sprint(text, " of ", i, strings.Repeat("v", 2000))
				batch.Put(fmt.Appendf(nil, "k%05d", i), []byte(value))
				written[replicator.Stamp{Clock: clock + uint64(i), Origin: source.r.Status().Epoch}] = value
			}
			if err := source.r.Write(&batch, nil); err != nil {
				panic(err)
			}
		}
		overwritten := 0
		var mu sync.Mutex // guards images
		var images []*simDisk
		for round := range 12 {
			c.net.Partition([]string{"n1"})
			overwrite(fmt.Sprint("value ", round))
			require.NoError(t, source.db.CompactRange(util.Range{}))
			before, reads := n.carried(source), 0
			source.disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
				if op != simRead || n.r.Status().Peers[0].RecordsIn == before {
					return nil // the page is not even read
				}
				if reads++; reads == 1+2*round {
					overwritten++
					overwrite(fmt.Sprint("value in between ", round))
				}
				return nil
			})
			n.disk.SetFault(func(simOp, storage.FileDesc, int64) error {
				mu.Lock()
				defer mu.Unlock()
				images = append(images, n.disk.Copy())
				return nil
			})
			c.net.Heal()
			require.NoError(t, n.sync())
			source.disk.SetFault(nil)
			n.disk.SetFault(nil)
		}
		c.converge()
		require.Greater(t, overwritten, 8)
		for _, image := range append(images, n.disk.Copy()) {
			onDisk(t, image, func(db *leveldb.DB) {
				found := readRows(t, db)
				for key, row := range found.index {
					require.Equal(t, written[row.Stamp], found.data[key], "%s at %v", key, row)
				}
			})
		}
	})
}

// TestInvariant9ConsistentAcknowledgements looks at what a peer would have after a
// power cut: all that it has acknowledged.
func TestInvariant9ConsistentAcknowledgements(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 9, 2)
		defer c.close()
		c.link(1, 0)
		source, n := c.nodes[0], c.nodes[1]
		source.open()
		// Sync is no barrier to journals that were rotated before, so none is.
		openWith(n, &opt.Options{WriteBuffer: 8 << 20, DisableLargeBatchTransaction: true}, func(*replicator.Options) {})
		moves, was := 0, uint64(0)
		for range 50 {
			for range c.rng.IntN(100) {
				source.put(fmt.Sprint("key ", c.rng.IntN(500)), "value")
			}
			time.Sleep(time.Duration(c.rng.IntN(1200)) * time.Millisecond)
			acknowledged := c.acknowledged(source, n)
			if acknowledged != was {
				moves++
			}
			was = acknowledged
			index := source.index()
			onDisk(t, n.disk.PowerCut(nil), func(db *leveldb.DB) {
				require.NoError(t, covered(replicator.Cursor{Checkpoint: acknowledged}, index, indexOf(t, db)))
			})
		}
		t.Log(moves, "acknowledgements")
		require.Greater(t, moves, 10)
		time.Sleep(time.Second)
		require.Equal(t, source.r.Status().Head, c.acknowledged(source, n))
	})
}

// TestInvariant9ConsistentAcknowledgementsRestated breaks a connection before what
// was merged over it is made durable: the next session must not acknowledge it at
// once.
func TestInvariant9ConsistentAcknowledgementsRestated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 9, 2)
		defer c.close()
		c.link(1, 0)
		c.open()
		source, n := c.nodes[0], c.nodes[1]
		source.fill("first", 0, 10, 0)
		c.converge()
		time.Sleep(time.Second)
		source.fill("second", 0, 10, 0)
		require.NoError(t, n.sync())
		for range 100 {
			c.net.Partition([]string{"n1"})
			synctest.Wait()
			c.net.Heal()
			require.NoError(t, n.sync())
			time.Sleep(10 * time.Millisecond)
			acknowledged := c.acknowledged(source, n)
			onDisk(t, n.disk.PowerCut(nil), func(db *leveldb.DB) {
				require.NoError(t, covered(replicator.Cursor{Checkpoint: acknowledged}, source.index(), indexOf(t, db)))
			})
		}
		time.Sleep(time.Second)
		require.Equal(t, source.r.Status().Head, c.acknowledged(source, n))
	})
}

// TestInvariant9ConsistentAcknowledgementsGoOn writes without a pause: that must
// not keep a peer from acknowledging what it has.
func TestInvariant9ConsistentAcknowledgementsGoOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 9, 2)
		defer c.close()
		c.link(1, 0)
		c.open()
		source, n := c.nodes[0], c.nodes[1]
		const gap = 100 * time.Millisecond
		for i := range 600 {
			source.put("key", fmt.Sprint(i))
			time.Sleep(gap)
			behind := source.r.Status().Head - c.acknowledged(source, n)
			require.LessOrEqual(t, time.Duration(behind)*gap, 5*time.Second, "acknowledgements have stopped")
		}
	})
}
