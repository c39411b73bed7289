package replicator

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

// This file owns stamps and their order, and the bounds of clocks.

const (
	// maxClock is the greatest clock that a stamp may carry.
	maxClock = 1 << 62
	// The clock of a peer's change may be at most clockBase, and clockRate for
	// each second since clockEpoch, by the wall clock here and clockAhead ahead.
	clockBase  = 1 << 48
	clockRate  = 1 << 20
	clockAhead = time.Hour
	// clockBlock bounds how far the persisted ceiling is above the greatest
	// clock that was made or seen, and so what a power cut adds to the clock.
	clockBlock = 1 << 16
	// clockLamport is the kind of clock that a database and its peers use.
	clockLamport = 1
	// drawnOrigin is set in every origin drawn at an opening and clear in every
	// origin that adoption derives from a value, so a write beats an adoption.
	drawnOrigin = 1 << 63
)

// Origin names one opening of a database: a random number whose top bit is
// set. In the stamp of an adopted key it is 63 bits of a hash of the value.
type Origin uint64

// String returns the origin as 16 hexadecimal digits.
func (o Origin) String() string { return fmt.Sprintf("%016x", uint64(o)) }

// MarshalText returns what String returns.
func (o Origin) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (o *Origin) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || len(text) != 16 {
		return fmt.Errorf("replicator: an origin has 16 hexadecimal digits, not %.40q", text)
	}
	*o = Origin(v)
	return nil
}

func newOrigin() Origin {
	var b [8]byte
	rand.Read(b[:])
	return Origin(binary.BigEndian.Uint64(b[:]) | drawnOrigin)
}

// Stamp identifies one change everywhere: a Lamport clock (Lamport 1978), and
// the origin that breaks ties between equal clocks. Stamps are totally ordered.
type Stamp struct {
	Clock  uint64
	Origin Origin
}

// Compare returns -1, 0 or +1 as s was made before, is, or was made after t in
// the order that every replica agrees on.
func (s Stamp) Compare(t Stamp) int {
	if c := cmp.Compare(s.Clock, t.Clock); c != 0 {
		return c
	}
	return cmp.Compare(s.Origin, t.Origin)
}

// String returns the stamp as clock@origin.
func (s Stamp) String() string { return fmt.Sprintf("%d@%v", s.Clock, s.Origin) }

// Version is what a replica knows of a key beside its value: the stamp of its
// latest change, and whether that change deleted it.
type Version struct {
	Stamp
	Deleted bool
}

// String returns the stamp as clock@origin, with a "-" before it if the change
// deleted the key.
func (v Version) String() string {
	if v.Deleted {
		return "-" + v.Stamp.String()
	}
	return v.Stamp.String()
}

// Compare returns -1, 0 or +1 as v is below, equal to, or above w in the order
// that every replica agrees on: by stamp, then a delete above a put. Versions that
// are equal stand for one change, unless two copies of one running process made
// them (a resumed machine image); the values' hashes decide between those.
func (v Version) Compare(w Version) int {
	if c := v.Stamp.Compare(w.Stamp); c != 0 {
		return c
	}
	switch {
	case v.Deleted == w.Deleted:
		return 0
	case v.Deleted:
		return 1
	}
	return -1
}

// valueHash is the last tie-breaker of the order, and what adoption stamps an
// old value with. It is the same on every machine.
func valueHash(value []byte) uint64 {
	sum := sha256.Sum256(value)
	return binary.BigEndian.Uint64(sum[:8])
}

// adoptedVersion is the version of a key that was in the database before any
// Replicator: below every change ever made through one.
func adoptedVersion(value []byte) Version {
	return Version{Stamp: Stamp{Origin: Origin(valueHash(value) &^ drawnOrigin)}}
}

func (v Version) adopted() bool { return v.Origin&drawnOrigin == 0 }

// fits reports whether a version that claims to be an adopted one is what
// adoption makes of a value with that hash.
func (v Version) fits(hash uint64) bool {
	return !v.Deleted && v.Clock == 0 && uint64(v.Origin) == hash&^drawnOrigin
}

// clock is the database's Lamport clock. It belongs to the commit section.
type clock struct {
	next    uint64 // clock of the next local change: one above all made or seen
	ceiling uint64 // persisted with Sync; every clock made or seen is below it
}

// witness raises the clock above one that came from elsewhere.
func (c *clock) witness(seen uint64) { c.next = max(c.next, seen+1) }

// clockEpoch is when the bound of peers' clocks begins to rise.
var clockEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// clockLimit is the greatest clock that a peer's change may carry at a time. It
// does not depend on this database's clock, so all replicas judge alike, no
// attacker can use the clock up in steps, and no cluster that makes fewer than
// clockRate changes a second gets there.
func clockLimit(now time.Time) uint64 {
	seconds := max(0, now.Sub(clockEpoch)/time.Second) + clockAhead/time.Second
	return min(clockBase+clockRate*uint64(seconds), maxClock)
}
