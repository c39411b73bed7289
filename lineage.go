package replicator

import "errors"

// This file owns which history an id stands for: what is noted of a peer's, and
// what becomes of this replica's own id when another has it, too.

// isForked reports whether the history of the peer that said hello has forked.
func (y *syncer) isForked(h hello) bool {
	record := y.store.peer(h.id)
	return record != nil && record.isForked(h.epoch)
}

// tellForked ends the session with a peer whose history has forked, so that it
// hears of it there, too: it may not listen to another connection, for that
// session's sake.
func (y *syncer) tellForked(h hello) {
	y.mu.Lock()
	s := y.sessions[h.id]
	y.mu.Unlock()
	if s != nil && s.hello.nonce == h.nonce {
		s.cancel(errForked)
	}
}

// meet remembers a peer before anything is served to it. A clone that is turned
// away here comes again. The address is where it was dialled, or empty: the port that
// a peer dials from says nothing.
func (y *syncer) meet(h hello, addr string, since uint64) error {
	y.mu.Lock()
	record := y.recordOf(h.id)
	y.store.remember(h.id, record)
	y.mu.Unlock()
	return y.store.meet(h.id, record, h.epoch, h.name, addr, since)
}

// recordOf returns the record of a peer: the one that is remembered or, until it is
// met, the one that its session has. The caller holds mu.
func (y *syncer) recordOf(id DatabaseID) *peerRecord {
	if record := y.store.peer(id); record != nil {
		return record
	}
	if s := y.sessions[id]; s != nil {
		return s.record
	}
	return new(peerRecord)
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
// too, and ends the sessions that rest on it.
func (y *syncer) renewID(old DatabaseID) {
	renewed, err := y.store.renewID(old)
	switch {
	case err == nil && !renewed.IsZero():
		y.settings.logger.Warn("replicator: another replica has this database id, perhaps the directory was copied; drew a new one",
			"old", old, "new", renewed)
	case err != nil && !errors.Is(err, ErrClosed):
		y.settings.logger.Error("replicator: could not draw a new database id", "error", err)
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, s := range y.sessions {
		if s.own.id != y.store.id() {
			s.cancel(errRenewed)
		}
	}
}

var errRenewed = errors.New("replicator: this replica has a new database id")

var errImage = errors.New("replicator: this process goes on from an image of itself: a peer knows more of it than there is")

// suspectImage begins a new epoch, for a peer knows changes of this one that were not
// made in it, and ends all sessions. It returns the error to end the session with
// that told.
func (y *syncer) suspectImage() error {
	before, ok, err := y.store.newEpoch()
	switch {
	case err != nil:
		return err
	case ok:
		y.settings.logger.Warn("replicator: a peer knows changes of this process that this process does not: the machine was probably resumed from an image; "+
			"what was written between the image and now is in doubt where it met older writes; began a new epoch", "epoch", before)
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, s := range y.sessions {
		s.cancel(errImage)
	}
	return errImage
}
