package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// findings returns the counts of a report, and of what was repaired.
func findings(r replicator.Report) map[replicator.DisagreementKind][2]int64 {
	found := map[replicator.DisagreementKind][2]int64{}
	for _, d := range r.Disagreements {
		found[d.Kind] = [2]int64{d.Count, d.Repaired}
	}
	return found
}

// verify is Verify, which must not fail.
func (n *node) verify(o *replicator.VerifyOptions) replicator.Report {
	report, err := n.r.Verify(context.Background(), o)
	require.NoError(n.c.t, err)
	return report
}

func rowOf(table byte, name string) []byte { return []byte(reservedPrefix + string(table) + name) }

func logRowOf(seq byte) []byte { return rowOf('l', "\x00\x00\x00\x00\x00\x00\x00"+string(rune(seq))) }

// TestVerifyFinds damages a database in every way that is told apart.
func TestVerifyFinds(t *testing.T) {
	raw := func(db *leveldb.DB, key []byte) []byte {
		value, err := db.Get(key, nil)
		require.NoError(t, err)
		return value
	}
	for name, damage := range map[string]func(db *leveldb.DB) error{
		string(replicator.MissingValue):                     func(db *leveldb.DB) error { return db.Delete([]byte("b"), nil) },
		string(replicator.UnknownValue):                     func(db *leveldb.DB) error { return db.Put([]byte("zz"), nil, nil) },
		string(replicator.DeletedValue):                     func(db *leveldb.DB) error { return db.Put([]byte("gone"), nil, nil) },
		string(replicator.ChangedValue):                     func(db *leveldb.DB) error { return db.Put([]byte("adopted"), []byte("other"), nil) },
		string(replicator.MissingRecord):                    func(db *leveldb.DB) error { return db.Delete(logRowOf(4), nil) },
		string(replicator.WrongRecord):                      func(db *leveldb.DB) error { return db.Put(logRowOf(4), raw(db, logRowOf(3)), nil) },
		string(replicator.UnknownRecord):                    func(db *leveldb.DB) error { return db.Put(logRowOf(9), append(raw(db, logRowOf(5)), 'x'), nil) },
		string(replicator.UnreadableRow):                    func(db *leveldb.DB) error { return db.Put(rowOf('i', "b"), []byte("?"), nil) },
		string(replicator.WrongRecord) + ", an earlier one": func(db *leveldb.DB) error { return db.Put(logRowOf(6), raw(db, logRowOf(5)), nil) },
	} {
		of, _, _ := strings.Cut(name, ",")
		kind := replicator.DisagreementKind(of)
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				db := memDB(t)
				require.NoError(t, db.Put([]byte("adopted"), []byte("v"), nil))
				r := wrap(t, db, nil)
				until(t, "adoption", func() bool { return r.Status().Adoption.Done })
				for _, key := range []string{"a", "b", "c", "c", "gone"} { // from sequence 3 on
					require.NoError(t, r.Put([]byte(key), []byte("v"), nil))
				}
				require.NoError(t, r.Delete([]byte("gone"), nil))
				report, err := r.Verify(t.Context(), nil)
				require.NoError(t, err)
				require.Equal(t, replicator.Report{OK: true, Keys: 4, Deleted: 1, Records: 7, Disagreements: []replicator.Disagreement{}}, report)

				require.NoError(t, damage(db))
				report, err = r.Verify(t.Context(), &replicator.VerifyOptions{})
				require.NoError(t, err)
				require.False(t, report.OK)
				got := findings(report)
				switch kind {
				case replicator.UnreadableRow, replicator.UnknownRecord, replicator.WrongRecord: // one thing may show twice
					require.Contains(t, got, kind)
					require.LessOrEqual(t, len(got), 2)
				default:
					require.Equal(t, map[replicator.DisagreementKind][2]int64{kind: {1, 0}}, got)
				}
			})
		})
	}
}

// TestVerifyFromTheFloor: records below the floor have expired, and the one at the floor has
// not.
func TestVerifyFromTheFloor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		db := memDB(t)
		r := wrap(t, db, nil)
		for _, key := range []string{"a", "b", "c", "d", "e"} {
			require.NoError(t, r.Put([]byte(key), nil, nil))
		}
		require.NoError(t, r.Close())
		require.NoError(t, replicator.ExpireLog(db, 3))
		r = wrap(t, db, nil)
		report, err := r.Verify(t.Context(), nil)
		require.NoError(t, err)
		require.True(t, report.OK)
		require.EqualValues(t, 3, report.Records)
		require.NoError(t, db.Delete(logRowOf(3), nil))
		report, err = r.Verify(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, map[replicator.DisagreementKind][2]int64{replicator.MissingRecord: {1, 0}}, findings(report))
	})
}

// TestVerifySamples bounds what is shown, and tells how far it has come.
func TestVerifySamples(t *testing.T) {
	t.Parallel()
	db := memDB(t)
	r := wrap(t, db, nil)
	b := new(leveldb.Batch)
	for i := range 6000 {
		b.Put(fmt.Appendf(nil, "key %05d", i), make([]byte, 100))
	}
	require.NoError(t, r.Write(b, nil))
	b.Reset()
	for i := range 40 {
		b.Put(fmt.Appendf(nil, "stray %d", i), nil)
	}
	require.NoError(t, db.Write(b, nil))
	var told [][2]int64
	o := &replicator.VerifyOptions{Progress: func(done, total int64) { told = append(told, [2]int64{done, total}) }}
	report, err := r.Verify(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, report.Disagreements, 1)
	require.EqualValues(t, 40, report.Disagreements[0].Count)
	require.Len(t, report.Disagreements[0].Sample, 16)
	require.Greater(t, len(told), 2)
	require.Equal(t, told[len(told)-1][0], told[len(told)-1][1])
	for i := range told[1:] {
		require.LessOrEqual(t, told[i][0], told[i+1][0])
	}
}

// TestVerifyEnds with its context, and with the Replicator.
func TestVerifyEnds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		db := memDB(t)
		r := wrap(t, db, nil)
		over, end := context.WithCancel(t.Context())
		end()
		require.ErrorIs(t, second(r.Verify(over, nil)), context.Canceled, "there is nothing to verify")
		b := new(leveldb.Batch)
		for i := range 6000 {
			b.Put(fmt.Appendf(nil, "key %05d", i), nil)
		}
		require.NoError(t, r.Write(b, nil))
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		_, err := r.Verify(ctx, &replicator.VerifyOptions{Progress: func(int64, int64) { cancel(enough) }})
		require.ErrorIs(t, err, enough)
		var closing sync.WaitGroup
		once := sync.OnceFunc(func() { closing.Go(func() { require.NoError(t, r.Close()) }) })
		_, err = r.Verify(t.Context(), &replicator.VerifyOptions{Progress: func(int64, int64) {
			once()
			time.Sleep(time.Millisecond) // Close waits for Verify then
		}})
		closing.Wait()
		require.ErrorIs(t, err, replicator.ErrClosed)
	})
}

// TestVerifyUndisturbed verifies replicas that are written to, merge, expire, adopt and do a
// first sync meanwhile: nothing disagrees.
func TestVerifyUndisturbed(t *testing.T) {
	t.Parallel()
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh().expiring(50*time.Millisecond, 20, 60)
		fillDisk(t, c.nodes[0].disk, numbered("old", 1000, "old value"))
		fillDisk(t, c.nodes[1].disk, numbered("old", 500, "another"))
		c.nodes[0].openSlowly()
		c.open()
		stop := busy(t, c.nodes...)
		defer stop()
		adopting, expired := false, false
		for i := range 30 {
			n := c.nodes[i%3]
			adopting = adopting || !n.adopted()
			expired = expired || replicator.HasExpired(n.r)
			report := n.verify(&replicator.VerifyOptions{Repair: i%5 == 4})
			require.True(t, report.OK, "%v", report)
			require.Zero(t, report.Peers, "nobody has to be asked")
			time.Sleep(time.Duration(c.rng.IntN(40)) * time.Millisecond)
		}
		require.True(t, adopting)
		require.True(t, expired)
		stop()
		c.nodes[0].disk.SetFault(nil)
		c.settleDown()
	})
}

// TestVerifySkipped does not tell of values that are not replicated on purpose.
func TestVerifySkipped(t *testing.T) {
	db := memDB(t)
	require.NoError(t, db.Put([]byte("old"), nil, nil))
	r := wrap(t, db, &replicator.Options{SkipAdoption: true, MaxValueSize: 1000})
	require.NoError(t, r.Put([]byte("k"), nil, nil))
	require.NoError(t, db.Put([]byte("large"), make([]byte, 1001), nil))
	report, err := r.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, replicator.Report{OK: true, Keys: 1, Records: 1, Unadopted: 2, Disagreements: []replicator.Disagreement{}}, report)
}

// TestVerifyRepairs has a peer give back what is missing, whoever made it, and takes in
// what no peer knows.
func TestVerifyRepairs(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		for _, m := range c.nodes {
			fillDisk(t, m.disk, map[string]string{"adopted": "old value", "adopted too": "old value"})
		}
		c.open()
		until(t, "adoption", func() bool { return source.adopted() && n.adopted() })
		for _, key := range []string{"theirs", "deleted there", "lost", "unreadable"} {
			source.put(key, "their value of "+key)
		}
		for _, key := range []string{"ours", "large", "replaced"} {
			n.put(key, "our value of "+key+strings.Repeat("x", map[string]int{"large": 100_000}[key]))
		}
		c.settleDown()
		source.delete("deleted there")
		c.settleDown()
		want := n.state()

		for _, key := range []string{"adopted", "theirs", "ours", "large"} {
			require.NoError(t, n.db.Delete([]byte(key), nil))
		}
		require.NoError(t, replicator.LoseKeys(n.db, "lost"))                     // with a log record
		require.NoError(t, replicator.LoseIndex(n.db, "replaced", "adopted too")) // with a value
		require.NoError(t, replicator.LoseIndex(n.db, "deleted there"))
		require.NoError(t, n.db.Put([]byte("deleted there"), []byte("stale"), nil))
		require.NoError(t, n.db.Put([]byte("replaced"), []byte("stale"), nil))
		require.NoError(t, n.db.Put(rowOf('i', "unreadable"), []byte("?"), nil))
		require.NoError(t, n.db.Put([]byte("stray"), []byte("v"), nil))

		from := n.r.Here()
		report := n.verify(&replicator.VerifyOptions{Repair: true})
		require.True(t, report.OK, "%v", report)
		require.Equal(t, 1, report.Peers)
		for _, change := range n.tell(from) {
			if !change.Local {
				require.Equal(t, source.r.Status().ID, change.Peer, "%s", change.Key)
			}
		}
		found := findings(report)
		require.Equal(t, [2]int64{4, 4}, found[replicator.MissingValue])
		require.Equal(t, [2]int64{4, 4}, found[replicator.UnknownValue])
		require.Equal(t, [2]int64{1, 1}, found[replicator.UnreadableRow])
		require.GreaterOrEqual(t, found[replicator.UnknownRecord][0], int64(1))
		stray, _ := n.get("stray")
		require.Equal(t, "v", stray)
		require.Equal(t, n.r.Status().Epoch, n.version("stray").Origin)
		require.Equal(t, n.version("stray").Clock, replicator.Vector(n.r)[n.r.Status().Epoch])
		got := n.state()
		delete(got.values, "stray")
		delete(got.versions, "stray")
		require.Equal(t, want, got)
		report = n.verify(nil)
		require.True(t, report.OK, "%v", report)
		c.settleDown()
		stray, _ = source.get("stray")
		require.Equal(t, "v", stray)

		// It survives a kill, a power cut, and does not keep the pair from becoming quiet.
		n.kill()
		n.open()
		report = n.verify(nil)
		require.True(t, report.OK, "%v", report)
		n.powerCut()
		c.settleDown()
	})
}

// TestVerifyAlone takes nothing in where nobody can be asked, unless it is forced.
func TestVerifyAlone(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		n.put("gone", "v")
		n.put("kept", "v")
		n.delete("gone")
		c.settleDown()
		c.net.Isolate("n0")
		source.put("stray", "newer")
		source.close()
		require.NoError(t, n.db.Put([]byte("stray"), []byte("stale"), nil))
		require.NoError(t, n.db.Put([]byte("gone"), []byte("stale"), nil))
		require.NoError(t, n.db.Delete([]byte("kept"), nil))
		require.NoError(t, n.db.Put(rowOf('i', "unreadable"), []byte("?"), nil))
		before := n.r.Status().Head
		report := n.verify(&replicator.VerifyOptions{Repair: true})
		require.Equal(t, map[replicator.DisagreementKind][2]int64{
			replicator.UnknownValue: {1, 0}, replicator.DeletedValue: {1, 0}, replicator.MissingValue: {1, 0}, replicator.UnreadableRow: {1, 0}}, findings(report))
		row, err := n.db.Get(rowOf('i', "unreadable"), nil)
		require.NoError(t, err)
		require.Equal(t, "?", string(row), "a row is dropped, and nobody was asked for another")
		require.False(t, report.OK)
		require.Zero(t, report.Peers)
		require.Equal(t, before, n.r.Status().Head)

		report = n.verify(&replicator.VerifyOptions{Repair: true, Force: true})
		require.Equal(t, map[replicator.DisagreementKind][2]int64{
			replicator.UnknownValue: {1, 1}, replicator.DeletedValue: {1, 1}, replicator.MissingValue: {1, 0}, replicator.UnreadableRow: {1, 1}}, findings(report))
		c.net.Heal()
		c.open()
		until(t, "the pair meets", func() bool { return n.sync() == nil })
		report = n.verify(&replicator.VerifyOptions{Repair: true})
		require.True(t, report.OK, "%v", report)
		require.Equal(t, 1, report.Peers)
		c.settleDown()
		value, _ := source.get("kept")
		require.Equal(t, "v", value)
	})
}

// TestVerifyUncertain takes nothing in that a peer may know: because it can't read its own
// value, or because it has yet to adopt what it has.
func TestVerifyUncertain(t *testing.T) {
	t.Parallel()
	stray := map[replicator.DisagreementKind][2]int64{replicator.UnknownValue: {1, 0}}
	t.Run("unreadable", func(t *testing.T) {
		inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
			c.open()
			source.put("k", "theirs")
			c.settleDown()
			require.NoError(t, replicator.LoseIndex(n.db, "k"))
			require.NoError(t, n.db.Put([]byte("k"), []byte("stray"), nil))
			require.NoError(t, source.db.Delete([]byte("k"), nil))
			report := n.verify(&replicator.VerifyOptions{Repair: true})
			require.Equal(t, 1, report.Peers)
			require.Equal(t, stray[replicator.UnknownValue], findings(report)[replicator.UnknownValue])
			require.NoError(t, source.db.Put([]byte("k"), []byte("theirs"), nil))
			require.True(t, n.verify(&replicator.VerifyOptions{Repair: true}).OK)
			c.settleDown()
		})
	})
	t.Run("adopting", func(t *testing.T) {
		inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
			values := numbered("old", 3000, "old value")
			values["old99999"] = "theirs"
			fillDisk(t, source.disk, values)
			n.open()
			source.openSlowly()
			until(t, "the pair meets", func() bool { return len(n.state().values) > 0 })
			require.NoError(t, n.db.Put([]byte("old99999"), []byte("stray"), nil))
			report := n.verify(&replicator.VerifyOptions{Repair: true})
			require.False(t, source.adopted())
			require.Equal(t, 1, report.Peers)
			require.Equal(t, stray, findings(report))
			source.disk.SetFault(nil)
			c.settleDown()
			got, _ := n.get("old99999")
			require.Equal(t, "theirs", got)
		})
	})
}

// TestVerifyForced takes in what a peer knows better, since that is asked for.
func TestVerifyForced(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		source.put("gone", "v")
		source.delete("gone")
		source.put("kept", "theirs")
		source.put("missing", "theirs")
		c.settleDown()
		require.NoError(t, replicator.LoseIndex(n.db, "gone", "kept"))
		require.NoError(t, n.db.Put([]byte("gone"), []byte("stray"), nil))
		require.NoError(t, n.db.Put([]byte("kept"), []byte("stray"), nil))
		require.NoError(t, n.db.Delete([]byte("missing"), nil))
		report := n.verify(&replicator.VerifyOptions{Repair: true, Force: true})
		require.True(t, report.OK, "%v", report)
		c.settleDown()
		require.Equal(t, map[string]string{"gone": "stray", "kept": "stray", "missing": "theirs"}, source.state().values)
	})
}

// TestVerifyLooksAgain writes a key after it was found, and before it is taken in.
func TestVerifyLooksAgain(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		source.open(func(o *replicator.Options) { o.MaxValueSize = 1000 })
		var armed atomic.Bool
		walked := make(chan struct{}) // closed when the disagreements are found
		var written replicator.Version
		n.open(func(o *replicator.Options) {
			o.MaxValueSize = 1000
			dial := o.Dial
			o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				if armed.Swap(false) {
					<-walked
					require.NoError(t, n.r.Put([]byte("stray"), []byte("written"), nil))
					require.NoError(t, n.r.Put([]byte("k"), []byte("written"), nil))
					require.NoError(t, n.db.Put([]byte("grown"), make([]byte, 1001), nil))
					written = n.version("stray")
				}
				return dial(ctx, addr)
			}
		})
		n.put("k", "v")
		c.settleDown()
		require.NoError(t, n.db.Put([]byte("stray"), []byte("stale"), nil))
		require.NoError(t, n.db.Put([]byte("grown"), []byte("stale"), nil))
		require.NoError(t, n.db.Delete([]byte("k"), nil))
		require.NoError(t, n.r.RemovePeer("n0"))
		time.Sleep(time.Second)
		armed.Store(true)
		require.NoError(t, n.r.AddPeer("n0", nil))
		report := n.verify(&replicator.VerifyOptions{Repair: true, Force: true, Progress: func(done, total int64) {
			if done == total && armed.Load() {
				synctest.Wait() // the dial has begun
			}
			if done == total {
				select {
				case <-walked:
				default:
					close(walked)
				}
			}
		}})
		require.Equal(t, map[replicator.DisagreementKind][2]int64{
			replicator.UnknownValue: {2, 1}, replicator.MissingValue: {1, 1}}, findings(report))
		require.False(t, armed.Load())
		value, _ := n.get("stray")
		require.Equal(t, "written", value)
		require.Equal(t, written, n.version("stray"), "what was written is put again")
		require.NotContains(t, n.index(), "grown", "a value was taken in that can't be sent")
		require.NoError(t, n.db.Delete([]byte("grown"), nil))
		value, _ = n.get("k")
		require.Equal(t, "written", value)
		require.NoError(t, replicator.CheckConsistent(n.r))
		c.settleDown()
	})
}

// TestVerifyEndsWithClose asks a peer that does not answer.
func TestVerifyEndsWithClose(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		n.put("k", "v")
		c.settleDown()
		require.NoError(t, n.db.Delete([]byte("k"), nil))
		c.net.Freeze("n0", "n1")
		done := make(chan error, 1)
		go func() {
			_, err := n.r.Verify(context.Background(), &replicator.VerifyOptions{Repair: true})
			done <- err
		}()
		time.Sleep(time.Second)
		bounded(t, "Close", 2*time.Second, func() { require.NoError(t, n.r.Close()) })
		require.ErrorIs(t, <-done, replicator.ErrClosed)
		require.NoError(t, n.db.Close())
		n.r, n.db = nil, nil
		c.net.Thaw("n0", "n1")
	})
}

// TestVerifyRepairsMany: what is missing does not fit in one question, nor in one answer.
func TestVerifyRepairsMany(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		var b leveldb.Batch
		for i := range 600 {
			b.Put(fmt.Appendf(nil, "key %03d", i), nil)
		}
		for i := range 20 {
			b.Put(append(make([]byte, 60<<10), byte(i)), nil)
		}
		for i := range 3 {
			b.Put(fmt.Appendf(nil, "large %d", i), make([]byte, 500<<10))
		}
		require.NoError(t, source.r.Write(&b, nil))
		c.settleDown()
		missing := new(leveldb.Batch)
		for key := range n.index() {
			missing.Delete([]byte(key))
		}
		require.NoError(t, n.db.Write(missing, nil))
		report := n.verify(&replicator.VerifyOptions{Repair: true})
		require.Equal(t, map[replicator.DisagreementKind][2]int64{replicator.MissingValue: {623, 623}}, findings(report))
		require.Equal(t, source.state(), n.state())
	})
}

// TestVerifyForgetsSums: a row that can't be read goes, and nobody has its key. It is in no
// fingerprint any more.
func TestVerifyForgetsSums(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		source.fill("key", 0, 20, 0)
		c.settleDown()
		keys := func() int64 {
			shown := n.r.Status().Fingerprint
			if shown == nil || shown.Head != n.r.Status().Head {
				return -1
			}
			return int64(shown.Keys)
		}
		untilWithin(t, 10*time.Minute, "the fingerprint is known", func() bool { return keys() == 20 })
		require.NoError(t, replicator.LoseKeys(source.db, "key00003"))
		require.NoError(t, n.db.Delete([]byte("key00003"), nil))
		require.NoError(t, n.db.Put(rowOf('i', "key00003"), []byte("?"), nil))
		report := n.verify(&replicator.VerifyOptions{Repair: true})
		require.EqualValues(t, 1, findings(report)[replicator.UnreadableRow][1])
		n.put("another", "value")
		untilWithin(t, 10*time.Minute, "the fingerprint follows", func() bool { return keys() == 20 })
	})
}

// TestVerifyCountsOnce: records of a key that was lost lie far apart in the log. The key is
// counted once, and is put right.
func TestVerifyCountsOnce(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.expiring(time.Hour, 0, 100_000).open()
		n.put("earlier", "v")
		n.put("lost", "first")
		var b leveldb.Batch
		for range 1 << 15 {
			b.Delete([]byte("others"))
		}
		require.NoError(t, n.r.Write(&b, nil))
		n.put("lost", "second")
		c.settleDown()
		require.NoError(t, replicator.LoseKeys(n.db, "earlier", "lost"))
		for _, repair := range []bool{false, true} {
			report := n.verify(&replicator.VerifyOptions{Repair: repair})
			require.Equal(t, repair, report.OK, "%v", report)
			repaired := map[bool]int64{true: 2}[repair]
			require.Equal(t, map[replicator.DisagreementKind][2]int64{replicator.UnknownRecord: {2, repaired}}, findings(report))
		}
		require.Equal(t, source.state(), n.state())
	})
}

// TestVerifyUnrepaired: a key that nobody knows any more is not put right, and what can't be
// compared any more ends Verify.
func TestVerifyUnrepaired(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		n.put("lost", "v")
		c.settleDown()
		require.NoError(t, replicator.LoseKeys(n.db, "lost"))
		require.NoError(t, replicator.LoseKeys(source.db, "lost"))
		report := n.verify(&replicator.VerifyOptions{Repair: true})
		require.Equal(t, 1, report.Peers)
		require.Equal(t, map[replicator.DisagreementKind][2]int64{replicator.UnknownRecord: {1, 0}}, findings(report))
		source.close()
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		_, err := n.r.Verify(ctx, &replicator.VerifyOptions{Repair: true, Progress: func(done, total int64) {
			if done == total {
				cancel(enough)
			}
		}})
		require.ErrorIs(t, err, enough)
	})
}

// TestVerifyMergesNothingOfReaders: a peer that may only read is not asked.
func TestVerifyMergesNothingOfReaders(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, hub, reader *node) {
		hub.open(mergesNothing)
		reader.open()
		hub.put("k", "v")
		reader.arrives("k", "v")
		require.NoError(t, hub.db.Delete([]byte("k"), nil))
		reader.put("k", "of a reader")
		report := hub.verify(&replicator.VerifyOptions{Repair: true})
		require.Zero(t, report.Peers)
		require.Equal(t, map[replicator.DisagreementKind][2]int64{replicator.MissingValue: {1, 0}}, findings(report))
	})
}

// TestVerifyIsNotSure takes nothing in where one of the peers that were asked did not answer.
func TestVerifyIsNotSure(t *testing.T) {
	t.Parallel()
	h := newHost(t, nil)
	p := dialWire(t, h.Addr())
	hi := newWireHi()
	p.join(hi)
	p.say(wirePage, wireFullPage(hi.epoch, 0))
	require.NoError(t, h.db.Put([]byte("stray"), []byte("stale"), nil))
	go func() {
		for {
			switch kind, payload, err := p.hear(); {
			case err != nil || kind == wireFetch:
				p.Close()
				return
			case kind == wirePing:
				p.say(wirePong, append(payload, 0))
			case kind == wirePull:
				p.say(wirePage, wireFullPage(hi.epoch, 0))
			}
		}
	}()
	report, err := h.Verify(t.Context(), &replicator.VerifyOptions{Repair: true})
	require.NoError(t, err)
	require.Equal(t, 1, report.Peers)
	require.Equal(t, map[replicator.DisagreementKind][2]int64{replicator.UnknownValue: {1, 0}}, findings(report))
}

// TestVerifyCannotRead: a read that fails is an error of Verify, and of Backup, and no
// disagreement. Nothing is left out silently.
func TestVerifyCannotRead(t *testing.T) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.open()
		n.fill("k", 0, 60, 300)
		n.close()
		n.ldb.DisableBlockCache, n.ldb.OpenFilesCacheCapacity = true, -1
		n.open()
		for name, read := range map[string]func() error{
			"Verify": func() error {
				report, err := n.r.Verify(t.Context(), nil)
				require.True(t, err != nil || report.OK && report.Records == 60, "%v", report)
				return err
			},
			"Backup": func() error {
				disk := simtest.NewDisk()
				err := replicator.BackupTo(t.Context(), n.r, disk)
				if err == nil {
					onDisk(t, disk, func(db *leveldb.DB) { require.Len(t, readRows(t, db).data, 60, "a copy lacks something") })
				}
				return err
			},
		} {
			failed := 0
			for at, again := int64(1), true; again; at++ {
				again = false
				fault := simtest.Failure{Ops: simtest.OpRead | simtest.OpOpen, Files: storage.TypeTable, From: at, Times: 1}.Fault()
				n.disk.SetFault(func(op simtest.Op, fd storage.FileDesc, i int64) error {
					err := fault(op, fd, i)
					again = again || err != nil
					return err
				})
				if read() != nil {
					failed++
				}
				n.disk.SetFault(nil)
			}
			require.Greater(t, failed, 3, name)
		}
	})
}
