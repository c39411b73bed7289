package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// This file owns the check for monitoring.

var checkCommand = &command{
	name: "check", args: "URL", count: 1,
	summary: "check running replicas, for monitoring",
	help: `Prints one line, and ends with a code for monitoring, as Nagios and its kin read it: 0 all is
well; 1 a warning: a peer has not been reached, or changes of it are not merged, for longer
than -max-lag, or nothing is exchanged with it because one side is stale, or it can't read all of
its database, or old keys can't be adopted; 2 critical: a replica is closed or refuses
writes, or the page does not answer.

  replicator check -max-lag 10s http://127.0.0.1:8080/replica/
  replicator check 127.0.0.1:8080 || mail -s "replication" ops@example.com </dev/null
`,
	setup: func(c *call) func(*call) error {
		timeout := timeoutFlag(c)
		most := positiveFlag(c, "max-lag", 10*time.Second, "warn of peers that are behind, or away, for longer than this `time`")
		return func(c *call) error { return check(c, *most, *timeout) }
	},
}

// verdict is what check prints with -json.
type verdict struct {
	State    string   `json:"state"`           // "OK", "WARNING" or "CRITICAL"
	Problems []string `json:"problems"`        // in words; texts may change
	Peers    int      `json:"peers"`           // that were judged
	Lag      *float64 `json:"lag"`             // the greatest, in seconds; null: none is known
	Error    string   `json:"error,omitempty"` // why the page could not be asked
}

const (
	stateOK       = "OK"
	stateWarning  = "WARNING"
	stateCritical = "CRITICAL"
)

func check(c *call, most, timeout time.Duration) error {
	p, err := newPage(c.args[0])
	if err != nil {
		return err
	}
	v := verdict{State: stateCritical, Problems: []string{}}
	r, err := p.report(c, timeout)
	if err != nil {
		v.Error = err.Error()
	} else {
		v = judge(&r, most)
	}
	if err := c.print(v, func(w io.Writer) { fmt.Fprintln(w, v.line(most)) }); err != nil {
		return err
	}
	switch v.State {
	case stateOK:
		return nil
	case stateWarning:
		return errFound
	}
	return errCritical
}

// line is one line, with the figures that monitors plot behind the bar.
func (v *verdict) line(most time.Duration) string {
	text := v.State + ": "
	switch {
	case v.Error != "":
		text += v.Error
	case len(v.Problems) > 0:
		text += strings.Join(v.Problems, "; ")
	case v.Lag == nil:
		text += plural(v.Peers, "peer", "peers")
	default:
		text += fmt.Sprintf("%s, greatest lag %s", plural(v.Peers, "peer", "peers"), span(time.Duration(*v.Lag*float64(time.Second))))
	}
	text = strings.ReplaceAll(text, "\n", " ")
	if v.Lag != nil {
		text = fmt.Sprintf("%s | lag=%gs;%g", strings.ReplaceAll(text, "|", "/"), *v.Lag, most.Seconds())
	}
	return text
}

// judge looks for what somebody has to be told.
func judge(r *statuspage.Report, most time.Duration) verdict {
	v := verdict{State: stateOK, Problems: []string{}}
	critical := false
	for i := range r.Replicas {
		s := &r.Replicas[i]
		bad := func(format string, args ...any) {
			v.Problems = append(v.Problems, nameOf(s)+": "+fmt.Sprintf(format, args...))
		}
		if s.Closed {
			critical = true
			bad("the replica is closed")
			continue
		}
		if s.Failed != "" {
			critical = true
			bad("writes are refused: %s", s.Failed)
		}
		if s.Adoption.LastError != "" {
			bad("old keys can't be adopted: %s", s.Adoption.LastError)
		}
		for _, p := range s.Peers {
			if !isJudged(&p) {
				continue
			}
			v.Peers++
			if text := problemOf(s, &p, r.At, most); text != "" {
				bad("%s", text)
			}
			if p.Lag != nil {
				lag := max(p.Lag.Seconds(), 0)
				if v.Lag == nil || *v.Lag < lag {
					v.Lag = &lag
				}
			}
		}
	}
	switch {
	case critical:
		v.State = stateCritical
	case len(v.Problems) > 0:
		v.State = stateWarning
	}
	return v
}

// isJudged reports whether a peer should be there: those that dialled in come and go.
func isJudged(p *replicator.PeerStatus) bool {
	return p.Configured && p.SameAs == "" && p.State != replicator.StateSelf
}

// problemOf says what is wrong with a peer, or "".
func problemOf(s *replicator.Status, p *replicator.PeerStatus, at time.Time, most time.Duration) string {
	name := cmp.Or(p.Name, p.Addr)
	switch p.State {
	case replicator.StateIncomplete:
		return name + " can't read all of its own database"
	case replicator.StateStale:
		return name + ": nothing is exchanged, as one side has not seen deletions that the other has forgotten"
	}
	if p.Lag != nil && *p.Lag > most {
		return fmt.Sprintf("%s: changes are not merged for %s", name, span(*p.Lag))
	}
	if p.DialedBy != "" { // there is a session
		return ""
	}
	since, text := p.LastSuccess, "no answer from %s for %s"
	if since.IsZero() {
		since, text = s.Opened, "%s was never reached, for %s"
	}
	away := at.Sub(since)
	if away <= most {
		return ""
	}
	text = fmt.Sprintf(text, name, span(away))
	if p.LastError != "" {
		text += ": " + p.LastError
	}
	return text
}
