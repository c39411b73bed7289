package replicator_test

import (
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// TestSessionsCutAtEveryByte lets two replicas, that both have something new, meet again
// and again. Each time their session is cut one byte later, or some bytes if time is
// was merged by then, the next session leads to equal contents and equal vectors.
func TestSessionsCutAtEveryByte(t *testing.T) {
	t.Parallel()
	for name, paging := range map[string]func(o replicator.Options) *replicator.Options{
		"follow": func(o replicator.Options) *replicator.Options { return &o },
		"log scan": func(o replicator.Options) *replicator.Options {
			o.BacklogBytes = 1
			return replicator.WithPages(o, 2, nil)
		},
		"key-order scan": func(o replicator.Options) *replicator.Options {
			o.BacklogBytes = 1
			return replicator.WithPages(o, 2, func() bool { return true })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
				c.paging = paging
				c.open()
				c.converge()
				caught := map[string]bool{} // scans that a cut has left unfinished
				length := meetOnce(t, c, -1, caught)
				require.Greater(t, length, 300)
				for cut := 0; cut <= length; cut += budget(7, 2, 1) {
					meetOnce(t, c, cut, caught)
				}
				require.Equal(t, name == "log scan", caught["log scan"])
				require.Equal(t, name == "key-order scan", caught["key-order scan"])
			})
		})
	}
}

// meetOnce has both nodes of a pair write, and meet in a session that is cut after some
// bytes of both directions, unless that is negative. Then they meet in another one. It
// returns how many bytes were delivered until the first had brought everything.
func meetOnce(t *testing.T, c *cluster, cut int, caught map[string]bool) (length int) {
	source, n := c.nodes[0], c.nodes[1]
	delivered := func() int { return int(c.net.Bytes("n0", "n1") + c.net.Bytes("n1", "n0")) }
	c.net.Partition([]string{"n0"}, []string{"n1"})
	time.Sleep(time.Second)
	for _, each := range c.nodes {
		for i := range 5 {
			each.put(fmt.Sprintf("%s, %d", each.name, i), fmt.Sprint(cut))
		}
		each.put("both", each.name)
		each.delete(each.name + ", 3")
	}
	before := delivered()
	var sessions atomic.Int64
	c.net.SetCut(func(string, string) int {
		if sessions.Add(1) == 1 {
			return cut
		}
		return 0 // nothing is merged until this was looked at
	})
	c.net.Heal()
	if cut < 0 {
		require.NoError(t, n.sync())
		require.NoError(t, source.sync())
		length = delivered() - before
	} else {
		time.Sleep(2 * time.Second)
		for puller, peer := range map[*node]*node{source: n, n: source} {
			cursor := puller.cursor(peer)
			caught["log scan"] = caught["log scan"] || cursor.Log
			caught["key-order scan"] = caught["key-order scan"] || cursor.Keys
			require.NoError(t, covered(cursor, peer.index(), puller.index()), "cut at %d", cut)
		}
	}
	c.converge()
	until(t, fmt.Sprintf("equal vectors, where a session was cut at %d", cut), func() bool {
		return maps.Equal(replicator.Vector(source.r), replicator.Vector(n.r))
	})
	return length
}
