package statuspage

import (
	"fmt"
	"net/http"

	"github.com/level-replicator/replicator"
)

// This file owns readyz: whether replicas are ready for use.

// Readiness is what readyz answers with.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing,omitempty"` // what is missing, in words
}

func (h *handler) serveReadiness(w http.ResponseWriter) {
	r := h.readiness(h.report())
	code := http.StatusOK
	if !r.Ready {
		code = http.StatusServiceUnavailable
	}
	writeJSON(w, code, r)
}

// readiness judges all replicas.
func (h *handler) readiness(report Report) (r Readiness) {
	for _, s := range report.Replicas {
		for _, what := range missing(s, h.readyPeers) {
			if len(report.Replicas) > 1 {
				what = nameOf(s) + ": " + what
			}
			r.Missing = append(r.Missing, what)
		}
	}
	r.Ready = len(r.Missing) == 0
	return r
}

// missing says in words what a replica lacks for use.
func missing(s replicator.Status, need int) (what []string) {
	if s.Closed {
		return []string{"the replica is closed"}
	}
	if s.Failed != "" {
		what = append(what, "writes are refused: "+s.Failed)
	}
	configured, synced := 0, 0
	var waiting []string
	for _, p := range s.Peers {
		if !countsForReadiness(p) {
			continue
		}
		configured++
		if !p.LastInSync.IsZero() {
			synced++
			continue
		}
		line := fmt.Sprintf("no sync with %s since the opening: %s", p.Addr, p.State)
		if p.LastError != "" {
			line += ": " + p.LastError
		}
		waiting = append(waiting, line)
	}
	if need == majority && configured > 0 {
		need = configured/2 + 1
	}
	if synced < need {
		what = append(what, fmt.Sprintf("in sync with %d of %d configured peers since the opening; needed: %d", synced, configured, need))
		what = append(what, waiting...)
	}
	return what
}

// countsForReadiness reports whether a peer is one from which this replica has something to
// get: a configured one, counted once, that is not this replica and does not only read.
func countsForReadiness(p replicator.PeerStatus) bool {
	return p.Configured && p.SameAs == "" && p.State != replicator.StateSelf &&
		(p.Access == nil || *p.Access != replicator.ReadOnly)
}

// nameOf is how a replica is called in words.
func nameOf(s replicator.Status) string {
	if s.Name != "" {
		return s.Name
	}
	return s.ID.String()[:8]
}
