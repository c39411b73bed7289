package replicator

import (
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the errors that callers, and peers, can tell apart.

// Errors that callers may want to tell apart, with errors.Is. A key that is not
// there is leveldb.ErrNotFound, as it is.
var (
	// ErrClosed is returned by every method after Close. It matches
	// leveldb.ErrClosed.
	ErrClosed error = closedError{}
	// ErrInUse is returned by Open for a handle that has a Replicator already,
	// and by Close while iterators or snapshots of an owned handle are open.
	ErrInUse = errors.New("replicator: in use")
	// ErrReserved is returned for a key under the reserved prefix
	// "\xffreplicator\xff", and by Open if somebody else keeps keys there.
	ErrReserved = errors.New(`replicator: keys under "\xffreplicator\xff" are reserved`)
	// ErrTooLarge is returned for a key or a value above the limits.
	ErrTooLarge = errors.New("replicator: too large to be replicated")
	// ErrFailed is returned by writes, and by Close, after a write to leveldb has
	// failed, with the cause. Reads go on. To write again, close the database and
	// open it anew; with Options.Recovered, if the device lost what it had confirmed.
	ErrFailed = errors.New("replicator: stopped writing after a failed write; reopen the database")
	// ErrClock is returned when a clock left its bounds: for a local write that
	// would pass 2^62, and to a peer whose change is above 2^48 + 2^20 for each
	// second since 2026-01-01 UTC, by the wall clock here, an hour ahead.
	ErrClock = errors.New("replicator: clock out of bounds")
	// ErrProtocol marks what a peer sent and should not have: not our protocol,
	// a wrong checksum, a length above the limit, values out of range.
	ErrProtocol = errors.New("replicator: protocol violation")
	// ErrRefused marks a session that one of the two sides does not want: other
	// version, other cluster, other limits.
	ErrRefused = errors.New("replicator: session refused")
	// ErrSelf marks an address that leads back to this very Replicator.
	ErrSelf = errors.New("replicator: the address is this replica's own")
	// ErrCloned marks a peer that has the same database id: a copied directory.
	ErrCloned = errors.New("replicator: another replica has this database id")
	// ErrUnknownPeer is returned by RemovePeer for an address it doesn't know.
	ErrUnknownPeer = errors.New("replicator: no such peer")
)

// errDuplicate ends a connection that is not needed. It travels.
var errDuplicate = errors.New("replicator: there is a session with this peer already")

type closedError struct{}

func (closedError) Error() string        { return "replicator: closed" }
func (closedError) Is(target error) bool { return target == leveldb.ErrClosed }

// PeerError tells which peer an error belongs to and what was being done.
type PeerError struct {
	Addr string // the peer's address
	Op   string // "dial", "handshake" or "session"
	Err  error
}

func (e *PeerError) Error() string {
	return fmt.Sprintf("replicator: peer %s: %s: %v", e.Addr, e.Op, e.Err)
}

func (e *PeerError) Unwrap() error { return e.Err }
