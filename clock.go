package replicator

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

const (
	// maxClock is the greatest clock that a stamp may carry.
	maxClock = 1 << 62
	// maxClockLead is how far the clock of a peer's change may be ahead of ours.
	maxClockLead = 1 << 40
	// clockBlock is by how much the persisted ceiling is raised at a time.
	clockBlock = 1 << 20
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

// compare orders versions: by stamp, then a delete above a put. What is equal
// after that is one change, unless two copies of one running process made it
// (a resumed machine image); newerValue decides those.
func (v Version) compare(w Version) int {
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

// clock is the database's Lamport clock. It belongs to the commit section.
type clock struct {
	next    uint64 // clock of the next local change: one above all made or seen
	ceiling uint64 // persisted with Sync; every clock made or seen is below it
}

// witness raises the clock above one that came from elsewhere.
func (c *clock) witness(seen uint64) { c.next = max(c.next, seen+1) }
