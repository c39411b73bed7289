// Package replicator is master-master replication for goleveldb, embedded in the
// program that uses it.
//
// A [Replicator] wraps a *leveldb.DB. Each put and delete is committed in one
// leveldb batch with a record in a change log and a record in an index, both
// under the reserved prefix "\xffreplicator\xff". In the background, sessions
// with the configured peers read each other's change logs in reverse, from the
// head to what is merged already, and merge entry by entry: the greater stamp
// wins. Every replica accepts reads and writes at all times, connected or not,
// and replicas that can exchange changes, directly or through others, end in the
// same state.
//
//	r, err := replicator.OpenFile("data", nil, &replicator.Options{
//		Listen: "127.0.0.1:8000",
//		Peers:  map[string]replicator.Meta{"127.0.0.1:8001": nil, "127.0.0.1:8002": nil},
//	})
//	if err != nil {
//		return err
//	}
//	defer r.Close()
//	err = r.Put([]byte("some-key"), []byte("some-value"), nil)
//
// # What is guaranteed
//
// A write that returned is in the database with its log and index records, all
// or nothing; with Sync it survives a power cut. Replicas that have exchanged
// all their changes hold the same keys, values and stamps. Of concurrent changes
// to a key the one with the greatest stamp stays: the greater Lamport clock, then
// the greater origin. A change made here is stamped above everything merged here
// before it, so it replaces whatever its writer could see. Deletes are changes
// like any other. A replica that was restored from a copy, wiped, or cloned
// with its directory is noticed and brought back in line without help.
//
// # What is not
//
// There is no consensus and no transaction across replicas: a read may be stale,
// a batch is atomic where it was written and may arrive elsewhere in parts, and
// of two concurrent writes to one key one is dropped. What is written around the
// Replicator, through the raw handle, is not replicated as a change. Tombstones and
// the log records of overwritten keys are kept.
//
// # Ownership and concurrency
//
// All methods of a Replicator and a Snapshot are safe for concurrent use.
// Arguments belong to the caller and may be reused once a method returned;
// returned slices are the caller's own, but for those of an iterator, which are
// valid until it is moved.
package replicator
