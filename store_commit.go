package replicator

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the one way to write: the proposals of callers, the groups in which
// proposals are committed, and the commit section.

const (
	// maxGroupSize bounds the bytes in keys and values of one group. Together with
	// its records, a group stays well below goleveldb's default write buffer of 4 MiB,
	// unless a single write is larger.
	maxGroupSize = 512 << 10
	// maxIdleBatch, in bytes, and maxIdleChanges bound the memory that is kept for
	// the next group.
	maxIdleBatch   = 4 << 20
	maxIdleChanges = 10_000
)

// committer is the only writer of a database. Callers queue proposals. The first caller
// in the queue leads: it turns the queued proposals into one leveldb batch, writes the
// batch, and hands the lead to the next caller in the queue. So records become visible
// in the order of their sequences, and concurrent callers share one fsync.
type committer struct {
	engine    engine
	published func(local bool) // called by the leader after each commit

	pool *sync.Pool // of proposals

	mu      sync.Mutex  // guards queue, leading and closed
	queue   []*proposal // in order of arrival
	leading bool        // somebody leads
	closed  bool

	group    []*proposal // owned by the leader
	unsynced uint64      // number of commits without Sync; owned by the leader
	section  section     // owned by the leader

	// visible is published for readers after each commit.
	visible struct {
		head, floor, expired, clock, above, removals, gone atomic.Uint64
		records                                            atomic.Int64
	}
	latency [len(latencyBounds) + 1]atomic.Uint64 // number of commits by how long their write took
	failed  atomic.Pointer[error]
	over    chan struct{} // closed when a write has failed
}

// proposal is what one caller wants to commit: an operation, a batch, or work.
type proposal struct {
	key, value []byte
	deleted    bool
	batch      *leveldb.Batch
	work       func(*section) error
	ops        int // on keys that are replicated
	keys       int // bytes in keys
	values     int // bytes in values
	sync       bool
	alone      bool // must not be grouped with others
	last       bool // queued by close

	first Stamp // of the first operation on a replicated key, once that has one
	err   error
	turn  chan bool // receives true to take the lead, and false when done, with err set
}

func (p *proposal) size() int { return p.keys + p.values }

func (c *committer) newProposal() *proposal {
	if p, ok := c.pool.Get().(*proposal); ok {
		return p
	}
	return &proposal{turn: make(chan bool, 1)}
}

// do submits the proposal, waits until it is committed, and recycles the proposal. It
// returns the stamp of the first operation on a replicated key.
func (c *committer) do(p *proposal) (first Stamp, err error) {
	if err = c.submit(p); err == nil {
		first = p.first
	}
	*p = proposal{turn: p.turn}
	c.pool.Put(p)
	return first, err
}

// enter runs work in the commit section. No other commit happens between the reads of
// work and the batch that it fills. The batch is written if work returns nil and the
// batch is not empty.
func (c *committer) enter(sync bool, work func(*section) error) error {
	p := c.newProposal()
	p.work, p.sync, p.alone = work, sync, true
	_, err := c.do(p)
	return err
}

// submit queues the proposal, and returns when it is committed.
func (c *committer) submit(p *proposal) error {
	c.mu.Lock()
	if c.closed && !p.last {
		c.mu.Unlock()
		return ErrClosed
	}
	c.queue = append(c.queue, p)
	if c.leading {
		c.mu.Unlock()
		if lead := <-p.turn; !lead {
			return p.err
		}
		if p.sync {
			runtime.Gosched() // let callers that the last group woke join this group
		}
		c.mu.Lock()
	}
	c.leading = true
	c.gather()
	c.mu.Unlock()

	err := c.commit()
	for _, q := range c.group[1:] {
		q.err = err
		q.turn <- false
	}
	c.mu.Lock()
	if len(c.queue) > 0 {
		c.queue[0].turn <- true
	} else {
		c.leading = false
	}
	c.mu.Unlock()
	return err
}

// gather moves the proposals to commit together from the queue to the group. The first
// one in the queue is the leader's own.
func (c *committer) gather() {
	n, size := 1, c.queue[0].size()
	if !c.queue[0].alone {
		for ; n < len(c.queue); n++ {
			size += c.queue[n].size()
			if c.queue[n].alone || size > maxGroupSize {
				break
			}
		}
	}
	c.group = append(c.group[:0], c.queue[:n]...)
	rest := copy(c.queue, c.queue[n:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
}

// commit writes the group as one batch.
func (c *committer) commit() error {
	if err := c.failure(); err != nil {
		return err
	}
	x := &c.section
	x.begin()
	sync, local := false, false
	for _, p := range c.group {
		sync = sync || p.sync
		local = local || p.ops > 0
	}
	var err error
	if work := c.group[0].work; work != nil {
		err = work(x)
	} else {
		err = x.addLocal(c.group)
	}
	if err != nil {
		x.undo()
		return err
	}
	return c.finish(sync, local)
}

// finish writes the gathered changes and rows, and publishes them.
func (c *committer) finish(sync, local bool) error {
	x := &c.section
	x.addRows()
	x.addRises()
	x.addReaped()
	x.addHeard()
	if x.batch.Len() > 0 {
		if err := c.timedWrite(x, sync); err != nil {
			return err
		}
	}
	if x.forget != nil {
		x.forget()
	}
	c.publish()
	c.published(local)
	x.end()
	return nil
}

// latencyBounds are the upper ends of the buckets for the latency of commits. A last bucket
// has what is above.
var latencyBounds = [...]time.Duration{
	16 * time.Microsecond, 64 * time.Microsecond, 256 * time.Microsecond, time.Millisecond, 4 * time.Millisecond,
	16 * time.Millisecond, 64 * time.Millisecond, 256 * time.Millisecond, time.Second, 4 * time.Second,
}

// timedWrite writes the batch of a commit, and counts how long that takes. Of those without
// Sync, every 16th is measured, and stands for 16: the clock costs what a row costs.
func (c *committer) timedWrite(x *section, sync bool) error {
	const sample = 16
	weight := uint64(1)
	if !sync {
		if c.unsynced++; c.unsynced%sample != 0 {
			return c.write(x.batch, sync)
		}
		weight = sample
	}
	began := time.Now()
	err := c.write(x.batch, sync)
	took := time.Since(began)
	bucket, _ := slices.BinarySearch(latencyBounds[:], took)
	c.latency[bucket].Add(weight)
	return err
}

func (c *committer) publish() {
	x := &c.section
	c.visible.records.Store(x.records)
	c.visible.floor.Store(x.floor)
	c.visible.expired.Store(x.expired)
	c.visible.gone.Store(x.gone)
	c.visible.clock.Store(x.clock.next)
	c.visible.above.Store(x.above)
	c.visible.removals.Store(x.removals)
	c.visible.head.Store(x.head)
}

// write is the only function that writes to leveldb while a Replicator is open. After
// its first failure, nothing is written any more: the contents of the disk are unknown,
// and a later write could survive a crash that the failed write does not survive.
func (c *committer) write(b *leveldb.Batch, sync bool) error {
	if err := c.failure(); err != nil {
		return err
	}
	if err := c.engine.write(b, sync); err != nil {
		return c.fail(err)
	}
	return nil
}

// flush makes all earlier writes durable. It must be called in the commit section. A
// failed flush stops all further writes, as a failed write does.
func (c *committer) flush() error {
	if err := c.failure(); err != nil {
		return err
	}
	if err := c.engine.flush(metaKey(metaFlush)); err != nil {
		return c.fail(fmt.Errorf("flush: %w", err))
	}
	return nil
}

// fail records the error that stops all further writes, and returns it wrapped.
func (c *committer) fail(err error) error {
	failure := fmt.Errorf("%w: %w", ErrFailed, err)
	if c.failed.CompareAndSwap(nil, &failure) {
		close(c.over)
	}
	return failure
}

// failure returns the error that stopped all writes, or nil.
func (c *committer) failure() error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// close refuses further proposals and waits until the queued ones are done. Afterwards
// the commit section belongs to the caller.
func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	last := &proposal{turn: make(chan bool, 1), last: true, alone: true,
		work: func(*section) error { return nil }}
	_ = c.submit(last) // commits nothing; an error can only be an earlier failure
}

// change is one change of a key and its place in the log.
type change struct {
	key, value []byte
	Version
	seq      uint64
	old      uint64 // sequence of the superseded record; 0: unknown or none
	dataless bool   // the database already holds the value
	size     int    // bytes of such a value
	merged   bool   // the change was made elsewhere
	how      *arrival
}

// section assembles one commit. Its holder has exclusive access: the database and the
// fields of the section do not change until the commit is complete.
type section struct {
	c         *committer
	d         *store
	origin    Origin
	batch     *leveldb.Batch
	changes   []change
	rises     []Stamp    // of the vector
	learned   adoptions  // news of adoptions
	epoch     *epoch     // one that begins
	ended     *rise      // what was made in the one before
	heard     []Stamp    // what the makers of merged changes may have known
	hears     vector     // what was heard and is not known, if that changes
	conflicts []Conflict // that were found
	now       time.Time  // when changes from elsewhere are merged
	first     bool       // the changes are of a first sync, and get no log rows
	reaped    vector     // by what the reap vector rises
	removed   []removal  // index rows that go, and nothing takes their place
	forget    func()     // forgets or readmits a peer, once that is written

	clock   clock
	head    uint64 // sequence of the last record, including those gathered
	floor   uint64 // records below it are not served, and are being removed
	gone    uint64 // what a feed has seen before this sequence may be of a key that was reaped or dropped since
	expired uint64 // the last floor below which records were that had expired; 1: there was none
	records int64  // number of log records in the database, including those gathered
	own     uint64 // one above the greatest clock of a change made in this epoch; 0: there is none
	above   uint64 // one above the greatest clock of a record that was ever committed

	removals uint64 // counts the rows that were removed since the opening

	start struct {
		head, own, above, floor, expired, removals, gone uint64
		records                                          int64
	}
	keyBuf, rowBuf []byte // scratch
}

func (x *section) begin() {
	x.batch.Reset()
	x.changes = x.changes[:0]
	x.rises, x.learned, x.epoch, x.ended, x.first, x.forget = x.rises[:0], nil, nil, nil, false, nil
	x.heard, x.hears, x.conflicts = x.heard[:0], nil, nil
	x.start.head, x.start.records, x.start.own, x.start.above = x.head, x.records, x.own, x.above
	x.start.floor, x.start.expired, x.start.removals, x.start.gone = x.floor, x.expired, x.removals, x.gone
	x.reaped, x.removed = nil, nil
}

// undo discards the gathered changes.
func (x *section) undo() {
	x.head, x.records, x.own, x.above = x.start.head, x.start.records, x.start.own, x.start.above
	x.floor, x.expired, x.removals, x.gone = x.start.floor, x.start.expired, x.start.removals, x.start.gone
}

// end releases memory that the next group is unlikely to need.
func (x *section) end() {
	if len(x.batch.Dump()) > maxIdleBatch {
		x.batch = new(leveldb.Batch)
	}
	if cap(x.changes) > maxIdleChanges {
		x.changes = nil
	}
	clear(x.changes)
}

// reserve makes sure that a clock is below the persisted ceiling, so that no stamp can
// be issued a second time after a crash.
func (x *section) reserve(greatest uint64) error {
	if greatest < x.clock.ceiling {
		return nil
	}
	ceiling := x.d.settings.clock.ceiling(greatest)
	var b leveldb.Batch
	b.Put(metaKey(metaCeiling), encodeUint64(ceiling))
	if err := x.c.write(&b, true); err != nil {
		return err
	}
	x.clock.ceiling = ceiling
	return nil
}

// add gathers a change and gives it the next sequence. Its slices must not change until
// the commit is complete.
func (x *section) add(ch change) {
	x.head++
	if !x.first {
		x.records++
	}
	x.above = max(x.above, ch.Clock+1)
	ch.seq = x.head
	x.changes = append(x.changes, ch)
}

// drop removes a record from the log.
func (x *section) drop(seq uint64) {
	x.keyBuf = sequenceKey(x.keyBuf[:0], tableLog, seq)
	x.batch.Delete(x.keyBuf)
	x.records--
}

// put writes a row that does not belong to a change.
func (x *section) put(key, row []byte) { x.batch.Put(key, row) }

// addRows adds the rows of the changes to the batch, table by table: index, log, data.
// leveldb inserts neighbours faster than rows from all over the database. The table
// with the longest keys comes first, because leveldb allocates for each key that is
// longer than all before it. The values come last, because the batch doubles its memory
// when it grows.
func (x *section) addRows() {
	for i := range x.changes {
		ch := &x.changes[i]
		x.keyBuf = tableKey(x.keyBuf[:0], tableIndex, ch.key)
		x.rowBuf = appendIndexRecord(x.rowBuf[:0], ch.Version, ch.seq)
		x.batch.Put(x.keyBuf, x.rowBuf)
	}
	for i := range x.changes {
		if x.first {
			break
		}
		ch := &x.changes[i]
		if ch.old > 0 && ch.old >= x.floor { // below the floor, the sweep removes it
			x.drop(ch.old)
		}
		x.keyBuf = sequenceKey(x.keyBuf[:0], tableLog, ch.seq)
		x.rowBuf = appendLogRecord(x.rowBuf[:0], ch.Version, ch.key)
		x.batch.Put(x.keyBuf, x.rowBuf)
	}
	for i := range x.changes {
		switch ch := &x.changes[i]; {
		case ch.dataless:
		case ch.Deleted:
			x.batch.Delete(ch.key)
		default:
			x.batch.Put(ch.key, ch.value)
		}
	}
}

// addLocal gathers the operations of callers, and gives each a stamp. It looks nothing
// up, so the superseded records stay in the log.
func (x *section) addLocal(group []*proposal) error {
	ops, size := 0, 0
	for _, p := range group {
		ops += p.ops
		size += p.ops*rowsSize + 3*p.keys + p.values
	}
	if ops > 0 { // else all keys are local
		if err := x.prepare(ops); err != nil {
			return err
		}
	}
	if size > maxIdleBatch {
		// A leveldb batch with many operations grows in small steps, which takes a
		// time quadratic in their number. So it is made with its final size.
		x.batch = leveldb.MakeBatch(size)
		x.changes = make([]change, 0, ops)
	}
	for _, p := range group {
		if p.ops > 0 {
			p.first = Stamp{x.clock.next, x.origin}
		}
		switch {
		case p.batch != nil:
			_ = p.batch.Replay((*localChanges)(x)) // cannot fail: it succeeded before the batch was queued
		default:
			x.addOne(p.key, p.value, p.deleted)
		}
	}
	return nil
}

// prepare makes sure that some changes can be made here, with the next clocks. A hybrid
// clock comes up to the wall clock for it.
func (x *section) prepare(ops int) error {
	next := max(x.clock.next, x.d.settings.clock.least())
	if uint64(ops) > maxClock-min(next, maxClock) {
		return fmt.Errorf("%w: this database has used up its clock at %d", ErrClock, next)
	}
	if err := x.reserve(next + uint64(ops) - 1); err != nil {
		return err
	}
	x.clock.next = next
	return nil
}

// rowsSize is an upper bound of the bytes in the rows of one operation, without its
// keys and value.
const rowsSize = 3*2*binary.MaxVarintLen32 + 3*len(reserved) + 64

func (x *section) addOne(key, value []byte, deleted bool) {
	if x.d.settings.isLocal(key) {
		if deleted {
			x.batch.Delete(key)
		} else {
			x.batch.Put(key, value)
		}
		return
	}
	x.add(change{key: key, value: value, Version: Version{Stamp{x.clock.next, x.origin}, deleted}})
	x.clock.next++
	x.own = x.clock.next
}

// localChanges gathers the operations of a caller's batch, as a leveldb.BatchReplay.
type localChanges section

func (x *localChanges) Put(key, value []byte) { (*section)(x).addOne(key, value, false) }
func (x *localChanges) Delete(key []byte)     { (*section)(x).addOne(key, nil, true) }
