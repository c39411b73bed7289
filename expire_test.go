package replicator_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// updates puts values under ten keys, over and over.
func (n *node) updates(from, to int) {
	for i := from; i < to; i++ {
		n.put(fmt.Sprint("key ", i%10), fmt.Sprint(n.name, " ", i))
	}
}

// hasLog waits until the log of a node has so many records, and is consistent.
func (n *node) hasLog(least, most uint64) {
	until(n.c.t, fmt.Sprintf("the log has %d to %d records", least, most), func() bool {
		records := n.r.Status().LogRecords
		return least <= records && records <= most
	})
	require.NoError(n.c.t, replicator.CheckConsistent(n.r))
}

// TestExpireNewestStay: without peers the log is cut to its newest records, whatever
// comes between, and reports how long it is.
func TestExpireNewestStay(t *testing.T) {
	t.Parallel()
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		c.expiring(time.Second, 20, 1000).open()
		n := c.nodes[0]
		n.updates(0, 21)
		time.Sleep(time.Minute)
		require.EqualValues(t, 21, n.r.Status().LogRecords, "it is not worth a Sync yet")
		n.updates(21, 500)
		n.hasLog(20, 22)
		status := n.r.Status()
		require.Equal(t, status.Head-status.LogRecords+1, status.Floor)
		require.Nil(t, status.LogHeldFor)
		for _, end := range []func(){n.close, n.kill, n.powerCut} {
			end()
			n.open()
			n.updates(0, 100)
			n.hasLog(20, 22)
		}
	})
}

// TestExpireUnlessHeld: the log is kept for a peer until it has merged it, over a restart,
// which forgets what the peer has stated; until it was not seen for PeerAge; and until
// there are as many records as there may be.
func TestExpireUnlessHeld(t *testing.T) {
	t.Parallel()
	test := func(name string, age time.Duration, test func(t *testing.T, c *cluster, source, n *node)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
				c.fromDisk().expiring(time.Second, 20, 1000)
				before := c.paging
				c.paging = func(o replicator.Options) *replicator.Options {
					o.PeerAge = age
					return before(o)
				}
				c.open()
				source.updates(0, 10)
				c.converge()
				time.Sleep(time.Minute)
				c.net.Partition([]string{"n1"})
				source.updates(0, 200)
				time.Sleep(time.Minute)
				source.hasLog(200, 220)
				test(t, c, source, n)
			})
		})
	}
	test("merged", 0, func(t *testing.T, c *cluster, source, n *node) {
		held := source.r.Status().LogHeldFor
		require.NotNil(t, held)
		require.Equal(t, n.r.Status().ID, held.ID)
		require.NotNil(t, held.Merged)
		require.Less(t, time.Since(held.LastSeen), 5*time.Minute)
		require.Greater(t, time.Since(held.LastSeen), time.Second)
		c.net.Heal()
		c.converge()
		source.hasLog(20, 22)
		require.Nil(t, source.r.Status().LogHeldFor)
	})
	test("restart", 0, func(t *testing.T, c *cluster, source, n *node) {
		id := n.r.Status().ID
		for _, end := range []func(){source.close, source.kill, source.powerCut} {
			end()
			source.open()
			time.Sleep(time.Minute)
			source.hasLog(200, 220)
			held := source.r.Status().LogHeldFor
			require.NotNil(t, held)
			require.Equal(t, id, held.ID)
			require.Nil(t, held.Merged)
		}
		c.net.Heal()
		c.converge()
		source.hasLog(20, 22)
	})
	test("not seen", time.Hour, func(t *testing.T, c *cluster, source, n *node) {
		time.Sleep(30 * time.Minute)
		source.hasLog(200, 220)
		source.close()
		time.Sleep(20 * time.Minute)
		source.open()
		time.Sleep(5 * time.Minute)
		source.hasLog(200, 220)
		time.Sleep(10 * time.Minute) // since it was seen, not since the opening
		source.hasLog(20, 22)
		c.net.Heal()
		c.converge()
	})
	test("for ever", -1, func(t *testing.T, c *cluster, source, n *node) {
		time.Sleep(3 * time.Hour)
		source.hasLog(200, 220)
	})
	test("too many", -1, func(t *testing.T, c *cluster, source, n *node) {
		source.updates(0, 800)
		time.Sleep(time.Minute)
		require.Greater(t, source.r.Status().LogRecords, uint64(998))
		source.updates(0, 2)
		source.hasLog(990, 998) // cut by the slack, a tenth of the newest
		for i := range 20 {
			source.updates(0, 200)
			time.Sleep(1100 * time.Millisecond)
			require.LessOrEqual(t, source.r.Status().LogRecords, uint64(1200), "held, and written to: %d", i)
		}
		source.hasLog(990, 1000)
		carried := n.carried(source)
		c.net.Heal()
		c.converge()
		require.LessOrEqual(t, n.carried(source)-carried, int64(10), "what it lacks, each key once")
		source.hasLog(20, 22)
	})
}

// TestExpireNotHeldByReader: a peer that will not merge anything is not waited for.
func TestExpireNotHeldByReader(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.expiring(time.Second, 20, 1000)
		n.open()
		source.open(mergesNothing)
		require.NoError(t, n.sync())
		n.updates(0, 200)
		n.hasLog(20, 22)
	})
}

// TestExpireByAge: records expire when they are old, but for the newest.
func TestExpireByAge(t *testing.T) {
	t.Parallel()
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		c.expiring(time.Second, 20, 1000)
		before := c.paging
		c.paging = func(o replicator.Options) *replicator.Options {
			o.MaxLogAge, o.PeerAge = time.Hour, -1
			return before(o)
		}
		c.open()
		n := c.nodes[0]
		replicator.AwaitStranger(n.r)
		for i := range 60 {
			n.updates(0, 10)
			time.Sleep(10 * time.Minute)
			require.LessOrEqual(t, n.r.Status().LogRecords, uint64(80), i)
		}
		n.hasLog(50, 70)
		require.LessOrEqual(t, replicator.TimeMarks(n.db), 20)
		n.kill()
		n.open()
		replicator.AwaitStranger(n.r)
		time.Sleep(2 * time.Hour)
		n.hasLog(20, 22)
		// A power cut may take sequences and leave their times.
		head := n.r.Status().Head
		n.close()
		onDisk(t, n.disk, func(db *leveldb.DB) { require.NoError(t, replicator.MarkTime(db, head+150)) })
		n.open()
		replicator.AwaitStranger(n.r)
		n.updates(0, 200)
		time.Sleep(time.Minute)
		require.GreaterOrEqual(t, n.r.Status().LogRecords, uint64(200))
		c.check()
	})
}

// TestExpireInScan: a peer reads the log when the records that it has yet to read expire,
// and the scan is cut off, at each page and by each kind of end. It gets everything, and
// what it knows is true at any time.
func TestExpireInScan(t *testing.T) {
	t.Parallel()
	const keys, page = 60, 5
	ends := map[string]func(c *cluster, source, n *node){
		"cut": func(c *cluster, source, n *node) {
			time.Sleep(time.Minute) // the snapshot is given back
		},
		"the server is closed":      func(c *cluster, source, n *node) { source.close(); source.open() },
		"the server is killed":      func(c *cluster, source, n *node) { source.kill(); source.open() },
		"the server loses power":    func(c *cluster, source, n *node) { source.powerCut(); source.open() },
		"the reader is killed":      func(c *cluster, source, n *node) { n.kill(); n.open() },
		"the reader loses power":    func(c *cluster, source, n *node) { n.powerCut(); n.open() },
		"the snapshot is kept":      func(c *cluster, source, n *node) {},
		"the server is an old copy": nil,
		"the reader is an old copy": nil,
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := int64(1); at < keys/page; at += int64(budget(4, 1, 1)) {
				inPair(t, at, func(t *testing.T, c *cluster, source, n *node) {
					c.expiring(time.Second, 1, 1<<30)
					before := c.paging
					c.paging = func(o replicator.Options) *replicator.Options {
						o.BacklogBytes, o.PeerAge = 1, -1
						return replicator.WithPages(*before(o), page, func() bool { return false })
					}
					n.ldb.WriteBuffer = roomy
					c.open()
					source.fill("k", 0, 5, 10)
					c.converge()
					time.Sleep(time.Minute)
					oldSource, oldReader := source.disk.Copy(), n.disk.Copy()
					c.net.Partition([]string{"n1"})
					source.fill("k", 0, keys, 10)
					source.delete("k00001")
					var made []replicator.Made
					for key, row := range source.index() {
						made = append(made, replicator.Made{Key: key, Version: row.Version})
					}
					start := n.carried(source)
					reached, goOn := make(chan struct{}), make(chan struct{})
					var once sync.Once
					n.disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
						if op == simtest.OpWrite && fd.Type == storage.TypeJournal && n.carried(source)-start >= at*page {
							once.Do(func() {
								close(reached)
								<-goOn
							})
						}
						return nil
					})
					c.net.Heal()
					select {
					case <-reached:
					case <-time.After(time.Minute):
						require.Fail(t, "the scan does not come that far")
					}
					replicator.ExpireNow(t, source.r)
					require.Zero(t, source.r.Status().LogRecords)
					require.NoError(t, replicator.CheckConsistent(source.r))
					if name != "the snapshot is kept" {
						c.net.Partition([]string{"n1"})
					}
					close(goOn)
					time.Sleep(time.Second)
					n.disk.SetFault(nil)
					switch name {
					case "the server is an old copy":
						source.replaceDisk(oldSource)
						source.open()
						source.updates(0, 5)
					case "the reader is an old copy":
						n.replaceDisk(oldReader)
						n.open()
						n.updates(0, 5)
					default:
						end(c, source, n)
					}
					require.NoError(t, replicator.CheckKnown(n.r, made))
					c.net.Heal()
					source.put("last", "here")
					n.arrives("last", "here")
					require.NoError(t, replicator.CheckKnown(n.r, made))
					require.NoError(t, replicator.CheckKnown(source.r, made))
					c.converge()
					require.Equal(t, replicator.Vector(source.r), replicator.Vector(n.r))
				})
			}
		})
	}
}

// TestExpireIsNoFirstSync: a log that has expired is not taken for that of a replica which
// has begun its first sync. What it has goes on to be served while it pulls.
func TestExpireIsNoFirstSync(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.expiring(time.Second, 20, 1000)
		before := c.paging
		c.paging = func(o replicator.Options) *replicator.Options { return replicator.WithPages(*before(o), 10, nil) }
		c.net.Partition([]string{"n1"})
		c.open()
		source.fill("source", 0, 300, 10)
		n.fill("n", 0, 300, 10)
		n.hasLog(20, 22)
		c.net.Heal()
		c.converge()
		require.NotZero(t, n.r.Status().LogRecords)
	})
}

// TestExpireKill: nothing below the floor tells of clocks and own changes. After a kill
// both are known all the same.
func TestExpireKill(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.expiring(time.Second, 1, 1)
		c.open()
		for round := range 5 {
			source.updates(0, 10)
			c.converge()
			var made []replicator.Made
			for i := range 10 {
				key := fmt.Sprint("key ", i)
				n.put(key, fmt.Sprint("own ", round))
				made = append(made, replicator.Made{Key: key, Version: n.version(key)})
			}
			clock := n.r.Status().Clock
			n.hasLog(0, 0)
			n.kill()
			n.open()
			require.GreaterOrEqual(t, n.r.Status().Clock, clock)
			require.Less(t, n.r.Status().Clock, clock+100, "it need not go on from the ceiling")
			known := replicator.Vector(n.r)
			for _, ch := range made {
				require.GreaterOrEqual(t, known[ch.Origin], ch.Clock, "what was made here")
			}
		}
		c.converge()
	})
}

// TestExpireIsDurable: the floor is durable before the first record below it goes. Whatever
// a power cut leaves, there are no gaps above it.
func TestExpireIsDurable(t *testing.T) {
	t.Parallel()
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		c.expiring(time.Second, 1, 1).open()
		n := c.nodes[0]
		n.updates(0, 100)
		require.NoError(t, n.r.Put([]byte("durable"), nil, withSync))
		var left []*simtest.Disk
		n.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			if op&changing != 0 {
				left = append(left, n.disk.PowerCut(simtest.Drop), n.disk.Copy())
			}
			return nil
		})
		n.hasLog(0, 0)
		n.disk.SetFault(nil)
		left = append(left, n.disk.PowerCut(simtest.Drop), n.disk.Copy())
		for i, disk := range left {
			if i%2 == 1 { // what was there when the machine ended; behind it, what was synced
				gone := uint64(0)
				onDisk(t, disk, func(db *leveldb.DB) {
					log, err := replicator.LogRows(db)
					require.NoError(t, err)
					gone = 101 - uint64(len(log))
				})
				onDisk(t, left[i-1], func(db *leveldb.DB) {
					floor, err := replicator.Floor(db)
					require.NoError(t, err)
					require.Greater(t, floor, gone, "the floor that is durable when so many records are gone")
				})
				continue
			}
			onDisk(t, disk, func(db *leveldb.DB) {
				floor, err := replicator.Floor(db)
				require.NoError(t, err)
				log, err := replicator.LogRows(db)
				require.NoError(t, err)
				above := map[uint64]bool{}
				for _, row := range log {
					above[row.Seq] = true
				}
				for seq := floor; seq <= 101; seq++ {
					require.True(t, above[seq], "record %d, above the floor %d", seq, floor)
				}
			})
		}
	})
}

// TestExpireDuringAdoption: what was written while keys were looked up has expired when
// they are to be adopted. A value of today is not taken for one of yesterday.
func TestExpireDuringAdoption(t *testing.T) {
	t.Parallel()
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		c.fromDisk()
		n := c.nodes[0]
		fillDisk(t, n.disk, map[string]string{"a": "old", "b": "old", "c": "old"})
		n.open(func(o *replicator.Options) { o.SkipAdoption = true })
		adopt, err := replicator.AdoptFound(n.r)
		require.NoError(t, err)
		n.put("b", "new")
		n.put("d", "new")
		replicator.ExpireNow(t, n.r)
		require.NoError(t, adopt())
		got, _ := n.get("b")
		require.Equal(t, "new", got)
		require.Equal(t, n.r.Status().Epoch, n.version("b").Origin)
		require.NotEqual(t, n.r.Status().Epoch, n.version("a").Origin)
		c.check()
	})
}

// TestExpireDuringMerge: what was written while the entries of a page were looked up has
// expired when they are to be merged. They lose all the same.
func TestExpireDuringMerge(t *testing.T) {
	t.Parallel()
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		c.fromDisk().open()
		n := c.nodes[0]
		n.updates(0, 20)
		older := replicator.Version{Stamp: replicator.Stamp{Clock: 5, Origin: 1<<63 | 5}}
		commit, err := replicator.Examine(n.r, replicator.Entry{Version: older, Key: "new", Value: "older"})
		require.NoError(t, err)
		n.put("new", "newer")
		n.put("other", "newer")
		replicator.ExpireNow(t, n.r)
		won, err := commit()
		require.NoError(t, err)
		require.Zero(t, won)
		c.check()
	})
}

// TestExpireRetries: a failed read is no end of the expiration.
func TestExpireRetries(t *testing.T) {
	t.Parallel()
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.open()
		n.updates(0, 100)
		n.close()
		c.expiring(time.Second, 1, 10)
		n.open()
		failing := simtest.Failure{Err: fmt.Errorf("no"), Ops: simtest.OpRead, From: 1, Times: 3}
		n.disk.SetFault(failing.Fault())
		n.updates(0, 100)
		n.hasLog(1, 2)
		n.disk.SetFault(nil)
	})
}
