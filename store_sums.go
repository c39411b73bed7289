package replicator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"maps"
	"sort"
	"sync/atomic"
	"time"
)

// This file owns the sums of the index: of some thousand stretches of it, from which the
// fingerprint of every range follows, and that of all live keys.

const (
	// maxStretches and maxStretchBytes bound the stretches, and the keys that they begin
	// with.
	maxStretches    = 8192
	maxStretchBytes = 4 << 20
	// sumsFor is for how long a comparison rests on sums that were made by reading the
	// whole index. Later ones follow from the log, which tells where records changed.
	// It is also how often the fingerprint of the live keys is brought up to date at most.
	sumsFor = time.Minute
)

// stretch is a part of the index, from one key on.
type stretch struct {
	start     []byte // above all keys of the stretch before; nil: this is the first one
	rank      int    // keyRank of the key that it was begun for
	all, live tally  // of its records, and of those that are not of deleted keys
}

func (s *stretch) add(t *stretch) {
	s.all.add(t.all)
	s.live.add(t.live)
}

// stretches are the sums of the whole index as of one head. They do not change.
type stretches struct {
	head    uint64
	removed uint64    // number of the removals by then
	scanned time.Time // when the whole index was last read for them
	level   int       // rank of the keys that begin a stretch
	list    []stretch // at least one
}

// sums keeps the latest stretches.
//
// They are brought up to date from the log. So whoever changes an index row without a
// log row has to call forget.
type sums struct {
	making turn        // held while they are brought up to date
	made   *stretches  // nil: there are none; guarded by making
	stale  atomic.Bool // what is made does not count

	live   atomic.Pointer[livePrint]
	wanted chan struct{} // holds a value if that is to be brought up to date
}

// livePrint is the fingerprint of the live keys as of a head.
type livePrint struct {
	fingerprint
	keys uint64
	head uint64
	at   time.Time
}

func newSums() sums { return sums{making: make(turn, 1), wanted: make(chan struct{}, 1)} }

// forget has the whole index read for the next sums.
func (s *sums) forget() { s.stale.Store(true) }

// sumsView is one state of the index, with its sums. It must be released.
type sumsView struct {
	moment
	*stretches
	merged position // up to which a peer's log is merged, if it is
	reaped vector   // what was reaped
}

// viewSums takes a snapshot between two commits, with the sums of its index. record may
// be nil.
func (d *store) viewSums(ctx context.Context, record *peerRecord) (*sumsView, error) {
	return d.viewSumsSince(ctx, record, time.Now().Add(-sumsFor))
}

// viewSumsSince is viewSums. It rests on an earlier reading of the whole index, if there
// was one since a time.
func (d *store) viewSumsSince(ctx context.Context, record *peerRecord, since time.Time) (*sumsView, error) {
	select {
	case d.sums.making <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer d.sums.making.giveBack()
	v := &sumsView{}
	removed := uint64(0)
	err := d.enter(false, func(x *section) error {
		removed, v.reaped = x.removals, maps.Clone(d.known.reaped)
		if record != nil { // before the snapshot, which may be ahead of it
			if c := record.place(); c.joined {
				v.merged = c.checkpoint
			}
		}
		return x.moment(&v.moment, 0)
	})
	if err != nil {
		return nil, err
	}
	before := d.sums.made
	if d.sums.stale.Swap(false) || before == nil || before.scanned.Before(since) || before.removed != removed || !before.reaches(v.to.seq, v.floor) {
		before = nil
	}
	if v.stretches, err = sumUp(ctx, v.snapshot, before, v.to.seq); err != nil {
		v.Release()
		d.sums.forget()
		return nil, err
	}
	v.stretches.removed = removed
	d.sums.made = v.stretches
	all := v.whole()
	d.sums.live.Store(&livePrint{all.live.fingerprint(), all.live.n, v.to.seq, time.Now()})
	return v, nil
}

// keepLive brings the fingerprint of the live keys up to date when that is wanted.
func (d *store) keepLive(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.sums.wanted:
		}
		if v, err := d.viewSumsSince(ctx, nil, time.Time{}); err == nil {
			v.Release()
		}
	}
}

// livePrint returns the fingerprint of the live keys as it was made last; nil: it is not
// known. If that was too long ago, it has it brought up to date.
func (d *store) livePrint() *livePrint {
	if d.adopter.running() {
		return nil
	}
	live := d.sums.live.Load()
	if live == nil || live.head != d.head() && time.Since(live.at) >= sumsFor {
		signal(d.sums.wanted)
	}
	return live
}

// reaches reports whether the log tells of what changed up to a head, and of less than
// the index has.
func (s *stretches) reaches(head, floor uint64) bool {
	all := s.whole()
	return s.head <= head && s.head+1 >= floor && head-s.head <= all.all.n/2+1000
}

// whole returns the sums of all stretches.
func (s *stretches) whole() (all stretch) {
	for i := range s.list {
		all.add(&s.list[i])
	}
	return all
}

// end returns where a stretch ends; nil: at the end.
func (s *stretches) end(i int) []byte {
	if i+1 < len(s.list) {
		return s.list[i+1].start
	}
	return nil
}

// rangeOf returns the keys of the stretches from one to another, which is excluded.
func (s *stretches) rangeOf(from, to int) keyRange {
	return keyRange{s.list[from].start, s.end(to - 1)}
}

// find returns the index of the stretch that a key belongs to.
func (s *stretches) find(key []byte) int {
	return sort.Search(len(s.list), func(i int) bool { return i > 0 && bytes.Compare(s.list[i].start, key) > 0 }) - 1
}

// sumUp returns the sums of the index up to a head. If there are earlier ones from which
// the log goes on, it reads what changed since.
func sumUp(ctx context.Context, db reader, before *stretches, head uint64) (*stretches, error) {
	b := &stretchBuilder{}
	if before == nil {
		scanned := time.Now()
		b.begin(&stretch{})
		err := b.read(ctx, db, keyRange{})
		return &stretches{head: head, scanned: scanned, level: b.level, list: b.list}, err
	}
	dirty := map[int]bool{}
	log := newLogReader(db, before.head, head)
	defer log.Release()
	for n := 1; log.next(); n++ {
		if n%1000 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		dirty[before.find(log.key)] = true
	}
	if err := log.fault(); err != nil {
		return nil, err
	}
	if len(dirty) == 0 {
		return &stretches{head: head, scanned: before.scanned, level: before.level, list: before.list}, nil
	}
	b.level = before.level
	for i := range before.list {
		s := &before.list[i]
		if !dirty[i] {
			b.take(s)
			continue
		}
		b.begin(s)
		if err := b.read(ctx, db, before.rangeOf(i, i+1)); err != nil {
			return nil, err
		}
	}
	return &stretches{head: head, scanned: before.scanned, level: b.level, list: b.list}, nil
}

// stretchBuilder makes stretches in ascending order.
type stretchBuilder struct {
	level int
	list  []stretch
	bytes int // of where they start
}

// take adds a stretch as it is.
func (b *stretchBuilder) take(s *stretch) {
	if len(b.list) > 0 && s.rank < b.level {
		b.list[len(b.list)-1].add(s)
		return
	}
	b.push(*s)
}

// begin adds a stretch that begins where another one does, and has nothing yet.
func (b *stretchBuilder) begin(s *stretch) { b.take(&stretch{start: s.start, rank: s.rank}) }

func (b *stretchBuilder) push(s stretch) {
	b.list = append(b.list, s)
	b.bytes += len(s.start)
	for len(b.list) > maxStretches || b.bytes > maxStretchBytes && len(b.list) > 1 {
		b.coarsen()
	}
}

// coarsen makes the stretches longer.
func (b *stretchBuilder) coarsen() {
	b.level++
	kept := b.list[:1]
	b.bytes = 0
	for i := range b.list[1:] {
		if s := &b.list[i+1]; s.rank < b.level {
			kept[len(kept)-1].add(s)
		} else {
			kept = append(kept, *s)
			b.bytes += len(s.start)
		}
	}
	clear(b.list[len(kept):])
	b.list = kept
}

// read adds the records of a range, which begins with the last stretch.
func (b *stretchBuilder) read(ctx context.Context, db reader, r keyRange) error {
	var last []byte
	any := false
	return readRange(ctx, db, r, func(key []byte, record *indexRecord, hash sum) error {
		if rank := keyRank(key); any && rank >= b.level {
			b.push(stretch{start: separator(last, key), rank: rank})
		}
		any = true
		last = append(last[:0], key...)
		s := &b.list[len(b.list)-1]
		t := tally{1, hash}
		s.all.add(t)
		if !record.Deleted {
			s.live.add(t)
		}
		return nil
	})
}

// readRange calls visit for the records of a range, in ascending order, with what each
// adds to a sum. The arguments are valid until visit returns; an error of visit ends the
// reading.
func readRange(ctx context.Context, db reader, r keyRange, visit func(key []byte, record *indexRecord, hash sum) error) error {
	if r.isEmpty() {
		return nil
	}
	index := newRangeReader(db, r)
	defer index.Release()
	var buf []byte
	for n := 1; index.next(); n++ {
		if n%1000 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		buf = appendBytes(appendVersion(buf[:0], index.record.Version), index.key)
		if err := visit(index.key, &index.record, hashSum(sha256.Sum256(buf))); err != nil {
			return err
		}
	}
	return index.fault()
}

// tally counts the records of a range: of the stretches that lie in it as they were
// summed, and of the others what is in it.
func (v *sumsView) tally(ctx context.Context, r keyRange) (t tally, err error) {
	count := func(r keyRange) {
		if err == nil {
			err = readRange(ctx, v, r, func(_ []byte, _ *indexRecord, hash sum) error {
				t.add(tally{1, hash})
				return nil
			})
		}
	}
	if r.isEmpty() {
		return t, nil
	}
	first := sort.Search(len(v.list), func(i int) bool { return bytes.Compare(v.list[i].start, r.lower) >= 0 })
	last := len(v.list) // one behind the last whole stretch
	if r.upper != nil {
		last = v.find(r.upper)
	}
	if first >= last {
		count(r)
		return t, err
	}
	if first > 0 {
		count(keyRange{r.lower, v.list[first].start})
	}
	for i := first; i < last; i++ {
		t.add(v.list[i].all)
	}
	if last < len(v.list) {
		count(keyRange{v.list[last].start, r.upper})
	}
	return t, err
}

// parts cuts the stretches from one to another, which is excluded, into at most n parts
// of about the same number of records. It returns where they begin, and the end.
func (s *stretches) parts(from, to, n int) []int {
	total := uint64(0)
	for i := from; i < to; i++ {
		total += s.list[i].all.n
	}
	cuts := []int{from}
	done := uint64(0)
	for i := from; i < to; i++ {
		if i > cuts[len(cuts)-1] && len(cuts) < n && done*uint64(n) >= total*uint64(len(cuts)) {
			cuts = append(cuts, i)
		}
		done += s.list[i].all.n
	}
	if len(cuts) == 1 && to-from > 1 { // one of them has nearly all records
		cuts = append(cuts, (from+to)/2)
	}
	return append(cuts, to)
}
