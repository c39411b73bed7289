package replicator

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestExpireWhileClosing ends the removal of expired records in its midst: what is left below
// the floor does not make newer records expire.
func TestExpireWhileClosing(t *testing.T) {
	t.Parallel()
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	defer db.Close()
	const newest, all = 100, 1000
	r, err := Open(db, &Options{newest: newest, expireEvery: time.Hour})
	require.NoError(t, err)
	defer r.Close()
	d := r.store
	d.cancel() // the background leaves it to the test
	d.wg.Wait()
	for i := range all {
		require.NoError(t, r.Put(fmt.Append(nil, i), nil, nil))
	}
	_, err = d.expireSome(t.Context(), time.Now(), false)
	require.NoError(t, err)
	floor := r.Status().Floor
	require.Equal(t, uint64(all-newest+1), floor)
	require.EqualValues(t, all, r.Status().LogRecords)

	over, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = d.expireSome(over, time.Now(), false)
	require.NoError(t, err)
	require.Equal(t, floor, r.Status().Floor)
	_, err = d.expireSome(t.Context(), time.Now(), false)
	require.NoError(t, err)
	require.Equal(t, floor, r.Status().Floor)
	require.EqualValues(t, newest, r.Status().LogRecords)
}
