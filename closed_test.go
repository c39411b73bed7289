package replicator_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	"github.com/syndtr/goleveldb/leveldb/util"
)

// labelled starts what can be told from others' goroutines by lingering.
func labelled(label string, start func()) {
	pprof.Do(context.Background(), pprof.Labels("closing", label), func(context.Context) { start() })
}

// lingering returns the stacks of the labelled goroutines that still run, but
// for goleveldb's.
func lingering(label string) string {
	var all bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&all, 1) // a buffer takes all
	var stacks strings.Builder
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		if strings.Contains(stack, strconv.Quote(label)) && strings.Contains(stack, "level-replicator/replicator.") {
			stacks.WriteString(stack)
		}
	}
	return stacks.String()
}

// checkClosed closes a node's Replicator, and checks that this takes next to no
// time, ends everything, and leaves the handle alone.
func checkClosed(t *testing.T, n *node, label string) {
	began := time.Now()
	require.NoError(t, n.r.Close())
	require.Empty(t, lingering(label), "Close did not wait for all goroutines")
	require.Less(t, time.Since(began), time.Second)
	require.NoError(t, n.r.Close())
	for name, err := range map[string]error{
		"put":     n.r.Put([]byte("late"), nil, nil),
		"delete":  n.r.Delete([]byte("late"), nil),
		"write":   n.r.Write(nil, nil),
		"sync":    n.sync(),
		"add":     n.r.AddPeer("n9", nil),
		"remove":  n.r.RemovePeer("n1"),
		"get":     second(n.r.Get([]byte("late"), nil)),
		"has":     second(n.r.Has([]byte("late"), nil)),
		"version": second(n.r.Version([]byte("late"))),
		"digest":  second(n.r.Digest()),
		"count":   second(n.r.Count(context.Background())),
		"size":    second(n.r.Size()),
		"snap":    second(n.r.GetSnapshot()),
		"iterate": n.r.NewIterator(nil, nil).Error(),
	} {
		require.ErrorIs(t, err, replicator.ErrClosed, name)
		require.ErrorIs(t, err, leveldb.ErrClosed, name)
	}
	n.r.Status()

	// The handle is the caller's, who may wrap it again.
	require.NoError(t, n.db.Put([]byte("raw"), nil, nil))
	require.NoError(t, n.db.Delete([]byte("raw"), nil))
	r := openPlain(t, n.db, "another")
	require.EqualValues(t, 1, r.Status().Floor, "not closed cleanly")
	require.NoError(t, r.Close())
	if status := r.Status(); status.Adoption.Done {
		require.NoError(t, replicator.CheckConsistent(r))
	}
	require.NoError(t, n.db.Close())
	n.r, n.db = nil, nil
}

// TestClosed closes a replica in different company.
func TestClosed(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]func(c *cluster, label string){
		"just opened": func(c *cluster, _ string) {},
		"idle":        func(c *cluster, _ string) { c.converge(); time.Sleep(time.Minute) },
		"frozen":      func(c *cluster, _ string) { c.converge(); c.net.Freeze("n0", "n1"); time.Sleep(time.Second) },
		"frozen before the hello": func(c *cluster, _ string) {
			c.net.Freeze("n0", "n1")
			c.nodes[1].open()
			time.Sleep(time.Second)
		},
		"frozen while writing": func(c *cluster, _ string) {
			c.converge()
			c.net.Freeze("n0", "n1")
			for i := range 100 {
				c.nodes[0].put(fmt.Sprint(i), "")
			}
			synctest.Wait()
		},
		"the peer is gone": func(c *cluster, _ string) { c.converge(); c.nodes[1].close(); time.Sleep(time.Minute) },
		"a dialler says nothing": func(c *cluster, _ string) {
			_, err := c.net.Dial("n8")(context.Background(), "n0")
			require.NoError(c.t, err)
			synctest.Wait()
		},
		"a dial blocks": func(c *cluster, label string) {
			labelled(label, func() { require.NoError(c.t, c.nodes[0].r.AddPeer("blocks", nil)) })
			synctest.Wait()
		},
		"dials fail": func(c *cluster, label string) {
			labelled(label, func() { require.NoError(c.t, c.nodes[0].r.AddPeer("nobody", nil)) })
			time.Sleep(time.Minute)
		},
		"adopting": func(c *cluster, label string) {
			n := c.nodes[0]
			n.close()
			n.disk = simtest.NewDisk()
			onDisk(c.t, n.disk, func(db *leveldb.DB) {
				for i := range 3000 {
					require.NoError(c.t, db.Put(fmt.Append(nil, i), nil, nil))
				}
			})
			labelled(label, func() { n.open() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			inSeeded(t, 14, 2, func(t *testing.T, c *cluster) {
				c.mesh()
				labelled(t.Name(), func() {
					c.nodes[0].open(func(o *replicator.Options) {
						dial := o.Dial
						o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
							if addr == "blocks" {
								<-ctx.Done()
								time.Sleep(500 * time.Millisecond) // it takes its time, and is waited for
								return nil, ctx.Err()
							}
							return dial(ctx, addr)
						}
					})
				})
				c.nodes[0].put("key", "value")
				meanwhile(c, t.Name())
				checkClosed(t, c.nodes[0], t.Name())
			})
		})
	}
}

// TestClosedDuringPulls closes a replica at operations of its disk
// while it pulls, and is pulled from.
func TestClosedDuringPulls(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at += 1 + at/3 {
		reached := false
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			inSeeded(t, at, 2, func(t *testing.T, c *cluster) {
				c.mesh()
				c.net.Partition([]string{"n0"})
				labelled(t.Name(), func() { c.nodes[0].open() })
				c.nodes[1].open()
				for i, n := range c.nodes {
					for j := range 600 {
						n.put(fmt.Sprint(i, "/", j), strings.Repeat("v", 1100*(j%2)))
					}
				}
				now := make(chan struct{})
				c.nodes[0].disk.SetFault(func(_ simtest.Op, _ storage.FileDesc, n int64) error {
					if n == at {
						close(now)
					}
					return nil
				})
				c.net.Heal()
				select {
				case <-now:
					reached = true
				case <-time.After(time.Minute):
				}
				checkClosed(t, c.nodes[0], t.Name())
				c.converge()
			})
		})
		if !reached || t.Failed() {
			t.Logf("about %d operations", at)
			require.Greater(t, at, int64(10))
			return
		}
	}
}

// TestClosedWithCallersInside closes a replica that is being used in
// all ways. Each caller gets what it asked for, or ErrClosed; what was
// acknowledged is there.
func TestClosedWithCallersInside(t *testing.T) {
	t.Parallel()
	eachSeed(t, budget(2, 6, 60), func(t *testing.T, seed int64) {
		inSeeded(t, seed-1, 2, func(t *testing.T, c *cluster) {
			c.mesh()
			n := c.nodes[0]
			labelled(t.Name(), func() { n.open() })
			c.nodes[1].open()
			c.converge()
			if seed%2 == 1 {
				c.net.Freeze("n0", "n1")
			}
			r := n.r
			var wg sync.WaitGroup
			var acknowledged sync.Map
			calls := map[string]func(i int) error{
				"put": func(i int) error {
					key := fmt.Sprint("put ", i)
					err := r.Put([]byte(key), nil, &opt.WriteOptions{Sync: i%3 == 0})
					if err == nil {
						acknowledged.Store(key, nil)
					}
					return err
				},
				"write": func(i int) error {
					var b leveldb.Batch
					key := fmt.Sprint("batch ", i)
					b.Put([]byte(key), nil)
					b.Delete([]byte("put"))
					err := r.Write(&b, nil)
					if err == nil {
						acknowledged.Store(key, nil)
					}
					return err
				},
				"get": func(int) error {
					_, err := r.Get([]byte("put 1"), nil)
					if err == leveldb.ErrNotFound {
						return nil
					}
					return err
				},
				"iterate": func(int) error {
					it := r.NewIterator(nil, nil)
					defer it.Release()
					for it.Next() {
					}
					return it.Error()
				},
				"snapshot": func(int) error {
					snap, err := r.GetSnapshot()
					if err != nil {
						return err
					}
					defer snap.Release()
					_, err = snap.Has([]byte("put 2"), nil)
					return err
				},
				"digest": func(int) error { return second(r.Digest()) },
				"count":  func(int) error { return second(r.Count(context.Background())) },
				"size":   func(int) error { r.Recent(10); return second(r.Size()) },
				"status": func(int) error { r.Status(); return second(r.Version([]byte("put 0"))) },
				"sync":   func(int) error { return r.SyncNow(context.Background()) },
			}
			for name, call := range calls {
				wg.Go(func() {
					for i := 0; ; i++ {
						err := call(i)
						if err != nil && err != leveldb.ErrNotFound {
							assert.ErrorIs(t, err, replicator.ErrClosed, name)
							return
						}
						if name != "put" && name != "write" || i%10 == 0 {
							time.Sleep(time.Millisecond)
						}
					}
				})
			}
			time.Sleep(time.Duration(seed-1) * 10 * time.Millisecond)
			assert.NoError(t, r.Close())
			wg.Wait()
			acknowledged.Range(func(key, _ any) bool {
				_, err := n.db.Get([]byte(key.(string)), nil)
				return assert.NoError(t, err, key)
			})
			checkClosed(t, n, t.Name())
		})
	})
}

// TestClosedWaitsForWrites holds up a write while Close is called:
// it is let in the end, and so are those behind it.
func TestClosedWaitsForWrites(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		disk := simtest.NewDisk()
		onDisk(t, disk, func(db *leveldb.DB) {
			r := openPlain(t, db, "boot")
			entered, letGo := hold(disk)
			defer letGo()
			var wg sync.WaitGroup
			wg.Go(func() { assert.NoError(t, r.Put([]byte("first"), nil, nil)) })
			<-entered
			wg.Go(func() { assert.NoError(t, r.Put([]byte("second"), nil, withSync)) })
			synctest.Wait()
			closed := make(chan error, 1)
			go func() { closed <- r.Close() }()
			time.Sleep(time.Hour)
			require.Empty(t, closed, "Close did not wait")
			require.ErrorIs(t, r.Put([]byte("third"), nil, nil), replicator.ErrClosed)
			letGo()
			require.NoError(t, <-closed)
			wg.Wait()
			for _, key := range []string{"first", "second"} {
				has, err := db.Has([]byte(key), nil)
				require.NoError(t, err)
				require.True(t, has)
			}
		})
	})
}

// TestClosedWaitsForReads holds up reads while Close is called: the
// caller may close the handle as soon as it has returned.
func TestClosedWaitsForReads(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func(r *replicator.Replicator) error{
		"get":     func(r *replicator.Replicator) error { return second(r.Get([]byte("key"), nil)) },
		"has":     func(r *replicator.Replicator) error { return second(r.Has([]byte("key"), nil)) },
		"version": func(r *replicator.Replicator) error { return second(r.Version([]byte("key"))) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				disk := simtest.NewDisk()
				db, err := leveldb.Open(disk, &opt.Options{DisableBlockCache: true})
				require.NoError(t, err)
				r := openPlain(t, db, "boot")
				require.NoError(t, r.Put([]byte("key"), []byte("value"), nil))
				require.NoError(t, db.CompactRange(util.Range{}))
				require.NoError(t, read(r)) // opens the table
				release := make(chan struct{})
				var once atomic.Bool
				disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
					if op == simtest.OpRead && once.CompareAndSwap(false, true) {
						<-release
					}
					return nil
				})
				done, closed := make(chan error, 1), make(chan error, 1)
				go func() { done <- read(r) }()
				synctest.Wait()
				go func() { closed <- r.Close() }()
				time.Sleep(time.Hour)
				early := len(closed) > 0
				close(release)
				assert.NoError(t, <-done)
				assert.NoError(t, <-closed)
				require.False(t, early, "Close did not wait")
				require.NoError(t, db.Close())
			})
		})
	}
}

// TestClosedOnFullBuffers closes, in real time, a replica whose peer
// has stopped taking what it is sent, and one whose peer is far away over TCP.
func TestClosedOnFullBuffers(t *testing.T) {
	before := runtime.NumGoroutine()
	c := newCluster(t, 14, 2).mesh().open()
	for _, n := range c.nodes { // each sends more than the buffers take
		for i := range 200 {
			require.NoError(t, n.r.Put(fmt.Append(nil, n.name, i), make([]byte, 1000), nil))
		}
	}
	for _, n := range c.nodes {
		require.NoError(t, n.sync())
	}
	c.net.Freeze("n0", "n1")
	for _, n := range c.nodes {
		for i := range 2000 {
			require.NoError(t, n.r.Put(fmt.Append(nil, n.name, "frozen", i), make([]byte, 1000), nil))
		}
	}
	time.Sleep(300 * time.Millisecond) // for the buffers to fill
	for _, n := range c.nodes {
		began := time.Now()
		require.NoError(t, n.r.Close())
		require.Less(t, time.Since(began), 5*time.Second)
		require.NoError(t, n.db.Close())
		n.r = nil
	}

	dir := t.TempDir()
	a, err := replicator.OpenFile(filepath.Join(dir, "a"), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	b, err := replicator.OpenFile(filepath.Join(dir, "b"), nil, &replicator.Options{
		Listen: "127.0.0.1:0",
		Peers:  map[string]replicator.Meta{a.Addr().String(): nil},
	})
	require.NoError(t, err)
	for i := range 2000 {
		require.NoError(t, a.Put(fmt.Append(nil, i), make([]byte, 2000), nil))
	}
	mute, err := net.Dial("tcp", a.Addr().String())
	require.NoError(t, err)
	defer mute.Close()
	go func() { _ = b.SyncNow(context.Background()) }()
	require.Eventually(t, func() bool { return b.Status().Head > 0 }, 10*time.Second, time.Millisecond)
	for _, r := range []*replicator.Replicator{a, b} {
		began := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { assert.NoError(t, r.Close()) })
		}
		wg.Wait()
		require.NoError(t, r.Close())
		require.Less(t, time.Since(began), 5*time.Second)
	}
	for began := time.Now(); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			require.FailNow(t, "goroutines are left over")
		}
	}
}
