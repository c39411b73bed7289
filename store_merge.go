package replicator

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what happens to an entry from elsewhere: whether it wins, and how the
// winners are committed.

// local is what this replica knows of an entry's key: nothing if found is false.
type local struct {
	indexRecord
	found bool
}

// candidates are the entries of a page, sorted by key, beside what is here. They
// are examined outside the commit section, and once more within it, if a key
// was written in between.
type candidates struct {
	entries []entry
	local   []local
	wins    []bool
	head    uint64 // the lookups saw at least every record up to here

	// adopting says that a key without an index record may hold an old value. It
	// is read before the lookups: adoption can end between them.
	adopting bool
}

// examine compares entries, which must be in ascending order of their keys, to
// what is here, and rejects clocks that are out of bounds.
func (d *store) examine(entries []entry) (*candidates, error) {
	c := &candidates{
		entries:  entries,
		local:    make([]local, len(entries)),
		wins:     make([]bool, len(entries)),
		adopting: d.adopter.running(),
		head:     d.head(),
	}
	limit := clockLimit(time.Now())
	for i := range entries {
		if e := &entries[i]; e.Clock > limit {
			return nil, fmt.Errorf("%w: key %.64q arrived with clock %d, at most %d is accepted at this time", ErrClock, e.key, e.Clock, limit)
		}
	}
	if err := d.lookupAll(c); err != nil {
		return nil, err
	}
	for i := range entries {
		if err := d.decide(c, i); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// lookupAll reads what is here under each key.
func (d *store) lookupAll(c *candidates) error {
	n := len(c.entries)
	if n == 0 {
		return nil
	}
	index := newFinder(d, d, tableIndex, n, c.entries[0].key, c.entries[n-1].key)
	defer index.release()
	for i := range c.entries {
		if err := d.lookupEntry(c, i, index); err != nil {
			return err
		}
	}
	return nil
}

// lookup reads what is here under one key.
func (d *store) lookupEntry(c *candidates, i int, index *finder) error {
	key := c.entries[i].key
	c.local[i] = local{}
	row, err := index.get(key)
	if err == leveldb.ErrNotFound {
		return d.lookupUnadopted(c, i)
	}
	if err != nil {
		return fmt.Errorf("look up key %.64q: %w", key, err)
	}
	record, err := indexRow(key, row)
	if err != nil {
		return err
	}
	c.local[i] = local{record, true}
	return nil
}

// lookupUnadopted treats a key that adoption has yet to take in as if it had.
func (d *store) lookupUnadopted(c *candidates, i int) error {
	if !c.adopting {
		return nil
	}
	value, err := d.Get(c.entries[i].key, nil)
	switch {
	case err == leveldb.ErrNotFound:
		return nil
	case err != nil:
		return err
	}
	c.local[i] = local{indexRecord{Version: adoptedVersion(value)}, true}
	return nil
}

// decide applies the order of versions: does the entry win?
func (d *store) decide(c *candidates, i int) error {
	e, here := &c.entries[i], &c.local[i]
	if !here.found {
		c.wins[i] = true
		return nil
	}
	order := e.Version.Compare(here.Version)
	c.wins[i] = order > 0
	if order != 0 || e.Deleted || e.adopted() {
		return nil
	}
	// One stamp, two puts: the same change, but for a resumed machine image.
	value, err := d.Get(e.key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		return err
	}
	switch {
	case e.absent:
		c.wins[i] = e.hash > valueHash(value)
	case !bytes.Equal(e.value, value):
		c.wins[i] = valueHash(e.value) > valueHash(value)
	}
	return nil
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

// merge commits the winners, verbatim, in one batch with what progress adds to
// it. Before they are visible, note is told the sequences that they will have.
func (d *store) merge(c *candidates, note func(first, last uint64), progress func(*section)) (merged int, err error) {
	err = d.enter(false, func(x *section) error {
		if err := d.examineAgain(x, c); err != nil {
			return err
		}
		var greatest uint64
		merged = 0
		for i := range c.entries {
			if c.wins[i] {
				greatest = max(greatest, c.entries[i].Clock)
				merged++
			}
		}
		if merged > 0 {
			if err := x.reserve(greatest); err != nil {
				return err
			}
			note(x.head+1, x.head+uint64(merged))
			x.clock.witness(greatest)
		}
		for i := range c.entries {
			if e := &c.entries[i]; c.wins[i] {
				x.add(change{key: e.key, value: e.value, Version: e.Version, old: c.local[i].seq})
			}
		}
		if progress != nil {
			progress(x)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return merged, nil
}

// examineAgain looks up, inside the commit section, the keys that were written
// since they were examined. An entry can only lose by that.
func (d *store) examineAgain(x *section, c *candidates) error {
	var again []int
	err := d.writtenSince(x, c.head, func(key []byte) {
		i, found := slices.BinarySearchFunc(c.entries, key, func(e entry, key []byte) int {
			return bytes.Compare(e.key, key)
		})
		if found && c.wins[i] {
			again = append(again, i)
		}
	})
	if err != nil {
		return err
	}
	index := &finder{db: d, table: tableIndex}
	for _, i := range again {
		if err := d.lookupEntry(c, i, index); err != nil {
			return err
		}
		if err := d.decide(c, i); err != nil {
			return err
		}
	}
	return nil
}

// writtenSince calls visit with the key of every record after the given head.
// Work that looked keys up before it entered the commit section learns here
// which of them to look up again. The key is valid during the call.
func (d *store) writtenSince(x *section, head uint64, visit func(key []byte)) error {
	if head == x.head {
		return nil
	}
	log := newLogReader(d, head, x.head)
	defer log.Release()
	for log.next() {
		visit(log.key)
	}
	return log.fault()
}
