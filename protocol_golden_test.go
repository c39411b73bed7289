package replicator

import (
	"encoding/hex"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestGoldenFrames pins the bytes of docs/PROTOCOL.md.
func TestGoldenFrames(t *testing.T) {
	id := DatabaseID{0: 0xaa, 15: 0xbb}
	epoch := Origin(0x8000000000000001)
	for _, c := range []struct {
		name    string
		kind    byte
		payload []byte
		want    string
	}{
		{"hello", frameHello, (&hello{
			minVersion: 1, maxVersion: 1, clockKind: clockLamport, cluster: "c", id: id, epoch: epoch,
			nonce: 2, maxKey: 64 << 10, maxValue: 16 << 20,
		}).append(nil), "0000003b" + "01" + "7265706c696361746f720d0a" + "01" + "01" + "01" + "0163" +
			"aa0000000000000000000000000000bb" + "8000000000000001" + "0000000000000002" + "808004" + "80808008" + "00" + "00"},
		{"accept", frameAccept, []byte{1}, "00000002" + "02" + "01"},
		{"bye", frameBye, appendBye(nil, ErrClosed), "00000015" + "03" + "01" + "127265706c696361746f723a20636c6f736564"},
		{"ack", frameAck, (&ack{position{epoch, 300}, 7}).append(nil), "0000000c" + "04" + "8000000000000001" + "ac02" + "07"},
		{"pull", framePull, (&pull{wait: true, inline: 1024, cursor: cursor{
			checkpoint: position{epoch, 5}, seen: position{epoch, 9}, scan: scanLog, upper: position{epoch, 9}, reached: 7,
		}}).append(nil), "00000022" + "05" + "01" + "8008" + "800000000000000105" + "800000000000000109" + "01" +
			"800000000000000109" + "07" + "00"},
		{"fetch", frameFetch, appendFetch(nil, [][]byte{[]byte("a"), []byte("b")}), "00000006" + "07" + "02" + "0161" + "0162"},
		{"ping", framePing, []byte{3}, "00000002" + "09" + "03"},
		{"pong", framePong, (&pong{3, 9}).append(nil), "00000003" + "0a" + "03" + "09"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := sentFrame(t, c.kind, c.payload)
			require.Equal(t, c.want, hex.EncodeToString(got[:len(got)-frameTrailer]))
		})
	}
}

// sentFrame returns the bytes that a frame is on the wire.
func sentFrame(t *testing.T, kind byte, payload []byte) []byte {
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		newConn(b, time.Second).send(kind, payload)
		b.Close()
	}()
	frame := make([]byte, frameHeader+len(payload)+frameTrailer)
	for n := 0; n < len(frame); {
		m, err := a.Read(frame[n:])
		require.NoError(t, err)
		n += m
	}
	return frame
}

// TestGoldenPage pins a page's bytes, and reads them back.
func TestGoldenPage(t *testing.T) {
	epoch := Origin(0x8000000000000001)
	w := pageWriter{q: &pull{}, inline: 4}
	w.page = page{done: true, head: position{epoch, 9}, floor: 1, key: []byte("b")}
	w.add([]byte("a"), Version{Stamp{2, epoch}, false}, []byte("v"))
	w.add([]byte("b"), Version{Stamp{3, epoch}, true}, nil)
	w.add([]byte("c"), adoptedVersion([]byte("large")), []byte("large"))
	payload := append(w.page.appendHeader(nil, w.entries), w.body...)
	require.Equal(t, "02"+"800000000000000109"+"01"+"00"+"0162"+"03"+
		"00"+"02"+"8000000000000001"+"0161"+"0176"+
		"03"+"03"+"0162"+
		"04"+"00"+"535c416a85b807e9"+"0163"+"05"+"d35c416a85b807e9", hex.EncodeToString(payload))
	p, err := parsePage(payload, 100)
	require.NoError(t, err)
	require.Len(t, p.entries, 3)
	require.True(t, p.done)
	for n := range payload {
		_, err := parsePage(payload[:n], 100)
		require.ErrorIs(t, err, ErrProtocol, "cut at %d", n)
	}
}
