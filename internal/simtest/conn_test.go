package simtest_test

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

	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pair connects host a to host b, and returns the ends at a and at b.
func pair(t *testing.T, n *simtest.Network) (net.Conn, net.Conn) {
	l := n.Listen("b")
	defer l.Close()
	a, err := n.Dial("a")(t.Context(), "b")
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	return a, b
}

func TestNetworkTransfersAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simtest.NewNetwork(1)
		a, b := pair(t, n)
		require.Equal(t, "a#1", a.LocalAddr().String())
		require.Equal(t, "a#1", b.RemoteAddr().String())
		require.Equal(t, "b", a.RemoteAddr().String())

		// More than the buffer holds, in both directions at once.
		data := bytes.Repeat([]byte("0123456789"), simtest.BufferSize/3)
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

func TestNetworkFreezeAndDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simtest.NewNetwork(1)
		a, b := pair(t, n)
		n.Freeze("b", "a")
		start := time.Now()
		require.NoError(t, a.SetWriteDeadline(start.Add(time.Minute)))
		sent, err := a.Write(make([]byte, 2*simtest.BufferSize))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, simtest.BufferSize, sent)

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
		require.Len(t, got, simtest.BufferSize)
		require.Equal(t, 3*time.Minute, time.Since(start))
	})
}
