package replicator

import (
	"bytes"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A target for each decoder of what comes from the wire. FuzzSession has the whole.

func FuzzHello(f *testing.F)     { fuzzMessage(f, frameHello) }
func FuzzAccept(f *testing.F)    { fuzzMessage(f, frameAccept) }
func FuzzBye(f *testing.F)       { fuzzMessage(f, frameBye) }
func FuzzTerms(f *testing.F)     { fuzzMessage(f, frameTerms) }
func FuzzVector(f *testing.F)    { fuzzMessage(f, frameVector) }
func FuzzAdoptions(f *testing.F) { fuzzMessage(f, frameAdoptions) }
func FuzzReaped(f *testing.F)    { fuzzMessage(f, frameReaped) }
func FuzzPull(f *testing.F)      { fuzzMessage(f, framePull) }
func FuzzPage(f *testing.F)      { fuzzMessage(f, framePage) }
func FuzzFetch(f *testing.F)     { fuzzMessage(f, frameFetch) }
func FuzzValues(f *testing.F)    { fuzzMessage(f, frameValues) }
func FuzzPing(f *testing.F)      { fuzzMessage(f, framePing) }
func FuzzPong(f *testing.F)      { fuzzMessage(f, framePong) }
func FuzzAck(f *testing.F)       { fuzzMessage(f, frameAck) }
func FuzzQuestion(f *testing.F)  { fuzzMessage(f, frameQuestion) }
func FuzzReply(f *testing.F)     { fuzzMessage(f, frameReply) }
func FuzzOffer(f *testing.F)     { fuzzMessage(f, frameOffer) }
func FuzzTaken(f *testing.F)     { fuzzMessage(f, frameTaken) }

// fuzzMessage parses what no peer should have sent: it never panics, allocates little,
// every error has its sentinel, what is accepted is in bounds and reads back as it was.
func fuzzMessage(f *testing.F, kind byte) {
	for _, m := range wireMessages() {
		if m.kind == kind {
			f.Add(bytes.Join(m.parts, nil))
		}
	}
	for _, m := range malformedMessages() {
		if m.kind == kind && len(m.b) < 4<<10 { // longer ones only slow it down
			f.Add(m.b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const maxValue = 1000
		requireAllocates(t, len(b), func() { parseOnly(kind, b, maxValue) })
		value, again, err := parseMessage(kind, b, maxValue)
		if err != nil {
			require.True(t, errors.Is(err, ErrProtocol) || errors.Is(err, ErrRefused), "%v", err)
			return
		}
		var entries []entry
		switch m := value.(type) {
		case *page:
			entries = m.entries
		case *values:
			entries = m.entries
		case *reply:
			entries = m.entries
			require.LessOrEqual(t, len(m.findings), maxRanges)
		case *question:
			require.LessOrEqual(t, len(m.ranges), maxRanges)
			for i, r := range m.ranges {
				require.False(t, r.isEmpty())
				require.True(t, i == 0 || bytes.Compare(m.ranges[i-1].upper, r.lower) <= 0)
			}
		}
		for i := range entries {
			e := &entries[i]
			require.LessOrEqual(t, len(e.key), MaxKeySize)
			require.False(t, hidden(e.key))
			require.LessOrEqual(t, max(uint64(len(e.value)), e.size), uint64(maxValue))
			require.True(t, i == 0 || bytes.Compare(entries[i-1].key, e.key) < 0)
		}
		same, _, err := parseMessage(kind, again, maxValue)
		require.NoError(t, err)
		require.Equal(t, value, same)
	})
}

// parseOnly parses the payload of any type, and does nothing else.
func parseOnly(kind byte, b []byte, maxValue int) {
	switch kind {
	case frameHello:
		parseHello(b)
	case frameAccept:
		parseAccept(b)
	case frameBye:
		_ = parseBye(b)
	case frameTerms:
		parseTerms(b)
	case frameVector:
		parseVector(b, wireEpoch)
	case frameReaped:
		_, _, _, _ = parseReaped(b, wireEpoch)
	case frameAdoptions:
		parseAdoptions(b)
	case framePull:
		parsePull(b, wireOtherEpoch)
	case framePage:
		parsePage(b, maxValue, wireEpoch)
	case frameFetch:
		parseFetch(b)
	case frameValues:
		parseValues(b, maxValue, wireEpoch)
	case framePing:
		parsePing(b)
	case framePong:
		parsePong(b)
	case frameAck:
		parseAck(b, wireOtherEpoch, wireEpoch)
	case frameQuestion:
		parseQuestion(b, wireOtherEpoch)
	case frameReply:
		parseReply(b, maxValue, wireEpoch, wireOtherEpoch)
	case frameOffer:
		parseOffer(b)
	case frameTaken:
		parseTaken(b)
	}
}

// requireAllocates fails if something allocates more than four times the input and
// 64 KiB. What else runs allocates, too, so the least of some attempts counts.
func requireAllocates(t testing.TB, input int, what func()) {
	most := 4*uint64(input) + 64<<10
	var least uint64
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		what()
		runtime.ReadMemStats(&after)
		if least = after.TotalAlloc - before.TotalAlloc; least <= most {
			return
		}
	}
	require.LessOrEqual(t, least, most, "bytes allocated for %d", input)
}

// FuzzFrames receives what is no frame, or several: it never panics, and what is
// accepted is what was sent.
func FuzzFrames(f *testing.F) {
	for _, m := range wireMessages() {
		f.Add(overPipe(func(c *conn) { c.send(m.kind, m.parts...) }))
	}
	for _, b := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00", "\xff\xff\xff\xff\x08", "\x00\x00\x00\x00\x0b", "\x00\x50\x00\x00\x08"} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		requireAllocates(t, len(b), func() { receiveAll(b) })
		var again []byte
		for _, frame := range receiveAll(b) {
			again = append(again, overPipe(func(c *conn) { c.send(frame.kind, frame.payload) })...)
		}
		require.True(t, bytes.HasPrefix(b, again))
	})
}

type received struct {
	kind    byte
	payload []byte
}

// receiveAll receives frames as a session does, until one is refused.
func receiveAll(b []byte) (frames []received) {
	c := newConn(readOnlyConn{bytes.NewReader(b)}, time.Minute)
	for {
		kind, payload, err := c.receive(inSession)
		if err != nil {
			return frames
		}
		frames = append(frames, received{kind, payload})
	}
}

// readOnlyConn is a connection that brings some bytes and then ends.
type readOnlyConn struct{ *bytes.Reader }

func (readOnlyConn) Write(b []byte) (int, error)      { return len(b), nil }
func (readOnlyConn) Close() error                     { return nil }
func (readOnlyConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (readOnlyConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (readOnlyConn) SetDeadline(time.Time) error      { return nil }
func (readOnlyConn) SetReadDeadline(time.Time) error  { return nil }
func (readOnlyConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzRows parses rows that may be damaged: it never panics.
func FuzzRows(f *testing.F) {
	decoders := []func(b []byte){
		func(b []byte) { parseLogRecord(b) },
		func(b []byte) { parseIndexRecord(b) },
		func(b []byte) { parseAdoption(b) },
		func(b []byte) { parseVectorRow(b) },
		func(b []byte) { parseDurablePoint(b) },
		func(b []byte) { parseCleanMark(b) },
		func(b []byte) { parsePeerRecord(b) },
		func(b []byte) { _ = new(Token).UnmarshalText(b) },
		func(b []byte) { _ = new(DatabaseID).UnmarshalText(b) },
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 60))
	f.Add(bytes.Repeat([]byte{0xff}, 60))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, decode := range decoders {
			decode(b)
		}
	})
}
