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

func TestNetworkRedirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simtest.NewNetwork(1)
		defer n.CloseAll()
		old, young := n.Listen("old:1"), n.Listen("young:1")
		dial := n.Dial("a")
		reach := func(addr string, l net.Listener) net.Conn {
			a, err := dial(t.Context(), addr)
			require.NoError(t, err)
			require.Equal(t, l.Addr(), a.RemoteAddr())
			b, err := l.Accept()
			require.NoError(t, err)
			go io.Copy(b, b) // it answers
			return a
		}
		_, err := dial(t.Context(), "name:1")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		n.Redirect("name:1", "old:1")
		first := reach("name:1", old)
		n.Redirect("name:1", "young:1")
		second := reach("name:1", young)
		reach("old:1", old)

		// Existing connections stay, and which host one leads to counts.
		n.Isolate("young")
		_, err = first.Write([]byte("still there"))
		require.NoError(t, err)
		_, err = io.ReadFull(first, make([]byte, len("still there")))
		require.NoError(t, err)
		_, err = second.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		_, err = dial(t.Context(), "name:1")
		require.ErrorIs(t, err, syscall.EHOSTUNREACH)
		n.Heal()

		// Where there is a listener, too, the redirection counts; it can end.
		n.Redirect("old:1", "young:1")
		reach("old:1", young)
		n.Redirect("old:1", "old:1")
		reach("old:1", old)
		n.Redirect("name:1", "nobody:1")
		_, err = dial(t.Context(), "name:1")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})
}
