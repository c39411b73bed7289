// Command cache keeps a map in memory equal to a database: server 2 answers from the map
// what server 1 writes. It checks itself, and leaves nothing behind:
//
//	go run ./examples/cache
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cache:", err)
		os.Exit(1)
	}
}

// cache has the values of a database in memory.
type cache struct {
	mu     sync.RWMutex // guards values
	values map[string]string
}

func (c *cache) get(key string) (string, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	value, found := c.values[key]
	return value, found
}

// keepFresh fills the cache, and applies what changes, until ctx is done.
func (c *cache) keepFresh(ctx context.Context, r *replicator.Replicator) error {
	for {
		c.mu.Lock()
		c.values = map[string]string{}
		c.mu.Unlock()
		// It has no memory of an earlier run, so it starts from the zero Cursor.
		for change, err := range r.Changes(ctx, replicator.Cursor{}) {
			if errors.Is(err, replicator.ErrCursor) {
				break // it fell too far behind: begin again
			}
			if err != nil {
				return err
			}
			c.apply(change)
		}
	}
}

func (c *cache) apply(change replicator.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if change.Deleted {
		delete(c.values, string(change.Key))
	} else {
		c.values[string(change.Key)] = string(change.Value)
	}
}

// run tells the story, and returns the first check that failed.
func run(out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "replicator-cache-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server1, err := replicator.OpenFile(filepath.Join(dir, "1"), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server1.Close()) }()
	server2, err := replicator.OpenFile(filepath.Join(dir, "2"), nil, &replicator.Options{
		Peers: map[string]replicator.Meta{server1.Addr().String(): nil},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server2.Close()) }()

	prices := map[string]string{"apple": "1.20", "pear": "2.00", "quince": "3.50"}
	for fruit, price := range prices {
		if err := server1.Put([]byte(fruit), []byte(price), nil); err != nil {
			return err
		}
	}
	var c cache
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.keepFresh(ctx, server2) }()
	if err := c.becomes(prices); err != nil {
		return err
	}
	fmt.Fprintln(out, "The cache of server 2 has what server 1 wrote before.")

	began := time.Now()
	if err := errors.Join(server1.Put([]byte("apple"), []byte("1.10"), nil), server1.Delete([]byte("pear"), nil)); err != nil {
		return err
	}
	if err := c.becomes(map[string]string{"apple": "1.10", "quince": "3.50"}); err != nil {
		return err
	}
	price, _ := c.get("apple")
	if _, found := c.get("pear"); found {
		return errors.New("the deleted key is still in the cache")
	}
	fmt.Fprintf(out, "Within %v it has a new price, %s, and the deleted key is gone.\n", time.Since(began).Round(time.Millisecond), price)

	cancel()
	if err := <-ended; err != context.Canceled {
		return err
	}
	fmt.Fprintln(out, "Every check passed.")
	return nil
}

// becomes waits until the cache has certain values, and no others.
func (c *cache) becomes(want map[string]string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.RLock()
		values := maps.Clone(c.values)
		c.mu.RUnlock()
		if maps.Equal(values, want) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the cache has %v, not %v", values, want)
		}
	}
}
