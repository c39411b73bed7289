package replicator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// handshake exchanges hellos, finds out whether the two sides fit together, and
// agrees on this connection as the session of the pair. The side that was
// dialled speaks second, and says a bye in the place of its hello to a peer that
// it refuses.
func (y *syncer) handshake(ctx context.Context, nc net.Conn, addr string, dialed bool) (*session, error) {
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	o := &y.r.options
	c := newConn(nc, o.Timeout, o.Timeout)
	own := hello{
		minVersion: minProtocol, maxVersion: maxProtocol,
		clockKind: clockLamport, cluster: o.Cluster,
		id: y.ownID(), epoch: y.r.commits.origin, nonce: y.nonce,
		maxKey: MaxKeySize, maxValue: uint64(o.MaxValueSize),
	}
	s, err := y.greet(ctx, c, own, addr, dialed)
	if err != nil {
		if s != nil {
			s.cancel(err) // it is not going to run
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		y.renewIfForked(own.id, err)
		return s, err
	}
	c.readTimeout += longestWait(o.MaxInterval) // until the peer answers the next ping
	return s, nil
}

func (y *syncer) greet(ctx context.Context, c *conn, own hello, addr string, dialed bool) (*session, error) {
	since := y.meetings.Load()
	refuse := func(err error) (*session, error) {
		sayBye(c, err)
		return nil, err
	}
	if dialed {
		if err := c.send(frameHello, own.append(nil)); err != nil {
			return nil, fmt.Errorf("send hello: %w", err)
		}
	}
	payload, err := c.expect(frameHello)
	var bye *byeReceived
	if errors.As(err, &bye) && (bye.code == byeSpare || bye.code == byeForked && !dialed) {
		return nil, fmt.Errorf("%w: a bye with code %d in the place of a hello", ErrProtocol, bye.code)
	}
	if errors.Is(err, ErrProtocol) {
		return refuse(err)
	}
	if err != nil {
		return nil, err
	}
	h, err := parseHello(payload)
	if err == nil {
		err = y.check(own, h, dialed)
	}
	var record *peerRecord
	if err == nil {
		record, err = y.recall(h)
	}
	if err == nil && dialed {
		err = y.meet(h, record, addr, since)
	}
	if err != nil {
		return refuse(err)
	}
	if !dialed {
		if err := c.send(frameHello, own.append(nil)); err != nil {
			return nil, fmt.Errorf("send hello: %w", err)
		}
	}
	s := newSession(ctx, y.r, c, own, h, record, addr, dialed)
	s.since = since
	number := uint64(0)
	if !s.decides() {
		payload, err := c.expect(frameAccept)
		if err != nil {
			return s, err
		}
		r := decoder{rest: payload}
		number = r.uvarint()
		if err := r.finish(); err != nil || number == 0 {
			err = fmt.Errorf("%w: malformed accept", ErrProtocol)
			sayBye(c, err)
			return s, err
		}
	}
	if err := y.register(s, number); err != nil {
		sayBye(c, err)
		return s, err
	}
	return s, nil
}

// expect receives the one frame that may come now, or a bye. It is small, and has
// to arrive whole within the read timeout.
func (c *conn) expect(want byte) ([]byte, error) {
	var late atomic.Bool
	timer := time.AfterFunc(c.readTimeout, func() {
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
		return nil, fmt.Errorf("nothing heard from the peer within %v, or not enough for the handshake", c.readTimeout)
	}
	if err == nil && kind == frameBye {
		return nil, parseBye(payload)
	}
	return payload, err
}

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
