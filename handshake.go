package replicator

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// greeting is what two sides know of each other after their hellos.
type greeting struct {
	own, peer hello
	since     uint64 // the last meeting before the connection began
}

// decides reports whether this side, of the smaller id, says which connection is
// the session of the pair.
func (g *greeting) decides() bool { return string(g.own.id[:]) < string(g.peer.id[:]) }

// hello returns what this side says of itself.
func (y *syncer) hello(probe bool) hello {
	o := &y.r.options
	return hello{
		minVersion: minProtocol, maxVersion: maxProtocol,
		clockKind: clockLamport, cluster: o.Cluster, name: o.Name,
		id: y.ownID(), epoch: y.r.commits.origin, nonce: y.nonce,
		maxKey: MaxKeySize, maxValue: uint64(o.MaxValueSize), probe: probe,
	}
}

// greet exchanges hellos and finds out whether the two sides fit together. The
// side that was dialled speaks second, and says a bye in the place of its hello to
// a peer that it refuses.
func (y *syncer) greet(ctx context.Context, c *conn, dialed, probe bool) (*greeting, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	g := &greeting{own: y.hello(probe), since: y.meetings.Load()}
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
			err = y.check(g.own, g.peer, dialed)
		}
		if err == nil {
			err = y.checkHistory(g.peer)
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

// expect receives the one frame that may come now, or a bye. It is small, and has
// to arrive whole within the timeout.
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

// check finds what keeps the two sides apart.
func (y *syncer) check(own, h hello, dialed bool) error {
	switch {
	case h.id.IsZero() || h.nonce == 0:
		return fmt.Errorf("%w: hello: id %v, nonce %d", ErrProtocol, h.id, h.nonce)
	case h.id == own.id && h.nonce == own.nonce && dialed:
		// Oneself would have said bye.
		return fmt.Errorf("%w: hello: what was dialled sends back what it is sent", ErrProtocol)
	case h.id == own.id && h.nonce == own.nonce:
		return ErrSelf
	case h.cluster != own.cluster:
		return fmt.Errorf("%w: cluster %q met cluster %q (Options.Cluster)", ErrRefused, own.cluster, h.cluster)
	case h.clockKind != own.clockKind:
		return fmt.Errorf("%w: clock kind %d met clock kind %d", ErrRefused, own.clockKind, h.clockKind)
	case h.maxKey != own.maxKey || h.maxValue != own.maxValue:
		return fmt.Errorf("%w: limits of %d and %d bytes for keys and values met limits of %d and %d (Options.MaxValueSize)",
			ErrRefused, own.maxKey, own.maxValue, h.maxKey, h.maxValue)
	case h.epoch&drawnOrigin == 0:
		return fmt.Errorf("%w: hello: epoch %v", ErrProtocol, h.epoch)
	case h.id != own.id:
		return y.r.commits.failure()
	case own.nonce < h.nonce:
		// Two live instances of one id. One of them has to change, and the
		// smaller nonce does.
		y.renewID(own.id)
		return fmt.Errorf("%w: it had the id %v, too, and this side draws a new one", ErrRefused, own.id)
	}
	return fmt.Errorf("%w: %v", ErrCloned, own.id)
}
