package replicator_test

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// TestSyncNowOfACopy: a replica that begins as a copy of its peer is in sync after its first
// SyncNow, whichever of the two has to draw a new id.
func TestSyncNowOfACopy(t *testing.T) {
	t.Parallel()
	for seed := range int64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inPair(t, seed, func(t *testing.T, c *cluster, source, n *node) {
				source.open()
				source.fill("key", 0, 10, 0)
				n.replaceDisk(source.backup())
				source.put("late", "value")
				n.open()
				require.NoError(t, n.sync())
				value, found := n.get("late")
				require.True(t, found)
				require.Equal(t, "value", value)
				c.converge()
			})
		})
	}
}

// TestMovedAddressOfADialledSession: a peer that had answered at an address dials in from
// elsewhere. When that session ends, nobody waits for the peer at the address, which is this
// replica's own by now: SyncNow must tell.
func TestMovedAddressOfADialledSession(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		n, m := c.nodes[0], c.nodes[1]
		c.net.Redirect("alias", m.name)
		n.peers = []string{"alias"}
		c.open()
		m.put("key", "value")
		require.NoError(t, n.sync())
		c.net.Isolate(m.name)
		c.net.Redirect("alias", n.name)
		require.NoError(t, m.r.AddPeer(n.name, nil))
		c.net.Heal()
		until(t, "it has dialled in", func() bool { return m.inSync(n.name) })
		c.net.Freeze(m.name, n.name)
		m.put("more", "value")
		synced := make(chan error, 1)
		go func() { synced <- n.sync() }()
		synctest.Wait()
		c.net.Isolate(m.name)
		err := <-synced
		_, has := n.get("more")
		require.False(t, has)
		var told *replicator.PeerError
		require.ErrorAs(t, err, &told)
		c.net.Heal()
		c.net.Thaw(m.name, n.name)
	})
}
