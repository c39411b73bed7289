package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

func TestChainPropagatesBothWays(t *testing.T) {
	t.Parallel()
	for name, links := range map[string][][2]int{
		"dialled forth": {{0, 1}, {1, 2}}, "dialled back": {{1, 0}, {2, 1}},
		"from the middle": {{1, 0}, {1, 2}}, "to the middle": {{0, 1}, {2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 3, func(t *testing.T, c *cluster) {
				for _, l := range links {
					c.link(l[0], l[1])
				}
				c.open()
				a, b, z := c.nodes[0], c.nodes[1], c.nodes[2]
				a.put("forth", "value")
				z.arrives("forth", "value")
				z.put("back", "value")
				a.arrives("back", "value")
				large := strings.Repeat("large", 100_000) // not sent along with its record
				z.put("large", large)
				a.arrives("large", large)
				z.delete("forth")
				until(t, "the delete arrives", func() bool { _, found := a.get("forth"); return !found })

				// What the middle has from one end it passes on while that is away.
				a.put("forth", "again")
				b.arrives("forth", "again")
				z.close()
				a.put("relayed", large)
				b.arrives("relayed", large)
				a.close()
				z.open()
				z.arrives("relayed", large)
				require.Zero(t, c.net.Bytes("n0", "n2")+c.net.Bytes("n2", "n0"), "the ends never met")
				c.settleDown()
			})
		})
	}
}

func TestReplicaThatOnlyDials(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.nodes[0].open()
		c.nodes[1].open(dialOnly)
		require.Nil(t, c.nodes[1].r.Addr())
		require.Empty(t, c.nodes[1].r.Status().Listening)
		c.nodes[0].put("down", "value")
		c.nodes[1].arrives("down", "value")
		c.nodes[1].put("up", "value")
		c.nodes[0].arrives("up", "value")
		require.NoError(t, c.nodes[0].sync(), "SyncNow waits for peers that dialled in, too")
		require.Equal(t, replicator.DialedByUs, c.nodes[1].peer("n0").DialedBy)
		status := c.nodes[0].r.Status().Peers
		require.Len(t, status, 1)
		require.Equal(t, replicator.DialedByThem, status[0].DialedBy)
		require.False(t, status[0].Configured)
		require.Equal(t, c.nodes[1].r.Status().ID, status[0].ID)
	})
}

func TestStarOfReplicasThatOnlyDial(t *testing.T) {
	inCluster(t, 6, func(t *testing.T, c *cluster) {
		c.nodes[0].open()
		for i, n := range c.nodes[1:] {
			c.link(i+1, 0)
			n.open(dialOnly)
		}
		for _, n := range c.nodes {
			n.put("from "+n.name, "value")
			n.put("contended", n.name)
		}
		for _, n := range c.nodes {
			for _, m := range c.nodes {
				n.arrives("from "+m.name, "value")
			}
		}
		c.settleDown()
		require.Equal(t, len(c.nodes)-1, c.net.Connections())
		require.Len(t, c.nodes[0].r.Status().Peers, len(c.nodes)-1)
	})
}

func TestIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Skip("this machine has no ::1: ", err)
	}
	require.NoError(t, err)
	l.Close()
	a := wrap(t, memDB(t), &replicator.Options{Listen: "[::1]:0"})
	require.Regexp(t, `^\[::1\]:\d+$`, a.Addr().String())
	b := wrap(t, memDB(t), &replicator.Options{
		Listen: "[::1]:0", Peers: map[string]replicator.Meta{a.Addr().String(): nil},
	})
	require.NoError(t, a.AddPeer(b.Addr().String(), nil))
	require.NoError(t, a.Put([]byte("a"), []byte("value"), nil))
	require.NoError(t, b.Put([]byte("b"), []byte("value"), nil))
	for _, r := range []*replicator.Replicator{a, b} {
		require.NoError(t, r.SyncNow(t.Context()))
		for _, key := range []string{"a", "b"} {
			value, err := r.Get([]byte(key), nil)
			require.NoError(t, err)
			require.Equal(t, "value", string(value))
		}
	}
	require.Equal(t, a.Addr().String(), b.Status().Peers[0].Addr)
}

func TestBothDial(t *testing.T) {
	for range 10 { // ids and with them the decisions are random
		inCluster(t, 2, func(t *testing.T, c *cluster) {
			c.mesh().open()
			a, b := c.nodes[0], c.nodes[1]
			until(t, "a session", func() bool { return a.inSync("n1") && b.inSync("n0") })
			time.Sleep(90 * time.Second) // and not when the minute is over: each asks then who is at the address
			require.Equal(t, 1, c.net.Connections())
			require.ElementsMatch(t, []replicator.Side{replicator.DialedByUs, replicator.DialedByThem}, []replicator.Side{a.peer("n1").DialedBy, b.peer("n0").DialedBy})
			for _, n := range c.nodes {
				require.Len(t, n.r.Status().Peers, 1)
				require.Empty(t, n.r.Status().Peers[0].LastError)
			}
			a.put("a", "value")
			b.arrives("a", "value")
			b.put("b", "value")
			a.arrives("b", "value")
			require.NoError(t, a.sync())
			require.NoError(t, b.sync())
			time.Sleep(time.Second)
			require.Equal(t, 1, c.net.Connections())
		})
	}
}

// TestPeerUnderTwoAddresses gives both sides two names for the other.
func TestPeerUnderTwoAddresses(t *testing.T) {
	for range 5 {
		inCluster(t, 2, func(t *testing.T, c *cluster) {
			for i, n := range c.nodes {
				other := c.nodes[1-i].name
				c.net.Redirect(other+":1", other)
				c.net.Redirect(other+":2", other)
				n.open(func(o *replicator.Options) {
					o.Peers = map[string]replicator.Meta{other + ":1": {"name": "one"}, other + ":2": {"name": "two"}}
				})
			}
			a, b := c.nodes[0], c.nodes[1]
			until(t, "a session", func() bool { return a.inSync("n1:1") && a.inSync("n1:2") && b.inSync("n0:1") && b.inSync("n0:2") })
			time.Sleep(time.Minute)
			require.Equal(t, 1, c.net.Connections())
			status := a.r.Status().Peers
			require.Len(t, status, 2)
			require.Equal(t, b.r.Status().ID, status[0].ID)
			require.Equal(t, b.r.Status().ID, status[1].ID)
			require.Equal(t, "two", status[1].Meta["name"])
			b.put("key", "value")
			require.NoError(t, a.sync())
			require.Equal(t, map[string]string{"key": "value"}, a.state().values)

			// One name less is no session less.
			require.NoError(t, a.r.RemovePeer("n1:1"))
			until(t, "the other name serves", func() bool { return a.inSync("n1:2") && b.inSync("n0:1") && b.inSync("n0:2") })
			require.NoError(t, a.r.RemovePeer("n1:2"))
			b.put("key", "later")
			a.arrives("key", "later")
		})
	}
}

func TestOwnAddress(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 0)
		c.link(0, 1)
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		b.put("key", "value")
		a.arrives("key", "value")
		require.NoError(t, a.sync(), "all that is in its own log is there")
		require.Equal(t, replicator.StateSelf, a.peer("n0").State)
		require.Contains(t, a.peer("n0").LastError, "own")
		require.Len(t, a.r.Status().Peers, 2)
	})
}

func TestAddAndRemovePeers(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.open()
		a, b, z := c.nodes[0], c.nodes[1], c.nodes[2]
		require.ErrorIs(t, a.r.RemovePeer("n1"), replicator.ErrUnknownPeer)
		require.ErrorContains(t, a.r.AddPeer("", nil), "empty address")
		b.put("key", "value")
		require.NoError(t, a.r.AddPeer("n1", replicator.Meta{"name": "old"}))
		require.NoError(t, a.r.AddPeer("n1", replicator.Meta{"name": "new"}))
		a.arrives("key", "value")
		require.Equal(t, replicator.Meta{"name": "new"}, a.peer("n1").Meta)
		require.Equal(t, 1, c.net.Connections())

		require.NoError(t, a.r.RemovePeer("n1"))
		require.ErrorIs(t, a.r.RemovePeer("n1"), replicator.ErrUnknownPeer)
		until(t, "the session ends", func() bool { return c.net.Connections() == 0 && len(a.r.Status().Peers) == 0 })
		b.put("key", "later")
		time.Sleep(time.Minute)
		require.NoError(t, a.sync(), "nobody is left to sync with")
		require.Equal(t, map[string]string{"key": "value"}, a.state().values)

		// It can still dial in, and can be added again.
		require.NoError(t, b.r.AddPeer("n0", nil))
		a.arrives("key", "later")
		require.NoError(t, a.r.AddPeer("n1", nil))
		require.NoError(t, a.r.AddPeer("n2", nil))
		z.put("relayed", "value")
		b.arrives("relayed", "value")
		require.NoError(t, a.r.RemovePeer("n1"))
		a.put("key", "last of all")
		b.arrives("key", "last of all") // the session is b's own now, or comes back
		c.settleDown()
	})
}

// TestRemovePeerEndsSyncNow removes a peer while SyncNow waits for it.
func TestRemovePeerEndsSyncNow(t *testing.T) {
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		c.nodes[0].peers = []string{"n1"}
		c.nodes[0].open(func(o *replicator.Options) { o.Dial = hanging })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var err error
		done := make(chan struct{})
		go func() {
			err = c.nodes[0].r.SyncNow(ctx)
			close(done)
		}()
		synctest.Wait()
		require.NoError(t, c.nodes[0].r.RemovePeer("n1"))
		select {
		case <-done:
			var peer *replicator.PeerError
			require.ErrorAs(t, err, &peer)
		case <-time.After(time.Hour):
			require.Fail(t, "SyncNow still waits for a peer that was removed an hour ago")
		}
	})
}

func TestCloseEndsSyncNow(t *testing.T) {
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		c.nodes[0].peers = []string{"n1"}
		c.nodes[0].open(func(o *replicator.Options) { o.Dial = hanging })
		done := make(chan error, 1)
		r := c.nodes[0].r
		go func() { done <- r.SyncNow(context.Background()) }()
		synctest.Wait()
		start := time.Now()
		require.NoError(t, r.Close())
		require.ErrorIs(t, <-done, replicator.ErrClosed)
		require.Zero(t, time.Since(start))
	})
}

func TestSyncNowTellsWhomItDidNotReach(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.link(0, 2)
		c.link(0, 3)
		c.open()
		require.NoError(t, c.nodes[0].sync())
		c.net.Partition([]string{"n0", "n1", "n2"}, []string{"n3"})
		for i, n := range c.nodes {
			n.put(fmt.Sprint("key", i), "value")
		}
		err := c.nodes[0].sync()
		joined, ok := err.(interface{ Unwrap() []error })
		require.True(t, ok, "%T: %v", err, err)
		require.Len(t, joined.Unwrap(), 1)
		var peer *replicator.PeerError
		require.ErrorAs(t, err, &peer)
		require.Equal(t, "n3", peer.Addr)
		require.ErrorIs(t, peer, syscall.EHOSTUNREACH)
		require.ErrorContains(t, err, "peer n3: dial")
		require.Equal(t, map[string]string{"key0": "value", "key1": "value", "key2": "value"}, c.nodes[0].state().values)

		// It does not wait for the time of the next attempt.
		time.Sleep(time.Hour)
		c.net.Heal()
		start := time.Now()
		require.NoError(t, c.nodes[0].sync())
		require.Less(t, time.Since(start), 10*time.Millisecond)
		require.Contains(t, c.nodes[0].state().values, "key3")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.net.Freeze("n0", "n2")
		err = c.nodes[0].r.SyncNow(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorAs(t, err, &peer)
		require.Equal(t, "n2", peer.Addr)
		c.net.Thaw("n0", "n2")
	})
}

// TestSyncNowOutlivesItsConnection cuts the connection right before the call: the
// peer can be reached, so there is nothing to complain of.
func TestSyncNowOutlivesItsConnection(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.open()
		require.NoError(t, c.nodes[0].sync())
		for i := range 300 {
			c.nodes[1].put("key", fmt.Sprint(i))
			c.net.Isolate("n1")
			c.net.Heal()
			require.NoError(t, c.nodes[0].sync(), "round %d", i)
			got, _ := c.nodes[0].get("key")
			require.Equal(t, fmt.Sprint(i), got)
		}
	})
}

func TestHalfOpenConnection(t *testing.T) {
	for name, both := range map[string]bool{"one dials": false, "both dial": true} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(t *testing.T, c *cluster) {
				c.link(0, 1)
				if both {
					c.link(1, 0)
				}
				c.open()
				a, b := c.nodes[0], c.nodes[1]
				a.put("key", "value")
				b.arrives("key", "value")
				for range 3 {
					c.net.Freeze("n0", "n1")
					a.put("from a", time.Now().String())
					b.put("from b", time.Now().String())
					const limit = 25 * time.Second // Timeout and MaxInterval, and some
					time.Sleep(limit)
					require.Contains(t, []replicator.State{replicator.StateWaiting, replicator.StateConnecting}, a.peer("n1").State)
					require.NotEmpty(t, a.peer("n1").LastError)
					if !both {
						require.Empty(t, b.r.Status().Peers, "both ends notice")
					}
					time.Sleep(5 * time.Minute)
					c.net.Thaw("n0", "n1")
					fromA, _ := a.get("from a")
					fromB, _ := b.get("from b")
					time.Sleep(limit)
					got, _ := b.get("from a")
					require.Equal(t, fromA, got)
					got, _ = a.get("from b")
					require.Equal(t, fromB, got)
					require.Equal(t, 1, c.net.Connections())
				}
				c.settleDown()
			})
		})
	}
}
