package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// This file owns the commands that look into one closed database.

var inspectCommand = &command{
	name: "inspect", args: "PATH", count: 1,
	summary: "show what a closed database holds",
	help: `Shows what the database in the directory PATH holds beside keys and values: its id, its
log, what it knows of other replicas, and how much of everything there is. Nothing is
written. The database must not be open: ask a running replica with replicator status.

  replicator inspect /var/lib/app/data
  replicator inspect -json /var/lib/app/data | jq .keys
`,
	setup: func(c *call) func(*call) error { return inspect },
}

// openClosed opens a database that nobody else has open, to read it only.
func openClosed(path string) (*leveldb.DB, error) {
	if err := mustHoldDatabase(path); err != nil {
		return nil, err
	}
	db, err := leveldb.OpenFile(path, &opt.Options{ReadOnly: true})
	if err != nil {
		return nil, openError(path, err)
	}
	return db, nil
}

// mustHoldDatabase refuses a directory in which leveldb would make a database, or a lock.
func mustHoldDatabase(path string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	if found, _ := filepath.Glob(filepath.Join(path, "CURRENT*")); len(found) == 0 {
		return fmt.Errorf("%s holds no leveldb database", path)
	}
	return nil
}

// openError says why a database can't be opened.
func openError(path string, err error) error {
	if isLocked(err) {
		return fmt.Errorf("%s is open in another process, and leveldb keeps readers out: close it, "+
			"or ask the process itself with replicator status URL, where URL is the page that it serves (package statuspage)", path)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// isLocked reports whether opening a database failed because it is open elsewhere.
func isLocked(err error) bool {
	const sharingViolation = 32 // on Windows
	var code syscall.Errno
	return errors.As(err, &code) && (code == syscall.EAGAIN || runtime.GOOS == "windows" && code == sharingViolation)
}

func inspect(c *call) error {
	db, err := openClosed(c.args[0])
	if err != nil {
		return err
	}
	defer db.Close()
	p := c.progress("reading")
	p.tick()
	n, err := replicator.Inspect(db)
	p.done()
	if err != nil {
		return err
	}
	return c.print(n, func(w io.Writer) { writeInspection(w, &n) })
}

// shownRows is how many rows of a list a text has.
const shownRows = 10

func writeInspection(w io.Writer, n *replicator.Inspection) {
	t := newTable(w)
	if n.Format == 0 {
		row(t, "never opened by a Replicator; it will adopt:", plural(n.Unadopted, "key", "keys"))
		t.Flush()
		return
	}
	row(t, "id", n.ID)
	row(t, "storage format", n.Format)
	end := "cleanly"
	if !n.Clean {
		end = "not cleanly"
	}
	row(t, "closed", end)
	row(t, "keys", number(n.Keys))
	row(t, "deleted keys", number(n.Tombstones))
	adoption := fmt.Sprintf("done: %s adopted, %s skipped", number(n.Adoption.Adopted), number(n.Adoption.Skipped))
	if !n.Adoption.Done {
		adoption = fmt.Sprintf("not done: %s adopted, %s skipped, %s without a record", number(n.Adoption.Adopted), number(n.Adoption.Skipped), number(n.Unadopted))
	}
	row(t, "adoption", adoption)
	row(t, "clock", fmt.Sprintf("%s, %s, below the ceiling %s", n.ClockKind, number(n.Clock), number(n.Ceiling)))
	row(t, "log", fmt.Sprintf("%s, head %s, floor %s", plural(n.LogRecords, "record", "records"), number(n.Head), number(n.Floor)))
	row(t, "value limit", bytesOf(int64(n.MaxValueSize)))
	row(t, "size in tables", fmt.Sprintf("data %s, log %s, index %s, other %s",
		bytesOf(n.Sizes.Data), bytesOf(n.Sizes.Log), bytesOf(n.Sizes.Index), bytesOf(n.Sizes.Other)))
	if n.LocalPrefix != nil {
		row(t, "not replicated", "keys that begin with "+quote(n.LocalPrefix))
	}
	if n.Recovered {
		row(t, "recovered", "the files were recovered, and what they lack is yet to be pulled")
	}
	t.Flush()

	fmt.Fprintf(w, "\nepochs: %s, the latest first\n", number(len(n.Epochs)))
	row(t, "  ORIGIN", "FIRST SEQUENCE", "CERTAIN UP TO")
	for i := range min(len(n.Epochs), shownRows) {
		e := n.Epochs[len(n.Epochs)-1-i]
		sure := "all"
		if e.Sure != nil {
			sure = number(*e.Sure)
		}
		row(t, "  "+e.Origin.String(), number(e.First), sure)
	}
	t.Flush()
	writeMore(w, len(n.Epochs))

	fmt.Fprintf(w, "\nvector: changes of %s are known\n", plural(len(n.Vector), "opening", "openings"))
	row(t, "  ORIGIN", "UP TO CLOCK")
	for _, s := range n.Vector[:min(len(n.Vector), shownRows)] {
		row(t, "  "+s.Origin.String(), number(s.Clock))
	}
	t.Flush()
	writeMore(w, len(n.Vector))

	fmt.Fprintf(w, "\npeers: %s\n", number(len(n.Peers)))
	if len(n.Peers) > 0 {
		row(t, "  ID", "NAME", "MERGED", "DURABLE", "STATE", "LAST SEEN", "ADDRESSES")
	}
	for _, p := range n.Peers {
		row(t, "  "+p.ID.String(), cmp.Or(p.Name, "-"), figure(p.Merged), figure(p.Durable), peerState(&p), moment(p.LastSeen), strings.Join(p.Addrs, " "))
	}
	t.Flush()
}

// writeMore says that a list has more rows than the text.
func writeMore(w io.Writer, rows int) {
	if rows > shownRows {
		fmt.Fprintf(w, "  and %s more, with -json\n", number(rows-shownRows))
	}
}

// peerState says in words what is remembered of a peer.
func peerState(p *replicator.InspectedPeer) string {
	switch {
	case p.Forgotten:
		return "forgotten, refused"
	case p.Scan != nil:
		return "a scan was cut"
	case p.Merged == nil:
		return "nothing merged"
	case !p.Whole:
		return "incomplete"
	}
	return "whole"
}

var logCommand = &command{
	name: "log", args: "PATH", count: 1,
	summary: "show the change log of a closed database, the latest record first",
	help: `Shows the records of the change log, the latest first: the place in the log, the stamp of
the change (clock and origin), what it did, and to which key. A record is replaced if a later
change of its key has a record of its own. Nothing is written.

  replicator log /var/lib/app/data
  replicator log -n 0 -json /var/lib/app/data | jq -r '.key | @base64d'
`,
	setup: func(c *call) func(*call) error {
		n := c.flags.Uint("n", 20, "show at most this `number` of records; 0: all")
		return func(c *call) error { return showLog(c, int(*n)) }
	},
}

func showLog(c *call, most int) error {
	db, err := openClosed(c.args[0])
	if err != nil {
		return err
	}
	defer db.Close()
	if !c.json {
		fmt.Fprintf(c.out, "%12s %12s  %-16s  %-6s  %-8s  %s\n", "SEQUENCE", "CLOCK", "ORIGIN", "CHANGE", "", "KEY")
	}
	shown := 0
	for r, err := range replicator.InspectLog(db) {
		if err == nil {
			err = c.Err()
		}
		if err != nil {
			return err
		}
		if c.json {
			if err := c.printLine(r); err != nil {
				return err
			}
		} else {
			state := "latest"
			if !r.Latest {
				state = "replaced"
			}
			_, err := fmt.Fprintf(c.out, "%12d %12d  %v  %-6s  %-8s  %s\n", r.Sequence, r.Clock, r.Origin, change(r.Version), state, quote(r.Key))
			if err != nil {
				return err
			}
		}
		if shown++; shown == most {
			break
		}
	}
	return nil
}
