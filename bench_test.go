//go:build unix

package replicator_test

import (
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

var (
	entries  = flag.Int("entries", 1_000_000, "entries in the large databases of BenchmarkFigures, at least 10,000")
	onlyRows = flag.String("rows", "", "measure only the rows of BenchmarkFigures whose name matches this `regexp`")
)

// BenchmarkFigures measures what the README promises about speed, and prints a
// table of it. Each figure stands beside what it is compared to, measured in the
// same run and, where it is a speed, in turns: "raw" is goleveldb, "straight" is
// goleveldb with value, log record and index record of each entry in one batch.
// The whole takes some minutes and a gigabyte in $TMPDIR:
//
//	go test -run '^$' -bench Figures -benchtime 1x -timeout 30m .
//
// One row alone: -rows 'put to readable, p50'. One item: -bench Figures/6. Smaller
// databases: -entries 100000.
func BenchmarkFigures(b *testing.B) {
	table, rowPattern = nil, regexp.MustCompile(*onlyRows)
	b.Run("1_writes", benchWrites)
	b.Run("2_reads", benchReads)
	b.Run("3_first_sync", benchFirstSync)
	b.Run("4_catch-up", benchCatchUp)
	b.Run("5_delta", benchDelta)
	b.Run("6_latency", benchLatency)
	b.Run("7_traffic", benchTraffic)
	b.Run("8_memory", benchMemory)
	b.Run("9_idle", benchIdle)
	b.Run("f_feed", benchFeed)
	b.Run("s_secure", benchSecure)
	if len(table) == 0 {
		b.Fatal("no row is selected")
	}
	printTable()
}

// rowPattern matches the names of the rows that are measured.
var rowPattern *regexp.Regexp

// wanted reports whether a row of one of these names is measured. What is only done
// for rows that are not wanted is not done.
func wanted(names ...string) bool { return slices.ContainsFunc(names, rowPattern.MatchString) }

// figure is a line of the table. At most one of the bounds is set, on the ratio
// of ours to other.
type figure struct {
	item, name      string
	ours            float64
	unit            string
	other           float64
	than            string // what other is
	atLeast, atMost float64
}

var table []figure

// report adds a figure to the table, and prints it as a benchmark of its own.
func report(b *testing.B, f figure) {
	if !wanted(f.name) {
		return
	}
	_, f.item, _ = strings.Cut(b.Name(), "/")
	table = append(table, f)
	b.Run(f.name+"/"+f.than, func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(f.ours, f.unit)
		b.ReportMetric(f.other, strings.ReplaceAll(f.than, " ", "_"))
		b.ReportMetric(f.ours/f.other, "ratio")
	})
}

func printTable() {
	fmt.Printf("\n%d entries, GOMAXPROCS %d, %s\n\n", *entries, runtime.GOMAXPROCS(0), runtime.Version())
	fmt.Println("| | figure | compared to | ratio | to reach | |")
	fmt.Println("|---|---:|---:|---:|---:|---|")
	for _, f := range table {
		ratio, bound, reached := f.ours/f.other, "", ""
		switch {
		case f.atLeast > 0:
			bound, reached = "≥ "+number(f.atLeast), verdict(ratio >= f.atLeast)
		case f.atMost > 0:
			bound, reached = "≤ "+number(f.atMost), verdict(ratio <= f.atMost)
		}
		fmt.Printf("| %.1s. %s | %s %s | %s: %s | %.2f | %s | %s |\n",
			f.item, f.name, number(f.ours), f.unit, f.than, number(f.other), ratio, bound, reached)
	}
	fmt.Println()
}

func verdict(reached bool) string {
	if reached {
		return "reached"
	}
	return "short"
}

// number formats with three significant digits, or as a whole number.
func number(x float64) string {
	if x >= 1000 {
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	return strconv.FormatFloat(x, 'g', 3, 64)
}

// medians measures in turns, so that what else the machine does falls on all
// alike, and returns the median of each.
func medians(rounds int, measure ...func() float64) []float64 {
	results := make([][]float64, len(measure))
	for round := range rounds {
		for turn := range measure {
			i := (round + turn) % len(measure)
			runtime.GC()
			results[i] = append(results[i], measure[i]())
		}
	}
	var m []float64
	for _, r := range results {
		m = append(m, quantile(r, 0.5))
	}
	return m
}

func quantile(samples []float64, q float64) float64 {
	slices.Sort(samples)
	return samples[int(q*float64(len(samples)-1))]
}

const valueSize = 100

var randomBytes = func() []byte {
	b := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

// appendKey makes keys of 16 bytes that sort as their numbers do.
func appendKey(dst []byte, i int) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(i))
	return hex.AppendEncode(dst, b[:])
}

// testValue does not compress, nor do its neighbours together.
func testValue(i, size int) []byte {
	at := i * size % (len(randomBytes) - size)
	return randomBytes[at : at+size]
}

func ascending(first, n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = first + i
	}
	return order
}

func shuffled(first, n int) []int {
	order := ascending(first, n)
	rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// ldbOptions are those of all databases.
var ldbOptions = &opt.Options{DisableLargeBatchTransaction: true}

func openDB(b *testing.B, dir string) *leveldb.DB {
	db, err := leveldb.OpenFile(dir, ldbOptions)
	require.NoError(b, err)
	return db
}

// store is one of the ways to write that are compared.
type store struct {
	put   func(key, value []byte, wo *opt.WriteOptions) error
	add   func(batch *leveldb.Batch, key, value []byte)
	write func(batch *leveldb.Batch, wo *opt.WriteOptions) error
	close func() error
}

func rawStore(_ *testing.B, db *leveldb.DB) store {
	return store{db.Put, (*leveldb.Batch).Put, db.Write, func() error { return nil }}
}

func ourStore(b *testing.B, db *leveldb.DB) store {
	r, err := replicator.Open(db, nil)
	require.NoError(b, err)
	return store{r.Put, (*leveldb.Batch).Put, r.Write, r.Close}
}

// straightStore writes the rows that a Replicator writes, and does nothing else.
func straightStore(_ *testing.B, db *leveldb.DB) store {
	const prefix, origin = "\xffreplicator\xff", 1<<63 | 123456789
	var seq uint64
	var name, row []byte
	add := func(batch *leveldb.Batch, key, value []byte) {
		seq++
		batch.Put(key, value)
		const opPut = 1
		row = append(row[:0], opPut)
		row = binary.AppendUvarint(row, seq-1) // clock
		row = binary.BigEndian.AppendUint64(row, origin)
		version := len(row)
		name = binary.BigEndian.AppendUint64(append(name[:0], prefix+"l"...), seq)
		row = append(row, key...)
		batch.Put(name, row)
		name = append(append(name[:0], prefix+"i"...), key...)
		row = binary.AppendUvarint(row[:version], seq)
		batch.Put(name, row)
	}
	var one leveldb.Batch
	put := func(key, value []byte, wo *opt.WriteOptions) error {
		one.Reset()
		add(&one, key, value)
		return db.Write(&one, wo)
	}
	return store{put, add, db.Write, func() error { return nil }}
}

// fill writes entries in the given order, one by one or in batches.
func (s store) fill(b *testing.B, order []int, batchSize int) {
	var batch leveldb.Batch
	var key []byte
	check := func(err error) { // require is too slow to be called each time
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, i := range order {
		key = appendKey(key[:0], i)
		if batchSize == 1 {
			check(s.put(key, testValue(i, valueSize), nil))
			continue
		}
		s.add(&batch, key, testValue(i, valueSize))
		if batch.Len() >= batchSize {
			check(s.write(&batch, nil))
			batch.Reset()
		}
	}
	check(s.write(&batch, nil))
}

// rate runs n operations on an empty database, and returns how many it does in
// a second.
func rate(b *testing.B, n int, open func(*testing.B, *leveldb.DB) store, work func(store)) func() float64 {
	return func() float64 {
		dir := tempDir(b)
		defer os.RemoveAll(dir)
		db := openDB(b, dir)
		s := open(b, db)
		start := time.Now()
		work(s)
		elapsed := time.Since(start)
		require.NoError(b, s.close())
		require.NoError(b, db.Close())
		return float64(n) / elapsed.Seconds()
	}
}

func tempDir(b *testing.B) string {
	dir, err := os.MkdirTemp("", "figures")
	require.NoError(b, err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func benchWrites(b *testing.B) {
	n := *entries / 4
	for _, c := range []struct {
		name      string
		order     []int
		batchSize int
		ofRaw     float64
	}{
		{"put one by one, ascending keys", ascending(0, n), 1, 0.65},
		{"put one by one, random keys", shuffled(0, n), 1, 0.5},
		{"write batches of 1000, ascending keys", ascending(0, n), 1000, 0},
		{"write batches of 1000, random keys", shuffled(0, n), 1000, 0},
	} {
		if !wanted(c.name) {
			continue
		}
		fill := func(s store) { s.fill(b, c.order, c.batchSize) }
		m := medians(5, rate(b, n, rawStore, fill), rate(b, n, straightStore, fill), rate(b, n, ourStore, fill))
		report(b, figure{name: c.name, ours: m[2], unit: "entries/s", other: m[1], than: "straight", atLeast: 0.9})
		report(b, figure{name: c.name, ours: m[2], unit: "entries/s", other: m[0], than: "raw", atLeast: c.ofRaw})
	}

	benchSyncedPuts(b)
	benchAllocations(b)
}

func benchSyncedPuts(b *testing.B) {
	const name = "put with Sync, 64 goroutines"
	if !wanted(name) {
		return
	}
	const writers = 64
	n := *entries / 20
	synced := func(s store) {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				var key []byte
				for i := w; i < n; i += writers {
					key = appendKey(key[:0], i)
					if err := s.put(key, testValue(i, valueSize), &opt.WriteOptions{Sync: true}); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	m := medians(5, rate(b, n, rawStore, synced), rate(b, n, ourStore, synced))
	report(b, figure{name: name, ours: m[1], unit: "entries/s", other: m[0], than: "raw", atLeast: 0.85})
}

func benchAllocations(b *testing.B) {
	const name = "allocations a put"
	if !wanted(name) {
		return
	}
	m := medians(3, allocations(b, rawStore), allocations(b, straightStore), allocations(b, ourStore))
	report(b, figure{name: name, ours: m[2], unit: "allocs", other: m[0], than: "raw"})
	report(b, figure{name: name, ours: m[2], unit: "allocs", other: m[1], than: "straight"})
	report(b, figure{name: name, ours: m[2], unit: "allocs", other: 2, than: "limit", atMost: 1})
}

// allocations returns how many allocations a put makes.
func allocations(b *testing.B, open func(*testing.B, *leveldb.DB) store) func() float64 {
	const n = 5000 // so few that leveldb does not flush
	return func() float64 {
		var before, after runtime.MemStats
		rate(b, n, open, func(s store) {
			s.fill(b, ascending(0, n), 1) // the buffers have grown
			order := ascending(n, n)
			runtime.ReadMemStats(&before)
			s.fill(b, order, 1)
			runtime.ReadMemStats(&after)
		})()
		return float64(after.Mallocs-before.Mallocs) / n
	}
}

func benchReads(b *testing.B) {
	const get, iterate = "get, random keys", "iterate over all"
	if !wanted(get, iterate) {
		return
	}
	a := newReplica(b)
	defer a.close(b)
	a.fill(b, shuffled(0, *entries))
	settle(b, a)
	if wanted(get) {
		order := shuffled(0, *entries)[:*entries/20]
		m := medians(15, getRate(b, order, a.db.Get), getRate(b, order, a.Get))
		report(b, figure{name: get, ours: m[1], unit: "entries/s", other: m[0], than: "raw", atLeast: 0.97})
	}
	if wanted(iterate) {
		m := medians(9, iterationRate(b, a.db, &util.Range{Limit: []byte{0xff}}), iterationRate(b, a, nil))
		report(b, figure{name: iterate, ours: m[1], unit: "entries/s", other: m[0], than: "raw", atLeast: 0.95})
	}
}

// getRate returns how many gets of the given keys are done in a second.
func getRate(b *testing.B, order []int, get func([]byte, *opt.ReadOptions) ([]byte, error)) func() float64 {
	return func() float64 {
		var key []byte
		start := time.Now()
		for _, i := range order {
			key = appendKey(key[:0], i)
			if _, err := get(key, nil); err != nil {
				b.Fatal(err)
			}
		}
		return float64(len(order)) / time.Since(start).Seconds()
	}
}

// iterationRate returns how many entries are iterated over in a second.
func iterationRate(b *testing.B, s interface {
	NewIterator(*util.Range, *opt.ReadOptions) iterator.Iterator
}, slice *util.Range) func() float64 {
	return func() float64 {
		start := time.Now()
		it := s.NewIterator(slice, nil)
		defer it.Release()
		count := 0
		for it.Next() {
			count += min(len(it.Key()), 1)
		}
		if it.Error() != nil || count != *entries {
			b.Fatalf("iterated %d entries: %v", count, it.Error())
		}
		return float64(count) / time.Since(start).Seconds()
	}
}

func benchMemory(b *testing.B) {
	const firstSync = "live heap of a first sync"
	const large, less = "live heap of a first sync of 16 MiB values", "the same, less what raw get and put take"
	const mib = 1 << 20
	sync := func(a, z *replica) { z.pull(b, a) }
	if wanted(firstSync) {
		heap := copyHeap(b, func(a *replica) { a.fill(b, ascending(0, *entries)) }, sync)
		report(b, figure{name: firstSync, ours: heap / mib, unit: "MiB", other: 48, than: "limit", atMost: 1})
	}
	if !wanted(large, less) {
		return
	}
	const size = 16 * mib
	fill := func(a *replica) {
		value := make([]byte, size)
		for i := range 8 {
			copy(value, testValue(i, len(randomBytes)/2))
			require.NoError(b, a.Put(appendKey(nil, i), value, nil))
		}
	}
	heap := copyHeap(b, fill, sync)
	report(b, figure{name: large, ours: heap / mib, unit: "MiB", other: size / mib, than: "value", atMost: 4})
	raw := copyHeap(b, fill, func(a, z *replica) {
		for i := range 8 {
			value, err := a.db.Get(appendKey(nil, i), nil)
			require.NoError(b, err)
			require.NoError(b, z.db.Put(appendKey(nil, i), value, nil))
		}
	})
	report(b, figure{name: large, ours: heap / mib, unit: "MiB", other: raw / mib, than: "raw get and put"})
	report(b, figure{name: less, ours: (heap - raw) / mib, unit: "MiB", other: size / mib, than: "value", atMost: 4})
}

// copyHeap returns by how much copying what is in one replica to another raises
// the live heap, both sides together, above that of the two open replicas.
func copyHeap(b *testing.B, fill func(*replica), copying func(a, z *replica)) float64 {
	a := newReplica(b)
	fill(a)
	settle(b, a)
	a.close(b)
	a = openReplica(b, a.dir) // with empty caches
	defer a.remove(b)
	z := newReplica(b)
	defer z.remove(b)
	time.Sleep(2 * time.Second) // what was closed is gone
	liveHeap()                  // and what pools held of it
	idle := liveHeap()
	stop, peak := make(chan struct{}), make(chan float64)
	go func() {
		greatest := 0.0
		for {
			greatest = max(greatest, liveHeap())
			select {
			case <-stop:
				peak <- greatest
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	copying(a, z)
	close(stop)
	return <-peak - idle
}

// liveHeap collects garbage, and returns how much was none.
func liveHeap() float64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return float64(sample[0].Value.Uint64())
}

func benchIdle(b *testing.B) {
	const cpuShare, traffic = "idle pair, share of a core", "idle pair, traffic"
	if !wanted(cpuShare, traffic) {
		return
	}
	const long = 20 * time.Second
	a, z := newReplica(b), newReplica(b)
	defer a.close(b)
	defer z.close(b)
	a.fill(b, ascending(0, 10_000))
	z.pull(b, a)
	settle(b, a, z)
	time.Sleep(5 * time.Second)
	cpu, before := cpuTime(b), z.traffic()
	time.Sleep(long)
	used, after := cpuTime(b)-cpu, z.traffic()
	bytes := float64(after.BytesIn + after.BytesOut - before.BytesIn - before.BytesOut)
	report(b, figure{name: cpuShare, ours: 100 * used.Seconds() / long.Seconds(), unit: "%", other: 1, than: "limit", atMost: 1})
	report(b, figure{name: traffic, ours: bytes / long.Seconds(), unit: "bytes/s", other: 100, than: "limit", atMost: 1})
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
