package replicator

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// This file owns the exchange of hellos, and the judgement of a peer's hello.

// greeting is the result of an exchange of hellos.
type greeting struct {
	own, peer hello
	since     uint64 // number of the last meeting before the connection began
	access    Access // of the peer, to this replica
}

// decides reports whether this side chooses the connection that becomes the session of
// the pair. The side with the smaller id does.
func (g *greeting) decides() bool { return string(g.own.id[:]) < string(g.peer.id[:]) }

// hello returns the hello of this side.
func (y *syncer) hello(probe bool) hello {
	o := &y.settings
	return hello{
		minVersion: minProtocol, maxVersion: maxProtocol,
		clockKind: y.store.settings.clock.kind.row(), cluster: o.cluster, name: o.name,
		id: y.store.id(), epoch: y.store.origin(), nonce: y.nonce,
		maxKey: MaxKeySize, maxValue: uint64(o.maxValue), localPrefix: o.localPrefix, probe: probe, reaps: true,
	}
}

// greet exchanges hellos and checks whether the two sides fit together. The side that
// dialled sends first. The other side sends a bye in place of its hello if it refuses
// the peer.
func (y *syncer) greet(ctx context.Context, c *conn, dialed, probe bool) (*greeting, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	g := &greeting{own: y.hello(probe), since: y.store.meetings.Load()}
	err := y.exchange(c, g, dialed)
	if err == nil {
		return g, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	y.renewIfForked(g.own.id, err)
	return nil, err
}

func (y *syncer) exchange(c *conn, g *greeting, dialed bool) error {
	sendHello := func() error {
		if err := c.send(frameHello, g.own.append(nil)); err != nil {
			return fmt.Errorf("send hello: %w", err)
		}
		return nil
	}
	if dialed {
		if err := sendHello(); err != nil {
			return err
		}
	}
	payload, err := c.expect(frameHello)
	var bye *byeReceived
	switch {
	case errors.As(err, &bye) && (bye.code == byeSpare || bye.code == byeForked && !dialed):
		return fmt.Errorf("%w: a bye with code %d in the place of a hello", ErrProtocol, bye.code)
	case errors.As(err, &bye):
		return err
	case err == nil:
		if g.peer, err = parseHello(payload); err == nil {
			err = y.admit(g, dialed)
		}
		if err == nil {
			g.access, err = y.authorize(c, g.peer, dialed)
		}
	case !errors.Is(err, ErrProtocol):
		return err
	}
	if err != nil {
		sayBye(c, err)
		return err
	}
	if !dialed {
		return sendHello()
	}
	return nil
}

// admit judges the hello of a peer, and acts on the verdict.
func (y *syncer) admit(g *greeting, dialed bool) error {
	v := judge(encounter{g.own, g.peer, dialed, y.store.failure(), y.isForked(g.peer), y.store.isForgotten(g.peer.id), y.store.known.reapsNow() > 0})
	if v.renew {
		y.renewID(g.own.id)
	}
	if v.err == errForked {
		y.tellForked(g.peer)
	}
	return v.err
}

// expect receives the only frame that is allowed next, or a bye. The frame must be
// small, and must arrive completely within the timeout.
func (c *conn) expect(want byte) ([]byte, error) {
	var late atomic.Bool
	timer := time.AfterFunc(c.timeout, func() {
		late.Store(true)
		c.Close()
	})
	defer timer.Stop()
	kind, payload, err := c.receive(func(kind byte) int {
		if kind == want || kind == frameBye {
			return maxSmallFrame
		}
		return 0
	})
	if late.Load() {
		return nil, fmt.Errorf("%w within %v, or not enough for the handshake", errSilent, c.timeout)
	}
	if err == nil && kind == frameBye {
		return nil, parseBye(payload)
	}
	return payload, err
}

var errSilent = errors.New("nothing heard from the peer")

// encounter is the input of a verdict.
type encounter struct {
	own, peer hello
	dialed    bool  // this side dialled
	failed    error // why this replica cannot replicate any more, or nil
	forked    bool  // the peer's epoch was followed by another one already
	forgotten bool  // the peer was forgotten here
	reaped    bool  // tombstones were reaped here
}

// verdict is the result of judging an encounter.
type verdict struct {
	err   error // why there can be no session, or nil
	renew bool  // this side must draw a new database id
}

// judge decides whether two sides can have a session. The result depends on e only.
func judge(e encounter) verdict {
	own, peer := e.own, e.peer
	refuse := func(format string, args ...any) verdict { return verdict{err: fmt.Errorf(format, args...)} }
	switch {
	case peer.id.IsZero() || peer.nonce == 0:
		return refuse("%w: hello: id %v, nonce %d", ErrProtocol, peer.id, peer.nonce)
	case peer.id == own.id && peer.nonce == own.nonce && e.dialed:
		// This replica would have answered itself with a bye.
		return refuse("%w: hello: what was dialled sends back what it is sent", ErrProtocol)
	case peer.id == own.id && peer.nonce == own.nonce:
		return verdict{err: ErrSelf}
	case peer.cluster != own.cluster:
		return refuse("%w: cluster %q met cluster %q (Options.Cluster)", ErrRefused, own.cluster, peer.cluster)
	case peer.clockKind != own.clockKind:
		return refuse("%w: clock kind %d met clock kind %d (1 is Lamport, 2 is Hybrid; see Options.Clock)", ErrRefused, own.clockKind, peer.clockKind)
	case peer.maxKey != own.maxKey || peer.maxValue != own.maxValue:
		return refuse("%w: limits of %d and %d bytes for keys and values met limits of %d and %d (Options.MaxValueSize)",
			ErrRefused, own.maxKey, own.maxValue, peer.maxKey, peer.maxValue)
	case string(peer.localPrefix) != string(own.localPrefix):
		return refuse("%w: local prefix %q met local prefix %q (Options.LocalPrefix)", ErrRefused, own.localPrefix, peer.localPrefix)
	case peer.epoch&drawnOrigin == 0:
		return refuse("%w: hello: epoch %v", ErrProtocol, peer.epoch)
	case peer.id == own.id && own.nonce < peer.nonce:
		// There are two live instances of one id. The one with the smaller nonce
		// must draw a new id.
		return verdict{fmt.Errorf("%w: it had the id %v, too, and this side draws a new one", ErrRefused, own.id), true}
	case peer.id == own.id:
		return refuse("%w: %v", ErrCloned, own.id)
	case e.failed != nil:
		return verdict{err: e.failed}
	case e.forgotten:
		return verdict{err: errForgotten}
	case e.forked:
		return verdict{err: errForked}
	case e.reaped && !peer.reaps:
		return verdict{err: errNoReaps}
	}
	return verdict{}
}
