package replicator

import (
	"math/rand/v2"
	"sync"
	"time"
)

// This file owns when a peer is contacted next.

// schedule says when a peer is contacted next. As in level-replicator, writes
// raise the frequency, idleness lets it decay, and failures do, too.
type schedule struct {
	min, max time.Duration

	mu       sync.Mutex // guards what follows
	interval time.Duration
	rearm    chan struct{} // tells the one who waits that the interval shrank
}

func newSchedule(min, max time.Duration) *schedule {
	return &schedule{min: min, max: max, interval: min, rearm: make(chan struct{}, 1)}
}

// wrote notes that a local write happened: the interval is halved.
func (s *schedule) wrote() {
	s.mu.Lock()
	shrank := s.interval > s.min
	s.interval = max(s.min, s.interval/2)
	s.mu.Unlock()
	if shrank {
		select {
		case s.rearm <- struct{}{}:
		default:
		}
	}
}

// idle notes a contact that no write called for, or a failed one: the interval
// is doubled.
func (s *schedule) idle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interval = min(s.max, 2*s.interval)
}

// reset starts afresh, after a success.
func (s *schedule) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interval = s.min
}

// next returns the time to wait: the interval, give or take a fifth, so that
// replicas that started together drift apart.
func (s *schedule) next() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration((0.8 + 0.4*rand.Float64()) * float64(s.interval))
}

// longestWait is the longest that next gives for an interval.
func longestWait(interval time.Duration) time.Duration { return interval + interval/5 }

// wait returns after the time that next gives, measured from the call and
// shortened when writes come in, or when stop or now is signalled. note is told
// when it is going to be. It reports whether stop is not closed.
func (s *schedule) wait(stop <-chan struct{}, now <-chan struct{}, note func(time.Time)) bool {
	began := time.Now()
	until := began.Add(s.next())
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	note(until)
	for {
		select {
		case <-stop:
			return false
		case <-now:
			return true
		case <-timer.C:
			return true
		case <-s.rearm:
			if sooner := began.Add(s.next()); sooner.Before(until) {
				until = sooner
				timer.Reset(time.Until(until))
				note(until)
			}
		}
	}
}
