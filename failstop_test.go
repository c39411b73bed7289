package replicator_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// TestFailStop has one write to the disk fail, of each kind.
func TestFailStop(t *testing.T) {
	t.Parallel()
	cause := fmt.Errorf("the disk is gone: %w", syscall.EIO)
	for name, failing := range map[string]struct {
		op   simtest.Op
		work func(a, b *node) error // what meets the fault, at a
	}{
		"put":         {simtest.OpWrite, func(a, b *node) error { return a.r.Put([]byte("failing"), nil, nil) }},
		"put, synced": {simtest.OpSync, func(a, b *node) error { return a.r.Put([]byte("failing"), nil, withSync) }},
		"delete":      {simtest.OpWrite, func(a, b *node) error { return a.r.Delete([]byte("old"), nil) }},
		"batch": {simtest.OpSync, func(a, b *node) error {
			var batch leveldb.Batch
			batch.Put([]byte("failing"), nil)
			return a.r.Write(&batch, withSync)
		}},
		"merge":           {simtest.OpWrite, func(a, b *node) error { b.put("failing", ""); return nil }},
		"acknowledgement": {simtest.OpSync, func(a, b *node) error { b.put("merged", ""); return nil }},
		"reservation": {simtest.OpSync, func(a, b *node) error {
			commit, err := replicator.Examine(a.r, replicator.Entry{Key: "failing", Version: replicator.Version{
				Stamp: replicator.Stamp{Clock: 1 << 30, Origin: 1 << 63}}})
			require.NoError(a.c.t, err)
			_, err = commit()
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inSeeded(t, 13, 2, func(t *testing.T, c *cluster) {
				c.link(0, 1)
				c.durableEvery = 500 * time.Millisecond
				c.open()
				a, b := c.nodes[0], c.nodes[1]
				a.put("old", "value")
				b.put("older", "value")
				c.converge()
				time.Sleep(10 * time.Second)
				a.disk.SetFault(simtest.Failure{Err: cause, Ops: failing.op, Files: storage.TypeJournal}.Fault())
				direct := failing.work(a, b)
				time.Sleep(time.Second)
				a.disk.SetFault(nil) // it works again, but nobody knows what it has
				if direct != nil {
					require.ErrorIs(t, direct, replicator.ErrFailed)
					require.ErrorIs(t, direct, syscall.EIO)
				}
				checkFailed(t, a, b)
				writes, syncs := a.disk.Writes(), a.disk.Syncs()
				b.put("for a", "never to be merged")
				time.Sleep(5 * time.Minute)
				checkFailed(t, a, b)
				err := a.r.Close()
				require.ErrorIs(t, err, replicator.ErrFailed)
				require.ErrorIs(t, err, syscall.EIO)
				require.Equal(t, writes, a.disk.Writes(), "there was a write after a failed one")
				require.Equal(t, syncs, a.disk.Syncs())
				require.NoError(t, a.db.Close())
				a.r, a.db = nil, nil

				require.NoError(t, a.openDB())
				require.False(t, isClean(t, a.db))
				require.NoError(t, a.db.Close())
				a.db = nil
				a.boot = c.newBoot()
				a.open()
				require.Empty(t, a.r.Status().Failed)
				a.put("again", "writable")
				c.converge()
				_, has := a.get("for a")
				require.True(t, has)
			})
		})
	}
}

// checkFailed checks all that a replica does, and does not, after a failed write.
func checkFailed(t *testing.T, a, b *node) {
	var batch leveldb.Batch
	batch.Put([]byte("late"), nil)
	for range 3 {
		for _, err := range []error{
			a.r.Put([]byte("late"), nil, nil), a.r.Put([]byte("late"), nil, withSync),
			a.r.Delete([]byte("old"), nil), a.r.Write(&batch, nil), a.sync(),
		} {
			require.ErrorIs(t, err, replicator.ErrFailed)
			require.ErrorIs(t, err, syscall.EIO)
			require.ErrorContains(t, err, "the disk is gone")
		}
	}
	require.Contains(t, a.r.Status().Failed, "the disk is gone")
	require.Zero(t, a.c.net.Connections(), "a session goes on")
	for _, p := range b.r.Status().Peers {
		require.Contains(t, []replicator.State{replicator.StateConnecting, replicator.StateWaiting}, p.State)
	}
	value, has := a.get("old")
	require.True(t, has)
	require.Equal(t, "value", value)
	_, has = a.get("late")
	require.False(t, has)
	_, err := a.r.Has([]byte("older"), nil)
	require.NoError(t, err)
	_, err = a.r.Version([]byte("old"))
	require.NoError(t, err)
	_, err = a.r.Digest()
	require.NoError(t, err)
	snap, err := a.r.GetSnapshot()
	require.NoError(t, err)
	snap.Release()
	found := readRows(t, a.db)
	require.NoError(t, found.checkData())
	require.NoError(t, found.checkLog())
	require.Len(t, a.state().values, len(found.data))
}

// TestFailStopAtClose has each operation of the disk fail while a
// Replicator is closed, once or for good. If the database counts as cleanly
// closed even so, nothing is missing after a power cut.
func TestFailStopAtClose(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		const changes = 40
		for fails := int64(1); ; fails++ {
			disk := simtest.NewDisk()
			db, err := leveldb.Open(disk, &opt.Options{WriteBuffer: 1 << 20, DisableLargeBatchTransaction: true})
			require.NoError(t, err)
			r := openPlain(t, db, "boot")
			for i := range changes {
				require.NoError(t, r.Put(fmt.Append(nil, i), make([]byte, 100), nil))
			}
			disk.SetFault(simtest.Failure{Ops: survivable, From: fails, Times: 1}.Fault())
			err = r.Close()
			over := disk.Failed() == 0
			disk.SetFault(nil)
			require.NoError(t, r.Close(), "a second time")
			_ = db.Close()
			onDisk(t, disk.PowerCut(simtest.Drop), func(db *leveldb.DB) {
				clean := isClean(t, db)
				if err != nil {
					require.ErrorIs(t, err, syscall.EIO)
				} else {
					require.True(t, clean, "closed without an error, at operation %d", fails)
				}
				found := readRows(t, db)
				require.NoError(t, found.checkData())
				if clean {
					require.NoError(t, found.checkLog())
					require.Len(t, found.log, changes)
				}
				r := openPlain(t, db, "another")
				defer r.Close()
				if clean {
					require.EqualValues(t, changes, r.Status().Clock)
				} else {
					require.GreaterOrEqual(t, r.Status().Clock, uint64(1<<16), "it goes on at the ceiling")
				}
			})
			if over {
				t.Logf("%d operations", fails-1)
				require.NoError(t, err)
				return
			}
		}
	})
}
