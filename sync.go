package replicator

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// syncer keeps a session with every peer: it dials those that are configured,
// accepts those that dial, and sees to it that there is one session a pair.
type syncer struct {
	r        *Replicator
	listener net.Listener
	nonce    uint64
	claims   claims
	meetings atomic.Uint64                   // epochs of peers noted since Open
	wrote    chan struct{}                   // a local write was committed
	wakes    atomic.Pointer[[]chan struct{}] // of the live sessions

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	stopped  bool
	id       DatabaseID
	peers    map[string]*peer           // configured, by address
	known    map[DatabaseID]*peerRecord // ever met
	sessions map[DatabaseID]*session    // live, one a peer
	accepts  uint64                     // number of the last accept sent
}

func newSyncer(r *Replicator, op *opening, l net.Listener) *syncer {
	var nonce [8]byte
	rand.Read(nonce[:])
	y := &syncer{
		r: r, listener: l, id: op.id, known: op.peers,
		nonce:    binary.BigEndian.Uint64(nonce[:]),
		wrote:    make(chan struct{}, 1),
		peers:    map[string]*peer{},
		sessions: map[DatabaseID]*session{},
	}
	y.ctx, y.cancel = context.WithCancelCause(context.Background())
	return y
}

// start starts every goroutine that does not belong to a peer or a session.
func (y *syncer) start() {
	y.r.commits.changed = y.committed
	y.r.commits.stopped = y.failed
	y.wg.Go(func() { y.r.adopter.run(y.ctx) })
	y.wg.Go(func() { y.r.sweep(y.ctx) })
	y.wg.Go(y.quicken)
	if y.listener != nil {
		y.wg.Go(y.accept)
		y.wg.Go(func() {
			<-y.ctx.Done() // Close, or a failed write
			y.listener.Close()
		})
	}
	for addr, meta := range y.r.options.Peers {
		_ = y.addPeer(addr, meta) // a map has no address twice
	}
}

// stop ends all sessions and waits for every goroutine.
func (y *syncer) stop() {
	y.mu.Lock()
	y.stopped = true
	y.mu.Unlock()
	y.cancel(ErrClosed)
	y.wg.Wait()
}

// committed is called in the commit section, after each commit.
func (y *syncer) committed(local bool) {
	if local {
		signal(y.wrote)
	}
	if wakes := y.wakes.Load(); wakes != nil {
		for _, wake := range *wakes {
			signal(wake)
		}
	}
}

// failed is called when a write to leveldb failed: nothing can be merged any
// more, and what is here may not be durable.
func (y *syncer) failed(err error) {
	y.r.options.Logger.Error("replicator: replication stopped", "error", err)
	y.cancel(err)
}

// quicken raises the frequency of contacts when there are local writes.
func (y *syncer) quicken() {
	for {
		select {
		case <-y.ctx.Done():
			return
		case <-y.wrote:
		}
		y.mu.Lock()
		for _, p := range y.peers {
			p.pace.wrote()
		}
		for _, s := range y.sessions {
			s.pace.wrote()
		}
		y.mu.Unlock()
		pause(y.ctx, y.r.options.MinInterval) // a burst of writes counts once
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// accept takes connections until the listener is closed, which it is when
// replication stops.
func (y *syncer) accept() {
	for failures := 0; ; {
		c, err := y.listener.Accept()
		switch {
		case y.ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return
		case errors.Is(err, net.ErrClosed):
			y.r.options.Logger.Error("replicator: the listener was closed; peers can't dial in any more")
			return
		case err != nil:
			failures++
			y.r.options.Logger.Warn("replicator: accept failed", "error", err)
			pause(y.ctx, min(time.Duration(failures)*10*time.Millisecond, time.Second))
			continue
		}
		failures = 0
		y.wg.Go(func() {
			addr := c.RemoteAddr().String()
			if err := y.converse(y.ctx, c, addr, nil); err != nil {
				y.r.options.Logger.Debug("replicator: inbound connection ended", "peer", addr, "error", err)
			}
		})
	}
}

func (y *syncer) addPeer(addr string, meta Meta) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.stopped {
		return ErrClosed
	}
	if p := y.peers[addr]; p != nil {
		p.mu.Lock()
		p.meta = maps.Clone(meta)
		p.mu.Unlock()
		return nil
	}
	o := &y.r.options
	ctx, cancel := context.WithCancelCause(y.ctx)
	p := &peer{
		addr: addr, meta: maps.Clone(meta), ctx: ctx, cancel: cancel,
		pace:    newSchedule(o.MinInterval, o.MaxInterval),
		dial:    make(chan struct{}, 1),
		changed: make(chan struct{}),
		state:   "waiting",
	}
	for id, record := range y.known {
		if record.metAt(addr) {
			p.id = id
		}
	}
	y.peers[addr] = p
	y.wg.Go(func() { y.keep(ctx, p) })
	return nil
}

// AddPeer adds a peer to dial, or replaces the metadata of one. It returns
// before the peer is reached; see Status and SyncNow. Errors: a malformed
// address, one that plain TCP must not be used with (Options.Insecure), and
// ErrClosed.
func (r *Replicator) AddPeer(addr string, meta Meta) error {
	if err := r.options.checkPeer(addr); err != nil {
		return fmt.Errorf("replicator: add peer: %w", err)
	}
	return r.syncer.addPeer(addr, meta)
}

// RemovePeer stops dialling a peer, and ends the session that was dialled. The
// peer stays known, and can still dial in. An address that was not added is
// ErrUnknownPeer.
func (r *Replicator) RemovePeer(addr string) error {
	y := r.syncer
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.stopped {
		return ErrClosed
	}
	p := y.peers[addr]
	if p == nil {
		return fmt.Errorf("%w: %s", ErrUnknownPeer, addr)
	}
	delete(y.peers, addr)
	p.cancel(errRemoved)
	return nil
}

var errRemoved = errors.New("replicator: the peer was removed here")

// Addr returns the address that peers can dial, or nil when not listening.
func (r *Replicator) Addr() net.Addr {
	if l := r.syncer.listener; l != nil {
		return l.Addr()
	}
	return nil
}

// SyncNow returns once all that was in the log of every reachable peer at the
// call is merged here. It dials at once the peers that there is no session with,
// and returns, joined, a *PeerError for each that could not be reached or did
// not finish before ctx was done. Peers that dialled in are waited for, too.
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
	for _, p := range peers {
		if s := p.sessionIn(others); s != nil {
			delete(others, s.hello.id) // also if it has ended meanwhile
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
		bring(p.addr, func() (*session, error) { return y.contact(ctx, p) })
	}
	for id, s := range others {
		bring(s.addr, func() (*session, error) { return y.successor(id, s) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// bringIn merges what a peer has, over as many sessions as it takes, within
// reason.
func (y *syncer) bringIn(ctx context.Context, addr string, session func() (*session, error)) error {
	const sessions = 3
	for try := 1; ; try++ {
		s, err := session()
		if errors.Is(err, ErrSelf) {
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
// after it.
func (y *syncer) successor(id DatabaseID, s *session) (*session, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if now := y.sessions[id]; now != nil {
		return now, nil
	}
	return nil, &PeerError{s.addr, "session", context.Cause(s.ctx)}
}

// contact returns the session with a peer, dialling at once if there is none.
func (y *syncer) contact(ctx context.Context, p *peer) (*session, error) {
	const enough = 3 // attempts that were answered, but led to no session that lasts
	p.mu.Lock()
	begun := p.begun // what began before the call tells nothing
	p.mu.Unlock()
	for {
		p.mu.Lock()
		changed, ended, err := p.changed, p.attempts-begun, p.failure
		p.mu.Unlock()
		if s := y.sessionOf(p); s != nil {
			return s, nil
		}
		if ended > 0 && err != nil {
			return nil, err
		}
		if ended >= enough {
			return nil, errors.New("no session lasts")
		}
		signal(p.dial)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.ctx.Done():
			return nil, context.Cause(p.ctx)
		}
	}
}
