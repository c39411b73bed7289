package simtest

import (
	"slices"
	"time"
)

// maxSegment is how many bytes arrive at once where the speed is limited.
const maxSegment = 1 << 10

// lane is one direction between two hosts. All their connections share it: what
// one of them writes is sent after what another has written before.
type lane struct {
	speed  int           // bytes a second; without a limit if 0
	delay  time.Duration // from when a byte is sent until it arrives
	frozen bool
	read   int64      // bytes, at its end
	queue  []*segment // those that were under way when the last one was added
}

// segment is bytes of a connection that arrive together.
type segment struct {
	of            *link
	size          int // 0: the connection's end
	sent, arrives time.Time

	// Since when the lane had something to send, and how much: so that the moments
	// do not depend on how the bytes are divided.
	busy  time.Time
	bytes int
}

func (s *segment) arrived() bool { return !s.arrives.After(time.Now()) }

// send puts bytes of a connection under way.
func (l *lane) send(of *link, size int) *segment {
	for len(l.queue) > 0 && l.queue[0].arrived() {
		l.queue = l.queue[1:]
	}
	s := &segment{of: of, size: size}
	before := new(segment)
	if n := len(l.queue); n > 0 {
		before = l.queue[n-1]
	}
	l.schedule(s, before, time.Now())
	l.queue = append(l.queue, s)
	return s
}

// schedule has a segment sent after another one, and not before now.
func (l *lane) schedule(s, before *segment, now time.Time) {
	s.busy, s.bytes = now, s.size
	if before.sent.After(now) {
		s.busy, s.bytes = before.busy, before.bytes+s.size
	}
	s.sent = s.busy
	if l.speed > 0 {
		s.sent = s.busy.Add(time.Duration(s.bytes) * time.Second / time.Duration(l.speed))
	}
	s.arrives = later(s.sent.Add(l.delay), before.arrives)
}

// reschedule is to be called when speed or delay have changed. What was sent
// already arrives after the new delay at the latest; what is being sent is sent anew.
func (l *lane) reschedule() {
	now, before := time.Now(), new(segment)
	for _, s := range l.queue {
		if s.sent.After(now) {
			l.schedule(s, before, now)
		} else {
			s.arrives = earlier(s.arrives, now.Add(l.delay))
		}
		before = s
	}
}

// forget removes what is under way of a connection that was cut.
func (l *lane) forget(of *link) {
	l.queue = slices.DeleteFunc(l.queue, func(s *segment) bool { return s.of == of })
	l.reschedule()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
