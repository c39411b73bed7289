package simtest

import (
	"bytes"
	"cmp"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// Disk is a storage in memory, which can lose what wasn't synced, be copied
// at any moment, and have its operations fail. Only what files contain needs a
// sync to be durable.
type Disk struct {
	mu            sync.Mutex
	files         map[storage.FileDesc]*file
	meta          storage.FileDesc
	locked        bool
	fault         Fault
	ops, failed   int64 // since SetFault
	capacity      int   // of all files; without a limit if 0
	writes, syncs int64
}

// file is a file's content, which only ever grows: so its prefixes can be
// shared by readers and copies of the disk.
type file struct {
	data   []byte
	synced int // how much of data is durable
}

// NewDisk makes an empty disk.
func NewDisk() *Disk {
	return &Disk{files: make(map[storage.FileDesc]*file)}
}

// Copy returns the disk with all that's been written until now, as after the
// process is killed; unlocked, and without faults. What's not synced remains so.
func (d *Disk) Copy() *Disk { return CopyAll(d)[0] }

// CopyAll returns copies of several disks, all as they are at one moment. Who calls it
// from several goroutines names the disks in the same order.
func CopyAll(disks ...*Disk) (copies []*Disk) {
	for _, d := range disks {
		d.mu.Lock()
		defer d.mu.Unlock()
	}
	for _, d := range disks {
		c := NewDisk()
		c.meta, c.capacity = d.meta, d.capacity
		for fd, f := range d.files {
			c.files[fd] = &file{slices.Clip(f.data), f.synced}
		}
		copies = append(copies, c)
	}
	return copies
}

// PowerCut returns a copy as it would be found after a power cut. Each file keeps
// what was synced, and of its unsynced tail what the loss leaves: independently of
// other files, so a later write may survive an earlier one.
func (d *Disk) PowerCut(loss Loss) *Disk {
	c := d.Copy()
	fds, _ := c.List(storage.TypeAll)
	for _, fd := range fds {
		f := c.files[fd]
		f.synced += loss(len(f.data) - f.synced)
		f.data = f.data[:f.synced:f.synced]
	}
	return c
}

// Loss decides how many of a file's unsynced bytes, the first ones, survive a power
// cut.
type Loss func(unsynced int) int

// Drop is the Loss of all that is not synced.
func Drop(unsynced int) int { return 0 }

// Tear returns the Loss that keeps a part of each file's unsynced bytes, all or none
// of them included.
func Tear(rng *rand.Rand) Loss {
	return func(unsynced int) int { return rng.IntN(unsynced + 1) }
}

// Keep returns the Loss that keeps the unsynced bytes of some files, and drops those
// of the others.
func Keep(rng *rand.Rand) Loss {
	return func(unsynced int) int { return unsynced * rng.IntN(2) }
}

// SetFault has fault called before each operation, with its number since SetFault,
// from 1 on. Nil ends all faults.
func (d *Disk) SetFault(fault Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.ops, d.failed = fault, 0, 0
}

// SetCapacity limits what the disk holds, in all its files: what does not fit fails
// with ENOSPC, after the part of it that does. Removing files makes room. 0 means
// without a limit. Copies have the same.
func (d *Disk) SetCapacity(bytes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = bytes
}

// room returns how much of some bytes still fits.
func (d *Disk) room(bytes int) int {
	if d.capacity == 0 {
		return bytes
	}
	used := 0
	for _, f := range d.files {
		used += len(f.data)
	}
	return max(0, min(bytes, d.capacity-used))
}

// check returns the fault of an operation about to be done.
func (d *Disk) check(op Op, fd storage.FileDesc) error {
	d.mu.Lock()
	d.ops++
	n, fault := d.ops, d.fault
	d.mu.Unlock()
	if fault == nil {
		return nil
	}
	err := fault(op, fd, n)
	if err != nil {
		d.mu.Lock()
		d.failed++
		d.mu.Unlock()
	}
	return err
}

// do does an operation unless it has a fault.
func (d *Disk) do(op Op, fd storage.FileDesc, operation func() error) error {
	if err := d.check(op, fd); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return operation()
}

// Writes returns how often journals and tables have been written to.
func (d *Disk) Writes() int64 { return d.count(&d.writes) }

// Syncs returns how often files have been synced.
func (d *Disk) Syncs() int64 { return d.count(&d.syncs) }

// Operations returns how many operations there were since SetFault.
func (d *Disk) Operations() int64 { return d.count(&d.ops) }

// Failed returns how many operations the fault has had fail since SetFault.
func (d *Disk) Failed() int64 { return d.count(&d.failed) }

func (d *Disk) count(counter *int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *counter
}

func (d *Disk) Lock() (storage.Locker, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, storage.ErrLocked
	}
	d.locked = true
	return (*lock)(d), nil
}

// lock is a disk which is locked.
type lock Disk

func (l *lock) Unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locked = false
}

func (d *Disk) Log(string) {}

// Close does nothing: the disk outlives those who use it.
func (d *Disk) Close() error { return nil }

func (d *Disk) SetMeta(fd storage.FileDesc) error {
	return d.do(OpSetMeta, fd, func() error {
		if d.room(1) == 0 {
			return syscall.ENOSPC
		}
		d.meta = fd
		return nil
	})
}

func (d *Disk) GetMeta() (storage.FileDesc, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[d.meta] == nil {
		return storage.FileDesc{}, os.ErrNotExist
	}
	return d.meta, nil
}

// List sorts the files, so that the same random numbers cut the same files.
func (d *Disk) List(types storage.FileType) (fds []storage.FileDesc, err error) {
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

func (d *Disk) Create(fd storage.FileDesc) (w storage.Writer, err error) {
	err = d.do(OpCreate, fd, func() error {
		f := new(file)
		d.files[fd] = f
		w = &writer{d, fd, f}
		return nil
	})
	return w, err
}

func (d *Disk) Open(fd storage.FileDesc) (r storage.Reader, err error) {
	err = d.do(OpOpen, fd, func() error {
		f := d.files[fd]
		if f == nil {
			return os.ErrNotExist
		}
		data := bytes.NewReader(f.data)
		r = &reader{data, d, fd, data}
		return nil
	})
	return r, err
}

// Remove leaves the file to those who have it open.
func (d *Disk) Remove(fd storage.FileDesc) error {
	return d.do(OpRemove, fd, func() error {
		if d.files[fd] == nil {
			return os.ErrNotExist
		}
		delete(d.files, fd)
		return nil
	})
}

func (d *Disk) Rename(oldfd, newfd storage.FileDesc) error {
	return d.do(OpRename, oldfd, func() error {
		f := d.files[oldfd]
		if f == nil {
			return os.ErrNotExist
		}
		delete(d.files, oldfd)
		d.files[newfd] = f
		return nil
	})
}

type writer struct {
	disk *Disk
	fd   storage.FileDesc
	file *file
}

func (w *writer) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // goleveldb ends a journal with it, under a mutex
	}
	fault := w.disk.check(OpWrite, w.fd)
	if fault != nil {
		p = p[:len(p)/2]
	}
	w.disk.mu.Lock()
	defer w.disk.mu.Unlock()
	if room := w.disk.room(len(p)); room < len(p) {
		p, fault = p[:room], cmp.Or(fault, error(syscall.ENOSPC))
	}
	if data := w.file.data; len(data)+len(p) > cap(data) {
		w.file.data = slices.Grow(data, max(len(data), len(p))) // append grows large files by a quarter each time
	}
	w.file.data = append(w.file.data, p...)
	if w.fd.Type&(storage.TypeJournal|storage.TypeTable) != 0 {
		w.disk.writes++
	}
	return len(p), fault
}

func (w *writer) Sync() error {
	return w.disk.do(OpSync, w.fd, func() error {
		w.file.synced = len(w.file.data)
		w.disk.syncs++
		return nil
	})
}

func (w *writer) Close() error { return nil }

// reader reads what its file contained when it was opened.
type reader struct {
	io.Seeker // of data
	disk      *Disk
	fd        storage.FileDesc
	data      *bytes.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.disk.check(OpRead, r.fd); err != nil {
		return 0, err
	}
	return r.data.Read(p)
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.disk.check(OpRead, r.fd); err != nil {
		return 0, err
	}
	return r.data.ReadAt(p, off)
}

func (r *reader) Close() error { return nil }
