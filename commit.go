package replicator

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

const (
	// maxGroupSize bounds the keys and values that callers' writes are gathered
	// up to. With its records a group stays well under goleveldb's default
	// write buffer of 4 MiB, unless one caller's write alone is larger.
	maxGroupSize = 512 << 10
	// maxIdleBatch is the size up to which the batch's memory is kept.
	maxIdleBatch = 4 << 20
)

// committer is the one writer of a database. Callers queue proposals; the first
// of them leads: it turns all that wait into one leveldb batch, writes it, and
// hands the lead to the next in the queue. So records become visible in the
// order of their sequences, and concurrent callers share one fsync.
type committer struct {
	db      *leveldb.DB
	origin  Origin
	changed func(local bool) // called after each commit that added records, by the leader
	stopped func(error)      // called once, when a write failed

	pool sync.Pool // of proposals

	mu      sync.Mutex  // guards the queue and who leads
	queue   []*proposal // in order of arrival
	leading bool
	closed  bool

	// The commit section: what follows belongs to the leader.
	group   []*proposal
	batch   *leveldb.Batch
	clock   clock
	head    uint64 // sequence of the last record, including those in batch
	floor   uint64 // records below it are not served, and on their way out
	records int64  // log records in the database, including those in batch
	keyBuf  []byte // scratch for row keys
	rowBuf  []byte // scratch for rows
	local   localRows

	// Published after each commit, for readers.
	visible struct {
		head, floor, clock atomic.Uint64
		records            atomic.Int64
	}
	failed atomic.Pointer[error]

	lockLost atomic.Bool    // leveldb's write lock is taken for good: every write, and closing it, would hang
	probes   sync.WaitGroup // compactionError's
}

func newCommitter(op *opening) *committer {
	c := &committer{
		db: op.db, origin: op.history[len(op.history)-1].origin,
		batch: new(leveldb.Batch), clock: op.clock, head: op.head, floor: op.floor, records: op.records,
	}
	c.publish()
	return c
}

// proposal is one caller's wish: an operation, a batch, or work.
type proposal struct {
	key, value []byte
	deleted    bool
	batch      *leveldb.Batch
	work       func(*committer) error
	ops        int
	keys       int // bytes in keys
	values     int // bytes in values
	sync       bool
	alone      bool // not to be grouped with others
	last       bool // the one that close waits for

	err  error
	turn chan bool // true: take the lead; false: done, see err
}

func (p *proposal) size() int { return p.keys + p.values }

func (c *committer) newProposal() *proposal {
	if p, ok := c.pool.Get().(*proposal); ok {
		return p
	}
	return &proposal{turn: make(chan bool, 1)}
}

// do submits the proposal, waits until it is committed, and recycles it.
func (c *committer) do(p *proposal) error {
	err := c.submit(p)
	*p = proposal{turn: p.turn}
	c.pool.Put(p)
	return err
}

// enter runs work inside the commit section: no other commit happens between
// what it reads and the batch that it fills. The batch is written if work returns
// nil and left anything in it.
func (c *committer) enter(sync bool, work func(*committer) error) error {
	p := c.newProposal()
	p.work, p.sync, p.alone = work, sync, true
	return c.do(p)
}

// submit queues the proposal and returns when it is committed.
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
			runtime.Gosched() // let those whom the last group woke join this one
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

// gather moves the proposals that are to be committed together from the queue
// to the group. The leader's own is the first in the queue.
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
	c.batch.Reset()
	var sync bool
	var ops uint64
	for _, p := range c.group {
		sync = sync || p.sync
		ops += uint64(p.ops)
	}
	if work := c.group[0].work; work != nil {
		head, records := c.head, c.records
		if err := work(c); err != nil {
			c.head, c.records = head, records
			return err
		}
	} else {
		if ops > maxClock-min(c.clock.next, maxClock) {
			return fmt.Errorf("%w: this database has used up its clock at %d", ErrClock, c.clock.next)
		}
		if err := c.reserve(c.clock.next + ops - 1); err != nil {
			return err
		}
		c.makeRoom()
		for _, p := range c.group {
			c.appendProposal(p)
		}
	}
	return c.finish(sync, ops > 0)
}

// rowsSize is more than the rows of an operation take, less its keys and value.
const rowsSize = 3*2*binary.MaxVarintLen32 + 3*len(reserved) + 64

// makeRoom sets memory aside for the rows of a large group. A leveldb batch that
// grows by itself does so in small steps once it has many operations, and takes
// a time that is quadratic in their number.
func (c *committer) makeRoom() {
	size := 0
	for _, p := range c.group {
		size += p.ops*rowsSize + 3*p.keys + p.values
	}
	if size > maxIdleBatch {
		c.batch = leveldb.MakeBatch(size)
	}
}

// finish writes the batch and publishes what it did.
func (c *committer) finish(sync, local bool) error {
	if c.batch.Len() > 0 {
		if err := c.write(c.batch, sync); err != nil {
			return err
		}
	}
	grew := c.visible.head.Load() != c.head
	c.publish()
	if len(c.batch.Dump()) > maxIdleBatch {
		c.batch = new(leveldb.Batch)
	}
	if grew && c.changed != nil {
		c.changed(local)
	}
	return nil
}

func (c *committer) publish() {
	c.visible.records.Store(c.records)
	c.visible.floor.Store(c.floor)
	c.visible.clock.Store(c.clock.next)
	c.visible.head.Store(c.head)
}

var (
	withSync    = &opt.WriteOptions{Sync: true}
	withoutSync = &opt.WriteOptions{}
)

// write is the only place from which leveldb is written to while a Replicator
// is open. Its first failure is the last write: after it, what the disk holds is
// not known, and a write on top could survive a crash that this one doesn't.
func (c *committer) write(b *leveldb.Batch, sync bool) error {
	wo := withoutSync
	if sync {
		wo = withSync
	}
	if err := c.failure(); err != nil {
		return err
	}
	if err := c.db.Write(b, wo); err != nil {
		return c.fail(err)
	}
	return nil
}

// fail notes the error after which nothing is written any more.
func (c *committer) fail(err error) error {
	failure := fmt.Errorf("%w: %w", ErrFailed, err)
	if c.failed.CompareAndSwap(nil, &failure) && c.stopped != nil {
		c.stopped(failure)
	}
	return failure
}

// failure returns the error that stopped the writes, or nil.
func (c *committer) failure() error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// reserve makes sure that a clock is below the persisted ceiling, so that no
// crash can make a stamp a second time.
func (c *committer) reserve(greatest uint64) error {
	if greatest < c.clock.ceiling {
		return nil
	}
	ceiling := greatest + clockBlock
	var b leveldb.Batch
	b.Put(metaKey(metaCeiling), encodeUint64(ceiling))
	if err := c.write(&b, true); err != nil {
		return err
	}
	c.clock.ceiling = ceiling
	return nil
}

// A change is three rows. Those of many changes are added table by table, for
// leveldb inserts neighbours faster than rows from all over the database. The
// longest keys come first, for leveldb allocates for each that is longer than all
// before it; a large value comes last, for the batch doubles its memory when it grows.
const (
	rowIndex = iota
	rowLog
	rowData
	rowsOfChange
)

// appendRow adds one of the rows of a change.
func (c *committer) appendRow(row int, key, value []byte, v Version, seq uint64) {
	switch row {
	case rowData:
		if v.Deleted {
			c.batch.Delete(key)
		} else {
			c.batch.Put(key, value)
		}
	case rowLog:
		c.keyBuf = sequenceKey(c.keyBuf[:0], tableLog, seq)
		c.rowBuf = appendLogRecord(c.rowBuf[:0], v, key)
		c.batch.Put(c.keyBuf, c.rowBuf)
	case rowIndex:
		c.keyBuf = tableKey(c.keyBuf[:0], tableIndex, key)
		c.rowBuf = appendIndexRecord(c.rowBuf[:0], v, seq)
		c.batch.Put(c.keyBuf, c.rowBuf)
	}
}

// grow moves the head over changes whose rows were added.
func (c *committer) grow(changes int) {
	c.head += uint64(changes)
	c.records += int64(changes)
}

// appendProposal adds the changes of a caller, each with a stamp of its own.
// Nothing is looked up: the records that they supersede stay in the log.
func (c *committer) appendProposal(p *proposal) {
	w := &c.local
	w.c = c
	for row := range rowsOfChange {
		w.row, w.done = row, 0
		switch {
		case p.batch != nil:
			_ = p.batch.Replay(w) // it was replayed before it was queued: this can't fail
		case p.deleted:
			w.Delete(p.key)
		default:
			w.Put(p.key, p.value)
		}
	}
	c.clock.next += uint64(w.done)
	c.grow(w.done)
}

// localRows adds one row of each change of a caller's batch.
type localRows struct {
	c    *committer
	row  int
	done int // changes
}

func (w *localRows) Put(key, value []byte) { w.add(key, value, false) }
func (w *localRows) Delete(key []byte)     { w.add(key, nil, true) }

func (w *localRows) add(key, value []byte, deleted bool) {
	v := Version{Stamp{w.c.clock.next + uint64(w.done), w.c.origin}, deleted}
	w.done++
	w.c.appendRow(w.row, key, value, v, w.c.head+uint64(w.done))
}

// supersede removes a record that the index no longer points to, unless it is
// below the floor, where the sweep removes it.
func (c *committer) supersede(seq uint64) {
	if seq >= c.floor {
		c.deleteLogRecord(seq)
	}
}

func (c *committer) deleteLogRecord(seq uint64) {
	c.keyBuf = sequenceKey(c.keyBuf[:0], tableLog, seq)
	c.batch.Delete(c.keyBuf)
	c.records--
}

// writtenSince calls visit with the key of every record after the given head.
// Work that looked keys up before it entered the commit section learns here
// which of them to look up again. The key is valid during the call.
func (c *committer) writtenSince(head uint64, visit func(key []byte)) error {
	if head == c.head {
		return nil
	}
	it := c.db.NewIterator(logRange(head, c.head), nil)
	defer it.Release()
	for it.Next() {
		_, key, err := parseLogRecord(it.Value())
		if err != nil {
			return fmt.Errorf("%w: log record %d", err, rowSequence(it.Key()))
		}
		visit(key)
	}
	return it.Error()
}

// close refuses further proposals and waits until the queued ones are done.
// After it the commit section belongs to the caller.
func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	last := &proposal{turn: make(chan bool, 1), last: true, alone: true,
		work: func(*committer) error { return nil }}
	_ = c.submit(last) // it commits nothing, so its error says nothing new
}

func encodeUint64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
