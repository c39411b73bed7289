package statuspage

import (
	"context"
	"encoding/json"
	"time"

	"github.com/level-replicator/replicator"
)

// This file owns the frames that the page draws. They are no contract.

// frame is all that the page shows at one moment.
type frame struct {
	Report
	Ready   Readiness `json:"ready"`
	Data    bool      `json:"data"`
	Actions bool      `json:"actions"`
	More    []extra   `json:"more"` // beside the Status of each replica
}

// extra is what the page shows of a replica beside its Status.
type extra struct {
	Sizes   *sizes   `json:"sizes"`   // nil: unknown
	Count   *counted `json:"count"`   // nil: unknown
	Changes []change `json:"changes"` // the latest, oldest first
}

// sizes are those of replicator.Size, in bytes.
type sizes struct {
	Data  int64 `json:"data"`
	Extra int64 `json:"extra"`
}

// counted is a number of keys.
type counted struct {
	Keys       int  `json:"keys"`
	Tombstones int  `json:"tombstones"`
	AtLeast    bool `json:"atLeast"` // there are more than could be counted in time
}

// change is one change of a key, shortened.
type change struct {
	Key     []byte             `json:"key"`
	Value   []byte             `json:"value"` // null: there is none, or it is large
	Size    int                `json:"size"`  // of the value
	Version replicator.Version `json:"version"`
	Local   bool               `json:"local"`
}

const (
	lastChanges = 50  // that are shown
	maxShown    = 128 // bytes of a key or a value that are shown
	// countFor bounds how long keys are counted. countPause is how long the count rests
	// for, as a multiple of the time that it took, and at least countRest.
	countFor   = 500 * time.Millisecond
	countPause = 20
	countRest  = 2 * time.Second
)

// view makes a frame.
func (h *handler) view() []byte {
	f := frame{Report: h.report(), Data: h.data, Actions: h.actions}
	f.Ready = h.readiness(f.Report)
	for i, r := range h.replicas {
		e := extra{Sizes: sizesOf(r), Count: h.counts[i].Load(), Changes: []change{}}
		if h.data {
			e.Changes = latest(r)
		}
		f.More = append(f.More, e)
	}
	text, err := json.Marshal(f)
	if err != nil { // a frame has nothing that cannot be marshalled
		panic(err)
	}
	return text
}

func latest(r *replicator.Replicator) []change {
	all := []change{}
	for _, c := range r.Recent(lastChanges) {
		all = append(all, change{short(c.Key), short(c.Value), len(c.Value), c.Version, c.Local})
	}
	return all
}

func short(b []byte) []byte {
	if b == nil {
		return nil
	}
	return b[:min(len(b), maxShown)]
}

func sizesOf(r *replicator.Replicator) *sizes {
	s, err := r.Size()
	if err != nil {
		return nil // the database is closed
	}
	return &sizes{s.Data, s.Extra}
}

// count counts keys from time to time, where something has changed.
func (h *handler) count(ctx context.Context) {
	heads := make([]uint64, len(h.replicas))
	for {
		began := time.Now()
		for i, r := range h.replicas {
			s := r.Status()
			if h.counts[i].Load() != nil && s.Head == heads[i] && s.Adoption.Done {
				continue
			}
			bounded, cancel := context.WithTimeout(ctx, countFor)
			n, err := r.Count(bounded)
			late := bounded.Err() != nil
			cancel()
			if ctx.Err() != nil {
				return
			}
			if err == nil || late {
				heads[i] = s.Head
				h.counts[i].Store(&counted{n.Keys, n.Tombstones, late})
			}
		}
		rest := time.NewTimer(max(countRest, countPause*time.Since(began)))
		select {
		case <-ctx.Done():
			rest.Stop()
			return
		case <-rest.C:
		}
	}
}
