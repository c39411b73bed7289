package replicator_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// What held up a replica, or could, before there was a vector. Four more such tests are
// beside the table of known failures, where they were when the faults were found.

// flood sends pongs, four times as many bytes as a slow peer has to send to keep its turn
// to be scanned.
func (p *wirePeer) flood() {
	go func() {
		for {
			if _, err := p.Write(wireFrame(wirePong, []byte{0, 1})); err != nil {
				return
			}
			var pongs []byte
			for range 50 {
				pongs = append(pongs, wireFrame(wirePong, []byte{0, 1})...)
			}
			if _, err := p.Write(pongs); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
}

// TestFetchAnsweredWithPongs: a peer offers a large value, and answers the fetch with
// pongs. That is no progress: the session ends. Meanwhile a put from a good peer arrives
// as it always does.
func TestFetchAnsweredWithPongs(t *testing.T) {
	t.Parallel()
	h, good := newHost(t, nil), newHost(t, nil)
	require.NoError(t, good.AddPeer(h.Addr().String(), nil))
	arrives := func(key string) {
		start := time.Now()
		require.NoError(t, good.Put([]byte(key), []byte("value"), nil))
		require.Eventually(t, func() bool { _, err := h.Get([]byte(key), nil); return err == nil }, 5*time.Second, time.Millisecond)
		t.Logf("%s arrived within %v", key, time.Since(start))
	}
	arrives("before")
	hi := newWireHi()
	c := dialWire(t, h.Addr())
	c.join(hi)
	c.say(wirePage, wireFullPage(hi.epoch, 1, wireEntry{key: "large", clock: 1000, origin: hi.epoch, size: 4 << 20}))
	c.await(wireFetch, 1)
	start := time.Now()
	c.flood()
	arrives("meanwhile")
	require.Less(t, time.Since(start), time.Second, "the good peer was held up")
	_, text := c.awaitBye()
	require.Contains(t, text, "did not send values")
	require.Less(t, time.Since(start), 5*time.Second) // two Timeouts, and what this machine takes
	h.goesOn()
}

// TestTurnIsNotKeptByPongs: a peer begins a scan, and sends pongs in the place of its
// second page. Another one, that has to be scanned too, gets its turn.
func TestTurnIsNotKeptByPongs(t *testing.T) {
	t.Parallel()
	h := newHost(t, nil)
	hi := newWireHi()
	c := dialWire(t, h.Addr())
	c.join(hi)
	page := binary.AppendUvarint(nil, 4|16|256) // first, whole, keys: there is more
	page = wireStamps(wirePlace(page, hi.epoch, 1))
	page = append(wireBytes(page, "a"), 1)
	c.say(wirePage, wireEntry{key: "a", clock: 1000, origin: hi.epoch, value: "value"}.append(page))
	c.await(wirePull, 1)
	c.flood()
	good := newHost(t, nil)
	for i := range 2000 {
		require.NoError(t, good.Put(fmt.Appendf(nil, "key %04d", i), []byte("value"), nil))
	}
	require.NoError(t, good.AddPeer(h.Addr().String(), nil))
	require.Eventually(t, func() bool { _, err := h.Get([]byte("key 1999"), nil); return err == nil }, 12*time.Second, 10*time.Millisecond,
		"the turn is kept by pongs")
}

// TestFastNeighbourIsNotHeldUp: a large value comes over a link that takes an hour for
// it. A put from a fast neighbour is there as soon as ever, though it has the large value,
// too, and though more of what the slow one brings is older than what the fast one has.
func TestFastNeighbourIsNotHeldUp(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.paging = func(o replicator.Options) *replicator.Options {
			unblocked(&o)
			return &o
		}
		slow, fast, n := c.nodes[0], c.nodes[1], c.nodes[2]
		c.link(2, 0)
		c.link(2, 1)
		c.open()
		c.round(t)
		usual := make([]time.Duration, 0, 40)
		put := func(key string) time.Duration {
			start := time.Now()
			fast.put(key, "value")
			for {
				if _, there := n.get(key); there {
					return time.Since(start)
				}
				require.Less(t, time.Since(start), time.Minute, "%s is held up", key)
				time.Sleep(time.Millisecond)
			}
		}
		for i := range 20 {
			usual = append(usual, put(fmt.Sprint("before ", i)))
		}
		c.net.SetSpeed(n.name, slow.name, 1<<10)
		slow.put("large", strings.Repeat("large", 800_000))
		slow.fill("small", 0, 100, 10)
		time.Sleep(time.Minute)
		_, there := n.get("large")
		require.False(t, there)
		for i := range 20 {
			took := put(fmt.Sprint("meanwhile ", i))
			require.LessOrEqual(t, took, 2*usual[i]+2*time.Millisecond)
			time.Sleep(time.Second)
		}
		c.net.SetSpeed(n.name, slow.name, 0)
	})
}

// TestNothingStarvesUnderLoad: 6,000 puts a second, and now and then 3,000 at once, that a
// puller over a link with a round trip of 50 ms just keeps up with, from memory or from
// disk: a page holds 7,000 a second. SyncNow returns soon, with what was there at the
// call, and what is merged is acknowledged.
func TestNothingStarvesUnderLoad(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string]bool{"memory": false, "disk": true} {
		t.Run(name, func(t *testing.T) {
			inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
				c.durableEvery = 500 * time.Millisecond
				c.paging = func(o replicator.Options) *replicator.Options {
					if disk {
						o.BacklogBytes = 1
					}
					return replicator.WithPages(o, 350, func() bool { return false })
				}
				for _, n := range c.nodes {
					n.ldb.WriteBuffer = roomy
				}
				c.open()
				require.NoError(t, n.sync())
				c.net.SetDelay(n.name, source.name, 25*time.Millisecond)
				r, stop, stopped := source.r, make(chan struct{}), make(chan int, 1)
				go func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							stopped <- i
							return
						case <-time.After(5 * time.Millisecond):
						}
						for j := range 30 {
							if r.Put(fmt.Appendf(nil, "key %d %d", i, j), []byte("value"), nil) != nil {
								stopped <- i // the test has failed
								return
							}
						}
					}
				}()
				rounds := budget(1, 2, 3)
				for range rounds {
					time.Sleep(500 * time.Millisecond)
					for i := range 3000 {
						source.put(fmt.Sprint("at once ", i), "value")
					}
					head, start := source.r.Status().Head, time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					require.NoError(t, n.r.SyncNow(ctx))
					cancel()
					t.Logf("SyncNow took %v, acknowledged are all but %d", time.Since(start), head-min(head, source.acknowledged(n)))
					require.Less(t, time.Since(start), 4*time.Second)
					require.GreaterOrEqual(t, n.cursor(source).Checkpoint, head)
					require.LessOrEqual(t, head-min(head, source.acknowledged(n)), uint64(6000*3), "acknowledgements have stopped")
				}
				close(stop)
				require.Greater(t, <-stopped, 80*rounds)
				c.converge()
			})
		})
	}
}

// TestUnconfirmedReachesZero: in a mesh of three, one writes all the time, more often than
// peers are told up to where they have what they know already. Most of the time nothing
// is unconfirmed at the others, neither by the writer nor by each other.
func TestUnconfirmedReachesZero(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.durableEvery = 25 * time.Millisecond
		c.mesh().open()
		for _, n := range c.nodes {
			n.put("of "+n.name, "value")
		}
		c.converge()
		time.Sleep(time.Second)
		zero := map[string]int{}
		const writes, samples = 100, 20
		for i := range writes {
			c.nodes[0].put(fmt.Sprint("key ", i%7), fmt.Sprint(i))
			for range samples {
				time.Sleep(3 * time.Millisecond)
				for _, m := range c.nodes[1:] {
					for _, p := range c.nodes {
						if m != p && known(m.statusOf(p).Unconfirmed) == "0" {
							zero[m.name+" of "+p.name]++
						}
					}
				}
			}
		}
		t.Log(zero)
		for _, pair := range []string{"n1 of n0", "n1 of n2", "n2 of n0", "n2 of n1"} {
			require.Greater(t, zero[pair], writes*samples*4/10, "%s, of %d", pair, writes*samples)
		}
	})
}
