package replicator_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// TestSendableLimits writes what is as large as it may be, and one
// byte more.
func TestSendableLimits(t *testing.T) {
	t.Parallel()
	const maxValue = 16 << 20
	inSeeded(t, 11, 2, func(t *testing.T, c *cluster) {
		c.mesh()
		a, b := c.nodes[0], c.nodes[1]
		open := func(n *node) {
			n.ldb = opt.Options{WriteBuffer: 64 << 20, Compression: opt.NoCompression, DisableLargeBatchTransaction: true}
			n.open()
		}
		open(a)
		open(b)
		key := func(first byte, n int) []byte {
			k := bytes.Repeat([]byte{'k'}, n)
			k[0] = first
			return k
		}
		value := func(last byte, n int) []byte {
			v := make([]byte, n)
			copy(v[max(0, n-1):], []byte{last})
			return v
		}
		batch := func(fill func(b *leveldb.Batch)) *leveldb.Batch {
			b := new(leveldb.Batch)
			fill(b)
			return b
		}
		head, clock := a.r.Status().Head, a.r.Status().Clock
		for name, err := range map[string]error{
			"key":            a.r.Put(key('a', replicator.MaxKeySize+1), nil, nil),
			"deleted key":    a.r.Delete(key('a', replicator.MaxKeySize+1), nil),
			"value":          a.r.Put([]byte("key"), value(1, maxValue+1), nil),
			"last of batch":  a.r.Write(batch(func(b *leveldb.Batch) { b.Put([]byte("x"), nil); b.Put([]byte("y"), value(1, maxValue+1)) }), nil),
			"first of batch": a.r.Write(batch(func(b *leveldb.Batch) { b.Delete(key('a', replicator.MaxKeySize+1)); b.Put([]byte("x"), nil) }), nil),
		} {
			require.ErrorIs(t, err, replicator.ErrTooLarge, name)
		}
		require.Equal(t, head, a.r.Status().Head)
		require.Equal(t, clock, a.r.Status().Clock)
		require.Empty(t, a.state().values)
		require.Empty(t, a.state().versions)

		// Each kind, over a full pull and over the log.
		ways := []string{"log", "full"}
		for i, way := range ways[:budget(1, 1, 2)] {
			first := byte('a' + i)
			if way == "log" {
				require.NoError(t, a.r.Put(key(first, replicator.MaxKeySize), value(first, maxValue), nil))
			} else {
				require.NoError(t, a.r.Write(batch(func(b *leveldb.Batch) {
					b.Put([]byte{first, 1}, value(1, maxValue))
					b.Put([]byte{first, 2}, value(2, maxValue))
				}), nil))
			}
			require.NoError(t, a.r.Put(append(key(first, replicator.MaxKeySize-1), 'z'), nil, nil))
			require.NoError(t, a.r.Delete(append(key(first, replicator.MaxKeySize-1), 'd'), nil))
			// The sizes at which something else happens to a value or a page.
			for _, size := range []int{1, 1 << 10, 64 << 10, 512 << 10, 1 << 20} {
				for _, d := range []int{-1, 0, 1} {
					require.NoError(t, a.r.Put(fmt.Append(nil, string(first), size+d), value(first, size+d), nil))
				}
			}
			for j := range 40 { // more keys than fit into a page
				k := key(first, replicator.MaxKeySize)
				k[1] = byte(j)
				require.NoError(t, a.r.Put(k, value(first, 1+j*2000), nil))
			}
			if way == "full" {
				b.replaceDisk(simtest.NewDisk())
				open(b)
			}
			require.NoError(t, b.sync())
			got, want := b.state(), a.state()
			require.True(t, got.equal(want), "%s: %d of %d values, %d of %d versions", way,
				len(got.values), len(want.values), len(got.versions), len(want.versions))
		}
	})
}

// TestSendableKeys replicates keys at the edges of what a key may be.
func TestSendableKeys(t *testing.T) {
	t.Parallel()
	inSeeded(t, 11, 2, func(t *testing.T, c *cluster) {
		c.mesh().open()
		a, b := c.nodes[0], c.nodes[1]
		const reserved = "\xffreplicator\xff"
		for _, key := range []string{"", "\x00", "\xff", "\xff\xff", reserved[:len(reserved)-1], "\xffreplicator\xfe\xff", "\xffreplicatos", strings.Repeat("\xff", replicator.MaxKeySize)} {
			a.put(key, "value of "+key)
			a.delete("\x01" + key[min(1, len(key)):])
		}
		for _, key := range []string{reserved, reserved + "\x00", reserved + "l", reserved + strings.Repeat("\xff", 100)} {
			require.ErrorIs(t, a.r.Put([]byte(key), nil, nil), replicator.ErrReserved)
			require.ErrorIs(t, a.r.Delete([]byte(key), nil), replicator.ErrReserved)
			var batch leveldb.Batch
			batch.Put([]byte("beside it"), nil)
			batch.Put([]byte(key), nil)
			require.ErrorIs(t, a.r.Write(&batch, nil), replicator.ErrReserved)
		}
		require.NoError(t, b.sync())
		require.Len(t, b.state().values, 8)
		c.converge()
	})
}

// TestSendableOption holds a limit of the caller's choice, and keeps
// replicas of different limits apart.
func TestSendableOption(t *testing.T) {
	t.Parallel()
	inSeeded(t, 11, 3, func(t *testing.T, c *cluster) {
		c.mesh()
		for i, n := range c.nodes {
			n.open(func(o *replicator.Options) { o.MaxValueSize = 100 + i/2 })
		}
		a, b, other := c.nodes[0], c.nodes[1], c.nodes[2]
		require.NoError(t, a.r.Put([]byte("key"), make([]byte, 100), nil))
		require.ErrorIs(t, a.r.Put([]byte("key"), make([]byte, 101), nil), replicator.ErrTooLarge)
		require.NoError(t, other.r.Put([]byte("other"), make([]byte, 101), nil))
		for _, n := range c.nodes {
			require.ErrorIs(t, n.sync(), replicator.ErrRefused)
			require.ErrorContains(t, n.sync(), "MaxValueSize")
		}
		require.True(t, a.state().equal(b.state()))
		require.Len(t, a.state().values, 1)
		require.Len(t, other.state().values, 1)
	})
}
