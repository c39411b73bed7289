package replicator

import (
	"context"
	"errors"
	"maps"
	"net"
	"sync"
	"time"
)

// This file owns one configured address: when it is dialled, and which session stands
// for it.

const (
	// confirmEvery is how often an address is dialled to see who is there while the
	// peer that was there has a session of its own making. confirmedFor is for how
	// long such a session stands for the address.
	confirmEvery = time.Minute
	confirmedFor = 5 * time.Minute
)

// Meta is whatever the caller wants to remember of a peer. It is shown in
// Status and not otherwise used.
type Meta map[string]string

// peer is a configured address, and the goroutine that dials it.
type peer struct {
	addr   string
	pace   *schedule
	dial   chan struct{}   // dial now
	ctx    context.Context // done when the peer is removed, or all ends
	cancel context.CancelCauseFunc
	report *reporter

	mu        sync.Mutex // guards what follows
	meta      Meta
	trying    *attempt   // under way; nil if none is
	next      *attempt   // asked for, and not begun; nil if nobody asked
	id        DatabaseID // who answered last
	nonce     uint64     // and which process of it
	confirmed time.Time  // when
	answers   int        // how often somebody answered
	state     State      // while there is no session
	due       time.Time  // when it is dialled next, while waiting
	lastErr   error      // of the last attempt, or of the last session
	lastGood  time.Time
}

// attempt is one dialling of an address.
type attempt struct {
	done chan struct{} // closed when it has led to something
	err  error         // what kept a session from being; set before done is closed
}

func newAttempt() *attempt { return &attempt{done: make(chan struct{})} }

// finish is safe on a nil attempt.
func (a *attempt) finish(err error) {
	if a != nil {
		a.err = err
		close(a.done)
	}
}

// sessionOf returns the live session that stands for the peer's address, or nil:
// one that was dialled there, or one with the process that answered there lately
// and, if answers is not negative, after so many answers. A session with the same
// id but another process may be one with a clone, or with what was there before a
// restart; and a name may lead to another server by now. Only dialling can tell.
func (y *syncer) sessionOf(p *peer, answers int) *session {
	y.mu.Lock()
	defer y.mu.Unlock()
	return p.sessionIn(y.sessions, answers)
}

// anyAnswer is what sessionOf takes if no new answer is needed.
const anyAnswer = -1

// sessionIn is sessionOf among given sessions.
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

// answered returns how often somebody answered at the address.
func (p *peer) answered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers
}

// isAnsweredBy reports whether a peer answered at the address last.
func (p *peer) isAnsweredBy(id DatabaseID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id == id
}

// isAt reports whether the session was dialled at an address.
func (s *session) isAt(addr string) bool { return s.dialed && s.addr == addr }

func (p *peer) set(state State) {
	p.mu.Lock()
	p.state = state
	p.mu.Unlock()
}

// sessionOrAttempt returns what sessionOf finds or, without a session, an attempt that
// has not begun yet. No session can be registered in between: its attempt would have
// been settled by then, and nothing would settle the next one before the session ends.
func (y *syncer) sessionOrAttempt(p *peer, answers int) (*session, *attempt) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if s := p.sessionIn(y.sessions, answers); s != nil {
		return s, nil
	}
	return nil, p.ask()
}

// ask returns the next attempt to begin, and makes it begin at once.
func (p *peer) ask() *attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = newAttempt()
	}
	a := p.next
	if p.state == StateSelf {
		p.next = nil
		a.finish(ErrSelf) // nobody dials there any more
	}
	signal(p.dial)
	return a
}

// begin notes the beginning of an attempt.
func (p *peer) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trying, p.next = p.next, nil
}

// met notes who answered at the address.
func (p *peer) met(h hello) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id, p.nonce, p.confirmed = h.id, h.nonce, time.Now()
	p.answers++
}

// settle notes what the attempt under way has led to: an error, or a session,
// which is also what anybody who asked meanwhile can want.
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

// joined notes that there is a session, whoever dialled it.
func (p *peer) joined() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastErr = nil
	if p.next != nil {
		signal(p.dial) // who asked wants to know whether it is still the right one
	}
}

// ended notes the end of a session, whoever dialled it. One that got nowhere
// counts as a failure to the schedule.
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

// keep dials a peer whenever no session stands for it, and now and then to see
// whether the one that does still may.
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
			p.ask() // for those who asked meanwhile
			<-ctx.Done()
			return
		case err != nil:
			p.pace.idle()
			p.settle(err)
			p.report.failed(err)
		}
	}
}

// watch waits for the end of a session that stands for a peer's address, or for
// the address to be dialled again, to see who is there.
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
		signal(p.dial) // somebody else is there
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

// dial connects to the peer and converses until the session ends. It returns
// nil if there was one, or is one over another connection.
func (y *syncer) dial(ctx context.Context, p *peer) error {
	c, err := y.connect(ctx, p)
	if err != nil {
		return err
	}
	return y.converse(ctx, c, p)
}

// peerGlance is what Status shows of a configured address.
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
