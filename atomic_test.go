package replicator_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// pairs is a load of batches that each write two keys: a private one, which is
// never written again, and a shared one. The stamp of the private key tells what
// the stamp of the shared one was.
type pairs struct {
	mu    sync.Mutex
	acked []acked // in order
}

type acked struct {
	private string
	sync    bool
}

// pair returns what batch number id of an owner writes. A value of "" stands for
// a deletion.
func pair(owner string, id int) (private, shared, value string) {
	private, shared = fmt.Sprintf("%s/%d", owner, id), fmt.Sprint("shared ", id*7%5)
	if id%3 > 0 {
		value = "of " + private + strings.Repeat("x", id*131%1500)
	}
	return private, shared, value
}

func (p *pairs) write(r *replicator.Replicator, owner string, id int) error {
	private, shared, value := pair(owner, id)
	var b leveldb.Batch
	b.Put([]byte(private), []byte(private))
	if value == "" {
		b.Delete([]byte(shared))
	} else {
		b.Put([]byte(shared), []byte(value))
	}
	sync := id%4 == 0
	err := r.Write(&b, &opt.WriteOptions{Sync: sync})
	if err == nil {
		p.mu.Lock()
		p.acked = append(p.acked, acked{private, sync})
		p.mu.Unlock()
	}
	return err
}

// moment is a disk as it was at one moment, and how much was acknowledged then.
type moment struct {
	disk  *simtest.Disk
	acked int
}

// check verifies what is found on a disk after a process died or the power was
// cut, when some batches of owner had been acknowledged.
func (p *pairs) check(found rows, owner string, acknowledged []acked, power bool) error {
	if err := found.checkData(); err != nil {
		return err
	}
	if !power {
		if err := found.checkLog(); err != nil {
			return err
		}
	}
	for _, a := range acknowledged {
		if found.data[a.private] != a.private && (a.sync || !power) {
			return fmt.Errorf("%s was acknowledged, with Sync: %v, and is missing", a.private, a.sync)
		}
	}
	values := map[replicator.Stamp]string{} // of shared keys, by the batches found
	for private, row := range found.index {
		by, number, isPrivate := strings.Cut(private, "/")
		if !isPrivate {
			continue
		}
		var id int
		fmt.Sscan(number, &id)
		_, shared, value := pair(by, id)
		stamp := replicator.Stamp{Clock: row.Clock + 1, Origin: row.Origin}
		values[stamp] = value
		if by == owner && found.index[shared].Stamp.Compare(stamp) < 0 {
			return fmt.Errorf("a part of the batch of %s is here, %q is not: it has %v", private, shared, found.index[shared])
		}
	}
	own := map[replicator.Origin]bool{}
	for private, row := range found.index {
		own[row.Origin] = own[row.Origin] || strings.HasPrefix(private, owner+"/")
	}
	for key, row := range found.index {
		if strings.Contains(key, "/") {
			continue
		}
		value, known := values[row.Stamp]
		if !known && own[row.Origin] {
			return fmt.Errorf("%q at %v is here, the rest of its batch is not", key, row)
		}
		if known && (found.data[key] != value || row.Deleted != (value == "")) {
			return fmt.Errorf("%q at %v has the value %.20q…, not %.20q…", key, row, found.data[key], value)
		}
	}
	return nil
}

// capture adds the present moment. It is called from the disk.
func (p *pairs) capture(disk *simtest.Disk, to *[]moment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*to = append(*to, moment{disk.Copy(), len(p.acked)})
}

// verify opens the disk of a moment, after the process died there or the power
// was cut, and checks it, now and then also as a Replicator finds it.
func (p *pairs) verify(t testing.TB, disk *simtest.Disk, owner string, acknowledged []acked, power, deep bool) {
	onDisk(t, disk, func(db *leveldb.DB) {
		require.NoError(t, p.check(readRows(t, db), owner, acknowledged, power))
		if !deep {
			return
		}
		boot := "boot 1"
		if power {
			boot = "another"
		}
		r := openPlain(t, db, boot)
		defer r.Close()
		synctest.Wait()
		require.NoError(t, replicator.CheckConsistent(r))
		require.EqualValues(t, 1, r.Status().Floor)
		require.NoError(t, p.check(readRows(t, db), owner, acknowledged, true))
		require.NoError(t, r.Close())
	})
}

// TestAtomicAtEveryDiskOperation lets callers write in groups, with
// and without Sync, while a peer's changes to the same keys are merged, and looks
// at what is found if the process dies, or the power is cut, at each of the
// disk's operations.
func TestAtomicAtEveryDiskOperation(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.mesh()
		n, peer := c.nodes[0], c.nodes[1]
		n.boot = 1
		var p, elsewhere pairs
		var moments []moment
		onDisk(t, n.disk, func(*leveldb.DB) {}) // goleveldb's own beginnings are not atomic
		n.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
			p.capture(n.disk, &moments)
			if op == simtest.OpSync {
				time.Sleep(time.Millisecond) // so that groups form
			}
			return nil
		})
		c.open()
		for round := range 30 {
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() { assert.NoError(t, p.write(n.r, "own", 4*round+i)) })
			}
			wg.Go(func() { assert.NoError(t, elsewhere.write(peer.r, "peer", round)) })
			if round%3 == 0 {
				wg.Go(func() { assert.NoError(t, n.sync()) })
			}
			wg.Wait()
			if round%5 == 0 {
				time.Sleep(time.Second)
			}
		}
		n.close()
		p.capture(n.disk, &moments)
		n.disk.SetFault(nil)
		rotated := slices.ContainsFunc(moments, func(m moment) bool {
			fds, err := m.disk.List(storage.TypeTable)
			return err == nil && len(fds) > 0
		})
		require.True(t, rotated, "more data is needed for journals to be rotated")
		t.Logf("%d moments", len(moments))
		for i, m := range moments {
			deep := i%5 == 0 || i == len(moments)-1
			p.verify(t, m.disk.Copy(), "own", p.acked[:m.acked], false, deep)
			p.verify(t, m.disk.PowerCut(simtest.Drop), "own", p.acked[:m.acked], true, deep)
			p.verify(t, m.disk.PowerCut(simtest.Tear(c.rng)), "own", p.acked[:m.acked], true, false)
		}
	})
}

// TestAtomicAfterFaults has each of the disk's operations fail once,
// at an opening, a write, a merge, a compaction or a close: what fails is there
// as a whole or not at all, and what was acknowledged before it is there.
func TestAtomicAfterFaults(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 1))
		for fails := int64(1); ; fails++ {
			var p pairs
			disk := simtest.NewDisk()
			disk.SetFault(simtest.Failure{Ops: survivable, From: fails, Times: 1}.Fault())
			p.writeSome(t, disk)
			over := disk.Failed() == 0
			disk.SetFault(nil)
			for _, power := range []bool{false, true} {
				found := disk.Copy()
				if power {
					found = disk.PowerCut(simtest.Tear(rng))
				}
				p.verify(t, found, "own", p.acked, power, false)
			}
			if over {
				t.Logf("%d operations", fails-1)
				require.Greater(t, fails, int64(60))
				return
			}
		}
	})
}

// survivable are the operations that may fail without a panic of goleveldb.
const survivable = simtest.AnyOp &^ simtest.OpRemove

// writeSome writes and merges until something fails, or all is done.
func (p *pairs) writeSome(t *testing.T, disk *simtest.Disk) {
	db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 4 << 10, DisableLargeBatchTransaction: true})
	if err != nil {
		require.ErrorContains(t, err, syscall.EIO.Error())
		return
	}
	defer db.Close()
	r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{}, "boot 1"))
	if err != nil {
		require.ErrorIs(t, err, syscall.EIO)
		return
	}
	defer r.Close()
	failed := func(err error) bool {
		if err == nil {
			return false
		}
		require.ErrorIs(t, err, replicator.ErrFailed)
		require.ErrorIs(t, err, syscall.EIO)
		return true
	}
	for i := range 24 {
		if failed(p.write(r, "own", i)) {
			return
		}
		if i%4 == 0 {
			_, shared, _ := pair("", i)
			v := replicator.Version{Stamp: replicator.Stamp{Clock: uint64(2*i + 1), Origin: 1<<63 + 1}}
			commit, err := replicator.Examine(r, replicator.Entry{Version: v, Key: shared, Value: "merged"})
			require.NoError(t, err)
			if _, err := commit(); failed(err) {
				return
			}
		}
	}
}
