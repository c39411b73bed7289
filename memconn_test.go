package replicator_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// memBuffer is how many bytes may be under way in one direction of a
// connection before its writer blocks.
const memBuffer = 64 << 10

// memLink is what both ends of a connection share.
type memLink struct {
	net    *memNetwork
	cond   *sync.Cond // signals any change of the connection
	route  memRoute
	budget int // bytes to deliver until it's cut; never if negative
	cut    bool
}

// reset cuts the connection; bytes under way are lost.
func (l *memLink) reset() {
	l.cut = true
	delete(l.net.links, l)
	l.cond.Broadcast()
}

// memConn is one end of a connection.
type memConn struct {
	*memLink
	local, remote memAddr
	in            memRoute // of the bytes it reads
	peer          *memConn
	buffer        []byte // written by the peer but not read yet
	writing       bool   // a Write has its turn: others wait, so as not to mix
	closed        bool

	readDeadline, writeDeadline time.Time
}

func (c *memConn) LocalAddr() net.Addr  { return c.local }
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

// failure returns why an operation can't be done, or nil.
func (c *memConn) failure(op string, deadline time.Time) error {
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
	return &net.OpError{Op: op, Net: "mem", Source: c.local, Addr: c.remote, Err: err}
}

func (c *memConn) Read(p []byte) (int, error) {
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
func (c *memConn) deliver(p []byte) int {
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

func (c *memConn) Write(p []byte) (sent int, err error) {
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
		if k := min(len(p)-sent, memBuffer-len(c.peer.buffer)); k > 0 {
			c.peer.buffer = append(c.peer.buffer, p[sent:sent+k]...)
			sent += k
			c.cond.Broadcast()
		} else {
			c.cond.Wait()
		}
	}
}

func (c *memConn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	err := c.failure("close", time.Time{})
	c.closed = true
	if c.peer.closed {
		delete(c.net.links, c.memLink)
	}
	c.cond.Broadcast()
	return err
}

func (c *memConn) SetReadDeadline(t time.Time) error  { return c.setDeadlines(t, &c.readDeadline) }
func (c *memConn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.writeDeadline) }
func (c *memConn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.readDeadline, &c.writeDeadline)
}

func (c *memConn) setDeadlines(t time.Time, deadlines ...*time.Time) error {
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

// memPair connects host a to host b, and returns the ends at a and at b.
func memPair(t *testing.T, n *memNetwork) (net.Conn, net.Conn) {
	l := n.Listen("b")
	defer l.Close()
	a, err := n.Dial("a")(t.Context(), "b")
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	return a, b
}

func TestMemNetworkTransfersAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNetwork(1)
		a, b := memPair(t, n)
		require.Equal(t, "a#1", a.LocalAddr().String())
		require.Equal(t, "a#1", b.RemoteAddr().String())
		require.Equal(t, "b", a.RemoteAddr().String())

		// More than the buffer holds, in both directions at once.
		data := bytes.Repeat([]byte("0123456789"), memBuffer/3)
		var wg sync.WaitGroup
		for _, conn := range []net.Conn{a, b} {
			wg.Go(func() {
				_, err := conn.Write(data)
				assert.NoError(t, err)
			})
			wg.Go(func() {
				got := make([]byte, len(data))
				_, err := io.ReadFull(conn, got)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(data, got))
			})
		}
		wg.Wait()
		require.EqualValues(t, len(data), n.Bytes("a", "b"))
		require.EqualValues(t, len(data), n.Bytes("b", "a"))

		// What's buffered can be read after the close.
		_, err := a.Write([]byte("bye"))
		require.NoError(t, err)
		require.NoError(t, a.Close())
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Equal(t, "bye", string(got))
		_, err = a.Read(got)
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = b.Write(got)
		require.ErrorIs(t, err, syscall.EPIPE)
		require.Equal(t, 1, n.Connections())
		require.NoError(t, b.Close())
		require.Equal(t, 0, n.Connections())
	})
}

func TestMemNetworkFreezeAndDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNetwork(1)
		a, b := memPair(t, n)
		n.Freeze("b", "a")
		start := time.Now()
		require.NoError(t, a.SetWriteDeadline(start.Add(time.Minute)))
		sent, err := a.Write(make([]byte, 2*memBuffer))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, memBuffer, sent)

		// The deadline of a call already blocked.
		time.AfterFunc(time.Minute, func() { b.SetReadDeadline(time.Now()) })
		_, err = b.Read(make([]byte, 1))
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout())
		require.Equal(t, 2*time.Minute, time.Since(start))

		// Even the end of the connection is only seen after the thaw.
		require.NoError(t, a.Close())
		require.NoError(t, b.SetDeadline(time.Time{}))
		_, err = b.Write([]byte("lost"))
		require.NoError(t, err)
		time.AfterFunc(time.Minute, func() { n.Thaw("a", "b") })
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Len(t, got, memBuffer)
		require.Equal(t, 3*time.Minute, time.Since(start))
	})
}
