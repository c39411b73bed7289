package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// This file owns the bytes of the messages.

// The messages of a session, one a frame. docs/PROTOCOL.md has their tables.
const (
	frameHello     = 1  // who is there; the first frame of both sides
	frameAccept    = 2  // the smaller id takes this connection for the session
	frameBye       = 3  // why this side ends the connection
	frameTerms     = 4  // what the receiver may do
	frameVector    = 5  // what the sender knows
	frameAdoptions = 6  // what the sender knows of adoptions
	framePull      = 7  // asks for a page
	framePage      = 8  // entries
	frameFetch     = 9  // asks for values; answered by a frameValues
	frameValues    = 10 // entries with their values
	framePing      = 11 // asks for the receiver's head
	framePong      = 12 // the sender's head
	frameAck       = 13 // what is durable at the sender
	frameFlush     = 14 // asks the receiver to make everything durable, and to say so
	frameQuestion  = 15 // asks whether the receiver has the same in ranges of keys
	frameReply     = 16 // answers a question
	frameOffer     = 17 // keys of which the sender has what the receiver lacks
	frameTaken     = 18 // answers an offer
	frameReaped    = 19 // what the sender has reaped; for who said in the hello that it takes that
)

const (
	protocolMagic = "replicator\r\n"
	minProtocol   = 2
	maxProtocol   = 2
	maxByeText    = 1 << 10
	// maxVectorChunk and maxAdoptionsChunk bound what one frame tells.
	maxVectorChunk    = 4096
	maxAdoptionsChunk = 4096
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
	localPrefix            []byte // of keys that are not replicated; may be empty
	probe                  bool   // the sender wants to know who is there, and no session
	reaps                  bool   // the sender states what it has reaped, and takes the same
}

const (
	helloProbe = 1
	helloReaps = 2
)

func (h *hello) append(dst []byte) []byte {
	dst = append(dst, protocolMagic...)
	dst = binary.AppendUvarint(dst, h.minVersion)
	dst = binary.AppendUvarint(dst, h.maxVersion)
	var flags byte
	if h.probe {
		flags |= helloProbe
	}
	if h.reaps {
		flags |= helloReaps
	}
	dst = append(dst, flags, h.clockKind)
	dst = appendBytes(dst, h.cluster)
	dst = append(dst, h.id[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.epoch))
	dst = binary.BigEndian.AppendUint64(dst, h.nonce)
	dst = binary.AppendUvarint(dst, h.maxKey)
	dst = binary.AppendUvarint(dst, h.maxValue)
	dst = appendBytes(dst, h.name)
	return appendBytes(dst, h.localPrefix)
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
	flags := r.byte()
	h.probe, h.reaps = flags&helloProbe != 0, flags&helloReaps != 0
	h.clockKind = r.byte()
	h.cluster = string(r.bytes(maxClusterName))
	copy(h.id[:], r.take(uint64(len(h.id))))
	h.epoch, h.nonce = Origin(r.uint64()), r.uint64()
	h.maxKey, h.maxValue = r.uvarint(), r.uvarint()
	h.name = printable(string(r.bytes(maxName)))
	h.localPrefix = bytes.Clone(r.bytes(maxLocalPrefix))
	if r.err != nil {
		return h, fmt.Errorf("%w: hello: %w", ErrProtocol, r.err)
	}
	return h, nil
}

// printable returns a text from a peer without what could upset a terminal. It is not
// longer than the text: a byte that is no character would become three.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return ' '
	}, text)
}

// accept carries a number that orders the sessions of a pair.
func appendAccept(dst []byte, number uint64) []byte { return binary.AppendUvarint(dst, number) }

func parseAccept(b []byte) (number uint64, err error) {
	r := decoder{rest: b}
	if number = r.uvarint(); r.err == nil && number == 0 {
		r.fail(errors.New("number 0"))
	}
	return number, wrapProtocol("accept", r.finish())
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
	byeClosed  byeCode = 7 // the sender was closed
)

// errPeerClosed is why a session ends with a peer that was closed. It is not ErrClosed, which
// is of this side.
var errPeerClosed = errors.New("replicator: the peer was closed")

// byeErrors are the sentinels that travel.
var byeErrors = map[byeCode]error{byeRefused: ErrRefused, byeForked: ErrCloned, byeClock: ErrClock, byeSpare: errDuplicate, byeSelf: ErrSelf, byeClosed: errPeerClosed}

func appendBye(dst []byte, cause error) []byte {
	code := byeError
	if errors.Is(cause, ErrClosed) {
		code = byeClosed
	}
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

func (e *byeReceived) Error() string { return "the peer ended the session: " + withoutPrefix(e.text) }
func (e *byeReceived) Unwrap() error { return byeErrors[e.code] }

func parseBye(b []byte) error {
	r := decoder{rest: b}
	code, text := byeCode(r.byte()), string(r.bytes(maxByeText))
	if err := r.finish(); err != nil {
		return fmt.Errorf("%w: bye: %w", ErrProtocol, err)
	}
	return &byeReceived{code, printable(text)}
}

// appendPlace adds a position. One in the epoch that a hello named needs a sequence
// only.
func appendPlace(dst []byte, p position, epoch Origin) []byte {
	switch {
	case p.isZero():
		return append(dst, 0)
	case p.epoch == epoch:
		return binary.AppendUvarint(dst, 1+2*p.seq)
	}
	dst = binary.AppendUvarint(dst, 2+2*p.seq)
	return binary.BigEndian.AppendUint64(dst, uint64(p.epoch))
}

func (r *decoder) place(epoch Origin) position {
	n := r.uvarint()
	switch {
	case n == 0:
		return position{}
	case n%2 == 1:
		return position{epoch, n / 2}
	}
	return position{Origin(r.uint64()), n/2 - 1}
}

// appendStamps adds a count and as many pairs of the vector. The sender's own origin,
// by its hello, goes without saying.
func appendStamps(dst []byte, stamps []Stamp, epoch Origin) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(stamps)))
	for _, s := range stamps {
		if s.Origin == epoch {
			dst = binary.AppendUvarint(dst, 1+2*s.Clock)
			continue
		}
		dst = binary.AppendUvarint(dst, 2*s.Clock)
		dst = binary.BigEndian.AppendUint64(dst, uint64(s.Origin))
	}
	return dst
}

func (r *decoder) stamps(epoch Origin) []Stamp {
	n := r.uvarint()
	switch {
	case n > maxOrigins:
		r.fail(fmt.Errorf("%d origins, the limit is %d", n, maxOrigins))
	case n > uint64(len(r.rest)):
		r.fail(errTruncated)
	}
	if n == 0 || r.err != nil {
		return nil
	}
	const minPair = 9 // bytes, of another origin than the sender's own
	stamps := make([]Stamp, 0, min(n, 1+uint64(len(r.rest))/minPair))
	own := -1 // index of the sender's own origin, whose pairs are so short that they count as one
	for ; n > 0 && r.err == nil; n-- {
		clock := r.uvarint()
		s := Stamp{clock / 2, epoch}
		if clock%2 == 0 {
			s.Origin = Origin(r.uint64())
		}
		switch {
		case s.Origin != epoch:
		case own >= 0:
			stamps[own].Clock = max(stamps[own].Clock, s.Clock)
			continue
		default:
			own = len(stamps)
		}
		if r.err == nil && s.Origin&drawnOrigin == 0 {
			r.fail(fmt.Errorf("the vector has origin %v", s.Origin))
		}
		stamps = append(stamps, s)
	}
	return stamps
}

// vectorFrames returns the payloads of as many frames as it takes to tell what the
// sender knows.
func vectorFrames(stamps []Stamp, epoch Origin) (payloads [][]byte) {
	for len(stamps) > 0 {
		n := min(len(stamps), maxVectorChunk)
		payloads = append(payloads, appendStamps(nil, stamps[:n], epoch))
		stamps = stamps[n:]
	}
	return payloads
}

func parseVector(b []byte, epoch Origin) ([]Stamp, error) {
	r := decoder{rest: b}
	stamps := r.stamps(epoch)
	if n, _ := binary.Uvarint(b); n > maxVectorChunk {
		r.fail(fmt.Errorf("%d origins in one frame, the limit is %d", n, maxVectorChunk))
	}
	return stamps, wrapProtocol("vector", r.finish())
}

// adoptionsFrames returns the payloads of as many frames as it takes to tell what the
// sender knows of adoptions, in ascending order of their ids.
func adoptionsFrames(a adoptions) (payloads [][]byte) {
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(a)), maxAdoptionsChunk) {
		payloads = append(payloads, appendAdoptions(nil, a, ids))
	}
	return payloads
}

// appendAdoptions adds what the sender knows of some adoptions.
func appendAdoptions(dst []byte, a adoptions, ids []adoptionID) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(ids)))
	for _, id := range ids {
		dst = binary.BigEndian.AppendUint64(dst, uint64(id))
		dst = binary.AppendUvarint(dst, a[id].Clock)
		dst = binary.BigEndian.AppendUint64(dst, uint64(a[id].Origin))
	}
	return dst
}

func parseAdoptions(b []byte) (adoptions, error) {
	r := decoder{rest: b}
	const minAdoption = 17 // bytes
	n := r.uvarint()
	switch {
	case n > maxAdoptionsChunk:
		r.fail(fmt.Errorf("%d adoptions in one frame, the limit is %d", n, maxAdoptionsChunk))
	case n > uint64(len(r.rest)/minAdoption):
		r.fail(errTruncated)
	}
	a := make(adoptions, min(n, uint64(len(r.rest)/minAdoption)))
	for ; n > 0 && r.err == nil; n-- {
		id := adoptionID(r.uint64())
		mark := Stamp{r.uvarint(), Origin(r.uint64())}
		if r.err == nil && (id == 0 || mark != Stamp{} && (mark.Origin&drawnOrigin == 0 || id == inDoubt)) {
			r.fail(fmt.Errorf("adoption %x has the mark %v", id, mark))
		}
		a[id] = mark
	}
	if err := r.finish(); err != nil {
		return nil, wrapProtocol("adoptions", err)
	}
	return a, nil
}

const (
	reapedMore    = 1 // the statement goes on with the next frame
	reapedRejoins = 2 // the sender rejoins by itself where it is stale

	reapedFlags = reapedMore | reapedRejoins
)

// reapedFrames returns the payloads of as many frames as it takes to state what the
// sender has reaped, at least one.
func reapedFrames(stamps []Stamp, rejoins bool, epoch Origin) (payloads [][]byte) {
	for first := true; first || len(stamps) > 0; first = false {
		n := min(len(stamps), maxVectorChunk)
		var flags byte
		if n < len(stamps) {
			flags |= reapedMore
		}
		if rejoins {
			flags |= reapedRejoins
		}
		payloads = append(payloads, appendStamps([]byte{flags}, stamps[:n], epoch))
		stamps = stamps[n:]
	}
	return payloads
}

func parseReaped(b []byte, epoch Origin) (stamps []Stamp, more, rejoins bool, err error) {
	r := decoder{rest: b}
	flags := r.byte()
	r.knownFlags(uint64(flags), reapedFlags)
	if n, _ := binary.Uvarint(r.rest); n > maxVectorChunk {
		r.fail(fmt.Errorf("%d origins in one frame, the limit is %d", n, maxVectorChunk))
	}
	stamps = r.stamps(epoch)
	return stamps, flags&reapedMore != 0, flags&reapedRejoins != 0, wrapProtocol("reaped", r.finish())
}

// ack states up to where the receiver's log is durable at the sender, and how far its
// durable vector has come since the last ack.
type ack struct {
	merged position
	known  []Stamp
}

func (a *ack) append(dst []byte, receiver, sender Origin) []byte {
	return appendStamps(appendPlace(dst, a.merged, receiver), a.known, sender)
}

func parseAck(b []byte, receiver, sender Origin) (a ack, err error) {
	r := decoder{rest: b}
	a.merged, a.known = r.place(receiver), r.stamps(sender)
	return a, wrapProtocol("ack", r.finish())
}

const (
	pullWait   = 1
	pullEmpty  = 2
	pullJoined = 4
	pullScan   = 8
	pullSeen   = 16

	pullFlags = pullWait | pullEmpty | pullJoined | pullScan | pullSeen
)

// knownFlags refuses flags that this version does not have: they may change what the rest
// of a message means. Within a session there is nothing to pass over, for both sides
// speak the same version.
func (r *decoder) knownFlags(flags, known uint64) {
	if unknown := flags &^ known; unknown != 0 {
		r.fail(fmt.Errorf("unknown flags %x", unknown))
	}
}

// append adds the pull; epoch is the receiver's.
func (p *pull) append(dst []byte, epoch Origin) []byte {
	var flags byte
	for _, f := range []struct {
		flag byte
		set  bool
	}{
		{pullWait, p.wait}, {pullEmpty, p.empty}, {pullJoined, p.joined}, {pullScan, p.scan != scanNone}, {pullSeen, !p.seen.isZero()},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	dst = appendPlace(append(dst, flags), p.checkpoint, epoch)
	if p.scan != scanNone {
		dst = appendPlace(append(dst, byte(p.scan)), p.upper, epoch)
		dst = binary.AppendUvarint(dst, p.reached)
		dst = appendBytes(dst, p.key)
	}
	if !p.seen.isZero() {
		dst = appendPlace(dst, p.seen, epoch)
	}
	return binary.AppendUvarint(dst, p.stale)
}

func parsePull(b []byte, epoch Origin) (p pull, err error) {
	r := decoder{rest: b}
	flags := r.byte()
	r.knownFlags(uint64(flags), pullFlags)
	p.wait, p.empty, p.joined = flags&pullWait != 0, flags&pullEmpty != 0, flags&pullJoined != 0
	p.checkpoint = r.place(epoch)
	if flags&pullScan != 0 {
		p.scan = scan(r.byte())
		p.upper = r.place(epoch)
		p.reached = r.uvarint()
		p.key = r.bytes(MaxKeySize)
		if r.err == nil && (p.scan != scanLog && p.scan != scanKeys || p.upper.isZero()) {
			r.fail(fmt.Errorf("scan %d up to %v", p.scan, p.upper))
		}
	}
	if flags&pullSeen != 0 {
		p.seen = r.place(epoch)
	}
	p.stale = r.uvarint()
	if r.err == nil && p.joined && p.checkpoint.isZero() {
		r.fail(errors.New("joined at no checkpoint"))
	}
	return p, wrapProtocol("pull", r.finish())
}

// parseTerms returns what the receiver may do: 0 everything, 1 pull only.
func parseTerms(b []byte) (access byte, err error) {
	if len(b) != 1 || b[0] > 1 {
		return 0, fmt.Errorf("%w: terms %x", ErrProtocol, b)
	}
	return b[0], nil
}

const (
	pageAhead      = 1
	pageReset      = 2
	pageFirst      = 4
	pageLast       = 8
	pageWhole      = 16
	pageUnsure     = 32
	pageIncomplete = 64
	pageLog        = 128
	pageKeys       = 256
	pageSeen       = 512

	pageFlags = pageAhead | pageReset | pageFirst | pageLast | pageWhole | pageUnsure | pageIncomplete | pageLog | pageKeys | pageSeen
)

// appendHeader adds the page up to its entries; epoch is the sender's.
func (p *page) appendHeader(dst []byte, entries int, epoch Origin) []byte {
	var flags uint64
	for _, f := range []struct {
		flag uint64
		set  bool
	}{
		{pageAhead, p.ahead}, {pageReset, p.reset}, {pageFirst, p.first}, {pageLast, p.last}, {pageWhole, p.whole},
		{pageUnsure, len(p.heard) > 0}, {pageSeen, len(p.seen) > 0}, {pageIncomplete, p.incomplete}, {pageLog, p.scan == scanLog}, {pageKeys, p.scan == scanKeys},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	dst = binary.AppendUvarint(dst, flags)
	if !p.ahead {
		dst = appendPlace(dst, p.to, epoch)
	}
	if p.scan == scanNone || p.first {
		dst = appendStamps(dst, p.vector, epoch)
	}
	for _, stamps := range [][]Stamp{p.seen, p.heard} {
		if len(stamps) > 0 {
			dst = appendStamps(dst, stamps, epoch)
		}
	}
	switch p.scan {
	case scanLog:
		dst = binary.AppendUvarint(dst, p.reached)
	case scanKeys:
		dst = appendBytes(dst, p.key)
	}
	return binary.AppendUvarint(dst, uint64(entries))
}

func parsePage(b []byte, maxValue int, epoch Origin) (p page, err error) {
	r := decoder{rest: b}
	flags := r.uvarint()
	r.knownFlags(flags, pageFlags)
	has := func(flag uint64) bool { return flags&flag != 0 }
	p.ahead, p.reset, p.first, p.last, p.whole = has(pageAhead), has(pageReset), has(pageFirst), has(pageLast), has(pageWhole)
	p.incomplete = has(pageIncomplete)
	switch {
	case has(pageLog) && has(pageKeys) || (p.first || p.last) && flags&(pageLog|pageKeys) == 0 ||
		p.ahead && flags&^(pageAhead|pageUnsure|pageSeen|pageIncomplete) != 0 || !p.ahead && has(pageSeen) || p.reset && !(p.first && has(pageKeys)):
		r.fail(fmt.Errorf("flags %x", flags))
	case has(pageLog):
		p.scan = scanLog
	case has(pageKeys):
		p.scan = scanKeys
	}
	if !p.ahead {
		p.to = r.place(epoch)
	}
	if p.scan == scanNone || p.first {
		p.vector = r.stamps(epoch)
	}
	for _, list := range []struct {
		flag   uint64
		stamps *[]Stamp
	}{{pageSeen, &p.seen}, {pageUnsure, &p.heard}} {
		if has(list.flag) {
			if *list.stamps = r.stamps(epoch); r.err == nil && len(*list.stamps) == 0 {
				r.fail(fmt.Errorf("flags %x, and nothing to it", flags))
			}
		}
	}
	switch p.scan {
	case scanLog:
		p.reached = r.uvarint()
	case scanKeys:
		p.key = r.bytes(MaxKeySize)
	}
	p.entries = r.entries(maxValue, epoch, entryFlags)
	return p, wrapProtocol("page", r.finish())
}

const (
	valuesIncomplete = 1
	valuesUnsure     = 2

	valuesFlags = valuesIncomplete | valuesUnsure
)

// values answers a fetch: entries for the first of the keys that were asked for, less
// those that the sender has forgotten.
type values struct {
	answered   uint64
	incomplete bool    // something else is left out, that the sender could not read
	heard      []Stamp // as that of a page
	entries    []entry
}

func parseValues(b []byte, maxValue int, epoch Origin) (v values, err error) {
	r := decoder{rest: b}
	v.answered = r.uvarint()
	flags := r.byte()
	r.knownFlags(uint64(flags), valuesFlags)
	v.incomplete = flags&valuesIncomplete != 0
	if flags&valuesUnsure != 0 {
		v.heard = r.stamps(epoch)
	}
	v.entries = r.entries(maxValue, epoch, entryFlags)
	return v, wrapProtocol("values", r.finish())
}

// answers reports an entry whose key is not among those that are dealt with, which are
// the first of those that were asked for.
func (v *values) answers(keys [][]byte) error {
	keys = keys[:v.answered]
	for i := range v.entries {
		if _, asked := slices.BinarySearchFunc(keys, v.entries[i].key, bytes.Compare); !asked {
			return fmt.Errorf("%w: values: key %.64q was not asked for", ErrProtocol, v.entries[i].key)
		}
	}
	return nil
}

const (
	entryDeleted    = 1
	entrySameOrigin = 2 // as the entry before or, for the first, the sender's epoch
	entryAbsent     = 4 // the size stands in for the value
	entryLater      = 8 // it stands behind what the receiver has merged; in a reply

	entryFlags = entryDeleted | entrySameOrigin | entryAbsent
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
	if e.later {
		flags |= entryLater
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
	default:
		dst = binary.AppendUvarint(dst, uint64(len(e.value)))
	}
	return dst
}

// entryWriter encodes entries, for a page or for values. It is a sink.
type entryWriter struct {
	epoch  Origin   // the sender's, by its hello
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

func (w *entryWriter) reset() { *w = entryWriter{epoch: w.epoch, origin: w.epoch, body: w.body[:0]} }

func (w *entryWriter) size() int { return w.length }

// page returns the payload of a page frame with the entries that were added.
func (w *entryWriter) page(p *page, entries int) [][]byte {
	return w.behind(p.appendHeader(nil, entries, w.epoch))
}

// values returns the payload of a values frame that deals with as many keys.
func (w *entryWriter) values(answered, entries int, incomplete bool, heard []Stamp) [][]byte {
	header := binary.AppendUvarint(nil, uint64(answered))
	var flags byte
	if incomplete {
		flags |= valuesIncomplete
	}
	if len(heard) > 0 {
		flags |= valuesUnsure
	}
	header = append(header, flags)
	if len(heard) > 0 {
		header = appendStamps(header, heard, w.epoch)
	}
	return w.behind(binary.AppendUvarint(header, uint64(entries)))
}

func (w *entryWriter) behind(header []byte) [][]byte {
	return append(append([][]byte{header}, w.parts...), w.body)
}

// entries reads a count and as many entries. What can't be stored here, or is
// out of order, is an error.
func (r *decoder) entries(maxValue int, previous Origin, flags uint64) []entry {
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
		r.entry(e, previous, maxValue, flags)
		previous = e.Origin
		if r.err == nil && i > 0 && bytes.Compare(entries[i-1].key, e.key) >= 0 {
			r.fail(fmt.Errorf("key %.64q is not above the one before it", e.key))
		}
		if r.err != nil {
			return nil
		}
	}
	return entries
}

func (r *decoder) entry(e *entry, previous Origin, maxValue int, known uint64) {
	flags := r.byte()
	r.knownFlags(uint64(flags), known)
	e.Deleted, e.absent, e.later = flags&entryDeleted != 0, flags&entryAbsent != 0, flags&entryLater != 0
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
		if e.size = r.uvarint(); e.size > uint64(maxValue) {
			r.fail(fmt.Errorf("the value of key %.64q has %d bytes, the limit is %d", e.key, e.size, maxValue))
		}
	default:
		e.value = r.bytes(maxValue)
	}
	// Else two replicas that were sent different values under one stamp would
	// differ for ever. A value that is absent is checked when it comes.
	if r.err == nil && e.adopted() && (e.Deleted || e.Clock > 0 || !e.absent && !e.fits(valueHash(e.value))) {
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
	switch {
	case n > maxPageEntries:
		r.fail(fmt.Errorf("%d keys, the limit is %d", n, maxPageEntries))
	case n > uint64(len(r.rest)):
		r.fail(errTruncated)
	case n == 0 && r.err == nil:
		r.fail(errors.New("no keys"))
	}
	for ; n > 0 && r.err == nil; n-- {
		key := r.bytes(MaxKeySize)
		if len(keys) > 0 && r.err == nil && bytes.Compare(keys[len(keys)-1], key) >= 0 {
			r.fail(fmt.Errorf("key %.64q is not above the one before it", key))
		}
		keys = append(keys, key)
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
