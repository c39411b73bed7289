package replicator

import (
	"context"
	"errors"
	"maps"
	"net"
	"sync"
	"time"
)

// This file owns a configured address: when it is dialled, and which session stands for
// it.

const (
	// confirmEvery is the interval at which an address is probed while a session that
	// was not dialled there stands for it. confirmedFor is the time for which such a
	// session stands for the address after an answer there.
	confirmEvery = time.Minute
	confirmedFor = 5 * time.Minute
)

// Meta is arbitrary information about a peer. Status shows it; nothing else uses it.
type Meta map[string]string

// peer is a configured address with the state of the goroutine that dials it.
type peer struct {
	addr   string
	pace   *schedule
	dial   chan struct{}   // a value requests an attempt now
	ctx    context.Context // done when the peer is removed, or replication ends
	cancel context.CancelCauseFunc
	report *reporter

	mu        sync.Mutex // guards the fields below
	meta      Meta
	trying    *attempt   // in progress; nil: none
	next      *attempt   // requested, but not begun; nil: none
	id        DatabaseID // the peer that answered last
	nonce     uint64     // the process of that peer
	confirmed time.Time  // time of that answer
	answers   int        // number of answers
	state     State      // while there is no session
	due       time.Time  // time of the next attempt, while waiting
	lastErr   error      // of the last attempt, or of the last session
	lastGood  time.Time  // last answer in a session that has ended
}

// attempt is one attempt to dial an address.
type attempt struct {
	done chan struct{} // closed when the attempt is over
	err  error         // why there is no session, or nil; set before done is closed
}

func newAttempt() *attempt { return &attempt{done: make(chan struct{})} }

// finish ends the attempt. The receiver may be nil.
func (a *attempt) finish(err error) {
	if a != nil {
		a.err = err
		close(a.done)
	}
}

// sessionOf returns the live session that stands for the peer's address, or nil. It is
// a session that was dialled there, or a session with the process that answered there
// within confirmedFor. In the second case the number of answers must exceed answers.
//
// A session with the same id but another process does not count: it may be with a clone,
// or with a process that was there before a restart. Also, a host name may lead to
// another server by now. Only dialling can tell.
func (y *syncer) sessionOf(p *peer, answers int) *session {
	y.mu.Lock()
	defer y.mu.Unlock()
	return p.sessionIn(y.sessions, answers)
}

// anyAnswer is the argument of sessionOf if no new answer is needed.
const anyAnswer = -1

// sessionIn is like sessionOf, but looks in the given sessions.
func (p *peer) sessionIn(sessions map[DatabaseID]*session, answers int) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := sessions[p.id]
	if s == nil || s.hello.nonce != p.nonce {
		return nil
	}
	if s.isAt(p.addr) || p.answers > answers && time.Since(p.confirmed) < confirmedFor {
		return s
	}
	return nil
}

// answered returns the number of answers at the address.
func (p *peer) answered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers
}

// isAnsweredBy reports whether the last answer at the address was from the given peer.
func (p *peer) isAnsweredBy(id DatabaseID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id == id
}

// isAt reports whether this side dialled the session at the given address.
func (s *session) isAt(addr string) bool { return s.dialed && s.addr == addr }

func (p *peer) set(state State) {
	p.mu.Lock()
	p.state = state
	p.mu.Unlock()
}

// sessionOrAttempt returns the result of sessionOf or, if that is nil, an attempt that
// has not begun yet. It holds mu, so that no session can be registered in between. The
// attempt of such a session would be settled already, and the new attempt would not
// begin before the end of the session.
func (y *syncer) sessionOrAttempt(p *peer, answers int) (*session, *attempt) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if s := p.sessionIn(y.sessions, answers); s != nil {
		return s, nil
	}
	return nil, p.ask()
}

// ask returns the next attempt, which begins as soon as possible.
func (p *peer) ask() *attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = newAttempt()
	}
	a := p.next
	if p.state == StateSelf {
		p.next = nil
		a.finish(ErrSelf) // the address is not dialled any more
	}
	signal(p.dial)
	return a
}

// begin records the start of an attempt.
func (p *peer) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trying, p.next = p.next, nil
}

// met records which peer answered at the address.
func (p *peer) met(h hello) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id, p.nonce, p.confirmed = h.id, h.nonce, time.Now()
	p.answers++
}

// settle records the result of the attempt in progress. A session also settles the next
// attempt, if it was requested in the meantime.
func (p *peer) settle(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastErr = err
	p.trying.finish(err)
	p.trying = nil
	if err == nil {
		p.next.finish(nil)
		p.next = nil
	}
}

func (p *peer) waitUntil(t time.Time) {
	p.mu.Lock()
	p.due = t
	p.mu.Unlock()
}

// joined records that there is a session, whichever side dialled it.
func (p *peer) joined() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastErr = nil
	if p.next != nil {
		signal(p.dial) // the requested attempt has to find out whether the session still fits
	}
}

// ended records the end of a session, whichever side dialled it. A session that merged
// nothing counts as a failure in the schedule.
func (p *peer) ended(s *session) {
	good := s.lastContact()
	if s.worked() {
		p.pace.reset()
	} else {
		p.pace.idle()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastErr = &PeerError{p.addr, "session", context.Cause(s.ctx)}
	if good.After(p.lastGood) {
		p.lastGood = good
	}
}

// keep dials a peer whenever no session stands for its address. While there is one, keep
// watches it.
func (y *syncer) keep(ctx context.Context, p *peer) {
	signal(p.dial) // the first attempt is made at once
	for ctx.Err() == nil {
		if s := y.sessionOf(p, anyAnswer); s != nil {
			p.joined()
			y.watch(ctx, p, s)
			continue
		}
		p.set(StateWaiting)
		if !p.pace.wait(ctx.Done(), p.dial, p.waitUntil) {
			return
		}
		if y.sessionOf(p, anyAnswer) != nil {
			continue
		}
		p.set(StateConnecting)
		p.begin()
		err := y.dial(ctx, p)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrSelf):
			p.settle(err)
			p.set(StateSelf)
			p.ask() // ends an attempt that was requested in the meantime
			<-ctx.Done()
			return
		case err != nil:
			p.pace.idle()
			p.settle(err)
			p.report.failed(err)
		}
	}
}

// watch returns when the session that stands for the peer's address has ended. It also
// returns after it has probed the address, which it does on request and, if the session
// was not dialled there, after confirmEvery.
func (y *syncer) watch(ctx context.Context, p *peer, s *session) {
	confirm := time.NewTimer(confirmEvery)
	defer confirm.Stop()
	if s.isAt(p.addr) {
		confirm.Stop()
	}
	select {
	case <-s.done:
		p.ended(s)
		return
	case <-ctx.Done():
		return
	case <-p.dial:
	case <-confirm.C:
	}
	p.begin()
	err := y.probe(ctx, p)
	if y.sessionOf(p, anyAnswer) == nil {
		signal(p.dial) // another peer answered, or another process
	}
	p.settle(err)
}

// connect dials a peer's address.
func (y *syncer) connect(ctx context.Context, p *peer) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, y.settings.timeout)
	defer cancel()
	c, err := y.settings.dial(ctx, p.addr)
	if err == nil && c == nil {
		err = errors.New("Options.Dial returned neither a connection nor an error")
	}
	if err != nil {
		return nil, &PeerError{p.addr, "dial", err}
	}
	return c, nil
}

// dial connects to the peer and converses until the session ends. It returns nil if
// there was a session, or if there is a session over another connection.
func (y *syncer) dial(ctx context.Context, p *peer) error {
	c, err := y.connect(ctx, p)
	if err != nil {
		return err
	}
	return y.converse(ctx, c, p)
}

// peerGlance is a copy of a peer's state, for Status.
type peerGlance struct {
	addr     string
	meta     Meta
	id       DatabaseID
	state    State
	due      time.Time
	lastErr  error
	lastGood time.Time
}

func (p *peer) glance() peerGlance {
	p.mu.Lock()
	defer p.mu.Unlock()
	return peerGlance{p.addr, maps.Clone(p.meta), p.id, p.state, p.due, p.lastErr, p.lastGood}
}
