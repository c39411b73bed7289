package replicator_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// batchOf returns a batch that puts keys.
func batchOf(value string, keys ...string) *leveldb.Batch {
	b := new(leveldb.Batch)
	for _, key := range keys {
		b.Put([]byte(key), []byte(value))
	}
	return b
}

// TestCommitReturnsTheFirstStamp of a batch, and the ones behind follow it.
func TestCommitReturnsTheFirstStamp(t *testing.T) {
	r := wrap(t, memDB(t), nil)
	stamp, err := r.Commit(nil, nil)
	require.NoError(t, err)
	require.Zero(t, stamp)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				keys := []string{fmt.Sprint(i, " ", j, " a"), fmt.Sprint(i, " ", j, " b")}
				stamp, err := r.Commit(batchOf("value", keys...), nil)
				if err != nil {
					t.Error(err)
					return
				}
				for k, key := range keys {
					v, err := r.Version([]byte(key))
					if err != nil || v.Stamp != (replicator.Stamp{Clock: stamp.Clock + uint64(k), Origin: stamp.Origin}) {
						t.Errorf("%s: %v, %v after %v", key, v, err, stamp)
					}
				}
			}
		})
	}
	wg.Wait()
	_, err = r.Commit(batchOf("value", "\xffreplicator\xffkey"), nil)
	require.ErrorIs(t, err, replicator.ErrReserved)
	require.NoError(t, r.Close())
	stamp, err = r.Commit(batchOf("value", "key"), nil)
	require.ErrorIs(t, err, replicator.ErrClosed)
	require.Zero(t, stamp)
}

// TestTokenText: a token survives text and JSON, and no other text is accepted.
func TestTokenText(t *testing.T) {
	stamp := replicator.Stamp{Clock: 1 << 61, Origin: 1<<63 | 7}
	for name, token := range map[string]replicator.Token{
		"zero": {}, "of a key": stamp.Token([]byte("key")), "of the empty key": stamp.Token(nil),
		"of the largest key": stamp.Token([]byte(strings.Repeat("k", replicator.MaxTokenKey))),
		"without the key":    stamp.Token([]byte(strings.Repeat("k", replicator.MaxTokenKey+1))),
	} {
		text, err := json.Marshal(map[string]replicator.Token{"token": token})
		require.NoError(t, err)
		var back map[string]replicator.Token
		require.NoError(t, json.Unmarshal(text, &back), name)
		require.True(t, token == back["token"], name)
		require.Equal(t, token.String() == "", token.IsZero(), name)
		require.Regexp(t, "^[A-Za-z0-9_-]*$", token.String(), "good for a cookie")
	}
	require.True(t, replicator.Stamp{}.Token([]byte("key")).IsZero())
	require.Less(t, len(stamp.Token([]byte(strings.Repeat("k", 2000))).String()), 40)
	good, _ := base64.RawURLEncoding.DecodeString(stamp.Token([]byte("key")).String())
	for name, text := range map[string]string{
		"not base64":       "!",
		"padded":           "AQ==",
		"truncated":        base64.RawURLEncoding.EncodeToString(good[:8]),
		"another kind":     base64.RawURLEncoding.EncodeToString(append([]byte{9}, good[1:]...)),
		"bytes left over":  base64.RawURLEncoding.EncodeToString(append([]byte{1}, good[1:]...)),
		"an adopted stamp": base64.RawURLEncoding.EncodeToString([]byte{1, 5, 0, 0, 0, 0, 0, 0, 0, 1}),
		"too long":         stamp.Token([]byte(strings.Repeat("k", replicator.MaxTokenKey))).String() + "AAAA",
		"far too long":     strings.Repeat("A", 1<<20),
		"a longer clock":   base64.RawURLEncoding.EncodeToString([]byte{1, 0x85, 0, 0x80, 0, 0, 0, 0, 0, 0, 1}),
	} {
		token := stamp.Token([]byte("as it was"))
		require.Error(t, token.UnmarshalText([]byte(text)), name)
		require.Equal(t, stamp.Token([]byte("as it was")), token, name)
	}
}

// TestIDText: an id accepts its own text only, and stays as it was where the text is another.
func TestIDText(t *testing.T) {
	was := replicator.DatabaseID{1, 2, 3}
	for _, text := range []string{"", "zz", strings.Repeat("0", 31), strings.Repeat("0", 30) + "zz", strings.Repeat("0", 33)} {
		id := was
		require.ErrorContains(t, id.UnmarshalText([]byte(text)), "32 hexadecimal digits", text)
		require.Equal(t, was, id, text)
	}
	var id replicator.DatabaseID
	require.NoError(t, id.UnmarshalText([]byte(was.String())))
	require.Equal(t, was, id)
}

// TestWaitFor waits for what was written elsewhere, over a replica in between.
func TestWaitFor(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.link(2, 1)
		c.open()
		a, z := c.nodes[0].r, c.nodes[2].r
		require.True(t, a.Token().IsZero())
		require.NoError(t, z.WaitFor(within(t, 0), a.Token()), "zero needs no waiting")
		for i := range 20 {
			key := fmt.Sprint("key ", i)
			c.nodes[0].put(key, "value")
			require.NoError(t, a.WaitFor(within(t, 0), a.Token()), "its own is here")
			require.NoError(t, z.WaitFor(within(t, time.Minute), a.Token()))
			value, there := c.nodes[2].get(key)
			require.True(t, there)
			require.Equal(t, "value", value)
		}
		// It names what was written before the last opening, too.
		before := a.Token()
		c.nodes[0].close()
		c.nodes[0].open()
		a = c.nodes[0].r
		require.Equal(t, before, a.Token())
		// What is cut off is waited for until the deadline.
		c.net.Isolate("n0")
		c.nodes[0].put("cut off", "value")
		require.ErrorIs(t, z.WaitFor(within(t, time.Second), a.Token()), context.DeadlineExceeded)
		waited := make(chan error, 1)
		go func() { waited <- z.WaitFor(context.Background(), a.Token()) }()
		time.Sleep(time.Second)
		c.net.Heal()
		require.NoError(t, <-waited)
		_, there := c.nodes[2].get("cut off")
		require.True(t, there)
	})
}

// TestWaitForOneKey: the token of one change is satisfied with the record of its key,
// also if that is a later one, and though what came before is not here.
func TestWaitForOneKey(t *testing.T) {
	r := wrap(t, memDB(t), nil)
	other := replicator.Stamp{Clock: 5, Origin: 1<<63 | 9}
	commit, err := replicator.Examine(r, replicator.Entry{Version: replicator.Version{Stamp: other}, Key: "key", Value: "value"})
	require.NoError(t, err)
	_, err = commit()
	require.NoError(t, err)
	ctx := within(t, 50*time.Millisecond)
	require.NoError(t, r.WaitFor(ctx, other.Token([]byte("key"))))
	other.Clock--
	require.NoError(t, r.WaitFor(ctx, other.Token([]byte("key"))))
	require.ErrorIs(t, r.WaitFor(ctx, other.Token([]byte("another"))), context.DeadlineExceeded)
	require.ErrorIs(t, r.WaitFor(ctx, other.Token(make([]byte, 2000))), context.DeadlineExceeded)
}

// TestWaitsEnd with the Replicator, and when nothing is merged any more.
func TestWaitsEnd(t *testing.T) {
	token := replicator.Stamp{Clock: 5, Origin: 1<<63 | 9}.Token(nil)
	waits := map[string]func(r *replicator.Replicator) error{
		"WaitFor":        func(r *replicator.Replicator) error { return r.WaitFor(context.Background(), token) },
		"WaitMerged":     func(r *replicator.Replicator) error { return r.WaitMerged(context.Background(), 1) },
		"WaitReplicated": func(r *replicator.Replicator) error { return r.WaitReplicated(context.Background(), 1) },
	}
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 1, func(t *testing.T, c *cluster) {
				n := c.nodes[0]
				n.open()
				waited := make(chan error, 1)
				go func() { waited <- wait(n.r) }()
				time.Sleep(time.Second)
				r := n.r
				bounded(t, "Close", time.Minute, n.close)
				require.ErrorIs(t, <-waited, replicator.ErrClosed)
				require.ErrorIs(t, wait(r), replicator.ErrClosed)
				require.ErrorIs(t, r.WaitFor(context.Background(), replicator.Token{}), replicator.ErrClosed)
				require.ErrorIs(t, r.WaitMerged(context.Background(), 0), replicator.ErrClosed)
				n.open()
				failed := errors.New("broken disk")
				go func() { waited <- wait(n.r) }()
				time.Sleep(time.Second)
				replicator.FailWrites(n.r, failed)
				require.ErrorIs(t, <-waited, replicator.ErrFailed)
				_ = n.r.Close()
				_ = n.db.Close()
				n.r = nil
			})
		})
	}
}
