package replicator

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"strings"
	"time"

	"github.com/syndtr/goleveldb/leveldb/opt"
)

// This file owns the options, with their defaults and bounds.

const (
	defaultMaxValueSize = 16 << 20
	maxMaxValueSize     = 1 << 30
	defaultMinInterval  = 100 * time.Millisecond
	defaultMaxInterval  = 10 * time.Second
	defaultTimeout      = 10 * time.Second
	defaultMaxSkew      = time.Hour
	minMaxSkew          = time.Minute

	defaultBacklog = 8 << 20
	durableEvery   = 5 * time.Minute

	defaultMaxLogRecords = 1_000_000
	defaultPeerAge       = 30 * 24 * time.Hour
	expireEvery          = time.Second
	newestRecords        = 10_000

	defaultMaxHandshakes      = 64
	defaultMaxSessions        = 256
	defaultMaxSessionsPerAddr = 16
)

// Options configures a Replicator. The zero value and nil are valid: they configure a
// replica without peers, which writes its change log and can be given peers later. A
// zero field means its default value. Open copies the options.
type Options struct {
	// Name is the name of this replica in the logs and the Status of its peers,
	// alongside its id. It must not exceed 255 bytes.
	//
	// The default value is empty: peers show the id only.
	Name string

	// Listen is the TCP address on which peers are accepted, such as
	// "127.0.0.1:8000", "[::1]:8000" or, for a port that the system chooses,
	// "127.0.0.1:0".
	//
	// The default value is empty: peers cannot dial in. Replication still works in
	// both directions over the sessions that this replica dials.
	Listen string

	// Listener is used instead of Listen. The Replicator closes it. If Open fails,
	// Open closes it.
	Listener net.Listener

	// Peers are the addresses to dial, with their metadata. AddPeer and RemovePeer
	// change the set at run time.
	Peers map[string]Meta

	// Dial connects to the address of a peer. It must return when ctx is done, with
	// either a connection or an error.
	//
	// The default value dials TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// ClusterKeys are secrets of at least 32 random bytes that all replicas of a cluster
	// share. Sessions then use TLS 1.3, and both sides prove that they know a key: whoever
	// knows none can neither read nor write. Certificates are made of the keys, in
	// memory; there is nothing else to manage. Listener and Dial are protected, too.
	//
	// The first key is the one that this replica proves to know; it accepts all of
	// them. To rotate a key, add the new one second everywhere, then make it first
	// everywhere, then remove the old one.
	//
	// The default value is nil.
	ClusterKeys [][]byte

	// TLS protects sessions by certificates of the caller's own, in place of ClusterKeys.
	// One configuration serves both roles. Both sides must present a certificate, for
	// servers and for clients, which the other side verifies against RootCAs, or
	// ClientCAs in the role of the server if that is set. TLS 1.3 is required.
	// GetCertificate, GetClientCertificate and VerifyConnection are called for each
	// session, so certificates can be replaced at run time. If ServerName is empty, the
	// dialled host must be in the peer's certificate. Open copies the configuration.
	//
	// The default value is nil.
	TLS *tls.Config

	// Authorize decides what a peer may do, before anything is served to it. It may be
	// called at any time by several goroutines, and holds up the handshake that it is
	// called for. An error refuses the peer, which is told its text. A peer with ReadOnly
	// access may pull: nothing of it is merged here, its own changes stay where they are,
	// and SyncNow does not wait for it. Both sides show in Status what was decided. A
	// decision holds for a session: to revoke it, end the session with RemovePeer, or
	// reopen.
	//
	// The default value is nil: whoever can connect may do everything.
	Authorize func(PeerInfo) (Access, error)

	// Insecure permits plain TCP beyond loopback addresses. Anybody who can reach the
	// port can then read and write the whole database. Without ClusterKeys and TLS,
	// Listener and Dial are not restricted: their security is the caller's
	// responsibility.
	Insecure bool

	// Cluster is a name that both ends of a session must share. It must not exceed
	// 255 bytes.
	//
	// The default value is empty.
	Cluster string

	// Clock is the kind of clock that stamps changes. All replicas of a cluster must use
	// the same kind.
	//
	// With Lamport, of two changes of a key that were made without knowledge of each
	// other, the one wins whose maker had made or seen more changes. The time of day plays
	// no part, so clocks that are wrong do no harm.
	//
	// With Hybrid, the one wins that was made later by the wall clocks of their makers, as
	// far as these agree; Stamp.Time tells when. A change made here is still above
	// everything seen here, whatever the clocks say. A wall clock that jumps back does not
	// take the clock back. Peers do not accept changes that are more than MaxSkew ahead of
	// their wall clocks, so keep the clocks of the machines right, by NTP for instance.
	//
	// A database with a Lamport clock can be opened with Hybrid, and has a hybrid clock
	// from then on: Open refuses to go back.
	//
	// The default value is Lamport.
	Clock ClockKind

	// MaxSkew is how far a hybrid clock of a peer may be ahead of the wall clock here. What
	// is further ahead is refused, with the session that brought it, and told in Status.
	// It must be at least a minute: after a power cut, a clock is up to 10 s ahead.
	//
	// The default value is 1 h.
	MaxSkew time.Duration

	// OnConflict is called for each pair of changes of one key that were made without
	// knowledge of each other, of which one has replaced the other or has been ignored.
	// It is called on every replica where the two meet, which for most pairs is one or
	// two, by one goroutine, in the order in which they were merged, and with no lock
	// held. Up to 1,000 conflicts, and 16 MiB of their keys and values, wait for it; Status
	// counts what is dropped beyond. The handler owns the slices of a Conflict.
	//
	// A handler may read and write. One that writes must write the same on all replicas:
	// otherwise what it writes on one is in conflict with what it writes on another. Also
	// what is the same is told as a conflict: it must do nothing about the keys that it has
	// written. One that acts only where Conflict.LostHere is true misses the pairs that
	// meet where the winner was made. It must not call Close, which waits for it.
	//
	// The default value is nil: conflicts are only counted, in Status, but for those that
	// a lookup would have to find; see ConflictStatus.
	OnConflict func(Conflict)

	// LocalPrefix is the prefix of keys that stay on this replica, such as a secondary index
	// that the program makes of the other keys. They are written by Put, Delete and Write,
	// also in one batch with others, within the same limits, and are read like any. They are
	// neither sent nor adopted, and have no Version. Compare, Status().Fingerprint, Digest,
	// Count, Recent and Changes leave them out, and a wait does not wait for them.
	//
	// It must be the same on all replicas: others refuse each other. Once it is set, the
	// database keeps it for good: Open fails if the prefix differs from that of an earlier
	// opening, or if a key under it is replicated already. It must not exceed 255 bytes, must not begin with
	// the reserved prefix "\xffreplicator\xff", and must not be the beginning of it.
	//
	// The default value is empty: all keys are replicated.
	LocalPrefix []byte

	// Logger receives changes of state and warnings.
	//
	// The default value is nil: nothing is logged.
	Logger *slog.Logger

	// MinInterval and MaxInterval bound the time between two contacts with a peer. A
	// contact is an attempt to dial a peer that is not connected, or a request for the
	// head of a peer that is. Each local write halves the interval; an idle or failed
	// contact doubles it. Actual waits vary by up to a fifth.
	//
	// The default values are 100 ms and 10 s, or MinInterval if that is more. MinInterval
	// must not exceed MaxInterval.
	MinInterval, MaxInterval time.Duration

	// Timeout bounds dialling, the handshake, and the time in which nothing is heard
	// from a peer, in addition to the MaxInterval between two signs of life. A link may
	// be arbitrarily slow, as long as bytes arrive.
	//
	// The default value is 10 s.
	Timeout time.Duration

	// MaxHandshakes bounds the number of inbound connections that are in their
	// handshake. MaxSessions is the number of sessions at which further peers that dial
	// in are refused. MaxSessionsPerAddr bounds the number of inbound connections from
	// one IP address; raise it if many replicas dial from behind one address.
	//
	// The default values are 64, 256 and 16.
	MaxHandshakes, MaxSessions, MaxSessionsPerAddr int

	// MaxValueSize is the size in bytes of the largest value that a write accepts. It
	// must be the same on all replicas, and at most 1 GiB. If it was lowered, Open
	// checks all values, and fails with ErrTooLarge if a value is larger.
	//
	// The default value is 16 MiB.
	MaxValueSize int

	// SkipAdoption excludes the keys that the database held before it was first
	// wrapped from replication. Such a key is replicated once it is written again. A
	// peer's change to the key replaces it.
	SkipAdoption bool

	// Recovered states that the files of the database may be from different moments:
	// they were repaired by goleveldb's RecoverFile, copied while they were being
	// written, or are on a device that lost writes. Open then compares keys and index,
	// drops the index records of missing values, and adopts values without an index
	// record. It does not trust the change log and the checkpoints: this replica compares
	// itself with the first peer that it reaches, and pulls what differs, and peers pull this
	// replica in full. Set Recovered for one opening only.
	Recovered bool

	// BacklogBytes is the size of the memory that holds the latest changes, for peers
	// that keep up.
	//
	// The default value is 8 MiB.
	BacklogBytes int

	// MaxLogRecords bounds the number of records in the change log. Records expire, the
	// oldest first, once every peer that was seen within PeerAge has merged them, and in
	// any case where there would be more. The newest 10,000 stay, or nine tenths of
	// MaxLogRecords if that is less. Expired records are looked for about once a second,
	// so a log that is written to may be longer for a moment.
	//
	// A peer that lacks records which have expired reads the index in key order, once,
	// and gets what it lacks. So a low limit costs time, and loses nothing.
	//
	// The default value is 1,000,000. A negative value means no limit.
	MaxLogRecords int

	// MaxLogAge is the age at which records expire in any case, but for the newest, as
	// with MaxLogRecords. Ages are known to a sixteenth of it.
	//
	// The default value is 0: no age.
	MaxLogAge time.Duration

	// PeerAge is how long after it was last heard of a peer is waited for: records are
	// kept for it, within the limits above.
	//
	// The default value is 30 days. A negative value means that every peer that was ever
	// met is waited for.
	PeerAge time.Duration

	// TombstoneAge is how long the record of a deleted key, a tombstone, is kept. It takes
	// about 25 bytes and the key. At that age it is removed, as soon as every peer that was
	// seen within PeerAge has stated to hold the deletion durably, and it is durable here,
	// and not before at least one peer was met. Replicas make data durable every five
	// minutes. Ages are known to a sixteenth of it.
	//
	// A replica that was away for longer than TombstoneAge and PeerAge, or was restored
	// from an older backup, can bring back what was deleted. So nothing is exchanged with
	// one that has not seen all deletions which were forgotten here: it is stale, until it
	// has caught up through others or Rejoin is called there. Set TombstoneAge to more
	// than the longest time for which a replica may be away, on all replicas alike, and
	// when all of them run a version that knows it. 30 days are a good choice.
	//
	// The default value is 0: tombstones are kept for ever.
	TombstoneAge time.Duration

	// AutoRejoin has this replica call Rejoin by itself wherever it is stale. That removes
	// keys here which were deleted at the peer in the meantime.
	//
	// The default value is false. New replicas, and those with Recovered, rejoin by
	// themselves in any case.
	AutoRejoin bool

	expireEvery  time.Duration // for tests: how often it is looked what has expired
	newest       int           // for tests: how many of the newest records stay
	durableEvery time.Duration // for tests: how often everything is made durable

	wall        func() time.Time    // for tests: the wall clock that clocks follow
	bootID      func() string       // for tests: the machine's boot id, "" if unknown
	pageEntries int                 // for tests: maximum number of entries in a page
	rescan      func() bool         // for tests: decides whether a long log scan becomes a scan in key order
	engine      func(engine) engine // for tests: wraps the database
}

// Validate returns the errors in the options, joined, or nil.
func (o *Options) Validate() error {
	if o == nil {
		return nil
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("replicator: options: "+format, args...))
	}
	if o.Listen != "" && o.Listener != nil {
		bad("Listen and Listener are both set")
	}
	if o.ClusterKeys != nil && o.TLS != nil {
		bad("ClusterKeys and TLS are both set")
	}
	if o.ClusterKeys != nil && len(o.ClusterKeys) == 0 {
		bad("ClusterKeys is empty, not nil")
	}
	for i, key := range o.ClusterKeys {
		if len(key) < minClusterKey {
			bad("ClusterKeys: key %d has %d bytes, at least %d are required", i, len(key), minClusterKey)
		}
	}
	if o.TLS != nil {
		if err := checkTLS(o.TLS); err != nil {
			bad("%w", err)
		}
	}
	if o.Listen != "" && !o.isExposable() {
		if err := requireLoopback(o.Listen); err != nil {
			bad("Listen: %w", err)
		}
	}
	for addr := range o.Peers {
		if err := o.checkPeer(addr); err != nil {
			bad("Peers: %w", err)
		}
	}
	negative := func(name string, value int64) {
		if value < 0 {
			bad("%s is negative", name)
		}
	}
	negative("MaxHandshakes", int64(o.MaxHandshakes))
	negative("MaxSessions", int64(o.MaxSessions))
	negative("MaxSessionsPerAddr", int64(o.MaxSessionsPerAddr))
	if o.Clock != Lamport && o.Clock != Hybrid {
		bad("Clock %d is neither Lamport nor Hybrid", int(o.Clock))
	}
	if o.MaxSkew < 0 || o.MaxSkew > 0 && o.MaxSkew < minMaxSkew {
		bad("MaxSkew %v is below %v", o.MaxSkew, minMaxSkew)
	}
	negative("MaxLogAge", int64(o.MaxLogAge))
	negative("TombstoneAge", int64(o.TombstoneAge))
	negative("BacklogBytes", int64(o.BacklogBytes))
	if len(o.LocalPrefix) > maxLocalPrefix {
		bad("LocalPrefix is longer than %d bytes", maxLocalPrefix)
	}
	if prefix := string(o.LocalPrefix); prefix != "" && (strings.HasPrefix(reserved, prefix) || strings.HasPrefix(prefix, reserved)) {
		bad("LocalPrefix %q has reserved keys under it, or is one", prefix)
	}
	if len(o.Name) > maxName {
		bad("Name is longer than %d bytes", maxName)
	}
	negative("MinInterval", int64(o.MinInterval))
	negative("MaxInterval", int64(o.MaxInterval))
	negative("Timeout", int64(o.Timeout))
	if d := o.withDefaults(); d.MinInterval > d.MaxInterval {
		bad("MinInterval %v is above MaxInterval %v", d.MinInterval, d.MaxInterval)
	}
	if o.MaxValueSize < 0 || o.MaxValueSize > maxMaxValueSize {
		bad("MaxValueSize %d is not between 0 and %d", o.MaxValueSize, maxMaxValueSize)
	}
	if len(o.Cluster) > maxClusterName {
		bad("Cluster is longer than %d bytes", maxClusterName)
	}
	return errors.Join(errs...)
}

// checkPeer refuses an address that cannot or must not be dialled.
func (o *Options) checkPeer(addr string) error {
	if addr == "" {
		return errors.New("empty address")
	}
	if o.Dial != nil {
		return nil
	}
	if o.isExposable() {
		_, _, err := net.SplitHostPort(addr)
		return err
	}
	return requireLoopback(addr)
}

// isExposable reports whether sessions beyond loopback addresses are permitted.
func (o *Options) isExposable() bool { return o.Insecure || o.ClusterKeys != nil || o.TLS != nil }

// tlsConfig returns how connections are protected; nil: they are not.
func (o *Options) tlsConfig() (*tls.Config, error) {
	switch {
	case o.TLS != nil:
		return secureBy(o.TLS), nil
	case o.ClusterKeys != nil:
		return secureByKeys(o.ClusterKeys)
	}
	return nil, nil
}

// closeListener closes the caller's listener, for an Open that failed.
func (o *Options) closeListener() {
	if o != nil && o.Listener != nil {
		o.Listener.Close()
	}
}

// dialTCP is the default value of Dial.
func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// expiry returns the settings of the expiration of the log.
func (o *Options) expiry() expirySettings {
	e := expirySettings{records: o.MaxLogRecords, age: o.MaxLogAge, peerAge: max(o.PeerAge, 0), every: o.expireEvery, newest: o.newest}
	if e.records < 0 {
		e.records = math.MaxInt
	}
	return e
}

// store returns the settings of the store.
func (o *Options) store() storeSettings {
	return storeSettings{
		expiry: o.expiry(), tombstoneAge: o.TombstoneAge,
		clock:  clockRules{kind: o.Clock, maxSkew: o.MaxSkew, wall: o.wall},
		logger: o.Logger, maxValue: o.MaxValueSize, localPrefix: o.LocalPrefix, skipAdoption: o.SkipAdoption, recovered: o.Recovered, onConflict: o.OnConflict,
		backlog: o.BacklogBytes, durableEvery: o.durableEvery, bootID: o.bootID(), pageEntries: o.pageEntries, rescan: o.rescan, engine: o.engine,
	}
}

// sync returns the settings of the syncer, without the listener.
func (o *Options) sync() syncSettings {
	settings := syncSettings{
		logger: o.Logger, name: o.Name, cluster: o.Cluster, localPrefix: o.LocalPrefix, dial: o.Dial, authorize: o.Authorize,
		minInterval: o.MinInterval, maxInterval: o.MaxInterval, timeout: o.Timeout, maxValue: o.MaxValueSize,
		maxHandshakes: o.MaxHandshakes, maxSessions: o.MaxSessions, maxSessionsPerAddr: o.MaxSessionsPerAddr,
		autoRejoin: o.AutoRejoin,
	}
	if settings.dial == nil {
		settings.dial = dialTCP
	}
	return settings
}

// requireLoopback refuses an address that plain TCP would expose.
func requireLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s is not a loopback address, and plain TCP would let anybody in: "+
		"set ClusterKeys or TLS to protect it, or Insecure to permit it", addr)
}

// withDefaults returns a copy in which default values replace zero fields.
func (o *Options) withDefaults() Options {
	var c Options
	if o != nil {
		c = *o
	}
	c.Peers = maps.Clone(c.Peers)
	c.LocalPrefix = bytes.Clone(c.LocalPrefix)
	setDefault(&c.MinInterval, defaultMinInterval)
	setDefault(&c.MaxInterval, max(defaultMaxInterval, c.MinInterval))
	setDefault(&c.Timeout, defaultTimeout)
	setDefault(&c.MaxValueSize, defaultMaxValueSize)
	setDefault(&c.MaxHandshakes, defaultMaxHandshakes)
	setDefault(&c.MaxSessions, defaultMaxSessions)
	setDefault(&c.MaxSessionsPerAddr, defaultMaxSessionsPerAddr)
	setDefault(&c.BacklogBytes, defaultBacklog)
	setDefault(&c.MaxLogRecords, defaultMaxLogRecords)
	setDefault(&c.PeerAge, defaultPeerAge)
	setDefault(&c.MaxSkew, defaultMaxSkew)
	setDefault(&c.expireEvery, expireEvery)
	setDefault(&c.newest, newestRecords)
	setDefault(&c.durableEvery, durableEvery)
	setDefault(&c.pageEntries, maxPageEntries)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.bootID == nil {
		c.bootID = machineBootID
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// safeOptions returns a copy of goleveldb's options in which large batches do not use
// transactions, because a failed write could hang or panic then. See the caveats in the
// README.
func safeOptions(o *opt.Options) *opt.Options {
	var c opt.Options
	if o != nil {
		c = *o
	}
	c.DisableLargeBatchTransaction = true
	return &c
}
