package statuspage_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/level-replicator/replicator/statuspage"
	"github.com/stretchr/testify/require"
)

// TestEvents: a stream begins with a whole frame, and has what happens within a second.
func TestEvents(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.open("n0", []string{"n1"}), w.open("n1", nil)
		syncNow(t, a)
		h := statuspage.Handler(of(a, b), statuspage.WithData())
		s := watch(t, h)
		first := s.next()
		require.True(t, first.Ready.Ready)
		require.Empty(t, first.More[0].Changes)
		put(t, b, "key", "value")
		require.NoError(t, b.Delete([]byte("other"), nil))
		time.Sleep(3 * time.Second)
		began := time.Now()
		frame := s.next() // was waiting to be read
		for frame.At.Before(began) {
			frame = s.next()
		}
		require.Less(t, time.Since(began), time.Second)
		for i, more := range frame.More {
			require.Len(t, more.Changes, 2)
			require.Equal(t, "key", string(more.Changes[0].Key))
			require.Equal(t, "value", string(more.Changes[0].Value))
			require.True(t, more.Changes[1].Version.Deleted)
			require.Equal(t, i == 1, more.Changes[0].Local)
			require.NotNil(t, more.Count)
			require.Equal(t, 1, more.Count.Keys)
			require.Equal(t, 1, more.Count.Tombstones)
			require.NotNil(t, more.Sizes)
		}
	})
}

// TestEventsReconnect: a reader that comes back gets a whole frame at once. No goroutine
// outlives its reader: the bubble would not end.
func TestEventsReconnect(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.open("n0", nil)
		h := statuspage.Handler(of(a), statuspage.WithData())
		s := watch(t, h)
		s.next()
		s.end()
		<-s.over
		synctest.Wait()
		put(t, a, "key", "value")
		time.Sleep(time.Hour)
		again := watch(t, h)
		began := time.Now()
		frame := again.next()
		require.Equal(t, began, time.Now())
		require.Equal(t, began.UnixNano(), frame.At.UnixNano())
		require.Len(t, frame.More[0].Changes, 1)
	})
}

// TestEventsAreBounded: the number of streams is, and the end of one makes room.
func TestEventsAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := statuspage.Handler(of(w.open("n0", nil)))
		var all []*stream
		for range 64 {
			s := watch(t, h)
			s.next()
			all = append(all, s)
		}
		require.Equal(t, http.StatusServiceUnavailable, get(h, "/events").Code)
		all[0].end()
		<-all[0].over
		watch(t, h).next()
	})
}

// TestEventsOfClosed: a replica that is closed while somebody looks is shown as closed.
func TestEventsOfClosed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.open("n0", nil)
		s := watch(t, statuspage.Handler(of(a), statuspage.WithData()))
		require.False(t, s.next().Replicas[0].Closed)
		require.NoError(t, a.Close())
		time.Sleep(3 * time.Second)
		for !s.next().Replicas[0].Closed {
			require.NoError(t, t.Context().Err())
		}
	})
}
