//go:build unix

package replicator_test

import (
	"encoding/binary"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// BenchmarkExpiration updates 1,000 keys, over and over, with a log that expires and with
// one that does not, in turns, and reports the median of the ratios of their speeds and
// what the files have come to once that has settled:
//
//	go test -run '^$' -bench Expiration -benchtime 1x -timeout 10m .
//
// -entries gives half the number of updates.
func BenchmarkExpiration(b *testing.B) {
	for range b.N {
		updates := 2 * *entries
		expiring := newUpdated(b, &replicator.Options{})
		growing := newUpdated(b, &replicator.Options{MaxLogRecords: -1})
		growing.neverExpires()
		const rounds = 40
		var ratios []float64
		for i := range rounds {
			var with, without time.Duration
			if i%2 == 0 { // what one leaves to be done in the background, the other one pays for
				with = expiring.update(b, updates/rounds)
				without = growing.update(b, updates/rounds)
			} else {
				without = growing.update(b, updates/rounds)
				with = expiring.update(b, updates/rounds)
			}
			ratios = append(ratios, without.Seconds()/with.Seconds())
		}
		slices.Sort(ratios)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(updates)/expiring.took.Seconds(), "updates/s")
		b.ReportMetric(ratios[rounds/2], "of_the_speed_without")
		expiring.settle(b)
		b.ReportMetric(float64(expiring.size(b))/1e6, "MB_settled")
		b.ReportMetric(float64(growing.size(b))/1e6, "MB_without")
	}
}

// updated is a database whose keys are updated over and over.
type updated struct {
	dir  string
	r    *replicator.Replicator
	n    uint64
	took time.Duration
}

func newUpdated(b testing.TB, o *replicator.Options) *updated {
	u := &updated{dir: b.TempDir()}
	var err error
	u.r, err = replicator.OpenFile(u.dir, nil, o)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, u.r.Close()) })
	return u
}

// neverExpires has a peer be waited for that never comes.
func (u *updated) neverExpires() { replicator.AwaitStranger(u.r) }

func (u *updated) update(b testing.TB, n int) time.Duration {
	began := time.Now()
	key, value := make([]byte, 16), make([]byte, 100)
	for range n {
		u.n++
		binary.BigEndian.PutUint64(key[8:], u.n%1000)
		binary.BigEndian.PutUint64(value, u.n)
		require.NoError(b, u.r.Put(key, value, nil))
	}
	took := time.Since(began)
	u.took += took
	return took
}

// settle waits until nothing more expires.
func (u *updated) settle(b testing.TB) {
	before, same := int64(-1), 0
	for range 240 {
		if size := u.size(b); size == before {
			same++
		} else {
			before, same = size, 0
		}
		if same > 6 {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// size returns the number of bytes in files.
func (u *updated) size(b testing.TB) (size int64) {
	require.NoError(b, filepath.WalkDir(u.dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && !d.IsDir() {
			size += info.Size()
		}
		return nil
	}))
	return size
}

// TestExpireFiles is BenchmarkExpiration in small: what has expired takes no room.
func TestExpireFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes megabytes")
	}
	t.Parallel()
	const updates = 150_000
	u := newUpdated(t, replicator.WithExpiry(replicator.Options{}, 20*time.Millisecond, 1000))
	u.update(t, updates)
	until := time.Now().Add(time.Minute)
	for u.r.Status().LogRecords > 1100 {
		require.True(t, time.Now().Before(until), "the log has %d records", u.r.Status().LogRecords)
		time.Sleep(10 * time.Millisecond)
	}
	u.settle(t)
	size := u.size(t)
	t.Logf("%d updates in %v have left %d bytes", updates, u.took, size)
	require.Less(t, size, int64(10e6))
	require.NoError(t, replicator.CheckConsistent(u.r))
}
