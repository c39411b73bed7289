package replicator

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// This file owns SyncNow: waiting until everything that peers have is merged.

// syncNow implements Replicator.SyncNow.
func (y *syncer) syncNow(ctx context.Context) error {
	// After a failed write nothing is merged any more, though sessions may take a moment to
	// end.
	if err := y.store.failure(); err != nil {
		return err
	}
	y.mu.Lock()
	if y.stopped {
		y.mu.Unlock()
		return ErrClosed
	}
	peers := slices.Collect(maps.Values(y.peers))
	others := maps.Clone(y.sessions)
	y.mu.Unlock()
	for _, s := range others {
		if s.dialed {
			delete(others, s.hello.id) // contacted at its address, even if it has ended in the meantime
		}
	}

	errs := make([]error, 0, len(peers)+len(others))
	brought := map[DatabaseID]bool{}
	var left []*elsewhereError
	var mu sync.Mutex // guards these
	var wg sync.WaitGroup
	bring := func(addr string, session func() (*session, error)) {
		wg.Go(func() {
			id, err := y.bringIn(ctx, addr, session)
			mu.Lock()
			defer mu.Unlock()
			var elsewhere *elsewhereError
			switch {
			case errors.As(err, &elsewhere):
				left = append(left, elsewhere)
			case err != nil:
				errs = append(errs, err)
			default:
				brought[id] = true
			}
		})
	}
	for _, p := range peers {
		answers := p.answered()
		bring(p.addr, func() (*session, error) { return y.contact(ctx, p, answers) })
	}
	for id, s := range others {
		bring(s.addr, func() (*session, error) { return y.successor(id, s, peers) })
	}
	wg.Wait()
	for _, e := range left {
		if !brought[e.id] { // another peer answers there by now
			errs = append(errs, e.err)
		}
	}
	if over := context.Cause(y.ctx); over != nil && len(errs) > 0 {
		return over // what became of the sessions follows from it
	}
	return errors.Join(errs...)
}

// bringIn returns when everything that a peer has is merged, and whose that was. If sessions
// end before that, it tries up to three of them. session returns the session to use.
func (y *syncer) bringIn(ctx context.Context, addr string, session func() (*session, error)) (id DatabaseID, err error) {
	const sessions = 3
	for try := 1; ; try++ {
		s, err := session()
		if errors.Is(err, ErrSelf) {
			return id, nil
		}
		if try == 1 && (errors.Is(err, ErrRefused) || errors.Is(err, ErrCloned)) {
			continue // where two of one id meet, one of them draws a new id, and then there is a session
		}
		if err != nil {
			var elsewhere *elsewhereError
			var wrapped *PeerError
			if !errors.As(err, &elsewhere) && !errors.As(err, &wrapped) {
				err = &PeerError{addr, "dial", err}
			}
			return id, err
		}
		err = s.syncNow(ctx)
		if err == nil {
			return s.hello.id, nil
		}
		if ctx.Err() != nil || y.ctx.Err() != nil || try == sessions || !s.ended() {
			return id, &PeerError{addr, "session", err}
		}
		select { // the session is ending
		case <-s.done:
			y.remove(s) // its own goroutine may not have removed it yet
		case <-ctx.Done():
		}
	}
}

// successor returns the session with a peer that dialled in: s, or a later one. Without
// a session, it returns an elsewhereError if the peer answered last at one of the contacted
// addresses.
func (y *syncer) successor(id DatabaseID, s *session, contacted []*peer) (*session, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if now := y.sessions[id]; now != nil {
		return now, nil
	}
	err := &PeerError{s.addr, "session", context.Cause(s.ctx)}
	for _, p := range contacted {
		if p.isAnsweredBy(id) {
			return nil, &elsewhereError{id, err}
		}
	}
	return nil, err
}

// elsewhereError says that a peer is waited for at its address, after what ended the session
// that it had dialled.
type elsewhereError struct {
	id  DatabaseID
	err error
}

func (e *elsewhereError) Error() string { return e.err.Error() }

// contact returns the session that stands for a configured address. If this side did not
// dial the session there, the address must have answered again since answers were
// counted.
func (y *syncer) contact(ctx context.Context, p *peer, answers int) (*session, error) {
	const enough = 3 // attempts without a lasting session
	for range enough {
		s, a := y.sessionOrAttempt(p, answers)
		if s != nil {
			return s, nil
		}
		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.ctx.Done():
			return nil, context.Cause(p.ctx)
		}
	}
	if s := y.sessionOf(p, answers); s != nil {
		return s, nil
	}
	return nil, errors.New("no session lasts")
}
