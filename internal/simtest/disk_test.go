package simtest_test

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// onDisk calls use, in a bubble, with the database on disk.
func onDisk(t *testing.T, disk *simtest.Disk, use func(db *leveldb.DB)) {
	synctest.Test(t, func(t *testing.T) {
		db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 4 << 10})
		require.NoError(t, err)
		// A goroutine of the closed database needs a second to end.
		defer time.Sleep(2 * time.Second)
		defer db.Close()
		use(db)
	})
}

var synced = &opt.WriteOptions{Sync: true}

func TestDiskLosesWhatIsNotSynced(t *testing.T) {
	disk := simtest.NewDisk()
	var cut, killed *simtest.Disk
	onDisk(t, disk, func(db *leveldb.DB) {
		// Enough to begin several journals and tables.
		for i := range 200 {
			require.NoError(t, db.Put(fmt.Append(nil, i), make([]byte, 100), nil))
		}
		require.NoError(t, db.Put([]byte("synced"), nil, synced))
		require.NoError(t, db.Put([]byte("unsynced"), nil, nil))
		cut, killed = disk.PowerCut(simtest.Drop), disk.Copy()
		require.NoError(t, db.Put([]byte("zlater"), nil, synced))
	})
	random := killed.PowerCut(simtest.Tear(rand.New(rand.NewPCG(1, 2)))) // may keep the unsynced or not
	for disk, last := range map[*simtest.Disk]string{cut: "^synced", killed: "unsynced", disk: "zlater", random: "synced"} {
		onDisk(t, disk, func(db *leveldb.DB) {
			it := db.NewIterator(nil, nil)
			defer it.Release()
			require.True(t, it.Last())
			require.Regexp(t, last, string(it.Key()))
			_, err := db.Get([]byte("synced"), nil)
			require.NoError(t, err)
		})
	}
}

// contents returns how many bytes each journal of a disk holds.
func contents(t *testing.T, disk *simtest.Disk) (sizes []int) {
	fds, err := disk.List(storage.TypeJournal)
	require.NoError(t, err)
	for _, fd := range fds {
		r, err := disk.Open(fd)
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		sizes = append(sizes, len(data))
	}
	return sizes
}

func journal(number int64) storage.FileDesc {
	return storage.FileDesc{Type: storage.TypeJournal, Num: number}
}

// create creates a journal with some bytes.
func create(t *testing.T, disk *simtest.Disk, number int64, bytes int) storage.Writer {
	w, err := disk.Create(journal(number))
	require.NoError(t, err)
	_, err = w.Write(make([]byte, bytes))
	require.NoError(t, err)
	return w
}

// TestDiskPowerCut cuts the power when two files have 100 bytes that are synced, and
// 10 that are not.
func TestDiskPowerCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, c := range map[string]struct {
		loss simtest.Loss
		want int // different outcomes
		can  func(unsynced int) bool
	}{
		"drop": {simtest.Drop, 1, func(n int) bool { return n == 0 }},
		"tear": {simtest.Tear(rng), 11 * 11, func(n int) bool { return true }},
		"keep": {simtest.Keep(rng), 2 * 2, func(n int) bool { return n == 0 || n == 10 }},
	} {
		t.Run(name, func(t *testing.T) {
			disk := simtest.NewDisk()
			for number := range int64(2) {
				w := create(t, disk, number, 100)
				require.NoError(t, w.Sync())
				_, err := w.Write(make([]byte, 10))
				require.NoError(t, err)
			}
			outcomes := map[[2]int]bool{}
			for range 2000 {
				cut := disk.PowerCut(c.loss)
				sizes := contents(t, cut)
				for _, size := range sizes {
					require.True(t, 100 <= size && size <= 110 && c.can(size-100), "%d bytes", size)
				}
				outcomes[[2]int(sizes)] = true
				require.Equal(t, sizes, contents(t, cut.PowerCut(simtest.Drop)), "what was found is durable")
			}
			require.Len(t, outcomes, c.want)
			require.Equal(t, []int{110, 110}, contents(t, disk), "the disk itself is as it was")
		})
	}
}

// TestDiskFailures does ten rounds of a write and a sync of each of two files.
func TestDiskFailures(t *testing.T) {
	all := func(n int) (rounds []int) {
		for i := range n {
			rounds = append(rounds, i)
		}
		return rounds
	}
	for name, c := range map[string]struct {
		failure         simtest.Failure
		writes, syncs   []int // the rounds in which they fail, on the journal
		tablesAreSpared bool
	}{
		"everything":         {simtest.Failure{}, all(10), all(10), false},
		"only syncs":         {simtest.Failure{Ops: simtest.OpSync}, nil, all(10), false},
		"one sync":           {simtest.Failure{Ops: simtest.OpSync, Files: storage.TypeJournal, From: 3, Times: 1}, nil, []int{2}, true},
		"two from the third": {simtest.Failure{Ops: simtest.OpSync | simtest.OpRemove, Files: storage.TypeJournal, From: 3, Times: 2}, nil, []int{2, 3}, true},
		"for good":           {simtest.Failure{Ops: simtest.OpWrite, Files: storage.TypeJournal, From: 9}, []int{8, 9}, nil, true},
		"every one, once":    {simtest.Failure{Files: storage.TypeJournal, From: 6, Times: 1}, nil, []int{2}, true},
		"no space":           {simtest.Failure{Err: syscall.ENOSPC, Ops: simtest.OpWrite}, all(10), nil, false},
		"never":              {simtest.Failure{From: 1000}, nil, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			disk := simtest.NewDisk()
			log := create(t, disk, 1, 0)
			table, err := disk.Create(storage.FileDesc{Type: storage.TypeTable, Num: 2})
			require.NoError(t, err)
			disk.SetFault(c.failure.Fault())
			var writes, syncs []int
			spared := true
			failed := func(err error) bool {
				if err != nil {
					require.ErrorIs(t, err, cmp.Or(c.failure.Err, error(syscall.EIO)))
				}
				return err != nil
			}
			wrote := 0
			for round := range 10 {
				n, err := log.Write(make([]byte, 10))
				wrote += n
				if failed(err) {
					writes = append(writes, round)
					require.Equal(t, 5, n, "a failed write is half done")
				}
				if failed(log.Sync()) {
					syncs = append(syncs, round)
				}
				_, err = table.Write(make([]byte, 10))
				spared = !failed(err) && spared
				spared = !failed(table.Sync()) && spared
			}
			require.Equal(t, c.writes, writes)
			require.Equal(t, c.syncs, syncs)
			require.Equal(t, c.tablesAreSpared, spared)
			require.EqualValues(t, 40, disk.Operations())
			if spared {
				require.EqualValues(t, len(writes)+len(syncs), disk.Failed())
			}
			disk.SetFault(nil)
			require.Zero(t, disk.Failed())
			require.Equal(t, []int{wrote}, contents(t, disk))
			require.NoError(t, log.Sync(), "it works again")
		})
	}
}

func TestDiskOperationsHaveNames(t *testing.T) {
	require.Equal(t, "create", simtest.OpCreate.String())
	require.Equal(t, "write|sync", (simtest.OpWrite | simtest.OpSync).String())
	require.Equal(t, "create|open|read|write|sync|remove|rename|setmeta", simtest.AnyOp.String())
}

// TestDiskCapacity fills a disk up. A database whose writes fail goes on once there
// is room and it is opened again.
func TestDiskCapacity(t *testing.T) {
	disk := simtest.NewDisk()
	disk.SetCapacity(100)
	w := create(t, disk, 1, 60)
	create(t, disk, 2, 30)
	n, err := w.Write(make([]byte, 20))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 10, n, "what fits is written")
	require.NoError(t, w.Sync())
	cut := disk.PowerCut(simtest.Drop)
	require.Equal(t, []int{70, 0}, contents(t, cut))
	create(t, cut, 3, 30)
	require.ErrorIs(t, disk.SetMeta(journal(1)), syscall.ENOSPC)
	require.NoError(t, disk.Remove(journal(2)))
	require.NoError(t, disk.SetMeta(journal(1)))
	_, err = w.Write(make([]byte, 30))
	require.NoError(t, err)

	disk = simtest.NewDisk()
	onDisk(t, disk, func(db *leveldb.DB) {
		require.NoError(t, db.Put([]byte("key"), make([]byte, 100), nil))
		disk.SetCapacity(1000)
		require.ErrorIs(t, db.Put([]byte("large"), make([]byte, 1000), nil), syscall.ENOSPC)
	})
	disk.SetCapacity(0)
	onDisk(t, disk, func(db *leveldb.DB) {
		_, err := db.Get([]byte("key"), nil)
		require.NoError(t, err)
		_, err = db.Get([]byte("large"), nil)
		require.ErrorIs(t, err, leveldb.ErrNotFound)
		require.NoError(t, db.Put([]byte("large"), make([]byte, 1000), nil))
	})
}

func TestDiskFaults(t *testing.T) {
	for _, failing := range []simtest.Op{simtest.OpWrite, simtest.OpSync} {
		disk := simtest.NewDisk()
		onDisk(t, disk, func(db *leveldb.DB) {
			require.NoError(t, db.Put([]byte("key"), nil, synced))
			writes, syncs := disk.Writes(), disk.Syncs()
			disk.SetFault(simtest.Failure{Ops: failing, Files: storage.TypeJournal}.Fault())
			require.ErrorIs(t, db.Put([]byte("failed"), nil, synced), syscall.EIO)
			require.Equal(t, writes+1, disk.Writes())
			require.Equal(t, syncs, disk.Syncs())
		})
	}
}

// TestDiskCopyAll copies two disks while a byte is written to one, then to the other:
// the other is never found to be ahead.
func TestDiskCopyAll(t *testing.T) {
	first, second := simtest.NewDisk(), simtest.NewDisk()
	a, b := create(t, first, 1, 0), create(t, second, 1, 0)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range 20_000 {
			_, _ = a.Write([]byte{1}) // a disk without faults takes all
			_, _ = b.Write([]byte{1})
		}
	}()
	for copies, going := 0, true; going || copies == 0; copies++ {
		select {
		case <-over:
			going = false
		default:
		}
		both := simtest.CopyAll(second, first)
		ahead, behind := contents(t, both[1])[0], contents(t, both[0])[0]
		require.True(t, behind <= ahead && ahead <= behind+1, "%d and %d bytes", ahead, behind)
	}
}
