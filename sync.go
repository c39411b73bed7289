package replicator

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// This file owns the syncer: the configured peers, the listener, and the live sessions.

// syncSettings are the options that concern the sync floor.
type syncSettings struct {
	logger                   *slog.Logger
	name, cluster            string
	localPrefix              []byte
	listener                 net.Listener                   // nil: peers cannot dial in
	tls                      *tls.Config                    // for both roles; nil: plain TCP
	authorize                func(PeerInfo) (Access, error) // nil: everybody may do everything
	dial                     func(ctx context.Context, addr string) (net.Conn, error)
	minInterval, maxInterval time.Duration
	timeout                  time.Duration
	maxValue                 int // bytes
	maxHandshakes            int
	maxSessions              int
	maxSessionsPerAddr       int
	autoRejoin               bool
}

// syncer keeps a session with every peer. It dials the configured peers, accepts peers
// that dial in, and ensures that a pair has only one session.
type syncer struct {
	store    *store
	settings syncSettings
	nonce    uint64 // drawn at each start; tells instances of one id apart
	turns    *turns
	waits    *waits
	entrance *entrance
	refusals refusals
	scans    scanCounts

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	stopped  bool
	peers    map[string]*peer         // configured, by address
	sessions map[DatabaseID]*session  // live, one for each peer
	reports  map[DatabaseID]*reporter // of peers without a configured address
	accepts  uint64                   // number of the last accept sent
}

// startSync starts the replication of a store.
func startSync(d *store, settings syncSettings) *syncer {
	var nonce [8]byte
	rand.Read(nonce[:])
	y := &syncer{
		store: d, settings: settings,
		nonce:    binary.BigEndian.Uint64(nonce[:]),
		entrance: newEntrance(settings.maxHandshakes, settings.maxSessionsPerAddr),
		refusals: refusals{logger: settings.logger},
		turns:    newTurns(),
		waits:    newWaits(),
		peers:    map[string]*peer{},
		sessions: map[DatabaseID]*session{},
		reports:  map[DatabaseID]*reporter{},
	}
	y.ctx, y.cancel = context.WithCancelCause(context.Background())
	y.wg.Go(y.quicken)
	y.wg.Go(y.heed)
	if settings.listener != nil {
		y.wg.Go(y.accept)
		y.wg.Go(func() {
			<-y.ctx.Done() // after stop or a failed write
			settings.listener.Close()
		})
	}
	return y
}

// stop ends all sessions and waits for every goroutine.
func (y *syncer) stop() {
	y.mu.Lock()
	y.stopped = true
	y.mu.Unlock()
	y.cancel(ErrClosed)
	y.wg.Wait()
}

// heed ends all sessions when a write to leveldb has failed. Nothing can be merged any
// more, and the data of this replica may not be durable.
func (y *syncer) heed() {
	select {
	case <-y.ctx.Done():
	case <-y.store.failed():
		err := y.store.failure()
		y.settings.logger.Error("replicator: replication stopped", "error", err)
		y.cancel(err)
	}
}

// over returns why nothing is exchanged any more: a write has failed, which sessions may not
// have heard yet, or Close was called. Otherwise, it returns nil.
func (y *syncer) over() error { return cmp.Or(y.store.failure(), context.Cause(y.ctx)) }

// quicken raises the frequency of contacts after local writes.
func (y *syncer) quicken() {
	commits := y.store.subscribe()
	defer y.store.unsubscribe(commits)
	for {
		select {
		case <-y.ctx.Done():
			return
		case <-commits.wake:
		}
		if !commits.local.Swap(false) {
			continue
		}
		y.mu.Lock()
		for _, p := range y.peers {
			p.pace.wrote()
		}
		for _, s := range y.sessions {
			s.pace.wrote()
		}
		y.mu.Unlock()
		pause(y.ctx, y.settings.minInterval) // a burst of writes counts as one
	}
}

// accept accepts connections until the listener is closed, which happens when
// replication stops.
func (y *syncer) accept() {
	for failures := 0; ; {
		c, err := y.settings.listener.Accept()
		switch {
		case y.ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return
		case errors.Is(err, net.ErrClosed):
			y.settings.logger.Error("replicator: the listener was closed; peers can't dial in any more")
			return
		case err != nil:
			failures++
			y.settings.logger.Warn("replicator: accept failed", "error", err)
			pause(y.ctx, min(time.Duration(failures)*10*time.Millisecond, time.Second))
			continue
		}
		failures = 0
		y.wg.Go(func() { y.receive(c) })
	}
}

// receive handles an inbound connection, unless there are too many.
func (y *syncer) receive(c net.Conn) {
	defer c.Close()
	addr := c.RemoteAddr()
	if err := y.entrance.enter(addr); err != nil {
		y.refusals.note(addr, err)
		if y.settings.tls == nil { // a TLS handshake would cost more than it tells
			y.entrance.turnAway(c, err)
		}
		return
	}
	defer y.entrance.leave(addr)
	s, err := y.shake(y.ctx, c, addr.String(), nil)
	y.entrance.through()
	if err != nil {
		y.refusals.note(addr, err)
		return
	}
	y.run(s)
}

// addPeer implements Replicator.AddPeer.
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
	o := &y.settings
	ctx, cancel := context.WithCancelCause(y.ctx)
	p := &peer{
		addr: addr, meta: maps.Clone(meta), ctx: ctx, cancel: cancel,
		pace:   newSchedule(o.minInterval, o.maxInterval),
		dial:   make(chan struct{}, 1),
		report: newReporter(o.logger, "peer", addr),
		state:  StateWaiting,
	}
	for id, record := range y.store.allPeers() {
		if record.metAt(addr) {
			p.id = id
		}
	}
	y.peers[addr] = p
	y.wg.Go(func() { y.keep(ctx, p) })
	return nil
}

// removePeer implements Replicator.RemovePeer.
func (y *syncer) removePeer(addr string) error {
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

var errRemoved = errors.New("replicator: the peer was removed (Replicator.RemovePeer)")

// connections returns the configured addresses and the live sessions.
func (y *syncer) connections() ([]*peer, map[DatabaseID]*session) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.Collect(maps.Values(y.peers)), maps.Clone(y.sessions)
}
