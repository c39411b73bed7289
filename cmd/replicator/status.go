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

// This file owns how the status of replicas is shown as text.

var statusCommand = &command{
	name: "status", args: "URL", count: 1,
	summary: "show the status of running replicas",
	help: `Asks the page that a program serves (package statuspage, or replicator serve -http) for the
status of its replicas. With -json it prints status.json as docs/STATUS.md describes it.

  replicator status http://127.0.0.1:8080/replica/
  replicator status 127.0.0.1:8080
  replicator status -json 127.0.0.1:8080 | jq '.replicas[0].peers[] | {name, state, behind}'
`,
	setup: func(c *call) func(*call) error {
		timeout := timeoutFlag(c)
		return func(c *call) error { return status(c, *timeout) }
	},
}

func status(c *call, timeout time.Duration) error {
	p, err := newPage(c.args[0])
	if err != nil {
		return err
	}
	r, err := p.report(c, timeout)
	if err != nil {
		return err
	}
	return c.print(r, func(w io.Writer) { writeReport(w, &r) })
}

func writeReport(w io.Writer, r *statuspage.Report) {
	for i := range r.Replicas {
		if i > 0 {
			fmt.Fprintln(w)
		}
		writeStatus(w, &r.Replicas[i], r.At)
	}
}

// writeStatus writes all of a replica's status that somebody may have to act on.
func writeStatus(w io.Writer, s *replicator.Status, at time.Time) {
	t := newTable(w)
	row(t, "replica", strings.TrimSpace(s.Name+" "+s.ID.String()))
	state := "open for " + span(at.Sub(s.Opened))
	if s.Closed {
		state = "closed"
	}
	if s.Listening != "" {
		state += ", listening on " + s.Listening
	}
	row(t, "state", state)
	if s.Failed != "" {
		row(t, "WRITES REFUSED", s.Failed)
	}
	if !s.Adoption.Done || s.Adoption.LastError != "" {
		row(t, "adoption", strings.TrimSpace(fmt.Sprintf("%s adopted, %s skipped %s", number(s.Adoption.Adopted), number(s.Adoption.Skipped), s.Adoption.LastError)))
	}
	if f := s.Fingerprint; f != nil {
		keys := fmt.Sprintf("%s, checksum %s as of head %s", number(f.Keys), f.Sum, number(f.Head))
		if f.Head < s.Head {
			keys += ", being brought up to date"
		}
		row(t, "keys", keys)
	}
	log := fmt.Sprintf("%s, head %s, floor %s", plural(s.LogRecords, "record", "records"), number(s.Head), number(s.Floor))
	if h := s.LogHeldFor; h != nil {
		log += fmt.Sprintf("; kept for %s, seen %s ago", cmp.Or(h.Name, h.ID.String()), span(at.Sub(h.LastSeen)))
	}
	row(t, "log", log)
	row(t, "vector", fmt.Sprintf("%s, checksum %s", plural(s.Vector.Origins, "opening", "openings"), s.Vector.Sum))
	if n := s.Conflicts; n.Count > 0 {
		row(t, "conflicts", fmt.Sprintf("%s, %s uncertain, %s not handled", number(n.Count), number(n.Uncertain), number(n.Dropped)))
	}
	for _, f := range s.Forgotten {
		row(t, "forgotten", strings.TrimSpace(f.Name+" "+f.ID.String()))
	}
	for _, f := range s.Refused {
		row(t, "refused", fmt.Sprintf("%s, %s, %s ago: %s", f.Host, plural(f.Count, "time", "times"), span(at.Sub(f.Last)), f.Error))
	}
	t.Flush()
	writePeers(w, s)
	if len(s.Warnings) > 0 {
		fmt.Fprintln(w, "warnings, the latest last:")
		for _, m := range s.Warnings {
			fmt.Fprintf(w, "  %s  %s\n", moment(m.At), m.Text)
		}
	}
}

// writePeers writes a table of the peers.
func writePeers(w io.Writer, s *replicator.Status) {
	t := newTable(w)
	if len(s.Peers) > 0 {
		row(t, "PEER", "NAME", "STATE", "LAG", "BEHIND", "UNMERGED", "UNCONFIRMED", "ROUND TRIP", "IN", "OUT", "LAST ERROR")
	}
	for _, p := range s.Peers {
		state := string(p.State)
		switch {
		case p.SameAs != "":
			state = "same as " + p.SameAs
		case p.Scan != nil && p.Scan.Done != nil:
			state += fmt.Sprintf(" %.0f %%", 100**p.Scan.Done)
		}
		row(t, p.Addr, cmp.Or(p.Name, "-"), state, spanOf(p.Lag), figure(p.Behind), figure(p.Unmerged), figure(p.Unconfirmed), spanOf(p.RoundTrip),
			bytesOf(p.BytesIn), bytesOf(p.BytesOut), p.LastError)
	}
	t.Flush()
}
