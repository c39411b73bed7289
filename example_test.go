package replicator_test

import (
	"context"
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
// on both. The server that had the other one keeps it, so that its user can be shown it.
// It does so only where the loser was its own: else both would write what the other one
// writes, too, and that would be the next conflict.
func ExampleConflict() {
	dir, err := os.MkdirTemp("", "replica")
	check(err)
	defer os.RemoveAll(dir)
	lost := make(chan replicator.Conflict, 1)
	var server1 *replicator.Replicator
	server1, err = replicator.OpenFile(dir, nil, &replicator.Options{
		Listen: "127.0.0.1:0",
		OnConflict: func(c replicator.Conflict) {
			if c.LostHere && !c.Uncertain {
				check(server1.Put(append([]byte("lost/"), c.Key...), c.LostValue, nil))
				lost <- c
			}
		},
	})
	check(err)
	defer server1.Close()
	server2, done := exampleReplica()
	defer done()

	check(server1.Put([]byte("title"), []byte("Moby-Dick"), nil))
	check(server2.Put([]byte("title"), []byte("The Whale"), nil))
	check(server2.Put([]byte("title"), []byte("The Whale, or Moby-Dick"), nil))
	check(server2.AddPeer(server1.Addr().String(), nil))

	c := <-lost
	fmt.Printf("%q was replaced by %q, whose author had not seen it\n", c.LostValue, c.WonValue)
	kept, err := server1.Get([]byte("lost/title"), nil)
	check(err)
	fmt.Printf("kept: %q\n", kept)
	// Output:
	// "Moby-Dick" was replaced by "The Whale, or Moby-Dick", whose author had not seen it
	// kept: "Moby-Dick"
}

// A handler that writes the same on every replica needs no LostHere: here it joins two
// sets of words, in their order. What both write is equal, so whichever wins will do.
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
