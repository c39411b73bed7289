package replicator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// TestWaitMerged waits for peers that are reached over another one, too.
func TestWaitMerged(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh().open()
		a := c.nodes[0]
		for i := range 20 {
			key := fmt.Sprint("key ", i)
			a.put(key, "value")
			start := time.Now()
			require.NoError(t, a.r.WaitMerged(within(t, time.Minute), 2))
			require.Less(t, time.Since(start), time.Second)
			for _, n := range c.nodes[1:] {
				_, there := n.get(key)
				require.True(t, there, n.name)
			}
		}
		require.NoError(t, a.r.WaitMerged(within(t, 0), 0))
		require.NoError(t, a.r.WaitMerged(within(t, 0), -1))
		require.ErrorIs(t, a.r.WaitMerged(within(t, time.Minute), 3), context.DeadlineExceeded, "there are two peers")
		// Whoever has stated it counts, though it is away by now.
		c.nodes[1].close()
		require.NoError(t, a.r.WaitMerged(within(t, time.Minute), 2))
		a.put("more", "value")
		require.NoError(t, a.r.WaitMerged(within(t, time.Minute), 1))
		require.ErrorIs(t, a.r.WaitMerged(within(t, time.Minute), 2), context.DeadlineExceeded)
	})
}

// TestWaitReplicatedAsksOnce: flushes are asked for once what is to be durable is
// merged, once in 100 ms, and not at all if a durable point stands already.
func TestWaitReplicatedAsksOnce(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		asked := []time.Time{}
		source, n = n, source // for the one that dials is tapped
		n.open()
		source.open(tapped(func(kind byte) {
			if kind == wireFlush {
				asked = append(asked, time.Now())
			}
		}))
		require.NoError(t, n.sync())
		source.put("first", "value")
		require.NoError(t, source.r.WaitReplicated(within(t, time.Minute), 1))
		require.Len(t, asked, 1)
		for range 10 {
			require.NoError(t, source.r.WaitReplicated(within(t, 0), 1), "it stands already")
		}
		time.Sleep(time.Minute)
		require.Len(t, asked, 1)
		start := time.Now()
		done := make(chan error, 100)
		for i := range 100 {
			go func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				if err := source.r.Put(fmt.Append(nil, "key ", i), []byte("value"), nil); err != nil {
					done <- err
					return
				}
				done <- source.r.WaitReplicated(within(t, time.Minute), 1)
			}()
		}
		for range 100 {
			require.NoError(t, <-done)
		}
		require.Less(t, time.Since(start), 3*time.Second)
		require.LessOrEqual(t, len(asked), 15)
		for i := range asked[1:] {
			require.GreaterOrEqual(t, asked[i+1].Sub(asked[i]), 100*time.Millisecond)
		}
	})
}

// TestFlushesAskedForAreFew: a peer that asks all the time does not keep the disk busy.
func TestFlushesAskedForAreFew(t *testing.T) {
	h := newHost(t, nil)
	hi := newWireHi()
	p := dialWire(t, h.Addr())
	p.join(hi)
	before := replicator.DurablePoints(h.Replicator)
	start := time.Now()
	for i := 0; time.Since(start) < time.Second; i++ {
		require.NoError(t, h.Put(fmt.Append(nil, "key ", i), []byte("value"), nil))
		p.say(wireFlush, nil)
		time.Sleep(time.Millisecond)
	}
	require.LessOrEqual(t, replicator.DurablePoints(h.Replicator)-before, uint64(12))
	require.Positive(t, replicator.DurablePoints(h.Replicator)-before)
}

// TestWaitReplicatedCountsReplicas, not ids nor processes: one that comes under a new
// id counts once, and one that goes on from a backup counts once it has caught up.
func TestWaitReplicatedCountsReplicas(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		a.put("key", "value")
		require.NoError(t, a.r.WaitReplicated(within(t, time.Minute), 1))
		require.NoError(t, replicator.RenewID(b.r))
		until(t, "the session under the new id", func() bool {
			peers := a.r.Status().Peers
			return len(peers) == 1 && peers[0].ID == b.r.Status().ID
		})
		require.NoError(t, a.r.WaitReplicated(within(t, time.Minute), 1))
		require.ErrorIs(t, a.r.WaitReplicated(within(t, time.Minute), 2), context.DeadlineExceeded)
		backup := b.disk.Copy()
		a.put("later", "value")
		require.NoError(t, a.r.WaitReplicated(within(t, time.Minute), 1))
		b.replaceDisk(backup)
		until(t, "the end of the session", func() bool { return len(a.r.Status().Peers) == 0 })
		b.boot = c.newBoot()
		c.net.SetDelay("n0", "n1", 300*time.Millisecond)
		b.open()
		start := time.Now()
		for {
			require.Less(t, time.Since(start), time.Minute)
			connected := len(a.r.Status().Peers) == 1 // until then, what it stated before counts
			err := a.r.WaitReplicated(within(t, 10*time.Millisecond), 1)
			_, there := b.get("later")
			require.False(t, err == nil && connected && !there, "the backup lacks what it is said to hold")
			if there {
				break
			}
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, a.r.WaitReplicated(within(t, time.Minute), 1))
	})
}

// TestWaitReplicatedOwnIDs: what peers have stated counts for the id and the epoch in
// which they were told.
func TestWaitReplicatedOwnIDs(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.open()
		a := c.nodes[0]
		a.put("key", "value")
		require.NoError(t, a.r.WaitReplicated(within(t, time.Minute), 1))
		c.net.Isolate("n0")
		time.Sleep(time.Minute)
		require.NoError(t, a.r.WaitReplicated(within(t, 0), 1), "it has been stated")
		require.NoError(t, replicator.RenewID(a.r))
		require.ErrorIs(t, a.r.WaitReplicated(within(t, time.Minute), 1), context.DeadlineExceeded)
		c.net.Heal()
		require.NoError(t, a.r.WaitReplicated(within(t, time.Minute), 1))
		c.net.Isolate("n0")
		waited := make(chan error, 1)
		a.put("in doubt", "value")
		go func() { waited <- a.r.WaitReplicated(context.Background(), 1) }()
		time.Sleep(time.Second)
		require.NoError(t, replicator.BeginEpoch(a.r))
		c.net.Heal()
		require.ErrorContains(t, <-waited, "image")
	})
}

// TestWaitReplicatedOutlivesPowerCuts: what a wait has confirmed is held by as many
// peers, though all of them lose their power at that moment, and the writer is gone.
func TestWaitReplicatedOutlivesPowerCuts(t *testing.T) {
	eachSeed(t, budget(10, 60, 2000), func(t *testing.T, seed int64) {
		inSeeded(t, seed, 4, func(t *testing.T, c *cluster) {
			for a := range c.nodes {
				for b := range a {
					if c.rng.IntN(4) > 0 || b == a-1 {
						c.link(a, b)
					}
				}
			}
			if c.rng.IntN(2) == 0 {
				c.durableEvery = time.Duration(1+c.rng.IntN(20)) * time.Second
			}
			c.open()
			writer := c.nodes[0]
			type confirmed struct {
				keys int
				n    int
				disk []*simtest.Disk
			}
			keys := 0
			for range 6 {
				for range c.rng.IntN(40) {
					writer.put(fmt.Sprintf("key %05d", keys), fmt.Sprint("value ", keys))
					keys++
				}
				other := c.nodes[1+c.rng.IntN(3)]
				cut := false // and perhaps yet unnoticed by the writer: merged is not kept over it
				switch c.rng.IntN(6) {
				case 0:
					cut = true
					other.powerCut()
					other.open()
				case 1:
					other.kill()
					other.open()
				case 2:
					c.net.Isolate(other.name)
				case 3:
					c.net.Heal()
				case 4:
					other.put(fmt.Sprint("other ", keys), "value")
				}
				n := 1 + c.rng.IntN(3)
				durable := c.rng.IntN(4) > 0 || cut
				wait := writer.r.WaitReplicated
				if !durable {
					wait = writer.r.WaitMerged
				}
				if wait(within(t, time.Duration(1+c.rng.IntN(30))*time.Second), n) != nil {
					continue
				}
				got := confirmed{keys: keys, n: n}
				for _, peer := range c.nodes[1:] {
					disk := peer.disk.Copy()
					if durable {
						disk = peer.disk.PowerCut(simtest.Drop)
					}
					got.disk = append(got.disk, disk)
				}
				holders := 0
				for _, disk := range got.disk {
					lacks := 0
					onDisk(t, disk, func(db *leveldb.DB) {
						for i := range got.keys {
							if has, err := db.Has(fmt.Appendf(nil, "key %05d", i), nil); err != nil || !has {
								lacks++
							}
						}
					})
					if lacks == 0 {
						holders++
					}
				}
				require.GreaterOrEqual(t, holders, got.n, "durable: %v", durable)
			}
			c.net.Heal()
		})
	})
}
