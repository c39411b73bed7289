package replicator

import (
	"context"
	"sync"
	"time"
)

// This file owns whose turn it is to scan a peer.

// turns lets one session at a time scan its peer: once that scan is over, the others
// have little left to send. A slow link must not hold up a fast one.
type turns struct {
	mu      sync.Mutex // guards what follows
	holders map[*session]bool
	freed   chan struct{} // closed and replaced when a turn is over
}

func newTurns() *turns {
	return &turns{holders: map[*session]bool{}, freed: make(chan struct{})}
}

// take waits until a session may scan. One that has the turn keeps it.
func (t *turns) take(s *session) error {
	for {
		t.mu.Lock()
		if t.holders[s] || len(t.holders) == 0 {
			t.holders[s] = true
			t.mu.Unlock()
			return nil
		}
		before := map[*session]int64{}
		for h := range t.holders {
			before[h] = h.conn.gained.Load()
		}
		freed := t.freed
		t.mu.Unlock()
		select {
		case <-freed:
		case <-time.After(turnTime):
			if t.join(s, before) {
				return nil
			}
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// join has a session go ahead alongside holders that all have received too little, and
// reports whether it does.
func (t *turns) join(s *session, before map[*session]int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for h := range t.holders {
		if had, known := before[h]; !known || h.conn.gained.Load()-had >= turnBytes {
			return false
		}
	}
	t.holders[s] = true
	return true
}

// giveBack ends a session's turn, if it has one.
func (t *turns) giveBack(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holders[s] {
		delete(t.holders, s)
		close(t.freed)
		t.freed = make(chan struct{})
	}
}
