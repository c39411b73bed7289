package replicator

import (
	"bytes"
	"runtime"
	"sync"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// reader is what a database and its snapshots have in common.
type reader interface {
	Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
	Has(key []byte, ro *opt.ReadOptions) (bool, error)
	NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
}

// userIterator passes over the reserved range, in both directions. It costs a
// look at the first byte of each key.
type userIterator struct {
	iterator.Iterator
	key  []byte
	hold *hold // nil where nobody counts
}

// newUserIterator returns an iterator over the user's keys of a range.
func newUserIterator(db reader, slice *util.Range, ro *opt.ReadOptions) *userIterator {
	if slice != nil && slice.Limit != nil && bytes.Compare(slice.Start, slice.Limit) > 0 {
		return &userIterator{Iterator: iterator.NewEmptyIterator(nil)} // goleveldb can panic
	}
	return &userIterator{Iterator: db.NewIterator(slice, ro)}
}

// newHeldIterator returns one that a caller releases, or forgets to release.
func newHeldIterator(db reader, slice *util.Range, ro *opt.ReadOptions, holds *holds) *userIterator {
	it := newUserIterator(db, slice, ro)
	it.hold = holds.take(it.Iterator)
	runtime.AddCleanup(it, (*hold).release, it.hold)
	return it
}

func (it *userIterator) forward(ok bool) bool {
	if !ok {
		it.key = nil
		return false
	}
	if it.key = it.Iterator.Key(); hidden(it.key) {
		return it.forward(it.Iterator.Seek(reservedRange.Limit))
	}
	return true
}

func (it *userIterator) backward(ok bool) bool {
	if !ok {
		it.key = nil
		return false
	}
	if it.key = it.Iterator.Key(); hidden(it.key) {
		// The seek can't fail: the reserved key we stand on is at or after it.
		return it.backward(it.Iterator.Seek(reservedRange.Start) && it.Iterator.Prev())
	}
	return true
}

func hidden(key []byte) bool { return len(key) > 0 && key[0] == 0xff && isReserved(key) }

func (it *userIterator) First() bool          { return it.forward(it.Iterator.First()) }
func (it *userIterator) Next() bool           { return it.forward(it.Iterator.Next()) }
func (it *userIterator) Seek(key []byte) bool { return it.forward(it.Iterator.Seek(key)) }
func (it *userIterator) Last() bool           { return it.backward(it.Iterator.Last()) }
func (it *userIterator) Prev() bool           { return it.backward(it.Iterator.Prev()) }
func (it *userIterator) Key() []byte          { return it.key }

func (it *userIterator) Release() {
	it.key = nil
	if it.hold != nil {
		it.hold.release()
		return
	}
	it.Iterator.Release()
}

// Snapshot is a frozen view of the database, as leveldb.Snapshot is. It is safe
// for concurrent use, must be released, and must not be held for long: leveldb
// keeps every version that it can see.
type Snapshot struct {
	r    *Replicator
	snap *leveldb.Snapshot
	hold *hold
}

func newSnapshot(r *Replicator, snap *leveldb.Snapshot) *Snapshot {
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
