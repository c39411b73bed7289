package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// This file owns what is remembered of peers, and under which id they know this
// database. Nothing else locks a record's mutex.

// peerRecord is what is remembered of a peer, by its database id, over restarts.
type peerRecord struct {
	mu      sync.Mutex // guards what follows
	unsaved bool       // the checkpoint moved since the row was written, over nothing that is new here

	forgotten bool // of a row: there is nothing but a name

	cursor          // how far the peer's log has been merged here; the peer's session moves it
	restarts uint64 // how often that was put back to the beginning, since Open

	// epochs are the newest ones that the peer had as its current, the latest
	// last. One that comes back after another tells of two lineages.
	epochs  []Origin
	meeting uint64 // the number of the meeting at which the latest was noted, since Open

	addrs []string // where the peer was met, the latest last
	name  string   // what it calls itself

	stated stated // since Open
	knows  vector // what it has stated last to have durably, in its last session; nil: nothing yet. It is replaced, not changed

	stale staleness // since Open

	heardAt time.Time // when it was last heard of
	savedAt time.Time // what the row says of that

	inSync  time.Time // when everything that the peer had told of was last found to be merged, since Open
	repeats int       // scans that the peer could not read completely, since Open
	traffic traffic   // of ended sessions, since Open
}

// stated is what a peer has stated of this replica's log: the place up to which it has
// merged everything, and the place up to which that is durable there. It is kept in
// memory only.
//
// It is of one process of the peer, and of one id under which it knows this replica. A
// later process may go on from a backup. And what was stated to an id that another
// replica had, too, may have been stated to that.
type stated struct {
	by              Origin     // the peer's epoch
	to              DatabaseID // this replica's id
	merged, durable position
	deaf            bool // it will not merge anything: this replica has read-only access there
}

const (
	maxPeerEpochs = 8
	maxPeerAddrs  = 4
)

// traffic counts what sessions carried.
type traffic struct {
	bytesIn, bytesOut, recordsIn, recordsOut int64
}

func (t *traffic) add(u traffic) {
	t.bytesIn += u.bytesIn
	t.bytesOut += u.bytesOut
	t.recordsIn += u.recordsIn
	t.recordsOut += u.recordsOut
}

// peerSummary is what Status shows of a record.
type peerSummary struct {
	name            string
	cursor          cursor
	merged, durable position
	traffic         traffic
	inSync          time.Time
	stale           staleness
}

func (p *peerRecord) summary() peerSummary {
	p.mu.Lock()
	defer p.mu.Unlock()
	return peerSummary{p.name, p.cursor, p.stated.merged, p.stated.durable, p.traffic, p.inSync, p.stale}
}

// count adds what a session carried that has ended.
func (p *peerRecord) count(t traffic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.traffic.add(t)
}

// foundInSync notes that everything that the peer has told of is merged.
func (p *peerRecord) foundInSync(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inSync = at
}

// metAt reports whether the peer answered at the address once.
func (p *peerRecord) metAt(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.addrs, addr)
}

// place returns how far the peer's log has been merged.
func (p *peerRecord) place() cursor {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cursor
}

// restarted returns how often the peer's log was to be read from the beginning.
func (p *peerRecord) restarted() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.restarts
}

// restart has the peer's log be read from the beginning, and all that goes on in it fail.
func (p *peerRecord) restart(x *section, id DatabaseID) {
	p.save(x, id, func(p *peerRecord) { p.cursor, p.restarts = cursor{}, p.restarts+1 })
}

// begins forgets what the peer has stated, if it comes as another process, or was told
// another id, than when it did.
func (p *peerRecord) begins(by Origin, to DatabaseID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stated.by != by || p.stated.to != to {
		p.stated = stated{by: by, to: to}
	}
	p.knows = nil
	p.heardAt = time.Now()
}

// opened has a peer count as heard of at an opening, if it is not known when that was, or
// if that was later: the wall clock has gone back.
func (p *peerRecord) opened(now time.Time) {
	if p.heardAt.IsZero() || p.heardAt.After(now) {
		p.heardAt = now
	}
}

// isSeen notes that the peer was heard of.
func (p *peerRecord) isSeen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heardAt = time.Now()
}

// seenSince reports whether the peer was heard of later than its row says, by more than
// some time.
func (p *peerRecord) seenSince(precision time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heardAt.Sub(p.savedAt) >= precision
}

// delays returns what the log is kept for, if the peer is waited for.
func (p *peerRecord) delays(id, to DatabaseID, now time.Time, age time.Duration) *delayer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stated.deaf || age > 0 && now.Sub(p.heardAt) >= age {
		return nil
	}
	h := &delayer{id: id, name: p.name, seen: p.heardAt}
	if p.stated.to == to {
		h.merged = p.stated.merged.seq
	}
	return h
}

// state notes what the peer states, in a session that began with by and to. The newest
// statement counts, also if it is lower. That of a session which is over does not.
func (p *peerRecord) state(by Origin, to DatabaseID, change func(*stated)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stated.by == by && p.stated.to == to {
		change(&p.stated)
		p.heardAt = time.Now()
	}
}

// statement returns what the peer has stated.
func (p *peerRecord) statement() stated {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stated
}

// unstate forgets what was stated, if it was by the given epoch; 0: by any.
func (p *peerRecord) unstate(by Origin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if by == 0 || p.stated.by == by {
		p.stated, p.knows = stated{}, nil
	}
}

// begins comes before everything that a peer states in a session. A peer that has a new
// id is still one replica: what it stated under the old one no longer counts.
func (d *store) begins(record *peerRecord, by Origin, to DatabaseID) {
	for _, other := range d.allPeers() {
		if other != record {
			other.unstate(by)
		}
	}
	record.begins(by, to)
}

// holders returns how many peers have stated that they hold this replica's log up to a
// head, merged or durable. Only places of the current epoch count: it has one at least,
// and in an earlier one, another copy of this database may have written other records.
func (d *store) holders(head uint64, durable bool) (n int) {
	id, epoch := d.id(), d.origin()
	for _, record := range d.allPeers() {
		s := record.statement()
		place := s.merged
		if durable {
			place = s.durable
		}
		if s.to == id && place.epoch == epoch && place.seq >= head {
			n++
		}
	}
	return n
}

// repeatAfter returns how long to wait before a scan that the peer could not read
// completely is repeated: each time twice as long.
func (p *peerRecord) repeatAfter(first, most time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	after := min(most, first<<min(p.repeats, 16))
	p.repeats++
	return after
}

// isUnsaved reports whether the row is behind the record.
func (p *peerRecord) isUnsaved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unsaved
}

// passed moves the cursor over what was here already. That needs no write of its own:
// the row may as well be behind.
func (p *peerRecord) passed(next cursor, restarts uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.restarts != restarts {
		return errRestarted
	}
	p.unsaved = p.unsaved || !p.cursor.equal(next)
	p.cursor = next
	return nil
}

// save changes the record and adds its row to the commit.
func (p *peerRecord) save(x *section, id DatabaseID, change func(*peerRecord)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
	p.unsaved, p.savedAt = false, p.heardAt
	if !x.d.isForgotten(id) { // else a session is about to end
		x.put(peerKey(id), p.append(nil))
	}
}

// advanced adds the cursor's new place to the commit that brings it there.
func (p *peerRecord) advanced(x *section, id DatabaseID, next cursor) {
	p.save(x, id, func(p *peerRecord) { p.cursor = next })
}

// goBack puts the cursor where it was, at an opening.
func (p *peerRecord) goBack(to cursor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cursor = to
}

// row returns what the peers' table has of the record.
func (p *peerRecord) row() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.append(nil)
}

// meet notes that the peer is in this epoch and at this address, and its name. It
// reports whether the history of its id has forked: an epoch that was followed by
// another is the current one again; whether another epoch was noted since a
// meeting; and, if neither, whether the record changed.
func (p *peerRecord) meet(epoch Origin, name, addr string, since uint64, number func() uint64) (forked, late, changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.epochs, epoch)
	current := i >= 0 && i == len(p.epochs)-1
	if forked, late = i >= 0 && !current, !current && p.meeting > since; forked || late {
		return forked, late, false
	}
	if !current {
		p.meeting = number()
		p.epochs = append(p.epochs, epoch)
		p.epochs = p.epochs[max(0, len(p.epochs)-maxPeerEpochs):]
		changed = true
	}
	if p.name != name {
		p.name, changed = name, true
	}
	if addr != "" && len(addr) <= maxAddrSize && !slices.Contains(p.addrs, addr) {
		p.addrs = append(p.addrs, addr)
		p.addrs = p.addrs[max(0, len(p.addrs)-maxPeerAddrs):]
		changed = true
	}
	return false, false, changed
}

// isForked reports whether an epoch was followed by another already.
func (p *peerRecord) isForked(epoch Origin) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.epochs, epoch)
	return i >= 0 && i < len(p.epochs)-1
}

// append adds the row that parsePeerRecord reads. The caller holds mu, or is
// alone with the record.
func (p *peerRecord) append(dst []byte) []byte {
	flags := byte(0)
	if p.forgotten {
		flags |= peerForgotten
	}
	dst = append(dst, flags)
	dst = p.cursor.append(dst)
	dst = append(dst, byte(len(p.epochs)))
	for _, e := range p.epochs {
		dst = binary.BigEndian.AppendUint64(dst, uint64(e))
	}
	dst = append(dst, byte(len(p.addrs)))
	for _, a := range p.addrs {
		dst = appendBytes(dst, a)
	}
	dst = appendBytes(dst, p.name)
	return binary.AppendUvarint(dst, uint64(max(p.heardAt.Unix(), 0)))
}

// maxUnixTime bounds times in rows, in seconds.
const maxUnixTime = 1 << 40

func parsePeerRecord(b []byte) (*peerRecord, error) {
	r := decoder{rest: b}
	flags := r.byte()
	p := &peerRecord{forgotten: flags&peerForgotten != 0, cursor: r.cursor()}
	for n := r.byte(); n > 0 && r.err == nil; n-- {
		p.epochs = append(p.epochs, Origin(r.uint64()))
	}
	for n := r.byte(); n > 0 && r.err == nil; n-- {
		p.addrs = append(p.addrs, string(r.bytes(maxAddrSize)))
	}
	p.name = string(r.bytes(maxName))
	if heard := r.uvarint(); heard > maxUnixTime {
		r.fail(fmt.Errorf("heard of at %d", heard))
	} else if heard > 0 {
		p.savedAt = time.Unix(int64(heard), 0)
		p.heardAt = p.savedAt
	}
	if err := r.finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return p, nil
}

// peer returns what is remembered of a peer, or nil.
func (d *store) peer(id DatabaseID) *peerRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peers[id]
}

// allPeers returns what is remembered.
func (d *store) allPeers() map[DatabaseID]*peerRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.peers)
}

// remember makes a record the one of a peer, unless the peer was forgotten. There must be
// no other.
func (d *store) remember(id DatabaseID, record *peerRecord) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, forgotten := d.forgotten[id]; forgotten {
		return errForgotten
	}
	d.peers[id] = record
	return nil
}

var (
	errForked    = fmt.Errorf("%w: the history of its id has forked: an earlier epoch is back", ErrCloned)
	errForgotten = fmt.Errorf("%w: the peer was forgotten (Replicator.Forget)", ErrRefused)
	errLate      = errors.New("replicator: a newer process of this peer was met while this connection was being made")
)

// meet records, with Sync, that a peer is new or in a new epoch. It has to have heard
// of us, and no other epoch of its may have been noted since its connection began,
// as d.meetings counts: what it says may come late, when its process has ended and
// another has taken its place. The address is where it was dialled, or empty.
func (d *store) meet(id DatabaseID, record *peerRecord, epoch Origin, name, addr string, since uint64) error {
	forked, late, changed := record.meet(epoch, name, addr, since, func() uint64 { return d.meetings.Add(1) })
	switch {
	case late:
		return errLate
	case forked:
		return errForked
	case changed:
		return d.savePeer(id, record, true)
	}
	return nil
}

// saveSeen writes when peers were seen, if the rows are too far behind.
func (d *store) saveSeen() error {
	const precision = 32
	age := d.settings.expiry.peerAge
	for id, record := range d.allPeers() {
		if age == 0 || !record.seenSince(age/precision) {
			continue
		}
		if err := d.savePeer(id, record, false); err != nil {
			return err
		}
	}
	return nil
}

// savePeer writes the row of a peer.
func (d *store) savePeer(id DatabaseID, record *peerRecord, sync bool) error {
	return d.enter(sync, func(x *section) error {
		record.save(x, id, func(*peerRecord) {})
		return nil
	})
}

// renewID draws a new database id in the place of one that another replica has,
// too, and returns it, or the zero id if that has been done already. What was
// acknowledged to the old id may have been acknowledged to the other; checkpoints
// are of logs that this replica did read, and stay.
func (d *store) renewID(old DatabaseID) (renewed DatabaseID, err error) {
	err = d.enter(true, func(x *section) error {
		if d.id() != old {
			return nil
		}
		renewed = newDatabaseID()
		x.put(metaKey(metaID), renewed[:])
		for _, record := range d.allPeers() {
			record.unstate(0)
		}
		d.mu.Lock()
		d.name = renewed
		d.mu.Unlock()
		return nil
	})
	return renewed, err
}
