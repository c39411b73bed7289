package replicator

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns reading rows: one by one, in the order of their keys, and index and
// data side by side.

// moment is a snapshot between two commits, with what was known then.
type moment struct {
	snapshot
	to     position // the head
	floor  uint64   // of the log
	vector []Stamp  // what was known
	heard  []Stamp  // what was heard besides
}

// moment takes a snapshot. Of the vector, it holds what rose after a place in the log; 0:
// all of it.
func (x *section) moment(m *moment, since uint64) (err error) {
	k := &x.d.known
	k.mu.RLock()
	defer k.mu.RUnlock()
	m.to, m.floor = k.history.label(x.head), x.floor
	m.vector, m.heard = k.sinceLocked(since, x.own), k.heard.stamps()
	m.snapshot, err = x.d.snapshot()
	return err
}

// floorOf returns the floor of the log in a snapshot.
func floorOf(db reader) (uint64, error) { return metaUint64(db, metaFloor) }

// goneOf returns the sequence of the last record of a key that was reaped or dropped, in a
// snapshot; 0: there is none.
func goneOf(db reader) (uint64, error) {
	gone, err := metaUint64(db, metaGone)
	if err == leveldb.ErrNotFound {
		return 0, nil
	}
	return gone, err
}

func metaUint64(db reader, name string) (uint64, error) {
	row, err := db.Get(metaKey(name), nil)
	if err != nil {
		return 0, err
	}
	return parseMetaUint64(name, row)
}

func parseMetaUint64(name string, row []byte) (uint64, error) {
	if len(row) != 8 {
		return 0, fmt.Errorf("%w: %s", errCorrupt, name)
	}
	return binary.BigEndian.Uint64(row), nil
}

// lookup returns the index record of a key, or leveldb.ErrNotFound.
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

	lenient    bool // rows that can't be parsed do not end the reading
	unreadable bool // the row can't be parsed; record is empty
}

// newIndexReader returns a reader of the rows from the key start on. If behind is set,
// it excludes start itself.
func newIndexReader(db reader, start []byte, behind bool) *indexReader {
	slice := tableRange(tableIndex)
	slice.Start = tableKey(nil, tableIndex, start)
	if behind {
		slice.Start = append(slice.Start, 0)
	}
	return &indexReader{Iterator: db.NewIterator(slice, nil)}
}

// newRangeReader returns a reader of the rows of a range, which must not be empty.
func newRangeReader(db reader, r keyRange) *indexReader {
	slice := tableRange(tableIndex)
	slice.Start = tableKey(nil, tableIndex, r.lower)
	if r.upper != nil {
		slice.Limit = tableKey(nil, tableIndex, r.upper)
	}
	return &indexReader{Iterator: db.NewIterator(slice, nil)}
}

func (i *indexReader) next() bool {
	if i.err != nil || !i.Iterator.Next() {
		return false
	}
	i.key = rowName(i.Iterator.Key())
	i.record, i.err = indexRow(i.key, i.Iterator.Value())
	if i.unreadable = i.err != nil; i.unreadable && i.lenient {
		i.record, i.err = indexRecord{}, nil
	}
	return i.err == nil
}

func (i *indexReader) fault() error { return firstError(i.err, i.Iterator.Error()) }

// logReader reads log records in both directions. It must be released.
type logReader struct {
	iterator.Iterator
	seq     uint64
	version Version
	key     []byte // valid until the next move
	err     error
}

// newLogReader returns a reader of the records after the sequence after, up to and
// including upTo.
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

// walk iterates over the index and the data side by side, in key order. It calls visit
// for every key that is in either of them: record is nil if the key has no index
// record, and has is false if it has no value. The arguments are valid until visit
// returns. An error of visit ends the walk.
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

// walker looks up ascending keys with one iterator. It steps to near keys and seeks far
// ones, which is several times cheaper than a Get for each key.
type walker struct {
	iterator.Iterator
	placed, valid bool
}

// nearSteps is the number of steps that are tried before a seek. A seek costs about as
// much.
const nearSteps = 6

func newWalker(db reader, slice *util.Range) *walker {
	return &walker{Iterator: db.NewIterator(slice, nil)}
}

func (w *walker) release() { w.Iterator.Release() }

// find moves to the first key at or after the given key, and reports whether the two
// are equal. The keys of successive calls must not descend.
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

// finder looks up rows of one table in ascending order of their keys; table 0 stands
// for the user's keys. It reads few rows one by one, and uses a walker for many.
type finder struct {
	db    reader
	table byte
	walk  *walker
	row   []byte
}

const (
	// fewKeys is the greatest number of keys for which single reads beat an iterator.
	fewKeys = 4
	// farApart is the average distance between two keys, in bytes of tables, from
	// which single reads beat an iterator, too.
	farApart = 4 << 10
)

// sizer returns the approximate number of bytes that the tables hold in a range.
type sizer interface {
	size(slice *util.Range) (int64, error)
}

// newFinder returns a finder for a number of keys. The first and the last key tell how
// far apart the keys are.
func newFinder(db reader, sizes sizer, table byte, keys int, first, last []byte) *finder {
	f := &finder{db: db, table: table}
	if keys > fewKeys {
		if slice := rowRange(table, first, last); !scattered(sizes, slice, keys) {
			f.walk = newWalker(db, slice)
		}
	}
	return f
}

// scattered reports whether the given number of keys in a range are so far apart that
// single reads are cheaper.
func scattered(sizes sizer, slice *util.Range, keys int) bool {
	size, err := sizes.size(slice)
	return err != nil || size/int64(keys) >= farApart
}

// rowRange returns the range of the rows from a first to a last key, inclusive.
func rowRange(table byte, first, last []byte) *util.Range {
	if table == 0 {
		return &util.Range{Start: first, Limit: append(bytes.Clone(last), 0)}
	}
	return &util.Range{Start: tableKey(nil, table, first), Limit: append(tableKey(nil, table, last), 0)}
}

// get returns the row of a key, or leveldb.ErrNotFound. The row is valid until the next
// call.
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

// userIterator skips the reserved range in both directions, at the cost of a check of
// the first byte of each key.
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
		// The seek cannot fail: the current reserved key is at or after its target.
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

// seekBehind moves to the first key behind a range.
func (it *userIterator) seekBehind(r keyRange) bool { return r.upper != nil && it.Seek(r.upper) }

func (it *userIterator) Release() {
	it.key = nil
	it.Iterator.Release()
}
