package replicator_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// inFeed runs a test in a bubble, with one node that is open, and whose feed has pages of
// some changes.
func inFeed(t *testing.T, page, backlog int, test func(t *testing.T, c *cluster, n *node)) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		c.paging = func(o replicator.Options) *replicator.Options {
			o.BacklogBytes = backlog
			return replicator.WithPages(o, page, nil)
		}
		n := c.nodes[0]
		n.open()
		test(t, c, n)
	})
}

// merge has a node merge changes from elsewhere.
func (n *node) merge(entries ...replicator.Entry) {
	commit, err := replicator.Examine(n.r, entries...)
	require.NoError(n.c.t, err)
	require.NoError(n.c.t, second(commit()))
}

// theirs is a change made elsewhere.
func theirs(clock uint64, key, value string, deleted bool) replicator.Entry {
	return replicator.Entry{Version: replicator.Version{Stamp: replicator.Stamp{Clock: clock, Origin: 1<<63 | 9}, Deleted: deleted}, Key: key, Value: value}
}

// liveOn has a node make and merge changes of all kinds.
func (n *node) liveOn() {
	large, huge := strings.Repeat("l", 65<<10), strings.Repeat("h", 80<<10)
	n.put("", "the empty key")
	for i := range 6 {
		n.put(fmt.Sprint("k", i), "first")
	}
	n.put("large", large)
	n.delete("k2")
	n.put("k3", "second")
	n.merge(theirs(100, "k4", "theirs", false), theirs(101, "k5", "", true), theirs(1, "k6", "an old one", false))
	n.put("huge", huge)
	n.put("k6", "")
	n.put("large", large+"r")
	n.delete("never there")
	n.put("k2", "back")
	n.put("k2", "back again")
	n.put2("huge 2", huge)
	n.delete("k0")
	n.put("k1", "at last")
}

// bare are changes without what a restart makes unknown.
func bare(changes []replicator.Change) (all []replicator.Change) {
	for _, c := range changes {
		c.Peer, c.Conflict = replicator.DatabaseID{}, nil
		all = append(all, c)
	}
	return all
}

// tell returns what a feed gives from a cursor until it waits.
func (n *node) tell(from replicator.Cursor) []replicator.Change {
	pages, err := replicator.FeedPages(n.r, "", from)
	require.NoError(n.c.t, err)
	return slices.Concat(pages...)
}

// placeless are the latest of each key, without their cursors. Which others are told, and
// what a cursor rests on, depends on where pages end.
func placeless(changes []replicator.Change) (all []replicator.Change) {
	for _, c := range latestOf(changes) {
		c.Cursor = replicator.Cursor{}
		all = append(all, c)
	}
	return all
}

// TestFeedGoesOnFromEveryCursor: what a feed gives from the cursor of a change is, for each
// key, the latest of what it gave behind that change, over restarts and kills, too, in the
// order of the log, or for a new consumer in that of the keys.
func TestFeedGoesOnFromEveryCursor(t *testing.T) {
	t.Parallel()
	for _, page := range []int{1, 3} {
		for name, backlog := range map[string]int{"backlog": 0, "log": 1} {
			t.Run(fmt.Sprintf("%s, pages of %d", name, page), func(t *testing.T) {
				inFeed(t, page, backlog, func(t *testing.T, c *cluster, n *node) {
					start := n.r.Here()
					require.False(t, start.IsZero())
					n.liveOn()
					check := func() {
						rows := slices.SortedFunc(maps.Values(n.index()), func(a, b replicator.Row) int { return cmp.Compare(a.Seq, b.Seq) })
						logged := n.tell(start)
						latest := latestOf(logged)
						require.Len(t, latest, len(rows))
						for i, row := range rows {
							require.Equal(t, row.Key, string(latest[i].Key))
							require.Equal(t, row.Version, latest[i].Version)
							require.Equal(t, row.Seq, replicator.CursorPlace(latest[i].Cursor).Seq)
							require.Equal(t, row.Origin != 1<<63|9, latest[i].Local, row.Key)
						}
						state := n.tell(replicator.Cursor{})
						live := n.state().values
						require.Equal(t, sortedKeys(live), keysOf(state))
						for _, all := range [][]replicator.Change{logged, state} {
							for i := range all {
								if value, known := c.written[all[i].Stamp]; known {
									require.Equal(t, value, string(all[i].Value))
								}
								rest := n.tell(all[i].Cursor)
								require.Equal(t, placeless(all[i+1:]), placeless(rest), "from %d of %d", i, len(all))
							}
							k := newKeeper()
							for _, c := range all {
								require.NoError(t, k.take(c))
							}
							require.NoError(t, k.holds(n))
						}
					}
					check()
					before := n.tell(replicator.Cursor{})
					n.close()
					n.open()
					check()
					require.Equal(t, bare(before), bare(n.tell(replicator.Cursor{})))
					n.put("k1", "after a restart")
					last := n.r.Here()
					n.kill()
					n.open()
					check()
					require.Empty(t, n.tell(last))
					n.put("k1", "after a kill")
					require.Len(t, n.tell(last), 1)
				})
			})
		}
	}
}

func keysOf(changes []replicator.Change) (keys []string) {
	for _, c := range changes {
		keys = append(keys, string(c.Key))
	}
	return keys
}

// TestFeedBelowTheFloor: a consumer that stopped anywhere gets what it lacks, deletions
// included, once the log has expired, and once more in the midst of that.
func TestFeedBelowTheFloor(t *testing.T) {
	t.Parallel()
	for _, page := range []int{1, 500} {
		inFeed(t, page, 1, func(t *testing.T, c *cluster, n *node) {
			start := n.r.Here()
			n.liveOn()
			all := n.tell(start)
			var stopped []*keeper
			for i := range len(all) + 1 {
				k := &keeper{cursor: start, entries: map[string]kept{}}
				for _, c := range all[:i] {
					require.NoError(t, k.take(c))
				}
				stopped = append(stopped, k)
			}
			for i, k := range slices.Clone(stopped) { // and those in the midst of the first state
				k = newKeeper()
				for j, c := range n.tell(replicator.Cursor{}) {
					if j < i {
						require.NoError(t, k.take(c))
					}
				}
				stopped = append(stopped, k)
			}
			for round := range 3 {
				replicator.ExpireNow(t, n.r)
				var next []*keeper
				for i, k := range stopped {
					whole, part, twice := k.clone(), k, map[string]int{}
					require.NoError(t, whole.drain(t, n.r, func(c replicator.Change) { twice[string(c.Key)]++ }))
					for key, times := range twice {
						if round > 0 {
							break // what changed in the midst of a scan may be told with it and after it
						}
						require.Equal(t, 1, times, key)
						require.NotEqual(t, k.entries[key].Version, whole.entries[key].Version, "%s was told before", key)
					}
					require.NoError(t, whole.holds(n), "round %d, stopped at %d", round, i)
					rest := n.tell(part.cursor)
					for _, c := range rest[:len(rest)/2] {
						require.NoError(t, part.take(c))
					}
					next = append(next, part)
				}
				stopped = next
				n.put("k1", fmt.Sprint("round ", round))
				n.delete("k4")
				n.put(fmt.Sprint("new ", round), "value")
				n.delete("large")
			}
		})
	}
}

// TestFeedIsLive: a feed that waits is woken by a write and a merge, and gives at once what
// they changed, with its maker.
func TestFeedIsLive(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, a, b *node) {
		c.open()
		require.NoError(t, b.sync())
		told := make(chan replicator.Change)
		go func() {
			defer close(told)
			for c, err := range b.r.Changes(t.Context(), b.r.Here()) {
				if err != nil {
					return
				}
				told <- c
			}
		}()
		time.Sleep(time.Second)
		b.put("mine", "1")
		one := <-told
		require.Equal(t, "mine", string(one.Key))
		require.True(t, one.Local)
		require.Zero(t, one.Peer)
		start := time.Now()
		a.put("theirs", strings.Repeat("x", 100<<10))
		two := <-told
		require.Less(t, time.Since(start), time.Second)
		require.Equal(t, "theirs", string(two.Key))
		require.Len(t, two.Value, 100<<10)
		require.False(t, two.Local)
		require.Equal(t, a.r.Status().ID, two.Peer)
		require.Nil(t, two.Conflict)
		require.Equal(t, b.version("theirs"), two.Version)
		recent := b.r.Recent(2)
		require.Equal(t, two.Cursor, recent[1].Cursor)
		require.Equal(t, two.Peer, recent[1].Peer)
		recent[1].Key[0], two.Key[0], two.Value[0] = 'X', 'X', 'X' // they are the caller's
		require.Equal(t, "theirs", string(b.r.Recent(1)[0].Key))
		b.close()
		for range told {
			t.Error("told after Close")
		}
	})
}

// TestFeedTellsConflicts: a change that replaces one whose maker did not know it comes with
// what was lost, as long as that is in memory.
func TestFeedTellsConflicts(t *testing.T) {
	inPair(t, 1, func(t *testing.T, c *cluster, a, b *node) {
		a.open(mergesNothing) // so the two meet at b only
		b.open()
		require.NoError(t, b.sync())
		from := b.r.Here()
		feed, over := context.WithCancel(t.Context())
		go func() {
			for range b.r.Changes(feed, from) {
			}
		}()
		c.net.Isolate("n0")
		b.put("key", "ours")
		b.put("deleted", "ours")
		b.put("larger", strings.Repeat("o", 70<<10))
		b.put("mine", "stays")
		ours := b.version("key")
		for range 5 {
			a.put("mine", "loses") // and makes the clock greater
		}
		b.put("mine", "wins")
		for range 5 {
			b.put("mine", "wins")
		}
		a.put("key", "theirs")
		a.put("larger", "theirs")
		a.delete("deleted")
		c.net.Heal()
		require.NoError(t, b.sync())
		over()
		found := map[string]*replicator.Conflict{}
		for _, c := range latestOf(b.tell(from)) {
			found[string(c.Key)] = c.Conflict
		}
		require.Equal(t, &replicator.Conflict{Key: []byte("key"), Won: b.version("key"), Lost: ours, LostHere: true,
			WonValue: []byte("theirs"), LostValue: []byte("ours")}, found["key"])
		require.Equal(t, "ours", string(found["deleted"].LostValue))
		require.Nil(t, found["deleted"].WonValue)
		require.NotNil(t, found["larger"])
		require.Nil(t, found["larger"].LostValue)
		require.Contains(t, found, "mine")
		require.Nil(t, found["mine"])
	})
}

// latestOf returns the last change of each key.
func latestOf(all []replicator.Change) (latest []replicator.Change) {
	last := map[string]int{}
	for i, c := range all {
		last[string(c.Key)] = i
	}
	for i, c := range all {
		if last[string(c.Key)] == i {
			latest = append(latest, c)
		}
	}
	return latest
}

// TestFeedEnds at once, and leaves nothing behind: when the loop is left, the context is
// done, the Replicator is closed, from the loop itself, too, or a write has failed.
func TestFeedEnds(t *testing.T) {
	for name, end := range map[string]struct {
		act  func(n *node, cancel func())
		want error // of a feed that waits
	}{
		"cancel": {func(n *node, cancel func()) { cancel() }, context.Canceled},
		"close":  {func(n *node, _ func()) { require.NoError(n.c.t, n.r.Close()) }, replicator.ErrClosed},
		"failed": {func(n *node, _ func()) { replicator.FailWrites(n.r, errors.New("disk full")) }, replicator.ErrFailed},
	} {
		t.Run(name, func(t *testing.T) {
			inFeed(t, 2, 0, func(t *testing.T, c *cluster, n *node) {
				for i := range 5 {
					n.put(fmt.Sprint(i), "value")
				}
				time.Sleep(time.Second)
				_, before := replicator.Feeds(n.r)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				waiting, thinking := make(chan error, 1), make(chan error, 1)
				thinks, goOn, seen := make(chan struct{}), make(chan struct{}), 0
				go func() { waiting <- newKeeper().follow(ctx, n.r, "", nil) }()
				go func() {
					thinking <- newKeeper().follow(ctx, n.r, "", func(replicator.Change) {
						if seen++; seen == 1 {
							close(thinks)
							<-goOn
						}
					})
				}()
				<-thinks
				time.Sleep(time.Second)
				start := time.Now()
				end.act(n, cancel)
				require.ErrorIs(t, <-waiting, end.want)
				close(goOn)
				require.ErrorIs(t, <-thinking, end.want)
				require.Zero(t, time.Since(start))
				require.Equal(t, map[bool]int{true: 5, false: 1}[name == "failed"], seen, "what is there can be read after a failure")
				require.ErrorIs(t, newKeeper().follow(ctx, n.r, "", nil), end.want)
				open, after := replicator.Feeds(n.r)
				require.Zero(t, open)
				require.LessOrEqual(t, after, before)
				n.abandon()
			})
		})
	}
	inFeed(t, 2, 0, func(t *testing.T, c *cluster, n *node) {
		n.put("a", "1")
		n.put("b", "2")
		for range n.r.Changes(t.Context(), replicator.Cursor{}) {
			break
		}
		count := 0
		for c, err := range n.r.Changes(t.Context(), replicator.Cursor{}) {
			if count++; count == 1 {
				require.Equal(t, "a", string(c.Key))
				require.NoError(t, n.r.Close())
				continue
			}
			require.Equal(t, replicator.ErrClosed, err)
			require.Zero(t, c)
		}
		require.Equal(t, 2, count)
		open, _ := replicator.Feeds(n.r)
		require.Zero(t, open)
	})
}

// TestFeedOfFirstSync: a consumer of an empty replica gets what the first sync brings,
// which has no log, and what is written here meanwhile.
func TestFeedOfFirstSync(t *testing.T) {
	inFirst(t, 1, 2, func(t *testing.T, c *cluster, source, n *node) {
		k, asked := newKeeper(), 0
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		done := make(chan error, 1)
		go func() {
			done <- k.follow(ctx, n.r, "", func(c replicator.Change) {
				mu.Lock()
				asked++
				mu.Unlock()
			})
		}()
		time.Sleep(100 * time.Millisecond)
		n.put("k00002", "changed")
		n.put("x", "new")
		require.True(t, replicator.InFirstSync(n.r))
		require.NoError(t, n.sync())
		time.Sleep(10 * time.Second)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.NoError(t, k.holds(n))
		require.Greater(t, len(k.entries), firstKeys)
		require.LessOrEqual(t, asked, firstKeys+10, "given once each")
		require.NoError(t, k.drain(t, n.r, nil))
	})
}

// TestFeedRefusesCursors of other histories, and no others.
func TestFeedRefusesCursors(t *testing.T) {
	stopped := func(n *node) *keeper {
		k := newKeeper()
		require.NoError(n.c.t, k.drain(n.c.t, n.r, nil))
		return k
	}
	refused := func(n *node, k *keeper, what string) {
		n.c.t.Helper()
		require.ErrorIs(n.c.t, k.clone().drain(n.c.t, n.r, nil), replicator.ErrCursor, what)
	}
	accepted := func(n *node, k *keeper, what string) {
		n.c.t.Helper()
		require.NoError(n.c.t, k.drain(n.c.t, n.r, nil), what)
		require.NoError(n.c.t, k.holds(n), what)
	}
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) { // of another database
		c.open()
		c.nodes[0].put("a", "1")
		c.nodes[1].put("b", "1")
		refused(c.nodes[1], stopped(c.nodes[0]), "of another database")
		empty := newKeeper()
		empty.cursor = c.nodes[0].r.Here()
		refused(c.nodes[1], empty, "Here of another database")
	})
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) { // of an empty database
		n := c.nodes[0]
		n.open()
		k := newKeeper()
		k.cursor = n.r.Here()
		n.close()
		n.open()
		n.put("a", "1")
		accepted(n, k, "of the empty database")
	})
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) { // backups and clones
		n, clone := c.nodes[0], c.nodes[1]
		n.open()
		n.put("a", "1")
		early := stopped(n)
		n.close()
		backup := n.disk.Copy()
		n.open()
		copied := stopped(n)
		n.put("a", "2")
		late := stopped(n)
		clone.disk = backup.Copy()
		clone.open()
		clone.put("a", "3")
		clone.put("b", "3")
		theirs := stopped(clone)
		accepted(clone, early.clone(), "of before the copy was made")
		accepted(clone, copied.clone(), "of when it was made")
		refused(clone, late, "of after it was made")
		refused(n, theirs, "of the copy")
		require.NoError(t, replicator.RenewID(n.r))
		accepted(n, late.clone(), "with another id, the history is the same")
		n.replaceDisk(backup)
		n.open()
		n.put("c", "4")
		n.put("c", "5")
		refused(n, late, "of before the backup was restored")
		refused(n, theirs, "of the copy of it")
		accepted(n, early.clone(), "of before the backup was made")
		n.recovered = true
		n.kill()
		n.open()
		until(t, "adoption ends", n.adopted)
		refused(n, early, "of before files were recovered")
		accepted(n, stopped(n), "of since")
	})
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) { // an image of a running process
		n, image := c.nodes[0], c.nodes[1]
		n.open()
		n.put("a", "1")
		early := stopped(n)
		image.disk, image.boot = n.disk.Copy(), n.boot
		n.put("a", "2")
		n.put("a", "3")
		late := stopped(n)
		image.open()
		image.put("a", "4")
		accepted(image, early, "of before the image was made")
		refused(image, late, "of after it was made")
	})
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) { // a power cut of which nobody can tell what it has taken
		n := c.nodes[0]
		n.open()
		n.put("a", "1")
		k := stopped(n)
		n.kill()
		n.boot = c.newBoot()
		n.open()
		refused(n, k, "what it has seen may be lost")
	})
	for seed := range int64(5) { // a power cut
		inSeeded(t, seed, 1, func(t *testing.T, c *cluster) {
			n := c.nodes[0]
			c.durableEvery = time.Minute
			n.open()
			n.put("a", "1")
			durable := stopped(n)
			time.Sleep(90 * time.Second)
			scan := newKeeper()
			require.NoError(t, scan.take(n.tell(replicator.Cursor{})[0]))
			n.put("a", "2")
			n.put("b", "2")
			lost := stopped(n)
			early := newKeeper() // in the midst of a scan that is yet to see what is lost
			require.NoError(t, early.take(n.tell(replicator.Cursor{})[0]))
			n.powerCut()
			n.open()
			n.put("c", "3")
			n.put("c", "4")
			refused(n, lost, "what it has seen may be lost")
			refused(n, early, "what it has seen may be lost")
			accepted(n, durable, "what it has seen was durable")
			accepted(n, scan, "what it has seen was durable")
		})
	}
}

// TestWatch gives the changes of the keys with a prefix, and no others.
func TestWatch(t *testing.T) {
	for _, backlog := range []int{0, 1} {
		inFeed(t, 3, backlog, func(t *testing.T, c *cluster, n *node) {
			start := n.r.Here()
			for i := range 10 {
				for _, prefix := range []string{"a/", "b", "b/", "b/x/", "b0", "\xff\xff", "\xff\xff/"} {
					n.put(fmt.Sprintf("%s%d", prefix, i), "value")
				}
			}
			n.delete("b/3")
			n.delete("a/3")
			give := func(prefix string, from replicator.Cursor) []string {
				pages, err := replicator.FeedPages(n.r, prefix, from)
				require.NoError(t, err)
				keys := keysOf(slices.Concat(pages...))
				for _, key := range keys {
					require.True(t, strings.HasPrefix(key, prefix), "%q has not the prefix %q", key, prefix)
				}
				return keys
			}
			check := func() {
				require.Len(t, slices.DeleteFunc(latestOf(slices.Concat(must(replicator.FeedPages(n.r, "b/", start))...)),
					func(c replicator.Change) bool { return c.Deleted }), 19)
				require.Len(t, give("b/", replicator.Cursor{}), 19)
				require.Len(t, give("b/x/", replicator.Cursor{}), 10)
				require.Len(t, give("\xff\xff", replicator.Cursor{}), 20)
				require.Empty(t, give("c", start))
				all := n.tell(replicator.Cursor{})
				for i := range all {
					here := slices.DeleteFunc(keysOf(all[i+1:]), func(key string) bool { return !strings.HasPrefix(key, "b/") })
					require.Equal(t, fmt.Sprintf("%q", here), fmt.Sprintf("%q", give("b/", all[i].Cursor)), "behind %q", all[i].Key)
				}
				for i, c := range slices.Concat(must(replicator.FeedPages(n.r, "b", replicator.Cursor{}))...) {
					if i%7 == 0 {
						rest := keysOf(slices.Concat(must(replicator.FeedPages(n.r, "b", c.Cursor))...))
						here := slices.DeleteFunc(rest, func(key string) bool { return !strings.HasPrefix(key, "b/x/") })
						require.Equal(t, fmt.Sprintf("%q", here), fmt.Sprintf("%q", give("b/x/", c.Cursor)), "a longer prefix, behind %q", c.Key)
					}
				}
			}
			check()
			replicator.ExpireNow(t, n.r)
			n.close()
			n.open()
			check()
		})
	}
}

// TestWatchIsLive: a feed of a prefix that waits is woken for the keys under it. Others wake
// it now and then only, so that it stays within the backlog.
func TestWatchIsLive(t *testing.T) {
	inFeed(t, 500, 0, func(t *testing.T, c *cluster, n *node) {
		ctx, cancel := context.WithCancel(t.Context())
		told, looks := make(chan string, 10), 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for change, err := range n.r.Watch(counted{ctx, &looks}, []byte("b/"), n.r.Here()) {
				if err == nil {
					told <- string(change.Key)
				}
			}
		}()
		for i := range 2500 {
			n.put2(fmt.Sprint("a/", i), "value")
			synctest.Wait()
		}
		require.Empty(t, told)
		n.put2("b/1", "value")
		synctest.Wait()
		require.Equal(t, "b/1", <-told)
		n.delete("b/1")
		synctest.Wait()
		require.Equal(t, "b/1", <-told)
		cancel()
		<-done
		require.Greater(t, looks, 5)
		require.Less(t, looks, 100)
	})
}

// counted counts how often it is asked whether it is done.
type counted struct {
	context.Context
	asked *int
}

func (c counted) Err() error {
	*c.asked++
	return c.Context.Err()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestFeedIsBounded: a page has a MiB of keys and values at most, or one value that is
// larger, in whatever order it is read.
func TestFeedIsBounded(t *testing.T) {
	for _, backlog := range []int{0, 1} {
		r := wrap(t, memDB(t), &replicator.Options{BacklogBytes: backlog})
		start, rng := r.Here(), rand.New(rand.NewPCG(1, 1))
		for i := range 50 {
			size := []int{10, 3000, 30 << 10, 60 << 10, 200 << 10}[rng.IntN(5)]
			if i%12 == 7 {
				size = 1200 << 10
			}
			require.NoError(t, r.Put(fmt.Appendf(nil, "%x %d", rng.Uint32()%16, i), make([]byte, size), nil))
		}
		n := &node{c: &cluster{t: t}, r: r, db: r.DB()}
		for name, from := range map[string]replicator.Cursor{"log": start, "keys": {}} {
			pages, err := replicator.FeedPages(r, "", from)
			require.NoError(t, err)
			k := newKeeper()
			for i, page := range pages {
				size, most := 0, 0
				for _, c := range page {
					require.NoError(t, k.take(c))
					size += len(c.Value)
					most = max(most, len(c.Value))
				}
				require.LessOrEqual(t, size-most, 1<<20, "%s: page %d of %d changes", name, i, len(page))
			}
			require.NoError(t, k.holds(n))
			require.Less(t, len(pages), 25)
		}
	}
}

// TestFeedThatWaits holds hardly anything.
func TestFeedThatWaits(t *testing.T) {
	const changes = 600 // more than a page
	r := wrap(t, memDB(t), nil)
	for i := range changes {
		require.NoError(t, r.Put(fmt.Append(nil, i), make([]byte, 100), nil))
	}
	const feeds = 50
	ctx, cancel := context.WithCancel(t.Context())
	var wg, read sync.WaitGroup
	read.Add(feeds)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before := heap()
	for range feeds {
		wg.Go(func() {
			n := 0
			for range r.Changes(ctx, replicator.Cursor{}) {
				if n++; n == changes {
					read.Done()
				}
			}
		})
	}
	read.Wait()
	for _, subscribed := replicator.Feeds(r); subscribed < feeds; _, subscribed = replicator.Feeds(r) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond)
	each := (heap() - before) / feeds
	t.Logf("a feed that waits holds %d bytes, with the stack of its consumer", each)
	require.Less(t, each, int64(32<<10))
	cancel()
	wg.Wait()
}

// TestFeedRacesWriters: consumers that stop and go on at random, some of them slow, end with
// what is there, while writers write and the log expires.
func TestFeedRacesWriters(t *testing.T) {
	r := wrap(t, memDB(t), replicator.WithExpiry(replicator.Options{MaxLogRecords: 200, BacklogBytes: 20_000}, 5*time.Millisecond, 100))
	writes := budget(1000, 2000, 20_000)
	var writers, consumers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range writes {
				key := fmt.Append(nil, "k", rng.IntN(300))
				var err error
				if rng.IntN(5) == 0 {
					err = r.Delete(key, nil)
				} else {
					err = r.Put(key, fmt.Append(nil, w, i), nil)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	keepers := make([]*keeper, 4)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range keepers {
		keepers[i] = newKeeper()
		consumers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 2))
			for ctx.Err() == nil {
				stop, over := context.WithCancel(ctx)
				err := keepers[i].follow(stop, r, "", func(c replicator.Change) {
					if i == 0 && rng.IntN(20) == 0 {
						time.Sleep(time.Millisecond)
					}
					if string(c.Key) == "end" {
						cancel()
					} else if rng.IntN(500) == 0 {
						over()
					}
				})
				if over(); err != context.Canceled {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	require.NoError(t, r.Put([]byte("end"), nil, nil))
	consumers.Wait()
	n := &node{c: &cluster{t: t}, r: r, db: r.DB()}
	for i, k := range keepers {
		rest, err := replicator.FeedPages(r, "", k.cursor)
		require.NoError(t, err)
		for _, c := range slices.Concat(rest...) {
			require.NoError(t, k.take(c))
		}
		require.NoError(t, k.holds(n), "consumer %d", i)
	}
}

// TestFeedDuringCommit: a feed that reads in the midst of a commit gives nothing of it, and
// cursors that are good at once; then it gives it.
func TestFeedDuringCommit(t *testing.T) {
	for _, backlog := range []int{0, 1} {
		inFeed(t, 2, backlog, func(t *testing.T, c *cluster, n *node) {
			start := n.r.Here()
			n.fill("k", 0, 5, 10)
			n.put("large", "old")
			n.put("z", "behind it")
			at := n.r.Here()
			goOn, over := n.holdCommit("large", func() error { return n.r.Put([]byte("large"), largeValue, nil) })
			defer goOn()
			var cursors []replicator.Cursor
			for _, from := range []replicator.Cursor{{}, start, at} {
				for _, change := range n.tell(from) {
					require.Less(t, len(change.Value), 100)
					cursors = append(cursors, change.Cursor)
				}
			}
			for _, from := range cursors {
				n.tell(from)
			}
			goOn()
			require.NoError(t, <-over)
			for _, from := range append(cursors, start, at) {
				all := n.tell(from)
				require.Equal(t, "large", string(all[len(all)-1].Key))
				require.Equal(t, n.version("large"), all[len(all)-1].Version)
			}
		})
	}
}

// TestFeedKeepsAnIndex: an index that is written in one batch with its cursor, with Sync,
// fits what it is made of, after kills and power cuts at any time.
func TestFeedKeepsAnIndex(t *testing.T) {
	eachSeed(t, budget(3, 8, 200), func(t *testing.T, seed int64) {
		inSeeded(t, seed, 1, func(t *testing.T, c *cluster) {
			c.durableEvery = time.Second
			n, rebuilt := c.nodes[0], 0
			n.open(keepingLocal("index/"))
			for range 15 {
				for range c.rng.IntN(8) {
					key := fmt.Sprint("doc/", c.rng.IntN(12))
					if c.rng.IntN(4) == 0 {
						n.delete(key)
					} else {
						n.put(key, fmt.Sprint("value ", c.rng.Uint32(), strings.Repeat("x", c.rng.IntN(3000))))
					}
				}
				n.keepIndex(1+c.rng.IntN(20), &rebuilt)
				time.Sleep(time.Duration(c.rng.IntN(700)) * time.Millisecond)
				if end := c.rng.IntN(6); end < 3 {
					[]func(){n.close, n.kill, n.powerCut}[end]()
					n.open(keepingLocal("index/"))
				}
			}
			n.keepIndex(1<<30, &rebuilt)
			values, rows := map[string]string{}, map[string]string{}
			for key, value := range n.state().values {
				if row, found := strings.CutPrefix(key, "index/doc/"); found {
					rows["doc/"+row] = value
				} else if strings.HasPrefix(key, "doc/") {
					values[key] = value
				}
			}
			require.Equal(t, values, rows)
			t.Logf("%d documents, rebuilt %d times", len(values), rebuilt)
		})
	})
}

// keepIndex goes on with an index for a number of changes, or up to where nothing is new.
func (n *node) keepIndex(changes int, rebuilt *int) {
	text, err := n.r.Get([]byte("index/cursor"), nil)
	require.True(n.c.t, err == nil || err == leveldb.ErrNotFound, err)
	var from replicator.Cursor
	require.NoError(n.c.t, from.UnmarshalText(text))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		for change, err := range n.r.Changes(ctx, from) {
			b := new(leveldb.Batch)
			row := append([]byte("index/"), change.Key...)
			if b.Put(row, change.Value); change.Deleted {
				b.Delete(row)
			}
			b.Put([]byte("index/cursor"), []byte(change.Cursor.String()))
			if changes--; err == nil {
				err = n.r.Write(b, withSync)
			}
			if err != nil || changes == 0 {
				done <- err
				return
			}
		}
	}()
	synctest.Wait()
	cancel()
	switch err := <-done; {
	case errors.Is(err, replicator.ErrCursor):
		*rebuilt++
		b := new(leveldb.Batch)
		for key := range n.state().values {
			if strings.HasPrefix(key, "index/") {
				b.Delete([]byte(key))
			}
		}
		require.NoError(n.c.t, n.r.Write(b, withSync))
		n.keepIndex(changes, rebuilt)
	default:
		require.True(n.c.t, err == nil || err == context.Canceled, err)
	}
}

// TestFeedOfAdopted: values that were there before come as they are adopted, and with what
// they are then.
func TestFeedOfAdopted(t *testing.T) {
	t.Parallel()
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		fillDisk(t, n.disk, numbered("old", 700, "value"))
		n.openSlowly()
		k := newKeeper()
		require.NoError(t, k.drain(t, n.r, nil))
		require.Less(t, len(k.entries), 700)
		until(t, "adoption ends", n.adopted)
		require.NoError(t, k.drain(t, n.r, func(c replicator.Change) { require.False(t, c.Local) }))
		require.NoError(t, k.holds(n))
		require.Len(t, k.entries, 700)
	})
}

// TestFeedOfWritesAround: a value that was removed around the Replicator is passed over.
func TestFeedOfWritesAround(t *testing.T) {
	for _, backlog := range []int{0, 1} {
		inFeed(t, 2, backlog, func(t *testing.T, c *cluster, n *node) {
			start := n.r.Here()
			for i := range 5 {
				n.put2(fmt.Sprint(i), strings.Repeat("v", 70<<10))
			}
			var b leveldb.Batch
			b.Delete([]byte("2"))
			require.NoError(t, n.db.Write(&b, nil))
			for _, from := range []replicator.Cursor{{}, start} {
				require.Equal(t, []string{"0", "1", "3", "4"}, keysOf(n.tell(from)))
			}
		})
	}
}

// TestCursorText: a cursor survives text, and no other text is accepted.
func TestCursorText(t *testing.T) {
	inFeed(t, 2, 1, func(t *testing.T, c *cluster, n *node) {
		start := n.r.Here()
		n.liveOn()
		cursors := []replicator.Cursor{{}, start}
		for _, from := range cursors {
			for _, c := range n.tell(from) {
				cursors = append(cursors, c.Cursor)
			}
		}
		at := n.tell(start)[3].Cursor
		replicator.ExpireNow(t, n.r)
		for _, c := range n.tell(at) {
			cursors = append(cursors, c.Cursor)
		}
		for _, cursor := range cursors {
			text, err := cursor.MarshalText()
			require.NoError(t, err)
			require.Regexp(t, "^[A-Za-z0-9_-]*$", string(text))
			require.LessOrEqual(t, len(text), 74+2*len(replicator.CursorPlace(cursor).Key))
			require.Equal(t, cursor.IsZero(), len(text) == 0)
			var back replicator.Cursor
			require.NoError(t, back.UnmarshalText(text))
			require.Equal(t, cursor, back)
			for i := range text {
				back = start
				if back.UnmarshalText(text[:i]) != nil {
					require.Equal(t, start, back)
				}
			}
		}
		for _, text := range []string{"!", "AQ==", "A", "AA", "Bf", strings.Repeat("A", 1<<20)} {
			back := start
			require.Error(t, back.UnmarshalText([]byte(text)), text)
			require.Equal(t, start, back)
		}
	})
}

// TestChangeString: a change prints as its key and its version.
func TestChangeString(t *testing.T) {
	c := replicator.Change{Key: []byte("a\n"), Version: replicator.Version{Stamp: replicator.Stamp{Clock: 7, Origin: 1<<63 | 9}, Deleted: true}}
	require.Equal(t, `"a\n" -7@8000000000000009`, fmt.Sprint(c))
}

// TestFeedPassesOverWhatIsLost: a feed passes over a record because of a later one, which a
// power cut takes. The cursor is durable, is accepted, and the change is never told.
func TestFeedPassesOverWhatIsLost(t *testing.T) {
	for _, page := range []int{500, 1} {
		testFeedPassesOver(t, page)
	}
}

func testFeedPassesOver(t *testing.T, page int) {
	inFeed(t, page, 1, func(t *testing.T, c *cluster, n *node) {
		c.durableEvery = time.Minute
		n.close()
		n.open()
		n.put("k", "1")
		k := newKeeper()
		require.NoError(t, k.drain(t, n.r, nil))
		k.cursor = n.r.Here()
		n.put("k", "2")
		n.put("x", "1")
		time.Sleep(90 * time.Second) // a durable point
		disk := n.disk.Copy()
		n.put("k", "3") // not synced
		for change, err := range n.r.Changes(t.Context(), k.cursor) {
			require.NoError(t, err)
			require.NoError(t, k.take(change))
			break // x; k at "2" was passed over
		}
		n.close()
		n.disk, n.boot = disk, c.newBoot() // a power cut took "3"
		n.open()
		k.goesOn(t, n)
	})
}

// TestFeedRestsOnWhatLeftTheLog: a merge removes the record that it supersedes, so that the log
// shows nothing of what a feed passes over. Who reads on in a copy from before the merge is told
// of the change, or refused.
func TestFeedRestsOnWhatLeftTheLog(t *testing.T) {
	inFeed(t, 1, 1, func(t *testing.T, c *cluster, n *node) {
		n.merge(theirs(5000, "far ahead", "1", false)) // what comes below is looked up
		k := newKeeper()
		require.NoError(t, k.drain(t, n.r, nil))
		k.cursor = n.r.Here()
		n.merge(theirs(999, "k", "1", false))
		n.put("x", "1")
		time.Sleep(time.Minute) // a durable point
		copied := n.disk.Copy()
		n.merge(theirs(1000, "k", "2", false))
		n.put("y", "1")
		log, err := replicator.LogRows(n.db)
		require.NoError(t, err)
		require.Len(t, log, 4, "the first record of k is gone")
		for change, err := range n.r.Changes(t.Context(), k.cursor) {
			require.NoError(t, err)
			require.NoError(t, k.take(change))
			require.Equal(t, "x", string(change.Key))
			break
		}
		k.goesOnInCopy(t, n, copied)
	})
}

// TestFeedScansWhatIsYetToBePublished: neither a scan nor the log goes past a change that can
// be seen, and whose commit a power cut may take, leaving the one before it.
func TestFeedScansWhatIsYetToBePublished(t *testing.T) {
	for name, change := range map[string]func(n *node) error{
		"a put": func(n *node) error { return n.r.Put([]byte("k"), largeValue, nil) },
		"a deletion": func(n *node) error {
			var b leveldb.Batch
			b.Delete([]byte("d"))
			b.Put([]byte("k"), largeValue)
			return n.r.Write(&b, nil)
		},
	} {
		for _, scan := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, scan: %v", name, scan), func(t *testing.T) {
				inFeed(t, 100, 1, func(t *testing.T, c *cluster, n *node) {
					k := newKeeper()
					n.put("before", "1")
					if !scan {
						require.NoError(t, k.drain(t, n.r, nil))
						k.cursor = n.r.Here()
					}
					for _, key := range []string{"a", "d", "k", "z"} {
						n.put(key, "1")
					}
					copied := n.disk.Copy()
					goOn, over := n.holdCommit("k", func() error { return change(n) })
					defer goOn()
					ctx, cancel := context.WithCancel(t.Context())
					ended := make(chan error)
					go func() { ended <- k.follow(ctx, n.r, "", nil) }()
					time.Sleep(time.Second)
					cancel()
					require.ErrorIs(t, <-ended, context.Canceled)
					require.Contains(t, k.entries, "a")
					goOn()
					require.NoError(t, <-over)
					n.disk.SetFault(nil)
					k.goesOnInCopy(t, n, copied)
				})
			})
		}
	}
}
