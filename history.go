package replicator

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
)

// This file owns which replica a log is of, and which stretch of it a place belongs to.

// DatabaseID names one replica: 128 random bits, drawn when a database is first
// wrapped. A copied directory shares it until the copies meet.
type DatabaseID [16]byte

// String returns the id as 32 hexadecimal digits.
func (id DatabaseID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the id is unknown.
func (id DatabaseID) IsZero() bool { return id == DatabaseID{} }

// MarshalText returns what String returns.
func (id DatabaseID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *DatabaseID) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(id) {
		return fmt.Errorf("replicator: a database id has %d hexadecimal digits", 2*len(id))
	}
	_, err := hex.Decode(id[:], text)
	return err
}

func newDatabaseID() (id DatabaseID) {
	rand.Read(id[:])
	return id
}

// position is a place in one replica's log: behind the record with that
// sequence, in the epoch that contains it. The zero position is nowhere.
type position struct {
	epoch Origin
	seq   uint64
}

func (p position) isZero() bool   { return p == position{} }
func (p position) String() string { return fmt.Sprintf("%v/%d", p.epoch, p.seq) }

// epoch is one opening's stretch of the log.
type epoch struct {
	first  uint64
	origin Origin
	sure   uint64 // if it ended with a power cut: up to here nothing can be missing; else above everything
}

// row is what the epochs' table has under the first sequence.
func (e epoch) row() []byte {
	return binary.AppendUvarint(encodeUint64(uint64(e.origin)), e.sure)
}

// maxEpochs bounds the history; a checkpoint older than that ends in a full pull.
const maxEpochs = 1024

// history is the epochs of a log in ascending order. It is fixed while a
// Replicator is open, so it needs no lock.
type history []epoch

// label returns the position of a sequence: in the epoch that contains it, or,
// before the first epoch known, in that one's beginning.
func (h history) label(seq uint64) position {
	i := sort.Search(len(h), func(i int) bool { return h[i].first > seq })
	return position{h[max(i-1, 0)].origin, seq}
}

// contains reports whether the log up to p is a prefix of this log up to head:
// p's epoch is one of ours, and reaches that far. The place right before an
// epoch's first record belongs to it, for the epoch fixes all that precedes it.
func (h history) contains(p position, head uint64) bool {
	i := slices.IndexFunc(h, func(e epoch) bool { return e.origin == p.epoch })
	if i < 0 || p.seq+1 < h[i].first {
		return false
	}
	if i+1 < len(h) {
		return p.seq < h[i+1].first
	}
	return p.seq <= head
}

// isSure reports whether the log up to a position, which it contains, is as it was
// when the position was handed out: no power cut has taken records from its midst.
func (h history) isSure(p position) bool {
	for _, e := range h {
		if e.origin == p.epoch {
			return p.seq <= e.sure
		}
	}
	return false
}
