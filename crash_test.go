package replicator_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// changing are the operations that what is found after a crash can depend on.
const changing = simtest.AnyOp &^ (simtest.OpOpen | simtest.OpRead)

// TestCrashAtEveryDiskOperation ends a replica at each operation of its disk, by a kill
// and by power cuts with each kind of loss, and looks at what it finds when it is opened
// again. Less often, or always with -long, it also lets it meet its peers as they were
// at that moment.
func TestCrashAtEveryDiskOperation(t *testing.T) {
	t.Parallel()
	crashEverywhere(t, false, budget(4, 1, 1))
}

// TestCrashWhileLogExpires is the same for replicas whose logs expire as fast as they grow.
func TestCrashWhileLogExpires(t *testing.T) {
	t.Parallel()
	crashEverywhere(t, true, budget(8, 2, 1))
}

// crashEverywhere crashes at each operation of a life, or at one in stride.
func crashEverywhere(t *testing.T, expiring bool, stride int) {
	eachSeed(t, budget(1, 1, 10), func(t *testing.T, seed int64) {
		images := recordLife(t, seed, expiring)
		meet := budget(80, 30, 1) // of the crashes, one in so many
		if *operation != 0 {
			meet = 1
			images = slices.DeleteFunc(images, func(im *image) bool { return im.operation < *operation })
			images = images[:min(1, len(images))]
		}
		const shards = 8
		for shard := range shards {
			t.Run(fmt.Sprint("shard ", shard), func(t *testing.T) {
				t.Parallel()
				inBubble(t, func(t *testing.T) {
					for i := shard; i < len(images); i += shards * stride {
						for j, loss := range losses {
							images[i].examine(t, loss)
							if (i*len(losses)+j)%meet == 0 {
								images[i].meet(t, loss)
							}
						}
					}
				})
			})
		}
	})
}

// recordLife plays a life, and returns an image of each moment at which the victim can
// crash: before every operation of its disk that changes something, and at the end. A
// crash before a read finds what one before the next such operation finds.
func recordLife(t *testing.T, seed int64, expiring bool) (images []*image) {
	inSeeded(t, seed, 3, func(t *testing.T, c *cluster) {
		if expiring {
			c.expiring(time.Millisecond, 1, 4)
		}
		var l *life
		var mu sync.Mutex // guards images: a compaction is at work beside the commits
		all := int64(0)
		l = newLife(c, func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			mu.Lock()
			defer mu.Unlock()
			all++
			if op&changing != 0 {
				images = append(images, l.image(all))
			}
			return nil
		})
		require.NoError(t, l.run())
		images = append(images, l.image(all+1))
		if expiring {
			onDisk(t, c.nodes[0].disk, func(db *leveldb.DB) {
				floor, err := replicator.Floor(db)
				require.NoError(t, err)
				require.Greater(t, floor, uint64(20))
			})
		}
		compacted := l.compactions
		t.Logf("%d operations of the disk, %d of them change it; %d changes; %d memtables flushed, %d and %d compactions",
			all, len(images)-1, len(l.acked), compacted.MemComp, compacted.Level0Comp, compacted.NonLevel0Comp)
		require.Greater(t, compacted.MemComp, uint32(5))
		require.Positive(t, compacted.Level0Comp)
		require.Positive(t, compacted.NonLevel0Comp)
	})
	return images
}

// saying has a failed check say what it was about, and how to repeat it.
func (im *image) saying(t *testing.T, what string, check func()) {
	defer func() {
		if t.Failed() {
			t.Logf("%s at operation %d, during %q; to repeat: %s", what, im.operation, im.step, repeat(t, im.operation))
		}
	}()
	check()
}

// repeat returns the command that repeats a test at an operation of the disk.
func repeat(t *testing.T, operation int64) string {
	name := regexp.MustCompile("/.*").ReplaceAllString(t.Name(), "")
	return fmt.Sprintf("go test -run '^%s$' -operation %d%s . (goroutines decide which operation has which number: add -count 20)",
		name, operation, otherFlags())
}

// quickly opens a small database for a short while.
var quickly = &opt.Options{WriteBuffer: 16 << 10, CompactionL0Trigger: 50, BlockCacher: opt.NoCacher, DisableLargeBatchTransaction: true}

// examine looks at what is found after a crash, opens it, and looks again.
func (im *image) examine(t *testing.T, loss string) {
	im.saying(t, loss, func() {
		db, err := leveldb.Open(im.crash(loss), quickly)
		require.NoError(t, err)
		defer db.Close()
		found := readRows(t, db)
		require.NoError(t, im.checkRows(found, false))
		require.NoError(t, im.checkSafe(found, loss, false))
		if loss == "kill" {
			im.next = found.next()
			if !im.recovering {
				checkLog(t, db, found)
			}
		}
		r := openPlain(t, db, fmt.Sprint("boot ", im.boot(loss)))
		defer r.Close()
		im.checkClock(t, r, loss)
		im.goOn(t, r)
		until(t, "adoption", func() bool { return r.Status().Adoption.Done })
		found = readRows(t, db)
		require.NoError(t, im.checkRows(found, true))
		require.NoError(t, im.checkSafe(found, loss, false))
		checkLog(t, db, found)
		require.NoError(t, r.Close())
		require.NoError(t, db.Close())
	})
	time.Sleep(2 * time.Second) // for goleveldb's goroutine
}

// checkLog checks that the log of a database agrees with its index.
func checkLog(t *testing.T, db *leveldb.DB, found rows) {
	floor, err := replicator.Floor(db)
	require.NoError(t, err)
	require.NoError(t, found.checkLogFrom(floor))
}

// meet lets what is found after a crash meet the peers as they were at that moment. All
// end with the greatest of what any of them had.
func (im *image) meet(t *testing.T, loss string) {
	im.saying(t, loss+", with peers", func() {
		c := newCluster(t, im.operation, len(im.disks))
		defer c.close()
		joinLine(c)
		c.written = maps.Clone(im.life.written)
		for i, n := range c.nodes {
			n.disk, n.boot = im.disks[i].Copy(), im.boots[i]
		}
		n := c.nodes[0]
		n.disk, n.boot = im.crash(loss), im.boot(loss)
		c.net.Partition([]string{"n0"}, []string{"n1"}, []string{"n2"})
		c.open()
		im.goOn(t, n.r)
		want := map[string]replicator.Version{}
		for _, n := range c.nodes {
			until(t, "adoption", n.adopted)
			for key, row := range n.index() {
				if had, has := want[key]; !has || row.Compare(had) > 0 {
					want[key] = row.Version
				}
			}
		}
		c.converge()
		require.Equal(t, want, n.state().versions)
		found := readRows(t, n.db)
		require.NoError(t, im.checkRows(found, true))
		require.NoError(t, im.checkSafe(found, loss, true))
	})
	time.Sleep(2 * time.Second)
}

// boot returns the boot in which the victim is opened after a crash.
func (im *image) boot(loss string) int {
	if loss == "kill" {
		return im.boots[0]
	}
	return -1
}

// checkClock checks the clock that a Replicator begins with after a crash: above all
// that anybody can have seen, and favouring nobody by more than a block.
func (im *image) checkClock(t *testing.T, r *replicator.Replicator, loss string) {
	const block, underWay = 1 << 16, 64
	least := max(im.next, im.clock)
	most := least
	if loss != "kill" {
		most = max(most, im.greatest+underWay) + block
	}
	if im.recovering { // from a power cut before
		most = max(most, im.greatest+underWay) + block
	}
	// Each replica takes a stamp when its adoption is done, of which no row of the index
	// tells, and the victim's may be done already.
	marks := uint64(len(im.disks))
	if got := r.Status().Clock; got > marks || least > marks {
		require.True(t, least <= got && got <= most, "the clock is %d, not from %d to %d", got, least, most)
	}
}

// goOn makes changes after a crash. None of them has a stamp that was given before.
func (im *image) goOn(t *testing.T, r *replicator.Replicator) {
	epoch := r.Status().Epoch
	require.False(t, im.life.epochs[epoch], "the origin %v is drawn twice", epoch)
	for _, changes := range [][]change{
		{{key: "after the crash", value: afterCrash}},
		{{key: "key 00", value: afterCrash}},
		{{key: "key 01", value: gone}},
		{{key: "key 02", value: afterCrash}, {key: "after the crash, too", value: afterCrash}},
	} {
		require.NoError(t, makeChanges(r, false, changes))
		for _, c := range changes {
			var err error
			c.version, err = r.Version([]byte(c.key))
			require.NoError(t, err)
			require.Equal(t, epoch, c.version.Origin)
			require.GreaterOrEqual(t, c.version.Clock, im.next)
			require.NotContains(t, im.life.written, c.version.Stamp)
		}
	}
}
