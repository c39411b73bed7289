package statuspage

import (
	"regexp"
	"time"

	"github.com/level-replicator/replicator"
)

// This file owns status.json: what of the Status is shown.

// Report is what status.json holds.
type Report struct {
	At       time.Time           `json:"at"`
	Replicas []replicator.Status `json:"replicas"` // in the order given to Handler
}

func (h *handler) report() Report {
	r := Report{At: time.Now(), Replicas: []replicator.Status{}}
	for _, replica := range h.replicas {
		s := replica.Status()
		if !h.data {
			hideData(&s)
		}
		r.Replicas = append(r.Replicas, s)
	}
	return r
}

// hideData removes the keys and values from a Status of the caller's own.
func hideData(s *replicator.Status) {
	for i := range s.Conflicts.Last {
		c := &s.Conflicts.Last[i]
		c.Key, c.WonValue, c.LostValue = nil, nil, nil
	}
	s.Failed = hideKeys(s.Failed)
	s.Adoption.LastError = hideKeys(s.Adoption.LastError)
	for i := range s.Warnings {
		s.Warnings[i].Text = hideKeys(s.Warnings[i].Text)
	}
	for i := range s.Refused {
		s.Refused[i].Error = hideKeys(s.Refused[i].Error)
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		p.LastError = hideKeys(p.LastError)
		if p.Scan != nil {
			scan := *p.Scan
			scan.Key = nil
			p.Scan = &scan
		}
	}
}

// quotedKey is a key in a message. Errors quote keys, and warnings quote errors again.
var quotedKey = regexp.MustCompile(`\b[kK]ey:? \\*"`)

// hideKeys cuts a message off where it names a key.
func hideKeys(text string) string {
	if at := quotedKey.FindStringIndex(text); at != nil {
		return text[:at[0]] + "key (hidden)"
	}
	return text
}
