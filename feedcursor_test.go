package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzCursor parses texts that no feed has given: it never panics, and what is accepted is
// a cursor that one can have given, and has this text only.
func FuzzCursor(f *testing.F) {
	h := history{{first: 1, origin: wireEpoch, sure: 300}, {first: 401, origin: wireEpoch + 1, sure: maxSequence}}
	at := func(seq uint64) position { return h.label(seq) }
	for _, c := range []Cursor{
		{}, {at: at(0)}, {at: at(300)}, {at: at(410), seen: at(1 << 40)},
		{scan: true, upper: at(0), seen: at(1)}, {scan: true, upper: at(5), seen: at(7), key: "key"},
		{scan: true, at: at(3), upper: at(500), seen: at(500), key: "\x00\xff"},
	} {
		require.True(f, c.IsZero() || c.isSound(), "%+v", c)
		text := c.String()
		f.Add(text)
		for n := range text {
			f.Add(text[:n])
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		var c Cursor
		if c.UnmarshalText([]byte(text)) != nil {
			require.True(t, c.IsZero())
			return
		}
		require.Equal(t, text, c.String())
		require.True(t, c.IsZero() || c.isSound())
		if h.vouches(&c, 600) {
			require.LessOrEqual(t, c.at.seq, uint64(600))
			require.LessOrEqual(t, c.seen.seq, uint64(600))
			for _, p := range []position{c.at, c.upper, c.seen} {
				require.False(t, p.epoch == wireEpoch && p.seq > 300, "what a power cut may have taken")
			}
		}
	})
}
