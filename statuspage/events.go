package statuspage

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// This file owns the stream of events, and the goroutine that feeds it.

const (
	frameEvery    = 500 * time.Millisecond
	maxStreams    = 64
	writePatience = 10 * time.Second
)

// hub makes frames while there are streams, one for all of them.
type hub struct {
	view  func() []byte         // makes a frame
	count func(context.Context) // refreshes what takes longer, until the context is done

	mu      sync.Mutex // guards the fields below
	streams int
	stop    context.CancelFunc // ends the goroutines
	latest  []byte
	fresh   chan struct{} // closed when there is a newer frame than latest
}

// join counts a stream in, and starts the goroutines for the first. It reports whether
// there is room.
func (b *hub) join() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.streams >= maxStreams {
		return false
	}
	if b.streams++; b.streams == 1 {
		var ctx context.Context
		ctx, b.stop = context.WithCancel(context.Background())
		b.latest, b.fresh = b.view(), make(chan struct{})
		go b.feed(ctx)
		go b.count(ctx)
	}
	return true
}

func (b *hub) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.streams--; b.streams == 0 {
		b.stop()
	}
}

func (b *hub) feed(ctx context.Context) {
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		frame := b.view()
		b.mu.Lock()
		if ctx.Err() == nil { // otherwise another goroutine may feed by now
			b.latest = frame
			close(b.fresh)
			b.fresh = make(chan struct{})
		}
		b.mu.Unlock()
	}
}

func (b *hub) current() ([]byte, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.latest, b.fresh
}

// serve is one stream. A reader that is slow misses frames, and each frame is whole.
func (b *hub) serve(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet {
		return
	}
	if !b.join() {
		http.Error(w, fmt.Sprintf("%d streams are open, no more are served", maxStreams), http.StatusServiceUnavailable)
		return
	}
	defer b.leave()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // proxies that buffer would hold events back
	control := http.NewResponseController(w)
	before := "retry: 1000\n"
	for {
		frame, fresh := b.current()
		_ = control.SetWriteDeadline(time.Now().Add(writePatience)) // not all writers have deadlines
		if _, err := fmt.Fprintf(w, "%sdata: %s\n\n", before, frame); err != nil {
			return
		}
		if control.Flush() != nil {
			return
		}
		before = ""
		select {
		case <-req.Context().Done():
			return
		case <-fresh:
		}
	}
}
