package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// This file owns the line that shows, at a terminal, that work goes on.

const (
	progressAfter = time.Second            // work that is done by then shows no progress
	progressEvery = 200 * time.Millisecond // how often the line is drawn
	barWidth      = 30
)

// progress is a line on a terminal. It is safe for concurrent use.
type progress struct {
	to   io.Writer // nil: nobody looks
	what string
	now  func() time.Time

	mu    sync.Mutex // guards the fields below
	began time.Time
	drawn time.Time
	width int // of the line that is there
	over  bool
}

// progress begins a piece of work. The caller ends it with done.
func (c *call) progress(what string) *progress {
	p := &progress{what: what, now: c.now, began: c.now()}
	if c.errTTY {
		p.to = c.err
	}
	return p
}

// at shows how far the work is. total is 0 if it is not known.
func (p *progress) at(done, total int64) {
	if p.to == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	took := now.Sub(p.began)
	if p.over || took < progressAfter || now.Sub(p.drawn) < progressEvery {
		return
	}
	p.drawn = now
	p.draw(line(p.what, done, total, took))
}

// line is what is shown.
func line(what string, done, total int64, took time.Duration) string {
	switch {
	case total > 0:
		done = min(done, total)
		full := int(barWidth * done / total)
		text := fmt.Sprintf("%s [%s%s] %d %%, %s", what, strings.Repeat("#", full), strings.Repeat("-", barWidth-full), 100*done/total, span(took))
		if done > 0 && done < total {
			text += ", about " + span(time.Duration(float64(took)*float64(total-done)/float64(done))) + " left"
		}
		return text
	case done > 0:
		return fmt.Sprintf("%s: %s, %s", what, number(done), span(took))
	}
	return fmt.Sprintf("%s: %s", what, span(took))
}

func (p *progress) draw(text string) {
	pad := max(0, p.width-len(text))
	fmt.Fprintf(p.to, "\r%s%s", text, strings.Repeat(" ", pad))
	p.width = len(text)
}

// done removes the line.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over = true; p.width > 0 {
		fmt.Fprintf(p.to, "\r%s\r", strings.Repeat(" ", p.width))
		p.width = 0
	}
}

// tick shows the time that work has taken, of which nothing else is known, until done.
func (p *progress) tick() {
	if p.to == nil {
		return
	}
	go func() {
		ticker := time.NewTicker(progressEvery)
		defer ticker.Stop()
		for range ticker.C {
			p.mu.Lock()
			over := p.over
			p.mu.Unlock()
			if over {
				return
			}
			p.at(0, 0)
		}
	}()
}
