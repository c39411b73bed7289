package statuspage

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/level-replicator/replicator"
)

// This file owns the actions of the page's readers.

// actionPatience bounds an action.
const actionPatience = time.Minute

// outcome is what an action answers with.
type outcome struct {
	Took       time.Duration          `json:"took"`
	Error      string                 `json:"error,omitempty"`
	Difference *replicator.Difference `json:"difference,omitempty"` // of Compare
}

// action does what a reader asks for, with a replica and what the query says of it.
type action func(ctx context.Context, r *replicator.Replicator, query url.Values, o *outcome) error

// act runs an action on the replica that the query names by its index. The reader ends it
// by leaving.
func (h *handler) act(w http.ResponseWriter, req *http.Request, do action) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		http.Error(w, "an action is a POST", http.StatusMethodNotAllowed)
		return
	}
	if err := h.origin.Check(req); err != nil {
		http.Error(w, "the request comes from another origin", http.StatusForbidden)
		return
	}
	i, err := strconv.Atoi(req.URL.Query().Get("replica"))
	if err != nil || i < 0 || i >= len(h.replicas) {
		http.Error(w, "there is no such replica", http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), actionPatience)
	defer cancel()
	// A server's own deadline for answers may be shorter.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(actionPatience + writePatience))
	began := time.Now()
	var o outcome
	err = do(ctx, h.replicas[i], req.URL.Query(), &o)
	if o.Took = time.Since(began); !h.data && o.Difference != nil {
		o.Difference.Sample = nil
	}
	if err != nil {
		if o.Error = err.Error(); !h.data {
			o.Error = hideKeys(o.Error)
		}
	}
	writeJSON(w, http.StatusOK, o)
}

// actions are what readers may do, by the last element of the path.
var actions = map[string]action{
	"sync": func(ctx context.Context, r *replicator.Replicator, _ url.Values, _ *outcome) error {
		return r.SyncNow(ctx)
	},
	"compare": func(ctx context.Context, r *replicator.Replicator, query url.Values, o *outcome) error {
		d, err := r.Compare(ctx, query.Get("peer"))
		if err == nil {
			o.Difference = &d
		}
		return err
	},
}
