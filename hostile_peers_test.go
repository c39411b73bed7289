package replicator_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// noise is the same at each call.
func noise(size int) string { return incompressible(rand.New(rand.NewPCG(1, 1)), size) }

func wrongChecksum(kind byte, payload []byte) []byte {
	frame := wireFrame(kind, payload)
	frame[len(frame)-1] ^= 1
	return frame
}

// TestGarbageDialsIn: what speaks another protocol, or none, is turned away with
// a reason in the log, and nothing changes.
func TestGarbageDialsIn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sent   string
		closes bool
		says   string
	}{
		"HTTP":               {"GET / HTTP/1.1\r\nHost: here\r\n\r\n", false, "HTTP"},
		"random bytes":       {noise(1 << 16), false, "frame of unknown type"},
		"says nothing":       {"", false, "nothing heard from the peer"},
		"closes at once":     {"", true, "the peer closed the connection"},
		"half a header":      {"\x00\x00", true, "unexpected EOF"},
		"half a hello":       {string(wireFrame(wireHello, newWireHi().payload())[:40]), true, "unexpected EOF"},
		"length 2^32-1":      {"\xff\xff\xff\xff\x01", false, "has length 4294967295, at most 4096 is accepted"},
		"length 0":           {"\x00\x00\x00\x00\x01", false, "has length 0"},
		"wrong checksum":     {string(wrongChecksum(wireHello, newWireHi().payload())), false, "wrong checksum"},
		"a pull for a hello": {string(wireFrame(wirePull, nil)), false, "frame of unknown type 7"},
		"a foreign magic":    {string(wireFrame(wireHello, []byte("replicant\r\n"))), false, "does not speak this protocol"},
		"a name of 2^64-1": {string(wireFrame(wireHello, append(binary.AppendUvarint([]byte("replicator\r\n\x02\x02\x00\x01"), 1<<64-1), make([]byte, 60)...))), false,
			"18446744073709551615 bytes where at most 255"},
		"versions of 2^64-1":  {string(wireFrame(wireHello, binary.AppendUvarint(binary.AppendUvarint([]byte("replicator\r\n"), 1<<64-1), 1<<64-1))), false, "versions 18446744073709551615"},
		"a hello cut short":   {string(wireFrame(wireHello, newWireHi().payload()[:30])), false, "hello: truncated"},
		"an epoch of adopted": {string(wireFrame(wireHello, wireHi{versions: [2]uint64{2, 2}, clockKind: 1, id: [16]byte{1}, epoch: 5, nonce: 1, maxKey: 64 << 10, maxSize: 16 << 20}.payload())), false, "hello: epoch 0000000000000005"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, func(o *replicator.Options) { o.Timeout = 300 * time.Millisecond })
			before := h.all()
			p := dialWire(t, h.Addr())
			p.Write([]byte(c.sent))
			if c.closes {
				p.Conn.(*net.TCPConn).CloseWrite()
			}
			h.logged("connection", c.says)
			require.Equal(t, before, h.all())
			h.goesOn()
		})
	}
}

// TestGarbageAnswers: the address that is dialled is something else's.
func TestGarbageAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer func(p *wirePeer)
		says   string
	}{
		"HTTP":           {func(p *wirePeer) { p.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "HTTP"},
		"random bytes":   {func(p *wirePeer) { p.Write([]byte(noise(1000))) }, "frame of unknown type"},
		"says nothing":   {func(p *wirePeer) {}, "nothing heard from the peer"},
		"closes at once": {func(p *wirePeer) { p.hear(); p.Close() }, "the peer closed the connection"},
		"wrong checksum": {func(p *wirePeer) { p.Write(wrongChecksum(wireHello, newWireHi().payload())) }, "wrong checksum"},
		"length 2^32-1":  {func(p *wirePeer) { p.Write([]byte("\xff\xff\xff\xff\x01")) }, "has length 4294967295"},
		"bye": {func(p *wirePeer) {
			p.say(wireBye, wireBytes([]byte{1}, "go away\x1b[2J\n"))
		}, "the peer ended the session: go away [2J"},
		"malformed bye": {func(p *wirePeer) { p.say(wireBye, []byte{1, 9}) }, "bye: truncated"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := listenWire(t, c.answer).String()
			h := newHost(t, func(o *replicator.Options) {
				o.Timeout = 300 * time.Millisecond
				o.Peers = map[string]replicator.Meta{addr: nil}
			})
			before := h.all()
			err := h.syncWithin(5 * time.Second)
			require.ErrorContains(t, err, c.says)
			var peer *replicator.PeerError
			require.ErrorAs(t, err, &peer)
			require.Equal(t, addr, peer.Addr)
			require.Contains(t, h.Status().Peers[0].LastError, c.says)
			require.Equal(t, before, h.all())
			h.goesOn()
		})
	}
}

// TestGarbageInSessions: a peer that is in the session, and then breaks the rules.
// Of the page that does, nothing is applied.
func TestGarbageInSessions(t *testing.T) {
	t.Parallel()
	hi := newWireHi()
	good := wireEntry{key: "a good one", clock: 5, origin: hi.epoch, value: "value"}
	entry := func(key string) wireEntry { return wireEntry{key: key, clock: 6, origin: hi.epoch, value: "value"} }
	page := func(entries ...wireEntry) []byte {
		return wireFrame(wirePage, wireFullPage(hi.epoch, 2, append([]wireEntry{good}, entries...)...))
	}
	header := wireFullPage(hi.epoch, 2)
	header = header[:len(header)-1] // up to the count
	most := func(dst []byte) []byte { return binary.AppendUvarint(dst[:len(dst):len(dst)], 1<<64-1) }
	scanned := func(flags, head uint64, key string) []byte { // of a scan in key order
		b := wirePlace(binary.AppendUvarint(nil, flags), hi.epoch, head)
		if flags&4 != 0 {
			b = wireStamps(b)
		}
		return wireFrame(wirePage, append(wireBytes(b, key), 0))
	}
	logged := func(flags, head, reached uint64) []byte { // of a scan of the log
		b := wirePlace(binary.AppendUvarint(nil, flags|128), hi.epoch, head)
		if flags&4 != 0 {
			b = wireStamps(b)
		}
		return wireFrame(wirePage, append(binary.AppendUvarint(b, reached), 0))
	}
	for name, c := range map[string]struct {
		sent []byte
		says string
	}{
		"wrong checksum":        {wrongChecksum(wirePage, wireFullPage(hi.epoch, 2, good)), "wrong checksum"},
		"length 2^32-1":         {[]byte("\xff\xff\xff\xff\x08"), "has length 4294967295"},
		"reserved key":          {page(entry("\xffreplicator\xffm")), "are reserved"},
		"reserved prefix":       {page(entry("\xffreplicator\xff")), "are reserved"},
		"reserved, deleted":     {page(wireEntry{key: "\xffreplicator\xffm", clock: 6, origin: hi.epoch, deleted: true}), "are reserved"},
		"reserved, absent":      {page(wireEntry{key: "\xffreplicator\xffm", clock: 6, origin: hi.epoch, size: 9}), "are reserved"},
		"keys out of order":     {page(entry("a")), "is not above the one before it"},
		"a key twice":           {page(good), "is not above the one before it"},
		"value claims too much": {page(wireEntry{key: "b", clock: 6, origin: hi.epoch, size: 16<<20 + 1}), "the limit is 16777216"},
		"a size of 2^64-1":      {page(wireEntry{key: "b", clock: 6, origin: hi.epoch, size: 1<<64 - 1}), "the limit is 16777216"},
		"a key of 2^64-1":       {wireFrame(wirePage, append(most(append(header, 1, 2, 6)), make([]byte, 9)...)), "18446744073709551615 bytes where at most 65536"},
		"a value of 2^64-1":     {wireFrame(wirePage, most(append(header[:len(header):len(header)], 1, 2, 6, 1, 'b'))), "18446744073709551615 bytes where at most 16777216"},
		"2^64-1 entries":        {wireFrame(wirePage, most(header)), "18446744073709551615 entries"},
		"2^64-1 origins":        {wireFrame(wireVector, most(nil)), "18446744073709551615 origins"},
		"2^64-1 durable":        {wireFrame(wireAck, most([]byte{0})), "18446744073709551615 origins"},
		"2^64-1 adoptions":      {wireFrame(wireAdoptions, most(nil)), "18446744073709551615 adoptions"},
		"2^64-1 keys":           {wireFrame(wireFetch, most(nil)), "18446744073709551615 keys"},
		"a key fetched, 2^64-1": {wireFrame(wireFetch, most([]byte{1})), "18446744073709551615 bytes"},
		"a pull's key, 2^64-1":  {wireFrame(wirePull, most([]byte{8, 0, 2, 5, 0})), "18446744073709551615 bytes"},
		"a bye's text, 2^64-1":  {wireFrame(wireBye, most([]byte{1})), "18446744073709551615 bytes"},
		"flags of 2^64-1":       {wireFrame(wirePage, most(nil)), "unknown flags"},
		"a token not sent":      {wireFrame(wirePong, append(most(nil), 0)), "token 18446744073709551615 was not sent"},
		"trailing bytes":        {wireFrame(wirePage, append(wireFullPage(hi.epoch, 2, good), 0)), "left over"},
		"truncated":             {wireFrame(wirePage, bytes.TrimSuffix(wireFullPage(hi.epoch, 2, good), []byte("e"))), "truncated"},
		"no epoch":              {wireFrame(wirePage, wireFullPage(0, 0, good)), "is no place in a log"},
		"a second hello":        {wireFrame(wireHello, hi.payload()), "frame of unknown type 1"},
		"values, not asked for": {wireFrame(wireValues, []byte{0, 0, 0}), "values that were not asked for"},
		"an unknown frame":      {wireFrame(77, nil), "frame of unknown type 77"},
		"unknown access":        {wireFrame(wireTerms, []byte{2}), "terms 02"},
		"two pulls at once":     {bytes.Repeat(wireFrame(wirePull, []byte{1, 0, 0}), 1000), "a second pull before the first was answered"},
		"many fetches at once":  {bytes.Repeat(wireFrame(wireFetch, wireBytes([]byte{1}, "key")), 1000), "a second fetch before the first was answered"},
		"keys that regress":     {append(scanned(4|16|256, 9, "m"), scanned(256, 9, "l")...), "is not above"},
		"keys that stay":        {append(scanned(4|16|256, 9, "m"), scanned(256, 9, "m")...), "is not above"},
		"a log that ascends":    {append(logged(4|16, 9, 5), logged(0, 9, 6)...), "not below 5"},
		"a log that stays":      {append(logged(4|16, 9, 5), logged(0, 9, 5)...), "not below 5"},
		"a log above itself":    {logged(4|16, 9, 10), "not below 10"},
		"heads that regress":    {append(logged(4|16, 9, 5), logged(0, 8, 4)...), "below the scan's first head"},
		"two kinds of scan":     {append(logged(4|16, 9, 5), scanned(256, 9, "m")...), "it is of scan 2, not of 1"},
		"a scan that is none":   {scanned(256, 9, "m"), "it is of scan 2, not of 0"},
		"a step from nowhere":   {wireFrame(wirePage, wirePageTo(hi.epoch, 12)), "follows a checkpoint that was not sent"},
	} {
		for way, change := range hostileWays {
			t.Run(name+"/"+way, func(t *testing.T) {
				h := newHost(t, change)
				p := h.dial()
				p.join(hi)
				before := h.all()
				p.sayInTurn(c.sent)
				code, text := p.awaitBye()
				require.EqualValues(t, 1, code)
				require.Contains(t, text, c.says)
				h.logged(c.says)
				require.Equal(t, before, h.all())
				h.goesOn()
			})
		}
	}
}

// TestUnaskedPages: one is taken for the answer to the pull that is held; a flood
// of them ends the session.
func TestUnaskedPages(t *testing.T) {
	h, hi := newHost(t, nil), newWireHi()
	p := dialWire(t, h.Addr())
	p.join(hi)
	before := h.all()
	p.Write(bytes.Repeat(wireFrame(wirePage, wireFullPage(hi.epoch, 0)), 1000))
	_, text := p.awaitBye()
	require.Contains(t, text, "a page that was not asked for")
	require.Equal(t, before, h.all())
	h.goesOn()
}

// TestUnaskedPagesMeanwhile: a small page is merged where it is received. Others before
// and behind it disturb nothing.
func TestUnaskedPagesMeanwhile(t *testing.T) {
	t.Parallel()
	page := func(hi wireHi, seq uint64, size int) []byte {
		e := wireEntry{key: fmt.Sprint("key ", seq), clock: seq, origin: hi.epoch, value: strings.Repeat("v", size)}
		known := wireStamps(wirePlace([]byte{0}, hi.epoch, seq), wireStamp{hi.epoch, seq})
		return wireFrame(wirePage, e.append(append(known, 1)))
	}
	for name, sizes := range map[string][]int{
		"small":          {1},
		"two small":      {1, 1},
		"large, small":   {32 << 10, 1},
		"small, large":   {1, 32 << 10},
		"large and many": {32 << 10, 1, 1, 32 << 10, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h, hi := newHost(t, nil), newWireHi()
			for range 20 {
				hi.epoch++
				hi.id[14]++
				p := dialWire(t, h.Addr())
				p.join(hi)
				p.say(wirePage, wireFullPage(hi.epoch, 1))
				p.await(wirePull, 1)
				seq, failed := uint64(1), false
				for range 20 {
					var frames []byte
					for _, size := range sizes {
						seq++
						frames = append(frames, page(hi, seq, size)...)
					}
					p.Write(frames)
					for !failed {
						k, _, err := p.hear()
						if failed = err != nil || k == wireBye; k == wirePull {
							break
						}
					}
				}
				require.False(t, failed && len(sizes) == 1)
				p.Close()
			}
			h.goesOn()
		})
	}
}

// TestUnaskedValues: of a peer that answers a fetch with more than it was asked for, or
// something else, nothing is merged.
func TestUnaskedValues(t *testing.T) {
	t.Parallel()
	hi := newWireHi()
	entry := func(key string) wireEntry { return wireEntry{key: key, clock: 5, origin: hi.epoch, value: "value"} }
	values := func(answered byte, entries ...wireEntry) []byte {
		b := []byte{answered, 0, byte(len(entries))}
		for _, e := range entries {
			b = e.append(b)
		}
		return b
	}
	for name, c := range map[string]struct {
		answer []byte
		says   string
	}{
		"another key":         {values(2, entry("c")), `key "c" was not asked for`},
		"one more":            {values(2, entry("b"), entry("c"), entry("d")), `key "c" was not asked for`},
		"one that is not due": {values(1, entry("b"), entry("d")), `key "d" was not asked for`},
		"a reserved one":      {values(2, entry("\xffreplicator\xffm")), "are reserved"},
		"none answered":       {values(0), "0 of 2 keys answered"},
		"more answered":       {values(3), "3 of 2 keys answered"},
		"absent again":        {values(2, wireEntry{key: "b", clock: 5, origin: hi.epoch, size: 100}), "comes without its value"},
		"a clock of 2^64-1":   {values(2, wireEntry{key: "b", clock: 1<<64 - 1, origin: hi.epoch}), "18446744073709551615"},
		"2^64-1 answered":     {append(binary.AppendUvarint(nil, 1<<64-1), 0, 0), "18446744073709551615 of 2 keys answered"},
		"2^64-1 origins":      {binary.AppendUvarint([]byte{2, 2}, 1<<64-1), "18446744073709551615 origins"},
		"trailing bytes":      {append(values(2), 0), "left over"},
	} {
		for way, change := range hostileWays {
			t.Run(name+"/"+way, func(t *testing.T) {
				h := newHost(t, change)
				p := h.dial()
				p.join(hi)
				before := h.all()
				absent := []wireEntry{{key: "b", clock: 5, origin: hi.epoch, size: 100}, {key: "d", clock: 6, origin: hi.epoch, size: 100}}
				p.say(wirePage, wireFullPage(hi.epoch, 9, absent...))
				p.await(wireFetch, 9)
				p.say(wireValues, c.answer)
				_, text := p.awaitBye()
				require.Contains(t, text, c.says)
				require.Equal(t, before, h.all())
				h.goesOn()
			})
		}
	}
}

// TestRealMisfits lets two replicas meet that do not fit together. The one that
// dials sees why in Status and in SyncNow, the other in its log.
func TestRealMisfits(t *testing.T) {
	for name, c := range map[string]struct {
		change func(o *replicator.Options)
		says   []string
	}{
		"cluster":    {func(o *replicator.Options) { o.Cluster = "blue" }, []string{`cluster`, `blue`, `Options.Cluster`}},
		"value size": {func(o *replicator.Options) { o.MaxValueSize = 1 << 20 }, []string{"1048576", "16777216", "Options.MaxValueSize"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, other := newHost(t, nil), newHost(t, c.change)
			before := h.all() + other.all()
			for dialer, listener := range map[*host]*host{h: other, other: h} {
				addr := listener.Addr().String()
				require.NoError(t, dialer.AddPeer(addr, nil))
				err := dialer.syncWithin(5 * time.Second)
				require.ErrorIs(t, err, replicator.ErrRefused)
				for _, word := range c.says {
					require.ErrorContains(t, err, word)
					require.Contains(t, dialer.Status().Peers[0].LastError, word)
					listener.logged("refused a connection", word)
				}
				require.NoError(t, dialer.RemovePeer(addr))
			}
			require.Equal(t, before, h.all()+other.all())
			h.goesOn()
		})
	}
}

// TestOtherVersions meets a later version of the protocol, from both sides.
func TestOtherVersions(t *testing.T) {
	hi := newWireHi()
	hi.versions = [2]uint64{7, 9}
	later := append(hi.payload()[:14], "laid out otherwise"...)
	addr := listenWire(t, func(p *wirePeer) { p.hear(); p.say(wireHello, later) }).String()
	h := newHost(t, func(o *replicator.Options) { o.Peers = map[string]replicator.Meta{addr: nil} })
	before := h.all()
	const says = "the peer speaks protocol versions 7 to 9, this side 2 to 2"
	err := h.syncWithin(5 * time.Second)
	require.ErrorIs(t, err, replicator.ErrRefused)
	require.ErrorContains(t, err, says)
	require.Contains(t, h.Status().Peers[0].LastError, says)

	p := dialWire(t, h.Addr())
	p.say(wireHello, later)
	code, text := p.awaitBye()
	require.EqualValues(t, 2, code)
	require.Contains(t, text, says)
	h.logged("refused a connection", says)
	require.Equal(t, before, h.all())
	h.goesOn()
}

// TestOtherClockKind meets a replica whose clocks count something else.
func TestOtherClockKind(t *testing.T) {
	h, hi := newHost(t, nil), newWireHi()
	hi.clockKind = 9
	p := dialWire(t, h.Addr())
	p.say(wireHello, hi.payload())
	code, text := p.awaitBye()
	require.EqualValues(t, 2, code)
	require.Contains(t, text, "clock kind 1 met clock kind 9")
	h.goesOn()
}

// TestSelfAmongPeers has the own address among the peers, and a good one.
func TestSelfAmongPeers(t *testing.T) {
	good := newHost(t, nil)
	require.NoError(t, good.Put([]byte("good"), []byte("good"), nil))
	h := newHost(t, nil)
	require.NoError(t, h.AddPeer(h.Addr().String(), nil))
	require.NoError(t, h.AddPeer(good.Addr().String(), nil))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	id := h.Status().ID
	for range 3 {
		require.NoError(t, h.SyncNow(ctx))
	}
	value, err := h.Get([]byte("good"), nil)
	require.NoError(t, err)
	require.Equal(t, "good", string(value))
	require.Equal(t, id, h.Status().ID)
	for _, p := range h.Status().Peers {
		if p.Addr == h.Addr().String() {
			require.Contains(t, p.LastError, "the address is this replica's own")
			require.Equal(t, replicator.DatabaseID{}, p.ID)
		}
	}
	h.goesOn()
}

// TestPeersThatClaimTooMuch states what is not so in well-formed frames: heads,
// and acknowledgements that there never were.
func TestPeersThatClaimTooMuch(t *testing.T) {
	h, hi := newHost(t, nil), newWireHi()
	p := dialWire(t, h.Addr())
	p.join(hi)
	before := h.all()
	p.say(wireAck, wireStamps(wirePlace(nil, uint64(h.Status().Epoch), 1<<40))) // above the head
	p.say(wireAck, wireStamps(wirePlace(nil, 1<<63|5, 1)))                      // of another log
	p.say(wirePong, binary.AppendUvarint([]byte{0}, 1<<64-1))
	p.say(wireFetch, wireBytes(wireBytes([]byte{2}, "absent"), "\xffreplicator\xffmid"))
	require.Equal(t, []byte{2, 0, 0}, p.await(wireValues, 0), "the reserved range is not served")
	for _, s := range h.Status().Peers {
		require.Nil(t, s.Acknowledged)
	}
	require.Equal(t, before, h.all())
	p.Close()
	h.goesOn()
}
