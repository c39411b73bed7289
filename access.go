package replicator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"
)

// This file owns who is let in, and what a peer may do.

// PeerInfo is what Options.Authorize is told of a peer. Name, ID and Cluster are what the
// peer says of itself; only the certificates are proved.
type PeerInfo struct {
	ID      DatabaseID
	Name    string
	Cluster string
	Addr    string // remote address of the connection
	Dialed  bool   // this replica dialled

	// Certificates are those of the peer, verified, its own first. They are nil over plain
	// TCP, and must not be changed.
	Certificates []*x509.Certificate
}

// Access is what a peer may do here.
type Access int

const (
	ReadWrite Access = iota // exchange changes in both directions
	ReadOnly                // pull: nothing of it is merged here
)

// String returns "read-write" or "read-only".
func (a Access) String() string {
	if a == ReadOnly {
		return "read-only"
	}
	return "read-write"
}

// MarshalText makes an Access readable in JSON.
func (a Access) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reverses MarshalText.
func (a *Access) UnmarshalText(text []byte) error {
	switch string(text) {
	case "read-write":
		*a = ReadWrite
	case "read-only":
		*a = ReadOnly
	default:
		return fmt.Errorf("replicator: %q is no access", text)
	}
	return nil
}

// authorize asks the program what a peer may do that fits.
func (y *syncer) authorize(c *conn, h hello, dialed bool) (Access, error) {
	ask := y.settings.authorize
	if ask == nil {
		return ReadWrite, nil
	}
	access, err := ask(PeerInfo{
		ID: h.id, Name: h.name, Cluster: h.cluster, Addr: c.RemoteAddr().String(), Dialed: dialed, Certificates: c.certificates,
	})
	switch {
	case err != nil:
		return access, fmt.Errorf("%w: not authorized: %w", ErrRefused, err)
	case access != ReadWrite && access != ReadOnly:
		return access, fmt.Errorf("%w: Options.Authorize returned the access %d, which is unknown", ErrRefused, access)
	}
	return access, nil
}

// forget implements Replicator.Forget.
func (y *syncer) forget(id DatabaseID) error {
	if err := y.store.forget(id); err != nil {
		return err
	}
	y.mu.Lock()
	s := y.sessions[id]
	y.mu.Unlock()
	if s != nil { // none begins any more
		s.cancel(errForgotten)
		<-s.done
	}
	return nil
}

// protect has the frames of a connection go over TLS, if that is configured, and tells a
// peer that dialled in and is refused why.
func (y *syncer) protect(ctx context.Context, c *conn, addr string, dialed bool) error {
	if y.settings.tls == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, y.settings.timeout)
	defer cancel()
	err := c.secure(ctx, y.settings.tls, addr, dialed)
	if err == nil || dialed {
		return err
	}
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) {
		sayBye(c, errSpeaksTLS)
	}
	drain(c)
	return err
}

// errSpeaksTLS is for a peer that dials in without TLS, from where it stands.
var errSpeaksTLS = fmt.Errorf("%w: %s", ErrRefused, speaksTLS)

// drain reads what a refused peer has sent already. A connection that is closed with
// unread data is reset, and the peer may not see why.
func drain(c *conn) {
	if c.Conn.SetReadDeadline(time.Now().Add(byePatience)) == nil {
		_, _ = io.CopyN(io.Discard, c.Conn, maxSmallFrame)
	}
}
