package replicator

import "errors"

// This file owns the link between ids and histories: the epochs recorded for a peer's
// id, and the renewal of this replica's id if another replica has the same id.

// isForked reports whether the history of the peer that sent the hello has forked.
func (y *syncer) isForked(h hello) bool {
	record := y.store.peer(h.id)
	return record != nil && record.isForked(h.epoch)
}

// tellForked ends the session with a peer whose history has forked, so that the peer
// hears of the fork there, too. Because of that session, the peer may ignore what it is
// told over another connection.
func (y *syncer) tellForked(h hello) {
	y.mu.Lock()
	s := y.sessions[h.id]
	y.mu.Unlock()
	if s != nil && s.hello.nonce == h.nonce {
		s.cancel(errForked)
	}
}

// meet stores a record of a peer before anything is served to it. A clone that is turned
// away here connects again. addr is the dialled address, or empty if the peer dialled:
// the port that a peer dials from is not its address.
func (y *syncer) meet(h hello, addr string, since uint64) error {
	y.mu.Lock()
	record := y.recordOf(h.id)
	err := y.store.remember(h.id, record)
	y.mu.Unlock()
	if err != nil {
		return err
	}
	return y.store.meet(h.id, record, h.epoch, h.name, addr, since)
}

// recordOf returns the record of a peer: the stored one or, for a peer that has not been
// met yet, the record of its session or a new one. The caller must hold mu.
func (y *syncer) recordOf(id DatabaseID) *peerRecord {
	if record := y.store.peer(id); record != nil {
		return record
	}
	if s := y.sessions[id]; s != nil {
		return s.record
	}
	return new(peerRecord)
}

// renewIfForked renews this replica's id if err, which ended the conversation, is the
// peer's bye that the history of the id has forked. id is the id that was sent.
func (y *syncer) renewIfForked(id DatabaseID, err error) {
	var bye *byeReceived
	if errors.As(err, &bye) && bye.code == byeForked {
		y.renewID(id)
	}
}

// renewID replaces the database id old, which another replica has, too, by a new one,
// and ends the sessions in which old was sent.
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
// that told. If an epoch began for that reason lately, only that session ends: a peer
// that says so again and again must not keep the others away.
func (y *syncer) suspectImage() error {
	before, ok, err := y.store.newEpoch()
	switch {
	case err != nil:
		return err
	case !ok:
		return errImage
	}
	y.settings.logger.Warn("replicator: a peer knows changes of this process that this process does not: the machine was probably resumed from an image; "+
		"what was written between the image and now is in doubt where it met older writes; began a new epoch", "epoch", before)
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, s := range y.sessions {
		s.cancel(errImage)
	}
	return errImage
}
