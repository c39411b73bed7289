package replicator_test

import (
	"context"
	"fmt"
	"math"
	"sync"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// BenchmarkTwoWriters writes on two replicas at a time, and waits until both have
// everything. An operation is a put on each.
func BenchmarkTwoWriters(b *testing.B) {
	for _, c := range []struct {
		name string
		keys int
	}{{"own keys", math.MaxInt32}, {"shared keys", 1000}} {
		b.Run(c.name, func(b *testing.B) {
			open := func(o *replicator.Options) *replicator.Replicator {
				r, err := replicator.OpenFile(b.TempDir(), nil, o)
				require.NoError(b, err)
				b.Cleanup(func() { r.Close() })
				return r
			}
			first := open(&replicator.Options{Listen: "127.0.0.1:0"})
			second := open(&replicator.Options{Peers: map[string]replicator.Meta{first.Addr().String(): nil}})
			require.NoError(b, second.SyncNow(context.Background()))
			value := make([]byte, 100)
			var wg sync.WaitGroup
			b.ResetTimer()
			for i, r := range []*replicator.Replicator{first, second} {
				wg.Go(func() {
					for n := range b.N {
						key := fmt.Appendf(nil, "%d %012d", i, n)
						if c.keys < math.MaxInt32 {
							key = fmt.Appendf(nil, "%012d", n*7919%c.keys)
						}
						if err := r.Put(key, value, nil); err != nil {
							b.Error(err)
						}
					}
					if err := r.SyncNow(context.Background()); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
}
