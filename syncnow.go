package replicator

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// SyncNow returns once everything in reachable peers' logs at the time of the call
// has been merged here. It dials each configured address at which it is not known
// who is there at this moment: those without a session, and those whose session
// the peer dialled itself. It returns, joined, a *PeerError for each peer that
// could not be reached or did not finish before ctx was done. Peers that dialled
// in are waited for, too.
func (r *Replicator) SyncNow(ctx context.Context) error {
	y := r.syncer
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
			delete(others, s.hello.id) // its peer is contacted, also if it has ended meanwhile
		}
	}

	errs := make([]error, 0, len(peers)+len(others))
	var mu sync.Mutex // guards errs
	var wg sync.WaitGroup
	bring := func(addr string, session func() (*session, error)) {
		wg.Go(func() {
			if err := y.bringIn(ctx, addr, session); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
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
	if over := context.Cause(y.ctx); over != nil && len(errs) > 0 {
		return over // what became of the sessions follows from it
	}
	return errors.Join(errs...)
}

// bringIn merges what a peer has, over as many sessions as it takes, within
// reason.
func (y *syncer) bringIn(ctx context.Context, addr string, session func() (*session, error)) error {
	const sessions = 3
	for try := 1; ; try++ {
		s, err := session()
		if errors.Is(err, ErrSelf) || errors.Is(err, errElsewhere) {
			return nil // what is in this log is here
		}
		if err != nil {
			var wrapped *PeerError
			if !errors.As(err, &wrapped) {
				err = &PeerError{addr, "dial", err}
			}
			return err
		}
		err = s.syncNow(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || y.ctx.Err() != nil || try == sessions {
			return &PeerError{addr, "session", err}
		}
		select { // the session ended; let it
		case <-s.done:
			y.remove(s) // it may not have come to that itself
		case <-ctx.Done():
		}
	}
}

// successor returns the session with a peer that dialled in: s, or one that came
// after it. If there is none, and the peer is at one of the addresses that are
// contacted, it is waited for there.
func (y *syncer) successor(id DatabaseID, s *session, contacted []*peer) (*session, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if now := y.sessions[id]; now != nil {
		return now, nil
	}
	for _, p := range contacted {
		if p.isAnsweredBy(id) {
			return nil, errElsewhere
		}
	}
	return nil, &PeerError{s.addr, "session", context.Cause(s.ctx)}
}

var errElsewhere = errors.New("replicator: the peer is waited for at its address")

// contact returns the session that stands for a configured address. Unless it was
// dialled there, it takes more answers than there were to know who is there.
func (y *syncer) contact(ctx context.Context, p *peer, answers int) (*session, error) {
	const enough = 3 // attempts that led to no session that lasts
	for range enough {
		if s := y.sessionOf(p, answers); s != nil {
			return s, nil
		}
		a := p.ask()
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
