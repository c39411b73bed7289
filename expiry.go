package replicator

import "context"

// sweep removes the log records below the floor, which nobody is served any
// more: after a discontinuous opening, all that were there.
func (r *Replicator) sweep(ctx context.Context) {
	for swept := uint64(0); ctx.Err() == nil; {
		last, err := r.sweepSome(swept)
		if err != nil {
			r.options.Logger.Error("replicator: could not remove old log records", "error", err)
		}
		if err != nil || last == swept {
			return
		}
		swept = last
	}
}

// sweepSome removes the first old records after a sequence, and returns the last
// sequence that it removed. What is removed is not to be passed again: leveldb
// has to step over all of it.
func (r *Replicator) sweepSome(after uint64) (last uint64, err error) {
	const batch = 1000
	var old []uint64
	it := r.db.NewIterator(logRange(after, r.floor-1), nil)
	for len(old) < batch && it.Next() {
		old = append(old, rowSequence(it.Key()))
	}
	it.Release()
	if err := it.Error(); err != nil || len(old) == 0 {
		return after, err
	}
	return old[len(old)-1], r.commits.enter(false, func(s *committer) error {
		for _, seq := range old {
			s.deleteLogRecord(seq)
		}
		return nil
	})
}
