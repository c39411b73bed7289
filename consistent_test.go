package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// TestConsistentUnpublished has a peer sync with a source while a commit
// can be seen that is not over. The record that it supersedes is not passed over
// without the one that takes its place.
func TestConsistentUnpublished(t *testing.T) {
	t.Parallel()
	for name, overwrite := range map[string]func(source *node) error{
		"put": func(source *node) error { return source.r.Put([]byte("k"), largeValue, nil) },
		"merge": func(source *node) error {
			version := replicator.Version{Stamp: replicator.Stamp{Clock: 1000, Origin: 1 << 63}}
			commit, err := replicator.Examine(source.r, replicator.Entry{Key: "k", Version: version, Value: string(largeValue)})
			if err == nil {
				_, err = commit()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inPair(t, 9, func(t *testing.T, c *cluster, source, n *node) {
				c.open()
				source.fill("first", 0, 10, 0)
				c.converge()
				c.net.Partition([]string{"n1"})
				time.Sleep(time.Minute) // the sessions end, so nothing of theirs waits for a commit
				source.put("k", "old")
				source.put("other", "")
				goOn, over := source.holdCommit("k", func() error { return overwrite(source) })
				defer goOn()
				c.net.Heal()
				require.NoError(t, n.sync())
				_, has := n.get("k")
				require.True(t, has)
				goOn()
				require.NoError(t, <-over)
				c.converge()
			})
		})
	}
}

// TestConsistentSeen freezes a pull at the end of a scan that went on with a second
// snapshot, in which keys had moved up the log: the scan has passed them over. That
// satisfies no SyncNow, is not acknowledged, and raises no vector.
func TestConsistentSeen(t *testing.T) {
	t.Parallel()
	inPair(t, 9, func(t *testing.T, c *cluster, source, n *node) {
		c.durableEvery = time.Second
		synced, moved := halfway(c)
		for range 5 {
			cursor := n.cursor(source)
			require.False(t, cursor.Log, "the scan is over")
			require.EqualValues(t, 10+4*pageSize-100, cursor.Checkpoint)
			require.EqualValues(t, int(cursor.Checkpoint)+moved, cursor.Seen)
			_, has := n.get("k00000")
			require.False(t, has)
			require.Empty(t, synced, "SyncNow returned without what was there at the call")
			require.False(t, cursor.Joined, "what is not there is going to be acknowledged")
			require.EqualValues(t, 9, replicator.Vector(n.r)[source.r.Status().Epoch])
			require.EqualValues(t, 10, source.acknowledged(n))
			require.NotEqual(t, replicator.StateInSync, n.r.Status().Peers[0].State)
			time.Sleep(time.Second)
		}
		c.net.Thaw("n0", "n1")
		require.NoError(t, <-synced)
		require.True(t, n.state().equal(source.state()))
		time.Sleep(3 * time.Second)
		require.Equal(t, source.r.Status().Head, source.acknowledged(n))
		require.True(t, n.cursor(source).Joined)
		c.converge()
	})
}

// TestConsistentValues overwrites keys in the midst of the reading of
// pages and values. Whatever a peer is found to have, at any moment, is what was
// written with that stamp; and SyncNow returns with all that was there at the call.
func TestConsistentValues(t *testing.T) {
	t.Parallel()
	inPair(t, 9, func(t *testing.T, c *cluster, source, n *node) {
		n.open()
		n.delete("nothing") // so that large values are fetched from the beginning
		// What was there at first is read from the disk, block by block, and nobody
		// else reads that: nothing is compacted later.
		source.ldb = opt.Options{DisableBlockCache: true, WriteBuffer: 32 << 20, DisableLargeBatchTransaction: true}
		source.open()
		const keys = 2 * pageSize
		written := map[replicator.Stamp]string{}
		var mu sync.Mutex // guards the writer's turn, and written
		count := 0
		overwrite := func(first, n int) {
			var batch leveldb.Batch
			var values []string
			for i := range n {
				key := fmt.Sprintf("k%05d", first+i)
				count++
				values = append(values, fmt.Sprint(count, " of ", key, strings.Repeat("v", count%4*500)))
				batch.Put([]byte(key), []byte(values[i]))
			}
			if err := source.r.Write(&batch, nil); err != nil {
				panic(err)
			}
			v, err := source.r.Version(fmt.Appendf(nil, "k%05d", first))
			if err != nil {
				panic(err)
			}
			for i, value := range values {
				written[replicator.Stamp{Clock: v.Clock + uint64(i), Origin: v.Origin}] = value
			}
		}
		overwrite(0, keys)
		require.NoError(t, source.db.CompactRange(util.Range{}))
		rng := rand.New(rand.NewPCG(9, 9))
		source.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			// Who has the turn reads, too.
			if op == simtest.OpRead && mu.TryLock() {
				defer mu.Unlock()
				if n := 1 + rng.IntN(keys/3); count < 14*keys && rng.IntN(6) == 0 {
					overwrite(rng.IntN(keys-n), n)
				}
			}
			return nil
		})
		observed := map[replicator.Stamp]string{}
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				found := readRows(t, n.db)
				for key, row := range found.index {
					if was, has := observed[row.Stamp]; has && was != found.data[key] {
						assert.Equal(t, was, found.data[key], "the value of %s changed without its stamp", key)
						return
					}
					observed[row.Stamp] = found.data[key]
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
		for round := range 10 {
			mu.Lock()
			before := source.index()
			mu.Unlock()
			require.NoError(t, n.sync())
			here := n.index()
			for key, row := range before {
				require.GreaterOrEqual(t, here[key].Stamp.Compare(row.Stamp), 0, "round %d: SyncNow returned without %s", round, key)
			}
			mu.Lock()
			for range pageSize {
				overwrite(rng.IntN(keys), 1)
			}
			mu.Unlock()
		}
		source.disk.SetFault(nil)
		c.converge()
		close(done)
		wg.Wait()
		for stamp, value := range observed {
			require.Equal(t, written[stamp], value, "at %v", stamp)
		}
		t.Logf("%d writes, %d of them observed", count, len(observed))
		require.Greater(t, len(observed), keys)
	})
}

// TestConsistentFetches overwrites all keys in the midst of the reading
// of values that a peer fetches, and looks at all that the peer ever commits.
func TestConsistentFetches(t *testing.T) {
	t.Parallel()
	inPair(t, 9, func(t *testing.T, c *cluster, source, n *node) {
		n.open()
		source.ldb = opt.Options{DisableBlockCache: true, WriteBuffer: 8 << 20, DisableLargeBatchTransaction: true}
		source.open()
		const keys = 8
		written := map[replicator.Stamp]string{}
		overwrite := func(text string) {
			var batch leveldb.Batch
			clock := source.r.Status().Clock
			for i := range keys {
				value := fmt.Sprint(text, " of ", i, strings.Repeat("v", 66<<10))
				batch.Put(fmt.Appendf(nil, "k%05d", i), []byte(value))
				written[replicator.Stamp{Clock: clock + uint64(i), Origin: source.r.Status().Epoch}] = value
			}
			if err := source.r.Write(&batch, nil); err != nil {
				panic(err)
			}
		}
		var overwritten atomic.Int64
		var mu sync.Mutex // guards images
		var images []*simtest.Disk
		rounds := budget(5, 8, 12)
		for round := range rounds {
			c.net.Partition([]string{"n1"})
			overwrite(fmt.Sprint("value ", round))
			require.NoError(t, source.db.CompactRange(util.Range{}))
			before := n.carried(source)
			var reads atomic.Int64
			source.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
				if op != simtest.OpRead || n.r.Status().Peers[0].RecordsIn == before {
					return nil // the page is not even read
				}
				if reads.Add(1) == int64(1+2*round) {
					overwritten.Add(1)
					overwrite(fmt.Sprint("value in between ", round))
				}
				return nil
			})
			n.disk.SetFault(func(simtest.Op, storage.FileDesc, int64) error {
				mu.Lock()
				defer mu.Unlock()
				images = append(images, n.disk.Copy())
				return nil
			})
			c.net.Heal()
			require.NoError(t, n.sync())
			source.disk.SetFault(nil)
			n.disk.SetFault(nil)
		}
		c.converge()
		require.Greater(t, overwritten.Load(), int64(rounds*2/3))
		for _, image := range append(images, n.disk.Copy()) {
			onDisk(t, image, func(db *leveldb.DB) {
				found := readRows(t, db)
				for key, row := range found.index {
					require.Equal(t, written[row.Stamp], found.data[key], "%s at %v", key, row)
				}
			})
		}
	})
}

// TestConsistentAcknowledgements looks at what a peer would have after a
// power cut: all that it has acknowledged.
func TestConsistentAcknowledgements(t *testing.T) {
	t.Parallel()
	inPair(t, 9, func(t *testing.T, c *cluster, source, n *node) {
		c.durableEvery = time.Second
		c.open()
		moves, was := 0, uint64(0)
		for range 50 {
			for range c.rng.IntN(100) {
				source.put(fmt.Sprint("key ", c.rng.IntN(500)), "value")
			}
			time.Sleep(time.Duration(c.rng.IntN(1200)) * time.Millisecond)
			acknowledged := source.acknowledged(n)
			if acknowledged != was {
				moves++
			}
			was = acknowledged
			index := source.index()
			onDisk(t, n.disk.PowerCut(simtest.Drop), func(db *leveldb.DB) {
				require.NoError(t, covered(replicator.Progress{Checkpoint: acknowledged}, index, indexOf(t, db)))
			})
		}
		t.Log(moves, "acknowledgements")
		require.Greater(t, moves, 10)
		time.Sleep(3 * time.Second)
		require.Equal(t, source.r.Status().Head, source.acknowledged(n))
	})
}

// TestConsistentAcknowledgementsRestated breaks a connection before what
// was merged over it is made durable: the next session must not acknowledge it at
// once.
func TestConsistentAcknowledgementsRestated(t *testing.T) {
	t.Parallel()
	inPair(t, 9, func(t *testing.T, c *cluster, source, n *node) {
		c.durableEvery = 3 * time.Second
		c.open()
		source.fill("first", 0, 10, 0)
		c.converge()
		time.Sleep(5 * time.Second)
		source.fill("second", 0, 10, 0)
		require.NoError(t, n.sync())
		for range 100 {
			c.net.Partition([]string{"n1"})
			synctest.Wait()
			c.net.Heal()
			require.NoError(t, n.sync())
			time.Sleep(10 * time.Millisecond)
			acknowledged := source.acknowledged(n)
			onDisk(t, n.disk.PowerCut(simtest.Drop), func(db *leveldb.DB) {
				require.NoError(t, covered(replicator.Progress{Checkpoint: acknowledged}, source.index(), indexOf(t, db)))
			})
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, source.r.Status().Head, source.acknowledged(n))
	})
}

// TestConsistentAcknowledgementsGoOn writes without a pause: that must
// not keep a peer from acknowledging what it has.
func TestConsistentAcknowledgementsGoOn(t *testing.T) {
	t.Parallel()
	inPair(t, 9, func(t *testing.T, c *cluster, source, n *node) {
		c.durableEvery = time.Second
		c.open()
		const gap = 100 * time.Millisecond
		for i := range 600 {
			source.put("key", fmt.Sprint(i))
			time.Sleep(gap)
			behind := source.r.Status().Head - source.acknowledged(n)
			require.LessOrEqual(t, time.Duration(behind)*gap, 5*time.Second, "acknowledgements have stopped")
		}
	})
}

// TestConsistentAcknowledgementsUnpublished has a peer pull while a commit is visible,
// but not over: the peer is not given the record before the commit is over.
func TestConsistentAcknowledgementsUnpublished(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		c.durableEvery = time.Second
		c.open()
		source.fill("k", 0, 100, 10)
		c.converge()
		c.net.Partition([]string{"n1"})
		time.Sleep(time.Minute) // the sessions end, so nothing of theirs waits for a commit
		for i := range 5 {
			source.put(fmt.Sprint("more", i), "")
		}
		goOn, over := source.holdCommit("large", func() error { return source.r.Put([]byte("large"), largeValue, nil) })
		defer goOn()
		c.net.Heal()
		time.Sleep(3 * time.Second)
		_, has := n.get("large")
		require.False(t, has)
		goOn()
		require.NoError(t, <-over)
		c.converge()
		time.Sleep(time.Minute)
		for _, p := range source.r.Status().Peers {
			require.Equal(t, "0", known(p.Unconfirmed))
		}
	})
}
