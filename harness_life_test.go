package replicator_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// What the crash test and the fault test share: a life, and what is remembered of it.

var operation = flag.Int64("operation", 0, "run the crash test and the fault test at this operation of the disk only")

// life is a scripted life of three replicas. The first one, the victim, stands between
// the others, so what they write reaches each other through it. Its disk is the one
// that crashes, or fails.
type life struct {
	*cluster
	victim *node
	fault  simtest.Fault     // of the victim's disk, whichever that is by now
	raw    map[string]string // what the victim's database held before it was wrapped

	mu sync.Mutex // guards what follows, and the cluster's rng and written
	progress
	asked  map[string]map[string]bool // values by key; gone stands for a deletion
	acked  []change                   // in the order of acknowledgement
	epochs map[replicator.Origin]bool // of all openings
	serial int                        // of the last value

	compactions leveldb.DBStats // of all databases of the victim
	closing     error           // of its Replicator, where that failed
}

// gone is the value of a key that is deleted.
const gone = "\x00"

// change is one that a node was asked for, and has acknowledged.
type change struct {
	victim     bool // it was made there
	key, value string
	sync       bool
	// version is that of the change, or nothing if a greater one was merged before it
	// could be read.
	version replicator.Version
}

// progress is how far a life has come. All that it says was so before the disk was
// copied that it is noted with.
type progress struct {
	step  string // of the script
	count int    // of acknowledged changes
	// durable is how many changes were acknowledged when the victim was closed cleanly.
	// Of those from the first to the second cut, a power cut may have taken some.
	durable int
	cut     [2]int
	// recovering is true from a power cut until the opening that follows is over.
	recovering bool
	clock      uint64 // with which the victim's last opening began
	greatest   uint64 // of all that was acknowledged, anywhere
}

// newLife prepares a life, with a disk of the victim that has the fault. Tables are slow
// to be made there: so a journal that was rotated away, of which nothing may be synced,
// stays for a while beside the one that is written to.
func newLife(c *cluster, fault simtest.Fault) *life {
	l := &life{
		cluster: c, victim: c.nodes[0],
		raw: map[string]string{}, asked: map[string]map[string]bool{}, epochs: map[replicator.Origin]bool{},
	}
	l.fault = func(op simtest.Op, fd storage.FileDesc, n int64) error {
		if op == simtest.OpCreate && fd.Type == storage.TypeTable {
			for range 300 { // not a sleep: somebody may hold a mutex, and wait for this table
				runtime.Gosched()
			}
		}
		return fault(op, fd, n)
	}
	joinLine(c)
	// The databases exist, for goleveldb's own beginnings are not atomic. Those of the
	// peers hold keys that the victim's will hold, too, some of them with other values.
	for i, n := range c.nodes {
		raw := map[string]string{}
		for j := range 24 {
			if i > 0 && j%(2+i) > 0 {
				key, value := oldKey(j)
				if j%(2+i) == 1 {
					value += " of " + n.name
				}
				raw[key] = value
				l.ask(change{key: key, value: value})
			}
		}
		fillDisk(c.t, n.disk, raw)
	}
	l.victim.disk.SetFault(l.fault)
	return l
}

// oldKey returns a key that is there before anything is replicated, and its value.
func oldKey(i int) (key, value string) {
	return fmt.Sprintf("old %02d", i), fmt.Sprintf("old value of %d ", i) + strings.Repeat("v", 300)
}

// joinLine links the first node with each other one, and gives all of them databases so
// small that memtables are rotated and tables compacted all the time.
func joinLine(c *cluster) {
	for i, n := range c.nodes {
		if i > 0 {
			c.link(0, i)
			c.link(i, 0)
		}
		n.ldb = opt.Options{
			WriteBuffer:         5<<10 + c.rng.IntN(2<<10),
			CompactionL0Trigger: 3, CompactionTableSize: 4 << 10,
			CompactionTotalSize: 2 << 10, CompactionTotalSizeMultiplier: 2,
			Compression: opt.NoCompression, BlockCacher: opt.NoCacher, DisableLargeBatchTransaction: true,
		}
	}
}

// note changes what is known of the life.
func (l *life) note(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// now returns how far the life has come.
func (l *life) now() (p progress) {
	l.note(func() { p = l.progress })
	return p
}

// ask notes what a node is about to be asked for.
func (l *life) ask(changes ...change) {
	l.note(func() {
		for _, c := range changes {
			if l.asked[c.key] == nil {
				l.asked[c.key] = map[string]bool{}
			}
			l.asked[c.key][c.value] = true
		}
	})
}

// fill puts a key into the victim's database before that is wrapped.
func (l *life) fill(key, value string, sync bool) error {
	c := change{victim: true, key: key, value: value, sync: sync}
	c.version.Origin = adoptedOrigin(value)
	l.ask(c)
	l.note(func() { l.raw[key] = value })
	if err := l.victim.db.Put([]byte(key), []byte(value), &opt.WriteOptions{Sync: sync}); err != nil {
		return err
	}
	l.acknowledge(c)
	return nil
}

// acknowledge notes that a change was made.
func (l *life) acknowledge(c change) {
	l.note(func() {
		l.acked = append(l.acked, c)
		l.count = len(l.acked)
		l.greatest = max(l.greatest, c.version.Clock)
	})
}

// value returns a value that no other change has, of about some size.
func (l *life) value(n *node, size int) (value string) {
	l.note(func() {
		l.serial++
		value = fmt.Sprintf("%d by %s ", l.serial, n.name) + strings.Repeat("v", size+l.rng.IntN(1+size/4))
	})
	return value
}

// put returns a change that is yet to be made.
func (l *life) put(n *node, key string, size int) change {
	return change{key: key, value: l.value(n, size)}
}

// remove returns a deletion that is yet to be made.
func (l *life) remove(key string) change { return change{key: key, value: gone} }

// write has a node make changes, together.
func (l *life) write(n *node, sync bool, changes ...change) error {
	l.ask(changes...)
	if err := makeChanges(n.r, sync, changes); err != nil {
		return err
	}
	last := map[string]change{}
	for _, c := range changes {
		last[c.key] = c
	}
	epoch := n.r.Status().Epoch
	for _, c := range last {
		version, err := n.r.Version([]byte(c.key))
		if err != nil {
			return err
		}
		c.victim, c.sync = n == l.victim, sync
		if version.Origin == epoch {
			c.version = version
			if c.value != gone {
				l.note(func() { l.written[version.Stamp] = c.value })
			}
		}
		l.acknowledge(c)
	}
	return nil
}

// makeChanges is Put, Delete or Write.
func makeChanges(r *replicator.Replicator, sync bool, changes []change) error {
	wo := &opt.WriteOptions{Sync: sync}
	if first := changes[0]; len(changes) == 1 {
		if first.value == gone {
			return r.Delete([]byte(first.key), wo)
		}
		return r.Put([]byte(first.key), []byte(first.value), wo)
	}
	var b leveldb.Batch
	for _, c := range changes {
		if c.value == gone {
			b.Delete([]byte(c.key))
		} else {
			b.Put([]byte(c.key), []byte(c.value))
		}
	}
	return r.Write(&b, wo)
}

// start opens a node.
func (l *life) start(n *node) error {
	if n.db == nil {
		if err := n.openDB(); err != nil {
			return err
		}
	}
	if err := n.wrap(); err != nil {
		return err
	}
	status := n.r.Status()
	l.note(func() {
		l.epochs[status.Epoch] = true
		if n == l.victim {
			l.recovering, l.clock = false, status.Clock
		}
	})
	return nil
}

// tally adds up what a database of the victim's has compacted.
func (l *life) tally() {
	var stats leveldb.DBStats
	require.NoError(l.t, l.victim.db.Stats(&stats))
	l.compactions.MemComp += stats.MemComp
	l.compactions.Level0Comp += stats.Level0Comp
	l.compactions.NonLevel0Comp += stats.NonLevel0Comp
}

// end closes the victim, and notes what that has made durable.
func (l *life) end() error {
	count := l.now().count
	if l.closing = l.victim.r.Close(); l.closing != nil {
		return l.closing
	}
	l.note(func() { l.durable = count })
	l.tally()
	_ = l.victim.db.Close() // with the error of a compaction, if there is one
	l.victim.r, l.victim.db = nil, nil
	return nil
}

// die ends the victim's process, or the machine, and gives it the disk as it is found
// then. Its peers do not hear of what it does after that moment.
func (l *life) die(loss simtest.Loss) {
	n := l.victim
	l.net.Isolate(n.name)
	l.tally()
	n.disk.SetFault(nil)
	disk := n.disk.Copy()
	if loss != nil {
		disk = disk.PowerCut(loss)
	}
	n.abandon()
	n.disk = disk
	l.net.Heal()
	if loss != nil {
		n.boot = l.newBoot()
		l.note(func() { l.cut, l.recovering = [2]int{l.durable, l.count}, true })
	}
	n.disk.SetFault(l.fault)
}

// failed returns an error if the victim has stopped to write.
func (l *life) failed() error {
	if l.victim.r != nil {
		if cause := l.victim.r.Status().Failed; cause != "" {
			return fmt.Errorf("the victim has failed: %s", cause)
		}
	}
	return nil
}

// abandon closes what is open of a node, whatever comes of it.
func (n *node) abandon() {
	if n.r != nil {
		_ = n.r.Close()
	}
	if n.db != nil {
		_ = n.db.Close()
	}
	n.r, n.db = nil, nil
}

// sync has everybody merge what the others have. A read that fails may end a session,
// after which there will be another.
func (l *life) sync() (err error) {
	for range 20 {
		err = nil
		for range 2 { // the victim passes on what it gets
			for _, n := range l.nodes {
				err = errors.Join(err, n.sync())
			}
		}
		if stopped := l.failed(); stopped != nil {
			return stopped
		}
		if err == nil {
			return nil
		}
		time.Sleep(time.Second)
	}
	return fmt.Errorf("no sync within 20 attempts: %w", err)
}

// run plays the script. It returns the first error that the victim's disk is the cause
// of, or could be.
func (l *life) run() error {
	for _, step := range script {
		l.note(func() { l.step = step.name })
		if err := step.play(l); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		if err := l.failed(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// script is what happens in a life.
var script = []struct {
	name string
	play func(l *life) error
}{
	{"write unwrapped", func(l *life) error {
		if err := l.victim.openDB(); err != nil {
			return err
		}
		for i := range 24 { // enough for a journal to be rotated away
			key, value := oldKey(i)
			if err := l.fill(key, value, i%8 == 0); err != nil {
				return err
			}
		}
		return nil
	}},
	{"wrap and adopt", func(l *life) error {
		for _, n := range l.nodes {
			if err := l.start(n); err != nil {
				return err
			}
		}
		if err := l.adopted(); err != nil {
			return err
		}
		return l.sync()
	}},
	{"write", func(l *life) error {
		for i := range 36 {
			n := l.nodes[[...]int{0, 1, 0, 2}[i%4]]
			c := l.put(n, fmt.Sprintf("key %02d", i*5%13), i*211%900)
			if i%6 == 5 {
				c = l.remove(c.key)
			}
			if err := l.write(n, i%8 == 0, c); err != nil {
				return err
			}
		}
		return l.sync()
	}},
	{"write in batches", func(l *life) error {
		for i := range 8 {
			n := l.nodes[i%4%3]
			var batch []change
			for j := range 2 + i%3 {
				batch = append(batch, l.put(n, fmt.Sprintf("key %02d", (i+j)%7), 100*j))
			}
			batch = append(batch, l.remove(fmt.Sprintf("key %02d", i%5)), l.put(n, fmt.Sprint("batch ", i), 20), l.put(n, "key 00", 10))
			if err := l.write(n, i%4 == 0, batch...); err != nil {
				return err
			}
		}
		return l.sync()
	}},
	{"write large values", func(l *life) error {
		for i := range 12 { // above what is sent along
			n := l.nodes[i%3]
			if err := l.write(n, i%6 == 0, l.put(n, fmt.Sprintf("large %d", i%7), 1100+100*i)); err != nil {
				return err
			}
		}
		return l.sync()
	}},
	{"write apart", func(l *life) error {
		l.net.Partition([]string{"n0"}, []string{"n1"}, []string{"n2"})
		for i := range 18 {
			n := l.nodes[i%3]
			c := l.put(n, fmt.Sprintf("key %02d", i/3), 10*i)
			if i%5 == 0 {
				c = l.remove(c.key)
			}
			if err := l.write(n, i%4 == 0, c); err != nil {
				return err
			}
		}
		l.net.Heal()
		return l.sync()
	}},
	{"write at once", func(l *life) error {
		var writers sync.WaitGroup
		errs := make([]error, 6)
		for i := range errs {
			writers.Go(func() {
				n := l.nodes[max(0, i-3)] // four write to the victim
				for j := range 4 {
					errs[i] = errors.Join(errs[i], l.write(n, (i+j)%4 == 0, l.put(n, fmt.Sprintf("of writer %d, %d", i, j), 50*j)))
				}
			})
		}
		synced := l.sync()
		writers.Wait()
		return errors.Join(errors.Join(errs...), synced)
	}},
	{"close and open", func(l *life) error {
		if err := l.end(); err != nil {
			return err
		}
		if err := l.start(l.victim); err != nil {
			return err
		}
		return l.sync()
	}},
	{"leap", func(l *life) error { // of the clock, as after a merge from somebody far ahead
		n := l.nodes[1]
		c := change{key: "from afar", value: l.value(n, 10), version: replicator.Version{
			Stamp: replicator.Stamp{Clock: n.r.Status().Clock + 3<<16, Origin: 1 << 63}}}
		l.ask(c)
		l.note(func() {
			l.written[c.version.Stamp] = c.value
			l.greatest = c.version.Clock
		})
		commit, err := replicator.Examine(n.r, replicator.Entry{Version: c.version, Key: c.key, Value: c.value})
		require.NoError(l.t, err)
		_, err = commit()
		require.NoError(l.t, err)
		if err := l.sync(); err != nil {
			return err
		}
		return l.write(l.victim, false, l.put(l.victim, "after the leap", 10))
	}},
	{"die", func(l *life) error {
		if err := l.write(l.victim, false, l.put(l.victim, "key 01", 300), l.remove("large 1")); err != nil {
			return err
		}
		l.die(nil)
		if err := l.start(l.victim); err != nil {
			return err
		}
		if err := l.write(l.victim, true, l.put(l.victim, "after a kill", 300)); err != nil {
			return err
		}
		return l.sync()
	}},
	{"lose power", func(l *life) error {
		for i := range 6 {
			if err := l.write(l.victim, i == 3, l.put(l.victim, fmt.Sprintf("key %02d", i), 200)); err != nil {
				return err
			}
		}
		l.die(simtest.Tear(l.rng))
		if err := l.start(l.victim); err != nil {
			return err
		}
		for i := range 6 {
			n := l.nodes[i%3]
			if err := l.write(n, i == 0, l.put(n, fmt.Sprintf("key %02d", i+3), 200)); err != nil {
				return err
			}
		}
		if err := l.adopted(); err != nil {
			return err
		}
		return l.sync()
	}},
	{"close", func(l *life) error {
		time.Sleep(10 * time.Second) // for what is acknowledged in the background
		return l.end()
	}},
}

// errUnadopted ends a life in which adoption does not, for each read fails.
var errUnadopted = errors.New("adoption has stopped")

// adopted waits until the victim's old keys are taken in.
func (l *life) adopted() error {
	for range 100 {
		if err := l.failed(); err != nil || l.victim.adopted() {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errUnadopted
}

// image is what is left of a life when the victim crashes, and how far it had come.
type image struct {
	progress
	life      *life
	operation int64
	disks     []*simtest.Disk // the victim's first
	boots     []int
	next      uint64 // the clock after the greatest that the victim had: after a kill, that is found
}

// image returns the present one.
func (l *life) image(operation int64) *image {
	im := &image{life: l, progress: l.now(), operation: operation}
	var disks []*simtest.Disk
	for _, n := range l.nodes {
		disks = append(disks, n.disk)
		im.boots = append(im.boots, n.boot)
	}
	im.disks = simtest.CopyAll(disks...)
	return im
}

// losses are the ways to crash: what of the unsynced is lost.
var losses = []string{"kill", "drop", "tear", "keep"}

// crash returns the victim's disk as it is found after a crash.
func (im *image) crash(loss string) *simtest.Disk {
	rng := rand.New(rand.NewPCG(uint64(im.operation), 0))
	switch loss {
	case "drop":
		return im.disks[0].PowerCut(simtest.Drop)
	case "tear":
		return im.disks[0].PowerCut(simtest.Tear(rng))
	case "keep":
		return im.disks[0].PowerCut(simtest.Keep(rng))
	}
	return im.disks[0].Copy()
}

// safe reports whether a change has to be there after a crash, at the one who made it.
func (im *image) safe(i int, loss string) bool {
	c := im.life.acked[i]
	if !c.victim || c.sync {
		return true
	}
	return (i < im.cut[0] || i >= im.cut[1]) && (i < im.durable || loss == "kill")
}

// checkSafe returns which change is missing in a database of which it must not be.
func (im *image) checkSafe(found rows, loss string, everybodys bool) error {
	for i, c := range im.life.acked[:im.count] {
		if !im.safe(i, loss) || !c.victim && !everybodys {
			continue
		}
		row, has := found.index[c.key]
		if !has && found.data[c.key] == c.value && im.life.raw[c.key] == c.value {
			continue // it is yet to be adopted
		}
		if !has || row.Stamp.Compare(c.version.Stamp) < 0 {
			return fmt.Errorf("key %q: %v was acknowledged, with Sync: %v, and is missing: there is %v", c.key, c.version, c.sync, row)
		}
	}
	return nil
}

// next returns the clock after the greatest that is in an index.
func (r rows) next() (next uint64) {
	for _, row := range r.index {
		next = max(next, row.Clock+1)
	}
	return next
}

// afterCrash is the value of all that is written after a crash.
const afterCrash = "written after the crash"

// checkRows returns what is wrong with what a database holds. If it is adopted, there
// are no values without index rows.
func (im *image) checkRows(found rows, adopted bool) error {
	for key, row := range found.index {
		value, has := found.data[key]
		if has == row.Deleted {
			return fmt.Errorf("key %q: deleted is %v in the index, there is a value: %v", key, row.Deleted, has)
		}
		if written, known := im.life.written[row.Stamp]; known && value != written {
			return fmt.Errorf("key %q: the value of %v is %.40q, here is %.40q", key, row, written, value)
		}
	}
	for key, value := range found.data {
		if _, has := found.index[key]; !has && (adopted || im.life.raw[key] != value) {
			return fmt.Errorf("key %q is not in the index", key)
		}
		if value != afterCrash && !im.life.asked[key][value] {
			return fmt.Errorf("key %q has a value that nobody has written: %.40q", key, value)
		}
	}
	return nil
}
