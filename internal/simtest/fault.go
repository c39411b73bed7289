package simtest

import (
	"cmp"
	"math/bits"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// Op is an operation of a Disk, or a set of them.
type Op int

// The operations.
const (
	OpCreate Op = 1 << iota
	OpOpen
	OpRead
	OpWrite
	OpSync
	OpRemove
	OpRename
	OpSetMeta

	AnyOp Op = 1<<iota - 1
)

var opNames = [...]string{"create", "open", "read", "write", "sync", "remove", "rename", "setmeta"}

func (op Op) String() string {
	var names []string
	for rest := uint(op); rest != 0; rest &= rest - 1 {
		names = append(names, opNames[bits.TrailingZeros(rest)])
	}
	return strings.Join(names, "|")
}

// Fault is called before each operation of a Disk; n numbers them. If it returns an
// error, the operation fails with that instead of being done; a write is half done.
// It may use the disk, for instance to copy it, and may wait, which holds the
// operation up. It must be safe for concurrent use.
type Fault func(op Op, fd storage.FileDesc, n int64) error

// Failure describes a Fault: which operations fail, and when.
type Failure struct {
	Err   error            // what they fail with; syscall.EIO if nil
	Ops   Op               // which operations; all if 0
	Files storage.FileType // on which files; all if 0
	From  int64            // the first of those to fail, counted from 1 on; the very first if 0
	Times int64            // how many fail from there on; all if 0
}

// Fault returns the fault, which counts from now on.
func (f Failure) Fault() Fault {
	f.Err = cmp.Or(f.Err, error(syscall.EIO))
	f.Ops = cmp.Or(f.Ops, AnyOp)
	f.Files = cmp.Or(f.Files, storage.TypeAll)
	f.From = cmp.Or(f.From, 1)
	var count atomic.Int64
	return func(op Op, fd storage.FileDesc, _ int64) error {
		if op&f.Ops == 0 || fd.Type&f.Files == 0 {
			return nil
		}
		if n := count.Add(1); n < f.From || f.Times > 0 && n >= f.From+f.Times {
			return nil
		}
		return f.Err
	}
}
