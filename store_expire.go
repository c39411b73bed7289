package replicator

import "context"

// This file owns the removal of log records that are no longer served.

// sweep removes the log records below the floor, which are no longer served. After a
// discontinuous opening, these are all the records that the log held.
func (d *store) sweep(ctx context.Context) {
	for swept := uint64(0); ctx.Err() == nil; {
		last, err := d.sweepSome(swept)
		if err != nil {
			d.settings.logger.Error("replicator: could not remove old log records", "error", err)
		}
		if err != nil || last == swept {
			return
		}
		swept = last
	}
}

// sweepSome removes the first old records after a sequence, and returns the last
// sequence that it removed. The next call must continue from there, because leveldb
// would have to step over every removed record.
func (d *store) sweepSome(after uint64) (last uint64, err error) {
	const batch = 1000
	var old []uint64
	it := d.NewIterator(logRange(after, d.commits.visible.floor.Load()-1), nil)
	for len(old) < batch && it.Next() {
		old = append(old, rowSequence(it.Key()))
	}
	it.Release()
	if err := it.Error(); err != nil || len(old) == 0 {
		return after, err
	}
	return old[len(old)-1], d.enter(false, func(x *section) error {
		for _, seq := range old {
			x.drop(seq)
		}
		return nil
	})
}
