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
	l.cond.Broadcast()
}

// conn is one end of a connection.
type conn struct {
	*link
	local, remote address
	in            route // of the bytes it reads
	peer          *conn
	buffer        []byte // written by the peer but not read yet
	writing       bool   // a Write has its turn: others wait, so as not to mix
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
	case op == "write" && c.peer.closed && !c.net.frozen[c.in]:
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
		err := c.failure("read", c.readDeadline)
		switch arriving := !c.net.frozen[c.in]; {
		case err != nil || len(p) == 0:
			return 0, err
		case arriving && len(c.buffer) > 0:
			return c.deliver(p), nil
		case arriving && c.peer.closed:
			return 0, io.EOF
		}
		c.cond.Wait()
	}
}

// deliver reads into p some of what's in the buffer.
func (c *conn) deliver(p []byte) int {
	k := min(len(p), len(c.buffer))
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
	c.net.delivered[c.in] += int64(k)
	c.cond.Broadcast()
	return k
}

func (c *conn) Write(p []byte) (sent int, err error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for c.writing {
		if err := c.failure("write", c.writeDeadline); err != nil {
			return 0, err
		}
		c.cond.Wait()
	}
	c.writing = true
	defer func() {
		c.writing = false
		c.cond.Broadcast()
	}()
	for {
		if err := c.failure("write", c.writeDeadline); err != nil || sent == len(p) {
			return sent, err
		}
		if k := min(len(p)-sent, BufferSize-len(c.peer.buffer)); k > 0 {
			c.peer.buffer = append(c.peer.buffer, p[sent:sent+k]...)
			sent += k
			c.cond.Broadcast()
		} else {
			c.cond.Wait()
		}
	}
}

func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	err := c.failure("close", time.Time{})
	c.closed = true
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
		// This timer may outlive its deadline: then it wakes up in vain.
		time.AfterFunc(time.Until(t), func() {
			c.net.mu.Lock()
			defer c.net.mu.Unlock()
			c.cond.Broadcast()
		})
	}
	return c.failure("set", t)
}
