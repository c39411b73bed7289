package replicator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// begin2027 has the time of a bubble, which begins in 2000, be one that hybrid clocks
// follow.
func begin2027() { time.Sleep(time.Until(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))) }

// inHybrid is inCluster with hybrid clocks.
func inHybrid(t *testing.T, nodes int, test func(t *testing.T, c *cluster)) {
	inCluster(t, nodes, func(t *testing.T, c *cluster) {
		begin2027()
		c.kind = replicator.Hybrid
		test(t, c)
	})
}

// TestHybridLaterWins: of two writes that are made without knowledge of each other, the one
// wins that is made later, however many changes their makers have made before.
func TestHybridLaterWins(t *testing.T) {
	inHybrid(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		a.fill("k", 0, 100, 1)
		c.settleDown()
		c.net.Partition([]string{"n0"}, []string{"n1"})
		a.fill("k", 0, 300, 1)
		a.put("later at b", "a")
		b.put("later at a", "b")
		time.Sleep(time.Millisecond)
		b.put("later at b", "b")
		a.put("later at a", "a")
		c.settleDown()
		for key, want := range map[string]string{"later at a": "a", "later at b": "b"} {
			got, _ := a.get(key)
			require.Equal(t, want, got, key)
		}
		at := a.version("later at a").Time()
		require.WithinDuration(t, time.Now(), at, 2*time.Minute)
		require.Equal(t, at, time.UnixMilli(at.UnixMilli()))
	})
}

// TestHybridAboveEverythingSeen: a change is above all that was seen where it is made,
// whatever the wall clock says.
func TestHybridAboveEverythingSeen(t *testing.T) {
	inHybrid(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		a, b := c.nodes[0], c.nodes[1]
		a.ahead = 50 * time.Minute
		c.open()
		a.put("k", "ahead")
		c.settleDown()
		first := b.version("k")
		require.Equal(t, 50*time.Minute, time.Until(first.Time()).Round(time.Minute))
		b.put("k", "knows it")
		second := b.version("k")
		require.Positive(t, second.Compare(first))
		require.Less(t, second.Time().Sub(first.Time()), time.Second)
		a.put("other", "v")
		c.settleDown()
		got, _ := a.get("k")
		require.Equal(t, "knows it", got)
	})
}

// TestHybridMonotone: a wall clock that jumps back, or far ahead, does not take the clock
// back, over closes, kills and power cuts.
func TestHybridMonotone(t *testing.T) {
	inHybrid(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.open()
		var last replicator.Version
		put := func() {
			before := n.wall()
			for range 3 {
				n.put("k", "v")
				version := n.version("k")
				require.Positive(t, version.Compare(last))
				require.False(t, version.Time().Before(before.Truncate(time.Millisecond)))
				last = version
			}
		}
		put()
		for i, jump := range []time.Duration{0, -time.Hour, 10 * time.Second, 40 * 24 * time.Hour, -40 * 24 * time.Hour, -20 * 365 * 24 * time.Hour, time.Hour} {
			n.ahead += jump // nothing else runs
			put()
			time.Sleep(15 * time.Second)
			put()
			switch i % 3 {
			case 0:
				n.close()
			case 1:
				n.kill()
			default:
				n.powerCut()
			}
			n.open()
			require.Greater(t, n.r.Status().Clock, last.Clock)
			put()
		}
		require.NoError(t, replicator.CheckConsistent(n.r))
	})
}

// TestHybridPowerCut: a power cut takes the clock ahead by ten seconds at most, and the
// ceiling is written once in that time.
func TestHybridPowerCut(t *testing.T) {
	t.Parallel()
	inHybrid(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.ldb.WriteBuffer = roomy
		n.open()
		syncs := 0
		n.disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
			if op == simtest.OpSync && fd.Type == storage.TypeJournal {
				syncs++
			}
			return nil
		})
		for i := range 250 {
			n.put("k", fmt.Sprint(i))
			time.Sleep(400 * time.Millisecond)
		}
		require.LessOrEqual(t, syncs, 11)
		require.GreaterOrEqual(t, syncs, 9)
		last := n.version("k").Time()
		n.disk.SetFault(nil)
		n.powerCut()
		n.open()
		n.put("k", "after")
		ahead := n.version("k").Time().Sub(last)
		require.Positive(t, ahead)
		require.LessOrEqual(t, ahead, 10*time.Second+time.Millisecond)
		require.Empty(t, n.peers)
	})
}

// TestHybridSkew refuses what is more than MaxSkew ahead, in entries and in vectors, tells
// why, and merges it once the wall clock has come up to it.
func TestHybridSkew(t *testing.T) {
	t.Parallel()
	inHybrid(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		a, b := c.nodes[0], c.nodes[1]
		a.ahead = time.Hour + 30*time.Second
		c.open()
		a.put("k", "ahead")
		for range 2 {
			err := b.sync()
			require.ErrorIs(t, err, replicator.ErrClock)
			require.ErrorContains(t, err, "MaxSkew")
			until(t, "the refusal is told", func() bool { return strings.Contains(b.peer("n0").LastError, "1h0m0s ahead") })
			require.Empty(t, b.state().versions, "it is not clamped")
			require.Empty(t, replicator.Vector(b.r))
			time.Sleep(time.Second)
		}
		time.Sleep(30 * time.Second)
		require.NoError(t, b.sync())
		got, _ := b.get("k")
		require.Equal(t, "ahead", got)

		// The clocks are set, and those of a are ahead of what it may be.
		a.close()
		a.ahead = 3 * time.Hour
		a.open()
		a.put("k", "far ahead")
		a.close()
		a.ahead = 0
		a.open()
		require.Contains(t, a.r.Status().Warnings[0].Text, "the wall clock")
		require.ErrorIs(t, b.sync(), replicator.ErrClock)
		time.Sleep(3 * time.Hour)
		c.settleDown()
		got, _ = b.get("k")
		require.Equal(t, "far ahead", got)
	})
}

// TestHybridSkewBound: what is just within MaxSkew is merged, however many changes were made in
// that millisecond. A wall clock that is before 2026 counts as being at its beginning.
func TestHybridSkewBound(t *testing.T) {
	for name, begin := range map[string]time.Time{
		"later":       time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
		"before 2026": time.Date(2025, 12, 31, 23, 30, 0, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(t *testing.T, c *cluster) {
				time.Sleep(time.Until(begin))
				c.kind = replicator.Hybrid
				c.link(1, 0)
				a, b := c.nodes[0], c.nodes[1]
				a.ahead = max(0, time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))) + time.Hour
				c.open()
				for i := range 3 {
					a.put(fmt.Sprint(i), "at the bound")
				}
				require.NoError(t, b.sync())
				require.Len(t, b.live(), 3)
			})
		})
	}
}

// TestHybridConverts opens databases with a Lamport clock as hybrid ones: once, for there is
// no way back, and replicas of different clocks refuse each other.
func TestHybridConverts(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		begin2027()
		c.link(1, 0)
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		a.fill("k", 0, 50, 1)
		c.settleDown()
		require.True(t, a.version("k00000").Time().IsZero())
		lamport := a.disk.Copy()
		a.close()
		c.kind = replicator.Hybrid
		a.open()
		require.True(t, a.version("k00000").Time().IsZero())
		a.put("k00000", "hybrid")
		require.WithinDuration(t, time.Now(), a.version("k00000").Time(), time.Second)
		err := b.sync()
		require.ErrorIs(t, err, replicator.ErrRefused)
		require.ErrorContains(t, err, "Options.Clock")
		b.put("k00000", "loses to any hybrid one")
		b.put("k00001", "b")
		b.powerCut()
		b.open()
		c.settleDown()
		got, _ := b.get("k00000")
		require.Equal(t, "hybrid", got)
		c.close()

		// Neither is anything written by the refusal, nor does a kill undo the conversion.
		before := a.disk.Copy()
		c.kind = replicator.Lamport
		require.ErrorContains(t, a.start(), "set Options.Clock to Hybrid")
		refused := allRows(t, a.db)
		require.NoError(t, a.db.Close())
		onDisk(t, before, func(db *leveldb.DB) { require.Equal(t, allRows(t, db), refused) })

		// A backup of before goes on as what it was, or is opened as a hybrid one, too.
		c.kind = replicator.Hybrid
		b.replaceDisk(lamport)
		b.boot = c.newBoot()
		c.open()
		c.settleDown()
	})
}

// TestHybridCrashWhileConverting cuts the conversion at every operation of the disk.
func TestHybridCrashWhileConverting(t *testing.T) {
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		begin2027()
		n := c.nodes[0]
		n.open()
		n.fill("k", 0, 5, 1)
		n.close()
		before := n.disk
		for at, done := int64(1), false; !done; at++ {
			n.disk = before.Copy()
			disk, left := n.disk, (*simtest.Disk)(nil)
			disk.SetFault(func(_ simtest.Op, _ storage.FileDesc, i int64) error {
				if i == at {
					left = disk.PowerCut(simtest.Tear(c.rng))
				}
				return nil
			})
			c.kind = replicator.Hybrid
			n.open()
			n.put("k00000", "hybrid")
			done = left == nil
			n.close()
			if done {
				break
			}
			n.disk, n.boot = left, c.newBoot()
			c.kind = replicator.Lamport
			if n.start() != nil {
				c.kind = replicator.Hybrid
				require.NoError(t, n.wrap())
			}
			n.put("k00001", "v")
			require.Len(t, n.state().values, 5)
			require.NoError(t, replicator.CheckConsistent(n.r))
			n.close()
		}
	})
}

// TestHybridOptions judges the options.
func TestHybridOptions(t *testing.T) {
	require.NoError(t, (&replicator.Options{Clock: replicator.Hybrid, MaxSkew: time.Minute}).Validate())
	require.ErrorContains(t, (&replicator.Options{Clock: 2}).Validate(), "neither Lamport nor Hybrid")
	require.ErrorContains(t, (&replicator.Options{MaxSkew: time.Second}).Validate(), "MaxSkew")
	require.ErrorContains(t, (&replicator.Options{MaxSkew: -1}).Validate(), "MaxSkew")
	require.Equal(t, "Lamport Hybrid", fmt.Sprint(replicator.Lamport, " ", replicator.Hybrid))
	require.True(t, replicator.Stamp{Clock: 1<<48 + 1<<51}.Time().IsZero())
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	require.Equal(t, begin, replicator.Stamp{Clock: uint64(begin.UnixMilli()) << 16}.Time().UTC())
	require.True(t, replicator.Stamp{Clock: uint64(begin.UnixMilli())<<16 - 1}.Time().IsZero())
}

// TestHybridEndOfTime refuses writes while the wall clock is past what a stamp can hold, and
// goes on when that has been set.
func TestHybridEndOfTime(t *testing.T) {
	year := 2027
	o := replicator.WithWall(replicator.Options{Clock: replicator.Hybrid}, func() time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) })
	r := wrap(t, memDB(t), o)
	require.NoError(t, r.Put([]byte("k"), nil, nil))
	for _, year = range []int{4300, 300_000} {
		require.ErrorIs(t, r.Put([]byte("k"), nil, nil), replicator.ErrClock)
	}
	year = 1970 // counts as the beginning of 2026, and the clock does not go back
	require.NoError(t, r.Put([]byte("k"), nil, nil))
	version, err := r.Version([]byte("k"))
	require.NoError(t, err)
	require.Equal(t, 2027, version.Time().UTC().Year())
	for _, year = range []int{1970, 1900} { // where nothing was written yet, it begins then
		r := wrap(t, memDB(t), o)
		require.NoError(t, r.Put([]byte("k"), nil, nil))
		version, err := r.Version([]byte("k"))
		require.NoError(t, err)
		require.Equal(t, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), version.Time().UTC())
	}
}

// TestHybridRestarts: crash after crash does not take the clock further and further ahead.
func TestHybridRestarts(t *testing.T) {
	t.Parallel()
	inHybrid(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		for range budget(100, 300, 1000) {
			n.open()
			n.put("k", "v")
			n.kill()
			n.boot = c.newBoot()
			time.Sleep(time.Second)
		}
		n.open()
		n.put("k", "v")
		require.Less(t, n.version("k").Time().Sub(n.wall()), 30*time.Second)
	})
}
