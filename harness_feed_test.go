package replicator_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
)

// What tests need of feeds.

// keeper is a consumer of a feed that keeps what it is told, and the cursor with it.
type keeper struct {
	cursor  replicator.Cursor
	entries map[string]kept // what it was told last of each key, deletions included
}

type kept struct {
	replicator.Version
	value string
}

func newKeeper() *keeper { return &keeper{entries: map[string]kept{}} }

func (k *keeper) clone() *keeper { return &keeper{k.cursor, maps.Clone(k.entries)} }

// take applies a change. No key may go back, and in the log there is one order.
func (k *keeper) take(c replicator.Change) error {
	if was, found := k.entries[string(c.Key)]; found && was.Version.Compare(c.Version) > 0 {
		return fmt.Errorf("key %s goes from %v back to %v", c.Key, was.Version, c.Version)
	}
	if before, is := replicator.CursorPlace(k.cursor), replicator.CursorPlace(c.Cursor); !before.Scan && !is.Scan && is.Seq <= before.Seq {
		return fmt.Errorf("key %s is told at %d, after %d", c.Key, is.Seq, before.Seq)
	}
	if c.Deleted != (c.Value == nil) {
		return fmt.Errorf("key %s at %v has the value %v", c.Key, c.Version, c.Value)
	}
	k.entries[string(c.Key)] = kept{c.Version, string(c.Value)}
	k.cursor = c.Cursor
	return nil
}

// follow applies what comes until ctx is done.
func (k *keeper) follow(ctx context.Context, r *replicator.Replicator, prefix string, each func(replicator.Change)) error {
	for c, err := range r.Watch(ctx, []byte(prefix), k.cursor) {
		if err == nil {
			err = k.take(c)
		}
		if err != nil {
			return err
		}
		if each != nil {
			each(c)
		}
	}
	return fmt.Errorf("the feed has ended without an error")
}

// drain applies, in a bubble, everything that there is. It fails unless the feed then waits
// for more, or refuses the cursor.
func (k *keeper) drain(t testing.TB, r *replicator.Replicator, each func(replicator.Change)) error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.follow(ctx, r, "", each) }()
	synctest.Wait()
	cancel()
	err := <-done
	if err != context.Canceled {
		require.ErrorIs(t, err, replicator.ErrCursor)
		return err
	}
	return nil
}

// goesOn has a keeper read on, and then hold what a node has, unless its cursor is refused.
func (k *keeper) goesOn(t testing.TB, n *node) {
	t.Helper()
	if k.drain(t, n.r, nil) == nil {
		require.NoError(t, k.holds(n))
	}
}

// goesOnInCopy has a keeper's copy read on to the end, and the keeper go on in an earlier copy
// of the node's disk.
func (k *keeper) goesOnInCopy(t testing.TB, n *node, copied *simtest.Disk) {
	t.Helper()
	original := k.clone()
	require.NoError(t, original.drain(t, n.r, nil))
	require.NoError(t, original.holds(n))
	n.replaceDisk(copied)
	n.open()
	k.goesOn(t, n)
}

// holds compares what a keeper has to what a node has.
func (k *keeper) holds(n *node) error {
	rows := n.index()
	for key, row := range rows {
		has, found := k.entries[key]
		switch value, there := n.get(key); {
		case row.Deleted && !found:
		case !found || has.Version != row.Version:
			return fmt.Errorf("key %s has version %v here, and was told at %v (%v)", key, row.Version, has.Version, found)
		case row.Deleted == there || value != has.value:
			return fmt.Errorf("key %s was told with the value %.40q at %v, and has %.40q (%v)", key, has.value, has.Version, value, there)
		}
	}
	for key, told := range k.entries {
		if _, found := rows[key]; !found && !told.Deleted { // a deletion may be forgotten
			return fmt.Errorf("key %s was told, and is not here", key)
		}
	}
	return nil
}

// keepers are what consumers have kept at all times, of all databases of a cluster.
type keepers struct {
	t    testing.TB
	rng  *rand.Rand
	all  []*keeper
	mine map[*node]*keeper
	seen func(what string)
}

const mostKeepers = 40

func newKeepers(t testing.TB, seed uint64) *keepers {
	return &keepers{t: t, rng: rand.New(rand.NewPCG(seed, 7)), mine: map[*node]*keeper{}, seen: func(string) {}}
}

// look has a node's consumer, or one that stopped at any time at any node, read all that there
// is. It may be refused, and then starts anew. In the end it has what the node has.
func (f *keepers) look(n *node) {
	k := f.mine[n]
	if k == nil || f.rng.IntN(3) == 0 && len(f.all) > 0 {
		k = newKeeper()
		if len(f.all) > 0 && f.rng.IntN(8) > 0 {
			k = f.all[f.rng.IntN(len(f.all))].clone()
		}
	}
	from := k.cursor
	var text replicator.Cursor
	require.NoError(f.t, text.UnmarshalText([]byte(from.String())))
	require.Equal(f.t, from, text)
	err := k.drain(f.t, n.r, func(replicator.Change) { f.keep(k) })
	if err != nil {
		f.seen("a feed refuses a cursor")
		k = newKeeper()
		require.NoError(f.t, k.drain(f.t, n.r, func(replicator.Change) { f.keep(k) }))
	} else if !from.IsZero() {
		f.seen("a feed goes on from a cursor")
	}
	if err := k.holds(n); err != nil && !replicator.InFirstSync(n.r) { // feeds make pauses in one
		require.NoError(f.t, err, "a consumer of %s, from %+v", n.name, replicator.CursorPlace(from))
	}
	f.mine[n] = k
}

// keep keeps what a consumer has, now and then.
func (f *keepers) keep(k *keeper) {
	switch {
	case f.rng.IntN(8) > 0:
	case len(f.all) < mostKeepers:
		f.all = append(f.all, k.clone())
	default:
		f.all[f.rng.IntN(len(f.all))] = k.clone()
	}
}
