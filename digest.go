package replicator

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Digest sums up the live keys of a replica, with their values and stamps. Two
// replicas whose digests are equal hold the same data. Deleted keys are left out:
// of two replicas with equal digests, one may still lack a deletion of a key
// that neither holds.
type Digest struct {
	Keys  int   // live keys
	Bytes int64 // in live keys and their values
	Sum   [sha256.Size]byte
}

// String returns the sum as hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d.Sum[:]) }

// Digest reads the whole database, as it is at the call. A key that is not
// adopted yet counts with the stamp that adoption will give it. Close does not wait
// for it: Digest then returns ErrClosed.
func (r *Replicator) Digest() (Digest, error) {
	var d Digest
	if !r.gate.enter() {
		return d, ErrClosed
	}
	defer r.gate.leave()
	snap, err := r.db.GetSnapshot()
	if err != nil {
		return d, err
	}
	defer snap.Release()
	index := newWalker(snap, tableRange(tableIndex))
	defer index.release()
	it := newUserIterator(snap, nil, nil)
	defer it.Release()
	sum := sha256.New()
	var row []byte
	for it.Next() {
		if r.gate.isClosed() {
			return Digest{}, ErrClosed
		}
		key, value := it.Key(), it.Value()
		var version Version
		if index.find(tableKey(row[:0], tableIndex, key)) {
			record, err := parseIndexRecord(index.Value())
			if err != nil {
				return Digest{}, fmt.Errorf("%w: index of key %.64q", err, key)
			}
			version = record.Version
		} else {
			version = adoptedVersion(value)
		}
		row = appendVersion(row[:0], version)
		row = appendBytes(row, key)
		row = appendBytes(row, value)
		sum.Write(row)
		d.Keys++
		d.Bytes += int64(len(key) + len(value))
	}
	sum.Sum(d.Sum[:0])
	return d, firstError(it.Error(), index.Error())
}
