package replicator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
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
