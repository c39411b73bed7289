package replicator

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTotalBlindMerge takes two stores through the same random schedules: local writes,
// restarts, and scans of peers side by side, whose pages are examined at one time and
// merged at another. One merges blindly where it may, the other looks every key up. They
// are equal after each step. The peers write, and merge each other and the two.
func TestTotalBlindMerge(t *testing.T) {
	t.Parallel()
	schedules := 300
	if testing.Short() {
		schedules = 50
	}
	blind, lost := 0, 0
	for seed := range schedules {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newBlindSchedule(t, uint64(seed))
			for range 200 {
				s.step()
			}
			blind, lost = blind+s.blind, lost+s.lost
		})
	}
	t.Logf("%d entries won blindly, %d were to and had to be looked up in the end", blind, lost)
	require.NotZero(t, blind)
	require.NotZero(t, lost)
}

// blindSchedule is a schedule under way.
type blindSchedule struct {
	t     *testing.T
	rng   *rand.Rand
	pair  [2]*store // the second one looks up
	disks [2]*modelDisk
	boots Origin
	peers []*blindPeer
	scans []*blindScan

	blind, lost int
}

// blindPeer is a peer: what it has, and knows.
type blindPeer struct {
	origin Origin
	clock  uint64 // of its next change
	rows   map[string]Version
	known  vector
}

// blindScan is a scan of a snapshot of a peer, by both of the pair.
type blindScan struct {
	entries []entry // yet to be examined
	known   []Stamp
	state   [2]blindness
	page    [2]*candidates // examined, not merged
	last    bool
}

func newBlindSchedule(t *testing.T, seed uint64) *blindSchedule {
	s := &blindSchedule{t: t, rng: rand.New(rand.NewPCG(seed, 9)), disks: [2]*modelDisk{{}, {}}}
	for i := range 3 {
		s.peers = append(s.peers, &blindPeer{origin: drawnOrigin | Origin(100*(i+1)), rows: map[string]Version{}, known: vector{}})
	}
	s.open()
	return s
}

// open opens both stores, in the same epoch.
func (s *blindSchedule) open() {
	s.boots++
	for i := range s.pair {
		settings := storeSettings{
			logger: slog.New(slog.DiscardHandler), maxValue: 1 << 20, bootID: "boot", backlog: []int{1, 1 << 20}[s.boots%2],
			origins: func() Origin { return drawnOrigin | 250 + s.boots },
		}
		op, err := readOpening(s.disks[i], &settings)
		require.NoError(s.t, err)
		s.pair[i] = newStore(op, settings)
	}
	s.scans = nil
}

// key returns one of a few keys.
func (s *blindSchedule) key() string { return fmt.Sprintf("k%02d", s.rng.IntN(20)) }

func (s *blindSchedule) value(v Version) []byte { return fmt.Append(nil, v) }

func (s *blindSchedule) step() {
	switch n := s.rng.IntN(100); {
	case n < 6:
		s.write(s.key(), s.rng.IntN(3) == 0)
	case n < 35:
		p := s.peers[s.rng.IntN(len(s.peers))]
		v := Version{Stamp{p.clock, p.origin}, s.rng.IntN(3) == 0}
		p.rows[s.key()] = v
		p.known[p.origin] = p.clock
		p.clock += 1 + s.rng.Uint64N(8)
	case n < 42:
		p, q := s.peers[s.rng.IntN(len(s.peers))], s.peers[s.rng.IntN(len(s.peers))]
		p.merge(q.rows, q.known)
	case n < 46:
		s.peers[s.rng.IntN(len(s.peers))].merge(s.rows(0), s.pair[0].known.all())
	case n < 54 && len(s.scans) < 3:
		s.begin(s.peers[s.rng.IntN(len(s.peers))])
	case n < 55:
		s.open()
	case len(s.scans) > 0:
		i := s.rng.IntN(len(s.scans))
		if s.scans[i].page[0] == nil {
			s.examine(s.scans[i])
		} else if s.merge(s.scans[i]); s.scans[i].last {
			s.scans = slices.Delete(s.scans, i, i+1)
		}
	}
	require.Equal(s.t, s.rows(1), s.rows(0))
	require.Equal(s.t, s.pair[1].known.all(), s.pair[0].known.all())
	require.Equal(s.t, s.pair[1].commits.section.clock, s.pair[0].commits.section.clock)
	for key, v := range s.rows(0) {
		value, err := s.disks[0].Get([]byte(key), nil)
		require.Equal(s.t, v.Deleted, err != nil, key)
		if !v.Deleted {
			require.Equal(s.t, string(s.value(v)), string(value), key)
		}
	}
}

// rows returns what one of the pair has.
func (s *blindSchedule) rows(i int) map[string]Version {
	rows := map[string]Version{}
	index := newIndexReader(s.disks[i], nil, false)
	for index.next() {
		rows[string(index.key)] = index.record.Version
	}
	require.NoError(s.t, index.fault())
	return rows
}

// merge takes in what another replica has.
func (p *blindPeer) merge(rows map[string]Version, known vector) {
	for key, v := range rows {
		if was, found := p.rows[key]; !found || v.Compare(was) > 0 {
			p.rows[key] = v
		}
		p.clock = max(p.clock, v.Clock+1)
	}
	p.known.join(known.stamps())
	p.clock = max(p.clock, greatest(known.stamps())+1)
}

// write makes a local change.
func (s *blindSchedule) write(key string, deleted bool) {
	for _, d := range s.pair {
		p := d.commits.newProposal()
		v := Version{Stamp{d.commits.section.clock.next, d.origin()}, deleted}
		p.key, p.deleted, p.ops = []byte(key), deleted, 1
		if !deleted {
			p.value = s.value(v)
		}
		_, err := d.commits.do(p)
		require.NoError(s.t, err)
	}
}

// begin begins a scan.
func (s *blindSchedule) begin(p *blindPeer) {
	scan := &blindScan{known: p.known.stamps(), state: [2]blindness{{begin: true}, {begin: true}}}
	for _, key := range slices.Sorted(maps.Keys(p.rows)) {
		v := p.rows[key]
		if v.Origin == s.pair[0].origin() {
			continue
		}
		e := entry{key: []byte(key), Version: v}
		if !v.Deleted {
			e.value = s.value(v)
		}
		scan.entries = append(scan.entries, e)
	}
	if s.rng.IntN(2) == 0 { // as in a scan of the log
		slices.Reverse(scan.entries)
	}
	s.scans = append(s.scans, scan)
}

// examine examines the next page of a scan.
func (s *blindSchedule) examine(scan *blindScan) {
	n := min(len(scan.entries), 1+s.rng.IntN(6))
	page := slices.SortedFunc(slices.Values(scan.entries[:n]), func(a, b entry) int { return slices.Compare(a.key, b.key) })
	scan.entries = scan.entries[n:]
	scan.last = len(scan.entries) == 0
	for i, d := range s.pair {
		c, err := d.examine(page, &scan.state[i])
		require.NoError(s.t, err)
		if i == 1 {
			all := []int{}
			for j := range page {
				all = append(all, j)
			}
			require.NoError(s.t, d.lookupAll(c, all))
		}
		scan.page[i] = c
	}
}

// merge merges the page that was examined.
func (s *blindSchedule) merge(scan *blindScan) {
	for i, d := range s.pair {
		c, was := scan.page[i], 0
		for _, blind := range c.blind {
			if blind {
				was++
			}
		}
		p := &progress{stay: true, witness: scan.known}
		if scan.last {
			p.join = scan.known
		}
		require.NoError(s.t, d.merge(c, &scan.state[i], p))
		for _, blind := range c.blind {
			if blind {
				s.blind++
				was--
			}
		}
		s.lost += was
		scan.page[i] = nil
	}
}
