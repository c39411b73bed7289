package browsertest

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// pair opens two replicas, of which the first dials the second, and an address at which
// there is nobody.
func pair(t *testing.T) (a, b *replicator.Replicator) {
	open := func(o *replicator.Options) *replicator.Replicator {
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
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	b = open(&replicator.Options{Name: hostile, Listen: "127.0.0.1:0"})
	a = open(&replicator.Options{Name: "berlin", Peers: map[string]replicator.Meta{
		b.Addr().String(): {"zone": hostile}, nobody.Addr().String(): nil,
	}})
	return a, b
}

func TestStatusPage(t *testing.T) {
	b := newBrowser(t)
	first, second := pair(t)
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

	for i := range 300 {
		if err := second.Put(fmt.Appendf(nil, "sensor/%03d", i), fmt.Appendf(nil, "%d °C", i%40), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	b.until("document.querySelector('.tile .big').textContent === '300'")
	b.until("document.body.innerText.includes('sensor/299') && document.body.innerText.includes('merged')")
	if err := first.Put([]byte(hostile), []byte(hostile), nil); err != nil {
		t.Fatal(err)
	}
	b.until("[...document.querySelectorAll('.list .key')].some(k => k.textContent.includes('<img src=x'))")
	b.isSafe()
	b.click("button") // sync: one peer is not there
	b.until("document.querySelector('.who').innerText.includes('replicator: peer ')")

	if err := first.Delete([]byte(hostile), nil); err != nil {
		t.Fatal(err)
	}
	b.until("document.querySelector('.tile .soft').textContent === '1 deleted'")
	b.look("status")
	b.size(390, 844, false)
	b.isSafe()

	// Without options, there are neither keys nor buttons, and it is told what is missing.
	b.open(server.URL + "/public/")
	b.until("document.getElementById('ready').textContent === 'not ready'")
	b.until("document.getElementById('missing').innerText.includes('in sync with 1 of 2 configured peers')")
	if b.is("document.body.innerText.includes('sensor/')") || !b.is("document.querySelector('button').hidden") {
		t.Fatal("a key or a button is shown")
	}
}
