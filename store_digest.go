package replicator

import (
	"crypto/sha256"
	"encoding/hex"
)

// This file owns what is found by reading a whole database: the digest of its data, and the
// number of its keys.

// Digest summarises the live keys of a replica with their values and stamps. Two
// replicas with equal digests hold the same data. Deleted keys are left out: of two
// replicas with equal digests, one may still lack the deletion of a key that neither
// holds.
type Digest struct {
	Keys  int               // number of live keys
	Bytes int64             // total size of live keys and their values
	Sum   [sha256.Size]byte // SHA-256 of keys, values and stamps, in key order
}

// String returns the sum as 64 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d.Sum[:]) }

// digest reads the whole database. It calls stop before each key, and returns ErrClosed
// if stop returns true.
func (d *store) digest(stop func() bool) (Digest, error) {
	var sum Digest
	snap, err := d.snapshot()
	if err != nil {
		return sum, err
	}
	defer snap.Release()
	index := newIndexReader(snap, nil, false)
	defer index.Release()
	data := newUserIterator(snap, nil, nil)
	defer data.Release()
	h := sha256.New()
	var row []byte
	err = walk(index, &data, func(key []byte, record *indexRecord, value []byte, has bool) error {
		switch {
		case stop():
			return ErrClosed
		case !has:
			return nil
		case record != nil:
			row = appendVersion(row[:0], record.Version)
		default:
			row = appendVersion(row[:0], adoptedVersion(value))
		}
		row = appendBytes(row, key)
		row = appendBytes(row, value)
		h.Write(row)
		sum.Keys++
		sum.Bytes += int64(len(key) + len(value))
		return nil
	})
	if err != nil {
		return Digest{}, err
	}
	h.Sum(sum.Sum[:0])
	return sum, nil
}

// Count is the number of keys in a database.
type Count struct {
	Keys       int // live keys
	Tombstones int // deleted keys
}

// count reads the index. It calls stop before each key, and returns its error.
func (d *store) count(stop func() error) (n Count, err error) {
	snap, err := d.snapshot()
	if err != nil {
		return n, err
	}
	defer snap.Release()
	index := newIndexReader(snap, nil, false)
	defer index.Release()
	for index.next() {
		if err := stop(); err != nil {
			return n, err
		}
		if index.record.Deleted {
			n.Tombstones++
		} else {
			n.Keys++
		}
	}
	return n, index.fault()
}
