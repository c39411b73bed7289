package replicator_test

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// oracle knows what a simulation's replicas may not lose. What can honestly be
// claimed is this:
//
//   - A replica's version of a key never falls while its files are its own: a
//     restart and a kill lose nothing. So what was seen there once is a bound for
//     ever, be it of a change made there or of a merged one.
//   - A power cut takes the bound down to what is known to be durable: what was
//     there when leveldb was opened, for it makes tables of its journals then; what
//     was there at a clean close; and each change written with Sync, or something
//     greater of its key. That a peer was told of more is a promise of its own, see
//     acknowledgedBy.
//   - A wipe, a backup, a clone and files that lost rows replace the bound by that
//     of what is there instead.
//
// At the end all replicas hold the same, and each is held to its own bound. So for
// each key the winner is at least every change that is still safe at some replica, or
// was merged into one that still has it: the greatest of all bounds. And the winner is
// what its stamp was given to: a delete leaves no value, a put leaves its own.
//
// A change that is below the winner and was never seen by whoever made the winner is
// lost by the rules, and is no fault. One that its own replica lost before anybody had
// it is gone; whether anybody had it cannot be known from outside but by looking, so
// replicas are looked at before every loss.
type oracle struct {
	s     *simulation
	pasts map[*node]*past
	owner map[replicator.DatabaseID]*node // who had an id first; nil: several had it

	mu      sync.Mutex // guards what follows
	changes map[replicator.Stamp]written
	// deleted are the keys that were deleted by a write whose stamps may never be known.
	deleted map[string]bool
	latest  map[string]replicator.Stamp // by key, the last change that was made
}

// written is what a stamp was given to.
type written struct {
	key, value string
	deleted    bool
}

// past is what is known of the files that a node has.
type past struct {
	seen      map[string]replicator.Version // the least that it may show
	durable   map[string]replicator.Version // the least after a power cut
	promised  map[string]replicator.Version // the same by what peers were told
	old       map[string]string             // values that are to be adopted
	unwritten map[string]string             // those that are put there, without Sync, before the first opening
	lost      []string                      // keys of which nothing is known after the next opening
	rows      map[string]replicator.Row     // what was there at the last look
	cut       bool                          // the next opening is after a power cut
	since     time.Time                     // when something was lost, or the files replaced
	clock     uint64                        // of the process that ended; 0 if the files were another's
	id        replicator.DatabaseID         // at the last look since the opening
}

func newOracle(s *simulation) *oracle {
	return &oracle{s: s, pasts: map[*node]*past{}, owner: map[replicator.DatabaseID]*node{}, deleted: map[string]bool{}, changes: map[replicator.Stamp]written{}, latest: map[string]replicator.Stamp{}}
}

func newPast() *past {
	return &past{seen: map[string]replicator.Version{}, durable: map[string]replicator.Version{}}
}

// image is the past of a copy of the files, as somebody finds it who opens that.
func (p *past) image() *past {
	return &past{seen: maps.Clone(p.seen), durable: map[string]replicator.Version{}, old: p.old}
}

func (o *oracle) of(n *node) *past {
	if o.pasts[n] == nil {
		o.pasts[n] = newPast()
	}
	return o.pasts[n]
}

// replaced notes that a node has other files.
func (o *oracle) replaced(n *node, by *past) {
	by.since = time.Now()
	o.pasts[n] = by
}

// powerLost notes that a node's files have lost what was not synced.
func (o *oracle) powerLost(n *node) {
	p := o.of(n)
	p.cut, p.since = true, time.Now()
}

// lost notes that a node's files, as the next opening finds them, lack some keys.
func (o *oracle) lost(n *node, keys []string) {
	p := o.of(n)
	p.lost, p.since = keys, time.Now()
	p.old = maps.Clone(p.old)
	for _, key := range keys {
		delete(p.seen, key)
		delete(p.old, key)
	}
}

// start opens a node unless it is open.
func (s *simulation) start(n *node) {
	if n.r != nil {
		return
	}
	p := s.of(n)
	most, cut := p.clock, p.cut || n.recovered
	block := uint64(1 << 16)
	if s.kind == replicator.Hybrid {
		n.ahead = time.Duration(s.rng.IntN(20)) * time.Minute // its clock was set
		block = 10_000 << 16
		if cut {
			most = max(most, uint64(time.Now().Add(20*time.Minute).UnixMilli())<<16) // an opening alone comes up to the wall clock
		}
	}
	if cut {
		for _, m := range s.nodes { // it may have reserved what another had told, and was about to merge that
			if m != n && m.r != nil {
				most = max(most, m.r.Status().Clock)
			} else {
				most = max(most, s.of(m).clock)
			}
		}
		most += block
	}
	n.open(func(o *replicator.Options) {
		s.opened(n)
		if n == s.dialOnly {
			dialOnly(o)
		}
	})
	status := n.r.Status()
	s.identify(n, status.ID)
	for key, version := range p.seen {
		require.Less(s.t, version.Clock, status.Clock, "the clock of %s, which has %s at %v", n.name, key, version)
	}
	if p.clock > 0 {
		// It may have met others already, and may have marked the end of an adoption.
		for _, m := range s.nodes {
			if m != n && m.r != nil {
				most = max(most, m.r.Status().Clock+1)
			}
		}
		if status.Adoption.Done {
			most++
		}
		require.LessOrEqual(s.t, status.Clock, most, "the clock of %s, which ended at %d, power cut or recovered: %v", n.name, p.clock, cut)
	}
	p.clock = 0
}

// identify notes which id a node has.
func (o *oracle) identify(n *node, id replicator.DatabaseID) {
	if first, known := o.owner[id]; !known {
		o.owner[id] = n
	} else if first != n {
		o.owner[id] = nil
	}
	o.of(n).id = id
}

// opened compares what leveldb found in a node's files to what has to be there.
func (o *oracle) opened(n *node) {
	p, rows := o.of(n), indexOf(o.s.t, n.db)
	found := versionsOf(rows)
	for _, key := range sortedKeys(p.unwritten) {
		require.NoError(o.s.t, n.db.Put([]byte(key), []byte(p.unwritten[key]), nil))
	}
	p.unwritten = nil
	if p.cut {
		o.noteLosses(p.rows, rows)
		require.NoError(o.s.t, o.atLeast(found, p.durable), "%s lost in a power cut what was durable", n.name)
		if err := o.atLeast(found, p.promised); err != nil {
			o.s.violate(acknowledged, "%s lost in a power cut what it had acknowledged: %v", n.name, err)
		}
	} else {
		require.NoError(o.s.t, o.atLeast(found, p.seen), "%s lost something", n.name)
	}
	for _, key := range p.lost {
		delete(found, key)
	}
	p.seen, p.durable = found, maps.Clone(found)
	p.promised, p.lost, p.cut = nil, nil, false
	o.noteScans(n)
}

// noteLosses looks at what a power cut took.
func (o *oracle) noteLosses(before, after map[string]replicator.Row) {
	var first, last uint64 // the first that was lost, and the last that was not
	for key, row := range before {
		switch _, found := after[key]; {
		case found && after[key].Compare(row.Version) >= 0:
			last = max(last, row.Seq)
		case first == 0 || row.Seq < first:
			first = row.Seq
		}
	}
	if first > 0 {
		o.s.seen.note("a power cut takes a change")
	}
	if first > 0 && first < last {
		o.s.seen.note("a power cut takes a change and leaves a later one")
	}
}

// noteScans looks for scans that an opening has to go on with.
func (o *oracle) noteScans(n *node) {
	for _, c := range o.cursors(n) {
		switch {
		case c.Log:
			o.s.seen.note("an opening finds an unfinished scan of the log")
		case c.Keys && c.Checkpoint > 0:
			o.s.seen.note("an opening finds an unfinished rescan")
		case c.Keys:
			o.s.seen.note("an opening finds an unfinished full pull")
			if floor, err := replicator.Floor(n.db); err == nil && floor > 1 {
				o.s.seen.note("an opening finds an unfinished first sync")
			}
		}
	}
}

// cursors are those that a node has stored, for the replicas that are open.
func (o *oracle) cursors(n *node) (all []replicator.Progress) {
	for _, m := range o.s.nodes {
		if m == n || m.r == nil {
			continue
		}
		c, err := replicator.StoredCursor(n.db, m.r.Status().ID)
		require.NoError(o.s.t, err)
		all = append(all, c)
	}
	return all
}

// stop closes a node: all that it holds is durable.
func (s *simulation) stop(n *node) {
	s.look(n)
	start := time.Now()
	require.NoError(s.t, n.r.Close())
	require.Less(s.t, time.Since(start), 2*time.Second, "how long Close of %s took", n.name)
	p := s.of(n)
	found := versionsOf(indexOf(s.t, n.db))
	require.NoError(s.t, s.atLeast(found, p.seen), "%s lost something at its close", n.name)
	p.seen, p.durable, p.clock = found, maps.Clone(found), n.r.Status().Clock
	n.close()
}

// rows is what an open node knows of each key.
func (s *simulation) rows(n *node) map[string]replicator.Row { return indexOf(s.t, n.db) }

// look compares an open node to its past.
func (s *simulation) look(n *node) {
	p, status := s.of(n), n.r.Status() // before the rows: what it tells is in them
	p.rows = s.rows(n)
	found := versionsOf(p.rows)
	require.NoError(s.t, s.atLeast(found, p.seen), "%s lost something", n.name)
	p.seen = found
	require.NoError(s.t, s.known(p.rows), n.name)
	if s.rng.IntN(8) == 0 && status.Adoption.Done {
		require.NoError(s.t, replicator.CheckConsistent(n.r), n.name)
	}
	if status.Adoption.Done && p.old != nil {
		require.NoError(s.t, s.atLeast(found, adoptedVersions(p.old)), "%s did not adopt something", n.name)
		s.seen.note("old values are adopted")
		p.old = nil
	}
	if status.ID != p.id {
		s.seen.note("an id is renewed")
		s.identify(n, status.ID)
	}
	for _, peer := range status.Peers {
		s.seen.note("state: " + string(peer.State))
		if peer.SameAs != "" {
			s.seen.note("two addresses are seen to lead to one replica")
		}
	}
	for _, c := range s.cursors(n) {
		if !c.Log && !c.Keys && c.Seen > c.Checkpoint {
			s.seen.note("a key moves up the log during a scan")
		}
	}
}

// known checks that stamps stand where they were given.
func (o *oracle) known(rows map[string]replicator.Row) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range sortedKeys(rows) {
		row := rows[key]
		if c, known := o.changes[row.Stamp]; known && (c.key != key || c.deleted != row.Deleted) {
			return fmt.Errorf("key %s has version %v, which was given to %+.80v", key, row.Version, c)
		}
	}
	return nil
}

// crowd is what several goroutines write at once: the batches of each.
type crowd struct {
	batches [][]*leveldb.Batch

	mu  sync.Mutex
	err error
}

func newCrowd() *crowd { return new(crowd) }

// fail notes the first error.
func (c *crowd) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// lastOfBatch is what the last operation of a batch on a key leaves.
type lastOfBatch struct {
	last map[string]written
}

func (o *lastOfBatch) Put(key, value []byte) {
	o.last[string(key)] = written{string(key), string(value), false}
}
func (o *lastOfBatch) Delete(key []byte) { o.last[string(key)] = written{string(key), "", true} }

// outcomes are what each key may be left with by batches that race: by key.
func (c *crowd) outcomes(t require.TestingT) map[string][]written {
	all := map[string][]written{}
	for _, batches := range c.batches {
		for _, b := range batches {
			o := &lastOfBatch{last: map[string]written{}}
			require.NoError(t, b.Replay(o))
			for key, change := range o.last {
				all[key] = append(all[key], change)
			}
		}
	}
	return all
}

// deletes are the keys that some batch may leave deleted.
func (c *crowd) deletes(t require.TestingT) map[string]bool {
	keys := map[string]bool{}
	for key, all := range c.outcomes(t) {
		for _, w := range all {
			keys[key] = keys[key] || w.deleted
		}
	}
	return keys
}

// expects notes which keys may be deleted.
func (o *oracle) expects(c *crowd) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for key, deleted := range c.deletes(o.s.t) {
		o.deleted[key] = o.deleted[key] || deleted
	}
}

// write makes one write to a node. If it is with Sync, it is durable.
func (s *simulation) write(n *node, b *leveldb.Batch, wo *opt.WriteOptions, do func() error) {
	before := s.rows(n)
	c := &crowd{batches: [][]*leveldb.Batch{{b}}}
	s.expects(c)
	require.NoError(s.t, do())
	s.wrote(n, before, c)
	if !wo.Sync {
		return
	}
	p := s.of(n)
	for key := range c.outcomes(s.t) {
		// A version that a merge has put on top of ours need not be durable. Ours is,
		// and it is above what was there.
		durable := before[key].Version
		if p.seen[key].Origin == n.r.Status().Epoch {
			durable = p.seen[key]
		}
		p.durable[key] = greater(p.durable[key], durable)
	}
}

// wrote looks at what writes have left: each key has a version above the one
// before, and if that is of this opening, it is one of those that were written.
func (s *simulation) wrote(n *node, before map[string]replicator.Row, c *crowd) {
	p, epoch := s.of(n), n.r.Status().Epoch
	for key, possible := range c.outcomes(s.t) {
		// A deletion above the write, of one's own or merged, may be forgotten by now, and one
		// from before have come since.
		at := greater(p.seen[key], before[key].Version)
		now, err := n.r.Version([]byte(key))
		if forgotten := err == leveldb.ErrNotFound || now.Deleted && now.Compare(at) < 0; forgotten && s.reaping && s.isDeletedAfter(key, at) {
			continue
		}
		version := n.version(key)
		was := max(before[key].Version.Compare(p.seen[key]), 0)
		least := []replicator.Version{p.seen[key], before[key].Version}[was]
		_, found := before[key]
		require.True(s.t, !found || version.Compare(least) > 0,
			"%s has %v of %s after a write, and had %v before", n.name, version, key, least)
		p.seen[key] = version
		if version.Origin != epoch {
			s.seen.note("a merge overtakes a write")
			continue
		}
		value, _ := n.get(key)
		if n.version(key) != version {
			continue // a merge came in between
		}
		left := written{key, value, version.Deleted}
		require.Contains(s.t, possible, left, "%s after a write", n.name)
		s.made(version.Stamp, left)
	}
}

// checkKnown checks of every replica that it has what its vector covers, of all changes
// that were ever made, or something greater.
func (o *oracle) checkKnown() {
	o.mu.Lock()
	var all []replicator.Made
	for stamp, c := range o.changes {
		all = append(all, replicator.Made{Key: c.key, Version: replicator.Version{Stamp: stamp, Deleted: c.deleted}})
	}
	o.mu.Unlock()
	for _, n := range o.s.nodes {
		if n.r != nil && !o.s.reaping {
			require.NoError(o.s.t, replicator.CheckKnown(n.r, all), n.name)
		}
	}
}

// made notes which change was given a stamp. No other one may have it.
func (o *oracle) made(stamp replicator.Stamp, c written) {
	o.mu.Lock()
	defer o.mu.Unlock()
	other, taken := o.changes[stamp]
	require.True(o.s.t, !taken || other == c, "stamp %v was given to %+.80v and to %+.80v", stamp, other, c)
	o.changes[stamp] = c
	o.latest[c.key] = stamp
}

// claims are what SyncNow of a node has to bring, if it returns nil: what its peers
// have. These are the replicas at the configured addresses and, if SyncNow is called at
// once, so that it is known which they are, those that have dialled in.
type claims struct {
	of      *node
	had     map[*node]map[string]replicator.Version
	id      map[*node]replicator.DatabaseID
	dialled map[*node]bool
	inbound map[replicator.DatabaseID]bool
}

// claims must be called with nobody writing: what a commit has put into leveldb is
// not in the log before the commit is over.
func (s *simulation) claims(n *node) *claims {
	synctest.Wait()
	c := &claims{
		of: n, had: map[*node]map[string]replicator.Version{}, id: map[*node]replicator.DatabaseID{},
		dialled: map[*node]bool{}, inbound: map[replicator.DatabaseID]bool{},
	}
	status := n.r.Status()
	for _, p := range status.Peers {
		// An address that was the own one is not dialled again, wherever it leads now.
		if to := s.addrs.connected(dialled{n.name, p.Addr}); to != nil && p.State != replicator.StateSelf {
			c.dialled[to] = true
		}
	}
	for _, m := range s.nodes {
		c.dialled[m] = c.dialled[m] || slices.Contains(n.peers, m.name)
		if m != n && m.r != nil {
			c.had[m], c.id[m] = versionsOf(s.rows(m)), m.r.Status().ID
		}
	}
	for _, p := range status.Peers {
		if p.DialedBy == replicator.DialedByThem {
			c.inbound[p.ID] = true
		}
	}
	return c
}

// syncNow calls SyncNow, and returns which of the claims it does not fulfil.
func (s *simulation) syncNow(c *claims) error {
	n := c.of
	if err := n.sync(); err != nil {
		s.seen.note("SyncNow tells of a peer that it did not reach")
		return nil
	}
	s.seen.note("SyncNow returns nil")
	here := versionsOf(s.rows(n))
	for _, m := range s.nodes {
		inbound := c.inbound[c.id[m]] && isAlone(c.id, c.id[m])
		if m == n || !c.dialled[m] && !inbound {
			continue
		}
		if c.had[m] == nil {
			return fmt.Errorf("SyncNow of %s returned nil, and %s is closed", n.name, m.name)
		}
		if err := s.atLeast(here, c.had[m]); err != nil {
			return fmt.Errorf("SyncNow of %s returned nil without what %s (configured: %v, dialled in: %v) had: %w",
				n.name, m.name, c.dialled[m], inbound, err)
		}
	}
	return nil
}

// isAlone reports whether one node has an id, not several.
func isAlone(ids map[*node]replicator.DatabaseID, id replicator.DatabaseID) bool {
	count := 0
	for _, other := range ids {
		if other == id {
			count++
		}
	}
	return count == 1
}

// acknowledgedBy returns what the others have been told that a node has made
// durable: the records of their logs up to what their Status says is acknowledged. What
// it says may be out of date if the node has lost something since, until the node states
// it anew, which it does in each session before it first answers. So only what was
// stated since counts, and was taken in: time has passed.
func (s *simulation) acknowledgedBy(n *node) map[string]replicator.Version {
	p, promised := s.of(n), map[string]replicator.Version{}
	if s.owner[p.id] == nil {
		return promised // what another has stated under the id may still be told
	}
	for _, m := range s.nodes {
		if m == n || m.r == nil {
			continue
		}
		for _, told := range m.r.Status().Peers {
			if told.ID != p.id || told.DialedBy == "" || told.Acknowledged == nil ||
				!told.LastSuccess.After(p.since) || !time.Now().After(told.LastSuccess) {
				continue
			}
			log, err := replicator.LogRows(m.db)
			require.NoError(s.t, err)
			index, err := replicator.IndexRows(m.db) // a first sync leaves no log
			require.NoError(s.t, err)
			for _, row := range slices.AppendSeq(log, maps.Values(index)) {
				if row.Seq <= *told.Acknowledged {
					promised[row.Key] = greater(promised[row.Key], row.Version)
				}
			}
		}
	}
	return promised
}

// verify checks all replicas, which are open and equal.
func (s *simulation) verify() {
	digest, err := s.nodes[0].r.Digest()
	require.NoError(s.t, err)
	for _, n := range s.nodes {
		s.look(n)
		other, err := n.r.Digest()
		require.NoError(s.t, err)
		require.Equal(s.t, digest, other, "the digests of %s and %s", s.nodes[0].name, n.name)
		state := n.state()
		if n.r.Status().Tombstones != nil && n.r.Status().Tombstones.Reaped > 0 {
			s.seen.note("tombstones are reaped")
		}
		for key, version := range state.versions {
			value, has := state.values[key]
			require.Equal(s.t, version.Deleted, !has, "%s at %s: %v", key, n.name, version)
			if c, known := s.changes[version.Stamp]; known {
				require.Equal(s.t, c, written{key, value, version.Deleted}, "what %s has at %v", n.name, version)
			}
		}
	}
	for key, version := range s.nodes[0].state().versions {
		if version.Deleted {
			s.seen.note("a delete wins")
		}
		if latest, known := s.latest[key]; known && latest != version.Stamp {
			s.seen.note("a write loses to one that was made before")
		}
	}
}

// atLeast returns which key's version is below the least that it may be.
//
// Where deletions are forgotten, what was deleted may be gone, with its record or without:
// if there was a later deletion. And a key of which nothing is known may come back with who
// was away.
func (o *oracle) atLeast(have, least map[string]replicator.Version) error {
	for _, key := range sortedKeys(least) {
		version, found := have[key]
		if o.s.reaping && (!found || version.Compare(least[key]) < 0) && (least[key].Deleted || o.isDeletedAfter(key, least[key])) {
			continue
		}
		if !found || version.Compare(least[key]) < 0 {
			return fmt.Errorf("%s is at %v (there: %v), and has to be at %v at least", key, version, found, least[key])
		}
	}
	return nil
}

// isDeletedAfter reports whether a key was ever deleted by a change above a version.
func (o *oracle) isDeletedAfter(key string, v replicator.Version) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.deleted[key] || v.Origin>>63 == 0 {
		return true // of an old value, nobody knows
	}
	for stamp, c := range o.changes {
		if c.key == key && c.deleted && stamp.Compare(v.Stamp) > 0 {
			return true
		}
	}
	return false
}

func greater(a, b replicator.Version) replicator.Version {
	if a.Compare(b) < 0 {
		return b
	}
	return a
}

func versionsOf(rows map[string]replicator.Row) map[string]replicator.Version {
	versions := make(map[string]replicator.Version, len(rows))
	for key, row := range rows {
		versions[key] = row.Version
	}
	return versions
}

// adoptedVersions are what adoption makes of values.
func adoptedVersions(values map[string]string) map[string]replicator.Version {
	versions := map[string]replicator.Version{}
	for key, value := range values {
		versions[key] = replicator.Version{Stamp: replicator.Stamp{Origin: adoptedOrigin(value)}}
	}
	return versions
}

// countJournalWrites counts how often a disk's journals are written to from now on.
// Tables do not count: compactions write them.
func countJournalWrites(disk *simtest.Disk) *atomic.Int64 {
	writes := new(atomic.Int64)
	disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
		if op == simtest.OpWrite && fd.Type == storage.TypeJournal {
			writes.Add(1)
		}
		return nil
	})
	return writes
}
