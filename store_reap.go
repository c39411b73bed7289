package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the reaping of tombstones: which ones may go, the reap vector, which
// tells that they were there, and whose entries must not be merged because of it.
//
// A put that a tombstone deleted may come back from whoever has not seen the deletion,
// once the tombstone is gone. So it goes only when every peer that is known has it
// durably; and with a peer that does not know all that was reaped here, nothing is
// exchanged any more, until it has learned that elsewhere, or has rejoined.

const (
	// reapAtOnce is how many tombstones are reaped in one batch, and readAtOnce how many
	// records are looked at before a pause.
	reapAtOnce = 100
	readAtOnce = 2000
	// reapMost is the longest time between two times that it is looked for tombstones.
	reapMost = time.Hour
)

// reaper is the state of the reaping.
type reaper struct {
	mu      sync.Mutex // guards what follows
	reaped  uint64     // tombstones, since the opening
	waiting uint64     // those of the age that the last pass had to leave
	passed  bool       // there was a pass
	heldBy  *delayer   // a peer that they wait for; nil: they wait for none
}

// removal is an index row that goes, and nothing takes its place.
type removal struct {
	key []byte
	seq uint64
}

// remove takes a key out of index, data and log.
func (x *section) remove(key []byte, record *indexRecord) {
	x.keyBuf = tableKey(x.keyBuf[:0], tableIndex, key)
	x.batch.Delete(x.keyBuf)
	if !record.Deleted {
		x.batch.Delete(key)
	}
	// The last record of the key stays in the log as that of a deletion until it expires: earlier
	// ones may be there, and Verify could not tell the key from one that was lost. Old values
	// have no earlier ones.
	switch {
	case record.Deleted || record.seq < x.floor: // below the floor, the sweep removes it
	case record.adopted():
		x.drop(record.seq)
	default:
		x.put(logKey(record.seq), appendLogRecord(nil, Version{record.Stamp, true}, key))
	}
	x.keepOwnOf(record)
	x.gone = max(x.gone, record.seq)
	x.removed = append(x.removed, removal{bytes.Clone(key), record.seq})
	x.removals++
}

// reap notes that a tombstone is forgotten.
func (x *section) reap(stamps ...Stamp) {
	if x.reaped == nil {
		x.reaped = vector{}
	}
	x.reaped.join(stamps)
}

// addReaped adds the rows of what was reaped.
func (x *section) addReaped() {
	if x.gone > x.start.gone {
		x.put(metaKey(metaGone), encodeUint64(x.gone))
	}
	for o, clock := range x.reaped {
		if known, found := x.d.known.reaped[o]; !found || known < clock {
			x.put(reapedKey(o), binary.AppendUvarint(nil, clock))
		}
	}
}

// loadReaped reads the rows of the reap vector.
func loadReaped(db reader) (vector, error) {
	v := vector{}
	err := readNumbered(db, tableReaped, "reaped origin", func(name uint64, r *decoder) { v[Origin(name)] = r.uvarint() })
	return v, err
}

// reap looks for tombstones that have come of age, now and then.
func (d *store) reap(ctx context.Context) {
	every := max(min(d.settings.tombstoneAge/markPrecision, reapMost), d.settings.expiry.every)
	before, faulty := reapBound{}, false
	for {
		pause(ctx, every)
		if ctx.Err() != nil || d.failure() != nil {
			return
		}
		bound := d.reapBound(time.Now())
		if bound == before {
			continue // all that may go has gone
		}
		err := d.reapPass(ctx, bound.upTo)
		switch {
		case errors.Is(err, ErrFailed), errors.Is(err, ErrClosed):
			return
		case err != nil && ctx.Err() == nil && !faulty:
			d.settings.logger.Error("replicator: old tombstones could not be removed; it is tried again", "error", err)
		}
		if faulty = err != nil; !faulty {
			before = bound
		}
	}
}

// reapBound is what decides how many tombstones may go.
type reapBound struct {
	upTo       uint64 // sequence up to which records are of the age
	point      uint64 // number of the durable point
	statements uint64 // number of the statements of peers
	hour       int64  // peers come to be no longer waited for
}

func (d *store) reapBound(now time.Time) reapBound {
	_, _, point := d.durable.last(DatabaseID{})
	return reapBound{d.agedBy(now, d.settings.tombstoneAge), point, d.statements.Load(), now.Unix() / int64((reapMost / time.Second))}
}

// reapPass looks at the whole index, once, for tombstones up to a sequence.
func (d *store) reapPass(ctx context.Context, upTo uint64) error {
	var after []byte
	var found [][]byte
	left, first := uint64(0), true
	flush := func() error {
		n, err := d.reapSome(found, upTo)
		left += uint64(len(found) - n)
		d.reaper.mu.Lock()
		d.reaper.reaped += uint64(n)
		d.reaper.mu.Unlock()
		found = nil
		pause(ctx, sweepPause)
		return err
	}
	for more := upTo > 0; more && ctx.Err() == nil; first = false {
		index := newIndexReader(d, after, !first)
		n := 0
		for n < readAtOnce && len(found) < reapAtOnce && index.next() {
			n++
			after = append(after[:0], index.key...)
			if index.record.Deleted && index.record.seq <= upTo {
				found = append(found, bytes.Clone(index.key))
			}
		}
		more = n == readAtOnce || len(found) >= reapAtOnce
		err := index.fault()
		index.Release()
		if err == nil && (len(found) >= reapAtOnce || !more && len(found) > 0) {
			err = flush()
		}
		if err != nil {
			return err
		}
		pause(ctx, sweepPause)
	}
	if ctx.Err() != nil {
		return nil
	}
	held := d.reapHeldBy(time.Now())
	d.reaper.mu.Lock()
	defer d.reaper.mu.Unlock()
	d.reaper.waiting, d.reaper.passed, d.reaper.heldBy = left, true, nil
	if left > 0 {
		d.reaper.heldBy = held
	}
	return nil
}

// reapSome reaps those of some keys' tombstones, up to a sequence, that may go, and
// returns how many these are.
func (d *store) reapSome(keys [][]byte, upTo uint64) (n int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	err = d.enter(false, func(x *section) error {
		may := d.mayReap(time.Now())
		if may == nil {
			return nil
		}
		for _, key := range keys {
			record, err := lookup(d, key)
			if err == leveldb.ErrNotFound {
				continue
			}
			if err != nil {
				return fmt.Errorf("look up key %.64q: %w", key, err)
			}
			if record.Deleted && record.seq <= upTo && may(&record) {
				x.remove(key, &record)
				x.reap(record.Stamp)
				n++
			}
		}
		return nil
	})
	if err != nil {
		n = 0
	}
	return n, err
}

// mayReap returns what tells whether a tombstone may go, as far as its age does not
// matter; nil: none may. It is called in the commit section.
//
// The tombstone has to be durable here, and covered by a vector that is: else a power cut
// would take the vector back behind what was reaped. And it has to be covered by what
// each peer that is waited for has stated last of what is durable there.
func (d *store) mayReap(now time.Time) func(*indexRecord) bool {
	peers := d.allPeers()
	if len(peers) == 0 || d.adopter.running() || d.recovered.Load() || d.rejoining.Load() != nil {
		return nil
	}
	head, known := d.durable.reached()
	vectors := []vector{known, d.known.all()}
	for _, record := range peers {
		if v, waited := record.durableVector(now, d.settings.expiry.peerAge); waited {
			vectors = append(vectors, v)
		}
	}
	return func(r *indexRecord) bool {
		if r.seq > head {
			return false
		}
		for _, v := range vectors {
			if !v.covers(r.Stamp) {
				return false
			}
		}
		return true
	}
}

// reapHeldBy returns the peer that has been silent for longest, of those that have yet to
// state what is durable there, or know less than this replica; nil: there is none.
func (d *store) reapHeldBy(now time.Time) (held *delayer) {
	_, known := d.durable.reached()
	for id, record := range d.allPeers() {
		v, waited := record.durableVector(now, d.settings.expiry.peerAge)
		if !waited || v != nil && v.includes(known) {
			continue
		}
		if h := record.asDelayer(id); held == nil || h.seen.Before(held.seen) {
			held = h
		}
	}
	return held
}

// reached returns the head of the last durable point, and what was known then. The vector
// must not be changed.
func (y *durability) reached() (head uint64, known vector) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.point.head, y.vec
}

// durableVector returns what the peer has stated last of what it has durably, nil if it
// has yet to state that, and whether it is waited for. The vector must not be changed.
func (p *peerRecord) durableVector(now time.Time, age time.Duration) (v vector, waited bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.knows, age <= 0 || now.Sub(p.heardAt) < age
}

func (p *peerRecord) asDelayer(id DatabaseID) *delayer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &delayer{id: id, name: p.name, seen: p.heardAt}
}

// statesDurably notes what the peer states to have durably: by how much that has risen in
// this session. What it stated in another one does not count: it may be another process
// since, or have gone on from a backup.
//
// by and to are as in peerRecord.state.
func (d *store) statesDurably(p *peerRecord, by Origin, to DatabaseID, rises []Stamp) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stated.by != by || p.stated.to != to {
		return
	}
	v := maps.Clone(p.knows)
	if v == nil {
		v = vector{}
	}
	v.join(rises)
	p.knows = v
	d.statements.Add(1)
}

// giver is what is known of a peer whose entries are to be merged. It belongs to one
// goroutine.
type giver struct {
	known  vector         // the peer knew at least this when it read the entries
	reaped func() *vector // what the peer had reaped by then, or since; it does not change
	rejoin *rejoin        // the entries are of a rejoin, which judges them by itself
	// follows is set for entries of a page that follows the log. The peer may have read them
	// as of earlier than known, so each that may be older than what was reaped here was
	// looked into, when the reap vector had the number judged.
	follows bool
	judged  uint64

	passed struct { // for what it was found to be all right: own vector and known only rise
		reaps  uint64
		reaped *vector
	}
}

var (
	errStaleHere  = fmt.Errorf("%w: deletions were forgotten there that this replica has not seen: call Rejoin here, or wipe this replica", ErrStale)
	errStaleThere = fmt.Errorf("%w: deletions were forgotten here that the peer has not seen: call Rejoin at the peer, or wipe it", ErrStale)
	errRejoining  = errors.New("replicator: this replica rejoins, and merges nothing else meanwhile")
	errReapedNow  = errors.New("replicator: deletions were forgotten while a page was examined")
)

// admit returns why entries must not be merged now. It is called in the commit section.
func (x *section) admit(g *giver) error {
	if at := x.d.rejoining.Load(); at != nil && (g == nil || g.rejoin != at) {
		return errRejoining
	}
	return x.d.admitsInside(g)
}

// admits is section.admit, for who is not there.
func (d *store) admits(g *giver) error {
	if d.rejoining.Load() != nil {
		return errRejoining
	}
	d.known.mu.RLock()
	defer d.known.mu.RUnlock()
	return d.admitsInside(g)
}

// admitsInside is admits for who holds the commit section, or the knowledge.
func (d *store) admitsInside(g *giver) error {
	k := &d.known
	switch {
	case g == nil && len(k.reaped) > 0:
		return errStaleThere
	case g == nil || g.rejoin != nil:
		return nil
	}
	if g.follows && g.judged != k.reaps {
		return errReapedNow
	}
	reaped := g.reaped()
	if g.passed.reaps == k.reaps && g.passed.reaped == reaped && reaped != nil {
		return nil
	}
	if reaped != nil && !k.includes(*reaped) {
		return errStaleHere
	}
	if !g.known.includes(k.reaped) {
		return errStaleThere
	}
	g.passed.reaps, g.passed.reaped = k.reaps, reaped
	return nil
}

// includes reports whether this replica knows all that a vector covers. The caller holds
// mu, or the commit section.
func (k *knowledge) includes(v vector) bool {
	for o, clock := range v {
		if known, found := k.clockOf(o); !found || known < clock {
			return false
		}
	}
	return true
}

// standing reports whether this replica has not seen something that a peer has reaped, and
// whether a peer, which knows what one of two vectors covers, has not seen something that
// was reaped here.
func (d *store) standing(reaped *vector, covers func(Stamp) bool) (here, there bool) {
	k := &d.known
	k.mu.RLock()
	defer k.mu.RUnlock()
	here = reaped != nil && !k.includes(*reaped)
	for o, clock := range k.reaped {
		if !covers(Stamp{clock, o}) {
			return here, true
		}
	}
	return here, false
}

// reapedNow returns a copy of the reap vector, and a number that changes with it.
func (k *knowledge) reapedNow() (vector, uint64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return maps.Clone(k.reaped), k.reaps
}

// reapedUpTo returns the number of the reap vector, as reapsNow, and the greatest clock in it.
func (k *knowledge) reapedUpTo() (number, clock uint64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, c := range k.reaped {
		clock = max(clock, c)
	}
	return k.reaps, clock
}

// reapsNow returns the number that changes with the reap vector; 0: it is empty.
func (k *knowledge) reapsNow() uint64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.reaps
}

// isYoung reports whether this replica has merged all of nobody yet, or of others only who
// had nothing, and has taken in no old values. Where it has made changes itself, and
// merged something, it may be an old copy of one that only ever made changes.
func (d *store) isYoung() bool {
	if d.adopter.running() || d.adopter.progress.Load().adopted > 0 {
		return false
	}
	merged := d.hasMerged()
	k := &d.known
	k.mu.RLock()
	defer k.mu.RUnlock()
	if merged && (k.own > 0 || len(k.rows) > 0) {
		return false
	}
	for o := range k.rows {
		own := false
		for _, e := range k.history {
			own = own || e.origin == o
		}
		if !own {
			return false
		}
	}
	return true
}

// reapedWithin reports whether a vector covers all that was reaped here.
func (k *knowledge) reapedWithin(v vector) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return v.includes(k.reaped)
}

// knew notes what the peer knew when it read some entries.
func (g *giver) knew(all ...[]Stamp) {
	if g.known == nil {
		return // nobody has asked: it is no session of two that state what they reap
	}
	for _, stamps := range all {
		g.known.join(stamps)
	}
}

// staleness is what is remembered of a peer with which nothing is exchanged.
type staleness struct {
	here, there bool      // which side has not seen a deletion that the other one has forgotten
	since       time.Time // zero: none of them
	reaped      *vector   // what the peer has reaped, as it last told
	warned      error     // why, as the log has told
}

// isStale notes which side is stale.
func (p *peerRecord) isStale(here, there bool, reaped *vector, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.stale
	switch {
	case !here && !there:
		p.stale = staleness{}
	case before.since.IsZero():
		p.stale = staleness{here, there, now, reaped, nil}
	default:
		p.stale = staleness{here, there, before.since, reaped, before.warned}
	}
}

// warnsOf notes that the log tells why nothing is exchanged, and reports whether that is
// news.
func (p *peerRecord) warnsOf(why error) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news = p.stale.warned != why
	p.stale.warned = why
	return news
}
