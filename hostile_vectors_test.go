package replicator_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// farAhead is a clock that nobody accepts today.
const farAhead = 1 << 55

// wireAdoption is one adoption with its mark.
func wireAdoption(id, clock, origin uint64) []byte {
	dst := binary.BigEndian.AppendUint64([]byte{1}, id)
	return binary.BigEndian.AppendUint64(binary.AppendUvarint(dst, clock), origin)
}

// wirePageTo is a page that follows the checkpoint, up to a place, and changes nothing.
func wirePageTo(epoch, seq uint64) []byte {
	return append(wireStamps(wirePlace([]byte{0}, epoch, seq)), 0)
}

// TestHostileVectors: what a peer tells of what it knows is judged like stamps, and what
// breaks the rules ends its session. Nothing of it is kept.
func TestHostileVectors(t *testing.T) {
	t.Parallel()
	hi := newWireHi()
	ahead := wireStamp{hi.epoch, farAhead}
	for name, c := range map[string]struct {
		frames []byte
		code   byte
		says   string
	}{
		"clock ahead in a vector": {wireFrame(wireVector, wireStamps(nil, ahead)), 4, "vector has clock"},
		"clock ahead in a page":   {wireFrame(wirePage, wireFullPageKnowing(hi.epoch, 2, []wireStamp{ahead})), 4, "vector has clock"},
		"clock ahead in an ack":   {wireFrame(wireAck, wireStamps([]byte{0}, ahead)), 4, "durable vector has clock"},
		"clock ahead in a mark":   {wireFrame(wireAdoptions, wireAdoption(1, farAhead, hi.epoch)), 4, "mark of an adoption has clock"},
		"2^63-1 in a vector":      {wireFrame(wireVector, wireStamps(nil, wireStamp{hi.epoch, 1<<63 - 1})), 4, "vector has clock 9223372036854775807"},
		"2^64-1 in a mark":        {wireFrame(wireAdoptions, wireAdoption(1, 1<<64-1, hi.epoch)), 4, "has clock 18446744073709551615"},
		"2^64-1 in an entry":      {wireFrame(wirePage, wireFullPage(hi.epoch, 2, wireEntry{key: "k", clock: 1<<64 - 1, origin: hi.epoch})), 4, "18446744073709551615"},
		"ahead in what was heard": {wireFrame(wirePage, heardPage(ahead)), 4, "vector has clock"},
		"adopted origin":          {wireFrame(wireVector, wireStamps(nil, wireStamp{5, 0})), 1, "the vector has origin"},
		"4097 origins in a frame": {wireFrame(wireVector, wireStamps(nil, make([]wireStamp, 4097)...)), 1, "origin"},
		"too many origins": {manyFrames(wireVector, 245, func(i uint64) []byte {
			stamps := make([]wireStamp, 4096)
			for j := range stamps {
				stamps[j] = wireStamp{1<<63 | i<<20 | uint64(j), 1}
			}
			return wireStamps(nil, stamps...)
		}), 1, "origins, the limit is 1000000"},
		"too many durable origins": {manyFrames(wireAck, 10_000, func(i uint64) []byte {
			stamps := make([]wireStamp, 101)
			for j := range stamps {
				stamps[j] = wireStamp{1<<63 | i<<20 | uint64(j), 1}
			}
			return wireStamps([]byte{0}, stamps...)
		}), 1, "origins, the limit is 1000000"},
		"too many adoptions": {manyFrames(wireAdoptions, 17, func(i uint64) []byte {
			dst := binary.AppendUvarint(nil, 4096)
			for j := range uint64(4096) {
				dst = append(dst, wireAdoption(1+i<<20|j<<1|1, 0, 0)[1:]...)
			}
			return dst
		}), 1, "adoptions, the limit is 65536"},
	} {
		for way, change := range hostileWays {
			t.Run(name+"/"+way, func(t *testing.T) {
				h := newHost(t, change)
				p := h.dial()
				p.join(hi)
				before, vector := h.all(), replicator.Vector(h.Replicator)
				p.Write(c.frames)
				code, text := p.awaitBye()
				require.Equal(t, c.code, code, text)
				require.Contains(t, text, c.says)
				require.Equal(t, before, h.all())
				require.Equal(t, vector, replicator.Vector(h.Replicator))
				h.goesOn()
			})
		}
	}
}

// heardPage is a page ahead, with nothing but what was heard.
func heardPage(heard ...wireStamp) []byte {
	return append(wireStamps(wireStamps(binary.AppendUvarint(nil, 1|32)), heard...), 0)
}

// manyFrames is a number of frames of one type, whose payloads differ.
func manyFrames(kind byte, number uint64, payload func(i uint64) []byte) (frames []byte) {
	for i := range number {
		frames = append(frames, wireFrame(kind, payload(i))...)
	}
	return frames
}

// TestVectorsInAnyOrder: pairs need no order, and of an origin that comes twice the
// greater clock counts.
func TestVectorsInAnyOrder(t *testing.T) {
	h, hi := newHost(t, nil), newWireHi()
	p := dialWire(t, h.Addr())
	p.join(hi)
	const a, b = 1<<63 | 5, 1<<63 | 6
	known := []wireStamp{{b, 7}, {a, 3}, {a, 9}, {b, 2}, {a, 4}}
	p.say(wireVector, wireStamps(nil, known...))
	p.say(wirePage, wireFullPageKnowing(hi.epoch, 2, known))
	p.await(wirePull, 2)
	vector := replicator.Vector(h.Replicator)
	require.EqualValues(t, 9, vector[a])
	require.EqualValues(t, 7, vector[b])
	require.EqualValues(t, 10, h.Status().Clock)
	p.Close()
	h.goesOn()
}

// TestVectorsThatFall: what was told once stays known, though the peer says less later.
func TestVectorsThatFall(t *testing.T) {
	h, hi := newHost(t, nil), newWireHi()
	p := dialWire(t, h.Addr())
	p.join(hi)
	const other = 1<<63 | 5
	p.say(wireVector, wireStamps(nil, wireStamp{other, 9}))
	p.say(wireVector, wireStamps(nil, wireStamp{other, 4}))
	p.say(wirePage, wireFullPageKnowing(hi.epoch, 2, []wireStamp{{other, 9}}))
	p.await(wirePull, 2)
	p.say(wirePage, append(wireStamps(wirePlace([]byte{16}, hi.epoch, 3), wireStamp{other, 3}), 0))
	p.await(wirePull, 3)
	require.EqualValues(t, 9, replicator.Vector(h.Replicator)[other])
	p.Close()
	h.goesOn()
}

// TestForcedEpochsAreRare: who says so again and again has a replica begin a new epoch
// once a minute at most, though each time its session ends.
func TestForcedEpochsAreRare(t *testing.T) {
	t.Parallel()
	for way, change := range hostileWays {
		t.Run(way, func(t *testing.T) {
			inCluster(t, 1, func(t *testing.T, c *cluster) {
				n := c.nodes[0]
				n.open(func(o *replicator.Options) {
					if change != nil {
						change(o)
					}
				})
				n.put("key", "value")
				epochs := map[replicator.Origin]bool{n.r.Status().Epoch: true}
				for range 301 { // 5 minutes
					p := c.dialHostile("evil", n, change != nil)
					p.join(newWireHi())
					p.say(wireVector, wireStamps(nil, wireStamp{uint64(n.r.Status().Epoch), 1000}))
					_, text := p.awaitBye()
					require.Contains(t, text, "an image of itself")
					p.Close()
					epochs[n.r.Status().Epoch] = true
					n.put("key", "value") // so that there is something of this epoch
					time.Sleep(time.Second)
				}
				require.GreaterOrEqual(t, len(epochs), 5)
				require.LessOrEqual(t, len(epochs), 1+6)
			})
		})
	}
}

// TestVectorOfAnImage: a peer that knows more of the current epoch than was made in it
// has the replica begin a new one, but not again and again, and nothing else changes.
func TestVectorOfAnImage(t *testing.T) {
	h, hi := newHost(t, nil), newWireHi()
	epoch := uint64(h.Status().Epoch)
	tells := map[string]func(p *wirePeer, epoch uint64){
		"vector": func(p *wirePeer, epoch uint64) { p.say(wireVector, wireStamps(nil, wireStamp{epoch, 1000})) },
		"page": func(p *wirePeer, epoch uint64) {
			p.say(wirePage, wireFullPageKnowing(hi.epoch, 2, []wireStamp{{epoch, 1000}}))
		},
		"entry": func(p *wirePeer, epoch uint64) {
			p.say(wirePage, wireFullPage(hi.epoch, 2, wireEntry{key: "k", clock: 1000, origin: epoch}))
		},
		"place": func(p *wirePeer, epoch uint64) { p.say(wirePull, append(wirePlace([]byte{4}, epoch, 1000), 0)) },
	}
	began := 0
	for name, tell := range tells {
		now := uint64(h.Status().Epoch)
		hi.nonce++ // the session before may not have ended yet
		p := dialWire(t, h.Addr())
		p.join(hi)
		tell(p, now)
		_, text := p.awaitBye()
		require.Contains(t, text, "an image of itself", name)
		if uint64(h.Status().Epoch) != now {
			began++
		}
	}
	require.Equal(t, 1, began, "new epochs within a minute")
	h.logged("resumed from an image", fmt.Sprintf("epoch=%016x", epoch))
	has, err := h.Has([]byte("k"), nil)
	require.NoError(t, err)
	require.False(t, has)
	require.EqualValues(t, 0, replicator.Vector(h.Replicator)[replicator.Origin(epoch)], "what was made in the first epoch")
	h.goesOn()
}

// TestPagesFromBelow: a page leads to a place in a log, and not back.
func TestPagesFromBelow(t *testing.T) {
	hi := newWireHi()
	for name, c := range map[string]struct {
		page []byte
		says string
	}{
		"below the checkpoint":              {wirePageTo(hi.epoch, 3), "is below the checkpoint"},
		"of no epoch":                       {wirePageTo(0, 20), "is no place in a log"},
		"of an epoch that is none":          {wirePageTo(5, 20), "is no place in a log"},
		"a scan that begins below it":       {wireFullPage(hi.epoch, 3), "is below the checkpoint"},
		"a scan that goes on, and is none":  {append(wirePlace(binary.AppendUvarint(nil, 256), hi.epoch, 20), 1, 'k', 0), "it is of scan"},
		"a log scan that goes on, likewise": {append(wirePlace(binary.AppendUvarint(nil, 128), hi.epoch, 20), 15, 0), "it is of scan"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			p := dialWire(t, h.Addr())
			p.join(hi)
			p.say(wirePage, wireFullPage(hi.epoch, 9))
			p.await(wirePull, 9)
			before := h.all()
			p.say(wirePage, c.page)
			_, text := p.awaitBye()
			require.Contains(t, text, c.says)
			require.Equal(t, before, h.all())
			h.goesOn()
		})
	}
	t.Run("above it", func(t *testing.T) {
		h := newHost(t, nil)
		p := dialWire(t, h.Addr())
		p.join(hi)
		p.say(wirePage, wireFullPage(hi.epoch, 9))
		p.await(wirePull, 9)
		p.say(wirePage, wirePageTo(hi.epoch, 12))
		require.Equal(t, wirePlace([]byte{1 | 4}, hi.epoch, 12)[0], p.await(wirePull, 12)[0], "it waits, and has joined the vector")
	})
}

// TestResetInMidScan: a scan in key order whose place is not of this log begins at the
// first key again, at both ends.
func TestResetInMidScan(t *testing.T) {
	hi := newWireHi()
	t.Run("of the server", func(t *testing.T) {
		h := newHost(t, nil)
		require.NoError(t, h.Put([]byte("a"), []byte("first"), nil))
		p := dialWire(t, h.Addr())
		p.join(hi)
		pull := append(append([]byte{8, 0}, 2), wirePlace(nil, 1<<63|99, 7)...) // a scan in key order, up to a place elsewhere
		pull = append(wireBytes(append(pull, 0), "b"), 0)                       // reached nothing, but the key
		p.say(wirePull, pull)
		page := p.await(wirePage, 0)
		flags, _ := binary.Uvarint(page)
		require.EqualValues(t, 2|4|8|16|256, flags, "reset, first, last, whole, keys")
		require.Contains(t, string(page), "first")
		require.Contains(t, string(page), "value")
	})
	t.Run("of the puller", func(t *testing.T) {
		h := newHost(t, nil)
		p := dialWire(t, h.Addr())
		p.join(hi)
		page := func(flags, epoch, head uint64, key string, e wireEntry) []byte {
			b := wirePlace(binary.AppendUvarint(nil, flags), epoch, head)
			if flags&4 != 0 {
				b = wireStamps(b)
			}
			return e.append(append(wireBytes(b, key), 1))
		}
		entry := func(key string, clock uint64) wireEntry {
			return wireEntry{key: key, clock: clock, origin: hi.epoch, value: "new"}
		}
		p.say(wirePage, page(4|16|256, hi.epoch, 9, "m", entry("m", 5)))
		p.await(wirePull, 9)
		const later = 1<<63 | 78 // the log was replaced by another
		p.say(wirePage, page(2|4|16|256, later, 4, "c", entry("b", 6)))
		pull := p.await(wirePull, 4)
		require.EqualValues(t, 8|16, pull[0]&^1, "a scan, without a checkpoint")
		require.Contains(t, string(pull), "\x01c", "behind the page's key")
		p.say(wirePage, page(8|256, later, 4, "z", entry("n", 7)))
		p.await(wirePull, 4)
		for _, key := range []string{"b", "m", "n"} {
			require.Eventually(t, func() bool { has, _ := h.Has([]byte(key), nil); return has }, 5*time.Second, time.Millisecond)
		}
		p.Close()
		h.goesOn()
	})
}
