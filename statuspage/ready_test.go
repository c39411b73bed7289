package statuspage_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
	"github.com/stretchr/testify/require"
)

func readiness(t *testing.T, h http.Handler) (code int, r statuspage.Readiness) {
	answer := get(h, "/readyz")
	require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &r))
	require.Equal(t, r.Ready, answer.Code == http.StatusOK)
	require.Equal(t, r.Ready, len(r.Missing) == 0)
	return answer.Code, r
}

// TestReadyz: a replica is ready once it has been in sync with more than half of the
// configured peers, or with as many as were asked for, and stays so when they leave.
func TestReadyz(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.open(name(0), []string{name(1), name(2), name(3), name(0)}) // its own address does not count
		handlers := map[string]http.Handler{
			"majority": statuspage.Handler(of(a)),
			"0":        statuspage.Handler(of(a), statuspage.WithReadyPeers(0)),
			"1":        statuspage.Handler(of(a), statuspage.WithReadyPeers(1)),
			"3":        statuspage.Handler(of(a), statuspage.WithReadyPeers(3)),
			"4":        statuspage.Handler(of(a), statuspage.WithReadyPeers(4)),
		}
		ready := func(want map[string]bool) {
			t.Helper()
			for name, h := range handlers {
				_, r := readiness(t, h)
				require.Equal(t, want[name], r.Ready, "%s: %v", name, r.Missing)
			}
		}
		time.Sleep(time.Minute)
		ready(map[string]bool{"0": true})
		code, r := readiness(t, handlers["majority"])
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Len(t, r.Missing, 4)
		require.Equal(t, "in sync with 0 of 3 configured peers since the opening; needed: 2", r.Missing[0])
		require.Contains(t, r.Missing[1], "no sync with n1 since the opening: waiting: ")

		w.open(name(1), nil)
		time.Sleep(time.Minute)
		ready(map[string]bool{"0": true, "1": true})
		second := w.open(name(2), nil)
		time.Sleep(time.Minute)
		ready(map[string]bool{"0": true, "1": true, "majority": true})
		w.open(name(3), nil)
		time.Sleep(time.Minute)
		ready(map[string]bool{"0": true, "1": true, "majority": true, "3": true})
		require.NoError(t, second.Close())
		time.Sleep(time.Hour)
		ready(map[string]bool{"0": true, "1": true, "majority": true, "3": true})
		require.NoError(t, a.Close())
		ready(nil)
		_, r = readiness(t, handlers["0"])
		require.Equal(t, []string{"the replica is closed"}, r.Missing)
	})
}

// TestReadyzAlone: a replica without peers is ready at once.
func TestReadyzAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, r := readiness(t, statuspage.Handler(of(w.open("n0", nil))))
		require.True(t, r.Ready)
	})
}

// TestReadyzOfSeveral: all replicas have to be ready, and what is missing says of which.
func TestReadyzOfSeveral(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.open("n0", nil), w.open("n1", []string{"nobody"})
		time.Sleep(time.Minute)
		_, r := readiness(t, statuspage.Handler(of(a, b)))
		require.False(t, r.Ready)
		require.Contains(t, r.Missing[0], "n1: in sync with 0 of 1 configured peers")
	})
}

// TestReadyzReaders: a peer that only reads has nothing to wait for.
func TestReadyzReaders(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.open("n0", []string{"n1"}, func(o *replicator.Options) {
			o.Authorize = func(replicator.PeerInfo) (replicator.Access, error) { return replicator.ReadOnly, nil }
		})
		w.open("n1", nil)
		time.Sleep(time.Minute)
		_, r := readiness(t, statuspage.Handler(of(a)))
		require.True(t, r.Ready, r.Missing)
	})
}
