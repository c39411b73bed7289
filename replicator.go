package replicator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns the door: the methods that a program calls, with their first checks.

// Replicator is a database that keeps itself equal to its peers. Its methods are safe
// for concurrent use.
type Replicator struct {
	db       *leveldb.DB
	owned    bool // Close closes db
	store    *store
	syncer   *syncer
	maxValue int      // bytes
	options  *Options // for the checks of AddPeer
	addr     net.Addr // nil: peers cannot dial in
	gate     gate
	holds    holds
	warnings *warnings
	opened   time.Time

	closing   sync.Mutex // guards the fields below
	stopped   bool       // background work has ended, and the database was marked as clean
	closed    bool
	closedErr error
}

// registry holds the handles that have a Replicator. Two Replicators on one handle would
// issue the same sequences.
var registry sync.Map // *leveldb.DB → struct{}

// Open wraps a database that the caller has opened, and starts to replicate it. The
// caller keeps the ownership of the handle, and must close it after the Replicator: if it
// is closed before, writes and Close return ErrFailed, and the next opening takes the
// database for one that was not closed. The handle should have been opened with
// DisableLargeBatchTransaction, as OpenFile does. Otherwise goleveldb can hang after a
// failed write.
//
// The handle may be used for reads. A write through it is not replicated as a change; if
// it replaces a value that the Replicator knows, replicas may differ. Keys under the
// reserved prefix must not be changed.
//
// Keys that the database already holds are adopted in the background; see Status.
//
// Open fails with ErrInUse if the handle has a Replicator, with ErrReserved if the
// database holds foreign keys under the reserved prefix, with ErrTooLarge if
// Options.MaxValueSize was lowered below the size of a value in the database, and with
// the errors of Options.Validate. It also fails if the address can't be listened on, if the
// storage format is unknown, if Options.Clock or Options.LocalPrefix does not fit the
// database, if its comparer does not sort by bytes, and if it can't be read or written. If
// Open fails, it closes Options.Listener.
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

// OpenFile opens or creates the database at path, and wraps it. Replicator.Close closes
// the database, too. ldb may be nil. OpenFile always sets DisableLargeBatchTransaction,
// because goleveldb can hang after a failed write without it. It returns the errors of
// Open and of goleveldb's OpenFile: EAGAIN ("resource temporarily unavailable") on Unix if
// another process has the database open.
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

// DB returns the leveldb handle. It may be used for reads. A write through it bypasses
// replication; see Open.
func (r *Replicator) DB() *leveldb.DB { return r.db }

func start(db *leveldb.DB, o Options) (*Replicator, error) {
	kept := new(warnings)
	o.Logger = kept.logger(o.Logger)
	listener := o.Listener
	if o.Listen != "" {
		var err error
		if listener, err = net.Listen("tcp", o.Listen); err != nil {
			return nil, fmt.Errorf("replicator: open: %w", err)
		}
	}
	protect, err := o.tlsConfig()
	var d *store
	if err == nil {
		d, err = openStore(db, o.store())
	}
	if err != nil {
		if o.Listen != "" {
			listener.Close()
		}
		return nil, err
	}
	settings := o.sync()
	settings.listener, settings.tls = listener, protect
	r := &Replicator{db: db, store: d, syncer: startSync(d, settings), maxValue: o.MaxValueSize, options: &o, warnings: kept, opened: time.Now()}
	r.gate.init()
	if listener != nil {
		r.addr = listener.Addr()
	}
	for addr, meta := range o.Peers {
		_ = r.syncer.addPeer(addr, meta) // fails only after stop
	}
	return r, nil
}

// Put sets the value of a key. The arguments may be reused after it has returned. An
// empty key and an empty value are valid. Put fails with ErrReserved, ErrTooLarge,
// ErrClock, ErrFailed or ErrClosed.
func (r *Replicator) Put(key, value []byte, wo *opt.WriteOptions) error {
	if err := r.checkWrite(key, value); err != nil {
		return err
	}
	return r.writeOne(key, value, false, wo)
}

// Delete removes a key. Deleting a missing key is not an error; the deletion is
// replicated all the same. Delete fails with the errors of Put.
func (r *Replicator) Delete(key []byte, wo *opt.WriteOptions) error {
	if err := r.checkWrite(key, nil); err != nil {
		return err
	}
	return r.writeOne(key, nil, true, wo)
}

func (r *Replicator) writeOne(key, value []byte, deleted bool, wo *opt.WriteOptions) error {
	p := r.store.commits.newProposal()
	p.key, p.value, p.deleted = key, value, deleted
	if p.keys, p.values = len(key), len(value); !r.store.settings.isLocal(key) {
		p.ops = 1
	}
	p.sync, p.alone = wo.GetSync(), wo.GetNoWriteMerge()
	_, err := r.propose(p)
	return err
}

// Write applies a batch atomically, in one leveldb batch with its change-log records. If
// the batch has several operations on one key, the last one counts. A nil or empty batch
// has no effect. Write fails with the errors of Put. Keys under Options.LocalPrefix may be
// among the others.
//
// The batch is atomic on this replica only. It may arrive at peers in parts.
func (r *Replicator) Write(b *leveldb.Batch, wo *opt.WriteOptions) error {
	_, err := r.commit(b, wo)
	return err
}

// commit is Write, and returns the stamp of the first operation.
func (r *Replicator) commit(b *leveldb.Batch, wo *opt.WriteOptions) (Stamp, error) {
	if b == nil || b.Len() == 0 {
		if r.gate.isClosed() {
			return Stamp{}, ErrClosed
		}
		return Stamp{}, nil
	}
	check := batchCheck{r: r}
	if err := b.Replay(&check); err != nil {
		return Stamp{}, fmt.Errorf("replicator: write: %w", err)
	}
	if check.err != nil {
		return Stamp{}, check.err
	}
	p := r.store.commits.newProposal()
	p.batch, p.ops, p.keys, p.values = b, check.ops, check.keys, check.values
	p.sync, p.alone = wo.GetSync(), wo.GetNoWriteMerge()
	return r.propose(p)
}

func (r *Replicator) propose(p *proposal) (first Stamp, err error) {
	if !r.gate.enter() {
		return Stamp{}, ErrClosed
	}
	defer r.gate.leave()
	return r.store.commits.do(p)
}

// batchCheck finds the first operation of a batch that must be refused.
type batchCheck struct {
	r            *Replicator
	ops          int // on keys that are replicated
	keys, values int // bytes
	err          error
}

func (c *batchCheck) Put(key, value []byte) {
	c.keys += len(key)
	c.values += len(value)
	if !c.r.store.settings.isLocal(key) {
		c.ops++
	}
	if c.err == nil {
		c.err = c.r.checkWrite(key, value)
	}
}

func (c *batchCheck) Delete(key []byte) { c.Put(key, nil) }

// checkWrite refuses keys and values that could not be replicated.
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

// Get returns the value of a key, or leveldb.ErrNotFound. The caller owns the returned
// slice. An empty value may be returned as nil.
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

// NewIterator returns an iterator over the current keys of a range, or of the whole
// database if slice is nil. It skips the reserved range. As with leveldb, the iterator
// must be released, and is not safe for concurrent use. Its keys and values are valid
// until it is moved. If the iterator cannot be made, an empty one is returned whose
// Error method reports the reason.
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

// Version returns the stamp of a key's latest change, and whether that change deleted
// the key. It returns leveldb.ErrNotFound for a key that was neither written through a
// Replicator nor adopted yet, and for one under Options.LocalPrefix.
func (r *Replicator) Version(key []byte) (Version, error) { return r.version(r.store, key) }

func (r *Replicator) version(db reader, key []byte) (Version, error) {
	if !r.gate.enter() {
		return Version{}, ErrClosed
	}
	defer r.gate.leave()
	record, err := lookup(db, key)
	return record.Version, err
}

// Digest returns the digest of the current data. It reads the whole database. A key that
// is not adopted yet counts with the stamp that adoption will give it. Close does not
// wait for Digest to finish: Digest returns ErrClosed instead.
func (r *Replicator) Digest() (Digest, error) {
	if !r.gate.enter() {
		return Digest{}, ErrClosed
	}
	defer r.gate.leave()
	return r.store.digest(r.gate.isClosed)
}

// Addr returns the address that peers can dial, or nil if the Replicator does not
// listen. After Close, it is the address that there was.
func (r *Replicator) Addr() net.Addr { return r.addr }

// AddPeer adds a peer to dial, or replaces the metadata of a peer. It returns before the
// peer is reached; see Status and SyncNow. It fails if the address is empty, and with
// ErrClosed. Without Options.Dial, it also fails if the address is malformed or, without
// ClusterKeys, TLS and Insecure, not a loopback address.
func (r *Replicator) AddPeer(addr string, meta Meta) error {
	if r.gate.isClosed() {
		return ErrClosed
	}
	if err := r.options.checkPeer(addr); err != nil {
		return fmt.Errorf("replicator: add peer: %w", err)
	}
	return r.syncer.addPeer(addr, meta)
}

// RemovePeer stops dialling a peer, and ends the session that was dialled there. The
// record of the peer is kept, and the peer can still dial in. RemovePeer fails with
// ErrUnknownPeer if the address was not added, and with ErrClosed.
func (r *Replicator) RemovePeer(addr string) error { return r.syncer.removePeer(addr) }

// Forget removes what is known of a peer, by the id that Status shows, and refuses it from
// now on, also after a restart. It ends the peer's session. Nothing is kept for the peer any
// more, and it counts for no wait. Forget is for a replica that will not come back. Status
// lists who was forgotten. A peer that was not met yet can be refused in advance.
//
// Ids are what replicas say of themselves, and a replica that was wiped or copied draws a
// new one: to keep a member out for good, rotate ClusterKeys or use Authorize. Addresses are
// still dialled; see RemovePeer. Other replicas are not told.
//
// Forget fails with ErrUnknownPeer if the id is this replica's own or zero, with ErrFailed,
// and with ErrClosed. It must not be called by Authorize.
func (r *Replicator) Forget(id DatabaseID) error {
	if !r.gate.enter() {
		return ErrClosed
	}
	defer r.gate.leave()
	if err := r.syncer.forget(id); err != nil {
		return failed("forget", err)
	}
	return nil
}

// Readmit lets a peer in again that was forgotten, as if it had never been met. It fails
// with ErrUnknownPeer if the peer was not forgotten, with ErrFailed, and with ErrClosed.
func (r *Replicator) Readmit(id DatabaseID) error {
	if !r.gate.enter() {
		return ErrClosed
	}
	defer r.gate.leave()
	if err := r.store.readmit(id); err != nil {
		return failed("readmit", err)
	}
	return nil
}

// SyncNow returns once everything in reachable peers' logs at the time of the call
// has been merged here. It also waits for peers that dialled in. It dials a configured
// address if there is no session with a peer there, or if the peer dialled the session:
// another peer may be at the address by now. A session that this side dialled, or is about
// to, stands for its address as long as it lasts. It returns a *PeerError, joined, for each
// peer that could not be reached or did not finish before ctx was done; ErrFailed after a
// failed write; or ErrClosed.
func (r *Replicator) SyncNow(ctx context.Context) error { return r.syncer.syncNow(ctx) }

// Compare finds the keys in which this replica and a peer differ. peer is a configured
// address, or the id or the name of a connected peer, in the form that Status shows.
//
// Compare first waits until each side has merged what the other had at the call, as far as
// access permits: what is merely under way, and what is written meanwhile, is no
// difference. Then it trusts neither logs nor vectors: it compares fingerprints of ranges
// of keys, of the versions of all keys and deletions, and asks for the records of ranges
// that differ. That costs each side one reading of its index and, for a hundred
// differing keys of a million, about 150 KiB of traffic. A reading serves all comparisons
// for a minute; what changed since follows from the log. A deletion that one side has
// seen, and does not keep any more, is no difference. Values are not looked at; see
// Digest.
//
// It returns the error of ctx, ErrFailed after a failed write here, ErrClosed,
// ErrUnknownPeer, or a *PeerError. While keys are being adopted on one of the sides, it
// fails; see Status.
func (r *Replicator) Compare(ctx context.Context, peer string) (Difference, error) {
	return r.compare(ctx, peer, false)
}

// Repair makes this replica and a peer equal: it merges what the peer has in a later
// version, or alone, and has the peer merge what is here in a later version, or alone. That
// goes beyond what replication does by itself: it includes keys of which a vector claims
// that they are known. It changes only keys that differ, and keeps their stamps. A
// deletion counts as a version like any other.
//
// A side that grants the other ReadOnly access merges nothing of it. Other peers are not
// repaired along with these two.
//
// Repair returns the difference that it found, of which Repaired keys are equal now. It
// waits, and fails, as Compare does; what was merged before an error stays merged.
func (r *Replicator) Repair(ctx context.Context, peer string) (Difference, error) {
	return r.compare(ctx, peer, true)
}

func (r *Replicator) compare(ctx context.Context, peer string, repair bool) (Difference, error) {
	if !r.gate.enter() {
		return Difference{}, ErrClosed
	}
	defer r.gate.leave()
	ctx, cancel := r.gate.within(ctx)
	defer cancel()
	return r.syncer.compareWith(ctx, peer, repair)
}

// Verify reads data, index and log of this replica side by side, as of one moment, and
// reports where they disagree. It finds keys that were written or deleted around the
// Replicator, and what files have lost, but not that the value of a known key was replaced.
// o may be nil. It may run while the database is used; what is written meanwhile is no
// disagreement. It needs a few MiB of memory; leveldb keeps what is replaced meanwhile until
// Verify is done.
//
// With VerifyOptions.Repair it also puts right what can be put right safely. Every key is
// looked at again before it is changed.
//
// Verify looks at this replica alone; see Compare, Digest. It returns the error of ctx,
// ErrFailed, ErrClosed, or that of a failed read.
func (r *Replicator) Verify(ctx context.Context, o *VerifyOptions) (Report, error) {
	if !r.gate.enter() {
		return Report{}, ErrClosed
	}
	defer r.gate.leave()
	ctx, cancel := r.gate.within(ctx)
	defer cancel()
	report, err := r.syncer.verify(ctx, o)
	if err != nil {
		err = failed("verify", err)
	}
	return report, err
}

// Rejoin has this replica, which is stale, become one that has seen all deletions of a
// peer: those that the peer has forgotten, too. peer is a configured address, or the id or
// the name of a connected peer, in the form that Status shows. o may be nil. See
// Options.TombstoneAge, and PeerStatus.Stale, which tells where to call it.
//
// Rejoin compares the two replicas as Compare does. Where both have a key, the later
// version wins. What only the peer has is merged, unless it was deleted here. What only
// this replica has is dropped if the peer has seen it, for then it was deleted there;
// otherwise it is kept, and replicated. A kept change that is not clearly later than the
// forgotten deletions is put again, as a new change of this replica. Nothing is changed at
// the peer. While it runs, nothing is merged from other peers, and keys that are to be
// dropped are held in memory.
//
// A rejoin that is cut off has merged some changes and dropped nothing; call it again. If
// this replica is not stale, Rejoin does nothing. If the peer is, it returns ErrStale: call
// Rejoin there. It returns the error of ctx, ErrFailed after a failed write here, ErrClosed,
// ErrUnknownPeer, or a *PeerError.
func (r *Replicator) Rejoin(ctx context.Context, peer string, o *RejoinOptions) (Rejoined, error) {
	if !r.gate.enter() {
		return Rejoined{}, ErrClosed
	}
	defer r.gate.leave()
	ctx, cancel := r.gate.within(ctx)
	defer cancel()
	return r.syncer.rejoinWith(ctx, peer, o)
}

// Close ends all sessions, waits for all background work, makes all writes durable, and
// marks the database as cleanly closed. It writes the data that is not in leveldb's
// tables yet, and little more. Later calls of other methods return ErrClosed; later
// calls of Close return nil.
//
// If a write has failed since Open, Close returns ErrFailed with the cause, and does not
// mark the database. After a power cut, the next opening then pulls any missing data
// from the peers.
//
// Close does not close the leveldb handle, unless OpenFile opened it. In that case, Close
// returns ErrInUse while iterators or snapshots are not released, and can be called
// again. Close waits for an open leveldb.Transaction of the caller.
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
	if r.store.isLost() { // the handle stays registered, and cannot be closed
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
