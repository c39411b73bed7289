package replicator

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the store: the local database with its change log, as the floors
// above see it.

// store is one database with its change log, its index, its vector and its records of
// peers. It knows nothing of connections. Its methods are safe for concurrent use.
type store struct {
	engine
	commits   committer
	known     knowledge
	settings  storeSettings
	adopter   *adopter
	durable   durability
	conflicts conflicts
	sums      sums
	expiry    expiry
	reaper    reaper
	rejoining atomic.Pointer[rejoin] // nil: this replica does not rejoin; set in the commit section
	first     atomic.Pointer[firstSync]
	feeds     atomic.Int32 // number of feeds that are open
	unmerged  atomic.Int64 // how many wait for a rejoin to end
	recovered atomic.Bool  // what recovered files lack is yet to be pulled
	imaged    time.Time    // when an epoch began because of an image; belongs to the commit section

	ctx    context.Context // done when the background work must end
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex // guards the fields below
	name      DatabaseID // the database's id
	peers     map[DatabaseID]*peerRecord
	forgotten map[DatabaseID]string // peers that are refused, and their names

	subscribers struct {
		sync.Mutex
		list []*subscription
	}
	wakes    atomic.Pointer[[]*subscription] // a copy of the list, for the commit section
	meetings atomic.Uint64                   // number of epochs of peers recorded since the opening

	rejoins    atomic.Uint64 // number of rejoins since the opening: what was read before shows what they dropped
	statements atomic.Uint64 // number of times that a peer stated what it has durably
}

// storeSettings are the options that concern the store.
type storeSettings struct {
	logger       *slog.Logger
	maxValue     int    // bytes
	localPrefix  []byte // of keys that are not replicated; empty: all are
	skipAdoption bool
	recovered    bool
	onConflict   func(Conflict)
	bootID       string
	backlog      int // bytes
	durableEvery time.Duration
	expiry       expirySettings
	clock        clockRules
	tombstoneAge time.Duration       // how long tombstones are kept; 0: for ever
	pageEntries  int                 // maximum number of entries in a page
	rescan       func() bool         // for tests: decides whether a long log scan becomes a scan in key order
	origins      func() Origin       // for tests: takes the place of newOrigin
	engine       func(engine) engine // for tests: wraps the database
}

// isLocal reports whether a key is not replicated.
func (s *storeSettings) isLocal(key []byte) bool {
	return len(s.localPrefix) > 0 && bytes.HasPrefix(key, s.localPrefix)
}

// drawOrigin names a new epoch.
func (s *storeSettings) drawOrigin() Origin {
	if s.origins != nil {
		return s.origins()
	}
	return newOrigin()
}

// openStore opens the store of a database and starts its background work.
func openStore(db *leveldb.DB, settings storeSettings) (*store, error) {
	var e engine = &levelEngine{DB: db}
	if settings.engine != nil {
		e = settings.engine(e)
	}
	op, err := readOpening(e, &settings)
	if err != nil {
		return nil, err
	}
	d := newStore(op, settings)
	d.wg.Go(func() { d.adopter.run(d.ctx) })
	d.wg.Go(func() { d.expire(d.ctx) })
	if settings.tombstoneAge > 0 {
		d.wg.Go(func() { d.reap(d.ctx) })
	}
	d.wg.Go(func() { d.keepDurable(d.ctx) })
	d.wg.Go(func() { d.keepLive(d.ctx) })
	if d.conflicts.handler != nil {
		d.wg.Go(func() { d.conflicts.run(d.ctx) })
	}
	return d, nil
}

// newStore returns the store that goes on from an opening, without background work.
func newStore(op *opening, settings storeSettings) *store {
	d := &store{
		engine: op.engine, settings: settings, name: op.id, peers: op.peers, forgotten: op.forgotten,
		commits: committer{engine: op.engine, pool: new(sync.Pool), over: make(chan struct{})},
	}
	origin := op.history[len(op.history)-1].origin
	d.commits.section = section{
		c: &d.commits, d: d, origin: origin, batch: new(leveldb.Batch),
		clock: op.clock, above: op.clock.next, head: op.head, floor: op.floor, expired: op.expired, gone: op.gone, records: op.records,
	}
	d.conflicts = conflicts{handler: settings.onConflict, wake: make(chan struct{}, 1)}
	d.known.load(op, origin, settings.backlog)
	d.commits.published = d.publish
	d.commits.publish()
	d.durable.load(op.durable)
	d.expiry.marks = op.marks
	d.adopter = newAdopter(d, op.adopt)
	d.sums = newSums()
	d.recovered.Store(op.recovered)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// close ends the background work, makes everything durable and marks the database as
// cleanly closed. Afterwards the store may only be asked for its state.
func (d *store) close() error {
	d.cancel()
	d.wg.Wait()
	d.commits.close()
	err := d.markClean()
	d.engine.settle()
	return err
}

// id returns the database id.
func (d *store) id() DatabaseID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.name
}

func (d *store) head() uint64 { return d.commits.visible.head.Load() }

// failure returns the error that stopped all writes, or nil.
func (d *store) failure() error { return d.commits.failure() }

// failed returns a channel that is closed when a write has failed.
func (d *store) failed() <-chan struct{} { return d.commits.over }

// enter runs work in the commit section. See committer.enter.
func (d *store) enter(sync bool, work func(*section) error) error {
	return d.commits.enter(sync, work)
}

// publish shows readers what a commit did. It is called in the commit section.
func (d *store) publish(local bool) {
	x := &d.commits.section
	if len(x.conflicts) > 0 {
		d.conflicts.add(x.conflicts)
	}
	if len(x.removed) > 0 {
		d.sums.forget()
	}
	if x.head == x.start.head && len(x.removed) == 0 && len(x.learned) == 0 && x.epoch == nil && x.hears == nil {
		return
	}
	d.known.publish(x)
	d.notifyOf(x.changes, local)
}

// subscription tells its holder of commits.
type subscription struct {
	wake  chan struct{} // holds a value if there were commits since the last receive
	local atomic.Bool   // set if one of them was local; cleared by the holder

	prefix []byte // of keys; if it is not empty, commits of others do not matter much
	passed int    // changes of others since the last wake; belongs to the commit section
}

// maxPassed is after how many changes of others a holder is told all the same.
const maxPassed = 1000

// heeds reports whether the holder is to be told of a commit.
func (s *subscription) heeds(changes []change) bool {
	if len(s.prefix) == 0 || len(changes) == 0 || s.passed > maxPassed {
		return true
	}
	for i := range changes {
		if bytes.HasPrefix(changes[i].key, s.prefix) {
			return true
		}
	}
	s.passed += len(changes)
	return false
}

// tell wakes the holder.
func (s *subscription) tell(local bool) {
	if local {
		s.local.Store(true)
	}
	signal(s.wake)
}

// subscribe returns a subscription, which must be ended with unsubscribe.
func (d *store) subscribe() *subscription { return d.subscribeTo(nil) }

// subscribeTo returns a subscription for the sake of the keys with a prefix.
func (d *store) subscribeTo(prefix []byte) *subscription {
	sub := &subscription{wake: make(chan struct{}, 1), prefix: prefix}
	d.resubscribe(func(list []*subscription) []*subscription { return append(list, sub) })
	return sub
}

func (d *store) unsubscribe(sub *subscription) {
	d.resubscribe(func(list []*subscription) []*subscription {
		return slices.DeleteFunc(list, func(s *subscription) bool { return s == sub })
	})
}

func (d *store) resubscribe(change func([]*subscription) []*subscription) {
	s := &d.subscribers
	s.Lock()
	defer s.Unlock()
	s.list = change(slices.Clone(s.list))
	list := s.list
	d.wakes.Store(&list)
}

// notify tells all subscribers that something is new.
func (d *store) notify(local bool) {
	if list := d.wakes.Load(); list != nil {
		for _, sub := range *list {
			sub.tell(local)
		}
	}
}

// notifyOf tells the subscribers of the changes of a commit. It must be called in the commit
// section.
func (d *store) notifyOf(changes []change, local bool) {
	if list := d.wakes.Load(); list != nil {
		for _, sub := range *list {
			if sub.heeds(changes) {
				sub.passed = 0
				sub.tell(local)
			}
		}
	}
}

// signal sends a value to a channel of capacity 1, unless the channel is full.
func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}
