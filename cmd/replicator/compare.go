package main

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
)

// This file owns the comparison of two closed databases.

var compareCommand = &command{
	name: "compare", args: "PATH PATH", count: 2,
	summary: "compare the keys, versions and values of two closed databases",
	help: `Reads two databases side by side, A and B, and tells in which keys they differ. Nothing is
written. Deletions that one side does not keep any more are no difference. The exit code is 0
if the two are equal, and 1 if they differ. A running replica compares itself to a peer with
the method Compare, or with the button on its page.

  replicator compare /var/lib/app/data /mnt/backup/data
  replicator compare -n 0 -json a b | jq -r '.sample[].key | @base64d'
`,
	setup: func(c *call) func(*call) error {
		n := c.flags.Uint("n", 20, "show at most this `number` of keys that differ; 0: all")
		return func(c *call) error { return compare(c, int(*n)) }
	},
}

// comparison is what compare prints with -json.
type comparison struct {
	Equal       bool         `json:"equal"`
	A           side         `json:"a"`
	B           side         `json:"b"`
	Differences uint64       `json:"differences"` // keys that differ
	OnlyA       uint64       `json:"onlyA"`
	OnlyB       uint64       `json:"onlyB"`
	LaterA      uint64       `json:"laterA"`
	LaterB      uint64       `json:"laterB"`
	Values      uint64       `json:"values"` // the versions are equal, and the values are not
	Sample      []difference `json:"sample"`
}

// side is one of the two databases.
type side struct {
	Path       string                `json:"path"`
	ID         replicator.DatabaseID `json:"id"`
	Keys       uint64                `json:"keys"`
	Tombstones uint64                `json:"tombstones"`
}

// difference is one key that differs.
type difference struct {
	Key  []byte              `json:"key"`
	Kind string              `json:"kind"` // the name of the counter
	A    *replicator.Version `json:"a"`    // nil: there is no record of the key
	B    *replicator.Version `json:"b"`
}

// reading is one of the databases while it is read.
type reading struct {
	db     *leveldb.DB
	vector map[replicator.Origin]uint64
	local  []byte // prefix of keys that are not replicated
	side   *side
	next   func() (replicator.KeyState, error, bool)
	key    replicator.KeyState
	ok     bool // there is a key
	err    error
}

// open reads what a comparison has to know beforehand.
func (r *reading) open(path string) (err error) {
	if r.db, err = openClosed(path); err != nil {
		return err
	}
	n, err := replicator.Inspect(r.db)
	if err != nil {
		return inFile(path, err)
	}
	r.local = n.LocalPrefix
	r.vector = map[replicator.Origin]uint64{}
	for _, s := range n.Vector {
		r.vector[s.Origin] = s.Clock
	}
	*r.side = side{Path: path, ID: n.ID, Keys: n.Keys + n.Unadopted, Tombstones: n.Tombstones}
	return nil
}

// inFile says which database an error is of.
func inFile(path string, err error) error {
	return fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "replicator: "))
}

// step moves to the next key that is replicated.
func (r *reading) step() {
	for {
		r.key, r.err, r.ok = r.next()
		if r.ok = r.ok && r.err == nil; !r.ok || len(r.local) == 0 || !bytes.HasPrefix(r.key.Key, r.local) {
			return
		}
	}
}

// knows reports whether a deletion of the other side was seen here.
func (r *reading) knows(v replicator.Version) bool {
	clock, known := r.vector[v.Origin]
	return known && v.Clock <= clock
}

func compare(c *call, sample int) error {
	result := comparison{Sample: []difference{}}
	a, b := reading{side: &result.A}, reading{side: &result.B}
	p := c.progress("comparing")
	defer p.done()
	for i, r := range []*reading{&a, &b} {
		if err := r.open(c.args[i]); err != nil {
			return err
		}
		defer r.db.Close()
		var stop func()
		r.next, stop = iter.Pull2(replicator.InspectKeys(r.db))
		defer stop()
		r.step()
	}
	read, total := int64(0), int64(a.side.Keys+a.side.Tombstones+b.side.Keys+b.side.Tombstones)
	for a.ok || b.ok {
		if err := c.Err(); err != nil {
			return err
		}
		order := 0 // of A's key to B's
		switch {
		case !b.ok:
			order = -1
		case !a.ok:
			order = 1
		default:
			order = bytes.Compare(a.key.Key, b.key.Key)
		}
		var inA, inB *replicator.KeyState
		if order <= 0 {
			inA = &a.key
		}
		if order >= 0 {
			inB = &b.key
		}
		if kind := kindOf(inA, inB, &a, &b); kind != "" {
			result.note(kind, inA, inB, sample)
		}
		if order <= 0 {
			a.step()
			read++
		}
		if order >= 0 {
			b.step()
			read++
		}
		p.at(read, total)
	}
	for _, r := range []*reading{&a, &b} {
		if r.err != nil {
			return inFile(r.side.Path, r.err)
		}
	}
	p.done()
	result.Equal = result.Differences == 0
	if err := c.print(&result, result.write); err != nil {
		return err
	}
	if !result.Equal {
		return errFound
	}
	return nil
}

// kindOf returns how a key differs, or "".
func kindOf(inA, inB *replicator.KeyState, a, b *reading) string {
	switch {
	case inB == nil:
		if inA.Indexed && inA.Version.Deleted && !inA.Present && b.knows(inA.Version) {
			return ""
		}
		return "onlyA"
	case inA == nil:
		if inB.Indexed && inB.Version.Deleted && !inB.Present && a.knows(inB.Version) {
			return ""
		}
		return "onlyB"
	}
	if inA.Indexed && inB.Indexed {
		switch order := inA.Version.Compare(inB.Version); {
		case order > 0:
			return "laterA"
		case order < 0:
			return "laterB"
		}
	}
	if inA.Present != inB.Present || !bytes.Equal(inA.Value, inB.Value) {
		return "values"
	}
	return ""
}

// note counts a key that differs. sample is how many are shown; 0: all.
func (r *comparison) note(kind string, inA, inB *replicator.KeyState, sample int) {
	r.Differences++
	*map[string]*uint64{"onlyA": &r.OnlyA, "onlyB": &r.OnlyB, "laterA": &r.LaterA, "laterB": &r.LaterB, "values": &r.Values}[kind]++
	if sample > 0 && len(r.Sample) >= sample {
		return
	}
	d := difference{Kind: kind}
	for _, s := range []struct {
		state *replicator.KeyState
		into  **replicator.Version
	}{{inA, &d.A}, {inB, &d.B}} {
		if s.state == nil {
			continue
		}
		d.Key = bytes.Clone(s.state.Key)
		if s.state.Indexed {
			version := s.state.Version
			*s.into = &version
		}
	}
	r.Sample = append(r.Sample, d)
}

// kinds says in words how keys differ.
var kinds = map[string]string{
	"onlyA": "only in A", "onlyB": "only in B", "laterA": "later in A", "laterB": "later in B", "values": "same version, other value",
}

func (r *comparison) write(w io.Writer) {
	t := newTable(w)
	for _, s := range []struct {
		name string
		side *side
	}{{"A", &r.A}, {"B", &r.B}} {
		row(t, s.name, plural(s.side.Keys, "key", "keys"), number(s.side.Tombstones)+" deleted", s.side.Path)
	}
	t.Flush()
	if r.Equal {
		fmt.Fprintln(w, "equal")
		return
	}
	var parts []string
	for _, p := range []struct {
		kind  string
		count uint64
	}{{"onlyA", r.OnlyA}, {"onlyB", r.OnlyB}, {"laterA", r.LaterA}, {"laterB", r.LaterB}, {"values", r.Values}} {
		if p.count > 0 {
			parts = append(parts, number(p.count)+" "+kinds[p.kind])
		}
	}
	verb := "differ"
	if r.Differences == 1 {
		verb = "differs"
	}
	fmt.Fprintf(w, "%s %s: %s\n", plural(r.Differences, "key", "keys"), verb, strings.Join(parts, ", "))
	row(t, "  KEY", "DIFFERENCE", "VERSION IN A", "VERSION IN B")
	for _, d := range r.Sample {
		row(t, "  "+quote(d.Key), kinds[d.Kind], versionOf(d.A), versionOf(d.B))
	}
	t.Flush()
	if more := r.Differences - uint64(len(r.Sample)); more > 0 {
		fmt.Fprintf(w, "  and %s more, with -n 0\n", number(more))
	}
}

func versionOf(v *replicator.Version) string {
	if v == nil {
		return "-"
	}
	return v.String()
}
