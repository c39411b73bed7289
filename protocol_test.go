package replicator

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The epochs of the examples: that of the side that sends, and that of the one that
// receives.
const (
	wireEpoch      Origin = 0x8000000000000001
	wireOtherEpoch Origin = 0x8000000000000002
	wireThirdEpoch Origin = 0x8000000000000003
)

// wireMessage is one message, as a value and as the bytes of its frame.
type wireMessage struct {
	name  string
	kind  byte
	value any
	parts [][]byte // of the payload, as send gets them
}

var update = flag.Bool("update", false, "rewrite the golden files in testdata that differ")

// golden returns the frame that is kept for a message, from the file with its name. In
// there, blanks, ends of lines and what follows a # do not count. With -update, it is
// what is sent.
func (m *wireMessage) golden(t *testing.T, sent []byte) []byte {
	name := filepath.Join("testdata", "golden", strings.NewReplacer(" ", "-", ",", "").Replace(m.name)+".hex")
	text, err := os.ReadFile(name)
	if err == nil {
		text, err = hex.DecodeString(regexp.MustCompile(`\s|#.*`).ReplaceAllString(string(text), ""))
	}
	if !*update || bytes.Equal(text, sent) {
		require.NoError(t, err)
		return text
	}
	lines := fmt.Appendf(nil, "%x %02x # length, type\n", sent[:frameHeader-1], sent[frameHeader-1])
	for _, part := range m.parts {
		if len(part) > 0 {
			lines = fmt.Appendf(lines, "%x\n", part)
		}
	}
	lines = fmt.Appendf(lines, "%x # checksum\n", sent[len(sent)-frameTrailer:])
	require.NoError(t, os.WriteFile(name, lines, 0o666))
	return sent
}

// written returns entries as the serving side writes them.
func written(entries []entry) *entryWriter {
	w := &entryWriter{epoch: wireEpoch}
	w.reset()
	for i := range entries {
		w.add(&entries[i])
	}
	return w
}

func (p *page) encode() []byte {
	return bytes.Join(written(p.entries).page(p, len(p.entries)), nil)
}

func (v *values) encode() []byte {
	return bytes.Join(written(v.entries).values(int(v.answered), len(v.entries), v.incomplete, v.heard), nil)
}

// wireEntries has an entry of each kind. Two of them have the origin of the one before.
func wireEntries() []entry {
	return []entry{
		{key: []byte("a"), Version: Version{Stamp{2, wireEpoch}, false}, value: []byte("v")},
		{key: []byte("b"), Version: Version{Stamp{3, wireEpoch}, true}},
		{key: []byte("c"), Version: Version{Stamp{7, wireThirdEpoch}, false}, value: []byte{}},
		{key: []byte("d"), Version: Version{Stamp{8, wireThirdEpoch}, false}, absent: true, size: 100_000},
		{key: []byte("e"), Version: Version{Stamp{0, 0x11a363b87dbe477b}, false}, absent: true, size: 5000},
		{key: []byte("f"), Version: adoptedVersion([]byte("old")), value: []byte("old")},
	}
}

// wireMessages has one message, or more, of each type, and each flag in one of them.
func wireMessages() (all []wireMessage) {
	add := func(name string, kind byte, value any, parts ...[]byte) {
		all = append(all, wireMessage{name, kind, value, parts})
	}
	at := func(seq uint64) position { return position{wireEpoch, seq} }         // in the log of who sends
	there := func(seq uint64) position { return position{wireOtherEpoch, seq} } // in that of who receives

	hi := &hello{
		minVersion: 2, maxVersion: 2, clockKind: Lamport.row(), cluster: "prod",
		id:    DatabaseID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff},
		epoch: wireEpoch, nonce: 0x0102030405060708, maxKey: MaxKeySize, maxValue: defaultMaxValueSize,
		localPrefix: []byte{},
	}
	probe := *hi
	probe.cluster, probe.name, probe.probe, probe.localPrefix = "", "cellar", true, []byte("local/")
	reaping := *hi
	reaping.reaps = true
	add("hello", frameHello, hi, hi.append(nil))
	add("hello of one that states what it reaps", frameHello, &reaping, reaping.append(nil))
	add("hello that probes", frameHello, &probe, probe.append(nil))
	add("accept", frameAccept, uint64(128), appendAccept(nil, 128))
	for code, cause := range map[byeCode]struct {
		name string
		err  error
	}{
		byeError: {"bye", errRemoved}, byeRefused: {"bye, refused", ErrRefused}, byeForked: {"bye, forked", ErrCloned},
		byeClock: {"bye, clock", ErrClock}, byeSpare: {"bye, spare", errDuplicate}, byeSelf: {"bye, self", ErrSelf}, byeClosed: {"bye, closed", ErrClosed},
	} {
		add(cause.name, frameBye, &byeReceived{code, cause.err.Error()}, appendBye(nil, cause.err))
	}
	add("terms", frameTerms, byte(0), []byte{0})

	known := []Stamp{{300, wireThirdEpoch}, {7, wireEpoch}}
	add("vector", frameVector, known, vectorFrames(known, wireEpoch)[0])
	add("reaped", frameReaped, &reapedMessage{known, false, true}, reapedFrames(known, true, wireEpoch)[0])
	add("reaped, more to come", frameReaped, &reapedMessage{known, true, false}, appendStamps([]byte{reapedMore}, known, wireEpoch))
	add("reaped, nothing", frameReaped, &reapedMessage{}, reapedFrames(nil, false, wireEpoch)[0])
	taken := adoptions{0x0123456789abcdef: Stamp{}, 0xfedcba9876543211: Stamp{300, wireThirdEpoch}}
	add("adoptions", frameAdoptions, taken, adoptionsFrames(taken)[0])
	acked := &ack{there(300), known}
	add("ack", frameAck, acked, acked.append(nil, wireOtherEpoch, wireEpoch))
	add("ack that takes back", frameAck, &ack{}, (&ack{}).append(nil, wireOtherEpoch, wireEpoch))
	add("flush", frameFlush, nil)

	for name, p := range map[string]*pull{
		"pull, first":   {empty: true},
		"pull, held":    {wait: true, cursor: cursor{checkpoint: there(300), joined: true}},
		"pull, unheard": {cursor: cursor{checkpoint: position{wireThirdEpoch, 300}, joined: true}},
		"pull of a log scan": {cursor: cursor{
			checkpoint: there(5), joined: true, scan: scanLog, upper: there(900), reached: 401, key: []byte{}, seen: there(900)}},
		"pull of a scan in key order": {wait: true, empty: true, cursor: cursor{
			scan: scanKeys, upper: there(9), key: []byte("m"), seen: there(12)}},
		"pull behind a scan": {wait: true, stale: 300, cursor: cursor{checkpoint: there(900), seen: there(950)}},
	} {
		add(name, framePull, p, p.append(nil, wireOtherEpoch))
	}

	for name, p := range map[string]*page{
		"page":                      {to: at(9), vector: known, entries: wireEntries()},
		"page of an earlier epoch":  {to: position{wireThirdEpoch, 9}},
		"page behind a scan":        {to: at(12), vector: known, whole: true},
		"page ahead":                {ahead: true, vector: known[1:], entries: wireEntries()[:1]},
		"page ahead, unsure":        {ahead: true, seen: known[1:], heard: known, incomplete: true, entries: wireEntries()[:1]},
		"page of a log scan, first": {scan: scanLog, first: true, to: at(900), vector: known, reached: 401, entries: wireEntries()[:2]},
		"page of a log scan":        {scan: scanLog, to: at(950), reached: 201, entries: wireEntries()[1:2]},
		"page of a log scan, last":  {scan: scanLog, last: true, to: at(950), reached: 6},
		"page in key order, first":  {scan: scanKeys, first: true, whole: true, to: at(9), vector: known, key: []byte("f"), entries: wireEntries()},
		"page in key order, unsure": {scan: scanKeys, heard: known, incomplete: true, to: at(9), key: []byte("m"), entries: wireEntries()[:1]},
		"page in key order, last":   {scan: scanKeys, last: true, to: at(9), key: []byte("z")},
		"page of another log":       {scan: scanKeys, reset: true, first: true, last: true, whole: true, to: at(9), key: []byte("f"), vector: known, entries: wireEntries()[:2]},
		"page in key order, newer":  {scan: scanKeys, first: true, to: at(900), vector: known[:1], key: []byte("b"), entries: wireEntries()[:2]},
	} {
		if p.entries == nil {
			p.entries = []entry{}
		}
		if p.scan != scanKeys {
			p.key = nil
		}
		add(name, framePage, p, written(p.entries).page(p, len(p.entries))...)
	}

	keyed := func(lower, upper string) keyRange { return keyRange{[]byte(lower), []byte(upper)} }
	for name, q := range map[string]*question{
		"question, first": {first: true, merged: there(300), ranges: []rangeQuestion{
			{keyRange{nil, []byte("c")}, 300, fingerprint{1, 2, 3}}, {keyed("c", "d"), 0, fingerprint{}}, {keyRange{[]byte("d"), nil}, 1, fingerprint{15: 9}}}},
		"question": {values: true, ranges: []rangeQuestion{
			{keyed("a", "b"), 33, fingerprint{4}}, {keyed("b", "ba"), 2, fingerprint{5}}, {keyed("m", "n"), 0, fingerprint{}}}},
	} {
		add(name, frameQuestion, q, q.append(nil, wireOtherEpoch))
	}
	told := wireEntries()
	told[1].later = true
	for name, r := range map[string]*reply{
		"reply, first": {first: true, to: at(9), merged: there(5), vector: known, heard: known[1:],
			findings: []finding{findingSame, findingRecords, findingDiffers}, entries: told},
		"reply, first, of one that reaps": {first: true, to: at(9), vector: known, reaped: known[:1], findings: []finding{findingSame}},
		"reply in part":                   {part: true, key: []byte("b"), findings: []finding{findingDiffers, findingRecords}, entries: told[:2]},
		"reply, over":                     {obstacle: obstacleOver},
		"reply, adopting":                 {obstacle: obstacleAdopting},
	} {
		if r.entries == nil && r.obstacle == obstacleNone {
			r.entries = []entry{}
		}
		add(name, frameReply, r, written(r.entries).reply(r, len(r.entries), wireOtherEpoch)...)
	}

	keys := [][]byte{[]byte("a"), []byte("c")}
	add("offer", frameOffer, keys, appendFetch(nil, keys))
	add("taken", frameTaken, uint64(2), appendTaken(nil, 2))
	add("fetch", frameFetch, keys, appendFetch(nil, keys))
	large := entry{key: []byte("c"), Version: adoptedVersion([]byte("large")), value: []byte("large")}
	add("values", frameValues, &values{2, false, nil, []entry{large}}, written([]entry{large}).values(2, 1, false, nil)...)
	add("values, incomplete", frameValues, &values{1, true, known, []entry{}}, written(nil).values(1, 0, true, known)...)
	add("ping", framePing, uint64(3), []byte{3})
	add("pong", framePong, &pong{3, 300}, (&pong{3, 300}).append(nil))
	return all
}

// reapedMessage is what a reaped frame says.
type reapedMessage struct {
	stamps        []Stamp
	more, rejoins bool
}

func (m *reapedMessage) encode() []byte {
	var flags byte
	if m.more {
		flags |= reapedMore
	}
	if m.rejoins {
		flags |= reapedRejoins
	}
	return appendStamps([]byte{flags}, m.stamps, wireEpoch)
}

// parseMessage parses the payload of any type, and encodes it again.
func parseMessage(kind byte, b []byte, maxValue int) (value any, again []byte, err error) {
	switch kind {
	case frameHello:
		h, err := parseHello(b)
		return &h, h.append(nil), err
	case frameAccept:
		number, err := parseAccept(b)
		return number, appendAccept(nil, number), err
	case frameBye:
		var bye *byeReceived
		err := parseBye(b)
		if !errors.As(err, &bye) {
			return nil, nil, err
		}
		return bye, appendBytes([]byte{byte(bye.code)}, bye.text), nil
	case frameTerms:
		access, err := parseTerms(b)
		return access, []byte{access}, err
	case frameFlush:
		return nil, b, nil // nothing in it is looked at
	case frameVector:
		known, err := parseVector(b, wireEpoch)
		return known, appendStamps(nil, known, wireEpoch), err
	case frameReaped:
		var m reapedMessage
		var err error
		m.stamps, m.more, m.rejoins, err = parseReaped(b, wireEpoch)
		return &m, m.encode(), err
	case frameAdoptions:
		a, err := parseAdoptions(b)
		if payloads := adoptionsFrames(a); err == nil && len(payloads) > 0 {
			return a, payloads[0], nil
		}
		return a, []byte{0}, err
	case frameAck:
		a, err := parseAck(b, wireOtherEpoch, wireEpoch)
		return &a, a.append(nil, wireOtherEpoch, wireEpoch), err
	case framePull:
		p, err := parsePull(b, wireOtherEpoch)
		return &p, p.append(nil, wireOtherEpoch), err
	case framePage:
		p, err := parsePage(b, maxValue, wireEpoch)
		return &p, p.encode(), err
	case frameFetch:
		keys, err := parseFetch(b)
		return keys, appendFetch(nil, keys), err
	case frameValues:
		v, err := parseValues(b, maxValue, wireEpoch)
		return &v, v.encode(), err
	case frameQuestion:
		q, err := parseQuestion(b, wireOtherEpoch)
		return &q, q.append(nil, wireOtherEpoch), err
	case frameReply:
		r, err := parseReply(b, maxValue, wireEpoch, wireOtherEpoch)
		w := written(r.entries)
		return &r, bytes.Join(w.reply(&r, len(r.entries), wireOtherEpoch), nil), err
	case frameOffer:
		keys, err := parseOffer(b)
		return keys, appendFetch(nil, keys), err
	case frameTaken:
		n, err := parseTaken(b)
		return n, appendTaken(nil, n), err
	case framePing:
		token, err := parsePing(b)
		return token, binary.AppendUvarint(nil, token), err
	case framePong:
		p, err := parsePong(b)
		return &p, p.append(nil), err
	}
	panic("no such message")
}

// overPipe returns what arrives of what is done to one end of a pipe.
func overPipe(do func(c *conn)) []byte {
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		do(newConn(b, time.Minute))
		b.Close()
	}()
	arrived, _ := io.ReadAll(a)
	return arrived
}

// receiveFrom receives one frame as a session does.
func receiveFrom(sent []byte, limit func(kind byte) int) (kind byte, payload []byte, err error) {
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		b.Write(sent)
		b.Close()
	}()
	return newConn(a, time.Minute).receive(limit)
}

// inSession is what a session accepts whose values have at most 1 MiB.
func inSession(kind byte) int {
	return (&session{y: &syncer{settings: syncSettings{maxValue: 1 << 20}}, hello: hello{reaps: true}}).frameLimit(kind)
}

func anyFrame(byte) int { return 1 << 20 }

// TestFramesByteForByte compares frames to the golden ones, and reads them back.
func TestFramesByteForByte(t *testing.T) {
	kinds := map[byte]bool{}
	for _, m := range wireMessages() {
		t.Run(m.name, func(t *testing.T) {
			kinds[m.kind] = true
			sent := overPipe(func(c *conn) { require.NoError(t, c.send(m.kind, m.parts...)) })
			require.Equal(t, hex.EncodeToString(m.golden(t, sent)), hex.EncodeToString(sent))
			kind, payload, err := receiveFrom(sent, anyFrame)
			require.NoError(t, err)
			require.Equal(t, m.kind, kind)
			require.Equal(t, bytes.Join(m.parts, nil), payload)
			value, again, err := parseMessage(kind, payload, 1<<20)
			require.NoError(t, err)
			require.Equal(t, m.value, value)
			require.Equal(t, payload, again)
		})
	}
	require.Len(t, kinds, frameReaped)
}

// TestProtocolExamples: the frames that docs/PROTOCOL.md takes apart are among the golden
// ones.
func TestProtocolExamples(t *testing.T) {
	text, err := os.ReadFile("docs/PROTOCOL.md")
	require.NoError(t, err)
	golden := map[string]bool{}
	for _, m := range wireMessages() {
		golden[hex.EncodeToString(overPipe(func(c *conn) { c.send(m.kind, m.parts...) }))] = true
	}
	examples := regexp.MustCompile("(?s)\n```\n(.*?)\n```\n").FindAllStringSubmatch(string(text), -1)
	require.Len(t, examples, 3)
	for _, e := range examples {
		frame := regexp.MustCompile(`(?m)^(.{35}).*$`).ReplaceAllString(e[1], "$1") // the rest explains it
		frame = regexp.MustCompile(`\s`).ReplaceAllString(frame, "")
		require.True(t, golden[frame], frame)
	}
}

func TestFramesCutShort(t *testing.T) {
	for _, m := range wireMessages() {
		t.Run(m.name, func(t *testing.T) {
			sent := overPipe(func(c *conn) { c.send(m.kind, m.parts...) })
			for n := range sent {
				_, _, err := receiveFrom(sent[:n], anyFrame)
				require.Error(t, err, "frame cut at %d", n)
			}
			payload := bytes.Join(m.parts, nil)
			for n := 0; n < len(payload); n++ {
				_, _, err := parseMessage(m.kind, payload[:n:n], 1<<20)
				require.ErrorIs(t, err, ErrProtocol, "payload cut at %d", n)
			}
		})
	}
}

// TestFramesAltered changes each bit of each frame: a checksum finds all that the
// length and the type let through.
func TestFramesAltered(t *testing.T) {
	t.Parallel()
	for _, m := range wireMessages() {
		sent := overPipe(func(c *conn) { c.send(m.kind, m.parts...) })
		for i := range 8 * len(sent) {
			sent[i/8] ^= 1 << (i % 8)
			_, _, err := receiveFrom(sent, anyFrame)
			require.Error(t, err, "%s, bit %d", m.name, i)
			sent[i/8] ^= 1 << (i % 8)
		}
	}
}

func TestFramesMalformed(t *testing.T) {
	frame := func(size uint32, kind byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, size), kind, 0, 0, 0, 0, 0, 0)
	}
	wrong := overPipe(func(c *conn) { c.send(framePing, []byte{3}) })
	wrong[len(wrong)-1]++
	for name, c := range map[string]struct {
		frame []byte
		says  string
	}{
		"wrong checksum":           {wrong, "wrong checksum"},
		"length 0":                 {frame(0, framePing), "has length 0"},
		"length 2^32-1":            {frame(1<<32-1, framePage), "has length 4294967295"},
		"small frame a byte over":  {frame(4<<10+1, framePing), "has length 4097"},
		"request a byte over":      {frame(1<<20+1, framePull), "has length 1048577"},
		"vector a byte over":       {frame(128<<10+1, frameVector), "has length 131073"},
		"adoptions a byte over":    {frame(128<<10+1, frameAdoptions), "has length 131073"},
		"page a byte over":         {frame(5<<20+1, framePage), "has length 5242881"},
		"values a byte over":       {frame(5<<20+1, frameValues), "has length 5242881"},
		"unknown type 0":           {frame(2, 0), "unknown type 0"},
		"reaped a byte over":       {frame(128<<10+1, frameReaped), "has length 131073"},
		"unknown type 20":          {frame(2, 20), "unknown type 20"},
		"question a byte over":     {frame(1<<20+1, frameQuestion), "has length 1048577"},
		"reply a byte over":        {frame(5<<20+1, frameReply), "has length 5242881"},
		"offer a byte over":        {frame(1<<20+1, frameOffer), "has length 1048577"},
		"taken a byte over":        {frame(4<<10+1, frameTaken), "has length 4097"},
		"unknown type 255":         {frame(2, 255), "unknown type 255"},
		"a hello in a session":     {frame(2, frameHello), "unknown type 1"},
		"an accept in a session":   {frame(2, frameAccept), "unknown type 2"},
		"the first bytes of HTTP":  {[]byte("GET / HTTP/1.1\r\n\r\n"), "speaks HTTP"},
		"a TLS client's beginning": {[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), "speaks TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := receiveFrom(c.frame, inSession)
			require.ErrorIs(t, err, ErrProtocol)
			require.ErrorContains(t, err, c.says)
		})
	}
}

// TestBoundedFrames announces a gigabyte, and sends nothing or a part of it.
func TestBoundedFrames(t *testing.T) {
	for _, sent := range []int{0, 1, 32<<10 - 1, 32 << 10, 64 << 10, 100_000, 1 << 20, 3 << 20} {
		b := append([]byte{0x40, 0, 0, 0, framePage}, make([]byte, sent)...)
		c := newConn(readOnlyConn{bytes.NewReader(b)}, time.Minute)
		requireAllocates(t, sent, func() { c.receive(func(byte) int { return 1 << 30 }) })
	}
}

// TestBoundedMessages parses messages that make much of few bytes.
func TestBoundedMessages(t *testing.T) {
	own := func(dst []byte, n int) []byte { // pairs of the sender's own origin are the shortest
		return append(binary.AppendUvarint(dst, uint64(n)), bytes.Repeat([]byte{1}, n)...)
	}
	others := func(dst []byte, n int) []byte {
		dst = binary.AppendUvarint(dst, uint64(n))
		for i := range n {
			dst = binary.BigEndian.AppendUint64(append(dst, 2), uint64(drawnOrigin)|uint64(i))
		}
		return dst
	}
	page := func(known []byte) []byte { return append(append([]byte{0, 19}, known...), 0) }
	taken := adoptions{}
	for i := range adoptionID(maxAdoptionsChunk) {
		taken[i+1] = Stamp{}
	}
	deleted := bytes.Repeat([]byte{0}, 4*maxPageEntries)
	for name, m := range map[string]malformedMessage{
		"a vector of the own origin":   {kind: frameVector, b: own(nil, maxVectorChunk)},
		"a vector of others":           {kind: frameVector, b: others(nil, maxVectorChunk)},
		"a vector that is cut":         {kind: frameVector, b: binary.AppendUvarint(nil, maxVectorChunk)},
		"a page of the own origin":     {kind: framePage, b: page(own(nil, maxOrigins))},
		"a page of others":             {kind: framePage, b: page(others(nil, 200_000))},
		"an ack of the own origin":     {kind: frameAck, b: own([]byte{0}, maxOrigins)},
		"adoptions":                    {kind: frameAdoptions, b: adoptionsFrames(taken)[0]},
		"adoptions that are cut":       {kind: frameAdoptions, b: binary.AppendUvarint(nil, maxAdoptionsChunk)},
		"entries that are cut":         {kind: framePage, b: append([]byte{0, 19, 0}, binary.AppendUvarint(nil, maxPageEntries)...)},
		"entries that are no entries":  {kind: framePage, b: append(append([]byte{0, 19, 0}, binary.AppendUvarint(nil, maxPageEntries)...), deleted...)},
		"a fetch of one key each byte": {kind: frameFetch, b: append(binary.AppendUvarint(nil, maxPageEntries), make([]byte, maxPageEntries)...)},
	} {
		t.Run(name, func(t *testing.T) {
			requireAllocates(t, len(m.b), func() { parseOnly(m.kind, m.b, 1<<20) })
		})
	}
}

// malformedMessage is a payload that no parser accepts, and a part of what the error says.
type malformedMessage struct {
	kind byte
	b    []byte
	says string
}

func malformedMessages() map[string]malformedMessage {
	put := func(key string) entry {
		return entry{key: []byte(key), Version: Version{Stamp{2, wireEpoch}, false}, value: []byte("value")}
	}
	adopted := func(value string, as Version) entry {
		return entry{key: []byte("a"), Version: as, value: []byte(value)}
	}
	at := func(seq uint64) position { return position{wireEpoch, seq} }
	pageOf := func(entries ...entry) []byte {
		return (&page{to: at(9), entries: entries}).encode()
	}
	header := (&page{to: at(9)}).appendHeader(nil, 0, wireEpoch)
	header = header[:len(header)-1] // up to the count
	flags := func(flags uint64) []byte { return binary.AppendUvarint(nil, flags) }
	absent := put("a")
	absent.value, absent.absent, absent.size = nil, true, 1001
	large := put("a")
	large.value = make([]byte, 1001)
	uvarint := func(dst []byte, v uint64) []byte { return binary.AppendUvarint(dst[:len(dst):len(dst)], v) }
	tooLong := append(bytes.Repeat([]byte{0xff}, 10), 1) // a uvarint above 64 bits
	pullOf := func(c cursor) []byte { return (&pull{cursor: c}).append(nil, wireOtherEpoch) }
	ackOf := func(known ...Stamp) []byte { return (&ack{known: known}).append(nil, wireOtherEpoch, wireEpoch) }
	vectorOf := func(known ...Stamp) []byte { return appendStamps(nil, known, wireEpoch) }
	adoptionsOf := func(id adoptionID, mark Stamp) []byte {
		return appendAdoptions(nil, adoptions{id: mark}, []adoptionID{id})
	}
	span := func(lower, upper string) rangeQuestion {
		return rangeQuestion{keyRange: keyRange{[]byte(lower), []byte(upper)}}
	}
	questionOf := func(ranges ...rangeQuestion) []byte {
		return (&question{ranges: ranges}).append(nil, wireOtherEpoch)
	}
	var many257 []rangeQuestion
	for i := range 257 {
		many257 = append(many257, span(fmt.Sprintf("%03d", i), fmt.Sprintf("%03d+", i)))
	}
	replyOf := func(r reply, entries ...entry) []byte {
		return bytes.Join(written(entries).reply(&r, len(entries), wireOtherEpoch), nil)
	}
	many := make([]Stamp, maxVectorChunk+1)
	for i := range many {
		many[i] = Stamp{1, wireEpoch}
	}

	return map[string]malformedMessage{
		"hello: other magic":                     {frameHello, []byte("replicator\n\n"), "does not speak this protocol"},
		"hello: cluster of 256 bytes":            {frameHello, (&hello{minVersion: 2, maxVersion: 2, cluster: strings.Repeat("c", 256)}).append(nil), "at most 255"},
		"hello: name of 256 bytes":               {frameHello, (&hello{minVersion: 2, maxVersion: 2, name: strings.Repeat("n", 256)}).append(nil), "at most 255"},
		"hello: local prefix of 256 bytes":       {frameHello, (&hello{minVersion: 2, maxVersion: 2, localPrefix: make([]byte, 256)}).append(nil), "at most 255"},
		"accept: number 0":                       {frameAccept, []byte{0}, "number 0"},
		"accept: trailing byte":                  {frameAccept, []byte{1, 0}, "1 bytes left over"},
		"bye: text of 1025 bytes":                {frameBye, appendBytes([]byte{1}, strings.Repeat("t", 1025)), "at most 1024"},
		"terms: nothing":                         {frameTerms, nil, "terms"},
		"terms: an access of 2":                  {frameTerms, []byte{2}, "terms 02"},
		"terms: trailing byte":                   {frameTerms, []byte{0, 0}, "terms 0000"},
		"bye: trailing byte":                     {frameBye, []byte{1, 0, 0}, "1 bytes left over"},
		"vector: count beyond bytes":             {frameVector, []byte{9, 1, 1}, "truncated"},
		"vector: 1000001 origins":                {frameVector, uvarint(nil, maxOrigins+1), "the limit is 1000000"},
		"vector: 4097 origins":                   {frameVector, vectorOf(many...), "the limit is 4096"},
		"vector: origin of an adopted value":     {frameVector, vectorOf(Stamp{0, 0x11a363b87dbe477b}), "the vector has origin"},
		"vector: trailing byte":                  {frameVector, append(vectorOf(Stamp{1, wireEpoch}), 0), "1 bytes left over"},
		"reaped: nothing":                        {frameReaped, nil, "truncated"},
		"reaped: unknown flag":                   {frameReaped, []byte{4, 0}, "unknown flags 4"},
		"reaped: 4097 origins":                   {frameReaped, append([]byte{0}, vectorOf(many...)...), "the limit is 4096"},
		"reaped: origin of an adopted value":     {frameReaped, append([]byte{0}, vectorOf(Stamp{0, 0x11a363b87dbe477b})...), "the vector has origin"},
		"reaped: trailing byte":                  {frameReaped, []byte{0, 0, 0}, "1 bytes left over"},
		"adoptions: id 0":                        {frameAdoptions, adoptionsOf(0, Stamp{}), "adoption 0 has the mark"},
		"adoptions: mark of no opening":          {frameAdoptions, adoptionsOf(1, Stamp{5, 1}), "adoption 1 has the mark"},
		"adoptions: mark of old values in doubt": {frameAdoptions, adoptionsOf(inDoubt, Stamp{5, 1 << 63}), "adoption 2 has the mark"},
		"adoptions: 4097 of them":                {frameAdoptions, uvarint(nil, maxAdoptionsChunk+1), "the limit is 4096"},
		"adoptions: count beyond bytes":          {frameAdoptions, []byte{1}, "truncated"},
		"adoptions: trailing byte":               {frameAdoptions, append(adoptionsOf(1, Stamp{}), 0), "1 bytes left over"},
		"ack: origin of an adopted value":        {frameAck, ackOf(Stamp{0, 0x11a363b87dbe477b}), "the vector has origin"},
		"ack: trailing byte":                     {frameAck, append(ackOf(), 0), "1 bytes left over"},
		"pull: joined at no checkpoint":          {framePull, pullOf(cursor{joined: true}), "joined at no checkpoint"},
		"pull: scan up to nowhere":               {framePull, pullOf(cursor{scan: scanKeys}), "scan 2 up to"},
		"pull: scan of an unknown kind":          {framePull, pullOf(cursor{scan: 3, upper: at(9)}), "scan 3 up to"},
		"pull: key of 64 KiB + 1":                {framePull, pullOf(cursor{scan: scanKeys, upper: at(9), key: make([]byte, MaxKeySize+1)}), "at most 65536"},
		"pull: trailing byte":                    {framePull, append(pullOf(cursor{}), 0), "1 bytes left over"},
		"pull: unknown flag":                     {framePull, append([]byte{32}, pullOf(cursor{})[1:]...), "unknown flags 20"},
		"page: unknown flag":                     {framePage, append(flags(1<<10), pageOf()[1:]...), "unknown flags 400"},
		"page: unknown flag of an entry":         {framePage, append(uvarint(header, 1), append([]byte{8 | entrySameOrigin}, written([]entry{put("a")}).body[1:]...)...), "unknown flags 8"},
		"values: unknown flag":                   {frameValues, []byte{1, 4, 0}, "unknown flags 4"},
		"page: of two kinds of scan":             {framePage, flags(pageLog | pageKeys), "flags 180"},
		"page: the first of no scan":             {framePage, flags(pageFirst), "flags 4"},
		"page: the last of no scan":              {framePage, flags(pageLast), "flags 8"},
		"page: ahead, of a scan":                 {framePage, flags(pageAhead | pageLog), "flags 81"},
		"page: ahead, with the vector":           {framePage, flags(pageAhead | pageWhole), "flags 11"},
		"page: ahead, with an unknown flag":      {framePage, flags(pageAhead | 1<<40), "unknown flags 10000000000"},
		"page: reset in mid scan":                {framePage, flags(pageReset | pageKeys), "flags 102"},
		"page: reset and a log scan":             {framePage, flags(pageReset | pageFirst | pageLog), "flags 86"},
		"page: origin of an adopted value":       {framePage, (&page{to: at(9), vector: []Stamp{{0, 0x11a363b87dbe477b}}}).encode(), "the vector has origin"},
		"page: 1000001 origins":                  {framePage, uvarint((&page{to: at(9)}).appendHeader(nil, 0, wireEpoch)[:2], maxOrigins+1), "the limit is 1000000"},
		"page: key reached of 64 KiB + 1":        {framePage, (&page{scan: scanKeys, to: at(9), key: make([]byte, MaxKeySize+1)}).encode(), "at most 65536"},
		"page: keys descend":                     {framePage, pageOf(put("b"), put("a")), `key "a" is not above`},
		"page: one key twice":                    {framePage, pageOf(put("a"), put("a")), `key "a" is not above`},
		"page: reserved prefix":                  {framePage, pageOf(put(reserved)), ErrReserved.Error()},
		"page: reserved key":                     {framePage, pageOf(put(reserved + "iuser")), ErrReserved.Error()},
		"page: value too large":                  {framePage, pageOf(large), "at most 1000"},
		"page: value claims too much":            {framePage, pageOf(absent), "has 1001 bytes, the limit is 1000"},
		"page: key of 64 KiB + 1":                {framePage, pageOf(put(strings.Repeat("k", MaxKeySize+1))), "at most 65536"},
		"page: another value was adopted":        {framePage, pageOf(adopted("new", adoptedVersion([]byte("old")))), "has the stamp of an adopted value"},
		"page: adopted, with a clock":            {framePage, pageOf(adopted("old", Version{Stamp{1, adoptedVersion([]byte("old")).Origin}, false})), "has the stamp of an adopted value"},
		"page: adopted, and deleted":             {framePage, pageOf(adopted("", Version{adoptedVersion(nil).Stamp, true})), "has the stamp of an adopted value"},
		"page: fewer entries":                    {framePage, append(uvarint(header, 2), written([]entry{put("a")}).body...), "truncated"},
		"page: more entries":                     {framePage, append(uvarint(header, 1), written([]entry{put("a"), put("b")}).body...), "left over"},
		"page: count of 2^64-1":                  {framePage, uvarint(header, 1<<64-1), "the limit is 500"},
		"page: count beyond bytes":               {framePage, append(uvarint(header, 11), make([]byte, 30)...), "truncated"},
		"page: trailing byte":                    {framePage, append(pageOf(put("a")), 0), "1 bytes left over"},
		"page: uvarint too long":                 {framePage, append(header[:len(header):len(header)], tooLong...), "truncated"},
		"fetch: count of 501":                    {frameFetch, append(uvarint(nil, 501), make([]byte, 501)...), "the limit is 500"},
		"fetch: count of 2^64-1":                 {frameFetch, uvarint(nil, 1<<64-1), "the limit is 500"},
		"fetch: count beyond bytes":              {frameFetch, []byte{2, 0}, "truncated"},
		"fetch: no keys":                         {frameFetch, []byte{0}, "no keys"},
		"fetch: keys descend":                    {frameFetch, appendFetch(nil, [][]byte{{'b'}, {'a'}}), `key "a" is not above`},
		"fetch: one key twice":                   {frameFetch, appendFetch(nil, [][]byte{{'a'}, {'a'}}), `key "a" is not above`},
		"fetch: key of 64 KiB + 1":               {frameFetch, appendFetch(nil, [][]byte{make([]byte, MaxKeySize+1)}), "at most 65536"},
		"fetch: trailing byte":                   {frameFetch, append(appendFetch(nil, [][]byte{{'a'}}), 0), "1 bytes left over"},
		"values: keys descend":                   {frameValues, (&values{answered: 2, entries: []entry{put("b"), put("a")}}).encode(), `key "a" is not above`},
		"values: reserved key":                   {frameValues, (&values{answered: 1, entries: []entry{put(reserved + "x")}}).encode(), ErrReserved.Error()},
		"values: value too large":                {frameValues, (&values{answered: 1, entries: []entry{large}}).encode(), "at most 1000"},
		"values: trailing byte":                  {frameValues, []byte{0, 0, 0, 0}, "1 bytes left over"},
		"question: no ranges":                    {frameQuestion, questionOf(), "0 ranges"},
		"question: 257 ranges":                   {frameQuestion, questionOf(many257...), "257 ranges, the limit is 256"},
		"question: count beyond bytes":           {frameQuestion, []byte{0, 200, 1}, "truncated"},
		"question: ranges overlap":               {frameQuestion, questionOf(span("a", "c"), span("b", "d")), `begins with "b", not above "c"`},
		"question: ranges descend":               {frameQuestion, questionOf(span("m", "n"), span("b", "d")), `begins with "b", not above "n"`},
		"question: lower end given in vain":      {frameQuestion, []byte{0, 2, 0, 1, 'c', 0, 1, 1, 'c', 1, 'd', 0}, `begins with "c", not above "c"`},
		"question: empty range":                  {frameQuestion, questionOf(span("a", "b"), span("c", "c")), `ends with "c", not above "c"`},
		"question: range upside down":            {frameQuestion, questionOf(span("d", "c")), `ends with "c", not above "d"`},
		"question: empty range at the start":     {frameQuestion, []byte{0, 1, 0, 0, 0}, `ends with "", not above ""`},
		"question: range behind the last":        {frameQuestion, []byte{0, 2, 2, 0, 0, 1, 'a', 0}, "behind the last key"},
		"question: bound of 64 KiB + 2":          {frameQuestion, questionOf(span("a", "b"+strings.Repeat("k", MaxKeySize+1))), "at most 65537"},
		"question: merged in mid comparison":     {frameQuestion, (&question{merged: at(9), ranges: []rangeQuestion{span("a", "b")}}).append(nil, wireOtherEpoch), "merged up to"},
		"question: trailing byte":                {frameQuestion, append(questionOf(span("a", "b")), 0), "1 bytes left over"},
		"reply: no findings":                     {frameReply, replyOf(reply{}), "0 findings"},
		"reply: 257 findings":                    {frameReply, replyOf(reply{findings: make([]finding, 257)}), "257 findings, the limit is 256"},
		"reply: reaped in mid comparison":        {frameReply, replyOf(reply{findings: []finding{0}, reaped: []Stamp{{1, wireEpoch}}}), "1 stamps were reaped"},
		"reply: nothing reaped":                  {frameReply, []byte{replyReaped, 0, 1, 0, 0}, "0 stamps were reaped"},
		"reply: unknown finding":                 {frameReply, replyOf(reply{findings: []finding{3}}), "finding 3"},
		"reply: over, and first":                 {frameReply, []byte{replyOver | replyFirst}, "flags 3"},
		"reply: over, and adopting":              {frameReply, []byte{replyOver | replyAdopting}, "flags 6"},
		"reply: over, with more":                 {frameReply, []byte{replyOver, 0}, "1 bytes left over"},
		"reply: of nowhere":                      {frameReply, replyOf(reply{first: true, findings: []finding{0}}), "is no place in a log"},
		"reply: heard in mid comparison":         {frameReply, replyOf(reply{heard: []Stamp{{1, wireEpoch}}, findings: []finding{0}}), "1 stamps were heard"},
		"reply: keys descend":                    {frameReply, replyOf(reply{findings: []finding{2}}, put("b"), put("a")), `key "a" is not above`},
		"reply: key reached of 64 KiB + 1":       {frameReply, replyOf(reply{part: true, key: make([]byte, MaxKeySize+1), findings: []finding{2}}), "at most 65536"},
		"reply: trailing byte":                   {frameReply, append(replyOf(reply{findings: []finding{0}}), 0), "1 bytes left over"},
		"offer: of nothing":                      {frameOffer, []byte{0}, "no keys"},
		"offer: keys descend":                    {frameOffer, appendFetch(nil, [][]byte{{'b'}, {'a'}}), `key "a" is not above`},
		"offer: one key twice":                   {frameOffer, appendFetch(nil, [][]byte{{'b'}, {'b'}}), `key "b" is not above`},
		"offer: count of 501":                    {frameOffer, append(uvarint(nil, 501), make([]byte, 501)...), "the limit is 500"},
		"offer: trailing byte":                   {frameOffer, append(appendFetch(nil, [][]byte{{'a'}}), 0), "1 bytes left over"},
		"taken: trailing byte":                   {frameTaken, []byte{3, 3}, "1 bytes left over"},
		"ping: trailing byte":                    {framePing, []byte{3, 3}, "1 bytes left over"},
		"pong: trailing byte":                    {framePong, []byte{3, 3, 3}, "1 bytes left over"},
	}
}

func TestMessagesMalformed(t *testing.T) {
	for name, c := range malformedMessages() {
		t.Run(name, func(t *testing.T) {
			_, _, err := parseMessage(c.kind, c.b, 1000)
			require.ErrorIs(t, err, ErrProtocol)
			require.ErrorContains(t, err, c.says)
		})
	}
}

// TestHelloOfOtherVersions: what the versions have in common is read first, and
// what a later one appends is passed over.
func TestHelloOfOtherVersions(t *testing.T) {
	own := wireMessages()[0].value.(*hello)
	h, err := parseHello(append(own.append(nil), "more"...))
	require.NoError(t, err)
	require.Equal(t, *own, h)
	for name, versions := range map[string][2]uint64{"later": {3, 9}, "earlier": {0, 1}, "none": {3, 2}} {
		start := append([]byte(protocolMagic), byte(versions[0]), byte(versions[1]))
		for _, b := range [][]byte{start, append(start, "of another layout"...)} {
			_, err := parseHello(b)
			require.ErrorIs(t, err, ErrRefused, name)
			require.ErrorContains(t, err, "this side 2 to 2", name)
		}
	}
	for _, versions := range [][2]uint64{{0, 2}, {2, 2}, {2, 200}} {
		own.minVersion, own.maxVersion = versions[0], versions[1]
		_, err := parseHello(own.append(nil))
		require.NoError(t, err, versions)
	}
}

// TestTextsOfPeers: what is not printable is replaced, and no text grows beyond the
// limit that its row or frame has.
func TestTextsOfPeers(t *testing.T) {
	h, err := parseHello((&hello{minVersion: 2, maxVersion: 2, name: "böx\x1b[2J\n" + strings.Repeat("\xff", 240)}).append(nil))
	require.NoError(t, err)
	require.Equal(t, "böx [2J "+strings.Repeat(" ", 240), h.name)
	_, err = parsePeerRecord((&peerRecord{name: h.name}).append(nil))
	require.NoError(t, err)

	var bye *byeReceived
	require.ErrorAs(t, parseBye(appendBytes([]byte{1}, "\xff\x00over")), &bye)
	require.Equal(t, "  over", bye.text)
}

// TestRepliesFit: a reply has to fit the question that it answers.
func TestRepliesFit(t *testing.T) {
	put := func(key string) entry { return entry{key: []byte(key)} }
	q := &question{ranges: []rangeQuestion{
		{keyRange: keyRange{[]byte("b"), []byte("d")}, n: 32},
		{keyRange: keyRange{[]byte("d"), []byte("f")}, n: 33},
		{keyRange: keyRange{[]byte("m"), nil}, n: 1},
	}}
	first := *q
	first.first = true
	same, differs, records := findingSame, findingDiffers, findingRecords
	for name, c := range map[string]struct {
		q    *question
		r    reply
		says string
	}{
		"all of it":                 {q, reply{findings: []finding{records, differs, records}, entries: []entry{put("b"), put("z")}}, ""},
		"the first of it":           {q, reply{findings: []finding{same}}, ""},
		"a part":                    {q, reply{findings: []finding{records}, part: true, key: []byte("c"), entries: []entry{put("b"), put("c")}}, ""},
		"over":                      {q, reply{obstacle: obstacleOver}, ""},
		"over at once":              {&first, reply{obstacle: obstacleOver}, "that begins is over"},
		"adopting":                  {&first, reply{obstacle: obstacleAdopting}, ""},
		"more than asked":           {q, reply{findings: []finding{same, same, same, same}}, "4 ranges, of 3"},
		"not the first":             {&first, reply{findings: []finding{same}}, "it begins a comparison: false"},
		"first in the midst":        {q, reply{first: true, findings: []finding{same}}, "it begins a comparison: true"},
		"few that differ":           {q, reply{findings: []finding{differs}}, "no records of a range"},
		"few that differ, later":    {q, reply{findings: []finding{same, same, differs}}, "no records of a range"},
		"an entry below the ranges": {q, reply{findings: []finding{records}, entries: []entry{put("a")}}, `key "a" was not asked for`},
		"an entry in a gap":         {q, reply{findings: []finding{records, records, records}, entries: []entry{put("g")}}, `key "g" was not asked for`},
		"an entry of the same":      {q, reply{findings: []finding{same, records}, entries: []entry{put("b")}}, `key "b" was not asked for`},
		"an entry not answered":     {q, reply{findings: []finding{records}, entries: []entry{put("b"), put("d")}}, `key "d" was not asked for`},
		"a part of the same":        {q, reply{findings: []finding{same}, part: true, key: []byte("b")}, "is not in the last range"},
		"a part outside":            {q, reply{findings: []finding{records}, part: true, key: []byte("d")}, "is not in the last range"},
		"an entry behind the part":  {q, reply{findings: []finding{records}, part: true, key: []byte("b"), entries: []entry{put("bb")}}, `key "bb" is behind "b"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.r.check(c.q)
			if c.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrProtocol)
			require.ErrorContains(t, err, c.says)
		})
	}
}
