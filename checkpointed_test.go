package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestCheckpointedNotEarly looks at the disk of a node at each of its
// operations during a full pull and a log pull, while the source writes on: the
// checkpoint found there covers nothing that is not there.
func TestCheckpointedNotEarly(t *testing.T) {
	t.Parallel()
	inPair(t, 7, func(t *testing.T, c *cluster, source, n *node) {
		c.fromDisk().open()
		c.converge()
		type image struct {
			disk *simtest.Disk
			id   replicator.DatabaseID
		}
		id := source.r.Status().ID
		var images []image
		var mu sync.Mutex
		// observe captures images, and lets the source write a little every now and
		// then. Unlike in the rest of a test, any goroutine may call this.
		observe := func() {
			n.disk.SetFault(func(_ simtest.Op, _ storage.FileDesc, i int64) error {
				mu.Lock()
				defer mu.Unlock()
				images = append(images, image{n.disk.Copy(), id})
				if i%7 == 0 {
					assert.NoError(t, source.r.Put(fmt.Appendf(nil, "k%05d", i*37%1200), fmt.Append(nil, "moved ", i), nil))
				}
				return nil
			})
		}
		for _, kind := range []string{"full", "log", "full again"} {
			c.net.Isolate("n1")
			for i := range 1200 {
				key := fmt.Sprintf("k%05d", c.rng.IntN(1200))
				switch {
				case i%100 == 0:
					source.put(key, strings.Repeat("fetched", 400))
				case i%9 == 0:
					source.delete(key)
				default:
					source.put(key, fmt.Sprint(kind, i))
				}
			}
			if kind == "full again" {
				n.powerCut()
				n.open()
			}
			observe()
			c.net.Heal()
			require.NoError(t, n.sync())
			time.Sleep(time.Second)
			n.disk.SetFault(nil)
		}
		c.converge()
		index := source.index()
		scans := map[string]int{}
		require.Greater(t, len(images), 50)
		for i, im := range images {
			onDisk(t, im.disk.Copy(), func(db *leveldb.DB) {
				cursor, err := replicator.StoredCursor(db, im.id)
				require.NoError(t, err)
				require.NoError(t, covered(cursor, index, indexOf(t, db)), "image %d", i)
				scans[fmt.Sprint("log ", cursor.Log, ", keys ", cursor.Keys)]++
			})
		}
		t.Log(len(images), "images:", scans)
		require.Len(t, scans, 3, "scans of each kind were caught in the middle")

		// From any of them, one sync leads to the end.
		n.close()
		for i := 0; i < len(images); i += 1 + len(images)/10 {
			n.replaceDisk(images[i].disk.Copy())
			if i%2 == 0 {
				n.powerCut()
			}
			n.open()
			require.NoError(t, n.sync())
			require.True(t, n.state().equal(source.state()), "image %d", i)
		}
		c.converge()
	})
}

// TestCheckpointedNotTwice cuts the connections of a long pull at random
// bytes, and kills the puller now and then. What was merged is not sent again.
func TestCheckpointedNotTwice(t *testing.T) {
	t.Parallel()
	const records = 4000
	for _, kind := range []string{"full", "log"} {
		for _, kills := range []bool{false, true} {
			name := kind
			if kills {
				name += " with kills"
			}
			t.Run(name, func(t *testing.T) {
				inPair(t, 7, func(t *testing.T, c *cluster, source, n *node) {
					c.fromDisk().open()
					if kind == "log" {
						source.put("first", "")
						c.converge()
					}
					c.net.Isolate("n1")
					source.fill("k", 0, records, 20)
					before, sent := n.r.Status(), int64(0)
					base := n.carried(source)
					cuts, killed := c.cutAt(40_000), 0
					c.net.Heal()
					for syncs := 0; n.sync() != nil; syncs++ {
						require.Less(t, syncs, 500, "no progress")
						if kills {
							sent += n.carried(source) - base
							base = 0
							n.kill()
							n.open()
							killed++
						}
					}
					sent += n.carried(source) - base
					t.Logf("%d records in %d connections, with %d kills: %d were sent", records, cuts.Load(), killed, sent)
					require.Greater(t, cuts.Load(), int64(5))
					require.GreaterOrEqual(t, sent, int64(records))
					// A process may die with a page that it has not committed yet.
					require.LessOrEqual(t, sent, int64(records+killed*pageSize))
					after := n.r.Status()
					if kind == "log" {
						require.Equal(t, before.LogRecords+records, after.LogRecords, "something was merged twice")
					} else { // a first sync, of which there is no log; the vector's rise takes a sequence, too
						require.LessOrEqual(t, after.Head, before.Head+records+1, "something was merged twice")
					}
					c.converge()
				})
			})
		}
	}
}

// cutAt lets each connection be cut after up to some number of bytes, and counts
// the connections.
func (c *cluster) cutAt(bytes int) *atomic.Int64 {
	count := new(atomic.Int64)
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
	c.net.SetCut(func(string, string) int {
		count.Add(1)
		return rng.IntN(bytes)
	})
	return count
}

// TestCheckpointedValues cuts the connections in the middle of large
// values: those that have arrived are not fetched again.
func TestCheckpointedValues(t *testing.T) {
	t.Parallel()
	inPair(t, 7, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		const records, size, frame = 700, 6000, 512 << 10
		source.fill("k", 0, records, size)
		c.net.Partition([]string{"n1"})
		start := c.net.Bytes("n0", "n1")
		cuts := c.cutAt(1_500_000)
		c.net.Heal()
		for syncs := 0; n.sync() != nil; syncs++ {
			require.Less(t, syncs, 200, "no progress")
		}
		sent := c.net.Bytes("n0", "n1") - start
		t.Logf("%d bytes of values in %d connections: %d were sent", records*size, cuts.Load(), sent)
		require.LessOrEqual(t, sent, records*(size+200)+cuts.Load()*(frame+pageSize*100))
		require.EqualValues(t, records, n.r.Status().LogRecords)
		c.converge()
	})
}

// TestCheckpointedScans watches the cursor of pulls that are cut again
// and again while the source writes on: a scan is finished before a new one
// starts, over restarts too.
func TestCheckpointedScans(t *testing.T) {
	t.Parallel()
	inPair(t, 77, func(t *testing.T, c *cluster, source, n *node) {
		c.net.Partition([]string{"n1"})
		c.paging = func(o replicator.Options) *replicator.Options {
			o.BacklogBytes = 1
			return replicator.WithPages(o, 100, nil)
		}
		c.open()
		source.fill("k", 0, 3000, 10)
		var was replicator.Progress
		finished, resumed := map[string]int{}, 0
		watch := func(is replicator.Progress) {
			require.GreaterOrEqual(t, is.Checkpoint, was.Checkpoint)
			require.True(t, is.Joined || is.Seen >= was.Seen)
			switch {
			case was.Log && is.Log && is.Checkpoint == was.Checkpoint:
				resumed++
				require.Equal(t, was.Upper, is.Upper, "another scan began before the last one was finished")
				require.LessOrEqual(t, is.Reached, was.Reached)
			case was.Log:
				finished["log"]++
				require.GreaterOrEqual(t, is.Checkpoint, was.Upper)
			case was.Keys && is.Keys && was.Upper > 0:
				resumed++
				require.Equal(t, was.Upper, is.Upper)
				require.GreaterOrEqual(t, is.Key, was.Key)
			case was.Keys && was.Upper > 0:
				finished["full"]++
				require.GreaterOrEqual(t, is.Checkpoint, was.Upper)
			}
			was = is
		}
		c.cutAt(10_000)
		c.net.Heal()
		for step := 0; step < 30 || step < 100 && (finished["full"] == 0 || finished["log"] == 0 || resumed < 5); step++ {
			before := source.index()
			err := n.sync()
			watch(n.cursor(source))
			if err == nil {
				here := n.index()
				for key, row := range before {
					require.GreaterOrEqual(t, here[key].Stamp.Compare(row.Stamp), 0, "SyncNow returned without %s", key)
				}
			}
			for range 700 {
				source.put(fmt.Sprintf("k%05d", c.rng.IntN(4000)), fmt.Sprint("step ", step))
			}
			switch step % 4 {
			case 1:
				n.kill()
			case 3:
				n.close()
			}
			n.open()
			watch(n.cursor(source))
		}
		t.Log(resumed, "resumed,", finished, "finished")
		require.Greater(t, resumed, 4)
		require.Positive(t, finished["full"])
		require.Positive(t, finished["log"])
		c.converge()
	})
}

// TestCheckpointedRescan reads a long log in key order: what is merged
// already is passed over, and nothing is sent twice.
func TestCheckpointedRescan(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		c.paging = func(o replicator.Options) *replicator.Options {
			return replicator.WithPages(o, 10, func() bool { return true })
		}
		c.open()
		source.fill("base", 0, 5, 0)
		c.converge()
		c.net.Partition([]string{"n1"})
		source.fill("k", 0, 200, 0)
		before := n.carried(source)
		c.net.Heal()
		c.converge()
		require.EqualValues(t, 200, n.carried(source)-before)
	})
}
