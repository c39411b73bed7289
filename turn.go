package replicator

// This file owns a mutex for what may take its time.

// turn is a mutex that is held while a frame is on its way, which can take minutes
// over a slow link, or while a commit is. In simulated time, nothing happens while
// anybody waits for a sync.Mutex.
type turn chan struct{}

func (t turn) take()     { t <- struct{}{} }
func (t turn) giveBack() { <-t }
