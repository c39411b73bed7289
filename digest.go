package replicator

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Digest sums up all keys, values and stamps of a replica. Two replicas whose
// digests are equal hold the same data and will resolve the next conflict alike.
type Digest struct {
	Keys  int   // live keys
	Bytes int64 // in live keys and their values
	Sum   [sha256.Size]byte
}

// String returns the sum as hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d.Sum[:]) }

// Digest reads the whole database, as it is at the call. A key that is not
// adopted yet counts with the stamp that adoption will give it.
func (r *Replicator) Digest() (Digest, error) {
	var d Digest
	snap, err := r.GetSnapshot()
	if err != nil {
		return d, err
	}
	defer snap.Release()
	index := newWalker(snap.snap, tableRange(tableIndex))
	defer index.release()
	it := snap.NewIterator(nil, nil)
	defer it.Release()
	sum := sha256.New()
	var row []byte
	for it.Next() {
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
