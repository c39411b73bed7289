package replicator_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// What tests need of single databases.

// reservedPrefix is where the Replicator keeps its own rows.
const reservedPrefix = "\xffreplicator\xff"

// withSync are the options of a write that is durable when it returns.
var withSync = &opt.WriteOptions{Sync: true}

// second returns the error of a call with two results.
func second[T any](_ T, err error) error { return err }

// memDB opens a database in memory, which is closed at the end of the test.
func memDB(t testing.TB) *leveldb.DB {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// wrap wraps a database; the Replicator is closed at the end of the test.
func wrap(t testing.TB, db *leveldb.DB, o *replicator.Options) *replicator.Replicator {
	r, err := replicator.Open(db, o)
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

// openPlain wraps a database without peers, in some boot of a machine. The test
// closes the Replicator, before it closes the database.
func openPlain(t testing.TB, db *leveldb.DB, boot string) *replicator.Replicator {
	r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{}, boot))
	require.NoError(t, err)
	return r
}

// onDisk opens the plain database on a disk for a while.
func onDisk(t testing.TB, disk *simtest.Disk, use func(db *leveldb.DB)) {
	db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 128 << 10, DisableLargeBatchTransaction: true})
	require.NoError(t, err)
	defer func() { assert.NoError(t, db.Close()) }()
	use(db)
}

// fillDisk puts values into a database, as a program without a Replicator would.
func fillDisk(t testing.TB, disk *simtest.Disk, values map[string]string) {
	onDisk(t, disk, func(db *leveldb.DB) {
		var b leveldb.Batch
		for key, value := range values {
			b.Put([]byte(key), []byte(value))
		}
		require.NoError(t, db.Write(&b, withSync))
	})
}

// numbered returns values that tell their keys apart.
func numbered(prefix string, count int, value string) map[string]string {
	values := map[string]string{}
	for i := range count {
		values[fmt.Sprintf("%s%05d", prefix, i)] = fmt.Sprintf("%s of %d", value, i)
	}
	return values
}

// incompressible is a value that takes as many bytes in a table.
func incompressible(rng *rand.Rand, size int) string {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// adoptedOrigin is what stands for an origin in the stamp of an adopted key.
func adoptedOrigin(value string) replicator.Origin {
	sum := sha256.Sum256([]byte(value))
	return replicator.Origin(binary.BigEndian.Uint64(sum[:]) &^ (1 << 63))
}

// rows is all that a database holds, read from one snapshot.
type rows struct {
	data  map[string]string
	index map[string]replicator.Row
	log   []replicator.Row
}

func readRows(t testing.TB, db *leveldb.DB) rows {
	snap, err := db.GetSnapshot()
	require.NoError(t, err)
	defer snap.Release()
	r := rows{data: map[string]string{}}
	r.index, err = replicator.IndexRows(snap)
	require.NoError(t, err)
	r.log, err = replicator.LogRows(snap)
	require.NoError(t, err)
	it := snap.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		if !strings.HasPrefix(string(it.Key()), reservedPrefix) {
			r.data[string(it.Key())] = string(it.Value())
		}
	}
	require.NoError(t, it.Error())
	return r
}

// checkData returns how data and index disagree.
func (r rows) checkData() error {
	for key, row := range r.index {
		if _, has := r.data[key]; has == row.Deleted {
			return fmt.Errorf("key %q: deleted is %v in the index, there is a value: %v", key, row.Deleted, has)
		}
	}
	for key := range r.data {
		if _, has := r.index[key]; !has {
			return fmt.Errorf("key %q is not in the index", key)
		}
	}
	return nil
}

// checkLog returns how log and index disagree: the index points to the last
// record of each key, and to the one that says the same.
func (r rows) checkLog() error { return r.checkLogFrom(1) }

// checkLogFrom is checkLog for a log that has a floor.
func (r rows) checkLogFrom(floor uint64) error {
	last := map[string]replicator.Row{}
	for _, row := range r.log {
		if row.Seq >= floor {
			last[row.Key] = row
		}
	}
	for key, row := range r.index {
		if row.Seq >= floor && last[key] != row {
			return fmt.Errorf("key %q: index %v, log %v", key, row, last[key])
		}
	}
	for key, row := range last {
		if r.index[key] != row {
			return fmt.Errorf("key %q: index %v, log %v", key, r.index[key], row)
		}
	}
	return nil
}

// indexOf returns what a database knows of each key.
func indexOf(t testing.TB, db *leveldb.DB) map[string]replicator.Row {
	rows, err := replicator.IndexRows(db)
	require.NoError(t, err)
	return rows
}

// isClean reports whether the Replicator of a database was closed cleanly.
func isClean(t testing.TB, db *leveldb.DB) bool {
	clean, err := db.Has([]byte(reservedPrefix+"mclean"), nil)
	require.NoError(t, err)
	return clean
}

// hold holds up the next write to a journal of the disk. The channel is closed
// when there is one; letGo lets it pass.
func hold(disk *simtest.Disk) (entered <-chan struct{}, letGo func()) {
	held, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
		if op == simtest.OpWrite && fd.Type == storage.TypeJournal && once.CompareAndSwap(false, true) {
			close(held)
			<-release
		}
		return nil
	})
	return held, sync.OnceFunc(func() { close(release) })
}
