package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

//go:embed demo
var demoFiles embed.FS

const (
	lookEvery = 200 * time.Millisecond
	maxInput  = 200 // bytes of a key or value that the page may send
)

// site serves a demo to browsers.
type site struct {
	d      *demo
	origin *http.CrossOriginProtection
	ctx    context.Context // the streams end with it

	mu     sync.Mutex // guards the fields below
	latest []byte
	fresh  chan struct{} // closed when there is something newer than latest

	shown      [3]*replicator.Replicator // by the status page
	status     http.Handler
	statusDone context.Context // done when the status page is of replicas that are gone
	statusEnd  context.CancelFunc
}

// serve serves the demo until ctx is done.
func (d *demo) serve(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &site{d: d, origin: http.NewCrossOriginProtection(), ctx: ctx, latest: d.state(), fresh: make(chan struct{})}
	server := &http.Server{Handler: s.handler(listener.Addr()), ReadHeaderTimeout: 10 * time.Second}
	var background sync.WaitGroup
	background.Go(s.look)
	background.Go(func() {
		<-ctx.Done()
		server.Close()
	})
	err := server.Serve(listener)
	cancel()
	background.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// look looks at the servers again and again, for all who watch.
func (s *site) look() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		case <-s.d.changed:
		}
		s.currentStatus()
		state := s.d.state()
		s.mu.Lock()
		s.latest = state
		close(s.fresh)
		s.fresh = make(chan struct{})
		s.mu.Unlock()
	}
}

func (s *site) handler(addr net.Addr) http.Handler {
	files, err := fs.Sub(demoFiles, "demo")
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServerFS(files))
	mux.HandleFunc("/events", s.events)
	mux.HandleFunc("/status/", s.statusPage)
	server := func(do func(i int, req *http.Request) error) func(*http.Request) error {
		return func(req *http.Request) error {
			i, err := index(req, "server")
			if err != nil {
				return err
			}
			return do(i, req)
		}
	}
	for path, do := range map[string]func(*http.Request) error{
		"put": server(func(i int, req *http.Request) error {
			key, value := req.FormValue("key"), req.FormValue("value")
			if key == "" || len(key) > maxInput || len(value) > maxInput {
				return fmt.Errorf("a key has 1 to %d bytes here, a value at most %d", maxInput, maxInput)
			}
			return s.d.put(i, key, value)
		}),
		"delete":  server(func(i int, req *http.Request) error { return s.d.remove(i, req.FormValue("key")) }),
		"operate": server(func(i int, req *http.Request) error { return s.d.operate(req.FormValue("what"), i) }),
		"link": func(req *http.Request) error {
			n, err := index(req, "link")
			if err == nil {
				s.d.setOneLink(n, req.FormValue("cut") == "true")
			}
			return err
		},
		"links":    func(req *http.Request) error { s.d.setAllLinks(req.FormValue("cut") == "true"); return nil },
		"load":     func(req *http.Request) error { s.d.setLoad(req.FormValue("on") == "true"); return nil },
		"conflict": func(*http.Request) error { return s.d.conflict() },
	} {
		mux.HandleFunc("POST /do/"+path, func(w http.ResponseWriter, req *http.Request) {
			if err := s.origin.Check(req); err != nil {
				http.Error(w, "the request comes from another origin", http.StatusForbidden)
				return
			}
			req.Body = http.MaxBytesReader(w, req.Body, 16<<10)
			if err := do(req); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
				return
			}
			s.d.wake()
			w.WriteHeader(http.StatusNoContent)
		})
	}
	return guarded(mux, addr)
}

// index returns a number from 0 to 2.
func index(req *http.Request, name string) (int, error) {
	i, err := strconv.Atoi(req.FormValue(name))
	if err != nil || i < 0 || i > 2 {
		return 0, fmt.Errorf("%s is not 0, 1 or 2", name)
	}
	return i, nil
}

// guarded sets what a browser must not do. Who asks a loopback address by another name
// comes from a page that had its name lead here, and is refused.
func guarded(next http.Handler, addr net.Addr) http.Handler {
	tcp, _ := addr.(*net.TCPAddr)
	local := tcp != nil && tcp.IP.IsLoopback()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if local && !isLoopback(req.Host) {
			http.Error(w, "this page is served under the name localhost, or a loopback address", http.StatusMisdirectedRequest)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "+
			"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-cache")
		next.ServeHTTP(w, req)
	})
}

func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = strings.Trim(hostPort, "[]")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// events is the stream of states.
func (s *site) events(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	before := "retry: 500\n"
	for {
		s.mu.Lock()
		state, fresh := s.latest, s.fresh
		s.mu.Unlock()
		_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second)) // a connection that takes none has none
		if _, err := fmt.Fprintf(w, "%sdata: %s\n\n", before, state); err != nil || control.Flush() != nil {
			return
		}
		before = ""
		select {
		case <-req.Context().Done():
			return
		case <-s.ctx.Done():
			return
		case <-fresh:
		}
	}
}

// statusPage serves the status page of the three, for operators.
func (s *site) statusPage(w http.ResponseWriter, req *http.Request) {
	page, done := s.currentStatus()
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	defer context.AfterFunc(done, cancel)()
	page.ServeHTTP(w, req.WithContext(ctx))
}

// currentStatus returns the status page of the servers as they are. When one was opened
// again, the page is made anew, and the streams of the old one end.
func (s *site) currentStatus() (page http.Handler, done context.Context) {
	var now [3]*replicator.Replicator
	s.d.mu.Lock()
	for i, server := range s.d.servers {
		now[i] = server.Replicator
	}
	s.d.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status == nil || now != s.shown {
		if s.statusEnd != nil {
			s.statusEnd()
		}
		s.shown, s.status = now, statuspage.Handler(now[:], statuspage.WithData(), statuspage.WithActions())
		s.statusDone, s.statusEnd = context.WithCancel(s.ctx)
	}
	return s.status, s.statusDone
}
