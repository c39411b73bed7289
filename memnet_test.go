package replicator_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// memNetwork is a network in memory, whose hosts can be partitioned, and whose
// connections can be frozen or cut after any number of bytes. Connections
// behave like TCP's, with the errors of package net.
//
// An address is the name of a host; what follows a ':' or '#' tells apart
// several addresses of it. One mutex guards the network, its listeners and its
// connections. All blocking is done by sync.Cond, thus durably in the synctest
// bubble which made the network.
type memNetwork struct {
	mu        sync.Mutex
	rng       *rand.Rand
	cut       func(from, to string) int
	listeners map[string]*memListener
	links     map[*memLink]bool // open connections
	dials     int               // numbers the dialers' addresses
	groups    map[string]string // by host: its side of the partition
	frozen    map[memRoute]bool // in both directions
	delivered map[memRoute]int64
}

// newMemNetwork makes a network without hosts. The seed drives how many of the
// available bytes a Read returns: as with TCP, often fewer than asked for.
func newMemNetwork(seed int64) *memNetwork {
	return &memNetwork{
		rng:       rand.New(rand.NewPCG(uint64(seed), 0)),
		listeners: make(map[string]*memListener),
		links:     make(map[*memLink]bool),
		groups:    make(map[string]string),
		frozen:    make(map[memRoute]bool),
		delivered: make(map[memRoute]int64),
	}
}

// Listen listens on addr, and panics if somebody else does.
func (n *memNetwork) Listen(addr string) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		panic("memNetwork: address in use: " + addr)
	}
	l := &memListener{net: n, addr: memAddr(addr), cond: sync.NewCond(&n.mu)}
	n.listeners[addr] = l
	return l
}

// Dial returns the dialer of host from. It never blocks.
func (n *memNetwork) Dial(from string) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		there, route, err := n.listeners[addr], memRoute{memHost(from), memHost(addr)}, ctx.Err()
		if err == nil && n.parted(route) {
			err = syscall.EHOSTUNREACH
		} else if err == nil && there == nil {
			err = syscall.ECONNREFUSED
		}
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: "mem", Source: memAddr(from), Addr: memAddr(addr), Err: err}
		}
		n.dials++
		local := memAddr(fmt.Sprintf("%s#%d", from, n.dials))
		return there.connect(local, route), nil
	}
}

// SetCut has hook called with the hosts of each new connection, to return after
// how many delivered bytes, of both directions together, it's cut; a negative
// number means never. The hook must not use the network.
func (n *memNetwork) SetCut(hook func(from, to string) int) {
	n.update(func() { n.cut = hook })
}

// Partition keeps hosts of different groups from talking: it cuts their
// connections and fails their dials. Hosts in none of the groups form another
// one together. It replaces an earlier partition.
func (n *memNetwork) Partition(groups ...[]string) {
	n.update(func() {
		clear(n.groups)
		for i, hosts := range groups {
			for _, host := range hosts {
				n.groups[host] = fmt.Sprintf("group %d", i)
			}
		}
	})
}

// Isolate takes host out of its group, away from all others.
func (n *memNetwork) Isolate(host string) {
	n.update(func() { n.groups[host] = "only " + host })
}

// Heal ends a partition. Connections it has cut remain so.
func (n *memNetwork) Heal() {
	n.update(func() { clear(n.groups) })
}

// Freeze lets nothing more pass between hosts a and b, without telling them:
// dials succeed, and so do writes until the buffer is full.
func (n *memNetwork) Freeze(a, b string) {
	n.update(func() { n.frozen[memRoute{a, b}], n.frozen[memRoute{b, a}] = true, true })
}

// Thaw ends a Freeze; what was written meanwhile is delivered.
func (n *memNetwork) Thaw(a, b string) {
	n.update(func() { n.frozen[memRoute{a, b}], n.frozen[memRoute{b, a}] = false, false })
}

// CloseAll closes all listeners and cuts all connections.
func (n *memNetwork) CloseAll() {
	n.update(func() {
		for _, l := range n.listeners {
			l.close()
		}
		for link := range n.links {
			link.reset()
		}
	})
}

// update changes the network, and lets its connections know.
func (n *memNetwork) update(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	for link := range n.links {
		if n.parted(link.route) {
			link.reset()
		}
		link.cond.Broadcast()
	}
}

func (n *memNetwork) parted(r memRoute) bool { return n.groups[r.from] != n.groups[r.to] }

// Bytes returns how many bytes host to has read from host from.
func (n *memNetwork) Bytes(from, to string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delivered[memRoute{from, to}]
}

// Connections returns how many connections are neither cut nor closed by both
// of their ends.
func (n *memNetwork) Connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.links)
}

type memAddr string

func (a memAddr) Network() string { return "mem" }
func (a memAddr) String() string  { return string(a) }

func memHost(addr string) string {
	if i := strings.IndexAny(addr, ":#"); i >= 0 {
		return addr[:i]
	}
	return addr
}

// memRoute is a pair of hosts.
type memRoute struct{ from, to string }

type memListener struct {
	net     *memNetwork
	addr    memAddr
	cond    *sync.Cond
	backlog []*memConn
	closed  bool
}

func (l *memListener) Addr() net.Addr { return l.addr }

// connect makes a connection, and returns the dialer's end.
func (l *memListener) connect(from memAddr, route memRoute) *memConn {
	link := &memLink{net: l.net, cond: sync.NewCond(&l.net.mu), route: route, budget: -1}
	l.net.links[link] = true
	if cut := l.net.cut; cut != nil {
		link.budget = cut(route.from, route.to)
	}
	if link.budget == 0 {
		link.reset()
	}
	dialer := &memConn{memLink: link, local: from, remote: l.addr, in: memRoute{route.to, route.from}}
	dialer.peer = &memConn{memLink: link, local: l.addr, remote: from, in: route, peer: dialer}
	l.backlog = append(l.backlog, dialer.peer)
	l.cond.Signal()
	return dialer
}

func (l *memListener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.backlog) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.addr, Err: net.ErrClosed}
	}
	conn := l.backlog[0]
	l.backlog = l.backlog[1:]
	return conn, nil
}

// Close keeps the accepted connections, and cuts those still waiting for it.
func (l *memListener) Close() error {
	l.net.update(l.close)
	return nil
}

func (l *memListener) close() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.net.listeners, string(l.addr))
	for _, conn := range l.backlog {
		conn.reset()
	}
	l.cond.Broadcast()
}

func TestMemNetworkListenerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNetwork(1)
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

func TestMemNetworkPartitionAndCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNetwork(1)
		a, b := memPair(t, n)
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
		a, b = memPair(t, n)
		_, err = a.Write([]byte("data"))
		require.NoError(t, err)
		got, err := io.ReadAll(b)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, "da", string(got))
		require.Equal(t, 0, n.Connections())
	})
}
