package replicator

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestModel does all that can happen to three replicas, in every order, breadth-first.
//
// Real are the functions of the store, on the real rows: opening after a clean close, a
// kill and a power cut, the durable point, commits, serving (following, scans of both
// kinds, what is left out and held back), the cursor, examining and merging, joins. A
// stand-in is leveldb: rows in memory that a state shares with others (modelDisk), of
// which a power cut may take what two journals can lose. The steps of a session are
// taken by hand: a pull is asked for and answered in one step, the page arrives at once
// and is merged in another, and the page behind it may be asked for in between. Nothing
// is encoded, no value is so large that it must be fetched, nothing is adopted or
// reaped, a log expires as a whole, and a clone has drawn its new id at once.
//
// Checked is at each state what a vector covers against a record of all changes, that
// what was stated as durable is known, and how rows fit together; and that from there,
// with no further fault, all replicas come to rest with the same rows and vectors.
func TestModel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	t.Parallel()
	searchModels(t, modelConfigs, func(*modelConfig) {})
}

// searchModels searches each of some configurations, once it is changed.
func searchModels(t *testing.T, configs []modelConfig, change func(*modelConfig)) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	patience := 0 * time.Second
	if isLong() {
		patience = 20 * time.Second
	}
	for _, c := range configs {
		t.Run(c.name, func(t *testing.T) {
			change(&c)
			m := &modelSearch{visited: map[uint64]struct{}{}}
			root, err := newModel(c)
			require.NoError(t, err)
			m.root = root
			m.run(t, c.depth, patience)
		})
	}
}

// isLong reports whether -long is given. The flag belongs to the tests outside of the
// package.
func isLong() bool {
	f := flag.Lookup("long")
	return f != nil && f.Value.String() == "true"
}

// modelConfigs are what is searched.
var modelConfigs = []modelConfig{
	{name: "power cuts", base: 1, keys: 1, backlog: 1 << 20, page: 10, depth: 3, writes: 2, flushes: 1, cuts: 1, restarts: 1, faults: 2},
	{name: "power cuts, scans", sparse: true, base: 2, keys: 2, page: 1, depth: 3, writes: 2, flushes: 1, cuts: 1, breaks: 1, faults: 2},
	{name: "power cuts, logs expire", sparse: true, base: 2, keys: 2, page: 1, depth: 3, writes: 2, expires: 1, cuts: 1, restarts: 1, breaks: 1, faults: 2},
	{name: "scans, logs expire", sparse: true, base: 2, keys: 2, ahead: 2, two: true, page: 1, depth: 4, writes: 1, expires: 1, losses: 1, restarts: 1, faults: 2},
	{name: "restores, logs expire", sparse: true, base: 1, keys: 1, saved: true, backlog: 1 << 20, page: 10, depth: 3, writes: 2, expires: 2, restores: 1, clones: 1, faults: 2},
	{name: "restarts", sparse: true, base: 2, keys: 2, backlog: 1 << 20, page: 1, depth: 3, writes: 2, deletes: 1, restarts: 1, closes: 1, breaks: 1, faults: 2},
	{name: "restores and clones", sparse: true, base: 1, keys: 1, saved: true, backlog: 1 << 20, page: 10, depth: 3, writes: 2, deletes: 1, restores: 1, clones: 1, faults: 2},
	{name: "a chain", base: 1, keys: 2, chain: true, backlog: 1 << 20, page: 1, depth: 3, writes: 2, deletes: 1, backups: 1, restores: 1, faults: 1},
	{name: "a young replica", sparse: true, base: 2, keys: 2, young: true, page: 1, depth: 3, writes: 2, losses: 1, restarts: 1, cuts: 1, faults: 2},
	{name: "a young end of a chain", base: 2, keys: 2, young: true, chain: true, backlog: 1 << 20, page: 1, depth: 4, writes: 1, breaks: 1, losses: 1, faults: 2},
	{name: "a young end of a chain, scans", sparse: true, base: 2, keys: 2, young: true, chain: true, byKey: true, page: 1, depth: 4, writes: 1, cuts: 1, losses: 1, faults: 2},
	{name: "scans of a log", base: 2, keys: 2, ahead: 2, two: true, page: 1, depth: 4, writes: 2, cuts: 1, losses: 1, faults: 2},
	{name: "a relay", base: 1, keys: 2, chain: true, backlog: 1 << 20, page: 10, depth: 4, writes: 2},
}

// healEvery is how many states there are for one that is healed, where a configuration has
// too many. What goes wrong for good does so in states behind, too.
const healEvery = 4

// modelSearch is a search under way. What is yet to be looked behind is kept as the
// steps that lead there, which takes a thousandth of the memory.
type modelSearch struct {
	root *modelState

	mu      sync.Mutex // guards what follows
	visited map[uint64]struct{}
	next    [][]modelStep
	steps   int
	failure string
}

// run looks behind all states to a depth, or, with patience, as deep as that lasts.
func (m *modelSearch) run(t *testing.T, depth int, patience time.Duration) {
	began := time.Now()
	m.visited[m.root.hash()] = struct{}{}
	m.next = [][]modelStep{nil}
	d, complete := 0, true
	for ; len(m.next) > 0 && (d < depth || patience > 0); d++ {
		level := m.next
		m.next = nil
		var wg sync.WaitGroup
		work := make(chan []modelStep)
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				for path := range work {
					m.expand(path)
				}
			})
		}
		for _, path := range level {
			if complete = patience == 0 || time.Since(began) < patience; !complete {
				break
			}
			work <- path
		}
		close(work)
		wg.Wait()
		if m.failure != "" {
			t.Fatal(m.failure)
		}
		if !complete {
			break
		}
	}
	t.Logf("%d states, all that %d steps lead to, and some behind these: %v; %d steps in %v",
		len(m.visited), d, !complete, m.steps, time.Since(began).Round(time.Millisecond))
}

// expand does all that can happen next.
func (m *modelSearch) expand(path []modelStep) {
	s := m.root
	for _, step := range path {
		s = s.copy()
		if done, err := s.take(step); !done || err != nil {
			m.fail(path, fmt.Errorf("%v can't be repeated: %v, %v", step, done, err))
			return
		}
	}
	for _, step := range s.steps() {
		n := s.copy()
		done, err := n.take(step)
		here := append(path[:len(path):len(path)], step)
		if err != nil {
			m.fail(here, err)
			return
		}
		if !done {
			continue
		}
		sum := n.hash()
		m.mu.Lock()
		_, known := m.visited[sum]
		m.steps++
		if !known {
			m.visited[sum] = struct{}{}
			m.next = append(m.next, here)
		}
		over := m.failure != ""
		m.mu.Unlock()
		if over {
			return
		}
		if known {
			continue
		}
		for i := range n.r {
			if n.r[i] != s.r[i] {
				if err := n.check(i); err != nil {
					m.fail(here, err)
					return
				}
			}
		}
		if s.left.sparse && len(here) > 2 && sum%healEvery != 0 {
			continue
		}
		if err := n.copy().heal(sum/healEvery%2 == 0); err != nil {
			m.fail(here, fmt.Errorf("when all is healed: %w", err))
			return
		}
	}
}

func (m *modelSearch) fail(path []modelStep, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure != "" {
		return
	}
	var b strings.Builder
	for _, step := range path {
		fmt.Fprintf(&b, "%v; ", step)
	}
	m.failure = fmt.Sprintf("%s%v", &b, err)
}
