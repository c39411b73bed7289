package replicator_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// TestRecent: what was changed last is told in the order of the commits, with stamps, and
// with where it was made.
func TestRecent(t *testing.T) {
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0], c.nodes[1]
		a.peers = []string{"n1"}
		c.open()
		require.NoError(t, a.sync())
		require.Empty(t, a.r.Recent(10))
		a.put("mine", "1")
		b.put("theirs", "2")
		require.NoError(t, a.sync())
		require.NoError(t, a.r.Delete([]byte("mine"), nil))
		a.put("large", string(make([]byte, 65<<10)))
		a.put("empty", "")

		all := a.r.Recent(10)
		require.Len(t, all, 5)
		for i, want := range []struct {
			key, value string
			local      bool
		}{{"mine", "1", true}, {"theirs", "2", false}, {"mine", "", true}, {"large", "", true}, {"empty", "", true}} {
			require.Equal(t, want.key, string(all[i].Key))
			require.Equal(t, want.value, string(all[i].Value))
			require.Equal(t, want.local, all[i].Local)
		}
		require.True(t, all[2].Deleted)
		require.Nil(t, all[3].Value)
		require.NotNil(t, all[4].Value)
		version, err := a.r.Version([]byte("theirs"))
		require.NoError(t, err)
		require.Equal(t, version, all[1].Version)

		require.Equal(t, all[3:], a.r.Recent(2))
		require.Empty(t, a.r.Recent(0))
		require.Empty(t, a.r.Recent(-1))
		all[0].Key[0], all[0].Value[0] = 'X', 'X' // they are the caller's
		require.Equal(t, "mine", string(a.r.Recent(5)[0].Key))
		require.Equal(t, "1", string(a.r.Recent(5)[0].Value))
		r := a.r
		a.close()
		require.Nil(t, r.Recent(10))
	})
}

// TestCount: live and deleted keys are counted, up to where the context ends.
func TestCount(t *testing.T) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.open()
		for i := range 100 {
			n.put(fmt.Sprint(i), "value")
		}
		for i := range 30 {
			require.NoError(t, n.r.Delete(fmt.Append(nil, i), nil))
		}
		count, err := n.r.Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, replicator.Count{Keys: 70, Tombstones: 30}, count)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = n.r.Count(ctx)
		require.ErrorIs(t, err, context.Canceled)
		r := n.r
		n.close()
		_, err = r.Count(t.Context())
		require.ErrorIs(t, err, replicator.ErrClosed)
	})
}

// TestSize: what is in tables counts, apart for the program's own and for the Replicator's.
func TestSize(t *testing.T) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.open()
		size, err := n.r.Size()
		require.NoError(t, err)
		require.Zero(t, size.Data)
		rng := rand.New(rand.NewPCG(1, 1))
		value := make([]byte, 1000)
		for i := range 1000 {
			for j := range value {
				value[j] = byte(rng.Uint32()) // cannot be compressed
			}
			n.put(fmt.Sprint(i), string(value))
		}
		n.put("\xff\xff", "above the reserved keys")
		n.close() // makes tables
		n.open()
		size, err = n.r.Size()
		require.NoError(t, err)
		t.Log(size)
		require.InDelta(t, 1_000_000, size.Data, 40_000) // goleveldb counts by blocks
		require.Greater(t, size.Extra, int64(10_000))
		require.Less(t, size.Extra, int64(100_000))
		r := n.r
		n.close()
		_, err = r.Size()
		require.ErrorIs(t, err, replicator.ErrClosed)
	})
}
