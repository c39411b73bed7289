package replicator

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what happens to an entry from elsewhere: whether it wins, and how the
// winners are committed.

// local is what this replica has of an entry's key.
type local struct {
	indexRecord
	found     bool // there is something
	unadopted bool // adoption has yet to take it in
	size      int  // of such a value
}

// candidates are the entries of a page, sorted by key, alongside what is here. They
// are examined outside the commit section, and once more within it, if a key
// was written in between.
type candidates struct {
	entries []entry
	local   []local
	wins    []bool
	blind   []bool // wins for certain, and was not looked up
	head    uint64 // the lookups saw at least every record up to here
	removed uint64 // and all removals up to this number
	first   *firstSync

	// adopting says that a key without an index record may hold an old value. It
	// is read before the lookups: adoption can end between them.
	adopting bool

	// mend says that values may be missing under index rows, and index rows that the vector
	// covers: such an entry is taken though it is known.
	mend bool

	from    DatabaseID        // the peer that has sent them
	arbiter *arbiter          // finds conflicts; nil: nobody does
	lost    map[int]*Conflict // those in which an entry replaces what is here
	hear    []Stamp           // what the makers of the entries may have known
	giver   *giver            // whose entries they are; nil: of somebody who knows nothing, and has reaped nothing
	again   []bool            // wins, and is put again, with a stamp of its own
}

// blindness is what lets the entries of one snapshot win without a lookup: what was
// here when its first page was merged, if nothing but its own pages has moved the head
// since. The zero value knows of nothing.
type blindness struct {
	begin bool // the first page is yet to be merged
	on    bool
	above uint64 // one above the greatest clock of a record that was here
	head  uint64 // as of the last page
}

// examine compares entries, which must be in ascending order of their keys, to
// what is here, and rejects clocks that are out of bounds.
func (d *store) examine(entries []entry, blind *blindness) (*candidates, error) {
	return d.examineBy(entries, blind, nil)
}

// examineBy is examine, and has conflicts found.
func (d *store) examineBy(entries []entry, blind *blindness, j *arbiter) (*candidates, error) {
	c := &candidates{
		arbiter:  j,
		entries:  entries,
		local:    make([]local, len(entries)),
		wins:     make([]bool, len(entries)),
		blind:    make([]bool, len(entries)),
		adopting: d.adopter.running(),
		removed:  d.commits.visible.removals.Load(),
		head:     d.head(),
	}
	limit := d.settings.clock.limit()
	above := d.commits.visible.above.Load()
	if blind.on {
		above = min(above, blind.above) // the section finds out whether it still counts
	}
	if d.mustLook(j) || d.rejoining.Load() != nil {
		above = unbounded
	}
	look := make([]int, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		if d.settings.isLocal(e.key) {
			return nil, errLocal(e.key)
		}
		if e.Clock > limit {
			return nil, d.settings.clock.refuse(fmt.Sprintf("key %.64q arrived with", e.key), e.Clock)
		}
		if e.Clock >= above && !e.adopted() {
			c.blind[i], c.wins[i] = true, true
		} else {
			look = append(look, i)
		}
	}
	return c, d.lookupAll(c, look)
}

// errLocal refuses a key from elsewhere that is not to be replicated.
func errLocal(key []byte) error {
	return fmt.Errorf("%w: key %.64q arrived, and keys under Options.LocalPrefix are not replicated", ErrProtocol, key)
}

// lookupAll reads what is here under some of the keys, and decides.
func (d *store) lookupAll(c *candidates, look []int) error {
	n := len(look)
	if n == 0 {
		return nil
	}
	index := newFinder(d, d, tableIndex, n, c.entries[look[0]].key, c.entries[look[n-1]].key)
	defer index.release()
	for _, i := range look {
		if err := d.lookupEntry(c, i, index); err != nil {
			return err
		}
	}
	return nil
}

// lookupEntry reads what is here under one key, and decides.
func (d *store) lookupEntry(c *candidates, i int, index *finder) error {
	e := &c.entries[i]
	c.local[i], c.blind[i] = local{}, false
	row, err := index.get(e.key)
	switch {
	case err == leveldb.ErrNotFound && c.adopting:
		err = d.lookupUnadopted(c, i)
	case err == leveldb.ErrNotFound:
		err = nil
	case err == nil:
		c.local[i].found = true
		c.local[i].indexRecord, err = indexRow(e.key, row)
	}
	if err != nil {
		return fmt.Errorf("look up key %.64q: %w", e.key, err)
	}
	here := &c.local[i]
	switch {
	case here.found && here.Version == e.Version && !e.Deleted && !e.absent && (c.mend || !e.adopted()):
		c.wins[i], err = d.outranks(e)
	case here.found:
		c.wins[i] = e.Version.Compare(here.Version) > 0
	case e.Deleted:
		c.wins[i] = c.mend || !d.known.covers(e.Stamp) // else it was here once, and is forgotten
	default:
		c.wins[i] = true
	}
	return err
}

// outranks reports whether an entry replaces the value of the same version that is here.
// The two differ only if a machine was resumed from an image, or a value was changed
// around its Replicator. Then the greater hash wins, so that replicas end up equal.
func (d *store) outranks(e *entry) (bool, error) {
	value, err := d.Get(e.key, nil)
	if err == leveldb.ErrNotFound {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up key %.64q: %w", e.key, err)
	}
	return !bytes.Equal(e.value, value) && valueHash(e.value) > valueHash(value), nil
}

// lookupUnadopted treats a key that adoption has yet to take in as if it had.
func (d *store) lookupUnadopted(c *candidates, i int) error {
	value, err := d.Get(c.entries[i].key, nil)
	if err == leveldb.ErrNotFound {
		return nil
	}
	if err == nil {
		c.local[i] = local{indexRecord: indexRecord{Version: adoptedVersion(value)}, found: true, unadopted: true, size: len(value)}
	}
	return err
}

// missing returns the indices of the winners whose values are yet to be fetched.
func (c *candidates) missing() (indices []int) {
	for i := range c.entries {
		if c.wins[i] && c.entries[i].absent {
			indices = append(indices, i)
		}
	}
	return indices
}

// doubtful returns the indices of winners that may be older than a deletion which was reaped
// here, if deletions with clocks up to reaped were: nothing here tells. Nor does an earlier
// deletion of the key: it may have come later.
func (c *candidates) doubtful(reaped uint64) (indices []int) {
	for i := range c.entries {
		e := &c.entries[i]
		if c.wins[i] && !e.Deleted && e.Clock <= reaped && (c.blind[i] || !c.local[i].found || c.local[i].Deleted) {
			indices = append(indices, i)
		}
	}
	return indices
}

// progress is what a page brings beside its entries.
type progress struct {
	id      DatabaseID
	record  *peerRecord
	next    cursor
	restart uint64  // number of the record's restart from which it goes on
	stay    bool    // the cursor does not move
	witness []Stamp // clocks above which the own clock rises
	join    []Stamp // what is known from now on
}

// check refuses progress from a place that does not count any more. It is called in the
// commit section.
func (p *progress) check() error {
	if p != nil && !p.stay && p.record.restarted() != p.restart {
		return errRestarted
	}
	return nil
}

var errRestarted = errors.New("replicator: old values were dropped in a rejoin with another peer, and this one may have them: its database is read from the beginning")

// merge commits the winners, verbatim, in one batch with the progress that comes with
// them; p may be nil.
func (d *store) merge(c *candidates, blind *blindness, p *progress) error {
	if d.isNothing(c, p) && d.admits(c.giver) == nil {
		return p.record.passed(p.next, p.restart)
	}
	// All of a peer is merged, from the beginning: the files lack nothing any more.
	whole := p != nil && !p.stay && p.next.caughtUp() && d.recovered.Load()
	err := d.enter(false, func(x *section) error {
		if err := cmp.Or(x.admit(c.giver), p.check()); err != nil {
			return err
		}
		if err := d.examineAgain(x, c, blind); err != nil {
			return err
		}
		puts := c.judge(x)
		if err := d.findConflicts(x, c); err != nil {
			return err
		}
		top := uint64(0)
		if p != nil {
			top = greatest(p.witness)
		}
		for i := range c.entries {
			if c.wins[i] {
				top = max(top, c.entries[i].Clock)
			}
		}
		if top > 0 || slices.Contains(c.wins, true) {
			if puts > 0 {
				top = max(top, x.clock.next) // what is put again gets the clocks behind that
			}
			if err := x.reserve(top + puts); err != nil {
				return err
			}
			x.clock.witness(top)
		}
		x.now = time.Now()
		x.first = c.first != nil && d.first.Load() == c.first
		ownLost, how := false, &arrival{peer: c.from}
		for i := range c.entries {
			e, here := &c.entries[i], &c.local[i]
			switch {
			case c.wins[i] && c.again != nil && c.again[i]:
				x.putAgain(change{key: e.key, value: e.value})
			case c.wins[i]:
				ownLost = ownLost || here.seq > 0 && here.Origin == x.origin && x.own > 0
				ch := change{key: e.key, value: e.value, Version: e.Version, old: here.seq, merged: true, how: how}
				if conflict := c.lost[i]; conflict != nil {
					ch.how = &arrival{c.from, conflict}
				}
				x.add(ch)
			case here.unadopted:
				// Whoever learns from the vector that the entry is known here has to be
				// able to get what it lost to.
				x.clock.witness(0)
				x.add(change{key: e.key, Version: here.Version, dataless: true, size: here.size})
			}
		}
		if len(x.changes) > 0 || p != nil && p.next.scan != scanNone {
			x.hear(c.hear)
		}
		if ownLost {
			// The record that told of the own change goes. After a kill this row tells of it.
			x.keepOwn()
		}
		blind.head = x.head
		if x.first = x.first && len(x.changes) > 0; x.first {
			if err := x.skipLog(); err != nil {
				return err
			}
		}
		if p != nil {
			if err := x.join(p.join); err != nil {
				return err
			}
			if !p.stay {
				p.record.advanced(x, p.id, p.next)
			}
			if whole {
				x.batch.Delete(metaKey(metaRecovered))
			}
		}
		return nil
	})
	if err == nil && whole {
		d.recovered.Store(false)
	}
	return err
}

// isNothing reports whether a merge would change nothing but the checkpoint, and find no
// conflict.
func (d *store) isNothing(c *candidates, p *progress) bool {
	if p == nil || p.stay || !p.next.caughtUp() || d.recovered.Load() || slices.Contains(c.wins, true) {
		return false
	}
	for i := range c.local {
		if c.local[i].unadopted || c.arbiter != nil && c.mayConflict(i) && !d.known.covers(c.entries[i].Stamp) {
			return false
		}
	}
	for _, s := range p.join {
		if !d.known.covers(s) {
			return false
		}
	}
	return greatest(p.witness) < d.commits.visible.clock.Load()
}

// examineAgain looks up, inside the commit section, what can't win for certain any
// more, and the keys that were written since they were examined. An entry can only lose
// by that, and what was yet to be adopted may have been replaced.
func (d *store) examineAgain(x *section, c *candidates, blind *blindness) error {
	above := x.above
	switch {
	case blind.begin:
		*blind = blindness{on: true, above: above}
	case blind.on && blind.head == x.head:
		above = min(above, blind.above)
	case blind.on:
		*blind = blindness{}
	}
	index := &finder{db: d, table: tableIndex}
	for i := range c.entries {
		if c.blind[i] && c.entries[i].Clock < above {
			if err := d.lookupEntry(c, i, index); err != nil {
				return err
			}
		}
	}
	again := []int{}
	all, err := d.writtenSince(x, c.head, func(key []byte) {
		i, found := slices.BinarySearchFunc(c.entries, key, func(e entry, key []byte) int {
			return bytes.Compare(e.key, key)
		})
		if found && (c.wins[i] && !c.blind[i] || c.local[i].unadopted) {
			again = append(again, i)
		}
	})
	if err != nil {
		return err
	}
	all = all && c.removed == x.removals
	for i := range c.entries {
		if !all && c.wins[i] && !c.blind[i] {
			again = append(again, i)
		}
	}
	for _, i := range again {
		if err := d.lookupEntry(c, i, index); err != nil {
			return err
		}
	}
	return nil
}

// writtenSince calls visit with the key of every record after the given head.
// Work that looked keys up before it entered the commit section learns here
// which of them to look up again, or, if not all, that there may be more: records
// without log rows. The key is valid during the call.
func (d *store) writtenSince(x *section, head uint64, visit func(key []byte)) (all bool, err error) {
	if head == x.head || d.known.backlogSince(head, visit) {
		return true, nil
	}
	if head+1 < x.floor {
		return false, nil
	}
	log := newLogReader(d, head, x.head)
	defer log.Release()
	for log.next() {
		visit(log.key)
	}
	return true, log.fault()
}
