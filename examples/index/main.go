// Command index keeps a secondary index of documents, by author, in the database of the
// documents. The index stays on its server, under Options.LocalPrefix, and the cursor up to
// which it is made is written in one batch with its rows: so they fit together after any
// crash. The command checks itself, and leaves nothing behind:
//
//	go run ./examples/index
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "index:", err)
		os.Exit(1)
	}
}

// A document's key is doc/ and its name, and its value is its author. The index has two rows
// for it: one to find it by its author, and one to find the first when the author changes.
const (
	documents = "doc/"
	local     = "index/"
	byAuthor  = local + "author/" // author, 0, name → nothing
	ofName    = local + "name/"   // name → author
	cursorKey = local + "cursor"  // up to where the index is made
)

// durably has a batch survive a power cut. Without Sync, a power cut could take a batch of
// the index and leave a later one, with its cursor.
var durably = &opt.WriteOptions{Sync: true}

// keepIndex goes on with the index where it was left, until visit returns false.
func keepIndex(ctx context.Context, r *replicator.Replicator, visit func(replicator.Change) bool) error {
	var from replicator.Cursor
	switch text, err := r.Get([]byte(cursorKey), nil); {
	case err == leveldb.ErrNotFound:
	case err != nil:
		return err
	default:
		if err := from.UnmarshalText(text); err != nil {
			return err
		}
	}
	for change, err := range r.Watch(ctx, []byte(documents), from) {
		if errors.Is(err, replicator.ErrCursor) {
			// The database was restored from a backup, or a power cut took changes that are
			// in the index.
			if err := dropIndex(r); err != nil {
				return err
			}
			return keepIndex(ctx, r, visit)
		}
		if err == nil {
			err = apply(r, change)
		}
		if err != nil {
			return err
		}
		if !visit(change) {
			return nil
		}
	}
	return nil
}

// apply writes what a change makes of the index, and the cursor behind it.
func apply(r *replicator.Replicator, change replicator.Change) error {
	name := bytes.TrimPrefix(change.Key, []byte(documents))
	batch := new(leveldb.Batch)
	switch author, err := r.Get(slices.Concat([]byte(ofName), name), nil); err {
	case nil:
		batch.Delete(authorRow(author, name))
	case leveldb.ErrNotFound:
	default:
		return err
	}
	if change.Deleted {
		batch.Delete(slices.Concat([]byte(ofName), name))
	} else {
		batch.Put(slices.Concat([]byte(ofName), name), change.Value)
		batch.Put(authorRow(change.Value, name), nil)
	}
	text, err := change.Cursor.MarshalText()
	if err != nil {
		return err
	}
	batch.Put([]byte(cursorKey), text)
	return r.Write(batch, durably)
}

func authorRow(author, name []byte) []byte {
	return slices.Concat([]byte(byAuthor), author, []byte{0}, name)
}

// dropIndex removes the index, and its cursor.
func dropIndex(r *replicator.Replicator) error {
	batch := new(leveldb.Batch)
	it := r.NewIterator(util.BytesPrefix([]byte(local)), nil)
	defer it.Release()
	for it.Next() {
		batch.Delete(it.Key())
	}
	if err := it.Error(); err != nil {
		return err
	}
	return r.Write(batch, durably)
}

// documentsBy reads the index.
func documentsBy(r *replicator.Replicator, author string) (names []string, err error) {
	prefix := byAuthor + author + "\x00"
	it := r.NewIterator(util.BytesPrefix([]byte(prefix)), nil)
	defer it.Release()
	for it.Next() {
		names = append(names, strings.TrimPrefix(string(it.Key()), prefix))
	}
	return names, it.Error()
}

// run tells the story, and returns the first check that failed.
func run(out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "replicator-index-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	open := func() (*replicator.Replicator, error) {
		return replicator.OpenFile(dir, nil, &replicator.Options{LocalPrefix: []byte(local)})
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()

	authors := map[string]string{
		"Moby-Dick": "Melville", "Typee": "Melville", "Omoo": "Melvile",
		"Walden": "Thoreau", "Cape Cod": "Thoreau", "Nature": "Emerson",
	}
	for _, name := range slices.Sorted(maps.Keys(authors)) {
		if err := r.Put([]byte(documents+name), []byte(authors[name]), nil); err != nil {
			return err
		}
	}
	// The indexer stops in the midst of it, and the server is restarted.
	left := 3
	err = keepIndex(context.Background(), r, func(replicator.Change) bool { left--; return left > 0 })
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "The index is made of three documents, and the server stops.")
	if err := r.Close(); err != nil {
		return err
	}
	if r, err = open(); err != nil {
		return err
	}
	err = errors.Join(
		r.Put([]byte(documents+"Omoo"), []byte("Melville"), nil), // the name was misspelt
		r.Delete([]byte(documents+"Walden"), nil),
		r.Put([]byte(documents+"end"), []byte("nobody"), nil),
	)
	if err != nil {
		return err
	}
	told := 0
	err = keepIndex(context.Background(), r, func(c replicator.Change) bool {
		told++
		return string(c.Key) != documents+"end"
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "It goes on from its cursor, with %d changes.\n", told)
	for author, want := range map[string][]string{
		"Melville": {"Moby-Dick", "Omoo", "Typee"}, "Thoreau": {"Cape Cod"}, "Emerson": {"Nature"}, "Melvile": nil,
	} {
		names, err := documentsBy(r, author)
		if err != nil {
			return err
		}
		if !slices.Equal(names, want) {
			return fmt.Errorf("by %s there are %q, not %q", author, names, want)
		}
	}
	names, err := documentsBy(r, "Melville")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "By Melville: %s.\n", strings.Join(names, ", "))
	fmt.Fprintln(out, "Every check passed.")
	return nil
}
