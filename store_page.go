package replicator

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what a peer is shown of the database: pages that follow its
// checkpoint, pages of scans, and values.

const (
	// relayDelay is for how long what one peer brought is held back from another,
	// which may have it from where it was made.
	relayDelay = 10 * time.Millisecond
	// fedFor is how long it counts that the peer got changes of an origin by another way,
	// and fedMost is the longest that they are held back for that.
	fedFor  = 250 * time.Millisecond
	fedMost = 2 * time.Second
	// fedOrigins is of how many origins that is noted at most.
	fedOrigins = 512
	// usefulFor is for how long nothing is held back once relaying has proved useful.
	usefulFor = time.Second
	// maxPageScan is how many rows are looked at for a page of a scan at most.
	maxPageScan = 20 * maxPageEntries
	// A scan of the log whose keys lie far apart costs two lookups a record; a scan in
	// key order passes over scanWorth bytes of index in the time of these.
	// Below minRescan records it is not worth the thought.
	scanWorth = 2 << 10
	minRescan = 20 * maxPageEntries
	// A scan's snapshot is kept for scanIdle after the last byte of a page, and for
	// scanLife at most: leveldb keeps every version that a snapshot can see.
	scanIdle = 30 * time.Second
	scanLife = time.Hour
)

// sink takes the entries of a page. It copies what it is given, but for values of
// more than inlineSize.
type sink interface {
	add(e *entry)
	reset()
	size() int // bytes
}

// server answers the pulls of one peer. It is used by one goroutine, but for tell and
// known, which are safe for concurrent use.
type server struct {
	d      *store
	scan   *scanView
	ahead  uint64    // own records up to here were sent ahead
	useful time.Time // until when nothing is held back
	relay  uint64    // records that others made in the last page
	warned bool      // of values that were left out
	heard  vector    // what the peer was told in this session of what was heard here

	mu      sync.Mutex           // guards what follows
	peer    vector               // what the peer knows
	adopted adoptions            // what it has told of adoptions, as far as that is not known here yet
	shipped vector               // of that, what pages of this session have told it
	hearsay vector               // what the peer has heard besides; it tells that once
	hearing uint64               // a number that changes with hearsay
	fed     map[Origin]time.Time // when the peer last knew more of an origin than it was told here
}

func newServer(d *store) *server {
	return &server{d: d, heard: vector{}, peer: vector{}, adopted: adoptions{}, shipped: vector{}, hearsay: vector{}, fed: map[Origin]time.Time{}}
}

// tell notes what the peer knows, and returns of how many origins it does.
func (v *server) tell(known []Stamp) (origins int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range known {
		if v.peer.raise(s) && !v.shipped.covers(s) {
			if len(v.fed) >= fedOrigins {
				clear(v.fed)
			}
			v.fed[s.Origin] = time.Now()
		}
	}
	return len(v.peer)
}

// tellAdoptions notes what the peer knows of adoptions, and returns of how many that is yet to
// be learned here.
func (v *server) tellAdoptions(a adoptions) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.adopted.merge(a)
	return len(v.adopted)
}

// adoptions returns a copy of what the peer has told of adoptions, and is not known here yet.
func (v *server) adoptions() adoptions {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.adopted) == 0 {
		return nil // of many merges, this costs nothing
	}
	return maps.Clone(v.adopted)
}

// learned notes what is known here by now.
func (v *server) learned(a adoptions) {
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.adopted, func(id adoptionID, mark Stamp) bool {
		learned, is := a[id]
		return is && learned == mark // else there was news meanwhile
	})
}

// tellHearsay notes what the peer has heard besides, and returns of how many origins it has.
func (v *server) tellHearsay(heard []Stamp) (origins int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range heard {
		if v.hearsay.raise(s) {
			v.hearing++
		}
	}
	return len(v.hearsay)
}

// hearsayAfter returns what the peer has heard besides and the number of that, or nothing
// if the number is still the same.
func (v *server) hearsayAfter(number uint64) ([]Stamp, uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hearing == number {
		return nil, number
	}
	return v.hearsay.stamps(), v.hearing
}

// mayKnow reports whether the peer may know a change that its vector does not cover.
func (v *server) mayKnow(s Stamp) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.hearsay.mayCover(s)
}

// heldUntil returns until when a record that others made is held back from the peer:
// for a moment, and longer while the peer gets changes of its origin by another way. The
// caller holds mu.
func (v *server) heldUntil(r *backRecord) (until time.Time, fed bool) {
	until = r.at.Add(relayDelay)
	at, fed := v.fed[r.Origin]
	if fed = fed && at.Add(fedFor).After(until); fed {
		until = at.Add(fedFor)
		if most := r.at.Add(fedMost); most.Before(until) {
			until = most
		}
	}
	return until, fed
}

// known returns a copy of what the peer knows.
func (v *server) known() vector {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.peer)
}

// knows reports whether the peer knows all of some pairs. The caller holds mu.
func (v *server) knows(stamps []Stamp) bool {
	for _, s := range stamps {
		if !v.peer.covers(s) {
			return false
		}
	}
	return true
}

// filter tells what a peer need not be offered in one page.
type filter struct {
	v       *server
	adopted bool // no adopted value

	// The peer's entry for the origin that was asked for last, while mu is held.
	origin Origin
	clock  uint64
	known  bool
}

// filter is as of what is known here: an adoption that is learned of later must not be
// taken for one whose values the peer has. The peer may have told of more. The caller holds mu,
// and that of what is known.
func (v *server) filter() filter {
	return filter{v: v, adopted: v.d.known.adopted.covered(v.peer) && v.adopted.covered(v.peer)}
}

// filterNow is for what was read before: no value in it is of an adoption that is yet
// unknown.
func (v *server) filterNow() filter {
	v.d.known.mu.RLock()
	defer v.d.known.mu.RUnlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.filter()
}

// covers reports whether the peer knows a change. The caller holds mu since it made the
// filter: one lock for a page is cheaper than one for each record.
func (f *filter) covers(v Version) bool {
	if v.adopted() {
		return f.adopted
	}
	if v.Origin != f.origin {
		f.origin = v.Origin
		f.clock, f.known = f.v.peer[v.Origin]
	}
	return f.known && v.Clock <= f.clock
}

// coversNow is covers for who does not hold mu: reading takes its time.
func (f *filter) coversNow(v Version) bool {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	f.origin = 0
	return f.covers(v)
}

// answer is what becomes of a pull: a page, now or later.
type answer struct {
	page    page
	entries int
	ready   bool          // the page is to be sent
	wait    time.Duration // if it is not: when something is no longer held back; 0: nothing is
	quiet   bool          // if it is not: there is something new, but the peer knows it
}

// answer answers a pull, if there is something to say. What came up to a place of
// the log that the peer was told of is not held back. If idle, that the peer knows
// everything is said, too.
func (v *server) answer(q *pull, told uint64, idle bool, to sink) (a answer, err error) {
	to.reset()
	if v.scan == nil || v.scan.kind != q.scan { // else there is a snapshot
		if wait := v.d.awaitFirst(time.Now()); wait > 0 {
			return v.answerFirst(q, wait, to), nil
		}
	}
	head, history := v.d.position()
	switch {
	case !history.knows(&q.cursor, head):
		a.page.reset = true
		err = v.begin(q, &cursor{}, scanKeys, &a, to)
	case q.scan != scanNone:
		err = v.resume(q, &a, to)
	case q.checkpoint.isZero():
		err = v.begin(q, &cursor{}, scanKeys, &a, to)
	default:
		v.endScan()
		var reaches bool
		if a, reaches = v.follow(q, told, idle, to); !reaches {
			err = v.begin(q, &q.cursor, scanLog, &a, to)
		}
	}
	if a.ready {
		a.page.heard = v.tellHeard(a.page.heard)
	}
	return a, err
}

// tellHeard returns, of what was heard here as of a page, what the peer was not told. It
// has to be read together with what was known then: what is learned meanwhile would be
// missing in both.
func (v *server) tellHeard(heard []Stamp) (news []Stamp) {
	for _, s := range heard {
		if v.heard.raise(s) {
			news = append(news, s)
		}
	}
	return news
}

// judgeRelay takes in how much of the last page the peer did not need. Where most of what
// is relayed is needed, as in a chain, nothing is held back for a while. Where it is
// not, as in a mesh, the others have to be given the time to tell what they know.
func (v *server) judgeRelay(stale uint64, now time.Time) {
	switch relayed := v.relay; {
	case relayed == 0:
	case stale*5 <= relayed:
		v.useful = now.Add(usefulFor)
	default:
		v.useful = time.Time{}
	}
	v.relay = 0
}

// follow answers from the backlog, if that reaches back to the checkpoint. The page
// ends before the first record that is held back, or where it is full.
func (v *server) follow(q *pull, told uint64, idle bool, to sink) (a answer, reaches bool) {
	k, now := &v.d.known, time.Now()
	k.mu.RLock()
	defer k.mu.RUnlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.filter()
	b, after := &k.backlog, q.checkpoint.seq
	if !b.reaches(after) {
		return a, false
	}
	upTo := k.head
	var records []*backRecord
	relayed, size := uint64(0), 0
	i := b.from(after)
	for ; i < b.records.len(); i++ {
		r := b.records.at(i)
		known := r.gone || f.covers(r.Version)
		held := false
		if !r.own && !known && r.seq > told && q.joined {
			until, fed := v.heldUntil(r)
			if held = now.Before(until) && (fed || now.After(v.useful)); held {
				a.wait = until.Sub(now)
			}
		}
		if held || len(records) >= v.d.settings.pageEntries || size >= maxPageBytes {
			upTo = r.seq - 1
			break
		}
		if !known && !(r.own && !r.adopted() && r.seq <= v.ahead) {
			records = append(records, r)
			size += len(r.key) + len(r.value)
			if !r.own {
				relayed++
			}
		}
	}
	if len(records) == 0 && a.wait > 0 && v.sendAhead(&f, i, after, &a, to) {
		return a, true
	}
	if upTo == after && q.wait && (q.joined || upTo < q.seen.seq) {
		return a, true
	}
	a.page.to, a.page.whole = k.history.label(upTo), !q.joined
	if q.joined {
		a.page.vector = b.risesIn(after, upTo, k.origin)
	} else {
		a.page.vector = k.asOf(upTo)
	}
	if own, known := k.ownAt(upTo); known {
		before, was := k.ownAt(after)
		if !q.joined || !was || own != before {
			a.page.vector = append(a.page.vector, Stamp{own, k.origin})
		}
	}
	if len(records) == 0 && q.joined && q.wait && !idle && after >= min(told, upTo) && v.knows(a.page.vector) {
		a.quiet = true
		return a, true
	}
	a.page.heard = append(b.heardBy(upTo, k.origin), k.heard.stamps()...)
	a.ready, v.relay = true, relayed
	v.shipped.join(a.page.vector)
	send(records, &a, to)
	return a, true
}

// sendAhead answers with changes made here that stand behind what is held back, the
// record with index i, each key's latest. It reports whether there are any.
//
// With them the peer knows all that was made here up to the last of them: what came
// before was merged with the checkpoint after, or sent ahead, too. It has to be told so,
// or else it can't tell others, and in a mesh where all write they would hold records
// back for each other until it is too late.
func (v *server) sendAhead(f *filter, i int, after uint64, a *answer, to sink) bool {
	if !v.sendOwn(f, i, a, to) {
		return false
	}
	k := &v.d.known
	if clock, known := k.madeBy(after, v.ahead); known {
		a.page.vector = []Stamp{{clock, k.origin}}
	}
	a.page.seen = k.backlog.risesIn(after, v.ahead, k.origin)
	return true
}

// answerFirst answers while a first sync is under way: with changes made here, from
// which nothing follows. A first pull is answered in any case.
func (v *server) answerFirst(q *pull, wait time.Duration, to sink) answer {
	a := answer{wait: wait}
	v.d.known.mu.RLock()
	defer v.d.known.mu.RUnlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.filter()
	if !v.sendOwn(&f, 0, &a, to) && !q.wait {
		a.page.ahead, a.ready = true, true
	}
	if a.entries > 0 { // the peer may have merged nothing before
		k := &v.d.known
		a.page.seen = append(k.asOf(k.head), Stamp{k.own - 1, k.origin})
	}
	return a
}

// sendOwn gives changes made here that were not sent yet to the sink, from the record
// with index i on. It reports whether there are any. The caller holds mu.
func (v *server) sendOwn(f *filter, i int, a *answer, to sink) bool {
	b := &v.d.known.backlog
	var records []*backRecord
	last, size := v.ahead, 0
	for ; i < b.records.len() && len(records) < v.d.settings.pageEntries && size < maxPageBytes; i++ {
		if r := b.records.at(i); r.own && !r.gone && r.seq > v.ahead && !r.adopted() && !f.covers(r.Version) {
			records = append(records, r)
			size += len(r.key) + len(r.value)
			last = r.seq
		}
	}
	if len(records) == 0 {
		return false
	}
	v.ahead = last
	a.page.ahead, a.ready = true, true
	a.page.heard = append(b.heardBy(last, v.d.known.origin), v.d.known.heard.stamps()...)
	send(records, a, to)
	return true
}

// send gives the latest record of each key to the sink.
func send(records []*backRecord, a *answer, to sink) {
	slices.SortStableFunc(records, func(a, b *backRecord) int { return bytes.Compare(a.key, b.key) })
	for i, r := range records {
		if i+1 < len(records) && bytes.Equal(r.key, records[i+1].key) {
			continue
		}
		e := entry{key: r.key, Version: r.Version, value: r.value}
		if e.absent = !r.Deleted && !r.present; e.absent {
			e.size = uint64(r.bytes)
		}
		to.add(&e)
		a.entries++
	}
}

// asOf returns the vector as it was at a place of the log that the backlog reaches
// back to, but for the own origin. The caller holds mu.
func (k *knowledge) asOf(seq uint64) []Stamp {
	v := vector{}
	for o, row := range k.rows {
		if row.risen <= seq {
			v[o] = row.clock
		}
	}
	v.join(k.backlog.risesIn(0, seq, k.origin))
	return v.stamps()
}

// ownAt returns the own origin's clock at a place of the log that the backlog reaches
// back to, if there was one. The caller holds mu.
func (k *knowledge) ownAt(seq uint64) (clock uint64, known bool) { return k.madeBy(seq, seq) }

// madeBy returns what a peer knows of the own origin that has merged the log up to one
// place, and from there on the changes made here up to another, if that is anything. The
// mark of an adoption in between is not one of them, for it tells of adopted values, too.
// The caller holds mu.
func (k *knowledge) madeBy(after, upTo uint64) (clock uint64, known bool) {
	next := k.own // one above it
	b := &k.backlog
	for i := b.from(upTo); i < b.records.len(); i++ {
		if r := b.records.at(i); r.Origin == k.origin {
			next = min(next, r.Clock)
			break
		}
	}
	for i := b.rises.len() - 1; i >= 0 && b.rises.at(i).seq > after; i-- {
		if r := b.rises.at(i); r.Origin == k.origin {
			next = min(next, r.Clock)
		}
	}
	return next - 1, next > 0
}

// scanView is a scan under way: one snapshot, and where the next page begins.
type scanView struct {
	moment
	kind   scan
	after  uint64 // records up to here are left out
	log    *logReader
	index  *indexReader
	data   *walker
	placed bool // log or index stand where the page before ended

	rejoins uint64 // number of them when the scan began
	began   time.Time
	sent    time.Time // when the last page was
}

func (s *scanView) release() {
	if s.log != nil {
		s.log.Release()
	}
	if s.index != nil { // with the data beside it
		s.index.Release()
		s.data.Release()
	}
	s.snapshot.Release()
}

// isExpired reports whether the log has no longer all that is to be sent.
func (s *scanView) isExpired() bool { return s.after+1 < s.floor }

// endScan gives the snapshot of a scan back.
func (v *server) endScan() {
	if v.scan != nil {
		v.scan.release()
		v.scan = nil
	}
}

// expire gives the snapshot back if it was kept for too long, and returns when to
// look again; 0: there is none.
func (v *server) expire(now time.Time) time.Duration {
	if v.scan == nil {
		return 0
	}
	left := min(v.scan.sent.Add(scanIdle).Sub(now), v.scan.began.Add(scanLife).Sub(now))
	if left <= 0 {
		v.endScan()
		return 0
	}
	return left
}

// begin begins a scan of what is not merged by a cursor, and answers with its first
// page.
func (v *server) begin(q *pull, c *cursor, kind scan, a *answer, to sink) error {
	v.endScan()
	a.page.first = true
	a.page.whole = !c.joined
	s, err := v.d.scanFrom(c.checkpoint.seq, c.joined)
	if err != nil {
		return err
	}
	if kind == scanLog && s.isExpired() {
		kind = scanKeys
	}
	s.kind = kind
	v.scan = s
	a.page.vector, a.page.heard = s.vector, s.heard
	if kind == scanLog {
		records, reached, err := v.recordsBelow(s, s.to.seq+1)
		if err != nil {
			return err
		}
		if reached <= s.after+1 || !v.rescan(records, s.to.seq-s.after) {
			return v.logPage(q, records, reached, a, to)
		}
		s.kind = scanKeys
	}
	return v.keyPage(q, a, to)
}

// resume answers with the next page of a scan. If its snapshot was given back, or this
// is another session than the one in which it began, it goes on with another.
func (v *server) resume(q *pull, a *answer, to sink) error {
	s := v.scan
	if s == nil || s.kind != q.scan || s.rejoins != v.d.rejoins.Load() { // else it shows what was dropped since
		v.endScan()
		var err error
		if s, err = v.d.scanFrom(q.checkpoint.seq, false); err != nil {
			return err
		}
		s.kind = q.scan
		v.scan = s
		a.page.heard = append(s.vector, s.heard...) // neither was told as of this snapshot
		if s.kind == scanLog && s.isExpired() {
			return v.begin(q, &q.cursor, scanKeys, a, to)
		}
	}
	if s.kind == scanKeys {
		return v.keyPage(q, a, to)
	}
	records, reached, err := v.recordsBelow(s, q.reached)
	if err != nil {
		return err
	}
	return v.logPage(q, records, reached, a, to)
}

// scanFrom begins a scan with what is known: all of it, or what rose after a place in the
// log.
func (d *store) scanFrom(after uint64, joined bool) (*scanView, error) {
	s := &scanView{after: after, began: time.Now(), rejoins: d.rejoins.Load()}
	since := after
	if !joined {
		since = 0
	}
	return s, d.enter(false, func(x *section) error { return x.moment(&s.moment, since) })
}

// finish completes a page of a scan.
func (v *server) finish(a *answer) {
	s := v.scan
	a.page.scan, a.page.to, a.ready = s.kind, s.to, true
	if a.page.last {
		v.endScan()
	}
}

// sent notes that the last byte of a page was written.
func (v *server) sent() {
	if v.scan != nil {
		v.scan.sent = time.Now()
	}
}

// keyPage adds the next keys, in key order, tombstones included, of which the
// latest record is above the checkpoint.
func (v *server) keyPage(q *pull, a *answer, to sink) error {
	s := v.scan
	if s.index == nil {
		var after []byte
		if !a.page.first {
			after = q.key // of a page that begins a scan, it is that of another one
		}
		s.index = newIndexReader(s, after, !a.page.first)
		s.data = newWalker(s, nil)
	}
	f := v.filterNow()
	for scanned := 0; ; scanned++ {
		if a.entries >= v.d.settings.pageEntries || to.size() >= maxPageBytes || scanned >= maxPageScan {
			break
		}
		if !s.index.next() {
			a.page.last = true
			break
		}
		a.page.key = append(a.page.key[:0], s.index.key...)
		record := &s.index.record
		if record.seq <= s.after && s.after > 0 || f.coversNow(record.Version) {
			continue
		}
		var value []byte
		if !record.Deleted {
			if !s.data.find(s.index.key) {
				a.page.incomplete = true
				continue
			}
			value = s.data.Value()
		}
		v.add(s.index.key, record.Version, value, q, a, to)
	}
	if err := firstError(s.index.fault(), s.data.Error()); err != nil {
		return err
	}
	v.finish(a)
	return nil
}

// add adds an entry of a scan; the value is sent along if it is small. An adopted
// value that was changed around the Replicator no longer fits its stamp: peers would
// refuse it, and it is left out.
func (v *server) add(key []byte, version Version, value []byte, q *pull, a *answer, to sink) {
	e := entry{key: key, Version: version, value: value}
	if version.adopted() && !version.fits(valueHash(value)) {
		v.warn()
		return
	}
	if e.absent = !e.Deleted && (len(value) > inlineSize || e.adopted() && !q.empty); e.absent {
		e.size = uint64(len(value))
	}
	to.add(&e)
	a.entries++
}

func (v *server) warn() {
	if !v.warned {
		v.warned = true
		v.d.settings.logger.Warn("replicator: values were changed around the Replicator; they are not replicated until they are written through it")
	}
}

// logged is a record that is to be sent, if it is still its key's latest.
type logged struct {
	seq uint64
	key []byte
}

func sortByKey(records []logged) {
	slices.SortFunc(records, func(a, b logged) int { return bytes.Compare(a.key, b.key) })
}

// recordsBelow collects a page of records in reverse, and tells down to where
// it read. Those that the peer knows are passed over.
func (v *server) recordsBelow(s *scanView, below uint64) (records []logged, reached uint64, err error) {
	if s.log == nil {
		s.log = newLogReader(s, s.after, s.to.seq)
	}
	f := v.filterNow()
	ok := false
	if s.placed {
		ok = s.log.prev()
	} else {
		ok = s.log.below(below)
		s.placed = true
	}
	size := 0
	for scanned := 0; ok; ok, scanned = s.log.prev(), scanned+1 {
		reached = s.log.seq
		if !f.coversNow(s.log.version) {
			records = append(records, logged{reached, bytes.Clone(s.log.key)})
			size += len(s.log.key)
		}
		if len(records) >= v.d.settings.pageEntries || size >= maxPageBytes/2 || scanned >= maxPageScan {
			return records, reached, s.log.fault()
		}
	}
	return records, s.after + 1, s.log.fault()
}

// logPage adds those of the records that are still the latest of their keys. The
// later record of one that is not was read before.
func (v *server) logPage(q *pull, records []logged, reached uint64, a *answer, to sink) error {
	s := v.scan
	if n := len(records); n > 0 {
		sortByKey(records)
		first, last := records[0].key, records[n-1].key
		index := newFinder(s, v.d, tableIndex, n, first, last)
		defer index.release()
		data := newFinder(s, v.d, 0, n, first, last)
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
			if record.seq != l.seq {
				continue
			}
			var value []byte
			if !record.Deleted {
				value, err = data.get(l.key)
				if err == leveldb.ErrNotFound {
					a.page.incomplete = true
					continue
				}
				if err != nil {
					return err
				}
			}
			v.add(l.key, record.Version, value, q, a, to)
		}
	}
	a.page.reached, a.page.last = reached, reached <= s.after+1
	v.finish(a)
	return nil
}

// rescan reports whether a number of records, of which the first are a sample, are
// read faster by a scan of the index. It sorts the sample.
func (v *server) rescan(sample []logged, records uint64) bool {
	if decide := v.d.settings.rescan; decide != nil {
		return decide()
	}
	n := len(sample)
	if n <= fewKeys || records < minRescan {
		return false
	}
	sortByKey(sample)
	if !scattered(v.d, rowRange(tableIndex, sample[0].key, sample[n-1].key), n) {
		return false
	}
	size, err := v.d.size(tableRange(tableIndex))
	return err == nil && uint64(size)/scanWorth < records
}

// values reads what a fetch asks for: the current versions of as many of the
// keys as fit into a frame, at least one. It returns how many keys are dealt with,
// how many entries the sink was given, and whether something that was offered could
// not be read.
func (v *server) values(keys [][]byte, to sink) (answered, entries int, incomplete bool, err error) {
	to.reset()
	snap, err := v.d.snapshot()
	if err != nil {
		return 0, 0, false, err
	}
	defer snap.Release()
	for ; answered < len(keys) && to.size() < maxPageBytes; answered++ {
		key := keys[answered]
		record, err := lookup(snap, key)
		if err == leveldb.ErrNotFound {
			continue // it was forgotten since
		}
		if err != nil {
			return 0, 0, false, err
		}
		e := entry{key: key, Version: record.Version}
		if !e.Deleted {
			e.value, err = snap.Get(key, nil)
			if err == leveldb.ErrNotFound {
				incomplete = true
				continue
			}
			if err != nil {
				return 0, 0, false, err
			}
		}
		if e.adopted() && !e.fits(valueHash(e.value)) {
			v.warn()
			continue
		}
		if to.size() > 0 && to.size()+len(e.value) > 2*maxPageBytes {
			break
		}
		to.add(&e)
		entries++
	}
	return answered, entries, incomplete, nil
}
