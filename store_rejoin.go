package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what a rejoin does to the database: how a replica that has not seen
// deletions which were reaped elsewhere becomes one that has.

// rejoin is one that is under way. Where a key is on one side only, the vectors tell
// whether the other side had it once, and deleted it, or never saw it.
//
// Nothing is dropped before the end, and then in one batch, with the vector, the reap
// vector and the checkpoint. So one that is cut off has merged some entries, and changed
// nothing else: it is repeated. Nobody else's entries are merged meanwhile: they would
// not be judged.
type rejoin struct {
	d           *store
	keepAdopted bool // old values that only one side has are kept

	view          *sumsView
	known, reaped vector // of this replica, as of the view
	begun         uint64 // clock of the next change before the view was taken
	done          chan struct{}

	peer struct { // of its snapshot
		seen          bool
		known, reaped vector
		to            position
	}

	drops, puts []judged
	taken       Rejoined // what came of the peer's entries
	doubted     bool     // an old value goes that nobody may have deleted
}

// judged is a record here, of which the peer has nothing, or a belated deletion.
type judged struct {
	key     []byte
	version Version
	size    int     // of the value
	there   Version // the deletion; zero: nothing
}

// Rejoined tells what a rejoin did. It counts keys.
type Rejoined struct {
	Merged   int `json:"merged"`   // came from the peer, to be merged as in ordinary replication
	Dropped  int `json:"dropped"`  // removed here, for they were deleted in the meantime
	Kept     int `json:"kept"`     // kept, although the peer has nothing: they are new to it
	PutAgain int `json:"putAgain"` // kept as a new change, because the old one could be taken for one that was deleted
}

// beginRejoin has nobody else's entries be merged, and takes a view of the index. The own
// clock rises above all that the peer knows: so what is written here meanwhile is above
// everything that was reaped there. It must be ended with end.
func (d *store) beginRejoin(ctx context.Context, keepAdopted bool, told []Stamp) (*rejoin, error) {
	j := &rejoin{d: d, keepAdopted: keepAdopted, done: make(chan struct{})}
	if d.adopter.running() {
		return nil, errAdopting
	}
	err := d.enter(false, func(x *section) error {
		if d.rejoining.Load() != nil {
			return errRejoining
		}
		if top := greatest(told); len(told) > 0 {
			if err := x.reserve(top); err != nil {
				return err
			}
			x.clock.witness(top)
		}
		j.begun = x.clock.next
		d.rejoining.Store(j)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if j.view, err = d.viewSums(ctx, nil); err != nil {
		j.end()
		return nil, err
	}
	j.known, j.reaped = vectorFrom(j.view.vector), j.view.reaped
	return j, nil
}

// end lets others merge again.
func (j *rejoin) end() {
	if j.view != nil {
		j.view.Release()
	}
	if j.d.rejoining.CompareAndSwap(j, nil) {
		close(j.done)
		j.d.notify(false)
	}
}

// awaitRejoin waits until no rejoin is under way.
func (d *store) awaitRejoin(ctx context.Context) error {
	d.unmerged.Add(1)
	defer d.unmerged.Add(-1)
	for j := d.rejoining.Load(); j != nil; j = d.rejoining.Load() {
		select {
		case <-j.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// meets takes in what the peer's snapshot is of.
func (j *rejoin) meets(r *reply) error {
	p := &j.peer
	if p.seen {
		return errOvertaken // the rest would be of another snapshot
	}
	p.seen, p.known, p.reaped, p.to = true, vectorFrom(r.vector), vectorFrom(r.reaped), r.to
	if greatest(r.reaped) >= j.begun && len(r.reaped) > 0 {
		return errOvertaken // it has reaped later changes than it had told of
	}
	return nil
}

var errOvertaken = errors.New("replicator: the peer has moved on while this replica rejoined: try again")

// isReaped reports whether a clock is not above what was reaped.
func isReaped(clock uint64, reaped vector) bool {
	for _, c := range reaped {
		if clock <= c {
			return true
		}
	}
	return false
}

// hadOnce reports whether this replica has had an entry of the peer's that it has nothing
// of: it was deleted here. No vector covers an old value. It is one of which all were here
// once, if the vector covers all adoptions; else nobody knows, unless the peer has seen
// all deletions that were reaped here: that it was is then assumed, in doubt.
func (j *rejoin) hadOnce(v Version) (had, doubted bool) {
	switch {
	case !v.adopted():
		return j.known.covers(v.Stamp), false
	case j.hadAllOld(j.known):
		return true, false
	}
	doubted = len(j.reaped) > 0 && !j.peer.known.includes(j.reaped) && !j.keepAdopted
	return doubted, doubted
}

// hadAllOld reports whether who knows so much has had all old values.
func (j *rejoin) hadAllOld(known vector) bool {
	adopted, _ := j.d.known.adoptions()
	return adopted.covered(known)
}

// isBelated reports whether a deletion is as good as nothing beside a later value: the side that
// has it may have deleted the key once more, later than the value, and have forgotten that,
// before it learned of this deletion from elsewhere.
func isBelated(deletion, value Version, reaped vector) bool {
	return deletion.Deleted && !value.Deleted && isReaped(value.Clock, reaped)
}

// judge decides of entries that won because nothing is here, or a belated deletion. It is
// called in the commit section, and returns how many are put again.
func (c *candidates) judge(x *section) (puts uint64) {
	if c.giver == nil || c.giver.rejoin == nil {
		return 0
	}
	j := c.giver.rejoin
	c.again = make([]bool, len(c.entries))
	for i := range c.entries {
		e := &c.entries[i]
		if !c.wins[i] || c.local[i].found && !isBelated(c.local[i].Version, e.Version, j.reaped) {
			continue
		}
		had, doubted := j.hadOnce(e.Version)
		j.doubted = j.doubted || doubted
		switch {
		case had:
			c.wins[i] = false
		case !e.Deleted && isReaped(e.Clock, j.reaped):
			c.again[i] = true
			puts++
		}
	}
	return puts
}

// putAgain makes a change of one's own of what is there.
func (x *section) putAgain(ch change) {
	ch.Version = Version{Stamp: Stamp{x.clock.next, x.origin}}
	x.add(ch)
	x.clock.next++
	x.own = x.clock.next
}

// forgo drops a record, or has the peer's deletion take its place.
func (x *section) forgo(r *judged, here *indexRecord) {
	if !r.there.Deleted {
		x.remove(r.key, here)
		return
	}
	x.now = time.Now()
	x.add(change{key: r.key, Version: r.there, old: here.seq, merged: true})
	x.keepOwnOf(here)
}

// doubt has old values be offered to everybody anew, for some go that nobody may have
// deleted. Who has seen all deletions that were forgotten, and still has them, is right. They
// may stand below the checkpoint, so the logs of all but one peer are read from the beginning.
func (x *section) doubt(but *peerRecord) {
	x.learn(adoptions{inDoubt: Stamp{}})
	for id, record := range x.d.allPeers() {
		if record != but {
			record.restart(x, id)
		}
	}
}

// find takes in pairs of which the two sides have not the same, and returns the entries
// that are to be merged.
func (j *rejoin) find(pairs []pair) (take []entry, err error) {
	for i := range pairs {
		p := &pairs[i]
		switch {
		case p.isThere && p.isLater() && !isBelated(p.there.Version, p.here.Version, j.peer.reaped):
			// The peer will pull it.
		case p.isLater():
			if err := j.findHere(p); err != nil {
				return nil, err
			}
		case p.isHere || p.there.adopted() || !j.known.covers(p.there.Stamp):
			// Of an old value it is known when it comes whether all of its kind were here.
			take = append(take, p.there)
		}
	}
	return take, nil
}

// findHere decides of a record of which the peer has nothing, or a belated deletion.
func (j *rejoin) findHere(p *pair) error {
	there, v := &j.peer, p.here.Version
	drop, again := there.known.covers(v.Stamp), false
	if v.adopted() {
		drop = len(there.reaped) > 0 && !j.keepAdopted
	}
	if !drop && !v.Deleted {
		again = isReaped(v.Clock, there.reaped)
	}
	switch {
	case drop:
		j.drops = append(j.drops, judged{key: p.key, version: v, there: p.there.Version})
	case again:
		value, err := j.view.Get(p.key, nil)
		if err == leveldb.ErrNotFound {
			return nil // its value is missing: there is nothing to put
		}
		if err != nil {
			return err
		}
		j.puts = append(j.puts, judged{key: p.key, version: v, size: len(value)})
	default:
		j.taken.Kept++
	}
	return nil
}

// soFar returns what was found so far.
func (j *rejoin) soFar() Rejoined {
	r := j.taken
	r.Dropped, r.Kept, r.PutAgain = len(j.drops), r.Kept+len(j.puts), r.PutAgain+len(j.puts)
	return r
}

// finish does what is left, with all that goes with it in one durable batch.
func (j *rejoin) finish(p *progress) (done Rejoined, err error) {
	d := j.d
	if !j.peer.seen {
		return done, fmt.Errorf("%w: the peer has not told what it knows", errOvertaken)
	}
	done = j.taken
	var point durablePoint
	err = d.enter(true, func(x *section) error {
		// What was written meanwhile was judged for what it was before.
		unchanged := func(r *judged) (here indexRecord, is bool, err error) {
			if here, err = lookup(d, r.key); err == leveldb.ErrNotFound {
				return here, false, nil
			}
			if err != nil {
				return here, false, fmt.Errorf("look up key %.64q: %w", r.key, err)
			}
			return here, here.Version == r.version, nil
		}
		known, reaped := j.peer.known.stamps(), j.peer.reaped.stamps()
		top := max(greatest(known), greatest(reaped))
		if err := x.reserve(max(top+1, x.clock.next) + uint64(len(j.puts))); err != nil {
			return err
		}
		x.clock.witness(top)
		certain := j.hadAllOld(j.peer.known)
		for i := range j.puts {
			r := &j.puts[i]
			here, is, err := unchanged(r)
			if err != nil {
				return err
			}
			if is {
				x.putAgain(change{key: r.key, old: here.seq, dataless: true, size: r.size})
				done.Kept++
				done.PutAgain++
			}
		}
		for i := range j.drops {
			r := &j.drops[i]
			here, is, err := unchanged(r)
			if err != nil {
				return err
			}
			if is {
				x.forgo(r, &here)
				done.Dropped++
				j.doubted = j.doubted || r.version.adopted() && !certain
			}
		}
		if j.doubted {
			x.doubt(p.record)
		}
		if err := x.join(known); err != nil {
			return err
		}
		x.reap(reaped...)
		x.head++ // of the drops: what rests on the head learns that there was something
		if done.Dropped > 0 {
			x.gone = x.head // whoever has seen what was dropped has to begin anew
		}
		p.record.advanced(x, p.id, p.next)
		x.batch.Delete(metaKey(metaRecovered))
		// A power cut must not take the vector, and leave the reap vector and what else
		// rests on it. So what was merged is made durable first.
		if err := d.commits.flush(); err != nil {
			return err
		}
		point = d.capture(x, *d.adopter.progress.Load())
		for _, s := range x.rises {
			point.vector[s.Origin] = vectorRow{s.Clock, x.head}
		}
		x.put(metaKey(metaDurable), point.append(nil))
		return nil
	})
	if err != nil {
		return done, err
	}
	d.rejoins.Add(1)
	d.durable.set(point)
	d.recovered.Store(false)
	return done, nil
}

// run compares the two sides, has what is later at the peer merged, and finishes. ask asks
// the peer; take merges entries of the last reply to a first question.
func (j *rejoin) run(ctx context.Context, ask func(*question) (*reply, error), take func(*reply, []entry) (int, error), tell func(Rejoined)) error {
	c := &comparison{d: j.d, values: true, view: j.view, ask: func(q *question) (*reply, error) {
		r, err := ask(q)
		if err == nil && r.first && r.obstacle == obstacleNone {
			err = j.meets(r)
		}
		return r, err
	}}
	c.found = func(pairs []pair) error {
		entries, err := j.find(pairs)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			var n int
			n, err = take(c.peer, entries)
			j.taken.Merged += n
		}
		if err == nil && tell != nil {
			tell(j.soFar())
		}
		return err
	}
	return c.run(ctx)
}
