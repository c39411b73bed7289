package replicator_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// TestIterators moves iterators of a Replicator and of a plain database that
// holds the user's keys only, side by side. Whatever the range, and wherever they
// are turned round, both have to say the same.
func TestIterators(t *testing.T) {
	eachSeed(t, budget(10, 40, 400), func(t *testing.T, seed int64) { newIteratorTest(t, seed).run() })
}

type iteratorTest struct {
	t     *testing.T
	rng   *rand.Rand
	db    *leveldb.DB // under r
	r     *replicator.Replicator
	plain *leveldb.DB
	model map[string]string
	story []string
}

func newIteratorTest(t *testing.T, seed int64) *iteratorTest {
	s := &iteratorTest{t: t, rng: rand.New(rand.NewPCG(uint64(seed), 0)), model: map[string]string{}}
	// Small tables, so that iterators pass from one to the next.
	open := func() *leveldb.DB {
		db, err := leveldb.Open(storage.NewMemStorage(), &opt.Options{
			WriteBuffer: 4 << 10, CompactionTableSize: 2 << 10, BlockSize: 512, DisableLargeBatchTransaction: true,
		})
		require.NoError(t, err)
		t.Cleanup(func() { db.Close() })
		return db
	}
	s.db, s.plain = open(), open()
	s.r = wrap(t, s.db, nil)
	return s
}

// key is mostly one on the edges of the reserved range, or near them.
func (s *iteratorTest) key() string {
	const prefix = "\xffreplicator"
	edges := []string{
		"", "\x00", "a", "\xfe\xff", "\xff", "\xff\x00", "\xffreplicat", prefix, prefix + "\x00", prefix + "\xfe",
		prefix + "\xfe\xff\xff", "\xffreplicatos", "\xffreplicatos\x00", "\xffreplicatp", "\xffs", "\xff\xff", "\xff\xff\xff\xff",
	}
	switch p := s.rng.IntN(10); {
	case p < 7:
		return edges[s.rng.IntN(len(edges))]
	case p < 8:
		return "\xff" + string(rune('a'+s.rng.IntN(26)))
	default:
		return fmt.Sprintf("key-%02d", s.rng.IntN(40))
	}
}

// bound is a key or a place inside the reserved range.
func (s *iteratorTest) bound() []byte {
	inside := []string{"", "\x00", "e", "i", "ia", "i\xff", "l", "l\x00\x00\x00\x00\x00\x00\x00\x05", "m", "mid", "p", "z", "\xff", "\xff\xff"}
	switch s.rng.IntN(8) {
	case 0:
		return nil
	case 1, 2, 3:
		return []byte(reservedPrefix + inside[s.rng.IntN(len(inside))])
	}
	return []byte(s.key())
}

func (s *iteratorTest) slice() *util.Range {
	switch s.rng.IntN(6) {
	case 0:
		return nil
	case 1:
		return util.BytesPrefix(s.bound())
	}
	// goleveldb panics if the start is behind the limit and there are tables.
	start, limit := s.bound(), s.bound()
	if limit != nil && bytes.Compare(start, limit) > 0 {
		start, limit = limit, start
	}
	return &util.Range{Start: start, Limit: limit}
}

func (s *iteratorTest) run() {
	for range 6 {
		s.write()
		snap, err := s.r.GetSnapshot()
		require.NoError(s.t, err)
		plain, err := s.plain.GetSnapshot()
		require.NoError(s.t, err)
		frozen := sortedKeys(s.model)
		for range 4 {
			s.compare("db", s.r, s.plain, sortedKeys(s.model))
		}
		s.write()
		for range 4 {
			s.compare("snapshot", snap, plain, frozen)
		}
		snap.Release()
		plain.Release()
	}
}

// write changes some keys in both databases.
func (s *iteratorTest) write() {
	for range s.rng.IntN(40) {
		key, value := s.key(), fmt.Sprint("value ", s.rng.Uint64())
		if s.rng.IntN(3) == 0 {
			delete(s.model, key)
			require.NoError(s.t, s.r.Delete([]byte(key), nil))
			require.NoError(s.t, s.plain.Delete([]byte(key), nil))
			continue
		}
		s.model[key] = value
		require.NoError(s.t, s.r.Put([]byte(key), []byte(value), nil))
		require.NoError(s.t, s.plain.Put([]byte(key), []byte(value), nil))
	}
}

// compare moves an iterator of each at random.
func (s *iteratorTest) compare(name string, ours, theirs keyValueReader, keys []string) {
	slice := s.slice()
	s.story = []string{fmt.Sprintf("%s, range %q", name, slice)}
	a, b := ours.NewIterator(slice, nil), theirs.NewIterator(slice, nil)
	defer a.Release()
	defer b.Release()
	s.same("new", false, a, false, b)
	for range 60 {
		var name string
		var move func(iterator.Iterator) bool
		switch p := s.rng.IntN(20); {
		case p < 8:
			name, move = "Next", iterator.Iterator.Next
		case p < 16:
			name, move = "Prev", iterator.Iterator.Prev
		case p < 17:
			name, move = "First", iterator.Iterator.First
		case p < 18:
			name, move = "Last", iterator.Iterator.Last
		default:
			key := s.bound()
			name, move = fmt.Sprintf("Seek %q", key), func(it iterator.Iterator) bool { return it.Seek(key) }
		}
		s.same(name, move(a), a, move(b), b)
	}
	s.complete(ours, slice, keys)
}

// same requires that both moves ended alike.
func (s *iteratorTest) same(name string, ok bool, ours iterator.Iterator, plainOK bool, plain iterator.Iterator) {
	s.story = append(s.story, fmt.Sprintf("%s: %v %q", name, plainOK, plain.Key()))
	if ok == plainOK && ours.Valid() == plain.Valid() &&
		bytes.Equal(ours.Key(), plain.Key()) && (ours.Key() == nil) == (plain.Key() == nil) &&
		bytes.Equal(ours.Value(), plain.Value()) && (ours.Value() == nil) == (plain.Value() == nil) &&
		ours.Error() == nil && plain.Error() == nil {
		return
	}
	s.t.Fatalf("%s: got %v, valid %v, %q = %q, %v; plain: %v, valid %v, %q = %q, %v; story: %q", name,
		ok, ours.Valid(), ours.Key(), ours.Value(), ours.Error(),
		plainOK, plain.Valid(), plain.Key(), plain.Value(), plain.Error(), s.story)
}

// complete requires that an iterator passes over all keys of the range, which
// are told by a model, in both directions.
func (s *iteratorTest) complete(ours keyValueReader, slice *util.Range, keys []string) {
	want := []string{}
	for _, key := range keys {
		if slice == nil || key >= string(slice.Start) && (slice.Limit == nil || key < string(slice.Limit)) {
			want = append(want, key)
		}
	}
	it := ours.NewIterator(slice, nil)
	defer it.Release()
	got := []string{}
	for it.Next() {
		got = append(got, string(it.Key()))
	}
	require.Equal(s.t, want, got, "forward over %q", slice)
	got = got[:0]
	for it.Prev() {
		got = append(got, string(it.Key()))
	}
	slices.Reverse(got)
	require.Equal(s.t, want, got, "backward over %q", slice)
}
