package statuspage_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// A program mounts the page in its own mux. A load balancer asks readyz.
func ExampleHandler() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	r, err := replicator.OpenFile(dir, nil, &replicator.Options{Name: "berlin"})
	check(err)
	defer r.Close()

	mux := http.NewServeMux()
	mux.Handle("/replica/", statuspage.Handler([]*replicator.Replicator{r}, statuspage.WithReadyPeers(1)))
	server := httptest.NewServer(mux)
	defer server.Close()

	answer, err := http.Get(server.URL + "/replica/readyz")
	check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	check(err)
	fmt.Printf("%s\n%s", answer.Status, body)
	// Output:
	// 503 Service Unavailable
	// {
	//   "ready": false,
	//   "missing": [
	//     "in sync with 0 of 0 configured peers since the opening; needed: 1"
	//   ]
	// }
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
