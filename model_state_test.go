package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the state of the model check: three replicas, the pulls between them,
// what can be done to them, and what must hold. See TestModel.

const (
	modelReplicas = 3
	modelFar      = 1000 * time.Hour // more than a check takes
)

// modelConfig is what may happen, and how often.
type modelConfig struct {
	name    string
	base    int  // keys that all replicas have from the beginning
	young   bool // the last replica has nothing, and has met nobody
	two     bool // there is no third replica
	saved   bool // there is a backup of the first replica
	holes   bool // a replica may have index rows without values
	old     int  // keys that the first replica's database held before it was wrapped
	ahead   int  // changes of the first replica that are durable there, and unknown to the others
	chain   bool // the first and the last replica have no link
	keys    int
	backlog int  // bytes
	page    int  // entries
	byKey   bool // long scans of the log go on in key order
	depth   int  // every day
	sparse  bool // of the states behind two steps, only some are healed

	// reaping is for TestReapModel: what is stated as durable is told, and stale replicas
	// exchange nothing.
	reaping bool
	begin   []modelStep // what has happened already
	sound   uint8       // as faults, until there was one: nobody may be stale then

	reaps, forgets, wipes, links, rejoins, halves, alls                                                  uint8
	writes, deletes, flushes, expires, restarts, closes, cuts, backups, restores, clones, breaks, losses uint8
	faults                                                                                               uint8 // of restarts to losses, together
}

// modelBudget is how often things may still happen.
type modelBudget = modelConfig

// modelReplica is one replica. It does not change once it is part of a state.
type modelReplica struct {
	d               *store
	disk            *modelDisk
	boot            byte
	told            vector // what was stated as durable before the last opening
	seen            uint64 // which changes it has met: a bit each
	seenDurable     uint64 // the same, by the last durable point
	sum, sumWatched uint64
}

// modelPull is one direction of a session: what i, which pulls, and j, which serves,
// remember of it. It does not change once it is part of a state.
type modelPull struct {
	asked bool // once in this session

	// of the puller
	puller puller
	next   cursor
	page   *page // arrived and examined, not merged
	found  *candidates
	behind *page // on its way, behind that one
	told   uint64

	reaped *vector // what j has stated to have reaped

	// of the server
	scan  *scanView
	ahead uint64
	peer  vector

	sum uint64
}

// modelState is a state of the whole.
type modelState struct {
	left    *modelBudget
	r       [modelReplicas]*modelReplica
	pulls   [modelReplicas][modelReplicas]*modelPull // by puller and server
	open    [modelReplicas][modelReplicas]bool       // sessions, by the lesser one first
	ghost   []modelGhost
	saved   *modelReplica // the backup
	owner   int
	origins Origin
	clones  byte
	mine    [modelReplicas]bool // the replica is part of no other state
}

// modelGhost is a change that was made at some time.
type modelGhost struct {
	key, value string
	Version
	ctx uint64 // what its maker had met
}

// modelStep is one thing that can happen.
type modelStep struct{ kind, a, b, c byte }

const (
	stepWrite byte = iota
	stepDelete
	stepRead     // of a page, by a, from b; if c is 0, what can be held back is
	stepRelay    // the same, of all
	stepPull     // the same, and merging the pages up to the last at once
	stepPrefetch // the page behind one that is not merged
	stepMerge
	stepFlush
	stepExpire // of all of the log
	stepRestart
	stepClose
	stepCut
	stepBackup
	stepRestore
	stepClone
	stepBreak
	stepLose
	stepReap
	stepForget
	stepWipe
	stepLink
	stepRejoin
	stepHalf // of a rejoin, up to its end
	stepAll  // that is under way ends, and is durable
)

var modelSteps = [...]string{"write", "delete", "read", "read all", "pull", "prefetch", "merge", "flush", "expire", "restart", "close and open", "cut the power of",
	"back up", "restore", "clone", "break", "lose the snapshot of", "reap at", "forget", "wipe", "link", "rejoin", "half of a rejoin", "all exchange"}

func (s modelStep) String() string {
	switch s.kind {
	case stepWrite, stepDelete:
		return fmt.Sprintf("%s k%d at %d", modelSteps[s.kind], s.b, s.a)
	case stepRead, stepRelay, stepPull, stepPrefetch, stepMerge, stepBreak, stepLose, stepForget, stepLink, stepRejoin, stepHalf:
		return fmt.Sprintf("%s %d<-%d", modelSteps[s.kind], s.a, s.b)
	}
	return fmt.Sprintf("%s %d (%d, %d)", modelSteps[s.kind], s.a, s.b, s.c)
}

func (s *modelState) copy() *modelState {
	c := *s
	left := *s.left
	c.left = &left
	c.mine = [modelReplicas]bool{}
	return &c
}

func (s *modelState) settings(boot byte) storeSettings {
	byKey := s.left.byKey
	return storeSettings{
		logger: slog.New(slog.DiscardHandler), maxValue: 1 << 20, bootID: string(rune(boot)), backlog: s.left.backlog,
		pageEntries: s.left.page, rescan: func() bool { return byKey },
		origins: func() Origin {
			s.origins++
			return drawnOrigin | s.origins
		},
	}
}

// reopen opens what is on a disk as replica i, and ends its sessions.
func (s *modelState) reopen(i int, disk *modelDisk, boot byte) error {
	s.hangUp(i)
	seen, seenDurable := uint64(0), uint64(0)
	if s.r[i] != nil {
		seen, seenDurable = s.r[i].seen, s.r[i].seenDurable
	}
	settings := s.settings(boot)
	op, err := readOpening(disk, &settings)
	if err != nil {
		return err
	}
	settings.origins = nil // of another state, by and by
	s.r[i] = &modelReplica{d: newStore(op, settings), disk: disk, boot: boot, seen: seen, seenDurable: seenDurable}
	s.mine[i] = true
	s.r[i].told = s.r[i].d.durable.vec
	return nil
}

// hangUp ends the sessions of replica i, which comes to its end.
func (s *modelState) hangUp(i int) {
	for j := range modelReplicas {
		if j != i {
			s.hangUpPair(i, j)
		}
	}
}

func (s *modelState) hangUpPair(i, j int) {
	for _, at := range [][2]int{{i, j}, {j, i}} {
		l := s.pulls[at[0]][at[1]]
		if l != nil && l.puller.first != nil && s.r[at[0]] != nil {
			s.own(at[0]).d.endFirst(l.puller.first)
		}
		s.pulls[at[0]][at[1]] = &modelPull{}
		s.pulls[at[0]][at[1]].seal()
	}
	s.open[min(i, j)][max(i, j)] = false
}

// own makes replica i one that may be changed.
func (s *modelState) own(i int) *modelReplica {
	if !s.mine[i] {
		s.r[i], s.mine[i] = s.r[i].copy(), true
	}
	return s.r[i]
}

func (r *modelReplica) copy() *modelReplica {
	d, disk := r.d, r.disk.copy()
	c := &store{engine: disk, settings: d.settings, name: d.name, peers: make(map[DatabaseID]*peerRecord, len(d.peers))}
	for id, p := range d.peers {
		c.peers[id] = &peerRecord{cursor: p.cursor, unsaved: p.unsaved, epochs: slices.Clip(p.epochs), meeting: p.meeting, knows: p.knows, stated: p.stated, heardAt: p.heardAt}
	}
	c.forgotten = map[DatabaseID]string{}
	c.sums = newSums()
	c.rejoins.Store(d.rejoins.Load())
	c.recovered.Store(d.recovered.Load())
	c.meetings.Store(d.meetings.Load())
	c.first.Store(d.first.Load())
	x := &d.commits.section
	c.commits.engine, c.commits.over = disk, make(chan struct{})
	c.commits.pool = d.commits.pool // each that there is keeps its store alive until the second collection
	c.commits.section = section{
		c: &c.commits, d: c, origin: x.origin, batch: new(leveldb.Batch), clock: x.clock, above: x.above,
		head: x.head, floor: x.floor, expired: x.expired, gone: x.gone, records: x.records, own: x.own,
		removals: x.removals,
	}
	k, n := &d.known, &c.known
	n.head, n.origin, n.history, n.own, n.changes = k.head, k.origin, k.history, k.own, k.changes
	n.heard = maps.Clone(k.heard)
	n.reaped, n.reaps = maps.Clone(k.reaped), k.reaps
	n.rows, n.order, n.adopted = maps.Clone(k.rows), slices.Clone(k.order), maps.Clone(k.adopted)
	b := &k.backlog
	n.backlog = backlog{
		limit: b.limit, size: b.size, after: b.after, dropped: maps.Clone(b.dropped), arena: make([]byte, 0, 64),
		records: cloneOf(&b.records),
		rises:   cloneOf(&b.rises),
		heard:   cloneOf(&b.heard),
	}
	c.commits.published = c.publish
	c.commits.publish()
	c.durable.load(d.durable.point)
	c.durable.count = d.durable.count
	c.expiry.swept = d.expiry.swept
	c.adopter = newAdopter(c, *d.adopter.progress.Load())
	return &modelReplica{d: c, disk: disk, boot: r.boot, told: r.told, seen: r.seen, seenDurable: r.seenDurable}
}

// session returns what the product's functions need of a session, at i, with j.
func (s *modelState) session(i, j int) *session {
	d, peer := s.r[i].d, s.r[j].d
	return &session{
		store: d, hello: hello{id: peer.id(), epoch: peer.origin()}, own: hello{id: d.id(), epoch: d.origin()},
		record: d.peer(peer.id()), server: s.server(i, s.pulls[j][i]), changed: make(chan struct{}),
		telling: make(turn, 1),
		y:       modelSyncer, ctx: context.Background(), cancel: func(error) {},
	}
}

// modelSyncer is what a session needs to say that a peer can't read something.
var modelSyncer = &syncer{settings: syncSettings{logger: slog.New(slog.DiscardHandler)}}

// server returns what j serves one direction of a session with.
func (s *modelState) server(j int, l *modelPull) *server {
	v := newServer(s.r[j].d)
	v.ahead, v.peer = l.ahead, maps.Clone(l.peer)
	if v.peer == nil {
		v.peer = vector{}
	}
	if l.scan != nil {
		scan := *l.scan
		v.scan = &scan
	}
	return v
}

// keep takes over what a server remembers. Iterators can't be copied: each page finds its
// place anew.
func (l *modelPull) keep(v *server) {
	l.ahead, l.peer, l.scan = v.ahead, v.peer, v.scan
	if scan := v.scan; scan != nil {
		scan.log, scan.index, scan.data, scan.placed = nil, nil, nil, false
	}
}

// pull returns one direction of a session, to be changed.
func (s *modelState) pull(i, j int) *modelPull {
	l := *s.pulls[i][j]
	l.sum = 0
	s.pulls[i][j] = &l
	return &l
}

// modelSink takes the entries of a page.
type modelSink struct{ entries []entry }

func (k *modelSink) add(e *entry) {
	c := *e
	c.key, c.value = bytes.Clone(e.key), bytes.Clone(e.value)
	k.entries = append(k.entries, c)
}
func (k *modelSink) reset()    { k.entries = nil }
func (k *modelSink) size() int { return 0 }

// meet opens the session of a pair.
func (s *modelState) meet(i, j int) error {
	if s.open[min(i, j)][max(i, j)] {
		return nil
	}
	s.open[min(i, j)][max(i, j)] = true
	if s.left.reaping {
		defer s.state(i, j, true)
	}
	for _, at := range [][2]int{{i, j}, {j, i}} {
		d, peer := s.own(at[0]).d, s.r[at[1]].d
		record := d.peer(peer.id())
		if record == nil {
			record = new(peerRecord)
			_ = d.remember(peer.id(), record)
		}
		if err := d.meet(peer.id(), record, peer.origin(), "", "", d.meetings.Load()); err != nil {
			return err
		}
		s.pull(at[0], at[1]).puller.c = record.place()
	}
	for _, at := range [][2]int{{i, j}, {j, i}} {
		if err := s.tell(at[0], at[1]); err != nil {
			return err
		}
	}
	return nil
}

// tell is session.sendVector, and what the other side does with it.
func (s *modelState) tell(i, j int) error {
	l, d := s.pull(i, j), s.r[i].d
	news, head := d.known.since(l.told)
	l.told = head
	session := s.session(j, i)
	if slices.ContainsFunc(news, s.r[j].d.isImage) {
		return fmt.Errorf("%d tells %v, which %d has not made", i, news, j)
	}
	err := session.hears(news)
	l.peer = session.server.peer
	return err
}

// ask sends a pull and returns what is answered; nil: nothing yet.
func (s *modelState) ask(i, j int, c cursor, told uint64) (*page, error) {
	known := s.r[j].d.origin() // as in puller.request
	if c.scan != scanNone || !c.joined {
		known = 0
	}
	if s.r[i].d.known.roseSince(s.pulls[i][j].told, known) {
		if err := s.tell(i, j); err != nil {
			return nil, err
		}
	}
	s.own(j) // a snapshot is taken in the commit section
	if s.left.reaping {
		s.state(i, j, false)
		if !s.fits(j, i) {
			return nil, nil
		}
	}
	l := s.pull(i, j)
	head, _ := s.r[j].d.position()
	for _, at := range []position{c.checkpoint, c.upper, c.seen} {
		if at.epoch == s.r[j].d.origin() && at.seq > head {
			return nil, fmt.Errorf("%d takes itself for an image", j)
		}
	}
	v, to := s.server(j, l), new(modelSink)
	a, err := v.answer(&pull{cursor: c, wait: l.asked, empty: true}, told, true, to)
	l.keep(v)
	if err != nil || !a.ready {
		return nil, err
	}
	l.asked = true
	p := a.page
	p.key = bytes.Clone(p.key)
	p.entries = to.entries
	for k := range p.entries { // of what was put again, the backlog has no value: it is fetched at once
		if e := &p.entries[k]; e.absent && s.left.reaping {
			values := new(modelSink)
			if _, _, _, err := newServer(s.r[j].d).values([][]byte{e.key}, values); err != nil {
				return nil, err
			}
			*e = values.entries[0]
		}
	}
	if p.incomplete && !s.left.holes {
		return nil, fmt.Errorf("%d has rows without values", j)
	}
	return &p, nil
}

// arrive takes in a page, up to where it is merged.
func (s *modelState) arrive(i, j int, p *page) (err error) {
	s.own(i)
	if slices.ContainsFunc(p.vector, s.r[i].d.isImage) {
		return fmt.Errorf("%d tells %v, which %d has not made", j, p.vector, i)
	}
	l := s.pull(i, j)
	u := l.puller
	u.s = s.session(i, j)
	u.heard, u.hearing, u.arbiter = vector{}, 0, arbiter{peer: u.s.server}
	if s.left.reaping {
		u.giver.reaped = func() *vector { return nil }
	}
	told, _ := s.r[j].d.known.adoptions()
	u.s.server.tellAdoptions(told)
	if l.next, err = u.arrive(p); err == nil {
		u.beginFirst(p, &l.next, nil)
		if u.first != nil {
			u.first.at = time.Now().Add(modelFar)
		}
		l.page = p
		if err = s.examine(i, j, l, &u); err == nil {
			l.found.first = u.first
		}
	}
	s.pull(j, i).peer = u.s.server.peer
	u.s = nil
	l.puller = u
	if s.left.reaping && errors.Is(err, ErrStale) {
		s.hangUpPair(i, j)
		return nil
	}
	return err
}

// examine is that of the puller. What it would fetch, for a deletion may have been reaped that
// is later, comes at once.
func (s *modelState) examine(i, j int, l *modelPull, u *puller) (err error) {
	d := s.r[i].d
	if reaps, reaped := d.known.reapedUpTo(); reaps > 0 && l.page.follows() {
		c, err := d.examineBy(l.page.entries, &u.blind, &u.arbiter)
		if err != nil {
			return err
		}
		if doubtful := c.doubtful(reaped); len(doubtful) > 0 {
			values := new(modelSink)
			var keys [][]byte
			for _, k := range doubtful {
				keys = append(keys, c.entries[k].key)
			}
			if _, _, _, err := newServer(s.r[j].d).values(keys, values); err != nil {
				return err
			}
			u.giver.known = u.s.knownThere()
			fetched, err := d.examineBy(values.entries, &blindness{}, nil)
			if err != nil {
				return err
			}
			fetched.giver, fetched.hear, fetched.from = &u.giver, u.makersKnew(), u.s.hello.id
			if err := d.merge(fetched, &u.blind, nil); err != nil {
				return err
			}
			s.r[i].meets(s, values.entries)
			page := *l.page
			page.entries = withoutIndices(page.entries, doubtful)
			l.page = &page
		}
	}
	l.found, err = u.examine(l.page)
	return err
}

func (s *modelState) read(i, j int, told uint64) (done bool, err error) {
	if err = s.meet(i, j); err != nil || s.pulls[i][j].page != nil {
		return false, err
	}
	if s.left.reaping && !s.fits(i, j) {
		if s.r[i].d.isYoung() && s.staleAt(i, j) {
			return true, s.rejoin(i, j, false)
		}
		return false, nil
	}
	p, err := s.ask(i, j, s.pulls[i][j].puller.c, told)
	if err != nil || p == nil {
		return false, err
	}
	return true, s.arrive(i, j, p)
}

func (s *modelState) prefetch(i, j int) (done bool, err error) {
	l := s.pulls[i][j]
	if l.page == nil || l.next.scan == scanNone || l.behind != nil {
		return false, nil
	}
	p, err := s.ask(i, j, l.next, 0)
	if err == nil && p == nil {
		err = fmt.Errorf("%d does not answer in the midst of a scan", j)
	}
	s.pull(i, j).behind = p
	return true, err
}

func (s *modelState) merge(i, j int) (done bool, err error) {
	if s.pulls[i][j].page == nil {
		return false, nil
	}
	s.own(i)
	l := s.pull(i, j)
	u := l.puller
	u.s = s.session(i, j)
	d := s.r[i].d
	if s.left.reaping && l.page.follows() && u.giver.judged != d.known.reapsNow() {
		u.giver.known = maps.Clone(u.giver.known)
		switch err := s.examine(i, j, l, &u); {
		case errors.Is(err, ErrStale):
			s.hangUpPair(i, j)
			return true, nil
		case err != nil:
			return true, err
		}
		l.found.first = u.first
	}
	found := *l.found
	found.arbiter = nil // what only counts and tells is not of the state
	found.local, found.wins, found.blind = slices.Clone(found.local), slices.Clone(found.wins), slices.Clone(found.blind)
	if s.left.reaping {
		reaped := l.reaped
		u.giver.reaped = func() *vector { return reaped }
		u.giver.known = maps.Clone(u.giver.known)
		found.giver = &u.giver
		u.giver.follows = l.page.follows()
	}
	err = d.merge(&found, &u.blind, u.progress(l.page, l.next))
	u.giver.follows = false
	switch {
	case errors.Is(err, ErrStale) && s.left.reaping:
		s.hangUpPair(i, j)
		return true, nil
	case err != nil:
		return true, err
	}
	s.r[i].meets(s, l.page.entries)
	for n := range d.known.backlog.records.len() {
		if r := d.known.backlog.records.at(n); !r.own {
			r.at = time.Now().Add(modelFar) // held back until somebody asks for all
		}
	}
	if u.c = l.next; u.c.scan == scanNone {
		d.endFirst(u.first)
		u.began, u.first = false, nil
	}
	u.s = nil
	l.puller, l.page, l.found = u, nil, nil
	if p := l.behind; p != nil {
		l.behind = nil
		return true, s.arrive(i, j, p)
	}
	return true, nil
}

// write makes a change at a replica.
func (s *modelState) write(i, k int, deleted bool) error {
	d := s.own(i).d
	g := modelGhost{key: fmt.Sprint("k", k)}
	if !deleted {
		g.value = fmt.Sprint("v", len(s.ghost))
	}
	g.Version = Version{Stamp{d.commits.section.clock.next, d.origin()}, deleted}
	for _, h := range s.ghost {
		if h.Stamp == g.Stamp {
			return fmt.Errorf("%v is given out twice", g.Stamp)
		}
	}
	g.ctx = s.r[i].seen
	s.r[i].seen |= 1 << len(s.ghost)
	s.ghost = append(slices.Clip(s.ghost), g)
	p := d.commits.newProposal()
	p.key, p.value, p.deleted, p.ops, p.keys, p.values = []byte(g.key), []byte(g.value), deleted, 1, len(g.key), len(g.value)
	_, err := d.commits.do(p)
	return err
}

// spend takes one from each of some budgets, if none of them is used up.
func spend(of ...*uint8) bool {
	for _, n := range of {
		if *n == 0 {
			return false
		}
	}
	for _, n := range of {
		*n--
	}
	return true
}

// take does a step, and reports whether it could be done.
func (s *modelState) take(step modelStep) (done bool, err error) {
	i, j := int(step.a), int(step.b)
	r, left := s.r[i], s.left
	if r == nil || step.kind >= stepRead && step.kind <= stepMerge && s.r[j] == nil {
		return false, nil
	}
	switch step.kind {
	case stepWrite:
		return spend(&left.writes), s.write(i, j, false)
	case stepDelete:
		return spend(&left.writes, &left.deletes), s.write(i, j, true)
	case stepRead:
		return s.read(i, j, 0)
	case stepRelay:
		return s.read(i, j, 1<<62)
	case stepPull:
		for {
			if s.pulls[i][j].page == nil {
				if ok, err := s.read(i, j, 1<<62); !ok || err != nil {
					return done, err
				}
			}
			last := s.pulls[i][j].next.scan == scanNone
			if done, err = s.merge(i, j); last || err != nil {
				return done, err
			}
		}
	case stepPrefetch:
		return s.prefetch(i, j)
	case stepMerge:
		return s.merge(i, j)
	case stepFlush:
		r = s.own(i)
		r.d.settings.origins = nil
		r.seenDurable = r.seen
		return spend(&left.flushes), r.d.makeDurable()
	case stepExpire:
		r = s.own(i)
		x := &r.d.commits.section
		if x.floor > x.head || x.records == 0 || !spend(&left.expires) {
			return false, nil
		}
		r.d.settings.origins = nil
		if err := r.d.enter(true, func(x *section) error {
			x.raiseFloor(x.head + 1)
			return nil
		}); err != nil {
			return true, err
		}
		_, err := r.d.sweepSome(sweptAtOnce)
		return true, err
	case stepRestart:
		return spend(&left.restarts, &left.faults), s.reopen(i, r.disk.copy(), r.boot)
	case stepClose:
		if !spend(&left.closes, &left.faults) {
			return false, nil
		}
		s.hangUp(i)
		r = s.own(i)
		r.d.commits.close()
		if err := r.d.markClean(); err != nil {
			return true, err
		}
		return true, s.reopen(i, r.disk, r.boot+1)
	case stepCut:
		losses := r.disk.losses()
		if n := j<<8 | int(step.c); n >= len(losses) || !spend(&left.cuts, &left.faults) {
			return false, nil
		} else {
			disk, stated := r.disk.copy(), r.d.durable.vec
			disk.cut(losses[n])
			disk.watched = left.cuts > 0
			if err := s.reopen(i, disk, r.boot+1); err != nil {
				return true, err
			}
			s.r[i].told = stated
			if left.reaping {
				s.r[i].seen = r.seenDurable | s.found(i)
				s.r[i].seenDurable = s.r[i].seen
			}
			return true, nil
		}
	case stepBackup:
		s.saved, s.owner = r, i
		return spend(&left.backups) && left.restores > 0, nil
	case stepRestore:
		if s.saved == nil || s.owner != i || !spend(&left.restores, &left.faults) {
			return false, nil
		}
		err := s.reopen(i, s.saved.disk.copy(), s.saved.boot+step.c*100)
		s.r[i].seen = s.saved.seen
		return true, err
	case stepClone:
		if i == j || !spend(&left.clones, &left.faults) {
			return false, nil
		}
		s.clones++
		disk := r.disk.copy()
		id := DatabaseID{s.clones, 0xff} // in place of renewID, after they have met
		disk.do(modelWrite{[]modelChange{{modelRow{metaKey(metaID), id[:]}, false}}, true})
		err := s.reopen(j, disk, r.boot+step.c*100)
		s.r[j].seen = r.seen
		return true, err
	case stepBreak:
		if i > j || !s.open[i][j] || !spend(&left.breaks, &left.faults) {
			return false, nil
		}
		s.hangUpPair(i, j)
		for _, at := range [][2]int{{i, j}, {j, i}} {
			d := s.own(at[0]).d
			id := s.r[at[1]].d.id()
			if record := d.peer(id); record.isUnsaved() {
				if err := d.savePeer(id, record, false); err != nil {
					return true, err
				}
			}
		}
		return true, nil
	case stepLose:
		if s.pulls[i][j].scan == nil || !spend(&left.losses, &left.faults) {
			return false, nil
		}
		s.pull(i, j).scan = nil
		return true, nil
	case stepReap, stepForget, stepWipe, stepLink, stepRejoin, stepHalf, stepAll:
		return s.takeReaping(step)
	}
	return false, nil
}

// steps returns what may be possible now.
func (s *modelState) steps() (all []modelStep) {
	n := s.left
	add := func(left uint8, kind byte, a, b, c int) {
		if left > 0 {
			all = append(all, modelStep{kind, byte(a), byte(b), byte(c)})
		}
	}
	add(n.alls, stepAll, 0, 0, 0)
	for i := range modelReplicas {
		if s.r[i] == nil {
			continue
		}
		for j := range modelReplicas {
			if i == j || s.r[j] == nil {
				continue
			}
			for boot := range 2 {
				add(min(n.clones, n.faults), stepClone, i, j, boot)
			}
			if n.chain && i+j == modelReplicas-1 {
				if i < j {
					add(n.links, stepLink, i, j, 0)
				}
				continue
			}
			add(min(n.forgets, n.faults), stepForget, i, j, 0)
			add(n.rejoins, stepRejoin, i, j, 0)
			add(n.halves, stepHalf, i, j, 0)
			if s.pulls[i][j].page == nil {
				add(1, stepRead, i, j, 0)
				add(1, stepRelay, i, j, 0)
			} else {
				add(1, stepMerge, i, j, 0)
				add(1, stepPrefetch, i, j, 0)
			}
			add(1, stepPull, i, j, 0)
			add(min(n.breaks, n.faults), stepBreak, i, j, 0)
			add(min(n.losses, n.faults), stepLose, i, j, 0)
		}
		for k := range n.keys {
			add(n.writes, stepWrite, i, k, 0)
			add(min(n.writes, n.deletes), stepDelete, i, k, 0)
		}
		add(n.flushes, stepFlush, i, 0, 0)
		add(n.reaps, stepReap, i, 0, 0)
		add(min(n.wipes, n.faults), stepWipe, i, 0, 0)
		add(n.expires, stepExpire, i, 0, 0)
		add(min(n.backups, n.restores, n.faults), stepBackup, i, 0, 0)
		add(min(n.restarts, n.faults), stepRestart, i, 0, 0)
		add(min(n.closes, n.faults), stepClose, i, 0, 0)
		for boot := range 2 {
			add(min(n.restores, n.faults), stepRestore, i, 0, boot)
		}
		if n.cuts > 0 && n.faults > 0 {
			for l := range s.r[i].disk.losses() {
				add(1, stepCut, i, l>>8, l&255)
			}
		}
	}
	return all
}

// check returns what does not hold at a replica.
func (s *modelState) check(i int) error {
	r := s.r[i]
	if r == nil {
		return nil
	}
	known := r.d.known.all()
	if s.left.reaping {
		return s.checkReaped(i)
	}
	if !known.includes(r.told) {
		return fmt.Errorf("%d stated %v as durable, and knows %v", i, r.told, known)
	}
	for _, g := range s.ghost {
		if !known.covers(g.Stamp) {
			continue
		}
		if here, err := lookup(r.d, []byte(g.key)); err != nil || here.Version.Compare(g.Version) < 0 {
			return fmt.Errorf("%d knows %s %v, and has %v, %v", i, g.key, g.Version, here.Version, err)
		}
	}
	index := newIndexReader(r.disk, nil, false)
	defer index.Release()
	for index.next() {
		record := index.record
		value, err := r.disk.Get(index.key, nil)
		if err != nil && !record.Deleted && s.left.holes {
			continue
		}
		if (err == nil) == record.Deleted {
			return fmt.Errorf("%d: %s has %v and a value: %v", i, index.key, record, err)
		}
		for _, g := range s.ghost {
			if g.Stamp == record.Stamp && (g.Deleted != record.Deleted || g.value != string(value) || g.key != string(index.key)) {
				return fmt.Errorf("%d: %s has %v and %q, not %q", i, index.key, record, value, g.value)
			}
		}
		if record.seq >= r.d.commits.section.floor {
			row, err := r.disk.Get(logKey(record.seq), nil)
			if err != nil {
				return fmt.Errorf("%d: %s has no record %d in the log", i, index.key, record.seq)
			}
			if version, key, err := parseLogRecord(row); err != nil || version != record.Version || string(key) != string(index.key) {
				return fmt.Errorf("%d: %s has %v, and in the log %v, %s, %v", i, index.key, record, version, key, err)
			}
		}
	}
	return index.fault()
}

// heal lets everything that is under way end, without faults, and returns what does not
// hold then: all replicas have and know the same.
func (s *modelState) heal(reverse bool) error {
	if s.left.reaping {
		return s.healReaped()
	}
	for round := 0; ; round++ {
		if round > 12 {
			return fmt.Errorf("no rest after %d rounds", round)
		}
		quiet := true
		for n := range modelReplicas * modelReplicas {
			if reverse {
				n = modelReplicas*modelReplicas - 1 - n
			}
			i, j := n/modelReplicas, n%modelReplicas
			if i == j || s.left.chain && i+j == modelReplicas-1 || s.r[i] == nil || s.r[j] == nil {
				continue
			}
			for pages := 0; ; pages++ {
				if pages > 30 {
					return fmt.Errorf("%d gets no end of pages from %d", i, j)
				}
				if done, err := s.merge(i, j); done || err != nil {
					if quiet = false; err != nil {
						return err
					}
					continue
				}
				if done, err := s.read(i, j, 1<<62); !done || err != nil {
					if err != nil {
						return err
					}
					break
				}
			}
		}
		for i := range s.r {
			if err := s.check(i); err != nil {
				return err
			}
		}
		if quiet {
			break
		}
	}
	first := s.r[0]
	for i, r := range s.r[1:] {
		if r == nil {
			continue
		}
		if v, w := first.d.known.all(), r.d.known.all(); !maps.Equal(v, w) {
			return fmt.Errorf("0 knows %v, %d knows %v", v, i+1, w)
		}
		if a, b := first.contents(), r.contents(); a != b {
			return fmt.Errorf("0 has %s, %d has %s", a, i+1, b)
		}
	}
	return nil
}

// contents returns all that replicas have to agree on.
func (r *modelReplica) contents() string {
	var b []byte
	index := newIndexReader(r.disk, nil, false)
	defer index.Release()
	for index.next() {
		value, _ := r.disk.Get(index.key, nil)
		b = fmt.Appendf(b, "%s %v %s; ", index.key, index.record.Version, value)
	}
	return string(b)
}

// modelSeed is that of all hashes.
var modelSeed = maphash.MakeSeed()

// modelHash gathers what makes a state differ from others.
type modelHash []byte

func (h *modelHash) num(all ...uint64) {
	for _, n := range all {
		*h = binary.AppendUvarint(*h, n)
	}
}
func (h *modelHash) bytes(p []byte) { h.num(uint64(len(p))); *h = append(*h, p...) }
func (h *modelHash) bool(b bool) {
	if b {
		h.num(1)
	} else {
		h.num(0)
	}
}
func (h *modelHash) rows(rows modelRows) {
	h.num(uint64(len(rows)))
	for _, r := range rows {
		h.bytes(r.key)
		h.bytes(r.value)
	}
}
func (h *modelHash) vector(v vector) { h.stamps(v.stamps()) }
func (h *modelHash) stamps(stamps []Stamp) {
	h.num(uint64(len(stamps)))
	for _, s := range stamps {
		h.num(s.Clock, uint64(s.Origin))
	}
}
func (h *modelHash) version(v Version) { h.num(v.Clock, uint64(v.Origin)); h.bool(v.Deleted) }
func (h *modelHash) page(p *page) {
	if p == nil {
		h.num(0)
		return
	}
	*h = p.appendHeader(*h, len(p.entries), 0)
	for _, e := range p.entries {
		h.bytes(e.key)
		h.version(e.Version)
	}
}
func (h *modelHash) sum() uint64 { return maphash.Bytes(modelSeed, *h) }

// seal notes the hash of a replica.
func (r *modelReplica) seal() {
	if r.sum != 0 {
		return
	}
	h, d := make(modelHash, 0, 2048), r.d
	h.rows(r.disk.modelRows)
	k, x := &d.known, &d.commits.section
	h.bool(d.first.Load() != nil)
	h.num(k.head, k.own, uint64(k.origin), x.clock.next, x.clock.ceiling, x.above, x.floor, k.backlog.after)
	for _, o := range slices.Sorted(maps.Keys(k.rows)) {
		h.num(uint64(o), k.rows[o].clock, k.rows[o].risen)
	}
	for i := range k.backlog.records.len() {
		b := k.backlog.records.at(i)
		h.num(b.seq)
		h.version(b.Version)
	}
	for i := range k.backlog.rises.len() {
		b := k.backlog.rises.at(i)
		h.num(b.seq, b.Clock, uint64(b.Origin))
	}
	ids := slices.SortedFunc(maps.Keys(d.peers), func(a, b DatabaseID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		p := d.peers[id]
		h.bytes(id[:])
		h = p.cursor.append(h)
		h.bool(p.unsaved)
		h.vector(p.knows)
	}
	h.vector(d.durable.vec)
	h.num(r.seen, r.seenDurable)
	r.sum = h.sum()
	h.rows(r.disk.durable)
	for _, w := range r.disk.since {
		h.num(uint64(len(w.changes)))
		h.bool(w.sync)
		for _, ch := range w.changes {
			h.bytes(ch.key)
			h.bytes(ch.value)
			h.bool(ch.deleted)
		}
	}
	r.sumWatched = h.sum()
}

// seal notes the hash of one direction of a session.
func (l *modelPull) seal() {
	if l.sum != 0 {
		return
	}
	h := make(modelHash, 0, 512)
	u := &l.puller
	h.bool(l.asked)
	h = u.c.append(h)
	h.bool(u.held)
	h.stamps(u.vector)
	h.bool(u.first != nil)
	h.bool(u.blind.on)
	h.bool(u.blind.begin)
	h.num(u.blind.above, l.told, l.ahead)
	h.vector(l.peer)
	h.vector(u.giver.known)
	if l.reaped != nil {
		h.vector(*l.reaped)
	}
	h.page(l.page)
	h.page(l.behind)
	if l.page != nil {
		h = l.next.append(h)
		h.num(l.found.head)
		for i := range l.found.entries {
			h.bool(l.found.wins[i])
			h.bool(l.found.blind[i])
			h.version(l.found.local[i].Version)
		}
	}
	if v := l.scan; v != nil {
		h.num(v.to.seq, uint64(v.to.epoch), uint64(v.kind), v.after)
		h.stamps(v.vector)
		h.rows(v.snapshot.(modelRows))
	}
	l.sum = h.sum()
}

// hash returns the hash of the whole state. It must not change any more.
func (s *modelState) hash() uint64 {
	h := make(modelHash, 0, 256)
	for i, r := range s.r {
		if r == nil {
			continue
		}
		r.seal()
		sum := r.sum
		if s.left.cuts > 0 && s.left.faults > 0 {
			sum = r.sumWatched
		}
		h.num(sum)
		for j := range s.r {
			if i == j {
				continue
			}
			l := s.pulls[i][j]
			if s.r[j] == nil {
				continue
			}
			l.seal()
			h.num(l.sum)
			h.bool(l.puller.blind.on && l.puller.blind.head == r.d.commits.section.head)
			h.bool(s.open[i][j])
		}
	}
	if s.saved != nil && s.left.restores > 0 && s.left.faults > 0 {
		s.saved.seal()
		h.num(s.saved.sum, uint64(s.owner))
	}
	n := s.left
	h.bool(n.chain)
	for _, left := range []uint8{n.writes, n.deletes, n.flushes, n.expires, n.restarts, n.closes, n.cuts, n.backups, n.restores, n.clones, n.breaks, n.losses, n.faults, n.reaps, n.forgets, n.wipes, n.links, n.rejoins, n.halves, n.alls} {
		h.num(uint64(left))
	}
	for _, g := range s.ghost {
		h.bytes([]byte(g.key))
		h.version(g.Version)
	}
	return h.sum()
}

// newModel returns the state that a check begins with.
func newModel(c modelConfig) (*modelState, error) {
	s := &modelState{left: &c}
	reaping := c.reaping
	c.reaping = false
	for i := range modelReplicas {
		for j := range modelReplicas {
			s.pulls[i][j] = &modelPull{}
			s.pulls[i][j].seal()
		}
	}
	for i := range modelReplicas {
		disk := &modelDisk{watched: c.cuts > 0}
		for k := range c.old {
			if i == 0 {
				disk.modelRows = append(disk.modelRows, modelRow{fmt.Appendf(nil, "old%05d", k), []byte("value")})
			}
		}
		disk.durable = disk.modelRows
		settings := s.settings('A')
		op, err := readOpening(disk, &settings)
		if err != nil {
			return nil, err
		}
		op.id = DatabaseID{0, byte(i + 1)}
		settings.origins = nil
		disk.do(modelWrite{[]modelChange{{modelRow{metaKey(metaID), op.id[:]}, false}}, true})
		s.r[i] = &modelReplica{d: newStore(op, settings), disk: disk, boot: 'A'}
	}
	for k := range c.base {
		if err := s.write(k%2, k, false); err != nil {
			return nil, err
		}
	}
	third := s.r[2]
	if c.young || c.two {
		s.r[2] = nil
	}
	if c.base > 0 {
		if err := s.heal(false); err != nil {
			return nil, err
		}
	}
	if c.young {
		s.r[2] = third
	}
	for i := range modelReplicas {
		if s.r[i] == nil {
			continue
		}
		if err := s.own(i).d.makeDurable(); err != nil {
			return nil, err
		}
	}
	for k := range c.ahead {
		if err := s.write(0, k%c.keys, false); err != nil {
			return nil, err
		}
	}
	if err := s.own(0).d.makeDurable(); err != nil {
		return nil, err
	}
	if c.reaping = reaping; reaping {
		if err := s.settle(); err != nil {
			return nil, err
		}
	}
	if c.saved {
		s.saved = s.r[0]
	}
	left := c // what has happened does not count
	c.writes, c.deletes, c.flushes, c.reaps, c.forgets, c.alls, c.faults, c.rejoins, c.halves, c.links = 99, 99, 99, 99, 99, 99, 99, 99, 99, 99
	c.backups, c.restores, c.wipes = 99, 99, 99
	for _, step := range c.begin {
		if done, err := s.take(step); !done && step.kind != stepRead || err != nil {
			return nil, fmt.Errorf("%v: done %v, %v", step, done, err)
		}
		s.mine = [modelReplicas]bool{} // a backup must not change
	}
	left.chain = c.chain
	if left.sound = left.faults; c.faults < 99 {
		left.sound = 255 // there were some
	}
	*s.left = left
	return s, nil
}

// cloneOf returns a copy of a queue.
func cloneOf[T any](q *deque[T]) deque[T] {
	c := deque[T]{chunks: make([][]T, len(q.chunks)), start: q.start, n: q.n}
	for i, chunk := range q.chunks {
		c.chunks[i] = slices.Clone(chunk)
	}
	return c
}
