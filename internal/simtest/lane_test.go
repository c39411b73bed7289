package simtest_test

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// reads returns how long it takes until some bytes are read.
func reads(t *testing.T, c net.Conn, bytes int) time.Duration {
	start := time.Now()
	_, err := io.ReadFull(c, make([]byte, bytes))
	assert.NoError(t, err)
	return time.Since(start)
}

// writes writes some bytes, and returns how long that takes.
func writes(t *testing.T, c net.Conn, bytes int) time.Duration {
	start := time.Now()
	_, err := c.Write(make([]byte, bytes))
	assert.NoError(t, err)
	return time.Since(start)
}

func TestNetworkSpeed(t *testing.T) {
	const speed = 16 << 10
	seconds := func(bytes int) time.Duration { return time.Duration(bytes) * time.Second / speed }
	for name, test := range map[string]func(t *testing.T, n *simtest.Network, a, b net.Conn){
		"bytes arrive bit by bit": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			require.Zero(t, writes(t, a, simtest.BufferSize), "the buffer takes it")
			for range simtest.BufferSize / speed {
				require.Equal(t, time.Second, reads(t, b, speed))
			}
			time.Sleep(time.Hour) // no time is saved up
			writes(t, a, speed)
			require.Equal(t, time.Second, reads(t, b, speed))
		},
		"a reader who comes late has lost nothing": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			writes(t, a, simtest.BufferSize)
			time.Sleep(time.Minute)
			require.Zero(t, reads(t, b, simtest.BufferSize))
		},
		"a long write takes as long as its bytes": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			const size = 10 * simtest.BufferSize
			var wg sync.WaitGroup
			wg.Go(func() { assert.Equal(t, seconds(size), reads(t, b, size)) })
			assert.Equal(t, seconds(size-simtest.BufferSize), writes(t, a, size))
			wg.Wait()
		},
		"the directions do not disturb each other": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			writes(t, a, speed)
			writes(t, b, speed)
			var wg sync.WaitGroup
			for _, c := range []net.Conn{a, b} {
				wg.Go(func() { assert.Equal(t, time.Second, reads(t, c, speed)) })
			}
			wg.Wait()
		},
		"connections share it": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			a2, b2 := pair(t, n)
			writes(t, a, speed)
			writes(t, a2, speed)
			require.Equal(t, 2*time.Second, reads(t, b2, speed))
			require.Zero(t, reads(t, b, speed))
		},
		"other routes have their own": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			l := n.Listen("c")
			a2, err := n.Dial("a")(t.Context(), "c")
			require.NoError(t, err)
			c, err := l.Accept()
			require.NoError(t, err)
			writes(t, a, simtest.BufferSize)
			writes(t, a2, simtest.BufferSize)
			require.Zero(t, reads(t, c, simtest.BufferSize))
		},
		"what was cut does not hold up others": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			n.SetCut(func(_, _ string) int { return speed })
			a2, b2 := pair(t, n)
			n.SetCut(nil)
			writes(t, a2, simtest.BufferSize)
			writes(t, a, speed)
			require.Equal(t, time.Second, reads(t, b2, speed))
			require.Equal(t, time.Second, reads(t, b, speed))
		},
		"it can change under way": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			writes(t, a, 3*speed)
			require.Equal(t, time.Second, reads(t, b, speed))
			n.SetSpeed("a", "b", speed/4)
			require.Equal(t, 4*time.Second, reads(t, b, speed))
			time.AfterFunc(time.Second, func() { n.SetSpeed("b", "a", 0) })
			require.Equal(t, time.Second, reads(t, b, speed))
		},
		"the end comes last": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			writes(t, a, speed)
			require.NoError(t, a.Close())
			start := time.Now()
			got, err := io.ReadAll(b)
			require.NoError(t, err)
			require.Len(t, got, speed)
			require.Equal(t, time.Second, time.Since(start))
		},
		"time goes on in a freeze": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			n.Freeze("a", "b")
			writes(t, a, 3*speed)
			time.AfterFunc(2*time.Second, func() { n.Thaw("a", "b") })
			require.Equal(t, 2*time.Second, reads(t, b, 2*speed))
			require.Equal(t, time.Second, reads(t, b, speed))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := simtest.NewNetwork(1)
				defer n.CloseAll()
				n.SetSpeed("a", "b", speed)
				a, b := pair(t, n)
				test(t, n, a, b)
			})
		})
	}
}

// TestNetworkWritesPartly has a write end at its deadline with what the buffer took
// and the other end has read since, each time the same.
func TestNetworkWritesPartly(t *testing.T) {
	for range 5 {
		synctest.Test(t, func(t *testing.T) {
			n := simtest.NewNetwork(1)
			defer n.CloseAll()
			n.SetSpeed("a", "b", 8<<10)
			a, b := pair(t, n)
			go io.Copy(io.Discard, b)
			start := time.Now()
			require.NoError(t, a.SetWriteDeadline(start.Add(10*time.Second)))
			sent, err := a.Write(make([]byte, 1<<20))
			var timeout net.Error
			require.ErrorAs(t, err, &timeout)
			require.True(t, timeout.Timeout())
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.Equal(t, 10*time.Second, time.Since(start))
			// What arrives at the moment of the deadline is too late.
			require.Equal(t, simtest.BufferSize+79<<10, sent)

			// The deadline extended, the write goes on.
			require.NoError(t, a.SetWriteDeadline(start.Add(time.Hour)))
			sent, err = a.Write(make([]byte, 8<<10))
			require.NoError(t, err)
			require.Equal(t, 8<<10, sent)
		})
	}
}

func TestNetworkDelay(t *testing.T) {
	const delay = 50 * time.Millisecond
	for name, test := range map[string]func(t *testing.T, n *simtest.Network, a, b net.Conn){
		"bytes are under way": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			require.Zero(t, writes(t, a, 10))
			require.Equal(t, delay, reads(t, b, 10))
			writes(t, b, 10)
			require.Equal(t, delay, reads(t, a, 10))
		},
		"a reader is woken": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			time.AfterFunc(time.Second, func() { a.Write(make([]byte, 10)) })
			require.Equal(t, time.Second+delay, reads(t, b, 10))
		},
		"many are at once": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			for range 10 {
				writes(t, a, 10)
				time.Sleep(time.Millisecond)
			}
			require.Equal(t, delay-time.Millisecond, reads(t, b, 100))
		},
		"a buffer in its time": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			go io.Copy(io.Discard, b)
			require.Equal(t, 3*delay, writes(t, a, 4*simtest.BufferSize))
		},
		"it adds to the speed": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			n.SetSpeed("a", "b", 1<<10)
			writes(t, a, 2<<10)
			require.Equal(t, 2*time.Second+delay, reads(t, b, 2<<10))
		},
		"the end has one, too": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			start := time.Now()
			require.NoError(t, a.Close())
			writes(t, b, 10)
			_, err := b.Read(make([]byte, 1))
			require.Equal(t, io.EOF, err)
			require.Equal(t, delay, time.Since(start))
			_, err = b.Write(make([]byte, 1))
			require.ErrorIs(t, err, syscall.EPIPE)
		},
		"a writer learns of the end": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			start := time.Now()
			time.AfterFunc(time.Second, func() { a.Close() })
			sent, err := b.Write(make([]byte, 2*simtest.BufferSize))
			require.ErrorIs(t, err, syscall.EPIPE)
			require.Equal(t, simtest.BufferSize, sent)
			require.Equal(t, time.Second+delay, time.Since(start))
		},
		"none is overtaken": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			a.Write([]byte("first "))
			n.SetDelay("a", "b", delay/10)
			a.Write([]byte("second"))
			start := time.Now()
			got := make([]byte, 12)
			_, err := io.ReadFull(b, got)
			require.NoError(t, err)
			require.Equal(t, "first second", string(got))
			require.Equal(t, delay/10, time.Since(start))
		},
		"a longer one is for what is written later": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			writes(t, a, 10)
			n.SetDelay("a", "b", time.Hour)
			writes(t, a, 10)
			require.Equal(t, delay, reads(t, b, 10))
			require.Equal(t, time.Hour-delay, reads(t, b, 10))
		},
		"a dial takes a round trip": func(t *testing.T, n *simtest.Network, a, b net.Conn) {
			n.Listen("b")
			start := time.Now()
			_, err := n.Dial("a")(t.Context(), "b")
			require.NoError(t, err)
			require.Equal(t, 2*delay, time.Since(start))
			ctx, cancel := context.WithTimeout(t.Context(), delay)
			defer cancel()
			_, err = n.Dial("a")(ctx, "b")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 3*delay, time.Since(start))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := simtest.NewNetwork(1)
				defer n.CloseAll()
				a, b := pair(t, n)
				n.SetDelay("a", "b", delay)
				test(t, n, a, b)
			})
		})
	}
}
