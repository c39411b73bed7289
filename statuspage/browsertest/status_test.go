package browsertest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// openReplica opens a replica that the end of the test closes.
func openReplica(t *testing.T, o *replicator.Options) *replicator.Replicator {
	r, err := replicator.OpenFile(t.TempDir(), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// group opens three replicas. The first dials the second, and an address at which there is
// nobody; the third dials the first, and has a hostile name.
func group(t *testing.T) (a, b *replicator.Replicator, third func()) {
	open := func(o *replicator.Options) *replicator.Replicator { return openReplica(t, o) }
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	b = open(&replicator.Options{Name: "oslo", Listen: "127.0.0.1:0"})
	a = open(&replicator.Options{Name: "berlin", Listen: "127.0.0.1:0", Peers: map[string]replicator.Meta{
		b.Addr().String(): {"zone": "north"}, nobody.Addr().String(): nil,
	}})
	return a, b, func() {
		open(&replicator.Options{Name: hostile, Peers: map[string]replicator.Meta{a.Addr().String(): nil}})
	}
}

func TestStatusPage(t *testing.T) {
	b := newBrowser(t)
	first, second, third := group(t)
	mux := http.NewServeMux()
	mux.Handle("/replica/", statuspage.Handler([]*replicator.Replicator{first}, statuspage.WithData(), statuspage.WithActions(), statuspage.WithReadyPeers(1)))
	mux.Handle("/public/", statuspage.Handler([]*replicator.Replicator{first}, statuspage.WithReadyPeers(2)))
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections() // the stream would not end by itself
		server.Close()
	})

	b.open(server.URL + "/replica/")
	b.until("document.getElementById('live').textContent === 'live'")
	b.until("document.querySelector('h2').textContent === 'berlin'")
	b.until("document.getElementById('ready').textContent === 'ready'")
	b.until("document.querySelectorAll('.peer:not(.head):not([hidden])').length === 2")
	b.until("[...document.querySelectorAll('.pill')].some(p => p.textContent === 'in sync')")
	b.until("[...document.querySelectorAll('.pill')].some(p => p.textContent === 'waiting')")

	// Both write, then both write one key while they are apart.
	for i := range 300 {
		on := second
		if i%3 == 0 {
			on = first
		}
		put(t, on, fmt.Sprintf("sensor/%03d", i), fmt.Sprintf("%d °C", i*i%40))
		time.Sleep(time.Duration(5+i%20) * time.Millisecond)
	}
	for range 20 { // a conflict may be found on the other one only
		if conflict(t, first, second); first.Status().Conflicts.Count > 0 {
			break
		}
	}
	b.until("document.querySelectorAll('.list .stamp').length > 50") // a conflict shows two
	put(t, second, "sensor/300", "22 °C")
	b.until("document.querySelector('.tile .big').textContent === '301'")
	b.until("document.body.innerText.includes('sensor/300') && document.body.innerText.includes('merged')")
	b.size(1320, 820, false)
	time.Sleep(time.Second) // for the graph
	b.publish("status-page.png")
	b.look("status")
	b.size(1440, 900, false)

	third()
	b.until("[...document.querySelectorAll('.peer .name')].some(n => n.textContent.includes('<img src=x'))")
	put(t, first, hostile, hostile)
	b.until("[...document.querySelectorAll('.list .key')].some(k => k.textContent.includes('<img src=x'))")
	b.isSafe()
	b.click(".peer:not(.head) button:not([hidden])")
	b.until("[...document.querySelectorAll('.peer .wide')].some(e => e.textContent.startsWith('equal, found in '))")
	b.click(".who button") // sync: one peer is not there
	b.until("document.querySelector('.who').innerText.includes('replicator: peer ')")

	if err := first.Delete([]byte(hostile), nil); err != nil {
		t.Fatal(err)
	}
	b.until("document.querySelector('.tile .soft').textContent === '1 deleted'")
	b.size(390, 844, false)
	b.isSafe()
	b.shoot("hostile")

	// Without options, there are neither keys nor buttons, and it is told what is missing.
	b.open(server.URL + "/public/")
	b.until("document.getElementById('ready').textContent === 'not ready'")
	b.until("document.getElementById('missing').innerText.includes('in sync with 1 of 2 configured peers')")
	if b.is("document.body.innerText.includes('sensor/')") || !b.is("document.querySelector('button').hidden") {
		t.Fatal("a key or a button is shown")
	}
}

func put(t *testing.T, r *replicator.Replicator, key, value string) {
	t.Helper()
	if err := r.Put([]byte(key), []byte(value), nil); err != nil {
		t.Fatal(err)
	}
}

// conflict has both write one key while they are apart.
func conflict(t *testing.T, first, second *replicator.Replicator) {
	t.Helper()
	wait := func(what string, holds func() bool) {
		t.Helper()
		for began := time.Now(); !holds(); time.Sleep(time.Millisecond) {
			if time.Since(began) > patience {
				t.Fatal(what)
			}
		}
	}
	oslo := second.Addr().String()
	_ = first.SyncNow(t.Context()) // fails, as nobody is at the other address
	if err := first.RemovePeer(oslo); err != nil {
		t.Fatal(err)
	}
	wait("the session does not end", func() bool { return len(first.Status().Peers) == 1 && len(second.Status().Peers) == 0 })
	put(t, first, "sensor/000", "20 °C")
	put(t, second, "sensor/000", "21 °C")
	if err := first.AddPeer(oslo, replicator.Meta{"zone": "north"}); err != nil {
		t.Fatal(err)
	}
	_ = first.SyncNow(t.Context())
	wait("they do not come together", func() bool {
		a, errA := first.Version([]byte("sensor/000"))
		b, errB := second.Version([]byte("sensor/000"))
		return errA == nil && errB == nil && a == b
	})
}

// slowConn reads as over a thin line.
type slowConn struct{ net.Conn }

func (c slowConn) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return c.Conn.Read(p[:min(len(p), 16<<10)])
}

// TestProgress looks on while a new replica pulls everything.
func TestProgress(t *testing.T) {
	b := newBrowser(t)
	full := openReplica(t, &replicator.Options{Name: "full", Listen: "127.0.0.1:0"})
	value := string(make([]byte, 1<<10))
	for i := range 5000 {
		put(t, full, fmt.Sprintf("key/%04d", i), value)
	}
	addr := full.Addr().String()
	fresh := openReplica(t, &replicator.Options{
		Name: "fresh", Peers: map[string]replicator.Meta{addr: nil},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			return slowConn{conn}, err
		},
	})
	server := httptest.NewServer(statuspage.Handler([]*replicator.Replicator{fresh}, statuspage.WithData()))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	b.open(server.URL + "/")
	b.until("document.querySelector('.peer .track.unknown')?.offsetHeight > 0")
	b.until("document.querySelector('.peer .progress').innerText.includes('up to key/')")
	b.until("document.getElementById('missing').innerText.includes('in sync with 0 of 1 configured peers')")
	b.until("[...document.querySelectorAll('.pill')].some(p => p.textContent === 'pulling in full')")
	b.shoot("progress")
	b.until("document.getElementById('ready').textContent === 'ready'")
	b.until("document.querySelector('.peer .progress').offsetHeight === 0")
	b.until("document.querySelector('.tile .big').textContent === '5,000'")
	b.until("/kB/.test(document.querySelectorAll('.tile .big')[2].textContent)")
}
