package replicator

import (
	"bytes"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// This file owns looking into a database without a Replicator: nothing is opened, and
// nothing is written.

// Inspection is what a database holds, beside the user's keys and values. It marshals to
// readable JSON.
type Inspection struct {
	// Format is the storage format. It is 0 if the database was never wrapped; then
	// Unadopted and Sizes are all that is known.
	Format int        `json:"format"`
	ID     DatabaseID `json:"id"`

	// Clean reports whether Close was called, and nothing was written since. It is false
	// while a Replicator is open.
	Clean bool `json:"clean"`

	// ClockKind is "Lamport" or "Hybrid"; see Options.Clock.
	ClockKind string `json:"clockKind"`

	// Clock is one above the greatest clock that is found. It is the clock of the next
	// change, unless a power cut has ended the last opening: then changes go on at
	// Ceiling, which is the persisted upper bound of all clocks.
	Clock   uint64 `json:"clock"`
	Ceiling uint64 `json:"ceiling"`

	Head       uint64 `json:"head"`       // sequence of the last log record
	Floor      uint64 `json:"floor"`      // sequence below which log records are not served
	LogRecords uint64 `json:"logRecords"` // number of records in the log

	Keys       uint64 `json:"keys"`       // live keys in the index
	Tombstones uint64 `json:"tombstones"` // deleted keys in the index
	Unadopted  uint64 `json:"unadopted"`  // keys without an index record; counted until adoption is done

	Sizes    InspectedSizes `json:"sizes"`
	Adoption AdoptionStatus `json:"adoption"`

	// MaxValueSize is Options.MaxValueSize of the last opening.
	MaxValueSize uint64 `json:"maxValueSize"`

	// LocalPrefix is the prefix of keys that are not replicated; nil: there is none. Such
	// keys are not counted.
	LocalPrefix []byte `json:"localPrefix"`

	// Recovered reports whether the files were recovered (Options.Recovered), and what they
	// lack is yet to be pulled.
	Recovered bool `json:"recovered"`

	Epochs []InspectedEpoch `json:"epochs"` // the openings of which the log has a part, the latest last
	Vector []Stamp          `json:"vector"` // what is known: the greatest clock of each origin, by origin
	Peers  []InspectedPeer  `json:"peers"`  // by id, with those that were forgotten
}

// InspectedSizes is how many bytes leveldb's tables take, by what they hold. It is
// approximate: what was written last is not in tables yet, and does not count.
type InspectedSizes struct {
	Data  int64 `json:"data"` // keys and values
	Log   int64 `json:"log"`
	Index int64 `json:"index"`
	Other int64 `json:"other"` // vector, peers, epochs and the like
}

// InspectedEpoch is the part of the log that one opening has written.
type InspectedEpoch struct {
	Origin Origin  `json:"origin"`
	First  uint64  `json:"first"` // sequence
	Sure   *uint64 `json:"sure"`  // sequence up to which nothing can be missing, if a power cut has ended the epoch
}

// InspectedPeer is what is remembered of a peer.
type InspectedPeer struct {
	ID        DatabaseID `json:"id"`
	Name      string     `json:"name,omitempty"` // its Options.Name
	Addrs     []string   `json:"addrs"`          // where it was dialled, the latest last
	LastSeen  time.Time  `json:"lastSeen,omitzero"`
	Forgotten bool       `json:"forgotten"` // it is refused; see Replicator.Forget

	// Merged is the sequence up to which the peer's log is merged here, of the peer's epoch
	// MergedEpoch. Durable is the sequence up to which a power cut can't undo that. They
	// are nil if there is no such place.
	Merged      *uint64 `json:"merged"`
	MergedEpoch Origin  `json:"mergedEpoch,omitzero"`
	Durable     *uint64 `json:"durable"`

	// Whole reports whether everything up to Merged is here. Scan is the progress of a scan
	// that was cut, which the next session goes on with.
	Whole bool        `json:"whole"`
	Scan  *ScanStatus `json:"scan"`
}

// Inspect reads what a database holds beside the user's keys and values. It opens no epoch
// and writes nothing, so a handle with opt.Options.ReadOnly will do. The handle may have a
// Replicator.
//
// It reads the whole log and index, and all keys if adoption is not done. Inspect fails
// with ErrReserved if other software keeps keys under the reserved prefix, and if the
// storage format is unknown.
func Inspect(db *leveldb.DB) (Inspection, error) {
	snap, op, err := inspect(db)
	if err != nil {
		return Inspection{}, failed("inspect", err)
	}
	defer snap.Release()
	n, err := op.inspection()
	if err != nil {
		return Inspection{}, failed("inspect", err)
	}
	return n, nil
}

// inspect returns a snapshot, and what an opening learns from it. The caller releases the
// snapshot.
func inspect(db *leveldb.DB) (snapshot, *opening, error) {
	if db == nil {
		return nil, nil, errors.New("the database is nil")
	}
	e := &levelEngine{DB: db}
	snap, err := e.snapshot()
	if err != nil {
		return nil, nil, err
	}
	op := newOpening(&frozen{e, snap})
	if err := op.recognise(Hybrid); err != nil {
		snap.Release()
		return nil, nil, err
	}
	return snap, op, nil
}

// frozen is an engine of which only a snapshot is read.
type frozen struct {
	*levelEngine
	reader snapshot
}

func (f *frozen) Get(key []byte, ro *opt.ReadOptions) ([]byte, error) { return f.reader.Get(key, ro) }
func (f *frozen) Has(key []byte, ro *opt.ReadOptions) (bool, error)   { return f.reader.Has(key, ro) }
func (f *frozen) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	return f.reader.NewIterator(slice, ro)
}
func (f *frozen) write(*leveldb.Batch, bool) error { return leveldb.ErrReadOnly }

// inspection reads all that an Inspection holds.
func (op *opening) inspection() (n Inspection, err error) {
	n = Inspection{Epochs: []InspectedEpoch{}, Vector: []Stamp{}, Peers: []InspectedPeer{}}
	if !op.fresh {
		if err := op.describe(&n); err != nil {
			return n, err
		}
	}
	if n.Sizes, err = inspectedSizes(op.engine); err != nil {
		return n, err
	}
	index := newIndexReader(op, nil, false)
	defer index.Release()
	count := func(record *indexRecord) {
		switch {
		case record == nil:
			n.Unadopted++
		case record.Deleted:
			n.Tombstones++
		default:
			n.Keys++
		}
	}
	if n.Adoption.Done { // the values need not be read
		for index.next() {
			count(&index.record)
		}
		return n, index.fault()
	}
	data := newUserIterator(op, nil, nil)
	defer data.Release()
	return n, walk(index, &data, func(key []byte, record *indexRecord, _ []byte, _ bool) error {
		if record != nil || len(n.LocalPrefix) == 0 || !bytes.HasPrefix(key, n.LocalPrefix) {
			count(record)
		}
		return nil
	})
}

// describe adds what the rows of a wrapped database say, without the index.
func (op *opening) describe(n *Inspection) error {
	boot, err := op.get(metaBoot)
	if err != nil {
		return err
	}
	format, err := op.get(metaFormat) // two bytes; see recognise
	if err != nil {
		return err
	}
	if n.ClockKind = Lamport.String(); format[1] == Hybrid.row() {
		n.ClockKind = Hybrid.String()
	}
	end, err := op.load(string(boot)) // as after a kill: that tells the clock which is found
	if err != nil {
		return err
	}
	n.Format, n.ID, n.Clean = storageFormat, op.id, end == endClean
	n.Clock, n.Ceiling, n.Head, n.Floor = op.clock.next, op.clock.ceiling, op.head, op.floor
	if n.MaxValueSize, err = op.getUint64(metaLimit, 0); err != nil {
		return err
	}
	prefix, err := op.get(metaPrefix)
	if err != nil {
		return err
	}
	if len(prefix) > 0 {
		n.LocalPrefix = prefix
	}
	n.Recovered = op.recovered
	n.Adoption = AdoptionStatus{Done: op.adopt.done, Adopted: op.adopt.adopted, Skipped: op.adopt.skipped}
	for _, e := range op.history {
		shown := InspectedEpoch{Origin: e.origin, First: e.first}
		if e.sure != maxSequence {
			shown.Sure = &e.sure
		}
		n.Epochs = append(n.Epochs, shown)
	}
	n.Vector = vectorOf(op.vector, op.history[len(op.history)-1].origin, op.own).stamps()
	for id, record := range op.peers {
		n.Peers = append(n.Peers, record.inspected(id, op.durable.peers[id]))
	}
	for id, name := range op.forgotten {
		n.Peers = append(n.Peers, InspectedPeer{ID: id, Name: name, Addrs: []string{}, Forgotten: true})
	}
	slices.SortFunc(n.Peers, func(a, b InspectedPeer) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	log := newLogReader(op, 0, maxSequence)
	defer log.Release()
	for log.next() {
		n.LogRecords++
	}
	return log.fault()
}

// inspected returns what an Inspection shows of a record. durable is the cursor of the last
// durable point.
func (p *peerRecord) inspected(id DatabaseID, durable cursor) InspectedPeer {
	p.mu.Lock()
	defer p.mu.Unlock()
	shown := InspectedPeer{ID: id, Name: p.name, Addrs: append([]string{}, p.addrs...), Whole: p.cursor.caughtUp(), Scan: scanStatus(&p.cursor)}
	if !p.savedAt.IsZero() {
		shown.LastSeen = p.savedAt.UTC()
	}
	if place := p.cursor.checkpoint; !place.isZero() {
		shown.Merged, shown.MergedEpoch = &place.seq, place.epoch
	}
	if place := durable.checkpoint; !place.isZero() {
		shown.Durable = &place.seq
	}
	return shown
}

// inspectedSizes asks leveldb, which looks at its list of tables.
func inspectedSizes(e engine) (s InspectedSizes, err error) {
	ranges := map[*int64]*util.Range{
		&s.Data: {Limit: lastKey}, &s.Other: reservedRange, &s.Log: tableRange(tableLog), &s.Index: tableRange(tableIndex),
	}
	for into, slice := range ranges {
		if *into, err = e.size(slice); err != nil {
			return s, err
		}
	}
	s.Data = max(0, s.Data-s.Other)
	s.Other = max(0, s.Other-s.Log-s.Index)
	return s, nil
}

// LogRecord is one record of the log.
type LogRecord struct {
	Sequence uint64 `json:"sequence"`
	Key      []byte `json:"key"`
	Version
	// Latest reports whether this is the latest change of its key. A later one has made a
	// record that is not.
	Latest bool `json:"latest"`
}

// InspectLog returns the records of a database's log, the latest first. As Inspect, it
// opens no epoch and writes nothing. The sequence ends with an error if there is one. The
// caller owns the keys.
func InspectLog(db *leveldb.DB) iter.Seq2[LogRecord, error] {
	return inspectEach(db, (*opening).eachRecord)
}

// inspectEach returns what a walk over an opening visits, until visit returns false.
func inspectEach[T any](db *leveldb.DB, walk func(op *opening, visit func(T) bool) error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		snap, op, err := inspect(db)
		if err == nil {
			defer snap.Release()
			err = walk(op, func(t T) bool { return yield(t, nil) })
		}
		if err != nil {
			var none T
			yield(none, failed("inspect", err))
		}
	}
}

// eachRecord reads the log in reverse, until visit returns false.
func (op *opening) eachRecord(visit func(LogRecord) bool) error {
	log := newLogReader(op, 0, maxSequence)
	defer log.Release()
	for ok := log.last(); ok; ok = log.prev() {
		record, err := lookup(op, log.key)
		if err != nil && err != leveldb.ErrNotFound {
			return err
		}
		latest := err == nil && record.seq == log.seq
		if !visit(LogRecord{log.seq, bytes.Clone(log.key), log.version, latest}) {
			return nil
		}
	}
	return log.fault()
}

// KeyState is what a database has of one key.
type KeyState struct {
	Key     []byte
	Version Version // the zero Version if the key has no index record
	Indexed bool    // the key has an index record
	Value   []byte  // nil if there is none
	Present bool    // there is a value
}

// InspectKeys returns all keys of a database in ascending order, those that were deleted and
// those that are not adopted included. A key is sound if it is Indexed, and Present unless
// it is Deleted. As Inspect, InspectKeys opens no epoch and writes nothing. The sequence
// ends with an error if there is one. Keys and values are valid until the next step.
func InspectKeys(db *leveldb.DB) iter.Seq2[KeyState, error] {
	return inspectEach(db, (*opening).eachKey)
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

// eachKey reads index and data, until visit returns false.
func (op *opening) eachKey(visit func(KeyState) bool) error {
	index := newIndexReader(op, nil, false)
	defer index.Release()
	data := newUserIterator(op, nil, nil)
	defer data.Release()
	err := walk(index, &data, func(key []byte, record *indexRecord, value []byte, has bool) error {
		k := KeyState{Key: key, Value: value, Present: has}
		if record != nil {
			k.Version, k.Indexed = record.Version, true
		}
		if !visit(k) {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		return nil
	}
	return err
}
