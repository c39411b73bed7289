package replicator

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"
)

// This file owns Status: the state that a replica reports.

// Status is a replica's state at one moment. It marshals to readable JSON.
type Status struct {
	ID         DatabaseID   `json:"id"`
	Name       string       `json:"name,omitempty"`   // Options.Name
	Opened     time.Time    `json:"opened"`           // when Open was called
	Closed     bool         `json:"closed,omitempty"` // Close was called
	Epoch      Origin       `json:"epoch"`            // of this opening
	Clock      uint64       `json:"clock"`            // clock of the next local change
	Head       uint64       `json:"head"`             // sequence of the last log record
	Floor      uint64       `json:"floor"`            // sequence below which log records are not served
	LogRecords uint64       `json:"logRecords"`       // number of records in the log
	LogHeldFor *LogHold     `json:"logHeldFor"`       // nil if no peer keeps the log from expiring
	Vector     VectorStatus `json:"vector"`           // what this replica knows

	// Tombstones is nil unless Options.TombstoneAge is set.
	Tombstones *TombstoneStatus `json:"tombstones"`

	// Fingerprint is nil while it is not known: for a moment after the first call since
	// Open, and during the adoption of old keys.
	Fingerprint *FingerprintStatus `json:"fingerprint"`

	Listening string         `json:"listening,omitempty"` // address that peers can dial
	Failed    string         `json:"failed,omitempty"`    // why writes are refused
	Adoption  AdoptionStatus `json:"adoption"`
	Commits   []Bucket       `json:"commits"` // how long commits took, since Open
	Scans     ScanCounts     `json:"scans"`
	Conflicts ConflictStatus `json:"conflicts"`
	Warnings  []Warning      `json:"warnings"`            // the last 32, since Open
	Peers     []PeerStatus   `json:"peers"`               // configured peers by address, then peers that dialled in
	Forgotten []Forgotten    `json:"forgotten,omitempty"` // peers that are refused since Forget
	Refused   []Refusal      `json:"refused,omitempty"`   // inbound connections that were refused, at most 64 kinds, the latest first
}

// LogHold is the peer for which most of the log is kept. It is waited for until it has
// merged more, until it was not heard of for Options.PeerAge, or until the log has reached
// Options.MaxLogRecords.
type LogHold struct {
	ID       DatabaseID `json:"id"`
	Name     string     `json:"name,omitempty"`
	Merged   *uint64    `json:"merged"` // sequence up to which it has merged the log; nil if it has not told since Open
	LastSeen time.Time  `json:"lastSeen"`
}

// TombstoneStatus tells of the records of deleted keys that have come of age.
type TombstoneStatus struct {
	Reaped  uint64         `json:"reaped"`  // number of those that were removed, since Open
	Waiting *uint64        `json:"waiting"` // number of those that had to stay, when it was last looked; nil before that
	HeldFor *TombstoneHold `json:"heldFor"` // nil if they wait for no peer, but perhaps for this replica to make them durable
}

// TombstoneHold is the peer that tombstones wait for and that was seen least lately. They
// wait until it has stated to hold the deletions durably, until it was not seen for
// Options.PeerAge, or for Forget.
type TombstoneHold struct {
	ID       DatabaseID `json:"id"`
	Name     string     `json:"name,omitempty"`
	LastSeen time.Time  `json:"lastSeen"`
}

// StaleStatus tells why nothing is exchanged with a peer: one side has not seen deletions
// that the other one has forgotten (Options.TombstoneAge).
type StaleStatus struct {
	Here  bool      `json:"here"`  // this replica has not seen some: call Rejoin here, or wipe this replica
	There bool      `json:"there"` // the peer has not seen some: call Rejoin there, or wipe it
	Since time.Time `json:"since"` // when that was noticed, since Open
	// Waiting is an upper bound of the number of records in this replica's log that the
	// peer does not know.
	Waiting uint64 `json:"waiting"`
	Advice  string `json:"advice"` // what to do
}

// Forgotten is a peer that was forgotten.
type Forgotten struct {
	ID   DatabaseID `json:"id"`
	Name string     `json:"name,omitempty"`
}

// Refusal tells of the inbound connections from one host that were refused for one cause.
type Refusal struct {
	Host  string    `json:"host"`
	Error string    `json:"error"` // of the latest
	Count uint64    `json:"count"`
	Last  time.Time `json:"last"`
}

// VectorStatus is the version vector in short. Two replicas with equal sums know the
// same changes, and hold the same data unless a commit is under way.
type VectorStatus struct {
	Origins int    `json:"origins"` // number of openings whose changes are known
	Sum     string `json:"sum"`     // 16 hexadecimal digits
}

// FingerprintStatus is a checksum of all live keys with their stamps. Two replicas with
// equal sums hold the same keys in the same versions. It is made in the background: Status
// has it brought up to date at most once a minute, if there were changes, by reading what
// changed.
type FingerprintStatus struct {
	Keys uint64 `json:"keys"` // number of live keys
	Sum  string `json:"sum"`  // 32 hexadecimal digits
	Head uint64 `json:"head"` // the head as of which it is; that of Status, unless there were changes since
}

// Bucket is the number of commits of which the write to leveldb took up to some time, and
// longer than the bucket before allows. Concurrent writes share a commit. Commits without
// Sync are counted by samples.
type Bucket struct {
	UpTo  time.Duration `json:"upTo"` // 0: longer than all others allow
	Count uint64        `json:"count"`
}

// ScanStatus is the progress of reading a peer's database, of more than a page.
type ScanStatus struct {
	InKeyOrder bool `json:"inKeyOrder"` // the index, not the log
	// Done is how much of the log has been read, from 0 to 1. It is nil for a scan in key
	// order, whose size is not known.
	Done *float64 `json:"done"`
	Key  []byte   `json:"key,omitempty"` // up to which a scan in key order has come
}

// ScanCounts is the number of times, since Open, that this replica had to read in a peer's
// database what it lacked, by cause. It usually follows its peers from their memory, which
// counts as nothing. What Compare, Repair and Verify read is not counted.
type ScanCounts struct {
	New       uint64 `json:"new"`       // nothing of the peer's log was merged: all its keys
	Log       uint64 `json:"log"`       // the peer's memory did not reach back far enough (Options.BacklogBytes): its log, backward
	Keys      uint64 `json:"keys"`      // its log did not either (Options.MaxLogRecords, Options.MaxLogAge), or held much that was replaced since: its keys in order
	Reset     uint64 `json:"reset"`     // the peer was wiped or restored, so its log is another one: all its keys
	Recovered uint64 `json:"recovered"` // Options.Recovered: what differed
	Rejoined  uint64 `json:"rejoined"`  // Rejoin, Options.AutoRejoin, or a rejoin by itself: what differed
}

// ConflictStatus counts the conflicts that were found since Open. Without
// Options.OnConflict, those are missing whose keys could only have been found by looking
// them up on disk for the purpose: of changes from a peer that has not yet told that it
// knows what was written here longer ago than the backlog reaches.
type ConflictStatus struct {
	Count     uint64 `json:"count"`
	Uncertain uint64 `json:"uncertain"` // how many of them are uncertain
	Dropped   uint64 `json:"dropped"`   // how many OnConflict was not called for, as too many were waiting

	// Last are the last 32, without values.
	Last []Conflict `json:"last"`
}

// AdoptionStatus is the progress of adopting the keys that the database held before it
// was wrapped.
type AdoptionStatus struct {
	Done    bool   `json:"done"`
	Adopted uint64 `json:"adopted"` // number of adopted keys
	Skipped uint64 `json:"skipped"` // number of keys left out because they or their values are too large

	LastError string `json:"lastError,omitempty"` // why the last batch failed; adoption tries again
}

// PeerStatus describes one configured address, or one peer that dialled in. A figure
// that is not known is nil.
type PeerStatus struct {
	Addr       string     `json:"addr"`       // configured, or the remote address of the connection
	Configured bool       `json:"configured"` // in Options.Peers, or added by AddPeer
	Meta       Meta       `json:"meta,omitempty"`
	ID         DatabaseID `json:"id,omitzero"`
	Name       string     `json:"name,omitempty"`   // the peer's Options.Name
	SameAs     string     `json:"sameAs,omitempty"` // another configured address that leads to the same replica
	State      State      `json:"state"`
	Access     *Access    `json:"access,omitempty"`   // what the peer may do here, see Options.Authorize; during a session
	Granted    *Access    `json:"granted,omitempty"`  // what this replica may do at the peer; during a session
	DialedBy   Side       `json:"dialedBy,omitempty"` // during a session

	// Behind is an upper bound of the number of records in the peer's log, as last
	// heard, that are not merged here. Unmerged is an upper bound of the number of
	// records in this replica's log that the peer does not know. Unconfirmed is an upper
	// bound of the number of those that are not durable at the peer. Acknowledged is the
	// sequence up to which the peer has made this replica's log durable. A peer makes
	// everything durable every five minutes and when it closes.
	Behind       *uint64 `json:"behind"`
	Unmerged     *uint64 `json:"unmerged"`
	Unconfirmed  *uint64 `json:"unconfirmed"`
	Acknowledged *uint64 `json:"acknowledged"`

	// Lag is for how long this replica has known of a change in the peer's log that is not
	// merged here; 0 if there is none. RoundTrip is the time that the last ping took. Both
	// are known during a session only. Scan is nil if no scan is under way.
	Lag       *time.Duration `json:"lag"`
	RoundTrip *time.Duration `json:"roundTrip"`
	Scan      *ScanStatus    `json:"scan"`

	LastSuccess time.Time `json:"lastSuccess,omitzero"` // last answer from the peer
	LastInSync  time.Time `json:"lastInSync,omitzero"`  // when everything that the peer had told of was last found to be merged here, since Open
	LastError   string    `json:"lastError,omitempty"`
	NextAttempt time.Time `json:"nextAttempt,omitzero"` // time of the next attempt to dial, while waiting

	Stale *StaleStatus `json:"stale"` // nil if the two may exchange changes

	// Traffic since Open.
	BytesIn    int64 `json:"bytesIn"`
	BytesOut   int64 `json:"bytesOut"`
	RecordsIn  int64 `json:"recordsIn"` // includes records that were already here
	RecordsOut int64 `json:"recordsOut"`
}

// Status returns the replica's state. It may be called after Close.
func (r *Replicator) Status() Status {
	d := r.store
	progress := d.adopter.progress.Load()
	s := Status{
		ID:         d.id(),
		Name:       r.options.Name,
		Opened:     r.opened,
		Closed:     r.gate.isClosed(),
		Epoch:      d.origin(),
		Clock:      d.commits.visible.clock.Load(),
		Head:       d.head(),
		Floor:      d.commits.visible.floor.Load(),
		LogRecords: uint64(d.commits.visible.records.Load()),
		LogHeldFor: logHold(d),
		Vector:     vectorStatus(d.known.all()),
		Adoption:   AdoptionStatus{progress.done, progress.adopted, progress.skipped, d.adopter.fault()},
		Commits:    d.commits.buckets(),
		Warnings:   r.warnings.all(),
		Scans:      r.syncer.scans.counts(),
		Conflicts:  conflictStatus(&d.conflicts),
		Peers:      []PeerStatus{},
	}
	s.Tombstones = tombstoneStatus(d)
	if live := d.livePrint(); live != nil {
		s.Fingerprint = &FingerprintStatus{live.keys, hex.EncodeToString(live.fingerprint[:]), live.head}
	}
	if err := d.failure(); err != nil {
		s.Failed = err.Error()
	}
	if r.addr != nil {
		s.Listening = r.addr.String()
	}
	peers, sessions := r.syncer.connections()
	slices.SortFunc(peers, func(a, b *peer) int { return cmp.Compare(a.addr, b.addr) })
	shown := map[DatabaseID]bool{}
	first := map[DatabaseID]string{} // first address of each replica
	for _, p := range peers {
		state, session := p.glance(), p.sessionIn(sessions, anyAnswer)
		ps := newPeerStatus(state)
		if ps.State != StateSelf {
			ps.describe(d, d.peer(ps.ID), session)
		}
		shown[ps.ID] = shown[ps.ID] || session != nil
		if addr, again := first[ps.ID]; again && !ps.ID.IsZero() {
			ps.SameAs = addr
		} else {
			first[ps.ID] = ps.Addr
		}
		s.Peers = append(s.Peers, ps)
	}
	configured := len(s.Peers)
	for id, session := range sessions {
		if !shown[id] {
			ps := PeerStatus{Addr: session.addr, ID: id, SameAs: first[id]}
			ps.describe(d, d.peer(id), session)
			s.Peers = append(s.Peers, ps)
		}
	}
	slices.SortFunc(s.Peers[configured:], func(a, b PeerStatus) int { return cmp.Compare(a.Addr, b.Addr) })
	for _, f := range d.allForgotten() {
		s.Forgotten = append(s.Forgotten, Forgotten{f.id, f.name})
	}
	for _, f := range r.syncer.refusals.list() {
		s.Refused = append(s.Refused, Refusal{f.host, f.text, f.count, f.last})
	}
	return s
}

func (c *scanCounts) counts() ScanCounts {
	of := func(cause scanCause) uint64 { return c[cause].Load() }
	return ScanCounts{
		New: of(scanOfNew), Log: of(scanOfLog), Keys: of(scanOfKeys), Reset: of(scanOfReset),
		Recovered: of(scanRecovered), Rejoined: of(scanRejoined),
	}
}

// logHold returns the peer for which most of the log is kept, if more of it is there than
// the newest records, which are kept in any case.
func logHold(d *store) *LogHold {
	o := &d.settings.expiry
	if d.commits.visible.records.Load() < o.kept()+o.slack() {
		return nil
	}
	h := d.heldBy(time.Now())
	if h == nil {
		return nil
	}
	held := &LogHold{ID: h.id, Name: h.name, LastSeen: h.seen}
	if h.merged > 0 {
		held.Merged = &h.merged
	}
	return held
}

func tombstoneStatus(d *store) *TombstoneStatus {
	if d.settings.tombstoneAge == 0 {
		return nil
	}
	r := &d.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &TombstoneStatus{Reaped: r.reaped}
	if r.passed {
		t.Waiting = pointer(r.waiting)
	}
	if h := r.heldBy; h != nil {
		t.HeldFor = &TombstoneHold{h.id, h.name, h.seen}
	}
	return t
}

// staleStatus returns why nothing is exchanged with a peer, or nil.
func staleStatus(d *store, known *peerSummary, s *session) *StaleStatus {
	here, there := known.stale.here, known.stale.there
	var merged vector
	advice := errStaleHere
	if !here {
		advice = errStaleThere
	}
	if s != nil {
		here, there = s.stale()
		if advice = s.whyStale(here, there); advice == nil {
			return nil // there is nothing, or it is about to be over
		}
		merged = s.server.known()
	} else if here { // unless what was lacking has come from others
		here, _ = d.standing(known.stale.reaped, func(Stamp) bool { return true })
	}
	if !here && !there {
		return nil
	}
	since := known.stale.since
	if since.IsZero() {
		since = time.Now() // it is about to be noticed
	}
	return &StaleStatus{here, there, since, d.known.unknownTo(merged, known.merged.seq), advice.Error()}
}

// buckets returns how long commits took.
func (c *committer) buckets() []Bucket {
	all := make([]Bucket, len(c.latency))
	for i := range c.latency {
		if all[i].Count = c.latency[i].Load(); i < len(latencyBounds) {
			all[i].UpTo = latencyBounds[i]
		}
	}
	return all
}

// scanStatus returns the progress of the scan that a cursor is in, or nil.
func scanStatus(c *cursor) *ScanStatus {
	switch c.scan {
	case scanLog:
		done := 1.0
		if all := c.upper.seq - min(c.checkpoint.seq, c.upper.seq); all > 0 {
			done = float64(c.upper.seq+1-min(c.reached, c.upper.seq+1)) / float64(all)
		}
		return &ScanStatus{Done: &done}
	case scanKeys:
		return &ScanStatus{InKeyOrder: true, Key: bytes.Clone(c.key)}
	}
	return nil
}

func conflictStatus(q *conflicts) ConflictStatus {
	count, unsure, dropped, last := q.counts()
	return ConflictStatus{count, unsure, dropped, last}
}

func vectorStatus(v vector) VectorStatus {
	h := sha256.New()
	for _, s := range v.stamps() {
		h.Write(binary.BigEndian.AppendUint64(encodeUint64(uint64(s.Origin)), s.Clock))
	}
	return VectorStatus{len(v), hex.EncodeToString(h.Sum(nil)[:8])}
}

// newPeerStatus returns the status of a configured address without record and session.
func newPeerStatus(g peerGlance) PeerStatus {
	ps := PeerStatus{
		Addr: g.addr, Configured: true, Meta: g.meta, ID: g.id, State: g.state,
		LastSuccess: g.lastGood,
	}
	if g.lastErr != nil {
		ps.LastError = g.lastErr.Error()
	}
	if g.state == StateWaiting {
		ps.NextAttempt = g.due
	}
	return ps
}

// describe adds the figures of the peer's record and of its session. Both may be nil.
func (ps *PeerStatus) describe(d *store, record *peerRecord, s *session) {
	var known peerSummary
	if record != nil {
		known = record.summary()
	}
	ps.Name, ps.LastInSync = known.name, known.inSync
	heard, peerHead, t := !known.cursor.checkpoint.isZero(), max(known.cursor.checkpoint.seq, known.cursor.upper.seq), known.traffic
	var merged, durable vector
	if s != nil {
		g := s.glance()
		ps.State, ps.Name, ps.DialedBy, ps.NextAttempt = g.state, s.hello.name, DialedByThem, time.Time{}
		if s.dialed {
			ps.DialedBy = DialedByUs
		}
		heard = heard || g.heard
		peerHead = max(peerHead, g.peerHead)
		if g.lastGood.After(ps.LastSuccess) {
			ps.LastSuccess = g.lastGood
		}
		t.add(s.traffic())
		merged, durable = s.server.known(), g.durable
		if g.roundTrip > 0 {
			ps.RoundTrip = &g.roundTrip
		}
		if g.heard {
			ps.Lag = &g.lag
		}
		ps.Access, ps.Granted = &s.access, g.granted
	}
	ps.BytesIn, ps.BytesOut, ps.RecordsIn, ps.RecordsOut = t.bytesIn, t.bytesOut, t.recordsIn, t.recordsOut
	ps.Scan = scanStatus(&known.cursor)
	ps.Stale = staleStatus(d, &known, s)
	if heard {
		ps.Behind = pointer(peerHead - min(known.cursor.checkpoint.seq, peerHead))
	}
	if !known.merged.isZero() {
		ps.Unmerged = pointer(d.known.unknownTo(merged, known.merged.seq))
	}
	if !known.durable.isZero() {
		ps.Acknowledged = pointer(known.durable.seq)
		ps.Unconfirmed = pointer(d.known.unknownTo(durable, known.durable.seq))
	}
}

func pointer[T any](v T) *T { return &v }
