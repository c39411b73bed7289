package replicator

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync"
	"time"
)

// This file owns the expiration of the log: how far its floor rises, and the removal of
// the records below it.

const (
	// maxRaise is by how many records the floor rises at a time at most: they are read
	// for it.
	maxRaise = 50_000
	// sweptAtOnce is how many records are removed in one batch, and sweepPause the pause
	// after it. While somebody writes, a batch has twice as many as were written
	// meanwhile, up to maxSweptAtOnce: so the removal keeps up, and the writer hardly
	// waits for it.
	sweptAtOnce    = 500
	maxSweptAtOnce = 4000
	sweepPause     = 2 * time.Millisecond
	// compactAfter is after how many removed records leveldb is told to give their room
	// back, and compactPause the least time between two times. It is told of at most
	// compactAtOnce sequences at a time: it can't be told to stop, and Close waits for it.
	compactAfter  = 50_000
	compactPause  = time.Minute
	compactAtOnce = 1_000_000
	// While more than busyCommits records are committed from one look to the next, nothing
	// expires before one in busyShare of the greatest number of records has: a Sync and the
	// removal would cost the writers what they can be spared for now.
	busyCommits = 50
	busyShare   = 10
	// heldEvery is how many times as long as usual it takes until it is looked again, where
	// records are kept for a peer and nobody writes.
	heldEvery = 10
	// markPrecision is how many times in the age of records the time is noted.
	markPrecision = 16
	// expireRetry is how long after a failed read the expiration goes on.
	expireRetry = 10 * time.Second
)

// expirySettings say how much of the log is kept.
type expirySettings struct {
	records int           // greatest number of records
	age     time.Duration // of the oldest record that is kept; 0: any
	peerAge time.Duration // how long the log is kept for a peer that is not seen; 0: for ever
	newest  int           // how many of the newest records stay in any case, unless records is lower
	every   time.Duration // how often it is looked what has expired
}

// slack is how many records expire at a time at least: each time costs a Sync.
func (e *expirySettings) slack() int64 { return max(1, int64(min(e.newest, e.records))/10) }

// busySlack is slack while somebody writes much.
func (e *expirySettings) busySlack() int64 { return max(e.slack(), int64(e.records)/busyShare) }

// kept is how many of the newest records stay in any case.
func (e *expirySettings) kept() int64 { return min(int64(e.newest), int64(e.records)-e.slack()) }

// expiry is the state of the expiration. It belongs to one goroutine, but for marks.
type expiry struct {
	swept     uint64    // there are no records up to this sequence
	removed   int       // records since leveldb was told to give their room back
	given     uint64    // up to this sequence it was, or there was nothing to give
	compacted time.Time // when that was; zero: not since Open
	faulty    bool      // the last time something could not be read

	mu    sync.Mutex // guards marks
	marks []timeMark // in ascending order
}

// timeMark says that at a time the head was at a sequence: records up to it are at least
// that old.
type timeMark struct {
	seq uint64
	at  time.Time
}

func markKey(seq uint64) []byte { return sequenceKey(nil, tableTimes, seq) }

func (m timeMark) row() []byte { return binary.AppendUvarint(nil, uint64(m.at.UnixMilli())) }

// expire raises the floor as records expire, and removes what is below it.
func (d *store) expire(ctx context.Context) {
	commits := d.subscribe()
	defer d.unsubscribe(commits)
	for head := d.head(); ctx.Err() == nil; {
		now := d.head()
		busy := now-head > busyCommits
		head = now
		again, err := d.expireSome(ctx, time.Now(), busy)
		switch {
		case errors.Is(err, ErrFailed), errors.Is(err, ErrClosed):
			return
		case err != nil && ctx.Err() == nil && !d.expiry.faulty:
			d.settings.logger.Error("replicator: old log records could not be removed; it is tried again", "error", err)
		}
		if d.expiry.faulty = err != nil; err != nil {
			pause(ctx, expireRetry)
			continue
		}
		var timeout <-chan time.Time
		if again > 0 {
			timeout = time.After(again)
		}
		select {
		case <-ctx.Done():
		case <-timeout:
		case <-commits.wake:
			if again != atOnce {
				head = d.head()
				pause(ctx, d.settings.expiry.every)
			}
		}
	}
}

// atOnce says that there is more to do.
const atOnce = time.Nanosecond

// expireSome removes the records below the floor, and raises it over those that have
// expired. It returns when to look again, unless there is a commit before; 0: never.
func (d *store) expireSome(ctx context.Context, now time.Time, busy bool) (again time.Duration, err error) {
	o := &d.settings.expiry
	if err := d.sweep(ctx); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, nil // records may be left below the floor, and would be counted
	}
	marking, err := d.keepMarks(now)
	if err != nil {
		return 0, err
	}
	slack := o.slack()
	if busy {
		slack = o.busySlack()
	}
	raised, err := d.raiseFloor(now, slack)
	switch {
	case err != nil:
		return 0, err
	case raised:
		return atOnce, nil
	}
	giving, err := d.giveBack(ctx, now)
	if err != nil {
		return 0, err
	}
	most := d.commits.visible.records.Load() - o.kept()
	switch {
	case busy && most >= o.slack():
		return o.every, nil
	case giving || most >= o.slack():
		return heldEvery * o.every, nil
	case marking || o.age > 0 && most > 0:
		soon, _ := d.markAges()
		return max(soon/markPrecision, o.every), nil
	}
	return 0, nil
}

// raiseFloor raises the floor over some of the records that have expired, if they are not
// fewer than slack, and reports whether it did.
func (d *store) raiseFloor(now time.Time, slack int64) (raised bool, err error) {
	o, visible := &d.settings.expiry, &d.commits.visible
	records := visible.records.Load() // nothing is left below the floor
	most := records - o.kept()
	aged := d.agedBy(now, o.age)
	if most <= 0 || most < slack && aged == 0 {
		return false, nil
	}
	must := int64(0) // this many expire in any case
	if records > int64(o.records) {
		must = records - int64(o.records) + o.slack()
	}
	upTo := max(d.mergedBy(now), aged)
	last, n := uint64(0), int64(0)
	log := newLogReader(d, visible.floor.Load()-1, d.head())
	defer log.Release()
	for n < min(most, maxRaise) && log.Iterator.Next() {
		seq := rowSequence(log.Iterator.Key())
		if n >= must && seq > upTo {
			break
		}
		last = seq
		n++
	}
	if err := log.Iterator.Error(); err != nil {
		return false, err
	}
	if n == 0 || n < slack && must == 0 && last > aged {
		return false, nil
	}
	err = d.enter(true, func(x *section) error {
		// Some of the records may have been superseded and removed meanwhile. They were
		// counted, so that more than the newest would go.
		if raised = x.records-n >= o.kept() && last >= x.floor; raised {
			x.raiseFloor(last + 1)
		}
		return nil
	})
	return raised && err == nil, err
}

// raiseFloor raises the floor in a commit, which has to be with Sync: no record below it
// may be removed before that is durable. A power cut that took the floor and left the
// removal would leave a log with gaps.
//
// After a kill, nothing below the floor tells of clocks and of own changes. So both are
// noted.
func (x *section) raiseFloor(to uint64) {
	x.floor = to
	x.expired = to
	x.put(metaKey(metaFloor), encodeUint64(to))
	x.put(metaKey(metaExpired), encodeUint64(to))
	x.put(metaKey(metaBelow), encodeUint64(x.clock.next))
	if x.own > 0 {
		x.keepOwn()
	}
}

// sweep removes the records below the floor, which are no longer served.
func (d *store) sweep(ctx context.Context) error {
	size, head := sweptAtOnce, d.head()
	for ctx.Err() == nil {
		n, err := d.sweepSome(size)
		if err != nil || n < size {
			return err
		}
		pause(ctx, sweepPause)
		now := d.head()
		size, head = int(min(max(2*(now-head), sweptAtOnce), maxSweptAtOnce)), now
	}
	return nil
}

// sweepSome removes the first records below the floor, and returns how many. It goes on
// where it has come to before, because leveldb would have to step over every removed
// record.
func (d *store) sweepSome(size int) (n int, err error) {
	e, floor := &d.expiry, d.commits.visible.floor.Load()
	if e.swept+1 >= floor {
		return 0, nil
	}
	old := make([]uint64, 0, size)
	it := d.NewIterator(logRange(e.swept, floor-1), nil)
	for len(old) < size && it.Next() {
		old = append(old, rowSequence(it.Key()))
	}
	it.Release()
	if err := it.Error(); err != nil {
		return 0, err
	}
	swept := floor - 1
	if len(old) == size {
		swept = old[size-1]
	}
	if len(old) > 0 {
		err = d.enter(false, func(x *section) error {
			for _, seq := range old {
				x.drop(seq)
			}
			return nil
		})
	}
	if err == nil && len(old) > 0 {
		if e.removed == 0 {
			e.given = old[0] - 1
		}
		e.removed += len(old)
	}
	if err == nil {
		e.swept = swept
	}
	return len(old), err
}

// giveBack has leveldb give back the room of removed records, now and then, and reports
// whether that is yet to be done. Otherwise they would stay in tables that nothing
// touches, and reading across them would be slow.
func (d *store) giveBack(ctx context.Context, now time.Time) (due bool, err error) {
	e := &d.expiry
	if e.removed < compactAfter {
		return false, nil
	}
	if now.Sub(e.compacted) < compactPause {
		return true, nil
	}
	e.removed, e.compacted = 0, now
	for e.given < e.swept && ctx.Err() == nil {
		to := min(e.given+compactAtOnce, e.swept)
		if err := d.compact(logRange(e.given, to)); err != nil {
			return false, err
		}
		e.given = to
	}
	return false, nil
}

// delayer is a peer for which the log is kept.
type delayer struct {
	id     DatabaseID
	name   string
	merged uint64 // sequence up to which it has merged the log; 0: it has yet to say
	seen   time.Time
}

// heldBy returns the peer that is waited for and has merged least; nil: there is none.
func (d *store) heldBy(now time.Time) (least *delayer) {
	id := d.id()
	for peer, record := range d.allPeers() {
		if h := record.delays(peer, id, now, d.settings.expiry.peerAge); h != nil && (least == nil || h.merged < least.merged) {
			least = h
		}
	}
	return least
}

// mergedBy returns up to where every peer that is waited for has merged the log.
func (d *store) mergedBy(now time.Time) uint64 {
	if h := d.heldBy(now); h != nil {
		return h.merged
	}
	return math.MaxUint64
}

// agedBy returns the sequence up to which records are of an age; 0, if the age is 0.
func (d *store) agedBy(now time.Time, age time.Duration) (seq uint64) {
	if age == 0 {
		return 0
	}
	d.expiry.mu.Lock()
	defer d.expiry.mu.Unlock()
	for _, m := range d.expiry.marks {
		if now.Sub(m.at) >= age {
			seq = m.seq
		}
	}
	return seq
}

// markAges returns the ages that the marks have to tell, the sooner one first; 0: none.
func (d *store) markAges() (soon, late time.Duration) {
	log, tombstones := d.settings.expiry.age, d.settings.tombstoneAge
	if log == 0 || tombstones == 0 {
		return max(log, tombstones), max(log, tombstones)
	}
	return min(log, tombstones), max(log, tombstones)
}

// keepMarks marks where the head is now, as often as it takes to tell how old a record
// is, and drops the marks that are no longer of use. It reports whether a mark is due
// later.
func (d *store) keepMarks(now time.Time) (due bool, err error) {
	e := &d.expiry
	soon, late := d.markAges()
	if soon == 0 {
		return false, nil
	}
	e.mu.Lock()
	marks := slices.Clone(e.marks)
	e.mu.Unlock()
	last := timeMark{}
	if len(marks) > 0 {
		last = marks[len(marks)-1]
	}
	if d.head() == last.seq {
		return false, nil
	}
	if passed := now.Sub(last.at); passed >= 0 && passed < soon/markPrecision {
		return true, nil
	}
	err = d.enter(false, func(x *section) error {
		m := timeMark{x.head, now}
		drop := func(i int) {
			x.batch.Delete(markKey(marks[i].seq))
			marks = slices.Delete(marks, i, i+1)
		}
		for len(marks) > 1 && now.Sub(marks[1].at) >= late {
			drop(0)
		}
		// What is past the sooner age is noted as finely as the later one needs.
		for i := 1; i+1 < len(marks) && now.Sub(marks[i+1].at) >= soon; {
			if marks[i+1].at.Sub(marks[i-1].at) < late/markPrecision {
				drop(i)
			} else {
				i++
			}
		}
		x.put(markKey(m.seq), m.row())
		marks = append(marks, m)
		return nil
	})
	if err == nil {
		e.mu.Lock()
		e.marks = marks
		e.mu.Unlock()
	}
	return false, err
}

// loadMarks reads the marks of times.
func loadMarks(db reader) (marks []timeMark, err error) {
	err = readNumbered(db, tableTimes, "time of a sequence", func(name uint64, r *decoder) {
		marks = append(marks, timeMark{name, time.UnixMilli(int64(r.uvarint()))})
	})
	return marks, err
}
