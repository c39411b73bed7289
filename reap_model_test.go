package replicator

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns what TestReapModel adds to the model of TestModel: reaping, forgetting,
// wiping, and rejoins.

// TestReapModel does all that can happen to three replicas that forget deletions, in every
// order. It drives the functions of the store, as TestModel does: those that reap, that
// tell whether entries may be merged, and that rejoin, whole or cut off before the end.
// Age is no matter: what may be reaped, is. What is stated as durable is told with each
// pull.
//
// Checked is that when all is healed, with and without reaping meanwhile, and those that
// are stale have rejoined, all replicas have the same; that nothing is there which was
// deleted by somebody who had met it; and that the greatest change which anybody has met
// is there, if it is a put. So it is at each state that what a vector covers is here, or
// something greater, or was reaped.
func TestReapModel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	searchModels(t, reapConfigs, func(c *modelConfig) { c.reaping, c.sparse = true, true })
}

// reapConfigs are what is searched. The keys exist everywhere in the beginning, or, with
// saved, are deleted already and in the backup they are not.
var reapConfigs = []modelConfig{
	{name: "pair", base: 1, keys: 1, two: true, backlog: 1 << 20, page: 10, depth: 3, writes: 3, deletes: 2, reaps: 2, alls: 2, forgets: 1, faults: 1},
	{name: "restores", base: 1, keys: 1, two: true, saved: true, backlog: 1 << 20, page: 10, depth: 3, writes: 2, deletes: 1, alls: 2, reaps: 2, restores: 1, forgets: 1, rejoins: 1, halves: 1, faults: 2},
	{name: "pages", base: 2, keys: 2, two: true, page: 1, depth: 2, writes: 2, deletes: 2, alls: 1, reaps: 2, forgets: 1, breaks: 1, faults: 2},
	{name: "mesh", base: 1, keys: 1, backlog: 1 << 20, page: 10, depth: 2, writes: 2, deletes: 1, alls: 1, reaps: 2, forgets: 1, rejoins: 1, faults: 1},
	{name: "chain", base: 1, keys: 1, chain: true, backlog: 1 << 20, page: 10, depth: 2, writes: 2, deletes: 1, alls: 1, reaps: 2, forgets: 1, links: 1, faults: 1},
	{name: "young", base: 1, keys: 1, young: true, chain: true, backlog: 1 << 20, page: 10, depth: 2, writes: 2, deletes: 1, alls: 1, reaps: 2, forgets: 1, links: 1, halves: 1, faults: 1},
	{name: "wipes", base: 1, keys: 1, two: true, backlog: 1 << 20, page: 10, depth: 3, writes: 2, deletes: 1, alls: 2, reaps: 2, wipes: 1, forgets: 1, faults: 2},
	{name: "clones", base: 1, keys: 1, two: true, saved: true, backlog: 1 << 20, page: 10, depth: 2, writes: 2, deletes: 1, alls: 2, reaps: 2, restores: 1, clones: 1, faults: 2},
	{name: "a late page", base: 1, keys: 1, backlog: 1 << 20, page: 10, depth: 4, reaps: 2, begin: []modelStep{
		{stepWrite, 0, 0, 0}, {stepRead, 1, 0, 0}, {stepPull, 2, 0, 0}, {stepDelete, 2, 0, 0}, {stepPull, 1, 2, 0}, {stepPull, 0, 2, 0},
		{stepFlush, 0, 0, 0}, {stepFlush, 1, 0, 0}, {stepFlush, 2, 0, 0}}},
	{name: "a late scan", base: 2, keys: 2, page: 1, depth: 4, reaps: 2, begin: []modelStep{
		{stepWrite, 0, 0, 0}, {stepWrite, 0, 1, 0}, {stepRead, 1, 0, 0}, {stepPull, 2, 0, 0}, {stepDelete, 2, 0, 0}, {stepDelete, 2, 1, 0}, {stepPull, 1, 2, 0}, {stepPull, 0, 2, 0},
		{stepFlush, 0, 0, 0}, {stepFlush, 1, 0, 0}, {stepFlush, 2, 0, 0}}},
	{name: "forgotten", base: 1, keys: 1, backlog: 1 << 20, page: 10, depth: 2, writes: 1, deletes: 1, reaps: 1, rejoins: 1, halves: 1, begin: []modelStep{
		{stepForget, 0, 2, 0}, {stepForget, 1, 2, 0}, {stepDelete, 0, 0, 0}, {stepPull, 1, 0, 0}, {stepFlush, 0, 0, 0}, {stepFlush, 1, 0, 0}, {stepPull, 0, 1, 0},
		{stepReap, 0, 0, 0}, {stepWrite, 2, 0, 0}}},
	{name: "rejoined from", base: 1, keys: 1, backlog: 1 << 20, page: 10, depth: 2, writes: 1, begin: []modelStep{
		{stepBackup, 1, 0, 0}, {stepForget, 0, 2, 0}, {stepForget, 1, 2, 0}, {stepDelete, 0, 0, 0}, {stepPull, 1, 0, 0}, {stepFlush, 0, 0, 0}, {stepFlush, 1, 0, 0},
		{stepPull, 0, 1, 0}, {stepReap, 0, 0, 0}, {stepRestore, 1, 0, 0}, {stepRejoin, 2, 0, 0}}},
	{name: "put again", base: 1, keys: 1, backlog: 1 << 20, page: 10, depth: 2, rejoins: 1, halves: 1, begin: []modelStep{
		{stepForget, 0, 2, 0}, {stepForget, 1, 2, 0}, {stepWrite, 0, 0, 0}, {stepDelete, 0, 0, 0}, {stepPull, 1, 0, 0}, {stepFlush, 0, 0, 0}, {stepFlush, 1, 0, 0},
		{stepPull, 0, 1, 0}, {stepReap, 0, 0, 0}, {stepWrite, 2, 0, 0}}},
	{name: "both are stale", base: 2, keys: 2, backlog: 1 << 20, page: 10, depth: 2, rejoins: 2, begin: []modelStep{
		{stepForget, 0, 2, 0}, {stepForget, 2, 0, 0}, {stepDelete, 0, 0, 0}, {stepPull, 1, 0, 0}, {stepDelete, 2, 1, 0}, {stepPull, 1, 2, 0},
		{stepFlush, 0, 0, 0}, {stepFlush, 1, 0, 0}, {stepFlush, 2, 0, 0}, {stepRead, 1, 0, 0}, {stepRead, 1, 2, 0}, {stepReap, 0, 0, 0}, {stepReap, 2, 0, 0}, {stepWipe, 1, 0, 0}}},
	{name: "a cut right after", base: 1, keys: 1, two: true, backlog: 1 << 20, page: 10, depth: 3, writes: 1, reaps: 1, flushes: 1, cuts: 1, faults: 1, begin: []modelStep{
		{stepDelete, 0, 0, 0}, {stepPull, 1, 0, 0}, {stepFlush, 1, 0, 0}, {stepPull, 0, 1, 0}}},
	{name: "a cut after a rejoin", base: 1, keys: 1, backlog: 1 << 20, page: 10, depth: 2, writes: 1, rejoins: 1, cuts: 1, faults: 1, begin: []modelStep{
		{stepForget, 0, 2, 0}, {stepForget, 1, 2, 0}, {stepDelete, 0, 0, 0}, {stepPull, 1, 0, 0}, {stepFlush, 0, 0, 0}, {stepFlush, 1, 0, 0}, {stepPull, 0, 1, 0},
		{stepReap, 0, 0, 0}}},
	{name: "power cuts", base: 1, keys: 1, two: true, backlog: 1 << 20, page: 10, depth: 3, writes: 2, deletes: 1, alls: 2, reaps: 2, flushes: 1, cuts: 1, rejoins: 1, faults: 1},
}

// settle has all that was met so far be durable everywhere, and known to be.
func (s *modelState) settle() error {
	for i := range s.r {
		if s.r[i] == nil {
			continue
		}
		r := s.own(i)
		if err := r.d.makeDurable(); err != nil {
			return err
		}
		r.seen = s.found(i)
		r.seenDurable = r.seen
	}
	for i := range s.r {
		for j := range i {
			if s.r[i] != nil && s.r[j] != nil && s.open[j][i] {
				s.hangUpPair(i, j)
				if err := s.meet(i, j); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// covers tells what one replica knows of what another one covers, in a session.
func (s *modelState) covers(i, j int) func(Stamp) bool {
	told := s.pulls[j][i].peer
	var durable vector
	if record := s.r[i].d.peer(s.r[j].d.id()); record != nil {
		durable = record.knows
	}
	return func(t Stamp) bool { return told.covers(t) || durable.covers(t) }
}

// fits is session.fits at i, with j.
func (s *modelState) fits(i, j int) bool {
	here, there := s.r[i].d.standing(s.pulls[i][j].reaped, s.covers(i, j))
	return !here && !there
}

// staleAt reports whether i has not seen something that j has reaped.
func (s *modelState) staleAt(i, j int) bool {
	here, _ := s.r[i].d.standing(s.pulls[i][j].reaped, s.covers(i, j))
	return here
}

// state has two replicas state to each other what they have reaped, and have durably.
func (s *modelState) state(i, j int, begin bool) {
	for _, at := range [][2]int{{i, j}, {j, i}} {
		to, from := s.own(at[0]), s.own(at[1])
		l := s.pull(at[0], at[1])
		reaped, number := from.d.known.reapedNow()
		if l.reaped = nil; number > 0 {
			l.reaped = &reaped
		}
		record := to.d.peer(from.d.id())
		record.knows, record.heardAt = from.d.durable.vec, time.Now()
	}
	for _, at := range [][2]int{{i, j}, {j, i}} {
		l := s.pull(at[0], at[1])
		u := &l.puller
		if begin || u.giver.known == nil || u.c.scan == scanNone && l.page == nil && !s.r[at[0]].d.known.reapedWithin(u.giver.known) {
			u.giver.known = maps.Clone(s.pulls[at[1]][at[0]].peer)
			if u.giver.known == nil {
				u.giver.known = vector{}
			}
			u.giver.known.join(s.r[at[0]].d.peer(s.r[at[1]].d.id()).knows.stamps())
		}
	}
}

// meets notes which changes a replica has met.
func (r *modelReplica) meets(s *modelState, entries []entry) {
	for i := range entries {
		for n := range s.ghost {
			if s.ghost[n].Stamp == entries[i].Stamp {
				r.seen |= 1 << n
			}
		}
	}
}

func (s *modelState) takeReaping(step modelStep) (done bool, err error) {
	i, j, left := int(step.a), int(step.b), s.left
	switch step.kind {
	case stepReap:
		n, err := s.reap(i)
		return n > 0 && spend(&left.reaps), err
	case stepForget:
		record := s.r[i].d.peer(s.r[j].d.id())
		if record == nil || !spend(&left.forgets, &left.faults) {
			return false, nil
		}
		s.hangUpPair(i, j)
		d := s.own(i).d
		if err := d.forget(s.r[j].d.id()); err != nil {
			return true, err
		}
		return true, d.readmit(s.r[j].d.id())
	case stepWipe:
		if !spend(&left.wipes, &left.faults) {
			return false, nil
		}
		s.clones++
		disk := &modelDisk{watched: left.cuts > 0}
		if err := s.reopen(i, disk, s.r[i].boot); err != nil {
			return true, err
		}
		r := s.r[i]
		r.seen, r.seenDurable, r.d.name = 0, 0, DatabaseID{s.clones, 0xfe}
		disk.do(modelWrite{[]modelChange{{modelRow{metaKey(metaID), r.d.name[:]}, false}}, true})
		return true, nil
	case stepAll:
		return spend(&left.alls), s.exchange(false, false)
	case stepLink:
		left.chain = false
		return spend(&left.links), nil
	case stepRejoin:
		if err := s.meet(i, j); err != nil || !s.staleAt(i, j) || !spend(&left.rejoins) {
			return false, err
		}
		return true, s.rejoin(i, j, false)
	case stepHalf:
		if err := s.meet(i, j); err != nil || !s.staleAt(i, j) || !spend(&left.halves) {
			return false, err
		}
		return true, s.rejoin(i, j, true)
	}
	return false, nil
}

// reap has a replica reap all that it may.
func (s *modelState) reap(i int) (n int, err error) {
	d := s.own(i).d
	d.settings.origins = nil
	var keys [][]byte
	index := newIndexReader(d, nil, false)
	for index.next() {
		keys = append(keys, bytes.Clone(index.key))
	}
	index.Release()
	return d.reapSome(keys, maxSequence)
}

// rejoin has i rejoin from j, or do all but the end.
func (s *modelState) rejoin(i, j int, half bool) error {
	at, peer := s.own(i), s.own(j)
	d, record := at.d, at.d.peer(peer.d.id())
	told := append(peer.d.known.all().stamps(), s.pulls[i][j].reaped.orNone()...)
	ctx := context.Background()
	r, err := d.beginRejoin(ctx, false, told)
	if err != nil {
		return err
	}
	defer r.end()
	c, sink := &comparer{d: peer.d, record: peer.d.peer(d.id())}, new(modelSink)
	defer c.release()
	ask := func(q *question) (*reply, error) {
		p, _, err := c.answer(ctx, q, sink)
		p.entries = sink.entries
		return &p, err
	}
	take := func(p *reply, entries []entry) (n int, err error) {
		for k := range entries {
			if e := &entries[k]; e.absent {
				values := new(modelSink)
				if _, _, _, err := newServer(peer.d).values([][]byte{e.key}, values); err != nil {
					return 0, err
				}
				*e = values.entries[0]
			}
		}
		at.meets(s, entries)
		var blind blindness
		found, err := d.examine(entries, &blind)
		if err != nil {
			return 0, err
		}
		found.giver = &giver{rejoin: r}
		return len(entries), d.merge(found, &blind, nil)
	}
	if err := r.run(ctx, ask, take, nil); err != nil {
		return err
	}
	if !half {
		next := cursor{checkpoint: r.peer.to, joined: true}
		if _, err := r.finish(&progress{id: peer.d.id(), record: record, next: next}); err != nil {
			return err
		}
	}
	s.again(i)
	s.hangUpPair(i, j)
	return nil
}

func (v *vector) orNone() []Stamp {
	if v == nil {
		return nil
	}
	return v.stamps()
}

// again notes the changes that were made anew of what was there: they count as the same
// put, and their maker had met it.
func (s *modelState) again(i int) {
	r := s.r[i]
	index := newIndexReader(r.disk, nil, false)
	defer index.Release()
	for index.next() {
		if slices.ContainsFunc(s.ghost, func(g modelGhost) bool { return g.Stamp == index.record.Stamp }) {
			continue
		}
		value, _ := r.disk.Get(index.key, nil)
		s.ghost = append(slices.Clip(s.ghost), modelGhost{string(index.key), string(value), index.record.Version, r.seen})
		r.seen |= 1 << (len(s.ghost) - 1)
	}
}

// found returns which changes are here.
func (s *modelState) found(i int) (seen uint64) {
	index := newIndexReader(s.r[i].disk, nil, false)
	defer index.Release()
	for index.next() {
		for n, g := range s.ghost {
			if g.Stamp == index.record.Stamp {
				seen |= 1 << n
			}
		}
	}
	return seen
}

// same returns the first change with the value of another one.
func (s *modelState) same(n int) int {
	return slices.IndexFunc(s.ghost, func(g modelGhost) bool {
		return g.key == s.ghost[n].key && g.value == s.ghost[n].value && g.Deleted == s.ghost[n].Deleted && (!g.Deleted || g.Stamp == s.ghost[n].Stamp)
	})
}

// checkReaped is check, for replicas that reap.
func (s *modelState) checkReaped(i int) error {
	r := s.r[i]
	known := r.d.known.all()
	if reaped, _ := r.d.known.reapedNow(); !known.includes(reaped) {
		return fmt.Errorf("%d knows %v, and has reaped %v", i, known, reaped)
	}
	for _, g := range s.ghost {
		if !known.covers(g.Stamp) {
			continue
		}
		here, err := lookup(r.d, []byte(g.key))
		if err == nil && here.Version.Compare(g.Version) < 0 && !here.Deleted {
			return fmt.Errorf("%d knows %s %v, and has %v", i, g.key, g.Version, here.Version)
		}
	}
	index := newIndexReader(r.disk, nil, false)
	defer index.Release()
	for index.next() {
		_, err := r.disk.Get(index.key, nil)
		if (err == nil) == index.record.Deleted {
			return fmt.Errorf("%d: %s has %v and a value: %v", i, index.key, index.record, err)
		}
	}
	return index.fault()
}

// healReaped lets everything that is under way end, in several ways, and returns what does
// not hold then.
func (s *modelState) healReaped() error {
	for way := range 4 {
		c := s.copy()
		if err := c.healBy(way&1 != 0, way&2 != 0); err != nil {
			return fmt.Errorf("in reverse %v, reaping %v: %w", way&1 != 0, way&2 != 0, err)
		}
	}
	return nil
}

// pairs calls do for all pairs that have a link, in one order or its reverse.
func (s *modelState) pairs(reverse bool, do func(i, j int) error) error {
	for n := range modelReplicas * modelReplicas {
		if reverse {
			n = modelReplicas*modelReplicas - 1 - n
		}
		i, j := n/modelReplicas, n%modelReplicas
		if i == j || s.left.chain && i+j == modelReplicas-1 || s.r[i] == nil || s.r[j] == nil {
			continue
		}
		if err := do(i, j); err != nil {
			return err
		}
	}
	return nil
}

// exchange has all that goes by itself come to an end.
func (s *modelState) exchange(reverse, reap bool) error {
	for round := 0; ; round++ {
		if round > 20 {
			return fmt.Errorf("no rest after %d rounds", round)
		}
		quiet := true
		err := s.pairs(reverse, func(i, j int) error {
			for pages := 0; ; pages++ {
				if pages > 30 {
					return fmt.Errorf("%d gets no end of pages from %d", i, j)
				}
				done, err := s.merge(i, j)
				if !done && err == nil {
					if done, err = s.read(i, j, 1<<62); !done && err == nil {
						return nil
					}
				}
				if quiet = false; err != nil {
					return err
				}
			}
		})
		if err != nil {
			return err
		}
		for i := range s.r {
			if s.r[i] == nil {
				continue
			}
			r := s.own(i)
			r.d.settings.origins = nil
			count := r.d.durable.count
			if err := r.d.makeDurable(); err != nil {
				return err
			}
			r.seenDurable = r.seen
			quiet = quiet && r.d.durable.count == count
			if reap {
				n, err := s.reap(i)
				if err != nil {
					return err
				}
				quiet = quiet && n == 0
			}
			if err := s.checkReaped(i); err != nil {
				return err
			}
		}
		if quiet {
			return nil
		}
	}
}

// healBy lets all come to an end. Then those that are stale rejoin, one at a time.
func (s *modelState) healBy(reverse, reap bool) error {
	for {
		if err := s.exchange(reverse, reap); err != nil {
			return err
		}
		done := false
		err := s.pairs(reverse, func(i, j int) error {
			if err := s.meet(i, j); err != nil || done || !s.staleAt(i, j) {
				return err
			}
			if s.left.faults == s.left.sound {
				return fmt.Errorf("%d is stale, and there was no fault", i)
			}
			done = true
			return s.rejoin(i, j, false)
		})
		if err != nil {
			return err
		}
		if !done {
			return s.verdict()
		}
	}
}

// verdict judges what there is in the end.
func (s *modelState) verdict() error {
	var first *modelReplica
	var seen uint64
	for i, r := range s.r {
		if r == nil {
			continue
		}
		seen |= r.seen
		if first == nil {
			first = r
		}
		if v, w := first.d.known.all(), r.d.known.all(); !maps.Equal(v, w) {
			return fmt.Errorf("0 knows %v, %d knows %v", v, i, w)
		}
		if a, b := first.live(), r.live(); a != b {
			return fmt.Errorf("0 has %s, %d has %s", a, i, b)
		}
	}
	keys := map[string]bool{}
	for _, g := range s.ghost {
		keys[g.key] = true
	}
	for key := range keys {
		here, at := -1, -1 // the change that is there, and the greatest that was met
		value, err := first.disk.Get([]byte(key), nil)
		if err != nil && err != leveldb.ErrNotFound {
			return err
		}
		for n, g := range s.ghost {
			if g.key != key {
				continue
			}
			if err == nil && !g.Deleted && g.value == string(value) && here < 0 {
				here = n
			}
			if seen>>n&1 != 0 && (at < 0 || s.ghost[at].Version.Compare(g.Version) < 0) {
				at = n
			}
		}
		if here >= 0 {
			record, err := lookup(first.d, []byte(key))
			if err != nil {
				return err
			}
			if greatest := s.ghost[at]; record.Version != greatest.Version || s.same(at) != here || record.Stamp != s.ghost[here].Stamp {
				// What was put again is a new change, made without knowledge of some deletions.
				again := slices.IndexFunc(s.ghost, func(g modelGhost) bool { return g.Stamp == record.Stamp })
				for n, g := range s.ghost {
					knew := again < 0 || again == here || s.ghost[again].ctx>>n&1 != 0
					if g.key == key && g.Deleted && g.ctx>>here&1 != 0 && seen>>n&1 != 0 && knew {
						return fmt.Errorf("%s is %s again, which was deleted by %v", key, value, g.Version)
					}
				}
			}
			if s.same(at) == here {
				continue
			}
		}
		if at >= 0 && !s.ghost[at].Deleted {
			later := slices.ContainsFunc(s.ghost, func(g modelGhost) bool { return g.key == key && g.Version.Compare(s.ghost[at].Version) > 0 })
			if !later {
				return fmt.Errorf("%s should be %s, and is %q", key, s.ghost[at].value, value)
			}
		}
	}
	return nil
}

// live returns the live keys with their values and versions.
func (r *modelReplica) live() string {
	var b []byte
	index := newIndexReader(r.disk, nil, false)
	defer index.Release()
	for index.next() {
		if !index.record.Deleted {
			value, _ := r.disk.Get(index.key, nil)
			b = fmt.Appendf(b, "%s %v %s; ", index.key, index.record.Version, value)
		}
	}
	return string(b)
}
