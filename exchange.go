package replicator

// This file owns what one replica asks of another, and what it is given.

// entry is one key's version from elsewhere, with its value or, for a value
// that was not sent along, its size.
type entry struct {
	key []byte
	Version
	value  []byte
	absent bool // the value was not sent along
	size   uint64
}

// pull asks for a page: of what came after the cursor's checkpoint, or of the scan
// that it is in the midst of.
type pull struct {
	cursor
	wait  bool   // answer only when there is something to say
	empty bool   // the puller has nothing of its own: adopted values are sent along, too
	stale uint64 // of the entries of the last page, how many were not needed
}

// page answers a pull. There are three kinds. One that follows the checkpoint has
// everything up to a place in the log. One of a scan has a part of what one snapshot
// holds. One that is sent ahead has changes from behind what follows, which has to
// wait, and moves no checkpoint.
type page struct {
	ahead bool
	reset bool     // the pull's positions are not of this log: nothing is merged
	scan  scan     // none: the page follows
	first bool     // of a scan: it begins with this page
	last  bool     // of a scan: it ends with this page
	to    position // up to where the page follows, or the head of the snapshot

	// vector is what the sender knows as of that place, as far as it changed since the
	// checkpoint or, if it is whole, all of it. A scan has it in its first page. A page
	// that is sent ahead has of it what changes made at the sender are known with it.
	vector []Stamp
	whole  bool

	// seen is what the sender knows as of a page that is sent ahead. heard is what the
	// makers of changes that it has may have known besides, as far as it was not told.
	seen, heard []Stamp

	incomplete bool // something was left out that the sender could not read

	reached uint64  // of a scan of the log: read down to this record
	key     []byte  // of a scan in key order: read up to and with this key
	entries []entry // in ascending order of their keys, each once
}
