package replicator

import (
	"runtime"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns snapshots and iterators that callers hold, and the count of them.

// Snapshot is a frozen view of the database, as leveldb.Snapshot is. It is safe
// for concurrent use, must be released, and must not be held for long: leveldb
// keeps every version that it can see.
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

// Get returns the value of the key in the snapshot, or leveldb.ErrNotFound. The
// returned slice is the caller's own.
func (s *Snapshot) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	return s.r.get(s.snap, key, ro)
}

// Has reports whether the snapshot has the key.
func (s *Snapshot) Has(key []byte, ro *opt.ReadOptions) (bool, error) {
	return s.r.has(s.snap, key, ro)
}

// NewIterator returns an iterator over the snapshot, as Replicator.NewIterator
// does over the database.
func (s *Snapshot) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return s.r.newIterator(s.snap, slice, ro)
}

// Release gives the snapshot up. Iterators made from it stay usable until they
// are released themselves. It may be called more than once.
func (s *Snapshot) Release() { s.hold.release() }

// holds counts the iterators and snapshots that callers have not released.
type holds struct {
	mu sync.Mutex
	n  int
}

// hold is one of them.
type hold struct {
	of     *holds
	thing  interface{ Release() } // of leveldb's
	mu     sync.Mutex
	isOver bool
}

func (h *holds) take(thing interface{ Release() }) *hold {
	h.add(1)
	return &hold{of: h, thing: thing}
}

// release releases the thing and takes it off the count, once. It is also called
// when a caller has dropped the thing without releasing it.
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

// heldIterator is an iterator that a caller releases, or forgets to release.
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

// Release may be called more than once.
func (it *heldIterator) Release() {
	it.key = nil
	it.hold.release()
}
