package replicator

import (
	"context"
	"errors"
	"net"
)

// converse is one connection's life: handshake, then the session, if there is
// one. The peer is the one that was dialled, or nil.
func (y *syncer) converse(ctx context.Context, c net.Conn, addr string, p *peer) error {
	defer c.Close()
	logger := y.r.options.Logger
	s, err := y.handshake(ctx, c, addr, p != nil)
	duplicate := errors.Is(err, errDuplicate)
	if err != nil && !duplicate {
		return &PeerError{addr, "handshake", err}
	}
	if p != nil {
		p.answered(s.hello)
	}
	if duplicate {
		return nil // keep finds the other session
	}
	logger.Info("replicator: session started", "peer", addr, "id", s.hello.id, "dialed", s.dialed)
	err = s.run()
	y.remove(s)
	s.record.count(s.traffic())
	logger.Info("replicator: session ended", "peer", addr, "id", s.hello.id, "error", err)
	y.renewIfForked(s.own.id, err)
	if p != nil {
		p.ended(s)
	}
	return nil
}

var (
	errReplaced  = errors.New("replicator: a newer connection with this peer took over")
	errDuplicate = errors.New("replicator: there is a session with this peer already")
)

// register makes s the session with its peer, and waits until the one before it
// has stopped merging. The side with the smaller id decides: an older session
// with the same process stays if it answers, and otherwise the new one is given
// the next number. The other side, which passes that number, follows.
func (y *syncer) register(s *session, number uint64) error {
	id := s.hello.id
	for {
		y.mu.Lock()
		if y.stopped {
			y.mu.Unlock()
			return ErrClosed
		}
		if s.own.id != y.id {
			y.mu.Unlock()
			return errRenewed // since the hello was sent
		}
		before := y.sessions[id]
		same := before != nil && before.hello.nonce == s.hello.nonce
		if same && number == 0 && !before.ended() {
			y.mu.Unlock()
			if before.alive(s.ctx) {
				return errDuplicate
			}
			before.cancel(errReplaced)
			continue
		}
		if number == 0 {
			y.accepts++
			number = y.accepts
		} else if same && before.number > number {
			y.mu.Unlock()
			return errReplaced
		}
		s.number = number
		y.sessions[id] = s
		y.publishWakes()
		y.mu.Unlock()
		if before != nil {
			before.cancel(errReplaced)
			<-before.done
		}
		return nil
	}
}

func (y *syncer) remove(s *session) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.sessions[s.hello.id] == s {
		delete(y.sessions, s.hello.id)
		y.publishWakes()
	}
}

// publishWakes tells the commit section whom to wake. The caller holds mu.
func (y *syncer) publishWakes() {
	var wakes []chan struct{}
	for _, s := range y.sessions {
		wakes = append(wakes, s.wake)
	}
	y.wakes.Store(&wakes)
}
