package replicator

// This file owns what one replica asks of another, and what it is given.

// entry is one key's version from elsewhere, with its value or, for a value
// that was not sent along, its size and hash.
type entry struct {
	key []byte
	Version
	value  []byte
	absent bool // the value was not sent along
	size   uint64
	hash   uint64
}

// valueHash returns the hash of the value, also of one that was not sent along.
func (e *entry) valueHash() uint64 {
	if e.absent {
		return e.hash
	}
	return valueHash(e.value)
}

// pull asks for a page: of the log, below what was reached and above the
// checkpoint, or of the whole state, behind a key.
type pull struct {
	cursor
	wait   bool   // answer a scan that would be empty only when it no longer is
	inline uint64 // values up to this size are sent along
	adopts bool   // values of adopted keys are sent along, too
}

// page answers a pull, with a state of the log that is read from one snapshot.
type page struct {
	unknown bool     // the pull's positions are not of this log: pull in full
	done    bool     // of a full scan: nothing is left behind the last key
	rescan  bool     // of a log scan's beginning: all that is new is read faster in key order
	head    position // the snapshot's
	floor   uint64   // the snapshot's
	reached uint64   // of a log scan: read down to this record
	key     []byte   // of a full scan: read up to and with this key
	entries []entry  // in ascending order of their keys, each once
}
