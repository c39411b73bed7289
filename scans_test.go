package replicator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/level-replicator/replicator"
)

// TestScansByCause: Status tells how often a peer had to be read, and why. To follow it is
// no scan. See TestRecoveredPullsDifferences and TestRejoinOldWriter for the other causes.
func TestScansByCause(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		small := func(o *replicator.Options) { o.BacklogBytes = 2000 }
		source.open(small)
		source.put("a", "1")
		disk := source.disk.Copy()
		n.open()
		want := replicator.ScanCounts{New: 1}
		scans := func() {
			require.NoError(t, n.sync())
			require.Equal(t, want, n.r.Status().Scans)
		}
		scans()
		for _, key := range []string{"a", "b", "c"} {
			source.put(key, "2")
			scans()
		}
		restart := func(cause replicator.ScanCounts, meanwhile func()) {
			n.close()
			meanwhile()
			n.open()
			want = cause
			scans()
		}
		restart(replicator.ScanCounts{}, func() { source.put("d", "1") })
		restart(replicator.ScanCounts{Log: 1}, func() { source.fill("more", 0, 20, 500) })
		restart(replicator.ScanCounts{}, func() {})
		restart(replicator.ScanCounts{Keys: 1}, func() {
			source.close()
			c.expiring(time.Second, 1, 5)
			source.open(small)
			source.fill("more", 20, 40, 500)
			until(t, "the log expires", func() bool { return source.r.Status().LogRecords < 10 })
		})
		n.close()
		source.close()
		source.replaceDisk(disk)
		source.open(small)
		n.open()
		c.converge()
		// The source begins a new epoch, as n knows more of its changes than it does. So its log
		// may have to be read once more behind the reset.
		require.EqualValues(t, 1, n.r.Status().Scans.Reset)
		require.Zero(t, n.r.Status().Scans.New)
	})
}
