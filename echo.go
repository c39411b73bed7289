package replicator

import (
	"slices"
	"sort"
	"sync"
)

// This file owns the memory of what a session brought.

// maxEchoes bounds what a session remembers. What is forgotten is offered to the
// peer, which has it, and ignores it.
const maxEchoes = 1024

// echoes are the sequences, here, of records that a session brought. They are
// not offered back over it.
type echoes struct {
	mu     sync.Mutex
	ranges []echoRange // ascending, disjoint
}

type echoRange struct{ first, last uint64 }

// add notes a range above all noted before.
func (e *echoes) add(first, last uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := len(e.ranges); n > 0 && e.ranges[n-1].last+1 == first {
		e.ranges[n-1].last = last
		return
	}
	if len(e.ranges) == maxEchoes {
		e.ranges = slices.Delete(e.ranges, 0, maxEchoes/2)
	}
	e.ranges = append(e.ranges, echoRange{first, last})
}

// cover reports whether every sequence from first to last is an echo.
func (e *echoes) cover(first, last uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := sort.Search(len(e.ranges), func(i int) bool { return e.ranges[i].last >= first })
	return i < len(e.ranges) && e.ranges[i].first <= first && last <= e.ranges[i].last
}
