package replicator_test

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

var (
	simSeeds = flag.Int("seeds", 0, "number of seeds that the simulation runs: 200, or what -short and -long make of it, if 0")
	simSteps = flag.Int("steps", 120, "number of steps of each simulation")
)

// TestSimulation lets small clusters do everything that can happen to them, and
// checks that all replicas end in the same state.
func TestSimulation(t *testing.T) {
	eachSeed(t, cmp.Or(*simSeeds, budget(20, 200, 2000)), func(t *testing.T, seed int64) {
		inSeeded(t, seed, 3+int(seed%5), func(t *testing.T, c *cluster) {
			s := &simulation{cluster: c}
			s.build()
			s.page()
			s.open()
			for step := range *simSteps {
				s.step(step)
				s.checkKnown()
			}
			s.converge()
		})
	})
}

type simulation struct {
	*cluster
	backups []backup
}

// backup is a consistent copy of a node's files. Somebody who starts it in the
// boot in which it was made has lost nothing that was in it.
type backup struct {
	disk *simtest.Disk
	boot int
}

// restore gives a node the files of a backup.
func (s *simulation) restore(n *node, b backup) {
	n.replaceDisk(b.disk.Copy())
	if s.rng.IntN(2) == 0 {
		n.boot = b.boot
	} else {
		n.boot = s.newBoot()
	}
}

// build chooses a topology, and who dials whom.
func (s *simulation) build() {
	n := len(s.nodes)
	link := func(a, b int) {
		switch s.rng.IntN(3) {
		case 0:
			s.link(a, b)
		case 1:
			s.link(b, a)
		default:
			s.link(a, b)
			s.link(b, a)
		}
	}
	topology := s.rng.IntN(4)
	for a := range n {
		for b := range a {
			chain, star, ring := a == b+1, b == 0, a == b+1 || a == n-1 && b == 0
			if [...]bool{true, chain, star, ring}[topology] {
				link(a, b)
			}
		}
	}
	s.trace("%d nodes, topology %s", n, [...]string{"mesh", "chain", "star", "ring"}[topology])
}

// page chooses how small pages are, and how often a scan goes on in key order.
func (s *simulation) page() {
	entries := []int{1, 2, 3, 5, 500}[s.rng.IntN(5)]
	oneIn := []int64{1, 2, 5, 1 << 62}[s.rng.IntN(4)]
	backlog := []int{0, 0, 1, 2000}[s.rng.IntN(4)]
	var pages atomic.Int64
	s.paging = func(o replicator.Options) *replicator.Options {
		o.BacklogBytes = backlog
		return replicator.WithPages(o, entries, func() bool { return pages.Add(1)%oneIn == 0 })
	}
	s.trace("pages of %d, one in %d goes on in key order, a backlog of %d bytes", entries, oneIn, backlog)
}

func (s *simulation) trace(format string, args ...any) {
	if *story {
		s.t.Logf("%v "+format, append([]any{time.Now().Format("15:04:05.000")}, args...)...)
	}
}

func (s *simulation) key() string { return fmt.Sprintf("key-%d", s.rng.IntN(12)) }

// value is unique, and now and then too large to be sent along.
func (s *simulation) value(step int) string {
	v := fmt.Sprintf("value of step %d", step)
	if s.rng.IntN(6) == 0 {
		v += strings.Repeat("x", 1000+s.rng.IntN(4000))
	}
	return v
}

// step lets one thing happen, and some time pass.
func (s *simulation) step(step int) {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	n.open()
	switch p := s.rng.IntN(100); {
	case p < 45:
		key := s.key()
		s.trace("%s puts %s", n.name, key)
		n.put(key, s.value(step))
	case p < 60:
		key := s.key()
		s.trace("%s deletes %s", n.name, key)
		n.delete(key)
	case p < 70:
		s.batch(n, step)
	case p < 74:
		var groups [2][]string
		for _, m := range s.nodes {
			g := s.rng.IntN(2)
			groups[g] = append(groups[g], m.name)
		}
		s.trace("partition %v", groups)
		s.net.Partition(groups[0], groups[1])
	case p < 79:
		s.trace("heal")
		s.net.Heal()
	case p < 82:
		s.trace("connections will be cut")
		rng := rand.New(rand.NewPCG(s.rng.Uint64(), 0)) // for the dialling goroutines
		s.net.SetCut(func(from, to string) int {
			if rng.IntN(2) == 0 {
				return -1
			}
			return rng.IntN(3000)
		})
	case p < 84:
		s.net.SetCut(nil)
	case p < 87:
		s.trace("%s restarts", n.name)
		n.close()
		n.open()
	case p < 90:
		s.trace("%s is closed", n.name)
		n.close()
	case p < 93:
		s.trace("%s is killed", n.name)
		n.kill()
	case p < 95:
		s.trace("%s loses power", n.name)
		n.powerCut()
	case p < 96:
		s.trace("%s is wiped", n.name)
		n.replaceDisk(simtest.NewDisk())
	case p < 97:
		s.trace("backup of %s", n.name)
		s.backups = append(s.backups, backup{n.disk.Copy(), n.boot})
	case p < 98:
		if len(s.backups) > 0 {
			s.trace("%s is restored from a backup", n.name)
			s.restore(n, s.backups[s.rng.IntN(len(s.backups))])
		}
	case p < 99:
		m := s.nodes[s.rng.IntN(len(s.nodes))]
		if m != n {
			s.trace("%s becomes a clone of %s", m.name, n.name)
			s.restore(m, backup{n.disk, n.boot})
		}
	default:
		s.trace("%s syncs", n.name)
		_ = n.sync() // as far as it can
	}
	if s.rng.IntN(3) == 0 {
		time.Sleep(time.Duration(s.rng.IntN(500)) * time.Millisecond)
	}
}

// batch writes several keys at once, one of them twice.
func (s *simulation) batch(n *node, step int) {
	var b leveldb.Batch
	last := map[string]string{}
	for i := range 2 + s.rng.IntN(4) {
		key := s.key()
		b.Put([]byte(key), []byte("gone at once"))
		if s.rng.IntN(4) == 0 {
			b.Delete([]byte(key))
			delete(last, key)
			continue
		}
		last[key] = fmt.Sprintf("%s, %d of a batch", s.value(step), i)
		b.Put([]byte(key), []byte(last[key]))
	}
	s.trace("%s writes a batch of %d", n.name, b.Len())
	require.NoError(s.t, n.r.Write(&b, nil))
	for key, value := range last {
		n.remember(key, value)
	}
}
