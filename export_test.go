package replicator

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// Update is the flag to rewrite golden files.
var Update = update

// WithBootID returns the options with a boot id of the test's choice.
func WithBootID(o Options, id string) *Options {
	o.bootID = func() string { return id }
	return &o
}

// WithDurable returns the options with the time after which everything is made durable.
func WithDurable(o Options, every time.Duration) *Options {
	o.durableEvery = every
	return &o
}

// WithWall returns the options with a wall clock.
func WithWall(o Options, wall func() time.Time) *Options {
	o.wall = wall
	return &o
}

// SecureByKeys returns the TLS configuration of a member.
func SecureByKeys(keys [][]byte) (*tls.Config, error) { return secureByKeys(keys) }

// WithPages returns the options with a number of entries that a page has at most,
// and with a decision whether a scan of the log, of more pages than one, goes on in
// key order.
func WithPages(o Options, entries int, rescan func() bool) *Options {
	o.pageEntries, o.rescan = entries, rescan
	return &o
}

// Versions returns the version of every key ever written, tombstones included.
func Versions(db *leveldb.DB) (map[string]Version, error) {
	versions := map[string]Version{}
	it := db.NewIterator(tableRange(tableIndex), nil)
	defer it.Release()
	for it.Next() {
		record, err := parseIndexRecord(it.Value())
		if err != nil {
			return nil, err
		}
		versions[string(rowName(it.Key()))] = record.Version
	}
	return versions, it.Error()
}

// CheckConsistent returns what is wrong with how data, index and log fit
// together. It looks between two commits, or after the last one.
func CheckConsistent(r *Replicator) error {
	err := r.store.enter(false, func(*section) error { return checkConsistent(r) })
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrFailed) {
		return checkConsistent(r)
	}
	return err
}

func checkConsistent(r *Replicator) error {
	snap, err := r.db.GetSnapshot()
	if err != nil {
		return err
	}
	defer snap.Release()
	live := 0
	index := snap.NewIterator(tableRange(tableIndex), nil)
	defer index.Release()
	for index.Next() {
		key := rowName(index.Key())
		record, err := parseIndexRecord(index.Value())
		if err != nil {
			return err
		}
		has, err := snap.Has(key, nil)
		if err != nil {
			return err
		}
		if has == record.Deleted {
			return fmt.Errorf("key %q: deleted is %v in the index, there is a value: %v", key, record.Deleted, has)
		}
		if has {
			live++
		}
		if record.seq < r.store.commits.visible.floor.Load() {
			continue
		}
		row, err := snap.Get(logKey(record.seq), nil)
		if err != nil {
			return fmt.Errorf("key %q: log record %d: %w", key, record.seq, err)
		}
		version, logged, err := parseLogRecord(row)
		if err != nil {
			return err
		}
		if version != record.Version || !bytes.Equal(logged, key) {
			return fmt.Errorf("key %q: index says %v at %d, the log says %q, %v", key, record.Version, record.seq, logged, version)
		}
	}
	it := newUserIterator(snap, nil, nil)
	defer it.Release()
	for it.Next() {
		if !r.store.settings.isLocal(it.Key()) {
			live--
		}
	}
	if live != 0 {
		return fmt.Errorf("%d more live keys in the index than in the data", live)
	}
	records := uint64(0)
	log := snap.NewIterator(tableRange(tableLog), nil)
	defer log.Release()
	for log.Next() {
		records++
	}
	if status := r.Status(); status.LogRecords != records || status.Head != r.store.commits.section.head {
		return fmt.Errorf("status counts %d log records up to %d, there are %d up to %d",
			status.LogRecords, status.Head, records, r.store.commits.section.head)
	}
	return nil
}

// Commits returns a channel that holds a value if there were commits since the last
// receive, until it is stopped.
func Commits(r *Replicator) (wake <-chan struct{}, stop func()) {
	sub := r.store.subscribe()
	return sub.wake, func() { r.store.unsubscribe(sub) }
}

// Row is what the index or the log says of one change.
type Row struct {
	Version
	Key string
	Seq uint64
}

// IndexRows returns the index, by key.
func IndexRows(db reader) (map[string]Row, error) {
	rows := map[string]Row{}
	it := db.NewIterator(tableRange(tableIndex), nil)
	defer it.Release()
	for it.Next() {
		record, err := parseIndexRecord(it.Value())
		if err != nil {
			return nil, err
		}
		key := string(rowName(it.Key()))
		rows[key] = Row{record.Version, key, record.seq}
	}
	return rows, it.Error()
}

// LogRows returns the log, in ascending order of the sequences.
func LogRows(db reader) (rows []Row, err error) {
	it := db.NewIterator(tableRange(tableLog), nil)
	defer it.Release()
	for it.Next() {
		version, key, err := parseLogRecord(it.Value())
		if err != nil {
			return nil, err
		}
		rows = append(rows, Row{version, string(key), rowSequence(it.Key())})
	}
	return rows, it.Error()
}

// Floor returns the sequence below which a database's log may have gaps.
func Floor(db *leveldb.DB) (uint64, error) {
	op := &opening{engine: &levelEngine{DB: db}}
	return op.getUint64(metaFloor, 1)
}

// Progress is how far the log of a peer has been merged.
type Progress struct {
	Checkpoint, Upper, Seen uint64
	Joined                  bool
	Log, Keys               bool   // the kind of the unfinished scan
	Reached                 uint64 // by a scan of the log
	Key                     string // reached by one in key order
}

// StoredCursor returns what the row of a peer says; without one, nothing is
// merged.
func StoredCursor(db reader, peer DatabaseID) (Progress, error) {
	row, err := db.Get(peerKey(peer), nil)
	if err == leveldb.ErrNotFound {
		return Progress{}, nil
	}
	if err != nil {
		return Progress{}, err
	}
	p, err := parsePeerRecord(row)
	if err != nil {
		return Progress{}, err
	}
	return Progress{
		p.checkpoint.seq, p.upper.seq, p.seen.seq, p.joined,
		p.scan == scanLog, p.scan == scanKeys, p.reached, string(p.key),
	}, nil
}

// Vector returns what a replica knows.
func Vector(r *Replicator) map[Origin]uint64 { return r.store.known.all() }

// Made is one change of a key.
type Made struct {
	Key string
	Version
}

// CheckKnown returns what a replica's vector covers of some changes, and what is not
// here, nor anything greater of its key.
func CheckKnown(r *Replicator, changes []Made) error {
	return r.store.enter(false, func(*section) error {
		known := r.store.known.all()
		greatest := map[string]Version{} // of what is covered, by key
		for _, ch := range changes {
			if v, found := greatest[ch.Key]; known.covers(ch.Stamp) && (!found || v.Compare(ch.Version) < 0) {
				greatest[ch.Key] = ch.Version
			}
		}
		for key, version := range greatest {
			ch := Made{Key: key, Version: version}
			record, err := lookup(r.store, []byte(ch.Key))
			if err != nil || record.Version.Compare(ch.Version) < 0 {
				return fmt.Errorf("key %q: the vector covers %v, here is %v, %v", ch.Key, ch.Version, record.Version, err)
			}
		}
		return nil
	})
}

// Entry is a change from elsewhere.
type Entry struct {
	Version
	Key, Value string
}

// Examine is the first half of a merge, of entries in ascending order of their
// keys; it returns the second half, which tells how many of them won.
func Examine(r *Replicator, entries ...Entry) (commit func() (int, error), err error) {
	arrived := make([]entry, len(entries))
	for i, e := range entries {
		arrived[i] = entry{key: []byte(e.Key), Version: e.Version, value: []byte(e.Value)}
	}
	var blind blindness
	c, err := r.store.examine(arrived, &blind)
	return func() (won int, err error) {
		err = r.store.merge(c, &blind, nil)
		for _, wins := range c.wins {
			if wins {
				won++
			}
		}
		return won, err
	}, err
}

// ExpireLog removes the log records below a floor from a database that no
// Replicator has open.
func ExpireLog(db *leveldb.DB, floor uint64) error {
	var b leveldb.Batch
	for seq := range floor {
		b.Delete(logKey(seq))
	}
	b.Put(metaKey(metaFloor), encodeUint64(floor))
	b.Delete(metaKey(metaClean)) // it counts the records
	return db.Write(&b, nil)
}

// LoseLog removes what tells how far log and clock of a database have come, from
// a sequence on, as if the files that it was in were lost.
func LoseLog(db *leveldb.DB, from uint64) error {
	var b leveldb.Batch
	it := db.NewIterator(logRange(from-1, ^uint64(0)-1), nil)
	defer it.Release()
	for it.Next() {
		b.Delete(it.Key())
	}
	for _, name := range []string{metaCeiling, metaHead, metaClean} {
		b.Delete(metaKey(name))
	}
	return db.Write(&b, nil)
}

// LoseIndex removes the index rows of some keys from a database that no Replicator
// has open, as if the file that they were in were lost.
func LoseIndex(db *leveldb.DB, keys ...string) error {
	var b leveldb.Batch
	for _, key := range keys {
		b.Delete(indexKey([]byte(key)))
	}
	return db.Write(&b, withSync)
}

// BackupTo is Backup to any storage.
func BackupTo(ctx context.Context, r *Replicator, to storage.Storage) error {
	return r.store.backup(ctx, to, nil)
}

// EmptyCommit commits nothing.
func EmptyCommit(r *Replicator) error {
	return r.store.enter(true, func(*section) error { return nil })
}

// Adopt adopts a key with a value that it had once.
func Adopt(r *Replicator, key, value string) error {
	return r.store.enter(false, func(x *section) error {
		x.add(change{key: []byte(key), Version: adoptedVersion([]byte(value)), dataless: true})
		return nil
	})
}

// Sessions counts the live sessions, Known the peers that are remembered, and
// Connections those that came from elsewhere.
func Sessions(r *Replicator) int {
	r.syncer.mu.Lock()
	defer r.syncer.mu.Unlock()
	return len(r.syncer.sessions)
}

func Known(r *Replicator) int {
	return len(r.store.allPeers())
}

func Connections(r *Replicator) (n int) {
	r.syncer.entrance.mu.Lock()
	defer r.syncer.entrance.mu.Unlock()
	for _, of := range r.syncer.entrance.from {
		n += of
	}
	return n
}

// PageServer makes the pages that a session sends.
type PageServer struct {
	server  *server
	entries entryWriter
}

// NewPageServer serves a peer that knows nothing.
func NewPageServer(r *Replicator) *PageServer {
	return &PageServer{server: newServer(r.store), entries: entryWriter{epoch: r.store.origin()}}
}

// Recent makes the page of the records after a sequence, and returns the number of its
// entries.
func (s *PageServer) Recent(after uint64) (entries int, err error) {
	_, history := s.server.d.position()
	_, entries, err = s.serve(cursor{checkpoint: history.label(after), joined: true})
	return entries, err
}

// KeyOrder makes the page of the keys behind a key. It returns the last key that the
// page covers, or nil if no keys are left behind it.
func (s *PageServer) KeyOrder(behind []byte) (last []byte, entries int, err error) {
	var c cursor
	if behind != nil {
		head, history := s.server.d.position()
		c = cursor{scan: scanKeys, key: behind, upper: history.label(head)}
	}
	p, entries, err := s.serve(c)
	if p.last {
		return nil, entries, err
	}
	return p.key, entries, err
}

func (s *PageServer) serve(c cursor) (page, int, error) {
	a, err := s.server.answer(&pull{cursor: c}, 0, false, &s.entries)
	s.entries.page(&a.page, a.entries)
	return a.page, a.entries, err
}

// PageMerger merges pages of one size. It reuses their memory.
type PageMerger struct {
	d       *store
	entries []entry
}

// NewPageMerger makes pages of a number of entries with one value.
func NewPageMerger(r *Replicator, entries int, value []byte) *PageMerger {
	m := &PageMerger{d: r.store, entries: make([]entry, entries)}
	for i := range m.entries {
		m.entries[i].value = value
	}
	return m
}

// Set makes an entry of the page a put with the given stamp. Keys must ascend.
func (m *PageMerger) Set(i int, key []byte, stamp Stamp) {
	e := &m.entries[i]
	e.key, e.Version = append(e.key[:0], key...), Version{Stamp: stamp}
}

// Merge merges the page, and returns how many of its entries won.
func (m *PageMerger) Merge() (won int, err error) {
	var blind blindness
	c, err := m.d.examine(m.entries, &blind)
	if err != nil {
		return 0, err
	}
	if err = m.d.merge(c, &blind, nil); err != nil {
		return 0, err
	}
	for _, wins := range c.wins {
		if wins {
			won++
		}
	}
	return won, nil
}

// FailWrites has all writes fail from now on.
func FailWrites(r *Replicator, err error) {
	_ = r.store.enter(false, func(x *section) error { return x.c.fail(err) })
}

// DurablePoints returns how many durable points a replica has had since it was opened.
func DurablePoints(r *Replicator) uint64 {
	_, _, number := r.store.durable.last(DatabaseID{})
	return number
}

// RenewID has a replica draw a new database id.
func RenewID(r *Replicator) error {
	r.syncer.renewID(r.store.id())
	return r.store.failure()
}

// BeginEpoch has a replica find that it goes on from an image.
func BeginEpoch(r *Replicator) error {
	if err := r.syncer.suspectImage(); err != errImage {
		return err
	}
	return nil
}

// Stamp returns the stamp of the change that a token names.
func (t Token) Stamp() Stamp { return t.stamp }

// KeepWarnings returns a logger that keeps warnings, and the last of them.
func KeepWarnings(to *slog.Logger) (*slog.Logger, func() []Warning) {
	w := new(warnings)
	return w.logger(to), w.all
}

// LoseKeys removes all that a database has of some keys, but for their log records, as if
// the files that it was in were lost and nobody noticed.
func LoseKeys(db *leveldb.DB, keys ...string) error {
	var b leveldb.Batch
	for _, key := range keys {
		b.Delete([]byte(key))
		b.Delete(indexKey([]byte(key)))
	}
	return db.Write(&b, withSync)
}

// PlaceKey gives a database that no Replicator has open a value, with a stamp and no
// log record.
func PlaceKey(db *leveldb.DB, key, value string, stamp Stamp) error {
	var b leveldb.Batch
	b.Put([]byte(key), []byte(value))
	b.Put(indexKey([]byte(key)), appendIndexRecord(nil, Version{Stamp: stamp}, 1))
	return db.Write(&b, withSync)
}

// CountIndexRows returns the options, and has the index rows counted that are read from
// snapshots, one after the other.
func CountIndexRows(o Options) (*Options, func() int64) {
	var e countingEngine
	o.engine = func(of engine) engine {
		e.engine = of
		return &e
	}
	return &o, e.rows.Load
}

type countingEngine struct {
	engine
	rows atomic.Int64
}

func (e *countingEngine) snapshot() (snapshot, error) {
	snap, err := e.engine.snapshot()
	return &countingSnapshot{snap, e}, err
}

type countingSnapshot struct {
	snapshot
	e *countingEngine
}

func (s *countingSnapshot) NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator {
	it := s.snapshot.NewIterator(slice, ro)
	if slice != nil && len(slice.Start) > len(reserved) && slice.Start[len(reserved)] == tableIndex {
		return &countingIterator{it, s.e}
	}
	return it
}

type countingIterator struct {
	iterator.Iterator
	e *countingEngine
}

func (i *countingIterator) Next() bool {
	i.e.rows.Add(1)
	return i.Iterator.Next()
}

// AskedNumbers returns the numbers of records that a question states.
func AskedNumbers(payload []byte) (numbers []uint64, err error) {
	q, err := parseQuestion(payload, 0)
	for i := range q.ranges {
		numbers = append(numbers, q.ranges[i].n)
	}
	return numbers, err
}

// HasExpired reports whether records of the log have expired.
func HasExpired(r *Replicator) bool { return r.store.commits.visible.expired.Load() > 1 }

// AwaitStranger has a replica know a peer that never comes.
func AwaitStranger(r *Replicator) {
	_ = r.store.remember(DatabaseID{1}, &peerRecord{heardAt: time.Now()})
}

// WithExpiry returns the options with a time after which it is looked what of the log has
// expired, and with a number of records that stay in any case.
func WithExpiry(o Options, every time.Duration, newest int) *Options {
	o.expireEvery, o.newest = every, newest
	return &o
}

// AdoptFound looks for the next keys to adopt, and returns what adopts them.
func AdoptFound(r *Replicator) (adopt func() error, err error) {
	a := r.store.adopter
	head, next := r.store.head(), *a.progress.Load()
	found, err := a.unindexed(&next)
	return func() error {
		_, err := a.adopt(head, found, next)
		return err
	}, err
}

// MarkTime notes that the head of a database was at a sequence long ago.
func MarkTime(db *leveldb.DB, seq uint64) error {
	return db.Put(markKey(seq), timeMark{seq, time.Unix(1, 0)}.row(), nil)
}

// ExpireNow has all of the log expire.
func ExpireNow(t interface{ Fatal(...any) }, r *Replicator) {
	d := r.store
	err := d.enter(true, func(x *section) error {
		x.raiseFloor(x.head + 1)
		return nil
	})
	for n := 1; n > 0 && err == nil; {
		n = int(d.commits.visible.records.Load())
		time.Sleep(time.Second)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TimeMarks returns how many sequences there are whose time is known.
func TimeMarks(db reader) int {
	marks, err := loadMarks(db)
	if err != nil {
		return -1
	}
	return len(marks)
}

// Place is where a cursor of a feed is.
type Place struct {
	Seq, Upper, Seen uint64
	Scan             bool
	Key              string
}

func CursorPlace(c Cursor) Place {
	return Place{c.at.seq, c.upper.seq, c.seen.seq, c.scan, c.key}
}

// InFirstSync reports whether a replica writes no log now.
func InFirstSync(r *Replicator) bool { return r.store.first.Load() != nil }

// FeedPages reads a feed up to where it waits, and returns its pages.
func FeedPages(r *Replicator, prefix string, from Cursor) (pages [][]Change, err error) {
	f, err := r.store.openFeed([]byte(prefix), from)
	if err != nil {
		return nil, err
	}
	defer f.end()
	for {
		again, err := f.read(func() error { return nil })
		if err != nil || len(f.page) == 0 && again != 0 {
			return pages, err
		}
		if len(f.page) > 0 {
			pages = append(pages, f.page)
			f.page = nil
		}
	}
}

// Feeds returns how many feeds are open, and how many goroutines wait for commits.
func Feeds(r *Replicator) (open, subscribed int) {
	s := &r.store.subscribers
	s.Lock()
	defer s.Unlock()
	return int(r.store.feeds.Load()), len(s.list)
}

// Reaped returns what a replica has reaped.
func Reaped(r *Replicator) map[Origin]uint64 {
	reaped, _ := r.store.known.reapedNow()
	return reaped
}

// BeforeSnapshot returns the options, and has a function be called before the next snapshot
// is taken, each time that it is set.
func BeforeSnapshot(o Options) (*Options, func(func())) {
	var e hookedEngine
	o.engine = func(of engine) engine {
		e.engine = of
		return &e
	}
	return &o, func(hook func()) { e.hook.Store(&hook) }
}

type hookedEngine struct {
	engine
	hook atomic.Pointer[func()]
}

func (e *hookedEngine) snapshot() (snapshot, error) {
	if hook := e.hook.Swap(nil); hook != nil {
		(*hook)()
	}
	return e.engine.snapshot()
}
