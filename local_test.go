package replicator_test

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// keepingLocal has the nodes keep the keys under a prefix to themselves.
func keepingLocal(prefix string) func(o *replicator.Options) {
	return func(o *replicator.Options) { o.LocalPrefix = []byte(prefix) }
}

// TestLocalKeys: keys under the local prefix are written like any, in the same batches, and
// nobody else hears of them.
func TestLocalKeys(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, a, b *node) {
		a.open(keepingLocal("here/"))
		b.open(keepingLocal("here/"))
		from := a.r.Here()

		batch := new(leveldb.Batch)
		batch.Put([]byte("here/1"), []byte("old"))
		batch.Put([]byte("shared"), []byte("value"))
		batch.Put([]byte("here/1"), []byte("new"))
		batch.Put([]byte("here/2"), nil)
		batch.Delete([]byte("here/2"))
		batch.Delete([]byte("gone"))
		stamp, err := a.r.Commit(batch, nil)
		require.NoError(t, err)
		require.Equal(t, a.version("shared").Stamp, stamp)
		require.Equal(t, stamp.Clock+1, a.version("gone").Clock)
		a.put2("here", "not under it")
		require.NoError(t, b.r.Put([]byte("here/1"), []byte("its own"), nil))

		head := a.r.Status().Head
		stamp, err = a.r.Commit(batchOf("value", "here/3", "here/4"), nil)
		require.NoError(t, err)
		require.Zero(t, stamp)
		require.NoError(t, a.r.Put([]byte("here/5"), []byte("value"), withSync))
		require.NoError(t, a.r.Delete([]byte("here/4"), nil))
		require.Equal(t, head, a.r.Status().Head)

		require.NoError(t, b.sync())
		require.NoError(t, a.sync())
		check := func() {
			state := a.state()
			require.Equal(t, map[string]string{"here": "not under it", "here/1": "new", "here/3": "value", "here/5": "value", "shared": "value"}, state.values)
			require.Equal(t, map[string]string{"here": "not under it", "here/1": "its own", "shared": "value"}, b.state().values)
			_, err = a.r.Version([]byte("here/1"))
			require.Equal(t, leveldb.ErrNotFound, err)
			rows, err := replicator.LogRows(a.db)
			require.NoError(t, err)
			require.Len(t, rows, 3)
			require.Len(t, a.index(), 3)
			count, err := a.r.Count(t.Context())
			require.NoError(t, err)
			require.Equal(t, replicator.Count{Keys: 2, Tombstones: 1}, count)
			ours, err := a.r.Digest()
			require.NoError(t, err)
			theirs, err := b.r.Digest()
			require.NoError(t, err)
			require.Equal(t, ours, theirs)
			require.Equal(t, 2, ours.Keys)
			require.NoError(t, replicator.CheckConsistent(a.r))
		}
		check()
		d, err := a.r.Compare(t.Context(), b.r.Status().ID.String())
		require.NoError(t, err)
		require.True(t, d.Equal)
		require.Len(t, a.r.Recent(10), 3)
		k := newKeeper()
		k.cursor = from
		require.NoError(t, k.drain(t, a.r, nil))
		require.NoError(t, k.holds(a))
		require.Len(t, k.entries, 3)

		a.close()
		a.open(keepingLocal("here/"))
		check()
		a.kill()
		a.open(keepingLocal("here/"))
		check()

		// What is replicated only later is still stamped above everything before.
		a.put("shared", "later")
		require.NoError(t, b.sync())
		value, _ := b.get("shared")
		require.Equal(t, "later", value)
	})
}

// put2 is put of a value that has no stamp to remember.
func (n *node) put2(key, value string) {
	require.NoError(n.c.t, n.r.Put([]byte(key), []byte(value), nil))
}

// TestLocalKeysAreNotAdopted: what is there under the prefix before the first opening stays
// as it is, also where files are recovered.
func TestLocalKeysAreNotAdopted(t *testing.T) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		values := numbered("m/", 1500, "value")
		values["a"], values["z"], values["m"], values["n"] = "1", "2", "3", "4"
		fillDisk(t, n.disk, values)
		for _, recovered := range []bool{false, true} {
			n.recovered = recovered
			n.open(keepingLocal("m/"))
			until(t, "adoption ends", n.adopted)
			require.Len(t, n.index(), 4)
			require.Len(t, n.state().values, len(values))
			require.EqualValues(t, 4-4*map[bool]int{true: 1}[recovered], n.r.Status().Adoption.Adopted)
			n.close()
		}
	})
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) { // a prefix behind which there is nothing
		n := c.nodes[0]
		fillDisk(t, n.disk, map[string]string{"a": "1", "\xff\xff": "2", "\xff\xff\xff": "3"})
		n.open(keepingLocal("\xff\xff"))
		until(t, "adoption ends", n.adopted)
		require.Len(t, n.index(), 1)
	})
}

// TestLocalPrefixIsKept: a database has one prefix for good, under which nothing is
// replicated.
func TestLocalPrefixIsKept(t *testing.T) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		refused := func(prefix string, words ...string) {
			t.Helper()
			require.NoError(t, n.openDB())
			before := readRows(t, n.db)
			err := n.wrap(keepingLocal(prefix))
			require.Error(t, err)
			for _, word := range words {
				require.Contains(t, err.Error(), word)
			}
			require.Equal(t, before, readRows(t, n.db))
			require.NoError(t, n.db.Close())
		}
		n.open()
		n.put("user/1", "value")
		n.delete("deleted/1")
		n.close()
		refused("user/", `"user/1"`, "nothing was ever written")
		refused("deleted/", `"deleted/1"`, "nothing was ever written")
		refused("u", `"user/1"`)
		n.open(keepingLocal("index/")) // it may come later
		n.put2("index/1", "value")
		n.close()
		n.open(keepingLocal("index/"))
		n.close()
		refused("", `"index/"`, "for good")
		refused("index/1", `"index/"`, "for good")
	})
	for name, prefix := range map[string]string{
		"one of the reserved": "\xffrep", "the reserved": reservedPrefix, "under the reserved": reservedPrefix + "x",
		"too long": strings.Repeat("x", 256),
	} {
		o := &replicator.Options{LocalPrefix: []byte(prefix)}
		require.Error(t, o.Validate(), name)
	}
	require.NoError(t, (&replicator.Options{LocalPrefix: []byte("\xffs")}).Validate())
}

// TestLocalPrefixMustBeEqual: replicas with different prefixes refuse each other, and both
// sides are told why.
func TestLocalPrefixMustBeEqual(t *testing.T) {
	for _, other := range []string{"", "there/"} {
		inPair(t, 1, func(t *testing.T, c *cluster, a, b *node) {
			a.open(keepingLocal("here/"))
			b.open(keepingLocal(other))
			err := b.sync()
			require.ErrorIs(t, err, replicator.ErrRefused)
			require.ErrorContains(t, err, "Options.LocalPrefix")
			until(t, "the other side shows it", func() bool {
				refused := a.r.Status().Refused
				return len(refused) > 0 && strings.Contains(refused[0].Error, "Options.LocalPrefix")
			})
			a.put("key", "value")
			time.Sleep(time.Minute)
			require.Empty(t, b.state().values)
		})
	}
}

// TestHostileLocalKeys: a peer that sends a key that is not to be replicated is refused.
func TestHostileLocalKeys(t *testing.T) {
	hi := newWireHi()
	hi.name, hi.local = "liar", "here/"
	entry := wireEntry{key: "here/1", clock: 5, origin: hi.epoch, value: "value"}
	for name, say := range map[string]func(h *host, p *wirePeer){
		"in a page": func(_ *host, p *wirePeer) { p.say(wirePage, wireFullPage(hi.epoch, 2, entry)) },
		"without value": func(_ *host, p *wirePeer) {
			absent := entry
			absent.size = 9
			p.say(wirePage, wireFullPage(hi.epoch, 2, absent))
		},
		"in a reply": func(h *host, p *wirePeer) {
			p.say(wirePage, wireFullPage(hi.epoch, 2))
			p.say(wirePull, append(binary.AppendUvarint([]byte{4 | 1}, 1+2*h.Status().Head), 0)) // all is merged
			go h.Compare(context.Background(), "liar")
			p.await(wireQuestion, 2)
			reply := wireStamps(binary.AppendUvarint(wirePlace([]byte{1}, hi.epoch, 2), 1+2*h.Status().Head))
			p.say(wireReply, entry.append(append(reply, 1, 2, 1))) // one range, of records: one
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, keepingLocal("here/"))
			before := h.all()
			p := dialWire(t, h.Addr())
			p.join(hi)
			say(h, p)
			code, text := p.awaitBye()
			require.EqualValues(t, 1, code)
			require.Contains(t, text, "Options.LocalPrefix")
			require.Equal(t, before, h.all())
		})
	}
}

// TestLocalKeyFromElsewhere is refused, with all that comes with it.
func TestLocalKeyFromElsewhere(t *testing.T) {
	r := wrap(t, memDB(t), &replicator.Options{LocalPrefix: []byte("here/")})
	version := replicator.Version{Stamp: replicator.Stamp{Clock: 5, Origin: 1<<63 | 9}}
	_, err := replicator.Examine(r,
		replicator.Entry{Version: version, Key: "a", Value: "value"},
		replicator.Entry{Version: version, Key: "here/1", Value: "value"})
	require.ErrorIs(t, err, replicator.ErrProtocol)
	require.ErrorContains(t, err, `"here/1"`)
	_, err = r.Get([]byte("a"), nil)
	require.Equal(t, leveldb.ErrNotFound, err)
}
