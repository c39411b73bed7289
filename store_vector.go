package replicator

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what this replica knows: the vector, the adoptions, and the last
// commits, as readers see them.

// vectorRow is the vector's entry for one origin.
type vectorRow struct {
	clock uint64
	risen uint64 // own head at which it last rose
}

func (v vectorRow) append(dst []byte) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, v.clock), v.risen)
}

func (r *decoder) vectorRow() vectorRow { return vectorRow{r.uvarint(), r.uvarint()} }

// knowledge is what this replica knows. All of it is as of one head. It is changed
// after each commit, before anybody is told of it. It lives in memory; the rows that
// it is read from at an opening are in the commits.
type knowledge struct {
	mu      sync.RWMutex // guards what follows
	head    uint64
	origin  Origin
	history history // epochs of the log
	own     uint64  // one above the greatest clock of an own change; 0: there is none
	rows    map[Origin]vectorRow
	order   []rise // in ascending order of when; those that were outdone since stay for a while
	heard   vector // what the makers of what is here may have known, and is not known here
	adopted adoptions
	changes uint64 // counts what became of adopted
	reaped  vector // what was reaped, here or where this replica has rejoined from; the rows are known, too
	reaps   uint64 // counts how often that rose
	backlog backlog
}

// rise is one origin's clock, and when it came to be known.
type rise struct {
	Stamp
	seq uint64
}

// load fills the knowledge at an opening.
func (k *knowledge) load(op *opening, origin Origin, backlogBytes int) {
	k.head, k.origin, k.history, k.rows, k.heard, k.adopted, k.reaped = op.head, origin, op.history, op.vector, op.heard, op.adoptions, op.reaped
	k.reaps = uint64(len(k.reaped))
	k.forgetHeard()
	for o, row := range k.rows {
		k.order = append(k.order, rise{Stamp{row.clock, o}, row.risen})
	}
	slices.SortFunc(k.order, func(a, b rise) int {
		return cmp.Or(cmp.Compare(a.seq, b.seq), a.Stamp.Compare(b.Stamp))
	})
	k.backlog = newBacklog(k, backlogBytes)
}

// publish takes in a commit.
func (k *knowledge) publish(x *section) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.head, k.own, k.origin = x.head, x.own, x.origin
	if x.epoch != nil {
		last := len(k.history) - 1
		if k.history[last].first == x.epoch.first {
			k.history = k.history[:last] // an epoch without records is replaced
		}
		k.history = append(slices.Clone(k.history), *x.epoch)
	}
	if x.ended != nil {
		k.rows[x.ended.Origin] = vectorRow{x.ended.Clock, x.ended.seq}
		k.order = append(k.order, *x.ended)
	}
	for _, s := range x.rises {
		if s.Origin != x.origin {
			k.rows[s.Origin] = vectorRow{s.Clock, x.head}
			k.order = append(k.order, rise{s, x.head})
		}
	}
	if len(k.order) > 2*len(k.rows)+64 {
		k.order = slices.DeleteFunc(k.order, func(r rise) bool { return k.rows[r.Origin].risen != r.seq })
	}
	if len(x.learned) > 0 {
		k.adopted.merge(x.learned)
		k.changes++
	}
	if k.reaped.join(x.reaped.stamps()) {
		k.reaps++
	}
	before := k.heard
	if x.hears != nil {
		k.heard = x.hears
	}
	if x.epoch != nil {
		k.backlog = newBacklog(k, k.backlog.limit)
	}
	k.backlog.forget(x.removed)
	k.backlog.add(x)
	k.backlog.addHeard(x, before)
	if len(k.heard) > 0 && len(x.rises) > 0 {
		k.forgetHeard()
	}
}

// clockOf returns the vector's entry for an origin. The caller holds mu.
func (k *knowledge) clockOf(o Origin) (clock uint64, known bool) {
	if o == k.origin {
		return k.own - 1, k.own > 0
	}
	row, known := k.rows[o]
	return row.clock, known
}

// isImage reports whether a pair of the vector, or a stamp, is of the current epoch, and
// was not made in it: then this process goes on from an image of itself.
func (d *store) isImage(s Stamp) bool {
	d.known.mu.RLock()
	defer d.known.mu.RUnlock()
	return s.Origin == d.known.origin && s.Clock >= d.known.own
}

// lastOwn returns the stamp of the last change made here that is known, in this epoch or
// an earlier one; zero: there is none.
func (k *knowledge) lastOwn() Stamp {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for i := len(k.history) - 1; i >= 0; i-- {
		if clock, known := k.clockOf(k.history[i].origin); known {
			return Stamp{clock, k.history[i].origin}
		}
	}
	return Stamp{}
}

// covers reports whether this replica knows a change.
func (k *knowledge) covers(s Stamp) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	clock, known := k.clockOf(s.Origin)
	return known && s.Clock <= clock && s.Origin&drawnOrigin != 0
}

// since returns what rose after a place in the own log, the own origin included, and
// the head as of which that is.
func (k *knowledge) since(seq uint64) (delta []Stamp, head uint64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.sinceLocked(seq, k.own), k.head
}

// sinceLocked returns what rose after a place in the own log, the own origin included,
// whose clock is one below own. The caller holds mu.
func (k *knowledge) sinceLocked(seq, own uint64) (delta []Stamp) {
	for i := len(k.order) - 1; i >= 0 && k.order[i].seq > seq; i-- {
		if r := k.order[i]; k.rows[r.Origin].risen == r.seq {
			delta = append(delta, r.Stamp)
		}
	}
	if own > 0 {
		delta = append(delta, Stamp{own - 1, k.origin})
	}
	return delta
}

// roseSince reports whether the vector rose after a place in the own log, but for the
// own origin and another one.
func (k *knowledge) roseSince(seq uint64, but Origin) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for i := len(k.order) - 1; i >= 0 && k.order[i].seq > seq; i-- {
		if k.order[i].Origin != but {
			return true
		}
	}
	return false
}

// all returns the whole vector.
func (k *knowledge) all() vector {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return vectorOf(k.rows, k.origin, k.own)
}

// vectorOf returns the vector that rows are of, with the own origin, whose clock is one
// below own; own is 0 if there was no own change.
func vectorOf(rows map[Origin]vectorRow, origin Origin, own uint64) vector {
	v := make(vector, len(rows)+1)
	for o, row := range rows {
		v[o] = row.clock
	}
	if own > 0 {
		v[origin] = own - 1
	}
	return v
}

// vectorRows returns a copy of the rows.
func (k *knowledge) vectorRows() map[Origin]vectorRow {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return maps.Clone(k.rows)
}

// adoptions returns a copy of what is known of adoptions, and a number that changes
// with it.
func (k *knowledge) adoptions() (adoptions, uint64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return maps.Clone(k.adopted), k.changes
}

// join raises the vector in a commit.
func (x *section) join(with []Stamp) error {
	rises, more := vector{}, 0
	for _, s := range with {
		clock, known := x.d.known.clockOf(s.Origin) // nobody changes it while the section is held
		if known && clock >= s.Clock {
			continue
		}
		if s.Origin == x.origin {
			continue // it is an image of this process that knows more; see isImage
		}
		if _, again := rises[s.Origin]; !known && !again {
			more++
		}
		rises.raise(s)
	}
	if most := maxOrigins - len(x.d.known.rows); more > most {
		return fmt.Errorf("%w: the peer's vector brings %d new origins, and there is room for %d", ErrProtocol, more, most)
	}
	x.rises = append(x.rises, rises.stamps()...)
	return nil
}

// learn takes in what a peer, or this replica, knows of adoptions.
func (x *section) learn(a adoptions) {
	known, _ := x.d.known.adoptions()
	x.learned = known.merge(a)
	for id, mark := range x.learned {
		x.put(adoptionKey(id), appendMark(nil, mark))
	}
}

func appendMark(dst []byte, mark Stamp) []byte {
	return binary.BigEndian.AppendUint64(binary.AppendUvarint(dst, mark.Clock), uint64(mark.Origin))
}

// addRises gives the rises of a commit a sequence, and their rows.
func (x *section) addRises() {
	if len(x.rises) > 0 && x.head == x.start.head {
		x.head++ // else "since the checkpoint" would miss them
	}
	if x.head != x.start.head+uint64(len(x.changes)) {
		x.put(metaKey(metaHead), encodeUint64(x.head)) // no record tells of the last sequence
	}
	for _, s := range x.rises {
		if s.Origin != x.origin {
			x.put(vectorKey(s.Origin), vectorRow{s.Clock, x.head}.append(nil))
		}
	}
}

// keepOwn notes what was made in this epoch. It is for when the records that told of it
// go: after a kill, this row tells.
func (x *section) keepOwn() {
	x.put(vectorKey(x.origin), vectorRow{x.own - 1, x.head}.append(nil))
}

// keepOwnOf is keepOwn, if a record that goes was made in this epoch.
func (x *section) keepOwnOf(record *indexRecord) {
	if record.Origin == x.origin && x.own > 0 {
		x.keepOwn()
	}
}

// mark takes a clock of its own for the end of an adoption.
func (x *section) mark(id adoptionID) error {
	if err := x.reserve(x.clock.next); err != nil {
		return err
	}
	mark := Stamp{x.clock.next, x.origin}
	x.clock.next++
	x.own = x.clock.next
	x.head++
	x.rises = append(x.rises, mark)
	x.learn(adoptions{id: mark})
	return nil
}

// learnAdoptions makes durable what a peer knows of adoptions, before any value that
// one of them took in is merged: else a power cut could leave such a value, and nobody
// here would know that there may be more of its kind.
func (d *store) learnAdoptions(a adoptions) error {
	known, _ := d.known.adoptions()
	if len(known.merge(a)) == 0 {
		return nil
	}
	if len(known) > maxAdoptions {
		return fmt.Errorf("%w: with those of the peer, %d adoptions would be known, the limit is %d", ErrProtocol, len(known), maxAdoptions)
	}
	return d.enter(true, func(x *section) error {
		x.learn(a)
		return nil
	})
}

// position returns the head and the epochs of the log.
func (d *store) position() (uint64, history) {
	d.known.mu.RLock()
	defer d.known.mu.RUnlock()
	return d.known.head, d.known.history
}

// origin returns that of the current epoch.
func (d *store) origin() Origin {
	d.known.mu.RLock()
	defer d.known.mu.RUnlock()
	return d.known.origin
}

// loadVector reads the vector's rows.
func loadVector(db reader) (map[Origin]vectorRow, error) {
	rows := map[Origin]vectorRow{}
	err := readNumbered(db, tableVector, "vector row", func(name uint64, r *decoder) { rows[Origin(name)] = r.vectorRow() })
	return rows, err
}

// loadAdoptions reads the rows of adoptions.
func loadAdoptions(db reader) (adoptions, error) {
	a := adoptions{}
	err := readNumbered(db, tableAdoptions, "adoption", func(name uint64, r *decoder) {
		a[adoptionID(name)] = Stamp{r.uvarint(), Origin(r.uint64())}
	})
	return a, err
}

// readNumbered reads the rows of a table whose rows are named by numbers.
func readNumbered(db reader, table byte, what string, parse func(name uint64, r *decoder)) error {
	it := db.NewIterator(tableRange(table), nil)
	defer it.Release()
	for it.Next() {
		if len(rowName(it.Key())) != 8 {
			return fmt.Errorf("%w: %s %x", errCorrupt, what, it.Key())
		}
		r := decoder{rest: it.Value()}
		if parse(rowSequence(it.Key()), &r); r.finish() != nil {
			return fmt.Errorf("%w: %s %x", errCorrupt, what, it.Key())
		}
	}
	return it.Error()
}

// putVector writes a vector in the place of the one that is there.
func putVector(b *leveldb.Batch, there, wanted map[Origin]vectorRow) {
	for o := range there {
		if _, stays := wanted[o]; !stays {
			b.Delete(vectorKey(o))
		}
	}
	for o, row := range wanted {
		if there[o] != row {
			b.Put(vectorKey(o), row.append(nil))
		}
	}
}

// imageEvery is how often a new epoch may begin because of an image.
const imageEvery = time.Minute

// newEpoch begins a new epoch in the midst of an opening, and returns the origin of the
// one before. It does nothing if that was done lately.
func (d *store) newEpoch() (before Origin, began bool, err error) {
	err = d.enter(true, func(x *section) error {
		now := time.Now()
		if !d.imaged.IsZero() && now.Sub(d.imaged) < imageEvery {
			return nil
		}
		d.imaged, before, began = now, x.origin, true
		if x.own > 0 {
			x.ended = &rise{Stamp{x.own - 1, x.origin}, x.head}
			x.keepOwn()
		}
		x.epoch = &epoch{x.head + 1, d.settings.drawOrigin(), maxSequence}
		x.put(sequenceKey(nil, tableEpochs, x.epoch.first), x.epoch.row())
		x.origin, x.own = x.epoch.origin, 0
		return nil
	})
	return before, began, err
}
