package replicator

import "context"

// This file owns what a program can ask of the latest changes, and of how much there is.

// Recent returns the latest changes that were committed here, made here or merged, at most
// n, in the order of their commits. They are those in memory, which is bounded by
// Options.BacklogBytes: none from before Open, and none of an empty replica's first sync.
// Nothing is read from disk, so values of more than 64 KiB and those of adopted keys are
// nil. The caller owns the returned slices. After Close, Recent returns nil. Changes goes on
// from the Cursor of a change.
func (r *Replicator) Recent(n int) []Change {
	if !r.gate.enter() {
		return nil
	}
	defer r.gate.leave()
	return r.store.recent(n)
}

// Count reads the index, without the values. Keys that are not adopted yet are left out.
// If ctx is done before the end, Count returns its error with the number of keys that were
// counted until then. Close does not wait for Count to finish: Count returns ErrClosed
// instead.
func (r *Replicator) Count(ctx context.Context) (Count, error) {
	if !r.gate.enter() {
		return Count{}, ErrClosed
	}
	defer r.gate.leave()
	return r.store.count(func() error {
		if r.gate.isClosed() {
			return ErrClosed
		}
		return ctx.Err()
	})
}

// Size returns how much room the database takes on disk. It reads hardly anything. It fails
// with ErrClosed after Close.
func (r *Replicator) Size() (Size, error) {
	if !r.gate.enter() {
		return Size{}, ErrClosed
	}
	defer r.gate.leave()
	return r.store.sizes()
}
