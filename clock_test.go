package replicator

import (
	"testing"
	"time"

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

// TestClockLimit: the bound rises with the wall clock, from an hour's worth of changes at the
// beginning of 2026, which is also that of a device without a clock.
func TestClockLimit(t *testing.T) {
	const hour = 3600 << 20
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for at, limit := range map[time.Time]uint64{
		time.Unix(0, 0):                 1<<48 + hour,
		day.Add(-time.Nanosecond):       1<<48 + hour,
		day:                             1<<48 + hour,
		day.Add(999 * time.Millisecond): 1<<48 + hour,
		day.Add(time.Second):            1<<48 + hour + 1<<20,
		day.AddDate(10, 0, 0):           1<<48 + hour + 86400<<20*(365*10+2),
		day.AddDate(290, 0, 0):          1<<48 + hour + uint64(day.AddDate(290, 0, 0).Unix()-day.Unix())<<20,
	} {
		rules := clockRules{wall: func() time.Time { return at }}
		require.Equal(t, limit, rules.limit(), at)
	}
	require.Less(t, clockLimit(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)), uint64(maxClock))
}
