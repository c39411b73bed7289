package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
)

// This file owns running a replica of its own.

var serveCommand = &command{
	name:    "serve",
	summary: "run a replica, with its page",
	help: `Opens or creates a database, and keeps it equal to its peers until it is interrupted: a copy
on one more machine, or a hub for replicas that can only dial. The log goes to stderr. Beyond
loopback addresses, give all replicas one key (see replicator help keygen). The page asks
nobody who they are: keep its port to yourself, or behind a proxy that does.

  replicator serve -path data -listen 127.0.0.1:8000 -http 127.0.0.1:8080
  replicator serve -path copy -peers 127.0.0.1:8000 -name copy
  replicator serve -path data -listen 0.0.0.0:8000 -peers a.example:8000,b.example:8000 -key-file cluster.key
`,
	setup: func(c *call) func(*call) error {
		s := new(serving)
		f := c.flags
		f.StringVar(&s.path, "path", "", "`directory` of the database; required")
		f.StringVar(&s.options.Listen, "listen", "", "`address` on which peers are accepted; empty: only dial")
		f.Func("peers", "`addresses` of peers, separated by commas", s.addPeers)
		f.StringVar(&s.options.Name, "name", "", "`name` that peers show")
		f.StringVar(&s.options.Cluster, "cluster", "", "`name` that all replicas of the cluster share")
		f.Func("key-file", "`file` with a cluster key; may be given again: the first is proved, all are accepted", s.addKey)
		f.BoolVar(&s.options.Insecure, "insecure", false, "permit plain TCP beyond loopback addresses")
		f.BoolVar(&s.hybrid, "hybrid", false, "have clocks follow the time of day, as all replicas of the cluster do")
		f.StringVar(&s.http, "http", "", "`address` of the page; empty: no page")
		f.BoolVar(&s.data, "data", false, "show keys and values on the page")
		f.BoolVar(&s.actions, "actions", false, "have the page offer SyncNow and Compare")
		return s.run
	},
}

// serving is what serve was told.
type serving struct {
	path, http    string
	keys          []string // files
	data, actions bool
	hybrid        bool
	options       replicator.Options
}

func (s *serving) addPeers(list string) error {
	if s.options.Peers == nil {
		s.options.Peers = map[string]replicator.Meta{}
	}
	found := false
	for addr := range strings.SplitSeq(list, ",") {
		if addr = strings.TrimSpace(addr); addr != "" {
			s.options.Peers[addr] = nil
			found = true
		}
	}
	if !found {
		return errors.New("there is no address in it")
	}
	return nil
}

func (s *serving) addKey(file string) error {
	s.keys = append(s.keys, file)
	return nil
}

// served is what serve prints with -json when it is ready.
type served struct {
	ID        replicator.DatabaseID `json:"id"`
	Listening string                `json:"listening,omitempty"`
	Page      string                `json:"page,omitempty"`
}

func (s *serving) run(c *call) (err error) {
	if s.path == "" {
		return errors.New("-path is required")
	}
	if s.hybrid {
		s.options.Clock = replicator.Hybrid
	}
	for _, file := range s.keys {
		key, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		s.options.ClusterKeys = append(s.options.ClusterKeys, key)
	}
	var handler slog.Handler = slog.NewTextHandler(c.err, nil)
	if c.json {
		handler = slog.NewJSONHandler(c.err, nil)
	}
	s.options.Logger = slog.New(handler)
	var listener net.Listener
	if s.http != "" {
		if listener, err = net.Listen("tcp", s.http); err != nil {
			return err
		}
		defer listener.Close()
	}
	r, err := replicator.OpenFile(s.path, nil, &s.options)
	if isLocked(err) {
		return fmt.Errorf("%s is open in another process", s.path)
	}
	if err != nil && !s.options.Insecure && len(s.options.ClusterKeys) == 0 && strings.Contains(err.Error(), "not a loopback address") {
		return fmt.Errorf("%w (-key-file, -insecure)", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	ready := served{ID: r.Status().ID, Listening: r.Status().Listening}
	failed := make(chan error, 1)
	if listener != nil {
		var options []statuspage.Option
		if s.data {
			options = append(options, statuspage.WithData())
		}
		if s.actions {
			options = append(options, statuspage.WithActions())
		}
		ready.Page = "http://" + listener.Addr().String() + "/"
		server := &http.Server{Handler: statuspage.Handler([]*replicator.Replicator{r}, options...), ReadHeaderTimeout: 10 * time.Second}
		go func() { failed <- server.Serve(listener) }()
		defer server.Close()
	}
	if err := c.announce(ready); err != nil {
		return err
	}
	select {
	case <-c.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("the page: %w", err)
	}
}

// announce says that the replica is there.
func (c *call) announce(s served) error {
	if c.json {
		return c.printLine(s)
	}
	return c.print(nil, func(w io.Writer) {
		fmt.Fprintln(w, "replica", s.ID)
		if s.Listening != "" {
			fmt.Fprintln(w, "peers may dial", s.Listening)
		}
		if s.Page != "" {
			fmt.Fprintln(w, "the page is at", s.Page)
		}
	})
}
