package replicator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// This file owns Backup: the directory that a backup is made in.

// Backup copies the database to a directory while it is in use. The copy is as of one
// moment during the call, and complete: keys, log, index, vector, peers. It is a database
// that was closed cleanly. To restore it, put it, or a copy of it, in the place of the
// database and open it: it goes on with its id, and gets from its peers what it lacks. To
// use it for a new replica, open it beside the original: when the two meet, or meet the
// same peer, one of them draws a new id.
//
// dir must be empty or not exist; directories above it are made. The copy is written
// beside it, under the name of dir with ".incomplete-" and random digits, made durable, and
// renamed last. If Backup fails, or ctx ends it, it removes what it has written. If the
// process ends, the incomplete directory is left; Open refuses it.
//
// Backup reads everything once, and needs some 10 MiB of memory, or, for a database of more
// than a GiB, up to 100. While others write, it pauses now and then to let them. leveldb
// keeps what is replaced meanwhile until Backup is done. The copy has leveldb's default
// comparer. Its first opening sorts its tables into levels, which takes some seconds for
// many GiB.
//
// progress may be nil. It is called by the goroutine of the caller, about every 256 KiB,
// with the bytes of tables that were read and that there are, both approximate. In the last
// call, after everything was copied, the two are equal.
//
// Backup fails with the error of ctx, with that of the file system, with ErrFailed, and
// with ErrClosed. Close does not wait for it to complete.
func (r *Replicator) Backup(ctx context.Context, dir string, progress func(done, total int64)) error {
	if !r.gate.enter() {
		return ErrClosed
	}
	defer r.gate.leave()
	ctx, cancel := r.gate.within(ctx)
	defer cancel()
	if err := r.backup(ctx, dir, progress); err != nil {
		return failed("backup", err)
	}
	return nil
}

func (r *Replicator) backup(ctx context.Context, dir string, progress func(done, total int64)) error {
	if dir == "" {
		return errors.New("no directory is named")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	exists, err := isEmptyDir(dir)
	if err != nil {
		return err
	}
	var random [4]byte
	rand.Read(random[:])
	temp := dir + ".incomplete-" + hex.EncodeToString(random[:])
	err = r.backupTo(ctx, temp, progress)
	if err == nil && exists {
		err = os.Remove(dir) // fails if something has come to be in it
	}
	if err == nil {
		err = os.Rename(temp, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return syncDir(filepath.Dir(dir))
}

// backupTo copies the database to a directory that does not exist.
func (r *Replicator) backupTo(ctx context.Context, dir string, progress func(done, total int64)) error {
	to, err := storage.OpenFile(dir, false)
	if err != nil {
		return err
	}
	err = r.store.backup(ctx, to, progress)
	if closeErr := to.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// isEmptyDir reports whether a directory exists, and returns an error if there is
// something in it, or if it is none.
func isEmptyDir(dir string) (exists bool, err error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case len(entries) > 0:
		return true, fmt.Errorf("%s is not empty: name a directory that does not exist", dir)
	}
	return true, nil
}

// syncDir makes durable which files a directory has.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // it has no such call
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}
