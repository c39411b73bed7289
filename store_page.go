package replicator

import (
	"bytes"
	"errors"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what a peer is shown of the database: pages and values.

const (
	// maxPageScan is how many records are looked at for a page at most.
	maxPageScan = 20 * maxPageEntries
	// A log scan whose keys lie far apart costs two lookups a record; a scan in
	// key order passes over scanWorth bytes of index in the time of these.
	// Below minRescan records it is not worth the thought.
	scanWorth = 2 << 10
	minRescan = 20 * maxPageEntries
)

// sink takes the entries of a page. It copies what it is given, but for values of
// more than firstInlineSize.
type sink interface {
	add(e *entry)
	reset()
	size() int // bytes
}

// pageReader makes the pages of one peer's pulls.
type pageReader struct {
	d      *store
	covers func(first, last uint64) bool // records that the peer brought
	warned bool                          // of values that were left out
}

// view is one snapshot of the log: what is read from it fits together.
type view struct {
	snapshot
	head  uint64     // the snapshot's, once openLog has found it; until then, at most that
	floor uint64     // the snapshot's
	log   *logReader // over the records that matter to the pull, once openLog was called
}

func (p *pageReader) newView() (*view, error) {
	head := p.d.head()
	snap, err := p.d.snapshot()
	if err != nil {
		return nil, err
	}
	// Read after the snapshot was taken, the floor can only be too high.
	return &view{snapshot: snap, head: head, floor: p.d.commits.visible.floor.Load()}, nil
}

// openLog finds the head. Of the log's records, those after a sequence are enough
// to look at.
func (v *view) openLog(after uint64) error {
	v.log = newLogReader(v, after, maxSequence)
	if v.log.last() {
		v.head = max(v.head, v.log.seq) // the last place may have no record
	}
	if err := v.log.fault(); err != nil || v.head >= after {
		return err
	}
	// Its commit may not be over yet, and the peer may have seen it for all that.
	has, err := v.Has(logKey(after), nil)
	if has {
		v.head = after
	}
	return err
}

func (v *view) release() {
	if v.log != nil {
		v.log.Release()
	}
	v.snapshot.Release()
}

// read reads what a pull asks for: a page without its entries, which go to the
// sink.
func (p *pageReader) read(q *pull, to sink) (page, int, error) {
	v, err := p.newView()
	if err != nil {
		return page{}, 0, err
	}
	defer v.release()
	w := pageWriter{q: q, sink: to, most: p.d.settings.pageEntries, inline: min(q.inline, inlineSize)}
	if q.scan == scanFull {
		w.inline = min(q.inline, firstInlineSize)
	}
	recent, err := p.readRecent(v, &w)
	if err == nil && !recent {
		err = p.readView(v, &w)
	}
	w.page.head, w.page.floor = p.d.history.label(v.head), v.floor
	if w.unfit > 0 && !p.warned {
		p.warned = true
		p.d.settings.logger.Warn("replicator: values were changed around the Replicator; they are not replicated until they are written through it",
			"keys", w.unfit)
	}
	return w.page, w.entries, err
}

// readView adds what the snapshot as a whole has to say.
func (p *pageReader) readView(v *view, w *pageWriter) error {
	after := w.q.checkpoint.seq
	if w.q.scan == scanFull {
		after = w.q.upper.seq
	}
	err := v.openLog(after)
	switch {
	case err != nil:
		return err
	case !p.d.history.knows(&w.q.cursor, v.head):
		w.page.unknown = true
		return nil
	case w.q.scan == scanFull:
		return p.readState(v, w)
	}
	return p.readLog(v, w)
}

// pageWriter collects the entries of a page.
type pageWriter struct {
	page    page
	q       *pull
	sink    sink
	inline  uint64 // values up to this size are sent along
	entries int
	unfit   int // entries left out
	most    int // entries
}

// add adds an entry; the value is sent along if it is small. An adopted value
// that was changed around the Replicator no longer fits its stamp: peers would
// refuse it, and it is left out.
func (w *pageWriter) add(key []byte, v Version, value []byte) {
	e := entry{key: key, Version: v, value: value}
	e.absent = !v.Deleted && (uint64(len(value)) > w.inline || v.adopted() && !w.q.adopts)
	if e.absent || v.adopted() {
		e.size, e.hash = uint64(len(value)), valueHash(value)
	}
	if v.adopted() && !v.fits(e.hash) {
		w.unfit++
		return
	}
	w.sink.add(&e)
	w.entries++
}

func (w *pageWriter) full() bool {
	return w.entries >= w.most || w.sink.size() >= maxPageBytes
}

// readState adds the next keys, in key order, tombstones included, of which the
// latest record is above the checkpoint.
func (p *pageReader) readState(v *view, w *pageWriter) error {
	index := newIndexReader(v, w.q.key, !w.q.upper.isZero())
	defer index.Release()
	data := newWalker(v, nil)
	defer data.release()
	for scanned := 0; ; scanned++ {
		if w.full() || scanned >= maxPageScan {
			return nil
		}
		if !index.next() {
			w.page.done = true
			return firstError(index.fault(), data.Error())
		}
		w.page.key = append(w.page.key[:0], index.key...)
		if seq := index.record.seq; seq <= w.q.checkpoint.seq || p.covers(seq, seq) {
			continue
		}
		switch {
		case index.record.Deleted:
			w.add(index.key, index.record.Version, nil)
		case data.find(index.key):
			w.add(index.key, index.record.Version, data.Value())
		}
	}
}

// logged is a record that is to be sent, if it is still its key's latest.
type logged struct {
	seq uint64
	key []byte
}

// readLog adds the next records, in reverse. One that was superseded is passed
// over: the later one was read, or will be.
func (p *pageReader) readLog(v *view, w *pageWriter) error {
	below := v.head + 1
	if w.q.scan == scanLog {
		below = w.q.reached
	}
	bottom := w.q.checkpoint.seq + 1
	records, reached, err := p.recordsBelow(v, below, bottom)
	if err != nil {
		return err
	}
	w.page.reached = reached
	if w.q.scan == scanNone && reached > bottom && p.rescan(records, v.head-bottom) {
		w.page.rescan = true
		return nil // all of it is going to come in key order
	}
	return p.addRecords(v, w, records)
}

// readRecent adds the records after the checkpoint if they are few: reading them
// one by one is cheaper than an iterator over the log, and is all that a peer that
// keeps up ever asks for. It declines, and adds nothing, if one of them was
// superseded by a record that may be above the head that the view started with.
func (p *pageReader) readRecent(v *view, w *pageWriter) (done bool, err error) {
	q := w.q
	bottom := q.checkpoint.seq + 1
	if q.scan != scanNone || v.head < max(bottom, q.seen.seq) || v.head-bottom >= fewKeys || !p.d.history.knows(&q.cursor, v.head) {
		return false, nil
	}
	var records []logged
	for seq := bottom; seq <= v.head; seq++ {
		if p.covers(seq, seq) {
			continue
		}
		row, err := v.Get(logKey(seq), nil)
		if err == leveldb.ErrNotFound {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		_, key, err := logRow(seq, row)
		if err != nil {
			return false, err
		}
		records = append(records, logged{seq, key})
	}
	w.page.reached = bottom
	err = p.addRecords(v, w, records)
	if err == errMoved {
		w.sink.reset()
		w.entries = 0
		return false, nil
	}
	return err == nil, err
}

var errMoved = errors.New("a key has moved up the log")

func sortByKey(records []logged) {
	slices.SortFunc(records, func(a, b logged) int { return bytes.Compare(a.key, b.key) })
}

// addRecords adds those of the records that are still the latest of their keys. It
// sorts them.
func (p *pageReader) addRecords(v *view, w *pageWriter, records []logged) error {
	n := len(records)
	if n == 0 {
		return nil
	}
	sortByKey(records)
	index := newFinder(v, p.d, tableIndex, n, records[0].key, records[n-1].key)
	defer index.release()
	data := newFinder(v, p.d, 0, n, records[0].key, records[n-1].key)
	defer data.release()
	for _, l := range records {
		row, err := index.get(l.key)
		if err == leveldb.ErrNotFound {
			continue
		}
		if err != nil {
			return err
		}
		record, err := indexRow(l.key, row)
		if err != nil {
			return err
		}
		if record.seq > v.head {
			return errMoved
		}
		if record.seq != l.seq {
			continue
		}
		var value []byte
		if !record.Deleted {
			value, err = data.get(l.key)
			if err == leveldb.ErrNotFound {
				continue // removed behind the Replicator's back
			}
			if err != nil {
				return err
			}
		}
		w.add(l.key, record.Version, value)
	}
	return nil
}

// rescan reports whether a number of records, of which the first are a sample, are
// read faster by a scan of the index. It sorts the sample.
func (p *pageReader) rescan(sample []logged, records uint64) bool {
	if decide := p.d.settings.rescan; decide != nil {
		return decide()
	}
	n := len(sample)
	if n <= fewKeys || records < minRescan {
		return false
	}
	sortByKey(sample)
	if !scattered(p.d, rowRange(tableIndex, sample[0].key, sample[n-1].key), n) {
		return false
	}
	size, err := p.d.size(tableRange(tableIndex))
	return err == nil && uint64(size)/scanWorth < records
}

// recordsBelow collects a page of records in reverse, and tells down to where
// it read.
func (p *pageReader) recordsBelow(v *view, below, bottom uint64) (records []logged, reached uint64, err error) {
	log := v.log // stands on its last record
	ok := log.Valid()
	if ok && below <= log.seq {
		ok = log.below(below)
	}
	size := 0
	for scanned := 0; ok; ok, scanned = log.prev(), scanned+1 {
		if len(records) >= p.d.settings.pageEntries || size >= maxPageBytes/2 || scanned >= maxPageScan {
			return records, reached, log.fault()
		}
		reached = log.seq
		if p.covers(reached, reached) {
			continue
		}
		records = append(records, logged{reached, bytes.Clone(log.key)})
		size += len(log.key)
	}
	return records, bottom, log.fault()
}

// values reads what a fetch asks for: the current versions of as many of the
// keys as fit into a frame, at least one. It returns how many keys are dealt with,
// and how many entries the sink was given.
func (p *pageReader) values(keys [][]byte, to sink) (answered, entries int, err error) {
	snap, err := p.d.snapshot()
	if err != nil {
		return 0, 0, err
	}
	defer snap.Release()
	for ; answered < len(keys) && to.size() < maxPageBytes; answered++ {
		key := keys[answered]
		record, err := lookup(snap, key)
		if err == leveldb.ErrNotFound {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		e := entry{key: key, Version: record.Version}
		if !e.Deleted {
			e.value, err = snap.Get(key, nil)
			if err == leveldb.ErrNotFound {
				continue
			}
			if err != nil {
				return 0, 0, err
			}
		}
		if e.adopted() && !e.fits(valueHash(e.value)) {
			continue // see pageWriter.add
		}
		if to.size() > 0 && to.size()+len(e.value) > 2*maxPageBytes {
			break
		}
		to.add(&e)
		entries++
	}
	return answered, entries, nil
}
