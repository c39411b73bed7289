package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/level-replicator/replicator"
)

// This file owns the commands that read all of a closed database as a replica would.

var verifyCommand = &command{
	name: "verify", args: "PATH", count: 1,
	summary: "check that data, index and log of a closed database agree",
	help: `Reads data, index and log of a database side by side, and reports every kind of
disagreement, with the first keys. Nothing is written. The exit code is 0 if nothing
disagrees, and 1 otherwise. To put it right, open the database in the program, with its
peers, and call Verify with Repair.

  replicator verify /var/lib/app/data
  replicator verify -json /var/lib/app/data | jq -r '.disagreements[] | "\(.count) \(.kind)"'
`,
	setup: func(c *call) func(*call) error { return verify },
}

func verify(c *call) error {
	r, err := openReplica(c.args[0])
	if err != nil {
		return err
	}
	defer r.close()
	p := c.progress("verifying")
	report, err := r.Verify(c, &replicator.VerifyOptions{Progress: p.at})
	p.done()
	if err != nil {
		return err
	}
	if err := c.print(&report, func(w io.Writer) { writeVerified(w, &report) }); err != nil {
		return err
	}
	if !report.OK {
		return errFound
	}
	return nil
}

func writeVerified(w io.Writer, r *replicator.Report) {
	fmt.Fprintf(w, "%s, %s deleted, %s", plural(r.Keys, "key", "keys"), number(r.Deleted), plural(r.Records, "log record", "log records"))
	if r.Unadopted > 0 {
		fmt.Fprintf(w, ", %s not adopted", plural(r.Unadopted, "value", "values"))
	}
	fmt.Fprintln(w)
	if r.OK {
		fmt.Fprintln(w, "everything agrees")
		return
	}
	for _, d := range r.Disagreements {
		fmt.Fprintf(w, "%s: %s\n", d.Kind, number(d.Count))
		for _, key := range d.Sample {
			fmt.Fprintf(w, "  %s\n", quote(key))
		}
		if more := d.Count - int64(len(d.Sample)); more > 0 {
			fmt.Fprintf(w, "  and %s more\n", number(more))
		}
	}
}

var backupCommand = &command{
	name: "backup", args: "PATH DIR", count: 2,
	summary: "copy a closed database",
	help: `Copies the database in PATH to the directory DIR, which must be empty or not exist. The copy
is compacted, durable, and complete once it is there. Nothing is written to PATH. To restore the
copy, put it in the place of the database, and open it. A program makes backups while it runs
with the method Backup.

  replicator backup /var/lib/app/data /mnt/backup/2026-11-30
  replicator compare /var/lib/app/data /mnt/backup/2026-11-30
`,
	setup: func(c *call) func(*call) error { return backup },
}

// backedUp is what backup prints with -json.
type backedUp struct {
	Path string                `json:"path"`
	Dir  string                `json:"dir"`
	ID   replicator.DatabaseID `json:"id"`
}

// isInside reports whether a path is a directory, or leads below it.
func isInside(path, dir string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return false, err
	}
	way, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(way), nil
}

func backup(c *call) error {
	if inside, err := isInside(c.args[1], c.args[0]); err != nil || inside {
		return errors.Join(err, errors.New("DIR must not be PATH, or in it"))
	}
	r, err := openReplica(c.args[0])
	if err != nil {
		return err
	}
	defer r.close()
	p := c.progress("copying")
	err = r.Backup(c, c.args[1], p.at)
	p.done()
	if err != nil {
		return err
	}
	made := backedUp{c.args[0], c.args[1], r.Status().ID}
	return c.print(made, func(w io.Writer) { fmt.Fprintf(w, "copied %s to %s\n", made.Path, made.Dir) })
}
