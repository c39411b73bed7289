package replicator

import (
	"errors"
	"fmt"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the errors that callers and peers can tell apart.

// Errors that callers may want to tell apart with errors.Is. A missing key is
// reported as leveldb.ErrNotFound, unwrapped.
var (
	// ErrClosed is returned after Close by every method that returns an error, but for
	// Close. It matches leveldb.ErrClosed.
	ErrClosed error = closedError{}
	// ErrInUse is returned by Open if the handle already has a Replicator. It is
	// returned by Close if the Replicator owns the handle and iterators or snapshots
	// are still open.
	ErrInUse = errors.New("replicator: in use")
	// ErrReserved is returned by writes for a key under the reserved prefix
	// "\xffreplicator\xff", and by Open if other software keeps keys there. Reads do not
	// find such keys.
	ErrReserved = errors.New(`replicator: keys under "\xffreplicator\xff" are reserved`)
	// ErrTooLarge is returned for a key or a value that exceeds its limit.
	ErrTooLarge = errors.New("replicator: too large to be replicated")
	// ErrFailed is returned by writes and by Close, with the cause, after a write to
	// leveldb has failed. Reads still work. To write again, close the database and
	// reopen it. Set Options.Recovered if the device lost writes that it had
	// confirmed.
	ErrFailed = errors.New("replicator: stopped writing after a failed write; reopen the database")
	// ErrClock is returned when a clock is out of bounds. A local write must not
	// pass 2^62. A peer's change must not exceed 2^48, plus 2^20 for each second
	// since 2026-01-01 UTC by the local wall clock, which is taken an hour ahead; that
	// of a hybrid clock must not be ahead of the local wall clock by more than
	// Options.MaxSkew.
	ErrClock = errors.New("replicator: clock out of bounds")
	// ErrProtocol marks data from a peer that violates the protocol: another
	// protocol, a wrong checksum, a length above the limit, a value out of range.
	ErrProtocol = errors.New("replicator: protocol violation")
	// ErrRefused marks a session that one of the two sides refuses, for instance
	// because the versions, the clusters or the limits differ.
	ErrRefused = errors.New("replicator: session refused")
	// ErrSelf marks an address that leads back to this Replicator.
	ErrSelf = errors.New("replicator: the address is this replica's own")
	// ErrCloned marks a peer that has the same database id, which means that the
	// directory was copied.
	ErrCloned = errors.New("replicator: another replica has this database id")
	// ErrStale marks a peer with which nothing is exchanged, because one of the two
	// replicas has not seen deletions that the other one has forgotten
	// (Options.TombstoneAge). See Rejoin, and PeerStatus.Stale.
	ErrStale = errors.New("replicator: stale")
	// ErrUnknownPeer is returned by RemovePeer for an address that was not added, by
	// Compare, Repair and Rejoin for what does not name one peer, by Readmit for a peer that was
	// not forgotten, and by Forget for the zero id and for this replica's own.
	ErrUnknownPeer = errors.New("replicator: no such peer")
	// ErrCursor is given by Changes and Watch for a Cursor from which they cannot go on:
	// it is of another history than that of the database, or deletions that it has not
	// seen are no longer known. Forget what was built of the changes, and start from the
	// zero Cursor.
	ErrCursor = errors.New("replicator: the feed cannot go on from this cursor; start from the zero Cursor")
)

// errorPrefix begins the texts of the package's errors.
const errorPrefix = "replicator: "

// withoutPrefix returns the text of an error for the midst of another one.
func withoutPrefix(text string) string { return strings.TrimPrefix(text, errorPrefix) }

// failed says what has failed, unless the error is one of the package's own, which says so.
func failed(what string, err error) error {
	if strings.HasPrefix(err.Error(), errorPrefix) {
		return err
	}
	return fmt.Errorf("%s%s: %w", errorPrefix, what, err)
}

// errDuplicate ends a connection that is not needed. A bye carries it to the peer.
var errDuplicate = errors.New("replicator: there is a session with this peer already")

type closedError struct{}

func (closedError) Error() string        { return "replicator: closed" }
func (closedError) Is(target error) bool { return target == leveldb.ErrClosed }

// PeerError adds the peer and the operation to an error.
type PeerError struct {
	Addr string // the peer's address
	Op   string // the operation: "dial", "handshake", "session", "compare", "repair" or "rejoin"
	Err  error
}

// Error names the peer, the operation and the cause.
func (e *PeerError) Error() string {
	return fmt.Sprintf("%speer %s: %s: %s", errorPrefix, e.Addr, e.Op, withoutPrefix(fmt.Sprint(e.Err)))
}

// Unwrap returns the cause.
func (e *PeerError) Unwrap() error { return e.Err }
