package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// This file owns comparisons: how two replicas find, by fingerprints, the keys in which
// their indexes differ. It knows of the other side only what is asked and replied.

// comparer answers the questions of a peer. It is used by one goroutine.
type comparer struct {
	d      *store
	record *peerRecord // of the peer
	view   *sumsView   // nil: there is no comparison
	merged position    // up to which the peer has merged this replica's log
	began  time.Time
	asked  time.Time

	rejoins uint64 // number of them when the view was taken
}

func (c *comparer) release() {
	if c.view != nil {
		c.view.Release()
		c.view = nil
	}
}

// expire gives the snapshot back if it was kept for too long, and returns when to look
// again; 0: there is none. What a scan may keep, a comparison may.
func (c *comparer) expire(now time.Time) time.Duration {
	if c.view == nil {
		return 0
	}
	left := min(c.asked.Add(scanIdle).Sub(now), c.began.Add(scanLife).Sub(now))
	if left <= 0 {
		c.release()
		return 0
	}
	return left
}

// answer answers a question, with entries that it gives to the sink, and returns the
// number of these.
func (c *comparer) answer(ctx context.Context, q *question, to sink) (r reply, entries int, err error) {
	to.reset()
	if c.d.adopter.running() {
		c.release()
		return reply{obstacle: obstacleAdopting}, 0, nil
	}
	if q.first {
		c.release()
		c.rejoins = c.d.rejoins.Load()
		if c.view, err = c.d.viewSums(ctx, c.record); err != nil {
			return r, 0, err
		}
		c.merged, c.began = q.merged, time.Now()
		r.first, r.to, r.merged, r.vector, r.heard, r.reaped = true, c.view.to, c.view.merged, c.view.vector, c.view.heard, c.view.reaped.stamps()
	}
	if c.view != nil && c.rejoins != c.d.rejoins.Load() {
		c.release() // it shows what was dropped since
	}
	if c.view == nil {
		return reply{obstacle: obstacleOver}, 0, nil
	}
	defer func() { c.asked = time.Now() }()
	data := newWalker(c.view, nil)
	defer data.release()
	for i := range q.ranges {
		asked := &q.ranges[i]
		here, err := c.view.tally(ctx, asked.keyRange)
		if err != nil {
			return r, 0, err
		}
		switch {
		case here.n == asked.n && (here.n == 0 || here.fingerprint() == asked.print):
			r.findings = append(r.findings, findingSame)
			continue
		case here.n > fewRecords && asked.n > fewRecords:
			r.findings = append(r.findings, findingDiffers)
			continue
		}
		if entries >= c.d.settings.pageEntries || to.size() >= maxPageBytes {
			break // there is at least one finding
		}
		r.findings = append(r.findings, findingRecords)
		if entries, err = c.tell(&r, asked, q.values && here.n > 2*asked.n, data, entries, to); err != nil {
			return r, 0, err
		}
		if r.part {
			break
		}
	}
	return r, entries, nil
}

// tell gives the records of a range to the sink, as many as there is room for.
func (c *comparer) tell(r *reply, asked *rangeQuestion, values bool, data *walker, entries int, to sink) (int, error) {
	if asked.isEmpty() {
		return entries, nil
	}
	index := newRangeReader(c.view, asked.keyRange)
	defer index.Release()
	for index.next() {
		if entries >= c.d.settings.pageEntries || to.size() >= maxPageBytes {
			r.part = true
			return entries, nil
		}
		e := entry{key: index.key, Version: index.record.Version, later: !c.merged.isZero() && index.record.seq > c.merged.seq}
		if !e.Deleted {
			here := data.find(index.key)
			if here {
				e.value = data.Value()
			}
			// Before a value that was adopted, the adoption has to be told. One that is
			// missing is told of when it is fetched.
			if e.absent = !here || !values || len(e.value) > inlineSize || e.adopted(); e.absent {
				e.size = uint64(len(e.value))
			}
		}
		to.add(&e)
		entries++
		r.key = append(r.key[:0], index.key...)
	}
	return entries, firstError(index.fault(), data.Error())
}

// pair is a key of which two replicas do not have the same version.
type pair struct {
	key     []byte
	here    indexRecord
	isHere  bool // here is something
	there   entry
	isThere bool // there is something there
}

// isLater reports whether the version here is above the one there, or the only one.
func (p *pair) isLater() bool {
	return !p.isThere || p.isHere && p.here.Compare(p.there.Version) > 0
}

// comparison finds the keys in which a peer differs, by asking it. It believes no vector.
type comparison struct {
	d      *store
	values bool // the peer sends small values along where most is missing here
	view   *sumsView
	ask    func(*question) (*reply, error)
	// found is called with keys that are not the same, in ascending order.
	found func([]pair) error

	peer  *reply // the last one to a first question
	moved bool   // the peer has begun with another snapshot than the first
	todo  []piece
	pairs []pair
	known struct{ here, there vector } // with what was reaped
}

// piece is a range that is yet to be asked about. If it is made of whole stretches, from
// and to tell which.
type piece struct {
	rangeQuestion
	from, to int
}

const (
	// splitIn is in how many parts a range that differs is asked about.
	splitIn = 16
	// maxQuestionBytes bounds the keys of a question, which leaves room in its frame.
	maxQuestionBytes = 256 << 10
)

// errAdopting says that the index does not have all keys yet.
var errAdopting = errors.New("replicator: keys that a database held before it was wrapped are still being adopted: try again when Status().Adoption is done, here and at the peer")

// run compares the whole index.
func (c *comparison) run(ctx context.Context) error {
	c.known.here = vectorFrom(c.view.vector)
	c.known.here.join(c.view.reaped.stamps())
	c.add(c.view.stretchPieces(0, len(c.view.list), maxRanges))
	for first := true; len(c.todo) > 0; {
		q := c.next(first)
		r, err := c.ask(q)
		if err != nil {
			return err
		}
		if err := r.check(q); err != nil {
			return err
		}
		switch r.obstacle {
		case obstacleAdopting:
			return errAdopting
		case obstacleOver:
			first, c.moved = true, true
			continue
		}
		if first = false; r.first {
			c.peer = r
			c.known.there = vectorFrom(r.vector)
			c.known.there.join(r.reaped)
		}
		if err := c.take(ctx, q, r); err != nil {
			return err
		}
	}
	return nil
}

// add has pieces, in ascending order, asked about next.
func (c *comparison) add(pieces []piece) {
	slices.Reverse(pieces)
	c.todo = append(c.todo, pieces...)
}

// next returns a question about the next pieces, which stay.
func (c *comparison) next(first bool) *question {
	q := &question{first: first, values: c.values}
	if first {
		q.merged = c.view.merged
	}
	for size := 0; len(q.ranges) < min(maxRanges, len(c.todo)); {
		p := &c.todo[len(c.todo)-1-len(q.ranges)]
		if size += len(p.lower) + len(p.upper); len(q.ranges) > 0 && size > maxQuestionBytes {
			break
		}
		q.ranges = append(q.ranges, p.rangeQuestion)
	}
	return q
}

// take takes in what a reply says of the first pieces.
func (c *comparison) take(ctx context.Context, q *question, r *reply) error {
	n := len(r.findings)
	done := slices.Clone(c.todo[len(c.todo)-n:])
	slices.Reverse(done)
	c.todo = c.todo[:len(c.todo)-n]
	rest := r.entries
	var again []piece
	for i := range done {
		p := &done[i]
		switch r.findings[i] {
		case findingDiffers:
			parts, err := c.split(ctx, p)
			if err != nil {
				return err
			}
			again = append(again, parts...)
		case findingRecords:
			within := p.keyRange
			if r.part && i == n-1 {
				within.upper = append(bytes.Clone(r.key), 0)
				left, err := c.view.piece(ctx, p.behind(r.key))
				if err != nil {
					return err
				}
				again = append(again, left)
			}
			k := 0
			for k < len(rest) && within.contains(rest[k].key) {
				k++
			}
			if err := c.pair(within, rest[:k]); err != nil {
				return err
			}
			rest = rest[k:]
		}
	}
	c.add(again)
	return c.flush()
}

// pair finds the keys of a range that are not the same here and among entries.
func (c *comparison) pair(r keyRange, there []entry) error {
	emit := func(p pair) error {
		if c.pairs = append(c.pairs, p); len(c.pairs) >= maxPageEntries {
			return c.flush()
		}
		return nil
	}
	only := func(below []byte, all bool) error {
		for len(there) > 0 && (all || bytes.Compare(there[0].key, below) < 0) {
			if err := emit(pair{key: there[0].key, there: there[0], isThere: true}); err != nil {
				return err
			}
			there = there[1:]
		}
		return nil
	}
	if r.isEmpty() {
		return nil
	}
	index := newRangeReader(c.view, r)
	defer index.Release()
	for index.next() {
		if err := only(index.key, false); err != nil {
			return err
		}
		p := pair{here: index.record, isHere: true}
		if len(there) > 0 && bytes.Equal(there[0].key, index.key) {
			p.there, p.isThere = there[0], true
			there = there[1:]
		}
		if p.isThere && p.there.Version == p.here.Version {
			continue
		}
		p.key = bytes.Clone(index.key)
		if err := emit(p); err != nil {
			return err
		}
	}
	return firstError(index.fault(), only(nil, true))
}

// flush hands on what was found.
func (c *comparison) flush() error {
	pairs := c.pairs
	c.pairs = nil
	if len(pairs) == 0 {
		return nil
	}
	return c.found(pairs)
}

// isMoot reports whether a pair is no difference: the one side lacks a deletion only, and
// has seen it, or reaped it.
func (c *comparison) isMoot(p *pair) bool {
	switch {
	case !p.isHere:
		return p.there.Deleted && c.known.here.covers(p.there.Stamp)
	case !p.isThere:
		return p.here.Deleted && c.known.there.covers(p.here.Stamp)
	}
	return false
}

// isUnderWay reports whether the later version of a pair was made after what the other
// side had merged by then: it is no difference yet. Without a place up to which that is,
// nothing is under way.
func (c *comparison) isUnderWay(p *pair) bool {
	if p.isLater() {
		return !c.peer.merged.isZero() && p.here.seq > c.peer.merged.seq
	}
	return p.there.later
}

// split cuts a range that differs into parts.
func (c *comparison) split(ctx context.Context, p *piece) ([]piece, error) {
	if p.to-p.from > 1 {
		return c.view.stretchPieces(p.from, p.to, splitIn), nil
	}
	each := (p.n + splitIn - 1) / splitIn
	var parts []piece
	var last []byte
	var t tally
	lower := p.lower
	cut := func(upper []byte) {
		parts = append(parts, piece{rangeQuestion: ask(keyRange{lower, upper}, t)})
		lower, t = upper, tally{}
	}
	err := readRange(ctx, c.view, p.keyRange, func(key []byte, _ *indexRecord, hash sum) error {
		if t.n == each {
			cut(separator(last, key))
		}
		t.add(tally{1, hash})
		last = append(last[:0], key...)
		return nil
	})
	cut(p.upper)
	if err == nil && len(parts) == 1 {
		err = fmt.Errorf("%w: comparison: %d records could not be split", errCorrupt, p.n)
	}
	return parts, err
}

// ask returns what is asked about a range.
func ask(r keyRange, here tally) rangeQuestion {
	q := rangeQuestion{keyRange: r, n: here.n}
	if here.n > 0 {
		q.print = here.fingerprint()
	}
	return q
}

// stretchPieces returns at most n pieces of some stretches.
func (v *sumsView) stretchPieces(from, to, n int) (pieces []piece) {
	cuts := v.parts(from, to, n)
	for i := range cuts[1:] {
		p := piece{from: cuts[i], to: cuts[i+1]}
		var t tally
		for j := p.from; j < p.to; j++ {
			t.add(v.list[j].all)
		}
		p.rangeQuestion = ask(v.rangeOf(p.from, p.to), t)
		pieces = append(pieces, p)
	}
	return pieces
}

// piece returns the piece of any range.
func (v *sumsView) piece(ctx context.Context, r keyRange) (piece, error) {
	t, err := v.tally(ctx, r)
	return piece{rangeQuestion: ask(r, t)}, err
}

// endRecovery notes that everything that a peer has is merged into files that were
// recovered.
func (d *store) endRecovery(p *progress) error {
	err := d.enter(false, func(x *section) error {
		if err := p.check(); err != nil {
			return err
		}
		top := greatest(p.witness)
		if err := x.reserve(top); err != nil {
			return err
		}
		x.clock.witness(top)
		if err := x.join(p.join); err != nil {
			return err
		}
		p.record.advanced(x, p.id, p.next)
		x.batch.Delete(metaKey(metaRecovered))
		return nil
	})
	if err == nil {
		d.recovered.Store(false)
	}
	return err
}
