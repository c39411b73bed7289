package simtest_test

import (
	"fmt"
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
		cut, killed = disk.PowerCut(nil), disk.Copy()
		require.NoError(t, db.Put([]byte("zlater"), nil, synced))
	})
	random := killed.PowerCut(rand.New(rand.NewPCG(1, 2))) // may keep the unsynced or not
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

func TestDiskFaults(t *testing.T) {
	for _, failing := range []simtest.Op{simtest.OpWrite, simtest.OpSync} {
		disk := simtest.NewDisk()
		onDisk(t, disk, func(db *leveldb.DB) {
			require.NoError(t, db.Put([]byte("key"), nil, synced))
			writes, syncs := disk.Writes(), disk.Syncs()
			disk.SetFault(func(op simtest.Op, fd storage.FileDesc, n int64) error {
				if op == failing && fd.Type == storage.TypeJournal {
					return fmt.Errorf("%v of %v: %w", op, fd, syscall.EIO)
				}
				return nil
			})
			require.ErrorIs(t, db.Put([]byte("failed"), nil, synced), syscall.EIO)
			require.Equal(t, writes+1, disk.Writes())
			require.Equal(t, syncs, disk.Syncs())
		})
	}
}
