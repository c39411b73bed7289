package replicator

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Status is a replica's state at one moment. It marshals to readable JSON.
type Status struct {
	ID         DatabaseID     `json:"id"`
	Epoch      Origin         `json:"epoch"`      // this opening's stretch of the log
	Clock      uint64         `json:"clock"`      // clock that the next local change will get
	Head       uint64         `json:"head"`       // sequence of the last log record
	Floor      uint64         `json:"floor"`      // sequence below which log records are gone
	LogRecords uint64         `json:"logRecords"` // records in the log
	Listening  string         `json:"listening,omitempty"`
	Failed     string         `json:"failed,omitempty"` // why writes are refused
	Adoption   AdoptionStatus `json:"adoption"`
	Peers      []PeerStatus   `json:"peers"` // configured ones by address, then those that dialled in
}

// AdoptionStatus tells how far the keys that the database held before it was
// wrapped are taken in.
type AdoptionStatus struct {
	Done    bool   `json:"done"`
	Adopted uint64 `json:"adopted"` // keys taken in
	Skipped uint64 `json:"skipped"` // keys left out because they or their values are too large

	LastError string `json:"lastError,omitempty"` // why the last batch failed; it is tried again
}

// State says what goes on with a peer.
type State string

// The states of a peer.
const (
	StateConnecting    State = "connecting"      // being dialled
	StateWaiting       State = "waiting"         // to be dialled, see NextAttempt and LastError
	StateSelf          State = "self"            // the address is this replica's own; it is not dialled again
	StateStarting      State = "starting"        // in a session, before the first answer to a pull
	StatePullingInFull State = "pulling in full" // reading all that the peer has
	StatePullingLog    State = "pulling the log" // reading what is new
	StateInSync        State = "in sync"         // all that the peer has told of is merged here
)

// Side says which side of a session dialled.
type Side string

// The sides of a session.
const (
	DialedByUs   Side = "us"
	DialedByThem Side = "them"
)

// PeerStatus is what is known of one address, or of one peer that dialled in.
// What is not known is nil.
type PeerStatus struct {
	Addr       string     `json:"addr"`
	Configured bool       `json:"configured"` // in Options.Peers or added by AddPeer
	Meta       Meta       `json:"meta,omitempty"`
	ID         DatabaseID `json:"id,omitzero"`
	Name       string     `json:"name,omitempty"`   // the peer's Options.Name
	SameAs     string     `json:"sameAs,omitempty"` // another configured address that leads to the same replica
	State      State      `json:"state"`
	DialedBy   Side       `json:"dialedBy,omitempty"` // in a session

	// Behind is at most how many records of the peer's log, as last heard, are not
	// merged here; Unconfirmed, how many of our log the peer has not acknowledged;
	// Acknowledged, up to which sequence the peer has made our log durable.
	Behind       *uint64 `json:"behind"`
	Unconfirmed  *uint64 `json:"unconfirmed"`
	Acknowledged *uint64 `json:"acknowledged"`

	LastSuccess time.Time `json:"lastSuccess,omitzero"` // last answer from the peer
	LastError   string    `json:"lastError,omitempty"`
	NextAttempt time.Time `json:"nextAttempt,omitzero"` // while waiting

	BytesIn    int64 `json:"bytesIn"` // since Open, as are the others
	BytesOut   int64 `json:"bytesOut"`
	RecordsIn  int64 `json:"recordsIn"` // what was offered, also if it was here already
	RecordsOut int64 `json:"recordsOut"`
}

// Status returns the replica's state. It may be called after Close.
func (r *Replicator) Status() Status {
	y := r.syncer
	s := Status{
		Epoch:      r.commits.origin,
		Clock:      r.commits.visible.clock.Load(),
		Head:       r.commits.visible.head.Load(),
		Floor:      r.floor,
		LogRecords: uint64(r.commits.visible.records.Load()),
		Adoption:   r.adopter.status(),
		Peers:      []PeerStatus{},
	}
	if err := r.commits.failure(); err != nil {
		s.Failed = err.Error()
	}
	if addr := r.Addr(); addr != nil {
		s.Listening = addr.String()
	}
	y.mu.Lock()
	s.ID = y.id
	peers := slices.Collect(maps.Values(y.peers))
	sessions := maps.Clone(y.sessions)
	known := maps.Clone(y.known)
	y.mu.Unlock()

	slices.SortFunc(peers, func(a, b *peer) int { return cmp.Compare(a.addr, b.addr) })
	shown := map[DatabaseID]bool{}
	first := map[DatabaseID]string{} // address by which a replica was shown
	for _, p := range peers {
		ps, session := p.status(), p.sessionIn(sessions, anyAnswer)
		if ps.State != StateSelf {
			ps.describe(s.Head, known[ps.ID], session)
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
			ps.describe(s.Head, known[id], session)
			s.Peers = append(s.Peers, ps)
		}
	}
	slices.SortFunc(s.Peers[configured:], func(a, b PeerStatus) int { return cmp.Compare(a.Addr, b.Addr) })
	return s
}

// status is what a configured address knows by itself.
func (p *peer) status() PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	ps := PeerStatus{
		Addr: p.addr, Configured: true, Meta: maps.Clone(p.meta), ID: p.id, State: p.state,
		LastSuccess: p.lastGood,
	}
	if p.lastErr != nil {
		ps.LastError = p.lastErr.Error()
	}
	if p.state == StateWaiting {
		ps.NextAttempt = p.due
	}
	return ps
}

// describe adds what the peer's record and the session with it tell.
func (ps *PeerStatus) describe(head uint64, record *peerRecord, s *session) {
	var merged, peerHead uint64
	var t traffic
	heard := false // of the peer's head
	if record != nil {
		record.mu.Lock()
		t = record.traffic
		merged, peerHead = record.checkpoint.seq, record.seen.seq
		heard = !record.seen.isZero()
		if !record.acknowledged.isZero() {
			ps.Acknowledged = pointer(record.acknowledged.seq)
		}
		ps.Name = record.name
		record.mu.Unlock()
	}
	if s != nil {
		s.mu.Lock()
		ps.State = s.state
		heard = heard || s.answers || s.caughtUp
		peerHead = max(peerHead, s.peerHead)
		if s.lastGood.After(ps.LastSuccess) {
			ps.LastSuccess = s.lastGood
		}
		s.mu.Unlock()
		ps.Name = s.hello.name
		ps.NextAttempt = time.Time{}
		ps.DialedBy = DialedByThem
		if s.dialed {
			ps.DialedBy = DialedByUs
		}
		live := s.traffic()
		t.bytesIn += live.bytesIn
		t.bytesOut += live.bytesOut
		t.recordsIn += live.recordsIn
		t.recordsOut += live.recordsOut
	}
	ps.BytesIn, ps.BytesOut, ps.RecordsIn, ps.RecordsOut = t.bytesIn, t.bytesOut, t.recordsIn, t.recordsOut
	if heard {
		ps.Behind = pointer(peerHead - min(merged, peerHead))
	}
	if ps.Acknowledged != nil {
		ps.Unconfirmed = pointer(head - min(*ps.Acknowledged, head))
	}
}

func pointer[T any](v T) *T { return &v }

// traffic is what the session carried so far.
func (s *session) traffic() traffic {
	return traffic{s.conn.received.Load(), s.conn.sent.Load(), s.recordsIn.Load(), s.recordsOut.Load()}
}

// lastContact is when the peer last answered; zero: never.
func (s *session) lastContact() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastGood
}
