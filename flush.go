package replicator

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// flush makes everything that was written to the database before it durable. It
// costs what is not in tables yet, and little more. It runs in the commit
// section. Like a failed write, a failed flush stops all further writes.
//
// A Sync write does not do: it covers the current journal, and goleveldb never
// syncs a journal that it has rotated away from, though the memtable that belongs
// to it may not be a table yet. OpenTransaction waits for such a memtable,
// makes a table of the current one, and waits for that, but it waits for neither
// where the current one is empty. That is so right after a write that filled the
// one before to the last byte, and the row that is written first can be that
// write. No memtable became a table then, and a second round has a row to wait for.
func (c *committer) flush() error {
	for {
		var b leveldb.Batch
		b.Put(metaKey(metaFlush), nil)
		if err := c.write(&b, false); err != nil {
			return err
		}
		before, err := c.tablesMade()
		if err == nil {
			err = c.rotate()
		}
		after, statErr := c.tablesMade()
		if err = firstError(err, statErr); err != nil {
			return c.fail(fmt.Errorf("flush: %w", err))
		}
		if after != before {
			return nil
		}
	}
}

// tablesMade counts the memtables that became tables.
func (c *committer) tablesMade() (uint32, error) {
	var stats leveldb.DBStats
	err := c.db.Stats(&stats)
	return stats.MemComp, err
}

// rotate makes a table of the current memtable, unless it is empty.
func (c *committer) rotate() error {
	if err := c.compactionError(); err != nil {
		return err
	}
	tr, err := c.db.OpenTransaction()
	if err != nil {
		if err != leveldb.ErrClosed && !releaseWriteLock(c.db) {
			c.lockLost.Store(true)
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
func (c *committer) compactionError() error {
	answer := make(chan error, 1)
	c.probes.Go(func() { answer <- c.db.CompactRange(aboveAll) })
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
// not be there, errLockLost tells the handle's owner. Where leveldb itself keeps
// the lock after an error that is there to stay, it takes it again at once.
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

// errLockLost tells the owner of a handle what a failed flush has left of it.
var errLockLost = errors.New("leveldb's write lock was lost with it: " +
	"do not close the database handle, which would wait for ever; end the process")
