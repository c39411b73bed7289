package replicator

import (
	"context"
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

	closing context.Context // done when the gate is being closed
	cancel  context.CancelCauseFunc
}

func (g *gate) init() {
	g.empty = make(chan struct{})
	g.closing, g.cancel = context.WithCancelCause(context.Background())
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

// within returns a context for a call inside that may take long: it ends with ctx, or when
// the gate is being closed.
func (g *gate) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(g.closing, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// close closes the gate, and waits until all calls inside have left.
func (g *gate) close() {
	g.cancel(ErrClosed)
	g.inside.Add(1) // makes sure that the last call to leave, perhaps this one, sees the gate closed
	g.inside.Add(math.MinInt64)
	g.leave()
	<-g.empty
}
