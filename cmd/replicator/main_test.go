package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

var update = flag.Bool("update", false, "rewrite what the transcripts under testdata show")

// run runs the command in this process.
func runHere(ctx context.Context, c *call, args ...string) (out, err string, code int) {
	var stdout, stderr bytes.Buffer
	c.Context, c.out, c.err = ctx, &stdout, &stderr
	if c.now == nil {
		c.now = time.Now
	}
	if c.wait == nil {
		c.wait = pause
	}
	code = run(c, args)
	return stdout.String(), stderr.String(), code
}

// TestTranscripts runs the commands of the transcripts, and compares what they print and
// their exit codes. To accept a change: go test ./cmd/replicator -run TestTranscripts -update
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.Greater(t, len(files), 5)
	url := pages(t)
	databases := makeDatabases(t)
	testdata, err := filepath.Abs("testdata")
	require.NoError(t, err)
	t.Chdir(databases)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			file = filepath.Join(testdata, filepath.Base(file))
			golden, err := os.ReadFile(file)
			require.NoError(t, err)
			var found strings.Builder
			for text := range strings.Lines(string(golden)) {
				command, is := strings.CutPrefix(text, "$ replicator")
				if !is {
					continue
				}
				ctx, cancel := context.WithCancel(t.Context())
				rounds := 0
				c := &call{wait: func(context.Context, time.Duration) {
					if rounds++; rounds == 2 {
						cancel()
					}
				}}
				out, errs, code := runHere(ctx, c, strings.Fields(strings.ReplaceAll(command, "URL", url))...)
				cancel()
				fmt.Fprintf(&found, "$ replicator%s", command)
				places := strings.NewReplacer(url, "URL", databases+string(filepath.Separator), "")
				found.WriteString(places.Replace(out))
				for line := range strings.Lines(places.Replace(errs)) {
					found.WriteString("stderr: " + line)
				}
				fmt.Fprintf(&found, "exit code %d\n\n", code)
			}
			if *update {
				golden = []byte(found.String())
				require.NoError(t, os.WriteFile(file, golden, 0o666))
			}
			require.Equal(t, string(golden), found.String())
		})
	}
}

// makeDatabases makes databases that are always the same, each in a directory of its own,
// and returns the directory that they are in. The one that is called "open" is open.
func makeDatabases(t *testing.T) string {
	dir := t.TempDir()
	change := func(name, from string, change func(db *leveldb.DB)) {
		path := filepath.Join(dir, name)
		if from != "" {
			require.NoError(t, os.CopyFS(path, os.DirFS(filepath.Join("../../testdata/format2", from))))
		}
		if change == nil {
			return
		}
		db, err := leveldb.OpenFile(path, nil)
		require.NoError(t, err)
		change(db)
		if name != "open" {
			require.NoError(t, db.Close())
			return
		}
		t.Cleanup(func() { require.NoError(t, db.Close()) })
	}
	put := func(db *leveldb.DB, key string, value []byte) { require.NoError(t, db.Put([]byte(key), value, nil)) }
	index := func(key string) string { return "\xffreplicator\xffi" + key }
	record := func(op byte, clock uint64, origin replicator.Origin) []byte {
		b := binary.AppendUvarint([]byte{op}, clock)
		return binary.AppendUvarint(binary.BigEndian.AppendUint64(b, uint64(origin)), 9)
	}
	change("closed", "closed", nil)
	change("killed", "killed", nil)
	change("open", "closed", func(*leveldb.DB) {})
	change("other", "closed", func(db *leveldb.DB) {
		put(db, "put", []byte("later"))
		put(db, index("put"), record(1, 9, 1<<63|7))
		put(db, index("changed"), record(1, 1, 1<<63|7))
		put(db, index("gone"), record(2, 9, 1<<63|7))
		put(db, "adopted", []byte("around"))
		put(db, "new", []byte("around"))
		require.NoError(t, db.Delete([]byte("from the peer"), nil))
		require.NoError(t, db.Delete([]byte(index("from the peer")), nil))
		require.NoError(t, db.Delete([]byte(index("deleted")), nil)) // the vector covers it
	})
	change("local", "closed", func(db *leveldb.DB) {
		put(db, "\xffreplicator\xffmprefix", []byte("here/"))
		put(db, "here/index", []byte("value"))
	})
	change("corrupt", "closed", func(db *leveldb.DB) { put(db, index("changed"), []byte{99}) })
	change("foreign", "", func(db *leveldb.DB) {
		put(db, "a", nil)
		put(db, "b", nil)
	})
	change("future", "closed", func(db *leveldb.DB) { put(db, "\xffreplicator\xffmformat", []byte{9, 1}) })
	require.NoError(t, os.Mkdir(filepath.Join(dir, "empty"), 0o777))
	return dir
}

// pages serves pages of replicas in several states, and returns the address.
func pages(t *testing.T) string {
	text, err := os.ReadFile("../../statuspage/testdata/status.json")
	require.NoError(t, err)
	report := func(change func(r *statuspage.Report, s *replicator.Status, p *replicator.PeerStatus)) http.HandlerFunc {
		var r statuspage.Report
		require.NoError(t, json.Unmarshal(text, &r))
		s := &r.Replicas[0]
		p := &s.Peers[0]
		s.Closed, s.Failed, s.Adoption.LastError, s.Opened = false, "", "", r.At.Add(-3*time.Hour)
		p.SameAs, p.Lag, p.LastSuccess, p.State, p.Scan, p.LastError = "", new(time.Duration), r.At, replicator.StateInSync, nil, ""
		change(&r, s, p)
		return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(r) }
	}
	away := func(p *replicator.PeerStatus) {
		p.State, p.DialedBy, p.Lag, p.Name, p.LastError = replicator.StateWaiting, "", nil, "", "dial tcp: refused"
	}
	mux := http.NewServeMux()
	serve := func(name string, h http.HandlerFunc) { mux.HandleFunc("/"+name+"/status.json", h) }
	serve("replica", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(text) })
	serve("good", report(func(*statuspage.Report, *replicator.Status, *replicator.PeerStatus) {}))
	serve("lag", report(func(_ *statuspage.Report, _ *replicator.Status, p *replicator.PeerStatus) { *p.Lag = 90 * time.Second }))
	serve("incomplete", report(func(_ *statuspage.Report, _ *replicator.Status, p *replicator.PeerStatus) {
		p.State = replicator.StateIncomplete
	}))
	serve("stale", report(func(_ *statuspage.Report, _ *replicator.Status, p *replicator.PeerStatus) {
		p.State = replicator.StateStale
	}))
	serve("away", report(func(r *statuspage.Report, _ *replicator.Status, p *replicator.PeerStatus) {
		away(p)
		p.LastSuccess = r.At.Add(-time.Hour)
	}))
	serve("never", report(func(_ *statuspage.Report, s *replicator.Status, p *replicator.PeerStatus) {
		away(p)
		p.LastSuccess, s.Name = time.Time{}, ""
	}))
	serve("adoption", report(func(_ *statuspage.Report, s *replicator.Status, p *replicator.PeerStatus) {
		s.Adoption.Done, s.Adoption.LastError = false, "disk\nfull"
		p.Configured, p.Lag = false, nil
	}))
	serve("failed", report(func(r *statuspage.Report, s *replicator.Status, p *replicator.PeerStatus) {
		s.Failed = "disk | full"
		r.Replicas = append(r.Replicas, replicator.Status{Name: "second", Closed: true})
	}))
	serve("junk", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") })
	serve("other", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	change := func(clock uint64, key, value string, local bool) string {
		version := replicator.Version{Stamp: replicator.Stamp{Clock: clock, Origin: 1<<63 | 7}, Deleted: value == ""}
		s := seen{Key: []byte(key), Version: version, Local: local}
		if !version.Deleted {
			s.Value, s.Size = []byte(value), len(value)
		}
		if value == "large" {
			s.Value, s.Size = nil, 0
		}
		if value == "long" {
			s.Size = 1000
		}
		b, err := json.Marshal(s)
		require.NoError(t, err)
		return string(b)
	}
	events := func(name string, data bool, frames ...[]string) {
		mux.HandleFunc("/"+name+"/events", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "retry: 1000\n")
			for _, changes := range frames {
				fmt.Fprintf(w, `data: {"at":"2026-11-24T12:00:00Z","replicas":[{"name":"berlin"}],"data":%t,"more":[{"changes":[%s]}]}`+"\n\n", data, strings.Join(changes, ","))
			}
		})
	}
	a, b, c := change(1, "a", "one", true), change(2, "b", "", false), change(3, "c", "long", true)
	events("replica", true, []string{}, []string{a, b}, []string{a, b}, []string{b, c}, []string{change(9, "d\x00", "large", false)})
	events("hidden", false, []string{})
	mux.HandleFunc("/junk/events", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "data: <html>\n\n") })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// TestOfflineWritesNothing: commands that look into a database leave its files as they are.
func TestOfflineWritesNothing(t *testing.T) {
	t.Chdir(makeDatabases(t))
	files := func() map[string]string {
		all := map[string]string{}
		for _, dir := range []string{"closed", "killed", "other", "corrupt", "foreign"} {
			names, err := filepath.Glob(dir + "/*")
			require.NoError(t, err)
			for _, name := range names {
				content, err := os.ReadFile(name)
				require.NoError(t, err)
				all[name] = string(content)
			}
		}
		return all
	}
	for _, dir := range []string{"closed", "killed"} { // leveldb makes it, whoever opens a database
		require.NoError(t, os.WriteFile(dir+"/LOCK", nil, 0o666))
	}
	before := files()
	for _, dir := range []string{"closed", "killed", "other", "corrupt", "foreign"} {
		for _, command := range []string{"inspect DIR", "log DIR", "compare DIR closed", "verify DIR", "backup DIR copy-of-DIR"} {
			_, _, _ = runHere(t.Context(), new(call), strings.Fields(strings.ReplaceAll(command, "DIR", dir))...)
			require.Equal(t, before, files(), "%s %s", command, dir)
		}
	}
	for _, dir := range []string{"closed", "killed", "other", "corrupt"} {
		require.DirExists(t, "copy-of-"+dir)
	}
}

// TestBackupKeepsOptions: a copy has the limit on values and the kind of clock of its
// original, so that it opens with the same options.
func TestBackupKeepsOptions(t *testing.T) {
	dir := t.TempDir()
	data, copied := filepath.Join(dir, "data"), filepath.Join(dir, "copy")
	o := &replicator.Options{MaxValueSize: 100, Clock: replicator.Hybrid}
	r, err := replicator.OpenFile(data, nil, o)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
	require.NoError(t, r.Close())
	_, errs, code := runHere(t.Context(), new(call), "backup", data, copied)
	require.Zero(t, code, errs)
	out, _, _ := runHere(t.Context(), new(call), "inspect", "-json", copied)
	require.Contains(t, out, `"maxValueSize": 100,`)
	require.Contains(t, out, `"clockKind": "Hybrid",`)
	r, err = replicator.OpenFile(copied, nil, o)
	require.NoError(t, err)
	value, err := r.Get([]byte("key"), nil)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))
	require.NoError(t, r.Close())
}

// running is a serve command that runs.
type running struct {
	served
	t    *testing.T
	stop func()
	errs *bytes.Buffer
	code chan int
}

// lineWriter hands over what is written to it.
type lineWriter chan []byte

func (w lineWriter) Write(b []byte) (int, error) {
	w <- bytes.Clone(b)
	return len(b), nil
}

// serve runs the command until it is stopped, or the test is over.
func serve(t *testing.T, args ...string) *running {
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, stop: cancel, errs: new(bytes.Buffer), code: make(chan int, 1)}
	out := make(lineWriter, 16)
	go func() {
		r.code <- run(&call{Context: ctx, out: out, err: r.errs, now: time.Now, wait: pause}, append([]string{"serve", "-json"}, args...))
	}()
	select {
	case line := <-out:
		require.NoError(t, json.Unmarshal(line, &r.served))
	case code := <-r.code:
		t.Fatalf("exit code %d: %s", code, r.errs)
	}
	t.Cleanup(func() {
		if cancel(); r.code != nil {
			<-r.code
		}
	})
	return r
}

// end interrupts the command, and checks that it ends well.
func (r *running) end() {
	r.stop()
	require.Zero(r.t, <-r.code, r.errs)
	r.code = nil
}

// TestServe runs a replica that shares a key with one of the test's own, and looks at it
// with the other commands.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	key, data := filepath.Join(dir, "cluster.key"), filepath.Join(dir, "data")
	out, errs, code := runHere(t.Context(), new(call), "keygen", key)
	require.Zero(t, code, errs)
	require.Contains(t, out, key)
	secret, err := os.ReadFile(key)
	require.NoError(t, err)
	require.Regexp(t, `^[-_A-Za-z0-9]{43}$`, string(secret))
	info, err := os.Stat(key)
	require.NoError(t, err)
	require.Zero(t, info.Mode()&0o077&^0o111)
	_, errs, code = runHere(t.Context(), new(call), "keygen", key)
	require.Equal(t, exitError, code)
	require.Contains(t, errs, "exists")

	s := serve(t, "-path", data, "-listen", "127.0.0.1:0", "-http", "127.0.0.1:0", "-data", "-actions", "-name", "hub", "-key-file", key)
	_, errs, code = runHere(t.Context(), new(call), "inspect", data)
	require.Equal(t, exitError, code)
	require.Contains(t, errs, "replicator status URL")
	_, errs, code = runHere(t.Context(), new(call), "serve", "-path", data)
	require.Equal(t, exitError, code)
	require.Contains(t, errs, "open in another process")

	peer, err := replicator.OpenFile(filepath.Join(dir, "peer"), nil, &replicator.Options{
		ClusterKeys: [][]byte{secret}, Peers: map[string]replicator.Meta{s.Listening: nil}, Listen: "127.0.0.1:0",
	})
	require.NoError(t, err)
	defer peer.Close()
	require.NoError(t, peer.Put([]byte("key"), []byte("value"), nil))
	require.NoError(t, peer.WaitMerged(t.Context(), 1))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := make(lineWriter, 16)
	watched := make(chan int)
	go func() {
		watched <- run(&call{Context: ctx, out: changes, err: new(bytes.Buffer), now: time.Now, wait: pause}, []string{"watch", "-changes", "-json", s.Page})
	}()
	var seen seenLine
	require.NoError(t, json.Unmarshal(<-changes, &seen))
	require.Equal(t, "key", string(seen.Key))
	require.Equal(t, "value", string(seen.Value))
	require.Equal(t, "hub", seen.Replica)
	require.False(t, seen.Local)
	cancel()
	require.Zero(t, <-watched)

	out, _, code = runHere(t.Context(), new(call), "status", s.Page)
	require.Zero(t, code)
	require.Contains(t, out, s.ID.String())
	out, _, code = runHere(t.Context(), new(call), "check", s.Page+"status.json")
	require.Zero(t, code)
	require.Equal(t, "OK: 0 peers\n", out) // one that dials in is not expected

	// One that dials is judged.
	copied := serve(t, "-path", filepath.Join(dir, "copy"), "-peers", " "+s.Listening+",", "-http", "127.0.0.1:0", "-key-file", key)
	require.Eventually(t, func() bool {
		out, _, code = runHere(t.Context(), new(call), "check", "-max-lag", "1m", copied.Page)
		return code == 0 && strings.HasPrefix(out, "OK: 1 peer, greatest lag 0 s | lag=0s;60")
	}, 20*time.Second, 10*time.Millisecond, "%s", &out)
	copied.end()

	require.NoError(t, peer.Close())
	s.end()
	out, _, code = runHere(t.Context(), new(call), "inspect", data)
	require.Zero(t, code)
	require.Regexp(t, `closed +cleanly\n`, out)
	out, _, code = runHere(t.Context(), new(call), "compare", data, filepath.Join(dir, "copy"))
	require.Zero(t, code, out)
}

// TestServeRefuses: what can't be served is told.
func TestServeRefuses(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "short"), []byte("secret"), 0o600))
	for args, want := range map[string]string{
		"":                                   "-path is required",
		"-path DIR/a extra":                  "needs no arguments, got 1 argument",
		"-path DIR/a -key-file x":            "no such file",
		"-path DIR/a -http nowhere":          "missing port",
		"-path DIR/a -listen 192.0.2.1:8000": "permit it (-key-file, -insecure)",
		"-path DIR/a -listen 127.0.0.1:0 -key-file DIR/short": "at least 32 are required",
		"-path DIR/short":              "not a directory",
		"-path DIR/a -peers 127.0.0.1": "missing port",
		"-path DIR/a -peers ,":         "there is no address in it",
		"-path DIR/a -listen 127.0.0.1:0 -http 127.0.0.1:0 -nowhere": "not defined: -nowhere",
	} {
		_, errs, code := runHere(t.Context(), new(call), append([]string{"serve"}, strings.Fields(strings.ReplaceAll(args, "DIR", dir))...)...)
		require.Equal(t, exitError, code, args)
		require.Contains(t, errs, want, args)
	}
}

// TestUnreachable: a page that does not answer is critical for check, and an error for others.
func TestUnreachable(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	out, errs, code := runHere(t.Context(), new(call), "check", gone.URL)
	require.Equal(t, exitError, code)
	require.Empty(t, errs)
	require.Regexp(t, "^CRITICAL: .*refused.*\n$", out)
	for _, command := range []string{"status", "watch", "watch -changes"} {
		out, errs, code = runHere(t.Context(), new(call), append(strings.Fields(command), gone.URL)...)
		require.Equal(t, exitError, code)
		require.Empty(t, out)
		require.Contains(t, errs, "refused")
	}
	r, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	defer r.Close()
	out, _, code = runHere(t.Context(), new(call), "check", r.Addr().String())
	require.Equal(t, exitError, code)
	require.Contains(t, out, "is no HTTP server", "the port of a replica is not that of its page")
	hung := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	defer slow.Close()
	defer close(hung)
	out, _, code = runHere(t.Context(), new(call), "check", "-timeout", "10ms", slow.URL)
	require.Equal(t, exitError, code)
	require.Contains(t, out, "deadline exceeded")
}

// TestWatchGoesOn: a page that is away for a moment does not end watching.
func TestWatchGoesOn(t *testing.T) {
	asked := 0
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if asked++; asked == 2 {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		if strings.HasSuffix(req.URL.Path, "events") {
			fmt.Fprint(w, `data: {"data":true}`+"\n\n")
			return
		}
		fmt.Fprint(w, `{"at":"2026-11-24T12:00:00Z","replicas":[{"name":"berlin"}]}`)
	}))
	defer page.Close()
	for _, args := range [][]string{{"watch", page.URL}, {"watch", "-json", page.URL}, {"watch", "-changes", page.URL}} {
		asked = 0
		ctx, cancel := context.WithCancel(t.Context())
		c := &call{outTTY: true, wait: func(context.Context, time.Duration) {
			if asked == 4 {
				cancel()
			}
		}}
		out, errs, code := runHere(ctx, c, args...)
		cancel()
		require.Zero(t, code, errs)
		require.Contains(t, errs, "503")
		if len(args) == 2 {
			require.Equal(t, 3, strings.Count(out, clear+"2026-11-24 12:00:00\nberlin  head 0"))
		}
	}
}

// TestProgress: work of more than a second is shown at a terminal, and nowhere else.
func TestProgress(t *testing.T) {
	now := time.Unix(0, 0)
	for _, tty := range []bool{true, false} {
		var out bytes.Buffer
		c := &call{err: &out, errTTY: tty, now: func() time.Time { return now }}
		p := c.progress("reading")
		p.at(1, 4)
		now = now.Add(900 * time.Millisecond)
		p.at(1, 4)
		require.Empty(t, out.String())
		now = now.Add(300 * time.Millisecond)
		p.at(1, 4)
		p.at(2, 4) // too early
		now = now.Add(time.Second)
		p.at(4, 4)
		now = now.Add(time.Second)
		p.at(5, 0)
		now = now.Add(time.Second)
		p.at(0, 0)
		p.done()
		now = now.Add(time.Second)
		p.at(1, 4)
		p.done()
		if !tty {
			require.Empty(t, out.String())
			continue
		}
		lines := strings.Split(strings.Trim(out.String(), "\r"), "\r")
		for i, want := range []string{
			"reading [#######-----------------------] 25 %, 1.2 s, about 3.6 s left",
			"reading [##############################] 100 %, 2.2 s",
			"reading: 5, 3.2 s",
			"reading: 4.2 s",
			"",
		} {
			require.Equal(t, want, strings.TrimRight(lines[i], " "))
		}
	}
	var out bytes.Buffer
	c := &call{err: &out, errTTY: true, now: func() time.Time { return now.Add(time.Minute) }}
	p := c.progress("reading")
	p.began = now
	p.tick()
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return strings.Contains(out.String(), "reading: 60 s")
	}, 10*time.Second, time.Millisecond)
	p.done()
	require.True(t, strings.HasSuffix(out.String(), "\r"))
}

// TestFormats: figures as texts show them.
func TestFormats(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 123 << 20: "123 MiB", 5 << 40: "5.0 TiB", 5 << 50: "5120 TiB"} {
		require.Equal(t, want, bytesOf(n))
	}
	for d, want := range map[time.Duration]string{
		-1: "0 s", 0: "0 s", 5 * time.Microsecond: "5 µs", 12 * time.Millisecond: "12 ms", 1500 * time.Millisecond: "1.5 s", 90 * time.Second: "90 s",
		5 * time.Minute: "5 min", 3 * time.Hour: "3 h", 72 * time.Hour: "3 days",
	} {
		require.Equal(t, want, span(d))
	}
	require.Equal(t, "1,234,567", number(1234567))
	require.Equal(t, "999", number(999))
	require.Equal(t, "1,000", number(1000))
	require.Equal(t, "never", moment(time.Time{}))
	require.Equal(t, fmt.Sprintf("%q… (100 bytes)", strings.Repeat("k", 64)), quote(bytes.Repeat([]byte("k"), 100)))
}

// TestPages: how the address of a page may be written.
func TestPages(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:8080":            "http://127.0.0.1:8080/",
		"host/replica":              "http://host/replica/",
		"https://u:p@host/replica/": "https://u:p@host/replica/",
		"http://host/a/status.json": "http://host/a/",
		"http://host/readyz?x#y":    "http://host/",
		"http://host:1/x/events":    "http://host:1/x/",
		"ftp://host":                "", "http://": "", "": "",
	} {
		p, err := newPage(text)
		if want == "" {
			require.Error(t, err, text)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want, p.base.String())
	}
}

// TestVersion: the version is that of the module, and may be unknown.
func TestVersion(t *testing.T) {
	require.Equal(t, "(unknown)", versionIn(nil).Version)
	out, _, code := runHere(t.Context(), new(call), "version", "-json")
	require.Zero(t, code)
	var v versionInfo
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	require.NotEmpty(t, v.Go)
	out, _, code = runHere(t.Context(), new(call), "version")
	require.Zero(t, code)
	require.Regexp(t, `^replicator .+, go.+\n$`, out)
}

// TestInterrupted: an interrupt ends reading.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	databases := makeDatabases(t)
	for _, command := range []string{"log DIR/closed", "compare DIR/closed DIR/other", "backup DIR/closed DIR/copy"} {
		_, errs, code := runHere(ctx, new(call), strings.Fields(strings.ReplaceAll(command, "DIR", databases))...)
		require.Equal(t, exitError, code)
		require.Contains(t, errs, context.Canceled.Error())
	}
}

// failing is a writer that fails.
type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// TestOutputFails: what can't be written ends the command.
func TestOutputFails(t *testing.T) {
	url := pages(t)
	databases := makeDatabases(t)
	for _, command := range []string{
		"log DIR/closed", "log -json DIR/closed", "compare -json DIR/closed DIR/other", "inspect -json DIR/closed", "verify -json DIR/closed", "backup -json DIR/closed DIR/copy",
		"status -json URL/replica", "watch -json URL/replica", "watch -changes URL/replica", "watch -changes -json URL/replica", "check -json URL/good",
	} {
		var errs bytes.Buffer
		c := &call{Context: t.Context(), out: failing{}, err: &errs, now: time.Now, wait: pause}
		require.Equal(t, exitError, run(c, strings.Fields(strings.NewReplacer("DIR", databases, "URL", url).Replace(command))), command)
		require.Contains(t, errs.String(), "broken pipe", command)
	}
}

// TestCommandLinesInDocs: what documents and help tell users to type is understood.
func TestCommandLinesInDocs(t *testing.T) {
	texts := map[string]string{}
	for _, name := range []string{"README.md", "SECURITY.md", "docs/OPERATING.md", "docs/COMMAND.md", "docs/COMPARISON.md", "RELEASING.md", "CONTRIBUTING.md"} {
		text, err := os.ReadFile(filepath.Join("../..", name))
		require.NoError(t, err)
		texts[name] = string(text)
	}
	for _, k := range commands {
		texts[k.name+" -h"] = k.help
	}
	lines := 0
	for name, text := range texts {
		for _, line := range regexp.MustCompile(`(?m)^ *replicator (\w+)(.*)$`).FindAllStringSubmatch(text, -1) {
			if !strings.HasPrefix(line[0], " ") && strings.HasSuffix(name, " -h") || line[1] == "help" {
				continue // prose
			}
			i := slices.IndexFunc(commands, func(k *command) bool { return k.name == line[1] })
			require.GreaterOrEqual(t, i, 0, "%s: %s", name, line[0])
			args := strings.Fields(line[2])
			if end := slices.IndexFunc(args, func(a string) bool { return strings.ContainsAny(a, "|<>;#") }); end >= 0 {
				args = args[:end]
			}
			_, err := commands[i].parse(new(call), args)
			require.NoError(t, err, "%s: %s", name, line[0])
			lines++
		}
	}
	require.Greater(t, lines, 20)
}

// TestCommandsAreDocumented: docs/COMMAND.md has every command with all its flags, and every
// field of what -json prints.
func TestCommandsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/COMMAND.md")
	require.NoError(t, err)
	var sections []string
	for _, s := range regexp.MustCompile("(?m)^### `(\\w+)").FindAllStringSubmatch(string(text), -1) {
		sections = append(sections, s[1])
	}
	var names []string
	for _, k := range commands {
		names = append(names, k.name)
		_, section, found := strings.Cut(string(text), "### `"+k.name)
		require.True(t, found, k.name)
		section, _, _ = strings.Cut(section, "\n### ")
		c := &call{flags: flag.NewFlagSet(k.name, flag.ContinueOnError)}
		k.setup(c)
		c.flags.VisitAll(func(f *flag.Flag) {
			require.Contains(t, section, "`-"+f.Name, "%s lacks a flag", k.name)
		})
		require.Contains(t, k.help, "\n  replicator "+k.name, "the help has no example")
	}
	require.Equal(t, names, sections)
	for name, value := range map[string]any{
		"inspect": replicator.Inspection{}, "log": replicator.LogRecord{}, "compare": comparison{}, "verify": replicator.Report{}, "backup": backedUp{}, "serve": served{},
		"watch": seenLine{}, "check": verdict{}, "version": versionInfo{},
	} {
		var rows []string
		_, section, _ := strings.Cut(string(text), "### `"+name)
		section, _, _ = strings.Cut(section, "\n### ")
		for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
			rows = append(rows, row[1])
		}
		fields := fieldsOf(value)
		slices.Sort(fields)
		slices.Sort(rows)
		require.Equal(t, strings.Join(fields, "\n"), strings.Join(rows, "\n"), name)
	}
}
