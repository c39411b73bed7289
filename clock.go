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
	// A peer's change may carry a clock of at most clockBase, plus clockRate for
	// each second since clockEpoch. The seconds are those of the local wall clock,
	// plus clockAhead.
	clockBase  = 1 << 48
	clockRate  = 1 << 20
	clockAhead = time.Hour
	// clockBlock bounds the distance of the persisted ceiling from the greatest
	// clock that was made or seen. A power cut adds at most that to the clock.
	clockBlock = 1 << 16
	// clockLamport is the kind of clock that a database and its peers use.
	clockLamport = 1
	// drawnOrigin is set in every origin drawn at an opening and clear in every
	// origin that adoption derives from a value, so a write beats an adoption.
	drawnOrigin = 1 << 63
)

// Origin names one opening of a database: a random number whose top bit is
// set. In the stamp of an adopted key, it is 63 bits of a hash of the value.
type Origin uint64

// String returns the origin as 16 hexadecimal digits.
func (o Origin) String() string { return fmt.Sprintf("%016x", uint64(o)) }

// MarshalText returns the same text as String.
func (o Origin) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText parses the output of MarshalText.
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
	return Origin(binary.BigEndian.Uint64(b[:]) | drawnOrigin | 1) // not anyOrigin
}

// Stamp identifies one change on every replica. It consists of a Lamport clock
// (Lamport 1978) and an origin, which breaks ties between equal clocks. Stamps are
// totally ordered.
type Stamp struct {
	Clock  uint64 `json:"clock"`
	Origin Origin `json:"origin"`
}

// Compare returns -1 if s is below t, 0 if they are equal, and +1 if s is above t.
// Every replica agrees on this order.
func (s Stamp) Compare(t Stamp) int {
	if c := cmp.Compare(s.Clock, t.Clock); c != 0 {
		return c
	}
	return cmp.Compare(s.Origin, t.Origin)
}

// String returns the stamp as clock@origin.
func (s Stamp) String() string { return fmt.Sprintf("%d@%v", s.Clock, s.Origin) }

// Version describes the latest change of a key: its stamp, and whether it deleted
// the key.
type Version struct {
	Stamp
	Deleted bool `json:"deleted"`
}

// String returns the stamp as clock@origin, prefixed with "-" if the change deleted
// the key.
func (v Version) String() string {
	if v.Deleted {
		return "-" + v.Stamp.String()
	}
	return v.Stamp.String()
}

// Compare returns -1 if v is below w, 0 if they are equal, and +1 if v is above w.
// Versions are ordered by stamp; for equal stamps, a delete is above a put. Every
// replica agrees on this order. Equal versions denote the same change, unless two
// copies of one running process made them (a resumed machine image). In that case
// the hashes of the values decide.
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

// valueHash returns the hash that breaks the last ties of the order, and that
// adoption derives origins from. It is the same on every machine.
func valueHash(value []byte) uint64 {
	sum := sha256.Sum256(value)
	return binary.BigEndian.Uint64(sum[:8])
}

// adoptedVersion returns the version of a key that the database held before it was
// first wrapped. The version is below every change made through a Replicator.
func adoptedVersion(value []byte) Version {
	return Version{Stamp: Stamp{Origin: Origin(valueHash(value) &^ drawnOrigin)}}
}

func (v Version) adopted() bool { return v.Origin&drawnOrigin == 0 }

// fits reports whether v is the version that adoption gives to a value with the
// given hash.
func (v Version) fits(hash uint64) bool {
	return !v.Deleted && v.Clock == 0 && uint64(v.Origin) == hash&^drawnOrigin
}

// clock is the database's Lamport clock. Only the commit section may use it.
type clock struct {
	next    uint64 // clock of the next local change: one above the greatest made or seen
	ceiling uint64 // persisted with Sync; every clock made or seen is below it
}

// witness raises the clock above one from another replica.
func (c *clock) witness(seen uint64) { c.next = max(c.next, seen+1) }

// clockEpoch is the time from which the bound on peers' clocks rises.
var clockEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// clockLimit returns the greatest clock that a peer's change may carry at the given
// time. The limit does not depend on this database's clock, so all replicas judge
// alike, and no attacker can exhaust the clock in steps. A cluster that makes fewer
// than clockRate changes a second never reaches it.
func clockLimit(now time.Time) uint64 {
	seconds := max(0, now.Sub(clockEpoch)/time.Second) + clockAhead/time.Second
	return min(clockBase+clockRate*uint64(seconds), maxClock)
}
