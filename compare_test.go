package replicator_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// compare is Compare, with a minute's time.
func (n *node) compare(peer string) (replicator.Difference, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return n.r.Compare(ctx, peer)
}

// repair is Repair, with a minute's time.
func (n *node) repair(peer string) (replicator.Difference, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return n.r.Repair(ctx, peer)
}

// lose closes a node, has its database lose keys, and opens it again.
func (n *node) lose(keys ...string) {
	n.close()
	require.NoError(n.c.t, n.openDB())
	require.NoError(n.c.t, replicator.LoseKeys(n.db, keys...))
	require.NoError(n.c.t, n.db.Close())
	n.open()
}

// requireEqualTo has two nodes compared from both sides, and finds nothing.
func (n *node) requireEqualTo(other *node) {
	for _, pair := range [][2]*node{{n, other}, {other, n}} {
		d, err := pair[0].compare(pair[1].name)
		require.NoError(n.c.t, err)
		require.Equal(n.c.t, replicator.Difference{Equal: true}, d, "%s compared to %s", pair[0].name, pair[1].name)
	}
}

// TestCompareFindsWhatVectorsHide has replicas lose keys of which their vectors go on
// claiming that they are known: nothing but Compare and Repair notices.
func TestCompareFindsWhatVectorsHide(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 20, 500, 5000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
				c.link(0, 1)
				c.open()
				source.fill("key", 0, size, 10)
				n.fill("other", 0, 3, 10)
				n.delete("other00001")
				c.converge()
				n.requireEqualTo(source)

				var lost []string
				for i := range min(size, 5) {
					lost = append(lost, fmt.Sprintf("key%05d", i*size/5))
				}
				n.lose(lost...)
				source.lose("other00000")
				require.NoError(t, n.sync())
				require.NoError(t, source.sync())
				if size > 1 {
					require.False(t, c.equal())
				}

				d, err := source.compare("n1")
				require.NoError(t, err)
				require.Equal(t, len(lost)+1, d.Keys)
				require.Equal(t, len(lost), d.LaterHere)
				require.Equal(t, 1, d.LaterThere)
				require.False(t, d.Equal)
				require.Len(t, d.Sample, d.Keys)
				require.Equal(t, lost[0], string(d.Sample[0]))

				d, err = n.repair("n0")
				require.NoError(t, err)
				require.Equal(t, len(lost)+1, d.Keys)
				require.Equal(t, d.Keys, d.Repaired)
				require.Equal(t, 1, d.LaterHere)
				require.True(t, c.equal())
				n.requireEqualTo(source)
				c.check()
			})
		})
	}
}

// TestCompareCosts has two replicas of many keys differ in a hundred, and counts the
// bytes, and the rows of the index, that it takes to find and to repair these.
func TestCompareCosts(t *testing.T) {
	t.Parallel()
	keys := budget(30_000, 100_000, 1_000_000)
	const differ = 100
	dbs := []*leveldb.DB{memDB(t), memDB(t)}
	r := openPlain(t, dbs[0], "")
	for i := 0; i < keys; {
		b := leveldb.MakeBatch(1 << 20)
		for range 5000 {
			b.Put(fmt.Appendf(nil, "key %012d", i), fmt.Appendf(nil, "value %094d", i))
			i++
		}
		require.NoError(t, r.Write(b, nil))
	}
	require.NoError(t, r.Close())
	open := func(i int, o replicator.Options) (*replicator.Replicator, func() int64) {
		o.Listen = "127.0.0.1:0"
		counted, rows := replicator.CountIndexRows(o)
		r, err := replicator.Open(dbs[i], counted)
		require.NoError(t, err)
		return r, rows
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	source, _ := open(0, replicator.Options{})
	n, _ := open(1, replicator.Options{Peers: map[string]replicator.Meta{source.Addr().String(): nil}})
	require.NoError(t, n.SyncNow(ctx))
	require.NoError(t, n.Close())
	require.NoError(t, source.Close())
	lost := [2][]string{}
	rng := rand.New(rand.NewPCG(1, 1))
	for i, k := range rng.Perm(keys)[:differ] {
		lost[i%2] = append(lost[i%2], fmt.Sprintf("key %012d", k))
	}
	for i := range lost {
		require.NoError(t, replicator.LoseKeys(dbs[i], lost[i]...))
	}

	source, sourceRows := open(0, replicator.Options{})
	defer source.Close()
	addr := source.Addr().String()
	n, rows := open(1, replicator.Options{Peers: map[string]replicator.Meta{addr: nil}})
	defer n.Close()
	require.NoError(t, n.SyncNow(ctx))
	require.NoError(t, source.SyncNow(ctx))
	measure := func(what string, work func() (replicator.Difference, error)) (int64, int64) {
		bytes := func() int64 { p := n.Status().Peers[0]; return p.BytesIn + p.BytesOut }
		before, read, began := bytes(), rows()+sourceRows(), time.Now()
		d, err := work()
		require.NoError(t, err)
		require.Equal(t, differ, d.Keys)
		require.Equal(t, differ/2, d.LaterHere)
		traffic, scans := bytes()-before, rows()+sourceRows()-read
		t.Logf("%s: %v, %d bytes, %d rows read of %d", what, time.Since(began), traffic, scans, keys)
		return traffic, scans
	}
	traffic, scans := measure("compare", func() (replicator.Difference, error) { return n.Compare(ctx, addr) })
	require.Less(t, traffic, int64(256<<10))
	require.Less(t, scans, int64(2*keys+2*keys/5))
	traffic, scans = measure("repair", func() (replicator.Difference, error) { return n.Repair(ctx, addr) })
	require.Less(t, traffic, int64(256<<10))
	require.Less(t, scans, int64(2*keys+2*keys/5))
	d, err := n.Compare(ctx, addr)
	require.NoError(t, err)
	require.True(t, d.Equal)
	first, err := source.Digest()
	require.NoError(t, err)
	second, err := n.Digest()
	require.NoError(t, err)
	require.Equal(t, first, second)
}

// TestCompareWhileAllWrite compares replicas again and again while all of them write, to
// a few keys and to new ones: what is under way is no difference.
func TestCompareWhileAllWrite(t *testing.T) {
	t.Parallel()
	eachSeed(t, budget(2, 2, 40), func(t *testing.T, seed int64) {
		inSeeded(t, seed, 3, func(t *testing.T, c *cluster) {
			c.mesh()
			c.open()
			for _, a := range c.nodes {
				for _, b := range c.nodes {
					if a != b {
						c.net.SetDelay(a.name, b.name, time.Duration(c.rng.IntN(20))*time.Millisecond)
					}
				}
			}
			c.nodes[0].fill("key", 0, 300, 10)
			c.converge()
			stop := c.allWrite(seed, 3*time.Millisecond, func(n *node, rng *rand.Rand, text []byte) error {
				key := fmt.Appendf(nil, "key%05d", rng.IntN(320))
				switch rng.IntN(6) {
				case 0:
					return n.r.Delete(key, nil)
				case 1:
					return n.r.Put(text, key, nil)
				default:
					return n.r.Put(key, text, nil)
				}
			})
			defer stop()
			for i := range 12 {
				n, peer := c.nodes[i%3], c.nodes[(i+1)%3]
				work := n.compare
				if i > 8 {
					work = n.repair
				}
				d, err := work(peer.name)
				require.NoError(t, err)
				require.Equal(t, replicator.Difference{Equal: true}, d, "%s and %s", n.name, peer.name)
			}
			stop()
			c.converge()
			c.nodes[0].requireEqualTo(c.nodes[2])
		})
	})
}

// allWrite has every node write until stop is called, with pauses below a limit. Each write
// is given a text of its own.
func (c *cluster) allWrite(seed int64, pause time.Duration, write func(n *node, rng *rand.Rand, text []byte) error) (stop func()) {
	var writers sync.WaitGroup
	done := make(chan struct{})
	for i, n := range c.nodes {
		rng := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
		writers.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-done:
					return
				case <-time.After(time.Duration(rng.IntN(int(pause/time.Microsecond))) * time.Microsecond):
				}
				require.NoError(c.t, write(n, rng, fmt.Appendf(nil, "%d of %s", k, n.name)))
			}
		})
	}
	return sync.OnceFunc(func() {
		close(done)
		writers.Wait()
	})
}

// TestRepairWhileAllWrite has replicas that lost keys repaired while both write.
func TestRepairWhileAllWrite(t *testing.T) {
	t.Parallel()
	eachSeed(t, budget(2, 4, 40), func(t *testing.T, seed int64) {
		inPair(t, seed, func(t *testing.T, c *cluster, source, n *node) {
			c.link(0, 1)
			c.open()
			source.fill("key", 0, 2000, 10)
			c.converge()
			var lost [2][]string
			for i, k := range c.rng.Perm(2000)[:400] {
				lost[i%2] = append(lost[i%2], fmt.Sprintf("key%05d", k))
			}
			n.lose(lost[0]...)
			source.lose(lost[1]...)
			stop := c.allWrite(seed, time.Millisecond, func(n *node, rng *rand.Rand, text []byte) error {
				return n.r.Put(fmt.Appendf(nil, "key%05d", rng.IntN(2000)), text, nil)
			})
			defer stop()
			d, err := n.repair("n0")
			require.NoError(t, err)
			require.Greater(t, d.Keys, 300) // some were written again
			require.Equal(t, d.Keys, d.Repaired)
			stop()
			c.converge()
			n.requireEqualTo(source)
		})
	})
}

// TestRepairIsPartOfNoVector: a repaired key is not sent on to others, whose vectors claim
// to know it, but each of them can be repaired.
func TestRepairReachesOnePeer(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh()
		c.open()
		c.nodes[0].fill("key", 0, 100, 10)
		c.converge()
		for _, n := range c.nodes[1:] {
			n.lose("key00042")
		}
		d, err := c.nodes[1].repair("n0")
		require.NoError(t, err)
		require.Equal(t, 1, d.Repaired)
		require.NoError(t, c.nodes[2].sync())
		d, err = c.nodes[2].compare("n1")
		require.NoError(t, err)
		require.Equal(t, 1, d.LaterThere)
		d, err = c.nodes[0].repair("n2")
		require.NoError(t, err)
		require.Equal(t, 1, d.LaterHere)
		require.Equal(t, 1, d.Repaired)
		require.True(t, c.equal())
	})
}

// TestCompareDeletions: a deletion that one side has seen, and does not have, is no
// difference; a key that one side has and the other one has deleted is.
func TestCompareDeletions(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.link(0, 1)
		c.open()
		source.fill("key", 0, 1000, 10)
		c.converge()
		source.delete("key00007")
		source.delete("key00500")
		n.delete("key00900")
		c.converge()
		n.lose("key00007")
		source.lose("key00900")
		require.False(t, c.equal()) // of the deletions
		n.requireEqualTo(source)

		// The one side has forgotten the deletion and has the value again.
		n.close()
		require.NoError(t, n.openDB())
		require.NoError(t, replicator.LoseKeys(n.db, "key00500"))
		require.NoError(t, replicator.PlaceKey(n.db, "key00500", "back", replicator.Stamp{Clock: 3, Origin: 1<<63 | 9}))
		require.NoError(t, n.db.Close())
		n.open()
		d, err := n.compare("n0")
		require.NoError(t, err)
		require.Equal(t, replicator.Difference{Keys: 1, LaterThere: 1, Sample: [][]byte{[]byte("key00500")}}, d)
		d, err = source.repair("n1")
		require.NoError(t, err)
		require.Equal(t, 1, d.Repaired)
		require.Equal(t, 1, d.LaterHere)
		n.requireEqualTo(source)
		_, found := n.get("key00500")
		require.False(t, found)
	})
}

// TestCompareAccess: a replica with read-only access takes, and is not taken from. What
// the other side lacks for that stays a difference.
func TestCompareAccess(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.link(0, 1)
		source.open(mergesNothing)
		n.open()
		source.fill("key", 0, 600, 10)
		n.fill("own", 0, 3, 10)
		require.NoError(t, n.sync())
		for round, work := range []func(string) (replicator.Difference, error){n.compare, n.repair} {
			d, err := work("n0")
			require.NoError(t, err)
			require.Equal(t, 3, d.Keys, round)
			require.Equal(t, 3, d.LaterHere, round)
			require.Zero(t, d.Repaired, round)
		}
		n.close()
		require.NoError(t, n.openDB())
		require.NoError(t, replicator.LoseKeys(n.db, "key00007", "key00008"))
		require.NoError(t, n.db.Close())
		n.open()
		require.NoError(t, n.sync())
		d, err := source.compare("n1")
		require.NoError(t, err)
		require.Equal(t, 5, d.Keys)
		require.Equal(t, 2, d.LaterHere)
		d, err = source.repair("n1")
		require.NoError(t, err)
		require.Equal(t, 5, d.Keys)
		require.Equal(t, 2, d.Repaired) // nothing of the peer is merged here
		_, found := source.get("own00000")
		require.False(t, found)
		_, found = n.get("key00007")
		require.True(t, found)
		d, err = n.repair("n0")
		require.NoError(t, err)
		require.Equal(t, replicator.Difference{Keys: 3, LaterHere: 3, Sample: d.Sample}, d)
	})
}

// TestCompareNames: a peer is named by a configured address, or by id or name of a session.
func TestCompareNames(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		source := c.nodes[0]
		c.link(1, 0)
		c.link(2, 0)
		source.open()
		for i, n := range c.nodes[1:] {
			n.open(dialOnly, func(o *replicator.Options) { o.Name = []string{"till", "cellar"}[i] })
		}
		source.fill("key", 0, 10, 10)
		c.converge()
		for _, name := range []string{"till", "cellar", c.nodes[1].r.Status().ID.String()} {
			d, err := source.compare(name)
			require.NoError(t, err, name)
			require.True(t, d.Equal)
		}
		for _, name := range []string{"", "attic", "n1", replicator.DatabaseID{1}.String()} {
			_, err := source.compare(name)
			require.ErrorIs(t, err, replicator.ErrUnknownPeer, name)
		}
		c.nodes[2].close()
		c.nodes[2].open(dialOnly, func(o *replicator.Options) { o.Name = "till" })
		require.NoError(t, c.nodes[2].sync())
		_, err := source.compare("till")
		require.ErrorIs(t, err, replicator.ErrUnknownPeer)
		require.ErrorContains(t, err, "use the id")

		// An address that nobody answers at.
		require.NoError(t, source.r.AddPeer("nobody", nil))
		_, err = source.compare("nobody")
		var failed *replicator.PeerError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "dial", failed.Op)
	})
}

// TestCompareEnds: a comparison outlives its session, and ends with its context, or with
// either Replicator.
func TestCompareEnds(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		var hook func(kind byte)
		n.open(tapped(func(kind byte) {
			if hook != nil {
				hook(kind)
			}
		}))
		source.open()
		source.fill("key", 0, 9000, 10)
		c.converge()
		lost := []string{"key00001", "key01500", "key08999"}
		source.lose(lost...)
		require.NoError(t, n.sync())
		require.NoError(t, source.sync())

		asked := 0
		hook = func(kind byte) {
			if kind != wireQuestion {
				return
			}
			if asked++; asked == 2 {
				c.net.Partition([]string{"n0"}, []string{"n1"})
				c.net.Heal()
			}
		}
		d, err := n.compare("n0")
		require.NoError(t, err)
		require.Equal(t, 3, d.Keys)
		require.Greater(t, asked, 3)
		const many = 100 // not cut again
		asked = many
		d, err = n.compare("n0")
		require.NoError(t, err)
		require.Equal(t, 3, d.Keys)
		undisturbed := asked - many

		ctx, cancel := context.WithCancel(context.Background())
		hook = func(kind byte) {
			if kind == wireQuestion {
				cancel()
			}
		}
		_, err = n.r.Compare(ctx, "n0")
		require.ErrorIs(t, err, context.Canceled)
		asked = 0
		hook = func(kind byte) {
			if kind == wireQuestion {
				asked++
			}
		}
		d, err = n.compare("n0") // which gets the answer to the one before first
		require.NoError(t, err)
		require.Equal(t, 3, d.Keys)
		require.Equal(t, undisturbed, asked)

		ctx, cancel = context.WithCancel(context.Background())
		hook = func(kind byte) {
			if kind == wireOffer {
				cancel()
			}
		}
		_, err = n.r.Repair(ctx, "n0")
		require.ErrorIs(t, err, context.Canceled)
		hook = nil
		d, err = n.repair("n0")
		require.NoError(t, err)
		require.LessOrEqual(t, d.Keys, 3)
		require.Equal(t, d.Keys, d.Repaired)
		d, err = n.compare("n0")
		require.NoError(t, err)
		require.True(t, d.Equal)

		closed := make(chan struct{})
		hook = func(kind byte) {
			if kind == wireQuestion {
				hook = nil
				go func() {
					defer close(closed)
					n.close()
				}()
				time.Sleep(10 * time.Millisecond)
			}
		}
		r := n.r
		_, err = r.Compare(context.Background(), "n0")
		require.ErrorIs(t, err, replicator.ErrClosed)
		<-closed
		_, err = r.Repair(context.Background(), "n0")
		require.ErrorIs(t, err, replicator.ErrClosed)
	})
}

// TestCompareOfVeryDifferent: a replica that lacks nearly everything, or has nearly
// everything alone, is told of all of it, page by page, and repaired.
func TestCompareOfVeryDifferent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ here, there int }{
		"nearly nothing here":  {3, 4000},
		"nearly nothing there": {4000, 3},
		"two halves":           {2000, 2000},
	} {
		t.Run(name, func(t *testing.T) {
			inPair(t, 1, func(t *testing.T, cl *cluster, source, n *node) {
				cl.link(0, 1)
				cl.open()
				source.fill("key", 0, 4000, 10)
				cl.converge()
				var lost [2][]string
				for i := range 4000 {
					if i >= c.here {
						lost[0] = append(lost[0], fmt.Sprintf("key%05d", i))
					}
					if 4000-i > c.there {
						lost[1] = append(lost[1], fmt.Sprintf("key%05d", i))
					}
				}
				n.lose(lost[0]...)
				source.lose(lost[1]...)
				d, err := n.compare("n0")
				require.NoError(t, err)
				require.Equal(t, len(lost[0])-max(0, 4000-c.here-c.there), d.LaterThere)
				require.Equal(t, len(lost[1])-max(0, 4000-c.here-c.there), d.LaterHere)
				require.Len(t, d.Sample, 32)
				found := d.Keys
				d, err = n.repair("n0")
				require.NoError(t, err)
				require.Equal(t, found, d.Keys)
				require.Equal(t, found, d.Repaired)
				n.requireEqualTo(source)
				require.True(t, cl.equal())
			})
		})
	}
}

// TestCompareLargeValues: values of every size are repaired, both ways.
func TestCompareLargeValues(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.link(0, 1)
		c.open()
		sizes := []int{0, 1, 64 << 10, 64<<10 + 1, 1 << 20, 3 << 20}
		var keys []string
		for i, size := range sizes {
			keys = append(keys, fmt.Sprint("key", i))
			source.put(keys[i], strings.Repeat("v", size))
		}
		source.put("long"+strings.Repeat("k", replicator.MaxKeySize-4), "v")
		keys = append(keys, "long"+strings.Repeat("k", replicator.MaxKeySize-4))
		c.converge()
		n.lose(keys[:3]...)
		source.lose(keys[3:]...)
		d, err := n.repair("n0")
		require.NoError(t, err)
		require.Equal(t, len(keys), d.Repaired)
		require.True(t, c.equal())
		c.check()
	})
}

// TestCompareAdoption: while one side has keys that are not in its index yet, nothing can
// be said.
func TestCompareAdoption(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.link(0, 1)
		fillDisk(t, source.disk, numbered("old", 20_000, "value"))
		n.open()
		source.openSlowly()
		require.False(t, source.adopted())
		for _, pair := range [][2]*node{{n, source}, {source, n}} {
			_, err := pair[0].compare(pair[1].name)
			require.ErrorContains(t, err, "still being adopted")
		}
		until(t, "adopted", source.adopted)
		n.requireEqualTo(source)
	})
}

// patient has a node wait longer than a snapshot is kept.
func patient(o *replicator.Options) { o.Timeout = 2 * time.Minute }

// TestCompareSlowly: the snapshot of a comparison that is not gone on with is given back,
// and the comparison goes on with another.
func TestCompareSlowly(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		questions := 0
		n.open(tapped(func(kind byte) {
			if kind == wireQuestion {
				if questions++; questions == 2 {
					time.Sleep(40 * time.Second)
				}
			}
		}), patient)
		source.open(patient)
		source.fill("key", 0, 9000, 10)
		c.converge()
		source.lose("key00001", "key04500", "key08999")
		source.close()
		source.open(patient)
		require.NoError(t, n.sync())
		d, err := n.r.Repair(context.Background(), "n0")
		require.NoError(t, err)
		require.Greater(t, questions, 2)
		require.Equal(t, 3, d.Repaired)
		d, err = n.compare("n0")
		require.NoError(t, err)
		require.True(t, d.Equal)
	})
}

// TestRecoveredPullsDifferences: a replica whose files were recovered pulls what it lacks,
// and not all.
func TestRecoveredPullsDifferences(t *testing.T) {
	t.Parallel()
	for _, lose := range []int{0, 30, 3000} {
		t.Run(fmt.Sprint(lose), func(t *testing.T) {
			inCluster(t, 3, func(t *testing.T, c *cluster) {
				c.mesh()
				c.open()
				source, n := c.nodes[0], c.nodes[1]
				source.fill("key", 0, 3000, 100)
				source.delete("key00700")
				n.fill("own", 0, 20, 100)
				c.converge()
				n.close()
				require.NoError(t, n.openDB())
				for i := range lose {
					require.NoError(t, replicator.LoseKeys(n.db, fmt.Sprintf("key%05d", i*3000/max(lose, 1))))
				}
				require.NoError(t, n.db.Close())
				n.recovered = true
				source.put("new", "while it was away")
				n.open()
				require.NoError(t, n.sync())
				in := int64(0)
				for _, p := range n.r.Status().Peers {
					in += p.RecordsIn
				}
				require.LessOrEqual(t, in, int64(lose+100))
				require.NotZero(t, n.r.Status().Scans.Recovered)
				c.converge()
				source.put("later", "as ever")
				n.arrives("later", "as ever")
				n.requireEqualTo(source)
				n.requireEqualTo(c.nodes[2])

				// It is as any other again: the next opening pulls nothing.
				n.close()
				require.NoError(t, n.openDB())
				_, err := n.db.Get([]byte(reservedPrefix+"mrecovered"), nil)
				require.ErrorIs(t, err, leveldb.ErrNotFound)
				require.NoError(t, n.db.Close())
				n.open()
				require.NoError(t, n.sync())
				for _, p := range n.r.Status().Peers {
					require.LessOrEqual(t, p.RecordsIn, int64(1), p.Addr)
				}
			})
		})
	}
}

// TestRecoveredIsKilled: until what recovered files lack is here, each opening asks for
// it.
func TestRecoveredIsKilled(t *testing.T) {
	t.Parallel()
	eachSeed(t, budget(3, 10, 100), func(t *testing.T, seed int64) {
		inPair(t, seed, func(t *testing.T, c *cluster, source, n *node) {
			c.link(0, 1)
			c.open()
			source.fill("key", 0, 3000, 100)
			c.converge()
			n.close()
			require.NoError(t, n.openDB())
			for i := range 1000 {
				require.NoError(t, replicator.LoseKeys(n.db, fmt.Sprintf("key%05d", i*3)))
			}
			require.NoError(t, n.db.Close())
			n.recovered = true
			for range 4 {
				n.open()
				time.Sleep(time.Duration(c.rng.IntN(1000)) * time.Microsecond * time.Duration(1+c.rng.IntN(20)))
				if c.rng.IntN(2) == 0 {
					n.kill()
				} else {
					n.powerCut()
				}
				if c.rng.IntN(3) == 0 {
					source.put(fmt.Sprint("during ", c.rng.IntN(3)), "this")
				}
			}
			c.converge()
			n.requireEqualTo(source)
		})
	})
}

// TestStatusFingerprint: equal replicas show the same, and the fingerprint follows
// changes, at most once a minute.
func TestStatusFingerprint(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.link(0, 1)
		c.open()
		show := func(n *node) *replicator.FingerprintStatus { return n.r.Status().Fingerprint }
		upToDate := func(n *node) bool {
			shown := show(n)
			return shown != nil && shown.Head == n.r.Status().Head
		}
		require.Nil(t, show(source))
		source.fill("key", 0, 100, 10)
		c.converge()
		until(t, "both are up to date", func() bool { time.Sleep(time.Second); return upToDate(source) && upToDate(n) })
		require.EqualValues(t, 100, show(source).Keys)
		require.Equal(t, show(source).Sum, show(n).Sum)
		require.Len(t, show(source).Sum, 32)
		before := show(source)

		source.put("key00007", "another value")
		source.delete("key00008")
		c.converge()
		require.Equal(t, before, show(source)) // it was made a moment ago
		time.Sleep(time.Minute)
		show(source)
		show(n)
		until(t, "both are up to date", func() bool { return upToDate(source) && upToDate(n) })
		require.EqualValues(t, 99, show(source).Keys)
		require.Equal(t, show(source).Sum, show(n).Sum)
		require.NotEqual(t, before.Sum, show(source).Sum)

		// A deletion that only one side keeps does not show.
		n.lose("key00008")
		show(n)
		until(t, "it is up to date", func() bool { return upToDate(n) })
		require.Equal(t, show(source).Sum, show(n).Sum)
		n.lose("key00009")
		show(n)
		until(t, "it is up to date", func() bool { return upToDate(n) })
		require.NotEqual(t, show(source).Sum, show(n).Sum)
	})
}

// TestCompareWithLiars compares with peers whose fingerprints never match, or who break
// the rules: a comparison ends, and so does the session of who breaks them.
func TestCompareWithLiars(t *testing.T) {
	t.Parallel()
	const same, differs, records = 0, 1, 2
	const keys = 2000
	all := func(finding byte) func(asked []uint64, first bool) []byte {
		return func(asked []uint64, _ bool) []byte { return []byte(strings.Repeat(string(finding), len(asked))) }
	}
	for name, c := range map[string]struct {
		findings func(asked []uint64, first bool) []byte
		keys     int
		says     string // by bye
		entries  []wireEntry
	}{
		"a clock ahead":  {all(records), 0, "at most", []wireEntry{{key: "key00000", clock: farAhead, origin: 1<<63 | 5, value: "v"}}},
		"a reserved key": {all(records), 0, "reserved", []wireEntry{{key: "\xffreplicator\xffm", clock: 1, origin: 1<<63 | 5, value: "v"}}},
		"not asked for":  {func(asked []uint64, _ bool) []byte { return []byte{same} }, 0, "was not asked for", []wireEntry{{key: "key00000", clock: 1, origin: 1<<63 | 5, value: "v"}}},
		"never the same": {func(asked []uint64, _ bool) (findings []byte) {
			for _, n := range asked {
				if n > 32 {
					findings = append(findings, differs)
				} else {
					findings = append(findings, records)
				}
			}
			return findings
		}, keys + 1, "", nil},
		"one at a time": {func(asked []uint64, _ bool) []byte {
			if asked[0] > 32 {
				return []byte{differs}
			}
			return []byte{records}
		}, keys + 1, "", nil},
		"always the same":    {all(same), 0, "", nil},
		"nothing of it":      {all(records), keys + 1, "", nil},
		"few differ":         {all(differs), 0, "no records of a range", nil},
		"unknown":            {all(3), 0, "finding 3", nil},
		"more than asked":    {func(asked []uint64, _ bool) []byte { return make([]byte, len(asked)+1) }, 0, "257 findings", nil},
		"nothing is replied": {func([]uint64, bool) []byte { return nil }, 0, "0 findings", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, nil)
			b := new(leveldb.Batch)
			for i := range keys {
				b.Put(fmt.Appendf(nil, "key%05d", i), []byte("value"))
			}
			require.NoError(t, h.Write(b, nil))
			head, hi := h.Status().Head, newWireHi()
			hi.name = "liar"
			p := dialWire(t, h.Addr())
			p.join(hi)
			p.say(wirePage, wireFullPage(hi.epoch, 2))
			p.say(wirePull, append(binary.AppendUvarint([]byte{4 | 1}, 1+2*head), 0)) // all is merged
			said := make(chan string, 1)
			go func() {
				first := true
				for {
					k, payload, err := p.hear()
					if err != nil {
						said <- ""
						return
					}
					switch k {
					case wireBye:
						said <- string(payload)
						return
					case wirePing:
						p.say(wirePong, binary.AppendUvarint(payload, 2))
					case wireQuestion:
						asked, err := replicator.AskedNumbers(payload)
						if err != nil {
							said <- err.Error()
							return
						}
						reply := []byte{0}
						if first { // it had merged all
							reply = wireStamps(binary.AppendUvarint(wirePlace([]byte{1}, hi.epoch, 2), 1+2*head))
						}
						findings := c.findings(asked, first)
						reply = append(binary.AppendUvarint(reply, uint64(len(findings))), findings...)
						reply = binary.AppendUvarint(reply, uint64(len(c.entries)))
						for _, e := range c.entries {
							reply = e.append(reply)
						}
						p.say(wireReply, reply)
						first = false
					}
				}
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			d, err := h.Compare(ctx, "liar")
			if c.says == "" {
				require.NoError(t, err)
				require.Equal(t, c.keys, d.Keys)
				p.Close()
				<-said
			} else {
				require.Error(t, err)
				require.Contains(t, <-said, c.says)
			}
			h.goesOn()
		})
	}
}

// TestOffersOfReaders: who may only pull may offer nothing, and may ask.
func TestOffersOfReaders(t *testing.T) {
	t.Parallel()
	h := newHost(t, mergesNothing)
	p, hi := dialWire(t, h.Addr()), newWireHi()
	p.say(wireHello, hi.payload())
	p.await(wireHello, 0)
	p.say(wireAccept, []byte{1})
	p.say(wireQuestion, []byte{1, 1, 2, 0}) // first; one range, of everything; nothing in it
	reply := p.await(wireReply, 0)
	require.Contains(t, string(reply), "key")
	before := h.all()
	p.say(wireOffer, wireBytes([]byte{1}, "key"))
	code, text := p.awaitBye()
	require.EqualValues(t, 1, code)
	require.Contains(t, text, "read-only access")
	require.Equal(t, before, h.all())
	require.NoError(t, replicator.CheckConsistent(h.Replicator))
}

// TestCompareUnreadable: a replica that cannot read all of its own, so that its peers get
// to no checkpoint, is compared all the same.
func TestCompareUnreadable(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.link(0, 1)
		c.open()
		source.fill("key", 0, 500, 10)
		c.converge()
		n.close()
		source.fill("new", 0, 3, 10)
		source.close()
		require.NoError(t, source.openDB())
		require.NoError(t, source.db.Delete([]byte("new00001"), nil))
		require.NoError(t, replicator.LoseKeys(source.db, "key00001"))
		require.NoError(t, source.db.Close())
		c.open()
		for _, pair := range [][2]*node{{n, source}, {source, n}} {
			d, err := pair[0].compare(pair[1].name)
			require.NoError(t, err)
			require.Equal(t, 2, d.Keys)
			require.Equal(t, "key00001", string(d.Sample[0]))
			require.Equal(t, "new00001", string(d.Sample[1]))
		}
		d, err := n.repair("n0")
		require.NoError(t, err)
		require.Equal(t, 2, d.Keys)
		require.Equal(t, 1, d.Repaired)
	})
}

// TestRecoveredFromUnreadable: recovered files do not take for complete what their peer
// could not read.
func TestRecoveredFromUnreadable(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.link(0, 1)
		c.open()
		source.fill("key", 0, 500, 10)
		c.converge()
		for _, n := range c.nodes {
			n.close()
			require.NoError(t, n.openDB())
			if n == source {
				require.NoError(t, n.db.Delete([]byte("key00007"), nil))
			} else {
				for i := range 30 {
					require.NoError(t, replicator.LoseKeys(n.db, fmt.Sprintf("key%05d", i)))
				}
			}
			require.NoError(t, n.db.Close())
		}
		n.recovered = true
		c.open()
		until(t, "it is incomplete", func() bool { return n.peer("n0").State == "incomplete" })
		_, found := n.get("key00008")
		require.True(t, found)
		_, found = n.get("key00007")
		require.False(t, found)
		require.Error(t, n.sync())
	})
}

// stuckConn is a connection that takes nothing any more once it is stuck.
type stuckConn struct {
	net.Conn
	stuck  *atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (c *stuckConn) Write(p []byte) (int, error) {
	if c.stuck.Load() {
		<-c.closed
	}
	return c.Conn.Write(p)
}

func (c *stuckConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestClosedDuringCompare: Close does not wait for a peer that takes no question.
func TestClosedDuringCompare(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		var stuck atomic.Bool
		asked := make(chan struct{}, 1)
		source.open()
		n.open(func(o *replicator.Options) {
			dial := o.Dial
			o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				conn, err := dial(ctx, addr)
				if err != nil {
					return nil, err
				}
				tap := &frameTap{Conn: &stuckConn{Conn: conn, stuck: &stuck, closed: make(chan struct{})}}
				tap.hook = func(kind byte) {
					if kind == wireQuestion {
						stuck.Store(true)
						asked <- struct{}{}
					}
				}
				return tap, nil
			}
		})
		source.fill("key", 0, 100, 10)
		require.NoError(t, n.sync())
		r, failed := n.r, make(chan error, 1)
		go func() { failed <- second(r.Compare(context.Background(), "n0")) }()
		<-asked
		began := time.Now()
		n.close()
		require.Less(t, time.Since(began), 2*time.Second)
		require.ErrorIs(t, <-failed, replicator.ErrClosed)
	})
}

// TestRecoveredSlowly: recovered files that are compared to one snapshot of the peer and
// then to another are not taken to be complete: a key may have changed behind the first.
func TestRecoveredSlowly(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		source.open(patient)
		n.open(patient)
		source.fill("key", 0, 9000, 10)
		c.converge()
		n.close()
		require.NoError(t, n.openDB())
		require.NoError(t, replicator.LoseKeys(n.db, "key00001", "key04500", "key08999"))
		require.NoError(t, n.db.Close())
		n.recovered = true
		questions := 0
		n.open(patient, tapped(func(kind byte) {
			if kind == wireQuestion {
				if questions++; questions == 2 {
					source.put("key03000", "changed")
					time.Sleep(40 * time.Second)
				}
			}
		}))
		n.arrives("key03000", "changed")
		require.NoError(t, n.sync())
		require.Greater(t, questions, 2)
		c.converge()
	})
}

// TestFingerprintOfAFirstSync: sums follow what was written without a log.
func TestFingerprintOfAFirstSync(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.net.Isolate("n1")
		source.open()
		n.open()
		until(t, "the empty one is known", func() bool { return n.r.Status().Fingerprint != nil })
		source.fill("key", 0, 800, 10)
		c.converge()
		time.Sleep(time.Minute)
		until(t, "both are up to date", func() bool {
			for _, n := range c.nodes {
				if shown := n.r.Status().Fingerprint; shown == nil || shown.Head != n.r.Status().Head {
					return false
				}
			}
			return true
		})
		require.EqualValues(t, 800, n.r.Status().Fingerprint.Keys)
		require.Equal(t, source.r.Status().Fingerprint.Sum, n.r.Status().Fingerprint.Sum)
		require.Greater(t, n.r.Status().Floor, uint64(1))
	})
}
