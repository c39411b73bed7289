package replicator

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/syndtr/goleveldb/leveldb"
)

// peerRecord is what is remembered of a peer, by its database id, over restarts.
type peerRecord struct {
	mu      sync.Mutex // guards what follows
	unsaved bool       // the checkpoint moved over echoes since the row was written

	cursor // how far the peer's log has been merged here; moved by the session only

	// settled is the last checkpoint at which the pull was caught up: what the
	// peer can be told, once it is durable.
	settled position
	durable position // what was settled at the last Sync write, since Open

	// acknowledged is up to where the peer has made our log durable, by its
	// newest statement, which is restated in every session. peerHead is the
	// head of the peer's own log that it stated with it.
	acknowledged position
	peerHead     uint64

	// epochs are the newest ones that the peer had as its current, the latest
	// last. One that comes back after another tells of two lineages.
	epochs  []Origin
	meeting uint64 // the number of the meeting at which the latest was noted, since Open

	addrs []string // where the peer was met, the latest last
	name  string   // what it calls itself

	traffic traffic // of ended sessions, since Open

	report *reporter // guarded by syncer.mu; nil until it is needed
}

// traffic counts what sessions carried.
type traffic struct {
	bytesIn, bytesOut, recordsIn, recordsOut int64
}

// count adds what a session carried that has ended.
func (p *peerRecord) count(t traffic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.traffic.bytesIn += t.bytesIn
	p.traffic.bytesOut += t.bytesOut
	p.traffic.recordsIn += t.recordsIn
	p.traffic.recordsOut += t.recordsOut
}

// metAt reports whether the peer answered at the address last.
func (p *peerRecord) metAt(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.addrs, addr)
}

const (
	maxPeerEpochs = 8
	maxPeerAddrs  = 4
)

// scan is the kind of an unfinished pull.
type scan byte

const (
	scanNone scan = iota
	scanLog       // the log, in reverse
	scanFull      // the whole state, or what of it is above the checkpoint, in key order
)

// cursor is how far a peer's log has been merged here. It is stored in the
// batch of the last entry that it covers.
type cursor struct {
	checkpoint position // everything up to here is merged
	seen       position // the greatest head at which a page was read
	scan       scan
	upper      position // of a scan: what the checkpoint becomes at its end
	reached    uint64   // of a log scan: merged from here up to upper
	key        []byte   // of a full scan: merged up to and with this key
}

// caughtUp reports whether all that has been heard of is merged: no scan is
// unfinished, and no key can have moved up the log behind the last one.
func (c *cursor) caughtUp() bool {
	return c.scan == scanNone && c.seen.seq <= c.checkpoint.seq && !c.checkpoint.isZero()
}

// move takes the cursor on. The caller holds mu.
func (p *peerRecord) move(next cursor) {
	p.cursor = next
	switch {
	case next.caughtUp():
		p.settled = next.checkpoint
	case next.checkpoint.isZero():
		p.settled = position{}
	}
}

// store changes the record and adds its row to a batch of the commit section.
func (p *peerRecord) store(b *leveldb.Batch, id DatabaseID, change func(*peerRecord)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
	p.unsaved = false
	b.Put(tableKey(nil, tablePeers, id[:]), p.append(nil))
}

func appendPosition(dst []byte, p position) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(p.epoch))
	return binary.AppendUvarint(dst, p.seq)
}

func appendBytes[T ~[]byte | ~string](dst []byte, b T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func (c *cursor) append(dst []byte) []byte {
	dst = appendPosition(dst, c.checkpoint)
	dst = appendPosition(dst, c.seen)
	dst = append(dst, byte(c.scan))
	dst = appendPosition(dst, c.upper)
	dst = binary.AppendUvarint(dst, c.reached)
	return appendBytes(dst, c.key)
}

func (r *decoder) cursor() (c cursor) {
	c.checkpoint = r.position()
	c.seen = r.position()
	c.scan = scan(r.byte())
	c.upper = r.position()
	c.reached = r.uvarint()
	c.key = slices.Clone(r.bytes(MaxKeySize))
	return c
}

// append adds the row that parsePeerRecord reads. The caller holds mu, or is
// alone with the record.
func (p *peerRecord) append(dst []byte) []byte {
	dst = p.cursor.append(dst)
	dst = appendPosition(dst, p.settled)
	dst = appendPosition(dst, p.acknowledged)
	dst = binary.AppendUvarint(dst, p.peerHead)
	dst = append(dst, byte(len(p.epochs)))
	for _, e := range p.epochs {
		dst = binary.BigEndian.AppendUint64(dst, uint64(e))
	}
	dst = append(dst, byte(len(p.addrs)))
	for _, a := range p.addrs {
		dst = appendBytes(dst, a)
	}
	return appendBytes(dst, p.name)
}

func parsePeerRecord(b []byte) (*peerRecord, error) {
	r := decoder{rest: b}
	p := &peerRecord{cursor: r.cursor(), settled: r.position(), acknowledged: r.position(), peerHead: r.uvarint()}
	for n := r.byte(); n > 0 && r.err == nil; n-- {
		p.epochs = append(p.epochs, Origin(r.uint64()))
	}
	for n := r.byte(); n > 0 && r.err == nil; n-- {
		p.addrs = append(p.addrs, string(r.bytes(maxAddrSize)))
	}
	p.name = string(r.bytes(maxName))
	if err := r.finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return p, nil
}

// met notes that the peer is in this epoch and at this address, and its name. It
// reports whether that changed the record. The caller holds mu.
func (p *peerRecord) met(epoch Origin, name, addr string) (changed bool) {
	if p.name != name {
		p.name, changed = name, true
	}
	if !p.current(epoch) {
		p.epochs = append(p.epochs, epoch)
		p.epochs = p.epochs[max(0, len(p.epochs)-maxPeerEpochs):]
		changed = true
	}
	if addr != "" && len(addr) <= maxAddrSize && !slices.Contains(p.addrs, addr) {
		p.addrs = append(p.addrs, addr)
		p.addrs = p.addrs[max(0, len(p.addrs)-maxPeerAddrs):]
		changed = true
	}
	return changed
}

// current reports whether the epoch is the latest noted. The caller holds mu.
func (p *peerRecord) current(epoch Origin) bool {
	n := len(p.epochs)
	return n > 0 && p.epochs[n-1] == epoch
}

// isForked is forked for those who don't hold mu.
func (p *peerRecord) isForked(epoch Origin) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.forked(epoch)
}

// forked reports whether the peer's id is used by two lineages in turns: an
// epoch that was followed by another is the current one again. The caller holds
// mu.
func (p *peerRecord) forked(epoch Origin) bool {
	i := slices.Index(p.epochs, epoch)
	return i >= 0 && i < len(p.epochs)-1
}

const maxAddrSize = 256
