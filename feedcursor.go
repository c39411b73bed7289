package replicator

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns the cursors of feeds: places in what a feed gives.

// Cursor is a place in the changes of one database: everything up to it was given by
// Changes or Watch. The zero Cursor is before everything. Cursors can be compared with ==.
//
// A Cursor names a place in a history, not a database id. A copy of a database, a restored
// backup or a clone, accepts the cursors of up to the moment at which it was copied, and
// holds what their consumers have seen. It refuses later ones with ErrCursor, as the
// original refuses those of the copy.
//
// A Cursor marshals to text of letters, digits, hyphens and underscores: at most 26
// characters, 50 for a while after changes were given in key order, or one of which a later
// one was there was passed over, and while they are given in key order, 74 and 4 for every 3
// bytes of a key. The zero Cursor marshals to the empty text.
type Cursor struct {
	at    position // everything up to here was given
	scan  bool     // what came behind that is given in key order
	upper position // of a scan: it has all up to here, and the log is followed from here on
	seen  position // what was given, or passed over, rests on the log up to here
	key   string   // of a scan: it has come to this key
}

// The first byte of a cursor's text, decoded.
const (
	cursorPlain = 1 // at
	cursorSeen  = 2 // at, seen
	cursorFirst = 3 // upper, seen, key
	cursorScan  = 4 // at, upper, seen, key
)

// IsZero reports whether the cursor is before everything.
func (c Cursor) IsZero() bool { return c == Cursor{} }

// String returns the same text as MarshalText.
func (c Cursor) String() string {
	if c.IsZero() {
		return ""
	}
	b := make([]byte, 1, 64)
	switch {
	case c.scan && c.at.isZero():
		b[0] = cursorFirst
	case c.scan:
		b[0] = cursorScan
	case !c.seen.isZero():
		b[0] = cursorSeen
	default:
		b[0] = cursorPlain
	}
	for _, p := range []position{c.at, c.upper, c.seen} {
		if !p.isZero() {
			b = appendPosition(b, p)
		}
	}
	return base64.RawURLEncoding.EncodeToString(append(b, c.key...))
}

// MarshalText returns the text of the cursor.
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText parses the output of MarshalText. It accepts no other text. Whether the
// cursor is one of a database is found out by Changes.
func (c *Cursor) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*c = Cursor{}
		return nil
	}
	if len(text) > base64.RawURLEncoding.EncodedLen(1+3*(8+binary.MaxVarintLen64)+MaxKeySize) {
		return fmt.Errorf("replicator: cursor: %d characters are too many", len(text))
	}
	b := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
	if _, err := base64.RawURLEncoding.Decode(b, text); err != nil {
		return fmt.Errorf("replicator: cursor: %w", err)
	}
	r := decoder{rest: b}
	var parsed Cursor
	kind := r.byte()
	parsed.scan = kind == cursorFirst || kind == cursorScan
	if kind != cursorFirst {
		parsed.at = r.position()
	}
	if parsed.scan {
		parsed.upper = r.position()
	}
	if kind != cursorPlain {
		parsed.seen = r.position()
	}
	if parsed.scan && r.err == nil {
		parsed.key = string(r.rest)
		r.rest = nil
	}
	err := r.finish()
	switch {
	case err != nil:
	case kind < cursorPlain || kind > cursorScan || !parsed.isSound():
		err = errors.New("malformed")
	case !bytes.Equal(text, []byte(parsed.String())):
		err = errors.New("not in its only form")
	}
	if err != nil {
		return fmt.Errorf("replicator: cursor: %w", err)
	}
	*c = parsed
	return nil
}

// isSound reports whether a cursor is one that a feed can have given.
func (c *Cursor) isSound() bool {
	for _, p := range []position{c.at, c.upper, c.seen} {
		if !p.isZero() && p.epoch&drawnOrigin == 0 {
			return false
		}
	}
	if c.scan {
		return !c.upper.isZero() && c.at.seq <= c.upper.seq && c.upper.seq <= c.seen.seq && !c.seen.isZero() && len(c.key) <= MaxKeySize
	}
	return !c.at.isZero() && (c.seen.isZero() || c.at.seq < c.seen.seq)
}

// follows returns the cursor at a place of the log behind this one, which is of no scan.
func (c Cursor) follows(at position) Cursor {
	if c.at = at; c.seen.seq <= at.seq {
		c.seen = position{}
	}
	return c
}

// vouches reports whether this log, up to head, has what a cursor has seen, and nothing
// else. What was given in an epoch that a power cut has ended is not there for certain,
// but for what was durable. Nothing at all is in every log.
func (h history) vouches(c *Cursor, head uint64) bool {
	for _, p := range [...]position{c.at, c.upper, c.seen} {
		if p.seq > 0 && !(h.contains(p, head) && h.isSure(p)) {
			return false
		}
	}
	return true
}

// has reports whether the epoch of an origin is one of this log.
func (h history) has(o Origin) bool {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].origin == o {
			return true
		}
	}
	return false
}

// prefixRange returns the range of all keys that begin with a prefix.
func prefixRange(prefix []byte) keyRange {
	r := util.BytesPrefix(prefix)
	return keyRange{r.Start, r.Limit}
}
