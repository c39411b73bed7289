//go:build unix

package replicator_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// BenchmarkBackup copies a database by Backup and by hand, in turns, and reports the ratio
// of their speeds; and the rate of a writer during backups, and alone, in turns:
//
//	go test -run '^$' -bench Backup -benchtime 1x -timeout 20m .
//
// By hand means an iterator over the same rows, and batches of 1,000.
func BenchmarkBackup(b *testing.B) {
	for range b.N {
		r, err := replicator.OpenFile(b.TempDir(), nil, nil)
		require.NoError(b, err)
		batch := new(leveldb.Batch)
		var key []byte
		for _, i := range shuffled(0, *entries) {
			key = appendKey(key[:0], i)
			if batch.Put(key, testValue(i, valueSize)); batch.Len() == 1000 {
				require.NoError(b, r.Write(batch, nil))
				batch.Reset()
			}
		}
		require.NoError(b, r.Write(batch, nil))
		time.Sleep(5 * time.Second) // compactions end

		backup := func() float64 {
			began := time.Now()
			require.NoError(b, r.Backup(context.Background(), filepath.Join(b.TempDir(), "copy"), nil))
			return float64(*entries) / time.Since(began).Seconds()
		}
		m := medians(3, backup, func() float64 { return copyByHand(b, r.DB(), true) }, func() float64 { return copyByHand(b, r.DB(), false) })
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(m[0], "keys/s")
		b.ReportMetric(m[0]/m[1], "of_copy_of_all_rows")
		b.ReportMetric(m[0]/m[2], "of_copy_of_values")

		writer := func(during bool) float64 {
			done := make(chan struct{})
			var writes atomic.Int64
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				for i := 0; ; i++ {
					select {
					case <-done:
						return
					default:
					}
					_ = r.Put(appendKey(nil, i%*entries), testValue(i, valueSize), nil)
					writes.Add(1)
				}
			}()
			began := time.Now()
			if during {
				backup()
			} else {
				time.Sleep(5 * time.Second)
			}
			rate := float64(writes.Load()) / time.Since(began).Seconds()
			close(done)
			<-stopped
			return rate
		}
		w := medians(3, func() float64 { return writer(true) }, func() float64 { return writer(false) })
		b.ReportMetric(w[0]/w[1], "of_writer_alone")
		require.NoError(b, r.Close())
	}
}

// copyByHand copies a database, all rows or the user's alone, and returns keys a second.
func copyByHand(b *testing.B, from *leveldb.DB, all bool) float64 {
	began := time.Now()
	to := openDB(b, b.TempDir())
	it := from.NewIterator(nil, nil)
	batch := new(leveldb.Batch)
	for it.Next() {
		if !all && it.Key()[0] == 0xff {
			break
		}
		if batch.Put(it.Key(), it.Value()); batch.Len() == 1000 {
			require.NoError(b, to.Write(batch, nil))
			batch.Reset()
		}
	}
	it.Release()
	require.NoError(b, to.Write(batch, withSync))
	took := time.Since(began)
	require.NoError(b, to.Close())
	return float64(*entries) / took.Seconds()
}
