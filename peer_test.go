package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestRestartedPeers: once old values are in doubt, nothing that goes on from a place of before
// moves the cursor of a peer, in whichever way it does that. The rejoin's own peer is the
// exception.
func TestRestartedPeers(t *testing.T) {
	t.Parallel()
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	defer db.Close()
	r, err := Open(db, nil)
	require.NoError(t, err)
	defer r.Close()
	d, id := r.store, DatabaseID{1}
	place := cursor{checkpoint: position{wireEpoch, 300}, joined: true}
	merged, rejoined := new(peerRecord), new(peerRecord)
	require.NoError(t, d.remember(id, merged))
	require.NoError(t, d.remember(DatabaseID{2}, rejoined))
	merge := func(entries ...entry) error {
		c, err := d.examine(entries, &blindness{})
		require.NoError(t, err)
		return d.merge(c, &blindness{}, &progress{id: id, record: merged, next: place})
	}
	e := entry{key: []byte("key"), Version: Version{Stamp: Stamp{7, wireEpoch}}, value: []byte("value")}
	require.NoError(t, merge(e))
	require.NoError(t, rejoined.passed(place, 0))
	require.Equal(t, place, merged.place())

	require.NoError(t, d.enter(false, func(x *section) error {
		x.doubt(rejoined)
		return nil
	}))
	require.Equal(t, cursor{}, merged.place())
	require.Equal(t, place, rejoined.place())
	e.Clock++
	for name, err := range map[string]error{
		"with a change":              merge(e),
		"with nothing new":           merge(),
		"at the end of a comparison": d.endRecovery(&progress{id: id, record: merged, next: place}),
	} {
		require.ErrorIs(t, err, errRestarted, name)
	}
	v, err := r.Version([]byte("key"))
	require.NoError(t, err)
	require.EqualValues(t, 7, v.Clock)
	require.Equal(t, cursor{}, merged.place())
	require.Equal(t, adoptions{inDoubt: {}}, d.known.adopted)
}

// TestAdoptionsToLearn: what a peer tells of adoptions is left to be learned until it is known
// durably, for whoever asks meanwhile, and not when there was news of it.
func TestAdoptionsToLearn(t *testing.T) {
	t.Parallel()
	v := newServer(nil)
	require.Empty(t, v.adoptions())
	mark := Stamp{7, wireEpoch}
	require.Equal(t, 2, v.tellAdoptions(adoptions{1: {}, 3: mark}))
	first, second := v.adoptions(), v.adoptions()
	require.Equal(t, adoptions{1: {}, 3: mark}, first)
	require.Equal(t, first, second, "it is on its way, and not known yet")
	v.tellAdoptions(adoptions{1: mark, 5: {}})
	v.learned(first)
	require.Equal(t, adoptions{1: mark, 5: {}}, v.adoptions())
	v.learned(second)
	v.learned(v.adoptions())
	require.Empty(t, v.adoptions())
}

// FuzzPeerRecord parses rows that may be damaged: it never panics, and what is
// accepted reads back as it was.
func FuzzPeerRecord(f *testing.F) {
	at := position{wireEpoch, 300}
	for _, p := range []*peerRecord{
		{},
		{cursor: cursor{checkpoint: at, joined: true}, name: "cellar",
			epochs: []Origin{wireEpoch, wireEpoch + 1}, addrs: []string{"127.0.0.1:8000"}},
		{cursor: cursor{checkpoint: at, scan: scanLog, upper: at, seen: at, reached: 7}},
		{cursor: cursor{seen: at, scan: scanKeys, upper: at, key: []byte("m")}},
		{cursor: cursor{scan: scanKeys + 1}},
	} {
		row := p.append(nil)
		for n := range row {
			f.Add(row[:n])
		}
		f.Add(row)
		f.Add(append(row, 0))
	}
	f.Fuzz(func(t *testing.T, row []byte) {
		p, err := parsePeerRecord(row)
		if err != nil {
			require.ErrorIs(t, err, errCorrupt)
			return
		}
		same, err := parsePeerRecord(p.append(nil))
		require.NoError(t, err)
		require.Equal(t, p, same)
	})
}
