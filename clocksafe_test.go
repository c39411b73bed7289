package replicator_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// TestClockSafeAgainstPeers: a clock out of bounds is rejected with the
// session that brought it, never clamped, wherever in a page or in the values of
// a fetch it stands.
func TestClockSafeAgainstPeers(t *testing.T) {
	hi := newWireHi()
	bound := func() uint64 { // by the wall clock, an hour ahead
		return 1<<48 + 1<<20*uint64(3600+time.Since(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))/time.Second)
	}
	for name, clock := range map[string]func() uint64{
		"above 2^62":                func() uint64 { return 1<<62 + 1 },
		"2^64-1":                    func() uint64 { return 1<<64 - 1 },
		"a minute beyond the bound": func() uint64 { return bound() + 60<<20 },
	} {
		for _, fetched := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, fetched %v", name, fetched), func(t *testing.T) {
				h := newHost(t, nil)
				p := dialWire(t, h.Addr())
				p.join(hi)
				before := h.all()
				bad := wireEntry{key: "key", clock: clock(), origin: hi.epoch, value: "bad"}
				good := wireEntry{key: "another", clock: 1, origin: hi.epoch, value: "good"}
				if fetched {
					good.size, good.value = 2000, ""
					bad.key = good.key
					p.say(wirePage, wireFullPage(hi.epoch, 2, good))
					p.await(wireFetch, 2)
					p.say(wireValues, bad.append([]byte{1, 0, 1}))
				} else {
					p.say(wirePage, wireFullPage(hi.epoch, 2, good, bad))
				}
				code, text := p.awaitBye()
				require.EqualValues(t, 4, code)
				require.Contains(t, text, "clock out of bounds")
				require.Contains(t, text, fmt.Sprint(bad.clock))
				require.Equal(t, before, h.all())
				h.goesOn()
			})
		}
	}
	t.Run("at the bound", func(t *testing.T) {
		h := newHost(t, nil)
		p := dialWire(t, h.Addr())
		p.join(hi)
		clock := bound()
		p.say(wirePage, wireFullPage(hi.epoch, 1, wireEntry{key: "key", clock: clock, origin: hi.epoch, value: "far"}))
		require.Eventually(t, func() bool { return h.Status().Clock == clock+1 }, 5*time.Second, time.Millisecond)
		version, err := h.Version([]byte("key"))
		require.NoError(t, err)
		require.Equal(t, replicator.Stamp{Clock: clock, Origin: replicator.Origin(hi.epoch)}, version.Stamp)
	})
}

// TestClockSafeAtTheDialler sees the error where an operator looks.
func TestClockSafeAtTheDialler(t *testing.T) {
	addr := listenWire(t, func(p *wirePeer) {
		hi := newWireHi()
		if kind, _, err := p.hear(); err != nil || kind != wireHello {
			return
		}
		p.say(wireHello, hi.payload())
		p.say(wireAccept, []byte{1})
		for kind := byte(0); kind != wirePull; {
			var err error
			if kind, _, err = p.hear(); err != nil {
				return
			}
		}
		p.say(wirePage, wireFullPage(hi.epoch, 1, wireEntry{key: "key", clock: 1 << 63, origin: hi.epoch}))
	}).String()
	h := newHost(t, func(o *replicator.Options) { o.Peers = map[string]replicator.Meta{addr: nil} })
	before := h.all()
	require.ErrorIs(t, h.syncWithin(5*time.Second), replicator.ErrClock)
	require.Eventually(t, func() bool {
		return bytes.Contains([]byte(h.Status().Peers[0].LastError), []byte("clock out of bounds"))
	}, 5*time.Second, time.Millisecond)
	require.Equal(t, before, h.all())
	h.goesOn()
}

// TestClockSafeFarAhead accepts a clock that is far ahead, but in
// bounds: the next change made here is above it.
func TestClockSafeFarAhead(t *testing.T) {
	h, hi := newHost(t, nil), newWireHi()
	p := dialWire(t, h.Addr())
	p.join(hi)
	const clock = 1 << 39
	p.say(wirePage, wireFullPage(hi.epoch, 1, wireEntry{key: "afar", clock: clock, origin: hi.epoch, value: "far"}))
	require.Eventually(t, func() bool { return h.Status().Clock == clock+1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, h.Put([]byte("afar"), []byte("here"), nil))
	version, err := h.Version([]byte("afar"))
	require.NoError(t, err)
	require.Greater(t, version.Clock, uint64(clock))
}
