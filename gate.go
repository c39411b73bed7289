package replicator

import (
	"math"
	"sync"
	"sync/atomic"
)

// This file owns the count of calls that Close waits for.

// gate counts the calls that are inside, so that Close can wait for them. The
// count is negative once the gate is closed.
type gate struct {
	inside atomic.Int64
	empty  chan struct{}
	once   sync.Once
}

// enter reports whether the gate is open; if so, leave must follow.
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

// close lets nobody in any more and waits until those inside have left.
func (g *gate) close() {
	g.inside.Add(1) // so that the last to leave, perhaps this call, sees the gate closed
	g.inside.Add(math.MinInt64)
	g.leave()
	<-g.empty
}
