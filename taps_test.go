package replicator_test

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// hanging is a Dial that gets nowhere.
func hanging(ctx context.Context, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// countingDial notes when it is called.
type countingDial struct {
	mu    sync.Mutex
	times []time.Time
	dial  func(ctx context.Context, addr string) (net.Conn, error)
}

func (d *countingDial) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d.mu.Lock()
	d.times = append(d.times, time.Now())
	d.mu.Unlock()
	return d.dial(ctx, addr)
}

// gaps returns the times between the calls so far, and forgets them.
func (d *countingDial) gaps() (gaps []time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := 1; i < len(d.times); i++ {
		gaps = append(gaps, d.times[i].Sub(d.times[i-1]))
	}
	d.times = d.times[max(0, len(d.times)-1):]
	return gaps
}

// logRow is a record of the change log, as it is stored.
type logRow struct {
	key   []byte // of the row
	seq   uint64
	clock uint64
	name  string // the user's key
}

func logRows(t *testing.T, db *leveldb.DB) (rows []logRow) {
	it := db.NewIterator(util.BytesPrefix([]byte(reservedPrefix+"l")), nil)
	defer it.Release()
	for it.Next() {
		row := logRow{key: append([]byte{}, it.Key()...)}
		row.seq = binary.BigEndian.Uint64(it.Key()[len(it.Key())-8:])
		clock, n := binary.Uvarint(it.Value()[1:]) // behind the operation
		require.Positive(t, n)
		row.clock, row.name = clock, string(it.Value()[1+n+8:])
		rows = append(rows, row)
	}
	require.NoError(t, it.Error())
	return rows
}

// frameTap calls a hook before each frame that is sent.
type frameTap struct {
	net.Conn
	hook func(kind byte)
	head []byte
	skip int
}

const (
	pullFrame  = 5
	fetchFrame = 7
)

func (c *frameTap) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if n := min(c.skip, len(rest)); n > 0 {
			c.skip -= n
			rest = rest[n:]
			continue
		}
		c.head, rest = append(c.head, rest[0]), rest[1:]
		if len(c.head) == 5 {
			c.hook(c.head[4])
			c.skip = int(binary.BigEndian.Uint32(c.head)) - 1 + 4
			c.head = c.head[:0]
		}
	}
	return c.Conn.Write(p)
}

// openTapped opens a node with a hook for the frames that it sends over
// connections that it dials.
func openTapped(n *node, hook func(kind byte)) {
	openNode(n, func(o *replicator.Options) {
		dial := o.Dial
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			return &frameTap{Conn: c, hook: hook}, nil
		}
	})
}
