package replicator

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// This file owns the log messages about peers, and their rate.

// remindEvery is the interval at which the log repeats that a peer is away for the same
// cause.
const remindEvery = time.Hour

// reporter logs when a peer is lost and when it is back. It does not repeat itself: if a
// peer comes and goes for the same cause, it logs that once an hour.
type reporter struct {
	logger *slog.Logger // with the attribute peer

	mu       sync.Mutex           // guards the fields below
	since    time.Time            // time of the loss; zero: the peer is here
	told     map[string]time.Time // cause of a loss → time of its last message
	open     bool                 // the loss was logged, but not yet the return
	everHere bool                 // the peer has been in sync
}

// maxCauses bounds the number of causes that a reporter remembers.
const maxCauses = 16

// newReporter returns a reporter whose messages name the peer by the given attribute.
func newReporter(logger *slog.Logger, key, name string) *reporter {
	return &reporter{logger: logger.With(key, name)}
}

// failed records a failed attempt and logs it if the error is new.
func (r *reporter) failed(err error) { r.lost("replicator: no session with peer", err) }

// ended records the end of a session and logs it if the cause is new.
func (r *reporter) ended(err error) {
	switch {
	case isOrderly(err), errors.Is(err, errForgotten): // here; at the peer, it comes as a bye
		r.logger.Debug("replicator: session ended", "cause", err)
	case errors.Is(err, errPeerClosed): // if it does not come back, failed attempts to dial it tell
		if news, _, _ := r.noteLoss(err); news {
			r.logger.Info("replicator: the peer was closed")
		}
	default:
		r.lost("replicator: session ended", err)
	}
}

// lost records that the peer is away and logs it if the cause is new.
func (r *reporter) lost(message string, err error) {
	switch news, again, away := r.noteLoss(err); {
	case news && again:
		r.logger.Warn("replicator: peer is still away", "for", away.Round(time.Second), "error", err)
	case news:
		r.logger.Warn(message, "error", err)
	}
}

// noteLoss records that the peer is away. It reports whether that is to be logged, whether
// it is so because an hour has passed since it was, and for how long the peer has been away.
func (r *reporter) noteLoss(err error) (news, again bool, away time.Duration) {
	now, cause := time.Now(), causeOf(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since.IsZero() {
		r.since = now
	}
	away = now.Sub(r.since)
	told, known := r.told[cause]
	news = !known || now.Sub(told) >= remindEvery
	if news {
		r.open = true
		if r.told == nil || len(r.told) >= maxCauses {
			r.told = map[string]time.Time{}
		}
		r.told[cause] = now
	}
	return news, known && away >= remindEvery, away
}

// caughtUp records that everything the peer had has been merged, for the first time in a
// session, and logs it if the peer is new or its loss was logged. records is the number
// of records received, and full reports whether the pull was a full one.
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

// isOrderly reports whether this side ended a session deliberately.
func isOrderly(err error) bool {
	for _, orderly := range []error{ErrClosed, errRemoved, errReplaced, errRenewed} {
		if errors.Is(err, orderly) {
			return true
		}
	}
	return false
}

// causeOf returns a text for the root cause of an error. It leaves out details that
// differ between failures of one kind, such as ports, counts and times.
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

// kindOf returns a text that all refusals for one cause have in common: that of the error,
// less numbers, what is quoted, and the words of others, which a stranger may choose.
func kindOf(err error) string {
	text := err.Error()
	if e, several := err.(interface{ Unwrap() []error }); several {
		for _, inner := range e.Unwrap()[1:] {
			text = strings.Replace(text, inner.Error(), "", 1)
		}
	}
	return details.ReplaceAllString(text, "")
}

var details = regexp.MustCompile(`"(\\.|[^"\\])*"|[0-9a-f]*[0-9][0-9a-f]*`)

// refusals logs refused inbound connections, at most one message for each cause and
// host in refusalEvery.
type refusals struct {
	logger *slog.Logger

	mu   sync.Mutex // guards the fields below
	last map[string]refusal
}

// refusal describes the refusals for one cause and host.
type refusal struct {
	at    time.Time // of the last message
	since int       // number of refusals since then

	host  string
	text  string // of the latest error
	count uint64
	last  time.Time
}

const (
	refusalEvery = time.Minute
	maxRefusals  = 64 // causes and hosts that are remembered
)

// note logs the error that ended an inbound connection.
func (r *refusals) note(addr net.Addr, err error) {
	var bye *byeReceived
	if errors.As(err, &bye) || errors.Is(err, errProbed) || errors.Is(err, errDuplicate) || isOrderly(err) ||
		!errors.Is(err, ErrRefused) && !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrCloned) {
		r.logger.Debug("replicator: inbound connection ended", "from", addr, "error", err)
		return
	}
	key, now := hostOf(addr)+" "+kindOf(err), time.Now()
	r.mu.Lock()
	last, known := r.last[key]
	last.host, last.text, last.count, last.last = hostOf(addr), err.Error(), last.count+1, now
	if known && now.Sub(last.at) < refusalEvery {
		last.since++
		r.last[key] = last
		r.mu.Unlock()
		return
	}
	if r.last == nil {
		r.last = map[string]refusal{}
	}
	if !known && len(r.last) >= maxRefusals { // strangers must fill neither memory nor the log
		maps.DeleteFunc(r.last, func(_ string, old refusal) bool { return now.Sub(old.at) >= refusalEvery })
	}
	full := !known && len(r.last) >= maxRefusals
	suppressed := last.since
	if !full {
		last.at, last.since = now, 0
		r.last[key] = last
	}
	r.mu.Unlock()
	if !full {
		r.logger.Warn("replicator: refused a connection", "from", addr, "error", err, "suppressed", suppressed)
	}
}

// list returns the refusals that are remembered, the latest first.
func (r *refusals) list() []refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Collect(maps.Values(r.last))
	slices.SortFunc(all, func(a, b refusal) int { return b.last.Compare(a.last) })
	return all
}
