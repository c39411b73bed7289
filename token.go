package replicator

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// This file owns tokens, and the methods that wait: for a token's change to be here, and
// for changes made here to be elsewhere.

// Token names a change, so that another replica can be asked to wait for it: put it
// into a cookie, and a user who is sent to another server reads what he wrote. The zero
// Token names no change. Tokens can be compared with ==.
//
// A Token marshals to text of letters, digits, hyphens and underscores: at most 40
// characters, and 4 for every 3 bytes of its key, if it has one. The zero Token marshals
// to the empty text.
type Token struct {
	stamp Stamp
	keyed bool
	key   string
}

// MaxTokenKey is the size in bytes of the largest key that a Token holds.
const MaxTokenKey = 1 << 10

// The first byte of a token's text, decoded.
const (
	tokenPlain = 1
	tokenKeyed = 2
)

// Token returns a token for one change of a key, as Commit returned its stamp. WaitFor
// then also returns when this key's change is here, or a later one, although others that
// were made before it may not be. So it waits for no more than the key. A key larger than
// MaxTokenKey is left out.
func (s Stamp) Token(key []byte) Token {
	if s == (Stamp{}) {
		return Token{}
	}
	if len(key) > MaxTokenKey {
		return Token{stamp: s}
	}
	return Token{stamp: s, keyed: true, key: string(key)}
}

// IsZero reports whether the token names no change.
func (t Token) IsZero() bool { return t == Token{} }

// String returns the same text as MarshalText.
func (t Token) String() string {
	if t.IsZero() {
		return ""
	}
	b := []byte{tokenPlain}
	if t.keyed {
		b[0] = tokenKeyed
	}
	b = binary.AppendUvarint(b, t.stamp.Clock)
	b = binary.BigEndian.AppendUint64(b, uint64(t.stamp.Origin))
	return base64.RawURLEncoding.EncodeToString(append(b, t.key...))
}

// MarshalText returns the text of the token.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses the output of MarshalText. It accepts no other text. A text from
// elsewhere may name a change that nobody made: WaitFor then waits for its context.
func (t *Token) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*t = Token{}
		return nil
	}
	if len(text) > base64.RawURLEncoding.EncodedLen(1+binary.MaxVarintLen64+8+MaxTokenKey) {
		return fmt.Errorf("replicator: token: %d characters are too many", len(text))
	}
	b := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
	if _, err := base64.RawURLEncoding.Decode(b, text); err != nil {
		return fmt.Errorf("replicator: token: %w", err)
	}
	r := decoder{rest: b}
	kind := r.byte()
	parsed := Token{stamp: Stamp{r.uvarint(), Origin(r.uint64())}, keyed: kind == tokenKeyed}
	if parsed.keyed {
		parsed.key = string(r.rest)
		r.rest = nil
	}
	err := r.finish()
	switch {
	case err != nil:
	case kind != tokenPlain && kind != tokenKeyed || parsed.stamp.Origin&drawnOrigin == 0 || len(parsed.key) > MaxTokenKey:
		err = errors.New("malformed")
	case !bytes.Equal(text, []byte(parsed.String())):
		err = errors.New("not in its only form")
	}
	if err != nil {
		return fmt.Errorf("replicator: token: %w", err)
	}
	*t = parsed
	return nil
}

// Commit is Write, and returns the stamp of the batch's first operation. The following
// operations have the same origin and ascending clocks, without gaps. Operations on keys
// under Options.LocalPrefix have none, and do not count. A batch without others, or a nil or
// empty batch, has the zero Stamp.
func (r *Replicator) Commit(b *leveldb.Batch, wo *opt.WriteOptions) (Stamp, error) {
	return r.commit(b, wo)
}

// Token returns a token for everything that was written on this replica so far, by
// anybody. It is zero before the first write.
func (r *Replicator) Token() Token { return Token{stamp: r.store.known.lastOwn()} }

// WaitFor returns nil once the change that a token names is merged here, or a later one
// of its key, and everything that its replica had written before it. For the zero Token,
// and a change that is here, it returns at once. It is woken by merges, and asks nobody.
//
// If a power cut took back the change before a peer had it, WaitFor may wait for ever:
// use a context with a deadline. WaitFor returns the error of ctx, ErrClosed, or
// ErrFailed if nothing is merged any more since a write has failed.
func (r *Replicator) WaitFor(ctx context.Context, t Token) error {
	if r.gate.isClosed() {
		return ErrClosed
	}
	if t.IsZero() {
		return nil
	}
	return r.syncer.waitFor(ctx, t.stamp, []byte(t.key), t.keyed)
}

// WaitMerged returns nil once n peers have merged everything that was written or merged
// here before the call. What they have merged survives the end of their processes, but
// perhaps not a power cut. A peer counts once, whether it is connected or not; if it
// comes back as another process, it counts again once it has told how far it is. With
// fewer than n known peers, WaitMerged waits for more to come: use a context with a
// deadline. If n is not above 0, it returns at once. It returns the error of ctx, ErrClosed
// or ErrFailed, or another error if it turns out during the call that the machine was resumed
// from an image, so that what was written before is in doubt.
func (r *Replicator) WaitMerged(ctx context.Context, n int) error { return r.wait(ctx, n, false) }

// WaitReplicated is like WaitMerged, and waits until n peers have made it durable: it
// survives a power cut of all of them. It asks each peer to do so once that has merged
// it, at most once in 100 ms. That costs a peer some milliseconds and a small table, so
// it is for changes that must not be lost, not for each of many.
func (r *Replicator) WaitReplicated(ctx context.Context, n int) error { return r.wait(ctx, n, true) }

func (r *Replicator) wait(ctx context.Context, n int, durable bool) error {
	if r.gate.isClosed() {
		return ErrClosed
	}
	return r.syncer.waitPeers(ctx, n, durable)
}
