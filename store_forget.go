package replicator

import (
	"cmp"
	"fmt"
	"slices"
)

// This file owns which peers were forgotten, and are refused since.

const peerForgotten = 1 // a flag in the row of a peer

// forgottenPeer is what is left of a peer.
type forgottenPeer struct {
	id   DatabaseID
	name string
}

// forget removes what is remembered of a peer, durably, and has it be refused. Nobody waits
// for it any more. A session with it may go on until it is ended: it leaves no trace of
// how far it came.
func (d *store) forget(id DatabaseID) error {
	if id.IsZero() || id == d.id() {
		return fmt.Errorf("%w: %v is no peer's id", ErrUnknownPeer, id)
	}
	return d.enter(true, func(x *section) error {
		left := peerRecord{forgotten: true}
		d.mu.Lock()
		if record := d.peers[id]; record != nil {
			left.name = record.summary().name
		} else {
			left.name = d.forgotten[id]
		}
		d.mu.Unlock()
		x.put(peerKey(id), left.append(nil))
		x.forget = func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			delete(d.peers, id)
			d.forgotten[id] = left.name
		}
		return nil
	})
}

// readmit has a peer that was forgotten be let in again, as one that was never met.
func (d *store) readmit(id DatabaseID) error {
	return d.enter(true, func(x *section) error {
		if !d.isForgotten(id) {
			return fmt.Errorf("%w: %v was not forgotten", ErrUnknownPeer, id)
		}
		x.batch.Delete(peerKey(id))
		x.forget = func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			delete(d.forgotten, id)
		}
		return nil
	})
}

func (d *store) isForgotten(id DatabaseID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, forgotten := d.forgotten[id]
	return forgotten
}

// allForgotten returns the peers that were forgotten, by id.
func (d *store) allForgotten() (all []forgottenPeer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, name := range d.forgotten {
		all = append(all, forgottenPeer{id, name})
	}
	slices.SortFunc(all, func(a, b forgottenPeer) int { return cmp.Compare(a.id.String(), b.id.String()) })
	return all
}
