package replicator

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what the feeds read: the changes behind a cursor, page by page.

// Change is one change of a key.
type Change struct {
	Key []byte
	// Value is nil for a deletion. Recent leaves out values of more than 64 KiB, and of
	// adopted keys.
	Value []byte
	Version
	// Local is true for a change that was made here, since Open or at an earlier opening.
	// Merged changes and adopted values are not local.
	Local bool
	// Peer is who has sent a change that was merged. It is known as long as the change is
	// among those in memory, see Options.BacklogBytes; otherwise, it is zero.
	Peer DatabaseID
	// Conflict is not nil if the change has replaced one that was here, and whose maker did
	// not know this one, nor the other way round. LostHere is true in it. It is known as
	// long as Peer is, and a conflict that Status would not count is not known. LostValue
	// is nil, too, where no feed was open when the change was merged and there was no
	// Options.OnConflict, and if it has more than 64 KiB.
	Conflict *Conflict
	// Cursor is right behind this change.
	Cursor Cursor
}

// String returns the key, and the version in the form of Version.String.
func (c Change) String() string { return fmt.Sprintf("%q %v", c.Key, c.Version) }

// feed reads the changes behind a cursor, in pages of at most 500 changes and 1 MiB, or one
// value if that is larger. It holds nothing between two reads but the page. One goroutine
// uses it.
//
// There are three ways to read, and each change is given by one of them:
//
//   - From the backlog, if that reaches back to the cursor: every change, in log order.
//   - From the log, if that has all that is behind the cursor: those records that are still
//     their keys' latest, in log order. The others have a record further up.
//   - In key order, if the log does not have all that is behind the cursor: the index rows
//     above the cursor, up to where the log has got at the beginning of the scan. Each page
//     is of another snapshot, so a row can be of a later change. What a key came to be after
//     its turn has a record in the log above the scan's upper end, where the feed then goes
//     on. There it passes over changes that are not the latest, up to the last one that the
//     scan can have seen: so no key ever goes back to an earlier version.
type feed struct {
	d      *store
	prefix []byte    // of the keys; nil: all
	place  Cursor    // everything up to here was read
	begun  bool      // a scan has read a row
	last   []byte    // its key
	most   int       // records of the log are looked up for the next page
	since  time.Time // when the last scan began
	next   time.Time // when the next scan may begin, while a first sync is under way

	page    []Change
	passed  []passed     // records that the page passes over
	records []backRecord // of the backlog, to be made changes of
	wake    *subscription
}

// passed is a record that a feed passes over, for another one of its key follows.
type passed struct {
	seq uint64
	by  uint64 // the sequence of the other one, which is told from there, or a later one
}

// rest has the cursors of the page, and the place, rest on what is passed over by then. A power
// cut can take the record that follows, and leave the one that was passed over: then who has
// come further than that has not seen the key's latest change.
func (f *feed) rest(history history) {
	slices.SortFunc(f.passed, func(a, b passed) int { return cmp.Compare(a.seq, b.seq) })
	most, i := uint64(0), 0
	raise := func(c *Cursor) {
		for ; i < len(f.passed) && f.passed[i].seq <= c.at.seq; i++ {
			most = max(most, f.passed[i].by)
		}
		if most > max(c.at.seq, c.seen.seq) {
			c.seen = history.label(most)
		}
	}
	for i := range f.page {
		raise(&f.page[i].Cursor)
	}
	raise(&f.place)
}

// scanPause is how long after a scan the next one begins at the earliest, and after a long
// scan it takes as long as that, while a first sync is under way: each batch of one is found
// by a scan only.
const scanPause = time.Second

// openFeed returns a feed of what is behind a cursor, or ErrCursor. It must be ended.
func (d *store) openFeed(prefix []byte, from Cursor) (*feed, error) {
	head, history := d.position()
	if !history.vouches(&from, head) {
		return nil, fmt.Errorf("%w: it is not of this database's history, or of what a power cut may have taken", ErrCursor)
	}
	d.feeds.Add(1)
	return &feed{d: d, prefix: prefix, place: from, begun: from.scan, last: []byte(from.key), most: d.settings.pageEntries}, nil
}

func (f *feed) end() {
	f.d.feeds.Add(-1)
	if f.wake != nil {
		f.d.unsubscribe(f.wake)
	}
}

// recent returns the last changes of the backlog, at most n.
func (d *store) recent(n int) (all []Change) {
	d.known.latest(n, func(r *backRecord) { all = append(all, r.change(d.known.history)) })
	return all
}

// here returns the cursor behind everything that is committed.
func (d *store) here() Cursor {
	head, history := d.position()
	return Cursor{at: history.label(head)}
}

// awaitsCommit says that there is nothing more to read until somebody commits.
const awaitsCommit = -1

// read reads the next page, which may be empty, and returns when to read again: at once, after
// a while or a commit, or awaitsCommit. It calls stop again and again, and returns its error.
func (f *feed) read(stop func() error) (again time.Duration, err error) {
	f.page, f.passed = f.page[:0], f.passed[:0]
	if f.d.reaped(f.place.unseen()) {
		return 0, errUnseen
	}
	if now := time.Now(); now.Before(f.next) && f.d.first.Load() != nil {
		return f.next.Sub(now), nil
	}
	switch {
	case f.place.scan:
	case f.place.IsZero():
		f.beginScan()
	case f.place.seen.isZero():
		before := f.place.unseen()
		if again, ok := f.readBacklog(); ok {
			if f.d.reaped(before) { // a key was dropped since
				return 0, errUnseen
			}
			return again, f.complete(stop)
		}
		fallthrough
	default:
		if again, ok, err := f.readLog(stop); ok || err != nil {
			return again, err
		}
		f.beginScan()
	}
	return f.readKeys(stop)
}

var errUnseen = fmt.Errorf("%w: deletions that it has not seen are no longer known", ErrCursor)

// reapedIn is reaped for what a snapshot shows: it may be ahead of what was published.
func reapedIn(db reader, seq uint64) error {
	gone, err := goneOf(db)
	if err == nil && seq < gone {
		err = errUnseen
	}
	return err
}

// unseen returns the sequence above which deletions matter to who has come to a cursor.
func (c *Cursor) unseen() uint64 {
	switch {
	case c.IsZero():
		return maxSequence // nothing was given
	case c.scan && c.at.seq == 0:
		return c.upper.seq // before that, nothing was given that could be deleted
	}
	return c.at.seq
}

// reaped reports whether a deletion above a sequence was forgotten, or a key was dropped in a
// rejoin since.
func (d *store) reaped(seq uint64) bool { return seq < d.commits.visible.gone.Load() }

// readBacklog reads a page of the backlog, if that reaches back to the place. Values that
// are not in it are yet to be read.
func (f *feed) readBacklog() (again time.Duration, ok bool) {
	k := &f.d.known
	k.mu.RLock()
	b, upTo, size := &k.backlog, k.head, 0
	after, history := f.place.at.seq, k.history
	if ok = b.reaches(after); !ok {
		k.mu.RUnlock()
		return 0, false
	}
	again = awaitsCommit
	records := f.records[:0]
	first := b.from(after)
	for i := first; i < b.records.len(); i++ {
		r := b.records.at(i)
		if len(records) >= f.d.settings.pageEntries || size >= maxPageBytes || i-first >= maxPageScan {
			upTo, again = r.seq-1, 0
			break
		}
		if bytes.HasPrefix(r.key, f.prefix) {
			records = append(records, *r) // what its slices hold never changes
			size += r.cost() + r.bytes
		}
	}
	k.mu.RUnlock()
	f.records = records
	for i := range records {
		f.page = append(f.page, records[i].change(history))
	}
	if upTo > after {
		f.place = Cursor{at: history.label(upTo)}
	}
	return again, true
}

// change returns the change of a record. The caller owns its slices. It has no value if that
// is not in the backlog.
func (r *backRecord) change(h history) Change {
	c := Change{Key: bytes.Clone(r.key), Version: r.Version, Local: h.has(r.Origin), Cursor: Cursor{at: h.label(r.seq)}}
	if r.present {
		c.Value = append([]byte{}, r.value...)
	}
	if r.how != nil {
		c.Peer = r.how.peer
		if conflict := r.how.conflict; conflict != nil {
			of := *conflict
			of.Key, of.LostValue, of.WonValue = bytes.Clone(of.Key), bytes.Clone(of.LostValue), bytes.Clone(c.Value)
			c.Conflict = &of
		}
	}
	return c
}

// complete reads the values that the backlog does not have. A change that is not its key's
// latest any more is dropped: another one follows.
func (f *feed) complete(stop func() error) error {
	defer func() { f.records = emptied(f.records) }()
	if !slices.ContainsFunc(f.records, backRecord.isBare) {
		return nil
	}
	snap, err := f.d.snapshot()
	if err != nil {
		return err
	}
	defer snap.Release()
	for i := range f.records {
		if !f.records[i].isBare() {
			continue
		}
		if err := stop(); err != nil {
			return err
		}
		c := &f.page[i]
		record, err := lookup(snap, c.Key)
		if err == nil && record.seq == f.records[i].seq {
			c.Value, err = snap.Get(c.Key, nil)
		}
		switch {
		case err == nil && record.seq != f.records[i].seq:
			f.passed = append(f.passed, passed{f.records[i].seq, record.seq})
			fallthrough
		case err == leveldb.ErrNotFound:
			*c = Change{}
		case err != nil:
			return fmt.Errorf("key %.64q: %w", c.Key, err)
		case c.Value == nil:
			c.Value = []byte{}
		}
	}
	f.page = slices.DeleteFunc(f.page, func(c Change) bool { return c.Cursor.IsZero() })
	_, history := f.d.position()
	f.rest(history)
	return nil
}

// isBare reports whether a record lacks its value.
func (r backRecord) isBare() bool { return !r.present && !r.Deleted }

// emptied returns a slice for the next page. What is large is not kept: there may be many
// feeds that wait.
func emptied[T any](s []T) []T {
	const most = 16
	clear(s)
	if cap(s) > most {
		return nil
	}
	return s[:0]
}

// readLog reads a page of the records that are their keys' latest. It reports whether the log,
// or the backlog, reaches back to the place.
func (f *feed) readLog(stop func() error) (again time.Duration, ok bool, err error) {
	after, unseen := f.place.at.seq, f.place.unseen()
	records, upTo, again, ok := f.loggedRecently()
	if ok && f.d.reaped(unseen) {
		return 0, false, errUnseen
	}
	if ok && len(records) == 0 {
		f.pass(upTo)
		return again, true, nil
	}
	snap, err := f.d.snapshot() // it has everything up to upTo
	if err != nil {
		return 0, false, err
	}
	defer snap.Release()
	if err := reapedIn(snap, unseen); err != nil {
		return 0, false, err
	}
	head, history := f.d.position()
	if !ok {
		// The floor must be that of the snapshot: it is raised before, or with, the removal of
		// what is below.
		floor, err := floorOf(snap)
		if err != nil || after+1 < max(floor, history[0].first) {
			return 0, false, err
		}
		if records, upTo, again, err = f.logged(snap, head, upTo, stop); err != nil {
			return 0, false, err
		}
	}
	upTo, cut, err := f.latestOf(snap, head, history, records, upTo, stop)
	if f.most = min(2*f.most, f.d.settings.pageEntries); cut {
		// Most of what was looked up had no room, and is looked up again.
		if again, f.most = 0, len(f.page)+1; len(f.page) == 0 {
			again = awaitsCommit // it ends before what is yet to be published: there is room for one
		}
	}
	if err == nil {
		f.pass(upTo)
		f.rest(history)
	}
	return again, true, err
}

// pass moves the place up the log.
func (f *feed) pass(upTo uint64) {
	if upTo > f.place.at.seq {
		_, history := f.d.position()
		f.place = f.place.follows(history.label(upTo))
	}
}

// loggedRecently returns the next records that the backlog has, and up to where that is all.
// If it does not reach back to the place, it returns the head, and false.
func (f *feed) loggedRecently() (records []logged, upTo uint64, again time.Duration, ok bool) {
	k := &f.d.known
	k.mu.RLock()
	defer k.mu.RUnlock()
	b, size := &k.backlog, 0
	upTo, again = k.head, awaitsCommit
	if upTo == f.place.at.seq {
		return nil, upTo, again, true
	}
	if !b.reaches(f.place.at.seq) {
		return nil, upTo, 0, false
	}
	first := b.from(f.place.at.seq)
	for i := first; i < b.records.len(); i++ {
		r := b.records.at(i)
		if len(records) >= f.most || size >= maxPageBytes/2 || i-first >= maxPageScan {
			return records, r.seq - 1, 0, true
		}
		if bytes.HasPrefix(r.key, f.prefix) {
			records = append(records, logged{r.seq, r.key})
			size += len(r.key)
		}
	}
	return records, upTo, again, true
}

// logged returns the next records of the log, up to a sequence, and up to where that is all.
//
// A merge removes the record that it supersedes. So what is missing is passed over, and what
// took its place is somewhere up to the last record of the snapshot.
func (f *feed) logged(db reader, head, most uint64, stop func() error) (records []logged, upTo uint64, again time.Duration, err error) {
	log := newLogReader(db, f.place.at.seq, most)
	defer log.Release()
	upTo, again = most, awaitsCommit
	gap, next := uint64(0), f.place.at.seq+1
	for n, size := 0, 0; log.next(); n++ {
		if gap == 0 && log.seq > next {
			gap = next
		}
		next = log.seq + 1
		if len(records) >= f.most || size >= maxPageBytes/2 || n >= maxPageScan {
			upTo, again = log.seq-1, 0
			break
		}
		if err := stop(); err != nil {
			return nil, 0, 0, err
		}
		if bytes.HasPrefix(log.key, f.prefix) {
			records = append(records, logged{log.seq, bytes.Clone(log.key)})
			size += len(log.key)
		}
	}
	if gap == 0 && next <= upTo {
		gap = next
	}
	if err := log.fault(); err != nil || gap == 0 {
		return records, upTo, again, err
	}
	last, err := lastRecord(db)
	if err == nil && last > head { // what took its place may be yet to be published
		records = slices.DeleteFunc(records, func(l logged) bool { return l.seq > gap })
		again, err = f.awaitPublished()
		return records, gap - 1, again, err
	}
	f.passed = append(f.passed, passed{gap, last})
	return records, upTo, again, err
}

// publishPause is how long a feed waits for a commit that can be seen to be published. It may
// be of keys that the feed is not woken for.
const publishPause = time.Millisecond

// awaitPublished returns when to look again whether what can be seen is published. A commit
// that has failed never is.
func (f *feed) awaitPublished() (again time.Duration, err error) {
	return publishPause, f.d.failure()
}

// lastRecord returns the sequence of the last record of the log, or 0.
func lastRecord(db reader) (uint64, error) {
	log := newLogReader(db, 0, maxSequence)
	defer log.Release()
	log.last()
	return log.seq, log.fault()
}

// latestOf makes a page of those records that are the latest of their keys, in the order of
// the log. It looks them up in key order, which is much cheaper. If the page has no room for
// all of them, it ends before: latestOf returns up to where it goes. So it does before a record
// that one above the head follows, of a commit that is yet to be published.
func (f *feed) latestOf(db reader, head uint64, history history, records []logged, upTo uint64, stop func() error) (uint64, bool, error) {
	if len(records) == 0 {
		return upTo, false, nil
	}
	slices.SortFunc(records, func(a, b logged) int {
		return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(a.seq, b.seq))
	})
	first, last := records[0].key, records[len(records)-1].key
	index := newFinder(db, f.d, tableIndex, len(records), first, last)
	defer index.release()
	data := newFinder(db, f.d, 0, len(records), first, last)
	defer data.release()
	p := changes{all: f.page, upTo: upTo}
	begin := 0 // of the records of a key
	for i, l := range records {
		if i+1 < len(records) && bytes.Equal(l.key, records[i+1].key) {
			continue
		}
		of := records[begin : i+1]
		begin = i + 1
		if err := stop(); err != nil {
			return 0, false, err
		}
		row, err := index.get(l.key)
		var record indexRecord
		if err == nil {
			record, err = indexRow(l.key, row)
		}
		switch {
		case err == leveldb.ErrNotFound:
			continue
		case err != nil:
			return 0, false, fmt.Errorf("key %.64q: %w", l.key, err)
		case record.seq > head:
			p.end(of[0].seq - 1)
			continue
		}
		for _, over := range of {
			if over.seq != record.seq {
				f.passed = append(f.passed, passed{over.seq, record.seq})
			}
		}
		if record.seq != l.seq {
			continue
		}
		var value []byte
		if !record.Deleted {
			value, err = data.get(l.key)
		}
		switch {
		case err == leveldb.ErrNotFound: // it was removed around the Replicator
		case err != nil:
			return 0, false, fmt.Errorf("key %.64q: %w", l.key, err)
		case p.makeRoom(l.seq, len(l.key)+len(value)):
			c := Change{Key: bytes.Clone(l.key), Version: record.Version, Local: history.has(record.Origin)}
			c.Cursor = f.place.follows(history.label(l.seq))
			switch {
			case record.Deleted:
			case data.walk == nil && value != nil:
				c.Value = value // a copy
			default:
				c.Value = append([]byte{}, value...)
			}
			p.add(c)
		}
	}
	slices.SortFunc(p.all, bySequence)
	f.page = p.all
	return p.upTo, p.upTo < upTo, nil
}

// changes are those of a page that is made out of order: those with the least sequences, as
// many as there is room for.
type changes struct {
	all  []Change
	size int    // bytes
	upTo uint64 // there are no later ones
}

func bySequence(a, b Change) int { return cmp.Compare(a.Cursor.at.seq, b.Cursor.at.seq) }

func (c *Change) size() int { return len(c.Key) + len(c.Value) }

func (p *changes) add(c Change) {
	p.all = append(p.all, c)
	p.size += c.size()
}

// end ends the page at a sequence.
func (p *changes) end(upTo uint64) {
	p.upTo = min(p.upTo, upTo)
	p.all = slices.DeleteFunc(p.all, func(c Change) bool {
		late := c.Cursor.at.seq > p.upTo
		if late {
			p.size -= c.size()
		}
		return late
	})
}

// makeRoom makes room for a change, unless that has to wait for a later page. If there is too
// much, half a page stays, so that this does not happen for each change.
func (p *changes) makeRoom(seq uint64, size int) bool {
	if seq > p.upTo {
		return false
	}
	if len(p.all) == 0 || p.size+size <= maxPageBytes {
		return true
	}
	stand := Change{Cursor: Cursor{at: position{seq: seq}}}
	slices.SortFunc(p.all, bySequence)
	at, _ := slices.BinarySearchFunc(p.all, stand, bySequence)
	p.all = slices.Insert(p.all, at, stand)
	sizeOf := func(i int) int {
		if i == at {
			return size
		}
		return p.all[i].size()
	}
	kept, sum := 1, sizeOf(0)
	for kept < len(p.all) && sum+sizeOf(kept) <= maxPageBytes/2 {
		sum += sizeOf(kept)
		kept++
	}
	if kept < len(p.all) {
		p.upTo = p.all[kept].Cursor.at.seq - 1
		p.all = slices.Delete(p.all, kept, len(p.all))
	}
	if p.size = sum; at >= kept {
		return false
	}
	p.size -= size
	p.all = slices.Delete(p.all, at, at+1)
	return true
}

// beginScan has the next pages be read in key order, up to the head.
func (f *feed) beginScan() {
	upper := f.d.here().at
	f.place = Cursor{at: f.place.at, scan: true, upper: upper, seen: upper}
	f.begun, f.last, f.since = false, nil, time.Now()
}

// endScan goes on with the log.
func (f *feed) endScan() {
	f.place = Cursor{seen: f.place.seen}.follows(f.place.upper)
	f.begun, f.last = false, nil
	if f.next = (time.Time{}); f.d.first.Load() != nil {
		now := time.Now()
		f.next = now.Add(max(scanPause, now.Sub(f.since)))
	}
}

// readKeys reads a page of a scan.
func (f *feed) readKeys(stop func() error) (again time.Duration, err error) {
	c, rows := &f.place, prefixRange(f.prefix)
	if f.begun && bytes.Compare(f.last, rows.lower) >= 0 {
		rows = rows.behind(f.last)
	}
	if rows.isEmpty() {
		f.endScan()
		return 0, nil
	}
	snap, err := f.d.snapshot()
	if err != nil {
		return 0, err
	}
	defer snap.Release()
	if f.begun || c.at.seq > 0 { // else nothing was given
		if err := reapedIn(snap, c.unseen()); err != nil {
			return 0, err
		}
	}
	head, history := f.d.position()
	index, data := newRangeReader(snap, rows), newWalker(snap, nil)
	defer index.Release()
	defer data.release()
	for n, size := 0, 0; len(f.page) < f.d.settings.pageEntries && size < maxPageBytes && n < maxPageScan; n++ {
		if err := stop(); err != nil {
			return 0, err
		}
		if !index.next() {
			err := index.fault()
			if err == nil {
				f.endScan()
			}
			return 0, err
		}
		record := &index.record
		if record.seq > head {
			return f.awaitPublished() // a cursor can't rest on it yet
		}
		f.begun, f.last = true, append(f.last[:0], index.key...)
		if record.seq <= c.at.seq {
			continue
		}
		if record.seq > c.seen.seq {
			c.seen = history.label(record.seq)
		}
		if record.Deleted && c.at.seq == 0 {
			continue
		}
		change := Change{Key: bytes.Clone(index.key), Version: record.Version, Local: history.has(record.Origin)}
		if !record.Deleted {
			if !data.find(index.key) {
				if err := data.Error(); err != nil {
					return 0, err
				}
				continue // it was removed around the Replicator
			}
			change.Value = append([]byte{}, data.Value()...)
		}
		size += change.size()
		change.Cursor = *c
		change.Cursor.key = string(index.key)
		f.page = append(f.page, change)
	}
	return 0, nil
}
