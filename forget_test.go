package replicator_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// inForgotten has two nodes that dial each other agree, and has the first one forget the
// second.
func inForgotten(t *testing.T, test func(t *testing.T, c *cluster, n, gone *node)) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh().expiring(time.Second, 20, 1000).open()
		n, gone := c.nodes[0], c.nodes[1]
		n.updates(0, 30)
		gone.put("from the peer", "here")
		c.converge()
		require.NoError(t, n.r.Forget(gone.r.Status().ID))
		test(t, c, n, gone)
	})
}

// hasForgotten checks what a node shows of a peer that it has forgotten.
func (n *node) hasForgotten(id replicator.DatabaseID) {
	status := n.r.Status()
	require.Equal(n.c.t, []replicator.Forgotten{{ID: id}}, status.Forgotten)
	require.Zero(n.c.t, replicator.Known(n.r))
	for _, p := range status.Peers {
		require.Empty(n.c.t, p.DialedBy)
	}
	require.Nil(n.c.t, status.LogHeldFor)
}

// TestForgetRefuses: a forgotten peer is refused, whoever dials, over restarts of all
// kinds, until it is readmitted. Then it is a peer as any other.
func TestForgetRefuses(t *testing.T) {
	t.Parallel()
	inForgotten(t, func(t *testing.T, c *cluster, n, gone *node) {
		id := gone.r.Status().ID
		n.hasForgotten(id)
		value := 0
		for _, end := range []func(){func() {}, n.close, n.kill, n.powerCut, gone.close, gone.kill, gone.powerCut} {
			end()
			c.open()
			value++
			n.put("here", string(rune('a'+value)))
			gone.put("there", string(rune('a'+value)))
			time.Sleep(2 * time.Minute)
			n.hasForgotten(id)
			_, has := n.get("there")
			require.False(t, has)
			_, has = gone.get("here")
			require.False(t, has)
			require.Contains(t, gone.peer("n0").LastError, "forgotten")
			require.Contains(t, n.peer("n1").LastError, "forgotten")
			require.ErrorIs(t, n.sync(), replicator.ErrRefused)
			require.ErrorIs(t, gone.sync(), replicator.ErrRefused)
		}
		require.NoError(t, n.r.Readmit(id))
		require.Empty(t, n.r.Status().Forgotten)
		c.converge()
		require.Equal(t, replicator.Vector(n.r), replicator.Vector(gone.r))
		n.kill()
		n.open()
		require.Empty(t, n.r.Status().Forgotten)
		c.converge()
	})
}

// TestForgetEndsWaiting: a forgotten peer holds nothing up and counts for no wait.
func TestForgetEndsWaiting(t *testing.T) {
	t.Parallel()
	inForgotten(t, func(t *testing.T, c *cluster, n, gone *node) {
		n.updates(0, 500)
		n.hasLog(20, 22)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, n.r.WaitMerged(ctx, 1), context.DeadlineExceeded)
	})
}

// TestForgetIsDurable: a power cut right after Forget and Readmit finds what they did.
func TestForgetIsDurable(t *testing.T) {
	t.Parallel()
	inForgotten(t, func(t *testing.T, c *cluster, n, gone *node) {
		id := gone.r.Status().ID
		n.powerCut()
		n.open()
		n.hasForgotten(id)
		require.NoError(t, n.r.Readmit(id))
		n.powerCut()
		n.open()
		require.Empty(t, n.r.Status().Forgotten)
		c.converge()
	})
}

// TestForgetDuringMerges: Forget returns when nothing of the peer is merged any more, and
// what its session does last does not bring it back.
func TestForgetDuringMerges(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.paging = func(o replicator.Options) *replicator.Options { return replicator.WithPages(o, 5, nil) }
		source.open()
		source.fill("k", 0, 300, 10)
		n.openSlowly()
		id := source.r.Status().ID
		for n.r.Status().Head < 50 {
			time.Sleep(10 * time.Millisecond)
		}
		require.NoError(t, n.r.Forget(id))
		head := n.r.Status().Head
		n.hasForgotten(id)
		time.Sleep(time.Minute)
		require.Equal(t, head, n.r.Status().Head)
		n.disk.SetFault(nil)
		n.kill()
		n.open()
		n.hasForgotten(id)
		require.NoError(t, n.r.Readmit(id))
		c.converge()
	})
}

// TestForgetDuringHandshake: a peer that is forgotten while it is being met stays so.
func TestForgetDuringHandshake(t *testing.T) {
	t.Parallel()
	for step := range 40 {
		inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
			c.net.SetDelay("n0", "n1", 50*time.Millisecond)
			source.open()
			source.put("k", "v")
			id := source.r.Status().ID
			n.open()
			time.Sleep(time.Duration(step) * 10 * time.Millisecond)
			require.NoError(t, n.r.Forget(id))
			time.Sleep(time.Minute)
			n.hasForgotten(id)
			require.Empty(t, n.r.Status().Peers[0].DialedBy)
			n.kill()
			n.open()
			n.hasForgotten(id)
		})
	}
}

// TestForgetErrors: ids that are nobody's, and a peer that is refused before it is met.
func TestForgetErrors(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		n.open()
		require.ErrorIs(t, n.r.Forget(n.r.Status().ID), replicator.ErrUnknownPeer)
		require.ErrorIs(t, n.r.Forget(replicator.DatabaseID{}), replicator.ErrUnknownPeer)
		err := n.r.Readmit(replicator.DatabaseID{1})
		require.ErrorIs(t, err, replicator.ErrUnknownPeer)
		require.Equal(t, 1, strings.Count(err.Error(), "replicator: "), "%v", err)
		require.NoError(t, n.r.Forget(replicator.DatabaseID{1}))
		require.NoError(t, n.r.Forget(replicator.DatabaseID{1}))
		n.hasForgotten(replicator.DatabaseID{1})
		require.NoError(t, n.r.Readmit(replicator.DatabaseID{1}))
		replicator.FailWrites(n.r, errors.New("no"))
		require.ErrorIs(t, n.r.Forget(replicator.DatabaseID{1}), replicator.ErrFailed)
		require.Empty(t, n.r.Status().Forgotten)
		r := n.r
		require.ErrorIs(t, r.Close(), replicator.ErrFailed)
		require.ErrorIs(t, r.Forget(replicator.DatabaseID{1}), replicator.ErrClosed)
		require.ErrorIs(t, r.Readmit(replicator.DatabaseID{1}), replicator.ErrClosed)
		require.NoError(t, n.db.Close())
		n.r, n.db = nil, nil
	})
}
