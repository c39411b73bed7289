package replicator_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// The frame types of docs/PROTOCOL.md, written down a second time.
const (
	wireHello     = 1
	wireAccept    = 2
	wireBye       = 3
	wireTerms     = 4
	wireVector    = 5
	wireAdoptions = 6
	wirePull      = 7
	wirePage      = 8
	wireFetch     = 9
	wireValues    = 10
	wirePing      = 11
	wirePong      = 12
	wireAck       = 13
	wireFlush     = 14
	wireQuestion  = 15
	wireReply     = 16
	wireOffer     = 17
	wireTaken     = 18
	wireReaped    = 19
)

// wirePeer is a peer that is made by hand: it speaks frames, and nothing else
// stops it.
type wirePeer struct {
	t testing.TB
	net.Conn
}

// wireFrame is the bytes of a frame.
func wireFrame(kind byte, payload []byte) []byte {
	body := append([]byte{kind}, payload...)
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	frame = append(frame, body...)
	return binary.BigEndian.AppendUint32(frame, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

func wireBytes[T ~string | ~[]byte](dst []byte, b T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// wirePlace is a position in an epoch that is written out.
func wirePlace(dst []byte, epoch, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.AppendUvarint(dst, 2+2*seq), epoch)
}

// wireStamp is a pair of the vector.
type wireStamp struct{ origin, clock uint64 }

func wireStamps(dst []byte, stamps ...wireStamp) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(stamps)))
	for _, s := range stamps {
		dst = binary.BigEndian.AppendUint64(binary.AppendUvarint(dst, 2*s.clock), s.origin)
	}
	return dst
}

// wireHi is a hello. Its id is small, so that this side decides.
type wireHi struct {
	versions        [2]uint64
	clockKind       byte
	cluster         string
	id              [16]byte
	epoch, nonce    uint64
	maxKey, maxSize uint64
	name, local     string
	flags           byte
}

func newWireHi() wireHi {
	return wireHi{
		versions: [2]uint64{2, 2}, clockKind: 1, id: [16]byte{15: 1},
		epoch: 1<<63 | 77, nonce: 88, maxKey: 64 << 10, maxSize: 16 << 20,
	}
}

func (h wireHi) payload() []byte {
	b := []byte("replicator\r\n")
	b = binary.AppendUvarint(b, h.versions[0])
	b = binary.AppendUvarint(b, h.versions[1])
	b = append(b, h.flags, h.clockKind)
	b = wireBytes(b, h.cluster)
	b = append(b, h.id[:]...)
	b = binary.BigEndian.AppendUint64(b, h.epoch)
	b = binary.BigEndian.AppendUint64(b, h.nonce)
	b = binary.AppendUvarint(b, h.maxKey)
	b = binary.AppendUvarint(b, h.maxSize)
	return wireBytes(wireBytes(b, h.name), h.local)
}

// wireEntry is an entry with its value, or, if size is not 0, without.
type wireEntry struct {
	key           string
	clock, origin uint64
	value         string
	size          uint64
	deleted       bool
}

func (e wireEntry) append(dst []byte) []byte {
	flags := byte(0)
	if e.size > 0 {
		flags = 4
	}
	if e.deleted {
		flags = 1
	}
	dst = binary.AppendUvarint(append(dst, flags), e.clock)
	dst = binary.BigEndian.AppendUint64(dst, e.origin)
	dst = wireBytes(dst, e.key)
	if e.deleted {
		return dst
	}
	if e.size > 0 {
		return binary.AppendUvarint(dst, e.size)
	}
	return wireBytes(dst, e.value)
}

// wireFullPage is the only page of a scan of everything in key order.
func wireFullPage(epoch, head uint64, entries ...wireEntry) []byte {
	return wireFullPageKnowing(epoch, head, nil, entries...)
}

// wireFullPageKnowing is the same, from somebody who knows more than nothing.
func wireFullPageKnowing(epoch, head uint64, known []wireStamp, entries ...wireEntry) []byte {
	b := binary.AppendUvarint(nil, 4|8|16|256) // first, last, whole, keys
	b = wireStamps(wirePlace(b, epoch, head), known...)
	b = wireBytes(b, "\xfe") // key
	b = binary.AppendUvarint(b, uint64(len(entries)))
	for _, e := range entries {
		b = e.append(b)
	}
	return b
}

// wireFullPull asks for everything: no flags, no checkpoint, and nothing was not needed.
func wireFullPull() []byte { return []byte{0, 0, 0} }

func dialWire(t testing.TB, addr net.Addr) *wirePeer {
	c, err := net.Dial("tcp", addr.String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(15*time.Second)))
	return &wirePeer{t, c}
}

// say sends a frame. An error is none: the other side may have hung up.
func (p *wirePeer) say(kind byte, payload []byte) { p.Write(wireFrame(kind, payload)) }

// sayInTurn sends frames as they are. Behind each page it waits for the next pull, as far
// as there are more.
func (p *wirePeer) sayInTurn(frames []byte) {
	for len(frames) > 4 {
		size := min(4+uint64(binary.BigEndian.Uint32(frames))+4, uint64(len(frames)))
		page := frames[4] == wirePage
		p.Write(frames[:size])
		if frames = frames[size:]; page && len(frames) > 0 {
			p.await(wirePull, 0)
		}
	}
}

func (p *wirePeer) hear() (kind byte, payload []byte, err error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(p, head); err != nil {
		return 0, nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head)-1+4)
	_, err = io.ReadFull(p, body)
	return head[4], body[:len(body)-4], err
}

// await hears frames until one of a kind comes; pings are answered with a head.
func (p *wirePeer) await(kind byte, head uint64) []byte {
	p.t.Helper()
	for {
		k, payload, err := p.hear()
		require.NoError(p.t, err, "waiting for a frame of type %d", kind)
		switch k {
		case kind:
			return payload
		case wirePing:
			p.say(wirePong, binary.AppendUvarint(payload, head))
		}
	}
}

// awaitBye hears frames until the other side says why it ends this.
func (p *wirePeer) awaitBye() (code byte, text string) {
	p.t.Helper()
	payload := p.await(wireBye, 0)
	_, n := binary.Uvarint(payload[1:])
	return payload[0], string(payload[1+n:])
}

// answerPings goes on answering, and does nothing else, until the end.
func (p *wirePeer) answerPings(head uint64) {
	go func() {
		for {
			k, payload, err := p.hear()
			if err != nil {
				return
			}
			if k == wirePing {
				p.say(wirePong, binary.AppendUvarint(payload, head))
			}
		}
	}()
}

// join comes as far as the first pull.
func (p *wirePeer) join(h wireHi) (pull []byte) {
	p.t.Helper()
	p.say(wireHello, h.payload())
	p.await(wireHello, 0)
	p.say(wireAccept, []byte{1})
	return p.await(wirePull, 0)
}

// listenWire accepts connections, has each answered, and leaves them open.
func listenWire(t testing.TB, answer func(c *wirePeer)) net.Addr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				answer(&wirePeer{t, c})
				io.Copy(io.Discard, c)
				c.Close()
			}()
		}
	}()
	return l.Addr()
}

// host is a replica under attack, in real time and on a database that the test can look into.
type host struct {
	*replicator.Replicator
	t     testing.TB
	db    *leveldb.DB
	log   *logBuffer
	keyed bool // its peers need a key
}

// hostileWays are how a hostile peer reaches a host: over plain TCP, and as a member that
// has the cluster key.
var hostileWays = map[string]func(*replicator.Options){
	"plain":    nil,
	"a member": func(o *replicator.Options) { o.ClusterKeys = [][]byte{clusterKey(1)} },
}

// dial connects to the host by hand: over TLS, if it has cluster keys.
func (h *host) dial() *wirePeer {
	p := dialWire(h.t, h.Addr())
	if h.keyed {
		p.Conn = tls.Client(p.Conn, memberTLS())
	}
	return p
}

// memberTLS is the configuration of hostile members.
var memberTLS = sync.OnceValue(func() *tls.Config {
	config, err := replicator.SecureByKeys([][]byte{clusterKey(1)})
	if err != nil {
		panic(err)
	}
	return config
})

func newHost(t testing.TB, change func(*replicator.Options)) *host {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return newHostOn(t, db, change)
}

func newHostOn(t testing.TB, db *leveldb.DB, change func(*replicator.Options)) *host {
	log := new(logBuffer)
	o := &replicator.Options{
		Listen: "127.0.0.1:0", MinInterval: 10 * time.Millisecond, MaxInterval: 200 * time.Millisecond, Timeout: time.Second,
		Logger: textLogger(log),
	}
	if change != nil {
		change(o)
	}
	r, err := replicator.Open(db, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	h := &host{r, t, db, log, o.ClusterKeys != nil}
	require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
	return h
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// logged waits until the log holds all of the words in one line.
func (h *host) logged(words ...string) {
	h.t.Helper()
	require.Eventually(h.t, func() bool {
		for line := range strings.Lines(h.log.String()) {
			found := true
			for _, w := range words {
				found = found && strings.Contains(line, w)
			}
			if found {
				return true
			}
		}
		return false
	}, 5*time.Second, 5*time.Millisecond, "the log has no line with %q:\n%s", words, h.log)
}

// syncWithin is SyncNow, with a deadline.
func (h *host) syncWithin(d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return h.SyncNow(ctx)
}

// all is everything that is replicated, and what it would be stamped next.
func (h *host) all() string {
	versions, err := replicator.Versions(h.db)
	require.NoError(h.t, err)
	it := h.NewIterator(nil, nil)
	defer it.Release()
	values := ""
	for it.Next() {
		values += fmt.Sprintf(" %q=%q", it.Key(), it.Value())
	}
	require.NoError(h.t, it.Error())
	s := h.Status()
	return fmt.Sprint(versions, values, s.Head, s.Clock, s.Failed)
}

// goesOn checks that the replica reads, writes, and syncs with a good peer,
// both ways.
func (h *host) goesOn() {
	h.t.Helper()
	good := newHost(h.t, func(o *replicator.Options) {
		if h.keyed {
			o.ClusterKeys = [][]byte{clusterKey(1)}
		}
	})
	mark := fmt.Sprintf("%s %p", h.t.Name(), good)
	require.NoError(h.t, h.Put([]byte("of the host"), []byte(mark), nil))
	require.NoError(h.t, good.Put([]byte("of the good peer"), []byte(mark), nil))
	require.NoError(h.t, good.AddPeer(h.Addr().String(), nil))
	require.NoError(h.t, good.syncWithin(10*time.Second))
	value, err := good.Get([]byte("of the host"), nil)
	require.NoError(h.t, err)
	require.Equal(h.t, mark, string(value))
	require.Eventually(h.t, func() bool {
		value, err := h.Get([]byte("of the good peer"), nil)
		return err == nil && string(value) == mark
	}, 10*time.Second, 2*time.Millisecond)
	require.NoError(h.t, good.Close()) // so that nothing is written while this looks
	require.NoError(h.t, replicator.CheckConsistent(h.Replicator))
}

func textLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// hanging is a Dial that gets nowhere.
func hanging(ctx context.Context, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// countingDial notes when it is called.
type countingDial struct {
	mu    sync.Mutex
	times []time.Time
	dial  func(ctx context.Context, addr string) (net.Conn, error)
}

func (d *countingDial) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d.mu.Lock()
	d.times = append(d.times, time.Now())
	d.mu.Unlock()
	return d.dial(ctx, addr)
}

// gaps returns the times between the calls so far, and forgets them.
func (d *countingDial) gaps() (gaps []time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := 1; i < len(d.times); i++ {
		gaps = append(gaps, d.times[i].Sub(d.times[i-1]))
	}
	d.times = d.times[max(0, len(d.times)-1):]
	return gaps
}

// tapped calls a hook before each frame that a node sends over connections that it
// dials.
func tapped(hook func(kind byte)) func(o *replicator.Options) {
	return func(o *replicator.Options) {
		dial := o.Dial
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			return &frameTap{Conn: c, hook: hook}, nil
		}
	}
}

// frameTap calls a hook before each frame that is sent.
type frameTap struct {
	net.Conn
	hook func(kind byte)
	head []byte
	skip int
}

func (c *frameTap) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if n := min(c.skip, len(rest)); n > 0 {
			c.skip -= n
			rest = rest[n:]
			continue
		}
		c.head, rest = append(c.head, rest[0]), rest[1:]
		if len(c.head) == 5 {
			c.hook(c.head[4])
			c.skip = int(binary.BigEndian.Uint32(c.head)) - 1 + 4
			c.head = c.head[:0]
		}
	}
	return c.Conn.Write(p)
}
