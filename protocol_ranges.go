package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// This file owns the bytes of the messages by which two replicas compare what they have.

// maxBound is the size in bytes of the largest key at which a range begins or ends: one
// that is right behind the largest key.
const maxBound = MaxKeySize + 1

const (
	questionFirst  = 1
	questionValues = 2
	questionMerged = 4

	rangeLower = 1 // it does not begin where the one before ends
	rangeOpen  = 2 // it has no upper end
)

// append adds the question; epoch is the receiver's.
func (q *question) append(dst []byte, epoch Origin) []byte {
	var flags byte
	if q.first {
		flags |= questionFirst
	}
	if q.values {
		flags |= questionValues
	}
	if !q.merged.isZero() {
		flags |= questionMerged
	}
	dst = append(dst, flags)
	if !q.merged.isZero() {
		dst = appendPlace(dst, q.merged, epoch)
	}
	dst = binary.AppendUvarint(dst, uint64(len(q.ranges)))
	var before []byte
	for i := range q.ranges {
		r := &q.ranges[i]
		flags = 0
		if !bytes.Equal(r.lower, before) {
			flags |= rangeLower
		}
		if r.upper == nil {
			flags |= rangeOpen
		}
		dst = append(dst, flags)
		if flags&rangeLower != 0 {
			dst = appendBytes(dst, r.lower)
		}
		if r.upper != nil {
			dst = appendBytes(dst, r.upper)
		}
		if dst = binary.AppendUvarint(dst, r.n); r.n > 0 {
			dst = append(dst, r.print[:]...)
		}
		before = r.upper
	}
	return dst
}

func parseQuestion(b []byte, epoch Origin) (q question, err error) {
	r := decoder{rest: b}
	flags := r.byte()
	r.knownFlags(uint64(flags), questionFirst|questionValues|questionMerged)
	q.first, q.values = flags&questionFirst != 0, flags&questionValues != 0
	if flags&questionMerged != 0 {
		if q.merged = r.place(epoch); r.err == nil && (q.merged.isZero() || !q.first) {
			r.fail(fmt.Errorf("flags %x, merged up to %v", flags, q.merged))
		}
	}
	n := r.uvarint()
	if r.err == nil && (n == 0 || n > maxRanges) {
		r.fail(fmt.Errorf("%d ranges, the limit is %d", n, maxRanges))
	}
	lower := []byte(nil)
	for ; n > 0 && r.err == nil; n-- {
		if len(q.ranges) > 0 && lower == nil {
			r.fail(errors.New("a range behind the last key"))
			break
		}
		next := r.rangeQuestion(lower)
		lower = next.upper
		q.ranges = append(q.ranges, next)
	}
	return q, wrapProtocol("question", r.finish())
}

// rangeQuestion reads a range that does not begin below a key.
func (r *decoder) rangeQuestion(lower []byte) (q rangeQuestion) {
	flags := r.byte()
	r.knownFlags(uint64(flags), rangeLower|rangeOpen)
	q.lower = lower
	if flags&rangeLower != 0 {
		if q.lower = r.bytes(maxBound); r.err == nil && bytes.Compare(q.lower, lower) <= 0 {
			r.fail(fmt.Errorf("a range begins with %.64q, not above %.64q", q.lower, lower))
		}
	}
	if flags&rangeOpen == 0 {
		q.upper = r.bytes(maxBound)
	}
	if r.err == nil && q.isEmpty() {
		r.fail(fmt.Errorf("a range ends with %.64q, not above %.64q", q.upper, q.lower))
	}
	if q.n = r.uvarint(); q.n > 0 {
		copy(q.print[:], r.take(uint64(len(q.print))))
	}
	return q
}

const (
	replyFirst    = 1
	replyOver     = 2
	replyAdopting = 4
	replyPart     = 8
	replyUnsure   = 16
	replyReaped   = 32
)

// appendHeader adds the reply up to its entries; the epochs are the sender's and the
// receiver's.
func (r *reply) appendHeader(dst []byte, entries int, epoch, receiver Origin) []byte {
	switch r.obstacle {
	case obstacleOver:
		return append(dst, replyOver)
	case obstacleAdopting:
		return append(dst, replyAdopting)
	}
	var flags byte
	if r.first {
		flags |= replyFirst
	}
	if r.part {
		flags |= replyPart
	}
	if len(r.heard) > 0 {
		flags |= replyUnsure
	}
	if len(r.reaped) > 0 {
		flags |= replyReaped
	}
	dst = append(dst, flags)
	if r.first {
		dst = appendPlace(appendPlace(dst, r.to, epoch), r.merged, receiver)
		dst = appendStamps(dst, r.vector, epoch)
	}
	if len(r.heard) > 0 {
		dst = appendStamps(dst, r.heard, epoch)
	}
	if len(r.reaped) > 0 {
		dst = appendStamps(dst, r.reaped, epoch)
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.findings)))
	for _, f := range r.findings {
		dst = append(dst, byte(f))
	}
	if r.part {
		dst = appendBytes(dst, r.key)
	}
	return binary.AppendUvarint(dst, uint64(entries))
}

func parseReply(b []byte, maxValue int, epoch, receiver Origin) (p reply, err error) {
	r := decoder{rest: b}
	flags := r.byte()
	switch {
	case flags&(replyOver|replyAdopting) == 0:
		r.reply(&p, flags, maxValue, epoch, receiver)
	case flags == replyOver:
		p.obstacle = obstacleOver
	case flags == replyAdopting:
		p.obstacle = obstacleAdopting
	default:
		r.fail(fmt.Errorf("flags %x", flags))
	}
	return p, wrapProtocol("reply", r.finish())
}

func (r *decoder) reply(p *reply, flags byte, maxValue int, epoch, receiver Origin) {
	r.knownFlags(uint64(flags), replyFirst|replyPart|replyUnsure|replyReaped)
	p.first, p.part = flags&replyFirst != 0, flags&replyPart != 0
	if p.first {
		p.to, p.merged, p.vector = r.place(epoch), r.place(receiver), r.stamps(epoch)
		if r.err == nil && p.to.epoch&drawnOrigin == 0 {
			r.fail(fmt.Errorf("%v is no place in a log", p.to))
		}
	}
	if flags&replyUnsure != 0 {
		if p.heard = r.stamps(epoch); r.err == nil && (len(p.heard) == 0 || !p.first) {
			r.fail(fmt.Errorf("flags %x, %d stamps were heard", flags, len(p.heard)))
		}
	}
	if flags&replyReaped != 0 {
		if p.reaped = r.stamps(epoch); r.err == nil && (len(p.reaped) == 0 || !p.first) {
			r.fail(fmt.Errorf("flags %x, %d stamps were reaped", flags, len(p.reaped)))
		}
	}
	n := r.uvarint()
	if r.err == nil && (n == 0 || n > maxRanges) {
		r.fail(fmt.Errorf("%d findings, the limit is %d", n, maxRanges))
	}
	for _, f := range r.take(n) {
		if p.findings = append(p.findings, finding(f)); finding(f) > findingRecords {
			r.fail(fmt.Errorf("finding %d", f))
		}
	}
	if p.part {
		p.key = r.bytes(MaxKeySize)
	}
	p.entries = r.entries(maxValue, epoch, entryFlags|entryLater)
}

// reply returns the payload of a reply with the entries that were added.
func (w *entryWriter) reply(p *reply, entries int, receiver Origin) [][]byte {
	return w.behind(p.appendHeader(nil, entries, w.epoch, receiver))
}

// parseOffer reads the keys of an offer, which are those of a fetch.
func parseOffer(b []byte) (keys [][]byte, err error) {
	if keys, err = parseFetch(b); err != nil {
		return nil, fmt.Errorf("offer: %w", err)
	}
	return keys, nil
}

// taken answers an offer: of how many keys the sender has now what was offered, or
// something later.
func appendTaken(dst []byte, n uint64) []byte { return binary.AppendUvarint(dst, n) }

func parseTaken(b []byte) (n uint64, err error) {
	r := decoder{rest: b}
	n = r.uvarint()
	return n, wrapProtocol("taken", r.finish())
}
