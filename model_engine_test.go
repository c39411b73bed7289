package replicator

import (
	"bytes"
	"slices"
	"sort"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// modelRow is one row of a modelDisk.
type modelRow struct{ key, value []byte }

// modelRows are rows in ascending order of their keys. They never change, so disks,
// their copies and their snapshots share them.
type modelRows []modelRow

func (r modelRows) Len() int                        { return len(r) }
func (r modelRows) Index(i int) (key, value []byte) { return r[i].key, r[i].value }
func (r modelRows) Search(key []byte) int {
	return sort.Search(len(r), func(i int) bool { return bytes.Compare(r[i].key, key) >= 0 })
}

func (r modelRows) Get(key []byte, _ *opt.ReadOptions) ([]byte, error) {
	if i := r.Search(key); i < len(r) && bytes.Equal(r[i].key, key) {
		return r[i].value, nil
	}
	return nil, leveldb.ErrNotFound
}

func (r modelRows) Has(key []byte, ro *opt.ReadOptions) (bool, error) {
	_, err := r.Get(key, ro)
	return err == nil, nil
}

func (r modelRows) NewIterator(slice *util.Range, _ *opt.ReadOptions) iterator.Iterator {
	if slice != nil {
		from, to := r.Search(slice.Start), len(r)
		if slice.Limit != nil {
			to = max(from, r.Search(slice.Limit))
		}
		r = r[from:to]
	}
	return iterator.NewArrayIterator(r)
}

// Release lets rows be a snapshot.
func (r modelRows) Release() {}

// with returns the rows as they are after a write.
func (r modelRows) with(w modelWrite) modelRows {
	rows := append(make(modelRows, 0, len(r)+len(w.changes)), r...)
	for _, ch := range w.changes {
		i := rows.Search(ch.key)
		there := i < len(rows) && bytes.Equal(rows[i].key, ch.key)
		switch {
		case ch.deleted && there:
			rows = slices.Delete(rows, i, i+1)
		case ch.deleted:
		case there:
			rows[i] = ch.modelRow
		default:
			rows = slices.Insert(rows, i, ch.modelRow)
		}
	}
	return rows
}

// modelChange is one operation of a batch.
type modelChange struct {
	modelRow
	deleted bool
}

// modelWrite is one batch.
type modelWrite struct {
	changes []modelChange
	sync    bool
}

// modelReplay gathers what a batch does.
type modelReplay struct {
	changes []modelChange
	buf     []byte
}

func (w *modelReplay) copy(p []byte) []byte {
	from := len(w.buf)
	w.buf = append(w.buf, p...)
	return w.buf[from:len(w.buf):len(w.buf)]
}

func (w *modelReplay) Put(key, value []byte) {
	w.changes = append(w.changes, modelChange{modelRow{w.copy(key), w.copy(value)}, false})
}

func (w *modelReplay) Delete(key []byte) {
	w.changes = append(w.changes, modelChange{modelRow{w.copy(key), nil}, true})
}

// modelDisk is an engine in memory that can be copied at no cost, and that knows what
// a power cut could take.
type modelDisk struct {
	modelRows
	durable modelRows    // as of the last flush
	since   []modelWrite // the writes since then
	watched bool         // durable and since are kept
}

func (d *modelDisk) copy() *modelDisk {
	c := *d
	c.since = slices.Clip(c.since)
	return &c
}

func (d *modelDisk) write(b *leveldb.Batch, sync bool) error {
	w := &modelReplay{changes: make([]modelChange, 0, b.Len()), buf: make([]byte, 0, len(b.Dump()))}
	if err := b.Replay(w); err != nil {
		return err
	}
	d.do(modelWrite{w.changes, sync})
	return nil
}

func (d *modelDisk) do(w modelWrite) {
	d.modelRows = d.with(w)
	if d.watched {
		d.since = append(d.since, w)
	}
}

func (d *modelDisk) flush(row []byte) error {
	d.do(modelWrite{[]modelChange{{modelRow{bytes.Clone(row), nil}, false}}, false})
	if d.watched {
		d.durable, d.since = d.modelRows, nil
	}
	return nil
}

func (d *modelDisk) snapshot() (snapshot, error)           { return d.modelRows, nil }
func (d *modelDisk) size(slice *util.Range) (int64, error) { return 0, nil }
func (d *modelDisk) settle()                               {}
func (d *modelDisk) isLost() bool                          { return false }

// modelLoss is what a power cut may take: the writes from one to another, and all from a
// third on. That is what journals can lose: the end of the one that was rotated away,
// of which nothing need be synced, and the end of the last one.
type modelLoss struct{ from, to, end int }

// losses returns all ways to lose something, beginning with as little as possible.
func (d *modelDisk) losses() (all []modelLoss) {
	n := len(d.since)
	synced := func(from, to int) bool {
		return slices.ContainsFunc(d.since[from:to], func(w modelWrite) bool { return w.sync })
	}
	for end := n; end >= 0 && !synced(end, n); end-- {
		for from := 0; from <= end; from++ {
			for to := from; to <= end && !synced(from, to); to++ {
				if to > from && to < end || from == 0 && to == 0 {
					all = append(all, modelLoss{from, to, end})
				}
			}
		}
	}
	return all
}

// cut loses something.
func (d *modelDisk) cut(l modelLoss) {
	rows := d.durable
	for i, w := range d.since {
		if i < l.from || i >= l.to && i < l.end {
			rows = rows.with(w)
		}
	}
	d.modelRows, d.durable, d.since = rows, rows, nil
}

func (d *modelDisk) compact(*util.Range) error { return nil }
