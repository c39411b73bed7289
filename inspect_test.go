package replicator_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// filesOf returns a hash of each file below a directory.
func filesOf(t *testing.T, dir string) map[string][32]byte {
	files := map[string][32]byte{}
	require.NoError(t, fs.WalkDir(os.DirFS(dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(dir, path))
		files[path] = sha256.Sum256(content)
		return err
	}))
	return files
}

// TestInspectWritesNothing looks into databases that were closed and killed, with a handle
// that only reads: all is found, and no file changes.
func TestInspectWritesNothing(t *testing.T) {
	t.Parallel()
	var want formatContents
	text, err := os.ReadFile(filepath.Join(formatDir, "contents.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &want))
	for name, clean := range map[string]bool{"closed": true, "killed": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(formatDir, name))))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "LOCK"), nil, 0o666))
			before := filesOf(t, dir)
			db, err := leveldb.OpenFile(dir, &opt.Options{ReadOnly: true})
			require.NoError(t, err)
			n, err := replicator.Inspect(db)
			require.NoError(t, err)
			versions := map[string]replicator.Version{}
			values := map[string]string{}
			for k, err := range replicator.InspectKeys(db) {
				require.NoError(t, err)
				require.True(t, k.Indexed)
				require.NotEqual(t, k.Version.Deleted, k.Present)
				versions[string(k.Key)] = k.Version
				if k.Present {
					values[string(k.Key)] = string(k.Value)
				}
			}
			records := uint64(0)
			for _, err := range replicator.InspectLog(db) {
				require.NoError(t, err)
				records++
			}
			require.NoError(t, db.Close())
			require.Equal(t, before, filesOf(t, dir))

			require.Equal(t, want.Values, values)
			require.Equal(t, want.Versions, versions)
			require.Equal(t, records, n.LogRecords)
			require.Equal(t, 2, n.Format)
			require.Equal(t, want.ID, n.ID)
			require.Equal(t, clean, n.Clean)
			require.Equal(t, want.Head, n.Head)
			require.EqualValues(t, 4, n.Keys)
			require.EqualValues(t, 1, n.Tombstones)
			require.Zero(t, n.Unadopted)
			require.Equal(t, replicator.AdoptionStatus{Done: true, Adopted: 1}, n.Adoption)
			require.Len(t, n.Epochs, 1)
			require.Len(t, n.Vector, 2)
			require.Len(t, n.Peers, 1)
			for _, v := range versions {
				require.Less(t, v.Clock, n.Clock)
			}
			require.Less(t, n.Clock, n.Ceiling)
		})
	}
}

// TestInspectBesideAReplicator looks into databases that replicas have open, and have
// closed: what is found agrees with their Status.
func TestInspectBesideAReplicator(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.link(1, 2)
		c.open()
		a, b := c.nodes[0], c.nodes[1]
		a.fill("a", 0, 50, 10)
		b.fill("b", 0, 20, 10)
		b.delete("b00000")
		require.NoError(t, a.sync())
		require.NoError(t, b.sync())
		gone := c.nodes[2].r.Status().ID
		require.NoError(t, b.r.Forget(gone))
		time.Sleep(time.Second)

		agrees := func() replicator.Inspection {
			s := b.r.Status()
			n, err := replicator.Inspect(b.db)
			require.NoError(t, err)
			require.Equal(t, s.ID, n.ID)
			require.Equal(t, s.Head, n.Head)
			require.Equal(t, s.Clock, n.Clock)
			require.Equal(t, s.Floor, n.Floor)
			require.Equal(t, s.LogRecords, n.LogRecords)
			require.Equal(t, s.Vector.Origins, len(n.Vector))
			require.Equal(t, s.Epoch, n.Epochs[len(n.Epochs)-1].Origin)
			require.EqualValues(t, 69, n.Keys)
			require.EqualValues(t, 1, n.Tombstones)
			require.Len(t, n.Peers, 2)
			for _, p := range n.Peers {
				require.Equal(t, p.ID == gone, p.Forgotten)
				if p.Forgotten {
					continue
				}
				require.Equal(t, a.r.Status().ID, p.ID)
				require.True(t, p.Whole)
				require.NotNil(t, p.Merged)
				require.Equal(t, a.r.Status().Epoch, p.MergedEpoch)
				require.Nil(t, p.Scan)
			}
			return n
		}
		require.False(t, agrees().Clean)
		require.NoError(t, a.r.Close())
		require.NoError(t, b.r.Close())
		n := agrees()
		require.True(t, n.Clean)
		for _, p := range n.Peers {
			require.Equal(t, p.Merged, p.Durable) // Close made it so
		}
	})
}

// memory returns a database in memory.
func memory(t *testing.T) *leveldb.DB {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// TestInspectOthers: what was never wrapped is told, and what this version does not know is
// refused.
func TestInspectOthers(t *testing.T) {
	t.Parallel()
	db := memory(t)
	require.NoError(t, db.Put([]byte("key"), []byte("value"), nil))
	n, err := replicator.Inspect(db)
	require.NoError(t, err)
	require.Equal(t, replicator.Inspection{Unadopted: 1, Epochs: []replicator.InspectedEpoch{}, Vector: []replicator.Stamp{}, Peers: []replicator.InspectedPeer{}}, n)
	require.Len(t, allRows(t, db), 1)

	r, err := replicator.Open(db, &replicator.Options{SkipAdoption: true})
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("other"), []byte("value"), nil))
	n, err = replicator.Inspect(db)
	require.NoError(t, err)
	require.EqualValues(t, 1, n.Unadopted)
	require.EqualValues(t, 1, n.Keys)
	require.False(t, n.Adoption.Done)
	require.NoError(t, r.Close())

	require.Nil(t, n.LocalPrefix)
	require.NoError(t, db.Put([]byte(reservedPrefix+"mprefix"), []byte("k"), nil))
	n, err = replicator.Inspect(db)
	require.NoError(t, err)
	require.Equal(t, "k", string(n.LocalPrefix))
	require.Zero(t, n.Unadopted)
	require.NoError(t, db.Delete([]byte(reservedPrefix+"mprefix"), nil))

	require.Equal(t, "Lamport", n.ClockKind)
	r, err = replicator.Open(db, &replicator.Options{Clock: replicator.Hybrid})
	require.NoError(t, err)
	require.NoError(t, r.Close())
	n, err = replicator.Inspect(db)
	require.NoError(t, err)
	require.Equal(t, "Hybrid", n.ClockKind)

	require.NoError(t, db.Put([]byte(reservedPrefix+"mformat"), []byte{9, 1}, nil))
	_, err = replicator.Inspect(db)
	require.ErrorContains(t, err, "storage format 0901")
	for _, err = range replicator.InspectLog(db) {
	}
	require.ErrorContains(t, err, "storage format 0901")
	for _, err = range replicator.InspectKeys(db) {
	}
	require.ErrorContains(t, err, "storage format 0901")

	foreign := memory(t)
	require.NoError(t, foreign.Put([]byte(reservedPrefix+"?"), nil, nil))
	_, err = replicator.Inspect(foreign)
	require.ErrorIs(t, err, replicator.ErrReserved)

	require.NoError(t, foreign.Close())
	_, err = replicator.Inspect(foreign)
	require.ErrorIs(t, err, leveldb.ErrClosed)
	require.EqualError(t, err, "replicator: inspect: leveldb: closed")
	_, err = replicator.Inspect(nil)
	require.ErrorContains(t, err, "nil")
}

// TestNoEpoch: a database that has lost its epochs is refused.
func TestNoEpoch(t *testing.T) {
	t.Parallel()
	db := memory(t)
	r, err := replicator.Open(db, nil)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	for row := range allRows(t, db) {
		if row[len(reservedPrefix)] == 'e' {
			require.NoError(t, db.Delete([]byte(row), nil))
		}
	}
	_, err = replicator.Inspect(db)
	require.ErrorContains(t, err, "corrupt record: there is no epoch")
	_, err = replicator.Open(db, nil)
	require.ErrorContains(t, err, "corrupt record: there is no epoch")
}

// TestInspectLog: records come the latest first, and tell which of them a later one has
// replaced. A reader may stop anywhere.
func TestInspectLog(t *testing.T) {
	t.Parallel()
	db := memory(t)
	r, err := replicator.Open(db, nil)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("a"), []byte("1"), nil))
	require.NoError(t, r.Put([]byte("b"), []byte("2"), nil))
	require.NoError(t, r.Delete([]byte("a"), nil))
	var found []replicator.LogRecord
	for record, err := range replicator.InspectLog(db) {
		require.NoError(t, err)
		found = append(found, record)
	}
	require.Len(t, found, 3)
	for i, want := range []struct {
		key             string
		deleted, latest bool
	}{{"a", true, true}, {"b", false, true}, {"a", false, false}} {
		require.Equal(t, want.key, string(found[i].Key))
		require.Equal(t, want.deleted, found[i].Deleted)
		require.Equal(t, want.latest, found[i].Latest)
		require.EqualValues(t, 2-i, found[i].Clock)
		require.Equal(t, r.Status().Epoch, found[i].Origin)
	}
	require.Greater(t, found[0].Sequence, found[1].Sequence)
	for range replicator.InspectLog(db) {
		break
	}
	for k := range replicator.InspectKeys(db) {
		require.Equal(t, "a", string(k.Key))
		break
	}
	require.NoError(t, r.Close())
}

// TestInspectDamage: what does not fit together is seen.
func TestInspectDamage(t *testing.T) {
	t.Parallel()
	db := memory(t)
	r, err := replicator.Open(db, nil)
	require.NoError(t, err)
	for _, key := range []string{"a", "b", "c"} {
		require.NoError(t, r.Put([]byte(key), []byte(key), nil))
	}
	require.NoError(t, r.Close())
	require.NoError(t, db.Delete([]byte("a"), nil))
	require.NoError(t, db.Put([]byte("d"), []byte("around"), nil))
	states := map[string]replicator.KeyState{}
	for k, err := range replicator.InspectKeys(db) {
		require.NoError(t, err)
		states[string(k.Key)] = replicator.KeyState{Indexed: k.Indexed, Present: k.Present}
	}
	require.Equal(t, map[string]replicator.KeyState{
		"a": {Indexed: true}, "b": {Indexed: true, Present: true}, "c": {Indexed: true, Present: true}, "d": {Present: true},
	}, states)

	require.NoError(t, db.Put([]byte(reservedPrefix+"ib"), []byte{99}, nil))
	_, err = replicator.Inspect(db)
	require.ErrorContains(t, err, `corrupt record: index of key "b"`)
	for _, err = range replicator.InspectKeys(db) {
		if err != nil {
			break
		}
	}
	require.ErrorContains(t, err, `corrupt record: index of key "b"`)
	var last error
	for _, last = range replicator.InspectLog(db) {
	}
	require.ErrorContains(t, last, `corrupt record: index of key "b"`)
	require.False(t, errors.Is(last, leveldb.ErrNotFound))
}
