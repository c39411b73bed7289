package replicator

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// victim is a replica that hostile peers connect to, and a good peer of it.
type victim struct {
	*Replicator
	good *Replicator
}

func newVictim(t *testing.T) *victim {
	o := &Options{Listen: "127.0.0.1:0", Timeout: 500 * time.Millisecond, MaxInterval: time.Second}
	r, err := OpenFile(t.TempDir(), nil, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	good, err := OpenFile(t.TempDir(), nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, good.Close()) })
	require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
	require.NoError(t, good.AddPeer(r.Addr().String(), nil))
	return &victim{r, good}
}

// unharmed checks that the victim still reads, writes and syncs.
func (v *victim) unharmed(t *testing.T) {
	t.Helper()
	value, err := v.Get([]byte("key"), nil)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))
	require.NoError(t, v.Put([]byte("another"), []byte(t.Name()), nil))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, v.good.SyncNow(ctx))
	value, err = v.good.Get([]byte("another"), nil)
	require.NoError(t, err)
	require.Equal(t, t.Name(), string(value))
	require.NoError(t, CheckConsistent(v.Replicator))
}

func (v *victim) connect(t *testing.T) *conn {
	nc, err := net.Dial("tcp", v.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	return newConn(nc, 10*time.Second, 10*time.Second)
}

func hostileHello() hello {
	return hello{
		minVersion: 1, maxVersion: 1, clockKind: clockLamport, id: newDatabaseID(), epoch: newOrigin(),
		nonce: 1, maxKey: MaxKeySize, maxValue: defaultMaxValueSize,
	}
}

// session lets a hostile peer come as far as a session.
func (v *victim) session(t *testing.T) (*conn, hello) {
	c, own := v.connect(t), hostileHello()
	own.id = DatabaseID{15: 1} // the smaller id, so that it decides
	require.NoError(t, c.send(frameHello, own.append(nil)))
	_, err := c.expect(frameHello)
	require.NoError(t, err)
	require.NoError(t, c.send(frameAccept, []byte{1}))
	return c, own
}

// next receives until a frame of that kind comes.
func (c *conn) next(t *testing.T, kind byte) []byte {
	t.Helper()
	for {
		k, payload, err := c.receive(func(byte) int { return 1 << 25 })
		require.NoError(t, err)
		if k == kind {
			return payload
		}
	}
}

func TestGarbagePeers(t *testing.T) {
	v := newVictim(t)
	for name, sent := range map[string]string{
		"http":          "GET / HTTP/1.1\r\nHost: there\r\n\r\n",
		"huge length":   "\xff\xff\xff\xff\x01",
		"no length":     "\x00\x00\x00\x00\x01",
		"unknown frame": "\x00\x00\x00\x02\x63a\x00\x00\x00\x00",
		"checksum":      "\x00\x00\x00\x02\x01a\x00\x00\x00\x00",
		"not a hello":   string(sentFrame(t, frameHello, []byte("hello"))),
	} {
		t.Run(name, func(t *testing.T) {
			c := v.connect(t)
			_, err := c.Conn.Write([]byte(sent))
			require.NoError(t, err)
			err = parseBye(c.next(t, frameBye))
			var bye *byeReceived
			require.ErrorAs(t, err, &bye)
			require.Contains(t, bye.text, "protocol violation")
			v.unharmed(t)
		})
	}
	t.Run("silence", func(t *testing.T) {
		c := v.connect(t)
		_, _, err := c.receive(func(byte) int { return maxSmallFrame })
		require.Error(t, err, "it is cut off")
		v.unharmed(t)
	})
}

func TestSessionsWithGarbage(t *testing.T) {
	clean := &page{head: position{newOrigin(), 1}, floor: 1, done: true, key: []byte("x")}
	w := pageWriter{q: &pull{}, inline: 9}
	w.add([]byte(reserved+"lx"), Version{Stamp{1, newOrigin()}, false}, []byte("value"))
	for name, say := range map[string]func(c *conn){
		"length 2^32-1":   func(c *conn) { c.Conn.Write([]byte("\xff\xff\xff\xff\x06")) },
		"wrong checksum":  func(c *conn) { c.Conn.Write([]byte("\x00\x00\x00\x02\x06a\x00\x00\x00\x00")) },
		"reserved key":    func(c *conn) { c.send(framePage, clean.appendHeader(nil, 1), w.body) },
		"truncated page":  func(c *conn) { c.send(framePage, clean.appendHeader(nil, 5)) },
		"unasked pages":   func(c *conn) { c.send(frameValues, []byte{0, 0}); c.send(frameValues, []byte{0, 0}) },
		"a second hello":  func(c *conn) { own := hostileHello(); c.send(frameHello, own.append(nil)) },
		"malformed fetch": func(c *conn) { c.send(frameFetch, []byte{200}) },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t)
			c, _ := v.session(t)
			c.next(t, framePull)
			say(c)
			var bye *byeReceived
			require.ErrorAs(t, parseBye(c.next(t, frameBye)), &bye)
			require.Contains(t, bye.text, "protocol violation")
			v.unharmed(t)
		})
	}
}

// TestInvariant15ClockSafe offers clocks out of bounds: they are rejected with
// the session that brings them, and never clamped.
func TestInvariant15ClockSafe(t *testing.T) {
	for name, c := range map[string]struct {
		clock  uint64
		reject bool
	}{
		"above 2^62":        {1<<62 + 1, true},
		"2^64-1":            {1<<64 - 1, true},
		"too far ahead":     {1<<40 + 100, true},
		"far ahead, but in": {1 << 39, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t)
			conn, own := v.session(t)
			conn.next(t, framePull)
			before := v.Status().Clock
			p := page{head: position{own.epoch, 1}, floor: 1, done: true, key: []byte("key")}
			w := pageWriter{q: &pull{}, inline: 9}
			w.add([]byte("from afar"), Version{Stamp{c.clock, own.epoch}, false}, []byte("value"))
			require.NoError(t, conn.send(framePage, p.appendHeader(nil, 1), w.body))
			if !c.reject {
				require.Eventually(t, func() bool {
					version, err := v.Version([]byte("from afar"))
					return err == nil && version.Clock == c.clock && v.Status().Clock == c.clock+1
				}, 10*time.Second, time.Millisecond)
				require.NoError(t, v.Put([]byte("from afar"), []byte("here"), nil))
				version, err := v.Version([]byte("from afar"))
				require.NoError(t, err)
				require.Greater(t, version.Clock, c.clock)
				return
			}
			require.ErrorIs(t, parseBye(conn.next(t, frameBye)), ErrClock)
			require.Equal(t, before, v.Status().Clock)
			_, err := v.Get([]byte("from afar"), nil)
			require.Error(t, err)
			v.unharmed(t)
		})
	}
}

// TestInvariant15ClockSafeLocally refuses a local write that would pass 2^62.
func TestInvariant15ClockSafeLocally(t *testing.T) {
	v := newVictim(t)
	require.NoError(t, v.commits.enter(false, func(s *committer) error {
		s.clock.next = maxClock - 1
		return nil
	}))
	require.NoError(t, v.Put([]byte("last"), nil, nil))
	require.ErrorIs(t, v.Put([]byte("too late"), nil, nil), ErrClock)
	require.NoError(t, v.commits.failure())
	_, err := v.Get([]byte("key"), nil)
	require.NoError(t, err)
}

func TestMisfits(t *testing.T) {
	for name, c := range map[string]struct {
		change func(h *hello)
		says   string
	}{
		"cluster":    {func(h *hello) { h.cluster = "other" }, `cluster "" met cluster "other"`},
		"version":    {func(h *hello) { h.minVersion, h.maxVersion = 7, 9 }, "versions 7 to 9"},
		"clock kind": {func(h *hello) { h.clockKind = 9 }, "clock kind"},
		"value size": {func(h *hello) { h.maxValue++ }, "MaxValueSize"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t)
			conn, own := v.connect(t), hostileHello()
			c.change(&own)
			require.NoError(t, conn.send(frameHello, own.append(nil)))
			err := parseBye(conn.next(t, frameBye))
			require.ErrorIs(t, err, ErrRefused)
			require.ErrorContains(t, err, c.says)
			v.unharmed(t)
		})
	}
}

// TestMisfitsTellBothEnds lets two replicas of different clusters meet.
func TestMisfitsTellBothEnds(t *testing.T) {
	v := newVictim(t)
	other, err := OpenFile(t.TempDir(), nil, &Options{Cluster: "other"})
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, other.AddPeer(v.Addr().String(), nil))
	err = other.SyncNow(context.Background())
	require.ErrorIs(t, err, ErrRefused)
	var peer *PeerError
	require.True(t, errors.As(err, &peer))
	require.Contains(t, other.Status().Peers[0].LastError, `"other"`)
	v.unharmed(t)
}

// FuzzParse feeds everything that parses what peers send.
func FuzzParse(f *testing.F) {
	own := hostileHello()
	f.Add(own.append(nil))
	w := pageWriter{q: &pull{}, inline: 4}
	w.add([]byte("a"), Version{Stamp{2, 3}, false}, []byte("v"))
	f.Add(append(w.page.appendHeader(nil, 1), w.body...))
	f.Add(appendFetch(nil, [][]byte{[]byte("a")}))
	f.Add((&pull{}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseHello(b)
		_ = parseBye(b)
		_, _ = parseAck(b)
		_, _ = parsePull(b)
		_, _ = parsePage(b, 1000)
		_, _, _ = parseValues(b, 1000)
		_, _ = parseFetch(b)
		_, _ = parsePong(b)
		_, _ = parsePing(b)
		_, _ = parsePeerRecord(b)
	})
}
