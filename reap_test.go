package replicator_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
)

// reaping has the nodes forget deletions after an age.
func (c *cluster) reaping(age time.Duration) *cluster {
	c.durableEvery = time.Second
	c.expiring(time.Second, 1000, 10_000)
	return c.with(func(o *replicator.Options) { o.TombstoneAge = age })
}

// with changes the options of all nodes.
func (c *cluster) with(change func(o *replicator.Options)) *cluster {
	before := c.paging
	c.paging = func(o replicator.Options) *replicator.Options {
		change(&o)
		return before(o)
	}
	return c
}

// tombstones counts the deleted keys of a node.
func (n *node) tombstones() (count int) {
	for _, row := range n.index() {
		if row.Deleted {
			count++
		}
	}
	return count
}

// reaped waits until the open nodes have no tombstones left.
func (c *cluster) reaped() {
	for _, n := range c.nodes {
		if n.r != nil {
			until(c.t, n.name+" has reaped all", func() bool { return n.tombstones() == 0 })
			require.NoError(c.t, replicator.CheckConsistent(n.r))
		}
	}
}

// live returns the live keys of a node, with their versions.
func (n *node) live() map[string]replicator.Version {
	rows := versionsOf(n.index())
	maps.DeleteFunc(rows, func(_ string, v replicator.Version) bool { return v.Deleted })
	return rows
}

// agree waits until the live keys of the open nodes are those that are told.
func (c *cluster) agree(keys ...string) {
	slices.Sort(keys)
	var first *node
	for _, n := range c.nodes {
		if n.r == nil {
			continue
		}
		if first == nil {
			first = n
		}
		for i := 0; i < 60 && !slices.Equal(sortedKeys(n.live()), keys); i++ {
			time.Sleep(time.Second)
		}
		require.Equal(c.t, keys, sortedKeys(n.live()), n.name)
		require.Equal(c.t, first.live(), n.live(), n.name)
		require.NoError(c.t, replicator.CheckConsistent(n.r))
	}
}

// inReaped has two nodes that dial each other agree on a, b and c, of which c was deleted
// and reaped, and gives a copy of the second one's files from when it was there.
func inReaped(t *testing.T, test func(t *testing.T, c *cluster, n, old *node)) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		n, old := c.nodes[0], c.nodes[1]
		for _, key := range []string{"a", "b", "c"} {
			n.put(key, "of "+key)
		}
		c.converge()
		disk := old.closedDisk()
		n.delete("c")
		c.converge()
		c.reaped()
		c.agree("a", "b")
		old.replaceDisk(disk)
		test(t, c, n, old)
	})
}

// TestReap: tombstones go on all replicas once they are of age and durable everywhere. All
// stay in sync, over restarts of all kinds.
func TestReap(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		for i, n := range c.nodes {
			for k := range 30 {
				n.put(fmt.Sprint("k", k), fmt.Sprint("value ", i))
			}
		}
		c.converge()
		for k := range 25 {
			c.nodes[k%3].delete(fmt.Sprint("k", k))
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, 25, c.nodes[0].tombstones())
		c.reaped()
		keys := []string{"k25", "k26", "k27", "k28", "k29"}
		c.agree(keys...)
		require.NotEmpty(t, replicator.Reaped(c.nodes[0].r))
		require.EqualValues(t, 25, c.nodes[0].r.Status().Tombstones.Reaped)
		for i, end := range []func(*node){(*node).close, (*node).kill, (*node).powerCut} {
			before := replicator.Reaped(c.nodes[i].r)
			end(c.nodes[i])
			c.open()
			if i < 2 { // a power cut may bring the last tombstones back
				require.Equal(t, before, replicator.Reaped(c.nodes[i].r))
			}
			c.nodes[(i+1)%3].put("new", fmt.Sprint(i))
			c.converge()
			c.nodes[i].delete("new")
			c.converge()
			c.reaped()
			c.agree(keys...)
			for _, n := range c.nodes {
				for _, p := range n.r.Status().Peers {
					require.Nil(t, p.Stale)
					require.Equal(t, replicator.StateInSync, p.State)
				}
				d, err := n.r.Compare(t.Context(), c.nodes[(i+1)%3].name)
				if n != c.nodes[(i+1)%3] {
					require.NoError(t, err)
					require.True(t, d.Equal)
				}
			}
		}
	})
}

// TestReapWaits: a tombstone stays while a known peer has not stated to have it durably,
// and until the peer was not seen for PeerAge, or is forgotten; without a peer it stays.
func TestReapWaits(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).with(func(o *replicator.Options) { o.PeerAge = time.Hour })
		n, away := c.nodes[0], c.nodes[1]
		n.open()
		n.put("k", "v")
		n.delete("k")
		time.Sleep(5 * time.Minute)
		require.Equal(t, 1, n.tombstones(), "no peer was met")
		away.open()
		c.converge()
		c.reaped()
		away.close()
		n.put("l", "v")
		n.delete("l")
		time.Sleep(5 * time.Minute)
		require.Equal(t, 1, n.tombstones(), "the peer had one, and lacks the other")
		held := n.r.Status().Tombstones
		require.EqualValues(t, 1, *held.Waiting)
		require.NotNil(t, held.HeldFor)
		n.close()
		n.open()
		time.Sleep(5 * time.Minute)
		require.Equal(t, 1, n.tombstones(), "the peer has stated nothing since the opening")
		time.Sleep(2 * time.Hour)
		require.Zero(t, n.tombstones())
		require.Nil(t, n.r.Status().Tombstones.HeldFor)
		away.open()
		time.Sleep(time.Minute)
		require.NotNil(t, n.peer("n1").Stale)
		done, err := away.r.Rejoin(t.Context(), "n0", nil)
		require.NoError(t, err)
		require.Zero(t, done.Dropped)
		c.converge()
		away.close()
		n.delete("l")
		time.Sleep(5 * time.Minute)
		require.Equal(t, 1, n.tombstones())
		require.NoError(t, n.r.Forget(held.HeldFor.ID))
		time.Sleep(5 * time.Minute)
		require.Equal(t, 1, n.tombstones(), "no peer is known any more")
	})
}

// TestNotResurrected: an old copy of a replica exchanges nothing with one that has
// forgotten deletions: both sides tell. It rejoins when that is asked for: what was
// deleted goes, what is new on either side stays.
func TestNotResurrected(t *testing.T) {
	t.Parallel()
	inReaped(t, func(t *testing.T, c *cluster, n, old *node) {
		old.open()
		old.put("here", "new")
		n.put("there", "new")
		time.Sleep(time.Minute)
		for _, at := range []*node{n, old} {
			p := at.peer(c.nodes[1-slices.Index(c.nodes, at)].name)
			require.Equal(t, replicator.StateStale, p.State)
			require.NotNil(t, p.Stale)
			require.Equal(t, at == old, p.Stale.Here)
			require.Equal(t, at == n, p.Stale.There)
			require.NotZero(t, p.Stale.Waiting)
			require.ErrorIs(t, at.sync(), replicator.ErrStale)
			_, err := at.r.Compare(t.Context(), p.Addr)
			require.ErrorIs(t, err, replicator.ErrStale)
		}
		require.Equal(t, []string{"a", "b", "c", "here"}, sortedKeys(old.live()))
		_, err := n.r.Rejoin(t.Context(), "n1", nil)
		require.ErrorIs(t, err, replicator.ErrStale, "it is not the stale one")
		told := 0
		done, err := old.r.Rejoin(t.Context(), "n0", &replicator.RejoinOptions{Progress: func(replicator.Rejoined) { told++ }})
		require.NoError(t, err)
		require.NotZero(t, told)
		require.Equal(t, replicator.Rejoined{Merged: 1, Dropped: 1, Kept: 1, PutAgain: 1}, done)
		require.NoError(t, old.sync())
		c.agree("a", "b", "here", "there")
		require.Nil(t, n.peer("n1").Stale)
		done, err = old.r.Rejoin(t.Context(), "n0", nil)
		require.NoError(t, err)
		require.Zero(t, done)
		for _, end := range []func(){old.kill, old.powerCut, old.close} {
			end()
			old.open()
			c.converge()
			c.agree("a", "b", "here", "there")
		}
	})
}

// TestRejoinOldWriter: an old copy of a replica that only ever made changes itself is no new
// one, though it knows no changes of others: it drops nothing unless it is told to.
func TestRejoinOldWriter(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		n := c.nodes[0]
		n.put("a", "1")
		n.put("c", "1")
		c.converge()
		disk := n.closedDisk()
		n.delete("c")
		c.converge()
		c.reaped()
		n.replaceDisk(disk)
		n.open()
		time.Sleep(time.Minute)
		require.Contains(t, n.live(), "c")
		require.True(t, n.peer("n1").Stale.Here)
		done, err := n.r.Rejoin(t.Context(), "n1", nil)
		require.NoError(t, err)
		require.Equal(t, 1, done.Dropped)
		require.EqualValues(t, 1, n.r.Status().Scans.Rejoined)
		c.converge()
		c.agree("a")
	})
}

// TestRejoinByItself: a replica rejoins by itself with AutoRejoin, and after Recovered; a
// new one does, empty or written to; and nobody is told anything.
func TestRejoinByItself(t *testing.T) {
	t.Parallel()
	test := func(name string, prepare func(old *node), write bool) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inReaped(t, func(t *testing.T, c *cluster, n, old *node) {
				prepare(old)
				old.open()
				keys := []string{"a", "b"}
				if write {
					old.put("here", "new")
					keys = append(keys, "here")
				}
				c.converge()
				c.agree(keys...)
				for _, at := range c.nodes {
					for _, w := range at.r.Status().Warnings {
						require.NotContains(t, w.Text, "exchanged")
					}
				}
				n.delete("a")
				c.converge()
				if name[:3] == "new" { // the id that it had before it was wiped is a peer that is away
					until(t, "the tombstone waits", func() bool { return n.r.Status().Tombstones.HeldFor != nil })
					require.NoError(t, n.r.Forget(n.r.Status().Tombstones.HeldFor.ID))
				}
				until(t, "both have reaped", func() bool { return n.tombstones()+old.tombstones() == 0 })
				c.agree(keys[1:]...)
			})
		})
	}
	for _, write := range []bool{false, true} {
		test(fmt.Sprint("auto, writes ", write), func(old *node) { old.c.with(func(o *replicator.Options) { o.AutoRejoin = true }) }, write)
		test(fmt.Sprint("recovered, writes ", write), func(old *node) { old.recovered = true }, write)
		test(fmt.Sprint("new, writes ", write), func(old *node) { old.disk = simtest.NewDisk() }, write)
	}
}

// TestRejoinAdopted: of old values that only the stale side has, nobody knows whether they
// were deleted. They are dropped, unless they are to be kept.
func TestRejoinAdopted(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{false, true} {
		inReaped(t, func(t *testing.T, c *cluster, n, old *node) {
			old.disk = simtest.NewDisk()
			fillDisk(t, old.disk, map[string]string{"a": "old", "c": "old", "d": "old"})
			old.open()
			until(t, "it has adopted", old.adopted)
			time.Sleep(time.Minute)
			require.NotNil(t, old.peer("n0").Stale, "it is not new")
			done, err := old.r.Rejoin(t.Context(), "n0", &replicator.RejoinOptions{KeepAdopted: keep})
			require.NoError(t, err)
			if keep {
				require.Equal(t, replicator.Rejoined{Merged: 2, Kept: 2, PutAgain: 2}, done)
				c.converge()
				c.agree("a", "b", "c", "d")
			} else {
				require.Equal(t, replicator.Rejoined{Merged: 2, Dropped: 2}, done)
				c.converge()
				c.agree("a", "b")
			}
		})
	}
}

// remembers has a node forget no deletions.
func remembers(o *replicator.Options) { o.TombstoneAge = 0 }

// forgets has a node put and delete a key, and forget that. Another one merges all of it, and
// remembers.
func (n *node) forgets(key string, other *node) {
	n.put(key, "of "+key)
	n.delete(key)
	until(n.c.t, "the deletion is merged", func() bool { return other.index()[key].Deleted })
	until(n.c.t, "it is forgotten", func() bool { return n.tombstones() == 0 })
	require.True(n.c.t, other.index()[key].Deleted)
}

// TestRejoinInDoubt: an old value that a rejoin drops, for the peer lacks it and has forgotten
// deletions, comes back from a replica that has seen all of those: so nobody deleted it. The
// vectors of the two claim that they know it, whatever becomes of their processes.
func TestRejoinInDoubt(t *testing.T) {
	t.Parallel()
	for name, ends := range map[string]func(*node){"goes on": nil, "close": (*node).close, "kill": (*node).kill, "power cut": (*node).powerCut} {
		t.Run(name, func(t *testing.T) { rejoinsInDoubt(t, ends) })
	}
}

func rejoinsInDoubt(t *testing.T, ends func(*node)) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second)
		n, old, other := c.nodes[0], c.nodes[1], c.nodes[2]
		n.open()
		other.open(remembers)
		n.put("a", "of a")
		n.forgets("c", other)
		n.close()

		fillDisk(t, old.disk, map[string]string{"c": "old", "x": "old"})
		old.open(mergesNothing)
		until(t, "the old value is merged", func() bool { return len(other.live()) == 2 })
		other.close()
		old.close()

		n.open()
		old.open()
		until(t, "they have met", func() bool { return old.peer("n0").Stale != nil })
		done, err := old.r.Rejoin(t.Context(), "n0", nil)
		require.NoError(t, err)
		require.Equal(t, replicator.Rejoined{Merged: 1, Dropped: 2}, done)
		until(t, "they are in sync", func() bool { return old.inSync("n0") && n.inSync("n1") })
		require.Equal(t, []string{"a"}, sortedKeys(n.live()))
		for _, n := range []*node{old, n} {
			if ends != nil {
				ends(n)
				n.open()
			}
		}

		other.open(remembers)
		c.agree("a", "x")
	})
}

// TestRejoinBothInDoubt is TestRejoinInDoubt where each of the two has forgotten a deletion
// that the other has not seen: the one does not take the old value, and the other drops it. It
// hears of the doubt also if there is nothing to merge, and the first one is gone then.
func TestRejoinBothInDoubt(t *testing.T) {
	t.Parallel()
	for _, keys := range [][]string{{"a"}, nil} {
		inCluster(t, 3, func(t *testing.T, c *cluster) {
			c.mesh().reaping(10 * time.Second)
			n, old, other := c.nodes[0], c.nodes[1], c.nodes[2]
			n.open()
			other.open(remembers)
			for _, key := range keys {
				n.put(key, "value")
			}
			n.forgets("c", other)
			n.close()

			fillDisk(t, old.disk, map[string]string{"x": "old"})
			old.open(mergesNothing)
			old.forgets("d", other)
			until(t, "the old value is merged", func() bool { return len(other.live()) == len(keys)+1 })
			other.close()
			old.close()

			n.open()
			old.open()
			until(t, "they have met", func() bool { return old.peer("n0").Stale != nil && n.peer("n1").Stale != nil })
			done, err := n.r.Rejoin(t.Context(), "n1", nil)
			require.NoError(t, err)
			require.Equal(t, replicator.Rejoined{Merged: 1, Kept: len(keys), PutAgain: len(keys)}, done)
			require.Equal(t, keys, sortedKeys(n.live()), "x came, and lost")
			done, err = old.r.Rejoin(t.Context(), "n0", nil)
			require.NoError(t, err)
			require.Equal(t, replicator.Rejoined{Merged: len(keys), Dropped: 1}, done)
			until(t, "they are in sync", func() bool { return old.inSync("n0") && n.inSync("n1") })
			require.Equal(t, keys, sortedKeys(n.live()))
			n.close()

			other.open(remembers)
			c.agree(append(keys, "x")...)
		})
	}
}

// TestRejoinInDoubtBelow: the old value that comes back stands below the place up to which the
// log of the replica that has it was merged, before the rejoin, and in a session that goes on.
func TestRejoinInDoubtBelow(t *testing.T) {
	t.Parallel()
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.link(1, 2)
		c.link(3, 0)
		c.link(3, 2)
		c.reaping(10 * time.Second)
		n, old, other, fourth := c.nodes[0], c.nodes[1], c.nodes[2], c.nodes[3]
		n.open()
		fourth.open(remembers)
		n.put("a", "of a")
		n.forgets("c", fourth)
		n.close()
		fourth.close()

		fillDisk(t, old.disk, map[string]string{"x": "old"})
		old.open()
		other.open()
		other.put("b", "of b")
		until(t, "they are equal", func() bool { return len(other.live()) == 2 && len(old.live()) == 2 })

		n.open()
		until(t, "they have met", func() bool { return old.peer("n0").Stale != nil })
		done, err := old.r.Rejoin(t.Context(), "n0", nil)
		require.NoError(t, err)
		require.Equal(t, replicator.Rejoined{Merged: 1, Dropped: 1, Kept: 1, PutAgain: 1}, done)
		n.close()

		fourth.open(remembers)
		c.agree("a", "b", "x")
	})
}

// TestRejoinIsCut: a rejoin that is cut off, at whatever byte, has dropped nothing, and is
// made good by the next one. Both sides are written to all the while.
func TestRejoinIsCut(t *testing.T) {
	t.Parallel()
	cut := 0
	for at := 300; at < 9000; at += 777 {
		inReaped(t, func(t *testing.T, c *cluster, n, old *node) {
			n.close()
			c.paging = func(before func(replicator.Options) *replicator.Options) func(replicator.Options) *replicator.Options {
				return func(o replicator.Options) *replicator.Options { return before(*replicator.WithPages(o, 5, nil)) }
			}(c.paging)
			n.open()
			keys := []string{"a", "b"}
			for i := range 60 {
				key := fmt.Sprintf("key %02d", i)
				keys = append(keys, key)
				n.put(key, "there")
			}
			c.net.SetCut(func(from, to string) int { return at })
			old.open()
			old.put("here", "new")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			_, err := old.r.Rejoin(ctx, "n0", nil)
			cancel()
			if err != nil {
				cut++
				require.Contains(t, old.live(), "c", "it was cut at %d: %v", at, err)
			}
			n.put("meanwhile", "there")
			if at%2 == 0 {
				old.kill()
				old.open()
			}
			c.net.SetCut(nil)
			old.put("again", "new")
			if err != nil {
				until(t, "they are connected", func() bool { return old.peer("n0").Stale != nil && old.peer("n0").DialedBy != "" })
				_, err := old.r.Rejoin(t.Context(), "n0", nil)
				require.NoError(t, err)
			}
			c.converge()
			c.agree(append(keys, "here", "again", "meanwhile")...)
		})
	}
	require.Greater(t, cut, 1)
}

// TestFeedOfForgottenDeletions: a feed that has not told a deletion which was reaped, or a
// key that was dropped in a rejoin, begins anew. One that has told it goes on.
func TestFeedOfForgottenDeletions(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, r *replicator.Replicator, from replicator.Cursor) {
		_, err := replicator.FeedPages(r, "", from)
		require.ErrorIs(t, err, replicator.ErrCursor)
		keys := []string{}
		pages, err := replicator.FeedPages(r, "", replicator.Cursor{})
		require.NoError(t, err)
		for _, page := range pages {
			for _, change := range page {
				require.False(t, change.Deleted)
				keys = append(keys, string(change.Key))
			}
		}
		require.Equal(t, []string{"a", "b"}, keys)
	}
	inReaped(t, func(t *testing.T, c *cluster, n, old *node) {
		old.open()
		time.Sleep(time.Minute)
		seen := old.r.Here()
		_, err := old.r.Rejoin(t.Context(), "n0", nil)
		require.NoError(t, err)
		c.converge()
		refused(t, old.r, seen)
		n.put("c", "of c")
		here := n.r.Here()
		n.delete("c")
		behind := n.r.Here()
		c.converge()
		c.reaped()
		refused(t, n.r, here)
		_, err = replicator.FeedPages(n.r, "", behind)
		require.NoError(t, err)
		for _, n := range c.nodes {
			n.close()
			n.open()
			_, err = replicator.FeedPages(n.r, "", n.r.Here())
			require.NoError(t, err)
		}
		refused(t, n.r, here)
		refused(t, old.r, seen)
	})
}

// TestVerifyAfterReaps: what is missing comes from a peer also where deletions were
// forgotten.
func TestVerifyAfterReaps(t *testing.T) {
	t.Parallel()
	inReaped(t, func(t *testing.T, c *cluster, n, old *node) {
		old.open()
		_, err := old.r.Rejoin(t.Context(), "n0", nil)
		require.NoError(t, err)
		c.converge()
		old.lose("a")
		report, err := old.r.Verify(t.Context(), &replicator.VerifyOptions{Repair: true})
		require.NoError(t, err)
		require.True(t, report.OK, "%+v", report)
		require.Len(t, report.Disagreements, 1)
		c.agree("a", "b")
	})
}

// TestReapRefusesWhoCannotTell: once deletions were forgotten, a peer whose version can't
// tell what it has seen is refused, and told to be updated.
func TestReapRefusesWhoCannotTell(t *testing.T) {
	t.Parallel()
	inReaped(t, func(t *testing.T, c *cluster, n, _ *node) {
		for flags, refused := range map[byte]bool{0: true, 2: false} { // 2: it can tell
			hi := newWireHi()
			hi.flags |= flags
			p := c.dialHostile("n9", n, false)
			p.say(wireHello, hi.payload())
			if refused {
				_, text := p.awaitBye()
				require.Contains(t, text, "update it")
			} else {
				p.await(wireHello, 0)
				p.say(wireAccept, []byte{1})
				p.await(wireReaped, 0)
			}
			p.Close()
		}
	})
}
