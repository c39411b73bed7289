package replicator

import (
	"context"
	"time"
)

// This file owns a mutex for what may take its time, and pauses.

// turn is a mutex that is held while a frame is on its way, which can take minutes
// over a slow link, or while a commit is. In simulated time, nothing happens while
// anybody waits for a sync.Mutex.
type turn chan struct{}

func (t turn) take()     { t <- struct{}{} }
func (t turn) giveBack() { <-t }

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
