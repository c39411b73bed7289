package replicator

import (
	"fmt"
	"net"
	"sync"
)

// This file owns the limits on inbound connections.

// entrance limits the inbound connections. A stranger who connects and sends nothing
// costs little, and there are few of them.
type entrance struct {
	maxHandshakes, maxPerAddr int

	mu         sync.Mutex // guards the fields below
	handshakes int
	from       map[string]int // number of connections by remote host
	turning    int            // number of connections that are being turned away
}

func newEntrance(maxHandshakes, maxPerAddr int) *entrance {
	return &entrance{maxHandshakes: maxHandshakes, maxPerAddr: maxPerAddr, from: map[string]int{}}
}

// hostOf returns the part of an address that all connections from one host share.
func hostOf(addr net.Addr) string {
	if host, _, err := net.SplitHostPort(addr.String()); err == nil {
		return host
	}
	return addr.String()
}

// enter counts a connection whose handshake begins, or returns the reason to refuse it.
func (e *entrance) enter(addr net.Addr) error {
	host := hostOf(addr)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.handshakes >= e.maxHandshakes:
		return fmt.Errorf("%w: %d handshakes are under way (Options.MaxHandshakes)", ErrRefused, e.handshakes)
	case e.from[host] >= e.maxPerAddr:
		return fmt.Errorf("%w: %d connections from this address are open (Options.MaxSessionsPerAddr)", ErrRefused, e.from[host])
	}
	e.handshakes++
	e.from[host]++
	return nil
}

// through counts a connection whose handshake is over.
func (e *entrance) through() {
	e.mu.Lock()
	e.handshakes--
	e.mu.Unlock()
}

// leave counts a connection that has ended.
func (e *entrance) leave(addr net.Addr) {
	host := hostOf(addr)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.from[host]--; e.from[host] <= 0 {
		delete(e.from, host)
	}
}

// maxTurning bounds the number of peers that are told at the same time why they are
// turned away.
const maxTurning = 16

// turnAway tells a peer why its connection is about to be closed, unless too many peers
// are being told.
func (e *entrance) turnAway(c net.Conn, cause error) {
	e.mu.Lock()
	told := e.turning < maxTurning
	if told {
		e.turning++
	}
	e.mu.Unlock()
	if told {
		sayBye(newConn(c, byePatience), cause)
		e.mu.Lock()
		e.turning--
		e.mu.Unlock()
	}
}
