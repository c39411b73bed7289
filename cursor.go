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
	scanKeys      // the index, in key order
)

// cursor is how far a peer's log has been merged here. It is stored in the batch of
// the last entry that it covers. It is in one of these states:
//
//	checkpoint  joined  scan       seen
//	none        no      none       none       nothing is merged
//	some        yes     none       none       all up to the checkpoint is merged, and the vector as of it is joined
//	any         any     log, keys  = upper    a scan is under way, and all its pages were of one snapshot
//	any         any     log, keys  any        a scan is under way that has left its first snapshot
//	some        no      none       some       a scan that had left its snapshot has ended, and what moved meanwhile is yet to come
type cursor struct {
	checkpoint position // everything up to here is merged, or has a later record
	joined     bool     // everything is merged, and the vector as of it is joined
	scan       scan
	upper      position // of a scan: the head of its first snapshot, which becomes the checkpoint
	reached    uint64   // of a scan of the log: merged from here up to upper
	key        []byte   // of a scan in key order: merged up to and with this key

	// seen is the greatest head of a snapshot that was read since the vector was last
	// joined. What was passed over there because it had a later record is here once
	// the checkpoint is no longer below it.
	seen position
}

// equal reports whether two cursors are at one place.
func (c cursor) equal(d cursor) bool {
	return c.checkpoint == d.checkpoint && c.joined == d.joined && c.scan == d.scan && c.upper == d.upper &&
		c.reached == d.reached && c.seen == d.seen && bytes.Equal(c.key, d.key)
}

// caughtUp reports whether everything that the peer had at the checkpoint is here,
// and known to be.
func (c *cursor) caughtUp() bool { return c.scan == scanNone && c.joined }

// advance returns the cursor as it is when the page is merged. known says whether the
// vector of the scan's first page is at hand: it goes with the session that got it.
func (c cursor) advance(p *page, known bool) (cursor, error) {
	bad := func(format string, args ...any) (cursor, error) {
		return c, fmt.Errorf("%w: page: %w", ErrProtocol, fmt.Errorf(format, args...))
	}
	if p.ahead {
		return c, nil
	}
	if p.reset {
		c = cursor{}
	}
	switch {
	case p.to.epoch&drawnOrigin == 0:
		return bad("%v is no place in a log", p.to)
	case p.to.seq < c.checkpoint.seq:
		return bad("%v is below the checkpoint %v", p.to, c.checkpoint)
	}
	if p.scan == scanNone {
		switch {
		case c.scan != scanNone || c.checkpoint.isZero():
			return bad("it follows a checkpoint that was not sent")
		case !c.joined && !p.whole:
			return bad("the vector is not whole")
		}
		return c.completed(p.to, true), nil
	}
	switch {
	case p.first && !c.joined && !p.whole:
		return bad("the vector is not whole")
	case p.first:
		c = cursor{checkpoint: c.checkpoint, joined: c.joined, scan: p.scan, upper: p.to, reached: p.to.seq + 1, seen: c.seen}
	case p.scan != c.scan:
		return bad("it is of scan %d, not of %d", p.scan, c.scan)
	case p.to.seq < c.upper.seq:
		return bad("%v is below the scan's first head %v", p.to, c.upper)
	}
	if p.to.seq >= c.seen.seq {
		c.seen = p.to
	}
	switch {
	case p.last:
		return c.completed(c.upper, known || p.first), nil
	case c.scan == scanLog && p.reached >= c.reached:
		return bad("reached %d, not below %d", p.reached, c.reached)
	case c.scan == scanKeys && !p.first && bytes.Compare(p.key, c.key) <= 0:
		return bad("key %.64q is not above %.64q", p.key, c.key)
	}
	c.reached, c.key = p.reached, bytes.Clone(p.key)
	return c, nil
}

// completed returns the cursor with a new checkpoint. The vector is joined if it is at
// hand, and if no record above the checkpoint may have taken the place of one that was
// passed over.
func (c cursor) completed(checkpoint position, known bool) cursor {
	if known && checkpoint.seq >= c.seen.seq {
		return cursor{checkpoint: checkpoint, joined: true}
	}
	return cursor{checkpoint: checkpoint, seen: c.seen}
}

// knows reports whether a cursor can be gone on from in this log: whether its
// positions are in it. What was seen besides has to be there as it was seen, which
// after a power cut is known up to a durable point only.
func (h history) knows(c *cursor, head uint64) bool {
	return (c.checkpoint.isZero() || h.contains(c.checkpoint, head)) &&
		(c.scan == scanNone || h.contains(c.upper, head)) &&
		(c.seen.isZero() || h.contains(c.seen, head) && h.isSure(c.seen))
}

const cursorJoined = 1

// append adds what decoder.cursor reads.
func (c *cursor) append(dst []byte) []byte {
	var flags byte
	if c.joined {
		flags |= cursorJoined
	}
	dst = append(dst, flags, byte(c.scan))
	dst = appendPosition(dst, c.checkpoint)
	dst = appendPosition(dst, c.upper)
	dst = appendPosition(dst, c.seen)
	dst = binary.AppendUvarint(dst, c.reached)
	return appendBytes(dst, c.key)
}

func (r *decoder) cursor() (c cursor) {
	flags := r.byte()
	c.joined = flags&cursorJoined != 0
	c.scan = scan(r.byte())
	c.checkpoint, c.upper, c.seen = r.position(), r.position(), r.position()
	c.reached = r.uvarint()
	c.key = slices.Clone(r.bytes(MaxKeySize))
	if c.scan > scanKeys {
		r.fail(fmt.Errorf("scan %d", c.scan))
	}
	return c
}
