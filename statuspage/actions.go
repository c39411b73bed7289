package statuspage

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/level-replicator/replicator"
)

// This file owns the actions of the page's readers.

// actionPatience bounds an action.
const actionPatience = time.Minute

// outcome is what an action answers with.
type outcome struct {
	Took  time.Duration `json:"took"`
	Error string        `json:"error,omitempty"`
}

// act runs an action on the replica that the query names by its index. The reader ends it
// by leaving.
func (h *handler) act(w http.ResponseWriter, req *http.Request, do func(context.Context, *replicator.Replicator) error) {
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
	err = do(ctx, h.replicas[i])
	o := outcome{Took: time.Since(began)}
	if err != nil {
		if o.Error = err.Error(); !h.data {
			o.Error = hideKeys(o.Error)
		}
	}
	writeJSON(w, http.StatusOK, o)
}

func (h *handler) syncNow(ctx context.Context, r *replicator.Replicator) error { return r.SyncNow(ctx) }
