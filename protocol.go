package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// This file owns the bytes of the messages.

// The messages of a session, one a frame. docs/PROTOCOL.md has their tables.
const (
	frameHello  = 1  // who is there; the first frame of both sides
	frameAccept = 2  // the smaller id takes this connection for the session
	frameBye    = 3  // why this side ends the connection
	frameAck    = 4  // up to where the sender has merged the receiver's log durably
	framePull   = 5  // asks for a page
	framePage   = 6  // entries
	frameFetch  = 7  // asks for values; answered by a frameValues
	frameValues = 8  // entries with their values
	framePing   = 9  // asks for the receiver's head
	framePong   = 10 // the sender's head
)

const (
	protocolMagic = "replicator\r\n"
	minProtocol   = 1
	maxProtocol   = 1
	clockLamport  = 1
	maxByeText    = 1 << 10
)

// hello opens a connection.
type hello struct {
	minVersion, maxVersion uint64
	clockKind              byte
	cluster                string
	id                     DatabaseID
	epoch                  Origin // the sender's current one
	nonce                  uint64 // names the sender's process
	maxKey, maxValue       uint64
	name                   string // for people; may be empty
	probe                  bool   // the sender wants to know who is there, and no session
}

const helloProbe = 1

func (h *hello) append(dst []byte) []byte {
	dst = append(dst, protocolMagic...)
	dst = binary.AppendUvarint(dst, h.minVersion)
	dst = binary.AppendUvarint(dst, h.maxVersion)
	dst = append(dst, h.clockKind)
	dst = appendBytes(dst, h.cluster)
	dst = append(dst, h.id[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.epoch))
	dst = binary.BigEndian.AppendUint64(dst, h.nonce)
	dst = binary.AppendUvarint(dst, h.maxKey)
	dst = binary.AppendUvarint(dst, h.maxValue)
	dst = appendBytes(dst, h.name)
	var flags byte
	if h.probe {
		flags |= helloProbe
	}
	return append(dst, flags)
}

// parseHello reads what versions have in common first: a later version may
// append to its hello.
func parseHello(b []byte) (h hello, err error) {
	if !bytes.HasPrefix(b, []byte(protocolMagic)) {
		return h, fmt.Errorf("%w: the peer does not speak this protocol", ErrProtocol)
	}
	r := decoder{rest: b[len(protocolMagic):]}
	h.minVersion, h.maxVersion = r.uvarint(), r.uvarint()
	if r.err == nil && (h.minVersion > maxProtocol || h.maxVersion < minProtocol) {
		return h, fmt.Errorf("%w: the peer speaks protocol versions %d to %d, this side %d to %d",
			ErrRefused, h.minVersion, h.maxVersion, minProtocol, maxProtocol)
	}
	h.clockKind = r.byte()
	h.cluster = string(r.bytes(maxClusterName))
	copy(h.id[:], r.take(uint64(len(h.id))))
	h.epoch, h.nonce = Origin(r.uint64()), r.uint64()
	h.maxKey, h.maxValue = r.uvarint(), r.uvarint()
	h.name = printable(string(r.bytes(maxName)))
	h.probe = r.byte()&helloProbe != 0
	if r.err != nil {
		return h, fmt.Errorf("%w: hello: %w", ErrProtocol, r.err)
	}
	return h, nil
}

// printable returns a text from a peer without what could upset a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}

// byeCode says why a connection ends.
type byeCode byte

const (
	byeError   byeCode = 1 // see the text
	byeRefused byeCode = 2 // the two do not fit together
	byeForked  byeCode = 3 // the receiver's id is used by two lineages in turns
	byeClock   byeCode = 4 // the receiver sent a clock out of bounds
	byeSpare   byeCode = 5 // there is a session over another connection
	byeSelf    byeCode = 6 // the receiver has reached itself
)

// byeErrors are the sentinels that travel.
var byeErrors = map[byeCode]error{byeRefused: ErrRefused, byeForked: ErrCloned, byeClock: ErrClock, byeSpare: errDuplicate, byeSelf: ErrSelf}

func appendBye(dst []byte, cause error) []byte {
	code := byeError
	for c, err := range byeErrors {
		if errors.Is(cause, err) {
			code = c
		}
	}
	text := cause.Error()
	return appendBytes(append(dst, byte(code)), text[:min(len(text), maxByeText)])
}

// byeReceived is the error that a peer ended the session with.
type byeReceived struct {
	code byeCode
	text string
}

func (e *byeReceived) Error() string { return "the peer ended the session: " + e.text }
func (e *byeReceived) Unwrap() error { return byeErrors[e.code] }

func parseBye(b []byte) error {
	r := decoder{rest: b}
	code, text := byeCode(r.byte()), string(r.bytes(maxByeText))
	if err := r.finish(); err != nil {
		return fmt.Errorf("%w: bye: %w", ErrProtocol, err)
	}
	return &byeReceived{code, printable(text)}
}

// ack states up to where the sender has made the receiver's log durable. The
// zero position takes back all that was stated before.
type ack struct {
	merged position
	head   uint64 // of the sender's own log
}

func (a *ack) append(dst []byte) []byte {
	return binary.AppendUvarint(appendPosition(dst, a.merged), a.head)
}

func parseAck(b []byte) (a ack, err error) {
	r := decoder{rest: b}
	a.merged, a.head = r.position(), r.uvarint()
	return a, wrapProtocol("ack", r.finish())
}

const (
	pullWait   = 1
	pullAdopts = 2
)

func (p *pull) append(dst []byte) []byte {
	var flags byte
	if p.wait {
		flags |= pullWait
	}
	if p.adopts {
		flags |= pullAdopts
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, p.inline)
	return p.cursor.append(dst)
}

func parsePull(b []byte) (p pull, err error) {
	r := decoder{rest: b}
	flags := r.byte()
	p.wait, p.adopts = flags&pullWait != 0, flags&pullAdopts != 0
	p.inline = r.uvarint()
	p.cursor = r.cursor()
	return p, wrapProtocol("pull", r.finish())
}

const (
	pageUnknown = 1
	pageDone    = 2
	pageRescan  = 4
)

func (p *page) appendHeader(dst []byte, entries int) []byte {
	var flags byte
	if p.unknown {
		flags |= pageUnknown
	}
	if p.done {
		flags |= pageDone
	}
	if p.rescan {
		flags |= pageRescan
	}
	dst = append(dst, flags)
	dst = appendPosition(dst, p.head)
	dst = binary.AppendUvarint(dst, p.floor)
	dst = binary.AppendUvarint(dst, p.reached)
	dst = appendBytes(dst, p.key)
	return binary.AppendUvarint(dst, uint64(entries))
}

func parsePage(b []byte, maxValue int) (p page, err error) {
	r := decoder{rest: b}
	flags := r.byte()
	p.unknown, p.done, p.rescan = flags&pageUnknown != 0, flags&pageDone != 0, flags&pageRescan != 0
	p.head = r.position()
	p.floor, p.reached = r.uvarint(), r.uvarint()
	p.key = r.bytes(MaxKeySize)
	p.entries = r.entries(maxValue)
	return p, wrapProtocol("page", r.finish())
}

// parseValues reads the answer to a fetch: entries for the first of the keys
// that were asked for, less those that are gone.
func parseValues(b []byte, maxValue int) (answered uint64, entries []entry, err error) {
	r := decoder{rest: b}
	answered = r.uvarint()
	entries = r.entries(maxValue)
	return answered, entries, wrapProtocol("values", r.finish())
}

const (
	entryDeleted    = 1
	entrySameOrigin = 2 // as the entry before
	entryAbsent     = 4 // size and hash stand in for the value
)

// appendEntry adds an entry up to its value; the value's bytes follow it, unless
// it is deleted or absent.
func appendEntry(dst []byte, e *entry, previous Origin) []byte {
	var flags byte
	if e.Deleted {
		flags |= entryDeleted
	}
	if e.Origin == previous {
		flags |= entrySameOrigin
	}
	if e.absent {
		flags |= entryAbsent
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, e.Clock)
	if e.Origin != previous {
		dst = binary.BigEndian.AppendUint64(dst, uint64(e.Origin))
	}
	dst = appendBytes(dst, e.key)
	switch {
	case e.Deleted:
	case e.absent:
		dst = binary.AppendUvarint(dst, e.size)
		dst = binary.BigEndian.AppendUint64(dst, e.hash)
	default:
		dst = binary.AppendUvarint(dst, uint64(len(e.value)))
	}
	return dst
}

// entryWriter encodes entries, for a page or for values. It is a sink.
type entryWriter struct {
	parts  [][]byte // finished
	body   []byte
	length int // of all
	origin Origin
}

// add copies the entry, but for a large value, which becomes a part of its own.
func (w *entryWriter) add(e *entry) {
	before := len(w.body)
	w.body = appendEntry(w.body, e, w.origin)
	w.origin = e.Origin
	switch {
	case e.Deleted || e.absent:
	case len(e.value) > chunkSize:
		w.length += len(w.body) - before + len(e.value)
		w.parts = append(w.parts, w.body, e.value)
		w.body = nil
		return
	default:
		w.body = append(w.body, e.value...)
	}
	w.length += len(w.body) - before
}

func (w *entryWriter) reset() { *w = entryWriter{body: w.body[:0]} }

func (w *entryWriter) size() int { return w.length }

// page returns the payload of a page frame with the entries that were added.
func (w *entryWriter) page(p *page, entries int) [][]byte {
	return w.behind(p.appendHeader(nil, entries))
}

// values returns the payload of a values frame that deals with as many keys.
func (w *entryWriter) values(answered, entries int) [][]byte {
	header := binary.AppendUvarint(nil, uint64(answered))
	return w.behind(binary.AppendUvarint(header, uint64(entries)))
}

func (w *entryWriter) behind(header []byte) [][]byte {
	return append(append([][]byte{header}, w.parts...), w.body)
}

// entries reads a count and as many entries. What can't be stored here, or is
// out of order, is an error.
func (r *decoder) entries(maxValue int) []entry {
	const minEntry = 3 // bytes
	n := r.uvarint()
	if n > maxPageEntries {
		r.fail(fmt.Errorf("%d entries, the limit is %d", n, maxPageEntries))
		return nil
	}
	if n > uint64(len(r.rest)/minEntry) {
		r.fail(errTruncated)
		return nil
	}
	entries := make([]entry, n)
	for i := range entries {
		e := &entries[i]
		var previous Origin
		if i > 0 {
			previous = entries[i-1].Origin
		}
		r.entry(e, previous, maxValue)
		if r.err == nil && i > 0 && bytes.Compare(entries[i-1].key, e.key) >= 0 {
			r.fail(fmt.Errorf("key %.64q is not above the one before it", e.key))
		}
		if r.err != nil {
			return nil
		}
	}
	return entries
}

func (r *decoder) entry(e *entry, previous Origin, maxValue int) {
	flags := r.byte()
	e.Deleted, e.absent = flags&entryDeleted != 0, flags&entryAbsent != 0
	e.Clock = r.uvarint()
	e.Origin = previous
	if flags&entrySameOrigin == 0 {
		e.Origin = Origin(r.uint64())
	}
	e.key = r.bytes(MaxKeySize)
	switch {
	case e.Deleted:
		e.absent = false
	case e.absent:
		e.size, e.hash = r.uvarint(), r.uint64()
		if e.size > uint64(maxValue) {
			r.fail(fmt.Errorf("the value of key %.64q has %d bytes, the limit is %d", e.key, e.size, maxValue))
		}
	default:
		e.value = r.bytes(maxValue)
	}
	// Else two replicas that were sent different values under one stamp would
	// differ for ever.
	if r.err == nil && e.adopted() && !e.fits(e.valueHash()) {
		r.fail(fmt.Errorf("key %.64q has the stamp of an adopted value, %v, but not of this one", e.key, e.Version))
	}
	if hidden(e.key) {
		r.fail(fmt.Errorf("%w: key %.64q", ErrReserved, e.key))
	}
}

// fetch asks for the values of keys, which are in ascending order.
func appendFetch(dst []byte, keys [][]byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(keys)))
	for _, key := range keys {
		dst = appendBytes(dst, key)
	}
	return dst
}

func parseFetch(b []byte) (keys [][]byte, err error) {
	r := decoder{rest: b}
	n := r.uvarint()
	if n > uint64(min(len(b), maxPageEntries)) {
		r.fail(errTruncated)
	}
	for ; n > 0 && r.err == nil; n-- {
		keys = append(keys, r.bytes(MaxKeySize))
	}
	return keys, wrapProtocol("fetch", r.finish())
}

// ping asks for the head; pong answers with the same token.
type pong struct {
	token uint64
	head  uint64
}

func (p *pong) append(dst []byte) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, p.token), p.head)
}

func parsePong(b []byte) (p pong, err error) {
	r := decoder{rest: b}
	p.token, p.head = r.uvarint(), r.uvarint()
	return p, wrapProtocol("pong", r.finish())
}

func parsePing(b []byte) (token uint64, err error) {
	r := decoder{rest: b}
	token = r.uvarint()
	return token, wrapProtocol("ping", r.finish())
}

func wrapProtocol(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", ErrProtocol, what, err)
}
