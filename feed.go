package replicator

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"time"
)

// This file owns the feeds that a program reads: their ends, and their waits.

// Here returns the cursor behind everything that is committed, for a feed of what comes
// next.
func (r *Replicator) Here() Cursor { return r.store.here() }

// Changes returns what changes in this database, made here or merged, behind a cursor. When
// all is told, it waits for what comes. From the zero Cursor it begins with the whole state,
// live keys in their order, and then goes on with what changed since.
//
//	for change, err := range r.Changes(ctx, from) {
//		if err != nil {
//			return err
//		}
//		// apply the change, and keep change.Cursor with the result
//	}
//
// A later call goes on right behind a change, with its Cursor: also after a restart, a kill,
// and in the midst of the first state. Whoever starts from the zero Cursor again has to
// forget first what was built before, as keys that were deleted are not told.
//
// Each key's latest change is given, in the order of the log, which is that of the commits
// here. Earlier changes of a key may be left out, and are if the feed falls behind. What
// expired from the log, or was never in it, as with an empty replica's first sync, is given
// in key order, deletions included. A key that changes meanwhile may be given twice with
// the same version, and never goes back to an earlier one. A change that lost a conflict is
// not in the feed; see Conflict and Options.OnConflict. Keys under Options.LocalPrefix are
// not in it. Keys that are being adopted come as they are; those that are not, for
// Options.SkipAdoption, once they are written.
//
// A feed holds a page of at most 500 changes and 1 MiB, or one value that is larger, and
// hardly anything while it waits. It has no goroutine, keeps no log records from expiring,
// and holds up no writer however slow its consumer is. The consumer owns the slices of a
// change. Within the loop it may call any method, Close included. The loop body is called by
// the goroutine of the loop; each loop is a feed of its own.
//
// The last pair has an error, unless the loop was left: the error of ctx; ErrClosed;
// ErrFailed after a failed write, once all is told that was committed before; an error of
// reading; or ErrCursor, at once, for a cursor that is not of this database's history: of
// another database, of a backup's original after the backup was made, of before the last
// 1,024 openings in which changes were made, of before an opening with Recovered, or of
// after the last durable point before a power cut, as what it has seen may be lost.
//
// A consumer that keeps its results and cursor in this database, under
// Options.LocalPrefix, writes both in one batch. To survive a power cut, these batches need
// Sync, as do those of any other keeper: a cursor must not outlive what it stands for.
func (r *Replicator) Changes(ctx context.Context, from Cursor) iter.Seq2[Change, error] {
	return r.Watch(ctx, nil, from)
}

// Watch is like Changes, for the keys that begin with a prefix. A cursor of Watch is for the
// same prefix, or a longer one that begins with it; one of Changes is for any. Keys under
// Options.LocalPrefix or the reserved prefix do not change as far as feeds know: a Watch of
// these waits until ctx is done.
func (r *Replicator) Watch(ctx context.Context, prefix []byte, from Cursor) iter.Seq2[Change, error] {
	prefix = bytes.Clone(prefix)
	return func(yield func(Change, error) bool) {
		f, err := r.openFeed(prefix, from)
		if err != nil {
			yield(Change{}, err)
			return
		}
		defer f.end()
		stop := func() error { return r.ends(ctx) }
		for {
			err := r.nextPage(ctx, f, stop)
			for i := range f.page {
				if err = stop(); err != nil {
					break
				}
				change := f.page[i]
				f.page[i] = Change{} // the consumer's now
				if !yield(change, nil) {
					return
				}
			}
			if err != nil {
				yield(Change{}, err)
				return
			}
		}
	}
}

func (r *Replicator) openFeed(prefix []byte, from Cursor) (*feed, error) {
	if !r.gate.enter() {
		return nil, ErrClosed
	}
	defer r.gate.leave()
	return r.store.openFeed(prefix, from)
}

// ends returns why a feed has to end, or nil.
func (r *Replicator) ends(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.gate.isClosed() {
		return ErrClosed
	}
	return nil
}

// nextPage waits until a feed has something to give. It is inside the gate, and the
// consumer is not.
func (r *Replicator) nextPage(ctx context.Context, f *feed, stop func() error) error {
	if !r.gate.enter() {
		return ErrClosed
	}
	defer r.gate.leave()
	for {
		if err := stop(); err != nil {
			return err
		}
		again, err := f.read(stop)
		if err != nil {
			f.page = nil
			if cause := stop(); cause != nil || errors.Is(err, ErrCursor) {
				return firstError(cause, err)
			}
			return failed("feed", err)
		}
		switch {
		case len(f.page) > 0:
			return nil
		case again == 0:
			continue
		case f.wake == nil:
			f.wake = f.d.subscribeTo(f.prefix) // and look again: what came before wakes nobody
			continue
		}
		f.page = emptied(f.page)
		if err := r.await(ctx, f, again); err != nil {
			return err
		}
	}
}

// await waits until a feed may have something to read.
func (r *Replicator) await(ctx context.Context, f *feed, again time.Duration) error {
	var timeout <-chan time.Time
	failed := f.d.failed()
	if again == awaitsCommit {
		if err := f.d.failure(); err != nil {
			return err // nothing is committed any more
		}
	} else {
		timer := time.NewTimer(again)
		defer timer.Stop()
		timeout, failed = timer.C, nil
	}
	select {
	case <-f.wake.wake:
	case <-timeout:
	case <-failed:
	case <-ctx.Done():
	case <-r.gate.closing.Done():
		return ErrClosed
	}
	return nil
}
