package replicator_test

import (
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// TestClosedDespiteDroppedIterators: an iterator and a snapshot that were dropped
// without Release do not keep OpenFile's database open for ever.
func TestClosedDespiteDroppedIterators(t *testing.T) {
	r, err := replicator.OpenFile(t.TempDir(), nil, nil)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
	drop := func() {
		it := r.NewIterator(nil, nil)
		require.True(t, it.Next())
		snap, err := r.GetSnapshot()
		require.NoError(t, err)
		_, err = snap.Get([]byte("key"), nil)
		require.NoError(t, err)
	}
	drop()
	kept := r.NewIterator(nil, nil)
	require.ErrorIs(t, r.Close(), replicator.ErrInUse)
	runtime.KeepAlive(kept) // and no longer
	require.Eventually(t, func() bool {
		runtime.GC()
		return r.Close() == nil
	}, 10*time.Second, 10*time.Millisecond)
	_, err = r.DB().Get([]byte("key"), nil)
	require.ErrorIs(t, err, leveldb.ErrClosed)
}

// TestSnapshotVersion: a snapshot has a value and its version of one moment.
func TestSnapshotVersion(t *testing.T) {
	r, err := replicator.OpenFile(t.TempDir(), nil, nil)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
	before, err := r.Version([]byte("key"))
	require.NoError(t, err)
	snap, err := r.GetSnapshot()
	require.NoError(t, err)
	require.NoError(t, r.Delete([]byte("key"), nil))
	require.NoError(t, r.Put([]byte("late"), nil, nil))
	version, err := snap.Version([]byte("key"))
	require.NoError(t, err)
	require.Equal(t, before, version)
	_, err = snap.Version([]byte("late"))
	require.ErrorIs(t, err, leveldb.ErrNotFound)
	now, err := r.Version([]byte("key"))
	require.NoError(t, err)
	require.True(t, now.Deleted)
	snap.Release()
	require.ErrorIs(t, second(snap.Version([]byte("key"))), leveldb.ErrSnapshotReleased)
	require.NoError(t, r.Close())
	require.ErrorIs(t, second(snap.Version([]byte("key"))), replicator.ErrClosed)
}

// TestClosedDuringDigest: a Digest under way neither fails a Close nor holds it up.
func TestClosedDuringDigest(t *testing.T) {
	t.Parallel()
	for range budget(5, 10, 20) {
		r, err := replicator.OpenFile(t.TempDir(), nil, nil)
		require.NoError(t, err)
		var b leveldb.Batch
		for i := range 20_000 {
			b.Put([]byte{byte(i >> 8), byte(i)}, nil)
		}
		require.NoError(t, r.Write(&b, nil))
		done := make(chan error, 1)
		go func() {
			for {
				if _, err := r.Digest(); err != nil {
					done <- err
					return
				}
			}
		}()
		time.Sleep(time.Duration(len(done)+1) * time.Millisecond) // into the midst of one
		require.NoError(t, r.Close())
		require.ErrorIs(t, <-done, replicator.ErrClosed)
	}
}

// TestInvertedRange: a range whose Start is above its Limit is empty. goleveldb can
// panic where all tables lie between the two.
func TestInvertedRange(t *testing.T) {
	r, err := replicator.OpenFile(t.TempDir(), nil, nil)
	require.NoError(t, err)
	defer r.Close()
	for _, key := range []string{"m1", "m2", "m3"} {
		require.NoError(t, r.Put([]byte(key), nil, nil))
	}
	require.NoError(t, r.DB().CompactRange(util.Range{}))
	snap, err := r.GetSnapshot()
	require.NoError(t, err)
	defer snap.Release()
	for _, open := range []func() iterator.Iterator{
		func() iterator.Iterator {
			return r.NewIterator(&util.Range{Start: []byte("z"), Limit: []byte("a")}, nil)
		},
		func() iterator.Iterator {
			return snap.NewIterator(&util.Range{Start: []byte("z"), Limit: []byte("a")}, nil)
		},
	} {
		it := open()
		require.False(t, it.First())
		require.False(t, it.Last())
		require.False(t, it.Seek([]byte("m2")))
		require.NoError(t, it.Error())
		it.Release()
	}
}

// TestIncompleteCopy: a copy that lost its format row is told from a database in
// which somebody else keeps keys.
func TestIncompleteCopy(t *testing.T) {
	db := memDB(t)
	r := openPlain(t, db, "boot")
	require.NoError(t, r.Put([]byte("key"), nil, nil))
	require.NoError(t, r.Close())
	require.NoError(t, db.Delete([]byte(reservedPrefix+"mformat"), nil))
	_, err := replicator.Open(db, nil)
	require.ErrorContains(t, err, "incomplete copy")
	require.ErrorContains(t, err, "start from an empty directory")
	require.NotErrorIs(t, err, replicator.ErrReserved)
}

// TestListenerOfAFailedOpen: an Open that fails closes the listener that it was given.
func TestListenerOfAFailedOpen(t *testing.T) {
	used := memDB(t)
	defer openPlain(t, used, "boot").Close()
	for name, open := range map[string]func(o *replicator.Options) error{
		"options": func(o *replicator.Options) error {
			o.MaxValueSize = -1
			_, err := replicator.Open(memDB(t), o)
			return err
		},
		"database": func(o *replicator.Options) error {
			_, err := replicator.Open(used, o)
			return err
		},
		"path": func(o *replicator.Options) error {
			_, err := replicator.OpenFile("/dev/null/nowhere", nil, o)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			require.Error(t, open(&replicator.Options{Listener: l}))
			_, err = l.Accept()
			require.ErrorIs(t, err, net.ErrClosed)
		})
	}
}
