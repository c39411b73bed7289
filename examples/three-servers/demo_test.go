package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// visitor is a browser, as far as the demonstration can tell.
type visitor struct {
	t      *testing.T
	url    string
	events *bufio.Reader
}

// visit starts the demonstration, which the end of the test ends.
func visit(t *testing.T) *visitor {
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-http", "127.0.0.1:0"}, strings.NewReader(""), out)
		out.CloseWithError(errors.Join(io.EOF, err))
		done <- err
	}()
	line, err := bufio.NewReader(in).ReadString('\n')
	require.NoError(t, err)
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	v := &visitor{t: t, url: regexp.MustCompile(`http://\S+/`).FindString(line)}
	answer, err := http.Get(v.url + "events")
	require.NoError(t, err)
	t.Cleanup(func() { answer.Body.Close() })
	require.Equal(t, "text/event-stream", answer.Header.Get("Content-Type"))
	v.events = bufio.NewReader(answer.Body)
	return v
}

func (v *visitor) post(path string, fields url.Values, headers ...string) *http.Response {
	v.t.Helper()
	req, err := http.NewRequest(http.MethodPost, v.url+"do/"+path, strings.NewReader(fields.Encode()))
	require.NoError(v.t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
	}
	answer, err := http.DefaultClient.Do(req)
	require.NoError(v.t, err)
	defer answer.Body.Close()
	return answer
}

// ask has the demonstration do something; fields are names and values in turn.
func (v *visitor) ask(path string, fields ...string) {
	v.t.Helper()
	values := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		values.Set(fields[i], fields[i+1])
	}
	require.Equal(v.t, http.StatusNoContent, v.post(path, values).StatusCode, path)
}

// until reads what is shown until it is as wanted.
func (v *visitor) until(what string, holds func(shownState) bool) (st shownState) {
	v.t.Helper()
	began := time.Now()
	for {
		line, err := v.events.ReadString('\n')
		require.NoError(v.t, err)
		data, found := strings.CutPrefix(line, "data: ")
		if !found {
			continue
		}
		st = shownState{}
		require.NoError(v.t, json.Unmarshal([]byte(data), &st))
		if holds(st) {
			return st
		}
		require.Less(v.t, time.Since(began), deadline, "%s: %s", what, data)
	}
}

// value is what a server shows of a key; "" if it does not have it.
func (st shownState) value(i int, key string) string {
	for _, row := range st.Rows {
		if row.Key == key && row.Cells[i] != nil && !row.Cells[i].Deleted {
			return row.Cells[i].Value
		}
	}
	return ""
}

func everywhere(key, value string) func(shownState) bool {
	return func(st shownState) bool {
		for i := range st.Servers {
			if st.value(i, key) != value {
				return false
			}
		}
		return st.Equal
	}
}

func TestDemo(t *testing.T) {
	v := visit(t)
	v.until("the first keys", func(st shownState) bool {
		return st.Equal && len(st.Rows) == 3 && st.Links[0].Up && st.Links[1].Up && st.Links[2].Up
	})
	v.ask("put", "server", "1", "key", "greeting", "value", "good morning")
	v.until("a put", everywhere("greeting", "good morning"))
	v.ask("delete", "server", "2", "key", "greeting")
	v.until("a delete", everywhere("greeting", ""))

	// A link that is cut is gone round, and a server without links is left behind.
	v.ask("link", "link", "0", "cut", "true")
	v.ask("put", "server", "0", "key", "detour", "value", "1")
	v.until("a detour", everywhere("detour", "1"))
	v.ask("link", "link", "1", "cut", "true")
	v.ask("put", "server", "0", "key", "apart", "value", "1")
	st := v.until("a part", func(st shownState) bool { return st.value(2, "apart") == "1" })
	require.Empty(t, st.value(1, "apart"))
	require.True(t, st.Links[0].Cut && st.Links[1].Cut && !st.Links[2].Cut)
	v.ask("links", "cut", "false")
	v.until("a heal", everywhere("apart", "1"))
}

// TestDemoConflict: it takes two requests, and what is shown says who won, and why.
func TestDemoConflict(t *testing.T) {
	v := visit(t)
	for round := range 2 {
		v.until("equal", func(st shownState) bool { return st.Equal && !st.Pending })
		v.ask("conflict")
		st := v.until("a difference", func(st shownState) bool { return st.Differ == 1 && st.Pending })
		a, b := st.value(round, "colour"), st.value(round+1, "colour")
		require.NotEqual(t, a, b)
		v.ask("links", "cut", "false")
		st = v.until("a winner", func(st shownState) bool { return st.Equal && len(st.Conflicts) == round+1 })
		c := st.Conflicts[0]
		require.Equal(t, "colour", c.Key)
		require.ElementsMatch(t, []string{a, b}, []string{c.Won.Value, c.Lost.Value})
		require.ElementsMatch(t, []int{round, round + 1}, []int{c.Won.Stamp.Server, c.Lost.Stamp.Server})
		require.Equal(t, c.Won.Value, st.value(2-round, "colour"))
		if round == 0 {
			require.Equal(t, c.Won.Stamp.Clock, c.Lost.Stamp.Clock)
			require.Greater(t, c.Won.Stamp.Origin, c.Lost.Stamp.Origin)
		} else {
			require.Greater(t, c.Won.Stamp.Clock, c.Lost.Stamp.Clock)
		}
	}
}

// TestDemoLife: servers are closed, opened, copied, wiped and restored, and are equal again.
func TestDemoLife(t *testing.T) {
	v := visit(t)
	v.until("equal", func(st shownState) bool { return st.Equal && len(st.Rows) == 3 })
	v.ask("operate", "server", "2", "what", "close")
	v.ask("put", "server", "0", "key", "missed", "value", "1")
	st := v.until("a closed server", func(st shownState) bool { return st.value(1, "missed") == "1" })
	require.False(t, st.Servers[2].Open)
	require.Equal(t, http.StatusConflict, v.post("put", url.Values{"server": {"2"}, "key": {"k"}}).StatusCode)
	v.ask("operate", "server", "2", "what", "open")
	v.until("it catches up", everywhere("missed", "1"))

	require.Equal(t, http.StatusConflict, v.post("operate", url.Values{"server": {"1"}, "what": {"restore"}}).StatusCode)
	v.ask("operate", "server", "1", "what", "copy")
	v.ask("put", "server", "1", "key", "missed", "value", "2")
	before := v.until("a later value", everywhere("missed", "2"))
	v.ask("operate", "server", "1", "what", "restore")
	after := v.until("it is restored, and catches up", func(st shownState) bool {
		return everywhere("missed", "2")(st) && st.Servers[1].Epoch != before.Servers[1].Epoch
	})
	require.Equal(t, before.Servers[1].ID, after.Servers[1].ID)

	v.ask("operate", "server", "0", "what", "wipe")
	v.until("it is wiped, and gets everything", func(st shownState) bool {
		return everywhere("missed", "2")(st) && st.Servers[0].ID != before.Servers[0].ID
	})
	answer, err := http.Get(v.url + "status/status.json")
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, 3, strings.Count(string(text), `"adoption"`))
}

func TestDemoLoad(t *testing.T) {
	v := visit(t)
	v.ask("load", "on", "true")
	v.until("a load", func(st shownState) bool {
		return st.Load && st.value(0, "visits/3") != "" && st.value(2, "visits/1") != ""
	})
	v.ask("load", "on", "false")
	v.until("an end", func(st shownState) bool { return !st.Load && st.Equal })
}

// TestDemoStrangers: what another site has a browser send is refused.
func TestDemoStrangers(t *testing.T) {
	v := visit(t)
	fields := url.Values{"server": {"0"}, "key": {"k"}, "value": {"v"}}
	require.Equal(t, http.StatusForbidden, v.post("put", fields, "Sec-Fetch-Site", "cross-site").StatusCode)
	require.Equal(t, http.StatusForbidden, v.post("put", fields, "Origin", "http://elsewhere.example").StatusCode)
	require.Equal(t, http.StatusMisdirectedRequest, v.post("put", fields, "Host", "elsewhere.example").StatusCode)
	answer, err := http.Get(v.url + "do/put?server=0&key=k&value=v")
	require.NoError(t, err)
	answer.Body.Close()
	require.Equal(t, http.StatusNotFound, answer.StatusCode)
	for _, bad := range []url.Values{{"server": {"3"}, "key": {"k"}}, {"server": {"0"}}, {"server": {"0"}, "key": {strings.Repeat("k", 300)}}} {
		require.Equal(t, http.StatusConflict, v.post("put", bad).StatusCode)
	}
	require.Empty(t, v.until("nothing was put", func(shownState) bool { return true }).value(0, "k"))
	answer, err = http.Get(v.url)
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Contains(t, answer.Header.Get("Content-Security-Policy"), "default-src 'none'")
}
