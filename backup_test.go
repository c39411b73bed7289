package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// backup copies a node to a new disk.
func (n *node) backup() *simtest.Disk {
	disk := simtest.NewDisk()
	require.NoError(n.c.t, replicator.BackupTo(context.Background(), n.r, disk))
	return disk
}

// busy has some goroutines write to nodes until it is stopped.
func busy(t testing.TB, nodes ...*node) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-done:
					return
				case <-time.After(5 * time.Millisecond):
				}
				key := fmt.Sprintf("busy %d", j*7%50)
				if j%9 == 0 {
					require.NoError(t, n.r.Delete([]byte(key), nil))
				} else {
					require.NoError(t, n.r.Put([]byte(key), fmt.Appendf(nil, "%d of %d", j, i), nil))
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
}

// TestBackupRestored restores a backup that was made while everybody wrote. It goes on with
// its id, has what was there at the call, and everybody ends up equal.
func TestBackupRestored(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh().open()
		n := c.nodes[0]
		n.fill("k", 0, 100, 50)
		stop := busy(t, c.nodes...)
		defer stop()
		time.Sleep(300 * time.Millisecond)
		for round := range 2 {
			n.put("last", fmt.Sprint(round))
			id, before := n.r.Status().ID, n.state()
			disk := n.backup()
			time.Sleep(300 * time.Millisecond) // the original goes on
			stop()
			n.die(func() *simtest.Disk { return disk })
			if round > 0 {
				n.boot = c.newBoot()
			}
			n.peers = nil // nobody may help at first
			for _, m := range c.nodes[1:] {
				m.close()
			}
			n.open(dialOnly)
			require.Equal(t, id, n.r.Status().ID)
			require.NoError(t, replicator.CheckConsistent(n.r))
			after := n.state()
			require.GreaterOrEqual(t, len(after.values), 100)
			for key, version := range before.versions {
				require.LessOrEqual(t, version.Compare(after.versions[key]), 0, key)
			}
			got, _ := n.get("last")
			require.Equal(t, fmt.Sprint(round), got)
			n.close()
			n.peers = []string{"n1", "n2"}
			c.converge()
			require.Equal(t, id, n.r.Status().ID)
			stop = busy(t, c.nodes...)
		}
		stop()
		c.settleDown()
	})
}

// TestBackupIsClean opens a backup of a busy replica, in another boot: it does not go back
// to a durable point, and does not look like one that was killed.
func TestBackupIsClean(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		n, m := c.nodes[0], c.nodes[1]
		n.open()
		n.fill("k", 0, 100, 50)
		clock := n.r.Status().Clock
		m.disk = n.backup()
		n.put("later", "v")
		m.open()
		require.Equal(t, clock, m.r.Status().Clock)
		require.Empty(t, m.r.Status().Warnings)
		require.Equal(t, n.r.Status().LogRecords-1, m.r.Status().LogRecords)
		require.NoError(t, replicator.CheckConsistent(m.r))
		// What its own epoch had made is known.
		require.Equal(t, clock-1, replicator.Vector(m.r)[n.r.Status().Epoch])
		m.powerCut() // right after the opening: what was in the backup is durable
		m.open()
		require.Len(t, m.state().values, 100)
		require.Equal(t, clock-1, replicator.Vector(m.r)[n.r.Status().Epoch])
	})
}

// TestBackupCloned opens a backup beside the original, which goes on to be written to: one
// of the two draws another id, and both end up equal, whether they meet or a third one
// meets them.
func TestBackupCloned(t *testing.T) {
	for _, third := range []bool{false, true} {
		inCluster(t, 3, func(t *testing.T, c *cluster) {
			n, m, clone := c.nodes[0], c.nodes[1], c.nodes[2]
			c.link(0, 1)
			c.link(2, map[bool]int{true: 1, false: 0}[third])
			n.open()
			m.open()
			n.fill("k", 0, 100, 50)
			stop := busy(t, n, m)
			defer stop()
			time.Sleep(300 * time.Millisecond)
			clone.disk = n.backup()
			clone.open()
			clone.put("of the clone", "v")
			time.Sleep(time.Second)
			stop()
			c.settleDown()
			require.NotEqual(t, n.r.Status().ID, clone.r.Status().ID)
			got, _ := n.get("of the clone")
			require.Equal(t, "v", got)
		})
	}
}

// TestBackupUnderWay makes backups at every moment of an adoption, of a first sync and of
// another scan, which go on where they are opened.
func TestBackupUnderWay(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.link(2, 0)
		small := c.paging
		c.paging = func(o replicator.Options) *replicator.Options {
			return small(*replicator.WithPages(o, 10, func() bool { return false }))
		}
		source, n, copied := c.nodes[0], c.nodes[1], c.nodes[2]
		fillDisk(t, source.disk, numbered("old", 600, "old value"))
		source.openSlowly()
		id := source.r.Status().ID
		var disks []*simtest.Disk
		for !source.adopted() {
			disks = append(disks, source.backup())
			time.Sleep(50 * time.Millisecond)
		}
		adopting := len(disks)
		require.Greater(t, adopting, 1)
		source.disk.SetFault(nil)
		c.net.SetDelay("n0", "n1", 10*time.Millisecond)
		n.open()
		for len(disks) < adopting+6 || !n.inSync("n0") {
			if disks = append(disks, n.backup()); len(disks) == adopting+3 {
				source.fill("new", 0, 100, 10)
			}
			time.Sleep(200 * time.Millisecond)
		}
		scans := 0
		for i, disk := range disks {
			copied.replaceDisk(disk)
			copied.boot = c.newBoot()
			require.NoError(t, copied.openDB())
			cursor, err := replicator.StoredCursor(copied.db, id)
			require.NoError(t, err)
			if cursor.Keys || cursor.Log {
				scans++
			}
			require.NoError(t, copied.wrap(), "backup %d", i)
			if i%2 == 1 {
				copied.powerCut() // it goes back to the durable point in the backup
				copied.open()
			}
			until(t, "the copy adopts", copied.adopted)
			until(t, "the copy and its original part", func() bool { return copied.sync() == nil })
			require.True(t, copied.state().equal(source.state()), "backup %d", i)
			require.NoError(t, replicator.CheckConsistent(copied.r), "backup %d", i)
		}
		t.Logf("%d backups in the midst of an adoption, %d of scans", adopting, scans)
		require.Greater(t, scans, 1)
		c.settleDown()
	})
}

// TestBackupCut cuts a backup at every operation of the disk that it is made on, by a kill
// and by a power cut. What is left is refused, or has nothing in it, or is whole; and
// everything is durable when the call returns.
func TestBackupCut(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		r := wrap(t, memDB(t), nil)
		for i := range 500 {
			require.NoError(t, r.Put(fmt.Appendf(nil, "key %d", i), make([]byte, 10), nil))
		}
		disk, rng := simtest.NewDisk(), rand.New(rand.NewPCG(1, 1))
		var left []*simtest.Disk
		disk.SetFault(func(simtest.Op, storage.FileDesc, int64) error {
			left = append(left, disk.Copy(), disk.PowerCut(simtest.Tear(rng)))
			return nil
		})
		require.NoError(t, replicator.BackupTo(t.Context(), r, disk))
		disk.SetFault(nil)
		left = append(left, disk.PowerCut(simtest.Drop))
		refused, empty, whole := 0, 0, 0
		for i, d := range left {
			db, err := leveldb.Open(d, nil)
			if err != nil {
				refused++
				continue
			}
			row, err := db.Has([]byte(reservedPrefix+"mcopying"), nil)
			require.NoError(t, err)
			count := len(readRows(t, db).data)
			switch copied, err := replicator.Open(db, nil); {
			case err != nil:
				require.ErrorContains(t, err, "incomplete copy")
				require.True(t, row)
				refused++
			default:
				require.Contains(t, []int{0, 500}, count, "at operation %d", i)
				require.False(t, row)
				if count == 0 {
					require.Less(t, i, len(left)/2, "at operation %d", i)
					empty++
				} else {
					whole++
				}
				require.NoError(t, copied.Close())
			}
			require.NoError(t, db.Close())
			last := i == len(left)-1
			require.True(t, !last || whole > 0)
		}
		t.Logf("of %d, %d were refused, %d are empty, %d are whole", len(left), refused, empty, whole)
		require.Greater(t, refused, 5)
	})
}

// TestBackupFaults has each operation of the disk fail in turn: the backup fails, and does
// not hang.
func TestBackupFaults(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := wrap(t, memDB(t), nil)
		for i := range 100 {
			require.NoError(t, r.Put(fmt.Appendf(nil, "key %d", i), nil, nil))
		}
		broken, failed := errors.New("broken"), 0
		for at := int64(1); ; at++ {
			disk, done := simtest.NewDisk(), true
			disk.SetFault(func(_ simtest.Op, _ storage.FileDesc, n int64) error {
				if n >= at {
					done = false
					return broken
				}
				return nil
			})
			bounded(t, "a backup", time.Minute, func() {
				if err := replicator.BackupTo(t.Context(), r, disk); err != nil {
					failed++
				}
			})
			if done {
				break
			}
		}
		require.Greater(t, failed, 10)
		require.NoError(t, r.Put([]byte("k"), nil, nil), "the original is not affected")
	})
}

// TestBackup makes backups in directories.
func TestBackup(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	r, err := replicator.OpenFile(filepath.Join(parent, "data"), nil, nil)
	require.NoError(t, err)
	b := new(leveldb.Batch)
	for i := range 8000 {
		b.Put(fmt.Appendf(nil, "key %d", i), make([]byte, 100))
	}
	require.NoError(t, r.Write(b, nil))
	require.NoError(t, r.DB().CompactRange(util.Range{}))
	inside := func() (names []string) {
		entries, err := os.ReadDir(parent)
		require.NoError(t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}

	// It tells how far it has come.
	dir := filepath.Join(parent, "above", "copy")
	var told [][2]int64
	require.NoError(t, r.Backup(t.Context(), dir, func(done, total int64) { told = append(told, [2]int64{done, total}) }))
	require.Greater(t, len(told), 3)
	for i := range told {
		require.LessOrEqual(t, told[i][0], told[i][1])
		require.Equal(t, told[0][1], told[i][1])
		require.True(t, i == 0 || told[i][0] >= told[i-1][0])
	}
	last := told[len(told)-1]
	require.Equal(t, last[0], last[1])
	digest, err := r.Digest()
	require.NoError(t, err)
	copied, err := replicator.OpenFile(dir, &opt.Options{ErrorIfMissing: true}, nil)
	require.NoError(t, err)
	copiedDigest, err := copied.Digest()
	require.NoError(t, err)
	require.Equal(t, digest, copiedDigest)
	require.NoError(t, copied.Close())

	// An empty directory will do, one that is not empty will not, nor a file.
	empty := filepath.Join(parent, "empty")
	require.NoError(t, os.Mkdir(empty, 0o755))
	require.NoError(t, r.Backup(t.Context(), empty, nil))
	require.ErrorContains(t, r.Backup(t.Context(), empty, nil), "is not empty")
	file := filepath.Join(parent, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	require.Error(t, r.Backup(t.Context(), file, nil))
	require.Error(t, r.Backup(t.Context(), "", nil))
	before := inside()

	// One that is ended, at any moment, leaves nothing.
	for range 2 {
		ctx, cancel := context.WithCancelCause(t.Context())
		calls := 0
		stop := errors.New("enough")
		err = r.Backup(ctx, filepath.Join(parent, "ended"), func(done, total int64) {
			if calls++; calls == 2 {
				require.Len(t, inside(), len(before)+1)
				cancel(stop)
			}
		})
		require.ErrorIs(t, err, stop)
		require.Equal(t, before, inside())
	}

	// Something that comes to be in the directory is not removed.
	late := filepath.Join(parent, "late")
	require.NoError(t, os.Mkdir(late, 0o755))
	err = r.Backup(t.Context(), late, func(done, total int64) {
		if done == total {
			require.NoError(t, os.WriteFile(filepath.Join(late, "file"), nil, 0o644))
		}
	})
	require.Error(t, err)
	require.FileExists(t, filepath.Join(late, "file"))
	require.NoError(t, os.RemoveAll(late))
	require.Equal(t, before, inside())

	// Close ends it.
	var closing sync.WaitGroup
	once := sync.OnceFunc(func() { closing.Go(func() { require.NoError(t, r.Close()) }) })
	err = r.Backup(t.Context(), filepath.Join(parent, "closed"), func(int64, int64) {
		once()
		for !r.Status().Closed {
			time.Sleep(time.Millisecond)
		}
	})
	closing.Wait()
	require.ErrorIs(t, err, replicator.ErrClosed)
	require.Equal(t, before, inside())
	require.ErrorIs(t, r.Backup(t.Context(), filepath.Join(parent, "closed"), nil), replicator.ErrClosed)
}

// TestBackupAfterFailure refuses to copy what may be damaged.
func TestBackupAfterFailure(t *testing.T) {
	r := wrap(t, memDB(t), nil)
	replicator.FailWrites(r, errors.New("broken"))
	require.ErrorIs(t, r.Backup(t.Context(), filepath.Join(t.TempDir(), "copy"), nil), replicator.ErrFailed)
}
