package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// This file owns a session: its goroutines, what they tell each other, and heartbeats.

const (
	// aliveWait is how long a session may take to answer before a new connection
	// from the same process takes its place.
	aliveWait = 2 * time.Second
	// byePatience is for how long a bye may take to be sent, or to be found.
	byePatience = 100 * time.Millisecond
	// maxRequestFrame bounds pulls and fetches, which carry keys.
	maxRequestFrame = 1 << 20
	// maxVectorFrame bounds a frame that tells of the vector or of adoptions.
	maxVectorFrame = 128 << 10
)

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
	StateReadOnly      State = "read-only"       // the peer may only pull, see Options.Authorize
	StateStale         State = "stale"           // nothing is exchanged, see PeerStatus.Stale
	StateIncomplete    State = "incomplete"      // the peer can't read all of its own database; what it can read is merged here
)

// Side says which side of a session dialled.
type Side string

// The sides of a session.
const (
	DialedByUs   Side = "us"
	DialedByThem Side = "them"
)

// session is one connection's conversation with a peer, in both directions: the
// pull side reads what the peer has, the serve side answers the peer's pulls.
//
// Five goroutines share it. hear receives and hands on. beat sends pings and pongs.
// serve answers pulls and fetches, and tells what is news. pull asks, and merges. compare
// answers questions and offers. Whoever compares this replica to the peer asks those.
//
// They can't wait for each other for ever. hear never sends, and waits for nothing but
// storage: it merges a small page in place of pull, which is idle meanwhile. For what
// the peer may ask once, or was asked for once, there is a mailbox of one place, and a
// peer that sends more is told off; what only says "look again" is a field, and a wake
// that is set at most once. So whatever arrives is received, and every send of the peer's
// ends, and as the peer does the same, every send of ours. serve and beat wait for sends
// and commits only. compare, and whoever asks, wait for values, too, for the other's
// compare, and for each other's fetches: serve sends values without waiting for anything.
// pull waits for what it has asked for, which serve at the other end sends without waiting
// for anything of ours, and for its turn to scan, which nobody keeps while nothing comes.
type session struct {
	y      *syncer
	store  *store
	conn   *conn
	own    hello       // as sent
	hello  hello       // the peer's
	record *peerRecord // of the peer; pull moves the cursor
	server *server
	dialed bool
	addr   string // dialled, or the connection's remote address
	number uint64 // by which the smaller id ordered its sessions with this peer
	pace   *schedule
	since  uint64 // the last meeting before the connection began
	access Access // of the peer, to this replica

	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing of the session runs any more

	pulls     chan pull              // to serve
	fetches   chan [][]byte          // to serve
	pages     chan []byte            // to pull
	values    chan []byte            // to whoever fetches
	questions chan question          // to compare
	offers    chan [][]byte          // to compare
	replies   chan []byte            // to whoever asks
	takens    chan uint64            // to whoever asks
	lent      atomic.Pointer[puller] // by pull, while it waits for a page; nil: it has it
	back      chan struct{}          // to pull: the page is merged, and the puller is its own again
	// What the peer may send next: it asks for one thing at a time, and answers what it
	// was asked for.
	pullBusy, fetchBusy atomic.Bool // a pull, a fetch is yet to be answered
	pageDue, valuesDue  atomic.Bool // the peer was asked for a page, for values
	replyDue, takenDue  atomic.Bool // the peer was asked a question, was made an offer

	commits *subscription // wakes serve
	look    chan struct{} // wakes serve, too
	beats   chan struct{} // wakes beat

	begun    chan struct{}          // closed when the peer has stated what it has reaped
	reaped   atomic.Pointer[vector] // what the peer has reaped; each is replaced, not changed. nil: nothing
	rejoins  atomic.Bool            // the peer rejoins by itself where it is stale
	standing chan struct{}          // to pull: the two may fit by now
	calls    chan *rejoinCall       // to pull, while they do not
	reaps    struct {               // of open, then of serve
		told   vector // what the peer was told to be reaped
		number uint64 // by the number of the own reap vector
		any    bool   // it was told
		fits   fitting

		rejoins atomic.Bool // the peer was told that this replica rejoins by itself
		anew    atomic.Bool // pull has found that this has changed
	}

	fetching turn                        // held while values are fetched
	asking   turn                        // held while the peer is compared to; guards what follows
	owed     struct{ reply, taken bool } // what the peer has to answer yet

	meeting turn // guards what follows
	met     bool // the peer is remembered

	telling   turn   // guards what follows, and the order of what is told
	told      uint64 // own head up to which the peer was told of the vector
	adoptions uint64 // one above the number of the adoptions that were told; 0: none were

	mu         sync.Mutex // guards what follows
	changed    chan struct{}
	token      uint64  // of the last ping asked for
	pingNow    bool    // beat: send a ping
	pinged     bool    // beat: answer a ping
	pingToken  uint64  // the latest ping's
	stated     uint64  // own head that the peer's SyncNow was told last
	statedFor  uint64  // by the answer to the ping with this token
	flushAsked bool    // serve: make everything durable, and say so
	answers    bool    // the peer has answered a ping
	answered   uint64  // token of the last answer
	peerHead   uint64  // the peer's head, by the last answer
	merged     uint64  // up to where the peer's log is merged here
	durable    vector  // what is durable at the peer
	granted    *Access // what this replica may do at the peer; nil: it has yet to say
	acks       uint64  // number of acks received
	state      State
	caughtUp   bool  // in this session, once
	incomplete bool  // the peer could not read something
	leftOut    bool  // this side could not read something that the peer asked for
	parked     error // why nothing is exchanged; nil: it is
	lastGood   time.Time
	pingedAt   time.Time     // when a ping was sent that is yet to be answered; zero: none is
	roundTrip  time.Duration // of the last ping; 0: unknown
	lag        lag

	recordsIn, recordsOut atomic.Int64
}

func newSession(ctx context.Context, y *syncer, c *conn, g *greeting, record *peerRecord, addr string, dialed bool) *session {
	s := &session{
		y: y, store: y.store, conn: c, own: g.own, hello: g.peer, since: g.since, access: g.access, record: record, addr: addr, dialed: dialed,
		server:    newServer(y.store),
		fetching:  make(turn, 1),
		asking:    make(turn, 1),
		meeting:   make(turn, 1),
		telling:   make(turn, 1),
		met:       dialed,
		pace:      newSchedule(y.settings.minInterval, y.settings.maxInterval),
		done:      make(chan struct{}),
		pulls:     make(chan pull, 1),
		fetches:   make(chan [][]byte, 1),
		pages:     make(chan []byte, 1),
		values:    make(chan []byte, 1),
		questions: make(chan question, 1),
		offers:    make(chan [][]byte, 1),
		replies:   make(chan []byte, 1),
		takens:    make(chan uint64, 1),
		back:      make(chan struct{}, 1),
		begun:     make(chan struct{}),
		standing:  make(chan struct{}, 1),
		calls:     make(chan *rejoinCall),
		beats:     make(chan struct{}, 1),
		look:      make(chan struct{}, 1),
		changed:   make(chan struct{}),
		durable:   vector{},
		state:     StateStarting,
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
	s.commits = s.store.subscribe()
	defer s.store.unsubscribe(s.commits)
	start(s.hear) // the peer's answer to the hello may be a bye
	if err := s.open(); err != nil {
		s.cancel(err)
	}
	for _, part := range []func() error{s.beat, s.serve, s.pull, s.compare} {
		start(part)
	}
	<-s.ctx.Done()
	cause := context.Cause(s.ctx)
	s.sayBye(cause)
	s.conn.Close()
	wg.Wait()
	s.server.endScan()
	if s.record.isUnsaved() {
		if err := s.store.savePeer(s.hello.id, s.record, false); err != nil && !errors.Is(cause, ErrFailed) {
			s.y.settings.logger.Warn("replicator: checkpoint not saved", "peer", s.addr, "error", err)
		}
	}
	close(s.done)
	return cause
}

// open sends what comes before everything else.
func (s *session) open() error {
	if s.decides() {
		if err := s.send(frameAccept, appendAccept(nil, s.number)); err != nil {
			return err
		}
	}
	if err := s.send(frameTerms, []byte{byte(s.access)}); err != nil {
		return err
	}
	if err := s.tellWholeVector(); err != nil {
		return err
	}
	return s.tellReaped()
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
	err := s.y.meet(s.hello, "", s.since)
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
	case frameBye, frameTerms, framePing, framePong, frameFlush, frameTaken:
		return maxSmallFrame
	case frameVector, frameAdoptions:
		return maxVectorFrame
	case frameReaped:
		if s.hello.reaps {
			return maxVectorFrame
		}
	case framePull, frameFetch, frameQuestion, frameOffer:
		return maxRequestFrame
	case framePage, frameValues, frameAck, frameReply:
		return s.y.settings.maxValue + 4*maxPageBytes
	}
	return 0
}

// allowed returns an error if the peer may not send a frame of a kind. It is not asked
// for what it may not give.
func (s *session) allowed(kind byte) error {
	if s.access == ReadOnly && (kind == framePage || kind == frameValues || kind == frameOffer) {
		return fmt.Errorf("%w: frame of type %d from a peer with read-only access", ErrProtocol, kind)
	}
	return nil
}

// hear hands frames to those who wait for them.
func (s *session) hear() error {
	for {
		kind, payload, err := s.conn.receive(s.frameLimit)
		if err != nil {
			if errors.Is(err, ErrProtocol) {
				return err
			}
			return connectionError{err}
		}
		if err = s.allowed(kind); err == nil {
			err = s.handle(kind, payload)
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) handle(kind byte, payload []byte) error {
	switch kind {
	case frameBye:
		return parseBye(payload)
	case frameTerms:
		access, err := parseTerms(payload)
		if err != nil {
			return err
		}
		granted := Access(access)
		s.note(func() { s.granted = &granted })
		s.states(func(of *stated) { of.deaf = granted == ReadOnly })
		if granted == ReadOnly {
			s.y.settings.logger.Warn("replicator: this replica has read-only access at a peer: its own changes are not merged there",
				"peer", s.addr, "id", s.hello.id)
		}
	case frameVector:
		known, err := parseVector(payload, s.hello.epoch)
		if err == nil {
			err = s.hears(known)
		}
		return err
	case frameReaped:
		stamps, more, rejoins, err := parseReaped(payload, s.hello.epoch)
		if err == nil {
			err = s.hearsReaped(stamps, more, rejoins)
		}
		return err
	case frameAdoptions:
		a, err := parseAdoptions(payload)
		if err == nil {
			err = s.hearsOf(a)
		}
		return err
	case frameAck:
		a, err := parseAck(payload, s.own.epoch, s.hello.epoch)
		if err == nil {
			err = s.acknowledged(a)
		}
		return err
	case frameFlush:
		s.note(func() { s.flushAsked = true })
		signal(s.commits.wake)
	case framePull:
		p, err := parsePull(payload, s.own.epoch)
		if err != nil {
			return err
		}
		return offer(s.pulls, p, s.pullBusy.CompareAndSwap(false, true), "a second pull before the first was answered")
	case frameFetch:
		keys, err := parseFetch(payload)
		if err != nil {
			return err
		}
		return offer(s.fetches, keys, s.fetchBusy.CompareAndSwap(false, true), "a second fetch before the first was answered")
	case framePage:
		due := s.pageDue.CompareAndSwap(true, false)
		if due {
			if merged, err := s.mergeLent(payload); merged || err != nil {
				return err
			}
		}
		return offer(s.pages, payload, due, "a page that was not asked for")
	case frameValues:
		return offer(s.values, payload, s.valuesDue.CompareAndSwap(true, false), "values that were not asked for")
	case frameQuestion:
		q, err := parseQuestion(payload, s.own.epoch)
		if err != nil {
			return err
		}
		return offer(s.questions, q, len(s.questions) == 0, "a second question before the first was answered")
	case frameReply:
		return offer(s.replies, payload, s.replyDue.CompareAndSwap(true, false), "a reply that was not asked for")
	case frameOffer:
		keys, err := parseOffer(payload)
		if err != nil {
			return err
		}
		return offer(s.offers, keys, len(s.offers) == 0, "a second offer before the first was answered")
	case frameTaken:
		n, err := parseTaken(payload)
		if err != nil {
			return err
		}
		return offer(s.takens, n, s.takenDue.CompareAndSwap(true, false), "an answer to no offer")
	case framePing:
		token, err := parsePing(payload)
		if err != nil {
			return err
		}
		s.note(func() { s.pinged, s.pingToken = true, token })
		signal(s.beats)
	case framePong:
		p, err := parsePong(payload)
		if err != nil {
			return err
		}
		s.mu.Lock()
		sent := p.token <= s.token
		s.mu.Unlock()
		if !sent {
			return fmt.Errorf("%w: pong: the token %d was not sent", ErrProtocol, p.token)
		}
		s.note(func() {
			s.answers, s.answered, s.peerHead = true, p.token, p.head
			s.lastGood = time.Now()
			if !s.pingedAt.IsZero() {
				s.roundTrip, s.pingedAt = max(s.lastGood.Sub(s.pingedAt), 1), time.Time{}
			}
			s.lag.heard(p.head, s.merged, s.lastGood)
			if s.state == StateInSync && s.merged >= p.head {
				s.record.foundInSync(s.lastGood) // before SyncNow is told
			}
		})
		s.record.isSeen()
	}
	return nil
}

// hears takes in what the peer knows. Its clocks are judged like stamps. If it knows
// more of this replica's current epoch than there is, this process goes on from
// an image of itself.
func (s *session) hears(known []Stamp) error {
	if err := s.checkClocks("vector", known); err != nil {
		return err
	}
	for _, k := range known {
		if s.access == ReadWrite && s.store.isImage(k) {
			return s.y.suspectImage()
		}
	}
	n := s.server.tell(known)
	s.mayFit()
	return checkOrigins(n)
}

// checkClocks judges the clocks of what a peer knows, or has made durable.
func (s *session) checkClocks(what string, known []Stamp) error {
	if rules := &s.store.settings.clock; greatest(known) > rules.limit() {
		return rules.refuse("the peer's "+what+" has", greatest(known))
	}
	return nil
}

// checkOrigins refuses a peer that has told of too many origins in this session.
func checkOrigins(n int) error {
	if n > maxOrigins {
		return fmt.Errorf("%w: the peer's vector has %d origins, the limit is %d", ErrProtocol, n, maxOrigins)
	}
	return nil
}

// hearsOf takes in what the peer knows of adoptions, for pull to learn.
func (s *session) hearsOf(a adoptions) error {
	if err := s.checkClocks("mark of an adoption", slices.Collect(maps.Values(a))); err != nil {
		return err
	}
	if n := s.server.tellAdoptions(a); n > maxAdoptions {
		return fmt.Errorf("%w: the peer tells of %d adoptions, the limit is %d", ErrProtocol, n, maxAdoptions)
	}
	return nil
}

// acknowledged takes in what the peer has made durable. A place that is not in this
// log counts for nothing.
func (s *session) acknowledged(a ack) error {
	if err := s.checkClocks("durable vector", a.known); err != nil {
		return err
	}
	head, history := s.store.position()
	if !a.merged.isZero() && !history.contains(a.merged, head) {
		a.merged = position{}
	}
	s.states(func(of *stated) { of.durable = a.merged })
	origins := 0
	s.note(func() {
		s.acks++
		s.durable.join(a.known)
		origins = len(s.durable)
	})
	if s.hello.reaps {
		s.store.statesDurably(s.record, s.hello.epoch, s.own.id, a.known)
	}
	s.mayFit()
	signal(s.look) // serve may have to ask for another
	return checkOrigins(origins)
}

// states notes what the peer states of this replica's log, and wakes those who wait for
// it.
func (s *session) states(change func(*stated)) {
	s.record.state(s.hello.epoch, s.own.id, change)
	s.y.waits.wake()
}

// offer hands on what the peer may send once. There is room for it.
func offer[T any](to chan T, v T, may bool, otherwise string) error {
	if !may {
		return fmt.Errorf("%w: %s", ErrProtocol, otherwise)
	}
	to <- v
	return nil
}

// note changes what is guarded by mu, and wakes those who wait for a change.
func (s *session) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// beat asks for the peer's head when the schedule or somebody wants it, and answers
// when the peer does. The answer shows that the connection is alive. It is not waited
// for: over a slow link it may take a while, and the peer wants to hear something
// meanwhile.
func (s *session) beat() error {
	began := time.Now()
	until := began.Add(s.pace.next())
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		ping := false
		select {
		case <-s.ctx.Done():
			return nil
		case <-timer.C:
			ping = true
		case <-s.pace.rearm:
			if sooner := began.Add(s.pace.next()); sooner.Before(until) {
				until = sooner
				timer.Reset(time.Until(until))
			}
		case <-s.beats:
		}
		s.mu.Lock()
		ping = ping || s.pingNow
		pong, token, mine := s.pinged, s.pingToken, s.token
		s.pingNow, s.pinged = false, false
		s.mu.Unlock()
		if pong {
			if err := s.answerPing(token); err != nil {
				return err
			}
		}
		if !ping {
			continue
		}
		s.pace.idle()
		s.mu.Lock()
		if s.pingedAt.IsZero() {
			s.pingedAt = time.Now()
		}
		s.mu.Unlock()
		if err := s.send(framePing, binary.AppendUvarint(nil, mine)); err != nil {
			return err
		}
		began = time.Now()
		until = began.Add(s.pace.next())
		timer.Reset(time.Until(until))
	}
}

// answerPing tells the own head. Where the peer's SyncNow has asked for it, what came up
// to there is no longer held back.
func (s *session) answerPing(token uint64) error {
	head := s.store.head()
	s.mu.Lock()
	awaited := token > s.statedFor
	if awaited {
		s.stated, s.statedFor = head, token
	}
	s.mu.Unlock()
	if awaited {
		signal(s.commits.wake)
	}
	return s.send(framePong, (&pong{token, head}).append(nil))
}

// syncNow returns once all that is in the peer's log now is merged here.
func (s *session) syncNow(ctx context.Context) error {
	var target uint64
	known, incomplete, parked := false, false, error(nil)
	err := s.wait(ctx, func(token uint64) bool {
		if !known && s.answered >= token {
			known, target = true, s.peerHead
		}
		incomplete, parked = s.incomplete, s.parked
		return parked != nil || known && (s.caughtUp && s.merged >= target || incomplete || s.access == ReadOnly)
	})
	if err == nil && parked != nil {
		return parked
	}
	if err == nil && incomplete {
		return errIncomplete
	}
	return err
}

var errIncomplete = errors.New("replicator: the peer can't read all of its own database: see its log; what it can read is merged")

// wait sends a ping, and returns when done is true of its token and the
// session's state, or with what ended the waiting.
func (s *session) wait(ctx context.Context, done func(token uint64) bool) error {
	s.mu.Lock()
	s.token++
	token := s.token
	s.pingNow = true
	s.mu.Unlock()
	signal(s.beats)
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

// sessionGlance is what Status shows of a session.
type sessionGlance struct {
	state    State
	heard    bool // the peer has told of its head
	peerHead uint64
	durable  vector
	granted  *Access
	lastGood time.Time // when the peer last answered; zero: never

	roundTrip time.Duration // 0: unknown
	lag       time.Duration // for how long a change of the peer's has been known of that is not merged
}

// lag is since when this replica has known of changes in the peer's log that are not
// merged here. Stamps carry no time: so it counts from when the peer's head was heard.
type lag struct {
	since time.Time // zero: all is merged
	upTo  uint64    // head that was heard then
}

// heard takes in a head, and comesTo how far the log is merged.
func (l *lag) heard(head, merged uint64, now time.Time) {
	if l.since.IsZero() && head > merged {
		l.since, l.upTo = now, head
	}
}

func (l *lag) comesTo(merged, head uint64, heardAt time.Time) {
	switch {
	case l.since.IsZero() || merged < l.upTo:
	case head > merged:
		l.since, l.upTo = heardAt, head
	default:
		*l = lag{}
	}
}

func (l *lag) now() time.Duration {
	if l.since.IsZero() {
		return 0
	}
	return time.Since(l.since)
}

func (s *session) glance() sessionGlance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sessionGlance{s.state, s.answers || s.caughtUp, s.peerHead, maps.Clone(s.durable), s.granted, s.lastGood, s.roundTrip, s.lag.now()}
}
