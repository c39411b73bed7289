package replicator

import (
	"bytes"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns how rows are read: one by one, in the order of their keys, and
// index and data side by side.

// lookup reads a key's index record, or returns leveldb.ErrNotFound.
func lookup(db reader, key []byte) (indexRecord, error) {
	row, err := db.Get(indexKey(key), nil)
	if err != nil {
		return indexRecord{}, err
	}
	return indexRow(key, row)
}

// indexRow parses the index row of a key.
func indexRow(key, row []byte) (indexRecord, error) {
	record, err := parseIndexRecord(row)
	if err != nil {
		return record, fmt.Errorf("%w: index of key %.64q", err, key)
	}
	return record, nil
}

// indexReader reads index rows in the order of their keys. It must be released.
type indexReader struct {
	iterator.Iterator
	key    []byte // valid until the next move
	record indexRecord
	err    error
}

// newIndexReader reads the rows of keys from start on, or behind it.
func newIndexReader(db reader, start []byte, behind bool) *indexReader {
	slice := tableRange(tableIndex)
	slice.Start = tableKey(nil, tableIndex, start)
	if behind {
		slice.Start = append(slice.Start, 0)
	}
	return &indexReader{Iterator: db.NewIterator(slice, nil)}
}

func (i *indexReader) next() bool {
	if i.err != nil || !i.Iterator.Next() {
		return false
	}
	i.key = rowName(i.Iterator.Key())
	i.record, i.err = indexRow(i.key, i.Iterator.Value())
	return i.err == nil
}

func (i *indexReader) fault() error { return firstError(i.err, i.Iterator.Error()) }

// logReader reads records of the log, in both directions. It must be released.
type logReader struct {
	iterator.Iterator
	seq     uint64
	version Version
	key     []byte // valid until the next move
	err     error
}

// newLogReader reads the records after and up to the given sequences.
func newLogReader(db reader, after, upTo uint64) *logReader {
	return &logReader{Iterator: db.NewIterator(logRange(after, upTo), nil)}
}

func (l *logReader) at(ok bool) bool {
	if !ok || l.err != nil {
		return false
	}
	l.seq = rowSequence(l.Iterator.Key())
	l.version, l.key, l.err = logRow(l.seq, l.Iterator.Value())
	return l.err == nil
}

func (l *logReader) next() bool { return l.at(l.Iterator.Next()) }
func (l *logReader) prev() bool { return l.at(l.Iterator.Prev()) }
func (l *logReader) last() bool { return l.at(l.Iterator.Last()) }

// below moves to the last record below a sequence.
func (l *logReader) below(seq uint64) bool {
	if l.Iterator.Seek(logKey(seq)) {
		return l.prev()
	}
	return l.last()
}

func (l *logReader) fault() error { return firstError(l.err, l.Iterator.Error()) }

// logRow parses a record of the log.
func logRow(seq uint64, row []byte) (Version, []byte, error) {
	v, key, err := parseLogRecord(row)
	if err != nil {
		return v, nil, fmt.Errorf("%w: log record %d", err, seq)
	}
	return v, key, nil
}

// walk goes through the index and the data side by side, in key order, and tells
// visit what each of them has of every key that is in either: record is nil
// without an index record, and has is false without a value. The arguments of
// visit are valid until it returns; its error ends the walk.
func walk(index *indexReader, data iterator.Iterator, visit func(key []byte, record *indexRecord, value []byte, has bool) error) error {
	indexed, has := index.next(), data.First()
	for indexed || has {
		order := 0 // of the index's key to the data's
		switch {
		case !has:
			order = -1
		case !indexed:
			order = 1
		default:
			order = bytes.Compare(index.key, data.Key())
		}
		var key, value []byte
		var record *indexRecord
		if order <= 0 {
			key, record = index.key, &index.record
		}
		if order >= 0 {
			key, value = data.Key(), data.Value()
		}
		if err := visit(key, record, value, order >= 0); err != nil {
			return err
		}
		if order <= 0 {
			indexed = index.next()
		}
		if order >= 0 {
			has = data.Next()
		}
	}
	return firstError(index.fault(), data.Error())
}

// walker looks up ascending keys with one iterator: near ones by stepping, far
// ones by seeking, which is several times cheaper than a Get for each.
type walker struct {
	iterator.Iterator
	placed, valid bool
}

// nearSteps is how many steps are tried before a seek, which costs about as much.
const nearSteps = 6

func newWalker(db reader, slice *util.Range) *walker {
	return &walker{Iterator: db.NewIterator(slice, nil)}
}

func (w *walker) release() { w.Iterator.Release() }

// find moves to the first key at or after the wanted one, and reports whether
// it is the wanted one. Wanted keys must not descend.
func (w *walker) find(key []byte) bool {
	for range nearSteps {
		if w.placed && !w.valid {
			return false
		}
		if w.placed {
			if order := bytes.Compare(w.Key(), key); order >= 0 {
				return order == 0
			}
			w.valid = w.Next()
			continue
		}
		break
	}
	if w.placed && !w.valid {
		return false
	}
	if !w.placed || bytes.Compare(w.Key(), key) < 0 {
		w.placed, w.valid = true, w.Seek(key)
	}
	return w.valid && bytes.Equal(w.Key(), key)
}

// finder reads rows of one table, or of the user's keys for table 0, in
// ascending order of their keys: one by one where they are few, else by walking.
type finder struct {
	db    reader
	table byte
	walk  *walker
	row   []byte
}

const (
	// fewKeys is up to how many keys single reads beat an iterator.
	fewKeys = 4
	// farApart is from how many bytes of tables between two keys on they do, too.
	farApart = 4 << 10
)

// sizer knows about how many bytes a database's tables hold in a range.
type sizer interface {
	size(slice *util.Range) (int64, error)
}

// newFinder returns a finder for a number of keys, of which the first and the
// last tell how far they are apart.
func newFinder(db reader, sizes sizer, table byte, keys int, first, last []byte) *finder {
	f := &finder{db: db, table: table}
	if keys > fewKeys {
		if slice := rowRange(table, first, last); !scattered(sizes, slice, keys) {
			f.walk = newWalker(db, slice)
		}
	}
	return f
}

// scattered reports whether a number of keys that a range holds are so far apart
// that each takes a read of its own.
func scattered(sizes sizer, slice *util.Range, keys int) bool {
	size, err := sizes.size(slice)
	return err != nil || size/int64(keys) >= farApart
}

// rowRange holds the rows from a first to a last key.
func rowRange(table byte, first, last []byte) *util.Range {
	if table == 0 {
		return &util.Range{Start: first, Limit: append(bytes.Clone(last), 0)}
	}
	return &util.Range{Start: tableKey(nil, table, first), Limit: append(tableKey(nil, table, last), 0)}
}

// get returns the row of a key, valid until the next call, or
// leveldb.ErrNotFound.
func (f *finder) get(key []byte) ([]byte, error) {
	if f.table != 0 {
		f.row = tableKey(f.row[:0], f.table, key)
		key = f.row
	}
	if f.walk == nil {
		return f.db.Get(key, nil)
	}
	if f.walk.find(key) {
		return f.walk.Value(), nil
	}
	if err := f.walk.Error(); err != nil {
		return nil, err
	}
	return nil, leveldb.ErrNotFound
}

func (f *finder) release() {
	if f.walk != nil {
		f.walk.release()
	}
}

// userIterator passes over the reserved range, in both directions. It costs a
// look at the first byte of each key.
type userIterator struct {
	iterator.Iterator
	key []byte
}

// newUserIterator returns an iterator over the user's keys of a range.
func newUserIterator(db reader, slice *util.Range, ro *opt.ReadOptions) userIterator {
	if slice != nil && slice.Limit != nil && bytes.Compare(slice.Start, slice.Limit) > 0 {
		return userIterator{Iterator: iterator.NewEmptyIterator(nil)} // goleveldb can panic
	}
	return userIterator{Iterator: db.NewIterator(slice, ro)}
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

func (it *userIterator) First() bool          { return it.forward(it.Iterator.First()) }
func (it *userIterator) Next() bool           { return it.forward(it.Iterator.Next()) }
func (it *userIterator) Seek(key []byte) bool { return it.forward(it.Iterator.Seek(key)) }
func (it *userIterator) Last() bool           { return it.backward(it.Iterator.Last()) }
func (it *userIterator) Prev() bool           { return it.backward(it.Iterator.Prev()) }
func (it *userIterator) Key() []byte          { return it.key }

func (it *userIterator) Release() {
	it.key = nil
	it.Iterator.Release()
}
