package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
)

// view is what the page shows. The demo's mutex guards it.
type view struct {
	keys      map[string]time.Time // key → when it was last seen on any server
	last      map[string][3]*shownCell
	conflicts []*shownConflict // the latest last
	feed      []*shownEvent    // the latest last
	number    int              // of events
	changes   map[replicator.Stamp]*shownEvent
	seen      map[replicator.Origin]uint64 // clock above that of the last change that was listed
}

func (v *view) init() {
	v.keys, v.last = map[string]time.Time{}, map[string][3]*shownCell{}
	v.changes, v.seen = map[replicator.Stamp]*shownEvent{}, map[replicator.Origin]uint64{}
}

const (
	maxRows      = 60
	maxFeed      = 60
	maxConflicts = 12
	maxText      = 80              // characters of a key or value that are shown
	goneFor      = 8 * time.Second // for how long a key is shown that no server has
)

// What follows is the JSON that the page gets.

type shownState struct {
	At        time.Time        `json:"at"`
	Load      bool             `json:"load"`
	Pending   bool             `json:"pending"` // a conflict waits for the links to be healed
	Equal     bool             `json:"equal"`
	Differ    int              `json:"differ"` // number of keys
	Servers   [3]shownServer   `json:"servers"`
	Links     [3]shownLink     `json:"links"`
	Rows      []shownRow       `json:"rows"`
	Conflicts []*shownConflict `json:"conflicts"` // the latest first
	Feed      []*shownEvent    `json:"feed"`      // the latest first
}

type shownServer struct {
	Open   bool                  `json:"open"`
	ID     replicator.DatabaseID `json:"id"`
	Epoch  replicator.Origin     `json:"epoch"`
	Addr   string                `json:"addr"`
	Clock  uint64                `json:"clock"`
	Log    uint64                `json:"log"`
	Keys   int                   `json:"keys"`
	Copied time.Time             `json:"copied,omitzero"`
}

type shownLink struct {
	Ends      [2]int         `json:"ends"`
	Cut       bool           `json:"cut"`
	Up        bool           `json:"up"`
	DialledBy int            `json:"dialledBy"` // index of the server, during a session
	RoundTrip *time.Duration `json:"roundTrip"`
	Behind    [2]*uint64     `json:"behind"`  // of each end, in records of the other's log
	Carried   [2]int64       `json:"carried"` // records that each end got
}

type shownRow struct {
	Key    string        `json:"key"`
	Differ bool          `json:"differ"`
	Cells  [3]*shownCell `json:"cells"` // null: the server does not know the key
}

type shownCell struct {
	Value   string     `json:"value"`
	Deleted bool       `json:"deleted"`
	Stamp   shownStamp `json:"stamp"`
}

// isLive reports whether a server has the key. Of one that was deleted, it may have forgotten.
func (c *shownCell) isLive() bool { return c != nil && !c.Deleted }

type shownStamp struct {
	Clock  uint64            `json:"clock"`
	Origin replicator.Origin `json:"origin"`
	Server int               `json:"server"` // -1: it was not made here
}

type shownConflict struct {
	At     time.Time `json:"at"`
	Key    string    `json:"key"`
	Won    shownCell `json:"won"`
	Lost   shownCell `json:"lost"`
	LostOn []int     `json:"lostOn"` // servers that had the loser, and replaced it
}

type shownEvent struct {
	Number int        `json:"number"`
	At     time.Time  `json:"at"`
	Text   string     `json:"text,omitempty"`
	Key    string     `json:"key,omitempty"`
	Cell   *shownCell `json:"cell,omitempty"`
	Has    [3]bool    `json:"has"`  // which servers have got the change
	Lost   bool       `json:"lost"` // another change won over it
}

// note adds a line to what happened.
func (d *demo) note(format string, args ...any) {
	d.mu.Lock()
	d.view.add(&shownEvent{Text: fmt.Sprintf(format, args...)})
	d.mu.Unlock()
	d.wake()
}

func (v *view) add(e *shownEvent) {
	v.number++
	e.Number, e.At = v.number, time.Now()
	v.feed = append(v.feed, e)
	for len(v.feed) > maxFeed {
		if c := v.feed[0].Cell; c != nil {
			delete(v.changes, replicator.Stamp{Clock: c.Stamp.Clock, Origin: c.Stamp.Origin})
		}
		v.feed = v.feed[1:]
	}
}

func (d *demo) stamp(s replicator.Stamp) shownStamp {
	shown := shownStamp{s.Clock, s.Origin, -1}
	if i, known := d.openings[s.Origin]; known {
		shown.Server = i
	}
	return shown
}

func (d *demo) cell(v replicator.Version, value []byte) shownCell {
	return shownCell{Value: shorten(value), Deleted: v.Deleted, Stamp: d.stamp(v.Stamp)}
}

func shorten(b []byte) string {
	if text := []rune(string(b)); len(text) > maxText {
		return string(text[:maxText]) + "…"
	}
	return string(b)
}

// fought takes in a conflict that a server found. Two servers may find the same one.
func (d *demo) fought(i int, c replicator.Conflict) {
	defer d.wake()
	d.mu.Lock()
	defer d.mu.Unlock()
	v := &d.view
	if e := v.changes[c.Lost.Stamp]; e != nil {
		e.Lost = true
	}
	won, lost := d.cell(c.Won, c.WonValue), d.cell(c.Lost, c.LostValue)
	at := slices.IndexFunc(v.conflicts, func(old *shownConflict) bool { return old.Won == won && old.Lost == lost })
	if at < 0 {
		v.conflicts = append(v.conflicts, &shownConflict{At: time.Now(), Key: shorten(c.Key), Won: won, Lost: lost, LostOn: []int{}})
		v.conflicts = v.conflicts[max(0, len(v.conflicts)-maxConflicts):]
		at = len(v.conflicts) - 1
	}
	if of := v.conflicts[at]; c.LostHere && !slices.Contains(of.LostOn, i) {
		of.LostOn = append(of.LostOn, i)
	}
}

// read returns version and value of a key that belong together, or nil if the server does
// not know the key.
func (d *demo) read(s *server, key string) (*shownCell, error) {
	for {
		before, err := s.Version([]byte(key))
		if err != nil {
			return nil, err
		}
		value, err := s.Get([]byte(key), nil)
		if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
			return nil, err
		}
		after, err := s.Version([]byte(key))
		if err != nil {
			return nil, err
		}
		if before == after {
			c := d.cell(after, value)
			return &c, nil
		}
	}
}

// state looks at the servers, and returns what the page shows.
func (d *demo) state() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := shownState{At: time.Now(), Load: d.load != nil, Pending: d.pending, Rows: []shownRow{}}
	var statuses [3]replicator.Status
	for i, s := range d.servers {
		if s.server == nil {
			continue
		}
		statuses[i] = s.Status()
		st.Servers[i] = shownServer{
			Open: s.open, ID: statuses[i].ID, Epoch: statuses[i].Epoch, Addr: statuses[i].Listening,
			Clock: statuses[i].Clock, Log: statuses[i].LogRecords, Copied: s.copied,
		}
		d.openings[statuses[i].Epoch] = i // a new one may begin during an opening
		if s.open {
			d.collect(i, s.server)
		}
	}
	for n, l := range d.links {
		st.Links[n] = d.link(l, statuses)
	}
	d.rows(&st)
	st.Conflicts = append([]*shownConflict{}, d.view.conflicts...)
	st.Feed = append([]*shownEvent{}, d.view.feed...)
	slices.Reverse(st.Conflicts)
	slices.Reverse(st.Feed)
	text, err := json.Marshal(st)
	if err != nil {
		panic(err) // it has nothing that cannot be marshalled
	}
	return text
}

// collect takes in the latest changes of a server.
func (d *demo) collect(i int, s *server) {
	v := &d.view
	for _, c := range s.Recent(maxFeed * 5) {
		key := string(c.Key)
		if _, known := v.keys[key]; !known && len(v.keys) < maxRows {
			v.keys[key] = time.Now()
		}
		if strings.HasPrefix(key, loadPrefix) {
			continue // too many to be listed
		}
		e := v.changes[c.Stamp]
		if e == nil {
			if !c.Local || c.Clock < v.seen[c.Origin] {
				continue // each change is listed once, when it is seen where it was made
			}
			v.seen[c.Origin] = c.Clock + 1
			cell := d.cell(c.Version, c.Value)
			e = &shownEvent{Key: shorten(c.Key), Cell: &cell}
			v.changes[c.Stamp] = e
			v.add(e)
		}
		e.Has[i] = true
	}
}

// rows fills in the keys of all servers, side by side.
func (d *demo) rows(st *shownState) {
	now := time.Now()
	st.Equal = true
	for key := range d.view.keys {
		row, alive := shownRow{Key: key}, false
		var first *shownCell
		seen := false
		for i, s := range d.servers {
			row.Cells[i] = d.view.last[key][i] // of a closed server
			if !s.open {
				continue
			}
			c, err := d.read(s.server, key)
			if err != nil && !errors.Is(err, leveldb.ErrNotFound) {
				continue // it is being closed
			}
			row.Cells[i] = c
			if c.isLive() {
				alive = true
				st.Servers[i].Keys++
			}
			if e := d.view.eventOf(c); e != nil {
				e.Has[i] = true
			}
			switch {
			case !seen:
				first, seen = c, true
			case c.isLive() != first.isLive() || c.isLive() && *c != *first:
				row.Differ = true
			}
		}
		d.view.last[key] = row.Cells
		if alive || row.Differ {
			d.view.keys[key] = now
		} else if now.Sub(d.view.keys[key]) > goneFor {
			delete(d.view.keys, key)
			delete(d.view.last, key)
			continue
		}
		if row.Differ {
			st.Differ++
			st.Equal = false
		}
		st.Rows = append(st.Rows, row)
	}
	slices.SortFunc(st.Rows, func(a, b shownRow) int { return cmp.Compare(a.Key, b.Key) })
}

func (v *view) eventOf(c *shownCell) *shownEvent {
	if c == nil {
		return nil
	}
	return v.changes[replicator.Stamp{Clock: c.Stamp.Clock, Origin: c.Stamp.Origin}]
}

// link describes a link by what its ends say of each other.
func (d *demo) link(l *link, statuses [3]replicator.Status) shownLink {
	shown := shownLink{Ends: l.ends, Cut: l.isCut()}
	for side, i := range l.ends {
		j := l.ends[1-side]
		if !d.servers[i].open {
			continue
		}
		for _, p := range statuses[i].Peers {
			if p.Addr != serverName(j) && p.ID != statuses[j].ID {
				continue
			}
			shown.Carried[side] = max(shown.Carried[side], p.RecordsIn)
			if p.DialedBy == "" || !d.servers[j].open {
				continue
			}
			shown.Up, shown.DialledBy, shown.Behind[side] = true, i, p.Behind
			if p.DialedBy == replicator.DialedByThem {
				shown.DialledBy = j
			}
			if p.RoundTrip != nil {
				shown.RoundTrip = p.RoundTrip
			}
		}
	}
	shown.Up = shown.Up && !shown.Cut
	return shown
}
