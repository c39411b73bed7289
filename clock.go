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
	// A hybrid clock is the time in milliseconds since 1970, followed by hybridBits bits
	// that count. hybridFirst is the least clock of a change that is made by one:
	// clockEpoch. No Lamport clock comes near it. hybridBlock is a clockBlock of 10 s.
	hybridBits  = 16
	hybridFirst = 1_767_225_600_000 << hybridBits
	hybridBlock = 10_000 << hybridBits
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

// ClockKind is the kind of clock that all replicas of a cluster use.
type ClockKind int

const (
	// Lamport clocks count changes (Lamport 1978).
	Lamport ClockKind = iota
	// Hybrid clocks follow the wall clock as far as they can without falling behind any
	// change that was seen (Kulkarni et al. 2014).
	Hybrid
)

// String returns "Lamport" or "Hybrid".
func (k ClockKind) String() string {
	if k == Hybrid {
		return "Hybrid"
	}
	return "Lamport"
}

// row returns the number that stands for the kind in databases and on the wire.
func (k ClockKind) row() byte { return byte(k) + 1 }

// clockRules say how clocks are made here, and which ones are accepted from peers.
type clockRules struct {
	kind    ClockKind
	maxSkew time.Duration    // of hybrid clocks
	wall    func() time.Time // for tests: takes the place of time.Now
}

func (r *clockRules) now() time.Time {
	if r.wall != nil {
		return r.wall()
	}
	return time.Now()
}

// ceiling returns the ceiling to persist when a clock is made or seen. That of a hybrid
// clock is measured from the wall clock where it can be: crash after crash must not take
// the clock further and further ahead.
func (r *clockRules) ceiling(greatest uint64) uint64 {
	ceiling := greatest + clockBlock
	if r.kind == Hybrid {
		ceiling = max(ceiling, hybridClock(r.now())+hybridBlock)
	}
	return ceiling
}

// least returns the least clock of a change that is made now. A wall clock that is before
// clockEpoch counts as being there.
func (r *clockRules) least() uint64 {
	if r.kind != Hybrid {
		return 0
	}
	return hybridClock(r.now())
}

// limit returns the greatest clock that a peer's change may carry now.
func (r *clockRules) limit() uint64 {
	now := r.now()
	if r.kind != Hybrid {
		return clockLimit(now)
	}
	if now.Before(clockEpoch) {
		now = clockEpoch
	}
	return min(hybridClock(now.Add(r.maxSkew))|(1<<hybridBits-1), maxClock)
}

// refuse returns the error for a clock above the limit. what says whose it is.
func (r *clockRules) refuse(what string, clock uint64) error {
	if r.kind == Hybrid {
		return fmt.Errorf("%w: %s clock %d, which is %v, and the wall clock here is at %v: it is more than %v ahead (Options.MaxSkew); set the clocks of the machines",
			ErrClock, what, clock, Stamp{Clock: clock}.Time().UTC().Format(time.RFC3339), r.now().UTC().Format(time.RFC3339), r.maxSkew)
	}
	return fmt.Errorf("%w: %s clock %d, at most %d is accepted at this time", ErrClock, what, clock, r.limit())
}

// hybridClock returns the first clock of a millisecond, or of the first one, or what no
// change may have.
func hybridClock(t time.Time) uint64 {
	return min(uint64(max(t.UnixMilli(), hybridFirst>>hybridBits)), maxClock>>hybridBits+1) << hybridBits
}

// Stamp identifies one change on every replica. It consists of a clock and an origin,
// which breaks ties between equal clocks. Stamps are totally ordered.
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

// Time returns when the change was made, by the hybrid clock of its maker: by its wall
// clock, or later if it had seen later changes. It is the zero time for a change that was
// made with a Lamport clock, and for an adopted value.
func (s Stamp) Time() time.Time {
	if s.Clock < hybridFirst {
		return time.Time{}
	}
	return time.UnixMilli(int64(s.Clock >> hybridBits))
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

// clock is the database's clock. Only the commit section may use it.
type clock struct {
	next    uint64 // clock of the next local change: one above the greatest made or seen
	ceiling uint64 // persisted with Sync; every clock made or seen is below it
}

// witness raises the clock above one from another replica.
func (c *clock) witness(seen uint64) { c.next = max(c.next, seen+1) }

// clockEpoch is the time from which the bound on peers' clocks rises.
var clockEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// clockLimit returns the greatest Lamport clock that a peer's change may carry at the given
// time. The limit does not depend on this database's clock, so all replicas judge
// alike, and no attacker can exhaust the clock in steps. A cluster that makes fewer
// than clockRate changes a second never reaches it.
func clockLimit(now time.Time) uint64 {
	seconds := max(0, now.Sub(clockEpoch)/time.Second) + clockAhead/time.Second
	return min(clockBase+clockRate*uint64(seconds), maxClock)
}
