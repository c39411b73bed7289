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
