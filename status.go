package replicator

import (
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
	ID         DatabaseID     `json:"id"`
	Epoch      Origin         `json:"epoch"`               // of this opening
	Clock      uint64         `json:"clock"`               // clock of the next local change
	Head       uint64         `json:"head"`                // sequence of the last log record
	Floor      uint64         `json:"floor"`               // sequence below which log records are not served
	LogRecords uint64         `json:"logRecords"`          // number of records in the log
	Vector     VectorStatus   `json:"vector"`              // what this replica knows
	Listening  string         `json:"listening,omitempty"` // address that peers can dial
	Failed     string         `json:"failed,omitempty"`    // why writes are refused
	Adoption   AdoptionStatus `json:"adoption"`
	Peers      []PeerStatus   `json:"peers"`             // configured peers by address, then peers that dialled in
	Refused    []Refusal      `json:"refused,omitempty"` // inbound connections that were refused, at most 64 kinds, the latest first
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

	LastSuccess time.Time `json:"lastSuccess,omitzero"` // last answer from the peer
	LastError   string    `json:"lastError,omitempty"`
	NextAttempt time.Time `json:"nextAttempt,omitzero"` // time of the next attempt to dial, while waiting

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
		Epoch:      d.origin(),
		Clock:      d.commits.visible.clock.Load(),
		Head:       d.head(),
		Floor:      d.commits.visible.floor.Load(),
		LogRecords: uint64(d.commits.visible.records.Load()),
		Vector:     vectorStatus(d.known.all()),
		Adoption:   AdoptionStatus{progress.done, progress.adopted, progress.skipped, d.adopter.fault()},
		Peers:      []PeerStatus{},
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
	for _, f := range r.syncer.refusals.list() {
		s.Refused = append(s.Refused, Refusal{f.host, f.text, f.count, f.last})
	}
	return s
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
	ps.Name = known.name
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
		ps.Access, ps.Granted = &s.access, g.granted
	}
	ps.BytesIn, ps.BytesOut, ps.RecordsIn, ps.RecordsOut = t.bytesIn, t.bytesOut, t.recordsIn, t.recordsOut
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
