package replicator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns the door: what a program calls, with the checks that come first.

// Replicator is a database that keeps itself equal to its peers. All methods are
// safe for concurrent use.
type Replicator struct {
	db       *leveldb.DB
	owned    bool // Close closes db
	store    *store
	syncer   *syncer
	maxValue int      // bytes
	options  *Options // for what AddPeer may add
	addr     net.Addr // nil: nobody can dial in
	gate     gate
	holds    holds

	closing   sync.Mutex // guards what follows
	stopped   bool       // background work has ended, the clean mark is written
	closed    bool
	closedErr error
}

// registry holds the handles that have a Replicator: two on one handle would
// both hand out sequences.
var registry sync.Map // *leveldb.DB → struct{}

// Open wraps a database that the caller has opened, and starts to replicate it.
// The handle stays the caller's, to be closed after the Replicator. It should have
// been opened with DisableLargeBatchTransaction, as OpenFile does: without it,
// goleveldb can hang after a failed write. Reading through the handle is fine. A
// write through it is not replicated as a change, and where it replaces a value that
// the Replicator knows, replicas may differ. Keys under the reserved prefix must
// be left alone.
//
// Keys that the database holds already are adopted in the background, see
// Status. Open fails with ErrInUse if the handle has a Replicator, with
// ErrReserved if it holds foreign keys under the reserved prefix, with ErrTooLarge
// if Options.MaxValueSize was lowered below a value that it holds, and with all
// that Options.Validate finds. It then closes Options.Listener.
func Open(db *leveldb.DB, o *Options) (*Replicator, error) {
	r, err := open(db, o)
	if err != nil {
		o.closeListener()
	}
	return r, err
}

func open(db *leveldb.DB, o *Options) (*Replicator, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if db == nil {
		return nil, errors.New("replicator: open: the database is nil")
	}
	if _, taken := registry.LoadOrStore(db, struct{}{}); taken {
		return nil, fmt.Errorf("%w: open: the handle has a Replicator already", ErrInUse)
	}
	r, err := start(db, o.withDefaults())
	if err != nil {
		registry.Delete(db)
		return nil, err
	}
	return r, nil
}

// OpenFile opens or creates the database at path, wraps it, and closes it with
// the Replicator. ldb may be nil. DisableLargeBatchTransaction is always set:
// without it, goleveldb can hang after a failed write. Errors are those of Open
// and of goleveldb's OpenFile.
func OpenFile(path string, ldb *opt.Options, o *Options) (*Replicator, error) {
	err := o.Validate()
	var db *leveldb.DB
	if err == nil {
		if db, err = leveldb.OpenFile(path, safeOptions(ldb)); err != nil {
			err = fmt.Errorf("replicator: open %s: %w", path, err)
		}
	}
	if err != nil {
		o.closeListener()
		return nil, err
	}
	r, err := Open(db, o)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	r.owned = true
	return r, nil
}

// DB returns the leveldb handle. Reading through it is fine. A write through it
// bypasses replication: see Open.
func (r *Replicator) DB() *leveldb.DB { return r.db }

func start(db *leveldb.DB, o Options) (*Replicator, error) {
	listener := o.Listener
	if o.Listen != "" {
		var err error
		if listener, err = net.Listen("tcp", o.Listen); err != nil {
			return nil, fmt.Errorf("replicator: open: %w", err)
		}
	}
	d, err := openStore(db, o.store())
	if err != nil {
		if o.Listen != "" {
			listener.Close()
		}
		return nil, err
	}
	settings := o.sync()
	settings.listener = listener
	r := &Replicator{db: db, store: d, syncer: startSync(d, settings), maxValue: o.MaxValueSize, options: &o}
	r.gate.empty = make(chan struct{})
	if listener != nil {
		r.addr = listener.Addr()
	}
	for addr, meta := range o.Peers {
		_ = r.syncer.addPeer(addr, meta) // a map has no address twice
	}
	return r, nil
}

// Put sets the value of a key. The arguments may be reused once it returned. An
// empty key and an empty value are valid. Errors: ErrReserved, ErrTooLarge,
// ErrClock, ErrFailed, ErrClosed.
func (r *Replicator) Put(key, value []byte, wo *opt.WriteOptions) error {
	if err := r.checkWrite(key, value); err != nil {
		return err
	}
	return r.writeOne(key, value, false, wo)
}

// Delete removes a key. It is no error if the key is not there; the deletion is
// replicated even so. Errors are those of Put.
func (r *Replicator) Delete(key []byte, wo *opt.WriteOptions) error {
	if err := r.checkWrite(key, nil); err != nil {
		return err
	}
	return r.writeOne(key, nil, true, wo)
}

func (r *Replicator) writeOne(key, value []byte, deleted bool, wo *opt.WriteOptions) error {
	p := r.store.commits.newProposal()
	p.key, p.value, p.deleted = key, value, deleted
	p.ops, p.keys, p.values = 1, len(key), len(value)
	p.sync, p.alone = wo.GetSync(), wo.GetNoWriteMerge()
	return r.propose(p)
}

// Write applies a batch, all or nothing, with its change-log records in one
// leveldb batch. Of a key that is in it twice, the last operation counts. A nil
// or empty batch does nothing. Errors are those of Put.
//
// The batch is atomic here; peers may see it arrive in parts.
func (r *Replicator) Write(b *leveldb.Batch, wo *opt.WriteOptions) error {
	if b == nil || b.Len() == 0 {
		if r.gate.isClosed() {
			return ErrClosed
		}
		return nil
	}
	check := batchCheck{r: r}
	if err := b.Replay(&check); err != nil {
		return fmt.Errorf("replicator: write: %w", err)
	}
	if check.err != nil {
		return check.err
	}
	p := r.store.commits.newProposal()
	p.batch, p.ops, p.keys, p.values = b, b.Len(), check.keys, check.values
	p.sync, p.alone = wo.GetSync(), wo.GetNoWriteMerge()
	return r.propose(p)
}

func (r *Replicator) propose(p *proposal) error {
	if !r.gate.enter() {
		return ErrClosed
	}
	defer r.gate.leave()
	return r.store.commits.do(p)
}

// batchCheck finds the first operation of a batch that can't be accepted.
type batchCheck struct {
	r            *Replicator
	keys, values int // bytes
	err          error
}

func (c *batchCheck) Put(key, value []byte) {
	c.keys += len(key)
	c.values += len(value)
	if c.err == nil {
		c.err = c.r.checkWrite(key, value)
	}
}

func (c *batchCheck) Delete(key []byte) { c.Put(key, nil) }

// checkWrite refuses what could not be replicated.
func (r *Replicator) checkWrite(key, value []byte) error {
	switch {
	case len(key) > MaxKeySize:
		return fmt.Errorf("%w: the key %.32q… has %d bytes, the limit is %d", ErrTooLarge, key, len(key), MaxKeySize)
	case len(value) > r.maxValue:
		return fmt.Errorf("%w: the value of key %.64q has %d bytes, the limit is %d (Options.MaxValueSize)",
			ErrTooLarge, key, len(value), r.maxValue)
	case hidden(key):
		return fmt.Errorf("%w: key %.64q", ErrReserved, key)
	}
	return nil
}

// Get returns the value of a key, or leveldb.ErrNotFound. The returned slice is
// the caller's own; an empty value may come back as nil.
func (r *Replicator) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) {
	return r.get(r.store, key, ro)
}

func (r *Replicator) get(db reader, key []byte, ro *opt.ReadOptions) ([]byte, error) {
	if !r.gate.enter() {
		return nil, ErrClosed
	}
	defer r.gate.leave()
	if hidden(key) {
		return nil, leveldb.ErrNotFound
	}
	return db.Get(key, ro)
}

// Has reports whether the database has the key.
func (r *Replicator) Has(key []byte, ro *opt.ReadOptions) (bool, error) {
	return r.has(r.store, key, ro)
}

func (r *Replicator) has(db reader, key []byte, ro *opt.ReadOptions) (bool, error) {
	if !r.gate.enter() {
		return false, ErrClosed
	}
	defer r.gate.leave()
	if hidden(key) {
		return false, nil
	}
	return db.Has(key, ro)
}

// NewIterator returns an iterator over the keys of a range, nil meaning all, as
// they are now. It never shows the reserved range. As with leveldb, it must be
// released, is not safe for concurrent use, and carries an error that prevented
// it; its keys and values are valid until it is moved.
func (r *Replicator) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return r.newIterator(r.store, slice, ro)
}

func (r *Replicator) newIterator(db reader, slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	if !r.gate.enter() {
		return iterator.NewEmptyIterator(ErrClosed)
	}
	defer r.gate.leave()
	return newHeldIterator(db, slice, ro, &r.holds)
}

// GetSnapshot returns a frozen view of the database. It must be released.
func (r *Replicator) GetSnapshot() (*Snapshot, error) {
	if !r.gate.enter() {
		return nil, ErrClosed
	}
	defer r.gate.leave()
	snap, err := r.store.snapshot()
	if err != nil {
		return nil, err
	}
	return newSnapshot(r, snap), nil
}

// Version returns the stamp of a key's latest change, and whether that was a
// deletion. A key that was never written through a Replicator, or is not adopted
// yet, gives leveldb.ErrNotFound.
func (r *Replicator) Version(key []byte) (Version, error) {
	if !r.gate.enter() {
		return Version{}, ErrClosed
	}
	defer r.gate.leave()
	record, err := lookup(r.store, key)
	return record.Version, err
}

// Digest reads the whole database, as it is at the call. A key that is not
// adopted yet counts with the stamp that adoption will give it. Close does not wait
// for it: Digest then returns ErrClosed.
func (r *Replicator) Digest() (Digest, error) {
	if !r.gate.enter() {
		return Digest{}, ErrClosed
	}
	defer r.gate.leave()
	return r.store.digest(r.gate.isClosed)
}

// Addr returns the address that peers can dial, or nil when not listening.
func (r *Replicator) Addr() net.Addr { return r.addr }

// AddPeer adds a peer to dial, or replaces the metadata of one. It returns
// before the peer is reached; see Status and SyncNow. It fails if the address is
// empty, and with ErrClosed. Without Options.Dial it also fails if the address is
// malformed, or not a loopback address (see Options.Insecure).
func (r *Replicator) AddPeer(addr string, meta Meta) error {
	if err := r.options.checkPeer(addr); err != nil {
		return fmt.Errorf("replicator: add peer: %w", err)
	}
	return r.syncer.addPeer(addr, meta)
}

// RemovePeer stops dialling a peer, and ends the session that was dialled. The
// peer stays known, and can still dial in. It fails with ErrUnknownPeer if the
// address was not added, and with ErrClosed.
func (r *Replicator) RemovePeer(addr string) error { return r.syncer.removePeer(addr) }

// SyncNow returns once everything in reachable peers' logs at the time of the call
// has been merged here. It dials each configured address at which it is not known
// who is there at this moment: those without a session, and those whose session
// the peer dialled itself. It returns, joined, a *PeerError for each peer that
// could not be reached or did not finish before ctx was done. Peers that dialled
// in are waited for, too.
func (r *Replicator) SyncNow(ctx context.Context) error { return r.syncer.syncNow(ctx) }

// Close ends all sessions, waits for everything that runs in the background,
// makes what was written durable, and marks the database as cleanly closed. It
// writes what is not in leveldb's tables yet and little more. Later calls of all
// methods return ErrClosed; of this one, nil.
//
// If a write failed since Open, Close returns that error, ErrFailed, and the
// database is not marked: after a power cut the next opening then pulls from its
// peers what may be missing.
//
// The leveldb handle stays open, unless it was opened by OpenFile: then, while
// iterators or snapshots are not released, Close returns ErrInUse and can be
// called again. An open leveldb.Transaction of the caller's makes Close wait.
func (r *Replicator) Close() error {
	r.closing.Lock()
	defer r.closing.Unlock()
	if r.closed {
		return nil
	}
	if !r.stopped {
		r.gate.close()
		r.syncer.stop()
		if err := r.store.close(); err != nil {
			r.closedErr = fmt.Errorf("%w; the database is not marked as cleanly closed", err)
		}
		r.stopped = true
	}
	if r.store.isLost() { // the handle stays taken, and can't be closed
		r.closed = true
		return fmt.Errorf("%w; %w", r.closedErr, errLost)
	}
	registry.Delete(r.db)
	if r.owned {
		if n := r.holds.count(); n > 0 {
			return fmt.Errorf("%w: close: %d iterators or snapshots are not released: release them and close again", ErrInUse, n)
		}
		r.closedErr = errors.Join(r.closedErr, r.db.Close())
	}
	r.closed = true
	return r.closedErr
}
