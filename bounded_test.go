package replicator_test

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// TestBoundedAllocation: 3 bytes of a page become an entry of about 100 in
// memory, so their number is bounded first.
func TestBoundedAllocation(t *testing.T) {
	h := newHost(t, func(o *replicator.Options) { o.Timeout = 10 * time.Second })
	hi := newWireHi()
	c := dialWire(t, h.Addr())
	c.join(hi)
	page := wireFullPage(hi.epoch, 1)
	page = binary.AppendUvarint(page[:len(page)-1], 6<<20) // in the place of the count
	page = append(page, make([]byte, 18<<20)...)
	frame := wireFrame(wirePage, page)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c.Write(frame)
	c.awaitBye()
	runtime.ReadMemStats(&after)
	require.Less(t, (after.TotalAlloc-before.TotalAlloc)>>20, uint64(100), "MiB, for a frame of 18")
}
