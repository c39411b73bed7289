package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// full returns a Status that has something in every field that a metric shows.
func full(t *testing.T) replicator.Status {
	text, err := os.ReadFile("../statuspage/testdata/status.json")
	require.NoError(t, err)
	var report struct{ Replicas []replicator.Status }
	require.NoError(t, json.Unmarshal(text, &report))
	s := report.Replicas[0]
	p := &s.Peers[0]
	p.SameAs = ""
	of := func(change func(p *replicator.PeerStatus)) {
		q := replicator.PeerStatus{State: replicator.StateWaiting}
		change(&q)
		s.Peers = append(s.Peers, q)
	}
	of(func(q *replicator.PeerStatus) { q.Addr, q.Configured = "host:8002", true })
	of(func(q *replicator.PeerStatus) { q.Addr, q.Configured, q.SameAs = "host:8003", true, "host:8002" })
	of(func(q *replicator.PeerStatus) {
		q.Addr, q.Configured, q.State = "host:8004", true, replicator.StateSelf
	})
	inbound := func(name string, id byte) {
		of(func(q *replicator.PeerStatus) {
			q.Addr, q.Name, q.ID, q.State, q.DialedBy = "10.0.0.9:54321", name, replicator.DatabaseID{id}, replicator.StateInSync, replicator.DialedByThem
		})
	}
	inbound("", 7)
	inbound("oslo", 8)          // the name of another
	inbound("bad \xff name", 9) // what is no text
	return s
}

// collectorOf returns a collector of replicas that have the given states.
func collectorOf(all ...replicator.Status) *collector {
	c := new(collector)
	for _, s := range all {
		c.sources = append(c.sources, &source{
			status: func() replicator.Status { return s },
			size:   func() (replicator.Size, error) { return replicator.Size{Data: 1000, Extra: 500}, nil },
			count:  func(context.Context) (replicator.Count, error) { return replicator.Count{Tombstones: 12}, nil },
		})
	}
	return c
}

// TestMetrics: the metrics are as in the golden file. To accept a change:
// go test . -run TestMetrics -update
func TestMetrics(t *testing.T) {
	s := full(t)
	s.Closed = false
	second, third := full(t), full(t) // of the same name, and of the same id
	second.ID, second.Peers, second.Fingerprint = replicator.DatabaseID{99}, nil, nil
	third.Peers, third.LogHeldFor = nil, nil
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(collectorOf(s, second, third)))
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
	text := exposed(t, r)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o777))
		require.NoError(t, os.WriteFile("testdata/metrics.txt", []byte(text), 0o666))
	}
	golden, err := os.ReadFile("testdata/metrics.txt")
	require.NoError(t, err)
	require.Equal(t, string(golden), text)
	require.NotContains(t, text, "54321", "a port of a connection is in a label")
	for _, name := range names(t) {
		require.Contains(t, text, "\n# TYPE "+name+" ", "%s is not shown", name)
	}
}

// exposed returns what is scraped.
func exposed(t *testing.T, g prometheus.Gatherer) string {
	families, err := g.Gather()
	require.NoError(t, err)
	var b strings.Builder
	e := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		require.NoError(t, e.Encode(f))
	}
	return b.String()
}

// names returns the names of all metrics.
func names(t *testing.T) (all []string) {
	ch := make(chan *prometheus.Desc, 1000)
	new(collector).Describe(ch)
	close(ch)
	for d := range ch {
		all = append(all, regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String())[1])
	}
	require.Greater(t, len(all), 30)
	return all
}

// TestNamesExist: every metric that the dashboard, the rules and the documentation name is
// there.
func TestNamesExist(t *testing.T) {
	known := names(t)
	for _, part := range []string{"_bucket", "_count", "_sum"} {
		known = append(known, "replicator_commit_duration_seconds"+part)
	}
	for file, least := range map[string]int{"dashboard.json": 18, "alerts.yaml": 12, "doc.go": 1, "../README.md": 1} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		found := map[string]bool{}
		for _, name := range regexp.MustCompile(`\breplicator_\w+`).FindAllString(string(text), -1) {
			require.Contains(t, known, name, file)
			found[name] = true
		}
		require.GreaterOrEqual(t, len(found), least, file)
	}
}

// TestDashboard: the dashboard is JSON, each of its panels asks something, and for the
// replicas that are chosen.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &d))
	ids := map[int]bool{}
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], p.Title)
		ids[p.ID] = true
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			require.True(t, strings.Contains(target.Expr, `{replica=~"$replica"}`) || p.Title == "Different states", target.Expr)
		}
	}
	require.Greater(t, len(ids), 15)
}

// TestAlerts: the rules are YAML, and each says what is wrong and what to do.
func TestAlerts(t *testing.T) {
	text, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	var f struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For string
				Labels           struct{ Severity string }
				Annotations      struct{ Summary, Action string }
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	d.KnownFields(true)
	require.NoError(t, d.Decode(&f))
	require.Len(t, f.Groups, 1)
	for _, r := range f.Groups[0].Rules {
		require.Regexp(t, "^Replicator[A-Z]", r.Alert)
		require.Contains(t, r.Expr, "replicator_", r.Alert)
		require.Contains(t, []string{"info", "warning", "critical"}, r.Labels.Severity, r.Alert)
		require.NotEmpty(t, r.Annotations.Summary, r.Alert)
		require.NotEmpty(t, r.Annotations.Action, r.Alert)
	}
}

// TestFleet: the checksums of replicas in one process are equal once they hold the same,
// and differ otherwise.
func TestFleet(t *testing.T) {
	open := func(name string, peers map[string]replicator.Meta) *replicator.Replicator {
		r, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{Name: name, Listen: "127.0.0.1:0", Peers: peers})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, r.Close()) })
		return r
	}
	a := open("a", nil)
	require.NoError(t, a.Put([]byte("key"), []byte("value"), nil))
	require.NoError(t, a.Delete([]byte("other"), nil))
	b := open("b", map[string]replicator.Meta{a.Addr().String(): nil})
	require.NoError(t, b.SyncNow(t.Context()))
	c := open("c", nil)
	require.NoError(t, c.Put([]byte("key"), []byte("value"), nil))
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(New([]*replicator.Replicator{a, b, c})))
	sums := map[string]float64{}
	require.Eventually(t, func() bool { // they are made in the background
		families, err := r.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "replicator_state_checksum" {
				for _, m := range f.Metric {
					sums[m.Label[0].GetValue()] = m.Gauge.GetValue()
				}
			}
		}
		return len(sums) == 3
	}, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, sums["a"], sums["b"])
	require.NotEqual(t, sums["a"], sums["c"])
	require.NotZero(t, sums["a"])
	text := exposed(t, r)
	require.Contains(t, text, `replicator_peer_up{peer="a",replica="b"} 1`)
	require.Contains(t, text, `replicator_peer_up{peer="b",replica="a"} 1`) // though it has dialled in
	require.Contains(t, text, `replicator_tombstones{replica="b"} 1`)

	require.NoError(t, a.Close())
	text = exposed(t, r)
	require.Contains(t, text, `replicator_open{replica="a"} 0`)
	require.NotContains(t, text, `replicator_size_bytes{part="data",replica="a"}`)
}

// TestTombstonesAreCountedSeldom: counting reads the index, so it is done once a minute at
// most, and only after changes. What can't be counted is not shown.
func TestTombstonesAreCountedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts, fault := 0, error(nil)
		s := &source{count: func(ctx context.Context) (replicator.Count, error) {
			counts++
			_, bounded := ctx.Deadline()
			require.True(t, bounded)
			return replicator.Count{Tombstones: counts}, fault
		}}
		ask := func(status replicator.Status, n int, known bool) {
			t.Helper()
			found, is := s.deleted(&status)
			require.Equal(t, known, is)
			if known {
				require.Equal(t, n, found)
			}
		}
		ask(replicator.Status{}, 1, true)
		ask(replicator.Status{Head: 5}, 1, true) // too early
		time.Sleep(countEvery)
		ask(replicator.Status{}, 1, true) // nothing has changed
		ask(replicator.Status{Head: 5}, 2, true)
		time.Sleep(countEvery)
		fault = errors.New("late")
		ask(replicator.Status{Head: 6}, 0, false)
		time.Sleep(countEvery)
		fault = nil
		ask(replicator.Status{Head: 6}, 4, true)
		time.Sleep(countEvery)
		ask(replicator.Status{Head: 7, Closed: true}, 4, true)
		require.Equal(t, 4, counts)
	})
}

// TestNames: labels differ, whatever replicas call themselves.
func TestNames(t *testing.T) {
	n := namer{}
	var all []string
	for _, names := range [][]string{{"a", "1"}, {"a", "2"}, {"a", "2"}, {"", "3"}, {"", "", "host:1"}, {"", "3"}, {"a 2", "4"}, {"", "", ""}} {
		all = append(all, n.pick(names...))
	}
	require.Equal(t, []string{"a", "a 2", "2", "3", "host:1", "3 2", "a 2 4", " 2"}, all)
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(all))), len(all))
}
