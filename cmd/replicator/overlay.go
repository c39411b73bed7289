package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// This file owns opening a database as a replica without a change of its files: what is
// written stays in memory.

// overlay is the files of a database, which are only read, below files in memory.
type overlay struct {
	below, above storage.Storage

	mu      sync.Mutex // guards the fields below
	made    map[storage.FileDesc]bool
	removed map[storage.FileDesc]bool
	current bool // above has the name of the manifest
}

// openOverlay opens the files in a directory.
func openOverlay(path string) (*overlay, error) {
	below, err := storage.OpenFile(path, true)
	if err != nil {
		return nil, err
	}
	return &overlay{below: below, above: storage.NewMemStorage(), made: map[storage.FileDesc]bool{}, removed: map[storage.FileDesc]bool{}}, nil
}

func (o *overlay) Lock() (storage.Locker, error) { return o.above.Lock() }
func (o *overlay) Log(string)                    {}

func (o *overlay) SetMeta(fd storage.FileDesc) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.current = true
	return o.above.SetMeta(fd)
}

func (o *overlay) GetMeta() (storage.FileDesc, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current {
		return o.above.GetMeta()
	}
	return o.below.GetMeta()
}

func (o *overlay) List(types storage.FileType) ([]storage.FileDesc, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	below, err := o.below.List(types)
	if err != nil {
		return nil, err
	}
	all, err := o.above.List(types)
	for _, fd := range below {
		if !o.made[fd] && !o.removed[fd] {
			all = append(all, fd)
		}
	}
	return all, err
}

// of returns where a file is.
func (o *overlay) of(fd storage.FileDesc) (storage.Storage, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.made[fd]:
		return o.above, nil
	case o.removed[fd]:
		return nil, os.ErrNotExist
	}
	return o.below, nil
}

func (o *overlay) Open(fd storage.FileDesc) (storage.Reader, error) {
	where, err := o.of(fd)
	if err != nil {
		return nil, err
	}
	return where.Open(fd)
}

func (o *overlay) Create(fd storage.FileDesc) (storage.Writer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.made[fd] = true
	return o.above.Create(fd)
}

func (o *overlay) Remove(fd storage.FileDesc) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.removed[fd] = true
	if !o.made[fd] {
		return nil
	}
	delete(o.made, fd)
	return o.above.Remove(fd)
}

func (o *overlay) Rename(storage.FileDesc, storage.FileDesc) error {
	return errors.New("an overlay can't rename") // nobody does
}

func (o *overlay) Close() error { return errors.Join(o.below.Close(), o.above.Close()) }

// replica is a database that is open as a replica, of which nothing is written to the files.
type replica struct {
	*replicator.Replicator
	db    *leveldb.DB
	files *overlay
}

// openReplica opens a closed database as a replica that nobody knows of. What the
// background of a replica would do to it is turned off, as it would take memory.
func openReplica(path string) (r *replica, err error) {
	if err := mustHoldDatabase(path); err != nil {
		return nil, err
	}
	r = new(replica)
	if r.files, err = openOverlay(path); err != nil {
		return nil, openError(path, err)
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	const never = math.MaxInt32
	if r.db, err = leveldb.Open(r.files, &opt.Options{
		DisableLargeBatchTransaction: true, DisableSeeksCompaction: true, ErrorIfMissing: true,
		CompactionL0Trigger: never, CompactionTotalSize: never, WriteL0SlowdownTrigger: never, WriteL0PauseTrigger: never,
	}); err != nil {
		return r, openError(path, err)
	}
	options, err := optionsOf(r.db)
	if err == leveldb.ErrNotFound {
		return r, fmt.Errorf("%s was never opened by a Replicator", path)
	}
	if err != nil {
		return r, err
	}
	r.Replicator, err = replicator.Open(r.db, options)
	return r, err
}

// optionsOf returns the options of an opening that changes as little as possible. The kind of
// the clock, the limit on values and the prefix of local keys are in the database: docs/ARCHITECTURE.md has the rows.
func optionsOf(db *leveldb.DB) (*replicator.Options, error) {
	const meta = "\xffreplicator\xffm"
	format, err := db.Get([]byte(meta+"format"), nil)
	if err != nil {
		return nil, err
	}
	limit, err := db.Get([]byte(meta+"limit"), nil)
	if err != nil {
		return nil, err
	}
	if len(format) != 2 || len(limit) != 8 {
		return nil, errors.New("corrupt record: format or limit")
	}
	local, err := db.Get([]byte(meta+"prefix"), nil)
	if err != nil && err != leveldb.ErrNotFound {
		return nil, err
	}
	return &replicator.Options{
		SkipAdoption: true, MaxLogRecords: -1, PeerAge: -1, LocalPrefix: local,
		MaxValueSize: int(binary.BigEndian.Uint64(limit)), Clock: replicator.ClockKind(format[1] - 1),
	}, nil
}

func (r *replica) close() {
	if r.Replicator != nil {
		_ = r.Replicator.Close() // writes to memory only
	}
	if r.db != nil {
		_ = r.db.Close()
	}
	_ = r.files.Close()
}
