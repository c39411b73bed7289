package replicator_test

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// faultKind is a way in which a disk fails from some operation on.
type faultKind struct {
	name  string
	err   error
	ops   simtest.Op
	once  bool
	reads bool // what is read can fail, too
}

var faultKinds = []faultKind{
	{"EIO, once", syscall.EIO, simtest.AnyOp, true, true},
	{"EIO, for ever", syscall.EIO, simtest.AnyOp, false, true},
	{"ENOSPC, once", syscall.ENOSPC, simtest.OpWrite, true, false},
	{"ENOSPC, for ever", syscall.ENOSPC, simtest.OpWrite, false, false},
	{"fsync, once", syscall.EIO, simtest.OpSync, true, false},
	{"fsync, for ever", syscall.EIO, simtest.OpSync, false, false},
}

// failure returns the fault of which operation number n is the first that fails.
//
// goleveldb panics, in a goroutine of its own, where both a write of a compaction and the
// removal of the table that it was to be fail. Nobody but goleveldb could help that, so
// where more than one operation fails tables can be removed. All else is in the test.
func (k faultKind) failure(n int64) simtest.Fault {
	f := simtest.Failure{Err: k.err, Ops: k.ops, From: n}
	if k.once {
		f.Times = 1
		return f.Fault()
	}
	fault := f.Fault()
	return func(op simtest.Op, fd storage.FileDesc, number int64) error {
		if op == simtest.OpRemove && fd.Type == storage.TypeTable {
			return nil
		}
		return fault(op, fd, number)
	}
}

// TestFaultAtEveryDiskOperation has a replica's disk fail at operations that are spread
// over its life, or at each with -long. The replica stops to write or does not care, and
// is closed in time. Then the disk works again, and what is found on it by the next
// process, or after a power cut, is looked at as after any crash.
func TestFaultAtEveryDiskOperation(t *testing.T) {
	t.Parallel()
	for _, kind := range faultKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			first, stride := int64(1), int64(1)
			if *operation != 0 {
				first = *operation
			} else if !*long {
				stride = max(1, kind.operations(t)/int64(budget(3, 8, 0)))
				first = 1 + stride/2
			}
			came := map[outcome]int{}
			for n := first; came[notReached] < budget(1, 1, 50); n += stride { // some lives are longer
				came[kind.play(t, n)]++
				if *operation != 0 {
					break
				}
			}
			t.Logf("%d operations failed: the replica was not opened %d times, stopped %d times, and went on %d times",
				came[unopened]+came[stopped]+came[unharmed], came[unopened], came[stopped], came[unharmed])
		})
	}
}

// operations returns how many operations of a life are of a kind that can fail.
func (k faultKind) operations(t *testing.T) int64 {
	var count atomic.Int64
	inSeeded(t, 1, 3, func(t *testing.T, c *cluster) {
		l := newLife(c, func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			if op&k.ops != 0 {
				count.Add(1)
			}
			return nil
		})
		require.NoError(t, l.run())
	})
	return count.Load()
}

// play plays a life whose operation number n of a kind fails, and returns what came of
// that: notReached if there are fewer operations.
func (k faultKind) play(t *testing.T, n int64) (came outcome) {
	defer func() {
		if t.Failed() {
			t.Logf("with a fault at operation %d; to repeat: %s", n, repeat(t, n))
		}
	}()
	var left []*image
	inSeeded(t, n, 3, func(t *testing.T, c *cluster) {
		if n%2 == 0 {
			c.expiring(20*time.Millisecond, 1, 4)
		}
		var faults, journal atomic.Int64
		failure := k.failure(n)
		l := newLife(c, func(op simtest.Op, fd storage.FileDesc, _ int64) error {
			if op == simtest.OpWrite && fd.Type == storage.TypeJournal {
				journal.Add(1)
			}
			err := failure(op, fd, 0)
			if err != nil {
				faults.Add(1)
			}
			return err
		})
		defer func() {
			for _, n := range c.nodes {
				n.disk.SetFault(nil)
				n.abandon()
			}
		}()
		var err error
		bounded(t, "the life", 24*time.Hour, func() { err = l.run() })
		if faults.Load() == 0 {
			require.NoError(t, err)
			return
		}
		if err != nil && !(k.reads && !k.once && errors.Is(err, errUnadopted)) {
			require.ErrorContains(t, err, k.err.Error())
		}
		left = append(left, l.image(n))
		came = k.stop(t, l, err, &journal)
		left = append(left, l.image(n))
	})
	if came == notReached {
		return came
	}
	inBubble(t, func(t *testing.T) {
		all := *long || *operation != 0
		for i, im := range left {
			for j, loss := range losses {
				// Where not all is looked at, a kill and one kind of power cut will do, before
				// or after the close.
				if all || n%2 == int64(i) && (j == 0 || n%3 == int64(j-1)) {
					im.examine(t, loss)
					im.meet(t, loss)
				}
			}
		}
	})
	return came
}

// outcome is what comes of a fault.
type outcome int

const (
	notReached outcome = iota
	unopened           // an opening fails
	stopped            // nothing is written any more
	unharmed           // leveldb has tried again, or a peer has
)

// stop checks what a replica does after a fault, with which its life ended if that is an
// error, and closes it.
func (k faultKind) stop(t *testing.T, l *life, ended error, journal *atomic.Int64) (came outcome) {
	n := l.victim
	if came = unharmed; ended != nil && n.r == nil {
		came = unopened
	}
	if n.r != nil && l.closing == nil {
		if ended != nil && !k.once {
			// It may have been a read that failed, or a session that could not go on. A write
			// finds out, if nothing else has.
			require.ErrorIs(t, n.r.Put([]byte("late"), []byte(afterCrash), withSync), replicator.ErrFailed)
		}
		failed := l.failed() != nil
		if failed {
			bounded(t, "what is refused", time.Hour, func() { k.checkStopped(t, l, journal) })
		}
		bounded(t, "Close", time.Minute, func() { l.closing = n.r.Close() })
		if failed {
			require.ErrorIs(t, l.closing, replicator.ErrFailed)
		}
	}
	if l.closing != nil {
		came = stopped
		require.ErrorIs(t, l.closing, replicator.ErrFailed)
		require.ErrorContains(t, l.closing, k.err.Error())
		require.NoError(t, n.r.Close(), "a second time")
	}
	if n.db != nil {
		bounded(t, "Close of the handle", time.Minute, func() { _ = n.db.Close() })
	}
	n.r, n.db = nil, nil
	return came
}

// checkStopped checks that a replica that has failed refuses to write, leaves the
// network, and can be read.
func (k faultKind) checkStopped(t *testing.T, l *life, journal *atomic.Int64) {
	r := l.victim.r
	before := journal.Load()
	var b leveldb.Batch
	b.Put([]byte("late"), nil)
	for name, err := range map[string]error{
		"put": r.Put([]byte("late"), nil, nil), "delete": r.Delete([]byte("late"), withSync),
		"write": r.Write(&b, nil), "sync": l.victim.sync(),
		"compare": second(r.Compare(t.Context(), l.victim.peers[0])), "repair": second(r.Repair(t.Context(), l.victim.peers[0])),
		"rejoin": second(r.Rejoin(t.Context(), l.victim.peers[0], nil)),
	} {
		assert.ErrorIs(t, err, replicator.ErrFailed, name)
		assert.ErrorContains(t, err, k.err.Error(), name)
	}
	time.Sleep(time.Minute) // for the sessions to end
	assert.Zero(t, l.net.Connections(), "a session goes on")
	assert.Equal(t, before, journal.Load(), "there was a write after a failed one")

	unreadable := k.reads && !k.once
	it := r.NewIterator(nil, nil)
	defer it.Release()
	count := 0
	for it.Next() {
		count++
	}
	if unreadable {
		if err := it.Error(); err != nil {
			assert.ErrorContains(t, err, k.err.Error())
		}
		return
	}
	assert.NoError(t, it.Error())
	found := readRows(t, l.victim.db)
	assert.Len(t, found.data, count)
	im := &image{progress: l.now(), life: l}
	assert.NoError(t, im.checkRows(found, false))
	assert.NoError(t, im.checkSafe(found, "kill", false))
}
