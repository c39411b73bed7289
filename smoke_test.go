package replicator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

func TestSmoke(t *testing.T) {
	var rs []*replicator.Replicator
	for i := 0; i < 3; i++ {
		r, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{Listen: "127.0.0.1:0"})
		require.NoError(t, err)
		rs = append(rs, r)
		for j := 0; j < i; j++ {
			require.NoError(t, r.AddPeer(rs[j].Addr().String(), nil))
			require.NoError(t, rs[j].AddPeer(r.Addr().String(), nil))
		}
	}
	for i, r := range rs {
		for k := 0; k < 1000; k++ {
			require.NoError(t, r.Put([]byte(fmt.Sprintf("key-%d", k)), []byte(fmt.Sprintf("v-%d-%d", i, k)), nil))
		}
		require.NoError(t, r.Put([]byte(fmt.Sprintf("big-%d", i)), make([]byte, 3<<20), nil))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for round := 0; round < 2; round++ {
		for _, r := range rs {
			require.NoError(t, r.SyncNow(ctx))
		}
	}
	for k := 0; k < 1000; k++ {
		key := []byte(fmt.Sprintf("key-%d", k))
		v, err := rs[0].Get(key, nil)
		require.NoError(t, err)
		for _, r := range rs[1:] {
			w, err := r.Get(key, nil)
			require.NoError(t, err)
			require.Equal(t, string(v), string(w))
		}
	}
	time.Sleep(time.Second)
	for _, r := range rs {
		t.Logf("%+v", r.Status())
		require.NoError(t, r.Close())
	}
}
