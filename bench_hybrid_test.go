//go:build unix

package replicator_test

import (
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// BenchmarkHybrid puts keys one by one with either kind of clock, in turns, and reports the
// ratio of the speeds, and, for the noise, that of two of one kind:
//
//	go test -run '^$' -bench Hybrid -benchtime 1x .
//
// -entries gives twice the number of puts of each.
func BenchmarkHybrid(b *testing.B) {
	for range b.N {
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(putRatio(b, replicator.Hybrid, replicator.Lamport), "of_Lamport")
		b.ReportMetric(putRatio(b, replicator.Lamport, replicator.Lamport), "Lamport_of_Lamport")
	}
}

// putRatio puts keys with either of two clocks, in turns, and returns the median of the
// ratios of the speeds.
func putRatio(b *testing.B, kinds ...replicator.ClockKind) float64 {
	const rounds = 80
	puts, next := *entries/2/rounds, 0
	var replicas []*replicator.Replicator
	for _, kind := range kinds {
		r, err := replicator.OpenFile(b.TempDir(), nil, &replicator.Options{Clock: kind})
		require.NoError(b, err)
		defer func() { require.NoError(b, r.Close()) }()
		replicas = append(replicas, r)
	}
	measure := func(r *replicator.Replicator) float64 {
		began := time.Now()
		var key []byte
		for i := range puts {
			key = appendKey(key[:0], next+i)
			require.NoError(b, r.Put(key, testValue(next+i, valueSize), nil))
		}
		return time.Since(began).Seconds()
	}
	var ratios []float64
	for i := range rounds {
		var took [2]float64
		for j := range 2 {
			took[(i+j)%2] = measure(replicas[(i+j)%2])
		}
		next += puts
		ratios = append(ratios, took[1]/took[0])
	}
	return quantile(ratios, 0.5)
}
