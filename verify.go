package replicator

import (
	"bytes"
	"context"
	"errors"
	"slices"
)

// This file owns Verify: what of a database that disagrees with itself is put right, and
// with whose help.

// VerifyOptions configures Verify. The zero value and nil are valid.
type VerifyOptions struct {
	// Progress is called by the goroutine of the caller, now and then, with the bytes of
	// tables that were read and that there are, both approximate. In the last call the two
	// are equal.
	Progress func(done, total int64)

	// Repair puts right what can be. It first merges what peers have, as SyncNow does, and
	// then asks all peers that could be reached, with which this replica has a session and
	// of which it may merge, for the keys that it has found:
	//
	//   - A missing value comes back from a peer that has it, or something later. If no
	//     peer has, the index record stays as it is: it tells peers which pull this
	//     replica that something is missing. Verify again when another peer is reachable,
	//     or open with Recovered, which drops the record.
	//   - A value without an index record is replaced by what a peer has of its key. If
	//     peers were asked and none of them knows the key, the value is taken in as a put
	//     that is made now.
	//   - A key of which only a log record is left, or whose index row can't be read, comes
	//     back from a peer. If peers were asked, and none knows the key, a value that is
	//     there is taken in.
	//
	// The value of a deleted key, a changed value and log records that are missing or
	// differ are only reported. Peers that follow a log that lacked something may lack
	// that: Repair(ctx, peer) finds out.
	Repair bool

	// Force has a repair take in all values without an index record, and those of deleted
	// keys, without asking anybody. They replace what other replicas have of these keys,
	// which may be newer.
	Force bool
}

// verify implements Replicator.Verify.
func (y *syncer) verify(ctx context.Context, o *VerifyOptions) (Report, error) {
	if o == nil {
		o = &VerifyOptions{}
	}
	v := newVerifier(ctx, y.store)
	m := &mender{y: y, ctx: ctx, v: v, force: o.Force, todo: map[DisagreementKind]*mending{}}
	if o.Repair {
		v.bad = m.take
	}
	err := v.run(o.Progress)
	for _, kind := range disagreementKinds {
		if err == nil {
			err = m.flush(kind)
		}
	}
	if err != nil {
		return Report{}, err
	}
	v.report.Peers = len(m.peers)
	return v.result(), nil
}

// mender puts right what a verifier finds.
type mender struct {
	y      *syncer
	ctx    context.Context
	v      *verifier
	force  bool
	looked bool       // for peers
	peers  []*session // those that can be asked
	todo   map[DisagreementKind]*mending
}

// mending is the keys of one kind that are yet to be put right.
type mending struct {
	keys [][]byte
	size int // bytes
}

// take takes in a key that is to be put right.
func (m *mender) take(kind DisagreementKind, key []byte) error {
	if kind == ChangedValue || kind == DeletedValue && !m.force {
		return nil
	}
	todo := m.todo[kind]
	if todo == nil {
		todo = new(mending)
		m.todo[kind] = todo
	}
	if len(todo.keys) >= maxPageEntries || todo.size+len(key) > maxQuestionBytes {
		if err := m.flush(kind); err != nil {
			return err
		}
	}
	todo.size += len(key)
	todo.keys = append(todo.keys, bytes.Clone(key))
	return nil
}

// flush puts right what was taken in of one kind.
func (m *mender) flush(kind DisagreementKind) error {
	todo := m.todo[kind]
	if todo == nil || len(todo.keys) == 0 {
		return nil
	}
	keys, d := todo.keys, m.y.store
	*todo = mending{}
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal)
	stray := kind == UnknownValue || kind == DeletedValue
	var known map[string]bool
	if !stray || !m.force {
		if err := m.look(); err != nil {
			return err
		}
		if len(m.peers) == 0 && !m.force {
			return nil
		}
		for _, key := range keys {
			if kind != UnreadableRow {
				break
			}
			if err := d.dropUnreadable(key); err != nil {
				return err
			}
		}
		var err error
		if known, err = m.ask(keys); err != nil {
			return err
		}
	}
	for _, key := range keys {
		if (stray || kind == UnreadableRow) && (m.force || known != nil && !known[string(key)]) {
			if err := d.takeIn(key, m.force); err != nil {
				return err
			}
		}
		whole, indexed, err := d.isWhole(key)
		if err != nil {
			return err
		}
		if whole && (indexed || kind == UnreadableRow) {
			m.v.found[kind].Repaired++
		}
	}
	return nil
}

// ask merges what peers have of some keys, which ascend, and returns which of them they
// know. It returns nil if that is not certain, or if there is no peer to ask.
func (m *mender) ask(keys [][]byte) (known map[string]bool, err error) {
	certain := len(m.peers) > 0
	adoptions, _ := m.y.store.known.adoptions()
	for id, mark := range adoptions {
		certain = certain && (mark != Stamp{} || id == inDoubt) // else a peer may have values that it does not know yet
	}
	known = map[string]bool{}
	for _, s := range m.peers {
		if err := s.askFor(m.ctx, keys, known); err != nil {
			if over := firstError(m.y.store.failure(), context.Cause(m.ctx)); over != nil {
				return nil, over
			}
			certain = false
		}
	}
	if !certain {
		return nil, nil
	}
	return known, nil
}

// look finds the peers that can be asked, when there is something to ask.
func (m *mender) look() error {
	if m.looked {
		return nil
	}
	m.looked = true
	if err := m.y.syncNow(m.ctx); err != nil { // what is merely under way need not be asked for
		if over := firstError(m.y.store.failure(), context.Cause(m.ctx)); over != nil {
			return over
		}
	}
	_, sessions := m.y.connections()
	for _, s := range sessions {
		if s.access == ReadWrite && !s.ended() {
			m.peers = append(m.peers, s)
		}
	}
	return nil
}

// askFor merges what the peer has of some keys, which ascend, and notes which of them it
// knows.
func (s *session) askFor(ctx context.Context, keys [][]byte, known map[string]bool) error {
	// Close waits for this call, and must not wait for a frame that does not come.
	stop := context.AfterFunc(ctx, func() {
		if err := context.Cause(ctx); errors.Is(err, ErrClosed) {
			s.cancel(err)
		}
	})
	defer stop()
	u := s.newTaker()
	for len(keys) > 0 {
		v, err := u.get(keys)
		if err == nil {
			err = u.mend(v.entries)
		}
		if errors.Is(err, ErrProtocol) || errors.Is(err, ErrClock) || errors.Is(err, errImage) {
			s.cancel(err)
		}
		if err != nil {
			return err
		}
		for i := range v.entries {
			known[string(v.entries[i].key)] = true
		}
		if v.incomplete { // it does not say which of them it can't read
			for _, key := range keys[:v.answered] {
				known[string(key)] = true
			}
		}
		keys = keys[v.answered:]
	}
	return nil
}

// mend merges what the peer has of some keys.
func (u *puller) mend(entries []entry) error {
	var blind blindness
	c, err := u.s.store.examineToMend(entries, &blind, &u.arbiter)
	if err != nil {
		return err
	}
	c.hear, c.from = append(u.s.server.known().stamps(), u.makersKnew()...), u.s.hello.id
	return u.commit(c, &blind, nil)
}
