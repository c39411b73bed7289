package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// lineage is a disk, with what is known of the changes that were made on it.
type lineage struct {
	disk  *simtest.Disk
	boot  int
	clock uint64 // greatest clock that was visible on it
	head  uint64 // of its log, if nothing of that can be lost
}

type unique struct {
	t    *testing.T
	boot int

	mu     sync.Mutex // guards what follows
	rng    *rand.Rand
	made   map[replicator.Stamp]string // by stamp: the key, which no other change has
	epochs map[replicator.Origin]bool
}

func (u *unique) draw(n int) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.rng.IntN(n)
}

// session opens a database, makes some changes and merges some, and returns the
// ways that it can end: closed, killed at the end or in the middle, and with a
// power cut there.
func (u *unique) session(l lineage) []lineage {
	var mu sync.Mutex // guards what follows
	visible, head := l.clock, l.head
	var middle *lineage
	at := int64(1 + u.draw(60))
	l.disk.SetFault(func(_ simtest.Op, _ storage.FileDesc, n int64) error {
		if n == at {
			mu.Lock()
			middle = &lineage{disk: l.disk.Copy(), boot: l.boot, clock: visible, head: head}
			mu.Unlock()
		}
		return nil
	})
	see := func(clock uint64) {
		mu.Lock()
		visible = max(visible, clock)
		mu.Unlock()
	}
	db, err := leveldb.Open(l.disk, &opt.Options{WriteBuffer: 4 << 10, DisableLargeBatchTransaction: true})
	require.NoError(u.t, err)
	defer db.Close()
	r := openPlain(u.t, db, fmt.Sprint("boot ", l.boot))
	defer r.Close()
	status := r.Status()
	require.GreaterOrEqual(u.t, status.Head, l.head, "sequences are going to be used twice")
	require.GreaterOrEqual(u.t, status.Head+1, status.Floor, "sequences are going to be used that nobody is served")
	epoch := status.Epoch
	u.mu.Lock()
	require.False(u.t, u.epochs[epoch], "the origin %v is drawn twice", epoch)
	u.epochs[epoch] = true
	u.mu.Unlock()
	for range u.draw(12) {
		switch u.draw(6) {
		case 0: // the clock leaps, to the end of what is reserved and beyond
			clock := r.Status().Clock + uint64(u.draw(3))<<19
			if u.draw(2) == 0 {
				clock = clock&^(1<<20-1) + 1<<20 - 2
			}
			commit, err := replicator.Examine(r, replicator.Entry{Key: "merged", Version: replicator.Version{
				Stamp: replicator.Stamp{Clock: clock, Origin: 1<<63 + 1}}})
			require.NoError(u.t, err)
			n, err := commit()
			require.NoError(u.t, err)
			if n > 0 {
				see(clock)
			}
		case 1:
			u.batch(r, see, l.clock)
		default:
			key := u.key()
			require.NoError(u.t, r.Put([]byte(key), nil, &opt.WriteOptions{Sync: u.draw(3) == 0}))
			u.note(r, key, see, l.clock)
		}
	}
	killed := lineage{disk: l.disk.Copy(), boot: l.boot, clock: visible, head: r.Status().Head}
	require.NoError(u.t, r.Close())
	require.NoError(u.t, db.Close())
	l.disk.SetFault(nil)
	ends := []lineage{{disk: l.disk, boot: l.boot, clock: visible, head: r.Status().Head}, killed, u.cut(killed)}
	if middle != nil {
		ends = append(ends, *middle, u.cut(*middle))
	}
	return ends
}

func (u *unique) cut(l lineage) lineage {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.boot++
	return lineage{disk: l.disk.PowerCut(simtest.Tear(u.rng)), boot: 1000 + u.boot, clock: l.clock}
}

func (u *unique) key() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return fmt.Sprintf("change %d %d", len(u.made), u.rng.Uint64())
}

func (u *unique) batch(r *replicator.Replicator, see func(uint64), above uint64) {
	var b leveldb.Batch
	var keys []string
	for range 1 + u.draw(20) {
		keys = append(keys, u.key())
		b.Delete([]byte(keys[len(keys)-1]))
	}
	require.NoError(u.t, r.Write(&b, nil))
	for _, key := range keys {
		u.note(r, key, see, above)
	}
}

// note remembers the stamp of the change to a key.
func (u *unique) note(r *replicator.Replicator, key string, see func(uint64), above uint64) {
	v, err := r.Version([]byte(key))
	require.NoError(u.t, err)
	require.Equal(u.t, r.Status().Epoch, v.Origin)
	require.True(u.t, above == 0 || v.Clock > above, "a new change has clock %d, one up to %d was visible before", v.Clock, above)
	see(v.Clock)
	u.mu.Lock()
	defer u.mu.Unlock()
	require.Empty(u.t, u.made[v.Stamp], "%s has the stamp of another change, %v", key, v.Stamp)
	u.made[v.Stamp] = key
}

// TestUnique opens, closes, kills, cuts, restores and clones databases
// at random, and collects the stamps of all changes that are made. After
// anything but a restore, clocks also go on above all that was ever visible.
func TestUnique(t *testing.T) {
	t.Parallel()
	eachSeed(t, budget(2, 5, 50), func(t *testing.T, seed int64) {
		inBubble(t, func(t *testing.T) {
			u := &unique{t: t, rng: rand.New(rand.NewPCG(uint64(seed), 3)), made: map[replicator.Stamp]string{}, epochs: map[replicator.Origin]bool{}}
			current := lineage{disk: simtest.NewDisk(), boot: 1}
			onDisk(t, current.disk, func(*leveldb.DB) {}) // goleveldb's own beginnings are not atomic
			kept := []lineage{current}
			for range 50 {
				images := u.session(current)
				kept = append(kept, images...)
				switch u.rng.IntN(4) {
				case 0:
					current = kept[u.rng.IntN(len(kept))] // a backup
				case 1:
					current = images[u.rng.IntN(len(images))]
				default:
					current = images[0]
				}
				current.disk = current.disk.Copy()
			}
			// All copies that were ever made wake up at once.
			var wg sync.WaitGroup
			for i := range kept {
				kept[i].disk = kept[i].disk.Copy()
				wg.Go(func() { u.session(kept[i]) })
			}
			wg.Wait()
			t.Logf("%d changes in %d epochs", len(u.made), len(u.epochs))
			require.Greater(t, len(u.made), 1000)
		})
	})
}

// TestUniqueAcrossCeiling makes changes across the end of what is
// reserved, and looks at every operation of the disk whether a power cut there
// would let a clock return.
func TestUniqueAcrossCeiling(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		disk := simtest.NewDisk()
		type image struct {
			disk  *simtest.Disk
			clock uint64 // of the next change: all below may have been seen
		}
		var images []image
		onDisk(t, disk, func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			defer r.Close()
			disk.SetFault(func(simtest.Op, storage.FileDesc, int64) error {
				images = append(images, image{disk.Copy(), r.Status().Clock})
				return nil
			})
			for i := range uint64(4) {
				commit, err := replicator.Examine(r, replicator.Entry{Key: "merged", Version: replicator.Version{
					Stamp: replicator.Stamp{Clock: r.Status().Clock + 1<<20 - 3 - i, Origin: 1 << 63}}})
				require.NoError(t, err)
				_, err = commit()
				require.NoError(t, err)
				for range 5 {
					require.NoError(t, r.Put([]byte("local"), nil, nil))
					images = append(images, image{disk.Copy(), r.Status().Clock})
				}
			}
			disk.SetFault(nil)
		})
		for i, im := range images {
			onDisk(t, im.disk.PowerCut(simtest.Drop), func(db *leveldb.DB) {
				r := openPlain(t, db, "another")
				defer r.Close()
				require.GreaterOrEqual(t, r.Status().Clock, im.clock, "image %d", i)
			})
		}
	})
}
