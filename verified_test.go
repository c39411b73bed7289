package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// TestVerified changes a source, or the one that pulls from it, behind
// the other's back. It comes to the right kind of pull, and to equal states.
func TestVerified(t *testing.T) {
	t.Parallel()
	const base, more = 700, 40
	// Each case starts with a copy of both disks, with base keys, and more keys
	// written and merged after that; it ends with what has to be sent. A backup of
	// a machine that was not booted since counts as continued.
	type pair struct {
		*cluster
		source, n         *node
		sourceWas, nWas   *simtest.Disk
		sourceBoot, nBoot int
	}
	restore := func(n *node, disk *simtest.Disk, boot int) {
		n.replaceDisk(disk.Copy())
		n.boot = boot
		n.open()
	}
	const everything = -1
	for name, c := range map[string]struct {
		change func(p *pair)
		want   int // records: what the puller does not know
	}{
		"nothing": {func(p *pair) {}, 0},
		"source restarted": {func(p *pair) {
			p.source.close()
			p.source.open()
			p.source.fill("new", 0, more, 0)
		}, more},
		"source killed": {func(p *pair) {
			p.source.fill("new", 0, more, 0)
			p.source.kill()
			p.source.open()
			p.source.fill("new", more, 2*more, 0)
		}, 2 * more},
		"source restarted often": {func(p *pair) {
			for i := range 20 {
				p.source.kill()
				p.source.open()
				p.source.fill("new", i, i+1, 0)
			}
		}, 20},
		"source lost power": {func(p *pair) {
			p.source.powerCut()
			p.source.open()
			p.source.fill("new", 0, more, 0)
		}, more},
		"source restored":             {func(p *pair) { restore(p.source, p.sourceWas, p.sourceBoot) }, 0},
		"source restored, other boot": {func(p *pair) { restore(p.source, p.sourceWas, p.newBoot()) }, 0},
		"source restored, up to the checkpoint": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			p.source.fill("new", 0, more, 0)
		}, more},
		"source restored, beyond the checkpoint": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			p.source.fill("new", 0, 2*more, 0)
		}, 2 * more},
		"source restored, epochs beyond the checkpoint": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			for i := range 2 * more {
				p.source.fill("new", i, i+1, 0)
				p.source.kill()
				p.source.open()
			}
		}, 2 * more},
		"source said to be recovered": {func(p *pair) {
			p.source.close()
			p.source.open(func(o *replicator.Options) { o.Recovered = true })
		}, 0},
		"source expired up to the checkpoint": {func(p *pair) {
			head := p.source.r.Status().Head
			p.source.fill("new", 0, more, 0)
			p.source.close()
			onDisk(t, p.source.disk, func(db *leveldb.DB) { require.NoError(t, replicator.ExpireLog(db, head+1)) })
			p.source.open()
		}, more},
		"source expired beyond the checkpoint": {func(p *pair) {
			head := p.source.r.Status().Head
			p.source.fill("new", 0, more, 0)
			p.source.close()
			onDisk(t, p.source.disk, func(db *leveldb.DB) { require.NoError(t, replicator.ExpireLog(db, head+2)) })
			p.source.open()
		}, more},
		"puller restarted": {func(p *pair) {
			p.n.close()
			p.n.open()
			p.source.fill("new", 0, more, 0)
		}, more},
		"puller killed":               {func(p *pair) { p.n.kill(); p.n.open() }, 0},
		"puller lost power":           {func(p *pair) { p.n.powerCut(); p.n.open() }, everything},
		"puller restored":             {func(p *pair) { restore(p.n, p.nWas, p.nBoot) }, more},
		"puller restored, other boot": {func(p *pair) { restore(p.n, p.nWas, p.newBoot()) }, everything},
		"puller wiped":                {func(p *pair) { p.n.replaceDisk(simtest.NewDisk()); p.n.open() }, everything},
		"puller said to be recovered": {func(p *pair) {
			p.n.close()
			p.n.open(func(o *replicator.Options) { o.Recovered = true })
		}, 0}, // by fingerprints, it is the same
		"both restored": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			restore(p.n, p.nWas, p.nBoot)
		}, 0},
		"both restored, source written": {func(p *pair) {
			restore(p.source, p.sourceWas, p.sourceBoot)
			restore(p.n, p.nWas, p.nBoot)
			p.source.fill("new", 0, more, 0)
		}, more},
	} {
		t.Run(name, func(t *testing.T) {
			inPair(t, 8, func(t *testing.T, cl *cluster, source, n *node) {
				p := &pair{cluster: cl, source: source, n: n}
				p.open()
				p.source.fill("k", 0, base, 0)
				p.converge()
				time.Sleep(time.Second)
				p.sourceWas, p.nWas = p.source.disk.Copy(), p.n.disk.Copy()
				p.sourceBoot, p.nBoot = p.source.boot, p.n.boot
				p.source.fill("more", 0, more, 0)
				p.converge()
				time.Sleep(time.Second)
				p.net.Partition([]string{"n1"})
				c.change(p)
				keys := len(p.source.index())
				before := p.n.carried(p.source)
				p.net.Heal()
				require.NoError(t, p.n.sync())
				here := p.n.index()
				for key, row := range p.source.index() {
					require.GreaterOrEqual(t, here[key].Stamp.Compare(row.Stamp), 0, "SyncNow returned without %s", key)
				}
				p.converge()
				time.Sleep(time.Second)
				sent := p.n.carried(p.source) - before
				if c.want == everything {
					require.GreaterOrEqual(t, sent, int64(keys))
					require.LessOrEqual(t, sent, int64(keys+3*more))
				} else {
					require.EqualValues(t, c.want, sent)
				}
				p.net.Partition([]string{"n1"})
				time.Sleep(time.Minute) // the sessions end, and store what moved the checkpoint only
				cursor := p.n.cursor(p.source)
				require.Equal(t, p.source.r.Status().Head, cursor.Checkpoint)
				require.True(t, cursor.Joined)
				require.False(t, cursor.Keys || cursor.Log)
				// From here on, the log is enough.
				p.net.Heal()
				before = p.n.carried(p.source)
				p.source.fill("last", 0, 3, 0)
				p.converge()
				require.EqualValues(t, 3, p.n.carried(p.source)-before)
			})
		})
	}
	t.Run("source wiped", func(t *testing.T) {
		inSeeded(t, 8, 2, func(t *testing.T, c *cluster) {
			c.mesh().open()
			c.nodes[0].fill("k", 0, base, 0)
			c.converge()
			c.nodes[0].replaceDisk(simtest.NewDisk())
			c.nodes[0].open()
			require.NoError(t, c.nodes[0].sync())
			require.EqualValues(t, base, c.nodes[0].carried(c.nodes[1]))
			require.Len(t, c.nodes[0].state().values, base)
			c.converge()
			require.Zero(t, c.nodes[1].carried(c.nodes[0]))
		})
	})
}

// TestVerifiedCleanMark closes a database while goleveldb has yet to
// write the table of a journal that it has rotated and never synced. If a power
// cut leaves the clean mark, it leaves all that was written before it.
func TestVerifiedCleanMark(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		disk := simtest.NewDisk()
		db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 8 << 10, DisableLargeBatchTransaction: true})
		require.NoError(t, err)
		r := openPlain(t, db, "boot")
		const changes = 50
		var images []*simtest.Disk
		var mu sync.Mutex // guards images
		disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
			mu.Lock()
			images = append(images, disk.PowerCut(simtest.Drop))
			mu.Unlock()
			if op == simtest.OpCreate && fd.Type == storage.TypeTable {
				time.Sleep(time.Second)
			}
			return nil
		})
		for i := range changes {
			require.NoError(t, r.Put(fmt.Append(nil, i), make([]byte, 200), nil))
		}
		require.NoError(t, r.Close())
		images = append(images, disk.PowerCut(simtest.Drop))
		require.NoError(t, db.Close())
		marked := 0
		for i, image := range images {
			onDisk(t, image, func(db *leveldb.DB) {
				if isClean(t, db) {
					marked++
					require.Len(t, readRows(t, db).log, changes, "image %d of %d", i, len(images))
				}
			})
		}
		require.Positive(t, marked)
	})
}

// TestVerifiedEpochs reopens a source so often that it has just not forgotten the epoch
// of a checkpoint, and then once more. In both cases what the puller knows is left out.
func TestVerifiedEpochs(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		const keys, known = 30, 1024
		c.open()
		source.fill("k", 0, keys, 0)
		c.converge()
		c.net.Partition([]string{"n1"})
		source.close()
		onDisk(t, source.disk, func(db *leveldb.DB) {
			for range known - 2 {
				r := openPlain(t, db, fmt.Sprint("boot ", source.boot))
				require.NoError(t, r.Put([]byte("key"), nil, nil))
				require.NoError(t, r.Close())
			}
		})
		was := n.disk.Copy()
		for _, sent := range []int{1, 1} {
			source.open()
			source.put("key", "")
			n.replaceDisk(was.Copy())
			n.open()
			c.net.Heal()
			require.NoError(t, n.sync())
			require.EqualValues(t, sent, n.carried(source))
			require.True(t, n.state().equal(source.state()))
			c.net.Partition([]string{"n1"})
			source.close()
		}
	})
}

// TestVerifiedBeforeSyncNow restores a source, which makes as many new
// changes as it has lost. A checkpoint that is not verified yet must not satisfy
// SyncNow: no page is sent while it is called.
func TestVerifiedBeforeSyncNow(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		source.fill("k", 0, 20, 0)
		was := source.disk.Copy()
		source.fill("lost", 0, 10, 0)
		c.converge()
		time.Sleep(time.Second)
		c.net.Partition([]string{"n1"})
		source.replaceDisk(was)
		source.ldb = opt.Options{DisableBlockCache: true}
		source.open()
		source.fill("new", 0, 10, 0)
		require.NoError(t, source.db.CompactRange(util.Range{}))
		_, _ = source.get("k00000") // opens the table
		blocked := make(chan struct{})
		source.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			if op == simtest.OpRead {
				<-blocked
			}
			return nil
		})
		c.net.Heal()
		synced := make(chan error, 1)
		go func() { synced <- n.sync() }()
		time.Sleep(5 * time.Second)
		returned := len(synced) > 0
		close(blocked)
		require.False(t, returned, "SyncNow returned, and no page had been sent")
		require.NoError(t, <-synced)
		_, has := n.get("new00009")
		require.True(t, has)
		c.converge()
	})
}

// TestVerifiedPowerCut has a source lose power, and with it some of its log, and die before
// it writes anything. The sequences that were lost are given out again, in another epoch:
// who followed the log takes none of them for one that it has.
func TestVerifiedPowerCut(t *testing.T) {
	t.Parallel()
	for name, loss := range map[string]func(rng *rand.Rand) simtest.Loss{
		"dropped": func(*rand.Rand) simtest.Loss { return simtest.Drop },
		"torn":    simtest.Tear,
		"kept":    func(*rand.Rand) simtest.Loss { return func(unsynced int) int { return unsynced } },
	} {
		t.Run(name, func(t *testing.T) {
			inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
				c.open()
				source.fill("k", 0, 30, 0)
				c.converge()
				time.Sleep(time.Second)
				c.net.Partition([]string{"n1"})
				source.die(func() *simtest.Disk { return source.disk.PowerCut(loss(c.rng)) })
				source.boot = c.newBoot()
				for range 3 {
					source.open()
					time.Sleep(time.Second)
					require.EqualValues(t, 1, source.r.Status().Floor)
					source.kill()
				}
				source.open()
				source.fill("new", 0, 40, 0)
				c.net.Heal()
				require.NoError(t, n.sync())
				for i := range 40 {
					_, found := n.get(fmt.Sprintf("new%05d", i))
					require.True(t, found, i)
				}
				require.NoError(t, source.sync())
				require.True(t, n.state().equal(source.state()))
				source.kill()
				c.converge()
			})
		})
	}
}

// TestVerifiedIdle has a source lose power, be pulled in full, and then
// be opened and closed without a change: its checkpoints stay what they are.
func TestVerifiedIdle(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		source.fill("k", 0, 50, 0)
		c.converge()
		source.powerCut()
		source.open()
		c.converge()
		before := n.carried(source)
		for range 4 {
			source.close()
			source.open()
			c.converge()
			time.Sleep(time.Second)
		}
		require.Equal(t, before, n.carried(source), "records were sent again")
	})
}

// TestVerifiedRecovered opens a database that has lost log records and
// the clock's ceiling, but not the index rows that were written with them: their
// sequences and clocks are not given out again.
func TestVerifiedRecovered(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		onDisk(t, simtest.NewDisk(), func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			for i := range 20 {
				require.NoError(t, r.Put(fmt.Append(nil, i), nil, nil))
			}
			require.NoError(t, r.Close())
			require.NoError(t, replicator.LoseLog(db, 10))
			r, err := replicator.Open(db, &replicator.Options{Recovered: true})
			require.NoError(t, err)
			status := r.Status()
			require.Greater(t, status.Head, uint64(19))
			require.Greater(t, status.Clock, uint64(19))
			require.Greater(t, status.Floor, uint64(20)) // the log begins anew behind what was there
			require.LessOrEqual(t, status.Floor, status.Head+1)
			for i := range 20 {
				require.NoError(t, r.Put(fmt.Append(nil, "new", i), nil, nil))
			}
			require.NoError(t, replicator.CheckConsistent(r))
			require.NoError(t, r.Close())
		})
	})
}

// TestVerifiedUnpublished has a commit take its time after leveldb has shown it to
// readers: goleveldb does so if a batch is larger than its write buffer. A peer is given
// what came before it, and the record once it is published.
func TestVerifiedUnpublished(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		c.open()
		source.fill("k", 0, 100, 10)
		c.converge()
		c.net.Partition([]string{"n1"})
		time.Sleep(time.Minute) // the sessions end, so nothing of theirs waits for a commit
		for i := range 5 {
			source.put(fmt.Sprint("more", i), "")
		}
		goOn, over := source.holdCommit("large", func() error { return source.r.Put([]byte("large"), largeValue, nil) })
		defer goOn()
		before := n.carried(source)
		require.EqualValues(t, 105, source.r.Status().Head, "the record is visible, and its commit is not over")
		c.net.Heal()
		time.Sleep(time.Minute)
		require.EqualValues(t, 5, n.carried(source)-before)
		_, has := n.get("large")
		require.False(t, has)
		goOn()
		require.NoError(t, <-over)
		c.converge()
		require.EqualValues(t, 6, n.carried(source)-before)
	})
}

// TestVerifiedSeen restores a source to a moment that the checkpoint is
// at, but before the greatest head at which a page was read: the keys that had
// moved away in between are back where they were passed over.
func TestVerifiedSeen(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		var was *simtest.Disk
		// The copy is made when the source has all keys, but none has moved.
		source.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			if op == simtest.OpWrite && source.r != nil && source.r.Status().Head == 10+4*pageSize-100 && was == nil {
				was = source.disk.Copy()
			}
			return nil
		})
		synced, moved := halfway(c)
		source.disk.SetFault(nil)
		require.NotNil(t, was)
		cursor := n.cursor(source)
		require.Less(t, cursor.Checkpoint, cursor.Seen)
		require.False(t, cursor.Log)
		before := n.carried(source)
		c.net.Partition([]string{"n1"})
		<-synced
		source.replaceDisk(was.Copy())
		source.open()
		require.Equal(t, cursor.Checkpoint, source.r.Status().Head)
		source.fill("other", 0, 2*moved, 0)
		c.net.Thaw("n0", "n1")
		c.net.Heal()
		require.NoError(t, n.sync())
		require.True(t, n.state().equal(source.state()))
		require.GreaterOrEqual(t, n.carried(source)-before, int64(len(source.index())-10), "less what is known to be here")
		c.converge()
	})
}

// TestVerifiedWhileSwept pulls in full from a source that opened
// discontinuously and is yet to remove its old log records.
func TestVerifiedWhileSwept(t *testing.T) {
	t.Parallel()
	inPair(t, 8, func(t *testing.T, c *cluster, source, n *node) {
		source.open()
		var pulls atomic.Int64
		var release func()
		n.open(tapped(func(kind byte) {
			if kind == wirePull && pulls.Add(1) == 2000 && release != nil {
				release() // or time would never pass
			}
		}))
		source.fill("k", 0, 30, 0)
		require.NoError(t, n.sync())
		time.Sleep(time.Second)
		c.net.Partition([]string{"n1"})
		source.close()
		source.ldb.WriteBuffer = roomy // time has to pass while a write is held up
		hold := make(chan struct{})
		var free atomic.Bool
		source.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			if op == simtest.OpWrite && source.db != nil && !free.Load() {
				if has, err := source.db.Has([]byte(reservedPrefix+"mclean"), nil); err == nil && !has {
					<-hold
				}
			}
			return nil
		})
		release = sync.OnceFunc(func() { free.Store(true); close(hold) })
		defer release()
		source.open(func(o *replicator.Options) { o.Recovered = true })
		time.Sleep(time.Second)
		pulls.Store(0)
		require.NotZero(t, source.r.Status().LogRecords)
		c.net.Heal()
		time.Sleep(3 * time.Second)
		require.Less(t, pulls.Load(), int64(50))
		require.NotZero(t, source.r.Status().LogRecords)
		release()
	})
}
