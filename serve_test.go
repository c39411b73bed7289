package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// TestRescan has a replica that has a checkpoint catch up on a long log, and looks
// at how. Going on in key order pays if each record of the log would take lookups of
// its own in large tables, and if these are not so large that there is more to pass
// over than there are records.
func TestRescan(t *testing.T) {
	t.Parallel()
	const changed = 1000 // keys, each several times
	apart := func(i int) string { return fmt.Sprintf("%04x", i*(1<<16/changed)) }
	near := func(i int) string { return fmt.Sprintf("8000 %04d", i) }
	for name, c := range map[string]struct {
		keys, size int // in the index: 1 KiB of each is behind it
		key        func(i int) string
		records    int
		want       string // the scan
	}{
		"far apart":                   {3000, 1 << 10, apart, 10_500, "keys"},
		"near each other":             {3000, 1 << 10, near, 10_500, "log"},
		"far apart, but few":          {3000, 1 << 10, apart, 9_500, "log"},
		"not so far apart":            {800, 1 << 10, apart, 10_500, "log"},
		"far apart in a larger index": {400, 60 << 10, apart, 10_500, "log"},
	} {
		t.Run(name, func(t *testing.T) {
			if !*long && c.size > 1<<10 || testing.Short() && (c.keys < 3000 || c.records < 10_000) {
				t.Skip("it writes megabytes of keys")
			}
			inPair(t, 1, func(t *testing.T, cl *cluster, source, n *node) {
				source.ldb.WriteBuffer, n.ldb.WriteBuffer = 8<<20, 8<<20
				cl.fromDisk().open()
				rng := rand.New(rand.NewPCG(1, 1))
				for i := range c.keys {
					spread := fmt.Sprintf("%04x", i*(1<<16/c.keys))
					require.NoError(t, source.r.Put([]byte(spread+incompressible(rng, c.size)), nil, nil))
				}
				cl.converge()
				time.Sleep(time.Second)
				cl.net.Partition([]string{"n1"})
				order := rng.Perm(changed) // so that the last records are a sample of the keys
				for i := 0; i < c.records; {
					var b leveldb.Batch
					for range changed / 2 {
						b.Put([]byte(c.key(order[i%changed])), fmt.Append(nil, "value ", i))
						i++
					}
					require.NoError(t, source.r.Write(&b, nil))
				}
				require.NoError(t, source.db.CompactRange(util.Range{})) // sizes are those of tables
				before := n.carried(source)

				cl.net.SetSpeed("n0", "n1", 20<<10) // so that there is something to see
				cl.net.Heal()
				synced := make(chan error, 1)
				go func() { synced <- n.sync() }()
				scans := map[string]int{}
				for len(synced) == 0 {
					cursor := n.cursor(source)
					require.NotZero(t, cursor.Checkpoint)
					if cursor.Keys {
						scans["keys"]++
					}
					if cursor.Log {
						scans["log"]++
					}
					time.Sleep(10 * time.Millisecond)
				}
				require.NoError(t, <-synced)
				require.Len(t, scans, 1, "%v", scans)
				require.NotZero(t, scans[c.want], "%v", scans)
				require.EqualValues(t, changed, n.carried(source)-before)
				cl.converge()
			})
		})
	}
}
