package replicator

import "time"

// This file owns the reserved prefix, and the limits of keys, pages and names.

const (
	// MaxKeySize is the size in bytes of the largest key that can be written.
	MaxKeySize = 64 << 10

	// maxPageEntries and maxPageBytes bound a page. A session merges one page while
	// the next is in transit, so it holds at most twice that.
	maxPageEntries = 500
	maxPageBytes   = 1 << 20
	// inlineSize is the size in bytes of the largest value that is sent inline, with
	// its entry. Larger values are fetched.
	inlineSize = 64 << 10

	// maxOrigins bounds a vector, which has an entry for each opening that made a
	// change. maxAdoptions bounds the adoptions that are known. Nobody gets there by
	// using the package; a peer must not fill memory and disk with them.
	maxOrigins   = 1_000_000
	maxAdoptions = 1 << 16

	// A scan that others wait for goes on alone while it receives turnBytes of pages
	// and values in every turnTime.
	turnBytes = 64 << 10
	turnTime  = 5 * time.Second

	// Limits of strings, in bytes.
	maxClusterName = 255
	maxName        = 255
	maxLocalPrefix = 255
	maxAddrSize    = 256
)

// reserved is the prefix of all keys that belong to the Replicator.
const reserved = "\xffreplicator\xff"

// hidden reports whether a key is under the reserved prefix.
func hidden(key []byte) bool {
	return len(key) >= len(reserved) && key[0] == reserved[0] && string(key[:len(reserved)]) == reserved
}
