package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestInvariant3Unique opens, closes, kills, cuts, restores and clones databases
// at random, and collects the stamps of all changes that are made. After
// anything but a restore, clocks also go on above all that was ever visible.
func TestInvariant3Unique(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 5; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer letSettle()
				u := &unique{t: t, rng: rand.New(rand.NewPCG(seed, 3)), made: map[replicator.Stamp]string{}, epochs: map[replicator.Origin]bool{}}
				current := lineage{disk: simtest.NewDisk(), boot: 1}
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
}

// TestInvariant3UniqueAcrossCeiling makes changes across the end of what is
// reserved, and looks at every operation of the disk whether a power cut there
// would let a clock return.
func TestInvariant3UniqueAcrossCeiling(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		defer letSettle()
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
