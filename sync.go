package replicator

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
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
	door     *door
	refusals refusals
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
		door:     newDoor(&r.options),
		refusals: refusals{logger: r.options.Logger},
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
		y.wg.Go(func() { y.receive(c) })
	}
}

// receive converses with a peer that dialled in, if the door is not too crowded.
func (y *syncer) receive(c net.Conn) {
	defer c.Close()
	addr := c.RemoteAddr()
	if err := y.door.enter(addr); err != nil {
		y.refusals.note(addr, err)
		y.door.turnAway(c, err)
		return
	}
	defer y.door.leave(addr)
	s, err := y.shake(y.ctx, c, addr.String(), nil)
	y.door.through()
	if err != nil {
		y.refusals.note(addr, err)
		return
	}
	y.run(s)
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
		pace:   newSchedule(o.MinInterval, o.MaxInterval),
		dial:   make(chan struct{}, 1),
		report: newReporter(o.Logger, "peer", addr),
		state:  StateWaiting,
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
// before the peer is reached; see Status and SyncNow. It fails if the address is
// empty, and with ErrClosed. Without Options.Dial it also fails if the address is
// malformed, or not a loopback address (see Options.Insecure).
func (r *Replicator) AddPeer(addr string, meta Meta) error {
	if err := r.options.checkPeer(addr); err != nil {
		return fmt.Errorf("replicator: add peer: %w", err)
	}
	return r.syncer.addPeer(addr, meta)
}

// RemovePeer stops dialling a peer, and ends the session that was dialled. The
// peer stays known, and can still dial in. It fails with ErrUnknownPeer if the
// address was not added, and with ErrClosed.
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
