package replicator

// This file owns what may be a key, and how much of anything is sent at a time.

const (
	// MaxKeySize is the size in bytes of the largest key that can be written.
	MaxKeySize = 64 << 10

	// maxPageEntries and maxPageBytes bound a page. One page is merged while
	// the next is on its way, so a session holds at most twice that.
	maxPageEntries = 500
	maxPageBytes   = 1 << 20
	// inlineSize is the size in bytes of the largest value that is sent along with its
	// entry. Others are asked for.
	inlineSize = 64 << 10

	maxClusterName = 255 // bytes
	maxName        = 255
	maxAddrSize    = 256
)

// reserved is the sublevel that holds everything of the Replicator's.
const reserved = "\xffreplicator\xff"

// hidden reports whether a key is not the user's.
func hidden(key []byte) bool {
	return len(key) >= len(reserved) && key[0] == reserved[0] && string(key[:len(reserved)]) == reserved
}
