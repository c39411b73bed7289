package replicator_test

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// event is something that can happen in a simulation, to a node that is open.
type event struct {
	name   string
	weight int
	do     func(s *simulation, n *node)
}

// events are all that happens. Each of them must happen in a normal run.
var events = []event{
	{"put", 300, (*simulation).putOne},
	{"delete", 110, (*simulation).deleteOne},
	{"batch", 70, (*simulation).batch},
	{"concurrent writers", 40, (*simulation).crowd},
	{"time passes", 15, (*simulation).pass},
	{"sync", 40, (*simulation).syncOne},
	{"compare", 10, (*simulation).compareOne},

	{"restart", 25, (*simulation).restart},
	{"close", 25, (*simulation).shut},
	{"kill", 30, (*simulation).killOne},
	{"power cut", 30, (*simulation).cutPower},
	{"power cut after a close", 10, (*simulation).cutPowerOfClosed},
	{"power cut while busy", 30, (*simulation).cutPowerOfBusy},
	{"crash while opening", 20, (*simulation).crashWhileOpening},
	{"wipe", 8, (*simulation).wipe},
	{"backup", 10, (*simulation).backUp},
	{"restore", 12, (*simulation).restoreOne},
	{"rewind", 12, (*simulation).rewind},
	{"clone", 10, (*simulation).clone},
	{"recovered files", 10, (*simulation).recover},

	{"partition", 30, (*simulation).partition},
	{"heal", 40, (*simulation).heal},
	{"connections are cut", 20, (*simulation).cutConnections},
	{"connections last again", 15, (*simulation).cutNoConnections},
	{"freeze", 20, (*simulation).freeze},
	{"slow link", 20, (*simulation).slowDown},
	{"far link", 20, (*simulation).moveApart},
	{"the network is repaired", 30, func(s *simulation, _ *node) { s.repair() }},

	{"forget", 8, (*simulation).forget},
	{"readmit", 12, (*simulation).readmit},
	{"add peer", 12, (*simulation).addPeer},
	{"remove peer", 15, (*simulation).removePeer},
	{"own address", 10, (*simulation).addSelf},
	{"second address", 15, (*simulation).addSecond},
	{"address moves", 15, (*simulation).moveAddress},
}

// options draws how a write is made durable.
func (s *simulation) options() *opt.WriteOptions {
	return &opt.WriteOptions{Sync: s.rng.IntN(4) == 0}
}

func (s *simulation) putOne(n *node) {
	key, value, wo := s.key(), s.value(), s.options()
	s.trace("%s puts %s, %d bytes, sync %v", n.name, key, len(value), wo.Sync)
	s.putAs(n, key, value, wo)
}

func (s *simulation) putAs(n *node, key, value string, wo *opt.WriteOptions) {
	var b leveldb.Batch
	b.Put([]byte(key), []byte(value))
	s.write(n, &b, wo, func() error { return n.r.Put([]byte(key), []byte(value), wo) })
}

func (s *simulation) deleteOne(n *node) {
	var b leveldb.Batch
	key, wo := s.key(), s.options()
	b.Delete([]byte(key))
	s.trace("%s deletes %s, sync %v", n.name, key, wo.Sync)
	s.write(n, &b, wo, func() error { return n.r.Delete([]byte(key), wo) })
}

// batch writes several keys at once, some of them twice.
func (s *simulation) batch(n *node) {
	b, wo := s.draft(), s.options()
	s.trace("%s writes a batch of %d, sync %v", n.name, b.Len(), wo.Sync)
	s.write(n, b, wo, func() error { return n.r.Write(b, wo) })
}

// draft makes a batch.
func (s *simulation) draft() *leveldb.Batch {
	b := new(leveldb.Batch)
	puts := 2 + s.rng.IntN(4)
	if s.largest > 5000 && s.rng.IntN(10) == 0 {
		puts *= 10 // more than the values that are fetched at a time
	}
	for range puts {
		key := []byte(s.key())
		b.Put(key, []byte("gone at once"))
		if s.rng.IntN(4) == 0 {
			b.Delete(key)
		} else {
			b.Put(key, []byte(s.value()))
		}
	}
	return b
}

// crowd has several goroutines write to one node, at once or for a while. One that
// dials it may sync meanwhile, with something to catch up on.
func (s *simulation) crowd(n *node) {
	c := newCrowd()
	writers, pause := 2+s.rng.IntN(3), time.Duration(s.rng.IntN(2)*s.rng.IntN(50))*time.Millisecond
	for range writers {
		var batches []*leveldb.Batch
		for range 1 + s.rng.IntN(8) {
			batches = append(batches, s.draft())
		}
		c.batches = append(c.batches, batches)
	}
	s.trace("%s is written to by %d goroutines, with pauses of %v", n.name, writers, pause)
	s.expects(c)
	var wg sync.WaitGroup
	if m := s.diallerOf(n); m != nil && s.rng.IntN(4) > 0 {
		s.trace("%s syncs meanwhile", m.name)
		if s.rng.IntN(2) == 0 {
			s.leaveBehind(m, n)
		}
		claims := s.claims(m)
		claims.inbound = nil // their sessions may end before the call
		s.net.Partition(s.groups...)
		wg.Go(func() { c.fail(s.syncNow(claims)) })
	}
	before := s.rows(n)
	for _, batches := range c.batches {
		wg.Go(func() {
			for i, b := range batches {
				c.fail(n.r.Write(b, &opt.WriteOptions{Sync: i%3 == 0}))
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	require.NoError(s.t, c.err)
	s.wrote(n, before, c)
}

// leaveBehind isolates a node, whose peer makes some changes meanwhile and moves away.
func (s *simulation) leaveBehind(m, n *node) {
	s.net.Isolate(m.name)
	for range 5 + s.rng.IntN(10) {
		s.putOne(n)
	}
	s.net.SetDelay(m.name, n.name, time.Duration(5+s.rng.IntN(20))*time.Millisecond)
	s.slow = append(s.slow, [2]string{m.name, n.name})
}

// diallerOf returns an open node that dials another one, or nil.
func (s *simulation) diallerOf(n *node) *node {
	var found []*node
	for _, m := range s.nodes {
		if m != n && m.r != nil && slices.Contains(m.peers, n.name) {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[s.rng.IntN(len(found))]
}

// pass lets heartbeats and deadlines come.
func (s *simulation) pass(*node) {
	d := time.Duration(5+s.rng.IntN(40)) * time.Second
	s.trace("%v pass", d)
	time.Sleep(d)
}

func (s *simulation) syncOne(n *node) {
	s.trace("%s syncs", n.name)
	require.NoError(s.t, s.syncNow(s.claims(n)))
}

// compareOne has a node compare itself to one that it dials. What comes of it depends on
// what else goes on, but it comes to an end.
func (s *simulation) compareOne(n *node) {
	if len(n.peers) == 0 {
		return
	}
	peer := n.peers[s.rng.IntN(len(n.peers))]
	s.trace("%s compares itself to %s", n.name, peer)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	start := time.Now()
	if _, err := n.r.Compare(ctx, peer); err == nil {
		s.seen.note("a comparison ends")
	}
	require.Less(s.t, time.Since(start), 10*time.Second, "how long Compare of %s took", n.name)
}

func (s *simulation) restart(n *node) {
	s.trace("%s restarts", n.name)
	s.stop(n)
	s.start(n)
}

func (s *simulation) shut(n *node) {
	s.trace("%s is closed", n.name)
	s.stop(n)
}

func (s *simulation) killOne(n *node) {
	s.trace("%s is killed", n.name)
	s.look(n)
	s.disconnect(n)
	s.end(n, n.disk.Copy())
}

// end ends the process that a node is, and gives it the disk that is left.
func (s *simulation) end(n *node, left *simtest.Disk) {
	r := n.r
	n.replaceDisk(left)
	if r != nil {
		s.of(n).clock = r.Status().Clock
	}
}

// disconnect ends all connections of a node whose process is about to die: what it
// does until it is closed, which is a moment later, must not reach anybody.
func (s *simulation) disconnect(n *node) {
	s.net.Isolate(n.name)
	s.net.Partition(s.groups...)
}

// cutPower ends a node's machine, in a moment in which nothing goes on.
func (s *simulation) cutPower(n *node) {
	s.trace("%s loses power", n.name)
	s.look(n)
	synctest.Wait()
	s.of(n).promised = s.acknowledgedBy(n)
	s.disconnect(n)
	s.losePower(n, n.disk.PowerCut(s.loss()))
}

// cutPowerOfClosed loses nothing.
func (s *simulation) cutPowerOfClosed(n *node) {
	s.trace("%s is closed, and loses power", n.name)
	s.of(n).promised = s.acknowledgedBy(n)
	s.stop(n)
	s.losePower(n, n.disk.PowerCut(s.loss()))
}

// cutPowerOfBusy ends a node's machine at one of the operations of its disk, while
// the cluster is written to. The disk may be slow in writing tables.
func (s *simulation) cutPowerOfBusy(n *node) {
	slow := len(s.slow)+len(s.frozen) == 0 && s.rng.IntN(3) > 0
	at, loss := 1+s.rng.Int64N(60), s.loss()
	s.trace("%s is about to lose power, at operation %d, slow %v", n.name, at, slow)
	if slow {
		s.keepSessions(n)
		defer s.net.SetCut(s.cut)
	}
	s.look(n)
	p := s.of(n)
	durable := maps.Clone(p.durable) // what is written from here on may come too late
	type end struct {
		disk     *simtest.Disk
		promised map[string]replicator.Version
	}
	cut := make(chan end, 1)
	n.disk.SetFault(func(op simtest.Op, fd storage.FileDesc, i int64) error {
		if i == at {
			promised := s.acknowledgedBy(n)
			cut <- end{n.disk.PowerCut(loss), promised}
			s.net.Isolate(n.name)
		}
		if slow && fd.Type == storage.TypeTable && op&(simtest.OpCreate|simtest.OpWrite|simtest.OpSync) != 0 {
			time.Sleep(400 * time.Millisecond)
		}
		return nil
	})
	for range 1 + s.rng.IntN(4) {
		m := s.any()
		if m.r != nil {
			[]func(*node){s.putOne, s.deleteOne, s.batch, s.putLarge}[s.rng.IntN(4)](m)
		}
		time.Sleep(time.Duration(s.rng.IntN(700)) * time.Millisecond)
	}
	n.disk.SetFault(nil)
	select {
	case e := <-cut:
		s.net.Partition(s.groups...)
		p.durable, p.promised = durable, e.promised
		s.losePower(n, e.disk)
		s.seen.note("a power cut in the midst of something")
	default:
		s.cutPower(n)
	}
}

// keepSessions lets a node have no other sessions than those that it has. A session
// that begins holds a mutex while it waits for leveldb, and in a bubble no time passes
// while somebody waits for that: a disk that is slow would never be done.
func (s *simulation) keepSessions(n *node) {
	s.net.SetCut(func(from, to string) int {
		if from == n.name || to == n.name {
			return 0
		}
		return -1
	})
	time.Sleep(3 * time.Second) // handshakes end
}

// crashWhileOpening ends a node once more at an operation of its disk while it is
// being opened, or right after that: its process, or its machine.
func (s *simulation) crashWhileOpening(n *node) {
	[]func(*node){s.shut, s.killOne, s.cutPower}[s.rng.IntN(3)](n)
	s.crashingStart(n)
}

func (s *simulation) crashingStart(n *node) {
	at, power, loss := 1+s.rng.Int64N(40), s.rng.IntN(2) == 0, s.loss()
	s.trace("%s is opened, and about to die at operation %d, power cut %v", n.name, at, power)
	p := s.of(n)
	before := *p
	before.seen, before.durable = maps.Clone(p.seen), maps.Clone(p.durable)
	left := make(chan *simtest.Disk, 1)
	n.disk.SetFault(func(_ simtest.Op, _ storage.FileDesc, i int64) error {
		if i != at {
			return nil
		}
		if power {
			left <- n.disk.PowerCut(loss)
		} else {
			left <- n.disk.Copy()
		}
		s.net.Isolate(n.name)
		return nil
	})
	s.start(n)
	time.Sleep(time.Duration(s.rng.IntN(200)) * time.Millisecond)
	n.disk.SetFault(nil)
	select {
	case disk := <-left:
		s.net.Partition(s.groups...)
		*p = before
		if power {
			s.losePower(n, disk)
		} else {
			s.end(n, disk)
		}
		if p.unwritten != nil {
			p.unwritten, p.old = nil, nil // nobody knows which of them are there
		}
		s.seen.note("an opening is cut off")
	default:
	}
}

// putLarge puts a value that fills a memtable.
func (s *simulation) putLarge(n *node) {
	key, value := s.key(), s.value()+strings.Repeat("y", 64<<10)
	s.trace("%s puts %s, %d bytes", n.name, key, len(value))
	s.putAs(n, key, value, s.options())
}

// loss draws what a power cut takes.
func (s *simulation) loss() simtest.Loss {
	rng := rand.New(rand.NewPCG(s.rng.Uint64(), 0)) // leveldb's goroutines may come to draw from it
	return []simtest.Loss{simtest.Drop, simtest.Tear(rng), simtest.Keep(rng)}[s.rng.IntN(3)]
}

// losePower gives a node what a power cut has left, in another boot.
func (s *simulation) losePower(n *node, left *simtest.Disk) {
	if len(s.of(n).promised) > 0 {
		s.seen.note("a node loses power that has acknowledged something")
	}
	s.end(n, left)
	n.boot = s.newBoot()
	s.powerLost(n)
}

func (s *simulation) wipe(n *node) {
	s.trace("%s is wiped", n.name)
	n.replaceDisk(simtest.NewDisk())
	s.replaced(n, newPast())
}

// backUp copies a node's files by hand, and every other time by Backup.
func (s *simulation) backUp(n *node) {
	byHand := len(s.backups)%2 == 0
	s.trace("backup of %s, by hand %v", n.name, byHand)
	b := s.image(n)
	if !byHand {
		b.disk = n.backup()
	}
	s.backups = append(s.backups, b)
}

// image is a copy of a running node's files. What was looked at before is in it.
func (s *simulation) image(n *node) backup {
	s.look(n)
	return backup{n.disk.Copy(), n.boot, s.of(n).image()}
}

func (s *simulation) restoreOne(n *node) {
	if len(s.backups) == 0 {
		return
	}
	s.trace("%s is restored from a backup", n.name)
	s.restore(n, s.backups[s.rng.IntN(len(s.backups))])
	s.seen.note("a backup is restored")
}

// restore gives a node the files of a backup.
func (s *simulation) restore(n *node, b backup) {
	n.replaceDisk(b.disk.Copy())
	n.boot = b.boot
	if s.rng.IntN(2) == 0 {
		n.boot = s.newBoot()
	}
	s.replaced(n, b.past.image())
}

// rewind restores a node, before anybody can talk to it, to a moment after which it
// made changes that its peers have. It makes as many others before they meet, so that
// its log is as long as the one that they know.
func (s *simulation) rewind(n *node) {
	s.trace("%s is rewound", n.name)
	b := s.image(n)
	changes := 1 + s.rng.IntN(6)
	for range changes {
		s.putOne(n)
	}
	time.Sleep(time.Duration(s.rng.IntN(1000)) * time.Millisecond)
	s.net.Isolate(n.name)
	n.replaceDisk(b.disk.Copy())
	s.replaced(n, b.past.image())
	s.start(n)
	for range changes + s.rng.IntN(6) {
		s.putOne(n)
	}
	s.net.Partition(s.groups...)
}

func (s *simulation) clone(n *node) {
	m := s.any()
	if m == n {
		return
	}
	s.trace("%s becomes a clone of %s", m.name, n.name)
	s.restore(m, s.image(n))
	s.seen.note("a node is cloned")
}

// recover loses a part of a node's files, and opens them as recovered ones. What
// is lost is rows, not files, so that a seed loses the same ones each time: the end of
// the log, with all that tells how far it came; values; or index rows.
//
// Values that are older than their index rows are left out: nothing can tell them
// from good ones.
func (s *simulation) recover(n *node) {
	s.stop(n)
	kind := s.rng.IntN(4)
	s.trace("%s lost %s, and is opened as recovered", n.name, [...]string{"nothing", "the end of its log", "values", "index rows"}[kind])
	db, err := leveldb.Open(n.disk, &n.ldb)
	require.NoError(s.t, err)
	index := indexOf(s.t, db)
	var lost []string
	for _, key := range sortedKeys(index) {
		if kind >= 2 && s.rng.IntN(4) == 0 && (kind == 3 || !index[key].Deleted) {
			lost = append(lost, key)
		}
	}
	switch kind {
	case 1:
		log, err := replicator.LogRows(db)
		require.NoError(s.t, err)
		if len(log) > 0 {
			require.NoError(s.t, replicator.LoseLog(db, log[s.rng.IntN(len(log))].Seq))
		}
	case 2:
		for _, key := range lost {
			require.NoError(s.t, db.Delete([]byte(key), withSync))
		}
	case 3:
		require.NoError(s.t, replicator.LoseIndex(db, lost...))
	}
	require.NoError(s.t, db.Close())
	s.lost(n, lost)
	n.recovered = true
	s.start(n)
	if kind > 0 {
		s.seen.note("recovered files lack something")
	}
}

func (s *simulation) partition(*node) {
	var groups [2][]string
	for _, m := range s.nodes {
		g := s.rng.IntN(2)
		groups[g] = append(groups[g], m.name)
	}
	s.trace("partition %v", groups)
	s.groups = groups[:]
	s.net.Partition(s.groups...)
}

func (s *simulation) heal(*node) {
	s.trace("heal")
	s.groups = nil
	s.net.Heal()
}

func (s *simulation) cutConnections(*node) {
	s.trace("connections will be cut")
	rng := rand.New(rand.NewPCG(s.rng.Uint64(), 0)) // for the dialling goroutines
	most := []int{3000, 3000, 40_000}[s.rng.IntN(3)]
	s.cut = func(from, to string) int {
		if rng.IntN(2) == 0 {
			return -1
		}
		return rng.IntN(most)
	}
	s.net.SetCut(s.cut)
}

func (s *simulation) cutNoConnections(*node) {
	s.trace("connections will last")
	s.cut = nil
	s.net.SetCut(nil)
}

// pair draws two hosts, of which one dials the other if there is such a pair.
func (s *simulation) pair(n *node) [2]string {
	var hosts []string
	for _, m := range s.nodes {
		if m != n && (slices.Contains(n.peers, m.name) || slices.Contains(m.peers, n.name)) {
			hosts = append(hosts, m.name)
		}
	}
	if len(hosts) == 0 {
		return [2]string{n.name, s.any().name}
	}
	return [2]string{n.name, hosts[s.rng.IntN(len(hosts))]}
}

func (s *simulation) freeze(n *node) {
	p := s.pair(n)
	s.trace("nothing passes between %v", p)
	s.net.Freeze(p[0], p[1])
	s.frozen = append(s.frozen, p)
}

func (s *simulation) slowDown(n *node) {
	p, speed := s.pair(n), []int{200, 2 << 10, 20 << 10}[s.rng.IntN(3)]
	s.trace("%d bytes a second pass between %v", speed, p)
	s.net.SetSpeed(p[0], p[1], speed)
	s.slow = append(s.slow, p)
}

func (s *simulation) moveApart(n *node) {
	p, delay := s.pair(n), time.Duration(1+s.rng.IntN(400))*time.Millisecond
	s.trace("%v are %v apart", p, delay)
	s.net.SetDelay(p[0], p[1], delay)
	s.slow = append(s.slow, p)
}

// forget has a node forget another one.
func (s *simulation) forget(n *node) {
	if m := s.any(); m != n && m.r != nil {
		s.trace("%s forgets %s", n.name, m.name)
		if err := n.r.Forget(m.r.Status().ID); err != nil {
			require.ErrorIs(s.t, err, replicator.ErrUnknownPeer) // a clone of its own
			return
		}
		s.seen.note("a peer is forgotten")
	}
}

// readmit has a node let in again all that it has forgotten.
func (s *simulation) readmit(n *node) {
	for _, f := range n.r.Status().Forgotten {
		s.trace("%s readmits %v", n.name, f.ID)
		require.NoError(s.t, n.r.Readmit(f.ID))
	}
}

// add gives a node an address to dial.
func (s *simulation) add(n *node, addr string) {
	s.trace("%s dials %s", n.name, addr)
	require.NoError(s.t, n.r.AddPeer(addr, nil))
	if !slices.Contains(n.peers, addr) {
		n.peers = append(n.peers, addr)
	}
}

func (s *simulation) addPeer(n *node) {
	if m := s.host(); m != n {
		s.add(n, m.name)
	}
}

func (s *simulation) addSecond(n *node) { s.add(n, secondAddress(s.host())) }

func (s *simulation) addSelf(n *node) {
	if n != s.dialOnly {
		s.add(n, []string{n.name, secondAddress(n)}[s.rng.IntN(2)])
	}
}

func (s *simulation) removePeer(n *node) {
	if len(n.peers) == 0 {
		return
	}
	i := s.rng.IntN(len(n.peers))
	s.trace("%s no longer dials %s", n.name, n.peers[i])
	require.NoError(s.t, n.r.RemovePeer(n.peers[i]))
	n.peers = slices.Delete(n.peers, i, i+1)
	s.seen.note("a peer is removed")
}

// moveAddress lets a second address lead elsewhere. A node that dials it may sync
// right then, with nobody else to hear from what is there.
func (s *simulation) moveAddress(n *node) {
	of, to := s.host(), s.host()
	addr, syncs := secondAddress(of), s.rng.IntN(2) == 0
	if syncs {
		s.add(n, addr)
		time.Sleep(time.Duration(s.rng.IntN(3000)) * time.Millisecond)
	}
	s.trace("%s leads to %s", addr, to.name)
	s.lead(addr, to)
	if !syncs || to == n || to.r == nil {
		return
	}
	s.net.Partition([]string{to.name})
	s.putOne(to)
	claims := s.claims(n)
	s.net.Partition([]string{n.name, of.name, to.name})
	s.trace("%s syncs", n.name)
	require.NoError(s.t, s.syncNow(claims))
	s.net.Partition(s.groups...)
}
