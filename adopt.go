package replicator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// adoption is the persisted progress of taking in the keys that a database held
// before it was wrapped.
type adoption struct {
	done             bool
	key              []byte // taken in up to and with this key; nil: none yet
	adopted, skipped uint64
}

func (a *adoption) append(dst []byte) []byte {
	flags := byte(0)
	if a.done {
		flags |= 1
	}
	if a.key != nil {
		flags |= 2
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, a.adopted)
	dst = binary.AppendUvarint(dst, a.skipped)
	return append(dst, a.key...)
}

func parseAdoption(row []byte) (a adoption, err error) {
	if row == nil {
		return a, nil
	}
	r := decoder{rest: row}
	flags := r.byte()
	a.done = flags&1 != 0
	a.adopted = r.uvarint()
	a.skipped = r.uvarint()
	if flags&2 != 0 {
		a.key = append([]byte{}, r.rest...)
	}
	if r.err != nil {
		return a, fmt.Errorf("%w: adoption: %w", errCorrupt, r.err)
	}
	return a, nil
}

const (
	// maxAdoptedKeys and maxAdoptedBytes bound one batch of adopted keys.
	maxAdoptedKeys  = 500
	maxAdoptedBytes = 512 << 10

	// minAdoptionWait and maxAdoptionWait bound the wait after a batch that failed.
	minAdoptionWait = time.Second
	maxAdoptionWait = time.Minute
)

// adopter takes in, in the background, every key that has no index record, with
// clock 0 and a hash of the value for an origin: replicas that start from the
// same copy agree at once, and any change made through a Replicator is newer.
type adopter struct {
	r        *Replicator
	active   atomic.Bool
	progress atomic.Pointer[adoption]
	// lastError is that of the last batch, "" if it went well.
	lastError atomic.Pointer[string]
}

func newAdopter(r *Replicator, op *opening) *adopter {
	a := &adopter{r: r}
	state := op.adopt
	a.progress.Store(&state)
	a.active.Store(!state.done && !r.options.SkipAdoption)
	return a
}

// running reports whether there may be keys that are yet to be taken in.
func (a *adopter) running() bool { return a.active.Load() }

// run adopts batch after batch until all is taken in. After a failed read it tries
// again: until all is taken in, peers lack old keys.
func (a *adopter) run(ctx context.Context) {
	if !a.running() {
		return
	}
	// What was written before the opening may not be durable yet. A power cut must
	// not take a value and leave the index row that adoption made of it.
	if a.r.commits.enter(false, (*committer).flush) != nil {
		return // and no more writes are possible
	}
	for wait := minAdoptionWait; ctx.Err() == nil; {
		done, err := a.step()
		a.noteError(err)
		switch {
		case done:
			p := a.progress.Load()
			a.r.options.Logger.Info("replicator: adoption completed", "adopted", p.adopted, "skipped", p.skipped)
			return
		case err == nil:
			wait = minAdoptionWait
		case errors.Is(err, ErrFailed), errors.Is(err, ErrClosed):
			return
		default:
			if wait == minAdoptionWait {
				a.r.options.Logger.Error("replicator: adoption can't go on; it is tried again", "error", err)
			}
			pause(ctx, wait)
			wait = min(2*wait, maxAdoptionWait)
		}
	}
}

func (a *adopter) noteError(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.lastError.Store(&text)
}

// status tells how far adoption is.
func (a *adopter) status() AdoptionStatus {
	p := a.progress.Load()
	s := AdoptionStatus{Done: p.done, Adopted: p.adopted, Skipped: p.skipped}
	if text := a.lastError.Load(); text != nil {
		s.LastError = *text
	}
	return s
}

// step adopts one batch.
func (a *adopter) step() (done bool, err error) {
	head := a.r.commits.visible.head.Load()
	next := *a.progress.Load()
	keys, versions, err := a.unindexed(&next)
	if err != nil {
		return false, err
	}
	err = a.r.commits.enter(false, func(s *committer) error {
		written := map[string]bool{}
		if err := s.writtenSince(head, func(key []byte) { written[string(key)] = true }); err != nil {
			return err
		}
		for i, key := range keys {
			if !written[string(key)] {
				s.clock.witness(0)
				s.appendRow(rowLog, key, nil, versions[i], s.head+1)
				s.appendRow(rowIndex, key, nil, versions[i], s.head+1)
				s.grow(1)
				next.adopted++
			}
		}
		s.batch.Put(metaKey(metaAdoption), next.append(nil))
		return nil
	})
	if err != nil {
		return false, err
	}
	a.progress.Store(&next)
	a.active.Store(!next.done)
	return next.done, nil
}

// unindexed collects the next keys without an index record, with the versions
// that their values give them, and moves the progress past them.
func (a *adopter) unindexed(progress *adoption) (keys [][]byte, versions []Version, err error) {
	var from, fromIndex util.Range
	if progress.key != nil {
		from.Start = append(append([]byte{}, progress.key...), 0)
	}
	fromIndex = *tableRange(tableIndex)
	fromIndex.Start = tableKey(nil, tableIndex, from.Start)
	it := newUserIterator(a.r.db, &from, nil)
	defer it.Release()
	index := newWalker(a.r.db, &fromIndex)
	defer index.release()
	var row []byte
	for seen, size := 0, 0; seen < maxAdoptedKeys && size < maxAdoptedBytes; seen++ {
		if !it.Next() {
			progress.done = it.Error() == nil
			break
		}
		key, value := it.Key(), it.Value()
		row = tableKey(row[:0], tableIndex, key)
		progress.key = append([]byte{}, key...)
		size += len(key)
		switch {
		case index.find(row):
		case len(key) > MaxKeySize || len(value) > a.r.options.MaxValueSize:
			progress.skipped++
		default:
			keys = append(keys, progress.key)
			versions = append(versions, adoptedVersion(value))
		}
	}
	if err := it.Error(); err != nil {
		return nil, nil, err
	}
	return keys, versions, index.Error()
}
