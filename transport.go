package replicator

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
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
	// chunkSize is how much is written, or allocated for reading, at a time, so
	// that deadlines follow progress and memory follows what really arrives.
	chunkSize = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// conn sends and receives frames. One goroutine may receive while any number
// send. Every read and write has a deadline that progress moves on.
type conn struct {
	net.Conn
	reader                    *bufio.Reader
	readTimeout, writeTimeout time.Duration
	readUntil                 time.Time // the read deadline that is set

	sending    sync.Mutex // guards what follows, and one frame's way out
	writer     *bufio.Writer
	writeUntil time.Time

	received, sent atomic.Int64 // bytes
}

func newConn(c net.Conn, readTimeout, writeTimeout time.Duration) *conn {
	fc := &conn{Conn: c, readTimeout: readTimeout, writeTimeout: writeTimeout}
	fc.reader = bufio.NewReaderSize((*progressReader)(fc), chunkSize)
	fc.writer = bufio.NewWriterSize((*progressWriter)(fc), chunkSize)
	return fc
}

// progressReader and progressWriter move the deadlines on, not at every call,
// for setting one costs as much as a small read.
type progressReader conn

func (c *progressReader) Read(b []byte) (int, error) {
	if err := extend(&c.readUntil, c.readTimeout, c.Conn.SetReadDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

type progressWriter conn

func (c *progressWriter) Write(b []byte) (written int, err error) {
	for len(b) > 0 && err == nil {
		if err = extend(&c.writeUntil, c.writeTimeout, c.Conn.SetWriteDeadline); err != nil {
			break
		}
		var n int
		n, err = c.Conn.Write(b[:min(len(b), chunkSize)])
		c.sent.Add(int64(n))
		written += n
		b = b[n:]
	}
	return written, err
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
	c.sending.Lock()
	defer c.sending.Unlock()
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
	switch most := int64(limit(kind)); {
	case most == 0:
		return 0, nil, fmt.Errorf("%w: frame of unknown type %d and length %d", ErrProtocol, kind, size)
	case size < 1 || size > most:
		return 0, nil, fmt.Errorf("%w: frame of type %d has length %d, at most %d is accepted", ErrProtocol, kind, size, most)
	}
	body, err := c.readBody(int(size-1) + frameTrailer)
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
