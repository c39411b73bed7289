package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

// demo is three servers that a browser shows and operates. As in the story, they are
// counted from 0 in the code, and from 1 in what is shown.
type demo struct {
	dir     string
	links   [3]*link
	changed chan struct{} // the state may have changed

	// Operations on servers and links are done one by one.
	operation sync.Mutex

	mu       sync.Mutex // guards the fields below
	servers  [3]*demoServer
	openings map[replicator.Origin]int // epoch → the server that made the stamps with it
	rounds   int                       // conflicts that were made
	pending  bool                      // a conflict waits for the links to be healed
	load     context.CancelFunc        // nil: no load
	view     view
	isOver   bool // nothing more is begun

	background sync.WaitGroup
}

// demoServer is one of the three.
type demoServer struct {
	*server // the last one that was open
	open    bool
	copied  time.Time // when its directory was copied; zero: it was not
}

// link is the connection between two servers. Both dial, over the demo's dial function.
type link struct {
	ends [2]int

	mu    sync.Mutex // guards the fields below
	cut   bool
	conns map[net.Conn]bool
}

var (
	errCut  = errors.New("the link is cut")
	errOver = errors.New("the demonstration is over")
)

// linkOf returns the index of the link between two servers.
func linkOf(a, b int) int {
	switch a + b {
	case 1:
		return 0
	case 3:
		return 1
	}
	return 2
}

func serverName(i int) string { return fmt.Sprintf("server-%d", i+1) }

// newDemo opens the servers, and writes a key on each.
func newDemo(dir string) (*demo, error) {
	d := &demo{dir: dir, changed: make(chan struct{}, 1), openings: map[replicator.Origin]int{}}
	d.view.init()
	for _, ends := range [][2]int{{0, 1}, {1, 2}, {0, 2}} {
		d.links[linkOf(ends[0], ends[1])] = &link{ends: ends, conns: map[net.Conn]bool{}}
	}
	for i := range d.servers {
		d.servers[i] = &demoServer{}
	}
	for i := range d.servers {
		if err := d.open(i); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	for i, kv := range [][2]string{{"colour", "green"}, {"fruit", "apple"}, {"city", "Oslo"}} {
		if err := d.put(i, kv[0], kv[1]); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return d, nil
}

func (d *demo) close() error {
	d.setLoad(false)
	d.operation.Lock()
	defer d.operation.Unlock()
	d.mu.Lock()
	d.isOver = true
	d.mu.Unlock()
	var errs []error
	for i := range d.servers {
		if d.isOpen(i) {
			errs = append(errs, d.shut(i))
		}
	}
	d.background.Wait()
	return errors.Join(errs...)
}

func (d *demo) path(i int) string     { return filepath.Join(d.dir, serverName(i)) }
func (d *demo) copyPath(i int) string { return d.path(i) + "-copy" }

// get returns a server if it is open.
func (d *demo) get(i int) (*server, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.servers[i]; s.open {
		return s.server, nil
	}
	return nil, fmt.Errorf("server %d is closed", i+1)
}

func (d *demo) over() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.isOver
}

func (d *demo) isOpen(i int) bool {
	_, err := d.get(i)
	return err == nil
}

func (d *demo) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// open opens a server. The caller holds the operation, except at the start.
func (d *demo) open(i int) error {
	peers := map[string]replicator.Meta{}
	for j := range d.servers {
		if j != i {
			peers[serverName(j)] = nil
		}
	}
	s, err := openServer(d.path(i), &replicator.Options{
		Name: serverName(i), Listen: "127.0.0.1:0", Peers: peers, Dial: d.dialFrom(i),
		OnConflict:  func(c replicator.Conflict) { d.fought(i, c) },
		MaxInterval: time.Second, // people do not wait for long after a heal
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.servers[i].server, d.servers[i].open = s, true
	d.openings[s.Status().Epoch] = i
	d.mu.Unlock()
	for j := range d.servers {
		if j != i {
			d.hurry(j)
		}
	}
	return nil
}

// shut closes a server.
func (d *demo) shut(i int) error {
	d.mu.Lock()
	s := d.servers[i]
	s.open = false
	d.mu.Unlock()
	return s.Close()
}

// hurry has a server dial at once, where it would wait for its next attempt.
func (d *demo) hurry(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.servers[i]
	if !s.open || d.isOver {
		return
	}
	r := s.Replicator
	d.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = r.SyncNow(ctx) // it fails where a link is cut, which the page shows
	})
}

// dialFrom returns how a server dials the others by their names, over the links.
func (d *demo) dialFrom(i int) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, name string) (net.Conn, error) {
		for j := range d.servers {
			if serverName(j) != name || j == i {
				continue
			}
			s, err := d.get(j)
			if err != nil {
				return nil, err
			}
			return d.links[linkOf(i, j)].dial(ctx, s.Addr().String())
		}
		return nil, fmt.Errorf("there is no %s", name)
	}
}

func (l *link) dial(ctx context.Context, addr string) (net.Conn, error) {
	if l.isCut() {
		return nil, errCut
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		conn.Close()
		return nil, errCut
	}
	l.conns[conn] = true
	return linkConn{conn, l}, nil
}

// linkConn is a connection that a cut closes.
type linkConn struct {
	net.Conn
	l *link
}

func (c linkConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c.Conn)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

func (l *link) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}

func (l *link) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for conn := range l.conns {
			conn.Close()
		}
		clear(l.conns)
	}
}

// setLink cuts or heals a link, and reports whether that changed anything.
func (d *demo) setLink(n int, cut bool) bool {
	l := d.links[n]
	if l.isCut() == cut {
		return false
	}
	l.set(cut)
	if !cut {
		d.hurry(l.ends[0])
		d.hurry(l.ends[1])
	}
	return true
}

func (d *demo) setOneLink(n int, cut bool) {
	if d.setLink(n, cut) {
		ends := d.links[n].ends
		d.note("The link between servers %d and %d was %s.", ends[0]+1, ends[1]+1, cutOrHealed(cut))
	}
}

func cutOrHealed(cut bool) string {
	if cut {
		return "cut"
	}
	return "healed"
}

// setAllLinks cuts or heals all links.
func (d *demo) setAllLinks(cut bool) {
	if !cut {
		d.mu.Lock()
		d.pending = false
		d.mu.Unlock()
	}
	changed := false
	for n := range d.links {
		changed = d.setLink(n, cut) || changed
	}
	if changed {
		d.note("All links were %s.", cutOrHealed(cut))
	}
}

func (d *demo) put(i int, key, value string) error {
	s, err := d.get(i)
	if err == nil {
		err = s.Put([]byte(key), []byte(value), nil)
	}
	return err
}

func (d *demo) remove(i int, key string) error {
	s, err := d.get(i)
	if err == nil {
		err = s.Delete([]byte(key), nil)
	}
	return err
}

// lifecycle is what can be done to a server as a whole.
var lifecycle = map[string]func(d *demo, i int) error{
	"open": func(d *demo, i int) error {
		if d.isOpen(i) {
			return nil
		}
		d.note("Server %d was opened.", i+1)
		return d.open(i)
	},
	"close": func(d *demo, i int) error {
		if !d.isOpen(i) {
			return nil
		}
		d.note("Server %d was closed.", i+1)
		return d.shut(i)
	},
	"wipe": func(d *demo, i int) error {
		return d.replace(i, fmt.Sprintf("Server %d was wiped: it starts with nothing, under a new id.", i+1), func() error { return nil })
	},
	"copy": func(d *demo, i int) error {
		if err := d.copy(i); err != nil {
			return err
		}
		d.note("Server %d was copied to a backup.", i+1)
		return nil
	},
	"restore": func(d *demo, i int) error {
		d.mu.Lock()
		copied := d.servers[i].copied
		d.mu.Unlock()
		if copied.IsZero() {
			return fmt.Errorf("there is no copy of server %d", i+1)
		}
		return d.replace(i, fmt.Sprintf("Server %d was restored from its copy of %s.", i+1, copied.Format(time.TimeOnly)),
			func() error { return os.CopyFS(d.path(i), os.DirFS(d.copyPath(i))) })
	},
}

// operate does one thing to a server as a whole.
func (d *demo) operate(what string, i int) error {
	do, found := lifecycle[what]
	if !found {
		return fmt.Errorf("a server can not %s", what)
	}
	d.operation.Lock()
	defer d.operation.Unlock()
	if d.over() {
		return errOver
	}
	return do(d, i)
}

// replace closes a server, has its directory made anew, and opens it.
func (d *demo) replace(i int, note string, fill func() error) error {
	if d.isOpen(i) {
		if err := d.shut(i); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(d.path(i)), fill()); err != nil {
		return err
	}
	d.note("%s", note)
	return d.open(i)
}

// copy copies a server's directory. It closes the server for that time, as a copy of files
// in use would be of different moments.
func (d *demo) copy(i int) error {
	wasOpen := d.isOpen(i)
	if wasOpen {
		if err := d.shut(i); err != nil {
			return err
		}
	}
	err := os.RemoveAll(d.copyPath(i))
	if err == nil {
		err = os.CopyFS(d.copyPath(i), os.DirFS(d.path(i)))
	}
	if err == nil {
		d.mu.Lock()
		d.servers[i].copied = time.Now()
		d.mu.Unlock()
	}
	if wasOpen {
		err = errors.Join(err, d.open(i))
	}
	return err
}

const loadPrefix = "visits/"

// setLoad starts or stops a load: each server counts in a key of its own.
func (d *demo) setLoad(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if on == (d.load != nil) || d.isOver {
		return
	}
	if !on {
		d.load()
		d.load = nil
		return
	}
	var ctx context.Context
	ctx, d.load = context.WithCancel(context.Background())
	for i := range d.servers {
		d.background.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for n := 1; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					_ = d.put(i, loadPrefix+fmt.Sprint(i+1), fmt.Sprint(n)) // a closed server does not count
				}
			}
		})
	}
}

// colours are what the servers disagree about.
var colours = [][2]string{{"red", "blue"}, {"gold", "silver"}, {"black", "white"}, {"pink", "violet"}}

// conflict cuts all links, and has two servers write one key. Every second time, the first
// of them writes twice, so that its clock is greater.
func (d *demo) conflict() error {
	d.mu.Lock()
	round := d.rounds
	d.rounds++
	d.mu.Unlock()
	a, b := round%3, (round+1)%3
	for _, i := range []int{a, b} {
		if _, err := d.get(i); err != nil {
			return fmt.Errorf("%w: open it first", err)
		}
	}
	d.setAllLinks(true)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for _, i := range []int{a, b} {
		s, err := d.get(i)
		if err == nil {
			err = until(ctx, func() bool { return sessions(s) == 0 })
		}
		if err != nil {
			return err
		}
	}
	values := colours[round%len(colours)]
	writes := []struct {
		on    int
		value string
	}{{a, values[0]}, {b, values[1]}}
	if round%2 == 1 {
		writes = append(writes, struct {
			on    int
			value string
		}{a, "dark " + values[0]})
	}
	for _, w := range writes {
		if err := d.put(w.on, "colour", w.value); err != nil {
			return err
		}
	}
	d.mu.Lock()
	d.pending = true
	d.mu.Unlock()
	return nil
}

// sessions is the number of a server's sessions.
func sessions(s *server) (n int) {
	for _, p := range s.Status().Peers {
		if p.DialedBy != "" {
			n++
		}
	}
	return n
}

// demonstrate serves the demo until ctx is done.
func demonstrate(ctx context.Context, addr string, out io.Writer) (err error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	dir, err := os.MkdirTemp("", "three-servers-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d, err := newDemo(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	shown := listener.Addr().String()
	if host, port, err := net.SplitHostPort(shown); err == nil && strings.Trim(host, ":0.") == "" {
		shown = net.JoinHostPort("localhost", port) // a browser can't go to an unspecified address
	}
	fmt.Fprintf(out, "Open http://%s/ in a browser. Ctrl-C ends it, and removes all data.\n", shown)
	return d.serve(ctx, listener)
}
