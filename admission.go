package replicator

import (
	"fmt"
	"net"
	"sync"
)

// This file owns how many connections come in.

// entrance bounds how many connections from elsewhere are open: a stranger who
// connects and says nothing costs little, and there are few of them.
type entrance struct {
	maxHandshakes, maxPerAddr int

	mu         sync.Mutex // guards what follows
	handshakes int
	from       map[string]int // connections, by the host that they come from
	turning    int            // connections that are being turned away
}

func newEntrance(maxHandshakes, maxPerAddr int) *entrance {
	return &entrance{maxHandshakes: maxHandshakes, maxPerAddr: maxPerAddr, from: map[string]int{}}
}

// hostOf is the part of an address that all connections from one host share.
func hostOf(addr net.Addr) string {
	if host, _, err := net.SplitHostPort(addr.String()); err == nil {
		return host
	}
	return addr.String()
}

// enter counts a connection whose handshake begins, or says why it may not.
func (d *entrance) enter(addr net.Addr) error {
	host := hostOf(addr)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.handshakes >= d.maxHandshakes:
		return fmt.Errorf("%w: %d handshakes are under way (Options.MaxHandshakes)", ErrRefused, d.handshakes)
	case d.from[host] >= d.maxPerAddr:
		return fmt.Errorf("%w: %d connections from this address are open (Options.MaxSessionsPerAddr)", ErrRefused, d.from[host])
	}
	d.handshakes++
	d.from[host]++
	return nil
}

// through counts a connection whose handshake is over.
func (d *entrance) through() {
	d.mu.Lock()
	d.handshakes--
	d.mu.Unlock()
}

// leave counts a connection that has ended.
func (d *entrance) leave(addr net.Addr) {
	host := hostOf(addr)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.from[host]--; d.from[host] <= 0 {
		delete(d.from, host)
	}
}

// maxTurning is how many peers are told at a time why they are turned away.
const maxTurning = 16

// turnAway says why a connection is going to be closed, if there is time for it.
func (d *entrance) turnAway(c net.Conn, cause error) {
	d.mu.Lock()
	told := d.turning < maxTurning
	if told {
		d.turning++
	}
	d.mu.Unlock()
	if told {
		sayBye(newConn(c, byePatience), cause)
		d.mu.Lock()
		d.turning--
		d.mu.Unlock()
	}
}
