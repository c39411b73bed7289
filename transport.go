package replicator

import (
	"bufio"
	"crypto/x509"
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

// This file owns frames on a connection, and the deadlines that their progress extends.

// A frame consists of a length (4 bytes, big-endian; the length of type and payload), a
// type (1 byte), the payload, and a CRC-32C of type and payload (4 bytes).
const (
	frameHeader  = 5
	frameTrailer = 4
	// maxSmallFrame bounds all frames of the handshake and, in a session, all frames
	// that carry neither keys nor values.
	maxSmallFrame = 4 << 10
	// chunkSize is the size of a session's buffers in bytes. During the handshake
	// they have handshakeBuffer bytes.
	chunkSize       = 64 << 10
	handshakeBuffer = 4 << 10
	// writeChunk bounds the bytes of one write to the connection, so that progress
	// extends the deadline.
	writeChunk = 16 << 10
	// maxStall bounds the time in which a peer that is heard from accepts no written
	// data. It is long because the kernel's buffer hides the progress of a slow link
	// for minutes.
	maxStall = 10 * time.Minute
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// conn sends and receives frames. One goroutine may receive while any number of others
// send. Every read and every write has a deadline. Received data extends both deadlines:
// a peer that is heard from is alive, and its link may be slow.
type conn struct {
	net.Conn
	stream    io.ReadWriter // where frames are read and written: the connection, or TLS over it
	reader    *bufio.Reader
	timeout   time.Duration
	readUntil time.Time // the read deadline that is set
	bulk      bool      // the frame being read is a page or values

	sending turn // guards the fields below, and is held while a frame is written
	writer  *bufio.Writer

	deadline   sync.Mutex // guards the fields below
	writeUntil time.Time  // the write deadline that is set
	writeSince time.Time  // start of the write in progress; zero: none

	received, sent atomic.Int64 // bytes
	moved          atomic.Int64 // bytes of pages and values in both directions, approximately
	gained         atomic.Int64 // bytes of pages and values received, approximately

	certificates []*x509.Certificate // of the peer, its own first; nil over plain TCP
}

// newConn returns a conn with small buffers, for the handshake. timeout bounds the time
// without received data and without progress of a write.
func newConn(c net.Conn, timeout time.Duration) *conn {
	fc := &conn{Conn: c, timeout: timeout, sending: make(turn, 1)}
	fc.over(paced{c, fc})
	return fc
}

// over has frames go over a stream. It must not be called once a frame was sent or received.
func (c *conn) over(stream io.ReadWriter) {
	c.stream = stream
	c.reader = bufio.NewReaderSize(stream, handshakeBuffer)
	c.writer = bufio.NewWriterSize(stream, handshakeBuffer)
}

// paced is a conn's connection, with deadlines that progress extends. TLS lies over it, for
// TLS does not survive a write whose deadline has passed.
type paced struct {
	net.Conn
	c *conn
}

func (p paced) Read(b []byte) (int, error)  { return (*progressReader)(p.c).Read(b) }
func (p paced) Write(b []byte) (int, error) { return (*progressWriter)(p.c).Write(b) }

// widen gives the conn the buffers of a session, and a new timeout. It must not be
// called during a receive.
func (c *conn) widen(timeout time.Duration) {
	c.sending.take()
	defer c.sending.giveBack()
	c.timeout = timeout
	c.reader = bufio.NewReaderSize(c.reader, chunkSize)
	c.writer = bufio.NewWriterSize(c.stream, chunkSize)
}

// progressReader and progressWriter extend the deadlines, but not at every call, because
// setting a deadline costs as much as a small read.
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
			c.gained.Add(int64(n))
		}
		c.deadline.Lock()
		if since := c.writeSince; !since.IsZero() && time.Since(since) < maxStall {
			_ = extend(&c.writeUntil, c.timeout, c.Conn.SetWriteDeadline) // the write will return the error
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

// begin records the start of a write, and extends its deadline.
func (c *progressWriter) begin(now time.Time) error {
	c.deadline.Lock()
	defer c.deadline.Unlock()
	c.writeSince = now
	return extend(&c.writeUntil, c.timeout, c.Conn.SetWriteDeadline)
}

// extend sets a deadline to somewhat more than timeout from now, if less than timeout is
// left. until is the deadline that is set.
func extend(until *time.Time, timeout time.Duration, set func(time.Time) error) error {
	now := time.Now()
	if until.Sub(now) >= timeout {
		return nil
	}
	*until = now.Add(timeout + timeout/8)
	return set(*until)
}

// send writes one frame. Its payload is the concatenation of parts.
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
	c.writer.Write(head) // an error sticks, and Flush returns it
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
		c.writer.Write(p)
	}
	c.writer.Write(binary.BigEndian.AppendUint32(c.writer.AvailableBuffer(), sum))
	return c.writer.Flush()
}

// receive reads one frame. limit returns the greatest length of a frame of the given
// kind, or 0 for an unknown kind. The caller owns the returned payload.
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
	if c.bulk = kind == framePage || kind == frameValues || kind == frameReply; c.bulk {
		here := min(int64(c.reader.Buffered()), size) // of the frame
		c.moved.Add(here)
		c.gained.Add(here)
	}
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

// readBody reads n bytes. It allocates at most 1 MiB at first, and later at most five
// times the number of received bytes, so that a peer cannot make it allocate much by a
// large length. Few and large steps keep down the copying and the memory in use.
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

// readError describes the end of a connection: orderly, by a timeout, or broken.
func readError(err error) error {
	if said := tlsError(err); said != err {
		return said
	}
	var timeout net.Error
	switch {
	case err == io.EOF:
		return errors.New("the peer closed the connection")
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("nothing heard from the peer: %w", err)
	}
	return err
}

// otherProtocol describes the protocol of a peer whose first bytes are not a frame. It
// returns "" if it does not know the protocol.
func otherProtocol(head []byte) string {
	for _, p := range []struct{ prefix, what string }{
		{"HTTP/", "the other side is an HTTP server: check address and port"},
		{"SSH-", "the other side is an SSH server: check address and port"},
		{"GET ", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"HEAD ", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"POST ", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"OPTIO", "the other side speaks HTTP: it is a browser, a proxy or a health check"},
		{"\x15\x03", speaksTLS},
		{"\x16\x03", speaksTLS},
	} {
		if strings.HasPrefix(string(head), p.prefix) {
			return p.what
		}
	}
	return ""
}
