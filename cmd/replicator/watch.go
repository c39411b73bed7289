package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// This file owns watching replicas.

var watchCommand = &command{
	name: "watch", args: "URL", count: 1,
	summary: "watch the peers of running replicas, or their changes",
	help: `Shows a table of the peers that is drawn again every second, until it is interrupted. With
-changes it shows each change that the replicas commit, made there or merged; the page must
show data for that (WithData, or replicator serve -data). Where more than 50 changes come
within half a second, some are left out, and a line says so.

  replicator watch http://127.0.0.1:8080/replica/
  replicator watch -changes 127.0.0.1:8080
  replicator watch -changes -json 127.0.0.1:8080 | jq -r '.key | @base64d'
`,
	setup: func(c *call) func(*call) error {
		timeout := timeoutFlag(c)
		every := positiveFlag(c, "every", time.Second, "draw the table every so much `time`")
		changes := c.flags.Bool("changes", false, "show changes, not peers")
		return func(c *call) error {
			p, err := newPage(c.args[0])
			if err != nil {
				return err
			}
			if *changes {
				return watchChanges(c, p)
			}
			return watchPeers(c, p, *every, *timeout)
		}
	},
}

// clear moves to the top of a terminal, and removes what is there.
const clear = "\x1b[H\x1b[2J"

func watchPeers(c *call, p *page, every, timeout time.Duration) error {
	for first := true; c.Err() == nil; first = false {
		r, err := p.report(c, timeout)
		switch {
		case c.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintln(c.err, "replicator: watch:", err)
		case c.json:
			if err := c.printLine(r); err != nil {
				return err
			}
		default:
			if c.outTTY {
				fmt.Fprint(c.out, clear)
			}
			fmt.Fprintln(c.out, moment(r.At))
			for i := range r.Replicas {
				s := &r.Replicas[i]
				fmt.Fprintf(c.out, "%s  head %s, clock %s, %s\n", nameOf(s), number(s.Head), number(s.Clock), plural(len(s.Warnings), "warning", "warnings"))
				writePeers(c.out, s)
			}
		}
		c.wait(c, every)
	}
	return nil
}

// nameOf is how a replica is called.
func nameOf(s *replicator.Status) string { return cmp.Or(s.Name, s.ID.String()[:8]) }

// frame is what of the page's events is read.
type frame struct {
	statuspage.Report
	Data bool `json:"data"`
	More []struct {
		Changes []seen `json:"changes"`
	} `json:"more"`
}

// seen is a change as the page shows it.
type seen struct {
	Key     []byte             `json:"key"`
	Value   []byte             `json:"value"` // of up to 128 bytes; null: there is none, or it is large
	Size    int                `json:"size"`  // of the value
	Version replicator.Version `json:"version"`
	Local   bool               `json:"local"`
}

func (s *seen) is(t *seen) bool { return s.Version == t.Version && string(s.Key) == string(t.Key) }

// seenLine is a line of watch -changes -json.
type seenLine struct {
	At      time.Time `json:"at"` // when the page told of it
	Replica string    `json:"replica"`
	Missed  bool      `json:"missed,omitempty"` // there were changes before this one that the page does not show any more
	seen
}

// watchChanges shows what comes, and connects again when the stream breaks.
func watchChanges(c *call, p *page) error {
	last := map[int]seen{} // of each replica
	connected := false
	for c.Err() == nil {
		err := p.events(c, func(text []byte) error {
			var f frame
			if err := json.Unmarshal(text, &f); err != nil {
				return fmt.Errorf("the page has other events than this version knows: %w", err)
			}
			if !f.Data {
				return errNoData
			}
			connected = true
			return showChanges(c, &f, last)
		})
		switch {
		case c.Err() != nil:
			return nil
		case !connected || errors.Is(err, errNoData) || errors.Is(err, errOutput):
			return err
		}
		fmt.Fprintln(c.err, "replicator: watch: the page is away, trying again:", err)
		c.wait(c, time.Second)
	}
	return nil
}

var (
	errNoData = errors.New("the page shows no keys: serve it with statuspage.WithData, or replicator serve -data")
	errOutput = errors.New("write")
)

// showChanges shows what is new in a frame.
func showChanges(c *call, f *frame, last map[int]seen) error {
	for i, more := range f.More {
		if i >= len(f.Replicas) || len(more.Changes) == 0 {
			continue
		}
		news, missed := more.Changes, false
		if before, known := last[i]; known {
			at := slices.IndexFunc(news, func(s seen) bool { return s.is(&before) })
			news, missed = news[at+1:], at < 0
		}
		last[i] = more.Changes[len(more.Changes)-1]
		for _, s := range news {
			if err := showChange(c, seenLine{f.At, nameOf(&f.Replicas[i]), missed, s}); err != nil {
				return fmt.Errorf("%w: %w", errOutput, err)
			}
			missed = false
		}
	}
	return nil
}

func showChange(c *call, s seenLine) error {
	if c.json {
		return c.printLine(s)
	}
	if s.Missed {
		fmt.Fprintf(c.out, "%s  … there were more changes than the page shows\n", s.Replica)
	}
	how := "merged"
	if s.Local {
		how = "local"
	}
	text := fmt.Sprintf("%s  %-6s  %-6s  %v  %s", s.Replica, how, change(s.Version), s.Version.Stamp, quote(s.Key))
	switch {
	case s.Version.Deleted:
	case s.Value == nil:
		text += " = (large)"
	default:
		text += fmt.Sprintf(" = %q", s.Value)
		if len(s.Value) < s.Size {
			text += fmt.Sprintf("… (%s)", plural(s.Size, "byte", "bytes"))
		}
	}
	_, err := fmt.Fprintln(c.out, text)
	return err
}
