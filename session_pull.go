package replicator

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// This file owns the pulling side of a session: asking for pages, and merging them.

// pull reads the peer's log, page by page. When all is merged, the peer holds the
// pull until there is something new.
func (s *session) pull() error {
	c := s.record.place().start()
	empty := s.store.head() == 0 && !s.store.adopter.running()
	// The first page shows that the peer's log is still the one that the cursor
	// is of, so it is not waited for something new.
	if err := s.request(c, empty, false); err != nil {
		return err
	}
	for full := false; ; {
		payload, err := s.await(s.pages)
		if err != nil {
			return err
		}
		full = full || c.scan == scanFull && c.checkpoint.isZero()
		p, err := parsePage(payload, s.y.settings.maxValue)
		if err != nil {
			return err
		}
		if c, err = c.advance(&p); err != nil {
			return err
		}
		if err := s.meet(); err != nil { // whoever answers a pull has read our hello
			return err
		}
		if err := s.takePage(&p, c, empty); err != nil {
			return err
		}
		s.progressed(&c, full)
	}
}

// takePage merges a page and asks for the next: in a long scan first of all, so
// that it is on its way meanwhile; at its end last of all, for the merge is what
// somebody may be waiting for.
func (s *session) takePage(p *page, next cursor, empty bool) error {
	if next.caughtUp() {
		if err := s.mergePage(p, next); err != nil {
			return err
		}
		return s.request(next, empty, true)
	}
	if err := s.request(next, empty, true); err != nil {
		return err
	}
	return s.mergePage(p, next)
}

// request asks for the next page. A replica that had nothing when the session
// began wants almost all values sent along.
func (s *session) request(c cursor, empty, wait bool) error {
	q := pull{cursor: c, wait: wait, inline: inlineSize}
	if empty && c.scan == scanFull {
		q.inline, q.adopts = firstInlineSize, true
	}
	return s.send(framePull, q.append(nil))
}

func (s *session) await(from chan []byte) ([]byte, error) {
	select {
	case payload := <-from:
		return payload, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// awaitValues waits for the answer to a fetch, which others may be waiting for,
// too. A peer is stuck, even if it answers pings, when no pages or values move
// over the link in either direction for a Timeout: they may be before the fetch, or
// before its answer.
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

// progressed makes known how far the pull has come, and whether it was one in
// full.
func (s *session) progressed(c *cursor, full bool) {
	first := false
	s.note(func() {
		switch {
		case c.caughtUp():
			first = !s.caughtUp
			s.state, s.caughtUp = StateInSync, true
			s.merged = c.checkpoint.seq
		case c.scan == scanFull && c.checkpoint.isZero():
			s.state = StatePullingInFull
		default:
			s.state = StatePullingLog
		}
	})
	if first {
		s.y.reporterOf(s).caughtUp(s.hello, s.recordsIn.Load(), full)
	}
	signal(s.settled)
}

// mergePage merges a page, with its progress in the batch of the last entries.
// Values that were not sent along are fetched, each over one session only.
func (s *session) mergePage(p *page, next cursor) error {
	s.recordsIn.Add(int64(len(p.entries)))
	entries := p.entries
	for {
		c, err := s.store.examine(entries)
		if err != nil {
			return err
		}
		missing := c.missing()
		if len(missing) == 0 {
			return s.finishPage(c, next)
		}
		mine, theirs := s.y.claims.take(entries, missing)
		if len(mine) == 0 {
			select {
			case <-theirs:
			case <-s.ctx.Done():
				return s.ctx.Err()
			}
			continue
		}
		err = s.fetch(entries, mine)
		s.y.claims.release(entries, mine)
		if err != nil {
			return err
		}
		entries = without(entries, mine)
	}
}

func without(entries []entry, indices []int) []entry {
	rest := make([]entry, 0, len(entries)-len(indices))
	for i := range entries {
		if _, found := slices.BinarySearch(indices, i); !found {
			rest = append(rest, entries[i])
		}
	}
	return rest
}

// finishPage commits the last entries of a page together with its progress. A
// checkpoint that moved over no entries needs no write of its own: it may as
// well be behind.
func (s *session) finishPage(c *candidates, next cursor) error {
	if !slices.Contains(c.wins, true) && next.caughtUp() {
		s.record.passed(next)
		return nil
	}
	_, err := s.store.merge(c, s.echo.add, func(x *section) { s.record.merged(x, s.hello.id, next) })
	return err
}

// fetch gets and merges the values of some entries, a frame at a time. What is
// gone on the peer's side has a later record there, or none anywhere.
func (s *session) fetch(entries []entry, indices []int) error {
	for len(indices) > 0 {
		var keys [][]byte
		var size uint64
		for _, i := range indices {
			if size += entries[i].size + uint64(len(entries[i].key)); len(keys) > 0 && size > maxPageBytes/2 {
				break
			}
			keys = append(keys, entries[i].key)
		}
		if err := s.send(frameFetch, appendFetch(nil, keys)); err != nil {
			return err
		}
		payload, err := s.awaitValues()
		if err != nil {
			return err
		}
		answered, values, err := parseValues(payload, s.y.settings.maxValue)
		if err != nil {
			return err
		}
		if answered == 0 || answered > uint64(len(keys)) {
			return fmt.Errorf("%w: values: %d of %d keys answered", ErrProtocol, answered, len(keys))
		}
		c, err := s.store.examine(values)
		if err != nil {
			return err
		}
		if c.missing() != nil {
			return fmt.Errorf("%w: values: an entry comes without its value", ErrProtocol)
		}
		if _, err := s.store.merge(c, s.echo.add, nil); err != nil {
			return err
		}
		indices = indices[answered:]
	}
	return nil
}

// claims are the values that are being fetched, so that of several sessions
// that offer one only one fetches it.
type claims struct {
	mu   sync.Mutex
	held map[string]chan struct{} // key and stamp → closed when it is given up
}

func claimName(e *entry) string {
	return string(appendLogRecord(nil, e.Version, e.key))
}

// take claims what nobody has claimed. If all is claimed, it returns a channel
// that is closed when the first of those claims is released.
func (c *claims) take(entries []entry, indices []int) (mine []int, theirs <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = map[string]chan struct{}{}
	}
	for _, i := range indices {
		name := claimName(&entries[i])
		if held, taken := c.held[name]; taken {
			theirs = held
			continue
		}
		c.held[name] = make(chan struct{})
		mine = append(mine, i)
	}
	return mine, theirs
}

func (c *claims) release(entries []entry, indices []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range indices {
		name := claimName(&entries[i])
		close(c.held[name])
		delete(c.held, name)
	}
}
