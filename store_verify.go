package replicator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns the verification of a database: how data, index and log are found to
// disagree, and what of that can be put right.

// DisagreementKind tells in what way data, index and log of a database disagree.
type DisagreementKind string

// What Verify finds. Each key is counted once for each kind.
const (
	// MissingValue is a key that the index has in some version, and that has no value.
	MissingValue DisagreementKind = "value is missing"
	// UnknownValue is a value whose key the index does not have: it was written around
	// the Replicator, or the index has lost a row.
	UnknownValue DisagreementKind = "value without index record"
	// DeletedValue is a value of a key that is deleted by the index.
	DeletedValue DisagreementKind = "value of a deleted key"
	// ChangedValue is an adopted value that does not fit its version: it was written
	// around the Replicator. It is not replicated until it is written through it.
	ChangedValue DisagreementKind = "adopted value was changed"
	// MissingRecord is a key whose latest log record is missing, though it has not
	// expired: a peer that follows the log may not have got it.
	MissingRecord DisagreementKind = "log record is missing"
	// WrongRecord is a key whose latest log record says something else than the index.
	WrongRecord DisagreementKind = "log record differs from the index"
	// UnknownRecord is a key that has a log record, and no index record, or an older one.
	UnknownRecord DisagreementKind = "log record without index record"
	// UnreadableRow is a row of the index or of the log that can't be parsed. In the
	// sample it is named by its key, or "log record" and its sequence.
	UnreadableRow DisagreementKind = "unreadable row"
)

// disagreementKinds are all, in the order in which they are reported.
var disagreementKinds = []DisagreementKind{
	MissingValue, UnknownValue, DeletedValue, ChangedValue, MissingRecord, WrongRecord, UnknownRecord, UnreadableRow,
}

// Disagreement is what Verify has found of one kind.
type Disagreement struct {
	Kind  DisagreementKind `json:"kind"`
	Count int64            `json:"count"` // number of keys or rows
	// Repaired is how many of them were put right; 0 without VerifyOptions.Repair.
	Repaired int64 `json:"repaired"`
	// Sample are the first keys that were found, at most 16. The caller owns them.
	Sample [][]byte `json:"sample"`
}

// Report is what Verify has found in one state of the database.
type Report struct {
	OK      bool  `json:"ok"`      // nothing disagrees, or all that did was put right
	Keys    int64 `json:"keys"`    // number of live keys in the index
	Deleted int64 `json:"deleted"` // number of deleted keys in the index
	Records int64 `json:"records"` // number of log records that have not expired
	// Unadopted is the number of values that are not replicated for a reason: they are yet
	// to be adopted, adoption is skipped, or they are too large.
	Unadopted int64 `json:"unadopted"`
	// Peers is how many peers were asked, with VerifyOptions.Repair.
	Peers int `json:"peers"`
	// Disagreements are those that there are, one for each kind.
	Disagreements []Disagreement `json:"disagreements"`
}

const (
	// maxVerifySample is how many keys of one kind are shown.
	maxVerifySample = 16
	// verifyRecords and verifyBytes bound the log records that are looked up at a time.
	verifyRecords = 1 << 15
	verifyBytes   = 4 << 20
	// verifyStep is after how many rows the progress is told, and whether to go on is
	// asked.
	verifyStep = 4096
)

// verifier walks over one state of a database.
type verifier struct {
	d    *store
	ctx  context.Context
	view moment
	m    *meter
	rows int
	read int64 // bytes

	adopt adoption
	// A deletion of which the log has a record up to gone, with a clock up to reaped, may have
	// been reaped, or its key dropped. forgotten has the hashes of such keys, and lost those of
	// keys that were told of: earlier records of theirs may come much later.
	gone, reaped    uint64
	forgotten, lost map[uint64]bool
	seed            maphash.Seed
	found           map[DisagreementKind]*Disagreement
	// bad is told of each key that can perhaps be put right; nil: nobody is told.
	bad func(kind DisagreementKind, key []byte) error

	report            Report
	recorded, matched int64 // keys whose latest record should be in the log, and is
}

func newVerifier(ctx context.Context, d *store) *verifier {
	return &verifier{
		d: d, ctx: ctx, found: map[DisagreementKind]*Disagreement{},
		forgotten: map[uint64]bool{}, lost: map[uint64]bool{}, seed: maphash.MakeSeed(),
	}
}

// run walks over data, index and log, as of one commit. What is written meanwhile does not
// matter.
func (v *verifier) run(progress func(done, total int64)) error {
	if v.ctx.Err() != nil {
		return context.Cause(v.ctx)
	}
	d := v.d
	if err := d.enter(false, func(x *section) error { return x.moment(&v.view, maxSequence) }); err != nil {
		return err
	}
	defer v.view.Release()
	row, err := v.view.Get(metaKey(metaAdoption), nil)
	if err == nil {
		v.adopt, err = parseAdoption(row)
	}
	if err != nil {
		return err
	}
	if err := v.loadRemovals(); err != nil {
		return err
	}
	v.m = newMeter(d, progress, util.Range{Limit: lastKey})
	if err := v.walkIndex(); err != nil {
		return err
	}
	if err := v.walkLog(); err != nil {
		return err
	}
	if v.matched < v.recorded {
		if err := v.findRecords(); err != nil {
			return err
		}
	}
	v.m.end(v.read)
	return nil
}

// loadRemovals finds out of which records the key may have been removed.
func (v *verifier) loadRemovals() error {
	gone, err := goneOf(v.view)
	if err != nil || gone == 0 {
		return err
	}
	reaped, err := loadReaped(v.view)
	v.gone, v.reaped = gone, greatest(reaped.stamps())
	return err
}

// result returns the report as it is by now.
func (v *verifier) result() Report {
	r := v.report
	r.OK, r.Disagreements = true, []Disagreement{}
	for _, kind := range disagreementKinds {
		if d := v.found[kind]; d != nil {
			r.OK = r.OK && d.Repaired == d.Count
			r.Disagreements = append(r.Disagreements, *d)
		}
	}
	return r
}

// add counts a key, and has it put right.
func (v *verifier) add(kind DisagreementKind, key []byte) error {
	v.count(kind, key)
	if v.bad == nil {
		return nil
	}
	return v.bad(kind, key)
}

// count counts a disagreement.
func (v *verifier) count(kind DisagreementKind, key []byte) {
	d := v.found[kind]
	if d == nil {
		d = &Disagreement{Kind: kind}
		v.found[kind] = d
	}
	d.Count++
	if len(d.Sample) < maxVerifySample {
		d.Sample = append(d.Sample, bytes.Clone(key))
	}
}

// step comes after each row. read returns what has been read so far.
func (v *verifier) step(size int, read func() []util.Range) error {
	v.read += int64(size)
	if v.rows++; v.rows%verifyStep != 0 {
		return nil
	}
	v.m.at(read()...)
	if v.ctx.Err() != nil {
		return context.Cause(v.ctx)
	}
	return nil
}

// walkIndex walks over index and data side by side.
func (v *verifier) walkIndex() error {
	index := newIndexReader(v.view, nil, false)
	index.lenient = true
	defer index.Release()
	data := newUserIterator(v.view, nil, nil)
	defer data.Release()
	return walk(index, &data, func(key []byte, record *indexRecord, value []byte, has bool) error {
		var kind DisagreementKind
		switch {
		case record == nil && v.d.settings.isLocal(key):
		case record == nil && v.isUnadopted(key, value):
			v.report.Unadopted++
		case record == nil:
			kind = UnknownValue
		case index.unreadable:
			kind = UnreadableRow
		default:
			kind = v.judge(record, value, has)
		}
		if kind != "" {
			if err := v.add(kind, key); err != nil {
				return err
			}
		}
		return v.step(len(key)+len(value), func() []util.Range {
			all := []util.Range{{Limit: bytes.Clone(key)}, {Start: indexKey(nil), Limit: indexKey(key)}}
			if bytes.Compare(key, reservedRange.Start) > 0 {
				all[0] = util.Range{Limit: reservedRange.Start}
			}
			return all
		})
	})
}

// judge counts a key of the index, and returns how its value disagrees.
func (v *verifier) judge(record *indexRecord, value []byte, has bool) DisagreementKind {
	if record.Deleted {
		v.report.Deleted++
	} else {
		v.report.Keys++
	}
	if record.seq >= v.view.floor {
		v.recorded++
	}
	switch {
	case !has && !record.Deleted:
		return MissingValue
	case has && record.Deleted:
		return DeletedValue
	case has && record.adopted() && !record.fits(valueHash(value)):
		return ChangedValue
	}
	return ""
}

// isUnadopted reports whether a value without an index record is as it should be.
func (v *verifier) isUnadopted(key, value []byte) bool {
	if len(key) > MaxKeySize || len(value) > v.d.settings.maxValue {
		return true
	}
	return !v.adopt.done && (v.d.settings.skipAdoption || v.adopt.key == nil || bytes.Compare(key, v.adopt.key) > 0)
}

// logRecord is a record that is yet to be looked up.
type logRecord struct {
	logged
	version Version
}

// walkLog looks up what the index has of the keys of all log records. Of the records of
// one key, the index has the last, so it reads them in reverse.
func (v *verifier) walkLog() error {
	it := v.view.NewIterator(logRange(v.view.floor-1, maxSequence-1), nil)
	defer it.Release()
	records, size := make([]logRecord, 0, verifyRecords), 0
	for ok := it.Last(); ok; ok = it.Prev() {
		v.report.Records++
		seq := rowSequence(it.Key())
		version, key, err := parseLogRecord(it.Value())
		if err != nil {
			v.count(UnreadableRow, fmt.Appendf(nil, "log record %d", seq))
			continue
		}
		records = append(records, logRecord{logged{seq, bytes.Clone(key)}, version})
		if size += len(key); len(records) == cap(records) || size >= verifyBytes {
			if err := v.lookUp(records); err != nil {
				return err
			}
			records, size = records[:0], 0
		}
		err = v.step(len(it.Value()), func() []util.Range {
			return []util.Range{{Limit: reservedRange.Start}, {Start: reservedRange.Limit, Limit: lastKey},
				*tableRange(tableIndex), {Start: logKey(seq), Limit: logKey(maxSequence)}}
		})
		if err != nil {
			return err
		}
	}
	return firstError(it.Error(), v.lookUp(records))
}

// lookUp compares log records to the index.
func (v *verifier) lookUp(records []logRecord) error {
	n := len(records)
	if n == 0 {
		return nil
	}
	slices.SortFunc(records, func(a, b logRecord) int {
		return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(a.seq, b.seq))
	})
	index := newFinder(v.view, v.d, tableIndex, n, records[0].key, records[n-1].key)
	defer index.release()
	for i := range records {
		r := &records[i]
		row, err := index.get(r.key)
		var here indexRecord
		switch {
		case err == leveldb.ErrNotFound:
		case err != nil:
			return err
		default:
			if here, err = parseIndexRecord(row); err != nil {
				continue // it was told of as unreadable
			}
			if here.seq == r.seq && here.Version == r.version {
				v.matched++
			}
			if here.seq >= r.seq {
				continue
			}
		}
		if i+1 < n && bytes.Equal(records[i+1].key, r.key) {
			continue // once a key is enough
		}
		hash := maphash.Bytes(v.seed, r.key)
		if v.lost[hash] || err == leveldb.ErrNotFound && v.isForgotten(r, hash) {
			continue
		}
		v.lost[hash] = true
		if err := v.add(UnknownRecord, r.key); err != nil {
			return err
		}
	}
	return nil
}

// isForgotten reports whether the key of a record, which the index does not have, was removed
// on purpose. Of the records of one key, the last one comes first. hash is the key's.
func (v *verifier) isForgotten(r *logRecord, hash uint64) bool {
	if r.version.Deleted && r.seq <= v.gone && r.version.Clock <= v.reaped {
		v.forgotten[hash] = true
	}
	return v.forgotten[hash]
}

// findRecords finds the keys whose records are missing in the log, or differ.
func (v *verifier) findRecords() error {
	index := newIndexReader(v.view, nil, false)
	index.lenient = true
	defer index.Release()
	for index.next() {
		if index.unreadable || index.record.seq < v.view.floor {
			continue
		}
		row, err := v.view.Get(logKey(index.record.seq), nil)
		kind := DisagreementKind("")
		switch {
		case err == leveldb.ErrNotFound:
			kind = MissingRecord
		case err != nil:
			return err
		default:
			if version, key, err := parseLogRecord(row); err == nil && (version != index.record.Version || !bytes.Equal(key, index.key)) {
				kind = WrongRecord
			}
		}
		if kind != "" {
			v.count(kind, index.key)
		}
		if err := v.step(0, func() []util.Range { return nil }); err != nil {
			return err
		}
	}
	return index.fault()
}

// isWhole reports whether index and data agree on a key, and whether the index has it.
func (d *store) isWhole(key []byte) (whole, known bool, err error) {
	err = d.enter(false, func(*section) error { // else a commit could lie between the reads
		has, err := d.Has(key, nil)
		if err != nil {
			return err
		}
		record, err := lookup(d, key)
		switch {
		case err == leveldb.ErrNotFound:
			whole, err = !has, nil
		case errors.Is(err, errCorrupt):
			err = nil
		default:
			whole, known = has != record.Deleted, true
		}
		return err
	})
	return whole && err == nil, known && err == nil, err
}

// dropUnreadable drops the index row of a key, if that can't be parsed: no change of the
// key could be merged any more.
func (d *store) dropUnreadable(key []byte) error {
	return d.enter(true, func(x *section) error {
		if _, err := lookup(d, key); errors.Is(err, errCorrupt) {
			d.sums.forget()
			x.batch.Delete(indexKey(key))
		}
		return nil
	})
}

// takeIn makes a put of a value that has no index record, or that of a deletion if force
// is set.
func (d *store) takeIn(key []byte, force bool) error {
	return d.enter(false, func(x *section) error {
		record, err := lookup(d, key)
		if err != leveldb.ErrNotFound && (err != nil || !force || !record.Deleted) {
			return err
		}
		value, err := d.Get(key, nil)
		switch {
		case err == leveldb.ErrNotFound:
			return nil
		case err != nil:
			return err
		case len(key) > MaxKeySize || len(value) > d.settings.maxValue:
			return nil // it was replaced meanwhile
		}
		if err := x.prepare(1); err != nil {
			return err
		}
		x.add(change{key: key, Version: Version{Stamp: Stamp{x.clock.next, x.origin}}, dataless: true, size: len(value)})
		x.clock.next++
		x.own = x.clock.next
		return nil
	})
}

// examineToMend is examineBy for what a peer has of some keys. It is taken, too, where the
// version is here and the value is not, and where a deletion is known and its record is not
// here.
func (d *store) examineToMend(entries []entry, blind *blindness, j *arbiter) (*candidates, error) {
	c, err := d.examineBy(entries, blind, j)
	if err != nil {
		return nil, err
	}
	c.mend = true
	all := make([]int, len(entries))
	for i := range all {
		all[i] = i
	}
	return c, d.lookupAll(c, all)
}
