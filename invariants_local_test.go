package replicator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// The tests of the invariants that one replica can hold or break by itself. The
// numbers are those of the design's section 5.

// rows is all that a database holds, read from one snapshot.
type rows struct {
	data  map[string]string
	index map[string]replicator.Row
	log   []replicator.Row
}

func readRows(t testing.TB, db *leveldb.DB) rows {
	snap, err := db.GetSnapshot()
	require.NoError(t, err)
	defer snap.Release()
	r := rows{data: map[string]string{}}
	r.index, err = replicator.IndexRows(snap)
	require.NoError(t, err)
	r.log, err = replicator.LogRows(snap)
	require.NoError(t, err)
	it := snap.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		if !strings.HasPrefix(string(it.Key()), "\xffreplicator\xff") {
			r.data[string(it.Key())] = string(it.Value())
		}
	}
	require.NoError(t, it.Error())
	return r
}

// checkData returns how data and index disagree.
func (r rows) checkData() error {
	for key, row := range r.index {
		if _, has := r.data[key]; has == row.Deleted {
			return fmt.Errorf("key %q: deleted is %v in the index, there is a value: %v", key, row.Deleted, has)
		}
	}
	for key := range r.data {
		if _, has := r.index[key]; !has {
			return fmt.Errorf("key %q is not in the index", key)
		}
	}
	return nil
}

// checkLog returns how log and index disagree: the index points to the last
// record of each key, and to the one that says the same.
func (r rows) checkLog() error {
	last := map[string]replicator.Row{}
	for _, row := range r.log {
		last[row.Key] = row
	}
	if !maps.Equal(last, r.index) {
		for key := range r.index {
			if last[key] != r.index[key] {
				return fmt.Errorf("key %q: index %v, log %v", key, r.index[key], last[key])
			}
		}
		return errors.New("the log has keys that the index hasn't")
	}
	return nil
}

// onDisk opens the plain database on a disk for a while.
func onDisk(t testing.TB, disk *simDisk, use func(db *leveldb.DB)) {
	db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 128 << 10, DisableLargeBatchTransaction: true})
	require.NoError(t, err)
	defer func() { assert.NoError(t, db.Close()) }()
	use(db)
}

// isClean reports whether the Replicator of a database was closed cleanly.
func isClean(t testing.TB, db *leveldb.DB) bool {
	clean, err := db.Has([]byte("\xffreplicator\xffmclean"), nil)
	require.NoError(t, err)
	return clean
}

// openPlain wraps a database without peers, in some boot of a machine.
func openPlain(t testing.TB, db *leveldb.DB, boot string) *replicator.Replicator {
	r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{}, boot))
	require.NoError(t, err)
	return r
}

// letSettle lets fake time pass until the goroutines of closed databases are gone.
func letSettle() { time.Sleep(2 * time.Second) }

// pairs is a load of batches that each write two keys: a private one, which is
// never written again, and a shared one. The stamp of the private key tells what
// the stamp of the shared one was.
type pairs struct {
	mu    sync.Mutex
	acked []acked // in order
}

type acked struct {
	private string
	sync    bool
}

// pair returns what batch number id of an owner writes. A value of "" stands for
// a deletion.
func pair(owner string, id int) (private, shared, value string) {
	private, shared = fmt.Sprintf("%s/%d", owner, id), fmt.Sprint("shared ", id*7%5)
	if id%3 > 0 {
		value = "of " + private + strings.Repeat("x", id*131%1500)
	}
	return private, shared, value
}

func (p *pairs) write(r *replicator.Replicator, owner string, id int) error {
	private, shared, value := pair(owner, id)
	var b leveldb.Batch
	b.Put([]byte(private), []byte(private))
	if value == "" {
		b.Delete([]byte(shared))
	} else {
		b.Put([]byte(shared), []byte(value))
	}
	sync := id%4 == 0
	err := r.Write(&b, &opt.WriteOptions{Sync: sync})
	if err == nil {
		p.mu.Lock()
		p.acked = append(p.acked, acked{private, sync})
		p.mu.Unlock()
	}
	return err
}

// moment is a disk as it was at one moment, and how much was acknowledged then.
type moment struct {
	disk  *simDisk
	acked int
}

// capture adds the present moment. It is called from the disk.
func (p *pairs) capture(disk *simDisk, to *[]moment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*to = append(*to, moment{disk.Copy(), len(p.acked)})
}

// check verifies what is found on a disk after a process died or the power was
// cut, when some batches of owner had been acknowledged.
func (p *pairs) check(found rows, owner string, acknowledged []acked, power bool) error {
	if err := found.checkData(); err != nil {
		return err
	}
	if !power {
		if err := found.checkLog(); err != nil {
			return err
		}
	}
	for _, a := range acknowledged {
		if found.data[a.private] != a.private && (a.sync || !power) {
			return fmt.Errorf("%s was acknowledged, with Sync: %v, and is missing", a.private, a.sync)
		}
	}
	values := map[replicator.Stamp]string{} // of shared keys, by the batches found
	for private, row := range found.index {
		by, number, isPrivate := strings.Cut(private, "/")
		if !isPrivate {
			continue
		}
		var id int
		fmt.Sscan(number, &id)
		_, shared, value := pair(by, id)
		stamp := replicator.Stamp{Clock: row.Clock + 1, Origin: row.Origin}
		values[stamp] = value
		if by == owner && found.index[shared].Compare(stamp) < 0 {
			return fmt.Errorf("a part of the batch of %s is here, %q is not: it has %v", private, shared, found.index[shared])
		}
	}
	own := map[replicator.Origin]bool{}
	for private, row := range found.index {
		own[row.Origin] = own[row.Origin] || strings.HasPrefix(private, owner+"/")
	}
	for key, row := range found.index {
		if strings.Contains(key, "/") {
			continue
		}
		value, known := values[row.Stamp]
		if !known && own[row.Origin] {
			return fmt.Errorf("%q at %v is here, the rest of its batch is not", key, row)
		}
		if known && (found.data[key] != value || row.Deleted != (value == "")) {
			return fmt.Errorf("%q at %v has the value %.20q…, not %.20q…", key, row, found.data[key], value)
		}
	}
	return nil
}

// verify opens the disk of a moment, after the process died there or the power
// was cut, and checks it, now and then also as a Replicator finds it.
func (p *pairs) verify(t testing.TB, disk *simDisk, owner string, acknowledged []acked, power, deep bool) {
	onDisk(t, disk, func(db *leveldb.DB) {
		require.NoError(t, p.check(readRows(t, db), owner, acknowledged, power))
		if !deep {
			return
		}
		boot, clean := "boot 1", isClean(t, db)
		if power {
			boot = "another"
		}
		r := openPlain(t, db, boot)
		defer r.Close()
		synctest.Wait()
		require.NoError(t, replicator.CheckConsistent(r))
		require.Equal(t, clean || !power || r.Status().Head == 0, r.Status().Floor == 1)
		require.NoError(t, p.check(readRows(t, db), owner, acknowledged, true))
		require.NoError(t, r.Close())
	})
}

// TestInvariant1AtomicAtEveryDiskOperation lets callers write in groups, with
// and without Sync, while a peer's changes to the same keys are merged, and looks
// at what is found if the process dies, or the power is cut, at each of the
// disk's operations.
func TestInvariant1AtomicAtEveryDiskOperation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 2).mesh()
		defer c.close()
		n, peer := c.nodes[0], c.nodes[1]
		n.boot = 1
		var p, elsewhere pairs
		var moments []moment
		onDisk(t, n.disk, func(*leveldb.DB) {}) // goleveldb's own beginnings are not atomic
		n.disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
			p.capture(n.disk, &moments)
			if op == simSync {
				time.Sleep(time.Millisecond) // so that groups form
			}
			return nil
		})
		c.open()
		for round := range 30 {
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() { assert.NoError(t, p.write(n.r, "own", 4*round+i)) })
			}
			wg.Go(func() { assert.NoError(t, elsewhere.write(peer.r, "peer", round)) })
			if round%3 == 0 {
				wg.Go(func() { assert.NoError(t, n.sync()) })
			}
			wg.Wait()
			if round%5 == 0 {
				time.Sleep(time.Second)
			}
		}
		n.close()
		p.capture(n.disk, &moments)
		n.disk.SetFault(nil)
		rotated := slices.ContainsFunc(moments, func(m moment) bool {
			fds, err := m.disk.List(storage.TypeTable)
			return err == nil && len(fds) > 0
		})
		require.True(t, rotated, "more data is needed for journals to be rotated")
		t.Logf("%d moments", len(moments))
		for i, m := range moments {
			deep := i%5 == 0 || i == len(moments)-1
			p.verify(t, m.disk.Copy(), "own", p.acked[:m.acked], false, deep)
			p.verify(t, m.disk.PowerCut(nil), "own", p.acked[:m.acked], true, deep)
			p.verify(t, m.disk.PowerCut(c.rng), "own", p.acked[:m.acked], true, false)
		}
	})
}

// TestInvariant1AtomicAfterFaults has each of the disk's operations fail once,
// at an opening, a write, a merge, a compaction or a close: what fails is there
// as a whole or not at all, and what was acknowledged before it is there.
func TestInvariant1AtomicAfterFaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		rng := rand.New(rand.NewPCG(1, 1))
		for fails := int64(1); ; fails++ {
			var p pairs
			disk := newSimDisk()
			hit := false
			disk.SetFault(func(op simOp, _ storage.FileDesc, n int64) error {
				if n == fails && op != simRemove { // goleveldb may panic if a remove fails
					hit = true
					return fmt.Errorf("operation %d, %v: %w", n, op, syscall.EIO)
				}
				return nil
			})
			p.writeSome(t, disk)
			over := disk.operations() < fails
			disk.SetFault(nil)
			for _, power := range []bool{false, true} {
				found := disk.Copy()
				if power {
					found = disk.PowerCut(rng)
				}
				p.verify(t, found, "own", p.acked, power, false)
			}
			if over {
				require.False(t, hit)
				t.Logf("%d operations", fails-1)
				require.Greater(t, fails, int64(60))
				return
			}
		}
	})
}

// writeSome writes and merges until something fails, or all is done.
func (p *pairs) writeSome(t *testing.T, disk *simDisk) {
	db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 4 << 10, DisableLargeBatchTransaction: true})
	if err != nil {
		require.ErrorContains(t, err, syscall.EIO.Error())
		return
	}
	defer db.Close()
	r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{}, "boot 1"))
	if err != nil {
		require.ErrorIs(t, err, syscall.EIO)
		return
	}
	defer r.Close()
	failed := func(err error) bool {
		if err == nil {
			return false
		}
		require.ErrorIs(t, err, replicator.ErrFailed)
		require.ErrorIs(t, err, syscall.EIO)
		return true
	}
	for i := range 24 {
		if failed(p.write(r, "own", i)) {
			return
		}
		if i%4 == 0 {
			_, shared, _ := pair("", i)
			v := replicator.Version{Stamp: replicator.Stamp{Clock: uint64(2*i + 1), Origin: 1<<63 + 1}}
			commit, err := replicator.Examine(r, replicator.Entry{Version: v, Key: shared, Value: "merged"})
			require.NoError(t, err)
			if _, err := commit(); failed(err) {
				return
			}
		}
	}
}

// operations returns how many there were since SetFault.
func (d *simDisk) operations() int64 { return d.count(&d.ops) }

// TestInvariant2OrderedForReaders lets concurrent callers write singly and in
// batches, with merges between them. Whoever reads the log through a snapshot
// sees it without a gap, and up to the head that was told before.
func TestInvariant2OrderedForReaders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		onDisk(t, newSimDisk(), func(db *leveldb.DB) {
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

// hold holds up the next write to a journal of the disk. The channel is closed
// when there is one; letGo lets it pass.
func hold(disk *simDisk) (entered <-chan struct{}, letGo func()) {
	held, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	disk.SetFault(func(op simOp, fd storage.FileDesc, _ int64) error {
		if op == simWrite && fd.Type == storage.TypeJournal && once.CompareAndSwap(false, true) {
			close(held)
			<-release
		}
		return nil
	})
	return held, sync.OnceFunc(func() { close(release) })
}

// TestInvariant2OrderedInGroups holds up a leader's write until others wait, and
// counts what the disk does for them.
func TestInvariant2OrderedInGroups(t *testing.T) {
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
		"all with Sync":      {put(func(int) *opt.WriteOptions { return simSynced }), 1, 1},
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
			synctest.Test(t, func(t *testing.T) {
				defer letSettle()
				disk := newSimDisk()
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

// TestInvariant2OrderedCallersShareSyncs lets callers write with Sync on a disk
// that takes its time.
func TestInvariant2OrderedCallersShareSyncs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		disk := newSimDisk()
		onDisk(t, disk, func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
				if op == simSync {
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
						assert.NoError(t, r.Put(fmt.Appendf(nil, "%d/%d", i, j), nil, simSynced))
					}
				})
			}
			wg.Wait()
			t.Logf("%d writes shared %d syncs", callers*writes, disk.Syncs()-syncs)
			require.Less(t, disk.Syncs()-syncs, int64(3*writes))
		})
	})
}

// TestInvariant2OrderedResults gives each caller the result of its own group:
// the one before a failed one has succeeded, and so on.
func TestInvariant2OrderedResults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		disk := newSimDisk()
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
			disk.SetFault(func(op simOp, fd storage.FileDesc, n int64) error {
				if n == 1 {
					return syscall.ENOSPC
				}
				return nil
			})
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

// lineage is a disk, with what is known of the changes that were made on it.
type lineage struct {
	disk  *simDisk
	boot  int
	clock uint64 // greatest clock that was visible on it
	head  uint64 // of its log, if nothing of that can be lost
}

// TestInvariant3Unique opens, closes, kills, cuts, restores and clones databases
// at random, and collects the stamps of all changes that are made. After
// anything but a restore, clocks also go on above all that was ever visible.
func TestInvariant3Unique(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 5; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer letSettle()
				u := &unique{t: t, rng: rand.New(rand.NewPCG(seed, 3)), made: map[replicator.Stamp]string{}, epochs: map[replicator.Origin]bool{}}
				current := lineage{disk: newSimDisk(), boot: 1}
				kept := []lineage{current}
				for range 50 {
					images := u.session(current)
					kept = append(kept, images...)
					switch u.rng.IntN(4) {
					case 0:
						current = kept[u.rng.IntN(len(kept))] // a backup
					case 1:
						current = images[u.rng.IntN(len(images))]
					default:
						current = images[0]
					}
					current.disk = current.disk.Copy()
				}
				// All copies that were ever made wake up at once.
				var wg sync.WaitGroup
				for i := range kept {
					kept[i].disk = kept[i].disk.Copy()
					wg.Go(func() { u.session(kept[i]) })
				}
				wg.Wait()
				t.Logf("%d changes in %d epochs", len(u.made), len(u.epochs))
				require.Greater(t, len(u.made), 1000)
			})
		})
	}
}

type unique struct {
	t    *testing.T
	boot int

	mu     sync.Mutex // guards what follows
	rng    *rand.Rand
	made   map[replicator.Stamp]string // by stamp: the key, which no other change has
	epochs map[replicator.Origin]bool
}

func (u *unique) draw(n int) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.rng.IntN(n)
}

// session opens a database, makes some changes and merges some, and returns the
// ways that it can end: closed, killed at the end or in the middle, and with a
// power cut there.
func (u *unique) session(l lineage) []lineage {
	var mu sync.Mutex // guards what follows
	visible, head := l.clock, l.head
	var middle *lineage
	at := int64(1 + u.draw(60))
	l.disk.SetFault(func(_ simOp, _ storage.FileDesc, n int64) error {
		if n == at {
			mu.Lock()
			middle = &lineage{disk: l.disk.Copy(), boot: l.boot, clock: visible, head: head}
			mu.Unlock()
		}
		return nil
	})
	see := func(clock uint64) {
		mu.Lock()
		visible = max(visible, clock)
		mu.Unlock()
	}
	db, err := leveldb.Open(l.disk, &opt.Options{WriteBuffer: 4 << 10, DisableLargeBatchTransaction: true})
	require.NoError(u.t, err)
	defer db.Close()
	r := openPlain(u.t, db, fmt.Sprint("boot ", l.boot))
	defer r.Close()
	status := r.Status()
	require.GreaterOrEqual(u.t, status.Head, l.head, "sequences are going to be used twice")
	require.GreaterOrEqual(u.t, status.Head+1, status.Floor, "sequences are going to be used that nobody is served")
	epoch := status.Epoch
	u.mu.Lock()
	require.False(u.t, u.epochs[epoch], "the origin %v is drawn twice", epoch)
	u.epochs[epoch] = true
	u.mu.Unlock()
	for range u.draw(12) {
		switch u.draw(6) {
		case 0: // the clock leaps, to the end of what is reserved and beyond
			clock := r.Status().Clock + uint64(u.draw(3))<<19
			if u.draw(2) == 0 {
				clock = clock&^(1<<20-1) + 1<<20 - 2
			}
			commit, err := replicator.Examine(r, replicator.Entry{Key: "merged", Version: replicator.Version{
				Stamp: replicator.Stamp{Clock: clock, Origin: 1<<63 + 1}}})
			require.NoError(u.t, err)
			n, err := commit()
			require.NoError(u.t, err)
			if n > 0 {
				see(clock)
			}
		case 1:
			u.batch(r, see, l.clock)
		default:
			key := u.key()
			require.NoError(u.t, r.Put([]byte(key), nil, &opt.WriteOptions{Sync: u.draw(3) == 0}))
			u.note(r, key, see, l.clock)
		}
	}
	killed := lineage{disk: l.disk.Copy(), boot: l.boot, clock: visible, head: r.Status().Head}
	require.NoError(u.t, r.Close())
	require.NoError(u.t, db.Close())
	l.disk.SetFault(nil)
	ends := []lineage{{disk: l.disk, boot: l.boot, clock: visible, head: r.Status().Head}, killed, u.cut(killed)}
	if middle != nil {
		ends = append(ends, *middle, u.cut(*middle))
	}
	return ends
}

func (u *unique) cut(l lineage) lineage {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.boot++
	return lineage{disk: l.disk.PowerCut(u.rng), boot: 1000 + u.boot, clock: l.clock}
}

func (u *unique) key() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return fmt.Sprintf("change %d %d", len(u.made), u.rng.Uint64())
}

func (u *unique) batch(r *replicator.Replicator, see func(uint64), above uint64) {
	var b leveldb.Batch
	var keys []string
	for range 1 + u.draw(20) {
		keys = append(keys, u.key())
		b.Delete([]byte(keys[len(keys)-1]))
	}
	require.NoError(u.t, r.Write(&b, nil))
	for _, key := range keys {
		u.note(r, key, see, above)
	}
}

// note remembers the stamp of the change to a key.
func (u *unique) note(r *replicator.Replicator, key string, see func(uint64), above uint64) {
	v, err := r.Version([]byte(key))
	require.NoError(u.t, err)
	require.Equal(u.t, r.Status().Epoch, v.Origin)
	require.True(u.t, above == 0 || v.Clock > above, "a new change has clock %d, one up to %d was visible before", v.Clock, above)
	see(v.Clock)
	u.mu.Lock()
	defer u.mu.Unlock()
	require.Empty(u.t, u.made[v.Stamp], "%s has the stamp of another change, %v", key, v.Stamp)
	u.made[v.Stamp] = key
}

// TestInvariant3UniqueAcrossCeiling makes changes across the end of what is
// reserved, and looks at every operation of the disk whether a power cut there
// would let a clock return.
func TestInvariant3UniqueAcrossCeiling(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		disk := newSimDisk()
		type image struct {
			disk  *simDisk
			clock uint64 // of the next change: all below may have been seen
		}
		var images []image
		onDisk(t, disk, func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			disk.SetFault(func(simOp, storage.FileDesc, int64) error {
				images = append(images, image{disk.Copy(), r.Status().Clock})
				return nil
			})
			for i := range uint64(4) {
				commit, err := replicator.Examine(r, replicator.Entry{Key: "merged", Version: replicator.Version{
					Stamp: replicator.Stamp{Clock: r.Status().Clock + 1<<20 - 3 - i, Origin: 1 << 63}}})
				require.NoError(t, err)
				_, err = commit()
				require.NoError(t, err)
				for range 5 {
					require.NoError(t, r.Put([]byte("local"), nil, nil))
					images = append(images, image{disk.Copy(), r.Status().Clock})
				}
			}
			disk.SetFault(nil)
		})
		for i, im := range images {
			onDisk(t, im.disk.PowerCut(nil), func(db *leveldb.DB) {
				r := openPlain(t, db, "another")
				defer r.Close()
				require.GreaterOrEqual(t, r.Status().Clock, im.clock, "image %d", i)
			})
		}
	})
}

// TestInvariant11SendableLimits writes what is as large as it may be, and one
// byte more.
func TestInvariant11SendableLimits(t *testing.T) {
	t.Parallel()
	const maxValue = 16 << 20
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 11, 2).mesh()
		defer c.close()
		a, b := c.nodes[0], c.nodes[1]
		open := func(n *node) {
			openWith(n, &opt.Options{WriteBuffer: 64 << 20, Compression: opt.NoCompression, DisableLargeBatchTransaction: true}, func(*replicator.Options) {})
		}
		open(a)
		open(b)
		key := func(first byte, n int) []byte {
			k := bytes.Repeat([]byte{'k'}, n)
			k[0] = first
			return k
		}
		value := func(last byte, n int) []byte {
			v := make([]byte, n)
			copy(v[max(0, n-1):], []byte{last})
			return v
		}
		batch := func(fill func(b *leveldb.Batch)) *leveldb.Batch {
			b := new(leveldb.Batch)
			fill(b)
			return b
		}
		head, clock := a.r.Status().Head, a.r.Status().Clock
		for name, err := range map[string]error{
			"key":            a.r.Put(key('a', replicator.MaxKeySize+1), nil, nil),
			"deleted key":    a.r.Delete(key('a', replicator.MaxKeySize+1), nil),
			"value":          a.r.Put([]byte("key"), value(1, maxValue+1), nil),
			"last of batch":  a.r.Write(batch(func(b *leveldb.Batch) { b.Put([]byte("x"), nil); b.Put([]byte("y"), value(1, maxValue+1)) }), nil),
			"first of batch": a.r.Write(batch(func(b *leveldb.Batch) { b.Delete(key('a', replicator.MaxKeySize+1)); b.Put([]byte("x"), nil) }), nil),
		} {
			require.ErrorIs(t, err, replicator.ErrTooLarge, name)
		}
		require.Equal(t, head, a.r.Status().Head)
		require.Equal(t, clock, a.r.Status().Clock)
		require.Empty(t, a.state().values)
		require.Empty(t, a.state().versions)

		// Each kind, over a full pull and over the log.
		for i, way := range []string{"log", "full"} {
			first := byte('a' + i)
			if way == "log" {
				require.NoError(t, a.r.Put(key(first, replicator.MaxKeySize), value(first, maxValue), nil))
			} else {
				require.NoError(t, a.r.Write(batch(func(b *leveldb.Batch) {
					b.Put([]byte{first, 1}, value(1, maxValue))
					b.Put([]byte{first, 2}, value(2, maxValue))
				}), nil))
			}
			require.NoError(t, a.r.Put(append(key(first, replicator.MaxKeySize-1), 'z'), nil, nil))
			require.NoError(t, a.r.Delete(append(key(first, replicator.MaxKeySize-1), 'd'), nil))
			// The sizes at which something else happens to a value or a page.
			for _, size := range []int{1, 1 << 10, 64 << 10, 512 << 10, 1 << 20} {
				for _, d := range []int{-1, 0, 1} {
					require.NoError(t, a.r.Put(fmt.Append(nil, string(first), size+d), value(first, size+d), nil))
				}
			}
			for j := range 40 { // more keys than fit into a page
				k := key(first, replicator.MaxKeySize)
				k[1] = byte(j)
				require.NoError(t, a.r.Put(k, value(first, 1+j*2000), nil))
			}
			if way == "full" {
				b.replaceDisk(newSimDisk())
				open(b)
			}
			require.NoError(t, b.sync())
			got, want := b.state(), a.state()
			require.True(t, got.equal(want), "%s: %d of %d values, %d of %d versions", way,
				len(got.values), len(want.values), len(got.versions), len(want.versions))
		}
	})
}

// TestInvariant11SendableKeys replicates keys at the edges of what a key may be.
func TestInvariant11SendableKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 11, 2).mesh().open()
		defer c.close()
		a, b := c.nodes[0], c.nodes[1]
		const reserved = "\xffreplicator\xff"
		for _, key := range []string{"", "\x00", "\xff", "\xff\xff", reserved[:len(reserved)-1], "\xffreplicator\xfe\xff", "\xffreplicatos", strings.Repeat("\xff", replicator.MaxKeySize)} {
			a.put(key, "value of "+key)
			a.delete("\x01" + key[min(1, len(key)):])
		}
		for _, key := range []string{reserved, reserved + "\x00", reserved + "l", reserved + strings.Repeat("\xff", 100)} {
			require.ErrorIs(t, a.r.Put([]byte(key), nil, nil), replicator.ErrReserved)
			require.ErrorIs(t, a.r.Delete([]byte(key), nil), replicator.ErrReserved)
			var batch leveldb.Batch
			batch.Put([]byte("beside it"), nil)
			batch.Put([]byte(key), nil)
			require.ErrorIs(t, a.r.Write(&batch, nil), replicator.ErrReserved)
		}
		require.NoError(t, b.sync())
		require.Len(t, b.state().values, 8)
		c.converge()
	})
}

// TestInvariant11SendableOption holds a limit of the caller's choice, and keeps
// replicas of different limits apart.
func TestInvariant11SendableOption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 11, 3).mesh()
		defer c.close()
		for i, n := range c.nodes {
			openWith(n, nil, func(o *replicator.Options) { o.MaxValueSize = 100 + i/2 })
		}
		a, b, other := c.nodes[0], c.nodes[1], c.nodes[2]
		require.NoError(t, a.r.Put([]byte("key"), make([]byte, 100), nil))
		require.ErrorIs(t, a.r.Put([]byte("key"), make([]byte, 101), nil), replicator.ErrTooLarge)
		require.NoError(t, other.r.Put([]byte("other"), make([]byte, 101), nil))
		for _, n := range c.nodes {
			require.ErrorIs(t, n.sync(), replicator.ErrRefused)
			require.ErrorContains(t, n.sync(), "MaxValueSize")
		}
		require.True(t, a.state().equal(b.state()))
		require.Len(t, a.state().values, 1)
		require.Len(t, other.state().values, 1)
	})
}

// openWith opens a node with other options than usual.
func openWith(n *node, ldb *opt.Options, change func(*replicator.Options)) {
	var err error
	n.db, err = leveldb.Open(n.disk, ldb)
	require.NoError(n.c.t, err)
	o := n.options()
	change(o)
	n.r, err = replicator.Open(n.db, o)
	require.NoError(n.c.t, err)
}

// TestInvariant13FailStop has one write to the disk fail, of each kind.
func TestInvariant13FailStop(t *testing.T) {
	t.Parallel()
	cause := fmt.Errorf("the disk is gone: %w", syscall.EIO)
	for name, failing := range map[string]struct {
		op   simOp
		work func(a, b *node) error // what meets the fault, at a
	}{
		"put":         {simWrite, func(a, b *node) error { return a.r.Put([]byte("failing"), nil, nil) }},
		"put, synced": {simSync, func(a, b *node) error { return a.r.Put([]byte("failing"), nil, simSynced) }},
		"delete":      {simWrite, func(a, b *node) error { return a.r.Delete([]byte("old"), nil) }},
		"batch": {simSync, func(a, b *node) error {
			var batch leveldb.Batch
			batch.Put([]byte("failing"), nil)
			return a.r.Write(&batch, simSynced)
		}},
		"merge":           {simWrite, func(a, b *node) error { b.put("failing", ""); return nil }},
		"acknowledgement": {simSync, func(a, b *node) error { b.put("merged", ""); return nil }},
		"reservation": {simSync, func(a, b *node) error {
			commit, err := replicator.Examine(a.r, replicator.Entry{Key: "failing", Version: replicator.Version{
				Stamp: replicator.Stamp{Clock: 1 << 30, Origin: 1 << 63}}})
			require.NoError(a.c.t, err)
			_, err = commit()
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 13, 2)
				defer c.close()
				c.link(0, 1)
				c.open()
				a, b := c.nodes[0], c.nodes[1]
				a.put("old", "value")
				b.put("older", "value")
				c.converge()
				time.Sleep(10 * time.Second)
				a.disk.SetFault(func(op simOp, fd storage.FileDesc, _ int64) error {
					if op == failing.op && fd.Type == storage.TypeJournal {
						return cause
					}
					return nil
				})
				direct := failing.work(a, b)
				time.Sleep(time.Second)
				a.disk.SetFault(nil) // it works again, but nobody knows what it has
				if direct != nil {
					require.ErrorIs(t, direct, replicator.ErrFailed)
					require.ErrorIs(t, direct, syscall.EIO)
				}
				checkFailed(t, a, b)
				writes, syncs := a.disk.Writes(), a.disk.Syncs()
				b.put("for a", "never to be merged")
				time.Sleep(5 * time.Minute)
				checkFailed(t, a, b)
				require.NoError(t, a.r.Close())
				require.Equal(t, writes, a.disk.Writes(), "there was a write after a failed one")
				require.Equal(t, syncs, a.disk.Syncs())
				require.NoError(t, a.db.Close())
				a.r, a.db = nil, nil

				// There is no clean mark: in another boot, the log is not trusted.
				a.boot = c.newBoot()
				a.open()
				require.Greater(t, a.r.Status().Floor, uint64(1))
				require.Empty(t, a.r.Status().Failed)
				a.put("again", "writable")
				c.converge()
				_, has := a.get("for a")
				require.True(t, has)
			})
		})
	}
}

// checkFailed checks all that a replica does, and does not, after a failed write.
func checkFailed(t *testing.T, a, b *node) {
	var batch leveldb.Batch
	batch.Put([]byte("late"), nil)
	for range 3 {
		for _, err := range []error{
			a.r.Put([]byte("late"), nil, nil), a.r.Put([]byte("late"), nil, simSynced),
			a.r.Delete([]byte("old"), nil), a.r.Write(&batch, nil), a.sync(),
		} {
			require.ErrorIs(t, err, replicator.ErrFailed)
			require.ErrorIs(t, err, syscall.EIO)
			require.ErrorContains(t, err, "the disk is gone")
		}
	}
	require.Contains(t, a.r.Status().Failed, "the disk is gone")
	require.Zero(t, a.c.net.Connections(), "a session goes on")
	for _, p := range b.r.Status().Peers {
		require.Contains(t, []string{"connecting", "waiting"}, p.State)
	}
	value, has := a.get("old")
	require.True(t, has)
	require.Equal(t, "value", value)
	_, has = a.get("late")
	require.False(t, has)
	_, err := a.r.Has([]byte("older"), nil)
	require.NoError(t, err)
	_, err = a.r.Version([]byte("old"))
	require.NoError(t, err)
	_, err = a.r.Digest()
	require.NoError(t, err)
	snap, err := a.r.GetSnapshot()
	require.NoError(t, err)
	snap.Release()
	found := readRows(t, a.db)
	require.NoError(t, found.checkData())
	require.NoError(t, found.checkLog())
	require.Len(t, a.state().values, len(found.data))
}

// TestInvariant13FailStopAtClose has each operation of the disk fail while a
// Replicator is closed, once or for good. If the database counts as cleanly
// closed even so, nothing is missing after a power cut.
func TestInvariant13FailStopAtClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		const changes = 40
		for fails := int64(1); ; fails++ {
			disk := newSimDisk()
			db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 1 << 20, DisableLargeBatchTransaction: true})
			require.NoError(t, err)
			r := openPlain(t, db, "boot")
			for i := range changes {
				require.NoError(t, r.Put(fmt.Append(nil, i), make([]byte, 100), nil))
			}
			disk.SetFault(func(op simOp, _ storage.FileDesc, n int64) error {
				if n == fails && op != simRemove {
					return syscall.EIO
				}
				return nil
			})
			err = r.Close()
			closed := disk.operations()
			disk.SetFault(nil)
			require.NoError(t, r.Close(), "a second time")
			_ = db.Close()
			onDisk(t, disk.PowerCut(nil), func(db *leveldb.DB) {
				clean := isClean(t, db)
				if err != nil {
					require.ErrorIs(t, err, syscall.EIO)
				} else {
					require.True(t, clean, "closed without an error, at operation %d", fails)
				}
				found := readRows(t, db)
				require.NoError(t, found.checkData())
				if clean {
					require.NoError(t, found.checkLog())
					require.Len(t, found.log, changes)
				}
				r := openPlain(t, db, "another")
				defer r.Close()
				require.Equal(t, clean, r.Status().Floor <= r.Status().Head)
			})
			if closed < fails {
				t.Logf("%d operations", closed)
				require.NoError(t, err)
				return
			}
		}
	})
}

// openLabelled opens a node so that its goroutines can be told from others'.
func openLabelled(n *node, label string) { labelled(label, n.open) }

func labelled(label string, start func()) {
	pprof.Do(context.Background(), pprof.Labels("closing", label), func(context.Context) { start() })
}

// lingering returns the stacks of the labelled goroutines that still run, but
// for goleveldb's.
func lingering(label string) string {
	var all bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&all, 1) // a buffer takes all
	var stacks strings.Builder
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		if strings.Contains(stack, strconv.Quote(label)) && strings.Contains(stack, "level-replicator/replicator.") {
			stacks.WriteString(stack)
		}
	}
	return stacks.String()
}

// checkClosed closes a node's Replicator, and checks that this takes next to no
// time, ends everything, and leaves the handle alone.
func checkClosed(t *testing.T, n *node, label string) {
	began := time.Now()
	require.NoError(t, n.r.Close())
	require.Empty(t, lingering(label), "Close did not wait for all goroutines")
	require.Less(t, time.Since(began), time.Second)
	require.NoError(t, n.r.Close())
	for name, err := range map[string]error{
		"put":     n.r.Put([]byte("late"), nil, nil),
		"delete":  n.r.Delete([]byte("late"), nil),
		"write":   n.r.Write(nil, nil),
		"sync":    n.sync(),
		"add":     n.r.AddPeer("n9", nil),
		"remove":  n.r.RemovePeer("n1"),
		"get":     second(n.r.Get([]byte("late"), nil)),
		"has":     second(n.r.Has([]byte("late"), nil)),
		"version": second(n.r.Version([]byte("late"))),
		"digest":  second(n.r.Digest()),
		"snap":    second(n.r.GetSnapshot()),
		"iterate": n.r.NewIterator(nil, nil).Error(),
	} {
		require.ErrorIs(t, err, replicator.ErrClosed, name)
		require.ErrorIs(t, err, leveldb.ErrClosed, name)
	}
	n.r.Status()

	// The handle is the caller's, who may wrap it again.
	require.NoError(t, n.db.Put([]byte("raw"), nil, nil))
	require.NoError(t, n.db.Delete([]byte("raw"), nil))
	r := openPlain(t, n.db, "another")
	require.EqualValues(t, 1, r.Status().Floor, "not closed cleanly")
	require.NoError(t, r.Close())
	if status := r.Status(); status.Adoption.Done {
		require.NoError(t, replicator.CheckConsistent(r))
	}
	require.NoError(t, n.db.Close())
	n.r, n.db = nil, nil
}

func second[T any](_ T, err error) error { return err }

// TestInvariant14Closed closes a replica in different company.
func TestInvariant14Closed(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]func(c *cluster, label string){
		"just opened": func(c *cluster, _ string) {},
		"idle":        func(c *cluster, _ string) { c.converge(); time.Sleep(time.Minute) },
		"frozen":      func(c *cluster, _ string) { c.converge(); c.net.Freeze("n0", "n1"); time.Sleep(time.Second) },
		"frozen before the hello": func(c *cluster, _ string) {
			c.net.Freeze("n0", "n1")
			c.nodes[1].open()
			time.Sleep(time.Second)
		},
		"frozen while writing": func(c *cluster, _ string) {
			c.converge()
			c.net.Freeze("n0", "n1")
			for i := range 100 {
				c.nodes[0].put(fmt.Sprint(i), "")
			}
			synctest.Wait()
		},
		"the peer is gone": func(c *cluster, _ string) { c.converge(); c.nodes[1].close(); time.Sleep(time.Minute) },
		"a dialler says nothing": func(c *cluster, _ string) {
			_, err := c.net.Dial("n8")(context.Background(), "n0")
			require.NoError(c.t, err)
			synctest.Wait()
		},
		"a dial blocks": func(c *cluster, label string) {
			labelled(label, func() { require.NoError(c.t, c.nodes[0].r.AddPeer("blocks", nil)) })
			synctest.Wait()
		},
		"dials fail": func(c *cluster, label string) {
			labelled(label, func() { require.NoError(c.t, c.nodes[0].r.AddPeer("nobody", nil)) })
			time.Sleep(time.Minute)
		},
		"adopting": func(c *cluster, label string) {
			n := c.nodes[0]
			n.close()
			n.disk = newSimDisk()
			onDisk(c.t, n.disk, func(db *leveldb.DB) {
				for i := range 3000 {
					require.NoError(c.t, db.Put(fmt.Append(nil, i), nil, nil))
				}
			})
			openLabelled(n, label)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 14, 2).mesh()
				defer c.close()
				labelled(t.Name(), func() {
					openWith(c.nodes[0], nil, func(o *replicator.Options) {
						dial := o.Dial
						o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
							if addr == "blocks" {
								<-ctx.Done()
								time.Sleep(500 * time.Millisecond) // it takes its time, and is waited for
								return nil, ctx.Err()
							}
							return dial(ctx, addr)
						}
					})
				})
				c.nodes[0].put("key", "value")
				meanwhile(c, t.Name())
				checkClosed(t, c.nodes[0], t.Name())
			})
		})
	}
}

// TestInvariant14ClosedDuringPulls closes a replica at operations of its disk
// while it pulls, and is pulled from.
func TestInvariant14ClosedDuringPulls(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at += 1 + at/3 {
		reached := false
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, at, 2).mesh()
				defer c.close()
				c.net.Partition([]string{"n0"})
				openLabelled(c.nodes[0], t.Name())
				c.nodes[1].open()
				for i, n := range c.nodes {
					for j := range 600 {
						n.put(fmt.Sprint(i, "/", j), strings.Repeat("v", 1100*(j%2)))
					}
				}
				now := make(chan struct{})
				c.nodes[0].disk.SetFault(func(_ simOp, _ storage.FileDesc, n int64) error {
					if n == at {
						close(now)
					}
					return nil
				})
				c.net.Heal()
				select {
				case <-now:
					reached = true
				case <-time.After(time.Minute):
				}
				checkClosed(t, c.nodes[0], t.Name())
				c.converge()
			})
		})
		if !reached || t.Failed() {
			t.Logf("about %d operations", at)
			require.Greater(t, at, int64(10))
			return
		}
	}
}

// TestInvariant14ClosedWithCallersInside closes a replica that is being used in
// all ways. Each caller gets what it asked for, or ErrClosed; what was
// acknowledged is there.
func TestInvariant14ClosedWithCallersInside(t *testing.T) {
	t.Parallel()
	for seed := range int64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, seed, 2).mesh()
				defer c.close()
				n := c.nodes[0]
				openLabelled(n, t.Name())
				c.nodes[1].open()
				c.converge()
				if seed%2 == 0 {
					c.net.Freeze("n0", "n1")
				}
				r := n.r
				var wg sync.WaitGroup
				var acknowledged sync.Map
				calls := map[string]func(i int) error{
					"put": func(i int) error {
						key := fmt.Sprint("put ", i)
						err := r.Put([]byte(key), nil, &opt.WriteOptions{Sync: i%3 == 0})
						if err == nil {
							acknowledged.Store(key, nil)
						}
						return err
					},
					"write": func(i int) error {
						var b leveldb.Batch
						key := fmt.Sprint("batch ", i)
						b.Put([]byte(key), nil)
						b.Delete([]byte("put"))
						err := r.Write(&b, nil)
						if err == nil {
							acknowledged.Store(key, nil)
						}
						return err
					},
					"get": func(int) error {
						_, err := r.Get([]byte("put 1"), nil)
						if err == leveldb.ErrNotFound {
							return nil
						}
						return err
					},
					"iterate": func(int) error {
						it := r.NewIterator(nil, nil)
						defer it.Release()
						for it.Next() {
						}
						return it.Error()
					},
					"snapshot": func(int) error {
						snap, err := r.GetSnapshot()
						if err != nil {
							return err
						}
						defer snap.Release()
						_, err = snap.Has([]byte("put 2"), nil)
						return err
					},
					"digest": func(int) error { return second(r.Digest()) },
					"status": func(int) error { r.Status(); return second(r.Version([]byte("put 0"))) },
					"sync":   func(int) error { return r.SyncNow(context.Background()) },
				}
				for name, call := range calls {
					wg.Go(func() {
						for i := 0; ; i++ {
							err := call(i)
							if err != nil && err != leveldb.ErrNotFound {
								assert.ErrorIs(t, err, replicator.ErrClosed, name)
								return
							}
							if name != "put" && name != "write" || i%10 == 0 {
								time.Sleep(time.Millisecond)
							}
						}
					})
				}
				time.Sleep(time.Duration(seed) * 10 * time.Millisecond)
				assert.NoError(t, r.Close())
				wg.Wait()
				acknowledged.Range(func(key, _ any) bool {
					_, err := n.db.Get([]byte(key.(string)), nil)
					return assert.NoError(t, err, key)
				})
				checkClosed(t, n, t.Name())
			})
		})
	}
}

// TestInvariant14ClosedWaitsForWrites holds up a write while Close is called:
// it is let in the end, and so are those behind it.
func TestInvariant14ClosedWaitsForWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
		disk := newSimDisk()
		onDisk(t, disk, func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			entered, letGo := hold(disk)
			defer letGo()
			var wg sync.WaitGroup
			wg.Go(func() { assert.NoError(t, r.Put([]byte("first"), nil, nil)) })
			<-entered
			wg.Go(func() { assert.NoError(t, r.Put([]byte("second"), nil, simSynced)) })
			synctest.Wait()
			closed := make(chan error, 1)
			go func() { closed <- r.Close() }()
			time.Sleep(time.Hour)
			require.Empty(t, closed, "Close did not wait")
			require.ErrorIs(t, r.Put([]byte("third"), nil, nil), replicator.ErrClosed)
			letGo()
			require.NoError(t, <-closed)
			wg.Wait()
			for _, key := range []string{"first", "second"} {
				has, err := db.Has([]byte(key), nil)
				require.NoError(t, err)
				require.True(t, has)
			}
		})
	})
}

// TestInvariant14ClosedWaitsForReads holds up reads while Close is called: the
// caller may close the handle as soon as it has returned.
func TestInvariant14ClosedWaitsForReads(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func(r *replicator.Replicator) error{
		"get":     func(r *replicator.Replicator) error { return second(r.Get([]byte("key"), nil)) },
		"has":     func(r *replicator.Replicator) error { return second(r.Has([]byte("key"), nil)) },
		"version": func(r *replicator.Replicator) error { return second(r.Version([]byte("key"))) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer letSettle()
				disk := newSimDisk()
				db, err := leveldb.Open(disk, &opt.Options{DisableBlockCache: true})
				require.NoError(t, err)
				r := openPlain(t, db, "boot")
				require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
				require.NoError(t, db.CompactRange(util.Range{}))
				require.NoError(t, read(r)) // opens the table
				release := make(chan struct{})
				var once atomic.Bool
				disk.SetFault(func(op simOp, _ storage.FileDesc, _ int64) error {
					if op == simRead && once.CompareAndSwap(false, true) {
						<-release
					}
					return nil
				})
				done, closed := make(chan error, 1), make(chan error, 1)
				go func() { done <- read(r) }()
				synctest.Wait()
				go func() { closed <- r.Close() }()
				time.Sleep(time.Hour)
				early := len(closed) > 0
				close(release)
				assert.NoError(t, <-done)
				assert.NoError(t, <-closed)
				require.False(t, early, "Close did not wait")
				require.NoError(t, db.Close())
			})
		})
	}
}

// TestInvariant14ClosedOnFullBuffers closes, in real time, a replica whose peer
// has stopped taking what it is sent, and one whose peer is far away over TCP.
func TestInvariant14ClosedOnFullBuffers(t *testing.T) {
	before := runtime.NumGoroutine()
	c := newCluster(t, 14, 2).mesh().open()
	for _, n := range c.nodes { // each sends more than the buffers take
		for i := range 200 {
			require.NoError(t, n.r.Put(fmt.Append(nil, n.name, i), make([]byte, 1000), nil))
		}
	}
	for _, n := range c.nodes {
		require.NoError(t, n.sync())
	}
	c.net.Freeze("n0", "n1")
	for _, n := range c.nodes {
		for i := range 2000 {
			require.NoError(t, n.r.Put(fmt.Append(nil, n.name, "frozen", i), make([]byte, 1000), nil))
		}
	}
	time.Sleep(300 * time.Millisecond) // for the buffers to fill
	for _, n := range c.nodes {
		began := time.Now()
		require.NoError(t, n.r.Close())
		require.Less(t, time.Since(began), 5*time.Second)
		require.NoError(t, n.db.Close())
		n.r = nil
	}

	dir := t.TempDir()
	a, err := replicator.OpenFile(filepath.Join(dir, "a"), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	b, err := replicator.OpenFile(filepath.Join(dir, "b"), nil, &replicator.Options{
		Listen: "127.0.0.1:0",
		Peers:  map[string]replicator.Meta{a.Addr().String(): nil},
	})
	require.NoError(t, err)
	for i := range 2000 {
		require.NoError(t, a.Put(fmt.Append(nil, i), make([]byte, 2000), nil))
	}
	mute, err := net.Dial("tcp", a.Addr().String())
	require.NoError(t, err)
	defer mute.Close()
	go func() { _ = b.SyncNow(context.Background()) }()
	require.Eventually(t, func() bool { return b.Status().Head > 0 }, 10*time.Second, time.Millisecond)
	for _, r := range []*replicator.Replicator{a, b} {
		began := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { assert.NoError(t, r.Close()) })
		}
		wg.Wait()
		require.NoError(t, r.Close())
		require.Less(t, time.Since(began), 5*time.Second)
	}
	for began := time.Now(); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			require.FailNow(t, "goroutines are left over")
		}
	}
}
