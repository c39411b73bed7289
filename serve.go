package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

const (
	// maxPageEntries and maxPageBytes bound a page. One page is merged while
	// the next is on its way, so a session holds at most twice that.
	maxPageEntries = 500
	maxPageBytes   = 1 << 20
	// maxPageScan is how many records are looked at for a page at most.
	maxPageScan = 20 * maxPageEntries
	// A log scan whose keys lie far apart costs two lookups a record; a scan in
	// key order passes over scanWorth bytes of index in the time of these.
	// Below minRescan records it is not worth the thought.
	scanWorth = 2 << 10
	minRescan = 20 * maxPageEntries
)

// pageReader makes the pages of one session's pulls.
type pageReader struct {
	r      *Replicator
	echo   *echoes
	body   []byte // scratch for entries
	warned bool   // of values that were left out
}

// page reads what a pull asks for.
func (p *pageReader) page(q *pull) (header, body []byte, entries int, err error) {
	v, err := p.newView()
	if err != nil {
		return nil, nil, 0, err
	}
	defer v.release()
	w := pageWriter{q: q, most: p.r.options.pageEntries, inline: min(q.inline, inlineSize), body: p.body[:0]}
	if q.scan == scanFull {
		w.inline = min(q.inline, firstInlineSize)
	}
	recent, err := p.readRecent(v, &w)
	if err == nil && !recent {
		err = p.readView(v, &w)
	}
	w.page.head, w.page.floor = p.r.history.label(v.head), v.floor
	p.body = w.body
	if w.unfit > 0 && !p.warned {
		p.warned = true
		p.r.options.Logger.Warn("replicator: values were changed around the Replicator; they are not replicated until they are written through it",
			"keys", w.unfit)
	}
	return w.page.appendHeader(nil, w.entries), w.body, w.entries, err
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
	case !p.r.history.knows(&w.q.cursor, v.head):
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
	inline  uint64 // values up to this size are sent along
	body    []byte
	entries int
	unfit   int // entries left out
	most    int // entries
	origin  Origin
}

// add appends an entry; the value is sent along if it is small. An adopted value
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
	w.body = appendEntry(w.body, &e, w.origin)
	if !e.absent {
		w.body = append(w.body, value...)
	}
	w.entries++
	w.origin = v.Origin
}

func (w *pageWriter) full() bool {
	return w.entries >= w.most || len(w.body) >= maxPageBytes
}

// readState adds the next keys, in key order, tombstones included, of which the
// latest record is above the checkpoint.
func (p *pageReader) readState(v *view, w *pageWriter) error {
	start := w.q.key
	slice := tableRange(tableIndex)
	if !w.q.upper.isZero() {
		slice.Start = append(indexKey(start), 0)
	}
	index := v.NewIterator(slice, nil)
	defer index.Release()
	data := newWalker(v, nil)
	defer data.release()
	for scanned := 0; ; scanned++ {
		if w.full() || scanned >= maxPageScan {
			return nil
		}
		if !index.Next() {
			w.page.done = true
			return firstError(index.Error(), data.Error())
		}
		key := rowName(index.Key())
		record, err := parseIndexRecord(index.Value())
		if err != nil {
			return fmt.Errorf("%w: index of key %.64q", err, key)
		}
		w.page.key = append(w.page.key[:0], key...)
		if record.seq <= w.q.checkpoint.seq || p.echo.cover(record.seq, record.seq) {
			continue
		}
		switch {
		case record.Deleted:
			w.add(key, record.Version, nil)
		case data.find(key):
			w.add(key, record.Version, data.Value())
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
	if q.scan != scanNone || v.head < max(bottom, q.seen.seq) || v.head-bottom >= fewKeys || !p.r.history.knows(&q.cursor, v.head) {
		return false, nil
	}
	var records []logged
	for seq := bottom; seq <= v.head; seq++ {
		if p.echo.cover(seq, seq) {
			continue
		}
		row, err := v.Get(logKey(seq), nil)
		if err == leveldb.ErrNotFound {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		_, key, err := parseLogRecord(row)
		if err != nil {
			return false, fmt.Errorf("%w: log record %d", err, seq)
		}
		records = append(records, logged{seq, key})
	}
	w.page.reached = bottom
	err = p.addRecords(v, w, records)
	if err == errMoved {
		w.body, w.entries, w.origin = w.body[:0], 0, 0
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
	index := newFinder(v, p.r.db, tableIndex, n, records[0].key, records[n-1].key)
	defer index.release()
	data := newFinder(v, p.r.db, 0, n, records[0].key, records[n-1].key)
	defer data.release()
	for _, l := range records {
		row, err := index.get(l.key)
		if err == leveldb.ErrNotFound {
			continue
		}
		if err != nil {
			return err
		}
		record, err := parseIndexRecord(row)
		if err != nil {
			return fmt.Errorf("%w: index of key %.64q", err, l.key)
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
	if decide := p.r.options.rescan; decide != nil {
		return decide()
	}
	n := len(sample)
	if n <= fewKeys || records < minRescan {
		return false
	}
	sortByKey(sample)
	if !scattered(p.r.db, rowRange(tableIndex, sample[0].key, sample[n-1].key), n) {
		return false
	}
	size, err := p.r.db.SizeOf([]util.Range{*tableRange(tableIndex)})
	return err == nil && uint64(size.Sum())/scanWorth < records
}

// recordsBelow collects a page of records in reverse, and tells down to where
// it read.
func (p *pageReader) recordsBelow(v *view, below, bottom uint64) (records []logged, reached uint64, err error) {
	it := v.log // stands on its last record
	ok := it.Valid()
	if ok && below <= rowSequence(it.Key()) {
		ok = it.Seek(logKey(below)) && it.Prev()
	}
	size := 0
	for scanned := 0; ok; ok, scanned = it.Prev(), scanned+1 {
		if len(records) >= p.r.options.pageEntries || size >= maxPageBytes/2 || scanned >= maxPageScan {
			return records, reached, it.Error()
		}
		reached = rowSequence(it.Key())
		if p.echo.cover(reached, reached) {
			continue
		}
		_, key, err := parseLogRecord(it.Value())
		if err != nil {
			return nil, 0, fmt.Errorf("%w: log record %d", err, reached)
		}
		records = append(records, logged{reached, bytes.Clone(key)})
		size += len(key)
	}
	return records, bottom, it.Error()
}

// values reads what a fetch asks for: the current versions of as many of the
// keys as fit into a frame, at least one. A large value is a part of its own.
func (p *pageReader) values(keys [][]byte) (parts [][]byte, err error) {
	snap, err := p.r.db.GetSnapshot()
	if err != nil {
		return nil, err
	}
	defer snap.Release()
	var body []byte
	var origin Origin
	parts = [][]byte{nil} // the header's place
	answered, entries, size := 0, 0, 0
	for ; answered < len(keys) && size < maxPageBytes; answered++ {
		key := keys[answered]
		record, err := lookup(snap, key)
		if err == leveldb.ErrNotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		e := entry{key: key, Version: record.Version}
		if !e.Deleted {
			e.value, err = snap.Get(key, nil)
			if err == leveldb.ErrNotFound {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		if e.adopted() && !e.fits(valueHash(e.value)) {
			continue // see pageWriter.add
		}
		if size > 0 && size+len(e.value) > 2*maxPageBytes {
			break
		}
		body = appendEntry(body, &e, origin)
		if len(e.value) > chunkSize {
			parts = append(parts, body, e.value)
			body = nil
		} else {
			body = append(body, e.value...)
		}
		size += len(key) + len(e.value)
		origin = e.Origin
		entries++
	}
	header := binary.AppendUvarint(nil, uint64(answered))
	parts[0] = binary.AppendUvarint(header, uint64(entries))
	return append(parts, body), nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
