package replicator

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// This file owns fingerprints: what tells in 16 bytes whether two replicas have the same
// records in a range of keys.

// fingerprint is the first 16 bytes of the SHA-256 of a tally.
type fingerprint [16]byte

// sum is a number modulo 2^256, its least significant part first. Sums of hashes can be
// added and taken apart, so the sum of a range is that of its parts.
type sum [4]uint64

func (s *sum) add(t sum) {
	var carry uint64
	for i := range s {
		s[i], carry = bits.Add64(s[i], t[i], carry)
	}
}

// hashSum returns a hash as a number.
func hashSum(hash [sha256.Size]byte) (s sum) {
	for i := range s {
		s[i] = binary.BigEndian.Uint64(hash[len(hash)-8*(i+1):])
	}
	return s
}

// tally is what is counted of some records.
type tally struct {
	n   uint64 // records
	sum sum    // of their hashes
}

func (t *tally) add(u tally) {
	t.n += u.n
	t.sum.add(u.sum)
}

// fingerprint returns that of the records which were counted.
func (t *tally) fingerprint() (f fingerprint) {
	var b []byte
	for i := len(t.sum) - 1; i >= 0; i-- {
		b = binary.BigEndian.AppendUint64(b, t.sum[i])
	}
	hash := sha256.Sum256(binary.BigEndian.AppendUint64(b, t.n))
	copy(f[:], hash[:])
	return f
}

// keyRange is the keys from lower on and below upper, or, if that is nil, all from lower
// on.
type keyRange struct {
	lower, upper []byte
}

func (r keyRange) contains(key []byte) bool {
	return bytes.Compare(key, r.lower) >= 0 && (r.upper == nil || bytes.Compare(key, r.upper) < 0)
}

func (r keyRange) isEmpty() bool {
	return r.upper != nil && bytes.Compare(r.lower, r.upper) >= 0
}

// behind returns what of the range is behind one of its keys.
func (r keyRange) behind(key []byte) keyRange {
	return keyRange{append(bytes.Clone(key), 0), r.upper}
}

// separator returns the shortest key that is above one key and not above a second one,
// which is greater.
func separator(before, key []byte) []byte {
	n := 0
	for n < len(before) && n < len(key) && before[n] == key[n] {
		n++
	}
	return bytes.Clone(key[:min(n+1, len(key))])
}

// keyRank returns at how many levels a stretch of keys begins with a key. Of all keys,
// one in 2^level has that rank or a greater one. So replicas that hold about the same
// keys cut them in the same places.
func keyRank(key []byte) int {
	hash := uint64(14695981039346656037) // FNV-1a
	for _, b := range key {
		hash = (hash ^ uint64(b)) * 1099511628211
	}
	hash ^= hash >> 32
	hash *= 0xd6e8feb86659fd93
	hash ^= hash >> 32
	return bits.TrailingZeros64(hash)
}
