// Package replicator provides master-master replication for goleveldb, embedded in the
// program that uses it.
//
// A [Replicator] wraps a *leveldb.DB. Each put and each delete is committed in one
// leveldb batch together with a record in a change log and a record in an index. Both
// are stored under the reserved prefix "\xffreplicator\xff". In the background, sessions
// with the configured peers read what is new in each other's change logs. They merge entry by
// entry: the greater stamp wins. A version vector says what a replica knows, so that nothing
// is sent to a replica that has it.
// Every replica accepts reads and writes at all times, connected or not. Replicas that
// can exchange changes, directly or through others, end in the same state.
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
// A write that has returned is in the database together with its log and index records,
// atomically. With Sync, it survives a power cut. Replicas that have exchanged all their
// changes hold the same keys, values and stamps. Of concurrent changes to a key, the one
// with the greatest stamp wins: the greater clock, then the greater origin. A
// local change is stamped above everything merged before it, so it replaces whatever its
// writer could see. Deletes are changes like any other. A replica that was restored from
// a copy, wiped, or cloned with its directory is detected and brought back in line
// automatically.
//
// # What is not
//
// There is no consensus, and there are no transactions across replicas. A read may be
// stale. A batch is atomic on the replica where it was written, and may arrive at others
// in parts. Of two concurrent writes to one key, one is dropped. A write through the raw
// handle, bypassing the Replicator, is not replicated as a change. Tombstones are kept
// for ever, unless Options.TombstoneAge is set.
//
// # What changes
//
// [Replicator.Changes] gives the whole state and then what changes, made here or merged,
// and goes on from the [Cursor] of any change, over restarts and kills: for caches, indexes
// and streams to other systems. Keys under Options.LocalPrefix stay on their replica; an
// index kept there can be written in one batch with its cursor.
//
// # Ownership and concurrency
//
// All methods of Replicator and Snapshot are safe for concurrent use. The caller owns the
// arguments, and may reuse them after a method has returned. The caller also owns
// returned slices, except those of an iterator, which are valid until it is moved.
package replicator
