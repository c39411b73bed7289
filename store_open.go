package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns how a database is opened and closed: what is read of it, and what
// the next opening may rest on.

// Names of the rows of the meta table.
const (
	metaFormat    = "format"    // version of the storage format, clock kind
	metaID        = "id"        // database id
	metaCeiling   = "ceiling"   // exclusive upper bound of all clocks made or seen
	metaHead      = "head"      // head at the last close, or when a sequence got no record
	metaFloor     = "floor"     // sequence below which records may be missing
	metaGone      = "gone"      // sequence of the last record of a key that was reaped or dropped
	metaExpired   = "expired"   // the last floor below which there were records that had expired
	metaBelow     = "below"     // exclusive upper bound of the clocks of records that are missing there
	metaClean     = "clean"     // the cleanMark of the last close
	metaDurable   = "durable"   // the last durablePoint
	metaLimit     = "limit"     // Options.MaxValueSize of the last opening
	metaBoot      = "boot"      // boot id of the machine at the last opening
	metaFlush     = "flush"     // what a flush writes first
	metaAdoption  = "adoption"  // progress of the adoption
	metaHeard     = "heard"     // what the makers of changes that are here may have known besides
	metaRecovered = "recovered" // the files were recovered, and what they lack is yet to be pulled
	metaPrefix    = "prefix"    // prefix of keys that are not replicated; none: all are
	metaCopying   = "copying"   // there while a backup is being written to the database
	metaProbe     = "probe "    // prefix of what checkOrder writes, and removes
)

const storageFormat = 2

// opening is what is learned from a database before it is served.
type opening struct {
	engine
	id        DatabaseID
	fresh     bool // never wrapped before
	history   history
	floor     uint64
	expired   uint64
	gone      uint64
	head      uint64
	records   int64
	clock     clock
	own       uint64 // one above the greatest clock of a change made in the last epoch; 0: there was none
	vector    map[Origin]vectorRow
	reaped    vector
	heard     vector
	late      vector // covers the records since the durable point, of recovered files all
	adoptions adoptions
	peers     map[DatabaseID]*peerRecord
	forgotten map[DatabaseID]string
	adopt     adoption
	durable   durablePoint
	recovered bool // the files were recovered, and what they lack is yet to be pulled
	marks     []timeMark
}

// newOpening returns an opening of which nothing is known.
func newOpening(e engine) *opening {
	return &opening{
		engine: e, floor: 1, expired: 1, peers: map[DatabaseID]*peerRecord{}, forgotten: map[DatabaseID]string{},
		vector: map[Origin]vectorRow{}, reaped: vector{}, heard: vector{}, late: vector{}, adoptions: adoptions{},
	}
}

// readOpening reads the state, finds out how the last opening ended, and writes, with
// Sync, the new epoch and the removal of the clean mark.
func readOpening(e engine, settings *storeSettings) (*opening, error) {
	op := newOpening(e)
	if err := op.recognise(settings.clock.kind); err != nil {
		return nil, err
	}
	if op.fresh {
		if err := op.checkOrder(); err != nil {
			return nil, err
		}
	}
	end, err := op.load(settings.bootID)
	if err != nil {
		return nil, err
	}
	if settings.recovered && end != endNone {
		end = endDistrusted
	}
	if err := op.checkLimit(settings.maxValue); err != nil {
		return nil, err
	}
	if rules := &settings.clock; rules.kind == Hybrid && op.clock.next > rules.limit() {
		settings.logger.Warn("replicator: the wall clock was ahead when changes were made, or is behind now: until it comes up, peers refuse what is written here",
			"clock", Stamp{Clock: op.clock.next}.Time(), "wallClock", rules.now())
	}
	if err := op.checkPrefix(settings.localPrefix); err != nil {
		return nil, err
	}
	switch end {
	case endPowerCut:
		settings.logger.Warn("replicator: the machine was restarted without a clean close of this database: "+
			"what was merged since the last durable point is asked for again", "id", op.id)
	case endDistrusted:
		dropped, err := op.reconcile()
		if err != nil {
			return nil, err
		}
		settings.logger.Warn("replicator: the files of this database were recovered: "+
			"log and checkpoints are not trusted, and what is missing is pulled from peers", "id", op.id, "droppedRows", dropped)
	}
	return op, op.begin(settings, end)
}

// end is how the last opening of a database ended.
type end int

const (
	endNone       end = iota // there was none
	endClean                 // by Close
	endKill                  // with its process: all that was written is there
	endPowerCut              // with the machine: what was not synced may be missing
	endDistrusted            // the files may be from different moments (Options.Recovered)
)

// checkLimit refuses a limit under which a value that is here could not be sent.
func (op *opening) checkLimit(limit int) error {
	last, err := op.getUint64(metaLimit, uint64(limit))
	if err != nil || last <= uint64(limit) {
		return err
	}
	it := newUserIterator(op, nil, nil)
	defer it.Release()
	for it.Next() {
		if len(it.Value()) <= limit {
			continue
		}
		switch _, err := lookup(op, it.Key()); {
		case err == leveldb.ErrNotFound:
			continue // it was too large when it was to be adopted
		case err != nil:
			return fmt.Errorf("replicator: open: look up key %.64q: %w", it.Key(), err)
		}
		return fmt.Errorf("%w: open: the value of key %.64q has %d bytes, and Options.MaxValueSize was lowered from %d to %d: raise it, or shrink the value first",
			ErrTooLarge, it.Key(), len(it.Value()), last, limit)
	}
	return it.Error()
}

// checkPrefix refuses a prefix of local keys other than that of the last opening, and one
// under which keys are replicated already.
func (op *opening) checkPrefix(prefix []byte) error {
	last, err := op.get(metaPrefix)
	switch {
	case err != nil || bytes.Equal(last, prefix):
		return err
	case len(last) > 0:
		return fmt.Errorf("replicator: open: Options.LocalPrefix is %q, and this database keeps its local keys under %q for good: "+
			"set that, or begin a new database in another directory", prefix, last)
	}
	replicated := newRangeReader(op, prefixRange(prefix))
	defer replicated.Release()
	if replicated.next() {
		return fmt.Errorf("replicator: open: key %.64q is replicated already, or was until it was deleted, and is under Options.LocalPrefix %q: "+
			"set a prefix under which nothing was ever written", replicated.key, prefix)
	}
	return replicated.fault()
}

// reconcile makes index and data of recovered files agree, and returns how many
// index rows it dropped. A row that promises a value which is not there would keep
// the value out for ever, for peers have it under the same stamp. A value that is
// there beside a tombstone may be older or newer: it stays, to be adopted, and
// peers that know better have a greater stamp for the key.
//
// It also finds the greatest sequence and clock in the index: the rows that told
// may be lost, and neither may be given out again.
func (op *opening) reconcile() (dropped int, err error) {
	index := newIndexReader(op, nil, false)
	defer index.Release()
	data := newUserIterator(op, nil, nil)
	defer data.Release()
	var b leveldb.Batch
	flush := func() error {
		if b.Len() == 0 {
			return nil
		}
		err := op.write(&b, true) // each with Sync: none may be lost that begin rests on
		b.Reset()
		return err
	}
	err = walk(index, &data, func(key []byte, record *indexRecord, _ []byte, has bool) error {
		if record == nil {
			return nil
		}
		op.head = max(op.head, record.seq)
		op.clock.witness(record.Clock)
		op.late.raise(record.Stamp)
		if has != record.Deleted {
			return nil
		}
		dropped++
		b.Delete(indexKey(key))
		b.Delete(logKey(record.seq))
		if b.Len() < maxReconciled {
			return nil
		}
		return flush()
	})
	err = firstError(err, flush())
	// A clean mark that told may be of an earlier close.
	op.clock.next = max(op.clock.next, op.clock.ceiling)
	op.records = 0
	log := newLogReader(op, 0, maxSequence)
	defer log.Release()
	for log.next() {
		op.records++
	}
	if err = firstError(err, log.fault()); err != nil {
		return dropped, fmt.Errorf("replicator: open: reconcile index and data: %w", err)
	}
	return dropped, nil
}

// maxReconciled bounds the rows of one batch.
const maxReconciled = 2000

// recognise tells a fresh database from a wrapped one, and refuses one in which
// somebody else keeps keys under the reserved prefix.
func (op *opening) recognise(kind ClockKind) error {
	format, err := op.get(metaFormat)
	if err != nil {
		return err
	}
	it := op.NewIterator(reservedRange, nil)
	defer it.Release()
	for ok := it.First(); ok; {
		key := it.Key()
		if format == nil && bytes.HasPrefix(key, metaKey(metaProbe)) {
			ok = it.Next() // of a first opening that was cut off
			continue
		}
		if len(key) <= len(reserved) || !strings.Contains(tables, string(key[len(reserved)])) {
			return fmt.Errorf("%w: open: found foreign key %q", ErrReserved, key)
		}
		if format == nil {
			return errors.New("replicator: open: the database is an incomplete copy of a replicated one (it has no format row): start from an empty directory")
		}
		ok = it.Seek(tableKey(nil, key[len(reserved)]+1, nil))
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	if format == nil {
		op.fresh = true
		return nil
	}
	if len(format) != 2 || format[0] != storageFormat {
		return fmt.Errorf("replicator: open: the database has storage format %x, and this version knows %d only", format, storageFormat)
	}
	switch format[1] {
	case kind.row(), Lamport.row():
		return nil // hybrid clocks are above all Lamport clocks
	case Hybrid.row():
		return errors.New("replicator: open: the database has a hybrid clock, and can't go back to a Lamport clock: set Options.Clock to Hybrid")
	}
	return fmt.Errorf("replicator: open: the database has clock kind %d, and this version knows 1 and 2 only", format[1])
}

// checkOrder refuses a database whose comparer does not sort by bytes, which
// can only be seen by writing to it.
func (op *opening) checkOrder() error {
	var probes [][]byte
	for _, name := range []string{"A", "a", "ab", "b\x00", "b\xff"} {
		probes = append(probes, metaKey(metaProbe+name))
	}
	var put, remove leveldb.Batch
	for _, key := range probes {
		put.Put(key, nil)
		remove.Delete(key)
	}
	if err := op.write(&put, false); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	it := op.NewIterator(reservedRange, nil)
	n := 0
	for n < len(probes) && it.Next() && string(it.Key()) == string(probes[n]) {
		n++
	}
	it.Release()
	if err := errors.Join(it.Error(), op.write(&remove, false)); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	if n < len(probes) {
		return errors.New("replicator: open: the database's comparer does not sort by bytes")
	}
	return nil
}

// load reads the rows of a wrapped database.
func (op *opening) load(boot string) (end, error) {
	if op.fresh {
		op.id = newDatabaseID()
		it := newUserIterator(op, nil, nil)
		defer it.Release()
		op.adopt.done = !it.First() // an empty database, the usual case, needs no pass
		return endNone, it.Error()
	}
	for _, part := range []func() error{op.loadMeta, op.loadHistory, op.loadPeers, op.loadKnowledge} {
		if err := part(); err != nil {
			return 0, err
		}
	}
	return op.loadEnd(boot)
}

func (op *opening) loadMeta() error {
	id, err := op.get(metaID)
	if err != nil {
		return err
	}
	if copy(op.id[:], id) != len(op.id) {
		return fmt.Errorf("%w: database id %x", errCorrupt, id)
	}
	if op.floor, err = op.getUint64(metaFloor, 1); err != nil {
		return err
	}
	if op.expired, err = op.getUint64(metaExpired, 1); err != nil {
		return err
	}
	if op.gone, err = op.getUint64(metaGone, 0); err != nil {
		return err
	}
	if op.head, err = op.getUint64(metaHead, 0); err != nil {
		return err
	}
	if op.clock.ceiling, err = op.getUint64(metaCeiling, 0); err != nil {
		return err
	}
	row, err := op.get(metaAdoption)
	if err != nil {
		return err
	}
	if op.adopt, err = parseAdoption(row); err != nil {
		return err
	}
	if op.recovered, err = op.Has(metaKey(metaRecovered), nil); err != nil {
		return err
	}
	if row, err = op.get(metaDurable); err != nil {
		return err
	}
	op.durable, err = parseDurablePoint(row)
	return err
}

func (op *opening) loadKnowledge() (err error) {
	if op.vector, err = loadVector(op); err != nil {
		return err
	}
	if op.reaped, err = loadReaped(op); err != nil {
		return err
	}
	row, err := op.get(metaHeard)
	if err != nil {
		return err
	}
	if op.heard, err = parseVectorRow(row); err != nil {
		return err
	}
	if op.adoptions, err = loadAdoptions(op); err != nil {
		return err
	}
	op.marks, err = loadMarks(op)
	return err
}

func (op *opening) loadHistory() error {
	it := op.NewIterator(tableRange(tableEpochs), nil)
	defer it.Release()
	for it.Next() {
		r := decoder{rest: it.Value()}
		e := epoch{origin: Origin(r.uint64()), sure: r.uvarint()}
		if err := r.finish(); err != nil || len(rowName(it.Key())) != 8 {
			return fmt.Errorf("%w: epoch %x", errCorrupt, it.Key())
		}
		e.first = rowSequence(it.Key())
		op.history = append(op.history, e)
	}
	if err := it.Error(); err != nil || len(op.history) > 0 {
		return err
	}
	return fmt.Errorf("%w: there is no epoch", errCorrupt)
}

func (op *opening) loadPeers() error {
	it := op.NewIterator(tableRange(tablePeers), nil)
	defer it.Release()
	for it.Next() {
		var id DatabaseID
		if copy(id[:], rowName(it.Key())) != len(id) {
			return fmt.Errorf("%w: peer %x", errCorrupt, it.Key())
		}
		record, err := parsePeerRecord(it.Value())
		if err != nil {
			return fmt.Errorf("%w: peer %v", err, id)
		}
		if record.forgotten {
			op.forgotten[id] = record.name
			continue
		}
		record.opened(time.Now())
		op.peers[id] = record
	}
	return it.Error()
}

// loadEnd finds the end of the log and of the clock, and how the last opening
// ended.
func (op *opening) loadEnd(boot string) (end, error) {
	log := newLogReader(op, 0, maxSequence)
	defer log.Release()
	op.head = max(op.head, op.durable.head, op.floor-1) // the last sequences may have no records
	for _, row := range op.vector {
		op.head = max(op.head, row.risen)
	}
	if log.last() {
		op.head = max(op.head, log.seq)
	}
	if err := log.fault(); err != nil {
		return 0, err
	}
	row, err := op.get(metaClean)
	if err != nil {
		return 0, err
	}
	mark, err := parseCleanMark(row)
	if n := len(op.history); err == nil && n > 0 && mark.head == op.head && mark.epoch == op.history[n-1].origin {
		op.clock.next, op.records = mark.clock, int64(mark.records)
		if op.durable.origin == mark.epoch {
			op.own = op.durable.own
		}
		return endClean, nil
	}
	if err := op.goOn(log); err != nil {
		return 0, err
	}
	last, err := op.get(metaBoot)
	if boot != "" && boot == string(last) {
		return endKill, err
	}
	op.clock.next = op.clock.ceiling
	return endPowerCut, err
}

// goOn finds clocks where a process ended: above those of the durable point, of what
// is known, and of the records since, which are all looked at, for merged ones do
// not ascend.
func (op *opening) goOn(log *logReader) error {
	p := &op.durable
	op.clock.next = p.clock
	for _, row := range op.vector {
		op.clock.witness(row.clock)
	}
	for _, clock := range op.reaped {
		op.clock.witness(clock)
	}
	origin, own := op.history[len(op.history)-1].origin, uint64(0)
	if p.origin == origin {
		own = p.own
	}
	if row, found := op.vector[origin]; found { // a change was superseded by one from elsewhere
		own = max(own, row.clock+1)
	}
	for _, mark := range op.adoptions {
		op.clock.witness(mark.Clock)
		if mark.Origin == origin {
			own = max(own, mark.Clock+1)
		}
	}
	for ok := log.last(); ok; ok = log.prev() {
		op.records++
		if log.seq <= p.head {
			continue
		}
		op.clock.witness(log.version.Clock)
		op.late.raise(log.version.Stamp)
		if log.version.Origin == origin {
			own = max(own, log.version.Clock+1)
		}
	}
	if op.floor > p.head+1 {
		below, err := op.getUint64(metaBelow, op.clock.ceiling) // not all records since the durable point are there
		if err != nil {
			return err
		}
		op.clock.next = max(op.clock.next, below)
		op.late.raise(Stamp{max(below, 1) - 1, anyOrigin})
	}
	op.own = own
	return log.fault()
}

// begin starts this opening's epoch.
func (op *opening) begin(settings *storeSettings, end end) error {
	var b leveldb.Batch
	switch end {
	case endClean, endKill:
		op.keepOwn(&b)
	case endPowerCut:
		op.doubt(&b)
		op.goBack(&b)
	case endDistrusted:
		op.doubt(&b)
		op.startOver(&b)
	}
	if op.adopt.id == 0 && len(op.reaped) > 0 {
		// An old value may be of a key that was deleted, and of which nothing is left.
		op.adopt.done = true
	}
	if !op.adopt.done && !settings.skipAdoption {
		if op.adopt.id == 0 {
			op.adopt.id = newAdoptionID()
		}
		op.adoptions.merge(adoptions{op.adopt.id: Stamp{}})
		b.Put(adoptionKey(op.adopt.id), appendMark(nil, op.adoptions[op.adopt.id]))
	}
	last := epoch{op.head + 1, settings.drawOrigin(), maxSequence}
	if end == endPowerCut || end == endDistrusted {
		// No record gets the first sequence: so the epoch has a place of its own in
		// the log, and no position that was handed out before means a place in it.
		op.head++
	} else if n := len(op.history); n > 0 && op.history[n-1].first == last.first {
		op.history = op.history[:n-1] // an epoch without records is replaced
	}
	for len(op.history) >= maxEpochs {
		b.Delete(sequenceKey(nil, tableEpochs, op.history[0].first))
		op.history = op.history[1:]
	}
	op.history = append(op.history, last)
	if end == endDistrusted {
		op.floor = op.head + 1
	}
	op.clock.ceiling = settings.clock.ceiling(max(op.clock.next, settings.clock.least(), 1) - 1)
	switch end {
	case endNone, endDistrusted:
		op.durable = durablePoint{head: op.head, clock: op.clock.next, origin: last.origin, adopt: op.adopt}
		fallthrough
	case endPowerCut:
		op.durable.clock = op.clock.next // a kill that follows must not fall back behind the cut
		b.Put(metaKey(metaDurable), op.durable.append(nil))
	}

	op.dropMarks(&b, end)

	b.Put(sequenceKey(nil, tableEpochs, last.first), last.row())
	b.Delete(metaKey(metaClean))
	b.Put(metaKey(metaFormat), []byte{storageFormat, settings.clock.kind.row()})
	b.Put(metaKey(metaID), op.id[:])
	b.Put(metaKey(metaHead), encodeUint64(op.head))
	b.Put(metaKey(metaCeiling), encodeUint64(op.clock.ceiling))
	b.Put(metaKey(metaFloor), encodeUint64(op.floor))
	b.Put(metaKey(metaLimit), encodeUint64(uint64(settings.maxValue)))
	b.Put(metaKey(metaBoot), []byte(settings.bootID))
	if len(settings.localPrefix) > 0 {
		b.Put(metaKey(metaPrefix), settings.localPrefix)
	}
	b.Put(metaKey(metaAdoption), op.adopt.append(nil))
	if err := op.write(&b, true); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	return nil
}

// doubt notes that the makers of what is here may have known more than the vector covers
// that the opening goes back to.
func (op *opening) doubt(b *leveldb.Batch) {
	for o, row := range op.vector {
		op.heard.raise(Stamp{row.clock, o})
	}
	for o, clock := range op.late {
		if o&drawnOrigin != 0 {
			op.heard.raise(Stamp{clock, o})
			op.heard.raise(Stamp{clock, anyOrigin}) // the row of what their makers had heard may be lost
		}
	}
	if op.durable.clock > 0 { // what was heard by then may have been dropped for what V covered since
		op.heard.raise(Stamp{op.durable.clock - 1, anyOrigin})
	}
	b.Put(metaKey(metaHeard), op.heard.row())
}

// keepOwn makes a row of what the epoch before has made.
func (op *opening) keepOwn(b *leveldb.Batch) {
	if op.own == 0 {
		return
	}
	origin := op.history[len(op.history)-1].origin
	op.vector[origin] = vectorRow{op.own - 1, op.head}
	b.Put(vectorKey(origin), op.vector[origin].append(nil))
}

// dropMarks drops the times of sequences that are yet to be given out. A power cut may
// leave them; of recovered files, no time is known.
func (op *opening) dropMarks(b *leveldb.Batch, end end) {
	op.marks = slices.DeleteFunc(op.marks, func(m timeMark) bool {
		drop := m.seq > op.head || end == endDistrusted
		if drop {
			b.Delete(markKey(m.seq))
		}
		return drop
	})
}

// startOver forgets everything that rests on the log, here and at peers.
func (op *opening) startOver(b *leveldb.Batch) {
	for _, e := range op.history {
		b.Delete(sequenceKey(nil, tableEpochs, e.first))
	}
	op.history = nil
	putVector(b, op.vector, nil)
	op.vector = map[Origin]vectorRow{}
	for o := range op.reaped {
		b.Delete(reapedKey(o))
	}
	op.reaped = vector{}
	op.adopt, op.recovered = adoption{}, true
	b.Put(metaKey(metaRecovered), nil)
	for id, record := range op.peers {
		record.goBack(cursor{})
		b.Put(peerKey(id), record.row())
	}
}

func (op *opening) get(name string) ([]byte, error) {
	value, err := op.Get(metaKey(name), nil)
	if err == leveldb.ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("replicator: open: read %s: %w", name, err)
	}
	return value, nil
}

func (op *opening) getUint64(name string, absent uint64) (uint64, error) {
	row, err := op.get(name)
	if err != nil || row == nil {
		return absent, err
	}
	return parseMetaUint64(name, row)
}

// markClean makes everything durable and then, with Sync, stores what the next
// opening continues from. It returns the error of an earlier write that failed,
// too: whoever made that may not have been told. The commit section is the caller's.
func (d *store) markClean() error {
	x := &d.commits.section
	point := d.capture(x, *d.adopter.progress.Load())
	if err := d.commits.flush(); err != nil {
		return err
	}
	mark := x.cleanMark()
	var b leveldb.Batch
	b.Put(metaKey(metaHead), encodeUint64(x.head))
	b.Put(metaKey(metaDurable), point.append(nil))
	b.Put(metaKey(metaClean), mark.append(nil))
	for id, record := range d.allPeers() {
		if record.seenSince(time.Second) {
			b.Put(peerKey(id), record.row())
		}
	}
	return d.commits.write(&b, true)
}

// cleanMark says where a clean close left the database. It counts only if head and
// epoch are still the last ones.
type cleanMark struct {
	clock   uint64 // of the next change
	records uint64 // in the log
	head    uint64
	epoch   Origin
}

// cleanMark returns the mark that is true of a database which is complete up to here.
func (x *section) cleanMark() *cleanMark {
	return &cleanMark{clock: x.clock.next, records: uint64(x.records), head: x.head, epoch: x.origin}
}

func (m *cleanMark) append(dst []byte) []byte {
	for _, v := range []uint64{m.clock, m.records, m.head, uint64(m.epoch)} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	return dst
}

func parseCleanMark(row []byte) (m cleanMark, err error) {
	r := decoder{rest: row}
	m = cleanMark{r.uint64(), r.uint64(), r.uint64(), Origin(r.uint64())}
	return m, r.finish()
}
