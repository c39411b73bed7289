package replicator

import (
	"cmp"
	"time"
)

// This file owns the serving side of a session: when a pull is answered, and what the
// peer is told unasked.

const (
	// echoDelay is how long a peer waits to be told that it knows all that is new.
	echoDelay = 200 * time.Millisecond
	// tellDelay is for how long news of the vector are gathered. It is less than
	// relayDelay: a peer is to know what need not be relayed.
	tellDelay = 3 * time.Millisecond
)

// serve answers the peer's pulls and fetches, and tells what is news.
func (s *session) serve() error {
	out := &entryWriter{epoch: s.own.epoch}
	news := newsTeller{s: s}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var waiting *pull
	var quiet time.Time // until when it is not said that the peer knows everything; zero: say it
	for {
		now := time.Now()
		again, err := news.tell(now)
		if err != nil {
			return err
		}
		serves := false
		if waiting != nil {
			if serves, err = s.fits(&s.reaps.fits); err != nil {
				return err
			}
		}
		if serves {
			idle := !quiet.IsZero() && !now.Before(quiet) || s.y.waits.isAwaited(waiting.checkpoint.seq)
			a, err := s.server.answer(waiting, s.statedHead(), idle, out)
			if err != nil {
				return err
			}
			if a.ready {
				// Of what the page holds, some may have been adopted elsewhere and merged
				// since the news were told. The peer has to know of the adoption first.
				if err := s.tellAdoptions(); err != nil {
					return err
				}
				// So has it of what was reaped by now; and what it knows has to cover that, too.
				if fits, err := s.fits(&s.reaps.fits); err != nil || !fits {
					return cmp.Or(err, errStaleThere)
				}
				if err := s.tellReaped(); err != nil {
					return err
				}
				s.pullBusy.Store(false)
				if err := s.sendPage(&a, out); err != nil {
					return err
				}
				waiting, quiet = nil, time.Time{}
				continue
			}
			if a.quiet && quiet.IsZero() {
				quiet = now.Add(echoDelay)
			}
			if a.quiet {
				again = sooner(again, quiet.Sub(now))
			}
			again = sooner(again, a.wait)
		}
		again = sooner(again, s.server.expire(now))
		if again == 0 {
			again = time.Hour
		}
		timer.Reset(max(again, time.Microsecond))
		select {
		case <-s.ctx.Done():
			return nil
		case p := <-s.pulls:
			if err := s.pulled(&p); err != nil {
				return err
			}
			s.server.judgeRelay(p.stale, now)
			waiting = &p
		case keys := <-s.fetches:
			if err := s.meet(); err != nil { // whoever asks for something has read our hello
				return err
			}
			answered, n, incomplete, err := s.server.values(keys, out)
			if incomplete {
				s.note(func() { s.leftOut = true })
				signal(s.standing)
			}
			if err == nil {
				err = s.tellAdoptions() // as before a page
			}
			if err == nil {
				err = s.tellReaped()
			}
			// The versions may be later than what the peer was told. What was heard comes
			// first: what is learned after that is told with the vector.
			heard, _ := s.store.known.heardOf()
			if err == nil {
				err = s.tellVector(0)
			}
			s.fetchBusy.Store(false)
			if err == nil {
				err = s.send(frameValues, out.values(answered, n, incomplete, s.server.tellHeard(heard.stamps()))...)
			}
			if err != nil {
				return err
			}
		case <-s.commits.wake:
		case <-s.look:
		case <-timer.C:
		}
	}
}

// sooner returns the shorter of two times to wait, of which 0 means for ever.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// pulled takes in what a pull tells: who asks has read our hello, and has merged what
// came up to its checkpoint.
func (s *session) pulled(p *pull) error {
	if err := s.meet(); err != nil {
		return err
	}
	head, history := s.store.position()
	for _, at := range []position{p.checkpoint, p.upper, p.seen} {
		if s.access == ReadWrite && at.epoch == history[len(history)-1].origin && at.seq > head {
			return s.y.suspectImage()
		}
	}
	merged := position{}
	if p.joined && history.contains(p.checkpoint, head) {
		merged = p.checkpoint
	}
	s.states(func(of *stated) { of.merged = merged })
	return nil
}

// statedHead returns the own head that the peer was told last.
func (s *session) statedHead() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stated
}

func (s *session) sendPage(a *answer, out *entryWriter) error {
	if a.page.incomplete {
		s.note(func() { s.leftOut = true })
	}
	if err := s.send(framePage, out.page(&a.page, a.entries)...); err != nil {
		return err
	}
	s.server.sent()
	s.recordsOut.Add(int64(a.entries))
	return nil
}

// newsTeller tells the peer what it did not ask for.
type newsTeller struct {
	s        *session
	durable  uint64    // number of the durable point that was told
	known    vector    // what was told with it
	vectorAt time.Time // when the vector is to be told; zero: there is no news
	asked    time.Time // when the peer was last asked to make everything durable
	acks     uint64    // number of its acks by then
	reaped   *vector   // what the peer had reaped when it was last told of all that is known
}

// tell tells the news, and returns when to look again; 0: after a commit.
func (n *newsTeller) tell(now time.Time) (again time.Duration, err error) {
	if err := n.s.tellAdoptions(); err != nil {
		return 0, err
	}
	if err := n.s.tellReaped(); err != nil {
		return 0, err
	}
	if reaped := n.s.reaped.Load(); reaped != n.reaped {
		// The peer wants to know whether that is known here, be it by its own log.
		if err := n.s.tellVector(0); err != nil {
			return 0, err
		}
		n.reaped = reaped
	}
	flush, err := n.tellDurable(now)
	if err != nil {
		return 0, err
	}
	ask, err := n.askFlush(now)
	if err != nil {
		return 0, err
	}
	tell, err := n.tellVector(now)
	return sooner(tell, sooner(flush, ask)), err
}

// tellVector tells what is known, a moment after it rose.
func (n *newsTeller) tellVector(now time.Time) (again time.Duration, err error) {
	s := n.s
	switch {
	case !s.hasVectorNews():
		n.vectorAt = time.Time{}
	case n.vectorAt.IsZero():
		n.vectorAt = now.Add(tellDelay)
		return tellDelay, nil
	case now.Before(n.vectorAt):
		return n.vectorAt.Sub(now), nil
	default:
		n.vectorAt = time.Time{}
		return 0, s.tellVector(s.hello.epoch)
	}
	return 0, nil
}

// tellAdoptions tells what is known of adoptions, unless nothing has changed since the
// last time.
func (s *session) tellAdoptions() error {
	s.telling.take()
	defer s.telling.giveBack()
	return s.sendAdoptions()
}

// sendAdoptions is tellAdoptions. The caller holds telling.
func (s *session) sendAdoptions() error {
	a, number := s.store.known.adoptions()
	if number+1 == s.adoptions {
		return nil
	}
	for _, payload := range adoptionsFrames(a) {
		if err := s.send(frameAdoptions, payload); err != nil {
			return err
		}
	}
	s.adoptions = number + 1
	return nil
}

// tellDurable acknowledges what is durable, if that has changed or was asked for. It
// returns when to look again; 0: when it is asked for.
func (n *newsTeller) tellDurable(now time.Time) (again time.Duration, err error) {
	s := n.s
	s.mu.Lock()
	asked := s.flushAsked
	s.mu.Unlock()
	if asked {
		if err := s.meet(); err != nil {
			return 0, err
		}
		if again = s.store.durable.askable(now); again == 0 {
			s.mu.Lock()
			s.flushAsked = false
			s.mu.Unlock()
			if err := s.store.makeDurable(); err != nil {
				return 0, err
			}
		}
		asked = again == 0
	}
	merged, known, number := s.store.durable.last(s.hello.id)
	if number == n.durable && !asked {
		return again, nil
	}
	a := ack{merged: merged}
	for _, k := range known.stamps() {
		if clock, told := n.known[k.Origin]; !told || clock != k.Clock {
			a.known = append(a.known, k)
		}
	}
	n.durable, n.known = number, known
	return again, s.send(frameAck, a.append(nil, s.hello.epoch, s.own.epoch))
}

// askFlush asks the peer to make everything durable, if somebody waits for what it has
// merged to be durable there, and it is not. It does not ask again before the peer has
// answered. It returns when to look again; 0: when something has changed.
func (n *newsTeller) askFlush(now time.Time) (again time.Duration, err error) {
	s := n.s
	if !s.y.waits.awaitsFlush(s.record.statement()) {
		return 0, nil
	}
	s.mu.Lock()
	acks := s.acks
	s.mu.Unlock()
	if !n.asked.IsZero() {
		if acks == n.acks {
			return 0, nil
		}
		if wait := n.asked.Add(flushEvery).Sub(now); wait > 0 {
			return wait, nil
		}
	}
	n.asked, n.acks = now, acks
	return 0, s.send(frameFlush)
}

// hasVectorNews reports whether the vector rose by what the peer did not make itself.
func (s *session) hasVectorNews() bool {
	s.telling.take()
	defer s.telling.giveBack()
	return s.store.known.roseSince(s.told, s.hello.epoch)
}

// tellVector tells the peer what this replica knows, as far as it has risen since it
// was told last, unless only by what an origin made; 0: by anything.
func (s *session) tellVector(but Origin) error {
	s.telling.take()
	defer s.telling.giveBack()
	if !s.store.known.roseSince(s.told, but) {
		return nil
	}
	return s.sendVector()
}

// tellWholeVector tells the peer all that this replica knows.
func (s *session) tellWholeVector() error {
	s.telling.take()
	defer s.telling.giveBack()
	return s.sendVector()
}

// sendVector sends what the vector rose since the peer was told last. The caller holds
// telling.
func (s *session) sendVector() error {
	news, head := s.store.known.since(s.told)
	s.told = head
	// The vector may claim old values that are in doubt; the peer has to know first.
	if err := s.sendAdoptions(); err != nil {
		return err
	}
	for _, payload := range vectorFrames(news, s.own.epoch) {
		if err := s.send(frameVector, payload); err != nil {
			return err
		}
	}
	return nil
}
