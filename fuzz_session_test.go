package replicator_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// How FuzzSession uses its bytes.
const (
	fuzzFromFirst = iota // as what a stranger sends, from the first byte
	fuzzRaw              // as what a peer sends in its session
	fuzzFrames           // likewise, as frames whose lengths and checksums are made: type, length, payload
	fuzzModes
)

// FuzzSession lets a peer send anything to a replica that stays open. Nothing panics, no
// goroutine is left when the peer has gone, and the replica goes on. Beyond what a session
// without input costs, its memory is bounded by four times the bytes that it has read and
// written, and 64 KiB.
func FuzzSession(f *testing.F) {
	for _, frames := range fuzzSeeds() {
		var raw, sealed []byte
		for _, frame := range frames {
			raw = append(raw, wireFrame(frame.kind, frame.payload)...)
			sealed = append(binary.AppendUvarint(append(sealed, frame.kind-1), uint64(len(frame.payload))), frame.payload...)
		}
		f.Add(byte(fuzzRaw), raw)
		f.Add(byte(fuzzFrames), sealed)
	}
	hi := newWireHi()
	f.Add(byte(fuzzFromFirst), wireFrame(wireHello, hi.payload()))
	f.Add(byte(fuzzFromFirst), append(wireFrame(wireHello, hi.payload()), wireFrame(wireAccept, []byte{1})...))
	hi.flags = 1
	f.Add(byte(fuzzFromFirst), wireFrame(wireHello, hi.payload()))
	f.Add(byte(fuzzFromFirst), []byte("\x00\x00\x10\x00\x01"))
	f.Add(byte(fuzzFromFirst), []byte("\x16\x03\x01\x02\x00\x01"))
	f.Add(byte(fuzzRaw), []byte("\x01\x00\x00\x00\x08")) // a page of 16 MiB, of which nothing comes
	h := newFuzzHost(f)
	f.Fuzz(func(t *testing.T, mode byte, b []byte) {
		h.require(t, mode%fuzzModes, b)
	})
}

// TestBoundedVectors has a peer tell of many origins: a session keeps what it is told, and
// little more.
func TestBoundedVectors(t *testing.T) {
	h := newFuzzHost(t)
	for _, frames := range []uint64{1, 4, 16} {
		stamps := func(i uint64) []wireStamp {
			all := make([]wireStamp, 4096)
			for j := range all {
				all[j] = wireStamp{1<<63 | 1<<40 | i<<20 | uint64(j), 1}
			}
			return all
		}
		h.require(t, fuzzRaw, manyFrames(wireVector, frames, func(i uint64) []byte { return wireStamps(nil, stamps(i)...) }))
		h.require(t, fuzzRaw, manyFrames(wireAck, frames, func(i uint64) []byte { return wireStamps([]byte{0}, stamps(i)...) }))
	}
}

type fuzzFrame struct {
	kind    byte
	payload []byte
}

// fuzzSeeds are sessions that a peer could have, with each type of frame.
func fuzzSeeds() map[string][]fuzzFrame {
	hi := newWireHi()
	const other = 1<<63 | 5
	put := wireEntry{key: "k", clock: 5, origin: hi.epoch, value: "value"}
	deleted := wireEntry{key: "l", clock: 6, origin: other, deleted: true}
	large := wireEntry{key: "m", clock: 7, origin: hi.epoch, size: 5}
	fetched := wireEntry{key: "m", clock: 7, origin: hi.epoch, value: "large"}
	known := []wireStamp{{other, 9}, {hi.epoch, 7}}
	scanned := func(flags, head uint64, key string, entries ...wireEntry) []byte {
		b := wirePlace(binary.AppendUvarint(nil, flags), hi.epoch, head)
		if flags&4 != 0 {
			b = wireStamps(b, known...)
		}
		b = append(wireBytes(b, key), byte(len(entries)))
		for _, e := range entries {
			b = e.append(b)
		}
		return b
	}
	logged := append(append(wireStamps(wirePlace(binary.AppendUvarint(nil, 128|4), hi.epoch, 20), known...), 15), 0)
	return map[string][]fuzzFrame{
		"all at once": {
			{wireTerms, []byte{0}}, {wireVector, wireStamps(nil, known...)}, {wireAdoptions, wireAdoption(3, 9, other)},
			{wireAck, wireStamps([]byte{3}, known...)}, {wirePull, wireFullPull()}, {wirePing, []byte{1}}, {wirePong, []byte{1, 9}},
			{wirePage, wireFullPageKnowing(hi.epoch, 9, known, put, deleted)}, {wireFlush, nil},
			{wirePage, wirePageTo(hi.epoch, 12)}, {wireFetch, wireBytes([]byte{1}, "key")}, {wirePing, []byte{2}},
		},
		"values":       {{wirePage, wireFullPage(hi.epoch, 9, put, large)}, {wireValues, fetched.append([]byte{1, 0, 1})}, {wirePage, wirePageTo(hi.epoch, 12)}},
		"values, less": {{wirePage, wireFullPage(hi.epoch, 9, large)}, {wireValues, []byte{1, 1, 0}}},
		"a scan in key order": {
			{wirePage, scanned(4|16|256, 9, "f", put)}, {wirePage, scanned(256, 11, "n", large)},
			{wireValues, fetched.append([]byte{1, 0, 1})}, {wirePage, scanned(8|256, 12, "z")},
		},
		"a scan of the log": {
			{wirePage, wireFullPage(hi.epoch, 9)}, {wirePage, logged},
			{wirePage, append(wirePlace(binary.AppendUvarint(nil, 128|8), hi.epoch, 20), 9, 0)},
		},
		"reset":      {{wirePage, scanned(4|16|256, 9, "f")}, {wirePage, scanned(2|4|8|16|256, 4, "f", put)}},
		"ahead":      {{wirePage, wireFullPage(hi.epoch, 9)}, {wirePage, put.append(append(wireStamps(wireStamps(wireStamps(binary.AppendUvarint(nil, 1|32|512), known...), known...), known...), 1))}},
		"pulls":      {{wirePull, []byte{4 | 1, 3, 0}}, {wirePull, []byte{8, 0, 2, 5, 0, 1, 'b', 0}}, {wirePull, []byte{8 | 16, 1, 1, 5, 1, 0, 5, 0}}},
		"terms":      {{wireTerms, []byte{1}}, {wireTerms, []byte{0}}},
		"an error":   {{wireBye, wireBytes([]byte{1}, "over")}},
		"a fork":     {{wireBye, []byte{3, 0}}},
		"incomplete": {{wirePage, scanned(4|8|16|64|256, 9, "f", put)}, {wirePing, []byte{1}}},
	}
}

// fuzzHost is a replica that meets one peer after the other.
type fuzzHost struct {
	*replicator.Replicator
	listener   *pipeListener
	goroutines int               // before the session
	empty      [fuzzModes]uint64 // bytes allocated for a session without input
	meetings   int
}

// fuzzCost is what one session needed.
type fuzzCost struct {
	moved int    // bytes, in both directions
	total uint64 // bytes allocated, by all that runs
	held  uint64 // bytes in use before its end, and not after it
}

func newFuzzHost(f testing.TB) *fuzzHost {
	h := &fuzzHost{listener: newPipeListener()}
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(f, err)
	r, err := replicator.Open(db, &replicator.Options{
		Listener: h.listener, BacklogBytes: 1, MinInterval: time.Hour, MaxInterval: time.Hour,
	})
	require.NoError(f, err)
	h.Replicator = r
	f.Cleanup(func() {
		require.NoError(f, replicator.CheckConsistent(r))
		require.NoError(f, r.Close())
		require.NoError(f, db.Close())
	})
	require.NoError(f, r.Put([]byte("key"), []byte("value"), nil))
	for range 10 { // so that all is there that stays
		for mode := range byte(fuzzModes) {
			h.empty[mode] = h.meet(f, mode, nil, false).total
		}
	}
	return h
}

// require has a peer send something, and checks what it has cost. What else runs needs
// memory, too, and a garbage collection takes time: so what is held is looked at only if
// all that was allocated is more than it may be, and the least of some attempts counts.
func (h *fuzzHost) require(t testing.TB, mode byte, b []byte) {
	most := func(moved int) uint64 { return h.empty[mode] + 4*uint64(moved) + 64<<10 }
	cost := h.meet(t, mode, b, false)
	if cost.total <= most(cost.moved) {
		return
	}
	for try := range 6 {
		time.Sleep(time.Duration(try) * 100 * time.Millisecond) // what leveldb does meanwhile ends
		if cost = h.meet(t, mode, b, true); cost.held <= most(cost.moved) {
			return
		}
	}
	require.LessOrEqual(t, cost.held, most(cost.moved), "bytes held by a session that moved %d", cost.moved)
}

// meet has a peer send something, waits until its session is over, and looks at what is
// left. weigh is whether to find out what the session held.
func (h *fuzzHost) meet(t testing.TB, mode byte, b []byte, weigh bool) (cost fuzzCost) {
	var before, after runtime.MemStats
	h.goroutines = runtime.NumGoroutine()
	runtime.ReadMemStats(&before)
	c := &countingConn{Conn: h.listener.dial()}
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	p := &wirePeer{t, c}
	if mode != fuzzFromFirst {
		hi := newWireHi()
		binary.BigEndian.PutUint64(hi.id[8:], uint64(h.meetings)+1) // nothing of it is merged yet
		p.join(hi)
	}
	heard := make(chan byte, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			kind, _, err := p.hear()
			if err != nil {
				return
			}
			select {
			case heard <- kind:
			default: // nobody waits for it
			}
		}
	}()
	if mode == fuzzFrames {
		p.sayFuzzed(b, heard, ended)
	} else {
		p.Write(b)
	}
	held := inUse(weigh, 5) // what lasts: the session is at work
	p.Close()
	<-ended
	h.recovers(t)
	runtime.ReadMemStats(&after)
	cost = fuzzCost{moved: int(c.moved.Load()), total: after.TotalAlloc - before.TotalAlloc}
	if left := inUse(weigh, 1); held > left {
		cost.held = held - left
	}
	return cost
}

// inUse returns how many bytes of the heap are in use: the least of some looks, a moment
// apart.
func inUse(weigh bool, looks int) (least uint64) {
	if !weigh {
		return 0
	}
	for look := range looks {
		if look > 0 {
			time.Sleep(2 * time.Millisecond)
		}
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // pools are emptied by the second one
		runtime.ReadMemStats(&m)
		if look == 0 || m.HeapAlloc < least {
			least = m.HeapAlloc
		}
	}
	return least
}

// sayFuzzed sends frames, each when the one before it has been dealt with, as far as
// that can be seen.
func (p *wirePeer) sayFuzzed(b []byte, heard <-chan byte, ended <-chan struct{}) {
	answers := map[byte][]byte{wirePage: {wirePull, wireFetch}, wireValues: {wirePull, wireFetch}, wirePull: {wirePage}, wireFetch: {wireValues}}
	for len(b) > 0 {
		kind := 1 + b[0]%16
		n, used := binary.Uvarint(b[1:])
		b = b[1+max(used, 0):]
		n = min(n, uint64(len(b)))
		p.say(kind, b[:n])
		b = b[n:]
		patience := time.After(3 * time.Millisecond)
		for wanted := answers[kind]; len(wanted) > 0; {
			select {
			case k := <-heard:
				if k == wanted[0] || k == wanted[len(wanted)-1] {
					wanted = nil
				}
			case <-ended:
				return
			case <-patience:
				wanted = nil
			}
		}
	}
}

// recovers waits until nothing of a session is left, and checks that the replica goes on.
func (h *fuzzHost) recovers(t testing.TB) {
	gone := func() bool {
		return replicator.Connections(h.Replicator) == 0 && replicator.Sessions(h.Replicator) == 0 &&
			runtime.NumGoroutine() <= h.goroutines
	}
	for begin := time.Now(); !gone(); time.Sleep(20 * time.Microsecond) {
		if time.Since(begin) > 5*time.Second {
			stacks := make([]byte, 1<<20)
			require.FailNow(t, "something of the session is left", "%d goroutines, %d before\n%s",
				runtime.NumGoroutine(), h.goroutines, stacks[:runtime.Stack(stacks, true)])
		}
	}
	h.meetings++
	mark := fmt.Sprint(h.meetings)
	require.NoError(t, h.Put([]byte("own"), []byte(mark), nil))
	value, err := h.Get([]byte("own"), nil)
	require.NoError(t, err)
	require.Equal(t, mark, string(value))
}

// countingConn counts the bytes in both directions.
type countingConn struct {
	net.Conn
	moved atomic.Int64
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.moved.Add(int64(n))
	return n, err
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.moved.Add(int64(n))
	return n, err
}

// pipeListener is dialled in memory, in real time.
type pipeListener struct {
	ctx    context.Context
	cancel context.CancelFunc
	conns  chan net.Conn
}

func newPipeListener() *pipeListener {
	l := &pipeListener{conns: make(chan net.Conn)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

func (l *pipeListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.cancel()
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
