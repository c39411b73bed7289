package replicator_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// order is the order of changes as the design has it, for comparison.
func order(a, b replicator.Entry) int {
	hash := func(e replicator.Entry) uint64 {
		sum := sha256.Sum256([]byte(e.Value))
		return binary.BigEndian.Uint64(sum[:])
	}
	switch {
	case a.Clock != b.Clock:
		return cmp.Compare(a.Clock, b.Clock)
	case a.Origin != b.Origin:
		return cmp.Compare(a.Origin, b.Origin)
	case a.Deleted != b.Deleted:
		if a.Deleted {
			return 1
		}
		return -1
	case a.Deleted:
		return 0
	}
	return cmp.Compare(hash(a), hash(b))
}

// randomEntry is a change to one of few keys, with one of few clocks and origins,
// so that all ways of a tie occur.
func randomEntry(rng *rand.Rand, number int) replicator.Entry {
	e := replicator.Entry{Key: fmt.Sprint("key ", rng.IntN(6)), Value: fmt.Sprint("value ", number)}
	switch rng.IntN(8) {
	case 0: // taken in from before there was a Replicator
		e.Value = fmt.Sprint("old value ", rng.IntN(3))
		e.Origin = adoptedOrigin(e.Value)
	default:
		e.Clock = uint64(rng.IntN(4))
		e.Origin = replicator.Origin(1<<63 + uint64(rng.IntN(4)))
		e.Deleted = rng.IntN(3) == 0
	}
	if e.Deleted {
		e.Value = ""
	}
	return e
}

// TestTotalInAnyOrder gives the same changes to several replicas, in
// another order and grouping each, some of them twice, and with restarts.
func TestTotalInAnyOrder(t *testing.T) {
	t.Parallel()
	eachSeed(t, budget(3, 10, 100), func(t *testing.T, seed int64) {
		inBubble(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 4))
			var entries []replicator.Entry
			winners := map[string]replicator.Entry{}
			for i := range 80 {
				e := randomEntry(rng, i)
				entries = append(entries, e)
				if w, has := winners[e.Key]; !has || order(e, w) > 0 {
					winners[e.Key] = e
				}
			}
			var first replicator.Digest
			for replica := range 6 {
				onDisk(t, simtest.NewDisk(), func(db *leveldb.DB) {
					r := openPlain(t, db, "boot")
					defer func() { require.NoError(t, r.Close()) }()
					all := append(slices.Clone(entries), entries[:20]...)
					rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
					for len(all) > 0 {
						all = all[mergeSome(t, r, all, 1+rng.IntN(8)):]
						if rng.IntN(10) == 0 {
							require.NoError(t, r.Close())
							r = openPlain(t, db, "boot")
						}
					}
					found := readRows(t, db)
					require.Len(t, found.index, len(winners))
					for key, w := range winners {
						require.Equal(t, w.Version, found.index[key].Version, key)
						require.Equal(t, w.Value, found.data[key], key)
					}
					require.NoError(t, found.checkData())
					require.NoError(t, found.checkLog())
					digest, err := r.Digest()
					require.NoError(t, err)
					if replica == 0 {
						first = digest
					}
					require.Equal(t, first, digest)
					// Once more, all of it: nothing is new.
					head := r.Status().Head
					mergeSome(t, r, entries[:1], 1)
					for i := range entries {
						mergeSome(t, r, entries[i:], 1)
					}
					require.Equal(t, head, r.Status().Head, "merge is not idempotent")
				})
			}
		})
	})
}

// mergeSome merges up to most entries in one go, as many as have different keys,
// and returns how many that were.
func mergeSome(t *testing.T, r *replicator.Replicator, entries []replicator.Entry, most int) int {
	var page []replicator.Entry
	for _, e := range entries[:min(most, len(entries))] {
		if slices.ContainsFunc(page, func(o replicator.Entry) bool { return o.Key == e.Key }) {
			break
		}
		page = append(page, e)
	}
	slices.SortFunc(page, func(a, b replicator.Entry) int { return cmp.Compare(a.Key, b.Key) })
	commit, err := replicator.Examine(r, page...)
	require.NoError(t, err)
	_, err = commit()
	require.NoError(t, err)
	return len(page)
}

// TestTotalExchange lets writers meet others in all orders. Whoever has
// met all of them holds the greatest of their changes.
func TestTotalExchange(t *testing.T) {
	t.Parallel()
	const writers = 3
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	inSeeded(t, 4, writers+len(orders), func(t *testing.T, c *cluster) {
		for i := range orders {
			for w := range writers {
				c.link(writers+i, w)
			}
		}
		c.net.Partition([]string{"nobody"})
		for _, n := range c.nodes {
			c.net.Isolate(n.name)
		}
		c.open()
		winners := map[string]replicator.Entry{}
		for step := range 150 {
			n := c.nodes[c.rng.IntN(writers)]
			key, value := fmt.Sprint("key ", c.rng.IntN(25)), fmt.Sprint("value ", step)
			if c.rng.IntN(3) == 0 {
				value = ""
				n.delete(key)
			} else {
				n.put(key, value)
			}
			v, err := n.r.Version([]byte(key))
			require.NoError(t, err)
			if e := (replicator.Entry{Version: v, Key: key, Value: value}); order(e, winners[key]) > 0 || winners[key].Key == "" {
				winners[key] = e
			}
		}
		for step := range writers {
			for i, o := range orders {
				c.net.Partition([]string{c.nodes[writers+i].name, c.nodes[o[step]].name})
				for _, n := range c.nodes {
					if n != c.nodes[writers+i] && n != c.nodes[o[step]] {
						c.net.Isolate(n.name)
					}
				}
				collector := c.nodes[writers+i]
				require.Error(t, collector.sync(), "the others are out of reach")
			}
		}
		for _, n := range c.nodes[writers:] {
			s := n.state()
			require.Len(t, s.versions, len(winners))
			for key, w := range winners {
				require.Equal(t, w.Version, s.versions[key], "%s at %s", key, n.name)
				require.Equal(t, w.Value, s.values[key], "%s at %s", key, n.name)
			}
		}
		c.converge()
	})
}

// TestTotalWrittenInBetween has a key written between the two halves of
// a merge.
func TestTotalWrittenInBetween(t *testing.T) {
	t.Parallel()
	at := func(clock uint64, deleted bool) replicator.Version {
		return replicator.Version{Stamp: replicator.Stamp{Clock: clock, Origin: 1<<63 + 1}, Deleted: deleted}
	}
	put := func(t *testing.T, r *replicator.Replicator) {
		require.NoError(t, r.Put([]byte("key"), []byte("local"), nil))
	}
	remove := func(t *testing.T, r *replicator.Replicator) { require.NoError(t, r.Delete([]byte("key"), nil)) }
	merge := func(e replicator.Entry) func(t *testing.T, r *replicator.Replicator) {
		return func(t *testing.T, r *replicator.Replicator) { mergeSome(t, r, []replicator.Entry{e}, 1) }
	}
	for name, c := range map[string]struct {
		before, between func(t *testing.T, r *replicator.Replicator)
		arrives         replicator.Version
		value           string // that is there in the end
		merged          int
	}{
		"put before an older put":        {put, put, at(0, false), "local", 0},
		"put before an older put, new":   {nil, put, at(0, false), "local", 0},
		"put before an older delete":     {nil, put, at(0, true), "local", 0},
		"delete before an older put":     {nil, remove, at(0, false), "", 0},
		"delete before a newer put":      {put, remove, at(99, false), "arrived", 1},
		"put before a newer put":         {put, put, at(99, false), "arrived", 1},
		"put before a newer delete":      {put, put, at(99, true), "", 1},
		"merge before an older merge":    {put, merge(replicator.Entry{Version: at(70, false), Key: "key", Value: "other"}), at(60, false), "other", 0},
		"merge before a newer merge":     {put, merge(replicator.Entry{Version: at(50, false), Key: "key", Value: "other"}), at(60, false), "arrived", 1},
		"delete merged before the put":   {nil, merge(replicator.Entry{Version: at(60, true), Key: "key"}), at(60, false), "", 0},
		"the same merge before a merge":  {nil, merge(replicator.Entry{Version: at(60, false), Key: "key", Value: "arrived"}), at(60, false), "arrived", 0},
		"nothing in between":             {put, nil, at(99, false), "arrived", 1},
		"older, and nothing in between":  {func(t *testing.T, r *replicator.Replicator) { put(t, r); put(t, r) }, nil, at(0, false), "local", 0},
		"put and put before a newer put": {nil, func(t *testing.T, r *replicator.Replicator) { put(t, r); remove(t, r); put(t, r) }, at(99, false), "arrived", 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				onDisk(t, simtest.NewDisk(), func(db *leveldb.DB) {
					r := openPlain(t, db, "boot")
					defer r.Close()
					// So that local stamps are above clock 0.
					require.NoError(t, r.Put([]byte("a"), nil, nil))
					if c.before != nil {
						c.before(t, r)
					}
					// The key is one of several, which win in any case.
					page := []replicator.Entry{
						{Version: at(100, false), Key: "b", Value: "b"},
						{Version: c.arrives, Key: "key", Value: "arrived"},
						{Version: at(100, true), Key: "z"},
					}
					commit, err := replicator.Examine(r, page...)
					require.NoError(t, err)
					if c.between != nil {
						require.NoError(t, r.Put([]byte("unrelated"), nil, nil))
						c.between(t, r)
					}
					merged, err := commit()
					require.NoError(t, err)
					require.Equal(t, c.merged+2, merged)
					value, err := r.Get([]byte("key"), nil)
					if c.value == "" {
						require.ErrorIs(t, err, leveldb.ErrNotFound)
					} else {
						require.NoError(t, err)
					}
					require.Equal(t, c.value, string(value))
					require.NoError(t, replicator.CheckConsistent(r))
					found := readRows(t, db)
					require.NoError(t, found.checkData())
					require.NoError(t, found.checkLog())
					// What is written here now is above all that was merged.
					put(t, r)
					v, err := r.Version([]byte("key"))
					require.NoError(t, err)
					require.Greater(t, v.Clock, uint64(100))
				})
			})
		})
	}
}

// TestTotalUnderRaces lets merges race each other and local writes to
// the same keys. The version of a key never goes back, the greatest stays, and a
// local change is above all that was there before it.
func TestTotalUnderRaces(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		onDisk(t, simtest.NewDisk(), func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			const rounds = 400
			key := func(n int) string { return fmt.Sprint("key ", n) }
			var greatest [4]struct {
				sync.Mutex
				replicator.Entry
			}
			offer := func(n int, e replicator.Entry) {
				g := &greatest[n]
				g.Lock()
				defer g.Unlock()
				if order(e, g.Entry) > 0 {
					g.Entry = e
				}
			}
			var running atomic.Int64
			var wg sync.WaitGroup
			start := func(work func(rng *rand.Rand, i int)) {
				running.Add(1)
				seed := uint64(running.Load())
				wg.Go(func() {
					defer running.Add(-1)
					rng := rand.New(rand.NewPCG(seed, 4))
					for i := range rounds {
						work(rng, i)
					}
				})
			}
			for m := range 3 { // they merge what is about as new as what is written here
				start(func(rng *rand.Rand, i int) {
					var page []replicator.Entry
					for n := range greatest {
						e := replicator.Entry{Key: key(n), Value: fmt.Sprint("merged ", m, i), Version: replicator.Version{
							Stamp:   replicator.Stamp{Clock: max(2, r.Status().Clock) - 2 + uint64(rng.IntN(5)), Origin: replicator.Origin(1<<63 + uint64(m))},
							Deleted: rng.IntN(4) == 0,
						}}
						if e.Deleted {
							e.Value = ""
						}
						page = append(page, e)
					}
					commit, err := replicator.Examine(r, page...)
					assert.NoError(t, err)
					_, err = commit()
					assert.NoError(t, err)
					for n, e := range page {
						// One that made the same stamp twice would be to blame itself.
						e.Value = ""
						offer(n, e)
					}
				})
			}
			for w := range 3 {
				start(func(rng *rand.Rand, i int) {
					n := rng.IntN(len(greatest))
					before, _ := r.Version([]byte(key(n)))
					assert.NoError(t, r.Put([]byte(key(n)), fmt.Append(nil, "local ", w, i), nil))
					after, err := r.Version([]byte(key(n)))
					assert.NoError(t, err)
					assert.Positive(t, after.Stamp.Compare(before.Stamp), "a local write is not above what was there")
					offer(n, replicator.Entry{Version: after})
				})
			}
			seen := [len(greatest)]replicator.Version{}
			for running.Load() > 0 {
				for n := range greatest {
					v, err := r.Version([]byte(key(n)))
					if err == leveldb.ErrNotFound {
						continue
					}
					require.NoError(t, err)
					require.GreaterOrEqual(t, v.Stamp.Compare(seen[n].Stamp), 0, "%s went back from %v to %v", key(n), seen[n], v)
					seen[n] = v
				}
			}
			wg.Wait()
			found := readRows(t, db)
			for n := range greatest {
				require.Equal(t, greatest[n].Stamp, found.index[key(n)].Stamp, key(n))
			}
			require.NoError(t, found.checkData())
			require.NoError(t, found.checkLog())
			epoch, local := r.Status().Epoch, 0
			latest, above := map[string]replicator.Stamp{}, uint64(0)
			for _, row := range found.log {
				require.GreaterOrEqual(t, row.Stamp.Compare(latest[row.Key]), 0, "record %d: %s went back", row.Seq, row.Key)
				latest[row.Key] = row.Stamp
				if row.Origin == epoch {
					local++
					require.True(t, row.Clock > above || row.Seq == 1, "record %d: clock %d follows %d", row.Seq, row.Clock, above)
				}
				above = max(above, row.Clock)
			}
			t.Logf("%d records, %d of them local", len(found.log), local)
			require.NoError(t, replicator.CheckConsistent(r))
		})
	})
}
