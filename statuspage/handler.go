package statuspage

import (
	"embed"
	"encoding/json"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/level-replicator/replicator"
)

// This file owns the handler: its options, and which path leads where.

//go:embed assets
var assets embed.FS

// Option changes what a Handler shows and does.
type Option func(*handler)

// WithData shows keys and values: of the latest changes, of conflicts, and where a scan is.
func WithData() Option { return func(h *handler) { h.data = true } }

// WithActions lets the page's readers act: ask for SyncNow, and for Compare with a peer.
// Actions are POST requests, and those that a browser sends from another origin are refused.
func WithActions() Option { return func(h *handler) { h.actions = true } }

// WithReadyPeers sets the number of configured peers that a replica must have been in sync
// with since Open, for readyz to answer 200.
//
// With 0 or less, an open replica is ready at once. One with fewer configured peers than n is
// never ready.
//
// The default value is more than half of the configured peers. Of two peers, that is both:
// give 1 if a replica is to be ready while one of three servers is down.
func WithReadyPeers(n int) Option { return func(h *handler) { h.readyPeers = max(n, 0) } }

// majority is the default of readyPeers.
const majority = -1

type handler struct {
	replicas   []*replicator.Replicator
	data       bool
	actions    bool
	readyPeers int // or majority
	origin     *http.CrossOriginProtection
	counts     []atomic.Pointer[counted] // of each replica
	hub        *hub
}

// Handler returns a handler for the page of some replicas. They are shown in the order
// given, and may be closed while the handler is in use. The handler works while somebody
// looks, and keeps no goroutine otherwise. Streams of events end with their connections:
// http.Server.Close ends them, and Shutdown waits for them.
func Handler(replicas []*replicator.Replicator, options ...Option) http.Handler {
	h := &handler{replicas: slices.Clone(replicas), readyPeers: majority, origin: http.NewCrossOriginProtection()}
	h.counts = make([]atomic.Pointer[counted], len(replicas))
	for _, o := range options {
		o(h)
	}
	h.hub = &hub{view: h.view, count: h.count}
	return h
}

// ServeHTTP goes by the last element of the path, so that it works below any prefix.
func (h *handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "+
		"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")
	_, name := path.Split(req.URL.Path)
	if do := actions[name]; do != nil && h.actions {
		h.act(w, req, do)
		return
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are served here", http.StatusMethodNotAllowed)
		return
	}
	switch name {
	case "status.json":
		writeJSON(w, http.StatusOK, h.report())
	case "readyz":
		h.serveReadiness(w)
	case "events":
		h.hub.serve(w, req)
	case "":
		if req.URL.Path == "" { // the page's links are relative
			full, _, _ := strings.Cut(req.RequestURI, "?")
			http.Redirect(w, req, path.Base(full)+"/", http.StatusMovedPermanently)
			return
		}
		serveAsset(w, req, "page.html")
	default:
		serveAsset(w, req, name)
	}
}

// types are those of the assets. What the system believes of them varies.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

func serveAsset(w http.ResponseWriter, req *http.Request, name string) {
	content, err := assets.ReadFile("assets/" + name)
	if err != nil {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", types[path.Ext(name)])
	w.Header().Set("Cache-Control", "no-cache")
	if req.Method == http.MethodGet {
		_, _ = w.Write(content) // the reader may have left
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // the reader may have left
}
