package replicator

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A frame is a length (4 bytes, big-endian, of type and payload), a type (1),
// the payload, and a CRC-32C of type and payload (4).
const (
	frameHeader  = 5
	frameTrailer = 4
	// maxSmallFrame bounds every frame but pages, and all before the handshake.
	maxSmallFrame = 4 << 10
	// chunkSize is the size of a session's buffers; during the handshake they have
	// handshakeBuffer bytes.
	chunkSize       = 64 << 10
	handshakeBuffer = 4 << 10
	// writeChunk is how much is written at a time, so that deadlines follow progress.
	writeChunk = 16 << 10
	// maxStall is for how long a peer may take nothing that is written to it, though
	// it is heard. The kernel's buffer hides for minutes what a slow link takes.
	maxStall = 10 * time.Minute
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// conn sends and receives frames. One goroutine may receive while any number
// send. Every read and write has a deadline. What arrives moves both on, for a
// peer that is heard is alive, and its link may be slow.
type conn struct {
	net.Conn
	reader    *bufio.Reader
	timeout   time.Duration
	readUntil time.Time // the read deadline that is set
	bulk      bool      // the frame that is being read is a page or values

	sending turn // guards what follows, and one frame's way out
	writer  *bufio.Writer

	deadline   sync.Mutex // guards what follows
	writeUntil time.Time  // the write deadline that is set
	writeSince time.Time  // when the write that is under way began; zero: none is

	received, sent atomic.Int64 // bytes
	moved          atomic.Int64 // bytes of pages and values, in both directions, more or less
}

// turn is a mutex that is held while a frame is on its way, which can take minutes
// over a slow link, or while a commit is. In simulated time, nothing happens while
// anybody waits for a sync.Mutex.
type turn chan struct{}

func (t turn) take()     { t <- struct{}{} }
func (t turn) giveBack() { <-t }

// newConn returns a conn with small buffers, for the handshake. timeout bounds
// the time in which nothing arrives and nothing can be written.
func newConn(c net.Conn, timeout time.Duration) *conn {
	fc := &conn{Conn: c, timeout: timeout, sending: make(turn, 1)}
	fc.reader = bufio.NewReaderSize((*progressReader)(fc), handshakeBuffer)
	fc.writer = bufio.NewWriterSize((*progressWriter)(fc), handshakeBuffer)
	return fc
}

// widen gives the conn the buffers of a session. Nobody may be receiving.
func (c *conn) widen(timeout time.Duration) {
	c.sending.take()
	defer c.sending.giveBack()
	c.timeout = timeout
	c.reader = bufio.NewReaderSize(c.reader, chunkSize)
	c.writer = bufio.NewWriterSize((*progressWriter)(c), chunkSize)
}

// progressReader and progressWriter move the deadlines on, not at every call,
// for setting one costs as much as a small read.
type progressReader conn

func (c *progressReader) Read(b []byte) (int, error) {
	if err := extend(&c.readUntil, c.timeout, c.Conn.SetReadDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.received.Add(int64(n))
		if c.bulk {
			c.moved.Add(int64(n))
		}
		c.deadline.Lock()
		if since := c.writeSince; !since.IsZero() && time.Since(since) < maxStall {
			_ = extend(&c.writeUntil, c.timeout, c.Conn.SetWriteDeadline) // the write returns its error
		}
		c.deadline.Unlock()
	}
	return n, err
}

type progressWriter conn

func (c *progressWriter) Write(b []byte) (written int, err error) {
	for len(b) > 0 && err == nil {
		if err = c.begin(time.Now()); err != nil {
			break
		}
		var n int
		n, err = c.Conn.Write(b[:min(len(b), writeChunk)])
		c.sent.Add(int64(n))
		if len(b) > maxSmallFrame {
			c.moved.Add(int64(n))
		}
		written += n
		b = b[n:]
	}
	c.deadline.Lock()
	c.writeSince = time.Time{}
	c.deadline.Unlock()
	return written, err
}

// begin notes that a write begins, and moves its deadline on.
func (c *progressWriter) begin(now time.Time) error {
	c.deadline.Lock()
	defer c.deadline.Unlock()
	c.writeSince = now
	return extend(&c.writeUntil, c.timeout, c.Conn.SetWriteDeadline)
}

func extend(until *time.Time, timeout time.Duration, set func(time.Time) error) error {
	now := time.Now()
	if until.Sub(now) >= timeout {
		return nil
	}
	*until = now.Add(timeout + timeout/8)
	return set(*until)
}

// send writes one frame, whose payload is the parts in order.
func (c *conn) send(kind byte, parts ...[]byte) error {
	size := 1
	for _, p := range parts {
		size += len(p)
	}
	c.sending.take()
	defer c.sending.giveBack()
	head := binary.BigEndian.AppendUint32(c.writer.AvailableBuffer(), uint32(size))
	head = append(head, kind)
	sum := crc32.Update(0, castagnoli, head[4:])
	c.writer.Write(head) // its error sticks and is returned by Flush
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
		c.writer.Write(p)
	}
	c.writer.Write(binary.BigEndian.AppendUint32(c.writer.AvailableBuffer(), sum))
	return c.writer.Flush()
}

// receive reads one frame. limit gives the greatest length that a frame of a
// kind may have, 0 for kinds that are unknown. The payload is the caller's own.
func (c *conn) receive(limit func(kind byte) int) (kind byte, payload []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(c.reader, head[:]); err != nil {
		return 0, nil, readError(err)
	}
	kind = head[4]
	size := int64(binary.BigEndian.Uint32(head[:]))
	most := int64(limit(kind))
	switch other := otherProtocol(head[:]); {
	case (most == 0 || size > most) && other != "":
		return 0, nil, fmt.Errorf("%w: %s", ErrProtocol, other)
	case most == 0:
		return 0, nil, fmt.Errorf("%w: frame of unknown type %d and length %d", ErrProtocol, kind, size)
	case size < 1 || size > most:
		return 0, nil, fmt.Errorf("%w: frame of type %d has length %d, at most %d is accepted", ErrProtocol, kind, size, most)
	}
	c.bulk = kind == framePage || kind == frameValues
	body, err := c.readBody(int(size-1) + frameTrailer)
	c.bulk = false
	if err != nil {
		return 0, nil, readError(err)
	}
	payload, trailer := body[:size-1:size-1], body[size-1:]
	sum := crc32.Update(crc32.Update(0, castagnoli, head[4:]), castagnoli, payload)
	if sum != binary.BigEndian.Uint32(trailer) {
		return 0, nil, fmt.Errorf("%w: frame of type %d has a wrong checksum", ErrProtocol, kind)
	}
	return kind, payload, nil
}

// readBody reads n bytes. It sets aside 1 MiB, and then at most five times what
// has arrived: with fewer steps, less is copied and held twice.
func (c *conn) readBody(n int) ([]byte, error) {
	const trusted = 1 << 20
	body := make([]byte, min(n, trusted))
	for have := 0; ; {
		if _, err := io.ReadFull(c.reader, body[have:]); err != nil {
			return nil, err
		}
		if have = len(body); have == n {
			return body, nil
		}
		size := 4 * have
		if n <= 5*have {
			size = n
		}
		grown := make([]byte, size)
		copy(grown, body)
		body = grown
	}
}

// readError tells an orderly end from a broken one.
func readError(err error) error {
	var timeout net.Error
	switch {
	case err == io.EOF:
		return errors.New("the peer closed the connection")
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("nothing heard from the peer: %w", err)
	}
	return err
}

// otherProtocol says what a peer speaks whose first bytes are not a frame, or
// nothing.
func otherProtocol(head []byte) string {
	for _, p := range []struct{ prefix, what string }{
		{"HTTP/", "the other side is an HTTP server: check address and port"},
		{"SSH-", "the other side is an SSH server: check address and port"},
		{"GET ", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"HEAD ", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"POST ", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"OPTIO", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"\x15\x03", "the other side speaks TLS, this side does not: check the port, and that both sides are configured alike"},
		{"\x16\x03", "the other side speaks TLS, this side does not: check the port, and that both sides are configured alike"},
	} {
		if strings.HasPrefix(string(head), p.prefix) {
			return p.what
		}
	}
	return ""
}
