package replicator_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// What the tests of the invariants share. Their numbers are those of
// docs/ARCHITECTURE.md.

// rows is all that a database holds, read from one snapshot.
type rows struct {
	data  map[string]string
	index map[string]replicator.Row
	log   []replicator.Row
}

func readRows(t testing.TB, db *leveldb.DB) rows {
	snap, err := db.GetSnapshot()
	require.NoError(t, err)
	defer snap.Release()
	r := rows{data: map[string]string{}}
	r.index, err = replicator.IndexRows(snap)
	require.NoError(t, err)
	r.log, err = replicator.LogRows(snap)
	require.NoError(t, err)
	it := snap.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		if !strings.HasPrefix(string(it.Key()), "\xffreplicator\xff") {
			r.data[string(it.Key())] = string(it.Value())
		}
	}
	require.NoError(t, it.Error())
	return r
}

// checkData returns how data and index disagree.
func (r rows) checkData() error {
	for key, row := range r.index {
		if _, has := r.data[key]; has == row.Deleted {
			return fmt.Errorf("key %q: deleted is %v in the index, there is a value: %v", key, row.Deleted, has)
		}
	}
	for key := range r.data {
		if _, has := r.index[key]; !has {
			return fmt.Errorf("key %q is not in the index", key)
		}
	}
	return nil
}

// checkLog returns how log and index disagree: the index points to the last
// record of each key, and to the one that says the same.
func (r rows) checkLog() error {
	last := map[string]replicator.Row{}
	for _, row := range r.log {
		last[row.Key] = row
	}
	if !maps.Equal(last, r.index) {
		for key := range r.index {
			if last[key] != r.index[key] {
				return fmt.Errorf("key %q: index %v, log %v", key, r.index[key], last[key])
			}
		}
		return errors.New("the log has keys that the index hasn't")
	}
	return nil
}

// onDisk opens the plain database on a disk for a while.
func onDisk(t testing.TB, disk *simtest.Disk, use func(db *leveldb.DB)) {
	db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 128 << 10, DisableLargeBatchTransaction: true})
	require.NoError(t, err)
	defer func() { assert.NoError(t, db.Close()) }()
	use(db)
}

// isClean reports whether the Replicator of a database was closed cleanly.
func isClean(t testing.TB, db *leveldb.DB) bool {
	clean, err := db.Has([]byte("\xffreplicator\xffmclean"), nil)
	require.NoError(t, err)
	return clean
}

// openPlain wraps a database without peers, in some boot of a machine.
func openPlain(t testing.TB, db *leveldb.DB, boot string) *replicator.Replicator {
	r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{}, boot))
	require.NoError(t, err)
	return r
}

// letSettle lets fake time pass until the goroutines of closed databases are gone.
func letSettle() { time.Sleep(2 * time.Second) }

// pairs is a load of batches that each write two keys: a private one, which is
// never written again, and a shared one. The stamp of the private key tells what
// the stamp of the shared one was.
type pairs struct {
	mu    sync.Mutex
	acked []acked // in order
}

type acked struct {
	private string
	sync    bool
}

// pair returns what batch number id of an owner writes. A value of "" stands for
// a deletion.
func pair(owner string, id int) (private, shared, value string) {
	private, shared = fmt.Sprintf("%s/%d", owner, id), fmt.Sprint("shared ", id*7%5)
	if id%3 > 0 {
		value = "of " + private + strings.Repeat("x", id*131%1500)
	}
	return private, shared, value
}

func (p *pairs) write(r *replicator.Replicator, owner string, id int) error {
	private, shared, value := pair(owner, id)
	var b leveldb.Batch
	b.Put([]byte(private), []byte(private))
	if value == "" {
		b.Delete([]byte(shared))
	} else {
		b.Put([]byte(shared), []byte(value))
	}
	sync := id%4 == 0
	err := r.Write(&b, &opt.WriteOptions{Sync: sync})
	if err == nil {
		p.mu.Lock()
		p.acked = append(p.acked, acked{private, sync})
		p.mu.Unlock()
	}
	return err
}

// moment is a disk as it was at one moment, and how much was acknowledged then.
type moment struct {
	disk  *simtest.Disk
	acked int
}

// check verifies what is found on a disk after a process died or the power was
// cut, when some batches of owner had been acknowledged.
func (p *pairs) check(found rows, owner string, acknowledged []acked, power bool) error {
	if err := found.checkData(); err != nil {
		return err
	}
	if !power {
		if err := found.checkLog(); err != nil {
			return err
		}
	}
	for _, a := range acknowledged {
		if found.data[a.private] != a.private && (a.sync || !power) {
			return fmt.Errorf("%s was acknowledged, with Sync: %v, and is missing", a.private, a.sync)
		}
	}
	values := map[replicator.Stamp]string{} // of shared keys, by the batches found
	for private, row := range found.index {
		by, number, isPrivate := strings.Cut(private, "/")
		if !isPrivate {
			continue
		}
		var id int
		fmt.Sscan(number, &id)
		_, shared, value := pair(by, id)
		stamp := replicator.Stamp{Clock: row.Clock + 1, Origin: row.Origin}
		values[stamp] = value
		if by == owner && found.index[shared].Compare(stamp) < 0 {
			return fmt.Errorf("a part of the batch of %s is here, %q is not: it has %v", private, shared, found.index[shared])
		}
	}
	own := map[replicator.Origin]bool{}
	for private, row := range found.index {
		own[row.Origin] = own[row.Origin] || strings.HasPrefix(private, owner+"/")
	}
	for key, row := range found.index {
		if strings.Contains(key, "/") {
			continue
		}
		value, known := values[row.Stamp]
		if !known && own[row.Origin] {
			return fmt.Errorf("%q at %v is here, the rest of its batch is not", key, row)
		}
		if known && (found.data[key] != value || row.Deleted != (value == "")) {
			return fmt.Errorf("%q at %v has the value %.20q…, not %.20q…", key, row, found.data[key], value)
		}
	}
	return nil
}

// hold holds up the next write to a journal of the disk. The channel is closed
// when there is one; letGo lets it pass.
func hold(disk *simtest.Disk) (entered <-chan struct{}, letGo func()) {
	held, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
		if op == simtest.OpWrite && fd.Type == storage.TypeJournal && once.CompareAndSwap(false, true) {
			close(held)
			<-release
		}
		return nil
	})
	return held, sync.OnceFunc(func() { close(release) })
}

// lineage is a disk, with what is known of the changes that were made on it.
type lineage struct {
	disk  *simtest.Disk
	boot  int
	clock uint64 // greatest clock that was visible on it
	head  uint64 // of its log, if nothing of that can be lost
}

type unique struct {
	t    *testing.T
	boot int

	mu     sync.Mutex // guards what follows
	rng    *rand.Rand
	made   map[replicator.Stamp]string // by stamp: the key, which no other change has
	epochs map[replicator.Origin]bool
}

func (u *unique) draw(n int) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.rng.IntN(n)
}

// session opens a database, makes some changes and merges some, and returns the
// ways that it can end: closed, killed at the end or in the middle, and with a
// power cut there.
func (u *unique) session(l lineage) []lineage {
	var mu sync.Mutex // guards what follows
	visible, head := l.clock, l.head
	var middle *lineage
	at := int64(1 + u.draw(60))
	l.disk.SetFault(func(_ simtest.Op, _ storage.FileDesc, n int64) error {
		if n == at {
			mu.Lock()
			middle = &lineage{disk: l.disk.Copy(), boot: l.boot, clock: visible, head: head}
			mu.Unlock()
		}
		return nil
	})
	see := func(clock uint64) {
		mu.Lock()
		visible = max(visible, clock)
		mu.Unlock()
	}
	db, err := leveldb.Open(l.disk, &opt.Options{WriteBuffer: 4 << 10, DisableLargeBatchTransaction: true})
	require.NoError(u.t, err)
	defer db.Close()
	r := openPlain(u.t, db, fmt.Sprint("boot ", l.boot))
	defer r.Close()
	status := r.Status()
	require.GreaterOrEqual(u.t, status.Head, l.head, "sequences are going to be used twice")
	require.GreaterOrEqual(u.t, status.Head+1, status.Floor, "sequences are going to be used that nobody is served")
	epoch := status.Epoch
	u.mu.Lock()
	require.False(u.t, u.epochs[epoch], "the origin %v is drawn twice", epoch)
	u.epochs[epoch] = true
	u.mu.Unlock()
	for range u.draw(12) {
		switch u.draw(6) {
		case 0: // the clock leaps, to the end of what is reserved and beyond
			clock := r.Status().Clock + uint64(u.draw(3))<<19
			if u.draw(2) == 0 {
				clock = clock&^(1<<20-1) + 1<<20 - 2
			}
			commit, err := replicator.Examine(r, replicator.Entry{Key: "merged", Version: replicator.Version{
				Stamp: replicator.Stamp{Clock: clock, Origin: 1<<63 + 1}}})
			require.NoError(u.t, err)
			n, err := commit()
			require.NoError(u.t, err)
			if n > 0 {
				see(clock)
			}
		case 1:
			u.batch(r, see, l.clock)
		default:
			key := u.key()
			require.NoError(u.t, r.Put([]byte(key), nil, &opt.WriteOptions{Sync: u.draw(3) == 0}))
			u.note(r, key, see, l.clock)
		}
	}
	killed := lineage{disk: l.disk.Copy(), boot: l.boot, clock: visible, head: r.Status().Head}
	require.NoError(u.t, r.Close())
	require.NoError(u.t, db.Close())
	l.disk.SetFault(nil)
	ends := []lineage{{disk: l.disk, boot: l.boot, clock: visible, head: r.Status().Head}, killed, u.cut(killed)}
	if middle != nil {
		ends = append(ends, *middle, u.cut(*middle))
	}
	return ends
}

func (u *unique) cut(l lineage) lineage {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.boot++
	return lineage{disk: l.disk.PowerCut(simtest.Tear(u.rng)), boot: 1000 + u.boot, clock: l.clock}
}

func (u *unique) key() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return fmt.Sprintf("change %d %d", len(u.made), u.rng.Uint64())
}

func (u *unique) batch(r *replicator.Replicator, see func(uint64), above uint64) {
	var b leveldb.Batch
	var keys []string
	for range 1 + u.draw(20) {
		keys = append(keys, u.key())
		b.Delete([]byte(keys[len(keys)-1]))
	}
	require.NoError(u.t, r.Write(&b, nil))
	for _, key := range keys {
		u.note(r, key, see, above)
	}
}

// note remembers the stamp of the change to a key.
func (u *unique) note(r *replicator.Replicator, key string, see func(uint64), above uint64) {
	v, err := r.Version([]byte(key))
	require.NoError(u.t, err)
	require.Equal(u.t, r.Status().Epoch, v.Origin)
	require.True(u.t, above == 0 || v.Clock > above, "a new change has clock %d, one up to %d was visible before", v.Clock, above)
	see(v.Clock)
	u.mu.Lock()
	defer u.mu.Unlock()
	require.Empty(u.t, u.made[v.Stamp], "%s has the stamp of another change, %v", key, v.Stamp)
	u.made[v.Stamp] = key
}

// openWith opens a node with other options than usual.
func openWith(n *node, ldb *opt.Options, change func(*replicator.Options)) {
	var err error
	n.db, err = leveldb.Open(n.disk, ldb)
	require.NoError(n.c.t, err)
	o := n.options()
	change(o)
	n.r, err = replicator.Open(n.db, o)
	require.NoError(n.c.t, err)
}

func second[T any](_ T, err error) error { return err }

// pageSize is how many records come in one page at most.
const pageSize = 500

// carried returns how many records of peer's a node was sent since it was opened.
func (n *node) carried(peer *node) (records int64) {
	id := peer.r.Status().ID
	for _, p := range n.r.Status().Peers {
		if p.ID == id {
			records = p.RecordsIn
		}
	}
	return records
}

// cursor returns how far a node has merged peer's log, as it would be found
// after a restart.
func (n *node) cursor(peer *node) replicator.Cursor {
	c, err := replicator.StoredCursor(n.db, peer.r.Status().ID)
	require.NoError(n.c.t, err)
	return c
}

// index returns what a node knows of each key.
func (n *node) index() map[string]replicator.Row { return indexOf(n.c.t, n.db) }

func indexOf(t testing.TB, db *leveldb.DB) map[string]replicator.Row {
	rows, err := replicator.IndexRows(db)
	require.NoError(t, err)
	return rows
}

// fill puts keys in the order of their numbers.
func (n *node) fill(prefix string, from, to, size int) {
	for i := from; i < to; i++ {
		n.put(fmt.Sprintf("%s%05d", prefix, i), fmt.Sprint(n.name, i, strings.Repeat("v", size)))
	}
}

// order is the order of changes as the design has it, for comparison.
func order(a, b replicator.Entry) int {
	hash := func(e replicator.Entry) uint64 {
		sum := sha256.Sum256([]byte(e.Value))
		return binary.BigEndian.Uint64(sum[:])
	}
	switch {
	case a.Clock != b.Clock:
		return cmp.Compare(a.Clock, b.Clock)
	case a.Origin != b.Origin:
		return cmp.Compare(a.Origin, b.Origin)
	case a.Deleted != b.Deleted:
		if a.Deleted {
			return 1
		}
		return -1
	case a.Deleted:
		return 0
	}
	return cmp.Compare(hash(a), hash(b))
}

// round lets all nodes sync.
func (c *cluster) round(t *testing.T) {
	for _, n := range c.nodes {
		require.NoError(t, n.sync())
	}
}

// quiet checks that rounds write nothing and send no records.
func (c *cluster) quiet(t *testing.T, name string, rounds int, before func()) {
	type activity struct {
		writes, syncs   int64
		head            uint64
		in, out, logged int64
	}
	measure := func() (all []activity) {
		for _, n := range c.nodes {
			status := n.r.Status()
			a := activity{n.disk.Writes(), n.disk.Syncs(), status.Head, 0, 0, int64(status.LogRecords)}
			for _, p := range status.Peers {
				a.in += p.RecordsIn
				a.out += p.RecordsOut
				require.Zero(t, p.Behind, "%s: %s is ahead of %s", name, p.Addr, n.name)
				require.Zero(t, p.Unconfirmed, "%s: %s has not acknowledged to %s", name, p.Addr, n.name)
			}
			all = append(all, a)
		}
		return all
	}
	was := measure()
	for range rounds {
		before()
		c.round(t)
		time.Sleep(time.Duration(c.rng.IntN(30)) * time.Second)
	}
	require.Equal(t, was, measure(), name)
}

// covered checks that all of a peer's changes that a cursor covers are here.
func covered(cursor replicator.Cursor, peer, here map[string]replicator.Row) error {
	for key, row := range peer {
		covers := row.Seq <= cursor.Checkpoint
		switch {
		case cursor.Log:
			covers = covers || cursor.Reached <= row.Seq && row.Seq <= cursor.Upper
		case cursor.Full:
			covers = row.Seq <= cursor.Upper && key <= cursor.Key
		}
		if covers && here[key].Compare(row.Stamp) < 0 {
			return fmt.Errorf("key %q: the cursor %+v covers %v, here is %v", key, cursor, row, here[key])
		}
	}
	return nil
}

// largeValue is larger than the write buffer of a node's database.
var largeValue = make([]byte, 100<<10)

// holdCommit starts to write largeValue under a key, and returns when the value can
// be read, while the commit has yet to be over: leveldb is held up in what it does
// then with a batch that is larger than its write buffer. goOn lets it; over tells
// how the write ended.
func (n *node) holdCommit(key string, write func() error) (goOn func(), over <-chan error) {
	release, rotating := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	n.disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
		if op != simtest.OpCreate || fd.Type != storage.TypeJournal {
			return nil
		}
		if value, err := n.db.Get([]byte(key), nil); err == nil && len(value) == len(largeValue) && once.CompareAndSwap(false, true) {
			close(rotating)
			<-release
		}
		return nil
	})
	ended := make(chan error, 1)
	go func() { ended <- write() }()
	<-rotating
	return sync.OnceFunc(func() { close(release) }), ended
}

// halfway lets n1 pull from n0, in a scan of several pages, during which the keys
// that are to come last move up the log. It freezes the network at the end of the
// scan: n1 has a checkpoint, does not have the keys, and knows that more is to
// come. It returns what SyncNow, called before that, will return.
func halfway(c *cluster, full bool) (synced chan error, moved int) {
	const base, keys = 10, 4*pageSize - 100
	source, n := c.nodes[0], c.nodes[1]
	c.link(1, 0)
	if full {
		c.net.Partition([]string{"n1"})
	}
	c.open()
	if !full {
		source.fill("base", 0, base, 0)
		c.converge()
		time.Sleep(time.Second)
		c.net.Partition([]string{"n1"})
	}
	// A log is read from its end, the state in key order.
	moved = pageSize / 2
	source.fill("k", 0, keys, 10)
	start := n.r.Status().Head
	var stage atomic.Int64
	n.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
		if op != simtest.OpWrite {
			return nil
		}
		switch head := n.r.Status().Head; {
		case head == start && n.r.Status().Peers[0].RecordsIn >= pageSize && stage.CompareAndSwap(0, 1):
			for i := range moved {
				key := fmt.Sprintf("k%05d", i)
				if err := source.r.Put([]byte(key), []byte("moved"), nil); err != nil {
					panic(err)
				}
			}
		case head == start+2*pageSize && stage.CompareAndSwap(1, 2):
			synctest.Wait() // the last page has arrived, the one after it is not asked for
			c.net.Freeze("n0", "n1")
		}
		return nil
	})
	synced = make(chan error, 1)
	c.net.Heal()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		synced <- n.r.SyncNow(ctx)
	}()
	time.Sleep(100 * time.Millisecond) // not synctest.Wait, which one goroutine may call at a time
	n.disk.SetFault(nil)
	require.EqualValues(c.t, 2, stage.Load())
	return synced, moved
}

// acknowledged returns up to where a peer has told n to have made its log durable.
func (c *cluster) acknowledged(n, peer *node) uint64 {
	id := peer.r.Status().ID
	for _, p := range n.r.Status().Peers {
		if p.ID == id {
			return p.Acknowledged
		}
	}
	return 0
}

// inPair runs a test in a bubble, with two nodes that are yet to be opened, of which
// n dials source.
func inPair(t *testing.T, seed int64, test func(t *testing.T, c *cluster, source, n *node)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, seed, 2)
		defer c.close()
		c.link(1, 0)
		test(t, c, c.nodes[0], c.nodes[1])
	})
}
