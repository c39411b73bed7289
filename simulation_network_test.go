package replicator_test

import (
	"context"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

// unblocked gives all connections of a node room for what is written to them. In a
// bubble no time passes while somebody waits for a mutex, and a session holds one while
// it writes: over a link that is frozen or slow, whose buffer is full, time would stand
// still.
func unblocked(o *replicator.Options) {
	o.Dial = roomyDial(o.Dial)
	o.Listener = roomyListener{o.Listener}
}

func roomyDial(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		return newRoomyConn(c), nil
	}
}

// addresses know where addresses lead, and led when they were dialled.
type addresses struct {
	mu    sync.Mutex
	leads map[string]*node                 // second addresses
	dials map[dialled]int                  // how often
	tries map[dialled]map[*node]int        // dials under way, and to whom
	conns map[dialled]map[*roomyConn]*node // what may still be connected, and with whom
}

// dialled is a dialler's host name and the address that it dials.
type dialled struct{ from, addr string }

func newAddresses() *addresses {
	return &addresses{
		leads: map[string]*node{}, dials: map[dialled]int{},
		tries: map[dialled]map[*node]int{}, conns: map[dialled]map[*roomyConn]*node{},
	}
}

// lead lets a second address lead to a node.
func (s *simulation) lead(addr string, to *node) {
	s.addrs.mu.Lock()
	defer s.addrs.mu.Unlock()
	s.addrs.leads[addr] = to
	s.net.Redirect(addr, to.name)
}

// watch returns a dialler of a host that notes what it dials.
func (a *addresses) watch(from string, dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		by := dialled{from, addr}
		a.mu.Lock()
		to := a.leads[addr]
		if a.conns[by] == nil {
			a.tries[by], a.conns[by] = map[*node]int{}, map[*roomyConn]*node{}
		}
		a.tries[by][to]++
		a.mu.Unlock()
		c, err := dial(ctx, addr)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.tries[by][to]--
		if err != nil {
			return nil, err
		}
		a.dials[by]++
		a.conns[by][c.(*roomyConn)] = to
		return c, nil
	}
}

// connected returns where an address leads, unless a connection that was dialled
// there, or a dial that is under way, still leads elsewhere: then nil.
func (a *addresses) connected(by dialled) *node {
	a.mu.Lock()
	defer a.mu.Unlock()
	for to, dials := range a.tries[by] {
		if dials > 0 && to != a.leads[by.addr] {
			return nil
		}
	}
	for c, to := range a.conns[by] {
		if c.isClosed() {
			delete(a.conns[by], c)
		} else if to != a.leads[by.addr] {
			return nil
		}
	}
	return a.leads[by.addr]
}

// count returns how often each address has been dialled with success.
func (a *addresses) count() map[dialled]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.dials)
}

type roomyListener struct{ net.Listener }

func (l roomyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newRoomyConn(c), nil
}

// roomyConn is a connection whose writes do not wait. What was written before it is
// closed is sent, if it can be.
type roomyConn struct {
	net.Conn

	cond   *sync.Cond // guards what follows, and signals its changes
	queue  []byte
	err    error // of a write
	closed bool
}

func newRoomyConn(c net.Conn) *roomyConn {
	r := &roomyConn{Conn: c, cond: sync.NewCond(new(sync.Mutex))}
	go r.send()
	return r
}

func (c *roomyConn) send() {
	defer c.Conn.Close()
	for {
		c.cond.L.Lock()
		for len(c.queue) == 0 && !c.closed {
			c.cond.Wait()
		}
		next := c.queue
		c.queue = nil
		c.cond.L.Unlock()
		if len(next) == 0 {
			return
		}
		if _, err := c.Conn.Write(next); err != nil {
			c.cond.L.Lock()
			c.err = err
			c.cond.L.Unlock()
			return
		}
	}
}

func (c *roomyConn) Write(p []byte) (int, error) {
	c.cond.L.Lock()
	defer c.cond.L.Unlock()
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case c.err != nil:
		return 0, c.err
	}
	c.queue = append(c.queue, p...)
	c.cond.Signal()
	return len(p), nil
}

func (c *roomyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && c.isClosed() {
		err = net.ErrClosed
	}
	return n, err
}

func (c *roomyConn) isClosed() bool {
	c.cond.L.Lock()
	defer c.cond.L.Unlock()
	return c.closed
}

func (c *roomyConn) Close() error {
	c.cond.L.Lock()
	defer c.cond.L.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.cond.Signal()
	return c.Conn.SetReadDeadline(time.Unix(1, 0)) // whoever reads is told now
}

func (c *roomyConn) SetReadDeadline(t time.Time) error {
	c.cond.L.Lock()
	defer c.cond.L.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *roomyConn) SetWriteDeadline(time.Time) error { return nil }
func (c *roomyConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
