package replicator

import (
	"runtime"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns the snapshots and iterators that callers hold, and their number.

// Snapshot is a frozen view of the database, like leveldb.Snapshot. Its methods are safe
// for concurrent use. A Snapshot must be released, and should not be held for long:
// leveldb keeps every version that a snapshot can see.
type Snapshot struct {
	r    *Replicator
	snap snapshot
	hold *hold
}

func newSnapshot(r *Replicator, snap snapshot) *Snapshot {
	s := &Snapshot{r, snap, r.holds.take(snap)}
	runtime.AddCleanup(s, (*hold).release, s.hold)
	return s
}

// Get returns the value of the key in the snapshot, or leveldb.ErrNotFound. The caller
// owns the returned slice. An empty value may be returned as nil.
func (s *Snapshot) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	return s.r.get(s.snap, key, ro)
}

// Has reports whether the snapshot has the key.
func (s *Snapshot) Has(key []byte, ro *opt.ReadOptions) (bool, error) {
	return s.r.has(s.snap, key, ro)
}

// Version returns the stamp of a key's latest change in the snapshot. It is like
// Replicator.Version.
func (s *Snapshot) Version(key []byte) (Version, error) { return s.r.version(s.snap, key) }

// NewIterator returns an iterator over a range of the snapshot, or over all of it. It is
// like Replicator.NewIterator.
func (s *Snapshot) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return s.r.newIterator(s.snap, slice, ro)
}

// Release releases the snapshot. Its iterators stay usable until they are released
// themselves. Release may be called more than once.
func (s *Snapshot) Release() { s.hold.release() }

// holds counts the iterators and snapshots that callers have not released yet.
type holds struct {
	mu sync.Mutex
	n  int
}

// hold is one iterator or snapshot that a caller holds.
type hold struct {
	of     *holds
	thing  interface{ Release() } // the iterator or snapshot of leveldb
	mu     sync.Mutex             // guards isOver
	isOver bool
}

func (h *holds) take(thing interface{ Release() }) *hold {
	h.add(1)
	return &hold{of: h, thing: thing}
}

// release releases the iterator or snapshot, and decrements the count. Only the first
// call has an effect. The garbage collector calls it for those that a caller has dropped
// without releasing them.
func (h *hold) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isOver {
		return
	}
	h.isOver = true
	h.thing.Release()
	h.of.add(-1)
}

func (h *holds) add(n int) {
	h.mu.Lock()
	h.n += n
	h.mu.Unlock()
}

func (h *holds) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n
}

// heldIterator is an iterator that is counted until it is released or collected.
type heldIterator struct {
	userIterator
	hold *hold
}

func newHeldIterator(db reader, slice *util.Range, ro *opt.ReadOptions, holds *holds) *heldIterator {
	it := &heldIterator{userIterator: newUserIterator(db, slice, ro)}
	it.hold = holds.take(it.Iterator)
	runtime.AddCleanup(it, (*hold).release, it.hold)
	return it
}

// Release releases the iterator. It may be called more than once.
func (it *heldIterator) Release() {
	it.key = nil
	it.hold.release()
}
