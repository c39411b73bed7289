package statuspage_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
	"github.com/stretchr/testify/require"
)

func of(replicas ...*replicator.Replicator) []*replicator.Replicator { return replicas }

// TestPaths: the page is served below any prefix, and tells the browser what it may do.
func TestPaths(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		page := statuspage.Handler(of(w.open("n0", nil)))
		mux := http.NewServeMux()
		mux.Handle("/replica/", page)
		mux.Handle("/stripped/", http.StripPrefix("/stripped", page))
		mux.Handle("/bare", http.StripPrefix("/bare", page))
		for _, prefix := range []string{"/replica/", "/stripped/"} {
			for path, kind := range map[string]string{
				"": "text/html; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "dom.js": "text/javascript; charset=utf-8",
				"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml", "status.json": "application/json", "readyz": "application/json",
			} {
				answer := get(mux, prefix+path)
				require.Equal(t, http.StatusOK, answer.Code, path)
				require.Equal(t, kind, answer.Header().Get("Content-Type"), path)
				require.NotEmpty(t, answer.Body.String(), path)
				policy := answer.Header().Get("Content-Security-Policy")
				require.Contains(t, policy, "default-src 'none'")
				require.Contains(t, policy, "script-src 'self';")
				require.NotContains(t, policy, "unsafe")
				require.Equal(t, "nosniff", answer.Header().Get("X-Content-Type-Options"))
				require.Empty(t, do(mux, http.MethodHead, prefix+"page.js").Body.String())
			}
			for _, path := range []string{"nothing", "..", "page.html.bak", "assets"} {
				require.NotEqual(t, http.StatusOK, get(mux, prefix+path).Code, path)
			}
			require.Equal(t, http.StatusMethodNotAllowed, do(mux, http.MethodPost, prefix+"status.json").Code)
			require.Equal(t, http.StatusMethodNotAllowed, do(mux, http.MethodDelete, prefix).Code)
		}
		answer := get(mux, "/bare")
		require.Equal(t, http.StatusMovedPermanently, answer.Code)
		require.Equal(t, "/bare/", answer.Header().Get("Location"))
	})
}

// TestAssetsAreSafe: no script makes markup of text or runs text, none is in the page
// itself, and nothing is fetched from elsewhere.
func TestAssetsAreSafe(t *testing.T) {
	names, err := filepath.Glob("assets/*")
	require.NoError(t, err)
	more, err := filepath.Glob("../examples/three-servers/demo/*")
	require.NoError(t, err)
	require.NotEmpty(t, more)
	for _, name := range append(names, more...) {
		content, err := os.ReadFile(name)
		require.NoError(t, err)
		text := strings.ReplaceAll(string(content), "http://www.w3.org/2000/svg", "")
		for _, unsafe := range []string{"innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", "DOMParser",
			"srcdoc", "javascript:", "http:", "https:", "//cdn", "@import", "createContextualFragment"} {
			require.NotContains(t, text, unsafe, name)
		}
		if strings.HasSuffix(name, ".html") {
			require.NotRegexp(t, regexp.MustCompile(`(?i)<script(>| [^>]*[^"]>)|\son\w+=|style=|<style`), text, name)
			require.NotRegexp(t, regexp.MustCompile(`<script [^>]*></script>\s*\S`), strings.TrimSuffix(strings.TrimSpace(text), "</html>")+"", name)
		}
	}
}

const (
	secretKey   = "a-secret-key"
	secretValue = "a-secret-value"
	hostileName = `<script>alert(1)</script>"'&`
)

// TestDataIsHidden: without WithData, neither key nor value is shown anywhere; with it
// they are.
func TestDataIsHidden(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.open("n0", []string{"n1"}), w.open("n1", nil)
		syncNow(t, a)
		w.net.Partition([]string{"n0"}, []string{"n1"})
		put(t, a, secretKey, secretValue+"1")
		put(t, b, secretKey, secretValue+"2")
		w.net.Heal()
		syncNow(t, a)
		syncNow(t, b)
		require.NotZero(t, a.Status().Conflicts.Count+b.Status().Conflicts.Count)
		shown := func(h http.Handler) (all string) {
			for _, path := range []string{"/", "/status.json", "/readyz"} {
				all += get(h, path).Body.String()
			}
			s := watch(t, h)
			return all + s.text() + s.text()
		}
		finds := func(text, secret string) bool {
			return strings.Contains(text, secret) || strings.Contains(text, strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "=")[:12])
		}
		for _, options := range [][]statuspage.Option{nil, {statuspage.WithActions()}, {statuspage.WithReadyPeers(1)}} {
			text := shown(statuspage.Handler(of(a, b), options...))
			require.False(t, finds(text, secretKey))
			require.False(t, finds(text, secretValue))
		}
		text := shown(statuspage.Handler(of(a, b), statuspage.WithData()))
		require.True(t, finds(text, secretKey))
		require.True(t, finds(text, secretValue))
		require.True(t, finds(get(statuspage.Handler(of(a, b), statuspage.WithData()), "/status.json").Body.String(), secretKey))
	})
}

// TestHostileNames: what a peer calls itself is markup nowhere.
func TestHostileNames(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.open("n0", []string{"n1"})
		w.open("n1", nil, func(o *replicator.Options) { o.Name = hostileName })
		syncNow(t, a)
		put(t, a, hostileName, hostileName)
		h := statuspage.Handler(of(a), statuspage.WithData(), statuspage.WithActions())
		require.Equal(t, hostileName, a.Status().Peers[0].Name)
		for _, path := range []string{"/", "/status.json", "/readyz"} {
			require.NotContains(t, get(h, path).Body.String(), "<script>alert")
		}
		require.NotContains(t, watch(t, h).text(), "<script>alert")
	})
}

// TestStatusJSON: a program reads it as a Report.
func TestStatusJSON(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.open("n0", []string{"n1"}), w.open("n1", nil)
		syncNow(t, a)
		answer := get(statuspage.Handler(of(a, b)), "/status.json")
		var report statuspage.Report
		require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &report))
		require.Len(t, report.Replicas, 2)
		require.Equal(t, "n0", report.Replicas[0].Name)
		require.Equal(t, b.Status().ID, report.Replicas[1].ID)
		require.Equal(t, replicator.StateInSync, report.Replicas[0].Peers[0].State)
		require.JSONEq(t, `{"replicas": [], "at": "2000-01-01T00:00:00Z"}`, get(statuspage.Handler(nil), "/status.json").Body.String())
	})
}

// TestActions: they need WithActions, POST and the same origin.
func TestActions(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.open("n0", []string{"n1"}), w.open("n1", nil)
		put(t, b, "key", "value")
		readOnly := statuspage.Handler(of(a), statuspage.WithData())
		require.Equal(t, http.StatusMethodNotAllowed, do(readOnly, http.MethodPost, "/sync?replica=0").Code)
		require.Equal(t, http.StatusNotFound, get(readOnly, "/sync?replica=0").Code)

		h := statuspage.Handler(of(a, b), statuspage.WithActions())
		require.Equal(t, http.StatusMethodNotAllowed, get(h, "/sync?replica=0").Code)
		for _, from := range [][]string{
			{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "http://elsewhere.example"}, {"Origin", "null"},
		} {
			require.Equal(t, http.StatusForbidden, do(h, http.MethodPost, "/sync?replica=0", from...).Code, from)
		}
		for _, replica := range []string{"", "2", "-1", "x"} {
			require.Equal(t, http.StatusNotFound, do(h, http.MethodPost, "/sync?replica="+replica).Code)
		}
		answer := do(h, http.MethodPost, "/sync?replica=0", "Sec-Fetch-Site", "same-origin")
		require.Equal(t, http.StatusOK, answer.Code)
		require.NotContains(t, answer.Body.String(), "error")
		value, err := a.Get([]byte("key"), nil)
		require.NoError(t, err)
		require.Equal(t, "value", string(value))

		answer = do(h, http.MethodPost, "/compare?replica=0&peer=n1", "Sec-Fetch-Site", "same-origin")
		require.Equal(t, http.StatusOK, answer.Code)
		require.Contains(t, answer.Body.String(), `"equal": true`)
		require.Equal(t, http.StatusForbidden, do(h, http.MethodPost, "/compare?replica=0&peer=n1", "Sec-Fetch-Site", "cross-site").Code)
		require.Contains(t, do(h, http.MethodPost, "/compare?replica=0&peer=nobody").Body.String(), "error")
		require.Equal(t, http.StatusMethodNotAllowed, do(readOnly, http.MethodPost, "/compare?replica=0&peer=n1").Code)

		require.NoError(t, b.Close())
		answer = do(h, http.MethodPost, "/sync?replica=0", "Origin", "http://example.com") // the host of httptest's requests
		require.Equal(t, http.StatusOK, answer.Code)
		require.Contains(t, answer.Body.String(), "peer n1")
	})
}
