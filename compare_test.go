package replicator_test

import (
	"context"
	"fmt"
	"math/rand/v2"
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
