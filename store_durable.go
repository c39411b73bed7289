package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns durable points: what a power cut can't take, and goes back to.

// flushEvery is how often a peer is asked to make everything durable at most, and how
// often this replica does so because it is asked.
const flushEvery = 100 * time.Millisecond

// durablePoint is what was merged and known when everything was last made durable. It
// is captured in the commit section before the flush, and written with Sync after
// it. After a power cut a replica goes on from there: what the database holds may be
// ahead of it, never behind.
type durablePoint struct {
	head   uint64
	clock  uint64 // of the next change
	origin Origin // of the epoch in which it was made
	own    uint64 // one above the greatest clock of a change made in that epoch; 0: there was none
	vector map[Origin]vectorRow
	peers  map[DatabaseID]cursor
	adopt  adoption
}

func (p *durablePoint) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, p.head)
	dst = binary.AppendUvarint(dst, p.clock)
	dst = binary.BigEndian.AppendUint64(dst, uint64(p.origin))
	dst = binary.AppendUvarint(dst, p.own)
	dst = binary.AppendUvarint(dst, uint64(len(p.vector)))
	for _, o := range slices.Sorted(maps.Keys(p.vector)) {
		dst = p.vector[o].append(binary.BigEndian.AppendUint64(dst, uint64(o)))
	}
	dst = binary.AppendUvarint(dst, uint64(len(p.peers)))
	ids := slices.SortedFunc(maps.Keys(p.peers), func(a, b DatabaseID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		c := p.peers[id]
		dst = c.append(append(dst, id[:]...))
	}
	return p.adopt.append(dst)
}

func parseDurablePoint(row []byte) (p durablePoint, err error) {
	r := decoder{rest: row}
	p.head, p.clock, p.origin, p.own = r.uvarint(), r.uvarint(), Origin(r.uint64()), r.uvarint()
	p.vector = map[Origin]vectorRow{}
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		o := Origin(r.uint64())
		p.vector[o] = r.vectorRow()
	}
	p.peers = map[DatabaseID]cursor{}
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		var id DatabaseID
		copy(id[:], r.take(uint64(len(id))))
		p.peers[id] = r.cursor()
	}
	if r.err == nil {
		p.adopt, r.err = parseAdoption(r.rest)
	}
	if r.err != nil {
		return p, fmt.Errorf("%w: durable point: %w", errCorrupt, r.err)
	}
	return p, nil
}

// known returns the vector as of the point, the own origin included.
func (p *durablePoint) known() vector {
	return vectorOf(p.vector, p.origin, p.own)
}

// durability is the last durable point.
type durability struct {
	making turn // held while one is made

	mu    sync.Mutex // guards what follows
	point durablePoint
	vec   vector
	count uint64    // of points
	asked time.Time // when one was made because a peer had asked
}

func (y *durability) load(p durablePoint) {
	y.making = make(turn, 1)
	y.set(p)
}

func (y *durability) set(p durablePoint) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.point, y.vec = p, p.known()
	y.count++
}

// last returns what of a peer's log is durable here, what is known durably, and the
// number of the point. The vector must not be changed.
func (y *durability) last(id DatabaseID) (merged position, known vector, number uint64) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if c := y.point.peers[id]; c.joined {
		merged = c.checkpoint
	}
	return merged, y.vec, y.count
}

// askable returns how long a durable point that a peer has asked for has to wait; 0: it is
// to be made now. All peers together get one in flushEvery.
func (y *durability) askable(now time.Time) time.Duration {
	y.mu.Lock()
	defer y.mu.Unlock()
	if wait := y.asked.Add(flushEvery).Sub(now); wait > 0 {
		return wait
	}
	y.asked = now
	return 0
}

// capture returns the durable point that a flush would make of what is here.
func (d *store) capture(x *section, adopt adoption) durablePoint {
	return durablePoint{
		head: x.head, clock: x.clock.next, origin: x.origin, own: x.own,
		vector: d.known.vectorRows(), peers: d.storedCursors(), adopt: adopt,
	}
}

// storedCursors returns how far each peer's log has been merged.
func (d *store) storedCursors() map[DatabaseID]cursor {
	cursors := map[DatabaseID]cursor{}
	for id, record := range d.allPeers() {
		cursors[id] = record.place()
	}
	return cursors
}

// makeDurable makes everything durable, and notes what that is, unless nothing has
// changed since the last time.
func (d *store) makeDurable() error {
	d.durable.making.take()
	defer d.durable.making.giveBack()
	d.durable.mu.Lock()
	before := d.durable.point
	d.durable.mu.Unlock()
	if before.origin == d.origin() && before.head == d.head() && maps.EqualFunc(before.peers, d.storedCursors(), cursor.equal) {
		return nil
	}
	var point durablePoint
	err := d.enter(true, func(x *section) error {
		for id, record := range d.allPeers() {
			if record.isUnsaved() {
				record.save(x, id, func(*peerRecord) {})
			}
		}
		point = d.capture(x, *d.adopter.progress.Load())
		if err := d.commits.flush(); err != nil {
			return err
		}
		x.put(metaKey(metaDurable), point.append(nil))
		return nil
	})
	if err != nil {
		return err
	}
	d.durable.set(point)
	d.notify(false)
	return nil
}

// keepDurable makes a durable point now and then.
func (d *store) keepDurable(ctx context.Context) {
	ticker := time.NewTicker(d.settings.durableEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.failed():
			return
		case <-ticker.C:
			// A failure stops all writes, and is told by that.
			_ = d.makeDurable()
			_ = d.saveSeen()
		}
	}
}

// goBack has an opening go on from the durable point: after a power cut, what came
// later may be missing from the midst.
func (op *opening) goBack(b *leveldb.Batch) {
	p := &op.durable
	wanted := maps.Clone(p.vector)
	if p.own > 0 {
		wanted[p.origin] = vectorRow{p.own - 1, p.head}
	}
	putVector(b, op.vector, wanted)
	op.vector, op.adopt = wanted, p.adopt
	for id, record := range op.peers {
		record.goBack(p.peers[id])
		b.Put(peerKey(id), record.row())
	}
	for i := range op.history {
		e := &op.history[i]
		if last := i == len(op.history)-1; last || op.history[i+1].first > p.head+1 {
			if e.sure > p.head {
				e.sure = p.head
				b.Put(sequenceKey(nil, tableEpochs, e.first), e.row())
			}
		}
	}
}
