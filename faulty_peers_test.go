package replicator_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// Peers that are slow, stuck, stale or hostile, and peers that only seem to be so.

// TestFaultyByeInPlaceOfHello: a dialled peer answers with a bye of code 5 in the
// place of its hello. There is no session that it could mean.
func TestFaultyByeInPlaceOfHello(t *testing.T) {
	const child = "REPLICATOR_CHILD"
	if os.Getenv(child) == "" {
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		c.Env = append(os.Environ(), child+"=1")
		out, err := c.CombinedOutput()
		require.NotContains(t, string(out), "nil pointer dereference")
		require.NoError(t, err, "%s", out)
		return
	}
	l := listenWire(t, func(c *wirePeer) { c.say(wireBye, []byte{5, 0}) })
	h := newHost(t, nil)
	require.NoError(t, h.AddPeer(l.String(), nil))
	require.Error(t, h.syncWithin(2*time.Second))
}

// TestFaultyByeFromStranger: eleven bytes, without a hello before them, must not make
// a replica give up its id, its sessions, and all acknowledgements.
func TestFaultyByeFromStranger(t *testing.T) {
	h := newHost(t, nil)
	id := h.Status().ID
	c := dialWire(t, h.Addr())
	c.say(wireBye, []byte{3, 0})
	io.Copy(io.Discard, c) // until it hangs up
	require.Equal(t, id, h.Status().ID)
}

// TestFaultyHelloWithoutID: who dials in with the zero id and the zero nonce must not be
// taken for the peers that were never reached, which are looked up under these.
func TestFaultyHelloWithoutID(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := l.Addr().String()
	require.NoError(t, l.Close())
	h := newHost(t, func(o *replicator.Options) { o.Peers = map[string]replicator.Meta{nobody: nil} })
	hi := newWireHi()
	hi.id, hi.nonce = [16]byte{}, 0
	c := dialWire(t, h.Addr())
	c.say(wireHello, hi.payload())
	if kind, _, _ := c.hear(); kind != wireHello {
		return // refused, as it should be
	}
	c.say(wireAccept, []byte{1})
	c.await(wirePull, 0)
	c.say(wirePage, wireFullPage(hi.epoch, 0))
	c.answerPings(0)
	require.Eventually(t, func() bool {
		for _, p := range h.Status().Peers {
			if p.State == replicator.StateInSync {
				return true
			}
		}
		return false
	}, 5*time.Second, time.Millisecond)
	time.Sleep(300 * time.Millisecond) // the attempt under way may be the last
	require.Error(t, h.syncWithin(5*time.Second), "nobody listens at %s", nobody)
}

// TestFaultyStuckPeer: a peer offers a large value, answers pings, and never answers the
// fetch, as one does whose disk hangs. Others that have the value are asked, and
// nothing else waits for it for long.
func TestFaultyStuckPeer(t *testing.T) {
	good := newHost(t, nil)
	large := strings.Repeat("large", 1000)
	require.NoError(t, good.Put([]byte("large"), []byte(large), nil))
	version, err := good.Version([]byte("large"))
	require.NoError(t, err)

	h := newHost(t, nil)
	hi := newWireHi()
	c := dialWire(t, h.Addr())
	c.join(hi)
	c.say(wirePage, wireFullPage(hi.epoch, 1, wireEntry{
		key: "large", clock: version.Clock, origin: uint64(version.Origin), size: uint64(len(large)),
	}))
	c.await(wireFetch, 1)
	c.answerPings(1)

	require.NoError(t, good.AddPeer(h.Addr().String(), nil))
	require.NoError(t, good.Put([]byte("small"), []byte("small"), nil))
	for _, key := range []string{"small", "large"} {
		arrived := pollFor(4*time.Second, func() bool { _, err := h.Get([]byte(key), nil); return err == nil })
		require.True(t, arrived, "%s has not arrived from the good peer: %s", key, h.peers())
	}
}

func (h *host) peers() (s string) {
	for _, p := range h.Status().Peers {
		s += p.Addr + " " + string(p.State) + " " + p.LastError + "; "
	}
	return s
}

// TestFaultyRefusedPagesAreNotRetriedHot: a peer that sends nothing that can be merged
// is dialled more and more seldom, though it answers pings.
func TestFaultyRefusedPagesAreNotRetriedHot(t *testing.T) {
	var mu sync.Mutex
	dials := 0
	addr := listenWire(t, func(c *wirePeer) {
		mu.Lock()
		dials++
		mu.Unlock()
		hi := newWireHi()
		if kind, _, err := c.hear(); err != nil || kind != wireHello {
			return
		}
		c.say(wireHello, hi.payload())
		c.say(wireAccept, []byte{1})
		c.say(wirePong, []byte{0, 0})
		for {
			kind, _, err := c.hear()
			if err != nil {
				return
			}
			if kind == wirePull {
				c.say(wirePage, wireFullPage(hi.epoch, 1, wireEntry{key: "k", clock: 1 << 63, origin: hi.epoch}))
			}
		}
	})
	newHost(t, func(o *replicator.Options) {
		o.MaxInterval = 5 * time.Second
		o.Peers = map[string]replicator.Meta{addr.String(): nil}
	})
	time.Sleep(2 * time.Second) // with the interval doubling from 10 ms, 8 attempts
	mu.Lock()
	defer mu.Unlock()
	require.Less(t, dials, 20)
}

// TestFaultyTrickledHello: Timeout bounds the handshake as a whole, not only the time
// between two of its bytes.
func TestFaultyTrickledHello(t *testing.T) {
	h := newHost(t, func(o *replicator.Options) { o.Timeout = 200 * time.Millisecond })
	c := dialWire(t, h.Addr())
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, c)
		close(ended)
	}()
	frame := wireFrame(wireHello, newWireHi().payload())
	for i := range 30 {
		select {
		case <-ended:
			return
		case <-time.After(100 * time.Millisecond):
			c.Write(frame[i : i+1])
		}
	}
	require.Fail(t, "after 3 s with a Timeout of 200 ms the handshake goes on")
}

// TestFaultyIdleSessionsStay: where MaxInterval is much greater than Timeout, the ping may
// come late, and the session stays.
func TestFaultyIdleSessionsStay(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		var logs logBuffer
		for _, each := range c.nodes {
			each.open(func(o *replicator.Options) {
				o.Logger = textLogger(&logs)
				o.MinInterval, o.MaxInterval = 5*time.Minute, 5*time.Minute
			})
		}
		time.Sleep(24 * time.Hour)
		log := logs.String()
		require.Zero(t, strings.Count(log, "session ended"), "%s", log)
	})
}

// TestFaultyLoweredLimit: a limit below a value that is here would end every session with a
// replica that lacks it. Such a database is not opened.
func TestFaultyLoweredLimit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, err := replicator.OpenFile(dir, nil, nil)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("large"), make([]byte, 2<<20), nil))
	require.NoError(t, r.Put([]byte("small"), []byte("small"), nil))
	require.NoError(t, r.Close())
	lowered := &replicator.Options{MaxValueSize: 1 << 20}
	_, err = replicator.OpenFile(dir, nil, lowered)
	require.ErrorIs(t, err, replicator.ErrTooLarge)
	require.ErrorContains(t, err, `key "large" has 2097152 bytes`)
	r, err = replicator.OpenFile(dir, nil, nil)
	require.NoError(t, err)
	require.NoError(t, r.Delete([]byte("large"), nil))
	require.NoError(t, r.Close())
	r, err = replicator.OpenFile(dir, nil, lowered)
	require.NoError(t, err)
	require.NoError(t, r.Close())
}

// TestFaultyLateHello: the hello of B's first process is held up on its way, say by a lost
// packet, and arrives after that of its second. B is no clone for that.
func TestFaultyLateHello(t *testing.T) {
	a := newHost(t, nil)
	dir := t.TempDir()
	held := make(chan *heldConn, 1)
	b, err := replicator.OpenFile(dir, nil, &replicator.Options{
		Peers: map[string]replicator.Meta{a.Addr().String(): nil},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			h := &heldConn{Conn: c, sent: make(chan struct{})}
			held <- h
			return h, err
		},
	})
	require.NoError(t, err)
	late := <-held
	<-late.sent
	require.NoError(t, b.Close())

	b, err = replicator.OpenFile(dir, nil, nil)
	require.NoError(t, err)
	defer b.Close()
	id := b.Status().ID
	reach := func() {
		require.NoError(t, b.AddPeer(a.Addr().String(), nil))
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(t, b.SyncNow(ctx))
		require.NoError(t, b.RemovePeer(a.Addr().String()))
	}
	reach()
	late.arrive()
	reach()
	require.Equal(t, id, b.Status().ID)
}

// heldConn holds up what is written until arrive. Closing it is held up, too.
type heldConn struct {
	net.Conn
	sent chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
}

func (c *heldConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf.Len() == 0 {
		close(c.sent)
	}
	return c.buf.Write(p)
}

func (c *heldConn) Close() error { return c.Conn.SetReadDeadline(time.Unix(1, 0)) }

func (c *heldConn) arrive() {
	c.mu.Lock()
	c.Conn.Write(c.buf.Bytes())
	c.mu.Unlock()
	c.Conn.SetReadDeadline(time.Now().Add(time.Second))
	io.Copy(io.Discard, c.Conn) // its answer, on which A gives up
	c.Conn.Close()
}

// TestFaultyMirror: a server that sends back what it is sent is not this replica.
func TestFaultyMirror(t *testing.T) {
	mirror := listenWire(t, func(c *wirePeer) { io.Copy(c, c) })
	h := newHost(t, func(o *replicator.Options) { o.Peers = map[string]replicator.Meta{mirror.String(): nil} })
	require.Error(t, h.syncWithin(5*time.Second), "nothing was synced with anybody")
}

func pollFor(d time.Duration, done func() bool) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if done() {
			return true
		}
	}
	return false
}

// TestFaultyMalformedAccept: what is wrong with an accept is told to the peer.
func TestFaultyMalformedAccept(t *testing.T) {
	h := newHost(t, nil)
	c := dialWire(t, h.Addr())
	c.say(wireHello, newWireHi().payload())
	c.await(wireHello, 0)
	c.say(wireAccept, []byte{0})
	kind, _, err := c.hear()
	require.NoError(t, err)
	require.EqualValues(t, wireBye, kind)
}

// TestFaultyForked: a clone of G has talked to V. When V dials G, it finds two
// lineages under one id, and G learns of it, though it has said hello already.
func TestFaultyForked(t *testing.T) {
	v, g := newHost(t, nil), newHost(t, nil)
	for bytes.Compare(idOf(g), idOf(v)) > 0 { // G decides which connection stays
		g = newHost(t, nil)
	}
	was := g.Status().ID
	require.NoError(t, g.AddPeer(v.Addr().String(), nil))
	require.NoError(t, g.syncWithin(10*time.Second))
	require.NoError(t, g.RemovePeer(v.Addr().String()))
	clone := newWireHi()
	clone.id = was
	c := dialWire(t, v.Addr())
	c.join(clone)
	c.say(wirePull, wireFullPull())
	c.await(wirePage, 0)
	c.Close()
	require.NoError(t, v.AddPeer(g.Addr().String(), nil))
	require.Eventually(t, func() bool { return v.syncWithin(10*time.Second) == nil }, 10*time.Second, 10*time.Millisecond)
	require.NotEqual(t, was, g.Status().ID)
}

func idOf(h *host) []byte {
	id := h.Status().ID
	return id[:]
}

// TestFaultyDisk: when a write has failed, nobody is left waiting at the listener.
func TestFaultyDisk(t *testing.T) {
	disk := simtest.NewDisk()
	db, err := leveldb.Open(disk, nil)
	require.NoError(t, err)
	r, err := replicator.Open(db, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	disk.SetFault(simtest.Failure{}.Fault())
	require.ErrorIs(t, r.Put([]byte("key"), nil, nil), replicator.ErrFailed)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", r.Addr().String())
		if err == nil {
			c.Close()
		}
		return err != nil
	}, 5*time.Second, time.Millisecond)
	disk.SetFault(nil)
	require.ErrorIs(t, r.Close(), replicator.ErrFailed)
	require.NoError(t, db.Close())
}

// statusHandler asks for the Status whenever something is logged.
type statusHandler struct {
	slog.Handler
	r *atomic.Pointer[replicator.Replicator]
}

func (h statusHandler) Handle(context.Context, slog.Record) error {
	if r := h.r.Load(); r != nil {
		r.Status()
	}
	return nil
}

func (statusHandler) Enabled(context.Context, slog.Level) bool { return true }

// TestFaultyPeersAreLogged: nothing is locked while something is logged.
func TestFaultyPeersAreLogged(t *testing.T) {
	var opened atomic.Pointer[replicator.Replicator]
	h := newHost(t, func(o *replicator.Options) {
		o.Logger = slog.New(statusHandler{slog.DiscardHandler, &opened})
	})
	opened.Store(h.Replicator)
	l := listenWire(t, func(c *wirePeer) {
		c.say(wireHello, newWireHi().payload())
		c.say(wireBye, []byte{3, 0}) // the id is renewed
	})
	require.NoError(t, h.AddPeer(l.String(), nil))
	require.NoError(t, h.AddPeer("127.0.0.1:1", nil))
	id := h.Status().ID
	require.Eventually(t, func() bool { return h.Status().ID != id }, 5*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return h.Status().Peers[0].LastError != "" }, 5*time.Second, time.Millisecond)
}

// TestFaultyLatePull: what is late is the accept and the first pull of a process,
// and they arrive when it has ended and the next one has been met.
func TestFaultyLatePull(t *testing.T) {
	t.Parallel()
	h := newHost(t, nil)
	first, second := newWireHi(), newWireHi()
	second.epoch, second.nonce = first.epoch+1, first.nonce+1
	c1 := dialWire(t, h.Addr())
	c1.say(wireHello, first.payload())
	c1.await(wireHello, 0)
	c2 := dialWire(t, h.Addr())
	c2.join(second)
	c2.say(wirePull, wireFullPull())
	c2.await(wirePage, 0)
	c1.say(wireAccept, []byte{1})
	c1.say(wirePull, wireFullPull())
	h.stillKnows(c1, second)
}

// TestFaultyLateAnswer: the same at a connection that this side dialled, where
// the answering hello is late.
func TestFaultyLateAnswer(t *testing.T) {
	t.Parallel()
	h := newHost(t, nil)
	first, second := newWireHi(), newWireHi()
	second.epoch, second.nonce = first.epoch+1, first.nonce+1
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, h.AddPeer(l.Addr().String(), nil))
	nc, err := l.Accept()
	require.NoError(t, err)
	c1 := &wirePeer{t, nc}
	c1.await(wireHello, 0)
	c2 := dialWire(t, h.Addr())
	c2.join(second)
	c2.say(wirePull, wireFullPull())
	c2.await(wirePage, 0)
	c1.say(wireHello, first.payload())
	h.stillKnows(c1, second)
}

// stillKnows lets a late connection have its effect and end, and then has the
// process that came after it dial again, which must not be taken for a clone.
func (h *host) stillKnows(late *wirePeer, newer wireHi) {
	time.Sleep(300 * time.Millisecond)
	late.Close()
	time.Sleep(300 * time.Millisecond)
	c := dialWire(h.t, h.Addr())
	c.say(wireHello, newer.payload())
	kind, payload, err := c.hear()
	require.NoError(h.t, err)
	require.EqualValues(h.t, wireHello, kind, "refused: %q", payload)
}

// TestFaultyFetchBeforePull: a peer is recorded before anything is served to it.
func TestFaultyFetchBeforePull(t *testing.T) {
	h := newHost(t, nil)
	hi := newWireHi()
	c := dialWire(t, h.Addr())
	c.join(hi)
	c.say(wireFetch, append([]byte{1}, wireBytes(nil, "key")...))
	values := c.await(wireValues, 0)
	require.Contains(t, string(values), "value")
	has, err := h.db.Has(append([]byte(reservedPrefix+"p"), hi.id[:]...), nil)
	require.NoError(t, err)
	require.True(t, has, "served, but not recorded")
}
