//go:build unix

package replicator_test

import (
	"fmt"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// The benchmarks of this file are for benchstat and .ci/compare: each measures one
// step, on a disk in memory. BenchmarkFigures measures what users see, on real disks.

// fullPage is how many entries a full page has.
const fullPage = 500

// openOnDisk opens a database on a simulated disk, and a Replicator of it.
func openOnDisk(b *testing.B, disk *simtest.Disk) (*leveldb.DB, *replicator.Replicator) {
	db, err := leveldb.Open(disk, ldbOptions)
	require.NoError(b, err)
	r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{}, "one boot"))
	require.NoError(b, err)
	return db, r
}

func closeBoth(b *testing.B, db *leveldb.DB, r *replicator.Replicator) {
	require.NoError(b, r.Close())
	require.NoError(b, db.Close())
}

// openFilled opens a database with a number of keys, written in random order.
func openFilled(b *testing.B, keys int) *replicator.Replicator {
	db, r := openOnDisk(b, simtest.NewDisk())
	b.Cleanup(func() { closeBoth(b, db, r) })
	(&replica{Replicator: r}).fill(b, shuffled(0, keys))
	return r
}

// scatter maps numbers to others, one to one, that are far apart.
func scatter(i int) int { return int(uint64(i) * 0x9e3779b97f4a7c15 >> 1) }

var keyOrders = []struct {
	name string
	at   func(i int) int
}{
	{"ascending", func(i int) int { return i }},
	{"random", scatter},
}

// BenchmarkPut puts keys that are new, one an operation.
func BenchmarkPut(b *testing.B) {
	for _, order := range keyOrders {
		b.Run("keys="+order.name, func(b *testing.B) {
			r := openFilled(b, 0)
			var key []byte
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				key = appendKey(key[:0], order.at(i))
				if err := r.Put(key, testValue(i, valueSize), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWriteBatch writes batches of 1,000 keys that are new, one an operation.
func BenchmarkWriteBatch(b *testing.B) {
	const size = 1000
	for _, order := range keyOrders {
		b.Run("keys="+order.name, func(b *testing.B) {
			r := openFilled(b, 0)
			var batch leveldb.Batch
			var key []byte
			b.ReportAllocs()
			for i := 0; b.Loop(); {
				batch.Reset()
				for range size {
					key = appendKey(key[:0], order.at(i))
					batch.Put(key, testValue(i, valueSize))
					i++
				}
				if err := r.Write(&batch, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMergePage merges full pages from elsewhere, one an operation: into a
// database that has none of the keys, older versions of all, or newer ones, which is
// what a mesh brings most of the time.
func BenchmarkMergePage(b *testing.B) {
	const keys = 100 * fullPage
	for _, c := range []struct {
		name  string
		known int
		key   func(page, i int) int
		clock func(page int) uint64
		wins  int
	}{
		{"new", 0, func(page, i int) int { return page*fullPage + i }, func(int) uint64 { return 1 }, fullPage},
		{"older", keys, func(page, i int) int { return i*(keys/fullPage) + page%(keys/fullPage) }, func(page int) uint64 { return keys + uint64(page) }, fullPage},
		{"newer", keys, func(page, i int) int { return i*(keys/fullPage) + page%(keys/fullPage) }, func(int) uint64 { return 0 }, 0},
	} {
		b.Run("here="+c.name, func(b *testing.B) {
			merger := replicator.NewPageMerger(openFilled(b, c.known), fullPage, testValue(0, valueSize))
			var key []byte
			b.ReportAllocs()
			for page := 0; b.Loop(); page++ {
				stamp := replicator.Stamp{Clock: c.clock(page), Origin: 1<<63 + 1}
				for i := range fullPage {
					key = appendKey(key[:0], c.key(page, i))
					merger.Set(i, key, stamp)
				}
				if wins, err := merger.Merge(); err != nil || wins != c.wins {
					b.Fatal(wins, err)
				}
			}
		})
	}
}

// BenchmarkServeRecent makes a page of the last few records, as for a peer that keeps
// up, one an operation.
func BenchmarkServeRecent(b *testing.B) {
	r := openFilled(b, 100_000)
	head := r.Status().Head
	for _, records := range []int{1, 3, 10, 100} {
		b.Run(fmt.Sprint("records=", records), func(b *testing.B) {
			server := replicator.NewPageServer(r)
			b.ReportAllocs()
			for b.Loop() {
				if n, err := server.Recent(head - uint64(records)); err != nil || n != records {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// BenchmarkServeKeyOrder makes full pages of everything, in key order, as for a new
// replica, one an operation.
func BenchmarkServeKeyOrder(b *testing.B) {
	const keys = 200 * fullPage
	server := replicator.NewPageServer(openFilled(b, keys))
	var last []byte
	b.ReportAllocs()
	for b.Loop() {
		var n int
		var err error
		if last, n, err = server.KeyOrder(last); err != nil || n != fullPage && last != nil {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkOpen opens a database of 100,000 keys, once an operation. The clean mark
// of a close spares it the look at the records that a kill makes necessary.
func BenchmarkOpen(b *testing.B) {
	const keys = 100_000
	closed := simtest.NewDisk()
	db, r := openOnDisk(b, closed)
	(&replica{Replicator: r}).fill(b, ascending(0, keys))
	killed := closed.Copy()
	closeBoth(b, db, r)
	for _, c := range []struct {
		after string
		disk  *simtest.Disk
	}{{"close", closed}, {"kill", killed}} {
		b.Run("after="+c.after, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				db, err := leveldb.Open(c.disk.Copy(), ldbOptions)
				require.NoError(b, err)
				b.StartTimer()
				r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{}, "one boot"))
				b.StopTimer()
				require.NoError(b, err)
				closeBoth(b, db, r)
				b.StartTimer()
			}
		})
	}
}
