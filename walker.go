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
	size, err := sizes.SizeOf([]util.Range{*slice})
	return err != nil || size.Sum()/int64(keys) >= farApart
}

// sizer is a database that knows about how many bytes its tables hold in a range.
type sizer interface {
	SizeOf(ranges []util.Range) (leveldb.Sizes, error)
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
