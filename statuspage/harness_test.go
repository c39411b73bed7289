package statuspage_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// world is a network in which replicas live, in a synctest bubble.
type world struct {
	t     *testing.T
	net   *simtest.Network
	disks map[string]*simtest.Disk
}

func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) }) // leveldb's goroutines take some seconds to end
		test(t, &world{t, simtest.NewNetwork(1), map[string]*simtest.Disk{}})
	})
}

// open opens a replica of its own disk, which the end of the test closes.
func (w *world) open(name string, peers []string, change ...func(*replicator.Options)) *replicator.Replicator {
	if w.disks[name] == nil {
		w.disks[name] = simtest.NewDisk()
	}
	db, err := leveldb.Open(w.disks[name], &opt.Options{DisableLargeBatchTransaction: true})
	require.NoError(w.t, err)
	o := &replicator.Options{Name: name, Listener: w.net.Listen(name), Dial: w.net.Dial(name), Peers: map[string]replicator.Meta{}}
	for _, p := range peers {
		o.Peers[p] = nil
	}
	for _, c := range change {
		c(o)
	}
	r, err := replicator.Open(db, o)
	require.NoError(w.t, err)
	w.t.Cleanup(func() {
		require.NoError(w.t, r.Close())
		require.NoError(w.t, db.Close())
	})
	return r
}

// get asks a handler.
func get(h http.Handler, path string) *httptest.ResponseRecorder {
	return do(h, http.MethodGet, path)
}

// do asks a handler, with headers given as name and value.
func do(h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// stream is a reader of the events.
type stream struct {
	t    *testing.T
	code int
	in   *bufio.Reader
	end  context.CancelFunc
	over chan struct{} // closed when the handler has returned
}

func watch(t *testing.T, h http.Handler) *stream {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	s := &stream{t, 0, bufio.NewReader(r), cancel, make(chan struct{})}
	writer := &pipeWriter{PipeWriter: w, header: http.Header{}, code: http.StatusOK}
	go func() {
		defer close(s.over)
		h.ServeHTTP(writer, httptest.NewRequest(http.MethodGet, "/events", nil).WithContext(ctx))
		s.code = writer.code
		w.Close()
	}()
	t.Cleanup(func() {
		cancel()
		r.Close()
		<-s.over
	})
	return s
}

// next returns the next frame.
func (s *stream) next() (frame struct {
	At       time.Time
	Replicas []replicator.Status
	Ready    struct{ Ready bool }
	More     []struct {
		Sizes   *struct{ Data, Extra int64 }
		Count   *struct{ Keys, Tombstones int }
		Changes []struct {
			Key, Value []byte
			Local      bool
			Version    replicator.Version
		}
	}
}) {
	s.t.Helper()
	require.NoError(s.t, json.Unmarshal([]byte(s.text()), &frame))
	return frame
}

func (s *stream) text() string {
	s.t.Helper()
	for {
		line, err := s.in.ReadString('\n')
		require.NoError(s.t, err)
		if data, found := strings.CutPrefix(line, "data: "); found {
			return data
		}
	}
}

// pipeWriter is a response that can be read while it is written.
type pipeWriter struct {
	*io.PipeWriter
	header http.Header
	code   int
}

func (w *pipeWriter) Header() http.Header  { return w.header }
func (w *pipeWriter) WriteHeader(code int) { w.code = code }
func (w *pipeWriter) Flush()               {}

func put(t *testing.T, r *replicator.Replicator, key, value string) {
	t.Helper()
	require.NoError(t, r.Put([]byte(key), []byte(value), nil))
}

func syncNow(t *testing.T, r *replicator.Replicator) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, r.SyncNow(ctx))
}

func name(i int) string { return fmt.Sprintf("n%d", i) }
