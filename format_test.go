package replicator_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the databases under testdata/format2, which the first version of
// storage format 2 has written. Every later version must open them.

const formatDir = "testdata/format2"

// formatContents is what the databases hold.
type formatContents struct {
	ID       replicator.DatabaseID         `json:"id"`
	Head     uint64                        `json:"head"`
	Values   map[string]string             `json:"values"`
	Versions map[string]replicator.Version `json:"versions"`
}

// contentsOf reads everything through the Replicator.
func contentsOf(t *testing.T, r *replicator.Replicator) formatContents {
	c := formatContents{r.Status().ID, r.Status().Head, map[string]string{}, map[string]replicator.Version{}}
	it := r.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		c.Values[string(it.Key())] = string(it.Value())
	}
	require.NoError(t, it.Error())
	for _, key := range []string{"adopted", "changed", "deleted", "from the peer", "put"} {
		version, err := r.Version([]byte(key))
		require.NoError(t, err, key)
		c.Versions[key] = version
	}
	return c
}

// TestFormat2 opens databases of the past: one that was closed, and one whose process
// was killed. All is there, changes go on where they were, and a peer gets everything.
func TestFormat2(t *testing.T) {
	t.Parallel()
	if *replicator.Update {
		if _, err := os.Stat(formatDir); os.IsNotExist(err) {
			writeFormat(t)
		}
	}
	var want formatContents
	text, err := os.ReadFile(filepath.Join(formatDir, "contents.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &want))
	for _, name := range []string{"closed", "killed"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(formatDir, name))))
			r, err := replicator.OpenFile(dir, nil, &replicator.Options{Listen: "127.0.0.1:0"})
			require.NoError(t, err)
			defer r.Close()
			found := contentsOf(t, r)
			require.GreaterOrEqual(t, found.Head, want.Head)
			found.Head = want.Head
			require.Equal(t, want, found)
			require.NoError(t, replicator.CheckConsistent(r))
			require.Equal(t, replicator.AdoptionStatus{Done: true, Adopted: 1}, r.Status().Adoption)

			require.NoError(t, r.Put([]byte("put"), []byte("later"), nil))
			version, err := r.Version([]byte("put"))
			require.NoError(t, err)
			for key, before := range want.Versions {
				require.Positive(t, version.Compare(before), key)
			}
			peer, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{
				Peers: map[string]replicator.Meta{r.Addr().String(): nil},
			})
			require.NoError(t, err)
			defer peer.Close()
			require.NoError(t, peer.SyncNow(t.Context()))
			here, there := contentsOf(t, r), contentsOf(t, peer)
			require.Equal(t, here.Values, there.Values)
			require.Equal(t, here.Versions, there.Versions)
		})
	}
}

// TestOtherFormats: a database of another storage format, or of another kind of clock, is
// refused before anything is written.
func TestOtherFormats(t *testing.T) {
	for row, want := range map[string]string{
		"\x01\x01": "storage format 01", "\x03\x01": "storage format 03", "\x02\x09": "clock kind 9", "\x02\x02": "set Options.Clock to Hybrid", "\x02": "storage format 02", "": "no format row",
	} {
		dir := t.TempDir()
		require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(formatDir, "closed"))))
		db, err := leveldb.OpenFile(dir, nil)
		require.NoError(t, err)
		require.NoError(t, db.Put([]byte(reservedPrefix+"mformat"), []byte(row), nil))
		before := allRows(t, db)
		_, err = replicator.Open(db, nil)
		require.ErrorContains(t, err, want)
		require.Equal(t, before, allRows(t, db))
		require.NoError(t, db.Close())
	}
}

// allRows returns all that is in a leveldb.
func allRows(t *testing.T, db *leveldb.DB) map[string]string {
	rows := map[string]string{}
	it := db.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		rows[string(it.Key())] = string(it.Value())
	}
	require.NoError(t, it.Error())
	return rows
}

// writeFormat makes the databases.
func writeFormat(t *testing.T) {
	dir := t.TempDir()
	db, err := leveldb.OpenFile(dir, nil)
	require.NoError(t, err)
	require.NoError(t, db.Put([]byte("adopted"), []byte("before"), nil))
	require.NoError(t, db.Close())
	peer, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	defer peer.Close()
	require.NoError(t, peer.Put([]byte("from the peer"), []byte("there"), nil))
	r, err := replicator.OpenFile(dir, nil, &replicator.Options{Peers: map[string]replicator.Meta{peer.Addr().String(): nil}})
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("put"), []byte("here"), nil))
	require.NoError(t, r.Put([]byte("changed"), []byte("once"), nil))
	require.NoError(t, r.Put([]byte("deleted"), []byte("once"), nil))
	require.NoError(t, r.SyncNow(t.Context()))
	require.NoError(t, peer.SyncNow(t.Context()))
	require.NoError(t, peer.Put([]byte("changed"), []byte("twice"), nil))
	require.NoError(t, r.Delete([]byte("deleted"), nil))
	require.NoError(t, r.SyncNow(t.Context()))
	require.NoError(t, r.RemovePeer(peer.Addr().String()))
	require.Eventually(t, func() bool { return r.Status().Adoption.Done }, time.Minute, time.Millisecond)
	require.NoError(t, os.CopyFS(filepath.Join(formatDir, "killed"), os.DirFS(dir)))
	contents := contentsOf(t, r)
	require.NoError(t, r.Close())
	require.NoError(t, os.CopyFS(filepath.Join(formatDir, "closed"), os.DirFS(dir)))
	text, err := json.MarshalIndent(contents, "", "\t")
	require.NoError(t, err)
	for _, name := range []string{"closed", "killed"} { // leveldb does not need these
		require.NoError(t, os.Remove(filepath.Join(formatDir, name, "LOG")))
		require.NoError(t, os.Remove(filepath.Join(formatDir, name, "LOCK")))
	}
	require.NoError(t, os.WriteFile(filepath.Join(formatDir, "contents.json"), append(text, '\n'), 0o666))
}
