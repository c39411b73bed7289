package replicator

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestSumsOfRanges compares the sums of random ranges to what reading them tells, after
// random changes: over sums of everything, and over those that follow from the log.
func TestSumsOfRanges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 0))
			db, err := leveldb.Open(storage.NewMemStorage(), nil)
			require.NoError(t, err)
			defer db.Close()
			r, err := Open(db, nil)
			require.NoError(t, err)
			defer r.Close()
			most := []int{10, 300, 3000, 20_000, 1000, 300}[seed]
			switch {
			case testing.Short():
				most = min(most, 1000)
			case !isLong():
				most = min(most, 5000)
			}
			key := func() []byte {
				k := fmt.Appendf(nil, "%x", rng.IntN(most))
				if seed == 4 { // few stretches fit
					k = append(bytes.Repeat([]byte{'k'}, 8<<10), k...)
				}
				if rng.IntN(20) == 0 {
					return k[:rng.IntN(len(k)+1)]
				}
				return k
			}
			scans := 0
			for range 12 {
				for range rng.IntN(most/4 + 2) {
					if rng.IntN(4) == 0 {
						require.NoError(t, r.Delete(key(), nil))
					} else {
						require.NoError(t, r.Put(key(), nil, nil))
					}
				}
				before := r.store.sums.made
				v, err := r.store.viewSums(context.Background(), nil)
				require.NoError(t, err)
				if before == nil || !before.scanned.Equal(v.scanned) {
					scans++
				}
				requireTrueSums(t, v)
				records := hashedRecords(t, v)
				for range 50 {
					requireTally(t, v, records, randomRange(rng, v, key))
				}
				v.Release()
			}
			require.Less(t, scans, 12, "the log was never used")
		})
	}
}

// randomRange returns a range whose ends are keys, or where stretches begin, or right
// behind that.
func randomRange(rng *rand.Rand, v *sumsView, key func() []byte) keyRange {
	end := func() []byte {
		k := key()
		if rng.IntN(2) == 0 {
			k = bytes.Clone(v.list[rng.IntN(len(v.list))].start)
		}
		if rng.IntN(4) == 0 {
			k = append(k, 0)
		}
		return k
	}
	r := keyRange{end(), end()}
	switch rng.IntN(6) {
	case 0:
		r.lower = nil
	case 1:
		r.upper = nil
	}
	return r
}

// hashedRecord is a record of the index, with what it adds to a sum.
type hashedRecord struct {
	key  []byte
	live bool
	hash sum
}

func hashedRecords(t *testing.T, v *sumsView) (all []hashedRecord) {
	require.NoError(t, readRange(context.Background(), v, keyRange{}, func(key []byte, record *indexRecord, hash sum) error {
		all = append(all, hashedRecord{bytes.Clone(key), !record.Deleted, hash})
		return nil
	}))
	return all
}

func requireTally(t *testing.T, v *sumsView, records []hashedRecord, r keyRange) {
	var want tally
	for i := range records {
		if r.contains(records[i].key) {
			want.add(tally{1, records[i].hash})
		}
	}
	got, err := v.tally(context.Background(), r)
	require.NoError(t, err)
	require.Equal(t, want, got, "from %.20q to %.20q", r.lower, r.upper)
}

// requireTrueSums compares each stretch to what is in it, and to what reading everything
// makes of it.
func requireTrueSums(t *testing.T, v *sumsView) {
	require.LessOrEqual(t, len(v.list), maxStretches)
	require.Nil(t, v.list[0].start)
	size, rest := 0, hashedRecords(t, v)
	for i := range v.list {
		s := &v.list[i]
		size += len(s.start)
		if i > 0 && (bytes.Compare(v.list[i-1].start, s.start) >= 0 || s.rank < v.level) {
			require.FailNow(t, "stretches do not ascend")
		}
		var all, live tally
		for ; len(rest) > 0 && v.rangeOf(i, i+1).contains(rest[0].key); rest = rest[1:] {
			all.add(tally{1, rest[0].hash})
			if rest[0].live {
				live.add(tally{1, rest[0].hash})
			}
		}
		require.True(t, all == s.all && live == s.live, "stretch %d", i)
	}
	require.Empty(t, rest)
	require.LessOrEqual(t, size, maxStretchBytes)
	again, err := sumUp(context.Background(), v, nil, v.head)
	require.NoError(t, err)
	require.Equal(t, again.whole().all, v.whole().all)
	starts := func(s *stretches) (all []string) {
		for i := range s.list {
			all = append(all, string(s.list[i].start))
		}
		return all
	}
	if v.level == again.level {
		// Replicas with the same keys cut them alike, however the sums came about, but for
		// where a neighbour came or went.
		wanted, got := starts(again), starts(v.stretches)
		same := 0
		for _, s := range got {
			if _, found := slices.BinarySearch(wanted, s); found {
				same++
			}
		}
		require.GreaterOrEqual(t, 2*same, len(got))
	}
}

// TestSumsAreCut: parts of stretches are whole, ascend, and are fewer than the whole.
func TestSumsAreCut(t *testing.T) {
	for _, counts := range []string{"1", "11", "19", "91", "0009", "9000", "1111111111111111111111", "9111111111111111111119", "00000000000000000000"} {
		s := &stretches{}
		for _, c := range counts {
			s.list = append(s.list, stretch{all: tally{n: uint64(c - '0')}})
		}
		for n := 2; n < 20; n++ {
			cuts := s.parts(0, len(s.list), n)
			require.Equal(t, 0, cuts[0])
			require.Equal(t, len(counts), cuts[len(cuts)-1])
			require.LessOrEqual(t, len(cuts), n+1, counts)
			require.True(t, slices.IsSorted(cuts) && len(slices.Compact(slices.Clone(cuts))) == len(cuts), "%v", cuts)
			require.True(t, len(counts) == 1 || len(cuts) > 2, "%s in %d: %v", counts, n, cuts)
		}
	}
}

// TestSeparators: a separator is above the one key, not above the other, and as short as
// can be.
func TestSeparators(t *testing.T) {
	for _, c := range [][3]string{
		{"", "a", "a"}, {"", "abc", "a"}, {"a", "ab", "ab"}, {"abc", "abd", "abd"}, {"abc", "b", "b"}, {"ab", "abc\x00d", "abc"}, {"a\x00", "a\x00\x00", "a\x00\x00"},
	} {
		require.Equal(t, c[2], string(separator([]byte(c[0]), []byte(c[1]))))
	}
}

// TestFingerprintByHand computes the fingerprint of docs/PROTOCOL.md as that describes it.
func TestFingerprintByHand(t *testing.T) {
	db, err := leveldb.Open(storage.NewMemStorage(), nil)
	require.NoError(t, err)
	defer db.Close()
	r, err := Open(db, &Options{})
	require.NoError(t, err)
	defer r.Close()
	require.NoError(t, r.store.enter(false, func(x *section) error {
		x.add(change{key: []byte("a"), value: []byte("v"), Version: Version{Stamp{2, wireEpoch}, false}})
		x.add(change{key: []byte("b"), Version: Version{Stamp{300, wireThirdEpoch}, true}})
		return nil
	}))
	v, err := r.store.viewSums(context.Background(), nil)
	require.NoError(t, err)
	defer v.Release()
	all := v.whole()
	print := all.all.fingerprint()
	require.Equal(t, strings.ReplaceAll(fingerprintExample, " ", ""), fmt.Sprintf("%x", print[:]))
}

const fingerprintExample = "41c4b601d7ed4368e12d86319cf5e0cb"
