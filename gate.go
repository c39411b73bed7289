package replicator

import (
	"math"
	"sync"
	"sync/atomic"
)

// This file owns the count of the calls that Close waits for.

// gate counts the calls in progress, so that Close can wait for them. The count is
// negative once the gate is closed.
type gate struct {
	inside atomic.Int64
	empty  chan struct{}
	once   sync.Once
}

// enter reports whether the gate is open. If so, the caller must call leave.
func (g *gate) enter() bool {
	if g.inside.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.inside.Add(-1) == math.MinInt64 {
		g.once.Do(func() { close(g.empty) })
	}
}

func (g *gate) isClosed() bool { return g.inside.Load() < 0 }

// close closes the gate, and waits until all calls inside have left.
func (g *gate) close() {
	g.inside.Add(1) // makes sure that the last call to leave, perhaps this one, sees the gate closed
	g.inside.Add(math.MinInt64)
	g.leave()
	<-g.empty
}
