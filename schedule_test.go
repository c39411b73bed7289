package replicator_test

import (
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

const (
	testMinInterval = 200 * time.Millisecond
	testMaxInterval = 20 * time.Second
)

// jittered reports whether a wait is what an interval gives, give or take a fifth.
func jittered(wait, interval time.Duration) bool {
	return wait >= interval*8/10 && wait <= interval*12/10
}

// TestScheduleOfDialling watches a replica that dials a peer which is not there.
func TestScheduleOfDialling(t *testing.T) {
	inCluster(t, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.peers = []string{"nobody"}
		dials := &countingDial{}
		n.open(func(o *replicator.Options) {
			dials.dial, o.Dial = o.Dial, dials.Dial
			o.MinInterval, o.MaxInterval = testMinInterval, testMaxInterval
		})

		// Idleness lengthens the interval, up to the greatest.
		time.Sleep(10 * time.Minute)
		gaps := dials.gaps()
		interval := testMinInterval
		for i, gap := range gaps {
			interval = min(2*interval, testMaxInterval)
			require.True(t, jittered(gap, interval), "wait %d is %v, about %v expected", i, gap, interval)
		}
		require.NotEqual(t, gaps[len(gaps)-1], gaps[len(gaps)-2], "waits are jittered")

		// A write brings the next attempt closer, by half the interval.
		status := n.peer("nobody")
		require.Equal(t, replicator.StateWaiting, status.State)
		require.WithinRange(t, status.NextAttempt, time.Now(), time.Now().Add(testMaxInterval*12/10))
		until(t, "a long wait begins", func() bool { return time.Until(n.peer("nobody").NextAttempt) > testMaxInterval*7/10 })
		before := n.peer("nobody").NextAttempt
		n.put("key", "value")
		time.Sleep(time.Millisecond)
		after := n.peer("nobody").NextAttempt
		require.True(t, after.Before(before), "%v is not before %v", after, before)
		require.WithinRange(t, after, time.Now(), time.Now().Add(testMaxInterval/2*12/10))
		time.Sleep(time.Until(after))
		dials.gaps()

		// Many writes bring it down to the least, and not below.
		for range 500 {
			n.put("key", "value")
			time.Sleep(20 * time.Millisecond)
		}
		gaps = dials.gaps()
		require.Greater(t, len(gaps), 15, "in ten seconds")
		require.GreaterOrEqual(t, slices.Min(gaps), testMinInterval*8/10)
		require.Less(t, gaps[len(gaps)-1], 4*testMinInterval)

		// It decays again.
		time.Sleep(10 * time.Minute)
		gaps = dials.gaps()
		require.True(t, jittered(gaps[len(gaps)-1], testMaxInterval))
		require.True(t, slices.Max(gaps) <= testMaxInterval*12/10)
	})
}

// TestScheduleOfSession counts the bytes of a session in which nothing happens:
// heartbeats become rare, but not too rare.
func TestScheduleOfSession(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		for _, n := range c.nodes {
			n.open(func(o *replicator.Options) { o.MinInterval, o.MaxInterval = testMinInterval, testMaxInterval })
		}
		a := c.nodes[0]
		until(t, "a session", func() bool { return a.inSync("n1") })
		time.Sleep(10 * time.Minute)
		measure := func(d time.Duration) float64 {
			before := c.net.Bytes("n0", "n1")
			time.Sleep(d)
			return float64(c.net.Bytes("n0", "n1")-before) / d.Minutes()
		}
		idle := measure(time.Hour)
		const ping = 12 // bytes of a ping and of a pong, at most
		require.InDelta(t, 2*ping*float64(time.Minute/testMaxInterval), idle, 2*ping*2, "bytes a minute")
		require.WithinRange(t, a.peer("n1").LastSuccess, time.Now().Add(-testMaxInterval*12/10), time.Now())
		require.Equal(t, 1, c.net.Connections())

		// Each write doubles how often the peer is asked, beside being sent at once.
		a.put("key", "value")
		time.Sleep(time.Millisecond)
		value, _ := c.nodes[1].get("key")
		require.Equal(t, "value", value, "a put is sent at once")
		time.Sleep(time.Minute)
		before := a.peer("n1").LastSuccess
		for range 20 {
			a.put("key", "value")
			time.Sleep(testMinInterval)
		}
		require.Less(t, time.Since(a.peer("n1").LastSuccess), 2*testMinInterval)
		require.True(t, a.peer("n1").LastSuccess.After(before))
	})
}

// TestScheduleAfterSuccess has a peer go away and come back: the backoff starts
// afresh.
func TestScheduleAfterSuccess(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		dials := &countingDial{}
		c.nodes[0].open(func(o *replicator.Options) {
			dials.dial, o.Dial = o.Dial, dials.Dial
			o.MinInterval, o.MaxInterval = testMinInterval, testMaxInterval
		})
		time.Sleep(10 * time.Minute)
		c.nodes[1].open()
		until(t, "a session", func() bool { return c.nodes[0].inSync("n1") })
		time.Sleep(time.Minute)
		dials.gaps()
		c.nodes[1].close()
		down := time.Now()
		time.Sleep(2 * time.Second)
		dials.mu.Lock()
		defer dials.mu.Unlock()
		require.Greater(t, len(dials.times), 1)
		again := dials.times[1].Sub(down)
		require.True(t, jittered(again, testMinInterval), "the first attempt comes after %v", again)
	})
}
