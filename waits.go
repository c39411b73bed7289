package replicator

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns waiting: for a change from elsewhere to be here, and for changes made
// here to be at peers.

// waits are those who wait for peers to have what was written here.
type waits struct {
	some atomic.Int32 // number of waits

	mu      sync.Mutex // guards what follows
	all     map[*wait]struct{}
	changed chan struct{} // closed and replaced when a peer has stated something
}

// wait is for peers to have merged this replica's log up to a head, or to have made that
// durable.
type wait struct {
	head    uint64
	durable bool
}

func newWaits() *waits {
	return &waits{all: map[*wait]struct{}{}, changed: make(chan struct{})}
}

func (w *waits) add(of *wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[of] = struct{}{}
	w.some.Add(1)
}

func (w *waits) remove(of *wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, of)
	w.some.Add(-1)
}

// wake has all look at what peers have stated.
func (w *waits) wake() {
	if w.some.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
}

// next returns a channel that is closed when a peer states something.
func (w *waits) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// isAwaited reports whether somebody waits for a peer to come further than a checkpoint.
func (w *waits) isAwaited(checkpoint uint64) bool {
	return w.some.Load() > 0 && w.any(func(of *wait) bool { return of.head > checkpoint })
}

// awaitsFlush reports whether somebody waits for what a peer has merged to be durable
// there, and it is not.
func (w *waits) awaitsFlush(s stated) bool {
	return w.some.Load() > 0 && !s.merged.isZero() && w.any(func(of *wait) bool {
		made := s.durable.epoch == s.merged.epoch && s.durable.seq >= of.head
		return of.durable && s.merged.seq >= of.head && !made
	})
}

func (w *waits) any(is func(*wait) bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for of := range w.all {
		if is(of) {
			return true
		}
	}
	return false
}

// waitPeers implements Replicator.WaitMerged and Replicator.WaitReplicated.
func (y *syncer) waitPeers(ctx context.Context, n int, durable bool) error {
	if n <= 0 {
		return nil
	}
	origin := y.store.origin()
	of := &wait{y.store.head(), durable}
	y.waits.add(of)
	defer y.waits.remove(of)
	_, sessions := y.connections()
	for _, s := range sessions {
		signal(s.look)
	}
	for {
		changed := y.waits.next()
		if y.store.origin() != origin {
			return errImage // what was written before the call is in doubt
		}
		if y.store.holders(of.head, durable) >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-y.ctx.Done():
			return context.Cause(y.ctx)
		}
	}
}

// waitFor implements Replicator.WaitFor.
func (y *syncer) waitFor(ctx context.Context, stamp Stamp, key []byte, keyed bool) error {
	merges := y.store.subscribe()
	defer y.store.unsubscribe(merges)
	for {
		// Only what is looked at after the subscription counts: a commit in between
		// would wake nobody.
		if here, err := y.store.has(stamp, key, keyed); here || err != nil {
			return err
		}
		select {
		case <-merges.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-y.ctx.Done():
			return context.Cause(y.ctx)
		}
	}
}

// has reports whether a change is known here, or the record of its key, if that is
// given, is of this change or a later one.
func (d *store) has(stamp Stamp, key []byte, keyed bool) (bool, error) {
	if d.known.covers(stamp) {
		return true, nil
	}
	if !keyed {
		return false, nil
	}
	record, err := lookup(d, key)
	if err == leveldb.ErrNotFound {
		return false, nil
	}
	return err == nil && record.Stamp.Compare(stamp) >= 0, err
}
