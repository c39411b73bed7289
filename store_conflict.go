package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns conflicts: which entries from elsewhere were made without knowledge of
// what is here, and telling the program of them.

// Conflict is a pair of changes of one key, each made without knowledge of the other. See
// Options.OnConflict.
type Conflict struct {
	Key  []byte  `json:"key"`
	Won  Version `json:"won"`
	Lost Version `json:"lost"`
	// WonValue and LostValue are the values of the two changes. They are nil for a
	// deletion, and where a value is not at hand: a value of more than 64 KiB that has
	// lost at once was not sent.
	WonValue  []byte `json:"wonValue,omitempty"`
	LostValue []byte `json:"lostValue,omitempty"`
	// LostHere is true if the change that lost is the one that this replica had.
	LostHere bool `json:"lostHere"`
	// Uncertain is true if the one that won may have been made with knowledge of the one
	// that lost. That is so for changes that were made or sent while a replica had a part
	// only of what another one knew.
	Uncertain bool `json:"uncertain"`
}

const (
	// maxConflicts and maxConflictBytes bound what waits for Options.OnConflict.
	maxConflicts     = 1000
	maxConflictBytes = 16 << 20
	// lastConflicts is how many Status shows.
	lastConflicts = 32
	// maxUnknown is how many records of the backlog are looked at for the conflicts of
	// one page at most.
	maxUnknown = 4096
)

// conflicts are those that were found since the opening.
type conflicts struct {
	handler func(Conflict) // nil: nobody wants to know

	mu      sync.Mutex // guards what follows
	queue   []Conflict
	bytes   int // of its values
	wake    chan struct{}
	count   uint64
	unsure  uint64
	dropped uint64
	last    []Conflict // without values
}

// add takes in the conflicts of a commit. It never waits: what finds no room is counted.
func (q *conflicts) add(found []Conflict) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range found {
		q.count++
		if c.Uncertain {
			q.unsure++
		}
		size := len(c.Key) + len(c.WonValue) + len(c.LostValue)
		switch {
		case q.handler == nil:
		case len(q.queue) >= maxConflicts || len(q.queue) > 0 && q.bytes+size > maxConflictBytes:
			q.dropped++
		default:
			q.queue = append(q.queue, c)
			q.bytes += size
		}
		c.WonValue, c.LostValue = nil, nil
		q.last = append(q.last, c)
		q.last = q.last[max(0, len(q.last)-lastConflicts):]
	}
	signal(q.wake)
}

// counts returns how many were found, are uncertain, and were dropped, and the last ones.
func (q *conflicts) counts() (count, unsure, dropped uint64, last []Conflict) {
	q.mu.Lock()
	defer q.mu.Unlock()
	last = append([]Conflict{}, q.last...)
	for i := range last {
		last[i].Key = bytes.Clone(last[i].Key)
	}
	return q.count, q.unsure, q.dropped, last
}

// run tells the program, one after the other.
func (q *conflicts) run(ctx context.Context) {
	for {
		q.mu.Lock()
		var next *Conflict
		if len(q.queue) > 0 {
			c := q.queue[0]
			q.queue = slices.Delete(q.queue, 0, 1)
			q.bytes -= len(c.Key) + len(c.WonValue) + len(c.LostValue)
			c.Key, c.LostValue = bytes.Clone(c.Key), bytes.Clone(c.LostValue) // Status and feeds have them, too
			next = &c
		}
		q.mu.Unlock()
		if next != nil && ctx.Err() == nil {
			q.handler(*next)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
	}
}

// arbiter tells what a peer knows, by whose entries conflicts are found.
//
// A replica that merges a part of a scan, or a page that was sent ahead, has changes whose
// makers knew more than its vector covers. So beside the vector, which tells what is
// here, there is what was *heard*: it covers everything that the makers of what is here
// knew. What a vector does not cover, but was heard, may have been known.
type arbiter struct {
	peer    *server // what the peer knows and has heard, as it has told
	covered uint64  // the peer knows all records here up to this one
	before  vector  // what was heard here before the scan that is under way
	head    uint64  // own head then; 0: there is no scan
}

// scans notes that pages of a peer's snapshot come: what is heard with them was not known
// to anybody who has written here before.
func (j *arbiter) scans(d *store) {
	j.before, j.head = d.known.heardOf()
}

// knows reports whether the peer knows a change.
func (j *arbiter) knows(s Stamp) bool {
	j.peer.mu.Lock()
	defer j.peer.mu.Unlock()
	return j.peer.peer.covers(s)
}

// unknown calls visit for the records of the backlog that the peer may not know, and
// those after the first of them. It reports whether these are all that the peer does not
// know, and few.
func (j *arbiter) unknown(k *knowledge, visit func(*backRecord)) bool {
	j.peer.mu.Lock()
	defer j.peer.mu.Unlock()
	b := &k.backlog
	if j.covered < b.after && !j.peer.peer.includes(b.dropped) {
		return false
	}
	i, n := b.from(j.covered), b.records.len()
	for ; i < n; i++ {
		r := b.records.at(i)
		if !r.adopted() && !j.peer.peer.covers(r.Stamp) {
			break
		}
		j.covered = r.seq
	}
	if i == n || b.records.at(i).seq > b.after {
		j.covered = max(j.covered, b.after)
	}
	if n-i > maxUnknown {
		return false
	}
	for ; i < n; i++ {
		visit(b.records.at(i))
	}
	return true
}

// mustLook reports whether conflicts can be found by looking keys up only.
func (d *store) mustLook(j *arbiter) bool {
	if j == nil || d.conflicts.handler == nil {
		return false
	}
	d.known.mu.RLock()
	defer d.known.mu.RUnlock()
	return !j.unknown(&d.known, func(*backRecord) {})
}

// findConflicts adds the conflicts between entries and what is here to the commit. It is
// called in the commit section, before the vector rises.
func (d *store) findConflicts(x *section, c *candidates) error {
	j := c.arbiter
	if j == nil {
		return nil
	}
	if slices.Contains(c.blind, true) {
		all := j.unknown(&d.known, func(r *backRecord) { // nobody changes it while the section is held
			i, found := slices.BinarySearchFunc(c.entries, r.key, func(e entry, key []byte) int { return bytes.Compare(e.key, key) })
			if found && c.blind[i] && !r.gone {
				c.local[i] = local{indexRecord: indexRecord{r.Version, r.seq}, found: true}
			}
		})
		// Another merge may have driven records out of the backlog since this one was
		// examined. And a first sync brings records that are not in it, above some that are.
		look := !all && d.conflicts.handler != nil
		index := &finder{db: d, table: tableIndex}
		for i := range c.entries {
			if c.blind[i] && (look || c.local[i].found && c.local[i].seq <= d.known.backlog.after) {
				if err := d.lookupEntry(c, i, index); err != nil {
					return err
				}
			}
		}
	}
	for i := range c.entries {
		if !c.mayConflict(i) {
			continue
		}
		e, here := &c.entries[i], &c.local[i]
		var conflict Conflict
		if c.wins[i] {
			if j.knows(here.Stamp) {
				continue
			}
			conflict = Conflict{Won: e.Version, Lost: here.Version, LostHere: true, Uncertain: j.peer.mayKnow(here.Stamp)}
		} else {
			if d.coversInside(e.Stamp) {
				continue
			}
			// It may have been replaced since it was looked up.
			record, err := lookup(d, e.key)
			if err == leveldb.ErrNotFound {
				continue // and is removed by now
			}
			if err != nil {
				return fmt.Errorf("look up key %.64q: %w", e.key, err)
			}
			heard := d.known.heard
			if record.seq <= j.head {
				heard = j.before
			}
			conflict = Conflict{Won: record.Version, Lost: e.Version, Uncertain: heard.mayCover(e.Stamp)}
		}
		conflict.Key = bytes.Clone(e.key)
		if d.conflicts.handler != nil || conflict.LostHere && d.feeds.Load() > 0 {
			if err := d.addValues(&conflict, e); err != nil {
				return err
			}
		}
		if conflict.LostHere {
			c.replaces(i, conflict)
		}
		x.conflicts = append(x.conflicts, conflict)
	}
	return nil
}

// replaces notes the conflict in which an entry replaces what is here. The backlog keeps it,
// so a large value is left out.
func (c *candidates) replaces(i int, conflict Conflict) {
	if c.lost == nil {
		c.lost = map[int]*Conflict{}
	}
	conflict.WonValue = nil // it is beside
	if len(conflict.LostValue) > backlogValue {
		conflict.LostValue = nil
	}
	if conflict.LostValue != nil {
		conflict.LostValue = append([]byte{}, conflict.LostValue...)
	}
	c.lost[i] = &conflict
}

// mayConflict reports whether an entry met another change of its key. Adopted values are
// no changes, and who makes a second change knows the first one.
func (c *candidates) mayConflict(i int) bool {
	e, here := &c.entries[i], &c.local[i]
	return here.found && !here.unadopted && !here.adopted() && !e.adopted() && here.Origin != e.Origin
}

// addValues adds the values that are at hand.
func (d *store) addValues(c *Conflict, e *entry) error {
	here, theirs := &c.WonValue, &c.LostValue
	version := c.Won
	if c.LostHere {
		here, theirs, version = theirs, here, c.Lost
	}
	if !e.Deleted && !e.absent {
		*theirs = append([]byte{}, e.value...)
	}
	if version.Deleted {
		return nil
	}
	value, err := d.Get(e.key, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	*here = append([]byte{}, value...)
	return err
}

// hear notes that the makers of what a commit brings may have known some changes.
func (x *section) hear(stamps []Stamp) { x.heard = append(x.heard, stamps...) }

// addHeard adds the row of what was heard, if a commit changes that.
func (x *section) addHeard() {
	if len(x.heard) == 0 {
		return
	}
	k := &x.d.known
	rises := vector{}
	rises.join(x.rises)
	var next vector
	for _, s := range x.heard {
		if x.d.coversInside(s) || rises.covers(s) || k.heard.mayCover(s) && s.Origin != anyOrigin || k.heard.covers(s) {
			continue
		}
		if next == nil {
			next = vector{}
			next.join(k.heard.stamps())
		}
		next.raise(s)
	}
	if next == nil {
		return
	}
	for o, clock := range next {
		if s := (Stamp{clock, o}); x.d.coversInside(s) || rises.covers(s) {
			delete(next, o)
		}
	}
	x.hears = next
	x.put(metaKey(metaHeard), next.row())
}

// coversInside is knowledge.covers for the holder of the commit section.
func (d *store) coversInside(s Stamp) bool {
	clock, known := d.known.clockOf(s.Origin)
	return known && s.Clock <= clock && s.Origin&drawnOrigin != 0
}

// heardOf returns a copy of what was heard and is not known, and the head as of which
// that is.
func (k *knowledge) heardOf() (vector, uint64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	v := make(vector, len(k.heard))
	v.join(k.heard.stamps())
	return v, k.head
}

// forgetHeard drops what is known by now.
func (k *knowledge) forgetHeard() {
	for o, clock := range k.heard {
		if known, found := k.clockOf(o); found && clock <= known {
			delete(k.heard, o)
		}
	}
}

// row returns a row that holds a vector.
func (v vector) row() []byte {
	row := binary.AppendUvarint(nil, uint64(len(v)))
	for _, s := range v.stamps() {
		row = binary.BigEndian.AppendUint64(row, uint64(s.Origin))
		row = binary.AppendUvarint(row, s.Clock)
	}
	return row
}

func parseVectorRow(row []byte) (vector, error) {
	v := vector{}
	r := decoder{rest: row}
	if row != nil {
		for n := r.uvarint(); n > 0 && r.err == nil; n-- {
			o := Origin(r.uint64())
			v[o] = r.uvarint()
		}
	}
	if err := r.finish(); err != nil {
		return nil, fmt.Errorf("%w: vector: %w", errCorrupt, err)
	}
	return v, nil
}

// unbounded is above every clock.
const unbounded = math.MaxUint64
