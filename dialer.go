package replicator

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// peer is a configured address, and the goroutine that dials it.
type peer struct {
	addr   string
	pace   *schedule
	dial   chan struct{}   // dial now
	ctx    context.Context // done when the peer is removed, or all ends
	cancel context.CancelCauseFunc

	mu       sync.Mutex // guards what follows
	meta     Meta
	changed  chan struct{} // closed and replaced when an attempt ended
	begun    int           // attempts
	attempts int           // that ended, with a session or without
	id       DatabaseID    // who answered last
	nonce    uint64        // and which process of it
	state    string        // while there is no session
	next     time.Time     // when it is dialled next, while waiting
	lastErr  error         // of the last attempt, or of the last session
	failure  error         // of the last attempt, nil if it was answered
	lastGood time.Time
}

// sessionOf returns the live session with the process that answered last at the
// peer's address, whoever dialled it, or nil. A session with the same id but
// another process may be one with a clone, or with what was there before a
// restart: only dialling can tell.
func (y *syncer) sessionOf(p *peer) *session {
	y.mu.Lock()
	defer y.mu.Unlock()
	return p.sessionIn(y.sessions)
}

// sessionIn is sessionOf among given sessions.
func (p *peer) sessionIn(sessions map[DatabaseID]*session) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := sessions[p.id]; s != nil && s.hello.nonce == p.nonce {
		return s
	}
	return nil
}

func (p *peer) set(state string) {
	p.mu.Lock()
	p.state = state
	p.mu.Unlock()
}

// begin notes the beginning of an attempt.
func (p *peer) begin() {
	p.mu.Lock()
	p.state = "connecting"
	p.begun++
	p.mu.Unlock()
}

func (p *peer) waitUntil(t time.Time) {
	p.mu.Lock()
	p.next = t
	p.mu.Unlock()
}

// attempted notes the end of an attempt and wakes those who wait for it. The
// caller holds mu.
func (p *peer) attempted() {
	p.attempts++
	close(p.changed)
	p.changed = make(chan struct{})
}

// answered notes who answered the attempt: there is a session, or is going to
// be.
func (p *peer) answered(h hello) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id, p.nonce, p.lastErr = h.id, h.nonce, nil
	p.failure = nil
	p.attempted()
}

// failed notes that it did not. What is new is logged, repetitions are not.
func (p *peer) failed(err error, logger *slog.Logger) {
	p.pace.idle()
	p.mu.Lock()
	news := p.lastErr == nil || p.lastErr.Error() != err.Error()
	p.lastErr, p.failure = err, err
	p.attempted()
	p.mu.Unlock()
	if news {
		logger.Warn("replicator: no session", "peer", p.addr, "error", err)
	}
}

// joined notes that there is a session, whoever dialled it.
func (p *peer) joined() {
	p.mu.Lock()
	p.lastErr = nil
	p.mu.Unlock()
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

// keep dials a peer whenever there is no session with it.
func (y *syncer) keep(ctx context.Context, p *peer) {
	signal(p.dial) // the first attempt is made at once
	for {
		if s := y.sessionOf(p); s != nil {
			p.joined()
			select {
			case <-s.done:
				p.ended(s)
			case <-ctx.Done():
				return
			}
		}
		p.set("waiting")
		if !p.pace.wait(ctx.Done(), p.dial, p.waitUntil) {
			return
		}
		if y.sessionOf(p) != nil {
			continue
		}
		p.begin()
		err := y.dial(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.failed(err, y.r.options.Logger)
		}
	}
}

// dial connects to the peer and converses until the session ends. It returns
// nil if there was one, or is one over another connection.
func (y *syncer) dial(ctx context.Context, p *peer) error {
	o := &y.r.options
	dialing, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c, err := o.dial(dialing, p.addr)
	if err != nil {
		return &PeerError{p.addr, "dial", err}
	}
	return y.converse(ctx, c, p.addr, p)
}
