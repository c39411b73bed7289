package replicator

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// This file owns the pulling side of a session: asking for pages, and merging them.

const (
	// repeatAfter is how long after a scan that the peer could not read completely it
	// is repeated; each time it is doubled, up to repeatMost.
	repeatAfter = time.Minute
	repeatMost  = time.Hour
	// maxLentPage is the greatest length of a page that hear merges. It is to go on hearing
	// soon.
	maxLentPage = 16 << 10
)

// scanCause is why something is read in a peer's database.
type scanCause int

const (
	scanOfNew     scanCause = iota // nothing of the peer's log is merged
	scanOfLog                      // its backlog does not reach back to the checkpoint
	scanOfKeys                     // nor does its log, or not as cheaply
	scanOfReset                    // its log is not the one that was followed
	scanRecovered                  // of recovered files
	scanRejoined
	scanCauses
)

// scanCounts counts scans by their causes.
type scanCounts [scanCauses]atomic.Uint64

func (c *scanCounts) add(cause scanCause) { c[cause].Add(1) }

// puller asks a peer for pages, and merges them.
type puller struct {
	s       *session
	c       cursor // what the next pull states, or will once the page under way is merged
	restart uint64 // number of the record's restart from which it goes on

	vector     []Stamp // of the scan's first page; nil: it went with the session that got it
	held       bool    // the vector is at hand
	blind      blindness
	arbiter    arbiter
	heard      vector // what the makers of entries that are yet to be merged may have known
	hearing    uint64 // the number of the peer's hearsay that is in it
	full       bool   // a pull of everything was part of it
	began      bool   // it is known whether the scan under way is a first sync
	first      *firstSync
	incomplete bool   // something was left out: nothing that was merged since counts
	stale      uint64 // entries of the last page that were not needed
	lendable   bool   // hear may merge the next page
	fetched    int    // entries that came in answers to fetches
	lacked     bool   // something was fetched that the peer could not read
	giver      giver
	fitted     fitting
	inHear     bool // hear merges
	current    bool // what is fetched is judged by what the peer knows by now
}

func newPuller(s *session) *puller {
	return &puller{
		s: s, restart: s.record.restarted(), c: s.record.place(), arbiter: arbiter{peer: s.server}, heard: vector{},
		giver: giver{reaped: s.reaped.Load},
	}
}

// pull reads what the peer has, page by page. When all is merged, the peer holds the
// pull until there is something new.
func (s *session) pull() error {
	if s.access == ReadOnly {
		s.note(func() { s.state = StateReadOnly })
		return nil
	}
	u := newPuller(s)
	defer u.endScan()
	if _, err := u.fit(); err != nil {
		return err
	}
	empty := s.store.head() == 0 && !s.store.adopter.running()
	if err := u.begin(empty); err != nil {
		return err
	}
	for {
		p, err := u.next()
		if err != nil {
			return err
		}
		if p != nil { // else hear has merged it
			if err := s.meet(); err != nil { // whoever answers a pull has read our hello
				return err
			}
			next, err := u.arrive(p)
			if err != nil {
				return err
			}
			// In a scan, the next page is asked for first of all, so that it is on its way
			// meanwhile. Otherwise the merge comes first, for it is what is waited for, and
			// a pull must not state what is not merged.
			if next.scan != scanNone {
				if err := u.takeTurn(); err != nil {
					return err
				}
				u.beginFirst(p, &next, s.conn.gained.Load)
				if err := u.request(next, empty, true); err != nil {
					return err
				}
			}
			if err := u.merge(p, next); err != nil {
				return err
			}
		}
		if u.c.scan == scanNone {
			u.endScan()
			waited, err := u.fit()
			if err != nil {
				return err
			}
			if waited {
				err = u.begin(empty)
			} else {
				err = u.request(u.c, empty, true)
			}
			if err != nil {
				return err
			}
		}
		u.lendable = s.isMet() && u.c.caughtUp()
	}
}

// begin asks for the first page, in a session or after what fit waited for. It shows that
// the peer's log is still the one that the cursor is of, and what is merged by now: so the
// peer must not wait for something new.
func (u *puller) begin(empty bool) error {
	if u.c.checkpoint.isZero() || u.c.scan != scanNone {
		if err := u.takeTurn(); err != nil {
			return err
		}
	}
	if u.c.equal(cursor{}) && u.s.store.recovered.Load() {
		if _, err := u.pullDifferences(); err != nil {
			return err
		}
	}
	return u.request(u.c, empty, false)
}

// next waits for the page that was asked for. It returns nil if hear has merged it.
//
// A change that comes to a replica that waits for it is to be readable as soon as
// possible, and to wake a goroutine takes longer than to merge a small page. So while
// this one waits, it lends the puller to hear, which merges what needs neither a send nor
// another frame, and gives the puller back.
func (u *puller) next() (*page, error) {
	s := u.s
	if u.lendable {
		s.lent.Store(u)
	}
	var payload []byte
	var err error
	select {
	case payload = <-s.pages:
	case <-s.back:
		return nil, nil
	case <-s.ctx.Done():
		err = s.ctx.Err()
	}
	if u.lendable && s.lent.Swap(nil) == nil {
		<-s.back // hear has it, though the session ends
	}
	if err != nil {
		return nil, err
	}
	p, err := parsePage(payload, s.y.settings.maxValue, s.hello.epoch)
	return &p, err
}

// mergeLent merges a page in place of the goroutine of pull, if that waits for it and
// the page can be merged at once. It reports whether it has.
func (s *session) mergeLent(payload []byte) (merged bool, err error) {
	if len(payload) > maxLentPage || s.lent.Load() == nil || s.store.rejoining.Load() != nil {
		return false, nil
	}
	p, err := parsePage(payload, s.y.settings.maxValue, s.hello.epoch)
	if err != nil || p.scan != scanNone || p.reset {
		return false, err
	}
	reaps, reaped := s.store.known.reapedUpTo()
	for i := range p.entries {
		if e := &p.entries[i]; e.absent || reaps > 0 && e.Clock <= reaped {
			return false, nil // it may have to be fetched
		}
	}
	u := s.lent.Swap(nil)
	if u == nil {
		return false, nil
	}
	u.inHear = true
	defer func() {
		u.inHear = false
		s.back <- struct{}{}
	}()
	next, err := u.arrive(&p)
	if err != nil {
		return true, err
	}
	return true, u.merge(&p, next)
}

// arrive takes in what a page says of the log, before its entries are merged, and
// returns the cursor as it will be then.
func (u *puller) arrive(p *page) (cursor, error) {
	before := u.c
	next, err := u.c.advance(p, u.held)
	if err != nil {
		return next, err
	}
	if p.first || p.reset {
		cause := scanOfLog
		switch {
		case p.reset:
			cause = scanOfReset
		case before.checkpoint.isZero():
			cause = scanOfNew
		case p.scan == scanKeys:
			cause = scanOfKeys
		}
		u.full = u.full || cause == scanOfReset || cause == scanOfNew
		u.s.y.scans.add(cause)
	}
	switch {
	case p.ahead:
		u.blind = blindness{}
	case p.scan == scanNone:
		u.blind, u.held, u.vector = blindness{}, false, nil
	case p.first:
		u.blind, u.held, u.vector = blindness{begin: true}, true, p.vector
	case p.to != before.upper:
		u.blind, u.held, u.vector = blindness{}, false, nil
	}
	if p.incomplete && !u.incomplete {
		u.incomplete = true
		u.repeatLater()
	}
	return next, u.hear(p)
}

// hear takes in what a page says of what its sender knows, or has heard.
func (u *puller) hear(p *page) error {
	s := u.s
	switch {
	case p.scan == scanNone && !p.ahead:
		u.arbiter.before, u.arbiter.head = nil, 0
	case p.first || len(p.heard) > 0:
		u.arbiter.scans(s.store)
	}
	for _, stamps := range [][]Stamp{p.vector, p.seen} {
		if err := s.hears(stamps); err != nil {
			return err
		}
	}
	u.giver.knew(p.vector, p.seen)
	u.heard.join(p.vector)
	u.heard.join(p.seen)
	return u.hearOf(p.heard)
}

// hearOf takes in what the peer has heard, which it need not have. The peer tells it once in
// a session, so it is for all pullers of that.
func (u *puller) hearOf(heard []Stamp) error {
	if err := u.s.checkClocks("vector", heard); err != nil {
		return err
	}
	for _, h := range heard {
		if u.s.store.isImage(h) {
			return u.s.y.suspectImage()
		}
	}
	return checkOrigins(u.s.server.tellHearsay(heard))
}

// makersKnew returns what the makers of entries that are about to be merged may have known.
func (u *puller) makersKnew() []Stamp {
	news, number := u.s.server.hearsayAfter(u.hearing)
	u.heard.join(news)
	u.hearing = number
	return u.heard.stamps()
}

// beginFirst finds out whether a scan is a first sync, when there is more of it to come.
func (u *puller) beginFirst(p *page, next *cursor, gained func() int64) {
	if !u.began && !p.ahead && next.scan == scanKeys && next.checkpoint.isZero() {
		u.began, u.first = true, u.s.store.beginFirst(!p.first, gained)
	}
}

// merge merges a page, with its progress in the batch of the last entries, and goes on from
// there.
func (u *puller) merge(p *page, next cursor) error {
	u.s.recordsIn.Add(int64(len(p.entries)))
	var c *candidates
	for err := errReapedNow; err == errReapedNow; {
		if c, err = u.examine(p); err != nil {
			return err
		}
		c.first = u.first
		u.giver.follows = p.follows()
		err = u.commit(c, &u.blind, u.progress(p, next))
		u.giver.follows = false
		if err != nil && err != errReapedNow {
			return err
		}
	}
	for _, wins := range c.wins {
		if !wins {
			u.stale++
		}
	}
	if slices.Contains(c.wins, true) || next.scan != scanNone {
		clear(u.heard)
	}
	u.c = next
	u.progressed()
	return nil
}

// examine compares the entries of a page to what is here, and gets the values that
// are missing. A page that follows the log is as of its end: it may have an entry that was
// replaced at the peer by a deletion, and that was reaped here. So the peer is asked what it
// has by now of the keys of entries that may be such.
func (u *puller) examine(p *page) (*candidates, error) {
	s := u.s
	if err := u.judge(p.entries); err != nil {
		return nil, err
	}
	entries, fetched := p.entries, false
	for {
		reaps, reaped := s.store.known.reapedUpTo()
		c, err := s.store.examineBy(entries, &u.blind, &u.arbiter)
		if err != nil {
			return nil, err
		}
		missing := c.missing()
		if fetched && len(missing) > 0 {
			return nil, fmt.Errorf("%w: page: an entry came to win while others were fetched", ErrProtocol)
		}
		if p.follows() && reaps > 0 {
			missing = append(missing, c.doubtful(reaped)...)
			slices.Sort(missing)
			missing = slices.Compact(missing)
		}
		if len(missing) == 0 {
			c.hear, c.from = u.makersKnew(), s.hello.id
			u.giver.judged = reaps
			return c, nil
		}
		if u.inHear { // the reap vector has risen since
			return nil, errStaleThere
		}
		u.current = p.follows()
		err = u.fetch(entries, missing)
		u.current = false
		if err != nil {
			return nil, err
		}
		entries, fetched = withoutIndices(entries, missing), true
	}
}

// progress returns what a page brings beside its entries.
func (u *puller) progress(p *page, next cursor) *progress {
	s := u.s
	progress := &progress{id: s.hello.id, record: s.record, restart: u.restart, next: next, stay: u.incomplete || p.ahead, witness: p.vector}
	switch {
	case p.ahead && !u.incomplete:
		progress.join = p.vector
	case next.caughtUp() && !progress.stay:
		progress.join = p.vector
		if p.scan != scanNone {
			progress.join = u.vector
		}
	}
	return progress
}

// judge comes before entries are merged: what the peer told of adoptions is learned, and
// a change of the current epoch that was not made here tells of an image.
func (u *puller) judge(entries []entry) error {
	if err := u.s.learn(); err != nil {
		return err
	}
	for i := range entries {
		if u.s.store.isImage(entries[i].Stamp) {
			return u.s.y.suspectImage()
		}
	}
	return nil
}

// learn makes known, and durable, what the peer told of adoptions.
func (s *session) learn() error {
	news := s.server.adoptions()
	if len(news) == 0 {
		return nil
	}
	if err := s.store.learnAdoptions(news); err != nil {
		return err
	}
	s.server.learned(news)
	return nil
}

// request asks for the next page. A replica that had nothing when the session
// began wants adopted values sent along.
func (u *puller) request(c cursor, empty, wait bool) error {
	known := u.s.hello.epoch // where its log is followed, the checkpoint tells what of the peer's own is here
	if c.scan != scanNone || !c.joined {
		known = 0
	}
	if err := u.s.tellVector(known); err != nil {
		return err
	}
	u.asks(c.scan == scanNone)
	q := pull{cursor: c, wait: wait, empty: empty, stale: u.stale}
	u.stale = 0
	u.s.pageDue.Store(true)
	return u.s.send(framePull, q.append(nil, u.s.hello.epoch))
}

// awaitValues waits for the answer to a fetch. A peer is stuck, even if it answers
// pings, when no pages or values move over the link in either direction for a
// Timeout: they may be before the fetch, or before its answer.
func (s *session) awaitValues() ([]byte, error) {
	timeout := s.y.settings.timeout
	ticker := time.NewTicker(timeout)
	defer ticker.Stop()
	for before := s.conn.moved.Load(); ; {
		select {
		case payload := <-s.values:
			return payload, nil
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		case <-ticker.C:
			now := s.conn.moved.Load()
			if now == before {
				return nil, fmt.Errorf("the peer did not send values that it had offered, within %v", timeout)
			}
			before = now
		}
	}
}

// progressed makes known how far the pull has come.
func (u *puller) progressed() {
	s, c := u.s, &u.c
	first := false
	s.note(func() {
		s.incomplete = u.incomplete
		switch {
		case u.incomplete:
			s.state = StateIncomplete
		case c.caughtUp():
			first = !s.caughtUp
			s.state, s.caughtUp = StateInSync, true
			s.merged = c.checkpoint.seq
			s.lag.comesTo(s.merged, s.peerHead, s.lastGood)
			if s.merged >= s.peerHead {
				s.record.foundInSync(time.Now()) // before SyncNow is told
			}
		case c.scan == scanKeys && c.checkpoint.isZero():
			s.state = StatePullingInFull
		default:
			s.state = StatePullingLog
		}
	})
	if first {
		s.y.reporterOf(s).caughtUp(s.hello, s.recordsIn.Load(), u.full)
	}
}

// takeTurn waits until this session may scan the peer.
func (u *puller) takeTurn() error { return u.s.y.turns.take(u.s) }

// endScan lets others have their turn.
func (u *puller) endScan() {
	u.s.store.endFirst(u.first)
	u.began, u.first = false, nil
	u.s.y.turns.giveBack(u.s)
}

// repeatLater ends the session after a while, so that what the peer could not read is
// asked for again.
func (u *puller) repeatLater() {
	s := u.s
	after := s.record.repeatAfter(repeatAfter, repeatMost)
	s.y.settings.logger.Warn("replicator: the peer can't read all of its own database; what it can read is merged",
		"peer", s.addr, "id", s.hello.id, "again", after)
	timer := time.AfterFunc(after, func() { s.cancel(errIncomplete) })
	context.AfterFunc(s.ctx, func() { timer.Stop() })
}

// fetch gets and merges the values of some entries, a frame at a time. What the peer
// has forgotten since needs no merging.
func (u *puller) fetch(entries []entry, indices []int) error {
	for len(indices) > 0 {
		var keys [][]byte
		var size uint64
		for _, i := range indices {
			if size += entries[i].size + uint64(len(entries[i].key)); len(keys) > 0 && size > maxPageBytes/2 {
				break
			}
			keys = append(keys, entries[i].key)
		}
		answered, err := u.fetchKeys(keys)
		if err != nil {
			return err
		}
		indices = indices[answered:]
	}
	return nil
}

// fetchKeys gets and merges what the peer has of some keys, and returns of how many, the
// first ones, it has told.
func (u *puller) fetchKeys(keys [][]byte) (answered uint64, err error) {
	s := u.s
	v, err := u.get(keys)
	if err != nil {
		return 0, err
	}
	var blind blindness
	c, err := s.store.examineBy(v.entries, &blind, &u.arbiter)
	if err != nil {
		return 0, err
	}
	c.hear, c.from = append(s.server.known().stamps(), u.makersKnew()...), s.hello.id
	if c.missing() != nil {
		return 0, fmt.Errorf("%w: values: an entry comes without its value", ErrProtocol)
	}
	c.first = u.first
	u.fetched += len(v.entries)
	return v.answered, u.commit(c, &u.blind, nil)
}

// get gets what the peer has of some keys, to be merged.
func (u *puller) get(keys [][]byte) (v values, err error) {
	u.asks(u.current)
	if v, err = u.s.fetch(keys); err != nil {
		return v, err
	}
	u.lacked = u.lacked || v.incomplete
	if v.incomplete && !u.incomplete {
		u.incomplete = true
		u.repeatLater()
	}
	if err := u.judge(v.entries); err != nil {
		return v, err
	}
	return v, u.hearOf(v.heard)
}

// fetch asks for the values of keys, at least one.
func (s *session) fetch(keys [][]byte) (v values, err error) {
	s.fetching.take()
	defer s.fetching.giveBack()
	s.valuesDue.Store(true)
	if err := s.send(frameFetch, appendFetch(nil, keys)); err != nil {
		return v, err
	}
	payload, err := s.awaitValues()
	if err != nil {
		return v, err
	}
	if v, err = parseValues(payload, s.y.settings.maxValue, s.hello.epoch); err != nil {
		return v, err
	}
	if v.answered == 0 || v.answered > uint64(len(keys)) {
		return v, fmt.Errorf("%w: values: %d of %d keys answered", ErrProtocol, v.answered, len(keys))
	}
	return v, v.answers(keys)
}

func withoutIndices(entries []entry, indices []int) []entry {
	rest := make([]entry, 0, len(entries)-len(indices))
	for i := range entries {
		if _, found := slices.BinarySearch(indices, i); !found {
			rest = append(rest, entries[i])
		}
	}
	return rest
}
