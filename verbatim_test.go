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
)

// TestVerbatim sends changes down a chain, over the log and over full
// pulls, and compares their stamps to those that their origins gave them.
func TestVerbatim(t *testing.T) {
	t.Parallel()
	inSeeded(t, 5, 5, func(t *testing.T, c *cluster) {
		for i := range c.nodes[1:] {
			c.link(i+i%2, i+1-i%2) // dialled from alternating sides
		}
		// Both ends held keys before; one of them is the same.
		original := map[string]replicator.Version{}
		for i, n := range []*node{c.nodes[0], c.nodes[4]} {
			onDisk(t, n.disk, func(db *leveldb.DB) {
				require.NoError(t, db.Put([]byte("both"), []byte("equal"), nil))
				require.NoError(t, db.Put(fmt.Append(nil, "old ", i), make([]byte, 3000*i), nil))
			})
		}
		c.open()
		note := func(n *node, keys ...string) {
			for _, key := range keys {
				v, err := n.r.Version([]byte(key))
				require.NoError(t, err)
				original[key] = v
			}
		}
		compare := func() {
			for _, n := range c.nodes {
				versions := n.state().versions
				for key, v := range original {
					require.Equal(t, v, versions[key], "%s at %s", key, n.name)
				}
				require.Len(t, versions, len(original))
			}
			c.check()
		}
		time.Sleep(time.Second)
		note(c.nodes[0], "both", "old 0")
		note(c.nodes[4], "both", "old 1")
		c.converge()
		compare()
		heads := map[*node]uint64{}
		for _, n := range c.nodes {
			heads[n] = n.r.Status().Head
		}
		c.net.Partition([]string{"n0"}, []string{"n4"})
		for i, n := range []*node{c.nodes[0], c.nodes[4]} {
			for j := range 60 {
				key := fmt.Sprint("key ", i, j)
				switch j % 4 {
				case 0:
					n.delete(key)
				case 1:
					n.put(key, strings.Repeat("fetched", 1000))
				default:
					n.put(key, "sent along")
				}
				note(n, key)
			}
		}
		c.converge()
		compare()
		for i, n := range c.nodes { // each change was committed once, and only once
			own := 0
			if i%4 == 0 {
				own = 60
			}
			require.EqualValues(t, 120, n.r.Status().Head-heads[n], "%s, which made %d itself", n.name, own)
		}

		// One in the middle starts from nothing, and passes on what it is given.
		c.nodes[2].replaceDisk(simtest.NewDisk())
		c.converge()
		compare()
		for _, n := range c.nodes {
			n.kill()
		}
		c.nodes[3].powerCut()
		c.converge()
		compare()
		c.nodes[2].put("key 01", "a new change is above the old one")
		require.Positive(t, c.nodes[2].version("key 01").Stamp.Compare(original["key 01"].Stamp))
		note(c.nodes[2], "key 01")
		c.converge()
		compare()
	})
}
