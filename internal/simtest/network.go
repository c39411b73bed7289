package simtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Network is a network in memory, whose hosts can be partitioned, and whose
// connections can be frozen or cut after any number of bytes. Connections
// behave like TCP's, with the errors of package net.
//
// An address is the name of a host; what follows a ':' or '#' tells apart several
// addresses of it. Others can be redirected there.
type Network struct {
	mu        sync.Mutex // guards the network, its listeners and its connections
	rng       *rand.Rand
	cut       func(from, to string) int
	listeners map[string]*listener
	links     map[*link]bool    // open connections
	names     map[string]string // by address that is dialled: the one that is meant
	dials     int               // numbers the dialers' addresses
	groups    map[string]string // by host: its side of the partition
	lanes     map[route]*lane
}

// NewNetwork makes a network without hosts. The seed drives how many of the
// available bytes a Read returns: as with TCP, often fewer than asked for.
func NewNetwork(seed int64) *Network {
	return &Network{
		rng:       rand.New(rand.NewPCG(uint64(seed), 0)),
		listeners: make(map[string]*listener),
		links:     make(map[*link]bool),
		names:     make(map[string]string),
		groups:    make(map[string]string),
		lanes:     make(map[route]*lane),
	}
}

// Listen listens on addr, and panics if somebody else does.
func (n *Network) Listen(addr string) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		panic("simtest: address in use: " + addr)
	}
	l := &listener{net: n, addr: address(addr), cond: sync.NewCond(&n.mu)}
	n.listeners[addr] = l
	return l
}

// Redirect lets later dials of addr reach the listener at to, and the host of that,
// as a change of a name server does. Connections stay as they are. It can be
// redirected again; Redirect(addr, addr) ends it.
func (n *Network) Redirect(addr, to string) {
	n.update(func() { n.names[addr] = to })
}

// Dial returns the dialer of host from. It takes a round trip, which is no time
// without SetDelay.
func (n *Network) Dial(from string) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		to, way, trip := n.resolve(from, addr)
		if trip > 0 {
			select {
			case <-time.After(trip):
			case <-ctx.Done():
			}
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		there, err := n.listeners[to], ctx.Err()
		if err == nil && n.parted(way) {
			err = syscall.EHOSTUNREACH
		} else if err == nil && there == nil {
			err = syscall.ECONNREFUSED
		}
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: "sim", Source: address(from), Addr: address(to), Err: err}
		}
		n.dials++
		local := address(fmt.Sprintf("%s#%d", from, n.dials))
		return there.connect(local, way), nil
	}
}

// resolve returns which address a host means by another one, and how far it is.
func (n *Network) resolve(from, addr string) (to string, way route, trip time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	to, redirected := n.names[addr]
	if !redirected {
		to = addr
	}
	way = route{hostOf(from), hostOf(to)}
	return to, way, n.lane(way).delay + n.lane(way.back()).delay
}

// SetCut has hook called with the hosts of each new connection, to return after
// how many delivered bytes, of both directions together, it's cut; a negative
// number means never. The hook must not use the network.
func (n *Network) SetCut(hook func(from, to string) int) {
	n.update(func() { n.cut = hook })
}

// Partition keeps hosts of different groups from talking: it cuts their
// connections and fails their dials. Hosts in none of the groups form another
// one together. It replaces an earlier partition.
func (n *Network) Partition(groups ...[]string) {
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
func (n *Network) Isolate(host string) {
	n.update(func() { n.groups[host] = "only " + host })
}

// CutOff is Isolate until restore is called, which puts host back into its group.
func (n *Network) CutOff(host string) (restore func()) {
	var group string
	var grouped bool
	n.update(func() {
		group, grouped = n.groups[host]
		n.groups[host] = "only " + host
	})
	return func() {
		n.update(func() {
			if grouped {
				n.groups[host] = group
			} else {
				delete(n.groups, host)
			}
		})
	}
}

// Heal ends a partition. Connections it has cut remain so.
func (n *Network) Heal() {
	n.update(func() { clear(n.groups) })
}

// Freeze lets nothing more pass between hosts a and b, without telling them: dials
// succeed, and so do writes until the buffer is full, as on a half-open connection
// or behind a router that has forgotten it.
func (n *Network) Freeze(a, b string) {
	n.between(a, b, func(l *lane) { l.frozen = true })
}

// Thaw ends a Freeze; what was written meanwhile is delivered.
func (n *Network) Thaw(a, b string) {
	n.between(a, b, func(l *lane) { l.frozen = false })
}

// SetSpeed limits how many bytes a second pass between hosts a and b, in each
// direction; 0 means without a limit. The connections of the two share it. What is
// written fills the buffer first, and arrives bit by bit.
func (n *Network) SetSpeed(a, b string, bytesPerSecond int) {
	n.between(a, b, func(l *lane) { l.speed = bytesPerSecond })
}

// SetDelay has all that hosts a and b send each other be under way for some time,
// in each direction. A connection passes on a buffer's worth in that time at most.
func (n *Network) SetDelay(a, b string, delay time.Duration) {
	n.between(a, b, func(l *lane) { l.delay = delay })
}

// between changes both directions between two hosts.
func (n *Network) between(a, b string, change func(*lane)) {
	n.update(func() {
		for _, way := range []route{{a, b}, {b, a}} {
			l := n.lane(way)
			change(l)
			l.reschedule()
		}
	})
}

// lane returns the lane of a route.
func (n *Network) lane(way route) *lane {
	if n.lanes[way] == nil {
		n.lanes[way] = new(lane)
	}
	return n.lanes[way]
}

// CloseAll closes all listeners and cuts all connections.
func (n *Network) CloseAll() {
	n.update(func() {
		for _, l := range n.listeners {
			l.close()
		}
		for l := range n.links {
			l.reset()
		}
	})
}

// update changes the network, and lets its connections know.
func (n *Network) update(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	for l := range n.links {
		if n.parted(l.route) {
			l.reset()
		}
		l.cond.Broadcast()
	}
}

func (n *Network) parted(r route) bool { return n.groups[r.from] != n.groups[r.to] }

// Bytes returns how many bytes host to has read from host from.
func (n *Network) Bytes(from, to string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lane(route{from, to}).read
}

// Connections returns how many connections are neither cut nor closed by both
// of their ends.
func (n *Network) Connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.links)
}

type address string

func (a address) Network() string { return "sim" }
func (a address) String() string  { return string(a) }

func hostOf(addr string) string {
	if i := strings.IndexAny(addr, ":#"); i >= 0 {
		return addr[:i]
	}
	return addr
}

// route is a pair of hosts.
type route struct{ from, to string }

func (r route) back() route { return route{r.to, r.from} }

type listener struct {
	net     *Network
	addr    address
	cond    *sync.Cond
	backlog []*conn
	closed  bool
}

func (l *listener) Addr() net.Addr { return l.addr }

// connect makes a connection, and returns the dialer's end.
func (l *listener) connect(from address, way route) *conn {
	both := &link{net: l.net, cond: sync.NewCond(&l.net.mu), route: way, budget: -1}
	l.net.links[both] = true
	if cut := l.net.cut; cut != nil {
		both.budget = cut(way.from, way.to)
	}
	if both.budget == 0 {
		both.reset()
	}
	dialer := &conn{link: both, local: from, remote: l.addr, in: l.net.lane(way.back())}
	dialer.peer = &conn{link: both, local: l.addr, remote: from, in: l.net.lane(way), peer: dialer}
	l.backlog = append(l.backlog, dialer.peer)
	l.cond.Signal()
	return dialer
}

func (l *listener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.backlog) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "sim", Addr: l.addr, Err: net.ErrClosed}
	}
	c := l.backlog[0]
	l.backlog = l.backlog[1:]
	return c, nil
}

// Close keeps the accepted connections, and cuts those still waiting for it.
func (l *listener) Close() error {
	l.net.update(l.close)
	return nil
}

func (l *listener) close() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.net.listeners, string(l.addr))
	for _, c := range l.backlog {
		c.reset()
	}
	l.cond.Broadcast()
}
