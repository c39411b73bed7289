package simtest

import (
	"bytes"
	"cmp"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// Op is an operation of a Disk which can be made to fail.
type Op int

const (
	OpCreate Op = iota
	OpOpen
	OpRead
	OpWrite
	OpSync
	OpRemove
	OpRename
	OpSetMeta
)

func (op Op) String() string {
	return [...]string{"create", "open", "read", "write", "sync", "remove", "rename", "setmeta"}[op]
}

// Disk is a storage in memory, which can lose what wasn't synced, be copied
// at any moment, and have its operations fail. Only what files contain needs a
// sync to be durable.
type Disk struct {
	mu            sync.Mutex
	files         map[storage.FileDesc]*file
	meta          storage.FileDesc
	locked        bool
	fault         func(op Op, fd storage.FileDesc, n int64) error
	ops           int64 // since SetFault
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
func (d *Disk) Copy() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := NewDisk()
	c.meta = d.meta
	for fd, f := range d.files {
		c.files[fd] = &file{slices.Clip(f.data), f.synced}
	}
	return c
}

// PowerCut returns a copy as it would be found after a power cut. Each file
// keeps what was synced, and a part of its unsynced tail, whose length is drawn
// from rng, independently of other files: a later write may survive an earlier
// one. With a nil rng, nothing unsynced is kept.
func (d *Disk) PowerCut(rng *rand.Rand) *Disk {
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
func (d *Disk) SetFault(fault func(op Op, fd storage.FileDesc, n int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.ops = fault, 0
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
	return fault(op, fd, n)
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
	return d.do(OpSetMeta, fd, func() error { d.meta = fd; return nil })
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
	fault := w.disk.check(OpWrite, w.fd)
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
