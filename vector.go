package replicator

import (
	"cmp"
	"slices"
)

// This file owns the vector: what a replica knows, by whatever way it came.

// vector is what a replica knows of each origin: every change up to a clock is
// merged, or something greater of its key is. A pair of origin and clock is written
// as a Stamp.
type vector map[Origin]uint64

// vectorFrom returns the vector of some pairs.
func vectorFrom(stamps []Stamp) vector {
	v := make(vector, len(stamps))
	v.join(stamps)
	return v
}

// covers reports whether the vector tells that a change is known. It tells nothing
// of adopted values: they share the clock 0, and their origins are hashes.
func (v vector) covers(s Stamp) bool {
	clock, known := v[s.Origin]
	return known && s.Clock <= clock && s.Origin&drawnOrigin != 0
}

// anyOrigin stands for all origins in what was heard. It is never drawn.
const anyOrigin Origin = drawnOrigin

// mayCover is covers for what was heard: after a power cut, nobody knows what the makers
// of the changes that it left had known.
func (v vector) mayCover(s Stamp) bool {
	all, some := v[anyOrigin]
	return v.covers(s) || some && s.Clock <= all && s.Origin&drawnOrigin != 0
}

// raise takes one origin's clock up, and reports whether it was lower.
func (v vector) raise(s Stamp) bool {
	if clock, known := v[s.Origin]; known && clock >= s.Clock {
		return false
	}
	v[s.Origin] = s.Clock
	return true
}

// join takes all clocks up, and reports whether one of them was lower.
func (v vector) join(with []Stamp) (rose bool) {
	for _, s := range with {
		rose = v.raise(s) || rose
	}
	return rose
}

// includes reports whether the vector covers all that another does.
func (v vector) includes(w vector) bool {
	for o, clock := range w {
		if known, found := v[o]; !found || known < clock {
			return false
		}
	}
	return true
}

// stamps returns the pairs, in ascending order of the origins.
func (v vector) stamps() []Stamp {
	all := make([]Stamp, 0, len(v))
	for o, clock := range v {
		all = append(all, Stamp{clock, o})
	}
	sortByOrigin(all)
	return all
}

func sortByOrigin(stamps []Stamp) {
	slices.SortFunc(stamps, func(a, b Stamp) int { return cmp.Compare(a.Origin, b.Origin) })
}

// greatest returns the greatest clock of some pairs, 0 if there are none.
func greatest(stamps []Stamp) (clock uint64) {
	for _, s := range stamps {
		clock = max(clock, s.Clock)
	}
	return clock
}

// adoptionID names one adoption: the taking in of what a database held before it
// was wrapped. It is drawn at random when the adoption begins.
type adoptionID uint64

// adoptions is which adoptions a replica may hold values of, and for each that has
// ended, the stamp that its replica marked the end with; the zero stamp for one that
// has not. Adopted values are known to whoever covers the marks of all of them.
type adoptions map[adoptionID]Stamp

// inDoubt is an adoption that nobody makes, and that does not end: drawn ids are odd. Who
// dropped old values in a rejoin that other replicas may rightly have makes it known. From
// then on, no vector tells of old values whether they are known.
const inDoubt adoptionID = 2

// covered reports whether every adoption has ended, and a vector covers all the marks.
func (a adoptions) covered(by vector) bool {
	for _, mark := range a {
		if mark == (Stamp{}) || !by.covers(mark) {
			return false
		}
	}
	return true
}

// merge takes in what another replica knows, and returns what was new.
func (a adoptions) merge(b adoptions) (news adoptions) {
	for id, mark := range b {
		known, found := a[id]
		if found && known.Compare(mark) >= 0 {
			continue // of two marks, which clones can make, the greater counts
		}
		a[id] = mark
		if news == nil {
			news = adoptions{}
		}
		news[id] = mark
	}
	return news
}
