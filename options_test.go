package replicator_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

func TestOptionsValidate(t *testing.T) {
	dial := func(context.Context, string) (net.Conn, error) { return nil, errors.New("no network") }
	peers := func(addr string) map[string]replicator.Meta { return map[string]replicator.Meta{addr: nil} }
	for name, c := range map[string]struct {
		o    *replicator.Options
		want string // part of the error; none if empty
	}{
		"nil":                      {nil, ""},
		"zero":                     {&replicator.Options{}, ""},
		"loopback":                 {&replicator.Options{Listen: "127.1.2.3:0", Peers: peers("[::1]:1")}, ""},
		"localhost":                {&replicator.Options{Listen: "localhost:0", Peers: peers("localhost:1")}, ""},
		"insecure":                 {&replicator.Options{Listen: ":0", Peers: peers("example.com:1"), Insecure: true}, ""},
		"own Dial":                 {&replicator.Options{Peers: peers("anything at all"), Dial: dial}, ""},
		"equal intervals":          {&replicator.Options{MinInterval: time.Minute}, ""},
		"all interfaces":           {&replicator.Options{Listen: ":8000"}, "not a loopback address"},
		"all interfaces, IPv4":     {&replicator.Options{Listen: "0.0.0.0:8000"}, "not a loopback address"},
		"all interfaces, IPv6":     {&replicator.Options{Listen: "[::]:8000"}, "not a loopback address"},
		"other host":               {&replicator.Options{Peers: peers("192.0.2.1:8000")}, "not a loopback address"},
		"name that starts alike":   {&replicator.Options{Peers: peers("localhost.example.com:8000")}, "not a loopback address"},
		"no port":                  {&replicator.Options{Listen: "127.0.0.1"}, "missing port"},
		"no port, insecure":        {&replicator.Options{Peers: peers("example.com"), Insecure: true}, "missing port"},
		"IPv6 without brackets":    {&replicator.Options{Peers: peers("::1:8000")}, "too many colons"},
		"empty address":            {&replicator.Options{Peers: peers(""), Dial: dial}, "empty address"},
		"two listeners":            {&replicator.Options{Listen: "127.0.0.1:0", Listener: &net.TCPListener{}}, "both set"},
		"negative interval":        {&replicator.Options{MinInterval: -1}, "MinInterval is negative"},
		"negative timeout":         {&replicator.Options{Timeout: -1}, "Timeout is negative"},
		"intervals in wrong order": {&replicator.Options{MinInterval: 2, MaxInterval: 1}, "is above MaxInterval"},
		"negative value size":      {&replicator.Options{MaxValueSize: -1}, "MaxValueSize"},
		"huge value size":          {&replicator.Options{MaxValueSize: 1<<30 + 1}, "MaxValueSize"},
		"negative log age":         {&replicator.Options{MaxLogAge: -1}, "MaxLogAge"},
		"no limits of the log":     {&replicator.Options{MaxLogRecords: -1, PeerAge: -1}, ""},
		"long cluster":             {&replicator.Options{Cluster: strings.Repeat("x", 256)}, "Cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.o.Validate()
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			_, openErr := replicator.Open(memDB(t), c.o)
			require.Equal(t, err, openErr)
			path := filepath.Join(t.TempDir(), "new")
			_, openErr = replicator.OpenFile(path, nil, c.o)
			require.Equal(t, err, openErr)
			require.NoDirExists(t, path)
		})
	}

	all := &replicator.Options{
		Listen: ":0", Listener: &net.TCPListener{}, Peers: map[string]replicator.Meta{"": nil, "192.0.2.1:1": nil},
		MinInterval: 2, MaxInterval: -1, MaxValueSize: -1, Cluster: strings.Repeat("x", 256),
	}
	err := all.Validate()
	for _, part := range []string{"both set", ":0 is not", "empty address", "192.0.2.1:1 is not", "negative", "above MaxInterval", "MaxValueSize", "Cluster"} {
		require.ErrorContains(t, err, part, "all problems at once")
	}
}

func TestOptionsAreCopied(t *testing.T) {
	o := &replicator.Options{Peers: map[string]replicator.Meta{"127.0.0.1:1": {"name": "one"}}}
	r := wrap(t, memDB(t), o)
	require.Equal(t, &replicator.Options{Peers: map[string]replicator.Meta{"127.0.0.1:1": {"name": "one"}}}, o, "the caller's are not changed")
	o.Peers["127.0.0.1:1"]["name"] = "changed"
	o.Peers["127.0.0.1:2"] = nil
	status := r.Status()
	require.Len(t, status.Peers, 1)
	require.Equal(t, replicator.Meta{"name": "one"}, status.Peers[0].Meta)
	status.Peers[0].Meta["name"] = "changed"
	require.Equal(t, replicator.Meta{"name": "one"}, r.Status().Peers[0].Meta)
}
