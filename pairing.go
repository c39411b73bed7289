package replicator

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// This file owns the way from a connection to the one session of a pair, and the end of
// a session.

// converse handles a dialled connection: the handshake, and then the session, if there
// is one. It closes the connection.
func (y *syncer) converse(ctx context.Context, nc net.Conn, p *peer) error {
	defer nc.Close()
	s, err := y.shake(ctx, nc, p.addr, p)
	if err == nil || errors.Is(err, errDuplicate) {
		p.settle(nil)
	}
	switch {
	case errors.Is(err, errDuplicate):
		if y.sessionOf(p, anyAnswer) == nil {
			p.pace.idle() // the peer claims that there is another session, and there is none
		}
		return nil // keep finds the session
	case err != nil:
		return err
	}
	y.run(s)
	p.ended(s)
	return nil
}

// shake turns a connection into a session. p is the peer that was dialled, or nil.
func (y *syncer) shake(ctx context.Context, nc net.Conn, addr string, p *peer) (*session, error) {
	c := newConn(nc, y.settings.timeout)
	if err := y.protect(ctx, c, addr, p != nil); err != nil {
		return nil, &PeerError{addr, "handshake", err}
	}
	g, err := y.greet(ctx, c, p != nil, false)
	if err == nil && p != nil { // the peer has answered our hello
		p.met(g.peer)
		if err = y.meet(g.peer, addr, g.since); err != nil {
			sayBye(c, err)
			y.renewIfForked(g.own.id, err)
		}
	}
	if err == nil && g.peer.probe {
		err = errProbed
	}
	var s *session
	if err == nil {
		s, err = y.pair(ctx, c, g, addr, p != nil)
	}
	if err != nil {
		return nil, &PeerError{addr, "handshake", err}
	}
	return s, nil
}

// run runs a session, and handles its end.
func (y *syncer) run(s *session) {
	err := s.run()
	y.remove(s)
	s.record.count(s.traffic())
	y.renewIfForked(s.own.id, err)
	if s.isMet() {
		y.reporterOf(s).ended(err)
	} else {
		y.refusals.note(s.conn.RemoteAddr(), err)
	}
}

// probe dials an address to find out which peer answers there now.
func (y *syncer) probe(ctx context.Context, p *peer) error {
	nc, err := y.connect(ctx, p)
	if err != nil {
		return err
	}
	defer nc.Close()
	c := newConn(nc, y.settings.timeout)
	if err := y.protect(ctx, c, p.addr, true); err != nil {
		return &PeerError{p.addr, "handshake", err}
	}
	g, err := y.greet(ctx, c, true, true)
	if err != nil {
		return &PeerError{p.addr, "handshake", err}
	}
	p.met(g.peer)
	return nil
}

var (
	errReplaced = errors.New("replicator: a newer connection with this peer took over")
	errProbed   = errors.New("replicator: the peer only wanted to know who is here")
)

// pair turns the connection into the session of the pair, if both sides agree.
func (y *syncer) pair(ctx context.Context, c *conn, g *greeting, addr string, dialed bool) (*session, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	number, err := uint64(0), error(nil)
	if !g.decides() {
		number, err = c.awaitAccept()
	}
	var s *session
	if err == nil {
		s, err = y.register(ctx, c, g, addr, dialed, number)
		if err != nil {
			sayBye(c, err)
		}
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		y.renewIfForked(g.own.id, err)
		return nil, err
	}
	c.widen(y.settings.timeout + longestWait(y.settings.maxInterval)) // the time until the peer answers the next ping
	return s, nil
}

// awaitAccept returns the number that the deciding side has given to the connection.
func (c *conn) awaitAccept() (uint64, error) {
	payload, err := c.expect(frameAccept)
	if err != nil {
		return 0, err
	}
	number, err := parseAccept(payload)
	if err != nil {
		sayBye(c, err)
	}
	return number, err
}

// register makes a new session the only one with its peer, and waits until the session
// before it has stopped merging. The side with the smaller id decides. It keeps an older
// session with the same process if that session answers; otherwise it gives the next
// number to the new session. The other side passes this number, and follows.
func (y *syncer) register(ctx context.Context, c *conn, g *greeting, addr string, dialed bool, number uint64) (*session, error) {
	id := g.peer.id
	for {
		y.mu.Lock()
		if err := y.refuses(g, dialed); err != nil {
			y.mu.Unlock()
			return nil, err
		}
		before := y.sessions[id]
		same := before != nil && before.hello.nonce == g.peer.nonce
		if same && number == 0 && !before.ended() {
			y.mu.Unlock()
			if before.alive(ctx) {
				return nil, errDuplicate
			}
			before.cancel(errReplaced)
			continue
		}
		if number == 0 {
			y.accepts++
			number = y.accepts
		} else if same && before.number >= number { // an equal one is a repetition
			y.mu.Unlock()
			return nil, errReplaced
		}
		s := newSession(ctx, y, c, g, y.recordOf(id), addr, dialed)
		s.number = number
		// Whoever sees the session must no longer count what another process stated.
		y.store.begins(s.record, s.hello.epoch, s.own.id)
		y.sessions[id] = s
		y.mu.Unlock()
		if before != nil {
			before.cancel(errReplaced)
			<-before.done
		}
		return s, nil
	}
}

// reporterOf returns the reporter for a session's peer: that of the configured address
// for which the session stands or, if there is none, that of the peer's id.
func (y *syncer) reporterOf(s *session) *reporter {
	y.mu.Lock()
	defer y.mu.Unlock()
	for addr, p := range y.peers {
		if s.isAt(addr) || p.isAnsweredBy(s.hello.id) {
			return p.report
		}
	}
	id := s.hello.id
	if y.reports[id] == nil {
		y.reports[id] = newReporter(y.settings.logger, "peer", id.String())
	}
	return y.reports[id]
}

// refuses returns the reason why there can be no session now, or nil. The caller must
// hold mu.
func (y *syncer) refuses(g *greeting, dialed bool) error {
	switch most := y.settings.maxSessions; {
	case y.stopped:
		return ErrClosed
	case g.own.id != y.store.id():
		return errRenewed // since the hello was sent
	case y.store.isForgotten(g.peer.id):
		return errForgotten
	case !dialed && len(y.sessions) >= most && y.sessions[g.peer.id] == nil:
		return fmt.Errorf("%w: %d sessions are open (Options.MaxSessions)", ErrRefused, most)
	}
	return nil
}

func (y *syncer) remove(s *session) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.sessions[s.hello.id] == s {
		delete(y.sessions, s.hello.id)
	}
}
