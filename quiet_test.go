package replicator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// TestQuiet lets a mesh agree, and then looks for anything that is
// written or sent.
func TestQuiet(t *testing.T) {
	t.Parallel()
	inSeeded(t, 6, 3, func(t *testing.T, c *cluster) {
		c.mesh()
		c.durableEvery = time.Second
		for _, n := range c.nodes { // goleveldb's compactions would be writes, too
			n.ldb = opt.Options{
				WriteBuffer: 8 << 20, DisableSeeksCompaction: true, CompactionL0Trigger: 1000, DisableLargeBatchTransaction: true,
			}
		}
		c.open()
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
			"after a wipe":     func() { write(c.nodes[0]); c.nodes[2].replaceDisk(simtest.NewDisk()) },
			"one writer":       func() { write(c.nodes[2]) },
		} {
			before()
			c.open()
			c.converge()
			time.Sleep(4 * time.Second) // until all is acknowledged
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

// TestQuietClose: that a peer is closed in order is no warning.
func TestQuietClose(t *testing.T) {
	dialed, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	h := newHost(t, nil)
	require.NoError(t, h.AddPeer(dialed.Addr().String(), nil))
	require.NoError(t, h.SyncNow(within(t, 5*time.Second)))
	require.NoError(t, dialed.Close())
	h.logged("level=INFO", "the peer was closed")
	h.logged("level=WARN", "no session with peer")
	require.NotContains(t, h.log.String(), "session ended")
}

// TestQuietEchoes counts the records that are sent: each once, and none
// back to where it came from, over the log and over full pulls.
func TestQuietEchoes(t *testing.T) {
	t.Parallel()
	inSeeded(t, 6, 2, func(t *testing.T, c *cluster) {
		c.mesh()
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
				require.Equal(t, "0", known(p.Behind), "%s: %s is ahead of %s", name, p.Addr, n.name)
				require.Equal(t, "0", known(p.Unconfirmed), "%s: %s has not acknowledged to %s", name, p.Addr, n.name)
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
