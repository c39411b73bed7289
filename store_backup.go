package replicator

import (
	"bytes"
	"context"
	"math"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns backups: copies of the whole database as of one commit, which open as if
// it had been closed cleanly then.

const (
	// minBackupTable and maxBackupTable bound the size in bytes of a table of the copy, which
	// is held in memory. A large database gets large tables, about backupTables of them.
	minBackupTable = 4 << 20
	maxBackupTable = 32 << 20
	backupTables   = 256
	// backupStep is after how many bytes the progress is told, and whether to go on is
	// asked.
	backupStep = 256 << 10
	// backupPace is how long a backup pauses after a step, in terms of how long the step
	// took, if somebody has written meanwhile.
	backupPace = 1.5
	// never is above every number of tables.
	never = math.MaxInt32
)

// backup copies the database to an empty storage.
//
// The copy is that of a database which was closed cleanly at one commit. So it goes on
// with its id, in a new epoch, and peers find by the history that it is older than what
// they know. All that is under way is in it, as far as it had come: a scan, a first sync and
// an adoption go on, for each of their batches is complete in itself.
//
// The copy is one transaction of leveldb. Until that is committed, which makes all of it
// durable, there is one row, for which Open refuses the database. Nothing is compacted: rows
// come in the order of their keys, so that the tables do not overlap. And a transaction that
// can't be committed keeps a lock for ever, for which a compaction, and Close with it, would
// wait.
func (d *store) backup(ctx context.Context, to storage.Storage, progress func(done, total int64)) error {
	from, last, err := d.backupPoint()
	if err != nil {
		return err
	}
	defer from.Release()
	m := newMeter(d, progress, util.Range{Limit: lastKey})
	db, err := leveldb.Open(to, &opt.Options{
		ErrorIfExist: true, DisableLargeBatchTransaction: true,
		WriteBuffer:         int(min(max(m.total/backupTables, minBackupTable), maxBackupTable)),
		CompactionL0Trigger: never, WriteL0SlowdownTrigger: never, WriteL0PauseTrigger: never,
	})
	if err != nil {
		return err
	}
	err = db.Put(metaKey(metaCopying), nil, withSync)
	if err == nil {
		err = d.copyRows(ctx, from, db, last, m)
	}
	if closeErr := db.Close(); err == nil {
		err = closeErr
	}
	return err
}

// backupPoint takes the snapshot that is copied, and returns what a clean close at that
// moment would have written.
func (d *store) backupPoint() (from snapshot, last *leveldb.Batch, err error) {
	last = new(leveldb.Batch)
	err = d.enter(false, func(x *section) error {
		if from, err = d.snapshot(); err != nil {
			return err
		}
		row, err := from.Get(metaKey(metaAdoption), nil)
		if err != nil {
			return err
		}
		adopt, err := parseAdoption(row) // what is in memory may be behind
		if err != nil {
			return err
		}
		format, err := from.Get(metaKey(metaFormat), nil)
		if err != nil {
			return err
		}
		point := d.capture(x, adopt)
		last.Put(metaKey(metaHead), encodeUint64(x.head))
		last.Put(metaKey(metaDurable), point.append(nil))
		last.Put(metaKey(metaClean), x.cleanMark().append(nil))
		last.Put(metaKey(metaFormat), format)
		last.Delete(metaKey(metaCopying))
		return nil
	})
	if err != nil && from != nil {
		from.Release()
	}
	return from, last, err
}

// copyRows copies all rows, and then the last ones.
func (d *store) copyRows(ctx context.Context, from snapshot, db *leveldb.DB, last *leveldb.Batch, m *meter) error {
	tr, err := db.OpenTransaction()
	if err != nil {
		releaseWriteLock(db) // else it could not be closed
		return err
	}
	defer tr.Discard() // does nothing after Commit
	it := from.NewIterator(nil, &opt.ReadOptions{DontFillCache: true})
	defer it.Release()
	replaced := batchKeys(last)
	var sum, step int64
	head, began := d.head(), time.Now()
	for it.Next() {
		key, value := it.Key(), it.Value()
		if len(key) > len(reserved) && key[len(reserved)] == tableMeta && hidden(key) && replaced[string(key)] {
			continue
		}
		if err := tr.Put(key, value, nil); err != nil {
			return err
		}
		size := int64(len(key) + len(value))
		sum, step = sum+size, step+size
		if step < backupStep {
			continue
		}
		m.at(util.Range{Limit: bytes.Clone(key)})
		step = 0
		now := d.head()
		if now != head {
			pause(ctx, time.Duration(backupPace*float64(time.Since(began))))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		head, began = now, time.Now()
	}
	if err := it.Error(); err != nil {
		return err
	}
	if err := tr.Write(last, nil); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := tr.Commit(); err != nil {
		return err
	}
	m.end(sum)
	return nil
}

// batchKeys returns the keys of a batch.
func batchKeys(b *leveldb.Batch) map[string]bool {
	keys := keySet{}
	_ = b.Replay(keys) // cannot fail: nobody else made the batch
	return keys
}

type keySet map[string]bool

func (s keySet) Put(key, _ []byte) { s[string(key)] = true }
func (s keySet) Delete(key []byte) { s[string(key)] = true }

// meter tells how far a reading of the database has come, in bytes that tables hold.
type meter struct {
	d           *store
	tell        func(done, total int64) // may be nil
	done, total int64
}

func newMeter(d *store, tell func(done, total int64), all util.Range) *meter {
	m := &meter{d: d, tell: tell}
	m.total, _ = d.size(&all) // 0 will do
	return m
}

// at tells that some ranges have been read. Tables change while they are read, so what it
// tells must not fall.
func (m *meter) at(read ...util.Range) {
	if m.tell == nil {
		return
	}
	done := int64(0)
	for i := range read {
		size, err := m.d.size(&read[i])
		if err != nil {
			return
		}
		done += size
	}
	m.done = max(m.done, min(done, m.total))
	m.tell(m.done, m.total)
}

// end tells that all has been read. If no table had any of it, it tells the size of what
// was read.
func (m *meter) end(read int64) {
	if m.tell == nil {
		return
	}
	if m.total == 0 {
		m.total = read
	}
	m.tell(m.total, m.total)
}
