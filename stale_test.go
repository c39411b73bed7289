package replicator_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestRecoveredEnds: files were recovered that hold nothing any more. All is pulled,
// and then the replica is as any other: it forgets deletions, and rejoins when it is told to.
func TestRecoveredEnds(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		n, old := c.nodes[0], c.nodes[1]
		old.close()
		old.recovered = true
		old.open()
		for _, key := range []string{"a", "b", "c", "d"} {
			n.put(key, "of "+key)
		}
		c.converge()
		disk := old.closedDisk()
		n.delete("c")
		c.converge()
		time.Sleep(5 * time.Minute)
		old.close()
		old.open()
		time.Sleep(5 * time.Minute)
		require.Zero(t, n.tombstones()+old.tombstones(), "deletions are kept for ever")
		old.replaceDisk(disk)
		old.open()
		time.Sleep(time.Minute)
		_, has := old.get("c")
		require.True(t, has, "an old copy has rejoined by itself, and dropped a key, though nobody called Rejoin")
	})
}

// TestRejoinIncomplete: a new replica can't join, for the peer lacks a value. Both tell.
func TestRejoinIncomplete(t *testing.T) {
	t.Parallel()
	inReaped(t, func(t *testing.T, c *cluster, n, old *node) {
		require.NoError(t, n.db.Delete([]byte("a"), nil)) // goleveldb has lost the value
		old.disk = simtest.NewDisk()
		old.open()
		old.put("here", "new")
		time.Sleep(time.Hour)
		for _, at := range c.nodes {
			peer := map[*node]string{n: "n1", old: "n0"}[at]
			p := at.peer(peer)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			err := at.r.SyncNow(ctx)
			cancel()
			require.NotNil(t, p.Stale, at.name)
			require.Contains(t, p.Stale.Advice, "call Verify with Repair", at.name)
			require.ErrorIs(t, err, replicator.ErrStale, at.name)
		}
		n.put("a", "of a") // as a repair does
		time.Sleep(10 * time.Minute)
		c.agree("a", "b", "here")
		for _, at := range c.nodes {
			p := at.peer(map[*node]string{n: "n1", old: "n0"}[at])
			require.Equal(t, replicator.StateInSync, p.State)
			require.Nil(t, p.Stale)
			require.NoError(t, at.sync())
		}
	})
}

// TestRejoinUnanswered: a peer that states to have forgotten something, and answers no
// question, holds nobody up.
func TestRejoinUnanswered(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		n, good := c.nodes[0], c.nodes[1]
		good.open()
		good.put("good", "value")
		n.open()
		p := c.dialReaping(n, newWireHi(), 0, []wireStamp{{1<<63 | 55, 9}}, wireStamp{1<<63 | 55, 9})
		p.await(wireQuestion, 0)
		p.answerPings(1)
		require.NoError(t, n.r.AddPeer("n1", nil))
		untilWithin(t, 10*time.Minute, "good comes", func() bool { _, has := n.get("good"); return has })
		p.Close()
	})
}

// dialReaping connects a host that is no replica to a node. It states what it knows, if it is to
// tell that, and what it has reaped.
func (c *cluster) dialReaping(n *node, hi wireHi, flags byte, knows []wireStamp, reaped ...wireStamp) *wirePeer {
	hi.flags |= 2
	p := c.dialHostile("n9", n, false)
	p.say(wireHello, hi.payload())
	p.await(wireHello, 0)
	p.say(wireAccept, []byte{1})
	if knows != nil {
		p.say(wireVector, wireStamps(nil, knows...))
	}
	p.say(wireReaped, wireStamps([]byte{flags}, reaped...))
	return p
}

// fitAgain has n learn that it is stale while it merges a page of a peer that is made by
// hand. It catches up through good, and asks for the next page: fitAgain returns the pull.
// The page before that came with some pairs that were heard there.
func (c *cluster) fitAgain(hi wireHi, heard ...wireStamp) (p *wirePeer, pull []byte) {
	n, good := c.nodes[0], c.nodes[1]
	c.link(0, 1)
	c.open()
	n.put("own", "value")
	good.put("good", "value")
	require.NoError(c.t, n.sync())
	c.net.Isolate(good.name)
	good.put("more", "value")
	unseen := good.index()["more"].Stamp

	p = c.dialReaping(n, hi, 0, nil)
	p.await(wirePull, 9)
	p.say(wirePage, wireFullPage(hi.epoch, 9))
	p.await(wirePull, 9)
	merges, goOn := make(chan struct{}), make(chan struct{})
	n.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
		if op == simtest.OpWrite {
			n.disk.SetFault(nil)
			close(merges)
			<-goOn
		}
		return nil
	})
	page := wireStamps(wirePlace([]byte{0}, hi.epoch, 10))
	if len(heard) > 0 {
		page[0] = 32
		page = wireStamps(page, heard...)
	}
	large := wireEntry{key: "large", clock: 1, origin: hi.epoch, value: strings.Repeat("x", 20_000)} // hear leaves it to pull
	p.say(wirePage, large.append(append(page, 1)))
	<-merges
	p.say(wireReaped, wireStamps([]byte{0}, wireStamp{uint64(unseen.Origin), unseen.Clock}))
	p.say(wirePing, []byte{7})
	p.await(wirePong, 10) // it has read what came before
	close(goOn)
	until(c.t, "stale", func() bool { return n.peer(p.LocalAddr().String()).State == replicator.StateStale })
	c.net.Heal()
	return p, p.await(wirePull, 10)
}

// TestFitsAgain: the first pull of a replica that fits again must not wait for something
// new. There may be nothing, and SyncNow, and the state, wait for the answer.
func TestFitsAgain(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		hi := newWireHi()
		p, pull := c.fitAgain(hi)
		require.Zero(t, pull[0]&1, "it waits for something new")
		p.say(wirePage, wirePageTo(hi.epoch, 10))
		p.answerPings(10)
		n := c.nodes[0]
		require.NoError(t, n.sync())
		require.Equal(t, replicator.StateInSync, n.peer(p.LocalAddr().String()).State)
	})
}

// TestHeardOutlastsStaleness: a peer tells once in a session what it has heard. A replica
// that was stale meanwhile has not forgotten it.
func TestHeardOutlastsStaleness(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		conflicts := make(chan replicator.Conflict, 10)
		c.with(func(o *replicator.Options) {
			o.OnConflict = func(found replicator.Conflict) { conflicts <- found }
		})
		hi := newWireHi()
		n := c.nodes[0]
		n.open()
		n.put("key", "here")
		here := n.index()["key"].Stamp
		n.close()
		p, _ := c.fitAgain(hi, wireStamp{uint64(here.Origin), here.Clock})
		later := wireEntry{key: "key", clock: here.Clock + 100, origin: hi.epoch, value: "there"}
		p.say(wirePage, later.append(append(wireStamps(wirePlace([]byte{0}, hi.epoch, 11)), 1)))
		p.answerPings(11)
		require.True(t, (<-conflicts).Uncertain, "whoever wrote it may have known what it replaced")
	})
}

// TestStaleIsToldAnew: a replica has told that it rejoins by itself. When that is no longer
// so, it says so, and whoever waits for it gives advice, which was not needed before.
func TestStaleIsToldAnew(t *testing.T) {
	t.Parallel()
	hi := newWireHi()
	const rejoins = 2
	t.Run("by the one that is stale", func(t *testing.T) {
		t.Parallel()
		inCluster(t, 2, func(t *testing.T, c *cluster) {
			c.open()
			n, good := c.nodes[0], c.nodes[1]
			good.put("good", "value")
			p := c.dialReaping(n, hi, 0, nil, wireStamp{hi.epoch, 9})
			require.EqualValues(t, rejoins, p.await(wireReaped, 0)[0], "it is young")
			p.await(wireQuestion, 0)
			n.put("own", "value")
			p.say(wireReply, []byte{4}) // it is adopting: later
			require.NoError(t, n.r.AddPeer(good.name, nil))
			require.Zero(t, p.await(wireReaped, 0)[0], "it has merged something else")
			p.answerPings(0)
			require.NotNil(t, n.peer(p.LocalAddr().String()).Stale)
		})
	})
	t.Run("to the one that waits", func(t *testing.T) {
		t.Parallel()
		inCluster(t, 2, func(t *testing.T, c *cluster) {
			var log logBuffer
			c.mesh().reaping(10 * time.Second).with(func(o *replicator.Options) { o.Logger = textLogger(&log) }).open()
			n := c.nodes[0]
			n.put("key", "value")
			n.delete("key")
			c.converge()
			c.reaped()
			p := c.dialReaping(n, hi, rejoins, nil)
			p.answerPings(0)
			time.Sleep(time.Second)
			require.Nil(t, n.peer(p.LocalAddr().String()).Stale)
			require.NotContains(t, log.String(), "nothing is exchanged")
			p.say(wireReaped, wireStamps([]byte{0}))
			time.Sleep(time.Second)
			stale := n.peer(p.LocalAddr().String()).Stale
			require.NotNil(t, stale)
			require.True(t, stale.There)
			require.Equal(t, 1, strings.Count(log.String(), "nothing is exchanged"))
		})
	})
}

// TestRejoinOfTheNew: a new replica rejoins with two peers by itself. Once it has rejoined with
// one of them, it is not new any more: what it has is not dropped unasked.
func TestRejoinOfTheNew(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		hub, other, n := c.nodes[0], c.nodes[1], c.nodes[2]
		c.link(0, 1)
		c.reaping(10 * time.Second)
		c.nodes = c.nodes[:2]
		c.open()
		hub.put("key", "value")
		hub.put("gone", "value")
		hub.delete("gone")
		c.converge()
		c.reaped()
		other.close()
		c.nodes = append(c.nodes, n)
		c.net.SetDelay(hub.name, n.name, time.Second)
		n.peers = []string{hub.name}
		n.open()
		until(t, "it rejoins", func() bool { return n.peer(hub.name).State == replicator.StatePullingInFull })

		hi := newWireHi()
		p := c.dialReaping(n, hi, 0, nil, wireStamp{hi.epoch, 9})
		p.answerPings(0)
		until(t, "it has rejoined", func() bool { return n.inSync(hub.name) })
		time.Sleep(time.Second)
		status := n.peer(p.LocalAddr().String())
		require.Equal(t, replicator.StateStale, status.State)
		require.Contains(t, status.Stale.Advice, "call Rejoin here")
		_, has := n.get("key")
		require.True(t, has)
	})
}

// TestReapedIsAskedFor: a page that follows the log is as of its end. An entry in it was
// replaced at the peer by a deletion, which was merged here from elsewhere, and reaped once the
// peer had told that it has it, too. So what the peer has of the key by now is asked for, also if
// an earlier deletion of the key came before the entry: nothing here tells of the later one.
func TestReapedIsAskedFor(t *testing.T) {
	t.Parallel()
	for name, now := range map[string]*wireEntry{"nothing": nil, "a later value": {key: "key", clock: 30, value: "later"}} {
		for _, earlier := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", an earlier deletion: ", earlier), func(t *testing.T) {
				inCluster(t, 2, func(t *testing.T, c *cluster) { c.reapedIsAskedFor(now, earlier) })
			})
		}
	}
}

func (c *cluster) reapedIsAskedFor(now *wireEntry, earlier bool) {
	t := c.t
	c.mesh().reaping(10 * time.Second).open()
	n, good := c.nodes[0], c.nodes[1]
	good.put("key", "value")
	good.put("another", "value")
	good.put("another", "one more")
	good.delete("key")
	c.converge()
	deletion := n.index()["key"].Stamp

	hi, knows := newWireHi(), wireStamp{uint64(deletion.Origin), deletion.Clock}
	p := c.dialReaping(n, hi, 0, []wireStamp{knows})
	p.await(wirePull, 9)
	p.say(wirePage, wireFullPage(hi.epoch, 9))
	p.await(wirePull, 9)
	p.say(wireAck, wireStamps(wirePlace(nil, uint64(n.r.Status().Epoch), 1), knows))
	fetched := make(chan []byte, 1)
	go func() {
		for {
			switch kind, payload, err := p.hear(); {
			case err != nil:
				return
			case kind == wirePing:
				p.say(wirePong, binary.AppendUvarint(payload, 10))
			case kind == wireFetch:
				fetched <- payload
			}
		}
	}()
	until(t, "reaped", func() bool { return n.tombstones() == 0 })

	page := func(head uint64, e wireEntry) {
		p.say(wirePage, e.append(append(wireStamps(wirePlace([]byte{0}, hi.epoch, head)), 1)))
	}
	if earlier {
		page(10, wireEntry{key: "key", clock: deletion.Clock - 2, origin: hi.epoch, deleted: true})
		until(t, "it is merged", func() bool { return n.tombstones() == 1 })
		time.Sleep(time.Second) // it pulls
	}
	page(11, wireEntry{key: "key", clock: deletion.Clock - 1, origin: hi.epoch, value: "old"})
	var asked []byte
	until(t, "it asks", func() bool {
		select {
		case asked = <-fetched:
			return true
		default:
			return false
		}
	})
	require.Equal(t, wireBytes([]byte{1}, "key"), asked)
	if now == nil {
		p.say(wireValues, []byte{1, 0, 0})
	} else {
		now := *now
		now.origin = hi.epoch
		p.say(wireValues, now.append([]byte{1, 0, 1}))
	}
	time.Sleep(time.Second)
	value, has := n.get("key")
	require.Equal(t, now != nil, has)
	if has {
		require.Equal(t, now.value, value)
	}
	require.Equal(t, replicator.StateInSync, n.peer(p.LocalAddr().String()).State)
}

// TestRejoinMeetsBelatedDeletion: where the peer has forgotten that it deleted a key, it has
// taken in an earlier deletion from elsewhere. A value from between the two was deleted if the
// peer had seen it, whichever side rejoins. Else it is put again, for somebody may still have
// the later deletion.
func TestRejoinMeetsBelatedDeletion(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]struct{ unseen, both bool }{
		"a value that was deleted":                 {},
		"the same, and the peer has to rejoin":     {both: true},
		"a value that nobody knew of":              {unseen: true},
		"one of those, and the peer has to rejoin": {unseen: true, both: true},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 4, func(t *testing.T, c *cluster) {
				c.link(1, 0)
				c.link(2, 0)
				c.link(3, 0)
				c.reaping(10 * time.Second).with(func(o *replicator.Options) { o.PeerAge = time.Hour })
				hub, other, old, witness := c.nodes[0], c.nodes[1], c.nodes[2], c.nodes[3]
				all := c.nodes
				c.nodes = []*node{hub, old, witness}
				c.open()
				hub.fill("first", 0, 20, 0)
				old.put("k", "earlier")
				old.put("k", "value")
				old.put("gone", "value")
				c.converge()
				c.net.Partition([]string{old.name}, []string{hub.name, witness.name})
				if of.unseen {
					old.put("k", "unseen")
				}
				old.close()
				hub.fill("more", 0, 20, 0)
				hub.delete("k")
				c.nodes = []*node{hub, witness}
				c.converge()
				time.Sleep(time.Second) // the witness has the deletion durably
				witness.close()
				time.Sleep(2 * time.Hour)
				require.Zero(t, hub.tombstones(), "it waits for nobody")
				c.net.Partition([]string{hub.name}, []string{other.name}, []string{old.name})
				if of.both {
					old.open()
					old.delete("gone")
					time.Sleep(2 * time.Hour)
					require.Zero(t, old.tombstones())
					old.close()
				}
				other.open()
				other.put("k", "its own")
				other.delete("k")
				time.Sleep(time.Second)
				c.net.Heal()
				until(t, "the other's deletion", func() bool { return hub.index()["k"].Deleted })

				old.open()
				if of.both {
					time.Sleep(time.Second)
					require.NoError(t, second(hub.r.Rejoin(t.Context(), old.r.Status().ID.String(), nil)))
				}
				require.NoError(t, second(old.r.Rejoin(t.Context(), hub.name, nil)))
				require.Equal(t, !of.unseen, old.index()["k"].Deleted, "the deletion takes the place of the value")
				witness.open()
				if of.both { // what the hub takes over, they have not seen
					for _, n := range []*node{other, witness} {
						until(t, "the hub has told", func() bool { return n.peer(hub.name).Stale != nil })
						require.NoError(t, second(n.r.Rejoin(t.Context(), hub.name, nil)))
					}
				}
				c.nodes = all
				c.converge()
				for _, n := range all {
					_, has := n.get("k")
					require.Equal(t, of.unseen, has, n.name)
					require.Empty(t, n.verify(nil).Disagreements, n.name)
				}
			})
		})
	}
}

// TestRejoinSlowly: the same with an honest peer over a slow link.
func TestRejoinSlowly(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.link(1, 0)
		c.link(2, 0)
		c.link(2, 1)
		c.reaping(10 * time.Second)
		slow, fast, n := c.nodes[0], c.nodes[1], c.nodes[2]
		slow.open()
		fast.open()
		slow.put("gone", "1")
		slow.fill("k", 0, 1000, 300)
		c.nodes = c.nodes[:2]
		c.converge()
		slow.delete("gone")
		c.converge()
		c.reaped()
		c.nodes = []*node{slow, fast, n}
		c.net.SetSpeed(n.name, slow.name, 1<<7)
		fast.close()
		n.open()
		time.Sleep(10 * time.Second)
		fast.open()
		untilWithin(t, 10*time.Minute, "k00999 comes", func() bool { _, has := n.get("k00999"); return has })
		c.net.SetSpeed(n.name, slow.name, 0)
	})
}

// TestStaleReader: a reader that has deleted a key, and forgotten that while it was away.
func TestStaleReader(t *testing.T) {
	t.Parallel()
	for _, wipe := range []bool{false, true} {
		inCluster(t, 2, func(t *testing.T, c *cluster) {
			c.link(1, 0)
			c.reaping(10 * time.Second).with(func(o *replicator.Options) { o.PeerAge = time.Hour })
			hub, reader := c.nodes[0], c.nodes[1]
			hub.open(mergesNothing)
			reader.open()
			hub.put("a", "1")
			hub.put("b", "1")
			reader.arrives("b", "1")
			hub.close()
			reader.delete("b")
			time.Sleep(3 * time.Hour)
			hub.open(mergesNothing)
			hub.put("c", "1")
			time.Sleep(time.Hour)
			_, has := reader.get("c")
			require.False(t, has)
			p := reader.peer("n0")
			require.ErrorIs(t, second(reader.r.Rejoin(t.Context(), "n0", nil)), replicator.ErrStale)
			require.Equal(t, replicator.StateStale, p.State)
			require.NotNil(t, p.Stale)
			require.Contains(t, p.Stale.Advice, "wipe this replica")
			require.ErrorIs(t, reader.sync(), replicator.ErrStale)
			q := hub.r.Status().Peers[0]
			require.NotNil(t, q.Stale)
			require.Contains(t, q.Stale.Advice, "wipe the reader")
			// The two ways out.
			if wipe {
				reader.replaceDisk(simtest.NewDisk())
				reader.open()
				reader.arrives("c", "1")
				reader.arrives("b", "1")
			} else {
				hub.close()
				hub.open()
				reader.arrives("c", "1") // it is young, and rejoins by itself
				c.agree("a", "c")
			}
			require.Nil(t, reader.peer("n0").Stale)
			require.NoError(t, reader.sync())
		})
	}
}

// TestFeedDuringReap: a deletion is forgotten just when a feed reads the page in which
// it would be. The feed tells it, or begins anew.
func TestFeedDuringReap(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().fromDisk().reaping(10 * time.Second)
		n := c.nodes[0]
		var before func(func())
		n.open(func(o *replicator.Options) {
			hooked, set := replicator.BeforeSnapshot(*o)
			*o, before = *hooked, set
		})
		c.open()
		n.put("a", "1")
		n.put("b", "1")
		c.converge()
		from := n.r.Here()
		n.delete("b")
		c.converge()
		before(func() { c.reaped() })
		pages, err := replicator.FeedPages(n.r, "", from)
		if err == nil {
			require.NotEmpty(t, pages, "the deletion of b was never told")
		} else {
			require.ErrorIs(t, err, replicator.ErrCursor)
		}

		// The same in the midst of a scan.
		n.put("c", "1")
		n.put("d", "1")
		c.converge()
		scan := n.tell(replicator.Cursor{})
		require.Equal(t, "c", string(scan[1].Key))
		n.delete("c")
		c.converge()
		before(func() { c.reaped() })
		require.ErrorIs(t, second(replicator.FeedPages(n.r, "", scan[1].Cursor)), replicator.ErrCursor)
	})
}

// TestStaleUntilCaughtUp: a replica that was stale has caught up through another one. What
// Status says of the peer that is away is no longer so.
func TestStaleUntilCaughtUp(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		n, old, third := c.nodes[0], c.nodes[1], c.nodes[2]
		for _, key := range []string{"a", "b", "c"} {
			n.put(key, "of "+key)
		}
		c.converge()
		disk := old.closedDisk()
		third.close()
		third.open(remembers)
		n.delete("c")
		c.converge()
		until(t, "reaped", func() bool { return n.tombstones() == 0 })
		third.close()
		old.replaceDisk(disk)
		old.open()
		time.Sleep(time.Minute)
		require.NotNil(t, old.peer("n0").Stale)
		n.close()
		third.open(remembers)
		time.Sleep(2 * time.Minute)
		_, has := old.get("c")
		require.False(t, has)
		require.Nil(t, old.peer("n0").Stale, "while the peer is away, Status advises a Rejoin that is not needed any more")
		n.open()
		c.liveOnly = true
		c.converge()
		require.Nil(t, old.peer("n0").Stale)
	})
}

// TestVerifyAfterReap: once a deletion was forgotten, earlier records of the key are
// still in the log. That is no damage.
func TestVerifyAfterReap(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		n := c.nodes[0]
		n.put("a", "1")
		n.put("k", "1")
		n.put("k", "2")
		n.delete("k")
		c.converge()
		c.reaped()
		for _, n := range c.nodes {
			require.Empty(t, n.verify(nil).Disagreements, n.name)
			require.Empty(t, n.verify(&replicator.VerifyOptions{Repair: true}).Disagreements, n.name)
			require.Zero(t, n.tombstones())
		}
	})
}

// TestVerifyAfterRejoin: the same for a key that was dropped in a rejoin.
func TestVerifyAfterRejoin(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		n, old := c.nodes[0], c.nodes[1]
		old.put("c", "1")
		old.put("c", "2")
		n.put("a", "1")
		c.converge()
		disk := old.closedDisk()
		n.delete("c")
		c.converge()
		c.reaped()
		old.replaceDisk(disk)
		old.open()
		_, err := old.r.Rejoin(t.Context(), "n0", nil)
		require.NoError(t, err)
		c.converge()
		c.agree("a")
		require.Empty(t, old.verify(nil).Disagreements)
	})
}

// TestVerifyFindsLostAfterReap: a key that is lost is still found once others were
// forgotten.
func TestVerifyFindsLostAfterReap(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().reaping(10 * time.Second).open()
		n := c.nodes[0]
		n.put("a", "1")
		n.put("a", "2")
		n.put("k", "1")
		n.delete("k")
		c.converge()
		c.reaped()
		n.lose("a")
		report := n.verify(nil)
		require.Len(t, report.Disagreements, 1)
		report = n.verify(&replicator.VerifyOptions{Repair: true})
		require.True(t, report.OK, "%v", report)
		c.agree("a")
		n.kill()
		n.open()
		c.converge()
		require.Empty(t, n.verify(nil).Disagreements)
	})
}
