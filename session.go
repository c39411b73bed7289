package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// ackDelay is for how long acknowledgements are gathered: each costs a Sync.
	ackDelay = 500 * time.Millisecond
	// echoDelay is how long a peer waits to be told that all that is new here
	// came from itself.
	echoDelay = 200 * time.Millisecond
	// aliveWait is how long a session may take to answer before a new connection
	// from the same process takes its place.
	aliveWait = 2 * time.Second
	// byePatience is for how long a bye may take to be sent, or to be found.
	byePatience = 100 * time.Millisecond
	// maxRequestFrame bounds pulls and fetches, which carry keys.
	maxRequestFrame = 1 << 20
)

// session is one connection's conversation with a peer, in both directions: the
// pull side reads the peer's log, the serve side answers the peer's pulls.
//
// The reader goroutine only receives and hands on, and never sends: two readers
// that waited for each other's sends would wait for ever.
type session struct {
	r      *Replicator
	conn   *conn
	own    hello       // as sent
	hello  hello       // the peer's
	record *peerRecord // of the peer; the cursor is the pull side's own
	dialed bool
	addr   string // dialled, or the connection's remote address
	number uint64 // by which the smaller id ordered its sessions with this peer
	echo   echoes
	pace   *schedule
	since  uint64 // the last meeting before the connection began

	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing of the session runs any more

	pulls   chan pull     // to serve
	fetches chan [][]byte // to serve
	pages   chan []byte   // to pull
	values  chan []byte   // to pull
	wake    chan struct{} // to serve: there are new records
	flush   chan uint64   // to serve: answer a pull below this head at once
	asked   chan uint64   // to control: the latest ping to answer
	acks    chan ack      // to control: the peer's latest acknowledgement
	ask     chan struct{} // to heartbeat: send a ping now
	settled chan struct{} // to control: the checkpoint moved

	meeting turn // guards what follows
	met     bool // the peer is remembered

	mu       sync.Mutex // guards what follows
	changed  chan struct{}
	token    uint64 // of the last ping asked for
	answers  bool   // the peer has answered a ping
	answered uint64 // token of the last answer
	peerHead uint64 // the peer's head, by the last answer
	merged   uint64 // up to where the peer's log is merged here
	state    State
	caughtUp bool // in this session, once
	lastGood time.Time

	recordsIn, recordsOut atomic.Int64
}

func newSession(ctx context.Context, r *Replicator, c *conn, g *greeting, record *peerRecord, addr string, dialed bool) *session {
	s := &session{
		r: r, conn: c, own: g.own, hello: g.peer, since: g.since, record: record, addr: addr, dialed: dialed,
		meeting: make(turn, 1),
		met:     dialed,
		pace:    newSchedule(r.options.MinInterval, r.options.MaxInterval),
		done:    make(chan struct{}),
		pulls:   make(chan pull, 1),
		fetches: make(chan [][]byte, 1),
		pages:   make(chan []byte, 1),
		values:  make(chan []byte, 1),
		wake:    make(chan struct{}, 1),
		flush:   make(chan uint64, 1),
		asked:   make(chan uint64, 1),
		acks:    make(chan ack, 1),
		ask:     make(chan struct{}, 1),
		settled: make(chan struct{}, 1),
		changed: make(chan struct{}),
		state:   StateStarting,
	}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

// run converses until the connection breaks, one side ends it, or the session
// is cancelled; it returns why.
func (s *session) run() error {
	var wg sync.WaitGroup
	start := func(part func() error) {
		wg.Go(func() {
			if err := part(); err != nil {
				s.cancel(err)
			}
		})
	}
	start(s.receive) // the peer's answer to the hello may be a bye
	if s.decides() {
		if err := s.send(frameAccept, acceptFrame(s.number)); err != nil {
			s.cancel(err)
		}
	}
	for _, part := range []func() error{s.heartbeat, s.control, s.serve, s.pull} {
		start(part)
	}
	<-s.ctx.Done()
	cause := context.Cause(s.ctx)
	s.sayBye(cause)
	s.conn.Close()
	wg.Wait()
	if err := s.saveCursor(false); err != nil && !errors.Is(cause, ErrFailed) {
		s.r.options.Logger.Warn("replicator: checkpoint not saved", "peer", s.addr, "error", err)
	}
	close(s.done)
	return cause
}

// decides is greeting.decides.
func (s *session) decides() bool { return bytes.Compare(s.own.id[:], s.hello.id[:]) < 0 }

func (s *session) isMet() bool {
	s.meeting.take()
	defer s.meeting.giveBack()
	return s.met
}

// meet remembers the peer, which has shown that it heard of us, if that has not
// been done in this session.
func (s *session) meet() error {
	s.meeting.take()
	defer s.meeting.giveBack()
	if s.met {
		return nil
	}
	err := s.r.syncer.meet(s.hello, "", s.since)
	s.met = err == nil
	return err
}

// sayBye tells the peer why, unless it ended the session itself.
func (s *session) sayBye(cause error) {
	var bye *byeReceived
	if errors.As(cause, &bye) || errors.Is(cause, errConnection) {
		return
	}
	sayBye(s.conn, cause)
}

// sayBye sends a bye, if the connection takes it at once.
func sayBye(c *conn, cause error) {
	timer := time.AfterFunc(byePatience, func() { c.Close() })
	defer timer.Stop()
	_ = c.send(frameBye, appendBye(nil, cause)) // the connection ends either way
}

// errConnection marks what the connection failed with.
var errConnection = errors.New("connection")

// connectionError hides the mark from the message.
type connectionError struct{ error }

func (connectionError) Is(target error) bool { return target == errConnection }
func (e connectionError) Unwrap() error      { return e.error }

// send sends a frame. If that fails, the receiving side is given the time to
// find the bye that tells why.
func (s *session) send(kind byte, parts ...[]byte) error {
	err := s.conn.send(kind, parts...)
	if err == nil {
		return nil
	}
	pause(s.ctx, byePatience)
	return connectionError{fmt.Errorf("send to the peer: %w", err)}
}

// frameLimit is the greatest length of a frame that this side has a use for.
func (s *session) frameLimit(kind byte) int {
	switch kind {
	case frameBye, frameAck, framePing, framePong:
		return maxSmallFrame
	case framePull, frameFetch:
		return maxRequestFrame
	case framePage, frameValues:
		return s.r.options.MaxValueSize + 4*maxPageBytes
	}
	return 0
}

// receive hands frames to those who wait for them.
func (s *session) receive() error {
	for {
		kind, payload, err := s.conn.receive(s.frameLimit)
		if err != nil {
			if errors.Is(err, ErrProtocol) {
				return err
			}
			return connectionError{err}
		}
		if err := s.handle(kind, payload); err != nil {
			return err
		}
	}
}

func (s *session) handle(kind byte, payload []byte) error {
	switch kind {
	case frameBye:
		return parseBye(payload)
	case frameAck:
		a, err := parseAck(payload)
		if err != nil {
			return err
		}
		replace(s.acks, a)
	case framePull:
		p, err := parsePull(payload)
		if err != nil {
			return err
		}
		return offer(s.pulls, p, "pull")
	case frameFetch:
		keys, err := parseFetch(payload)
		if err != nil {
			return err
		}
		return offer(s.fetches, keys, "fetch")
	case framePage:
		return offer(s.pages, payload, "page")
	case frameValues:
		return offer(s.values, payload, "values")
	case framePing:
		token, err := parsePing(payload)
		if err != nil {
			return err
		}
		replace(s.asked, token)
	case framePong:
		p, err := parsePong(payload)
		if err != nil {
			return err
		}
		s.note(func() {
			s.answers, s.answered, s.peerHead = true, p.token, p.head
			s.lastGood = time.Now()
		})
	}
	return nil
}

// offer hands on what was asked for once; a peer that sends it twice, or
// unasked, is told off.
func offer[T any](to chan T, v T, what string) error {
	select {
	case to <- v:
		return nil
	default:
		return fmt.Errorf("%w: a second %s before the first was dealt with", ErrProtocol, what)
	}
}

// replace puts v into a channel of capacity 1, in the place of what it holds.
// There is one sender.
func replace[T any](to chan T, v T) {
	select {
	case <-to:
	default:
	}
	to <- v
}

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// note changes what is guarded by mu, and wakes those who wait for a change.
func (s *session) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// acknowledged takes the peer's statement of what it has merged of our log. The
// newest one holds, also if it is lower; one that is not of this log is none.
func (s *session) acknowledged(a ack) error {
	if s.isAcknowledged(a.merged) {
		return nil
	}
	return s.r.commits.enter(false, func(c *committer) error {
		// Here, since the peer can have read what is not published yet.
		if !s.r.history.contains(a.merged, c.head) {
			a.merged = position{}
		}
		if s.isAcknowledged(a.merged) {
			return nil // a stranger's word makes no row
		}
		s.record.store(c.batch, s.hello.id, func(p *peerRecord) {
			p.acknowledged, p.peerHead = a.merged, a.head
		})
		return nil
	})
}

func (s *session) isAcknowledged(merged position) bool {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	return s.record.acknowledged == merged
}

// heartbeat asks for the peer's head when the schedule or somebody wants it. The
// answer shows that the connection is alive. It is not waited for: over a slow link
// it may take a while, and the peer wants to hear something meanwhile.
func (s *session) heartbeat() error {
	for s.pace.wait(s.ctx.Done(), s.ask, func(time.Time) {}) {
		s.pace.idle()
		if err := s.send(framePing, binary.AppendUvarint(nil, s.lastToken())); err != nil {
			return err
		}
	}
	return nil
}

// control answers the peer's pings, takes its acknowledgements, and acknowledges
// what was merged.
func (s *session) control() error {
	acked, err := s.acknowledge(position{}, true)
	if err != nil {
		return err
	}
	ackTimer := newIdleTimer()
	defer ackTimer.Stop()
	armed := false // not to be put off by what settles meanwhile
	for {
		var err error
		select {
		case <-s.ctx.Done():
			return nil
		case token := <-s.asked:
			head := s.r.commits.visible.head.Load()
			err = s.send(framePong, (&pong{token, head}).append(nil))
			replace(s.flush, head)
		case a := <-s.acks:
			err = s.acknowledged(a)
		case <-s.settled:
			if !armed {
				ackTimer.Reset(ackDelay)
				armed = true
			}
		case <-ackTimer.C:
			armed = false
			acked, err = s.acknowledge(acked, false)
		}
		if err != nil {
			return err
		}
	}
}

func newIdleTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// acknowledge tells the peer up to where its log is durable here, if that is
// not what it was told last; restate tells it in any case.
func (s *session) acknowledge(last position, restate bool) (position, error) {
	s.record.mu.Lock()
	settled, durable := s.record.settled, s.record.durable
	s.record.mu.Unlock()
	if !restate && settled == last {
		return last, nil
	}
	if settled != durable {
		if err := s.saveCursor(true); err != nil {
			return last, err
		}
		s.record.mu.Lock()
		s.record.durable = settled
		s.record.mu.Unlock()
	}
	a := ack{settled, s.r.commits.visible.head.Load()}
	return settled, s.send(frameAck, a.append(nil))
}

// saveCursor writes the peer's record, in case that the checkpoint moved over
// echoes only, which is not worth a write of its own. With sync it also makes
// all that was merged before as durable as a Sync write can.
func (s *session) saveCursor(sync bool) error {
	s.record.mu.Lock()
	unsaved := s.record.unsaved
	s.record.mu.Unlock()
	if !unsaved && !sync {
		return nil
	}
	return s.r.syncer.saveRecord(s.hello.id, s.record, sync, func(*peerRecord) {})
}

// lastToken returns the token to send: what was asked for, or a heartbeat.
func (s *session) lastToken() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// syncNow returns once all that is in the peer's log now is merged here.
func (s *session) syncNow(ctx context.Context) error {
	var target uint64
	known := false
	return s.wait(ctx, func(token uint64) bool {
		if !known && s.answered >= token {
			known, target = true, s.peerHead
		}
		return known && s.caughtUp && s.merged >= target
	})
}

// wait sends a ping, and returns when done is true of its token and the
// session's state, or with what ended the waiting.
func (s *session) wait(ctx context.Context, done func(token uint64) bool) error {
	s.mu.Lock()
	s.token++
	token := s.token
	s.mu.Unlock()
	signal(s.ask)
	for {
		s.mu.Lock()
		over, changed := done(token), s.changed
		s.mu.Unlock()
		if over {
			return nil
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// worked reports whether a page of the peer's was merged.
func (s *session) worked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state != StateStarting
}

// ended reports whether the session is over, or about to be.
func (s *session) ended() bool { return s.ctx.Err() != nil }

// alive reports whether the peer answers, within reason. Over a slow link the
// answer may be long under way, behind a page that arrives meanwhile.
func (s *session) alive(ctx context.Context) bool {
	heard := s.conn.received.Load()
	waiting, cancel := context.WithTimeout(ctx, aliveWait)
	defer cancel()
	err := s.wait(waiting, func(token uint64) bool { return s.answered >= token })
	return err == nil || s.ctx.Err() == nil && s.conn.received.Load() > heard
}

// serve answers the peer's pulls and fetches.
func (s *session) serve() error {
	reader := &pageReader{r: s.r, echo: &s.echo}
	delay := newIdleTimer()
	defer delay.Stop()
	var waiting *pull
	var flush uint64
	for {
		late := false
		select {
		case <-s.ctx.Done():
			return nil
		case p := <-s.pulls:
			if err := s.meet(); err != nil { // whoever asks for something has read our hello
				return err
			}
			waiting = &p
		case keys := <-s.fetches:
			if err := s.meet(); err != nil { // whoever asks for something has read our hello
				return err
			}
			parts, err := reader.values(keys)
			if err == nil {
				err = s.send(frameValues, parts...)
			}
			if err != nil {
				return err
			}
			continue
		case flush = <-s.flush:
		case <-s.wake:
		case <-delay.C:
			late = true
		}
		if waiting == nil {
			continue
		}
		switch s.due(waiting, flush, late) {
		case dueLater:
			delay.Reset(echoDelay)
			fallthrough
		case dueNever:
			continue
		}
		delay.Stop()
		header, body, entries, err := reader.page(waiting)
		if err == nil {
			err = s.send(framePage, header, body)
		}
		if err != nil {
			return err
		}
		s.recordsOut.Add(int64(entries))
		waiting = nil
	}
}

type due int

const (
	dueNow   due = iota
	dueLater     // all that is new came from the peer
	dueNever     // nothing is new
)

// due tells when a pull is to be answered.
func (s *session) due(p *pull, flush uint64, late bool) due {
	head := s.r.commits.visible.head.Load()
	at := p.checkpoint.seq
	if !p.wait || p.scan != scanNone || p.seen.seq > at || !s.r.history.knows(&p.cursor, max(head, p.seen.seq)) {
		return dueNow
	}
	switch {
	case head <= at:
		return dueNever
	case late || at < flush || !s.echo.cover(at+1, head):
		return dueNow
	}
	return dueLater
}
