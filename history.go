package replicator

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
)

// This file owns database ids, positions in logs, and the epochs of a log.

// DatabaseID identifies one replica. It is 128 random bits, drawn when a database is
// first wrapped. Copies of a directory share an id until they meet.
type DatabaseID [16]byte

// String returns the id as 32 hexadecimal digits.
func (id DatabaseID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the id is unknown.
func (id DatabaseID) IsZero() bool { return id == DatabaseID{} }

// MarshalText returns the same text as String.
func (id DatabaseID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses the output of MarshalText.
func (id *DatabaseID) UnmarshalText(text []byte) error {
	var parsed DatabaseID
	if hex.DecodedLen(len(text)) == len(parsed) {
		if _, err := hex.Decode(parsed[:], text); err == nil {
			*id = parsed
			return nil
		}
	}
	return fmt.Errorf("replicator: a database id has %d hexadecimal digits, not %.40q", 2*len(id), text)
}

func newDatabaseID() (id DatabaseID) {
	rand.Read(id[:])
	return id
}

// position is a place in one replica's log: right behind the record with the given
// sequence, which the given epoch contains. The zero position is no place.
type position struct {
	epoch Origin
	seq   uint64
}

func (p position) isZero() bool   { return p == position{} }
func (p position) String() string { return fmt.Sprintf("%v/%d", p.epoch, p.seq) }

// epoch is the part of the log that one opening of the database wrote.
type epoch struct {
	first  uint64 // sequence
	origin Origin // names the epoch
	// sure is the sequence up to which nothing can be missing, if a power cut ended the
	// epoch. Otherwise it is above all sequences.
	sure uint64
}

// row returns what the epochs' table holds under the first sequence.
func (e epoch) row() []byte {
	return binary.AppendUvarint(encodeUint64(uint64(e.origin)), e.sure)
}

// maxEpochs bounds the history. A checkpoint in an older epoch leads to a full pull.
const maxEpochs = 1024

// history holds the epochs of a log in ascending order. It does not change while a
// Replicator is open, so it needs no lock.
type history []epoch

// label returns the position of a sequence, in the epoch that contains it. A
// sequence before the first known epoch is placed in that epoch.
func (h history) label(seq uint64) position {
	i := sort.Search(len(h), func(i int) bool { return h[i].first > seq })
	return position{h[max(i-1, 0)].origin, seq}
}

// contains reports whether the log up to p is a prefix of this log up to head, that
// is, whether this log has p's epoch and the epoch reaches that far. The place right
// before an epoch's first record belongs to the epoch, which determines everything
// that precedes it.
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
