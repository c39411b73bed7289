package replicator_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// hash is the first 8 bytes of a value's SHA-256.
func hash64(value string) uint64 {
	sum := sha256.Sum256([]byte(value))
	return binary.BigEndian.Uint64(sum[:])
}

// TestSameStampSameValue: a peer that puts the stamp of one adopted value beside
// another is refused, wherever it does so. Two replicas that believed it would
// differ for ever.
func TestSameStampSameValue(t *testing.T) {
	hi := newWireHi()
	adopted := hash64("old") &^ (1 << 63)
	large := string(make([]byte, 2000))
	adoptedLarge := hash64(large) &^ (1 << 63)
	for name, c := range map[string]struct{ offered, fetched wireEntry }{
		"another value": {offered: wireEntry{key: "key", origin: adopted, value: "other"}},
		"a clock":       {offered: wireEntry{key: "key", clock: 1, origin: adopted, value: "old"}},
		"deleted":       {offered: wireEntry{key: "key", origin: adopted, deleted: true}},
		"another value, when it is fetched": {
			offered: wireEntry{key: "adopted", origin: adoptedLarge, size: 2000},
			fetched: wireEntry{key: "adopted", origin: adoptedLarge, value: "other"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			p := dialWire(t, h.Addr())
			p.join(hi)
			before := h.all()
			p.say(wirePage, wireFullPage(hi.epoch, 1, c.offered))
			if c.fetched.key != "" {
				p.await(wireFetch, 1)
				p.say(wireValues, c.fetched.append([]byte{1, 0, 1}))
			}
			code, text := p.awaitBye()
			require.EqualValues(t, 1, code)
			require.Contains(t, text, "stamp of an adopted value")
			require.Equal(t, before, h.all())
			h.goesOn()
		})
	}
	t.Run("the value itself", func(t *testing.T) {
		h := newHost(t, nil)
		p := dialWire(t, h.Addr())
		p.join(hi)
		p.say(wirePage, wireFullPage(hi.epoch, 1, wireEntry{key: "adopted", origin: adopted, value: "old"}))
		require.Eventually(t, func() bool { has, _ := h.Has([]byte("adopted"), nil); return has }, 5*time.Second, time.Millisecond)
	})
}

// TestSameStampChangedValue: an adopted value that was changed around the
// Replicator is not sent, so its peers go on.
func TestSameStampChangedValue(t *testing.T) {
	db := memDB(t)
	require.NoError(t, db.Put([]byte("around"), []byte("old"), nil))
	a, b := newHostOn(t, db, nil), newHost(t, nil)
	until(t, "adoption", func() bool { return a.Status().Adoption.Done })
	require.NoError(t, db.Put([]byte("around"), []byte("changed"), nil))
	require.NoError(t, a.Put([]byte("later"), []byte("value"), nil))
	require.NoError(t, b.AddPeer(a.Addr().String(), nil))
	require.NoError(t, b.SyncNow(within(t, 5*time.Second)))
	has, err := b.Has([]byte("around"), nil)
	require.NoError(t, err)
	require.False(t, has)
	value, err := b.Get([]byte("later"), nil)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))
	a.logged("changed around the Replicator")
}

// TestRefusedPeersAreDialledRarely: a peer that says hello and then hangs up, in
// whatever way, is dialled no more often than one that is not there.
func TestRefusedPeersAreDialledRarely(t *testing.T) {
	for name, answer := range map[string]func(p *wirePeer){
		"another session": func(p *wirePeer) { p.say(wireHello, newWireHi().payload()); p.say(wireBye, []byte{5, 0}) },
		"an error":        func(p *wirePeer) { p.say(wireHello, newWireHi().payload()); p.say(wireBye, []byte{1, 0}) },
		"nothing more":    func(p *wirePeer) { p.say(wireHello, newWireHi().payload()) },
		"nothing at all":  func(p *wirePeer) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dials atomic.Int64
			addr := listenWire(t, func(p *wirePeer) {
				dials.Add(1)
				answer(p)
				p.Close()
			})
			h := newHost(t, func(o *replicator.Options) { o.MaxInterval = time.Second })
			require.NoError(t, h.AddPeer(addr.String(), nil))
			time.Sleep(time.Duration(budget(1, 3, 3)) * time.Second) // the time is what is measured
			require.Less(t, dials.Load(), int64(15))
			require.Positive(t, dials.Load())
		})
	}
}

// TestBoundedHellos: hellos of strangers leave nothing behind, neither in memory nor
// on disk.
func TestBoundedHellos(t *testing.T) {
	h := newHost(t, nil)
	rows := func() (n int) {
		it := h.db.NewIterator(util.BytesPrefix([]byte(reservedPrefix+"p")), nil)
		defer it.Release()
		for it.Next() {
			n++
		}
		return n
	}
	gone := func() bool { return replicator.Connections(h.Replicator) == 0 }
	for i := range 300 {
		if i%10 == 9 { // fewer than MaxSessionsPerAddr are open at a time
			require.Eventually(t, gone, 5*time.Second, time.Millisecond)
		}
		hi := newWireHi()
		binary.BigEndian.PutUint64(hi.id[:], uint64(i+1))
		p := dialWire(t, h.Addr())
		p.say(wireHello, hi.payload())
		p.await(wireHello, 0)
		p.say(wireAccept, []byte{1})
		p.Close()
	}
	require.Eventually(t, func() bool { return replicator.Sessions(h.Replicator) == 0 }, 5*time.Second, time.Millisecond)
	require.Zero(t, rows())
	require.Zero(t, replicator.Known(h.Replicator))
	p := dialWire(t, h.Addr())
	p.join(newWireHi())
	p.say(wirePull, wireFullPull())
	p.await(wirePage, 0)
	require.Equal(t, 1, rows())
	require.Equal(t, 1, replicator.Known(h.Replicator))
	h.goesOn()
}

// TestBoundedConnections: silent connections are few, and cost little; from one
// address there are fewer, so another one still gets in.
func TestBoundedConnections(t *testing.T) {
	h := newHost(t, func(o *replicator.Options) {
		o.Listen = ""
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		o.Listener = l
		o.Timeout = 20 * time.Second
	})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var open []*wirePeer
	refused := 0
	for range 1000 {
		p := dialWire(t, h.Addr())
		open = append(open, p)
	}
	for _, p := range open {
		require.NoError(t, p.SetDeadline(time.Now().Add(time.Millisecond)))
		if kind, payload, err := p.hear(); err == nil && kind == wireBye {
			require.EqualValues(t, 2, payload[0])
			require.Contains(t, string(payload), "MaxSessionsPerAddr")
			refused++
		}
	}
	require.Positive(t, refused)
	require.Less(t, int64(heap())-int64(before), int64(4<<20))
	other, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", h.Addr().String())
	require.NoError(t, err)
	require.NoError(t, other.SetDeadline(time.Now().Add(10*time.Second)))
	(&wirePeer{t, other}).join(newWireHi())
	for _, p := range open {
		p.Close()
	}
	require.Eventually(t, func() bool { return replicator.Connections(h.Replicator) == 1 }, 10*time.Second, time.Millisecond)
	require.NoError(t, other.Close()) // else a pull from it has its turn
	h.goesOn()
}

// TestBoundedSessions: above the limit, peers that dial in are refused and told why;
// those that are dialled are not.
func TestBoundedSessions(t *testing.T) {
	h := newHost(t, func(o *replicator.Options) { o.MaxSessions = 2 })
	for i := range 2 {
		hi := newWireHi()
		hi.id[0] = byte(i + 1)
		p := dialWire(t, h.Addr())
		p.join(hi)
		p.say(wirePage, wireFullPage(hi.epoch, 0)) // else the next one waits for its turn
	}
	third := newHost(t, nil)
	require.NoError(t, third.AddPeer(h.Addr().String(), nil))
	require.ErrorContains(t, third.SyncNow(within(t, 5*time.Second)), "MaxSessions")
	fourth := newHost(t, nil)
	require.NoError(t, h.AddPeer(fourth.Addr().String(), nil))
	require.Eventually(t, func() bool { has, _ := fourth.Has([]byte("key"), nil); return has }, 5*time.Second, time.Millisecond)
}

// TestDialOfNothing: a Dial that returns neither a connection nor an error is told.
func TestDialOfNothing(t *testing.T) {
	h := newHost(t, func(o *replicator.Options) {
		o.Dial = func(context.Context, string) (net.Conn, error) { return nil, nil }
		o.Peers = map[string]replicator.Meta{"nowhere": nil}
	})
	require.ErrorContains(t, h.SyncNow(within(t, 5*time.Second)), "Options.Dial returned neither a connection nor an error")
}

// TestOtherProtocols: what is at the other end is said in words, at both ends.
func TestOtherProtocols(t *testing.T) {
	for name, c := range map[string]struct{ bytes, says string }{
		"an HTTP server": {"HTTP/1.1 400 Bad Request\r\n", "HTTP server"},
		"an SSH server":  {"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH server"},
		"a TLS server":   {"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := listenWire(t, func(p *wirePeer) { p.Write([]byte(c.bytes)) })
			h := newHost(t, nil)
			require.NoError(t, h.AddPeer(addr.String(), nil))
			require.ErrorContains(t, h.SyncNow(within(t, 5*time.Second)), c.says)
		})
	}
	for name, c := range map[string]struct{ bytes, says string }{
		"a browser":    {"GET / HTTP/1.1\r\n\r\n", "speaks HTTP"},
		"a TLS client": {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "speaks TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			p := dialWire(t, h.Addr())
			p.Write([]byte(c.bytes))
			_, text := p.awaitBye()
			require.Contains(t, text, c.says)
			h.logged("level=WARN", "refused a connection", c.says)
		})
	}
}

// within returns a context that lasts for a while, and not longer than the test.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestRefusalsByCause: Status tells the causes of refusals apart, and counts what only
// differs in what the stranger chose as one.
func TestRefusalsByCause(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(o *replicator.Options) { o.Cluster = "ours" })
	refuse := func(change func(hi *wireHi)) {
		hi := newWireHi()
		hi.cluster = "ours"
		change(&hi)
		p := h.dial()
		p.say(wireHello, hi.payload())
		p.awaitBye()
	}
	for i := range 3 {
		refuse(func(hi *wireHi) { hi.cluster = fmt.Sprintf(`theirs \" %d x`, i) })
		refuse(func(hi *wireHi) { hi.maxSize = 1<<20 + uint64(i) })
		refuse(func(hi *wireHi) { hi.local = fmt.Sprint("local ", i) })
	}
	refuse(func(hi *wireHi) { hi.clockKind = 2 })
	require.Eventually(t, func() bool {
		counts := map[uint64]int{}
		for _, refusal := range h.Status().Refused {
			require.Equal(t, "127.0.0.1", refusal.Host)
			counts[refusal.Count]++
		}
		return maps.Equal(counts, map[uint64]int{3: 3, 1: 1})
	}, 5*time.Second, 10*time.Millisecond, "%v", h.Status().Refused)
}
