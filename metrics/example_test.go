package metrics_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/metrics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// A program registers its replica, and serves the metrics to Prometheus.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	r, err := replicator.OpenFile(dir, nil, &replicator.Options{Name: "berlin"})
	check(err)
	defer r.Close()

	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics.New([]*replicator.Replicator{r}))
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer server.Close()

	check(r.Put([]byte("key"), []byte("value"), nil))
	answer, err := http.Get(server.URL)
	check(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	check(err)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "replicator_log_records") {
			fmt.Print(line)
		}
	}
	// Output:
	// replicator_log_records{replica="berlin"} 1
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
