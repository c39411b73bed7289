package replicator_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/comparer"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// keyValueReader and keyValueStore are what goleveldb and the Replicator have
// in common.
type keyValueReader interface {
	Get(key []byte, ro *opt.ReadOptions) ([]byte, error)
	Has(key []byte, ro *opt.ReadOptions) (bool, error)
	NewIterator(slice *util.Range, ro *opt.ReadOptions) iterator.Iterator
}

type keyValueStore interface {
	keyValueReader
	Put(key, value []byte, wo *opt.WriteOptions) error
	Delete(key []byte, wo *opt.WriteOptions) error
	Write(b *leveldb.Batch, wo *opt.WriteOptions) error
	Close() error
}

// The public face: programs are written against these, so they have to compile.
var (
	_ func(*leveldb.DB, *replicator.Options) (*replicator.Replicator, error)          = replicator.Open
	_ func(string, *opt.Options, *replicator.Options) (*replicator.Replicator, error) = replicator.OpenFile

	_ keyValueStore = (*leveldb.DB)(nil)
	_ interface {
		keyValueStore
		GetSnapshot() (*replicator.Snapshot, error)
		Addr() net.Addr
		AddPeer(addr string, meta replicator.Meta) error
		RemovePeer(addr string) error
		SyncNow(ctx context.Context) error
		Status() replicator.Status
	} = (*replicator.Replicator)(nil)
	_ interface {
		keyValueReader
		Release()
	} = (*replicator.Snapshot)(nil)

	_ = replicator.Options{
		Listen:   "127.0.0.1:8000",
		Listener: net.Listener(nil),
		Peers:    map[string]replicator.Meta{"127.0.0.1:8001": {"name": "value"}},
		Dial:     func(ctx context.Context, addr string) (net.Conn, error) { return nil, nil },
		Insecure: true,
		Cluster:  "name",
		Logger:   (*slog.Logger)(nil),
	}
	_ map[string]string     = replicator.Meta{}
	_ replicator.DatabaseID = replicator.Status{}.ID
	_ error                 = (*replicator.PeerError)(nil)
)

// TestHabitsOfGoleveldb holds the Replicator to what a plain database does.
func TestHabitsOfGoleveldb(t *testing.T) {
	key, value := []byte("key"), []byte("value")
	for name, habit := range map[string]func(t *testing.T, db keyValueStore){
		"ErrNotFound is not wrapped": func(t *testing.T, db keyValueStore) {
			_, err := db.Get(key, nil)
			require.True(t, err == leveldb.ErrNotFound, err)
			has, err := db.Has(key, nil)
			require.NoError(t, err)
			require.False(t, has)
		},
		"options may be given": func(t *testing.T, db keyValueStore) {
			require.NoError(t, db.Put(key, value, &opt.WriteOptions{NoWriteMerge: true, Sync: true}))
			got, err := db.Get(key, &opt.ReadOptions{DontFillCache: true, Strict: opt.StrictAll})
			require.NoError(t, err)
			require.Equal(t, value, got)
			has, err := db.Has(key, &opt.ReadOptions{})
			require.NoError(t, err)
			require.True(t, has)
			require.NoError(t, db.Delete(key, &opt.WriteOptions{NoWriteMerge: true, Sync: true}))
		},
		"nil and empty batches do nothing": func(t *testing.T, db keyValueStore) {
			require.NoError(t, db.Write(nil, nil))
			require.NoError(t, db.Write(new(leveldb.Batch), &opt.WriteOptions{Sync: true}))
		},
		"deleting an absent key is no error": func(t *testing.T, db keyValueStore) {
			require.NoError(t, db.Delete(key, nil))
			require.NoError(t, db.Delete(nil, nil))
		},
		"the empty key is a key": func(t *testing.T, db keyValueStore) {
			require.NoError(t, db.Put(nil, value, nil))
			got, err := db.Get([]byte{}, nil)
			require.NoError(t, err)
			require.Equal(t, value, got)
			it := db.NewIterator(nil, nil)
			defer it.Release()
			require.True(t, it.First())
			require.Empty(t, it.Key())
			require.NoError(t, db.Delete([]byte{}, nil))
			_, err = db.Get(nil, nil)
			require.True(t, err == leveldb.ErrNotFound, err)
		},
		"an empty value is a value": func(t *testing.T, db keyValueStore) {
			for _, empty := range [][]byte{nil, {}} {
				require.NoError(t, db.Put(key, empty, nil))
				got, err := db.Get(key, nil)
				require.NoError(t, err)
				require.Empty(t, got)
				has, err := db.Has(key, nil)
				require.NoError(t, err)
				require.True(t, has)
			}
		},
		"arguments may be reused": func(t *testing.T, db keyValueStore) {
			k, v := []byte("reused"), []byte("first")
			require.NoError(t, db.Put(k, v, nil))
			var b leveldb.Batch
			b.Put([]byte("other"), v)
			require.NoError(t, db.Write(&b, nil))
			copy(v, "again")
			b.Reset()
			b.Put([]byte("other"), []byte("never written"))
			for _, name := range []string{"reused", "other"} {
				got, err := db.Get([]byte(name), nil)
				require.NoError(t, err)
				require.Equal(t, "first", string(got))
				copy(got, "mine!") // what was returned is the caller's own
			}
			copy(k, "wasted")
			got, err := db.Get([]byte("reused"), nil)
			require.NoError(t, err)
			require.Equal(t, "first", string(got))
		},
		"of a key twice in a batch the last counts": func(t *testing.T, db keyValueStore) {
			var b leveldb.Batch
			b.Put([]byte("twice"), []byte("first"))
			b.Put([]byte("twice"), []byte("last"))
			b.Put([]byte("gone"), value)
			b.Delete([]byte("gone"))
			b.Delete([]byte("back"))
			b.Put([]byte("back"), value)
			require.NoError(t, db.Write(&b, nil))
			for name, want := range map[string]string{"twice": "last", "gone": "", "back": "value"} {
				got, err := db.Get([]byte(name), nil)
				require.True(t, err == nil || name == "gone" && err == leveldb.ErrNotFound, err)
				require.Equal(t, want, string(got))
			}
		},
		"after Close all is ErrClosed": func(t *testing.T, db keyValueStore) {
			require.NoError(t, db.Put(key, value, nil))
			require.NoError(t, db.Close())
			require.ErrorIs(t, db.Put(key, value, nil), leveldb.ErrClosed)
			require.ErrorIs(t, db.Delete(key, nil), leveldb.ErrClosed)
			var b leveldb.Batch
			require.ErrorIs(t, db.Write(nil, nil), leveldb.ErrClosed)
			require.ErrorIs(t, db.Write(&b, nil), leveldb.ErrClosed)
			b.Put(key, value)
			require.ErrorIs(t, db.Write(&b, nil), leveldb.ErrClosed)
			_, err := db.Get(key, nil)
			require.ErrorIs(t, err, leveldb.ErrClosed)
			_, err = db.Has(key, nil)
			require.ErrorIs(t, err, leveldb.ErrClosed)
			it := db.NewIterator(nil, nil)
			defer it.Release()
			require.False(t, it.First() || it.Last() || it.Next() || it.Prev() || it.Seek(nil) || it.Valid())
			require.ErrorIs(t, it.Error(), leveldb.ErrClosed)
		},
	} {
		t.Run(name+"/goleveldb", func(t *testing.T) { habit(t, memDB(t)) })
		t.Run(name+"/Replicator", func(t *testing.T) { habit(t, wrap(t, memDB(t), nil)) })
	}
}

func TestClosedReplicator(t *testing.T) {
	db := memDB(t)
	r := wrap(t, db, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
	before := r.Status()
	snap, err := r.GetSnapshot()
	require.NoError(t, err)
	it := r.NewIterator(nil, nil)
	require.NoError(t, r.Close())
	require.NoError(t, r.Close(), "Close is idempotent")

	_, err = r.GetSnapshot()
	require.ErrorIs(t, err, replicator.ErrClosed)
	_, err = r.Digest()
	require.ErrorIs(t, err, replicator.ErrClosed)
	_, err = r.Version([]byte("key"))
	require.ErrorIs(t, err, replicator.ErrClosed)
	_, err = snap.Get([]byte("key"), nil)
	require.ErrorIs(t, err, replicator.ErrClosed)
	_, err = snap.Has([]byte("key"), nil)
	require.ErrorIs(t, err, replicator.ErrClosed)
	late := snap.NewIterator(nil, nil)
	require.ErrorIs(t, late.Error(), replicator.ErrClosed)
	late.Release()
	require.ErrorIs(t, r.AddPeer("127.0.0.1:1", nil), replicator.ErrClosed)
	require.ErrorIs(t, r.AddPeer("no address", nil), replicator.ErrClosed)
	require.ErrorIs(t, r.RemovePeer("127.0.0.1:1"), replicator.ErrClosed)
	require.ErrorIs(t, r.SyncNow(t.Context()), replicator.ErrClosed)
	require.ErrorIs(t, replicator.ErrClosed, leveldb.ErrClosed)
	require.Equal(t, before.Head, r.Status().Head)
	_, err = net.Dial("tcp", r.Addr().String())
	require.Error(t, err, "the listener is closed")

	// The handle is the caller's, and so is what was made of it.
	require.True(t, it.First())
	require.Equal(t, "key", string(it.Key()))
	it.Release()
	snap.Release()
	snap.Release()
	value, err := db.Get([]byte("key"), nil)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))
}

func TestSyncIsPassedOn(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		disk := simtest.NewDisk()
		db, err := leveldb.Open(disk, nil)
		require.NoError(t, err)
		defer db.Close()
		r, err := replicator.Open(db, nil)
		require.NoError(t, err)
		defer r.Close()
		synctest.Wait() // adoption ends
		for name, write := range map[string]func(wo *opt.WriteOptions) error{
			"put":    func(wo *opt.WriteOptions) error { return r.Put([]byte("key"), []byte("value"), wo) },
			"delete": func(wo *opt.WriteOptions) error { return r.Delete([]byte("key"), wo) },
			"batch": func(wo *opt.WriteOptions) error {
				var b leveldb.Batch
				b.Put([]byte("key"), nil)
				return r.Write(&b, wo)
			},
		} {
			for _, wo := range []*opt.WriteOptions{nil, {}, {Sync: true}} {
				before := disk.Syncs()
				require.NoError(t, write(wo))
				require.Equal(t, wo.GetSync(), disk.Syncs() > before, "%s with %+v", name, wo)
			}
		}
	})
}

func TestReservedKeys(t *testing.T) {
	db := memDB(t)
	r := wrap(t, db, nil)
	for _, key := range []string{"\xff", "\xffreplicator", "\xffreplicator\xfe\xff", "\xffreplicatos", "\xff\xff"} {
		require.NoError(t, r.Put([]byte(key), []byte(key), nil), "%q is a key like others", key)
		value, err := r.Get([]byte(key), nil)
		require.NoError(t, err)
		require.Equal(t, key, string(value))
	}
	snap, err := r.GetSnapshot()
	require.NoError(t, err)
	defer snap.Release()
	head := r.Status().Head
	for _, key := range []string{reservedPrefix, reservedPrefix + "mformat", reservedPrefix + "x", reservedPrefix + "\xff"} {
		key := []byte(key)
		require.ErrorIs(t, r.Put(key, nil, nil), replicator.ErrReserved)
		require.ErrorIs(t, r.Delete(key, nil), replicator.ErrReserved)
		for _, add := range []func(b *leveldb.Batch){
			func(b *leveldb.Batch) { b.Put(key, nil) },
			func(b *leveldb.Batch) { b.Delete(key) },
		} {
			var b leveldb.Batch
			b.Put([]byte("before"), nil)
			add(&b)
			b.Put([]byte("after"), nil)
			require.ErrorIs(t, r.Write(&b, nil), replicator.ErrReserved)
		}
		for _, reader := range []keyValueReader{r, snap} {
			_, err := reader.Get(key, nil)
			require.True(t, err == leveldb.ErrNotFound, err)
			has, err := reader.Has(key, nil)
			require.NoError(t, err)
			require.False(t, has)
		}
	}
	for _, key := range []string{"before", "after"} {
		has, err := r.Has([]byte(key), nil)
		require.NoError(t, err)
		require.False(t, has, "a refused batch leaves nothing")
	}
	require.Equal(t, head, r.Status().Head)
}

func TestOpenRefuses(t *testing.T) {
	t.Run("a second Replicator", func(t *testing.T) {
		db := memDB(t)
		r := wrap(t, db, nil)
		_, err := replicator.Open(db, nil)
		require.ErrorIs(t, err, replicator.ErrInUse)
		require.NoError(t, r.Put([]byte("key"), nil, nil), "the first is unharmed")
		require.NoError(t, r.Close())
		require.NoError(t, wrap(t, db, nil).Put([]byte("key"), nil, nil), "the first is closed")
	})
	t.Run("nil", func(t *testing.T) {
		_, err := replicator.Open(nil, nil)
		require.ErrorContains(t, err, "nil")
	})
	t.Run("a closed database", func(t *testing.T) {
		db := memDB(t)
		require.NoError(t, db.Close())
		_, err := replicator.Open(db, nil)
		require.ErrorIs(t, err, leveldb.ErrClosed)
	})
	t.Run("an address that is taken", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		db := memDB(t)
		_, err = replicator.Open(db, &replicator.Options{Listen: l.Addr().String()})
		require.ErrorContains(t, err, "in use")
		wrap(t, db, nil) // a failed Open leaves the handle free
	})
	for _, foreign := range []string{reservedPrefix, reservedPrefix + "other", reservedPrefix + "\xff"} {
		t.Run("a foreign key", func(t *testing.T) {
			db := memDB(t)
			require.NoError(t, db.Put([]byte(foreign), []byte("value"), nil))
			_, err := replicator.Open(db, nil)
			require.ErrorIs(t, err, replicator.ErrReserved)
			require.ErrorContains(t, err, "foreign key")
			value, err := db.Get([]byte(foreign), nil)
			require.NoError(t, err)
			require.Equal(t, "value", string(value))
		})
	}
	for name, less := range map[string]func(a, b []byte) int{
		"descending": func(a, b []byte) int { return comparer.DefaultComparer.Compare(b, a) },
		"shorter first": func(a, b []byte) int {
			if len(a) != len(b) {
				return len(a) - len(b)
			}
			return comparer.DefaultComparer.Compare(a, b)
		},
		"case-insensitive": func(a, b []byte) int { return strings.Compare(strings.ToLower(string(a)), strings.ToLower(string(b))) },
		"signed bytes": func(a, b []byte) int {
			for i := 0; i < len(a) && i < len(b); i++ {
				if a[i] != b[i] {
					return int(int8(a[i])) - int(int8(b[i]))
				}
			}
			return len(a) - len(b)
		},
	} {
		t.Run("a comparer: "+name, func(t *testing.T) {
			db, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{Comparer: otherComparer{comparer.DefaultComparer, less}})
			require.NoError(t, err)
			defer db.Close()
			r, err := replicator.Open(db, nil)
			if err == nil {
				r.Close()
			}
			require.ErrorContains(t, err, "comparer")
		})
	}
}

// otherComparer sorts otherwise than by bytes.
type otherComparer struct {
	comparer.Comparer
	compare func(a, b []byte) int
}

func (c otherComparer) Name() string                      { return "other" }
func (c otherComparer) Compare(a, b []byte) int           { return c.compare(a, b) }
func (c otherComparer) Separator(dst, a, b []byte) []byte { return nil }
func (c otherComparer) Successor(dst, b []byte) []byte    { return nil }

func TestOpenFileOwnsTheHandle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	_, err := replicator.OpenFile(path, &opt.Options{ErrorIfMissing: true}, nil)
	require.ErrorIs(t, err, os.ErrNotExist, "goleveldb's options are passed on")
	r, err := replicator.OpenFile(path, nil, nil)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
	_, err = replicator.OpenFile(path, nil, nil)
	require.Error(t, err, "goleveldb locks the directory")

	it := r.NewIterator(nil, nil)
	snap, err := r.GetSnapshot()
	require.NoError(t, err)
	for range 2 {
		require.ErrorIs(t, r.Close(), replicator.ErrInUse)
	}
	require.True(t, it.First(), "the iterator still works")
	require.ErrorIs(t, r.Put([]byte("key"), nil, nil), replicator.ErrClosed)
	it.Release()
	it.Release()
	require.ErrorIs(t, r.Close(), replicator.ErrInUse, "the snapshot is open")
	snap.Release()
	require.NoError(t, r.Close())
	require.NoError(t, r.Close())

	_, err = replicator.OpenFile(path, &opt.Options{ReadOnly: true}, nil)
	require.ErrorIs(t, err, leveldb.ErrReadOnly)
	db, err := leveldb.OpenFile(path, nil)
	require.NoError(t, err, "the handle of a failed OpenFile is closed")
	defer db.Close()
	value, err := db.Get([]byte("key"), nil)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))
}

func TestStatusMarshals(t *testing.T) {
	r := wrap(t, memDB(t), &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, r.Put([]byte("key"), nil, nil))
	read := func() (fields map[string]any) {
		text, err := json.Marshal(r.Status())
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(text, &fields))
		return fields
	}
	fields := read()
	require.Equal(t, r.Status().ID.String(), fields["id"])
	require.Regexp(t, "^[0-9a-f]{32}$", fields["id"])
	require.Regexp(t, "^[0-9a-f]{16}$", fields["epoch"])
	require.Equal(t, r.Addr().String(), fields["listening"])
	require.EqualValues(t, 1, fields["head"])
	require.EqualValues(t, 1, fields["logRecords"])
	require.Equal(t, []any{}, fields["peers"])
	require.NotContains(t, fields, "failed")
	require.NoError(t, r.AddPeer("127.0.0.1:1", replicator.Meta{"name": "nobody"}))
	peer := read()["peers"].([]any)[0].(map[string]any)
	require.Equal(t, "127.0.0.1:1", peer["addr"])
	require.Equal(t, map[string]any{"name": "nobody"}, peer["meta"])
	require.Contains(t, []any{"waiting", "connecting"}, peer["state"])
	require.NotContains(t, peer, "id")
	require.NotContains(t, peer, "lastSuccess")
	var back replicator.Status
	text, err := json.Marshal(r.Status().ID)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &back.ID))
	require.Equal(t, r.Status().ID, back.ID)
}
