package replicator

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns adoption: stamping the keys that a database held before it was wrapped.

// adoption is the progress of adoption. It is persisted.
type adoption struct {
	id               adoptionID // 0 if none was needed yet
	done             bool
	key              []byte // adopted up to and including this key; nil: none yet
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
	dst = binary.BigEndian.AppendUint64(dst, uint64(a.id))
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
	a.id = adoptionID(r.uint64())
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

// adopter adopts, in the background, every key that has no index record. The stamp of
// an adopted key has clock 0, and a hash of the value as its origin. So replicas that
// start from the same copy agree at once, and every change made through a Replicator is
// newer.
type adopter struct {
	d        *store
	active   atomic.Bool
	progress atomic.Pointer[adoption]
	// lastError is why the last batch failed, or "".
	lastError atomic.Pointer[string]
}

func newAdopter(d *store, state adoption) *adopter {
	a := &adopter{d: d}
	a.progress.Store(&state)
	a.active.Store(!state.done && !d.settings.skipAdoption)
	return a
}

// running reports whether there may be keys that are not adopted yet.
func (a *adopter) running() bool { return a.active.Load() }

// run adopts batches until all keys are adopted. After a failed read it tries again:
// peers lack old keys until all are adopted.
func (a *adopter) run(ctx context.Context) {
	if !a.running() {
		return
	}
	// Writes from before the opening may not be durable yet. A power cut must not
	// lose a value and keep the index row that adoption derived from it.
	if a.d.enter(false, func(*section) error { return a.d.commits.flush() }) != nil {
		return // no more writes are possible
	}
	for wait := minAdoptionWait; ctx.Err() == nil; {
		done, err := a.step()
		a.noteError(err)
		switch {
		case done:
			p := a.progress.Load()
			a.d.settings.logger.Info("replicator: adoption completed", "adopted", p.adopted, "skipped", p.skipped)
			return
		case err == nil:
			wait = minAdoptionWait
		case errors.Is(err, ErrFailed), errors.Is(err, ErrClosed):
			return
		default:
			if wait == minAdoptionWait {
				a.d.settings.logger.Error("replicator: adoption can't go on; it is tried again", "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, maxAdoptionWait)
		}
	}
}

// awaitAdoption waits until all keys are adopted, but not for ever.
func (d *store) awaitAdoption(ctx context.Context, most time.Duration) error {
	commits := d.subscribe()
	defer d.unsubscribe(commits)
	timer := time.NewTimer(most)
	defer timer.Stop()
	for d.adopter.running() {
		select {
		case <-commits.wake:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (a *adopter) noteError(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.lastError.Store(&text)
}

// fault returns why the last batch failed, or "".
func (a *adopter) fault() string {
	if text := a.lastError.Load(); text != nil {
		return *text
	}
	return ""
}

// step adopts one batch.
func (a *adopter) step() (done bool, err error) {
	head := a.d.head()
	next := *a.progress.Load()
	found, err := a.unindexed(&next)
	if err != nil {
		return false, err
	}
	return a.adopt(head, found, next)
}

// adopt commits what was found as of a head.
func (a *adopter) adopt(head uint64, found []change, next adoption) (done bool, err error) {
	var point durablePoint
	err = a.d.enter(next.done, func(x *section) error {
		written := map[string]bool{}
		all, err := a.d.writtenSince(x, head, func(key []byte) { written[string(key)] = true })
		if err != nil {
			return err
		}
		for _, ch := range found {
			taken := written[string(ch.key)]
			if !all { // some of what was written since has expired
				if taken, err = hasIndex(a.d, ch.key); err != nil {
					return err
				}
			}
			if !taken {
				x.clock.witness(0)
				x.add(ch)
				next.adopted++
			}
		}
		x.put(metaKey(metaAdoption), next.append(nil))
		if !next.done {
			return nil
		}
		// The mark tells peers that whoever knows it has every adopted value. A power
		// cut must not leave the mark and take values, or the progress.
		if err := x.mark(next.id); err != nil {
			return err
		}
		if err := a.d.commits.flush(); err != nil {
			return err
		}
		point = a.d.capture(x, next)
		x.put(metaKey(metaDurable), point.append(nil))
		return nil
	})
	if err != nil {
		return false, err
	}
	if next.done {
		a.d.durable.set(point)
	}
	a.progress.Store(&next)
	if next.done {
		a.active.Store(false)
		a.d.notify(false) // who waits for that was woken too early by the commit
	}
	return next.done, nil
}

// hasIndex reports whether a key has an index record.
func hasIndex(db reader, key []byte) (bool, error) {
	_, err := lookup(db, key)
	if err == leveldb.ErrNotFound {
		return false, nil
	}
	return err == nil, err
}

// unindexed collects the next keys without an index record, and the versions that
// adoption gives them. It moves the progress past these keys.
func (a *adopter) unindexed(progress *adoption) (found []change, err error) {
	var from, fromIndex util.Range
	if progress.key != nil {
		from.Start = append(append([]byte{}, progress.key...), 0)
	}
	fromIndex = *tableRange(tableIndex)
	fromIndex.Start = tableKey(nil, tableIndex, from.Start)
	it := newUserIterator(a.d, &from, nil)
	defer it.Release()
	index := newWalker(a.d, &fromIndex)
	defer index.release()
	var row []byte
	for seen, size := 0, 0; seen < maxAdoptedKeys && size < maxAdoptedBytes; seen++ {
		if !it.Next() || a.d.settings.isLocal(it.Key()) && !it.seekBehind(prefixRange(a.d.settings.localPrefix)) {
			progress.done = it.Error() == nil
			break
		}
		key, value := it.Key(), it.Value()
		row = tableKey(row[:0], tableIndex, key)
		progress.key = append([]byte{}, key...)
		size += len(key)
		switch {
		case index.find(row):
		case len(key) > MaxKeySize || len(value) > a.d.settings.maxValue:
			progress.skipped++
		default:
			found = append(found, adoptedChange(progress.key, value))
		}
	}
	if err := it.Error(); err != nil {
		return nil, err
	}
	return found, index.Error()
}

// adoptedChange is what takes a value in that is there already.
func adoptedChange(key, value []byte) change {
	return change{key: key, Version: adoptedVersion(value), dataless: true, size: len(value)}
}

func newAdoptionID() adoptionID {
	var b [8]byte
	rand.Read(b[:])
	return adoptionID(binary.BigEndian.Uint64(b[:]) | 1) // not 0
}
