package replicator_test

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

func TestAdoptionReachesAnEmptyPeer(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		values := numbered("key", 3000, "value")
		maps.Copy(values, map[string]string{
			"": "empty key", "empty value": "", "\xff": "below", "\xff\xff": "above the reserved range",
			"large": incompressible(c.rng, 200<<10), strings.Repeat("k", replicator.MaxKeySize): "long key",
		})
		fillDisk(t, c.nodes[0].disk, values)
		c.open()
		c.settleDown()
		for _, n := range c.nodes {
			require.Equal(t, values, n.state().values)
			require.Len(t, n.index(), len(values))
		}
		require.EqualValues(t, len(values), c.nodes[0].r.Status().LogRecords) // the other one has no log of its first sync
		require.EqualValues(t, len(values)+1, c.nodes[0].r.Status().Head, "the last is the mark of the end")
		require.Equal(t, replicator.AdoptionStatus{Done: true, Adopted: uint64(len(values))}, c.nodes[0].r.Status().Adoption)
		require.Equal(t, replicator.AdoptionStatus{Done: true}, c.nodes[1].r.Status().Adoption)
		for key, version := range c.nodes[1].state().versions {
			require.Equal(t, replicator.Stamp{Origin: adoptedOrigin(values[key])}, version.Stamp, "clock 0 and a hash of the value")
		}
	})
}

func TestAdoptionOfTheSameCopySendsNoValues(t *testing.T) {
	t.Parallel()
	for name, meet := range map[string]func(c *cluster){
		"met while adopting": func(c *cluster) { c.open() },
		"met afterwards": func(c *cluster) {
			c.net.Partition([]string{"n0"}, []string{"n1"})
			c.open()
			for _, n := range c.nodes {
				until(c.t, "adoption ends", n.adopted)
			}
			c.net.Heal()
		},
		"one adopted long ago": func(c *cluster) {
			c.nodes[0].open()
			until(c.t, "adoption ends", c.nodes[0].adopted)
			c.nodes[1].open()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(t *testing.T, c *cluster) {
				c.mesh()
				const keys = 100
				values := map[string]string{}
				for i := range keys {
					// Some would be sent along with their records.
					values[fmt.Sprint("key", i)] = incompressible(c.rng, 900+i%2*20_000)
				}
				fillDisk(t, c.nodes[0].disk, values)
				c.nodes[1].disk = c.nodes[0].disk.Copy()
				meet(c)
				c.settleDown()
				require.Equal(t, values, c.nodes[1].state().values)
				sent := c.net.Bytes("n0", "n1") + c.net.Bytes("n1", "n0")
				require.Less(t, sent, int64(2*keys*50+4000), "for %d values of 900 and more bytes", keys)
			})
		})
	}
}

func TestAdoptionPicksOneOfDifferentOldValues(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.link(1, 2)
		want := map[string]string{}
		var old [3]map[string]string
		for i := range old {
			old[i] = numbered("key", 60, fmt.Sprint("value ", i))
			for key, value := range old[i] {
				if i == 2 { // some of them too large to be sent along
					value += strings.Repeat("x", len(key)*c.rng.IntN(2)*1000)
					old[i][key] = value
				}
				if adoptedOrigin(value) > adoptedOrigin(want[key]) || want[key] == "" {
					want[key] = value
				}
			}
			fillDisk(t, c.nodes[i].disk, old[i])
		}
		c.open()
		c.settleDown()
		require.Equal(t, want, c.nodes[0].state().values)
	})
}

func TestAdoptionLosesToRealWrites(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		old := numbered("key", 50, "old")
		fillDisk(t, c.nodes[0].disk, old)
		c.open()
		until(t, "adoption ends", c.nodes[0].adopted)
		// The first change of a new database has clock 0, as adopted keys have.
		c.nodes[1].put("key00007", "new")
		version, err := c.nodes[1].r.Version([]byte("key00007"))
		require.NoError(t, err)
		require.Zero(t, version.Clock)
		c.nodes[1].delete("key00008")
		require.NoError(t, c.nodes[0].r.AddPeer("n1", nil))
		c.settleDown()
		old["key00007"] = "new"
		delete(old, "key00008")
		require.Equal(t, old, c.nodes[0].state().values)
	})
}

// TestAdoptionComparesKeysNotAdoptedYet lets entries of a peer arrive while
// adoption is far from their keys.
func TestAdoptionComparesKeysNotAdoptedYet(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		n0, n1 := c.nodes[0], c.nodes[1]
		here, there := numbered("a", 6000, "before"), numbered("z", 40, "there")
		want, lost := maps.Clone(here), map[string]bool{}
		for key := range there {
			here[key] = "here, " + key
			want[key] = there[key]
			if adoptedOrigin(here[key]) > adoptedOrigin(there[key]) {
				want[key], lost[key] = here[key], true
			}
		}
		same := incompressible(c.rng, 500<<10)
		for _, m := range []map[string]string{here, there, want} {
			m["z same"] = same
		}
		here["z real"], want["z real"] = "old", "real"
		here["z deleted"] = "old"
		fillDisk(t, n0.disk, here)
		fillDisk(t, n1.disk, there)
		n1.open()
		until(t, "adoption ends", n1.adopted)
		n1.put("z real", "real")
		n1.delete("z deleted")

		n0.openSlowly()
		require.NoError(t, n0.sync())
		require.False(t, n0.adopted(), "the test wants it to be under way")
		require.Equal(t, want, n0.state().values)
		require.NotEmpty(t, lost)
		for key := range lost { // whoever has an entry that lost has to get what it lost to
			version, err := n0.r.Version([]byte(key))
			require.NoError(t, err)
			require.Equal(t, adoptedOrigin(here[key]), version.Origin)
		}
		require.Less(t, c.net.Bytes("n1", "n0"), int64(len(same)/2), "a value that is here is not sent")

		n0.disk.SetFault(nil)
		until(t, "adoption ends", n0.adopted)
		c.settleDown()
		require.Equal(t, want, n1.state().values)
	})
}

// TestAdoptionYieldsToWrites has an entry lose to a value that is not adopted yet, and
// the key change before that is committed: the change stays.
func TestAdoptionYieldsToWrites(t *testing.T) {
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		values := numbered("a", 6000, "before")
		values["z"] = "here"
		fillDisk(t, n.disk, values)
		n.openSlowly()
		weaker := "there"
		for adoptedOrigin(weaker) > adoptedOrigin("here") {
			weaker += "."
		}
		commit, err := replicator.Examine(n.r, replicator.Entry{
			Key: "z", Value: weaker, Version: replicator.Version{Stamp: replicator.Stamp{Origin: adoptedOrigin(weaker)}}})
		require.NoError(t, err)
		n.put("z", "later")
		version, err := n.r.Version([]byte("z"))
		require.NoError(t, err)
		won, err := commit()
		require.NoError(t, err)
		require.Zero(t, won)
		require.False(t, n.adopted(), "the test wants it to be under way")
		after, err := n.r.Version([]byte("z"))
		require.NoError(t, err)
		require.Equal(t, version, after)
		n.disk.SetFault(nil)
	})
}

// TestAdoptionRacesWithWrites changes keys, some of them before they are adopted.
func TestAdoptionRacesWithWrites(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		const keys, writers = 4000, 4
		want := numbered("key", keys, "old")
		fillDisk(t, c.nodes[0].disk, want)
		c.open()
		var wg sync.WaitGroup
		for w := range writers { // each has keys of its own
			wg.Go(func() {
				for i := w; i < keys; i += 2 * writers {
					key := fmt.Appendf(nil, "key%05d", keys-1-i)
					if i%3 == 0 {
						assert.NoError(t, c.nodes[0].r.Delete(key, nil))
					} else {
						assert.NoError(t, c.nodes[0].r.Put(key, []byte("new"), nil))
					}
				}
			})
		}
		wg.Wait()
		for w := range writers {
			for i := w; i < keys; i += 2 * writers {
				key := fmt.Sprintf("key%05d", keys-1-i)
				want[key] = "new"
				if i%3 == 0 {
					delete(want, key)
				}
			}
		}
		c.settleDown()
		require.Equal(t, want, c.nodes[0].state().values)
		require.Len(t, c.nodes[1].state().versions, keys)
	})
}

func TestAdoptionSkipsWhatIsTooLarge(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(1, 0)
		values := map[string]string{"a": "small", "limit": strings.Repeat("x", 1000), "z": "small"}
		all := maps.Clone(values)
		all["large"] = strings.Repeat("x", 1001)
		all[strings.Repeat("k", replicator.MaxKeySize+1)] = "long key"
		fillDisk(t, c.nodes[0].disk, all)
		for _, n := range c.nodes {
			n.open(func(o *replicator.Options) { o.MaxValueSize = 1000 })
		}
		until(t, "adoption ends", c.nodes[0].adopted)
		require.Equal(t, replicator.AdoptionStatus{Done: true, Adopted: 3, Skipped: 2}, c.nodes[0].r.Status().Adoption)
		require.NoError(t, c.nodes[1].sync())
		require.Equal(t, values, c.nodes[1].state().values)
		require.Equal(t, all, c.nodes[0].state().values, "what is skipped stays")
	})
}

func TestSkipAdoption(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		n0, n1 := c.nodes[0], c.nodes[1]
		fillDisk(t, n0.disk, map[string]string{"left alone": "old", "replaced": "old", "rewritten": "old", "deleted": "old"})
		n1.open()
		n1.put("replaced", "new")
		n1.delete("deleted")
		n0.open(func(o *replicator.Options) { o.SkipAdoption = true })
		n0.put("rewritten", "new")
		require.NoError(t, n0.sync())
		require.NoError(t, n1.sync())
		require.Equal(t, map[string]string{"left alone": "old", "replaced": "new", "rewritten": "new"}, n0.state().values)
		require.Equal(t, map[string]string{"replaced": "new", "rewritten": "new"}, n1.state().values)
		require.Zero(t, n0.r.Status().Adoption.Adopted)
		require.False(t, n0.adopted())

		n0.close()
		n0.open() // without the option, what is left is taken in
		c.settleDown()
		require.Equal(t, map[string]string{"left alone": "old", "replaced": "new", "rewritten": "new"}, n1.state().values)
		require.Equal(t, replicator.AdoptionStatus{Done: true, Adopted: 1}, n0.r.Status().Adoption)
	})
}

func TestAdoptionResumes(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]func(n *node){"closed": (*node).close, "killed": (*node).kill} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 1, func(t *testing.T, c *cluster) {
				n := c.nodes[0]
				const keys = 10_000
				fillDisk(t, n.disk, numbered("key", keys, "value"))
				adopted := uint64(0)
				for range 3 {
					n.openSlowly()
					require.GreaterOrEqual(t, n.r.Status().Adoption.Adopted, adopted, "it goes on where it was")
					until(t, "adoption goes on", func() bool { return n.r.Status().Adoption.Adopted > adopted })
					adopted = n.r.Status().Adoption.Adopted
					require.Less(t, adopted, uint64(keys/2))
					n.disk.SetFault(nil)
					restart(n)
				}
				// A key that is put behind its back is passed over.
				fillDisk(t, n.disk, map[string]string{"a": "late"})
				n.open()
				until(t, "adoption ends", n.adopted)
				require.Equal(t, replicator.AdoptionStatus{Done: true, Adopted: keys}, n.r.Status().Adoption)
				require.EqualValues(t, keys, n.r.Status().LogRecords, "each key once")
				_, err := n.r.Version([]byte("a"))
				require.True(t, err == leveldb.ErrNotFound, err)
			})
		})
	}
}

// TestAdoptionStartsOver after a power cut, unless it was done: its end is durable.
func TestAdoptionStartsOver(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(n *node){
		"after a power cut": (*node).powerCut,
		"after a power cut that lost nothing": func(n *node) {
			n.kill()
			n.boot = n.c.newBoot()
		},
	} {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, when it was done: %v", name, done), func(t *testing.T) {
				inCluster(t, 1, func(t *testing.T, c *cluster) { testAdoptionStartsOver(t, c, cut, done) })
			})
		}
	}
}

func testAdoptionStartsOver(t *testing.T, c *cluster, cut func(n *node), done bool) {
	n := c.nodes[0]
	const keys = 5000
	fillDisk(t, n.disk, numbered("key", keys, "value"))
	n.openSlowly()
	until(t, "adoption begins", func() bool { return n.r.Status().Adoption.Adopted > 1000 && (!done || n.adopted()) })
	require.Equal(t, done, n.adopted())
	n.disk.SetFault(nil)
	cut(n)
	fillDisk(t, n.disk, map[string]string{"a": "late"})
	n.open()
	until(t, "adoption ends", n.adopted)
	if done {
		require.Len(t, n.state().versions, keys)
		return
	}
	require.NoError(t, replicator.CheckConsistent(n.r))
	require.Len(t, n.state().versions, keys+1)
	version, err := n.r.Version([]byte("a"))
	require.NoError(t, err)
	require.Equal(t, adoptedOrigin("late"), version.Origin)
}

// TestAdoptionIsForOldKeysOnly writes around the Replicator: that is not
// replicated, also not after the next opening.
func TestAdoptionIsForOldKeysOnly(t *testing.T) {
	for name, old := range map[string]map[string]string{"empty at first": {}, "with old keys": {"old": "value"}} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 1, func(t *testing.T, c *cluster) {
				n := c.nodes[0]
				fillDisk(t, n.disk, old)
				n.open()
				until(t, "adoption ends", n.adopted)
				n.put("key", "value")
				require.NoError(t, n.db.Put([]byte("around"), []byte("value"), nil))
				for range 2 {
					n.close()
					n.open()
					until(t, "adoption ends", n.adopted)
					require.Equal(t, len(old)+1, len(n.state().versions), "keys with a version")
					require.EqualValues(t, len(old), n.r.Status().Adoption.Adopted)
				}
			})
		})
	}
}

// TestFirstOpeningIsKilled kills the process at every operation on the disk while
// a database is wrapped for the first time.
func TestFirstOpeningIsKilled(t *testing.T) {
	t.Parallel()
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		values := numbered("key", 100, "value")
		fillDisk(t, n.disk, values)
		db, err := leveldb.Open(n.disk, nil)
		require.NoError(t, err)
		var killed []*simtest.Disk // under the database's write lock
		n.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			if op == simtest.OpWrite || op == simtest.OpSync {
				killed = append(killed, n.disk.Copy())
			}
			return nil
		})
		r, err := replicator.Open(db, n.options())
		require.NoError(t, err)
		until(t, "adoption ends", func() bool { return r.Status().Adoption.Done })
		n.disk.SetFault(nil)
		require.NoError(t, r.Close())
		require.NoError(t, db.Close())
		require.Greater(t, len(killed), 3)
		for i, disk := range killed {
			n.disk = disk
			db, err := leveldb.Open(n.disk, nil)
			require.NoError(t, err)
			r, err := replicator.Open(db, n.options())
			if err != nil {
				db.Close()
			}
			require.NoError(t, err, "killed before operation %d of %d", i+1, len(killed))
			n.db, n.r = db, r
			until(t, "adoption ends", n.adopted)
			require.Len(t, n.state().versions, len(values))
			n.close()
		}
	})
}
