package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestClockSafeLocally refuses a local write that would pass 2^62.
func TestClockSafeLocally(t *testing.T) {
	r, err := OpenFile(t.TempDir(), nil, nil)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("key"), nil, nil))
	require.NoError(t, r.store.enter(false, func(x *section) error {
		x.clock.next = maxClock - 1
		return nil
	}))
	require.NoError(t, r.Put([]byte("last"), nil, nil))
	require.ErrorIs(t, r.Put([]byte("too late"), nil, nil), ErrClock)
	require.NoError(t, r.store.failure())
	_, err = r.Get([]byte("key"), nil)
	require.NoError(t, err)
	require.NoError(t, r.Close())
}
