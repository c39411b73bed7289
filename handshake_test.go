package replicator

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestJudge goes through everything that can keep two replicas apart.
func TestJudge(t *testing.T) {
	own := hello{
		clockKind: Lamport.row(), cluster: "prod", id: DatabaseID{1}, epoch: drawnOrigin | 1, nonce: 10,
		maxKey: MaxKeySize, maxValue: 1 << 20,
	}
	good := own
	good.id, good.epoch, good.nonce = DatabaseID{2}, drawnOrigin|2, 20
	failed := errors.New("failed")
	for name, c := range map[string]struct {
		change func(e *encounter)
		err    error // nil: they fit together
		renew  bool
	}{
		"a good peer":               {change: func(e *encounter) {}},
		"a good peer that dialled":  {change: func(e *encounter) { e.dialed = false }},
		"another name":              {change: func(e *encounter) { e.peer.name = "other" }},
		"a probe":                   {change: func(e *encounter) { e.peer.probe = true }},
		"no id":                     {change: func(e *encounter) { e.peer.id = DatabaseID{} }, err: ErrProtocol},
		"no nonce":                  {change: func(e *encounter) { e.peer.nonce = 0 }, err: ErrProtocol},
		"a mirror":                  {change: func(e *encounter) { e.peer = e.own }, err: ErrProtocol},
		"oneself":                   {change: func(e *encounter) { e.peer, e.dialed = e.own, false }, err: ErrSelf},
		"another cluster":           {change: func(e *encounter) { e.peer.cluster = "test" }, err: ErrRefused},
		"another clock":             {change: func(e *encounter) { e.peer.clockKind = 9 }, err: ErrRefused},
		"another limit of keys":     {change: func(e *encounter) { e.peer.maxKey++ }, err: ErrRefused},
		"another limit of values":   {change: func(e *encounter) { e.peer.maxValue-- }, err: ErrRefused},
		"an epoch of adopted":       {change: func(e *encounter) { e.peer.epoch = 5 }, err: ErrProtocol},
		"a clone, greater nonce":    {change: func(e *encounter) { e.peer.id = e.own.id }, err: ErrRefused, renew: true},
		"a clone, smaller nonce":    {change: func(e *encounter) { e.peer.id, e.peer.nonce = e.own.id, 5 }, err: ErrCloned},
		"a disk that failed":        {change: func(e *encounter) { e.failed = failed }, err: failed},
		"a history that has forked": {change: func(e *encounter) { e.forked = true }, err: ErrCloned},
		"a clone of other limits":   {change: func(e *encounter) { e.peer.id, e.peer.maxValue = e.own.id, 1 }, err: ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			e := encounter{own: own, peer: good, dialed: true}
			c.change(&e)
			v := judge(e)
			require.Equal(t, c.renew, v.renew)
			if c.err == nil {
				require.NoError(t, v.err)
			} else {
				require.ErrorIs(t, v.err, c.err)
			}
		})
	}
}
