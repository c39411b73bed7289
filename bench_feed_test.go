//go:build unix

package replicator_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// benchFeed reads feeds of all kinds beside an iterator, and writes with feeds that wait for
// each write.
func benchFeed(b *testing.B) {
	const keys, log, live, idle = "feed of the first state", "feed of the log", "put one by one, with a live feed", "put one by one, with 100 feeds of another prefix"
	if wanted(keys, log) {
		a := newReplica(b)
		defer a.close(b)
		start := a.Here()
		n := *entries
		a.fill(b, shuffled(0, n))
		settle(b, a)
		m := medians(5, iterationRate(b, a.db, &util.Range{Limit: []byte{0xff}}), feedRate(b, a.Replicator, replicator.Cursor{}, n), feedRate(b, a.Replicator, start, n))
		report(b, figure{name: keys, ours: m[1], unit: "changes/s", other: m[0], than: "an iterator"})
		report(b, figure{name: log, ours: m[2], unit: "changes/s", other: m[0], than: "an iterator"})
	}
	n := *entries / 4
	if wanted(live) {
		m := medians(5, fedRate(b, n, 0, ""), fedRate(b, n, 1, ""))
		report(b, figure{name: live, ours: m[1], unit: "entries/s", other: m[0], than: "without"})
	}
	if wanted(idle) {
		m := medians(5, fedRate(b, n, 0, ""), fedRate(b, n, 100, "none"))
		report(b, figure{name: idle, ours: m[1], unit: "entries/s", other: m[0], than: "without"})
	}
}

// feedRate returns how many changes of n a feed gives in a second.
func feedRate(b *testing.B, r *replicator.Replicator, from replicator.Cursor, n int) func() float64 {
	return func() float64 {
		start, count := time.Now(), 0
		for _, err := range r.Changes(context.Background(), from) {
			if err != nil {
				b.Fatal(err)
			}
			if count++; count == n {
				break
			}
		}
		return float64(n) / time.Since(start).Seconds()
	}
}

// fedRate returns how many puts a second are made while there are feeds.
func fedRate(b *testing.B, n, feeds int, prefix string) func() float64 {
	return func() float64 {
		dir := tempDir(b)
		defer os.RemoveAll(dir)
		db := openDB(b, dir)
		r, err := replicator.Open(db, nil)
		require.NoError(b, err)
		ended := make(chan int)
		for range feeds {
			go func() {
				told := 0
				for _, err := range r.Watch(context.Background(), []byte(prefix), r.Here()) {
					if err == nil {
						told++
					}
				}
				ended <- told
			}()
		}
		s := store{put: r.Put, write: r.Write}
		start := time.Now()
		s.fill(b, ascending(0, n), 1)
		rate := float64(n) / time.Since(start).Seconds()
		require.NoError(b, r.Close())
		for range feeds {
			told := <-ended
			require.True(b, prefix == "none" && told == 0 || prefix == "" && told > n/2, "%d of %d were told", told, n)
		}
		require.NoError(b, db.Close())
		return rate
	}
}
