package replicator

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the schedules that a careless build of the vector breaks, each a test.
// They are walks through the states of the model check, with steps that are chosen: see
// TestModel for what of it is real. The walk checks after each step what that checks. One
// schedule waits for what it is about: a log that has expired, with lower clocks merged
// last, and then a kill.

// modelWalk is a schedule under way.
type modelWalk struct {
	t *testing.T
	*modelState
}

// newWalk begins a schedule. Nothing in it is counted.
func newWalk(t *testing.T, c modelConfig) *modelWalk {
	c.writes, c.deletes, c.flushes, c.restarts, c.closes, c.cuts, c.breaks, c.losses, c.faults = 99, 99, 99, 99, 99, 99, 99, 99, 99
	c.backlog = max(c.backlog, 1)
	s, err := newModel(c)
	require.NoError(t, err)
	return &modelWalk{t, s}
}

// do takes a step that must be possible.
func (w *modelWalk) do(kind byte, of ...int) {
	w.t.Helper()
	step := modelStep{kind: kind}
	for i, n := range of {
		*[]*byte{&step.a, &step.b, &step.c}[i] = byte(n)
	}
	w.modelState = w.copy()
	done, err := w.take(step)
	require.NoError(w.t, err, "%v", step)
	require.True(w.t, done, "%v is not possible", step)
	w.sound()
}

// sound checks all replicas.
func (w *modelWalk) sound() {
	w.t.Helper()
	for i := range w.r {
		require.NoError(w.t, w.check(i))
	}
}

// has returns whether a replica has a key.
func (w *modelWalk) has(i int, key string) bool {
	_, err := lookup(w.r[i].d, []byte(key))
	return err == nil
}

// knows reports whether a replica knows the change of a number.
func (w *modelWalk) knows(i, change int) bool { return w.r[i].d.known.covers(w.ghost[change].Stamp) }

// ends lets all that is under way end: everybody has and knows the same.
func (w *modelWalk) ends() {
	w.t.Helper()
	require.NoError(w.t, w.heal(false))
}

// modelBatch puts one row.
func modelBatch(key string) *leveldb.Batch {
	b := new(leveldb.Batch)
	b.Put(metaKey(key), nil)
	return b
}

const modelBacklog = 1 << 20

// TestVectorWithheld: a record from elsewhere is held back, and an own one stands behind
// it in the log. That one goes ahead, and is known. The other is not, the checkpoint stays
// in front of it, and it comes though the relay is killed in between.
func TestVectorWithheld(t *testing.T) {
	w := newWalk(t, modelConfig{base: 1, keys: 2, chain: true, backlog: modelBacklog, page: 10})
	w.do(stepWrite, 0, 0)
	w.do(stepPull, 1, 0)
	w.do(stepWrite, 1, 1)
	before := w.pulls[2][1].puller.c
	w.do(stepRead, 2, 1) // what can be held back is
	require.True(t, w.pulls[2][1].page.ahead)
	w.do(stepMerge, 2, 1)
	require.True(t, w.has(2, "k1"), "it went ahead")
	require.False(t, w.knows(2, 1), "the vector covers what was held back")
	require.True(t, w.knows(2, 2))
	require.True(t, before.equal(w.pulls[2][1].puller.c), "the checkpoint moved")
	w.do(stepRestart, 1)
	w.do(stepPull, 2, 1)
	require.True(t, w.knows(2, 1) && w.knows(2, 2))
	w.ends()
}

// TestVectorWithheldAdoption: between a record that is held back and an own one that goes
// ahead, an adoption ends. What it took in does not go ahead, so its mark is not known with
// the own one, though that has the greater clock.
func TestVectorWithheldAdoption(t *testing.T) {
	w := newWalk(t, modelConfig{old: 3, base: 1, keys: 2, backlog: modelBacklog, page: 10})
	w.do(stepWrite, 1, 0)
	w.do(stepPull, 0, 1)
	done, err := w.own(0).d.adopter.step()
	require.NoError(t, err)
	require.True(t, done)
	w.do(stepWrite, 0, 1)
	w.do(stepRead, 2, 0)
	require.True(t, w.pulls[2][0].page.ahead)
	w.do(stepMerge, 2, 0)
	require.True(t, w.has(2, "k1"))
	a, _ := w.r[0].d.known.adoptions()
	require.False(t, a.covered(w.r[2].d.known.all()), "adopted values that are not here are taken for known")
	w.do(stepRestart, 0)
	w.do(stepPull, 2, 0)
	require.True(t, a.covered(w.r[2].d.known.all()))
	for k := range 3 {
		require.True(t, w.has(2, fmt.Sprintf("old%05d", k)))
	}
	w.ends()
}

// TestVectorFirstSyncCut: the first sync of a replica is cut midway, somebody follows it
// there, and it is killed. What it has is in its log and head, nobody takes it for all
// that the source had, and who followed it goes on doing so.
func TestVectorFirstSyncCut(t *testing.T) {
	w := newWalk(t, modelConfig{keys: 4, backlog: modelBacklog, page: 1})
	for k := range 4 {
		w.do(stepWrite, 0, k)
	}
	for range 2 {
		w.do(stepRead, 2, 0)
		w.do(stepMerge, 2, 0)
	}
	w.do(stepBreak, 0, 2)
	w.do(stepPull, 1, 2)
	for change := range 4 {
		require.Equal(t, change < 2, w.has(1, w.ghost[change].key))
		require.False(t, w.knows(1, change), "of what the source had, only a part is here")
	}
	head := w.r[2].d.head()
	w.do(stepRestart, 2)
	require.Equal(t, head, w.r[2].d.head())
	w.do(stepWrite, 2, 0)
	w.do(stepRead, 1, 2)
	page := w.pulls[1][2].page
	require.False(t, page.reset, "who followed has to begin anew")
	require.Len(t, page.entries, 1, "what was merged is sent again")
	w.do(stepMerge, 1, 2)
	w.do(stepRead, 2, 0)
	require.Len(t, w.pulls[2][0].page.entries, 1)
	require.Equal(t, "k2", string(w.pulls[2][0].page.entries[0].key), "the sync goes on where it was cut")
	w.ends()
}

// TestVectorAdoptionCut: a power cut keeps a later batch of an adoption and loses an
// earlier one, and a kill follows the opening after it. All keys are taken in.
func TestVectorAdoptionCut(t *testing.T) {
	const keys = 2*maxAdoptedKeys + 10
	for _, lost := range []int{0, 1} { // the first batch, or the second
		t.Run(fmt.Sprint("batch ", lost), func(t *testing.T) {
			w := newWalk(t, modelConfig{old: keys, cuts: 1, page: 500})
			d := w.own(0).d
			require.NoError(t, d.commits.flush()) // as adopter.run does
			before := len(w.r[0].disk.since)
			for range 2 {
				done, err := d.adopter.step()
				require.NoError(t, err)
				require.False(t, done)
			}
			if lost == 1 {
				require.NoError(t, d.commits.write(modelBatch("later"), false)) // something later has to stay
			}
			loss, found := -1, modelLoss{before + lost, before + lost + 1, len(w.r[0].disk.since)}
			for n, l := range w.r[0].disk.losses() {
				if l == found {
					loss = n
				}
			}
			require.GreaterOrEqual(t, loss, 0, "what is to be lost was synced")
			w.do(stepCut, 0, loss>>8, loss&255)
			w.do(stepRestart, 0)
			d = w.own(0).d
			for n := 0; ; n++ {
				require.Less(t, n, 10)
				if done, err := d.adopter.step(); done {
					require.NoError(t, err)
					break
				}
			}
			for k := range keys {
				require.True(t, w.has(0, fmt.Sprintf("old%05d", k)), "key %d was lost, and is not taken in", k)
			}
			w.sound()
			w.ends()
		})
	}
}

// TestVectorResumedScan: a scan loses its snapshot and goes on with another, while the
// other side changes a key that the scan has not reached, and learns of a third replica's
// changes. At its end neither of these vectors is known.
func TestVectorResumedScan(t *testing.T) {
	for name, broken := range map[string]bool{"snapshot lost": false, "session broken": true} {
		for kind, byKey := range map[string]bool{"log": false, "keys": true} {
			t.Run(name+", "+kind, func(t *testing.T) {
				w := newWalk(t, modelConfig{base: 2, keys: 3, byKey: byKey, page: 1})
				w.do(stepWrite, 0, 0)
				w.do(stepWrite, 0, 1)
				w.do(stepWrite, 0, 2)
				w.do(stepRead, 1, 0)
				w.do(stepMerge, 1, 0)
				require.NotEqual(t, scanNone, w.pulls[1][0].puller.c.scan)
				w.do(stepWrite, 0, 0) // the log is read from its end: it has yet to come, and is passed over
				w.do(stepWrite, 2, 2)
				w.do(stepPull, 0, 2)
				if broken {
					w.do(stepBreak, 0, 1)
				} else {
					w.do(stepLose, 1, 0)
				}
				for w.pulls[1][0].puller.c.scan != scanNone || w.pulls[1][0].puller.c.checkpoint.isZero() {
					w.do(stepRelay, 1, 0)
					w.do(stepMerge, 1, 0)
				}
				require.False(t, w.pulls[1][0].puller.c.joined, "what moved meanwhile is yet to come")
				for change := 2; change < len(w.ghost); change++ {
					require.False(t, w.knows(1, change), "change %d is taken as known", change)
				}
				w.do(stepRestart, 0) // so that nothing is followed from memory
				w.do(stepPull, 1, 0)
				for change := range w.ghost {
					require.True(t, w.knows(1, change))
				}
				w.ends()
			})
		}
	}
}

// TestVectorRisesAlone: a vector rises by a change that loses, so there is no record of
// it. Who follows the log gets to know of it all the same, from memory and from disk, and
// after a kill.
func TestVectorRisesAlone(t *testing.T) {
	for name, backlog := range map[string]int{"memory": modelBacklog, "disk": 0} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", killed: ", killed), func(t *testing.T) {
				w := newWalk(t, modelConfig{base: 1, keys: 1, chain: true, backlog: backlog, page: 10})
				w.do(stepWrite, 0, 0)
				w.do(stepWrite, 1, 0) // the greater origin
				w.do(stepPull, 2, 1)
				head := w.r[1].d.head()
				w.do(stepPull, 1, 0)
				require.True(t, w.knows(1, 1))
				require.Equal(t, head+1, w.r[1].d.head(), "the rise has no place in the log")
				if killed {
					w.do(stepRestart, 1)
					require.Equal(t, head+1, w.r[1].d.head())
				}
				require.False(t, w.knows(2, 1))
				w.do(stepPull, 2, 1)
				require.True(t, w.knows(2, 1))
				w.ends()
			})
		}
	}
}

// TestVectorOwnSuperseded: a change from elsewhere takes the place of an own one, whose
// record goes from the log, and a kill follows. The own one is still known: a peer that
// has told that it knows it does not tell so again.
func TestVectorOwnSuperseded(t *testing.T) {
	w := newWalk(t, modelConfig{base: 1, keys: 1, chain: true, backlog: modelBacklog, page: 10})
	w.do(stepWrite, 0, 0)
	w.do(stepWrite, 1, 0) // the greater origin
	w.do(stepPull, 1, 0)
	w.do(stepPull, 0, 1)
	w.do(stepRestart, 0)
	require.True(t, w.knows(0, 1), "the replica does not know what it made itself")
	w.ends()
}

// TestVectorAdoptionEnds: an adoption ends, and its mark is learned, in the midst of a
// scan that does not hold all that was taken in. The rest is not taken for known, neither
// by the one that scans nor by the one that it asks then.
func TestVectorAdoptionEnds(t *testing.T) {
	const keys = maxAdoptedKeys + 10
	for name, lose := range map[string]bool{"one snapshot": false, "a new snapshot": true} {
		t.Run(name, func(t *testing.T) {
			w := newWalk(t, modelConfig{old: keys, page: maxAdoptedKeys - 10})
			step := func() (done bool) {
				done, err := w.own(0).d.adopter.step()
				require.NoError(t, err)
				return done
			}
			require.False(t, step())
			w.do(stepRead, 1, 0)
			require.Len(t, w.pulls[1][0].page.entries, maxAdoptedKeys-10)
			require.True(t, step())
			a, _ := w.r[0].d.known.adoptions()
			require.Len(t, a, 1)
			w.do(stepMerge, 1, 0)
			if lose {
				w.do(stepLose, 1, 0)
			}
			for w.pulls[1][0].puller.c.scan != scanNone {
				w.do(stepRead, 1, 0)
				w.do(stepMerge, 1, 0)
			}
			known, _ := w.r[1].d.known.adoptions()
			require.Equal(t, a, known, "the mark is learned")
			require.False(t, a.covered(w.r[1].d.known.all()), "not all that was taken in is here")
			w.do(stepPull, 2, 1) // from the one that has a part
			require.False(t, a.covered(w.r[2].d.known.all()))
			w.do(stepPull, 1, 0)
			require.True(t, a.covered(w.r[1].d.known.all()))
			for k := range keys {
				require.True(t, w.has(1, fmt.Sprintf("old%05d", k)), "key %d was left out", k)
			}
			w.do(stepPull, 2, 0)
			w.ends()
			require.True(t, w.has(2, fmt.Sprintf("old%05d", keys-1)))
		})
	}
}

// TestVectorHole: in the midst of a scan there is an index row without its value. What
// else there is arrives, also what is written later, and nothing of it is taken for known
// until the value is there again.
func TestVectorHole(t *testing.T) {
	for kind, base := range map[string]int{"keys": 0, "log": 1} {
		t.Run(kind, func(t *testing.T) {
			w := newWalk(t, modelConfig{base: base, keys: 6, page: 2, holes: true})
			for k := range 5 {
				w.do(stepWrite, 0, k)
			}
			hole := func(changes ...modelChange) { w.own(0).disk.do(modelWrite{changes, false}) }
			hole(modelChange{modelRow{[]byte("k2"), nil}, true})
			w.do(stepPull, 1, 0)
			known := func() (n int) {
				for change := base; change < len(w.ghost); change++ {
					if w.knows(1, change) {
						n++
					}
				}
				return n
			}
			for k := range 5 {
				require.Equal(t, k != 2, w.has(1, fmt.Sprint("k", k)))
			}
			require.Zero(t, known())
			w.do(stepWrite, 0, 5)
			w.do(stepPull, 1, 0)
			require.True(t, w.has(1, "k5"), "what is written later does not arrive")
			require.Zero(t, known())
			record := w.r[1].d.peer(w.r[0].d.id())
			require.EqualValues(t, base, record.place().checkpoint.seq, "the stored checkpoint moved")
			w.do(stepPull, 2, 1)
			require.False(t, w.has(2, "k2"))
			w.do(stepBreak, 0, 1) // as when the scan is repeated
			w.do(stepPull, 1, 0)
			require.Zero(t, known())
			hole(modelChange{modelRow{[]byte("k2"), []byte(w.ghost[base+2].value)}, false})
			w.do(stepBreak, 0, 1)
			w.do(stepPull, 1, 0) // the scan goes on with another snapshot
			require.Zero(t, known())
			w.do(stepPull, 1, 0)
			require.Equal(t, 6, known())
			w.ends()
		})
	}
}
