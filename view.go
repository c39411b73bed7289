package replicator

import (
	"math"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
)

// view is one snapshot of the log: what is read from it fits together.
type view struct {
	*leveldb.Snapshot
	head  uint64            // the snapshot's, once openLog has found it; until then, at most that
	floor uint64            // the snapshot's
	log   iterator.Iterator // over the records that matter to the pull, once openLog was called
}

func (p *pageReader) newView() (*view, error) {
	published := &p.r.commits.visible
	head := published.head.Load()
	snap, err := p.r.db.GetSnapshot()
	if err != nil {
		return nil, err
	}
	// Read after the snapshot was taken, the floor can only be too high.
	return &view{Snapshot: snap, head: head, floor: published.floor.Load()}, nil
}

// openLog finds the head. Of the log's records, those after a sequence are enough
// to look at.
func (v *view) openLog(after uint64) error {
	v.log = v.NewIterator(logRange(after, math.MaxUint64-1), nil)
	if v.log.Last() {
		v.head = max(v.head, rowSequence(v.log.Key())) // the last place may have no record
	}
	if err := v.log.Error(); err != nil || v.head >= after {
		return err
	}
	// Its commit may not be over yet, and the peer may have seen it for all that.
	has, err := v.Has(logKey(after), nil)
	if has {
		v.head = after
	}
	return err
}

func (v *view) release() {
	if v.log != nil {
		v.log.Release()
	}
	v.Snapshot.Release()
}

// knows reports whether all of a cursor's positions are in this log.
func (h history) knows(c *cursor, head uint64) bool {
	for _, p := range []position{c.checkpoint, c.seen, c.upper} {
		if !p.isZero() && !h.contains(p, head) {
			return false
		}
	}
	return c.scan == scanFull || !c.checkpoint.isZero()
}
