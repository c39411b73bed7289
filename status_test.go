package replicator_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// TestStatusAfterSync: once SyncNow has returned without an error, the state is
// "in sync", also if there was nothing to merge.
func TestStatusAfterSync(t *testing.T) {
	for i := range 20 {
		inSeeded(t, int64(i), 2, func(t *testing.T, c *cluster) {
			c.link(0, 1)
			if i%2 == 1 {
				c.link(1, 0)
			}
			c.open()
			for _, n := range c.nodes {
				require.NoError(t, n.sync())
				for _, p := range n.r.Status().Peers {
					require.Equal(t, replicator.StateInSync, p.State)
					require.Equal(t, "0", known(p.Behind))
				}
			}
		})
	}
}

// TestStatusUnknown: what is not known is nil, and null in JSON, not 0.
func TestStatusUnknown(t *testing.T) {
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) {
		c.durableEvery = time.Second
		c.nodes[0].peers = []string{"nobody", "n1", "n0", "n1#second"}
		c.open()
		a := c.nodes[0]
		a.put("key", "value")
		time.Sleep(10 * time.Second)
		nobody := a.peer("nobody")
		require.Nil(t, nobody.Behind)
		require.Nil(t, nobody.Unconfirmed)
		require.Nil(t, nobody.Acknowledged)
		self := a.peer("n0")
		require.Equal(t, replicator.StateSelf, self.State)
		require.Nil(t, self.Behind)
		require.Nil(t, self.Unconfirmed)
		good := a.peer("n1")
		require.Equal(t, "0", known(good.Behind))
		require.Equal(t, "0", known(good.Unconfirmed))
		text, err := json.Marshal(a.r.Status())
		require.NoError(t, err)
		require.Contains(t, string(text), `"behind":null`)
		var back replicator.Status
		require.NoError(t, json.Unmarshal(text, &back))
		again, err := json.Marshal(back)
		require.NoError(t, err)
		require.Equal(t, string(text), string(again), "the status survives JSON")
	})
}

// TestStatusShowsHowItGoes: round trips, how far a scan has come, for how long something
// has not been merged, how long commits take, and the last warnings.
func TestStatusShowsHowItGoes(t *testing.T) {
	t.Parallel()
	inPair(t, 1, func(t *testing.T, c *cluster, source, n *node) {
		c.fromDisk()
		source.open()
		source.fill("k", 0, 3000, 1000)
		c.net.SetDelay("n0", "n1", 50*time.Millisecond)
		n.open()
		require.Nil(t, n.peer("n0").RoundTrip)
		require.Nil(t, n.peer("n0").Lag)
		until(t, "a scan in key order", func() bool {
			s := n.peer("n0").Scan
			return s != nil && s.InKeyOrder && s.Done == nil && len(s.Key) > 0
		})
		require.NoError(t, n.sync())
		require.Nil(t, n.peer("n0").Scan)
		until(t, "a ping with nothing before it", func() bool { return n.peer("n0").RoundTrip.Round(10*time.Millisecond) == 100*time.Millisecond })
		require.Zero(t, *n.peer("n0").Lag)
		c.net.SetSpeed("n0", "n1", 100_000)
		source.fill("k", 0, 3000, 999)
		var most time.Duration
		done := []float64{0}
		until(t, "all is merged", func() bool {
			p := n.peer("n0")
			most = max(most, *p.Lag)
			if p.Scan != nil && p.Scan.Done != nil && *p.Scan.Done != done[len(done)-1] {
				done = append(done, *p.Scan.Done)
			}
			return len(done) > 2 && p.Scan == nil && *p.Lag == 0
		})
		require.Greater(t, most, 10*time.Second)
		require.IsIncreasing(t, done)
		require.LessOrEqual(t, done[len(done)-1], 1.0)
		commits := uint64(0)
		for _, b := range source.r.Status().Commits {
			commits += b.Count
		}
		require.InDelta(t, 6000, commits, 100)
		c.net.Isolate("n0")
		until(t, "a warning", func() bool { return len(n.r.Status().Warnings) > 0 })
		require.Contains(t, n.r.Status().Warnings[0].Text, "n0")
		until(t, "the session has ended", func() bool { return n.peer("n0").Lag == nil && n.peer("n0").RoundTrip == nil })
	})
}

// TestLastWarnings are the last 32, with what the logger adds, and logged as ever.
func TestLastWarnings(t *testing.T) {
	var kept logBuffer
	logger, last := replicator.KeepWarnings(textLogger(&kept))
	logger.Debug("not logged")
	logger.Info("not kept")
	for i := range 40 {
		logger.With("peer", "n1").WithGroup("group").Warn("warning", "number", i)
	}
	logger.Error("error")
	require.Len(t, last(), 32)
	require.Equal(t, `warning peer="n1" number="9"`, last()[0].Text)
	require.Equal(t, "error", last()[31].Text)
	require.Contains(t, kept.String(), "not kept")
	require.Contains(t, kept.String(), "group.number=39")
}

// TestOwnAddressIsLeftAlone: an address that leads to oneself is dialled once.
func TestOwnAddressIsLeftAlone(t *testing.T) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.peers = []string{"n0"}
		dials := &countingDial{}
		n.open(func(o *replicator.Options) { dials.dial, o.Dial = o.Dial, dials.Dial })
		require.NoError(t, n.sync())
		time.Sleep(time.Hour)
		require.NoError(t, n.sync())
		require.Len(t, dials.times, 1)
		require.Equal(t, replicator.StateSelf, n.peer("n0").State)
	})
}

// TestOneReplicaUnderTwoAddresses is shown as such, and has one session.
func TestOneReplicaUnderTwoAddresses(t *testing.T) {
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0], c.nodes[1]
		a.peers = []string{"n1", "n1:2"}
		second := c.net.Listen("n1:2")
		defer second.Close()
		b.open(func(o *replicator.Options) { o.Listener = join(o.Listener, second) })
		a.open()
		b.put("key", "value")
		require.NoError(t, a.sync())
		first, again := a.peer("n1"), a.peer("n1:2")
		require.Equal(t, first.ID, again.ID)
		require.Empty(t, first.SameAs)
		require.Equal(t, "n1", again.SameAs)
		until(t, "one connection is left", func() bool { return c.net.Connections() == 1 })
	})
}

// TestVersionWithDelete: a version prints and compares with its delete, and its
// origin survives JSON.
func TestVersionWithDelete(t *testing.T) {
	put := replicator.Version{Stamp: replicator.Stamp{Clock: 7, Origin: 1<<63 | 5}}
	deleted := put
	deleted.Deleted = true
	later := replicator.Version{Stamp: replicator.Stamp{Clock: 8, Origin: 1<<63 | 5}}
	require.Equal(t, "7@8000000000000005", fmt.Sprint(put))
	require.Equal(t, "-7@8000000000000005", fmt.Sprint(deleted))
	require.Equal(t, -1, put.Compare(deleted))
	require.Equal(t, 1, deleted.Compare(put))
	require.Equal(t, 0, deleted.Compare(deleted))
	require.Equal(t, -1, deleted.Compare(later))
	text, err := json.Marshal(deleted)
	require.NoError(t, err)
	var back replicator.Version
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, deleted, back)
	for _, bad := range []string{"", "8", "80000000000000055", "x000000000000005", "-000000000000005"} {
		require.Error(t, new(replicator.Origin).UnmarshalText([]byte(bad)), "%q", bad)
	}
}

// TestWarningsAreFew: a peer that is away for a day is worth a line at its beginning,
// one an hour, and one when it is back.
func TestWarningsAreFew(t *testing.T) {
	t.Parallel()
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0], c.nodes[1]
		a.peers = []string{"n1"}
		log := new(logBuffer)
		a.open(func(o *replicator.Options) { o.Logger = slog.New(slog.NewTextHandler(log, nil)); o.Name = "a" })
		b.open(func(o *replicator.Options) { o.Name = "the second" })
		b.put("first", "value")
		require.NoError(t, a.sync())
		b.close()
		time.Sleep(24*time.Hour + 30*time.Minute)
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		warnings := 0
		for _, line := range lines {
			if strings.Contains(line, "level=WARN") {
				require.Contains(t, line, "peer=n1")
				warnings++
			}
		}
		require.InDelta(t, 26, warnings, 2, "%s", log)
		require.Contains(t, log.String(), "for=24h")

		b.open(func(o *replicator.Options) { o.Name = "the second" })
		for i := range 3 {
			b.put(fmt.Sprint(i), "value")
		}
		time.Sleep(time.Minute)
		lines = strings.Split(strings.TrimSpace(log.String()), "\n")
		last := lines[len(lines)-1]
		for _, words := range []string{"is back and in sync", "peer=n1", `name="the second"`, "away=24h30m", "records=3", "full=false"} {
			require.Contains(t, last, words)
		}
		require.Equal(t, "the second", a.peer("n1").Name)
		require.Equal(t, "a", b.r.Status().Peers[0].Name)

		// Connections that break every few seconds are worth a line an hour.
		before := strings.Count(log.String(), "\n")
		for range 1000 {
			c.net.Isolate("n1")
			time.Sleep(time.Second)
			c.net.Heal()
			time.Sleep(5 * time.Second)
		}
		require.LessOrEqual(t, strings.Count(log.String(), "\n")-before, 12, "%s", log)
	})
}

// TestOrderlyEndsAreNoWarnings: a session that this side ends is no error.
func TestOrderlyEndsAreNoWarnings(t *testing.T) {
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0], c.nodes[1]
		a.peers = []string{"n1"}
		log := new(logBuffer)
		b.open()
		a.open(func(o *replicator.Options) { o.Logger = slog.New(slog.NewTextHandler(log, nil)) })
		require.NoError(t, a.sync())
		require.NoError(t, a.r.RemovePeer("n1"))
		time.Sleep(time.Second)
		require.NoError(t, a.r.AddPeer("n1", nil))
		require.NoError(t, a.sync())
		a.close()
		require.NotContains(t, log.String(), "level=WARN")
		require.NotContains(t, log.String(), "level=ERROR")
	})
}

// join returns a listener that accepts what either of two does.
func join(a, b net.Listener) net.Listener {
	l := &joinedListener{Listener: a, other: b, accepted: make(chan net.Conn), closed: make(chan struct{})}
	for _, of := range []net.Listener{a, b} {
		go func() {
			for {
				c, err := of.Accept()
				if err != nil {
					return
				}
				select {
				case l.accepted <- c:
				case <-l.closed:
					c.Close()
				}
			}
		}()
	}
	return l
}

type joinedListener struct {
	net.Listener
	other    net.Listener
	accepted chan net.Conn
	closed   chan struct{}
}

func (l *joinedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *joinedListener) Close() error {
	close(l.closed)
	return errors.Join(l.Listener.Close(), l.other.Close())
}

// TestStatusOfAnOpening: the name, the time of the opening, and whether it has ended.
func TestStatusOfAnOpening(t *testing.T) {
	inSeeded(t, 1, 1, func(t *testing.T, c *cluster) {
		began := time.Now()
		n := c.nodes[0]
		n.open(func(o *replicator.Options) { o.Name = "the first" })
		r := n.r
		time.Sleep(time.Minute)
		s := r.Status()
		require.Equal(t, "the first", s.Name)
		require.True(t, s.Opened.Equal(began), s.Opened)
		require.False(t, s.Closed)
		n.close()
		require.True(t, r.Status().Closed)
	})
}

// TestStatusLastInSync: it is told when everything that a peer had told of was last here,
// also after the session has ended.
func TestStatusLastInSync(t *testing.T) {
	inSeeded(t, 1, 2, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0], c.nodes[1]
		a.peers = []string{"n1"}
		a.open()
		time.Sleep(time.Minute)
		require.Zero(t, a.peer("n1").LastInSync)
		b.open()
		require.NoError(t, a.sync())
		first := a.peer("n1").LastInSync
		require.WithinDuration(t, time.Now(), first, time.Second)

		time.Sleep(time.Hour) // nothing happens, and pings show it
		require.WithinDuration(t, time.Now(), a.peer("n1").LastInSync, 15*time.Second)

		// Answers alone do not show it: a pull that takes long is under way.
		c.net.SetSpeed("n0", "n1", 20_000)
		var batch leveldb.Batch // at once, or a head in between is told, and reached
		for i := range 2000 {
			batch.Put(fmt.Append(nil, i), make([]byte, 1000))
		}
		require.NoError(t, b.r.Write(&batch, nil))
		time.Sleep(time.Minute)
		require.NotEqual(t, "0", known(a.peer("n1").Behind))
		require.Greater(t, time.Since(a.peer("n1").LastInSync), 30*time.Second)
		c.net.SetSpeed("n0", "n1", 0)
		require.NoError(t, a.sync())
		require.WithinDuration(t, time.Now(), a.peer("n1").LastInSync, time.Second)

		b.close()
		last := a.peer("n1").LastInSync
		time.Sleep(time.Hour)
		require.Equal(t, last, a.peer("n1").LastInSync)
	})
}

// TestStatusConflictInJSON: names in JSON are lower-case throughout.
func TestStatusConflictInJSON(t *testing.T) {
	c := replicator.Conflict{Key: []byte("k"), Won: replicator.Version{Stamp: replicator.Stamp{Clock: 7, Origin: 1 << 63}, Deleted: true}, LostValue: []byte("v")}
	text, err := json.Marshal(c)
	require.NoError(t, err)
	require.JSONEq(t, `{"key": "aw==", "won": {"clock": 7, "origin": "8000000000000000", "deleted": true},
		"lost": {"clock": 0, "origin": "0000000000000000", "deleted": false}, "lostValue": "dg==", "lostHere": false, "uncertain": false}`, string(text))
}
