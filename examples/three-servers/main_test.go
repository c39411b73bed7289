package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStory(t *testing.T) {
	files := "600"
	if testing.Short() {
		files = "60"
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{"-files", files}, strings.NewReader(""), &out)
	require.NoError(t, err, out.String())
	t.Log(out.String())
	for _, fact := range []string{
		"each of the three held all " + files + " files",
		"its clock is the greatest",
		"its origin is the greatest",
		"it is gone on all three",
		"server 3 is back, dials the others, and has all of them",
		"Every check passed.",
	} {
		require.Contains(t, out.String(), fact)
	}
	digests := regexp.MustCompile(`(?m)^ +([0-9a-f]{64})$`).FindAllStringSubmatch(out.String(), -1)
	require.Len(t, digests, 3)
	require.Equal(t, digests[0][1], digests[1][1])
	require.Equal(t, digests[0][1], digests[2][1])
}

func TestStoryIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, run(ctx, nil, strings.NewReader(""), io.Discard), context.Canceled)
}

func TestFlags(t *testing.T) {
	for name, c := range map[string]struct{ args, want string }{
		"unknown flag":      {"-sever 1", "not defined: -sever"},
		"no number":         {"-server one", `invalid value "one"`},
		"no such server":    {"-server 4", "must be 1, 2 or 3"},
		"argument":          {"-server 1 extra", `unexpected argument "extra"`},
		"dir of a story":    {"-dir x", "need -server"},
		"files of a server": {"-server 1 -files 3", "exclude each other"},
		"negative files":    {"-files -1", "must not be negative"},
		"http and others":   {"-http 127.0.0.1:0 -files 3", "excludes the other flags"},
		"bad address":       {"-http nowhere", "missing port"},
		"peer without port": {"-server 1 -dir DIR -listen 127.0.0.1:0 -peers 127.0.0.1", "missing port"},
		"not loopback":      {"-server 1 -dir DIR -listen 192.0.2.1:8000", "not a loopback address"},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(strings.ReplaceAll(c.args, "DIR", t.TempDir()))
			err := run(t.Context(), args, strings.NewReader(""), io.Discard)
			require.ErrorContains(t, err, c.want)
		})
	}
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-help"}, strings.NewReader(""), &out))
	require.Contains(t, out.String(), "usage:")
}

func TestServers(t *testing.T) {
	dir := t.TempDir()
	first := startServer(t, t.Context(), "-server", "1", "-dir", filepath.Join(dir, "1"), "-listen", "127.0.0.1:0", "-peers", "")
	addr := regexp.MustCompile(`listens on (\S+)`).FindStringSubmatch(first.until("type help"))[1]
	ctx, interrupt := context.WithCancel(t.Context())
	second := startServer(t, ctx, "-server", "2", "-dir", filepath.Join(dir, "2"), "-listen", "127.0.0.1:0", "-peers", addr)

	first.enter("put greeting good morning")
	second.ask("get greeting", "good morning\n")
	second.enter("del greeting")
	first.ask("get greeting", "error: leveldb: not found")

	source := filepath.Join(dir, "source", "deep")
	require.NoError(t, os.MkdirAll(source, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(source, "a.txt"), []byte("from a file"), 0o644))
	second.enter("load " + filepath.Dir(source))
	second.until("loaded 1 files")
	first.ask("list deep/", `deep/a.txt = "from a file", 11 bytes`)
	first.ask("status", "peer 127.0.0.1")

	for command, answer := range map[string]string{
		"fly":           `error: unknown command "fly"`,
		"put":           "error: put of what?",
		"put key":       "error: put needs a key and a value",
		"load no-where": "error: ",
		"help":          "quit            stop",
	} {
		first.ask(command, answer)
	}

	interrupt()
	require.NoError(t, <-second.done)
	require.NoError(t, first.in.Close())
	require.NoError(t, <-first.done)

	// The data was kept, and quit ends it before the end of the input.
	again := startServer(t, t.Context(), "-server", "1", "-dir", filepath.Join(dir, "1"), "-listen", "127.0.0.1:0", "-peers", "")
	again.ask("get deep/a.txt", "from a file")
	again.enter("quit")
	require.NoError(t, <-again.done)
}

// terminal is a server as its user sees it.
type terminal struct {
	t    *testing.T
	in   io.WriteCloser
	done chan error

	mu  sync.Mutex // guards the fields below
	out bytes.Buffer
}

func startServer(t *testing.T, ctx context.Context, args ...string) *terminal {
	stdin, in := io.Pipe()
	term := &terminal{t: t, in: in, done: make(chan error, 1)}
	go func() {
		err := run(ctx, args, stdin, term)
		stdin.CloseWithError(fmt.Errorf("the server has ended: %w", err))
		term.done <- err
	}()
	return term
}

func (term *terminal) Write(p []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.out.Write(p)
}

func (term *terminal) enter(line string) {
	term.t.Helper()
	_, err := io.WriteString(term.in, line+"\n")
	require.NoError(term.t, err)
}

func (term *terminal) output() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.out.String()
}

// until waits for what the server prints by itself.
func (term *terminal) until(text string) string {
	term.t.Helper()
	require.Eventually(term.t, func() bool { return strings.Contains(term.output(), text) }, deadline, time.Millisecond, text)
	return term.output()
}

// ask repeats a command until it is answered with the text.
func (term *terminal) ask(command, text string) {
	term.t.Helper()
	before := len(term.output())
	for began := time.Now(); !strings.Contains(term.output()[before:], text); time.Sleep(5 * time.Millisecond) {
		require.Less(term.t, time.Since(began), deadline, "%s: %s", command, text)
		term.enter(command)
	}
}

const deadline = 10 * time.Second
