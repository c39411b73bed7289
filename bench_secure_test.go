//go:build unix

package replicator_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// benchSecure measures what ClusterKeys cost, beside plain TCP, in turns.
func benchSecure(b *testing.B) {
	const p50, p99 = "put to readable with ClusterKeys, p50", "put to readable with ClusterKeys, p99"
	const sync, large = "first sync with ClusterKeys", "values of 512 KiB with ClusterKeys"
	ways := []*replicator.Options{{ClusterKeys: [][]byte{clusterKey(1)}}, {}}
	open := func(o *replicator.Options) *replica {
		dir := tempDir(b)
		c := *o
		return newReplicaWith(b, openDB(b, dir), dir, &c)
	}
	if wanted(p50, p99) {
		const rounds = 5
		samples := min(2000, *entries/20)
		var halves, most [2][]float64
		var pairs [2][2]*replica
		for i, o := range ways {
			pairs[i] = [2]*replica{open(o), open(o)}
			pairs[i][1].pull(b, pairs[i][0])
		}
		for round := range rounds {
			for turn := range ways {
				i := (round + turn) % len(ways)
				runtime.GC()
				µs := latencies(b, pairs[i][0], pairs[i][1], samples, round*samples)
				halves[i], most[i] = append(halves[i], quantile(µs, 0.5)), append(most[i], quantile(µs, 0.99))
			}
		}
		for _, pair := range pairs {
			pair[1].remove(b)
			pair[0].remove(b)
		}
		report(b, figure{name: p50, ours: quantile(halves[0], 0.5), unit: "µs", other: quantile(halves[1], 0.5), than: "plain"})
		report(b, figure{name: p99, ours: quantile(most[0], 0.5), unit: "µs", other: quantile(most[1], 0.5), than: "plain"})
	}
	// throughput measures how fast a new replica gets a number of values.
	throughput := func(name string, n, size int, unit string, each float64) {
		if !wanted(name) {
			return
		}
		var sources [2]*replica
		var work [2]func() float64
		for i, o := range ways {
			a := open(o)
			for k := range n {
				require.NoError(b, a.Put(appendKey(nil, k), testValue(k, size), nil))
			}
			settle(b, a)
			sources[i] = a
			work[i] = func() float64 {
				z := open(o)
				defer z.remove(b)
				start := time.Now()
				z.pull(b, a)
				return float64(n) * each / time.Since(start).Seconds()
			}
		}
		m := medians(5, work[:]...)
		report(b, figure{name: name, ours: m[0], unit: unit, other: m[1], than: "plain"})
		for _, a := range sources {
			a.remove(b)
		}
	}
	throughput(sync, *entries/5, valueSize, "entries/s", 1)
	throughput(large, 200, 1<<19, "MiB/s", 0.5)
}
