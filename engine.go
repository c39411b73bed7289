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

// This file owns the store's access to leveldb. Nothing else calls *leveldb.DB, except
// the door, which opens and closes it, and a backup, which writes another one.

// reader holds the methods that a database and its snapshots have in common.
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

// engine is a database that sorts keys by their bytes.
type engine interface {
	reader
	snapshot() (snapshot, error)
	write(b *leveldb.Batch, sync bool) error
	// flush makes all earlier writes durable. It may write an empty value under the
	// key row. There must be no concurrent writes.
	flush(row []byte) error
	// size returns the approximate number of bytes that the tables hold in a range.
	size(slice *util.Range) (int64, error)
	// compact has tables give back the room of rows that were removed from a range.
	compact(slice *util.Range) error
	// settle waits for the goroutines that flush has started.
	settle()
	// isLost reports whether a failed flush has left the database in a state in which
	// neither a write nor closing the handle would return.
	isLost() bool
}

// levelEngine is the one implementation of engine.
type levelEngine struct {
	*leveldb.DB
	probes sync.WaitGroup // goroutines of compactionError
	lost   bool           // guarded by the right to write
}

func (e *levelEngine) snapshot() (snapshot, error) {
	snap, err := e.DB.GetSnapshot()
	if err != nil {
		return nil, err // a nil *leveldb.Snapshot would not be a nil interface
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

func (e *levelEngine) compact(slice *util.Range) error { return e.DB.CompactRange(*slice) }

// flush writes the data that is not in tables yet, and little more.
//
// A Sync write is not enough. It covers the current journal, and goleveldb never syncs
// a journal that it has rotated away from, even if the memtable of that journal is not
// a table yet. OpenTransaction waits for such a memtable, writes the current memtable
// to a table, and waits for that table. It waits for neither if the current memtable is
// empty, which is the case right after a write that filled the previous memtable to the
// last byte. The row that flush writes first can be that write. In that case no
// memtable became a table, and flush needs a second round, which has a row to wait for.
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

// tablesMade returns the number of memtables that became tables.
func (e *levelEngine) tablesMade() (uint32, error) {
	var stats leveldb.DBStats
	err := e.DB.Stats(&stats)
	return stats.MemComp, err
}

// rotate writes the current memtable to a table, unless the memtable is empty.
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

// aboveAll is a range above all keys that are likely to exist, so compacting it does
// nothing. It is short because leveldb logs it.
var aboveAll = util.Range{Start: bytes.Repeat([]byte{0xff}, 32)}

// compactionPatience bounds the wait for the error of a compaction. A failing
// compaction answers at once; one that is making progress does not answer until it is
// done.
const compactionPatience = 20 * time.Millisecond

// compactionError returns the error of a compaction that keeps failing, or nil.
// OpenTransaction would return that error, too, but without releasing the write lock.
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

// releaseWriteLock releases the write lock that a failed OpenTransaction has kept.
// Otherwise every write, and closing the handle, would block forever. It reports
// whether the lock is no longer held on our behalf.
//
// goleveldb has no method for this, and is no longer developed. If the field does not
// exist, errLost tells the owner of the handle. After a permanent error, leveldb keeps
// the lock deliberately; it then takes the lock again at once.
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

// errLost tells the owner of a handle that a failed flush has made it unusable.
var errLost = errors.New("leveldb's write lock was lost with it: " +
	"do not close the database handle, which would wait for ever; end the process")
