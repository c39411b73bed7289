package replicator_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
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

// TestAdoptionIsToldFirst: what is known of adoptions is told before the vector, and before an
// answer to a question. Whoever keeps old values from this replica for what its vector claims
// has to know of those that are in doubt.
func TestAdoptionIsToldFirst(t *testing.T) {
	t.Parallel()
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Put([]byte("old"), []byte("value"), nil))
	h := newHostOn(t, db, nil)
	p := h.dial()
	p.say(wireHello, newWireHi().payload())
	p.await(wireHello, 0)
	p.say(wireAccept, []byte{1})
	p.await(wireTerms, 0)
	kind, payload, err := p.hear()
	require.NoError(t, err)
	require.EqualValues(t, wireAdoptions, kind)
	require.EqualValues(t, 1, payload[0])
	kind, _, err = p.hear()
	require.NoError(t, err)
	require.EqualValues(t, wireVector, kind)
}
