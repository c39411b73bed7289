package replicator_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// What tests need to look at pulls, and to stop them half-way.

// statusOf returns what n has to say of a peer, or nothing.
func (n *node) statusOf(peer *node) (found replicator.PeerStatus) {
	id := peer.r.Status().ID
	for _, p := range n.r.Status().Peers {
		if p.ID == id {
			found = p
		}
	}
	return found
}

// carried returns how many records of peer's a node was sent since it was opened.
func (n *node) carried(peer *node) (records int64) { return n.statusOf(peer).RecordsIn }

// acknowledged returns up to where a peer has told n to have made its log durable.
func (n *node) acknowledged(peer *node) uint64 {
	if known := n.statusOf(peer).Acknowledged; known != nil {
		return *known
	}
	return 0
}

// cursor returns how far a node has merged peer's log, as it would be found
// after a restart.
func (n *node) cursor(peer *node) replicator.Progress {
	c, err := replicator.StoredCursor(n.db, peer.r.Status().ID)
	require.NoError(n.c.t, err)
	return c
}

// covered checks that all of a peer's changes that a cursor covers are here.
func covered(cursor replicator.Progress, peer, here map[string]replicator.Row) error {
	for key, row := range peer {
		covers := row.Seq <= cursor.Checkpoint
		switch {
		case cursor.Log:
			covers = covers || cursor.Reached <= row.Seq && row.Seq <= cursor.Upper
		case cursor.Keys:
			covers = row.Seq <= cursor.Upper && key <= cursor.Key
		}
		if covers && here[key].Stamp.Compare(row.Stamp) < 0 {
			return fmt.Errorf("key %q: the cursor %+v covers %v, here is %v", key, cursor, row, here[key])
		}
	}
	return nil
}

// pageSize is how many records come in one page at most.
const pageSize = 500

// halfway lets n1 pull from n0, in a scan of several pages. After the first page the
// keys that are to come last move up the log, and the connection breaks: the scan goes
// on with another snapshot. At its end the network freezes. Then n1 has a checkpoint,
// does not have the keys, and knows that more is to come. halfway returns what SyncNow,
// called before that, will return.
func halfway(c *cluster) (synced chan error, moved int) {
	const base, keys = 10, 4*pageSize - 100
	source, n := c.nodes[0], c.nodes[1]
	c.fromDisk()
	c.open()
	source.fill("base", 0, base, 0)
	c.converge()
	time.Sleep(time.Second)
	c.net.Partition([]string{"n1"})
	moved = pageSize / 2
	source.fill("k", 0, keys, 10)
	start := n.r.Status().Head
	var stage atomic.Int64
	n.disk.SetFault(func(op simtest.Op, _ storage.FileDesc, _ int64) error {
		if op != simtest.OpWrite {
			return nil
		}
		switch head := n.r.Status().Head; {
		case head == start && n.r.Status().Peers[0].RecordsIn >= pageSize && stage.CompareAndSwap(0, 1):
			for i := range moved { // a log is read from its end
				key := fmt.Sprintf("k%05d", i)
				if err := source.r.Put([]byte(key), []byte("moved"), nil); err != nil {
					panic(err)
				}
			}
			c.net.Partition([]string{"n1"})
		case head == start+2*pageSize && stage.CompareAndSwap(1, 2):
			synctest.Wait() // the last page has arrived, the one after it is not asked for
			c.net.Freeze("n0", "n1")
		}
		return nil
	})
	c.net.Heal()
	time.Sleep(time.Second)
	synced = make(chan error, 1)
	c.net.Heal()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		synced <- n.r.SyncNow(ctx)
	}()
	time.Sleep(3 * time.Second) // not synctest.Wait, which one goroutine may call at a time
	n.disk.SetFault(nil)
	require.EqualValues(c.t, 2, stage.Load())
	return synced, moved
}

// largeValue is larger than the write buffer of a node's database.
var largeValue = make([]byte, 100<<10)

// holdCommit starts to write largeValue under a key, and returns when the value can
// be read, while the commit has yet to be over: leveldb is held up in what it does
// then with a batch that is larger than its write buffer. goOn lets it; over tells
// how the write ended.
func (n *node) holdCommit(key string, write func() error) (goOn func(), over <-chan error) {
	release, rotating := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	n.disk.SetFault(func(op simtest.Op, fd storage.FileDesc, _ int64) error {
		if op != simtest.OpCreate || fd.Type != storage.TypeJournal {
			return nil
		}
		if value, err := n.db.Get([]byte(key), nil); err == nil && len(value) == len(largeValue) && once.CompareAndSwap(false, true) {
			close(rotating)
			<-release
		}
		return nil
	})
	ended := make(chan error, 1)
	go func() { ended <- write() }()
	<-rotating
	return sync.OnceFunc(func() { close(release) }), ended
}
