package replicator

import (
	"bytes"
	"errors"
	"reflect"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns what the store asks of leveldb. Nothing else calls *leveldb.DB,
// but for the door, which opens and closes it.

// reader is what a database and its snapshots have in common.
type reader interface {
	Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
	Has(key []byte, ro *opt.ReadOptions) (bool, error)
	NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
}

// snapshot is a frozen view of a database. It must be released.
type snapshot interface {
	reader
	Release()
}

// engine is a database that keeps keys in the order of their bytes.
type engine interface {
	reader
	snapshot() (snapshot, error)
	write(b *leveldb.Batch, sync bool) error
	// flush makes everything that was written before it durable. row is the key of
	// a row without a value that it may write. Nobody else may write meanwhile.
	flush(row []byte) error
	// size is about how many bytes the tables hold in a range.
	size(slice *util.Range) (int64, error)
	// settle waits for what flush left running.
	settle()
	// isLost reports whether a failed flush has left the database so that neither
	// writing to it nor closing it would return.
	isLost() bool
}

// levelEngine is the one implementation of engine.
type levelEngine struct {
	*leveldb.DB
	probes sync.WaitGroup // compactionError's
	lost   bool           // guarded by whoever may write
}

func (e *levelEngine) snapshot() (snapshot, error) {
	snap, err := e.DB.GetSnapshot()
	if err != nil {
		return nil, err // and not a nil snapshot in an interface
	}
	return snap, nil
}

var (
	withSync    = &opt.WriteOptions{Sync: true}
	withoutSync = &opt.WriteOptions{}
)

func (e *levelEngine) write(b *leveldb.Batch, sync bool) error {
	if sync {
		return e.DB.Write(b, withSync)
	}
	return e.DB.Write(b, withoutSync)
}

func (e *levelEngine) size(slice *util.Range) (int64, error) {
	sizes, err := e.DB.SizeOf([]util.Range{*slice})
	return sizes.Sum(), err
}

// flush costs what is not in tables yet, and little more.
//
// A Sync write does not do: it covers the current journal, and goleveldb never
// syncs a journal that it has rotated away from, though the memtable that belongs
// to it may not be a table yet. OpenTransaction waits for such a memtable,
// makes a table of the current one, and waits for that, but it waits for neither
// where the current one is empty. That is so right after a write that filled the
// one before to the last byte, and the row that is written first can be that
// write. No memtable became a table then, and a second round has a row to wait for.
func (e *levelEngine) flush(row []byte) error {
	for {
		if err := e.DB.Put(row, nil, nil); err != nil {
			return err
		}
		before, err := e.tablesMade()
		if err == nil {
			err = e.rotate()
		}
		after, statErr := e.tablesMade()
		if err = firstError(err, statErr); err != nil {
			return err
		}
		if after != before {
			return nil
		}
	}
}

// tablesMade counts the memtables that became tables.
func (e *levelEngine) tablesMade() (uint32, error) {
	var stats leveldb.DBStats
	err := e.DB.Stats(&stats)
	return stats.MemComp, err
}

// rotate makes a table of the current memtable, unless it is empty.
func (e *levelEngine) rotate() error {
	if err := e.compactionError(); err != nil {
		return err
	}
	tr, err := e.DB.OpenTransaction()
	if err != nil {
		if err != leveldb.ErrClosed && !releaseWriteLock(e.DB) {
			e.lost = true
		}
		return err
	}
	tr.Discard()
	return nil
}

// aboveAll is a range above all keys, but for very odd ones: a compaction of it
// does nothing. leveldb logs it, so it is short.
var aboveAll = util.Range{Start: bytes.Repeat([]byte{0xff}, 32)}

// compactionPatience is for how long a compaction may keep its error to itself. It
// returns an error at once, but does not answer while it is at work.
const compactionPatience = 20 * time.Millisecond

// compactionError returns the error of a compaction that keeps failing, or nil.
// OpenTransaction would find it, too, and leave a write lock behind.
func (e *levelEngine) compactionError() error {
	answer := make(chan error, 1)
	e.probes.Go(func() { answer <- e.DB.CompactRange(aboveAll) })
	timer := time.NewTimer(compactionPatience)
	defer timer.Stop()
	select {
	case err := <-answer:
		return err
	case <-timer.C:
		return nil
	}
}

// releaseWriteLock gives back the write lock that an OpenTransaction which failed
// has kept: without it, every write and the handle's Close would wait for ever. It
// reports whether nobody holds the lock on our behalf any more.
//
// goleveldb has no method for it, and is no longer developed. If the field should
// not be there, errLost tells the handle's owner. Where leveldb itself keeps the
// lock after an error that is there to stay, it takes it again at once.
func releaseWriteLock(db *leveldb.DB) bool {
	field := reflect.ValueOf(db).Elem().FieldByName("writeLockC")
	if !field.IsValid() || field.Type() != reflect.TypeFor[chan struct{}]() {
		return false
	}
	lock := *(*chan struct{})(field.Addr().UnsafePointer())
	select {
	case <-lock:
	default:
	}
	return true
}

func (e *levelEngine) settle()      { e.probes.Wait() }
func (e *levelEngine) isLost() bool { return e.lost }

// errLost tells the owner of a handle what a failed flush has left of it.
var errLost = errors.New("leveldb's write lock was lost with it: " +
	"do not close the database handle, which would wait for ever; end the process")
