package statuspage

import (
	"encoding"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// full is a report with something in every field.
func full() Report {
	at := func(second int) time.Time { return time.Date(2026, 11, 24, 12, 0, second, 0, time.UTC) }
	pointer := func(n uint64) *uint64 { return &n }
	lag, trip, done, access := 1500*time.Millisecond, 250*time.Microsecond, .25, replicator.ReadOnly
	version := func(clock uint64, origin replicator.Origin, deleted bool) replicator.Version {
		return replicator.Version{Stamp: replicator.Stamp{Clock: clock, Origin: origin}, Deleted: deleted}
	}
	return Report{At: at(0), Replicas: []replicator.Status{{
		ID: replicator.DatabaseID{1, 2, 3}, Name: "berlin", Opened: at(1), Closed: true, Epoch: 1<<63 | 0xabc, Clock: 1234, Head: 2345, Floor: 1,
		LogRecords: 2000, LogHeldFor: &replicator.LogHold{ID: replicator.DatabaseID{4}, Name: "paris", Merged: pointer(345), LastSeen: at(7)},
		Tombstones: &replicator.TombstoneStatus{Reaped: 11, Waiting: pointer(12), HeldFor: &replicator.TombstoneHold{ID: replicator.DatabaseID{6}, Name: "lima", LastSeen: at(8)}},
		Vector:     replicator.VectorStatus{Origins: 3, Sum: "0123456789abcdef"}, Fingerprint: &replicator.FingerprintStatus{Keys: 1900, Sum: "00112233445566778899aabbccddeeff", Head: 2340}, Listening: "127.0.0.1:8000",
		Failed:   `replicator: a write has failed: look up key "secret": disk full`,
		Adoption: replicator.AdoptionStatus{Done: true, Adopted: 10, Skipped: 1, LastError: `key "secret": disk full`},
		Commits:  []replicator.Bucket{{UpTo: 16 * time.Microsecond, Count: 100}, {UpTo: 0, Count: 1}},
		Scans:    replicator.ScanCounts{New: 1, Log: 2, Keys: 3, Reset: 4, Recovered: 5, Rejoined: 6},
		Conflicts: replicator.ConflictStatus{Count: 4, Uncertain: 1, Dropped: 1, Last: []replicator.Conflict{{
			Key: []byte("secret"), Won: version(8, 1<<63|1, true), Lost: version(7, 1<<63|2, true),
			WonValue: []byte("secret"), LostValue: []byte("secret"), LostHere: true, Uncertain: true,
		}}},
		Warnings: []replicator.Warning{{At: at(2), Text: `replicator: session ended peer="n1" error="the value of key \"secret\" has 5 bytes, the limit is 4"`}},
		Peers: []replicator.PeerStatus{{
			Addr: "127.0.0.1:8001", Configured: true, Meta: replicator.Meta{"zone": "b"}, ID: replicator.DatabaseID{4, 5}, Name: "oslo",
			SameAs: "localhost:8001", State: replicator.StatePullingLog, Access: &access, Granted: &access, DialedBy: replicator.DialedByUs,
			Behind: pointer(5), Unmerged: pointer(6), Unconfirmed: pointer(7), Acknowledged: pointer(8), Lag: &lag, RoundTrip: &trip,
			Scan:        &replicator.ScanStatus{InKeyOrder: true, Done: &done, Key: []byte("secret")},
			Stale:       &replicator.StaleStatus{Here: true, There: true, Since: at(9), Waiting: 13, Advice: "replicator: stale: call Rejoin here"},
			LastSuccess: at(3), LastInSync: at(4), LastError: `page: key "secret" is not above "secret"`, NextAttempt: at(5),
			BytesIn: 1, BytesOut: 2, RecordsIn: 3, RecordsOut: 4,
		}},
		Forgotten: []replicator.Forgotten{{ID: replicator.DatabaseID{5}, Name: "rome"}},
		Refused:   []replicator.Refusal{{Host: "10.0.0.1", Error: `replicator: reserved: key "secret"`, Count: 2, Last: at(6)}},
	}}}
}

// TestFullReport: every field of the report in the golden files has a value, so that all of
// them are in the files.
func TestFullReport(t *testing.T) {
	var check func(path string, v reflect.Value)
	check = func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			require.False(t, v.IsNil(), path)
			check(path, v.Elem())
		case reflect.Slice:
			require.NotZero(t, v.Len(), path)
			check(path+"[]", v.Index(0))
		case reflect.Struct:
			if isLeaf(v.Type()) {
				require.False(t, v.IsZero(), path)
				return
			}
			for i := range v.NumField() {
				check(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
		default:
			require.False(t, v.IsZero(), path)
		}
	}
	check("", reflect.ValueOf(full()))
}

// TestContract: status.json looks as in the golden files. To accept a change:
// go test ./statuspage -run '^TestContract$' -update
func TestContract(t *testing.T) {
	hidden := full()
	hideData(&hidden.Replicas[0])
	open := full()
	open.Replicas[0].Closed, open.Replicas[0].Peers[0].SameAs = false, ""
	open.Replicas[0].Peers[0].Access, open.Replicas[0].Peers[0].LastInSync = nil, time.Time{}
	notReady := (&handler{readyPeers: majority}).readiness(open)
	for name, content := range map[string]any{
		"status.json": full(), "status-without-data.json": hidden, "ready.json": Readiness{Ready: true}, "not-ready.json": notReady,
	} {
		w := httptest.NewRecorder()
		writeJSON(w, http.StatusOK, content)
		text := w.Body.String()
		file := filepath.Join("testdata", name)
		if *update {
			require.NoError(t, os.WriteFile(file, []byte(text), 0o666))
		}
		golden, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, string(golden), text, name)
		if strings.Contains(name, "without") {
			require.NotContains(t, text, "secret")
		}
	}
}

// TestContractIsDocumented: docs/STATUS.md has a row for every field of status.json, and
// for no other.
func TestContractIsDocumented(t *testing.T) {
	var fields []string
	walk("", reflect.TypeFor[Report](), &fields)
	text, err := os.ReadFile("../docs/STATUS.md")
	require.NoError(t, err)
	var rows []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		rows = append(rows, row[1])
	}
	slices.Sort(fields)
	slices.Sort(rows)
	require.Equal(t, strings.Join(fields, "\n"), strings.Join(rows, "\n"))
}

// walk adds the names of the fields, as in replicas[].peers[].addr.
func walk(path string, t reflect.Type, fields *[]string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 {
		if t.Kind() == reflect.Slice {
			path += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || isLeaf(t) {
		*fields = append(*fields, path)
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			walk(path, f.Type, fields)
		case path == "":
			walk(name, f.Type, fields)
		default:
			walk(path+"."+name, f.Type, fields)
		}
	}
}

// isLeaf reports whether a type is one value in JSON.
func isLeaf(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}

// TestHideKeys: a message ends where it names a key, however often it was quoted.
func TestHideKeys(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "",
		"dial tcp: refused":     "dial tcp: refused",
		"ClusterKeys: key 3 is": "ClusterKeys: key 3 is",
		`key "a": disk full`:    "key (hidden)",
		fmt.Sprintf("error=%q", fmt.Errorf("x: key %.64q has 3", "a\"b")):                    `error="x: key (hidden)`,
		fmt.Sprintf("error=%q", fmt.Sprintf("e=%q", fmt.Errorf("look up key %.64q", "a b"))): `error="e=\"look up key (hidden)`,
	} {
		require.Equal(t, want, hideKeys(text))
	}
}

// TestMissing: how many peers are needed, and which count.
func TestMissing(t *testing.T) {
	peer := func(change func(*replicator.PeerStatus)) (p replicator.PeerStatus) {
		p = replicator.PeerStatus{Configured: true, State: replicator.StateWaiting}
		if change != nil {
			change(&p)
		}
		return p
	}
	synced := peer(func(p *replicator.PeerStatus) { p.LastInSync = time.Now() })
	away := peer(nil)
	for name, c := range map[string]struct {
		peers []replicator.PeerStatus
		ready bool
	}{
		"no peer":             {nil, true},
		"0 of 1":              {[]replicator.PeerStatus{away}, false},
		"1 of 1":              {[]replicator.PeerStatus{synced}, true},
		"1 of 2":              {[]replicator.PeerStatus{synced, away}, false},
		"2 of 2":              {[]replicator.PeerStatus{synced, synced}, true},
		"1 of 3":              {[]replicator.PeerStatus{synced, away, away}, false},
		"2 of 3":              {[]replicator.PeerStatus{synced, synced, away}, true},
		"2 of 4":              {[]replicator.PeerStatus{synced, synced, away, away}, false},
		"3 of 4":              {[]replicator.PeerStatus{synced, synced, synced, away}, true},
		"one under two names": {[]replicator.PeerStatus{synced, away, peer(func(p *replicator.PeerStatus) { p.SameAs, p.LastInSync = "a", time.Now() })}, false},
		"one that dialled in": {[]replicator.PeerStatus{away, peer(func(p *replicator.PeerStatus) { p.Configured, p.LastInSync = false, time.Now() })}, false},
	} {
		require.Equal(t, c.ready, len(missing(replicator.Status{Peers: c.peers}, majority)) == 0, name)
	}
}
