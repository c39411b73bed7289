package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// This file owns what a session does about deletions that were forgotten: stating them,
// exchanging nothing while the two sides do not fit together, and rejoining.

const (
	// rejoinRetry is how long after a rejoin that came to nothing it is tried again; each
	// time it is doubled, up to rejoinMost.
	rejoinRetry = time.Second
	rejoinMost  = 5 * time.Minute
	// rejoinPatience is for how long a rejoin may get less than turnBytes in each turnTime
	// while others wait. A peer may take its time to sum its index up.
	rejoinPatience = 5 * time.Minute
)

var errNoReaps = fmt.Errorf("%w: deletions were forgotten here (Options.TombstoneAge), and the peer's version can't tell whether it has seen them: update it", ErrRefused)

// tellReaped states what was reaped here, and whether this replica rejoins by itself, unless
// nothing has changed since the last time. It is called by open, and then by serve.
func (s *session) tellReaped() error {
	t := &s.reaps
	if !s.hello.reaps || t.any && !t.anew.Load() && s.store.known.reapsNow() == t.number {
		return nil
	}
	t.anew.Store(false)
	rejoins := s.rejoinsItself()
	t.rejoins.Store(rejoins)
	reaped, number := s.store.known.reapedNow()
	news := vector{}
	for o, clock := range reaped {
		if known, told := t.told[o]; !told || known < clock {
			news[o] = clock
		}
	}
	t.told, t.number, t.any = reaped, number, true
	for _, payload := range reapedFrames(news.stamps(), rejoins, s.own.epoch) {
		if err := s.send(frameReaped, payload); err != nil {
			return err
		}
	}
	return nil
}

// hearsReaped takes in what the peer has reaped. Its clocks are judged like stamps.
func (s *session) hearsReaped(stamps []Stamp, more, rejoins bool) error {
	if err := s.checkClocks("reap vector", stamps); err != nil {
		return err
	}
	s.rejoins.Store(rejoins)
	if len(stamps) > 0 {
		v := vectorFrom(stamps)
		if before := s.reaped.Load(); before != nil {
			v.join(before.stamps())
		}
		s.reaped.Store(&v)
		if err := checkOrigins(len(v)); err != nil {
			return err
		}
	}
	select {
	case <-s.begun:
		// What was asked for may have to be dropped when it comes: so it is not waited for.
		if here, _ := s.stale(); here && s.pageDue.Load() {
			return errStaleHere
		}
	default:
		if !more {
			close(s.begun)
		}
	}
	s.mayFit()
	return nil
}

// mayFit has pull and serve look again whether the two fit, if that is in question.
func (s *session) mayFit() {
	if s.reaped.Load() != nil || s.store.known.reapsNow() > 0 {
		signal(s.standing)
		signal(s.look)
	}
}

// rejoinsItself reports whether this replica rejoins by itself.
func (s *session) rejoinsItself() bool {
	return s.access != ReadOnly && (s.y.settings.autoRejoin || s.store.recovered.Load() || s.store.isYoung())
}

// peerCovers reports whether the peer has told that it knows a change, or has it durably.
func (s *session) peerCovers(t Stamp) bool {
	s.server.mu.Lock()
	covers := s.server.peer.covers(t)
	s.server.mu.Unlock()
	if !covers {
		s.mu.Lock()
		covers = s.durable.covers(t)
		s.mu.Unlock()
	}
	return covers
}

// stale reports whether this replica has not seen a deletion that the peer has forgotten,
// and whether the peer has not seen one that was forgotten here.
func (s *session) stale() (here, there bool) {
	if !s.hello.reaps {
		return false, s.store.known.reapsNow() > 0
	}
	return s.store.standing(s.reaped.Load(), s.peerCovers)
}

// fitting is for what the two sides were found to fit together. What they know only rises.
type fitting struct {
	ok     bool
	reaps  uint64
	reaped *vector
}

// fits reports whether the two may exchange something.
func (s *session) fits(f *fitting) (bool, error) {
	now := fitting{true, s.store.known.reapsNow(), s.reaped.Load()}
	if *f == now {
		return true, nil
	}
	here, there := s.stale()
	switch {
	case there && !s.hello.reaps:
		return false, errNoReaps
	case here || there:
		return false, nil
	}
	*f = now
	return true, nil
}

// fit returns when the two sides fit together, so that a pull may be asked for. Where this
// replica is stale, and is to rejoin by itself, that is what it does. fit reports whether it
// has waited; then the puller is a new one.
func (u *puller) fit() (waited bool, err error) {
	s := u.s
	if s.hello.reaps {
		select {
		case <-s.begun:
		case <-s.ctx.Done():
			return false, s.ctx.Err()
		}
	}
	if fits, err := s.fits(&u.fitted); fits || err != nil {
		return false, err
	}
	u.endScan()
	commits := s.store.subscribe()
	defer s.store.unsubscribe(commits)
	retry := rejoinRetry
	for {
		fits, err := s.fits(&u.fitted)
		if err != nil {
			return true, err
		}
		if fits {
			break
		}
		here, there := s.stale()
		rejoins := s.rejoinsItself()
		if rejoins != s.reaps.rejoins.Load() {
			s.reaps.anew.Store(true)
			signal(s.look)
		}
		if here && rejoins {
			s.record.isStale(here, there, s.reaped.Load(), time.Now())
			switch err := s.tryRejoin(&rejoinCall{ctx: s.ctx}); {
			case err == nil:
				retry = rejoinRetry
			case isLater(err):
				if errors.Is(err, errIncomplete) {
					s.parkIncomplete()
				}
				s.y.settings.logger.Debug("replicator: could not rejoin yet", "peer", s.addr, "error", err, "again", retry)
				pause(s.ctx, retry)
				retry = min(2*retry, rejoinMost)
			default:
				return true, err
			}
			continue
		}
		s.park(here, there)
		select {
		case <-s.standing:
		case <-commits.wake:
		case call := <-s.calls:
			if err := s.tryRejoin(call); err != nil && !isLater(err) && call.ctx.Err() == nil {
				return true, err
			}
		case <-s.ctx.Done():
			return true, s.ctx.Err()
		}
	}
	s.unpark()
	*u = *newPuller(s) // a rejoin has come further
	return true, s.tellVector(0)
}

// isLater reports whether a rejoin may do later what it could not do now.
func isLater(err error) bool {
	for _, e := range []error{errOvertaken, errAdopting, errRejoining, errIncomplete} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// parkIncomplete notes that this replica can't rejoin, for the peer lacks something.
func (s *session) parkIncomplete() {
	first := false
	s.note(func() {
		first = s.parked == nil
		s.state, s.parked = StateIncomplete, errStaleIncomplete
	})
	if first {
		s.warnStale(errStaleIncomplete)
	}
}

func (s *session) warnStale(err error, more ...any) {
	s.y.settings.logger.Warn("replicator: nothing is exchanged with a peer",
		append([]any{"peer", s.addr, "id", s.hello.id, "name", s.hello.name, "error", err}, more...)...)
}

var (
	errStaleIncomplete = fmt.Errorf("%w: deletions were forgotten there that this replica has not seen, and it can't rejoin, for the peer can't read all of its own database: call Verify with Repair there", ErrStale)
	errStaleLacking    = fmt.Errorf("%w: deletions were forgotten here that the peer has not seen, and it can't rejoin, for this replica can't read all of its own database: call Verify with Repair here", ErrStale)
	errStaleReader     = fmt.Errorf("%w: the reader has forgotten deletions that are not merged here: wipe the reader, or give it read-write access (Options.Authorize) and call Rejoin here", ErrStale)
	errStaleDeaf       = fmt.Errorf("%w: deletions were forgotten here that are not merged at the peer, where this replica may only read: wipe this replica, or have it get read-write access there (Options.Authorize), and call Rejoin there", ErrStale)
)

// whyStale returns why nothing is exchanged, with what to do; nil: it is about to be over.
func (s *session) whyStale(here, there bool) error {
	auto := here && s.rejoinsItself()
	s.mu.Lock()
	defer s.mu.Unlock()
	deaf := s.granted != nil && *s.granted == ReadOnly
	switch {
	case here && s.access == ReadOnly:
		return errStaleReader
	case here && s.parked == errStaleIncomplete:
		return errStaleIncomplete
	case auto:
		return nil
	case here:
		return errStaleHere
	case there && deaf:
		return errStaleDeaf
	case there && s.rejoins.Load() && s.leftOut:
		return errStaleLacking
	case there && s.rejoins.Load():
		return nil
	case there:
		return errStaleThere
	}
	return nil
}

// park notes, and logs once, that nothing is exchanged.
func (s *session) park(here, there bool) {
	s.record.isStale(here, there, s.reaped.Load(), time.Now())
	err := s.whyStale(here, there)
	if err == nil {
		return // it is about to rejoin
	}
	s.note(func() { s.state, s.parked = StateStale, err })
	if s.record.warnsOf(err) {
		s.warnStale(err, "waiting", s.store.known.unknownTo(s.server.known(), s.record.statement().merged.seq))
	}
}

func (s *session) unpark() {
	s.record.isStale(false, false, nil, time.Time{})
	s.note(func() {
		if s.parked = nil; s.state == StateStale || s.state == StateIncomplete {
			s.state = StateStarting
		}
	})
}

// rejoinCall is somebody's wish to rejoin.
type rejoinCall struct {
	ctx         context.Context
	keepAdopted bool
	progress    func(Rejoined)

	result Rejoined
	err    error
	over   chan struct{} // nil: nobody waits
}

// tryRejoin rejoins, and tells who waits for that. It is called by pull.
func (s *session) tryRejoin(call *rejoinCall) error {
	call.result, call.err = s.rejoin(call)
	if call.err == nil && (call.over != nil || call.result.Dropped > 0) {
		s.y.settings.logger.Info("replicator: rejoined", "peer", s.addr, "id", s.hello.id,
			"merged", call.result.Merged, "dropped", call.result.Dropped, "kept", call.result.Kept, "again", call.result.PutAgain)
	}
	if call.over != nil {
		close(call.over)
	}
	return call.err
}

func (s *session) rejoin(call *rejoinCall) (done Rejoined, err error) {
	if here, _ := s.stale(); !here {
		return done, nil
	}
	if err := s.beginAsking(call.ctx); err != nil {
		return done, err
	}
	defer s.asking.giveBack()
	ctx, cancel := context.WithCancelCause(call.ctx)
	defer cancel(nil)
	stop := context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })
	defer stop()
	var j *rejoin
	for {
		if err := s.store.awaitRejoin(ctx); err != nil {
			return done, err
		}
		told := s.server.known().stamps()
		if reaped := s.reaped.Load(); reaped != nil {
			told = append(told, reaped.stamps()...)
		}
		if j, err = s.store.beginRejoin(ctx, call.keepAdopted, told); !errors.Is(err, errRejoining) {
			break
		}
	}
	if err != nil {
		return done, err
	}
	defer j.end()
	if call.over == nil && !s.rejoinsItself() {
		return done, nil // meanwhile, it has rejoined with another peer, and is not new any more
	}
	watching, over := context.WithCancel(s.ctx)
	var watch sync.WaitGroup
	watch.Go(func() { s.watchRejoin(watching) })
	defer watch.Wait()
	defer over()
	s.note(func() {
		if s.parked != errStaleIncomplete { // else it stays so until that has gone well
			s.state, s.parked = StatePullingInFull, nil
		}
	})
	taker := s.newTaker()
	taker.giver.rejoin = j
	take := func(r *reply, entries []entry) (int, error) {
		s.recordsIn.Add(int64(len(entries)))
		return taker.takeFound(r, entries)
	}
	ask := func(q *question) (*reply, error) { return s.ask(ctx, q) }
	if err := j.run(ctx, ask, take, call.progress); err != nil {
		return j.soFar(), err
	}
	if taker.lacked {
		return j.soFar(), errIncomplete
	}
	next := cursor{checkpoint: j.peer.to, joined: true}
	s.y.scans.add(scanRejoined)
	if err := s.learn(); err != nil { // before what the peer knows is
		return j.soFar(), err
	}
	return j.finish(&progress{id: s.hello.id, record: s.record, next: next})
}

// watchRejoin ends a session in which a rejoin gets too little for too long, if others wait
// for it: nothing of theirs is merged meanwhile.
func (s *session) watchRejoin(ctx context.Context) {
	idle := time.Duration(0)
	for before := s.conn.gained.Load(); ; {
		pause(ctx, turnTime)
		if ctx.Err() != nil {
			return
		}
		now := s.conn.gained.Load()
		if idle += turnTime; now-before >= turnBytes || s.store.unmerged.Load() == 0 {
			idle = 0
		}
		if before = now; idle >= rejoinPatience {
			s.cancel(errSlowRejoin)
			return
		}
	}
}

var errSlowRejoin = errors.New("replicator: too little came of the peer to rejoin, while others waited: it is tried again")

// asks comes before the peer is asked for entries: what it is known to know by then, it
// knows when it reads them. In the midst of a scan, it reads from an earlier snapshot.
func (u *puller) asks(anew bool) {
	s := u.s
	if !s.hello.reaps {
		return
	}
	if u.giver.known == nil {
		u.giver.known = s.knownThere()
		return
	}
	if anew && !s.store.known.reapedWithin(u.giver.known) {
		u.giver.known = s.knownThere()
	}
}

// knownThere returns what the peer has told to know, or to have durably.
func (s *session) knownThere() vector {
	v := s.server.known()
	s.mu.Lock()
	defer s.mu.Unlock()
	v.join(s.durable.stamps())
	return v
}

// commit merges, when no rejoin is under way but that of which the entries are.
func (u *puller) commit(c *candidates, blind *blindness, p *progress) error {
	c.giver = &u.giver
	for {
		err := u.s.store.merge(c, blind, p)
		if err != errRejoining || u.inHear {
			return err
		}
		if err := u.s.store.awaitRejoin(u.s.ctx); err != nil {
			return err
		}
	}
}

// RejoinOptions are those of one rejoin.
type RejoinOptions struct {
	// KeepAdopted keeps old values, from before the databases were first wrapped, that
	// only one of the two replicas has. Nobody knows whether they were deleted at the
	// other one. The default value is false: they are dropped where the other replica has
	// forgotten deletions. A third one that has such a value, and has seen those deletions,
	// brings it back.
	KeepAdopted bool

	// Progress is called now and then with what has been found so far. It must return
	// soon.
	//
	// The default value is nil.
	Progress func(Rejoined)
}

// rejoinWith implements Replicator.Rejoin.
func (y *syncer) rejoinWith(ctx context.Context, name string, o *RejoinOptions) (Rejoined, error) {
	const tries = 3
	for try := 1; ; try++ {
		s, err := y.reach(ctx, name)
		if over := y.over(); err != nil || over != nil {
			return Rejoined{}, cmp.Or(over, err)
		}
		done, err := s.callRejoin(ctx, o)
		if err == nil {
			return done, nil
		}
		if over := y.over(); over != nil {
			return Rejoined{}, over
		}
		if ctx.Err() == nil && try < tries && isLater(err) {
			pause(ctx, rejoinRetry)
			continue
		}
		if ctx.Err() != nil || try == tries || !s.ended() {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return Rejoined{}, &PeerError{s.addr, "rejoin", err}
		}
		select { // the session is ending
		case <-s.done:
			y.remove(s) // its own goroutine may not have removed it yet
		case <-ctx.Done():
		}
	}
}

var errReadOnlyPeer = errors.New("replicator: the peer may only read: nothing of it is merged here")

// callRejoin has pull rejoin, when it has found that the two do not fit.
func (s *session) callRejoin(ctx context.Context, o *RejoinOptions) (Rejoined, error) {
	if s.access == ReadOnly {
		return Rejoined{}, errReadOnlyPeer
	}
	if !s.hello.reaps {
		return Rejoined{}, nil // it has reaped nothing
	}
	call := &rejoinCall{ctx: ctx, over: make(chan struct{})}
	if o != nil {
		call.keepAdopted, call.progress = o.KeepAdopted, o.Progress
	}
	// Close waits for this call, and must not wait for a frame that the peer does not take.
	stop := context.AfterFunc(ctx, func() {
		if err := context.Cause(ctx); errors.Is(err, ErrClosed) {
			s.cancel(err)
		}
	})
	defer stop()
	select {
	case <-s.begun:
	case <-s.ctx.Done():
		return Rejoined{}, context.Cause(s.ctx)
	case <-ctx.Done():
		return Rejoined{}, ctx.Err()
	}
	for {
		here, there := s.stale()
		switch {
		case !here && there:
			return Rejoined{}, cmp.Or(s.whyStale(here, there), errStaleThere)
		case !here:
			return Rejoined{}, nil
		}
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		select {
		case s.calls <- call:
			select {
			case <-call.over:
				return call.result, call.err
			case <-ctx.Done(): // pull finds that out, too
				return Rejoined{}, ctx.Err()
			}
		case <-changed: // it may rejoin by itself
		case <-s.ctx.Done():
			return Rejoined{}, context.Cause(s.ctx)
		case <-ctx.Done():
			return Rejoined{}, ctx.Err()
		}
	}
}
