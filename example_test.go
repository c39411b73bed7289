package replicator_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// check ends the example; a program would return the error.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// exampleReplica opens a replica of its own folder, that listens on loopback and
// dials the given peers. The caller closes it with done.
func exampleReplica(peers ...string) (r *replicator.Replicator, done func()) {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	o := &replicator.Options{Listen: "127.0.0.1:0", Peers: map[string]replicator.Meta{}}
	for _, addr := range peers {
		o.Peers[addr] = nil
	}
	r, err = replicator.OpenFile(dir, nil, o)
	check(err)
	return r, func() {
		check(r.Close())
		check(os.RemoveAll(dir))
	}
}

// Two servers wrap their databases. What is written on either is read on both.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "replicator")
	check(err)
	defer os.RemoveAll(dir)

	db1, err := leveldb.OpenFile(filepath.Join(dir, "1"), nil)
	check(err)
	defer db1.Close()
	server1, err := replicator.Open(db1, &replicator.Options{Listen: "127.0.0.1:0"})
	check(err)
	defer server1.Close()

	db2, err := leveldb.OpenFile(filepath.Join(dir, "2"), nil)
	check(err)
	defer db2.Close()
	server2, err := replicator.Open(db2, &replicator.Options{
		Peers: map[string]replicator.Meta{server1.Addr().String(): {"name": "server 1"}},
	})
	check(err)
	defer server2.Close()

	check(server1.Put([]byte("from 1"), []byte("hello"), nil))
	check(server2.Put([]byte("from 2"), []byte("hello, too"), nil))

	// It happens by itself. SyncNow waits until what peers have now is here.
	check(server2.SyncNow(context.Background()))
	check(server1.SyncNow(context.Background()))

	value, err := server2.Get([]byte("from 1"), nil)
	check(err)
	fmt.Printf("server 2 has %q\n", value)
	value, err = server1.Get([]byte("from 2"), nil)
	check(err)
	fmt.Printf("server 1 has %q\n", value)
	// Output:
	// server 2 has "hello"
	// server 1 has "hello, too"
}

// Without a handle of its own a program has OpenFile open the database, with safe
// settings, and Close close it.
func ExampleOpenFile() {
	dir, err := os.MkdirTemp("", "replicator")
	check(err)
	defer os.RemoveAll(dir)

	r, err := replicator.OpenFile(filepath.Join(dir, "data"), nil, nil)
	check(err)
	check(r.Put([]byte("key"), []byte("value"), nil))
	check(r.Close())

	r, err = replicator.OpenFile(filepath.Join(dir, "data"), nil, nil)
	check(err)
	defer r.Close()
	value, err := r.Get([]byte("key"), nil)
	check(err)
	fmt.Printf("%s\n", value)
	_, err = r.Get([]byte("absent"), nil)
	fmt.Println(err == leveldb.ErrNotFound)
	// Output:
	// value
	// true
}

// A batch is applied as a whole.
func ExampleReplicator_Write() {
	r, done := exampleReplica()
	defer done()
	check(r.Put([]byte("stock/apples"), []byte("7"), nil))

	var b leveldb.Batch
	b.Delete([]byte("stock/apples"))
	b.Put([]byte("stock/pears"), []byte("3"))
	b.Put([]byte("sold/1"), []byte("7 apples"))
	check(r.Write(&b, nil))

	has, err := r.Has([]byte("stock/apples"), nil)
	check(err)
	sold, err := r.Get([]byte("sold/1"), nil)
	check(err)
	fmt.Printf("apples: %v, sold: %s\n", has, sold)
	// Output:
	// apples: false, sold: 7 apples
}

// A peer is added while the program runs.
func ExampleReplicator_AddPeer() {
	old, closeOld := exampleReplica()
	defer closeOld()
	check(old.Put([]byte("key"), []byte("value"), nil))

	added, closeAdded := exampleReplica()
	defer closeAdded()
	check(added.AddPeer(old.Addr().String(), replicator.Meta{"name": "the old server"}))
	check(added.SyncNow(context.Background()))

	value, err := added.Get([]byte("key"), nil)
	check(err)
	fmt.Printf("%s\n", value)
	// Output:
	// value
}

// Status tells how it goes, with every peer.
func ExampleReplicator_Status() {
	a, closeA := exampleReplica()
	defer closeA()
	b, closeB := exampleReplica(a.Addr().String())
	defer closeB()
	check(a.Put([]byte("key"), []byte("value"), nil))
	check(b.SyncNow(context.Background()))

	status := b.Status()
	fmt.Println("records in the log:", status.LogRecords)
	for _, peer := range status.Peers {
		fmt.Printf("peer: %s, %d records behind, dialled by %s\n", peer.State, *peer.Behind, peer.DialedBy)
	}
	// Output:
	// records in the log: 1
	// peer: in sync, 0 records behind, dialled by us
}

// Replicas with equal digests hold the same keys, values and stamps.
func ExampleReplicator_Digest() {
	a, closeA := exampleReplica()
	defer closeA()
	b, closeB := exampleReplica(a.Addr().String())
	defer closeB()
	check(a.Put([]byte("key"), []byte("value"), nil))
	check(b.SyncNow(context.Background()))

	digestA, err := a.Digest()
	check(err)
	digestB, err := b.Digest()
	check(err)
	fmt.Println(digestA.Keys, digestA.Bytes, digestA == digestB)
	// Output:
	// 1 8 true
}

// An iterator goes over the keys with a prefix, in both directions.
func ExampleReplicator_NewIterator() {
	r, done := exampleReplica()
	defer done()
	for _, key := range []string{"fruit/apple", "fruit/pear", "nut/hazel"} {
		check(r.Put([]byte(key), []byte("1 kg"), nil))
	}

	it := r.NewIterator(util.BytesPrefix([]byte("fruit/")), nil)
	defer it.Release()
	for it.Next() {
		fmt.Printf("%s: %s\n", it.Key(), it.Value())
	}
	if it.Last() {
		fmt.Printf("the last is %s\n", it.Key())
	}
	check(it.Error())
	// Output:
	// fruit/apple: 1 kg
	// fruit/pear: 1 kg
	// the last is fruit/pear
}

// Two servers change a title while they don't reach each other. One of the titles wins
// on both. The other one is kept, so that its user can be shown it. The two may meet on
// either server, or on both: so both keep it, under a key that is made of the loser's stamp,
// and what they write is the same.
func ExampleConflict() {
	lost := make(chan replicator.Conflict, 2)
	var servers [2]*replicator.Replicator
	for i := range servers {
		dir, err := os.MkdirTemp("", "replica")
		check(err)
		defer os.RemoveAll(dir)
		servers[i], err = replicator.OpenFile(dir, nil, &replicator.Options{
			Listen: "127.0.0.1:0",
			OnConflict: func(c replicator.Conflict) {
				if strings.HasPrefix(string(c.Key), "lost/") {
					return // what the two have kept is equal
				}
				check(servers[i].Put(fmt.Appendf(nil, "lost/%s/%v", c.Key, c.Lost.Stamp), c.LostValue, nil))
				lost <- c
			},
		})
		check(err)
		defer servers[i].Close()
	}
	check(servers[0].Put([]byte("title"), []byte("Moby-Dick"), nil))
	check(servers[1].Put([]byte("title"), []byte("The Whale"), nil))
	check(servers[1].Put([]byte("title"), []byte("The Whale, or Moby-Dick"), nil))
	check(servers[1].AddPeer(servers[0].Addr().String(), nil))

	c := <-lost
	fmt.Printf("%q was replaced by %q, whose author had not seen it\n", c.LostValue, c.WonValue)
	for _, server := range servers {
		check(server.SyncNow(context.Background()))
		kept, err := server.Get(fmt.Appendf(nil, "lost/title/%v", c.Lost.Stamp), nil)
		check(err)
		fmt.Printf("kept: %q\n", kept)
	}
	// Output:
	// "Moby-Dick" was replaced by "The Whale, or Moby-Dick", whose author had not seen it
	// kept: "Moby-Dick"
	// kept: "Moby-Dick"
}

// A handler can also write the winner anew, if it writes the same on every replica: here it
// joins two sets of words, in their order. What both write is equal, so whichever wins will do.
func ExampleConflict_deterministic() {
	join := func(c replicator.Conflict) []byte {
		words := strings.Fields(string(c.WonValue) + " " + string(c.LostValue))
		slices.Sort(words)
		return []byte(strings.Join(slices.Compact(words), " "))
	}
	fmt.Printf("%s\n", join(replicator.Conflict{WonValue: []byte("b c"), LostValue: []byte("a b")}))
	fmt.Printf("%s\n", join(replicator.Conflict{WonValue: []byte("a b"), LostValue: []byte("b c")}))
	// Output:
	// a b c
	// a b c
}

// A user writes on one server, and is then sent to another one. The token of what was
// written travels in a cookie, and the other server waits for that before it answers.
func ExampleToken() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica(server1.Addr().String())
	defer done2()

	save := func(w http.ResponseWriter, _ *http.Request) {
		key, b := []byte("name"), new(leveldb.Batch)
		b.Put(key, []byte("Ishmael"))
		stamp, err := server1.Commit(b, nil)
		check(err)
		http.SetCookie(w, &http.Cookie{Name: "written", Value: stamp.Token(key).String()})
	}
	show := func(w http.ResponseWriter, r *http.Request) {
		var written replicator.Token
		if cookie, err := r.Cookie("written"); err == nil {
			if err := written.UnmarshalText([]byte(cookie.Value)); err != nil {
				http.Error(w, "bad cookie", http.StatusBadRequest)
				return
			}
		}
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		if err := server2.WaitFor(ctx, written); err != nil {
			http.Error(w, "not here yet", http.StatusServiceUnavailable)
			return
		}
		name, err := server2.Get([]byte("name"), nil)
		check(err)
		fmt.Fprintf(w, "Call me %s.", name)
	}

	saved := httptest.NewRecorder()
	save(saved, httptest.NewRequest("POST", "/name", nil))
	request, shown := httptest.NewRequest("GET", "/name", nil), httptest.NewRecorder()
	request.AddCookie(saved.Result().Cookies()[0])
	show(shown, request)
	fmt.Println(shown.Body)
	// Output:
	// Call me Ishmael.
}

// An order is confirmed only once another server holds it, too, whatever happens to this
// one.
func ExampleReplicator_WaitReplicated() {
	server1, done1 := exampleReplica()
	defer done1()
	_, done2 := exampleReplica(server1.Addr().String())
	defer done2()

	check(server1.Put([]byte("order/1"), []byte("7 apples"), nil))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	check(server1.WaitReplicated(ctx, 1))
	fmt.Println("confirmed")
	// Output:
	// confirmed
}

// What was changed last, here or elsewhere, is at hand without reading the disk.
func ExampleReplicator_Recent() {
	r, done := exampleReplica()
	defer done()
	check(r.Put([]byte("colour"), []byte("green"), nil))
	check(r.Delete([]byte("colour"), nil))
	for _, c := range r.Recent(10) {
		fmt.Printf("%s = %q, deleted: %t, clock %d, local: %t\n", c.Key, c.Value, c.Deleted, c.Clock, c.Local)
	}
	// Output:
	// colour = "green", deleted: false, clock 0, local: true
	// colour = "", deleted: true, clock 1, local: true
}

// A program follows what changes, and is restarted in the midst of it. It goes on behind the
// last change that it has dealt with.
func ExampleReplicator_Changes() {
	r, done := exampleReplica()
	defer done()
	check(r.Put([]byte("apple"), []byte("1.20"), nil))
	check(r.Put([]byte("pear"), []byte("2.00"), nil))

	var kept []byte // with what was made of the changes
	follow := func(until string) {
		var from replicator.Cursor
		check(from.UnmarshalText(kept))
		for c, err := range r.Changes(context.Background(), from) {
			check(err)
			fmt.Printf("%s = %q, deleted: %t\n", c.Key, c.Value, c.Deleted)
			kept, err = c.Cursor.MarshalText()
			check(err)
			if string(c.Key) == until {
				break
			}
		}
	}
	follow("apple")
	fmt.Println("restarted")
	check(r.Delete([]byte("apple"), nil))
	follow("apple")
	// Output:
	// apple = "1.20", deleted: false
	// restarted
	// pear = "2.00", deleted: false
	// apple = "", deleted: true
}

// A program is told of orders only, and only of those that come from now on.
func ExampleReplicator_Watch() {
	r, done := exampleReplica()
	defer done()
	check(r.Put([]byte("order/1"), []byte("7 apples"), nil))
	now := r.Here()
	check(r.Put([]byte("price/apple"), []byte("1.20"), nil))
	check(r.Put([]byte("order/2"), []byte("3 pears"), nil))

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for c, err := range r.Watch(ctx, []byte("order/"), now) {
		check(err)
		fmt.Printf("%s: %s\n", c.Key, c.Value)
		break
	}
	// Output:
	// order/2: 3 pears
}

// A server counts its restarts in a batch with what it replicates. The count stays with it.
func ExampleOptions_localPrefix() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	r, err := replicator.OpenFile(dir, nil, &replicator.Options{LocalPrefix: []byte("here/")})
	check(err)
	defer r.Close()

	b := new(leveldb.Batch)
	b.Put([]byte("here/restarts"), []byte("1"))
	b.Put([]byte("server/oslo"), []byte("up"))
	check(r.Write(b, nil))
	value, err := r.Get([]byte("here/restarts"), nil)
	check(err)
	fmt.Printf("%s\n", value)
	_, err = r.Version([]byte("here/restarts"))
	fmt.Println(err)
	// Output:
	// 1
	// leveldb: not found
}

// Count reads the index, for as long as the context lets it.
func ExampleReplicator_Count() {
	r, done := exampleReplica()
	defer done()
	for i := range 10 {
		check(r.Put(fmt.Append(nil, i), []byte("value"), nil))
	}
	check(r.Delete([]byte("7"), nil))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	n, err := r.Count(ctx)
	check(err)
	fmt.Println(n.Keys, "keys,", n.Tombstones, "deleted")
	// Output: 9 keys, 1 deleted
}

// An administrator wants to know whether two servers hold the same. Each side is read once;
// of keys that differ, the later versions are then brought to where they lack.
func ExampleReplicator_Compare() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica(server1.Addr().String())
	defer done2()

	check(server1.Put([]byte("fruit/apple"), []byte("1 kg"), nil))
	check(server2.Put([]byte("fruit/pear"), []byte("2 kg"), nil))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d, err := server2.Compare(ctx, server1.Addr().String())
	check(err)
	if !d.Equal {
		fmt.Printf("%d keys differ, such as %q\n", d.Keys, d.Sample)
		d, err = server2.Repair(ctx, server1.Addr().String())
		check(err)
		fmt.Printf("%d of %d are repaired\n", d.Repaired, d.Keys)
		return
	}
	fmt.Println("equal")
	// Output:
	// equal
}

// The index of a server was damaged: its peers do not notice, as it goes on to know what it
// has lost. Repair brings it back.
func ExampleReplicator_Repair() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica(server1.Addr().String())
	defer done2()
	check(server1.Put([]byte("fruit/apple"), []byte("1 kg"), nil))
	check(server1.Put([]byte("fruit/pear"), []byte("2 kg"), nil))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	check(server2.SyncNow(ctx))

	damage := new(leveldb.Batch) // as a fault of the disk might
	for _, key := range []string{"fruit/pear", "\xffreplicator\xffi" + "fruit/pear"} {
		damage.Delete([]byte(key))
	}
	check(server2.DB().Write(damage, nil))
	check(server2.SyncNow(ctx))
	_, err := server2.Get([]byte("fruit/pear"), nil)
	fmt.Println(err)

	d, err := server2.Repair(ctx, server1.Addr().String())
	check(err)
	fmt.Printf("%d key differed, %d repaired\n", d.Keys, d.Repaired)
	value, err := server2.Get([]byte("fruit/pear"), nil)
	check(err)
	fmt.Printf("%s\n", value)
	// Output:
	// leveldb: not found
	// 1 key differed, 1 repaired
	// 2 kg
}

// A log of at most 1,000 records, however much is written. A peer that was away for longer
// than that reads the keys in order instead, and gets what it lacks.
func ExampleOptions_boundedLog() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	r, err := replicator.OpenFile(dir, nil, &replicator.Options{MaxLogRecords: 1000})
	check(err)
	defer r.Close()
	for i := range 5000 {
		check(r.Put([]byte("counter"), fmt.Append(nil, i), nil))
	}
	for r.Status().LogRecords > 1000 {
		time.Sleep(10 * time.Millisecond) // old records go about once a second
	}
	value, err := r.Get([]byte("counter"), nil)
	check(err)
	fmt.Printf("%s\n", value)
	// Output:
	// 4999
}

// A server has burnt down. The others forget it: nothing is kept for it any more, and if
// somebody restores it from a backup, it is refused.
func ExampleReplicator_Forget() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica(server1.Addr().String())
	defer done2()
	check(server2.SyncNow(context.Background()))

	gone := server2.Status().ID
	check(server1.Forget(gone))
	err := server2.SyncNow(context.Background())
	fmt.Println(errors.Is(err, replicator.ErrRefused))

	check(server1.Readmit(gone)) // it was found to be whole
	check(server2.SyncNow(context.Background()))
	fmt.Println(len(server1.Status().Forgotten))
	// Output:
	// true
	// 0
}

// What a database holds is seen without opening it as a replica: nothing is written to it.
func ExampleInspect() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	r, err := replicator.OpenFile(dir, nil, nil)
	check(err)
	check(r.Put([]byte("fruit/apple"), []byte("1 kg"), nil))
	check(r.Put([]byte("fruit/pear"), []byte("2 kg"), nil))
	check(r.Delete([]byte("fruit/apple"), nil))
	check(r.Close())

	db, err := leveldb.OpenFile(dir, &opt.Options{ReadOnly: true})
	check(err)
	defer db.Close()
	n, err := replicator.Inspect(db)
	check(err)
	fmt.Printf("%d key, %d deleted, %d records, closed cleanly: %t\n", n.Keys, n.Tombstones, n.LogRecords, n.Clean)
	for record, err := range replicator.InspectLog(db) {
		check(err)
		fmt.Printf("%s, clock %d, deleted: %t, latest: %t\n", record.Key, record.Clock, record.Deleted, record.Latest)
	}
	// Output:
	// 1 key, 1 deleted, 3 records, closed cleanly: true
	// fruit/apple, clock 2, deleted: true, latest: true
	// fruit/pear, clock 1, deleted: false, latest: true
	// fruit/apple, clock 0, deleted: false, latest: false
}

// All keys of a database are checked, those included that were written around the
// Replicator.
func ExampleInspectKeys() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	r, err := replicator.OpenFile(dir, nil, nil)
	check(err)
	defer r.Close()
	check(r.Put([]byte("fruit/apple"), []byte("1 kg"), nil))
	check(r.DB().Put([]byte("fruit/pear"), []byte("2 kg"), nil))
	for k, err := range replicator.InspectKeys(r.DB()) {
		check(err)
		fmt.Printf("%s = %s, known to the Replicator: %t\n", k.Key, k.Value, k.Indexed)
	}
	// Output:
	// fruit/apple = 1 kg, known to the Replicator: true
	// fruit/pear = 2 kg, known to the Replicator: false
}

// A snapshot shows the database as it was, whatever is written or merged meanwhile. A
// version tells whether a key was changed since.
func ExampleReplicator_GetSnapshot() {
	r, done := exampleReplica()
	defer done()
	check(r.Put([]byte("title"), []byte("Moby-Dick"), nil))
	snapshot, err := r.GetSnapshot()
	check(err)
	defer snapshot.Release()
	check(r.Put([]byte("title"), []byte("The Whale"), nil))

	value, err := snapshot.Get([]byte("title"), nil)
	check(err)
	before, err := snapshot.Version([]byte("title"))
	check(err)
	now, err := r.Version([]byte("title"))
	check(err)
	fmt.Printf("%s, clock %d; changed since: %t, clock %d\n", value, before.Clock, now != before, now.Clock)
	// Output:
	// Moby-Dick, clock 0; changed since: true, clock 1
}

// Before a server is restarted, another one takes over what was written on it.
func ExampleReplicator_WaitMerged() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica(server1.Addr().String())
	defer done2()

	check(server1.Put([]byte("key"), []byte("value"), nil))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	check(server1.WaitMerged(ctx, 1))
	has, err := server2.Has([]byte("key"), nil)
	check(err)
	fmt.Println(has)
	// Output:
	// true
}

// A server moves to another address. Its old one is no longer dialled.
func ExampleReplicator_RemovePeer() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica("127.0.0.1:1")
	defer done2()
	check(server2.AddPeer(server1.Addr().String(), nil))
	check(server2.RemovePeer("127.0.0.1:1"))
	check(server2.SyncNow(context.Background()))
	fmt.Println(len(server2.Status().Peers), server2.Status().Peers[0].State)
	// Output:
	// 1 in sync
}

// What the Replicator needs beside keys and values is told apart.
func ExampleReplicator_Size() {
	r, done := exampleReplica()
	defer done()
	check(r.Put([]byte("key"), []byte("value"), nil))
	size, err := r.Size()
	check(err)
	fmt.Println(size.Data) // what was written last is not in leveldb's tables yet
	// Output:
	// 0
}

// A nightly backup, made while the server is in use, and restored after the loss of its disk.
// The restored server gets from its peer what was written since.
func ExampleReplicator_Backup() {
	server1, done1 := exampleReplica()
	defer done1()
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	options := &replicator.Options{Peers: map[string]replicator.Meta{server1.Addr().String(): nil}}
	server2, err := replicator.OpenFile(filepath.Join(dir, "data"), nil, options)
	check(err)
	check(server2.Put([]byte("fruit/apple"), []byte("1 kg"), nil))

	backup := filepath.Join(dir, "backups", "2026-11-30")
	check(server2.Backup(context.Background(), backup, nil))
	check(server2.Put([]byte("fruit/pear"), []byte("2 kg"), nil))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	check(server2.WaitMerged(ctx, 1))
	id := server2.Status().ID
	check(server2.Close())

	check(os.RemoveAll(filepath.Join(dir, "data"))) // the disk is lost
	check(os.Rename(backup, filepath.Join(dir, "data")))
	server2, err = replicator.OpenFile(filepath.Join(dir, "data"), nil, options)
	check(err)
	defer server2.Close()
	check(server2.SyncNow(ctx))
	value, err := server2.Get([]byte("fruit/pear"), nil)
	check(err)
	fmt.Printf("%s, and its id is the same: %v\n", value, server2.Status().ID == id)
	// Output:
	// 2 kg, and its id is the same: true
}

// An old tool wrote around the Replicator: what it wrote is here and nowhere else. Verify
// finds it, and takes it in, as no peer knows the key.
func ExampleReplicator_Verify() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica(server1.Addr().String())
	defer done2()
	check(server2.Put([]byte("fruit/apple"), []byte("1 kg"), nil))
	check(server2.DB().Put([]byte("fruit/pear"), []byte("2 kg"), nil))

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	report, err := server2.Verify(ctx, nil)
	check(err)
	for _, d := range report.Disagreements {
		fmt.Printf("%s: %d, such as %s\n", d.Kind, d.Count, d.Sample[0])
	}
	report, err = server2.Verify(ctx, &replicator.VerifyOptions{Repair: true})
	check(err)
	fmt.Println("all is well:", report.OK)
	check(server1.SyncNow(ctx))
	value, err := server1.Get([]byte("fruit/pear"), nil)
	check(err)
	fmt.Printf("%s\n", value)
	// Output:
	// value without index record: 1, such as fruit/pear
	// all is well: true
	// 2 kg
}

// Two people edit the same page while their servers are apart. With hybrid clocks the later
// edit wins, though more was written on the other server.
func ExampleOptions_hybridClock() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	open := func(name string, peers map[string]replicator.Meta) *replicator.Replicator {
		r, err := replicator.OpenFile(filepath.Join(dir, name), nil,
			&replicator.Options{Clock: replicator.Hybrid, Listen: "127.0.0.1:0", Peers: peers})
		check(err)
		return r
	}
	server1, server2 := open("1", nil), open("2", nil)
	defer server1.Close()
	defer server2.Close()

	for i := range 100 {
		check(server1.Put([]byte("page"), fmt.Append(nil, "edit ", i, " on server 1"), nil))
	}
	time.Sleep(2 * time.Millisecond)
	check(server2.Put([]byte("page"), []byte("the last edit"), nil))
	check(server2.AddPeer(server1.Addr().String(), nil))
	check(server2.SyncNow(context.Background()))
	value, err := server2.Get([]byte("page"), nil)
	check(err)
	version, err := server2.Version([]byte("page"))
	check(err)
	fmt.Printf("%s, made today: %v\n", value, time.Since(version.Time()) < time.Hour)
	// Output:
	// the last edit, made today: true
}

// What a program, or somebody who operates it, does about replicas that were away for
// longer than Options.TombstoneAge. Here, none was.
func ExampleReplicator_Rejoin() {
	server1, done1 := exampleReplica()
	defer done1()
	server2, done2 := exampleReplica(server1.Addr().String())
	defer done2()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	err := server2.SyncNow(ctx)
	if errors.Is(err, replicator.ErrStale) {
		for _, p := range server2.Status().Peers {
			if p.Stale == nil || !p.Stale.Here {
				continue // the peer has to rejoin
			}
			done, err := server2.Rejoin(ctx, p.Addr, &replicator.RejoinOptions{
				Progress: func(r replicator.Rejoined) { fmt.Println(r.Merged, "merged so far") },
			})
			check(err)
			fmt.Println(done.Dropped, "keys were deleted in the meantime,", done.Kept, "are new")
		}
		err = server2.SyncNow(ctx)
	}
	check(err)
	fmt.Println("in sync")
	// Output:
	// in sync
}
