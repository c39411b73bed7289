package simtest_test

import (
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
)

func TestNetworkListenerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simtest.NewNetwork(1)
		l := n.Listen("b:1")
		time.AfterFunc(time.Second, func() { l.Close() })
		_, err := l.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = n.Dial("a")(t.Context(), "b:1")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)

		n.Listen("b:1")
		unaccepted, err := n.Dial("a")(t.Context(), "b:1")
		require.NoError(t, err)
		n.CloseAll()
		_, err = unaccepted.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestNetworkPartitionAndCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simtest.NewNetwork(1)
		a, b := pair(t, n)
		time.AfterFunc(time.Second, func() { n.Partition([]string{"a", "c"}) })
		_, err := b.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		_, err = a.Write(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)

		dial := n.Dial("a")
		n.Listen("b")
		n.Listen("c")
		_, err = dial(t.Context(), "b")
		require.ErrorIs(t, err, syscall.EHOSTUNREACH)
		_, err = dial(t.Context(), "c")
		require.NoError(t, err)
		require.Equal(t, 1, n.Connections())
		n.Isolate("c")
		require.Equal(t, 0, n.Connections())
		n.Heal()
		_, err = dial(t.Context(), "b")
		require.NoError(t, err)
		n.CloseAll()

		n.SetCut(func(from, to string) int { return len(from + to) })
		a, b = pair(t, n)
		_, err = a.Write([]byte("data"))
		require.NoError(t, err)
		got, err := io.ReadAll(b)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, "da", string(got))
		require.Equal(t, 0, n.Connections())
	})
}
