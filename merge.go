package replicator

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// entry is one key's version from elsewhere, with its value or, for a value
// that was not sent along, its size and hash.
type entry struct {
	key []byte
	Version
	value  []byte
	absent bool // the value was not sent along
	size   uint64
	hash   uint64
}

// valueHash returns the hash of the value, also of one that was not sent along.
func (e *entry) valueHash() uint64 {
	if e.absent {
		return e.hash
	}
	return valueHash(e.value)
}

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

// lookup reads a key's index record, or returns leveldb.ErrNotFound.
func lookup(db reader, key []byte) (indexRecord, error) {
	row, err := db.Get(indexKey(key), nil)
	if err != nil {
		return indexRecord{}, err
	}
	return parseIndexRecord(row)
}

// examine compares entries, which must be in ascending order of their keys, to
// what is here, and rejects clocks that are out of bounds.
func (r *Replicator) examine(entries []entry) (*candidates, error) {
	c := &candidates{
		entries:  entries,
		local:    make([]local, len(entries)),
		wins:     make([]bool, len(entries)),
		adopting: r.adopter.running(),
		head:     r.commits.visible.head.Load(),
	}
	limit := clockLimit(time.Now())
	for i := range entries {
		if e := &entries[i]; e.Clock > limit {
			return nil, fmt.Errorf("%w: key %.64q arrived with clock %d, at most %d is accepted at this time", ErrClock, e.key, e.Clock, limit)
		}
	}
	if err := r.lookupAll(c); err != nil {
		return nil, err
	}
	for i := range entries {
		if err := r.decide(c, i); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// lookupAll reads what is here under each key.
func (r *Replicator) lookupAll(c *candidates) error {
	n := len(c.entries)
	if n == 0 {
		return nil
	}
	index := newFinder(r.db, r.db, tableIndex, n, c.entries[0].key, c.entries[n-1].key)
	defer index.release()
	for i := range c.entries {
		if err := r.lookup(c, i, index); err != nil {
			return err
		}
	}
	return nil
}

// lookup reads what is here under one key.
func (r *Replicator) lookup(c *candidates, i int, index *finder) error {
	key := c.entries[i].key
	c.local[i] = local{}
	row, err := index.get(key)
	if err == leveldb.ErrNotFound {
		return r.lookupUnadopted(c, i)
	}
	if err != nil {
		return fmt.Errorf("look up key %.64q: %w", key, err)
	}
	record, err := parseIndexRecord(row)
	if err != nil {
		return fmt.Errorf("%w: index of key %.64q", err, key)
	}
	c.local[i] = local{record, true}
	return nil
}

// lookupUnadopted treats a key that adoption has yet to take in as if it had.
func (r *Replicator) lookupUnadopted(c *candidates, i int) error {
	if !c.adopting {
		return nil
	}
	value, err := r.db.Get(c.entries[i].key, nil)
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
func (r *Replicator) decide(c *candidates, i int) error {
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
	value, err := r.db.Get(e.key, nil)
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
func (r *Replicator) merge(c *candidates, note func(first, last uint64), progress func(*leveldb.Batch)) (merged int, err error) {
	err = r.commits.enter(false, func(s *committer) error {
		if err := r.examineAgain(s, c); err != nil {
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
			if err := s.reserve(greatest); err != nil {
				return err
			}
			note(s.head+1, s.head+uint64(merged))
			s.clock.witness(greatest)
			c.append(s)
		}
		if progress != nil {
			progress(s.batch)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return merged, nil
}

// append adds the rows of the winners, with their versions as they came, and
// removes the log records that they supersede.
func (c *candidates) append(s *committer) {
	changes := 0
	for row := range rowsOfChange {
		changes = 0
		for i := range c.entries {
			if !c.wins[i] {
				continue
			}
			changes++
			e := &c.entries[i]
			if row == rowLog {
				s.supersede(c.local[i].seq)
			}
			s.appendRow(row, e.key, e.value, e.Version, s.head+uint64(changes))
		}
	}
	s.grow(changes)
}

// examineAgain looks up, inside the commit section, the keys that were written
// since they were examined. An entry can only lose by that.
func (r *Replicator) examineAgain(s *committer, c *candidates) error {
	var again []int
	err := s.writtenSince(c.head, func(key []byte) {
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
	index := &finder{db: r.db, table: tableIndex}
	for _, i := range again {
		if err := r.lookup(c, i, index); err != nil {
			return err
		}
		if err := r.decide(c, i); err != nil {
			return err
		}
	}
	return nil
}
