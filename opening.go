package replicator

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Names of the rows of the meta table.
const (
	metaFormat   = "format"   // version of the storage format
	metaID       = "id"       // database id
	metaCeiling  = "ceiling"  // exclusive upper bound of all clocks made or seen
	metaHead     = "head"     // head at the last close, in case the log is empty
	metaFloor    = "floor"    // sequence below which records may be missing
	metaClean    = "clean"    // exact clock and number of log records at a clean close
	metaLimit    = "limit"    // Options.MaxValueSize of the last opening
	metaBoot     = "boot"     // boot id of the machine at the last opening
	metaAdoption = "adoption" // progress of the adoption
	metaProbe    = "probe "   // prefix of what checkOrder writes, and removes
)

const storageFormat = 1

// DatabaseID names one replica: 128 random bits, drawn when a database is first
// wrapped. A copied directory shares it until the copies meet.
type DatabaseID [16]byte

// String returns the id as 32 hexadecimal digits.
func (id DatabaseID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the id is unknown.
func (id DatabaseID) IsZero() bool { return id == DatabaseID{} }

// MarshalText returns what String returns.
func (id DatabaseID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *DatabaseID) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(id) {
		return fmt.Errorf("replicator: a database id has %d hexadecimal digits", 2*len(id))
	}
	_, err := hex.Decode(id[:], text)
	return err
}

func newDatabaseID() (id DatabaseID) {
	rand.Read(id[:])
	return id
}

// opening is what is learned from a database before it is served.
type opening struct {
	db      *leveldb.DB
	id      DatabaseID
	fresh   bool // never wrapped before
	history history
	floor   uint64
	head    uint64
	records int64
	clock   clock
	peers   map[DatabaseID]*peerRecord
	adopt   adoption
}

// open reads the state, decides whether this opening continues the last one,
// and writes, with Sync, the new epoch and the removal of the clean mark.
func open(db *leveldb.DB, o *Options) (*opening, error) {
	op := &opening{db: db, floor: 1, peers: map[DatabaseID]*peerRecord{}}
	if err := op.recognise(); err != nil {
		return nil, err
	}
	clean, err := op.load()
	if err != nil {
		return nil, err
	}
	boot := o.bootID()
	continuous := op.fresh
	if !op.fresh && !o.Recovered {
		lastBoot, err := op.get(metaBoot)
		if err != nil {
			return nil, err
		}
		continuous = clean || boot != "" && boot == string(lastBoot)
	}
	if !continuous {
		o.Logger.Warn("replicator: the last session with this database ended without a clean close, or its files were restored: "+
			"log and checkpoints are not trusted, peers will be pulled in full", "id", op.id)
	}
	if err := op.checkLimit(o.MaxValueSize); err != nil {
		return nil, err
	}
	if !continuous {
		if err := op.recount(); err != nil {
			return nil, err
		}
	}
	return op, op.begin(boot, o.MaxValueSize, continuous)
}

// checkLimit refuses a limit under which a value that is here could not be sent.
func (op *opening) checkLimit(limit int) error {
	last, err := op.getUint64(metaLimit, uint64(limit))
	if err != nil || last <= uint64(limit) {
		return err
	}
	it := newUserIterator(op.db, nil, nil)
	defer it.Release()
	for it.Next() {
		if len(it.Value()) <= limit {
			continue
		}
		switch _, err := lookup(op.db, it.Key()); {
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

// recount finds the greatest sequence and clock in the index: files that were
// restored may have lost the rows that told, but not all that was written by
// them, and neither may be given out again.
func (op *opening) recount() error {
	it := op.db.NewIterator(tableRange(tableIndex), nil)
	defer it.Release()
	for it.Next() {
		record, err := parseIndexRecord(it.Value())
		if err != nil {
			return fmt.Errorf("%w: index of key %.64q", err, rowName(it.Key()))
		}
		op.head = max(op.head, record.seq)
		op.clock.witness(record.Clock)
	}
	op.clock.next = max(op.clock.next, op.clock.ceiling) // a clean mark may be of an earlier close
	return it.Error()
}

// recognise tells a fresh database from a wrapped one, and refuses one in which
// somebody else keeps keys under the reserved prefix.
func (op *opening) recognise() error {
	format, err := op.get(metaFormat)
	if err != nil {
		return err
	}
	it := op.db.NewIterator(reservedRange, nil)
	defer it.Release()
	for ok := it.First(); ok; {
		key := it.Key()
		if format == nil && bytes.HasPrefix(key, metaKey(metaProbe)) {
			ok = it.Next() // of a first opening that was cut off
			continue
		}
		if format == nil || len(key) <= len(reserved) || !strings.Contains(tables, string(key[len(reserved)])) {
			return fmt.Errorf("%w: open: found foreign key %q", ErrReserved, key)
		}
		ok = it.Seek(tableKey(nil, key[len(reserved)]+1, nil))
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	if format == nil {
		op.fresh = true
		return op.checkOrder()
	}
	if len(format) != 1 || format[0] != storageFormat {
		return fmt.Errorf("replicator: open: the database has storage format %x, and this version knows %d only", format, storageFormat)
	}
	return nil
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
	if err := op.db.Write(&put, nil); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	it := op.db.NewIterator(reservedRange, nil)
	n := 0
	for n < len(probes) && it.Next() && string(it.Key()) == string(probes[n]) {
		n++
	}
	it.Release()
	if err := errors.Join(it.Error(), op.db.Write(&remove, nil)); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	if n < len(probes) {
		return errors.New("replicator: open: the database's comparer does not sort by bytes")
	}
	return nil
}

// load reads the rows of a wrapped database.
func (op *opening) load() (clean bool, err error) {
	if op.fresh {
		op.id = newDatabaseID()
		it := newUserIterator(op.db, nil, nil)
		defer it.Release()
		op.adopt.done = !it.First() // an empty database, the usual case, needs no pass
		return true, it.Error()
	}
	id, err := op.get(metaID)
	if err != nil {
		return false, err
	}
	if copy(op.id[:], id) != len(op.id) {
		return false, fmt.Errorf("%w: database id %x", errCorrupt, id)
	}
	if op.floor, err = op.getUint64(metaFloor, 1); err != nil {
		return false, err
	}
	if op.head, err = op.getUint64(metaHead, 0); err != nil {
		return false, err
	}
	if op.clock.ceiling, err = op.getUint64(metaCeiling, 0); err != nil {
		return false, err
	}
	row, err := op.get(metaAdoption)
	if err != nil {
		return false, err
	}
	if op.adopt, err = parseAdoption(row); err != nil {
		return false, err
	}
	if err := op.loadHistory(); err != nil {
		return false, err
	}
	if err := op.loadPeers(); err != nil {
		return false, err
	}
	return op.loadEnd()
}

func (op *opening) loadHistory() error {
	it := op.db.NewIterator(tableRange(tableEpochs), nil)
	defer it.Release()
	for it.Next() {
		if len(rowName(it.Key())) != 8 || len(it.Value()) != 8 {
			return fmt.Errorf("%w: epoch %x", errCorrupt, it.Key())
		}
		op.history = append(op.history, epoch{rowSequence(it.Key()), Origin(binary.BigEndian.Uint64(it.Value()))})
	}
	return it.Error()
}

func (op *opening) loadPeers() error {
	it := op.db.NewIterator(tableRange(tablePeers), nil)
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
		op.peers[id] = record
	}
	return it.Error()
}

// loadEnd finds the end of the log and of the clock.
func (op *opening) loadEnd() (clean bool, err error) {
	it := op.db.NewIterator(tableRange(tableLog), nil)
	defer it.Release()
	op.head = max(op.head, op.floor-1) // the log may have been swept
	if it.Last() {
		op.head = max(op.head, rowSequence(it.Key()))
	}
	mark, err := op.get(metaClean)
	if err != nil {
		return false, err
	}
	if clean = len(mark) == 16; clean {
		op.clock.next = binary.BigEndian.Uint64(mark)
		op.records = int64(binary.BigEndian.Uint64(mark[8:]))
	} else {
		op.clock.next = op.clock.ceiling
		for ok := it.First(); ok; ok = it.Next() {
			op.records++
		}
	}
	return clean, it.Error()
}

// begin starts this opening's epoch.
func (op *opening) begin(boot string, limit int, continuous bool) error {
	var b leveldb.Batch
	first := op.head + 1
	if !continuous {
		for _, e := range op.history {
			b.Delete(sequenceKey(nil, tableEpochs, e.first))
		}
		op.history = nil
		op.head = first // no record gets it: the epoch has a place of its own, and stays
		op.floor = op.head + 1
		op.adopt = adoption{}
		for id, record := range op.peers {
			record.move(cursor{})
			record.acknowledged = position{}
			b.Put(tableKey(nil, tablePeers, id[:]), record.append(nil))
		}
	}
	if n := len(op.history); n > 0 && op.history[n-1].first == first {
		op.history = op.history[:n-1] // an epoch without records is replaced
	}
	for len(op.history) >= maxEpochs {
		b.Delete(sequenceKey(nil, tableEpochs, op.history[0].first))
		op.history = op.history[1:]
	}
	last := epoch{first, newOrigin()}
	op.history = append(op.history, last)
	op.clock.ceiling = op.clock.next + clockBlock

	b.Put(sequenceKey(nil, tableEpochs, last.first), encodeUint64(uint64(last.origin)))
	b.Delete(metaKey(metaClean))
	b.Put(metaKey(metaFormat), []byte{storageFormat})
	b.Put(metaKey(metaID), op.id[:])
	b.Put(metaKey(metaCeiling), encodeUint64(op.clock.ceiling))
	b.Put(metaKey(metaFloor), encodeUint64(op.floor))
	b.Put(metaKey(metaLimit), encodeUint64(uint64(limit)))
	b.Put(metaKey(metaBoot), []byte(boot))
	b.Put(metaKey(metaAdoption), op.adopt.append(nil))
	if err := op.db.Write(&b, withSync); err != nil {
		return fmt.Errorf("replicator: open: %w", err)
	}
	return nil
}

func (op *opening) get(name string) ([]byte, error) {
	value, err := op.db.Get(metaKey(name), nil)
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
	if len(row) != 8 {
		return 0, fmt.Errorf("%w: %s", errCorrupt, name)
	}
	return binary.BigEndian.Uint64(row), nil
}

// markClean ends a session with the database: it makes everything durable and
// then, with Sync, stores what the next opening continues from. Only the tables
// that a flush writes are known to be durable, so the memtable is flushed first.
func markClean(c *committer) error {
	if err := c.failure(); err != nil {
		return nil // not clean; the caller of the failed write was told
	}
	var b leveldb.Batch
	b.Put(metaKey(metaHead), encodeUint64(c.head))
	if err := c.write(&b, false); err != nil {
		return err
	}
	head := metaKey(metaHead)
	if err := c.db.CompactRange(util.Range{Start: head, Limit: append(head, 0)}); err != nil {
		return fmt.Errorf("replicator: close: make the database durable: %w", err)
	}
	b.Reset()
	mark := encodeUint64(c.clock.next)
	b.Put(metaKey(metaClean), binary.BigEndian.AppendUint64(mark, uint64(c.records)))
	return c.write(&b, true)
}

// machineBootID names the time since the machine was booted, in which writes
// that were not synced are still there; "" where there is no telling.
func machineBootID() string {
	if runtime.GOOS != "linux" {
		return ""
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
