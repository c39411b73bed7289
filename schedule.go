package replicator

import (
	"math/rand/v2"
	"sync"
	"time"
)

// This file owns the intervals between contacts with a peer.

// schedule determines when a peer is contacted next. As in level-replicator, writes
// raise the frequency; idleness and failures lower it.
type schedule struct {
	min, max time.Duration

	mu       sync.Mutex // guards the fields below
	interval time.Duration
	rearm    chan struct{} // tells wait that the interval has shrunk
}

func newSchedule(min, max time.Duration) *schedule {
	return &schedule{min: min, max: max, interval: min, rearm: make(chan struct{}, 1)}
}

// wrote records a local write: it halves the interval.
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

// idle records a contact without a write, or a failed contact: it doubles the interval.
func (s *schedule) idle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interval = min(s.max, 2*s.interval)
}

// reset sets the interval to its minimum, after a success.
func (s *schedule) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interval = s.min
}

// next returns the time to wait: the interval, plus or minus up to a fifth, so that
// replicas that started at the same time drift apart.
func (s *schedule) next() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration((0.8 + 0.4*rand.Float64()) * float64(s.interval))
}

// longestWait returns the longest time that next returns for an interval.
func longestWait(interval time.Duration) time.Duration { return interval + interval/5 }

// wait waits for the time that next returns. It returns earlier if writes shorten the
// interval, or if it receives from stop or now. It calls note with the time at which it
// is going to return, and again when that changes. It returns false if it received from
// stop.
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
