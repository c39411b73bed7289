package replicator_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// The tests of this file are named after the defects of the module that this one
// follows. That chains do not propagate is in TestChainPropagatesBothWays, and
// that IPv6 addresses break in TestIPv6.

func TestDefectSequenceInMemory(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		for i, restart := range []func(){func() {}, a.close, a.kill, a.powerCut} {
			restart()
			a.open()
			for j := range 5 {
				a.put(fmt.Sprint(i, "-", j), "value")
			}
			a.put("key", fmt.Sprint(i))
			require.NoError(t, b.sync())
			require.Equal(t, fmt.Sprint(i), b.state().values["key"])
			if i < 3 { // a power cut may take some away
				require.EqualValues(t, 6*(i+1), a.r.Status().Head, "sequences go on")
			}
		}
	})
}

func TestDefect126thWriteHidden(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		for i := range 600 {
			a.put(fmt.Sprintf("key %03d", i), "value")
			if i%100 == 24 {
				require.NoError(t, b.sync())
				require.Len(t, b.state().values, i+1)
			}
		}
		b.arrives("key 599", "value")
		require.Len(t, b.state().values, 600)
	})
}

// logRow is a record of the change log, as it is stored.
type logRow struct {
	key   []byte // of the row
	seq   uint64
	clock uint64
	name  string // the user's key
}

// logRows reads the change log as docs/ARCHITECTURE.md describes it.
func logRows(t testing.TB, db *leveldb.DB) (rows []logRow) {
	it := db.NewIterator(util.BytesPrefix([]byte(reservedPrefix+"l")), nil)
	defer it.Release()
	for it.Next() {
		row := logRow{key: append([]byte{}, it.Key()...)}
		row.seq = binary.BigEndian.Uint64(it.Key()[len(it.Key())-8:])
		clock, n := binary.Uvarint(it.Value()[1:]) // behind the operation
		require.Positive(t, n)
		row.clock, row.name = clock, string(it.Value()[1+n+8:])
		rows = append(rows, row)
	}
	require.NoError(t, it.Error())
	return rows
}

func TestDefectSequenceKeysGrow(t *testing.T) {
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		seq := uint64(0)
		for range 3 {
			n.open()
			for range 700 {
				require.NoError(t, n.r.Put([]byte("key"), nil, nil))
			}
			seq = 0
			for _, row := range logRows(t, n.db) {
				require.Len(t, row.key, len(reservedPrefix)+1+8)
				seq++
				require.Equal(t, seq, row.seq, "rows are in the order of their sequences")
			}
			n.close()
		}
		require.EqualValues(t, 2100, seq)
	})
}

func TestDefectEqualClocksKeepOwnValues(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.open()
		c.net.Isolate("n0")
		want := map[string]string{}
		for i := range 20 {
			key := fmt.Sprint("key ", i)
			var origins [2]replicator.Origin
			for j, n := range c.nodes {
				n.put(key, n.name)
				version, err := n.r.Version([]byte(key))
				require.NoError(t, err)
				require.EqualValues(t, i, version.Clock)
				origins[j] = version.Origin
			}
			want[key] = "n0"
			if origins[1] > origins[0] {
				want[key] = "n1"
			}
		}
		c.settleDown()
		require.Equal(t, want, c.nodes[0].state().values)
		require.Equal(t, want, c.nodes[1].state().values)
	})
}

func TestDefectClocksRaisedWithoutEnd(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().open()
		c.net.Isolate("n0")
		for i := range 20 {
			for _, n := range c.nodes {
				n.put(fmt.Sprint("key ", i), n.name)
			}
		}
		c.settleDown()
		time.Sleep(10 * time.Minute) // everything is made durable
		observe := func() (seen []uint64) {
			for _, n := range c.nodes {
				s := n.r.Status()
				seen = append(seen, s.Head, s.Clock, s.LogRecords, uint64(n.disk.Writes()), uint64(s.Peers[0].RecordsIn))
			}
			return seen
		}
		before, versions := observe(), c.nodes[0].state().versions
		require.EqualValues(t, 20, before[1], "the clock that the next change gets")
		for range 50 {
			for _, n := range c.nodes {
				require.NoError(t, n.sync())
			}
			time.Sleep(time.Minute)
		}
		require.Equal(t, before, observe())
		require.Equal(t, versions, c.nodes[0].state().versions)
	})
}

// TestDefectCursorNewestFirst has a pull cut off, and the process killed, again
// and again: the older records that are yet to come are not forgotten.
func TestDefectCursorNewestFirst(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.link(2, 0)
		c.fromDisk().open()
		a, b, uncut := c.nodes[0], c.nodes[1], c.nodes[2]
		a.put("first", "value")
		for _, n := range []*node{b, uncut} {
			require.NoError(t, n.sync()) // there is a checkpoint: what follows is a pull of the log
			n.close()
		}
		const keys = 5000
		for i := range keys {
			a.put(fmt.Sprintf("key %04d", i), "value")
		}
		uncut.open()
		require.NoError(t, uncut.sync())
		uncut.close()
		c.net.SetCut(func(_, _ string) int { return 15_000 })
		kills, partly := 0, 0
		for ; ; kills++ {
			b.open()
			if b.sync() == nil {
				break
			}
			_, newest := b.get(fmt.Sprintf("key %04d", keys-1))
			_, oldest := b.get("key 0000")
			if newest && !oldest {
				partly++ // the log is read in reverse
			}
			b.kill()
			require.Less(t, kills, 50, "every connection brings some")
		}
		require.Greater(t, partly, 1)
		require.Len(t, b.state().values, keys+1)
		require.Less(t, c.net.Bytes("n0", "n1"), 3*c.net.Bytes("n0", "n2"), "what came is not pulled again")
		uncut.open()
		c.settleDown()
	})
}

// TestDefectValueBesideOlderRecord changes a key between the moments in which
// its record and its value are read. A value that is gone without a record is told of.
func TestDefectValueBesideOlderRecord(t *testing.T) {
	const unreadable = "can't read all of its own database"
	large := strings.Repeat("x", 100_000) // fetched after its record
	for name, change := range map[string]func(a *node){
		"replaced":            func(a *node) { a.put("key", large+"later") },
		"replaced by a small": func(a *node) { a.put("key", "later") },
		"deleted":             func(a *node) { a.delete("key") },
		"gone":                func(a *node) { require.NoError(a.c.t, a.db.Delete([]byte("key"), nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(t *testing.T, c *cluster) {
				c.link(1, 0)
				c.fromDisk()
				a, b := c.nodes[0], c.nodes[1]
				a.open()
				a.put("key", large)
				a.put("other", large)
				var once sync.Once
				b.open(tapped(func(kind byte) {
					if kind == wireFetch {
						once.Do(func() { change(a) })
					}
				}))
				synced := b.sync()
				if name == "gone" {
					require.ErrorContains(t, synced, unreadable)
				} else {
					require.NoError(t, synced)
				}
				want, found := a.get("key")
				until(t, "the change arrives", func() bool {
					got, has := b.get("key")
					if has {
						require.Contains(t, []string{large, large + "later", "later"}, got)
					}
					return got == want && has == found
				})
				c.net.Isolate("n1")
				a.put("gone early", "value")
				require.NoError(t, a.db.Delete([]byte("gone early"), nil))
				c.net.Heal()
				until(t, "they meet", func() bool { return b.inSync("n0") || b.peer("n0").State == replicator.StateIncomplete })
				require.ErrorContains(t, b.sync(), unreadable)
				require.True(t, maps.Equal(a.state().values, b.state().values))
			})
		})
	}
}

func TestDefectConcurrentWritesShareAClock(t *testing.T) {
	db := memDB(t)
	r := wrap(t, db, nil)
	const writers, writes = 8, 200
	var wg sync.WaitGroup
	errs := make(chan error, writers*writes)
	for range writers {
		wg.Go(func() {
			for range writes {
				errs <- r.Put([]byte("key"), []byte("value"), nil)
			}
		})
	}
	wg.Wait()
	for range writers * writes {
		require.NoError(t, <-errs)
	}
	rows := logRows(t, db)
	require.Len(t, rows, writers*writes)
	for i, row := range rows {
		require.EqualValues(t, i, row.clock, "each its own, in the order of the log")
	}
	version, err := r.Version([]byte("key"))
	require.NoError(t, err)
	require.EqualValues(t, writers*writes-1, version.Clock)
}

func TestDefectOneIdentityForAllDatabases(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.open()
		ids := map[replicator.DatabaseID]bool{}
		for _, n := range c.nodes {
			id := n.r.Status().ID
			require.False(t, id.IsZero())
			ids[id] = true
			epoch := n.r.Status().Epoch
			n.close()
			n.open()
			require.Equal(t, id, n.r.Status().ID, "it is kept in the database")
			require.NotEqual(t, epoch, n.r.Status().Epoch, "each opening has an origin of its own")
		}
		require.Len(t, ids, len(c.nodes))
	})
}

// TestDefectOperationsSentAgain counts records, requests and bytes.
func TestDefectOperationsSentAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ keys, size int }{
		"small values": {3000, 100}, "large values": {100, 20_000},
	} {
		for _, scan := range []string{"full pull", "log"} {
			t.Run(name+", "+scan, func(t *testing.T) { testOperationsSentAgain(t, c.keys, c.size, scan == "log") })
		}
	}
}

func testOperationsSentAgain(t *testing.T, keys, size int, log bool) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		a, b := c.nodes[0], c.nodes[1]
		a.open()
		a.put("first", "value")
		var requests atomic.Int64
		open := func() {
			b.open(tapped(func(kind byte) {
				if kind == wirePull || kind == wireFetch {
					requests.Add(1)
				}
			}))
		}
		if log {
			open()
			require.NoError(t, b.sync())
			b.close()
			requests.Store(0)
		}
		for i := range keys {
			a.put(fmt.Sprintf("key %04d", i), incompressible(c.rng, size))
		}
		sent, asked := c.net.Bytes("n0", "n1"), c.net.Bytes("n1", "n0")
		open()
		require.NoError(t, b.sync())
		require.Len(t, b.state().values, keys+1)
		payload := keys * size
		require.Less(t, requests.Load(), int64(8+keys/200+payload/200_000), "requests")
		require.Less(t, c.net.Bytes("n0", "n1")-sent, int64(payload+keys*60+1000), "bytes there")
		require.Less(t, c.net.Bytes("n1", "n0")-asked, int64(keys*20+2000), "bytes back")
		require.LessOrEqual(t, b.peer("n0").RecordsIn, int64(keys+1))

		before := b.peer("n0").RecordsIn
		for range 10 {
			a.put("first", "again")
			time.Sleep(time.Second)
		}
		require.Equal(t, before+10, b.peer("n0").RecordsIn, "each change once")
		require.LessOrEqual(t, a.r.Status().Peers[0].RecordsIn, int64(1), "nothing comes back, unless the session that brought it ended")
	})
}

// TestDefectConnectionsNeverClosed lets peers go wrong for an hour each, and
// counts connections and dials.
func TestDefectConnectionsNeverClosed(t *testing.T) {
	for name, spoil := range map[string]func(c *cluster, o *replicator.Options){
		"well":          func(*cluster, *replicator.Options) {},
		"other cluster": func(_ *cluster, o *replicator.Options) { o.Cluster = "other" },
		"silent": func(c *cluster, o *replicator.Options) {
			o.Listener.Close()
			o.Listener = c.net.Listen("elsewhere")
			silent := c.net.Listen("n1")
			go func() {
				for _, err := silent.Accept(); err == nil; _, err = silent.Accept() {
				}
			}()
		},
		"cut": func(c *cluster, _ *replicator.Options) { c.net.SetCut(func(_, _ string) int { return 150 }) },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(t *testing.T, c *cluster) {
				defer c.net.CloseAll()
				c.link(0, 1)
				dials := &countingDial{}
				c.nodes[1].open(func(o *replicator.Options) { spoil(c, o) })
				c.nodes[0].open(func(o *replicator.Options) {
					dials.dial, o.Dial = o.Dial, dials.Dial
					o.MinInterval, o.MaxInterval = testMinInterval, testMaxInterval
				})
				c.nodes[0].put("key", "value")
				most := 0
				for range 3600 {
					time.Sleep(time.Second)
					most = max(most, c.net.Connections())
				}
				count := len(dials.gaps()) + 1
				require.LessOrEqual(t, count, 10+int(math.Ceil(float64(time.Hour/testMaxInterval)/0.8)))
				if name == "well" {
					require.Equal(t, 1, count)
				}
				if name != "silent" { // whose own ends nobody closes
					require.LessOrEqual(t, most, 1)
				}
				for _, n := range c.nodes {
					n.close()
				}
				if name != "silent" {
					require.Zero(t, c.net.Connections())
				}
			})
		})
	}
}

func TestDefectBatchOptionsDropped(t *testing.T) {
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.open()
		var b leveldb.Batch
		b.Put([]byte("one"), []byte("value"))
		b.Put([]byte("two"), []byte("value"))
		require.NoError(t, n.r.Write(&b, withSync))
		n.replaceDisk(n.disk.PowerCut(simtest.Drop))
		n.boot = c.newBoot()
		n.open()
		require.Equal(t, map[string]string{"one": "value", "two": "value"}, n.state().values)
		require.NoError(t, n.r.Write(new(leveldb.Batch), nil), "an empty batch calls back")
	})
}

func TestDefectInternalKeysInIterators(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.open()
		want := map[string]string{"a": "1", "\xff": "2", "\xff\xff": "3"}
		for key, value := range want {
			c.nodes[0].put(key, value)
		}
		c.settleDown()
		for _, n := range c.nodes {
			require.Equal(t, want, n.state().values)
			snap, err := n.r.GetSnapshot()
			require.NoError(t, err)
			it := snap.NewIterator(util.BytesPrefix([]byte("\xff")), nil)
			require.True(t, it.Last() && it.Prev() && !it.Prev(), "two keys, whatever is in between")
			it.Release()
			snap.Release()
		}
	})
}

func TestDefectExposedOnAllInterfaces(t *testing.T) {
	r := wrap(t, memDB(t), nil)
	require.Nil(t, r.Addr(), "nobody can connect unless that is asked for")
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0"} {
		_, err := replicator.Open(memDB(t), &replicator.Options{Listen: addr})
		require.ErrorContains(t, err, "Insecure", addr)
	}
	require.ErrorContains(t, r.AddPeer("192.0.2.1:8000", nil), "Insecure")
}

func TestDefectUnreachablePeerThrows(t *testing.T) {
	for name, dial := range map[string]func(context.Context, string) (net.Conn, error){
		"refuses": func(context.Context, string) (net.Conn, error) { return nil, errors.New("no way") },
		"hangs":   hanging,
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 1, func(t *testing.T, c *cluster) {
				n := c.nodes[0]
				n.peers = []string{"n1", "n2"}
				n.open(func(o *replicator.Options) { o.Dial = dial })
				time.Sleep(time.Minute)
				n.put("key", "value")
				var peer *replicator.PeerError
				require.ErrorAs(t, n.sync(), &peer)
				for _, addr := range n.peers {
					require.Contains(t, n.peer(addr).LastError, "replicator: peer "+addr+": dial: ")
				}
				start := time.Now()
				n.close()
				require.Zero(t, time.Since(start), "Close does not wait for it")
			})
		})
	}
}
