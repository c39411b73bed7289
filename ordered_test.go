package replicator_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
)

// TestOrderedForReaders lets concurrent callers write singly and in
// batches, with merges between them. Whoever reads the log through a snapshot
// sees it without a gap, and up to the head that was told before.
func TestOrderedForReaders(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		onDisk(t, simtest.NewDisk(), func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			const writers, rounds, batch = 8, 120, 5
			var done atomic.Int64
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					defer done.Add(1)
					for i := range rounds {
						before := r.Status().Head
						assert.NoError(t, writeOrdered(r, w, i, batch))
						assert.Greater(t, r.Status().Head, before)
					}
				})
			}
			views := 0
			for ; done.Load() < writers; views++ {
				head := r.Status().Head
				checkOrdered(t, db, r.Status().Epoch, head, batch)
			}
			wg.Wait()
			head := r.Status().Head
			require.EqualValues(t, rounds*(writers-1+(writers-1)/2*(batch-1)+batch), head)
			checkOrdered(t, db, r.Status().Epoch, head, batch)
			t.Logf("%d views of a growing log", views)
		})
	})
}

// writeOrdered makes change i of writer w: of three kinds, always to new keys.
func writeOrdered(r *replicator.Replicator, w, i, batch int) error {
	key := fmt.Sprintf("%d/%04d", w, i)
	switch {
	case w == 0: // merges
		var entries []replicator.Entry
		for k := range batch {
			entries = append(entries, replicator.Entry{
				Version: replicator.Version{Stamp: replicator.Stamp{Clock: uint64(50 * i), Origin: 1<<63 + 1}},
				Key:     fmt.Sprint(key, "/", k),
			})
		}
		commit, err := replicator.Examine(r, entries...)
		if err == nil {
			_, err = commit()
		}
		return err
	case w%2 == 0:
		var b leveldb.Batch
		for k := range batch {
			b.Put(fmt.Append(nil, key, "/", k), nil)
		}
		return r.Write(&b, &opt.WriteOptions{Sync: i%7 == 0})
	}
	return r.Put([]byte(key), nil, &opt.WriteOptions{Sync: i%5 == 0})
}

// checkOrdered checks one snapshot of the log.
func checkOrdered(t *testing.T, db *leveldb.DB, epoch replicator.Origin, head uint64, batch int) {
	snap, err := db.GetSnapshot()
	require.NoError(t, err)
	defer snap.Release()
	log, err := replicator.LogRows(snap)
	require.NoError(t, err)
	require.GreaterOrEqual(t, uint64(len(log)), head, "the head was published before its record was visible")
	latest := map[string]string{} // by writer
	last := map[string]uint64{}   // place of the last of a batch
	var clock uint64
	for i, row := range log {
		require.EqualValues(t, i+1, row.Seq, "a gap in the log")
		writer, _, _ := strings.Cut(row.Key, "/")
		require.Less(t, latest[writer], row.Key, "a caller's own order")
		latest[writer] = row.Key
		if row.Origin == epoch {
			require.True(t, i == 0 || row.Clock > clock, "record %d: clock %d follows %d", row.Seq, row.Clock, clock)
		}
		clock = max(clock, row.Clock)
		if parts := strings.Split(row.Key, "/"); len(parts) == 3 {
			name := parts[0] + "/" + parts[1]
			if parts[2] != "0" {
				require.Equal(t, row.Seq-1, last[name], "a batch is torn apart")
			}
			last[name] = row.Seq
			if parts[2] == fmt.Sprint(batch-1) {
				delete(last, name)
			}
		}
	}
	require.Empty(t, last, "a part of a batch is visible")
}

// TestOrderedInGroups holds up a leader's write until others wait, and
// counts what the disk does for them.
func TestOrderedInGroups(t *testing.T) {
	t.Parallel()
	const callers = 64
	put := func(wo func(i int) *opt.WriteOptions) func(r *replicator.Replicator, key string, i int) error {
		return func(r *replicator.Replicator, key string, i int) error { return r.Put([]byte(key), nil, wo(i)) }
	}
	for name, c := range map[string]struct {
		write         func(r *replicator.Replicator, key string, i int) error
		writes, syncs int64
	}{
		"without Sync":       {put(func(int) *opt.WriteOptions { return nil }), 1, 0},
		"one with Sync":      {put(func(i int) *opt.WriteOptions { return &opt.WriteOptions{Sync: i == callers/2} }), 1, 1},
		"the last with Sync": {put(func(i int) *opt.WriteOptions { return &opt.WriteOptions{Sync: i == callers-1} }), 1, 1},
		"all with Sync":      {put(func(int) *opt.WriteOptions { return withSync }), 1, 1},
		"alone":              {put(func(int) *opt.WriteOptions { return &opt.WriteOptions{NoWriteMerge: true} }), callers, 0},
		"some alone":         {put(func(i int) *opt.WriteOptions { return &opt.WriteOptions{NoWriteMerge: i%4 == 1} }), callers/2 + 1, 0},
		"batches": {func(r *replicator.Replicator, key string, i int) error {
			var b leveldb.Batch
			b.Put([]byte(key), nil)
			return r.Write(&b, &opt.WriteOptions{Sync: i%9 == 0})
		}, 1, 1},
		"merges between": {func(r *replicator.Replicator, key string, i int) error {
			if i%4 != 1 {
				return r.Put([]byte(key), nil, nil)
			}
			commit, err := replicator.Examine(r, replicator.Entry{Key: key, Version: replicator.Version{Stamp: replicator.Stamp{Origin: 1 << 63}}})
			if err == nil {
				_, err = commit()
			}
			return err
		}, callers/2 + 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				disk := simtest.NewDisk()
				onDisk(t, disk, func(db *leveldb.DB) {
					r := openPlain(t, db, "boot")
					defer r.Close()
					entered, letGo := hold(disk)
					defer letGo()
					var wg sync.WaitGroup
					wg.Go(func() { assert.NoError(t, r.Put([]byte("leader"), nil, nil)) })
					<-entered
					for i := range callers {
						wg.Go(func() {
							key := fmt.Sprint(i)
							assert.NoError(t, c.write(r, key, i))
							has, err := db.Has([]byte(key), nil)
							assert.NoError(t, err)
							assert.True(t, has, "the write of %s has returned", key)
						})
						synctest.Wait() // so that they queue in this order
					}
					has, err := db.Has([]byte("leader"), nil)
					require.NoError(t, err)
					require.False(t, has)
					require.Zero(t, r.Status().Head, "the head is above what is written")
					writes, syncs := disk.Writes(), disk.Syncs()
					letGo()
					wg.Wait()
					require.Equal(t, writes+1+c.writes, disk.Writes(), "journal writes")
					require.Equal(t, syncs+c.syncs, disk.Syncs())
					log, err := replicator.LogRows(db)
					require.NoError(t, err)
					require.Len(t, log, callers+1)
					for i, row := range log[1:] {
						require.EqualValues(t, i+2, row.Seq)
						require.Equal(t, fmt.Sprint(i), row.Key)
					}
					require.NoError(t, replicator.CheckConsistent(r))
				})
			})
		})
	}
}

// TestOrderedCallersShareSyncs lets callers write with Sync on a disk
// that takes its time.
func TestOrderedCallersShareSyncs(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		disk := simtest.NewDisk()
		onDisk(t, disk, func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
				if op == simtest.OpSync {
					time.Sleep(time.Millisecond)
				}
				return nil
			})
			syncs := disk.Syncs()
			const callers, writes = 64, 20
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					for j := range writes {
						assert.NoError(t, r.Put(fmt.Appendf(nil, "%d/%d", i, j), nil, withSync))
					}
				})
			}
			wg.Wait()
			t.Logf("%d writes shared %d syncs", callers*writes, disk.Syncs()-syncs)
			require.Less(t, disk.Syncs()-syncs, int64(3*writes))
		})
	})
}

// TestOrderedResults gives each caller the result of its own group:
// the one before a failed one has succeeded, and so on.
func TestOrderedResults(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		disk := simtest.NewDisk()
		var acknowledged, refused []string
		onDisk(t, disk, func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			var mu sync.Mutex
			put := func(key string) {
				err := r.Put([]byte(key), []byte(key), nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					acknowledged = append(acknowledged, key)
					return
				}
				assert.ErrorIs(t, err, replicator.ErrFailed)
				assert.ErrorIs(t, err, syscall.ENOSPC)
				refused = append(refused, key)
			}
			// Work that fails by itself does no harm to others.
			commit, err := replicator.Examine(r, replicator.Entry{Key: "later", Version: replicator.Version{Stamp: replicator.Stamp{Origin: 1 << 63}}})
			require.NoError(t, err)
			_, err = replicator.Examine(r, replicator.Entry{Key: "clock", Version: replicator.Version{Stamp: replicator.Stamp{Clock: 1 << 63}}})
			require.ErrorIs(t, err, replicator.ErrClock)

			entered, letGo := hold(disk)
			defer letGo()
			var wg sync.WaitGroup
			wg.Go(func() { put("first") })
			<-entered
			for i := range 10 {
				wg.Go(func() { put(fmt.Sprint("second ", i)) })
			}
			synctest.Wait()
			wg.Go(func() {
				_, err := commit()
				assert.ErrorIs(t, err, replicator.ErrFailed)
			})
			synctest.Wait()
			for i := range 10 {
				wg.Go(func() { put(fmt.Sprint("third ", i)) })
			}
			synctest.Wait()
			disk.SetFault(simtest.Failure{Err: syscall.ENOSPC, Times: 1}.Fault())
			letGo()
			wg.Wait()
			require.Equal(t, []string{"first"}, acknowledged)
			require.Len(t, refused, 20)
			require.EqualValues(t, 1, r.Status().Head)
			for _, key := range refused {
				_, err := r.Get([]byte(key), nil)
				require.ErrorIs(t, err, leveldb.ErrNotFound, key)
			}
		})
		onDisk(t, disk.Copy(), func(db *leveldb.DB) {
			found := readRows(t, db)
			require.NoError(t, found.checkData())
			require.NoError(t, found.checkLog())
			require.Equal(t, map[string]string{"first": "first"}, found.data)
		})
	})
}
