package replicator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// firstKeys is how many keys a first sync brings, firstPage how many in a page, and
// firstStep how long a page takes.
const (
	firstKeys = 300
	firstPage = 10
	firstStep = 50 * time.Millisecond
)

// inFirst has the second node begin its first sync, from the first one.
func inFirst(t *testing.T, seed int64, nodes int, test func(t *testing.T, c *cluster, source, n *node)) {
	inSeeded(t, seed, nodes, func(t *testing.T, c *cluster) {
		c.paging = func(o replicator.Options) *replicator.Options { return replicator.WithPages(o, firstPage, nil) }
		for i := range nodes - 1 {
			c.link(i+1, i)
		}
		source, n := c.nodes[0], c.nodes[1]
		source.open()
		source.fill("k", 0, firstKeys, 10)
		n.openSlowly()
		time.Sleep(time.Second)
		require.Less(t, len(n.index()), firstKeys)
		n.hasNoLog()
		test(t, c, source, n)
	})
}

// hasNoLog checks that a node has something, and no log of it.
func (n *node) hasNoLog() {
	status := n.r.Status()
	require.NotZero(n.c.t, status.Head)
	require.Greater(n.c.t, status.Floor, uint64(1))
	require.GreaterOrEqual(n.c.t, status.Floor+3, status.Head) // a power cut and rises of the vector take sequences
	require.Zero(n.c.t, status.LogRecords)
	require.NoError(n.c.t, replicator.CheckConsistent(n.r))
}

// TestQuietFirstSync has an empty replica get everything without writing a log of it. What
// comes later is followed as ever.
func TestQuietFirstSync(t *testing.T) {
	t.Parallel()
	inFirst(t, 1, 3, func(t *testing.T, c *cluster, source, n *node) {
		require.NoError(t, n.sync())
		n.hasNoLog()
		require.EqualValues(t, firstKeys, n.carried(source))
		c.open()
		c.converge()
		n.close()
		n.open()
		n.hasNoLog()
		n.put("k00007", "changed")
		source.put("k00008", "changed")
		last := c.nodes[2]
		last.arrives("k00007", "changed")
		last.arrives("k00008", "changed")
		require.LessOrEqual(t, n.r.Status().LogRecords, uint64(2))
		require.EqualValues(t, 2, last.carried(n)-firstKeys)
	})
}

// TestCheckpointedFirstSync ends a first sync half-way, in all ways, with and without
// local writes meanwhile. It goes on, and ends as it would have.
func TestCheckpointedFirstSync(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(c *cluster, n *node){
		"cut": func(c *cluster, n *node) {
			c.net.Partition([]string{"n1"})
			time.Sleep(time.Second)
			c.net.Heal()
		},
		"closed":    func(c *cluster, n *node) { n.close(); n.open() },
		"killed":    func(c *cluster, n *node) { n.kill(); n.open() },
		"power cut": func(c *cluster, n *node) { n.powerCut(); n.open() },
		"power cut behind a durable point": func(c *cluster, n *node) {
			time.Sleep(time.Second / 2)
			n.powerCut()
			n.open()
		},
		"killed twice": func(c *cluster, n *node) {
			n.kill()
			n.openSlowly()
			time.Sleep(time.Second / 3)
			n.kill()
			n.open()
		},
		"killed, then power cut": func(c *cluster, n *node) {
			n.kill()
			n.openSlowly()
			time.Sleep(time.Second / 3)
			n.powerCut()
			n.open()
		},
		"copied": func(c *cluster, n *node) {
			disk := n.disk.Copy()
			time.Sleep(time.Second / 3)
			n.replaceDisk(disk)
			n.open()
		},
	} {
		for _, local := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, local writes: %v", name, local), func(t *testing.T) {
				for seed := range int64(budget(1, 2, 50)) {
					inFirst(t, seed, 2, func(t *testing.T, c *cluster, source, n *node) {
						c.durableEvery = 100 * time.Millisecond
						var made []replicator.Made
						change := func(round int) {
							for i := range 5 {
								key := fmt.Sprintf("k%05d", i*70+round)
								n.put(key, fmt.Sprint("local ", round))
								made = append(made, replicator.Made{Key: key, Version: n.version(key)})
								time.Sleep(firstStep / 2)
							}
							source.put("k00290", "late")
						}
						if local {
							change(1)
						}
						if seed%2 == 0 {
							time.Sleep(2 * firstStep) // no log tells of the changes any more
						}
						end(c, n)
						known, clock := replicator.Vector(n.r), n.r.Status().Clock
						for _, ch := range made {
							require.True(t, known[ch.Origin] >= ch.Clock || strings.Contains(name, "power cut"), "it no longer knows that it made %v", ch)
						}
						for key, row := range n.index() {
							require.Less(t, row.Clock, clock, key)
						}
						if local {
							change(2)
						}
						require.NoError(t, replicator.CheckKnown(n.r, made))
						require.NoError(t, replicator.CheckKnown(source.r, made))
						c.converge()
						require.NoError(t, replicator.CheckKnown(n.r, made))
						require.NoError(t, replicator.CheckKnown(source.r, made))
						require.NoError(t, replicator.CheckConsistent(n.r))
						require.GreaterOrEqual(t, len(n.index()), firstKeys)
						require.Equal(t, replicator.Vector(source.r), replicator.Vector(n.r))
						if !local {
							n.hasNoLog()
						}
						// What a later opening reads of it is the same.
						n.kill()
						n.open()
						n.put("last", "local")
						source.arrives("last", "local")
						c.converge()
					})
				}
			})
		}
	}
}

// TestConsistentFirstSync has a third replica pull from one whose first sync is under
// way. It gets the changes made there at once, and the rest afterwards, each once.
func TestConsistentFirstSync(t *testing.T) {
	t.Parallel()
	t.Run("ends", func(t *testing.T) {
		inFirst(t, 2, 3, func(t *testing.T, c *cluster, source, n *node) {
			last := c.nodes[2]
			last.open()
			n.put("local", "here")
			last.put("there", "here")
			last.arrives("local", "here")
			require.LessOrEqual(t, n.r.Status().LogRecords, uint64(1))
			require.EqualValues(t, 1, last.carried(n))
			require.Less(t, len(n.index()), firstKeys)
			require.NoError(t, last.sync())
			require.Len(t, last.index(), firstKeys+2)
			require.LessOrEqual(t, last.carried(n), int64(firstKeys+2))
			c.converge()
		})
	})
	t.Run("stalls", func(t *testing.T) {
		inFirst(t, 3, 3, func(t *testing.T, c *cluster, source, n *node) {
			last := c.nodes[2]
			last.open()
			time.Sleep(firstStep)
			require.Empty(t, last.index())
			c.net.Freeze("n0", "n1")
			time.Sleep(11 * time.Second)
			require.NotEmpty(t, last.index())
			n.put("local", "here")
			last.arrives("local", "here")
			c.net.Thaw("n0", "n1")
			c.converge()
			require.NotZero(t, n.r.Status().LogRecords, "it writes a log from when it was too slow")
		})
	})
	t.Run("a merge that was examined before", func(t *testing.T) {
		inFirst(t, 5, 2, func(t *testing.T, c *cluster, source, n *node) {
			const key = "k00290"
			older := replicator.Version{Stamp: replicator.Stamp{Clock: 1, Origin: 1<<63 | 5}}
			commit, err := replicator.Examine(n.r, replicator.Entry{Version: older, Key: key, Value: "older"})
			require.NoError(t, err)
			require.NoError(t, n.sync())
			won, err := commit()
			require.NoError(t, err)
			require.Zero(t, won)
			require.Equal(t, source.version(key), n.version(key))
		})
	})
	t.Run("a follower", func(t *testing.T) {
		// Its checkpoint lies below the floor when the first sync goes on.
		inFirst(t, 4, 3, func(t *testing.T, c *cluster, source, n *node) {
			last := c.nodes[2]
			c.net.Partition([]string{"n0"})
			last.open()
			require.NoError(t, last.sync())
			had := len(last.index())
			require.NotZero(t, had)
			require.Less(t, had, firstKeys)
			c.net.Heal()
			time.Sleep(time.Second / 2)
			require.Less(t, len(n.index()), firstKeys)
			require.Len(t, last.index(), had)
			n.put("local", "here")
			last.arrives("local", "here")
			require.LessOrEqual(t, n.r.Status().LogRecords, uint64(1))
			source.put("k00001", "changed")
			c.converge()
			require.Len(t, last.index(), firstKeys+1)
			require.LessOrEqual(t, last.carried(n), int64(firstKeys+3))
		})
	})
}
