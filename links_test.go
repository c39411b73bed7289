package replicator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// TestSlowLinks: whatever the speed of a link, what is sent over it arrives, in
// both directions, and once.
func TestSlowLinks(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]struct{ speed, values, size int }{
		"5000 B per s":                 {5000, 500, 1000},
		"5000 B per s, values fetched": {5000, 50, 10_000},
		"5000 B per s, a large value":  {5000, 1, 1 << 20},
		"300 B per s":                  {300, 100, 500},
		"50 B per s":                   {50, 20, 300},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(t *testing.T, c *cluster) {
				c.link(0, 1)
				c.open()
				a := c.nodes[0]
				require.NoError(t, a.sync())
				before := c.net.Bytes("n0", "n1") + c.net.Bytes("n1", "n0")
				c.net.SetSpeed("n0", "n1", link.speed)
				payload := 0
				for _, n := range c.nodes {
					for i := range link.values {
						value := strings.Repeat(n.name, link.size/2)
						payload += len(value)
						n.put(fmt.Sprint(n.name, i), value)
					}
				}
				took := 2 * time.Duration(payload/2/link.speed+120) * time.Second
				start := time.Now()
				for time.Since(start) < took && !c.equal() {
					time.Sleep(time.Second)
				}
				require.True(t, c.equal(), "after %v", took)
				sent := c.net.Bytes("n0", "n1") + c.net.Bytes("n1", "n0") - before
				t.Logf("took %v; %d bytes for %d; %d and %d records", time.Since(start), sent, payload, a.peer("n1").RecordsIn, a.peer("n1").RecordsOut)
				require.Less(t, sent, int64(payload+payload/10+2000))
				require.Empty(t, a.peer("n1").LastError)
			})
		})
	}
}

// TestMovedAddresses: a name that leads to another server than it did is followed,
// though the one that it led to before is alive and holds a session of its own
// making.
func TestMovedAddresses(t *testing.T) {
	for _, sync := range []bool{true, false} {
		t.Run(fmt.Sprintf("SyncNow %v", sync), func(t *testing.T) {
			inCluster(t, 3, func(t *testing.T, c *cluster) {
				a, old, moved := c.nodes[0], c.nodes[1], c.nodes[2]
				a.peers, old.peers = []string{"name"}, []string{"n0"}
				c.net.Redirect("name", "nowhere")
				old.open()
				moved.open()
				moved.put("key", "of the new server")
				a.open()
				old.put("key of the old", "value")
				require.NoError(t, old.sync()) // old has the session with a
				c.net.Redirect("name", "n1")
				require.NoError(t, a.sync())
				require.Equal(t, replicator.DialedByThem, a.peer("name").DialedBy)
				c.net.Redirect("name", "n2")
				if sync {
					require.NoError(t, a.sync())
					_, has := a.get("key")
					require.True(t, has, "SyncNow returned without what the new server has")
				} else {
					time.Sleep(2 * time.Minute)
					a.arrives("key", "of the new server")
				}
				require.Equal(t, moved.r.Status().ID, a.peer("name").ID)
				old.put("later", "value")
				a.arrives("later", "value") // the session with the old one goes on
			})
		})
	}
}
