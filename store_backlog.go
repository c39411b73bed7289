package replicator

import (
	"bytes"
	"slices"
	"sort"
	"time"
)

// This file owns the backlog: the last commits, in memory, for peers that keep up.

// backlog holds what was committed after a place in the log.
type backlog struct {
	limit   int // bytes
	size    int
	after   uint64 // everything behind this sequence is here, and changes made here from before
	records deque[backRecord]
	rises   deque[rise]
	heard   deque[rise] // of the rises, what was heard before them
	dropped vector      // covers every record that is no longer here
	arena   []byte      // where the next keys and values go
}

// backRecord is one record, with its value if that is not too large.
type backRecord struct {
	seq uint64
	key []byte
	Version
	value   []byte
	bytes   int       // of the value
	present bool      // the value is here
	own     bool      // the change was made here
	gone    bool      // its key was reaped or dropped since: it is not for anybody
	commit  uint64    // the head after the commit that it was part of
	at      time.Time // when a change from elsewhere was merged
	how     *arrival  // of such a change; nil: unknown
}

// arrival is how a change came here.
type arrival struct {
	peer     DatabaseID // from whom
	conflict *Conflict  // in which it has replaced what was here; nil: it has not
}

// cost is what a record takes of the limit.
func (r *backRecord) cost() int {
	n := len(r.key) + len(r.value) + backlogExtra
	if r.how != nil && r.how.conflict != nil {
		n += len(r.how.conflict.LostValue) + backlogExtra
	}
	return n
}

const (
	backlogValue = inlineSize // bytes of the largest value that is kept
	backlogExtra = 128        // what a record takes beside key and value
	arenaSize    = 64 << 10
)

// newBacklog returns an empty backlog, behind what is known. The caller holds the
// knowledge, which has taken in the last commit.
func newBacklog(k *knowledge, limit int) backlog {
	dropped := make(vector, len(k.rows)+len(k.heard)+1)
	for o, row := range k.rows {
		dropped[o] = row.clock
	}
	dropped.join(k.heard.stamps())
	if k.own > 0 {
		dropped.raise(Stamp{k.own - 1, k.origin})
	}
	return backlog{limit: limit, after: k.head, dropped: dropped}
}

// add takes in a commit. The section is published right after.
func (b *backlog) add(x *section) {
	if x.first {
		for i := range x.changes {
			if ch := &x.changes[i]; !ch.adopted() {
				b.dropped.raise(ch.Stamp)
			}
		}
		b.after = x.head
		return
	}
	size := 0
	for i := range x.changes {
		size += len(x.changes[i].key) + min(len(x.changes[i].value), backlogValue) + backlogExtra
	}
	if size > b.limit {
		*b = newBacklog(&x.d.known, b.limit)
		return
	}
	for i := range x.changes {
		ch := &x.changes[i]
		r := backRecord{seq: ch.seq, Version: ch.Version, bytes: ch.size, own: !ch.merged, commit: x.head, how: ch.how}
		if !r.own {
			r.at = x.now
		}
		r.key = b.copy(ch.key)
		if !ch.dataless && !ch.Deleted {
			if r.bytes = len(ch.value); r.bytes <= backlogValue {
				r.value, r.present = b.copy(ch.value), true
			}
		}
		b.records.push(r)
		b.size += r.cost()
	}
	for _, s := range x.rises {
		b.rises.push(rise{s, x.head})
		b.size += backlogExtra
	}
	for b.size > b.limit && b.records.len() > 0 {
		r := b.records.pop()
		if !r.adopted() {
			b.dropped.raise(r.Stamp)
		}
		b.size -= r.cost()
		b.after = max(b.after, r.seq)
	}
	for b.rises.len() > 0 && (b.rises.at(0).seq <= b.after || b.size > b.limit) {
		b.after = max(b.after, b.rises.pop().seq)
		b.size -= backlogExtra
	}
	if b.records.len() == 0 && b.rises.len() == 0 {
		b.after = x.head
	}
}

// forget has nobody be sent what is here of keys that were removed. The records stay, for
// their clocks tell what was made here up to a place.
func (b *backlog) forget(removed []removal) {
	keys := map[string]bool{}
	for i := range removed {
		if removed[i].seq > b.after { // else no earlier record of the key is here
			keys[string(removed[i].key)] = true
		}
	}
	for i := 0; len(keys) > 0 && i < b.records.len(); i++ {
		if r := b.records.at(i); keys[string(r.key)] {
			r.gone = true
		}
	}
}

// addHeard takes in which of a commit's rises had been heard of.
func (b *backlog) addHeard(x *section, before vector) {
	for _, s := range x.rises {
		if clock, some := before[s.Origin]; some {
			b.heard.push(rise{Stamp{clock, s.Origin}, x.head})
		}
	}
	for b.heard.len() > 0 && b.heard.at(0).seq <= b.after {
		b.heard.pop()
	}
}

// heardBy returns what had perhaps been heard where the vector was as it is at a place,
// and rose since. In the midst of a commit, that is what the vector rose by with it: it
// covers what the makers of its first records knew.
func (b *backlog) heardBy(seq uint64, but Origin) (heard []Stamp) {
	if i := b.from(seq) - 1; i >= 0 && b.records.at(i).commit > seq {
		heard = b.risesIn(seq, b.records.at(i).commit, but)
	}
	for i := b.heard.len() - 1; i >= 0 && b.heard.at(i).seq > seq; i-- {
		heard = append(heard, b.heard.at(i).Stamp)
	}
	return heard
}

// copy keeps bytes in the arena.
func (b *backlog) copy(p []byte) []byte {
	if len(p) > arenaSize/4 {
		return bytes.Clone(p)
	}
	if len(b.arena)+len(p) > cap(b.arena) {
		b.arena = make([]byte, 0, arenaSize)
	}
	from := len(b.arena)
	b.arena = append(b.arena, p...)
	return b.arena[from:len(b.arena):len(b.arena)]
}

// reaches reports whether everything behind a sequence is here.
func (b *backlog) reaches(seq uint64) bool { return seq >= b.after }

// from returns the index of the first record behind a sequence.
func (b *backlog) from(seq uint64) int {
	return sort.Search(b.records.len(), func(i int) bool { return b.records.at(i).seq > seq })
}

// backlogSince calls visit with the key of every record behind a sequence, if the
// backlog reaches back that far, which it reports.
func (k *knowledge) backlogSince(seq uint64, visit func(key []byte)) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	b := &k.backlog
	if !b.reaches(seq) {
		return false
	}
	for i := b.from(seq); i < b.records.len(); i++ {
		visit(b.records.at(i).key)
	}
	return true
}

// latest calls visit with the last records, at most n, in their order. None if n is negative.
func (k *knowledge) latest(n int, visit func(*backRecord)) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	b := &k.backlog
	for i := b.records.len() - min(n, b.records.len()); i < b.records.len(); i++ {
		visit(b.records.at(i))
	}
}

// unknownTo returns at most how many records behind a sequence a vector does not
// cover.
func (k *knowledge) unknownTo(v vector, seq uint64) (n uint64) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	b := &k.backlog
	if v == nil || !b.reaches(seq) {
		return k.head - min(seq, k.head)
	}
	for i := b.from(seq); i < b.records.len(); i++ {
		if r := b.records.at(i); !r.gone && (r.adopted() || !v.covers(r.Stamp)) {
			n++
		}
	}
	return n
}

// risesIn returns what rose after one sequence and up to another, each origin's last,
// but for one origin.
func (b *backlog) risesIn(after, upTo uint64, but Origin) (delta []Stamp) {
	last := vector{}
	from := sort.Search(b.rises.len(), func(i int) bool { return b.rises.at(i).seq > after })
	for i := from; i < b.rises.len() && b.rises.at(i).seq <= upTo; i++ {
		if r := b.rises.at(i); r.Origin != but {
			last[r.Origin] = r.Clock
		}
	}
	return last.stamps()
}

// deque is a queue that can be indexed. It grows by chunks, so that nothing is moved: the
// records of a full backlog take megabytes.
type deque[T any] struct {
	chunks [][]T // all but the last are full
	start  int   // index in the first chunk
	n      int
	spare  []T // an empty chunk
}

const dequeChunk = 256

func (q *deque[T]) len() int { return q.n }

func (q *deque[T]) at(i int) *T {
	i += q.start
	return &q.chunks[i/dequeChunk][i%dequeChunk]
}

func (q *deque[T]) push(v T) {
	last := len(q.chunks) - 1
	switch {
	case last < 0:
		q.chunks = append(q.chunks, nil) // grows as needed: many hold little
		last = 0
	case len(q.chunks[last]) == dequeChunk:
		if q.spare == nil {
			q.spare = make([]T, 0, dequeChunk)
		}
		q.chunks = append(q.chunks, q.spare)
		q.spare = nil
		last++
	}
	q.chunks[last] = append(q.chunks[last], v)
	q.n++
}

func (q *deque[T]) pop() (v T) {
	var zero T
	first := q.chunks[0]
	v, first[q.start] = first[q.start], zero
	q.start++
	q.n--
	if q.start == dequeChunk {
		q.spare = first[:0]
		q.chunks = slices.Delete(q.chunks, 0, 1)
		q.start = 0
	}
	return v
}
