package replicator

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// This file owns the warnings that Status shows.

// Warning is a message of level Warn or above that was logged.
type Warning struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"` // with its attributes
}

// lastWarnings is how many Status shows.
const lastWarnings = 32

// warnings are the last ones.
type warnings struct {
	mu   sync.Mutex // guards last
	last []Warning
}

func (w *warnings) add(at time.Time, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = append(w.last, Warning{at, text})
	w.last = w.last[max(0, len(w.last)-lastWarnings):]
}

func (w *warnings) all() []Warning {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Warning{}, w.last...)
}

// logger returns a logger that hands on what it is told, and keeps the warnings.
func (w *warnings) logger(to *slog.Logger) *slog.Logger {
	return slog.New(&warningHandler{Handler: to.Handler(), keep: w})
}

type warningHandler struct {
	slog.Handler
	keep  *warnings
	attrs string
}

func (h *warningHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn || h.Handler.Enabled(ctx, level)
}

func (h *warningHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		var b strings.Builder
		b.WriteString(r.Message + h.attrs)
		r.Attrs(func(a slog.Attr) bool {
			b.WriteString(attrText(a))
			return true
		})
		h.keep.add(r.Time, b.String())
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h *warningHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	text := h.attrs
	for _, a := range attrs {
		text += attrText(a)
	}
	return &warningHandler{h.Handler.WithAttrs(attrs), h.keep, text}
}

func (h *warningHandler) WithGroup(name string) slog.Handler {
	return &warningHandler{h.Handler.WithGroup(name), h.keep, h.attrs}
}

func attrText(a slog.Attr) string { return fmt.Sprintf(" %s=%q", a.Key, a.Value.String()) }
