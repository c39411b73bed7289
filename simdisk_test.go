package replicator_test

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// simOp is an operation of a simDisk which can be made to fail.
type simOp int

const (
	simCreate simOp = iota
	simOpen
	simRead
	simWrite
	simSync
	simRemove
	simRename
	simSetMeta
)

func (op simOp) String() string {
	return [...]string{"create", "open", "read", "write", "sync", "remove", "rename", "setmeta"}[op]
}

// simDisk is a storage in memory, which can lose what wasn't synced, be copied
// at any moment, and have its operations fail.
//
// Only what files contain needs a sync to be durable: creating, removing and
// renaming them is durable at once, and so is SetMeta. That's kinder than a
// real disk, whose directories have to be synced too.
type simDisk struct {
	mu            sync.Mutex
	files         map[storage.FileDesc]*simFile
	meta          storage.FileDesc
	locked        bool
	fault         func(op simOp, fd storage.FileDesc, n int64) error
	ops           int64 // since SetFault
	writes, syncs int64
}

// simFile is a file's content, which only ever grows: so its prefixes can be
// shared by readers and copies of the disk.
type simFile struct {
	data   []byte
	synced int // how much of data is durable
}

func newSimDisk() *simDisk {
	return &simDisk{files: make(map[storage.FileDesc]*simFile)}
}

// Copy returns the disk with all that's been written until now, as after the
// process is killed; unlocked, and without faults. What's not synced remains so.
func (d *simDisk) Copy() *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := newSimDisk()
	c.meta = d.meta
	for fd, f := range d.files {
		c.files[fd] = &simFile{slices.Clip(f.data), f.synced}
	}
	return c
}

// PowerCut returns a copy as it would be found after a power cut. Each file
// keeps what was synced, and a part of its unsynced tail, whose length is drawn
// from rng, independently of other files: a later write may survive an earlier
// one. With a nil rng, nothing unsynced is kept.
func (d *simDisk) PowerCut(rng *rand.Rand) *simDisk {
	c := d.Copy()
	fds, _ := c.List(storage.TypeAll)
	for _, fd := range fds {
		f := c.files[fd]
		if rng != nil {
			f.synced += rng.IntN(len(f.data) - f.synced + 1)
		}
		f.data = f.data[:f.synced:f.synced]
	}
	return c
}

// SetFault has fault called before each operation, with its number since
// SetFault, from 1 on. If it returns an error, the operation fails with that
// instead of being done; a write is half done. The fault may use the disk, for
// instance to copy it, and must be safe for concurrent use. Nil ends all faults.
func (d *simDisk) SetFault(fault func(op simOp, fd storage.FileDesc, n int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.ops = fault, 0
}

// check returns the fault of an operation about to be done.
func (d *simDisk) check(op simOp, fd storage.FileDesc) error {
	d.mu.Lock()
	d.ops++
	n, fault := d.ops, d.fault
	d.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(op, fd, n)
}

// do does an operation unless it has a fault.
func (d *simDisk) do(op simOp, fd storage.FileDesc, operation func() error) error {
	if err := d.check(op, fd); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return operation()
}

// Writes returns how often journals and tables have been written to.
func (d *simDisk) Writes() int64 { return d.count(&d.writes) }

// Syncs returns how often files have been synced.
func (d *simDisk) Syncs() int64 { return d.count(&d.syncs) }

func (d *simDisk) count(counter *int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *counter
}

func (d *simDisk) Lock() (storage.Locker, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, storage.ErrLocked
	}
	d.locked = true
	return (*simLock)(d), nil
}

// simLock is a disk which is locked.
type simLock simDisk

func (l *simLock) Unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locked = false
}

func (d *simDisk) Log(string) {}

// Close does nothing: the disk outlives those who use it.
func (d *simDisk) Close() error { return nil }

func (d *simDisk) SetMeta(fd storage.FileDesc) error {
	return d.do(simSetMeta, fd, func() error { d.meta = fd; return nil })
}

func (d *simDisk) GetMeta() (storage.FileDesc, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[d.meta] == nil {
		return storage.FileDesc{}, os.ErrNotExist
	}
	return d.meta, nil
}

// List sorts the files, so that the same random numbers cut the same files.
func (d *simDisk) List(types storage.FileType) (fds []storage.FileDesc, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for fd := range d.files {
		if fd.Type&types != 0 {
			fds = append(fds, fd)
		}
	}
	slices.SortFunc(fds, func(a, b storage.FileDesc) int { return cmp.Compare(a.String(), b.String()) })
	return fds, nil
}

func (d *simDisk) Create(fd storage.FileDesc) (w storage.Writer, err error) {
	err = d.do(simCreate, fd, func() error {
		f := new(simFile)
		d.files[fd] = f
		w = &simWriter{d, fd, f}
		return nil
	})
	return w, err
}

func (d *simDisk) Open(fd storage.FileDesc) (r storage.Reader, err error) {
	err = d.do(simOpen, fd, func() error {
		f := d.files[fd]
		if f == nil {
			return os.ErrNotExist
		}
		data := bytes.NewReader(f.data)
		r = &simReader{data, d, fd, data}
		return nil
	})
	return r, err
}

// Remove leaves the file to those who have it open.
func (d *simDisk) Remove(fd storage.FileDesc) error {
	return d.do(simRemove, fd, func() error {
		if d.files[fd] == nil {
			return os.ErrNotExist
		}
		delete(d.files, fd)
		return nil
	})
}

func (d *simDisk) Rename(oldfd, newfd storage.FileDesc) error {
	return d.do(simRename, oldfd, func() error {
		f := d.files[oldfd]
		if f == nil {
			return os.ErrNotExist
		}
		delete(d.files, oldfd)
		d.files[newfd] = f
		return nil
	})
}

type simWriter struct {
	disk *simDisk
	fd   storage.FileDesc
	file *simFile
}

func (w *simWriter) Write(p []byte) (int, error) {
	fault := w.disk.check(simWrite, w.fd)
	if fault != nil {
		p = p[:len(p)/2]
	}
	w.disk.mu.Lock()
	defer w.disk.mu.Unlock()
	w.file.data = append(w.file.data, p...)
	if w.fd.Type&(storage.TypeJournal|storage.TypeTable) != 0 {
		w.disk.writes++
	}
	return len(p), fault
}

func (w *simWriter) Sync() error {
	return w.disk.do(simSync, w.fd, func() error {
		w.file.synced = len(w.file.data)
		w.disk.syncs++
		return nil
	})
}

func (w *simWriter) Close() error { return nil }

// simReader reads what its file contained when it was opened.
type simReader struct {
	io.Seeker // of data
	disk      *simDisk
	fd        storage.FileDesc
	data      *bytes.Reader
}

func (r *simReader) Read(p []byte) (int, error) {
	if err := r.disk.check(simRead, r.fd); err != nil {
		return 0, err
	}
	return r.data.Read(p)
}

func (r *simReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.disk.check(simRead, r.fd); err != nil {
		return 0, err
	}
	return r.data.ReadAt(p, off)
}

func (r *simReader) Close() error { return nil }

// onSimDisk calls use, in a bubble, with the database on disk.
func onSimDisk(t *testing.T, disk *simDisk, use func(db *leveldb.DB)) {
	synctest.Test(t, func(t *testing.T) {
		db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 4 << 10})
		require.NoError(t, err)
		// A goroutine of the closed database needs a second to end.
		defer time.Sleep(2 * time.Second)
		defer db.Close()
		use(db)
	})
}

var simSynced = &opt.WriteOptions{Sync: true}

func TestSimDiskLosesWhatIsNotSynced(t *testing.T) {
	disk := newSimDisk()
	var cut, killed *simDisk
	onSimDisk(t, disk, func(db *leveldb.DB) {
		// Enough to begin several journals and tables.
		for i := range 200 {
			require.NoError(t, db.Put(fmt.Append(nil, i), make([]byte, 100), nil))
		}
		require.NoError(t, db.Put([]byte("synced"), nil, simSynced))
		require.NoError(t, db.Put([]byte("unsynced"), nil, nil))
		cut, killed = disk.PowerCut(nil), disk.Copy()
		require.NoError(t, db.Put([]byte("zlater"), nil, simSynced))
	})
	random := killed.PowerCut(rand.New(rand.NewPCG(1, 2))) // may keep the unsynced or not
	for disk, last := range map[*simDisk]string{cut: "^synced", killed: "unsynced", disk: "zlater", random: "synced"} {
		onSimDisk(t, disk, func(db *leveldb.DB) {
			it := db.NewIterator(nil, nil)
			defer it.Release()
			require.True(t, it.Last())
			require.Regexp(t, last, string(it.Key()))
			_, err := db.Get([]byte("synced"), nil)
			require.NoError(t, err)
		})
	}
}

func TestSimDiskFaults(t *testing.T) {
	for _, failing := range []simOp{simWrite, simSync} {
		disk := newSimDisk()
		onSimDisk(t, disk, func(db *leveldb.DB) {
			require.NoError(t, db.Put([]byte("key"), nil, simSynced))
			writes, syncs := disk.Writes(), disk.Syncs()
			disk.SetFault(func(op simOp, fd storage.FileDesc, n int64) error {
				if op == failing && fd.Type == storage.TypeJournal {
					return fmt.Errorf("%v of %v: %w", op, fd, syscall.EIO)
				}
				return nil
			})
			require.ErrorIs(t, db.Put([]byte("failed"), nil, simSynced), syscall.EIO)
			require.Equal(t, writes+1, disk.Writes())
			require.Equal(t, syncs, disk.Syncs())
		})
	}
}
