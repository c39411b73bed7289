package replicator

import (
	"errors"
	"fmt"
)

// checkHistory returns an error if the history of the peer that said hello has
// forked. The peer is told so over its session, too: it may not listen to this
// connection, for that session's sake.
func (y *syncer) checkHistory(h hello) error {
	y.mu.Lock()
	record, s := y.known[h.id], y.sessions[h.id]
	y.mu.Unlock()
	if record == nil || !record.isForked(h.epoch) {
		return nil
	}
	err := errForked(h)
	if s != nil && s.hello.nonce == h.nonce {
		s.cancel(err)
	}
	return err
}

// meet remembers a peer, and records, with Sync and before anything is served, that
// it is new or in a new epoch. It has to have heard of us, and no other epoch of
// its may have been noted since its connection began: what it says may come late,
// when its process has ended and another has taken its place. A clone that is
// turned away for that comes again. The address is where it was dialled, or empty:
// the port that a peer dials from says nothing.
func (y *syncer) meet(h hello, addr string, since uint64) error {
	y.mu.Lock()
	record := y.recordOf(h.id)
	y.known[h.id] = record
	y.mu.Unlock()
	record.mu.Lock()
	current := record.current(h.epoch)
	forked, late, changed := record.forked(h.epoch), !current && record.meeting > since, false
	if !forked && !late {
		if !current {
			record.meeting = y.meetings.Add(1)
		}
		changed = record.met(h.epoch, h.name, addr)
	}
	record.mu.Unlock()
	switch {
	case late:
		return errLate
	case forked:
		return errForked(h)
	}
	if !changed {
		return nil
	}
	return y.saveRecord(h.id, record, true, func(*peerRecord) {})
}

// recordOf returns the record of a peer: the one that is remembered or, until it is
// met, the one that its session has. The caller holds mu.
func (y *syncer) recordOf(id DatabaseID) *peerRecord {
	if record := y.known[id]; record != nil {
		return record
	}
	if s := y.sessions[id]; s != nil {
		return s.record
	}
	return new(peerRecord)
}

var errLate = errors.New("replicator: a newer process of this peer was met while this connection was being made")

func errForked(h hello) error {
	return fmt.Errorf("%w: the history of id %v has forked: epoch %v is back", ErrCloned, h.id, h.epoch)
}

// saveRecord changes a peer's record and writes its row.
func (y *syncer) saveRecord(id DatabaseID, record *peerRecord, sync bool, change func(*peerRecord)) error {
	return y.r.commits.enter(sync, func(s *committer) error {
		record.store(s.batch, id, change)
		return nil
	})
}

func (y *syncer) ownID() DatabaseID {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.id
}

// renewIfForked renews the id that a hello carried if the peer said, in the
// error that ended the conversation, that another lineage has it, too.
func (y *syncer) renewIfForked(id DatabaseID, err error) {
	var bye *byeReceived
	if errors.As(err, &bye) && bye.code == byeForked {
		y.renewID(id)
	}
}

// renewID draws a new database id in the place of one that another replica has,
// too. What was acknowledged to the old id may have been acknowledged to the
// other; checkpoints are of logs that this replica did read, and stay.
func (y *syncer) renewID(old DatabaseID) {
	var renewed DatabaseID
	err := y.r.commits.enter(true, func(s *committer) error {
		y.mu.Lock()
		defer y.mu.Unlock()
		if y.id != old {
			return nil // renewed already
		}
		renewed = newDatabaseID()
		y.id = renewed
		s.batch.Put(metaKey(metaID), y.id[:])
		for id, record := range y.known {
			record.store(s.batch, id, func(p *peerRecord) { p.acknowledged, p.peerHead = position{}, 0 })
		}
		for _, session := range y.sessions {
			session.cancel(errRenewed)
		}
		return nil
	})
	switch {
	case err == nil && !renewed.IsZero():
		y.r.options.Logger.Warn("replicator: another replica has this database id, perhaps the directory was copied; drew a new one",
			"old", old, "new", renewed)
	case err != nil && !errors.Is(err, ErrClosed):
		y.r.options.Logger.Error("replicator: could not draw a new database id", "error", err)
	}
}

var errRenewed = errors.New("replicator: this replica has a new database id")
