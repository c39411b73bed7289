package replicator_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAdoptionIsToldAfterRestarts: what is known of adoptions is told in every session.
// Else a replica that has adopted values from elsewhere would keep them from others,
// which seem to know all adoptions there are.
func TestAdoptionIsToldAfterRestarts(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		c.link(2, 1)
		values := numbered("key", 40, "value")
		adopting, between, last := c.nodes[0], c.nodes[1], c.nodes[2]
		fillDisk(t, adopting.disk, values)
		adopting.open()
		until(t, "adoption ends", adopting.adopted)
		adopting.close()
		adopting.open()
		between.open()
		require.NoError(t, between.sync())
		require.Equal(t, values, between.state().values)
		between.close()
		adopting.close()

		between.open()
		last.open()
		require.NoError(t, last.sync())
		require.Equal(t, values, last.state().values)
	})
}
