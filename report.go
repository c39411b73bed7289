package replicator

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// This file owns what the log says of peers, and how often.

// remindEvery is how often the log says that a peer is still away, or away again
// for the same cause.
const remindEvery = time.Hour

// reporter logs when a peer goes and when it is back. It says each thing once: a
// peer that comes and goes for the same cause is news once an hour.
type reporter struct {
	logger *slog.Logger // with the attribute peer

	mu       sync.Mutex           // guards what follows
	since    time.Time            // when the peer was lost; zero: it is here
	told     map[string]time.Time // when the log named a cause of a loss last
	open     bool                 // the log has said that the peer was lost, and not yet that it is back
	everHere bool
}

// maxCauses bounds what a reporter remembers.
const maxCauses = 16

// newReporter returns one for the peer that an attribute names.
func newReporter(logger *slog.Logger, key, name string) *reporter {
	return &reporter{logger: logger.With(key, name)}
}

// failed notes an attempt that led to no session.
func (r *reporter) failed(err error) { r.lost("replicator: no session with peer", err) }

// ended notes the end of a session.
func (r *reporter) ended(err error) {
	if isOrderly(err) {
		r.logger.Debug("replicator: session ended", "cause", err)
		return
	}
	r.lost("replicator: session ended", err)
}

func (r *reporter) lost(message string, err error) {
	now, cause := time.Now(), causeOf(err)
	r.mu.Lock()
	if r.since.IsZero() {
		r.since = now
	}
	away := now.Sub(r.since)
	told, known := r.told[cause]
	news := !known || now.Sub(told) >= remindEvery
	again := known && away >= remindEvery
	if news {
		r.open = true
		if r.told == nil || len(r.told) >= maxCauses {
			r.told = map[string]time.Time{}
		}
		r.told[cause] = now
	}
	r.mu.Unlock()
	switch {
	case news && again:
		r.logger.Warn("replicator: peer is still away", "for", away.Round(time.Second), "error", err)
	case news:
		r.logger.Warn(message, "error", err)
	}
}

// caughtUp notes that all that the peer had is merged here for the first time in
// a session: as many records, by its log or in full.
func (r *reporter) caughtUp(h hello, records int64, full bool) {
	r.mu.Lock()
	away, open := time.Duration(0), r.open
	if !r.since.IsZero() {
		away = time.Since(r.since)
	}
	first := !r.everHere
	r.since, r.open, r.everHere = time.Time{}, false, true
	r.mu.Unlock()
	attrs := []any{"id", h.id, "records", records, "full", full}
	if h.name != "" {
		attrs = append(attrs, "name", h.name)
	}
	switch {
	case first && away == 0:
		r.logger.Info("replicator: in sync with peer", attrs...)
	case open:
		r.logger.Info("replicator: peer is back and in sync", append(attrs, "away", away.Round(time.Millisecond))...)
	}
}

// isOrderly reports whether this side ended a session because it wanted to.
func isOrderly(err error) bool {
	for _, orderly := range []error{ErrClosed, errRemoved, errReplaced, errRenewed} {
		if errors.Is(err, orderly) {
			return true
		}
	}
	return false
}

// causeOf names what is at the bottom of an error, without what differs between
// two failures of one kind: ports, counts, times.
func causeOf(err error) string {
	var b strings.Builder
	for err != nil {
		switch e := err.(type) {
		case *PeerError:
			b.WriteString(e.Op + ": ")
		case *net.OpError:
			b.WriteString(e.Op + ": ")
		case *byeReceived:
			if e.Unwrap() == nil {
				return b.String() + e.Error()
			}
			b.WriteString("bye: ")
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return b.String() + "timeout"
		}
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			if e.Unwrap() == nil {
				return b.String() + err.Error()
			}
			err = e.Unwrap()
		case interface{ Unwrap() []error }:
			err = e.Unwrap()[0]
		default:
			return b.String() + err.Error()
		}
	}
	return b.String()
}

// refusals logs what dialled in and was not wanted, each cause and host once a
// minute.
type refusals struct {
	logger *slog.Logger

	mu   sync.Mutex // guards what follows
	last map[string]refusal
}

// refusal is what was logged of one cause and host, and what was not, since.
type refusal struct {
	at    time.Time
	since int
}

const (
	refusalEvery = time.Minute
	maxRefusals  = 64
)

// note takes what ended a connection with a stranger that dialled in.
func (r *refusals) note(addr net.Addr, err error) {
	var bye *byeReceived
	if errors.As(err, &bye) || errors.Is(err, errProbed) || errors.Is(err, errDuplicate) || isOrderly(err) ||
		!errors.Is(err, ErrRefused) && !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrCloned) {
		r.logger.Debug("replicator: inbound connection ended", "from", addr, "error", err)
		return
	}
	key, now := hostOf(addr)+" "+causeOf(err), time.Now()
	r.mu.Lock()
	last, known := r.last[key]
	if known && now.Sub(last.at) < refusalEvery {
		last.since++
		r.last[key] = last
		r.mu.Unlock()
		return
	}
	if r.last == nil {
		r.last = map[string]refusal{}
	}
	if !known && len(r.last) >= maxRefusals { // strangers must not fill memory, nor the log
		maps.DeleteFunc(r.last, func(_ string, old refusal) bool { return now.Sub(old.at) >= refusalEvery })
	}
	full := !known && len(r.last) >= maxRefusals
	if !full {
		r.last[key] = refusal{at: now}
	}
	r.mu.Unlock()
	if !full {
		r.logger.Warn("replicator: refused a connection", "from", addr, "error", err, "suppressed", last.since)
	}
}
