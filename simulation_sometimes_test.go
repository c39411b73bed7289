package replicator_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// branches are what must come of the events in some seed of a normal run. A branch
// that is never taken is one that the simulation says nothing about. Those that come
// in fewer than one seed of eight are among the rareBranches.
var branches = []string{
	"a backup is restored",
	"a node is cloned",
	"a peer is removed",
	"a peer is forgotten",
	"recovered files lack something",
	"log records expire",
	"a feed goes on from a cursor",
	"a feed refuses a cursor",
	"a comparison ends",
	"tombstones are reaped",

	"SyncNow returns nil",
	"SyncNow tells of a peer that it did not reach",
	"convergence by SyncNow",
	"convergence without SyncNow",
	"quiet",

	"a power cut takes a change",
	"a power cut takes a change and leaves a later one",
	"a power cut in the midst of something",
	"an opening is cut off",
	"a node loses power that has acknowledged something",
	"an opening goes back to the durable point",

	"a scan of the log goes on in key order",
	"a full pull ends",

	"a fork is refused",
	"an id is drawn anew",
	"an id is renewed",
	"a session is replaced",
	"a spare connection is given up",
	"a peer is silent for too long",
	"two addresses are seen to lead to one replica",

	"state: self",
	"state: starting",
	"state: waiting",
	"state: connecting",
	"state: pulling the log",
	"state: pulling in full",
	"state: in sync",

	"a delete wins",
	"a write loses to one that was made before",
}

// rareBranches must be taken in some seed where manySeeds are run.
var rareBranches = []string{
	"a merge overtakes a write",
	"an opening finds an unfinished scan of the log",
	"an opening finds an unfinished rescan",
	"an opening finds an unfinished full pull",
	"an opening finds an unfinished first sync",
	"a key moves up the log during a scan",
	"old values are adopted",
	"a replica rejoins",
}

// logLines are the branches that are seen by what is logged: a line with these words.
var logLines = []struct{ branch, words string }{
	{"an opening goes back to the durable point", "the machine was restarted without a clean close"},
	{"a full pull ends", "full=true"},
	{"a replica rejoins", "replicator: rejoined"},
	{"a fork is refused", "has forked"},
	{"an id is drawn anew", "drew a new one"},
	{"a session is replaced", "a newer connection with this peer took over"},
	{"a spare connection is given up", "there is a session with this peer already"},
	{"a peer is silent for too long", "nothing heard from the peer"},
}

// logWatcher looks for the branches that are logged.
type logWatcher struct {
	seen *sightings
}

func (w *logWatcher) Enabled(context.Context, slog.Level) bool { return true }

func (w *logWatcher) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	for _, l := range logLines {
		if strings.Contains(line, l.words) {
			w.seen.note(l.branch)
		}
	}
	return nil
}

func (w *logWatcher) WithAttrs([]slog.Attr) slog.Handler { return w }
func (w *logWatcher) WithGroup(string) slog.Handler      { return w }

// sightings count what happened in one seed.
type sightings struct {
	mu     sync.Mutex
	counts map[string]int
}

func newSightings() *sightings { return &sightings{counts: map[string]int{}} }

func (s *sightings) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// census adds up the sightings of all seeds.
type census struct {
	mu     sync.Mutex
	seeds  int // that ended
	failed bool
	counts map[string]tally
}

type tally struct{ seeds, times int }

func newCensus() *census { return &census{counts: map[string]tally{}} }

func (c *census) add(s *sightings, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seeds++
	c.failed = c.failed || failed
	for what, times := range s.counts {
		t := c.counts[what]
		c.counts[what] = tally{t.seeds + 1, t.times + times}
	}
}

// judge fails if something did not happen in any seed. With fewer seeds than in a
// normal run, or fewer steps, that is no wonder; and where a seed has failed, that is
// enough.
func (c *census) judge(t *testing.T, seeds int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	expected := slices.Concat(branches, rareBranches)
	for _, e := range events {
		expected = append(expected, "event: "+e.name)
	}
	var unexpected, missing []string
	var table strings.Builder
	for _, what := range slices.Sorted(maps.Keys(c.counts)) {
		fmt.Fprintf(&table, "%6d times in %4d seeds: %s\n", c.counts[what].times, c.counts[what].seeds, what)
		if !slices.Contains(expected, what) && !strings.HasPrefix(what, failedCheck) {
			unexpected = append(unexpected, what)
		}
	}
	if *story {
		t.Logf("what happened in %d seeds:\n%s", c.seeds, &table)
	}
	if len(unexpected) > 0 {
		t.Errorf("happened, and is in none of the tables: %q", unexpected)
	}
	if c.failed || c.seeds < seeds || seeds < defaultSeeds || *simSteps < defaultSteps {
		return
	}
	for _, what := range expected {
		if c.counts[what].times == 0 && (seeds >= manySeeds || !slices.Contains(rareBranches, what)) {
			missing = append(missing, what)
		}
	}
	if len(missing) > 0 {
		t.Errorf("never happened in %d seeds: %q\n%s", c.seeds, missing, &table)
	}
	for check := range knownFailures {
		if name, found := strings.CutPrefix(check, ofSimulation); found && c.counts[failedCheck+name].times == 0 {
			t.Errorf("%q holds in all of %d seeds: take it out of knownFailures", check, c.seeds)
		}
	}
}

// failedCheck begins the name of the sightings of a check that is known to fail.
const failedCheck = "known failure: "
