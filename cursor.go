package replicator

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// This file owns how far a peer's log has been merged: the cursor, and what a page
// makes of it.

// scan is the kind of an unfinished pull.
type scan byte

const (
	scanNone scan = iota
	scanLog       // the log, in reverse
	scanFull      // the whole state, or what of it is above the checkpoint, in key order
)

// cursor is how far a peer's log has been merged here. It is stored in the
// batch of the last entry that it covers.
type cursor struct {
	checkpoint position // everything up to here is merged
	seen       position // the greatest head at which a page was read
	scan       scan
	upper      position // of a scan: what the checkpoint becomes at its end
	reached    uint64   // of a log scan: merged from here up to upper
	key        []byte   // of a full scan: merged up to and with this key
}

// caughtUp reports whether all that has been heard of is merged: no scan is
// unfinished, and no key can have moved up the log behind the last one.
func (c *cursor) caughtUp() bool {
	return c.scan == scanNone && c.seen.seq <= c.checkpoint.seq && !c.checkpoint.isZero()
}

// start makes of a stored cursor one that a pull can begin with: without a
// checkpoint, all is pulled.
func (c cursor) start() cursor {
	if c.checkpoint.isZero() && c.scan != scanFull {
		return cursor{scan: scanFull}
	}
	return c
}

// advance returns the cursor as it is when the page is merged.
func (c cursor) advance(p *page) (cursor, error) {
	switch {
	case p.unknown && c.scan == scanFull && c.checkpoint.isZero() && c.upper.isZero():
		return c, fmt.Errorf("%w: page: refuses a full pull", ErrProtocol)
	case p.unknown:
		return cursor{scan: scanFull}, nil
	case p.head.epoch == 0 || p.head.seq < c.seen.seq && c.seen.epoch == p.head.epoch:
		return c, fmt.Errorf("%w: page: head %v is below %v, seen before", ErrProtocol, p.head, c.seen)
	}
	if p.head.seq >= c.seen.seq {
		c.seen = p.head
	}
	if c.scan == scanFull {
		return c.advanceFull(p)
	}
	return c.advanceLog(p)
}

func (c cursor) advanceFull(p *page) (cursor, error) {
	first := c.upper.isZero()
	if first {
		c.upper = p.head
	}
	switch {
	case p.floor > c.upper.seq+1:
		return cursor{scan: scanFull}, nil // what changed since the start may be gone
	case p.done:
		return cursor{checkpoint: c.upper, seen: c.seen}, nil
	case !first && bytes.Compare(p.key, c.key) <= 0:
		return c, fmt.Errorf("%w: page: key %.64q is not above %.64q", ErrProtocol, p.key, c.key)
	}
	c.key = bytes.Clone(p.key)
	return c, nil
}

func (c cursor) advanceLog(p *page) (cursor, error) {
	if p.floor > c.checkpoint.seq+1 {
		return cursor{scan: scanFull}, nil // what came after the checkpoint may be gone
	}
	if c.scan == scanNone {
		c.scan, c.upper, c.reached = scanLog, p.head, p.head.seq+1
	}
	switch {
	case p.reached <= c.checkpoint.seq+1:
		return cursor{checkpoint: c.upper, seen: c.seen}, nil
	case p.reached >= c.reached:
		return c, fmt.Errorf("%w: page: reached %d, not below %d", ErrProtocol, p.reached, c.reached)
	}
	if p.rescan {
		return cursor{checkpoint: c.checkpoint, seen: c.seen, scan: scanFull}, nil
	}
	c.reached = p.reached
	return c, nil
}

// knows reports whether all of a cursor's positions are in this log.
func (h history) knows(c *cursor, head uint64) bool {
	for _, p := range []position{c.checkpoint, c.seen, c.upper} {
		if !p.isZero() && !h.contains(p, head) {
			return false
		}
	}
	return c.scan == scanFull || !c.checkpoint.isZero()
}

func (c *cursor) append(dst []byte) []byte {
	dst = appendPosition(dst, c.checkpoint)
	dst = appendPosition(dst, c.seen)
	dst = append(dst, byte(c.scan))
	dst = appendPosition(dst, c.upper)
	dst = binary.AppendUvarint(dst, c.reached)
	return appendBytes(dst, c.key)
}

func (r *decoder) cursor() (c cursor) {
	c.checkpoint = r.position()
	c.seen = r.position()
	c.scan = scan(r.byte())
	c.upper = r.position()
	c.reached = r.uvarint()
	c.key = slices.Clone(r.bytes(MaxKeySize))
	return c
}
