package replicator

import (
	"sync"
	"time"
)

// This file owns the first sync: how an empty replica takes in what a peer has, without
// writing a log of it.

// firstSync is the first pull of an empty replica, a scan in key order. What it brings is
// written without log rows, which saves a third of the work. Each of its batches raises
// the floor over its own rows, and over what was written meanwhile, so the log is empty
// behind it, and peers scan in key order. While it is under way they would find a part of
// the data only: they are shown the changes made here, and have to wait for the rest.
type firstSync struct {
	gained func() int64 // bytes that were received

	mu     sync.Mutex // guards what follows
	before int64      // received before the time
	at     time.Time
}

// beginFirst returns what lets the pages of a scan be merged without log rows, or nil if
// this replica has more than what a first sync has left, of which the scan may be the rest:
// that leaves a floor which is not that of records that have expired.
// One scan at a time may do so. If there is one already, it is so slow that the next one
// goes ahead, and both write log rows.
func (d *store) beginFirst(rest bool, gained func() int64) *firstSync {
	visible := &d.commits.visible
	rest = visible.floor.Load() > visible.expired.Load() && (rest && visible.records.Load() == 0 || !d.hasMerged())
	if d.adopter.running() || d.head() > 0 && !rest {
		return nil
	}
	first := &firstSync{gained: gained, at: time.Now()}
	if d.first.CompareAndSwap(nil, first) {
		return first
	}
	d.endFirst(d.first.Load())
	return nil
}

// hasMerged reports whether all of a peer's log was merged once.
func (d *store) hasMerged() bool {
	for _, record := range d.allPeers() {
		if c := record.place(); !c.checkpoint.isZero() {
			return true
		}
	}
	return false
}

// endFirst has a scan write log rows from now on, if it did not so far, and peers wait no
// longer.
func (d *store) endFirst(first *firstSync) {
	if first != nil && d.first.CompareAndSwap(first, nil) {
		d.notify(false)
	}
}

// awaitFirst returns how long to wait before asking again whether a first sync is over;
// 0: there is none. One that is too slow is not waited for.
func (d *store) awaitFirst(now time.Time) time.Duration {
	first := d.first.Load()
	if first == nil {
		return 0
	}
	left := first.lasts(now)
	if left == 0 {
		d.endFirst(first)
	}
	return left
}

// lasts returns until when the scan is fast enough, or 0.
func (f *firstSync) lasts(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if left := f.at.Add(turnTime).Sub(now); left > 0 {
		return left
	}
	gained := f.gained()
	if gained-f.before < turnBytes {
		return 0
	}
	f.at, f.before = now, gained
	return turnTime
}

// skipLog has the changes of the commit get no log rows. The log may have no gaps above
// its floor, so that rises over them, and the rows in between go.
func (x *section) skipLog() error {
	if x.records > 0 && x.floor <= x.start.head {
		log := newLogReader(x.d, x.floor-1, x.start.head)
		defer log.Release()
		for log.next() {
			x.drop(log.seq)
		}
		if err := log.fault(); err != nil {
			return err
		}
		if x.own > 0 {
			x.keepOwn()
		}
	}
	x.floor = x.head + 1
	x.put(metaKey(metaFloor), encodeUint64(x.floor))
	x.put(metaKey(metaBelow), encodeUint64(x.clock.next))
	return nil
}
