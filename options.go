package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"time"

	"github.com/syndtr/goleveldb/leveldb/opt"
)

// This file owns what a caller can choose, with its defaults and bounds.

const (
	defaultMaxValueSize = 16 << 20
	maxMaxValueSize     = 1 << 30
	defaultMinInterval  = 100 * time.Millisecond
	defaultMaxInterval  = 10 * time.Second
	defaultTimeout      = 10 * time.Second

	defaultBacklog = 8 << 20
	durableEvery   = 5 * time.Minute

	defaultMaxHandshakes      = 64
	defaultMaxSessions        = 256
	defaultMaxSessionsPerAddr = 16
)

// Options configures a Replicator. The zero value, and nil, are valid: a
// replica without peers, which writes its change log and can be given peers
// later. Zero means default; Open copies the options.
type Options struct {
	// Name is what peers' logs and Status call this replica, beside its id. At
	// most 255 bytes.
	Name string

	// Listen is the TCP address to accept peers on, such as "127.0.0.1:8000",
	// "[::1]:8000" or, for a port of the system's choice, "127.0.0.1:0".
	//
	// The default value is empty: peers can't dial in, but replication works
	// both ways over the sessions dialled from here.
	Listen string

	// Listener is used instead of Listen. The Replicator closes it, and so does an
	// Open that fails.
	Listener net.Listener

	// Peers are the addresses to dial, with their metadata. AddPeer and RemovePeer
	// change the set at run time.
	Peers map[string]Meta

	// Dial connects to a peer's address. It must return when ctx is done, with
	// either a connection or an error.
	//
	// The default value dials TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// Insecure permits plain TCP beyond loopback addresses: anybody who can
	// reach the port can read and write the whole database. Listener and Dial
	// are the caller's own responsibility and not restricted.
	Insecure bool

	// Cluster is a name that both ends of a session must share.
	Cluster string

	// Logger receives changes of state and warnings.
	//
	// The default value is nil: silent.
	Logger *slog.Logger

	// MinInterval and MaxInterval bound the time between two contacts with a
	// peer: dialling one that is not connected, asking one that is for its
	// head. Each local write halves the interval; an idle contact doubles it,
	// and so does a failed one. Actual waits are jittered by a fifth.
	//
	// The default values are 100 ms and 10 s.
	MinInterval, MaxInterval time.Duration

	// Timeout bounds dialling, the handshake, and any time in which nothing is
	// heard from a peer, beyond the MaxInterval between two signs of life. A link may
	// be as slow as it likes, as long as bytes arrive.
	//
	// The default value is 10 s.
	Timeout time.Duration

	// MaxHandshakes is how many connections from elsewhere may be in their
	// handshake at a time, MaxSessions how many sessions there may be before peers
	// that dial in are refused, and MaxSessionsPerAddr how many connections may
	// come from one IP address: raise it where many replicas dial from behind one.
	//
	// The default values are 64, 256 and 16.
	MaxHandshakes, MaxSessions, MaxSessionsPerAddr int

	// MaxValueSize is the size in bytes of the largest value that a write
	// accepts. It must be the same on all replicas, and at most 1 GiB. Where it
	// is lowered, Open looks through all values, and fails with ErrTooLarge if
	// one is above it.
	//
	// The default value is 16 MiB.
	MaxValueSize int

	// SkipAdoption leaves alone the keys that the database held before it was
	// first wrapped: they are not replicated until they are written again, and
	// a peer's change to one of them replaces it.
	SkipAdoption bool

	// Recovered says that the database's files may be from different moments: they
	// were repaired by goleveldb's RecoverFile, copied while they were written, or
	// are on a device that lost writes. Open then compares keys and index, drops
	// index records of values that are missing, and adopts values that have none.
	// The change log and the checkpoints are not trusted: peers pull this replica
	// in full, and it pulls them in full. Set it for one opening.
	Recovered bool

	// BacklogBytes is the size of the memory that holds the last changes, for peers that
	// keep up.
	//
	// The default value is 8 MiB.
	BacklogBytes int

	durableEvery time.Duration // for tests; how often everything is made durable

	bootID      func() string // for tests; the machine's boot id, "" if unknown
	pageEntries int           // for tests; how many entries a page has at most
	rescan      func() bool   // for tests; decides whether a long log scan becomes one in key order
}

// Validate returns all that is wrong with the options, joined, or nil.
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
	if o.Listen != "" && !o.Insecure {
		if err := requireLoopback(o.Listen); err != nil {
			bad("Listen: %w", err)
		}
	}
	for addr := range o.Peers {
		if err := o.checkPeer(addr); err != nil {
			bad("Peers: %w", err)
		}
	}
	if o.MaxHandshakes < 0 || o.MaxSessions < 0 || o.MaxSessionsPerAddr < 0 {
		bad("a negative limit of handshakes or sessions")
	}
	if o.BacklogBytes < 0 {
		bad("BacklogBytes is negative")
	}
	if len(o.Name) > maxName {
		bad("Name is longer than %d bytes", maxName)
	}
	if o.MinInterval < 0 || o.MaxInterval < 0 || o.Timeout < 0 {
		bad("a negative interval or timeout")
	}
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

// checkPeer refuses an address that can't be dialled or must not be.
func (o *Options) checkPeer(addr string) error {
	if addr == "" {
		return errors.New("empty address")
	}
	if o.Dial != nil {
		return nil
	}
	if o.Insecure {
		_, _, err := net.SplitHostPort(addr)
		return err
	}
	return requireLoopback(addr)
}

// closeListener closes the caller's listener, where Open does not come to use it.
func (o *Options) closeListener() {
	if o != nil && o.Listener != nil {
		o.Listener.Close()
	}
}

// dialTCP is the default of Dial.
func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// store returns what the store needs to know.
func (o *Options) store() storeSettings {
	return storeSettings{
		logger: o.Logger, maxValue: o.MaxValueSize, skipAdoption: o.SkipAdoption, recovered: o.Recovered,
		backlog: o.BacklogBytes, durableEvery: o.durableEvery, bootID: o.bootID(), pageEntries: o.pageEntries, rescan: o.rescan,
	}
}

// sync returns what the syncer needs to know, but for the listener.
func (o *Options) sync() syncSettings {
	settings := syncSettings{
		logger: o.Logger, name: o.Name, cluster: o.Cluster, dial: o.Dial,
		minInterval: o.MinInterval, maxInterval: o.MaxInterval, timeout: o.Timeout, maxValue: o.MaxValueSize,
		maxHandshakes: o.MaxHandshakes, maxSessions: o.MaxSessions, maxSessionsPerAddr: o.MaxSessionsPerAddr,
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
		"set Insecure to permit it, or bring your own Listener and Dial", addr)
}

// withDefaults returns a copy with every zero setting replaced.
func (o *Options) withDefaults() Options {
	var c Options
	if o != nil {
		c = *o
	}
	c.Peers = maps.Clone(c.Peers)
	setDefault(&c.MinInterval, defaultMinInterval)
	setDefault(&c.MaxInterval, max(defaultMaxInterval, c.MinInterval))
	setDefault(&c.Timeout, defaultTimeout)
	setDefault(&c.MaxValueSize, defaultMaxValueSize)
	setDefault(&c.MaxHandshakes, defaultMaxHandshakes)
	setDefault(&c.MaxSessions, defaultMaxSessions)
	setDefault(&c.MaxSessionsPerAddr, defaultMaxSessionsPerAddr)
	setDefault(&c.BacklogBytes, defaultBacklog)
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

// safeOptions returns goleveldb options without what makes a failed write hang
// or panic (see the caveats in the README).
func safeOptions(o *opt.Options) *opt.Options {
	var c opt.Options
	if o != nil {
		c = *o
	}
	c.DisableLargeBatchTransaction = true
	return &c
}
