package replicator

import (
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

// store is one database with its change log, index, vector, and what is remembered
// of peers. It knows nothing of connections. Its methods are safe for concurrent use.
type store struct {
	engine
	commits  committer
	known    knowledge
	settings storeSettings
	adopter  *adopter
	durable  durability
	scans    atomic.Int64 // of peers' databases that are under way
	imaged   time.Time    // when an epoch began because of an image; belongs to the commit section

	ctx    context.Context // done when the background work must end
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	name  DatabaseID // the database's id
	peers map[DatabaseID]*peerRecord

	subscribers struct {
		sync.Mutex
		list []*subscription
	}
	wakes    atomic.Pointer[[]*subscription] // the same, for the commit section
	meetings atomic.Uint64                   // epochs of peers noted since the opening
}

// storeSettings is what the store must know of its owner's wishes.
type storeSettings struct {
	logger       *slog.Logger
	maxValue     int // bytes
	skipAdoption bool
	recovered    bool
	bootID       string
	backlog      int // bytes
	durableEvery time.Duration
	pageEntries  int         // the greatest number of entries in a page
	rescan       func() bool // for tests; decides whether a long scan of the log becomes one in key order
}

// openStore opens the store of a database and starts its background work.
func openStore(db *leveldb.DB, settings storeSettings) (*store, error) {
	e := &levelEngine{DB: db}
	op, err := readOpening(e, &settings)
	if err != nil {
		return nil, err
	}
	d := &store{
		engine: e, settings: settings, name: op.id, peers: op.peers,
		commits: committer{engine: e, over: make(chan struct{})},
	}
	origin := op.history[len(op.history)-1].origin
	d.commits.section = section{
		c: &d.commits, d: d, origin: origin, batch: new(leveldb.Batch),
		clock: op.clock, above: op.clock.next, head: op.head, floor: op.floor, records: op.records,
	}
	d.known.load(op.head, origin, op.history, op.vector, op.adoptions, settings.backlog)
	d.commits.published = d.publish
	d.commits.publish()
	d.durable.load(op.durable)
	d.adopter = newAdopter(d, op.adopt)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.wg.Go(func() { d.adopter.run(d.ctx) })
	d.wg.Go(func() { d.sweep(d.ctx) })
	d.wg.Go(func() { d.keepDurable(d.ctx) })
	return d, nil
}

// close ends the background work, makes everything durable and marks the database
// as cleanly closed. After it, only the store's state may be read.
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

// failure returns the error that stopped the writes, or nil. The channel that failed
// returns is closed when there is one.
func (d *store) failure() error          { return d.commits.failure() }
func (d *store) failed() <-chan struct{} { return d.commits.over }

// enter runs work inside the commit section; see committer.enter.
func (d *store) enter(sync bool, work func(*section) error) error {
	return d.commits.enter(sync, work)
}

// publish shows readers what a commit did. It is called in the commit section.
func (d *store) publish(local bool) {
	x := &d.commits.section
	if x.head == x.start.head && len(x.learned) == 0 && x.epoch == nil {
		return
	}
	d.known.publish(x)
	d.notify(local)
}

// subscription tells its holder of commits.
type subscription struct {
	wake  chan struct{} // holds something if there were commits since it was last read
	local atomic.Bool   // one of them was of callers here; the holder clears it
}

// subscribe returns a subscription, which unsubscribe ends.
func (d *store) subscribe() *subscription {
	sub := &subscription{wake: make(chan struct{}, 1)}
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

// notify tells the subscribers of a commit.
func (d *store) notify(local bool) {
	if list := d.wakes.Load(); list != nil {
		for _, sub := range *list {
			if local {
				sub.local.Store(true)
			}
			signal(sub.wake)
		}
	}
}

// signal puts something into a channel of capacity 1, unless it is full.
func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}
