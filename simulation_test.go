package replicator_test

import (
	"cmp"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

var (
	simSeeds = flag.Int("seeds", 0, "number of seeds that the simulation runs: 60, or what -short and -long make of it, if 0")
	simSteps = flag.Int("steps", defaultSteps, "number of steps of each simulation")
)

const (
	defaultSeeds = 60
	manySeeds    = 120
	defaultSteps = 120
	// hopeless is after how much real time a seed won't end any more. It takes a
	// second, or, with the race detector on a busy machine, some more.
	hopeless = 3 * time.Minute
)

// TestSimulation lets small clusters do everything that can happen to them, and
// checks at each step and at the end that no replica has lost what it may not lose,
// and at the end that all are equal, and quiet.
//
// Over all seeds of a normal run it also checks that every kind of event, and every
// rare branch of what follows, did happen (simulation_sometimes_test.go), and that
// the faults it is known to find are still there (known_failures_test.go).
func TestSimulation(t *testing.T) {
	seeds := cmp.Or(*simSeeds, budget(10, defaultSeeds, 2000))
	c := newCensus()
	t.Cleanup(func() { c.judge(t, seeds) })
	eachSeed(t, seeds, func(t *testing.T, seed int64) {
		defer time.AfterFunc(hopeless, func() {
			panic(fmt.Sprintf("seed %d does not end; see how to repeat it in CONTRIBUTING.md", seed))
		}).Stop()
		inSeeded(t, seed, []int{3, 4, 5, 3, 6, 9}[seed%6], func(t *testing.T, cluster *cluster) {
			s := newSimulation(cluster)
			defer func() { c.add(s.seen, t.Failed()) }()
			defer cluster.net.CloseAll()
			s.run(*simSteps)
		})
	})
}

// TestSimulationHybrid is TestSimulation with hybrid clocks, and wall clocks that disagree
// and jump.
func TestSimulationHybrid(t *testing.T) {
	eachSeed(t, cmp.Or(*simSeeds, budget(4, 4, 500)), func(t *testing.T, seed int64) {
		inSeeded(t, seed, []int{3, 4, 3, 5}[seed%4], func(t *testing.T, cluster *cluster) {
			begin2027()
			cluster.kind = replicator.Hybrid
			for _, n := range cluster.nodes {
				n.ahead = time.Duration(cluster.rng.IntN(20)) * time.Minute
			}
			s := newSimulation(cluster)
			defer cluster.net.CloseAll()
			s.run(*simSteps)
		})
	})
}

type simulation struct {
	*cluster
	*oracle
	seen *sightings
	feed *keepers

	keys     int  // how many there are
	largest  int  // bytes in a value
	timeOnly bool // nobody calls SyncNow at the end
	reaping  bool // deletions are forgotten, and who is stale rejoins by itself
	values   int  // made so far
	backups  []backup
	dialOnly *node              // one that nobody can dial, or nil
	base     map[*node][]string // whom a node dials whatever happens: this connects all
	addrs    *addresses
	groups   [][]string // of a partition
	cut      func(from, to string) int
	frozen   [][2]string // pairs of hosts
	slow     [][2]string // pairs of hosts, and far ones
}

func newSimulation(c *cluster) *simulation {
	s := &simulation{cluster: c, seen: newSightings(), base: map[*node][]string{}, addrs: newAddresses()}
	s.oracle = newOracle(s)
	s.feed = newKeepers(c.t, uint64(c.seed))
	s.feed.seen = s.seen.note
	for _, n := range s.nodes {
		// leveldb slows writers down by sleeping, which is a stop in a bubble while
		// somebody waits for a mutex of a session that waits for the writer.
		n.ldb.WriteL0SlowdownTrigger = math.MaxInt
		n.ldb.WriteL0PauseTrigger = math.MaxInt
	}
	return s
}

func (s *simulation) run(steps int) {
	s.build()
	s.size()
	s.page()
	s.furnish()
	for _, n := range s.nodes {
		if s.of(n).unwritten != nil {
			s.crashingStart(n)
		}
		s.start(n)
	}
	for range steps {
		s.step()
		s.checkKnown()
	}
	s.finish()
	s.checkKnown()
}

// build chooses a topology, and who dials whom.
func (s *simulation) build() {
	n := len(s.nodes)
	if s.rng.IntN(4) == 0 {
		s.dialOnly = s.any()
	}
	link := func(a, b int) {
		way := s.rng.IntN(3)
		if way != 1 && s.nodes[b] != s.dialOnly || s.nodes[a] == s.dialOnly {
			s.link(a, b)
		}
		if way != 0 && s.nodes[a] != s.dialOnly || s.nodes[b] == s.dialOnly {
			s.link(b, a)
		}
	}
	topology := s.rng.IntN(4)
	for a := range n {
		for b := range a {
			chain, star, ring := a == b+1, b == 0, a == b+1 || a == n-1 && b == 0
			if [...]bool{true, chain, star, ring}[topology] {
				link(a, b)
			}
		}
	}
	for _, n := range s.nodes {
		s.base[n] = slices.Clone(n.peers)
		s.lead(secondAddress(n), n)
	}
	s.timeOnly = s.rng.IntN(2) == 0
	s.trace("%d nodes, topology %s", n, [...]string{"mesh", "chain", "star", "ring"}[topology])
}

// secondAddress is another name of a node, which can be moved to another node.
func secondAddress(n *node) string { return n.name + ":2" }

// size chooses how many keys there are, and how large values get.
func (s *simulation) size() {
	s.keys, s.largest = 12, 5000
	if s.rng.IntN(5) == 0 {
		s.keys = 200
	}
	if s.rng.IntN(5) == 0 {
		s.largest = 64 << 10
	}
	s.trace("%d keys, values of up to %d bytes", s.keys, s.largest)
}

// page chooses how small pages are, how often a scan goes on in key order, and how
// patient the replicas are.
func (s *simulation) page() {
	entries := []int{1, 2, 3, 5, 500}[s.rng.IntN(5)]
	if s.largest > 5000 {
		entries = []int{2, 500}[s.rng.IntN(2)]
	}
	oneIn := []int64{1, 2, 5, 1 << 62}[s.rng.IntN(4)]
	backlog := []int{0, 0, 1, 2000}[s.rng.IntN(4)]
	var pages atomic.Int64
	rescan := func() bool {
		yes := pages.Add(1)%oneIn == 0
		if yes {
			s.seen.note("a scan of the log goes on in key order")
		}
		return yes
	}
	logger := slog.New(&logWatcher{seen: s.seen})
	interval := []time.Duration{0, time.Second}[s.rng.IntN(2)]
	timeout := []time.Duration{0, 3 * time.Second}[s.rng.IntN(2)]
	s.durableEvery = []time.Duration{0, 200 * time.Millisecond, 5 * time.Second}[s.rng.IntN(3)]
	s.paging = func(o replicator.Options) *replicator.Options {
		o.Logger, o.MaxInterval, o.Timeout, o.BacklogBytes = logger, interval, timeout, backlog
		unblocked(&o)
		o.Dial = s.addrs.watch(o.Listener.Addr().String(), o.Dial)
		return replicator.WithPages(o, entries, rescan)
	}
	s.age()
	s.forgetDeletions()
	s.trace("pages of %d, one in %d goes on in key order, a backlog of %d bytes, MaxInterval %v, Timeout %v, durable points every %v", entries, oneIn, backlog, interval, timeout, s.durableEvery)
}

// age chooses how soon logs expire: in some clusters hard, so that peers fall below the
// floor all the time.
func (s *simulation) age() {
	if s.rng.IntN(2) == 0 {
		return
	}
	every := []time.Duration{50 * time.Millisecond, time.Second}[s.rng.IntN(2)]
	newest, most := []int{1, 10}[s.rng.IntN(2)], []int{1, 5, 30, 1000}[s.rng.IntN(4)]
	age := []time.Duration{0, 5 * time.Second}[s.rng.IntN(2)]
	s.expiring(every, newest, most)
	before := s.paging
	s.paging = func(o replicator.Options) *replicator.Options {
		o.MaxLogAge = age
		return before(o)
	}
	s.trace("logs expire every %v, but for %d records, at %d records, after %v", every, newest, most, age)
}

// forgetDeletions has some clusters forget deletions, and their peers, all the time.
func (s *simulation) forgetDeletions() {
	if s.rng.IntN(3) > 0 {
		return
	}
	s.reaping, s.liveOnly = true, true
	age, peerAge := []time.Duration{time.Second, 10 * time.Second}[s.rng.IntN(2)], []time.Duration{time.Minute, time.Hour}[s.rng.IntN(2)]
	s.durableEvery = []time.Duration{200 * time.Millisecond, 5 * time.Second}[s.rng.IntN(2)]
	before := s.paging
	s.paging = func(o replicator.Options) *replicator.Options {
		o.TombstoneAge, o.PeerAge, o.AutoRejoin = age, peerAge, true
		return before(o)
	}
	s.trace("tombstones go after %v, peers after %v", age, peerAge)
}

// furnish has some clusters start with databases that were in use before: all with
// the same values, or each with its own.
func (s *simulation) furnish() {
	kind, unsynced := s.rng.IntN(8), s.rng.IntN(2) == 0
	if kind > 1 {
		return
	}
	for i, n := range s.nodes {
		values := map[string]string{}
		for range s.keys / 2 {
			key := s.key()
			values[key] = fmt.Sprintf("old value of %s", key)
			if kind == 1 {
				values[key] += fmt.Sprintf(" at %d", i)
			}
		}
		if unsynced {
			for key := range values {
				values[key] += strings.Repeat("z", 20<<10)
			}
			onDisk(s.t, n.disk, func(*leveldb.DB) {}) // leveldb won't open what it has not finished to create
			s.of(n).unwritten = values
		} else {
			fillDisk(s.t, n.disk, values)
		}
		s.of(n).old = values
	}
	s.trace("the databases hold values already, unsynced %v", unsynced)
}

func (s *simulation) trace(format string, args ...any) {
	if *story {
		s.t.Logf("%v "+format, append([]any{time.Now().Format("15:04:05.000")}, args...)...)
	}
}

func (s *simulation) key() string { return fmt.Sprintf("key-%d", s.rng.IntN(s.keys)) }

// value is unique, and now and then too large to be sent along.
func (s *simulation) value() string {
	s.values++
	v := fmt.Sprintf("value %d", s.values)
	if large := s.largest > 5000 && s.rng.IntN(3) == 0; large || s.rng.IntN(6) == 0 {
		v += strings.Repeat("x", 1000+s.rng.IntN(s.largest-1000))
	}
	return v
}

// any returns one of the nodes.
func (s *simulation) any() *node { return s.nodes[s.rng.IntN(len(s.nodes))] }

// host returns one of the nodes that can be dialled.
func (s *simulation) host() *node {
	for {
		if n := s.any(); n != s.dialOnly {
			return n
		}
	}
}

// step lets one thing happen, and some time pass.
func (s *simulation) step() {
	n := s.any()
	s.start(n)
	s.look(n)
	e := s.draw()
	s.seen.note("event: " + e.name)
	e.do(s, n)
	if n.r != nil && replicator.HasExpired(n.r) {
		s.seen.note("log records expire")
	}
	if n.r != nil && s.feed.rng.IntN(8) == 0 {
		s.feed.look(n)
	}
	if s.rng.IntN(3) == 0 {
		time.Sleep(time.Duration(s.rng.IntN(500)) * time.Millisecond)
	}
}

// draw chooses what happens.
func (s *simulation) draw() *event {
	total := 0
	for _, e := range events {
		total += e.weight
	}
	p := s.rng.IntN(total)
	for i := range events {
		if p -= events[i].weight; p < 0 {
			return &events[i]
		}
	}
	panic("unreachable")
}

// finish ends all faults and lets the cluster converge: by SyncNow, or merely by
// the time that passes.
func (s *simulation) finish() {
	s.trace("all faults end")
	s.repair()
	for _, n := range s.nodes {
		s.start(n)
		s.readmit(n)
		for _, addr := range s.base[n] {
			require.NoError(s.t, n.r.AddPeer(addr, nil))
		}
	}
	if s.timeOnly {
		s.wait()
		s.seen.note("convergence without SyncNow")
	} else {
		s.converge()
		s.seen.note("convergence by SyncNow")
	}
	s.verify()
	for _, n := range s.nodes {
		s.feed.look(n)
	}
	s.calm()
	s.verify()
}

// repair ends what is wrong with the network.
func (s *simulation) repair() {
	s.heal(nil)
	s.cutNoConnections(nil)
	for _, p := range s.frozen {
		s.net.Thaw(p[0], p[1])
	}
	for _, p := range s.slow {
		s.net.SetSpeed(p[0], p[1], 0)
		s.net.SetDelay(p[0], p[1], 0)
	}
	s.frozen, s.slow = nil, nil
}

// convergenceTime is how long replicas that can reach each other may need until
// they agree. What they wait for is, at worst, the end of a session over a link that
// was frozen, and the next attempt of an address that could not be reached:
// Timeout and twice 1.2 times MaxInterval, which add up to 34 s. A value that is being
// fetched can take a Timeout more for each session that has to give it up first.
const convergenceTime = 2 * time.Minute

// wait waits for the replicas to agree, with nobody calling SyncNow.
func (s *simulation) wait() {
	start := time.Now()
	for range convergenceTime / time.Second {
		time.Sleep(time.Second)
		if s.equal() {
			s.trace("all agree %v after that", time.Since(start))
			s.check()
			return
		}
	}
	s.disagree(nil)
}

// calm checks that nothing more is written or sent once all agree: after one more
// round, for acknowledgements and what came in last, and after the minute in which
// each address is dialled to see who is there, which may be somebody new, and after the
// five minutes in which each makes durable what it has.
func (s *simulation) calm() {
	time.Sleep(80*time.Second + 5*time.Minute)
	round := func() {
		if !s.timeOnly {
			for _, n := range s.nodes {
				err := n.sync()
				for i := 0; err != nil && i < 5; i++ { // a connection can still be due to be cut
					err = n.sync()
				}
				require.NoError(s.t, err, "SyncNow at %s, which has agreed with all", n.name)
			}
		}
		time.Sleep(20 * time.Second) // each has asked all of its peers for their heads
	}
	round()
	writes := map[*node]*atomic.Int64{}
	for _, n := range s.nodes {
		writes[n] = countJournalWrites(n.disk)
	}
	measure := func() (all []string) {
		for _, n := range s.nodes {
			written := writes[n].Load()
			if s.reaping {
				written = 0 // when peers were last seen is noted often
			}
			status := n.r.Status()
			in, out := map[replicator.DatabaseID]int64{}, map[replicator.DatabaseID]int64{}
			for _, p := range status.Peers {
				in[p.ID], out[p.ID] = p.RecordsIn, p.RecordsOut
			}
			all = append(all, fmt.Sprintf("%s: head %d, %d records, %d written, %d arrived, %d sent",
				n.name, status.Head, status.LogRecords, written, sum(in), sum(out)))
		}
		return all
	}
	for _, n := range s.nodes {
		require.Equal(s.t, replicator.Vector(s.nodes[0].r), replicator.Vector(n.r), "what %s and %s know", s.nodes[0].name, n.name)
	}
	before, dials := measure(), s.addrs.count()
	round()
	round()
	require.Equal(s.t, before, measure(), "something was written or sent, with nothing new")
	for by, count := range s.addrs.count() {
		require.LessOrEqual(s.t, count-dials[by], 5, "how often %v was dialled, with nothing new", by)
	}
	for _, n := range s.nodes {
		n.disk.SetFault(nil)
	}
	s.seen.note("quiet")
}

func sum[K comparable](figures map[K]int64) (total int64) {
	for _, figure := range figures {
		total += figure
	}
	return total
}

// backup is a consistent copy of a node's files. Somebody who starts it in the
// boot in which it was made has lost nothing that was in it.
type backup struct {
	disk *simtest.Disk
	boot int
	past *past
}
