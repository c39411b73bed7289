//go:build unix

package replicator_test

import (
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// BenchmarkRejoin has a replica rejoin after half of the keys were deleted and forgotten,
// while it is written to. It reports the time of that and of a first sync instead, the
// longest Put meanwhile, and the greatest heap:
//
//	go test -run '^$' -bench Rejoin -benchtime 1x -entries 200000 -timeout 20m .
func BenchmarkRejoin(b *testing.B) {
	for range b.N {
		o := func() *replicator.Options {
			return replicator.WithExpiry(*replicator.WithDurable(replicator.Options{
				Listen: "127.0.0.1:0", TombstoneAge: time.Millisecond,
			}, time.Second), 100*time.Millisecond, 1000)
		}
		open := func(dir string, o *replicator.Options) *replicator.Replicator {
			r, err := replicator.OpenFile(dir, nil, o)
			require.NoError(b, err)
			return r
		}
		change := func(r *replicator.Replicator, n int, add func(*leveldb.Batch, int)) {
			batch := new(leveldb.Batch)
			for i := range n {
				if add(batch, i); batch.Len() == 1000 || i == n-1 {
					require.NoError(b, r.Write(batch, nil))
					batch.Reset()
				}
			}
		}
		n, peer := open(b.TempDir(), o()), open(b.TempDir(), o())
		change(n, *entries, func(batch *leveldb.Batch, i int) { batch.Put(appendKey(nil, i), testValue(i, valueSize)) })
		addr := n.Status().Listening
		require.NoError(b, peer.AddPeer(addr, nil))
		require.NoError(b, peer.SyncNow(b.Context()))
		old := filepath.Join(b.TempDir(), "old")
		require.NoError(b, peer.Backup(b.Context(), old, nil))
		drops := *entries / 2
		change(n, drops, func(batch *leveldb.Batch, i int) { batch.Delete(appendKey(nil, 2*i)) })
		for n.Status().Tombstones.Reaped < uint64(drops) {
			require.NoError(b, peer.SyncNow(b.Context()))
			time.Sleep(100 * time.Millisecond)
		}
		require.NoError(b, peer.Close())

		began := time.Now()
		fresh := open(b.TempDir(), o())
		require.NoError(b, fresh.AddPeer(addr, nil))
		require.NoError(b, fresh.SyncNow(b.Context()))
		first := time.Since(began)
		require.NoError(b, fresh.Close())

		stale := open(old, o())
		require.NoError(b, stale.AddPeer(addr, nil))
		for stale.Status().Peers[0].Stale == nil {
			time.Sleep(time.Millisecond)
		}
		var over atomic.Bool
		watched := make(chan [2]float64)
		go func() {
			var longest time.Duration
			var heap uint64
			for !over.Load() {
				at := time.Now()
				_ = stale.Put([]byte("written meanwhile"), nil, nil)
				longest = max(longest, time.Since(at))
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				heap = max(heap, m.HeapInuse)
				time.Sleep(20 * time.Millisecond)
			}
			watched <- [2]float64{longest.Seconds(), float64(heap) / 1e6}
		}()
		began = time.Now()
		done, err := stale.Rejoin(b.Context(), addr, nil)
		took := time.Since(began)
		over.Store(true)
		require.NoError(b, err)
		require.Equal(b, drops, done.Dropped)
		saw := <-watched
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric(took.Seconds()/first.Seconds(), "of_first_sync")
		b.ReportMetric(saw[0], "s_longest_put")
		b.ReportMetric(saw[1], "MB_heap")
		require.NoError(b, stale.Close())
		require.NoError(b, n.Close())
	}
}
