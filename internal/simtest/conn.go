package simtest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// BufferSize is how many bytes may be under way in one direction of a
// connection before its writer blocks.
const BufferSize = 64 << 10

// link is what both ends of a connection share.
type link struct {
	net    *Network
	cond   *sync.Cond // signals any change of the connection
	route  route
	budget int // bytes to deliver until it's cut; never if negative
	cut    bool
}

// reset cuts the connection; bytes under way are lost.
func (l *link) reset() {
	l.cut = true
	delete(l.net.links, l)
	l.net.lane(l.route).forget(l)
	l.net.lane(l.route.back()).forget(l)
	l.cond.Broadcast()
}

// conn is one end of a connection.
type conn struct {
	*link
	local, remote address
	in            *lane // of the bytes it reads
	peer          *conn
	buffer        []byte     // written by the peer but not read yet
	arrived       int        // of it, the first ones
	coming        []*segment // of it, the others, and the peer's end
	over          bool       // the peer's end has arrived
	writing       bool       // a Write has its turn: others wait, so as not to mix
	closed        bool

	readDeadline, writeDeadline time.Time
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// failure returns why an operation can't be done, or nil.
func (c *conn) failure(op string, deadline time.Time) error {
	var err error
	switch {
	case c.closed:
		err = net.ErrClosed
	case op == "set" || op == "close":
		// Unlike reads and writes, they need but this end.
	case c.cut:
		err = syscall.ECONNRESET
	case !deadline.IsZero() && !time.Now().Before(deadline):
		err = os.ErrDeadlineExceeded
	case op == "write" && c.over && !c.in.frozen:
		err = syscall.EPIPE
	}
	if err == nil {
		return nil
	}
	return &net.OpError{Op: op, Net: "sim", Source: c.local, Addr: c.remote, Err: err}
}

func (c *conn) Read(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		c.collect()
		err := c.failure("read", c.readDeadline)
		switch {
		case err != nil || len(p) == 0:
			return 0, err
		case c.arrived > 0 && !c.in.frozen:
			return c.deliver(p), nil
		case c.over && !c.in.frozen:
			return 0, io.EOF
		}
		c.wait()
	}
}

// collect takes note of what has arrived.
func (c *conn) collect() {
	for len(c.coming) > 0 && c.coming[0].arrived() {
		c.arrived += c.coming[0].size
		c.over = c.coming[0].size == 0
		c.coming = c.coming[1:]
	}
}

// wait waits for a change of the connection, or until more arrives than was
// collected.
func (c *conn) wait() {
	if len(c.coming) > 0 {
		defer c.wakeAt(c.coming[0].arrives).Stop()
	}
	c.cond.Wait()
}

// wakeAt wakes whoever waits, at some time.
func (c *conn) wakeAt(t time.Time) *time.Timer {
	return time.AfterFunc(time.Until(t), func() {
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		c.cond.Broadcast()
	})
}

// deliver reads into p some of what has arrived.
func (c *conn) deliver(p []byte) int {
	k := min(len(p), c.arrived)
	if c.net.rng.IntN(4) == 0 {
		k = 1 + c.net.rng.IntN(k)
	}
	if c.budget > 0 {
		k = min(k, c.budget)
		if c.budget -= k; c.budget == 0 {
			c.reset()
		}
	}
	copy(p, c.buffer[:k])
	c.buffer = c.buffer[k:]
	c.arrived -= k
	c.in.read += int64(k)
	c.cond.Broadcast()
	return k
}

func (c *conn) Write(p []byte) (sent int, err error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for c.writing {
		c.collect()
		if err := c.failure("write", c.writeDeadline); err != nil {
			return 0, err
		}
		c.wait()
	}
	c.writing = true
	defer func() {
		c.writing = false
		c.cond.Broadcast()
	}()
	for {
		c.collect()
		if err := c.failure("write", c.writeDeadline); err != nil || sent == len(p) {
			return sent, err
		}
		if k := min(len(p)-sent, BufferSize-len(c.peer.buffer)); k > 0 {
			c.peer.receive(p[sent : sent+k])
			sent += k
		} else {
			c.wait()
		}
	}
}

// receive puts what the peer writes into the buffer, where it has yet to arrive.
func (c *conn) receive(p []byte) {
	c.buffer = append(c.buffer, p...)
	for rest := len(p); rest > 0; {
		size := rest
		if c.in.speed > 0 {
			size = min(rest, maxSegment)
		}
		c.coming = append(c.coming, c.in.send(c.link, size))
		rest -= size
	}
	c.cond.Broadcast()
}

func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	err := c.failure("close", time.Time{})
	if !c.closed {
		c.closed = true
		c.peer.coming = append(c.peer.coming, c.peer.in.send(c.link, 0))
	}
	if c.peer.closed {
		delete(c.net.links, c.link)
	}
	c.cond.Broadcast()
	return err
}

func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadlines(t, &c.readDeadline) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.writeDeadline) }
func (c *conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.readDeadline, &c.writeDeadline)
}

func (c *conn) setDeadlines(t time.Time, deadlines ...*time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for _, d := range deadlines {
		*d = t
	}
	c.cond.Broadcast()
	if !t.IsZero() {
		c.wakeAt(t) // in vain, if the deadline is moved before
	}
	return c.failure("set", t)
}
