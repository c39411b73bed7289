package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// This file owns comparisons in a session: answering those of the peer, asking for one,
// and moving what differs.

// compare answers the peer's questions, and takes what it offers.
func (s *session) compare() error {
	c := &comparer{d: s.store, record: s.record}
	defer c.release()
	out := &entryWriter{epoch: s.own.epoch}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if again := c.expire(time.Now()); again > 0 {
			timer.Reset(again)
		}
		select {
		case <-s.ctx.Done():
			return nil
		case <-timer.C:
		case q := <-s.questions:
			if err := s.meet(); err != nil { // whoever asks has read our hello
				return err
			}
			r, entries, err := c.answer(s.ctx, &q, out)
			if err != nil {
				return err
			}
			if err := s.tellAdoptions(); err != nil { // as before a page
				return err
			}
			if err := s.send(frameReply, out.reply(&r, entries, s.hello.epoch)...); err != nil {
				return err
			}
		case keys := <-s.offers:
			if err := s.meet(); err != nil {
				return err
			}
			n, err := s.takeOffered(keys)
			if err != nil {
				return err
			}
			if err := s.send(frameTaken, appendTaken(nil, n)); err != nil {
				return err
			}
		}
	}
}

// newTaker returns a puller for entries that come beside the pull.
func (s *session) newTaker() *puller {
	u := newPuller(s)
	u.incomplete = true // what can't be read is no matter of the pull
	u.arbiter.scans(s.store)
	return u
}

// takeOffered merges what the peer has of some keys, and returns of how many it had
// something.
func (s *session) takeOffered(keys [][]byte) (uint64, error) {
	u := s.newTaker()
	for len(keys) > 0 {
		answered, err := u.fetchKeys(keys)
		if err != nil {
			return 0, err
		}
		keys = keys[answered:]
	}
	return uint64(u.fetched), nil
}

// offerKeys has the peer take what this replica has of some keys, and returns of how many
// it has that now, or something later. The caller holds asking.
func (s *session) offerKeys(ctx context.Context, keys [][]byte) (n uint64, err error) {
	for len(keys) > 0 {
		some, size := 0, 0
		for some < len(keys) && some < maxPageEntries && (some == 0 || size+len(keys[some]) <= maxQuestionBytes) {
			size += len(keys[some])
			some++
		}
		if s.owed.taken {
			if _, err := awaitWithin(ctx, s, s.takens); err != nil {
				return n, err
			}
		}
		s.takenDue.Store(true)
		if err := s.send(frameOffer, appendFetch(nil, keys[:some])); err != nil {
			return n, err
		}
		s.owed.taken = true
		taken, err := awaitWithin(ctx, s, s.takens)
		if err != nil {
			return n, err
		}
		s.owed.taken = false
		if taken > uint64(some) {
			return n, fmt.Errorf("%w: %d keys were taken, of %d", ErrProtocol, taken, some)
		}
		n += taken
		keys = keys[some:]
	}
	return n, nil
}

// awaitWithin waits for what the peer answers.
func awaitWithin[T any](ctx context.Context, s *session, from chan T) (answer T, err error) {
	select {
	case answer = <-from:
		return answer, nil
	case <-ctx.Done():
		return answer, context.Cause(ctx)
	case <-s.ctx.Done():
		return answer, context.Cause(s.ctx)
	}
}

// ask has the peer answer a question. The caller holds asking. An answer that nobody
// waited for comes first.
func (s *session) ask(ctx context.Context, q *question) (*reply, error) {
	if s.owed.reply {
		if _, err := awaitWithin(ctx, s, s.replies); err != nil {
			return nil, err
		}
		s.owed.reply = false
	}
	s.replyDue.Store(true)
	if err := s.send(frameQuestion, q.append(nil, s.hello.epoch)); err != nil {
		return nil, err
	}
	s.owed.reply = true
	payload, err := awaitWithin(ctx, s, s.replies)
	if err != nil {
		return nil, err
	}
	s.owed.reply = false
	r, err := parseReply(payload, s.y.settings.maxValue, s.hello.epoch, s.own.epoch)
	if err != nil {
		return nil, err
	}
	if err := s.meet(); err != nil { // whoever answers has read our hello
		return nil, err
	}
	if err := s.hears(r.vector); err != nil {
		return nil, err
	}
	limit := s.store.settings.clock.limit()
	for i := range r.entries {
		e := &r.entries[i]
		if s.store.settings.isLocal(e.key) {
			return nil, errLocal(e.key)
		}
		if e.Clock > limit {
			return nil, s.store.settings.clock.refuse(fmt.Sprintf("key %.64q arrived with", e.key), e.Clock)
		}
	}
	return &r, nil
}

// takeFound merges entries of replies, in ascending order of their keys, and fetches the
// values that they lack. It returns how many came.
func (u *puller) takeFound(r *reply, entries []entry) (int, error) {
	if u.giver.known == nil {
		u.giver.known = vector{}
	}
	u.giver.knew(r.vector)
	u.heard.join(r.vector)
	if err := u.hearOf(r.heard); err != nil {
		return 0, err
	}
	if err := u.judge(entries); err != nil {
		return 0, err
	}
	var absent []int
	var present []entry
	for i := range entries {
		if entries[i].absent {
			absent = append(absent, i)
		} else {
			present = append(present, entries[i])
		}
	}
	var blind blindness
	c, err := u.s.store.examineBy(present, &blind, &u.arbiter)
	if err != nil {
		return 0, err
	}
	c.hear, c.from = u.makersKnew(), u.s.hello.id
	if err := u.commit(c, &blind, nil); err != nil {
		return 0, err
	}
	before := u.fetched
	if err := u.fetch(entries, absent); err != nil {
		return 0, err
	}
	return len(present) + u.fetched - before, nil
}

// lacking returns the entries of pairs that are later there.
func lacking(pairs []pair) (entries []entry) {
	for i := range pairs {
		if !pairs[i].isLater() {
			entries = append(entries, pairs[i].there)
		}
	}
	return entries
}

// adoptionWait is how long a comparison waits for the adoption of what recovered files
// have without an index.
const adoptionWait = time.Minute

// pullDifferences has a replica whose files were recovered pull what it lacks, and not
// all. It reports whether everything is merged then; else all is to be pulled.
func (u *puller) pullDifferences() (bool, error) {
	s := u.s
	if err := s.store.awaitAdoption(s.ctx, adoptionWait); err != nil {
		return false, err
	}
	s.asking.take()
	defer s.asking.giveBack()
	s.note(func() { s.state = StatePullingInFull })
	view, err := s.store.viewSums(s.ctx, nil)
	if err != nil {
		return false, err
	}
	defer view.Release()
	if view.whole().all.n == 0 {
		return false, nil // a first sync is faster
	}
	taker := s.newTaker()
	c := &comparison{d: s.store, values: true, view: view, ask: func(q *question) (*reply, error) { return s.ask(s.ctx, q) }}
	c.found = func(pairs []pair) error {
		entries := lacking(pairs)
		s.recordsIn.Add(int64(len(entries)))
		_, err := taker.takeFound(c.peer, entries)
		return err
	}
	if err := c.run(s.ctx); errors.Is(err, errAdopting) || err == nil && (c.moved || taker.lacked) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := s.learn(); err != nil {
		return false, err
	}
	next := cursor{checkpoint: c.peer.to, joined: true}
	u.c, u.full = next, true
	p := &progress{id: s.hello.id, record: s.record, restart: u.restart, next: next, witness: c.peer.vector, join: c.peer.vector}
	s.y.scans.add(scanRecovered)
	return true, s.store.endRecovery(p)
}
