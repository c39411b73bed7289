// Command secure shows who is let in: three replicas that share a cluster key, strangers
// who don't, a peer that may only read, a key that is replaced while the replicas run, and
// a replica that was decommissioned and comes back. It checks every step, and leaves
// nothing behind:
//
//	go run ./examples/secure
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "secure:", err)
		os.Exit(1)
	}
}

// run tells the story, and returns the first check that failed.
func run(out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "replicator-secure-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &story{out: out, dir: dir, readers: map[string]bool{}, gone: map[replicator.DatabaseID]bool{}}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, chapter := range []func() error{s.together, s.strangers, s.reader, s.rotate, s.decommission} {
		if err := chapter(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "Every check passed.")
	return nil
}

// story is three replicas that share a key.
type story struct {
	out   io.Writer
	dir   string
	keys  [][]byte
	names []string
	open  map[string]*replicator.Replicator
	addrs map[string]string

	mu      sync.Mutex // guards the fields below
	readers map[string]bool
	gone    map[replicator.DatabaseID]bool
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// newKey returns a cluster key. In a shell: head -c 32 /dev/urandom | base64
func newKey() []byte {
	key := make([]byte, 32)
	rand.Read(key)
	return key
}

// authorize decides what a peer may do. A certificate proves that the peer knows a
// cluster key; name and id are what it says of itself.
func (s *story) authorize(p replicator.PeerInfo) (replicator.Access, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone[p.ID]:
		return 0, fmt.Errorf("%s was decommissioned", p.Name)
	case s.readers[p.Name]:
		return replicator.ReadOnly, nil
	}
	return replicator.ReadWrite, nil
}

// start opens a replica that dials all others of the story.
func (s *story) start(name string, keys [][]byte) (*replicator.Replicator, error) {
	o := &replicator.Options{
		Name: name, Listen: "127.0.0.1:0", ClusterKeys: keys, Authorize: s.authorize,
		Peers: map[string]replicator.Meta{}, MaxInterval: time.Second,
	}
	if addr := s.addrs[name]; addr != "" {
		o.Listen = addr // where the others expect it
	}
	for other, addr := range s.addrs {
		if other != name {
			o.Peers[addr] = replicator.Meta{"name": other}
		}
	}
	return replicator.OpenFile(filepath.Join(s.dir, name), nil, o)
}

// together starts the replicas: what one writes, all have.
func (s *story) together() error {
	s.keys, s.names = [][]byte{newKey()}, []string{"a", "b", "c"}
	s.open, s.addrs = map[string]*replicator.Replicator{}, map[string]string{}
	for _, name := range s.names {
		r, err := s.start(name, s.keys)
		if err != nil {
			return err
		}
		s.open[name], s.addrs[name] = r, r.Addr().String()
	}
	s.say("Three replicas share a cluster key. Sessions use TLS 1.3, and both sides prove that they know the key.")
	return s.spread("a", "greeting", "hello")
}

// spread writes on one replica, and checks that all get it.
func (s *story) spread(from, key, value string) error {
	if err := s.open[from].Put([]byte(key), []byte(value), nil); err != nil {
		return err
	}
	for name, r := range s.open {
		if err := arrives(r, key, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	s.say("  %q is written on %s, and readable on all.", key, from)
	return nil
}

// arrives waits until a replica has a value.
func arrives(r *replicator.Replicator, key, value string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		found, err := r.Get([]byte(key), nil)
		if err == nil && string(found) == value {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%q does not arrive: %w", key, err)
		}
	}
}

// refused dials a as somebody who must not get in, and checks what both sides see.
func (s *story) refused(who string, o *replicator.Options, sees, told string) error {
	o.Name = "stranger"
	stranger, err := replicator.OpenFile(filepath.Join(s.dir, who), nil, o)
	if err != nil {
		return err
	}
	defer stranger.Close()
	if err := stranger.AddPeer(s.addrs["a"], nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = stranger.SyncNow(ctx)
	if err == nil || !strings.Contains(err.Error(), sees) {
		return fmt.Errorf("%s got the answer: %v", who, err)
	}
	if _, err := stranger.Get([]byte("greeting"), nil); err == nil {
		return fmt.Errorf("%s can read", who)
	}
	s.say("  %s sees: %v", who, err)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, refusal := range s.open["a"].Status().Refused {
			if strings.Contains(refusal.Error, told) {
				s.say("  Replica a shows: %s", refusal.Error)
				return nil
			}
		}
	}
	return fmt.Errorf("replica a does not show that it has refused %s: %+v", who, s.open["a"].Status().Refused)
}

// strangers don't get in.
func (s *story) strangers() error {
	s.say("Strangers are refused, and both sides are told what to check.")
	err := s.refused("Somebody without a key", &replicator.Options{}, "speaks TLS", "does not speak TLS")
	if err != nil {
		return err
	}
	return s.refused("Somebody with another key", &replicator.Options{ClusterKeys: [][]byte{newKey()}},
		"not trusted here", "does not trust")
}

// reader gets everything, and what it writes stays with it.
func (s *story) reader() error {
	s.mu.Lock()
	s.readers["screen"] = true
	s.mu.Unlock()
	r, err := s.start("screen", s.keys)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := arrives(r, "greeting", "hello"); err != nil {
		return err
	}
	if err := r.Put([]byte("scribble"), nil, nil); err != nil {
		return err
	}
	if err := s.spread("b", "after the scribble", "value"); err != nil {
		return err
	}
	if err := arrives(r, "after the scribble", "value"); err != nil {
		return err
	}
	if _, err := s.open["a"].Get([]byte("scribble"), nil); err == nil {
		return errors.New("a reader has written")
	}
	for end := time.Now().Add(5 * time.Second); !isReader(r); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("the reader is not told that it is one: %+v", r.Status().Peers)
		}
	}
	s.say("A reader gets everything. What it writes stays with it, and its Status says why.")
	return nil
}

// isReader reports whether all peers have told a replica that it may only read.
func isReader(r *replicator.Replicator) bool {
	for _, p := range r.Status().Peers {
		if p.Granted == nil || *p.Granted != replicator.ReadOnly {
			return false
		}
	}
	return true
}

// rotate replaces the key, one replica after the other.
func (s *story) rotate() error {
	s.say("The key is replaced while the replicas run.")
	before, after := s.keys[0], newKey()
	for _, step := range []struct {
		what string
		keys [][]byte
	}{
		{"the new key is accepted", [][]byte{before, after}},
		{"the new key is used", [][]byte{after, before}},
		{"the old key is dropped", [][]byte{after}},
	} {
		for _, name := range s.names {
			if err := s.open[name].Close(); err != nil {
				return err
			}
			r, err := s.start(name, step.keys)
			if err != nil {
				return err
			}
			s.open[name] = r
			if err := s.spread(name, step.what+" by "+name, "value"); err != nil {
				return err
			}
		}
	}
	s.keys = [][]byte{after}
	return s.refused("Somebody with the old key", &replicator.Options{ClusterKeys: [][]byte{before}}, "not trusted here", "does not trust")
}

// decommission refuses a replica that was a member.
func (s *story) decommission() error {
	c := s.open["c"]
	id := c.Status().ID
	if err := c.Close(); err != nil {
		return err
	}
	delete(s.open, "c")
	for _, name := range []string{"a", "b"} {
		if err := s.open[name].RemovePeer(s.addrs["c"]); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.gone[id] = true
	s.mu.Unlock()
	back, err := s.start("c", s.keys)
	if err != nil {
		return err
	}
	defer back.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = back.SyncNow(ctx)
	if err == nil || !strings.Contains(err.Error(), "c was decommissioned") {
		return fmt.Errorf("a decommissioned replica got the answer: %v", err)
	}
	s.say("A decommissioned replica comes back, and sees:\n  %v", strings.ReplaceAll(err.Error(), "\n", "\n  "))
	return s.spread("b", "without c", "value")
}

func (s *story) close() (err error) {
	for _, r := range s.open {
		err = errors.Join(err, r.Close())
	}
	return err
}
