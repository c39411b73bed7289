package replicator

import (
	"bytes"
	"fmt"
)

// This file owns what one replica asks of another, and what it is given.

// entry is one key's version from elsewhere, with its value or, for a value
// that was not sent along, its size.
type entry struct {
	key []byte
	Version
	value  []byte
	absent bool // the value was not sent along
	size   uint64
	later  bool // in a reply: it stands behind what the question says is merged
}

// pull asks for a page: of what came after the cursor's checkpoint, or of the scan
// that it is in the midst of.
type pull struct {
	cursor
	wait  bool   // answer only when there is something to say
	empty bool   // the puller has nothing of its own: adopted values are sent along, too
	stale uint64 // of the entries of the last page, how many were not needed
}

// page answers a pull. There are three kinds. One that follows the checkpoint has
// everything up to a place in the log. One of a scan has a part of what one snapshot
// holds. One that is sent ahead has changes from behind what follows, which has to
// wait, and moves no checkpoint.
type page struct {
	ahead bool
	reset bool     // the pull's positions are not of this log: nothing is merged
	scan  scan     // none: the page follows
	first bool     // of a scan: it begins with this page
	last  bool     // of a scan: it ends with this page
	to    position // up to where the page follows, or the head of the snapshot

	// vector is what the sender knows as of that place, as far as it changed since the
	// checkpoint or, if it is whole, all of it. A scan has it in its first page. A page
	// that is sent ahead has of it what changes made at the sender are known with it.
	vector []Stamp
	whole  bool

	// seen is what the sender knows as of a page that is sent ahead. heard is what the
	// makers of changes that it has may have known besides, as far as it was not told.
	seen, heard []Stamp

	incomplete bool // something was left out that the sender could not read

	reached uint64  // of a scan of the log: read down to this record
	key     []byte  // of a scan in key order: read up to and with this key
	entries []entry // in ascending order of their keys, each once
}

// follows reports whether the page follows a checkpoint, or was sent ahead of one.
func (p *page) follows() bool { return p.scan == scanNone }

const (
	// maxRanges bounds the ranges of a question.
	maxRanges = 256
	// fewRecords is how many records either side has in a range at most for which the
	// records are told. A larger range that differs is asked about in parts.
	fewRecords = 32
)

// question asks whether a peer has the same records in ranges of keys, which ascend, and
// for the records where it has not. The questions of one comparison are answered from
// one snapshot.
type question struct {
	first  bool     // a comparison begins
	values bool     // send small values along where the asking side lacks most
	merged position // with first, if it is one: the peer's log is merged up to here
	ranges []rangeQuestion
}

// rangeQuestion is a range, and what the asking side has in it.
type rangeQuestion struct {
	keyRange
	n     uint64      // records
	print fingerprint // zero if there are none
}

// finding is what a peer says of one range.
type finding byte

const (
	findingSame    finding = iota // it has the same records
	findingDiffers                // it has not: ask about the parts
	findingRecords                // all that it has is among the entries
)

// reply answers the first ranges of a question.
type reply struct {
	obstacle obstacle // if there is one, the rest is empty

	// What the peer's snapshot is of. It is told in reply to a first question.
	first         bool
	to            position // the head of the peer's log
	merged        position // the place up to which the peer had merged the log of the asking side, if it had
	vector, heard []Stamp  // as in a page
	reaped        []Stamp  // what the peer had reaped

	findings []finding
	part     bool // of the last range, only the records up to and with key are told
	key      []byte
	entries  []entry // in ascending order of their keys; values are sent along as in a page of a scan
}

// obstacle is why a question is not answered.
type obstacle byte

const (
	obstacleNone     obstacle = iota
	obstacleOver              // the snapshot was given back: begin again
	obstacleAdopting          // keys are being adopted, and are not in the index yet
)

// check returns an error if the reply does not answer the question.
func (r *reply) check(q *question) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: reply: %w", ErrProtocol, fmt.Errorf(format, args...))
	}
	n := len(r.findings)
	switch {
	case r.obstacle == obstacleOver && q.first:
		return bad("the snapshot of a comparison that begins is over")
	case r.obstacle != obstacleNone:
		return nil
	case r.first != q.first:
		return bad("it begins a comparison: %v", r.first)
	case n > len(q.ranges):
		return bad("%d ranges, of %d", n, len(q.ranges))
	case r.part && (r.findings[n-1] != findingRecords || !q.ranges[n-1].contains(r.key)):
		return bad("key %.64q is not in the last range", r.key)
	}
	rest := r.entries
	for i, f := range r.findings {
		asked := &q.ranges[i]
		if f == findingDiffers && asked.n <= fewRecords {
			return bad("no records of a range that has %d at the other side", asked.n)
		}
		for len(rest) > 0 && f == findingRecords && asked.contains(rest[0].key) {
			if r.part && i == n-1 && bytes.Compare(rest[0].key, r.key) > 0 {
				return bad("key %.64q is behind %.64q", rest[0].key, r.key)
			}
			rest = rest[1:]
		}
	}
	if len(rest) > 0 {
		return bad("key %.64q was not asked for", rest[0].key)
	}
	return nil
}
