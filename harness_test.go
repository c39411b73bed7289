package replicator_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

var (
	long  = flag.Bool("long", false, "run more seeds, and with more data, than every day")
	seed  = flag.Int64("seed", 0, "run the randomised tests with this seed only")
	story = flag.Bool("story", false, "print the steps of the simulation")
)

// budget returns how much of something a test does: with -short, every day, and with
// -long.
func budget(short, normal, most int) int {
	switch {
	case *long:
		return most
	case testing.Short():
		return short
	}
	return normal
}

// eachSeed runs a randomised test with a number of seeds, or with the one of -seed.
// If it fails it says how to repeat that.
func eachSeed(t *testing.T, seeds int, test func(t *testing.T, seed int64)) {
	first, last := int64(1), int64(seeds)
	if *seed != 0 {
		first, last = *seed, *seed
	}
	name := t.Name()
	for s := first; s <= last; s++ {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			t.Parallel()
			defer func() {
				if t.Failed() {
					t.Logf("to repeat: go test -run '^%s$' -seed %d%s .", name, s, otherFlags())
				}
			}()
			test(t, s)
		})
	}
}

// otherFlags returns the flags of this package that were given, but for those that
// choose seeds.
func otherFlags() (flags string) {
	flag.Visit(func(f *flag.Flag) {
		if !strings.HasPrefix(f.Name, "test.") && f.Name != "seed" && f.Name != "seeds" {
			flags += fmt.Sprintf(" -%s=%v", f.Name, f.Value)
		}
	})
	return flags
}

// inBubble runs a test in simulated time. The databases that it closes get the
// second that a goroutine of goleveldb's needs to end.
func inBubble(t *testing.T, test func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(2 * time.Second)
		test(t)
	})
}

// inCluster runs a test in a bubble, with some nodes that are yet to be opened.
func inCluster(t *testing.T, nodes int, test func(t *testing.T, c *cluster)) {
	inSeeded(t, 1, nodes, test)
}

// inPair runs a test in a bubble, with two nodes that are yet to be opened, of which
// n dials source.
func inPair(t *testing.T, seed int64, test func(t *testing.T, c *cluster, source, n *node)) {
	inSeeded(t, seed, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		test(t, c, c.nodes[0], c.nodes[1])
	})
}

// inSeeded is inCluster with a seed of the test's choice, for what is drawn at random.
func inSeeded(t *testing.T, seed int64, nodes int, test func(t *testing.T, c *cluster)) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, seed, nodes)
		defer c.close()
		test(t, c)
	})
}

// until waits for a condition, in a bubble, for at most a minute.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	untilWithin(t, time.Minute, what, condition)
}

// untilWithin waits for a condition, in a bubble, for at most some time.
func untilWithin(t testing.TB, most time.Duration, what string, condition func() bool) {
	t.Helper()
	for range most / (10 * time.Millisecond) {
		if condition() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	require.FailNow(t, "it did not happen: "+what)
}

// bounded waits for what must not hang, in a bubble.
func bounded(t testing.TB, what string, limit time.Duration, work func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		stacks := make([]byte, 1<<20)
		// What hangs keeps the bubble from ending, and the test from saying so.
		fmt.Printf("%s hangs in %s\n%s\n", what, t.Name(), stacks[:runtime.Stack(stacks, true)])
		require.FailNow(t, what+" hangs")
	}
	if t.Failed() {
		t.FailNow() // by work
	}
}

// cluster is a number of replicas on simulated disks and a simulated network.
type cluster struct {
	t     testing.TB
	seed  int64
	rng   *rand.Rand
	net   *simtest.Network
	nodes []*node
	// written is every value that a put gave a stamp to.
	written map[replicator.Stamp]string
	boots   int
	// paging changes the options of all nodes.
	paging func(replicator.Options) *replicator.Options
	// liveOnly has equal leave deletions out, which are forgotten at different moments.
	liveOnly bool
	// durableEvery is how often the nodes make everything durable; 0: the default.
	durableEvery time.Duration
	kind         replicator.ClockKind
}

// node is one server: its host name is also its address.
type node struct {
	c     *cluster
	name  string
	peers []string
	disk  *simtest.Disk
	ldb   opt.Options // of its database
	boot  int         // which boot of which machine it runs in
	db    *leveldb.DB
	r     *replicator.Replicator // nil if it is not open

	recovered bool // the next opening sets Recovered

	ahead time.Duration // of its wall clock
}

// newCluster makes nodes n0, n1 and so on, which know nobody.
func newCluster(t testing.TB, seed int64, nodes int) *cluster {
	c := &cluster{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(uint64(seed), 0)), net: simtest.NewNetwork(seed),
		written: map[replicator.Stamp]string{},
		paging:  func(o replicator.Options) *replicator.Options { return &o },
	}
	for i := range nodes {
		c.nodes = append(c.nodes, &node{
			c: c, name: fmt.Sprintf("n%d", i), disk: simtest.NewDisk(), boot: c.newBoot(),
			// So small that journals and tables come and go.
			ldb: opt.Options{WriteBuffer: 64 << 10, DisableLargeBatchTransaction: true},
		})
	}
	return c
}

// fromDisk has the nodes keep no backlog: every pull is a scan.
func (c *cluster) fromDisk() *cluster {
	c.paging = func(o replicator.Options) *replicator.Options {
		o.BacklogBytes = 1
		return &o
	}
	return c
}

// expiring has the nodes look every so often what of their logs has expired, and keep a
// number of records, or that many for their peers.
func (c *cluster) expiring(every time.Duration, newest, most int) *cluster {
	before := c.paging
	c.paging = func(o replicator.Options) *replicator.Options {
		o.MaxLogRecords = most
		return before(*replicator.WithExpiry(o, every, newest))
	}
	return c
}

// newBoot names a boot of one of the machines.
func (c *cluster) newBoot() int {
	c.boots++
	return c.boots
}

// link lets a dial b.
func (c *cluster) link(a, b int) {
	c.nodes[a].peers = append(c.nodes[a].peers, c.nodes[b].name)
}

// mesh links all nodes with each other, both ways.
func (c *cluster) mesh() *cluster {
	for a := range c.nodes {
		for b := range c.nodes {
			if a != b {
				c.link(a, b)
			}
		}
	}
	return c
}

// open opens all nodes that are not open.
func (c *cluster) open() *cluster {
	for _, n := range c.nodes {
		n.open()
	}
	return c
}

// close ends everything, so that the bubble can end.
func (c *cluster) close() {
	for _, n := range c.nodes {
		n.close()
	}
}

// known shows a figure of Status.
func known(figure *uint64) string {
	if figure == nil {
		return "unknown"
	}
	return fmt.Sprint(*figure)
}

// options are those of a node, whose listener listens already.
func (n *node) options() *replicator.Options {
	o := replicator.Options{
		Listener: n.c.net.Listen(n.name),
		Dial:     n.c.net.Dial(n.name),
		Peers:    map[string]replicator.Meta{},

		Recovered: n.recovered, Clock: n.c.kind,
	}
	n.recovered = false
	for _, p := range n.peers {
		o.Peers[p] = nil
	}
	if n.c.kind == replicator.Hybrid {
		o = *replicator.WithWall(o, n.wall)
	}
	o = *replicator.WithDurable(o, n.c.durableEvery)
	return n.c.paging(*replicator.WithBootID(o, fmt.Sprint("boot ", n.boot)))
}

// open opens a node unless it is open, with options that may be changed: by
// dialOnly, by tapped, or by the test itself. n.ldb has those of the database.
func (n *node) open(changes ...func(o *replicator.Options)) {
	if n.r != nil {
		require.Empty(n.c.t, changes, "%s is open", n.name)
		return
	}
	require.NoError(n.c.t, n.start(changes...))
}

// start is open where that may fail: then n.db may be open, and n.r is not.
func (n *node) start(changes ...func(o *replicator.Options)) error {
	if err := n.openDB(); err != nil {
		return err
	}
	return n.wrap(changes...)
}

// openDB opens a node's database.
func (n *node) openDB() error {
	db, err := leveldb.Open(n.disk, &n.ldb)
	if err == nil {
		n.db = db
	}
	return err
}

// wrap opens the Replicator of a node whose database is open.
func (n *node) wrap(changes ...func(o *replicator.Options)) (err error) {
	o := n.options()
	for _, change := range changes {
		change(o)
	}
	n.r, err = replicator.Open(n.db, o)
	if err != nil && o.Listener != nil {
		o.Listener.Close()
	}
	return err
}

// wall returns the time by the clock of a node. It must not be called while ahead changes.
func (n *node) wall() time.Time { return time.Now().Add(n.ahead) }

// dialOnly has a node be one that nobody can dial.
func dialOnly(o *replicator.Options) {
	o.Listener.Close()
	o.Listener = nil
}

// mergesNothing has a node give what it has, and take nothing.
func mergesNothing(o *replicator.Options) {
	o.Authorize = func(replicator.PeerInfo) (replicator.Access, error) { return replicator.ReadOnly, nil }
}

// openSlowly opens a node whose every write to the journal takes some time, and
// adoption with it. What is written under a mutex must not be slow, for time does not pass
// in a bubble while somebody waits for one; so the write buffer has room for everything.
func (n *node) openSlowly() {
	n.disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
		if op == simtest.OpWrite && fd.Type == storage.TypeJournal {
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	})
	n.ldb.WriteBuffer = roomy
	n.open()
}

// roomy is a write buffer that is not filled up, so that there is one journal only.
const roomy = 16 << 20

func (n *node) close() {
	if n.r == nil {
		return
	}
	require.NoError(n.c.t, n.r.Close())
	require.NoError(n.c.t, n.db.Close())
	n.r, n.db = nil, nil
}

// replaceDisk ends the node as it is and gives it another disk.
func (n *node) replaceDisk(disk *simtest.Disk) {
	n.close()
	n.disk = disk
}

// closedDisk returns a copy of what the node's disk holds when it is closed.
func (n *node) closedDisk() *simtest.Disk {
	n.close()
	disk := n.disk.Copy()
	n.open()
	return disk
}

// kill ends the process at this moment; what was written is still there.
func (n *node) kill() { n.die(n.disk.Copy) }

// powerCut ends the machine at this moment; what was not synced may be lost.
func (n *node) powerCut() {
	n.die(func() *simtest.Disk { return n.disk.PowerCut(simtest.Tear(n.c.rng)) })
	n.boot = n.c.newBoot()
}

// die ends the node, and has it go on from what its disk holds at this moment. It is cut
// off before, or what it does between that moment and its end could be told to others.
func (n *node) die(disk func() *simtest.Disk) {
	defer n.c.net.CutOff(n.name)()
	n.replaceDisk(disk())
}

func (n *node) put(key, value string) {
	require.NoError(n.c.t, n.r.Put([]byte(key), []byte(value), nil))
	n.remember(key, value)
}

func (n *node) delete(key string) {
	require.NoError(n.c.t, n.r.Delete([]byte(key), nil))
}

// remember notes which stamp a value has got, unless a merge was faster.
func (n *node) remember(key, value string) {
	if version := n.version(key); version.Origin == n.r.Status().Epoch {
		n.c.written[version.Stamp] = value
	}
}

// fill puts keys in the order of their numbers.
func (n *node) fill(prefix string, from, to, size int) {
	for i := from; i < to; i++ {
		n.put(fmt.Sprintf("%s%05d", prefix, i), fmt.Sprint(n.name, i, strings.Repeat("v", size)))
	}
}

func (n *node) get(key string) (string, bool) {
	value, err := n.r.Get([]byte(key), nil)
	if err == leveldb.ErrNotFound {
		return "", false
	}
	require.NoError(n.c.t, err)
	return string(value), true
}

// arrives waits until a value is there, with nobody calling SyncNow.
func (n *node) arrives(key, value string) {
	until(n.c.t, fmt.Sprintf("%s arrives at %s", key, n.name), func() bool {
		got, _ := n.get(key)
		return got == value
	})
}

// version returns the version of a key that has one.
func (n *node) version(key string) replicator.Version {
	v, err := n.r.Version([]byte(key))
	require.NoError(n.c.t, err)
	return v
}

// adopted reports whether the keys that were there before are taken in.
func (n *node) adopted() bool { return n.r.Status().Adoption.Done }

// sync is SyncNow, with a minute's time.
func (n *node) sync() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return n.r.SyncNow(ctx)
}

// peer returns the status of the one peer with that address.
func (n *node) peer(addr string) (found replicator.PeerStatus) {
	count := 0
	for _, p := range n.r.Status().Peers {
		if p.Addr == addr {
			found = p
			count++
		}
	}
	require.Equal(n.c.t, 1, count, "peers with address %s", addr)
	return found
}

func (n *node) inSync(addr string) bool { return n.peer(addr).State == "in sync" }

// index returns what a node knows of each key.
func (n *node) index() map[string]replicator.Row { return indexOf(n.c.t, n.db) }

// state is all that replicas have to agree on.
type state struct {
	values   map[string]string
	versions map[string]replicator.Version
}

func (n *node) state() state {
	s := state{values: map[string]string{}}
	it := n.r.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		s.values[string(it.Key())] = string(it.Value())
	}
	require.NoError(n.c.t, it.Error())
	var err error
	s.versions, err = replicator.Versions(n.db)
	require.NoError(n.c.t, err)
	return s
}

func (s state) equal(t state) bool {
	return maps.Equal(s.values, t.values) && maps.Equal(s.versions, t.versions)
}

// converge syncs until all replicas hold the same, and fails if they don't.
func (c *cluster) converge() {
	c.net.Heal()
	c.net.SetCut(nil)
	c.open()
	var last error
	for range 20 + 5*len(c.nodes) {
		last = nil
		for _, n := range c.nodes {
			if err := n.sync(); err != nil {
				last = err
			}
		}
		if last == nil && c.equal() {
			c.check()
			return
		}
		time.Sleep(time.Second)
	}
	c.disagree(last)
}

// disagree fails, and tells how far each node is.
func (c *cluster) disagree(last error) {
	var report strings.Builder
	first := c.nodes[0].state()
	for _, n := range c.nodes {
		status, state := n.r.Status(), n.state()
		for key, version := range state.versions {
			if was := first.versions[key]; version != was || state.values[key] != first.values[key] {
				fmt.Fprintf(&report, "key %.32q: %v %.32q at n0, %v %.32q at %s\n",
					key, was, first.values[key], version, state.values[key], n.name)
			}
		}
		for key, was := range first.versions {
			if _, has := state.versions[key]; !has {
				fmt.Fprintf(&report, "key %.32q: %v %.32q at n0, nothing at %s\n", key, was, first.values[key], n.name)
			}
		}
		fmt.Fprintf(&report, "%s: id %.8v, head %d, %d values, %d versions\n",
			n.name, status.ID, status.Head, len(state.values), len(state.versions))
		for _, p := range status.Peers {
			fmt.Fprintf(&report, "\t%s, id %.8v: %s, behind %s, unconfirmed %s, %s\n", p.Addr, p.ID, p.State, known(p.Behind), known(p.Unconfirmed), p.LastError)
		}
	}
	if *story {
		stacks := make([]byte, 1<<20)
		fmt.Printf("%s\n", stacks[:runtime.Stack(stacks, true)])
	}
	c.t.Fatalf("replicas do not converge; last error: %v\n%s", last, &report)
}

// settleDown lets all that is under way end, and then compares.
func (c *cluster) settleDown() {
	c.net.Heal()
	time.Sleep(30 * time.Second)
	c.converge()
}

func (c *cluster) equal() bool {
	first := c.nodes[0].state()
	if c.liveOnly {
		for _, n := range c.nodes[1:] {
			if s := n.state(); !maps.Equal(c.nodes[0].live(), n.live()) || !maps.Equal(first.values, s.values) {
				return false
			}
		}
		return true
	}
	for _, n := range c.nodes[1:] {
		if !n.state().equal(first) {
			return false
		}
	}
	return true
}

// check verifies each replica by itself: data, index and log fit together, and
// every value stands beside the stamp that it was written with.
func (c *cluster) check() {
	for _, n := range c.nodes {
		require.NoError(c.t, replicator.CheckConsistent(n.r), n.name)
		s := n.state()
		for key, value := range s.values {
			if written, known := c.written[s.versions[key].Stamp]; known {
				require.Equal(c.t, written, value, "%s: value of %s at %v", n.name, key, s.versions[key])
			}
		}
	}
}
