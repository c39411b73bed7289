package replicator_test

import (
	"fmt"
	"testing"

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
