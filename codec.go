package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// This file owns the encoding of numbers and strings in rows and frames.

var errTruncated = errors.New("truncated")

// decoder reads values from a row or a frame that the append functions wrote. The
// first error sticks: every later read returns a zero value. Returned byte slices
// alias the input.
type decoder struct {
	rest []byte
	err  error
}

func (r *decoder) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest = nil
}

func (r *decoder) take(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.fail(errTruncated)
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *decoder) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *decoder) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail(errTruncated)
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// bytes reads a length, which must not exceed limit, and that many bytes.
func (r *decoder) bytes(limit int) []byte {
	n := r.uvarint()
	if n > uint64(limit) {
		r.fail(fmt.Errorf("%d bytes where at most %d may stand", n, limit))
		return nil
	}
	return r.take(n)
}

func (r *decoder) position() position {
	return position{Origin(r.uint64()), r.uvarint()}
}

// finish returns the first error. Bytes that are left over are an error, too.
func (r *decoder) finish() error {
	if r.err == nil && len(r.rest) > 0 {
		return fmt.Errorf("%d bytes left over", len(r.rest))
	}
	return r.err
}

func appendBytes[T ~[]byte | ~string](dst []byte, b T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendPosition(dst []byte, p position) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(p.epoch))
	return binary.AppendUvarint(dst, p.seq)
}

func encodeUint64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
