package replicator_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// cluster is a number of replicas on simulated disks and a simulated network.
// It is to be used inside a synctest bubble.
type cluster struct {
	t     testing.TB
	rng   *rand.Rand
	net   *simtest.Network
	nodes []*node
	// written is every value that a put gave a stamp to.
	written map[replicator.Stamp]string
	boots   int
	paging  func(replicator.Options) *replicator.Options
}

// node is one server: its host name is also its address.
type node struct {
	c     *cluster
	name  string
	peers []string
	disk  *simtest.Disk
	boot  int // which boot of which machine it runs in
	db    *leveldb.DB
	r     *replicator.Replicator
}

// withSync are the options of a write that is durable when it returns.
var withSync = &opt.WriteOptions{Sync: true}

func newCluster(t testing.TB, seed int64, nodes int) *cluster {
	c := &cluster{
		t: t, rng: rand.New(rand.NewPCG(uint64(seed), 0)), net: simtest.NewNetwork(seed),
		written: map[replicator.Stamp]string{},
		paging:  func(o replicator.Options) *replicator.Options { return &o },
	}
	for i := range nodes {
		c.nodes = append(c.nodes, &node{c: c, name: fmt.Sprintf("n%d", i), disk: simtest.NewDisk(), boot: c.newBoot()})
	}
	return c
}

// newBoot names a boot of one of the machines.
func (c *cluster) newBoot() int {
	c.boots++
	return c.boots
}

// link lets a dial b.
func (c *cluster) link(a, b int) {
	c.nodes[a].peers = append(c.nodes[a].peers, c.nodes[b].name)
}

// mesh links all nodes with each other, both ways.
func (c *cluster) mesh() *cluster {
	for a := range c.nodes {
		for b := range c.nodes {
			if a != b {
				c.link(a, b)
			}
		}
	}
	return c
}

func (c *cluster) open() *cluster {
	for _, n := range c.nodes {
		n.open()
	}
	return c
}

// close ends everything, so that the bubble can end.
func (c *cluster) close() {
	for _, n := range c.nodes {
		n.close()
	}
	time.Sleep(2 * time.Second) // goleveldb keeps a goroutine for a second
}

func (n *node) options() *replicator.Options {
	o := replicator.Options{
		Listener: n.c.net.Listen(n.name),
		Dial:     n.c.net.Dial(n.name),
		Peers:    map[string]replicator.Meta{},
	}
	for _, p := range n.peers {
		o.Peers[p] = nil
	}
	return n.c.paging(*replicator.WithBootID(o, fmt.Sprint("boot ", n.boot)))
}

func (n *node) open() {
	if n.r != nil {
		return
	}
	var err error
	n.db, err = leveldb.Open(n.disk, &opt.Options{WriteBuffer: 64 << 10, DisableLargeBatchTransaction: true})
	require.NoError(n.c.t, err)
	n.r, err = replicator.Open(n.db, n.options())
	require.NoError(n.c.t, err)
}

func (n *node) close() {
	if n.r == nil {
		return
	}
	require.NoError(n.c.t, n.r.Close())
	require.NoError(n.c.t, n.db.Close())
	n.r, n.db = nil, nil
}

// replaceDisk ends the node as it is and gives it another disk.
func (n *node) replaceDisk(disk *simtest.Disk) {
	n.close()
	n.disk = disk
}

// kill ends the process at this moment; what was written is still there.
func (n *node) kill() { n.replaceDisk(n.disk.Copy()) }

// powerCut ends the machine at this moment; what was not synced may be lost.
func (n *node) powerCut() {
	n.replaceDisk(n.disk.PowerCut(simtest.Tear(n.c.rng)))
	n.boot = n.c.newBoot()
}

func (n *node) put(key, value string) {
	require.NoError(n.c.t, n.r.Put([]byte(key), []byte(value), nil))
	n.remember(key, value)
}

func (n *node) delete(key string) {
	require.NoError(n.c.t, n.r.Delete([]byte(key), nil))
}

// remember notes which stamp a value has got, unless a merge was faster.
func (n *node) remember(key, value string) {
	version, err := n.r.Version([]byte(key))
	require.NoError(n.c.t, err)
	if version.Origin == n.r.Status().Epoch {
		n.c.written[version.Stamp] = value
	}
}

func (n *node) get(key string) (string, bool) {
	value, err := n.r.Get([]byte(key), nil)
	if err == leveldb.ErrNotFound {
		return "", false
	}
	require.NoError(n.c.t, err)
	return string(value), true
}

func (n *node) sync() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return n.r.SyncNow(ctx)
}

// state is all that replicas have to agree on.
type state struct {
	values   map[string]string
	versions map[string]replicator.Version
}

func (n *node) state() state {
	s := state{values: map[string]string{}}
	it := n.r.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		s.values[string(it.Key())] = string(it.Value())
	}
	require.NoError(n.c.t, it.Error())
	var err error
	s.versions, err = replicator.Versions(n.db)
	require.NoError(n.c.t, err)
	return s
}

func (s state) equal(t state) bool {
	return maps.Equal(s.values, t.values) && maps.Equal(s.versions, t.versions)
}

// converge syncs until all replicas hold the same, and fails if they don't.
func (c *cluster) converge() {
	c.net.Heal()
	c.net.SetCut(nil)
	for _, n := range c.nodes {
		n.open()
	}
	var last error
	for range 20 + 5*len(c.nodes) {
		last = nil
		for _, n := range c.nodes {
			if err := n.sync(); err != nil {
				last = err
			}
		}
		if last == nil && c.equal() {
			c.check()
			return
		}
		time.Sleep(time.Second)
	}
	var report strings.Builder
	for _, n := range c.nodes {
		status, state := n.r.Status(), n.state()
		fmt.Fprintf(&report, "%s: id %.8v, head %d, %d values, %d versions\n",
			n.name, status.ID, status.Head, len(state.values), len(state.versions))
		for _, p := range status.Peers {
			fmt.Fprintf(&report, "\t%s, id %.8v: %s, behind %d, unconfirmed %d, %s\n", p.Addr, p.ID, p.State, p.Behind, p.Unconfirmed, p.LastError)
		}
	}
	if *simTrace {
		stacks := make([]byte, 1<<20)
		fmt.Printf("%s\n", stacks[:runtime.Stack(stacks, true)])
	}
	c.t.Fatalf("replicas do not converge; last error: %v\n%s", last, &report)
}

func (c *cluster) equal() bool {
	first := c.nodes[0].state()
	for _, n := range c.nodes[1:] {
		if !n.state().equal(first) {
			return false
		}
	}
	return true
}

// check verifies each replica by itself: data, index and log fit together, and
// every value stands beside the stamp that it was written with.
func (c *cluster) check() {
	for _, n := range c.nodes {
		require.NoError(c.t, replicator.CheckConsistent(n.r), n.name)
		s := n.state()
		for key, value := range s.values {
			if written, known := c.written[s.versions[key].Stamp]; known {
				require.Equal(c.t, written, value, "%s: value of %s at %v", n.name, key, s.versions[key])
			}
		}
	}
}
