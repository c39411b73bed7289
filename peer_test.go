package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzPeerRecord parses rows that may be damaged: it never panics, and what is
// accepted reads back as it was.
func FuzzPeerRecord(f *testing.F) {
	at := position{wireEpoch, 300}
	for _, p := range []*peerRecord{
		{},
		{cursor: cursor{checkpoint: at, seen: at}, settled: at, acknowledged: at, peerHead: 7,
			epochs: []Origin{wireEpoch, wireEpoch + 1}, addrs: []string{"127.0.0.1:8000"}},
		{cursor: cursor{seen: at, scan: scanFull, upper: at, key: []byte("m")}},
	} {
		f.Add(p.append(nil))
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
