package replicator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns what is found by reading a whole database: the digest of its data, the
// number of its keys, and its size.

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
		case !has || d.settings.isLocal(key):
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

// Size is how much room a database takes on disk, in bytes. It is approximate: what was
// written last is not in leveldb's tables yet, and does not count.
type Size struct {
	Data  int64 // keys and values
	Extra int64 // log, index and what else the Replicator keeps
}

// sizes asks leveldb, which looks at its list of tables.
func (d *store) sizes() (s Size, err error) {
	if s.Extra, err = d.engine.size(reservedRange); err != nil {
		return Size{}, err
	}
	all, err := d.engine.size(&util.Range{Limit: lastKey})
	if err != nil {
		return Size{}, err
	}
	s.Data = max(0, all-s.Extra)
	return s, nil
}

// lastKey is above every key that is likely to be there.
var lastKey = bytes.Repeat([]byte{0xff}, 32)

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
