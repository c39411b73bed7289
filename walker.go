package replicator

import (
	"bytes"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

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

	// scattered tells that the keys are many, and so far apart that each takes a
	// read of its own.
	scattered bool
}

const (
	// fewKeys is up to how many keys single reads beat an iterator.
	fewKeys = 4
	// farApart is from how many bytes of tables between two keys on they do, too.
	farApart = 4 << 10
)

// newFinder returns a finder for a number of keys, of which the first and the
// last tell how far they are apart. sizes measures ranges of the database.
func newFinder(db reader, sizes sizer, table byte, keys int, first, last []byte) *finder {
	f := &finder{db: db, table: table}
	if keys <= fewKeys {
		return f
	}
	slice := util.Range{Start: f.rowKey(first), Limit: append(f.rowKey(last), 0)}
	size, err := sizes.SizeOf([]util.Range{slice})
	f.scattered = err != nil || size.Sum()/int64(keys) >= farApart
	if !f.scattered {
		f.walk = newWalker(db, &slice)
	}
	return f
}

// sizer is a database that knows about how many bytes its tables hold in a range.
type sizer interface {
	SizeOf(ranges []util.Range) (leveldb.Sizes, error)
}

func (f *finder) rowKey(key []byte) []byte {
	if f.table == 0 {
		return append([]byte{}, key...)
	}
	return tableKey(nil, f.table, key)
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
