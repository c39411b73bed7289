package replicator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
)

// This file owns Compare and Repair: who is compared, when, and what comes of it.

// maxSample is how many keys a Difference shows.
const maxSample = 32

// Difference tells how two replicas differ. A key differs if the two have different
// versions of it, or one of them has none.
type Difference struct {
	Equal bool `json:"equal"` // no key differs
	Keys  int  `json:"keys"`  // number of keys that differ
	// LaterHere is the number of those whose later version, or only one, is here;
	// LaterThere, at the peer.
	LaterHere  int `json:"laterHere"`
	LaterThere int `json:"laterThere"`
	// Repaired is of how many of those keys Repair has brought the later version to the
	// side that lacked it. It is 0 for Compare.
	Repaired int `json:"repaired"`
	// Sample are the least of the keys that differ, at most 32, in ascending order. The
	// caller owns them.
	Sample [][]byte `json:"sample,omitempty"`
}

// add counts a pair.
func (d *Difference) add(p *pair) {
	d.Equal = false
	d.Keys++
	if p.isLater() {
		d.LaterHere++
	} else {
		d.LaterThere++
	}
	if len(d.Sample) < maxSample {
		d.Sample = append(d.Sample, bytes.Clone(p.key))
	}
}

// errUnsettled says that one side began to read the other's log anew before a comparison.
var errUnsettled = errors.New("replicator: a log began to be read anew while two replicas were compared: try again")

// compareWith implements Replicator.Compare and Replicator.Repair.
func (y *syncer) compareWith(ctx context.Context, name string, repair bool) (d Difference, err error) {
	const tries = 3
	op := "compare"
	if repair {
		op = "repair"
	}
	repaired := 0 // in sessions that have ended
	for try := 1; ; try++ {
		s, err := y.reach(ctx, name)
		if over := y.over(); err != nil || over != nil {
			return Difference{}, cmp.Or(over, err)
		}
		d = Difference{Equal: true}
		head, err := y.settle(ctx, s)
		if err == nil {
			err = s.compareTo(ctx, &d, head, repair)
		}
		if err == nil {
			d.Keys, d.Repaired = d.Keys+repaired, d.Repaired+repaired
			d.Equal = d.Keys == 0
			return d, nil
		}
		repaired += d.Repaired
		if over := y.over(); over != nil {
			return Difference{}, over
		}
		if ctx.Err() == nil && try < tries && err == errUnsettled {
			continue
		}
		if ctx.Err() != nil || try == tries || !s.ended() {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return Difference{}, &PeerError{s.addr, op, err}
		}
		select { // the session is ending
		case <-s.done:
			y.remove(s) // its own goroutine may not have removed it yet
		case <-ctx.Done():
		}
	}
}

// reach returns the session with a peer: at a configured address, which is dialled if
// there is none, or with the peer that has an id or a name.
func (y *syncer) reach(ctx context.Context, name string) (*session, error) {
	y.mu.Lock()
	if y.stopped {
		y.mu.Unlock()
		return nil, ErrClosed
	}
	p := y.peers[name]
	var named []*session
	for id, s := range y.sessions {
		if id.String() == name {
			named = []*session{s}
			break
		}
		if s.hello.name == name && name != "" {
			named = append(named, s)
		}
	}
	y.mu.Unlock()
	switch {
	case p != nil:
		s, err := y.contact(ctx, p, anyAnswer)
		if wrapped := (*PeerError)(nil); err != nil && !errors.As(err, &wrapped) {
			err = &PeerError{name, "dial", err}
		}
		return s, err
	case len(named) == 1:
		return named[0], nil
	case len(named) > 1:
		return nil, fmt.Errorf("%w: %d peers have the name %q: use the id of one", ErrUnknownPeer, len(named), name)
	}
	return nil, fmt.Errorf("%w: %q is no configured address, and no id or name of a connected peer", ErrUnknownPeer, name)
}

// settle returns when each side has merged what the other had at the call, as far as it
// may. So what is found to differ then is not merely under way. It returns the own head at
// the call.
func (y *syncer) settle(ctx context.Context, s *session) (head uint64, err error) {
	of := &wait{y.store.head(), false}
	y.waits.add(of)
	defer y.waits.remove(of)
	signal(s.look)
	if err := s.syncNow(ctx); err != nil && !errors.Is(err, errIncomplete) {
		return 0, err
	}
	for {
		stated := y.waits.next()
		s.mu.Lock()
		mergesAll, changed := s.mergesAll(), s.changed
		s.mu.Unlock()
		if !mergesAll {
			return of.head, nil
		}
		if _, history := y.store.position(); s.hasMerged(history, of.head) {
			return of.head, nil
		}
		select {
		case <-stated:
		case <-changed:
		case <-s.ctx.Done():
			return 0, context.Cause(s.ctx)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// hasMerged reports whether the peer has stated in this session that it has merged this
// replica's log up to a head.
func (s *session) hasMerged(history history, head uint64) bool {
	at := s.record.statement()
	return at.by == s.hello.epoch && at.to == s.own.id && !at.merged.isZero() && at.merged.seq >= head && history.contains(at.merged, maxSequence)
}

// mayGive reports whether the peer merges what it is given. The caller holds mu.
func (s *session) mayGive() bool { return s.granted == nil || *s.granted == ReadWrite }

// mergesAll reports whether the peer may merge this replica's log, and can. The caller
// holds mu.
func (s *session) mergesAll() bool { return !s.leftOut && s.mayGive() }

// compareTo compares this replica to the peer, and adds to a difference. What is made
// meanwhile is no difference. To repair, it merges what is later there, and has the peer
// merge what is later here.
//
// head is up to where the peer has merged this replica's log, if it may.
func (s *session) compareTo(ctx context.Context, d *Difference, head uint64, repair bool) error {
	if s.store.adopter.running() {
		return errAdopting
	}
	if err := s.beginAsking(ctx); err != nil {
		return err
	}
	defer s.asking.giveBack()
	// Close waits for this call, and must not wait for a frame that the peer does not take.
	stop := context.AfterFunc(ctx, func() {
		if err := context.Cause(ctx); errors.Is(err, ErrClosed) {
			s.cancel(err)
		}
	})
	defer stop()
	err := s.compareAsking(ctx, d, head, repair)
	if errors.Is(err, ErrProtocol) || errors.Is(err, ErrClock) || errors.Is(err, errImage) {
		s.cancel(err)
	}
	return err
}

// beginAsking waits until nobody else compares in this session.
func (s *session) beginAsking(ctx context.Context) error {
	select {
	case s.asking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

func (s *session) compareAsking(ctx context.Context, d *Difference, head uint64, repair bool) error {
	view, err := s.store.viewSums(ctx, s.record)
	if err != nil {
		return err
	}
	defer view.Release()
	switch {
	case s.access == ReadOnly || s.isIncomplete():
		view.merged = position{} // nothing of the peer is under way here
	case view.merged.isZero():
		return errUnsettled
	}
	u := s.newTaker()
	c := &comparison{d: s.store, view: view, ask: func(q *question) (*reply, error) {
		r, err := s.ask(ctx, q)
		if err != nil || !r.first {
			return r, err
		}
		if !vectorFrom(r.vector).includes(view.reaped) || !vectorFrom(view.vector).includes(vectorFrom(r.reaped)) {
			return r, errUnsettled // one snapshot is older than a deletion that the other side has forgotten
		}
		_, history := s.store.position()
		s.mu.Lock()
		mergesAll := s.mergesAll()
		s.mu.Unlock()
		switch {
		case !mergesAll:
			r.merged = position{} // nothing of this replica is under way there
		case r.merged.seq < head || !history.contains(r.merged, maxSequence):
			err = errUnsettled
		}
		return r, err
	}}
	c.found = func(pairs []pair) error {
		var take []entry
		var give [][]byte
		s.mu.Lock()
		mayGive := s.mayGive()
		s.mu.Unlock()
		for i := range pairs {
			p := &pairs[i]
			if c.isMoot(p) || c.isUnderWay(p) {
				continue
			}
			d.add(p)
			switch {
			case p.isLater() && mayGive:
				give = append(give, p.key)
			case !p.isLater() && s.access == ReadWrite:
				take = append(take, p.there)
			}
		}
		if !repair {
			return nil
		}
		if len(take) > 0 {
			s.recordsIn.Add(int64(len(take)))
			n, err := u.takeFound(c.peer, take)
			d.Repaired += n
			if err != nil {
				return err
			}
		}
		n, err := s.offerKeys(ctx, give)
		d.Repaired += int(n)
		return err
	}
	return c.run(ctx)
}

func (s *session) isIncomplete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.incomplete
}
