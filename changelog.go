package replicator

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns the storage layout under the reserved prefix: the tables, the keys of
// their rows, and the rows of log and index. The byte after the prefix names the table.

const (
	tableAdoptions = 'a' // adoption id → mark
	tableEpochs    = 'e' // first sequence → origin, sure
	tableIndex     = 'i' // key → version, sequence
	tableLog       = 'l' // sequence → version, key
	tableMeta      = 'm' // name → setting
	tablePeers     = 'p' // database id → peerRecord
	tableReaped    = 'r' // origin → greatest clock of a tombstone that was reaped
	tableTimes     = 't' // sequence → when it was the head
	tableVector    = 'v' // origin → clock, own head at which it last rose
)

// tables are the tables that there are.
const tables = "aeilmprtv"

var reservedRange = util.BytesPrefix([]byte(reserved))

// tableKey appends to dst the key of a row.
func tableKey(dst []byte, table byte, row []byte) []byte {
	dst = append(dst, reserved...)
	dst = append(dst, table)
	return append(dst, row...)
}

// sequenceKey appends to dst the key of a row that is named by a sequence. Such keys
// sort in the order of their sequences and have equal lengths.
func sequenceKey(dst []byte, table byte, seq uint64) []byte {
	dst = append(dst, reserved...)
	dst = append(dst, table)
	return binary.BigEndian.AppendUint64(dst, seq)
}

func metaKey(name string) []byte       { return tableKey(nil, tableMeta, []byte(name)) }
func indexKey(key []byte) []byte       { return tableKey(nil, tableIndex, key) }
func logKey(seq uint64) []byte         { return sequenceKey(nil, tableLog, seq) }
func vectorKey(o Origin) []byte        { return sequenceKey(nil, tableVector, uint64(o)) }
func reapedKey(o Origin) []byte        { return sequenceKey(nil, tableReaped, uint64(o)) }
func adoptionKey(id adoptionID) []byte { return sequenceKey(nil, tableAdoptions, uint64(id)) }
func peerKey(id DatabaseID) []byte     { return tableKey(nil, tablePeers, id[:]) }

// rowName returns the part of a row's key after the table.
func rowName(key []byte) []byte     { return key[len(reserved)+1:] }
func rowSequence(key []byte) uint64 { return binary.BigEndian.Uint64(rowName(key)) }

func tableRange(table byte) *util.Range {
	return util.BytesPrefix(tableKey(nil, table, nil))
}

// maxSequence is above the sequence of every record.
const maxSequence = math.MaxUint64 - 1

// logRange returns the range of the records after the sequence after, up to and
// including upTo.
func logRange(after, upTo uint64) *util.Range {
	return &util.Range{Start: logKey(after + 1), Limit: logKey(upTo + 1)}
}

// The first byte of a record tells the operation. Its upper bits are kept for what
// later versions have to say of a record.
const (
	opPut    = 1
	opDelete = 2
	opMask   = 0x0f
)

// errCorrupt marks rows that this package cannot have written.
var errCorrupt = errors.New("replicator: corrupt record")

func appendVersion(dst []byte, v Version) []byte {
	op := byte(opPut)
	if v.Deleted {
		op = opDelete
	}
	dst = append(dst, op)
	dst = binary.AppendUvarint(dst, v.Clock)
	return binary.BigEndian.AppendUint64(dst, uint64(v.Origin))
}

func parseVersion(b []byte) (v Version, rest []byte, err error) {
	if len(b) < 1 || b[0]&opMask != opPut && b[0]&opMask != opDelete {
		return v, nil, errCorrupt
	}
	v.Deleted = b[0]&opMask == opDelete
	clock, n := binary.Uvarint(b[1:])
	if n <= 0 || len(b) < 1+n+8 {
		return v, nil, errCorrupt
	}
	v.Clock = clock
	v.Origin = Origin(binary.BigEndian.Uint64(b[1+n:]))
	return v, b[1+n+8:], nil
}

// appendLogRecord appends a log record: the version, followed by the key.
func appendLogRecord(dst []byte, v Version, key []byte) []byte {
	return append(appendVersion(dst, v), key...)
}

// parseLogRecord parses a log record. The returned key aliases b.
func parseLogRecord(b []byte) (v Version, key []byte, err error) {
	return parseVersion(b)
}

// indexRecord is the authoritative record of one key: its version, and the sequence of
// that version in the log.
type indexRecord struct {
	Version
	seq uint64
}

func appendIndexRecord(dst []byte, v Version, seq uint64) []byte {
	return binary.AppendUvarint(appendVersion(dst, v), seq)
}

func parseIndexRecord(b []byte) (indexRecord, error) {
	v, rest, err := parseVersion(b)
	if err != nil {
		return indexRecord{}, err
	}
	seq, n := binary.Uvarint(rest)
	if n <= 0 || n != len(rest) {
		return indexRecord{}, errCorrupt
	}
	return indexRecord{v, seq}, nil
}
