package replicator

import "context"

// sweep removes the log records below the floor, which nobody is served any
// more: after a discontinuous opening, all that were there.
func (r *Replicator) sweep(ctx context.Context) {
	for ctx.Err() == nil {
		more, err := r.sweepSome()
		if err != nil {
			r.options.Logger.Error("replicator: could not remove old log records", "error", err)
		}
		if err != nil || !more {
			return
		}
	}
}

func (r *Replicator) sweepSome() (more bool, err error) {
	const batch = 1000
	var old []uint64
	it := r.db.NewIterator(logRange(0, r.floor-1), nil)
	for len(old) < batch && it.Next() {
		old = append(old, rowSequence(it.Key()))
	}
	it.Release()
	if err := it.Error(); err != nil || len(old) == 0 {
		return false, err
	}
	return true, r.commits.enter(false, func(s *committer) error {
		for _, seq := range old {
			s.deleteLogRecord(seq)
		}
		return nil
	})
}
