package replicator_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/internal/simtest"
	"github.com/stretchr/testify/require"
)

// Peers that are slow, silent or many, beside two honest replicas that go on. In the
// simulated network, time costs nothing.

// besieged is a pair of honest replicas. Strangers dial the first.
type besieged struct {
	*cluster
	n      *node // that is dialled
	member bool  // hostile peers have the cluster key
	log    *logBuffer
	marks  int
	heap   uint64 // in use, at the beginning
}

// maxSiege is how much more memory may be in use, in bytes, while others misbehave.
const maxSiege = 64 << 20

// inSiege runs a test with two honest replicas, over plain TCP and over TLS.
func inSiege(t *testing.T, test func(t *testing.T, s *besieged)) {
	for way, change := range hostileWays {
		t.Run(way, func(t *testing.T) {
			inCluster(t, 2, func(t *testing.T, c *cluster) {
				s := &besieged{cluster: c, n: c.nodes[0], member: change != nil, log: new(logBuffer)}
				c.link(1, 0)
				for _, n := range c.nodes {
					n.open(func(o *replicator.Options) {
						if change != nil {
							change(o)
						}
						if n == s.n {
							o.Logger, o.Listener = textLogger(s.log), portedListener{o.Listener}
						}
					})
				}
				s.converges()
				s.heap = heapInUse()
				test(t, s)
				s.converges()
			})
		})
	}
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// converges checks that what is put on each honest replica is soon on the other, and how
// much memory is in use.
func (s *besieged) converges() {
	s.t.Helper()
	s.marks++
	for i, n := range s.nodes {
		key, value, begin := fmt.Sprintf("mark %d", i), fmt.Sprint(s.marks), time.Now()
		n.put(key, value)
		s.nodes[1-i].arrives(key, value)
		require.Less(s.t, time.Since(begin), 5*time.Second, "an honest change was under way")
	}
	if s.heap > 0 {
		require.Less(s.t, int64(heapInUse())-int64(s.heap), int64(maxSiege))
	}
}

// dialIn connects a host that is no replica to the besieged one.
func (s *besieged) dialIn(from string) *wirePeer { return s.dialHostile(from, s.n, s.member) }

// dialHostile connects a host that is no replica to a node, as a member or over plain TCP.
func (c *cluster) dialHostile(from string, n *node, member bool) *wirePeer {
	nc, err := c.net.Dial(from)(context.Background(), n.name)
	require.NoError(c.t, err)
	p := &wirePeer{c.t, nc}
	if member {
		return &wirePeer{c.t, tls.Client(nc, memberTLS())}
	}
	return p
}

// ends waits until the other side hangs up.
func (p *wirePeer) ends(within time.Duration) {
	p.t.Helper()
	begin := time.Now()
	require.NoError(p.t, p.SetDeadline(begin.Add(within)))
	_, err := io.Copy(io.Discard, p)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		require.FailNow(p.t, "the connection is still open", "after %v", within)
	}
}

// refusals counts the lines of the log that tell of refused connections.
func (s *besieged) refusals() int { return strings.Count(s.log.String(), "level=WARN") }

// portedListener gives connections remote addresses with a host and a port, as TCP's.
type portedListener struct{ net.Listener }

func (l portedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return portedConn{c}, nil
}

type portedConn struct{ net.Conn }

func (c portedConn) RemoteAddr() net.Addr {
	return portedAddr(strings.Replace(c.Conn.RemoteAddr().String(), "#", ":", 1))
}

type portedAddr string

func (portedAddr) Network() string  { return "sim" }
func (a portedAddr) String() string { return string(a) }

// hostileScript is how far a peer comes that dials in.
type hostileScript func(p *wirePeer)

// hostileScripts stop at each step of a connection.
func hostileScripts() map[string]hostileScript {
	hi := newWireHi()
	absent := wireEntry{key: "absent", clock: 5, origin: hi.epoch, size: 100}
	fetched := func(p *wirePeer) []byte {
		p.join(hi)
		p.say(wirePage, wireFullPage(hi.epoch, 9, absent))
		p.await(wireFetch, 9)
		absent := wireEntry{key: "absent", clock: 5, origin: hi.epoch, value: strings.Repeat("v", 100)}
		return wireFrame(wireValues, absent.append([]byte{1, 0, 1}))
	}
	page := wireFrame(wirePage, wireFullPage(hi.epoch, 9, wireEntry{key: "k", clock: 5, origin: hi.epoch, value: strings.Repeat("v", 100)}))
	first := wireStamps(wirePlace(binary.AppendUvarint(nil, 4|16|256), hi.epoch, 9))
	return map[string]hostileScript{
		"connected":     func(p *wirePeer) {},
		"half a header": func(p *wirePeer) { p.Write([]byte{0, 0}) },
		"half a hello":  func(p *wirePeer) { p.Write(wireFrame(wireHello, hi.payload())[:40]) },
		"hello":         func(p *wirePeer) { p.say(wireHello, hi.payload()) },
		"half an accept": func(p *wirePeer) {
			p.say(wireHello, hi.payload())
			p.await(wireHello, 0)
			p.Write(wireFrame(wireAccept, []byte{1})[:5])
		},
		"accept":          func(p *wirePeer) { p.join(hi) },
		"terms":           func(p *wirePeer) { p.join(hi); p.say(wireTerms, []byte{0}) },
		"a vector":        func(p *wirePeer) { p.join(hi); p.say(wireVector, wireStamps(nil, wireStamp{hi.epoch, 9})) },
		"a pull":          func(p *wirePeer) { p.join(hi); p.say(wirePull, wireFullPull()) },
		"half a page":     func(p *wirePeer) { p.join(hi); p.Write(page[:len(page)/2]) },
		"a scan begun":    func(p *wirePeer) { p.join(hi); p.say(wirePage, append(wireBytes(first, "k"), 0)) },
		"a value offered": func(p *wirePeer) { fetched(p) },
		"half a value":    func(p *wirePeer) { v := fetched(p); p.Write(v[:len(v)/2]) },
		"a page":          func(p *wirePeer) { p.join(hi); p.Write(page) },
	}
}

// TestHostileSilence: a peer that falls silent, at whatever step, is given up, and keeps
// nobody else waiting: neither where it dials in, nor where it is dialled.
func TestHostileSilence(t *testing.T) {
	for step, script := range hostileScripts() {
		t.Run(step, func(t *testing.T) {
			inSiege(t, func(t *testing.T, s *besieged) {
				p := s.dialIn("evil")
				script(p)
				s.converges()
				p.ends(time.Minute)
				until(t, "only the honest peer is connected", func() bool { return replicator.Connections(s.n.r) == 1 })
			})
		})
	}
	for step, script := range map[string]hostileScript{
		"connected":    func(p *wirePeer) {},
		"half a hello": func(p *wirePeer) { p.Write(wireFrame(wireHello, newWireHi().payload())[:40]) },
		"hello":        func(p *wirePeer) { p.say(wireHello, newWireHi().payload()) },
		"accept":       func(p *wirePeer) { p.say(wireHello, newWireHi().payload()); p.say(wireAccept, []byte{1}) },
	} {
		t.Run("dialled, "+step, func(t *testing.T) {
			inSiege(t, func(t *testing.T, s *besieged) {
				l := s.net.Listen("evil")
				var wg sync.WaitGroup
				wg.Go(func() {
					for {
						nc, err := l.Accept()
						if err != nil {
							return
						}
						p := &wirePeer{t, nc}
						if s.member {
							p = &wirePeer{t, tls.Server(nc, memberTLS())}
						}
						wg.Go(func() {
							script(p)
							io.Copy(io.Discard, p)
							p.Close()
						})
					}
				})
				require.NoError(t, s.n.r.AddPeer("evil", nil))
				s.converges()
				until(t, "the silent peer is given up", func() bool { return s.n.peer("evil").LastError != "" })
				s.converges()
				require.NoError(t, s.n.r.RemovePeer("evil"))
				l.Close()
				wg.Wait()
			})
		})
	}
}

// TestHostileReadsNothing: a peer that asks again and again, and reads no answer, is given
// up when the link is full.
func TestHostileReadsNothing(t *testing.T) {
	inSiege(t, func(t *testing.T, s *besieged) {
		s.n.fill("large", 0, 50, 30_000)
		p := s.dialIn("evil")
		p.join(newWireHi())
		p.say(wirePull, wireFullPull())
		s.converges()
		until(t, "it is given up", func() bool { return replicator.Connections(s.n.r) == 1 })
		p.Close()
	})
}

// TestHostileTrickle: a byte a second keeps a session, but neither a handshake nor
// anybody else waiting.
func TestHostileTrickle(t *testing.T) {
	trickle := func(p *wirePeer, b []byte) {
		for i := range b {
			if _, err := p.Write(b[i : i+1]); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}
	hi := newWireHi()
	value := wireEntry{key: "slow", clock: 5, origin: hi.epoch, value: strings.Repeat("v", 300)}
	for what, script := range map[string]hostileScript{
		"a hello": func(p *wirePeer) {
			begin := time.Now()
			trickle(p, wireFrame(wireHello, hi.payload()))
			require.Less(p.t, time.Since(begin), 30*time.Second)
		},
		"a page": func(p *wirePeer) { p.join(hi); trickle(p, wireFrame(wirePage, wireFullPage(hi.epoch, 9, value))) },
		"values": func(p *wirePeer) {
			p.join(hi)
			p.say(wirePage, wireFullPage(hi.epoch, 9, wireEntry{key: "slow", clock: 5, origin: hi.epoch, size: 300}))
			p.await(wireFetch, 9)
			trickle(p, wireFrame(wireValues, value.append([]byte{1, 0, 1})))
		},
		"a frame of 16 MiB": func(p *wirePeer) {
			p.join(hi)
			trickle(p, append([]byte("\x01\x00\x00\x00\x08"), make([]byte, 300)...))
		},
		"pings": func(p *wirePeer) { p.join(hi); trickle(p, bytes.Repeat(wireFrame(wirePing, []byte{1}), 30)) },
	} {
		t.Run(what, func(t *testing.T) {
			inSiege(t, func(t *testing.T, s *besieged) {
				p := s.dialIn("evil")
				p.SetDeadline(time.Time{})
				done := make(chan struct{})
				go func() {
					defer close(done)
					script(p)
					p.Close()
				}()
				// A new replica has to read everything, while that one is in its turn.
				s.n.fill("much", 0, 2000, 10)
				for trickling := true; trickling; {
					s.converges()
					select {
					case <-done:
						trickling = false
					case <-time.After(10 * time.Second):
					}
				}
				if what == "a page" || what == "values" {
					s.n.arrives("slow", value.value)
				}
			})
		})
	}
}

// TestHostileHalfOpen: where the link to a peer dies without a word, its session ends, and
// others go on meanwhile.
func TestHostileHalfOpen(t *testing.T) {
	inSiege(t, func(t *testing.T, s *besieged) {
		p := s.dialIn("evil")
		p.join(newWireHi())
		p.say(wirePull, wireFullPull())
		s.net.Freeze("evil", "n0")
		for range 30 { // more than the link takes
			s.n.fill("key", 0, 10, 10_000)
			s.converges()
		}
		until(t, "the session is given up", func() bool { return replicator.Sessions(s.n.r) == 1 })
		require.Equal(t, 1, replicator.Connections(s.n.r))
		s.net.Thaw("evil", "n0")
		p.Close()
	})
}

// TestHostileReplay: who sends again what an honest peer sent in an older session changes
// nothing, whether that peer is there or not.
func TestHostileReplay(t *testing.T) {
	t.Run("to who decides", func(t *testing.T) { hostileReplay(t, true) })
	t.Run("to who does not", func(t *testing.T) { hostileReplay(t, false) })
}

// hostileReplay has a session played again to the replica with the smaller id, which
// decides which connection stays, or to the other one.
func hostileReplay(t *testing.T, decides bool) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		n, honest := c.nodes[0], c.nodes[1]
		c.link(1, 0)
		var mu sync.Mutex
		var sessions []*bytes.Buffer // what the honest peer sent in each
		for n.open(); ; n.replaceDisk(simtest.NewDisk()) {
			n.open()
			honest.open(dialOnly)
			a, b := n.r.Status().ID, honest.r.Status().ID
			honest.close()
			if (bytes.Compare(a[:], b[:]) < 0) == decides {
				break
			}
		}
		honest.open(func(o *replicator.Options) {
			dial := o.Dial
			o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				nc, err := dial(ctx, addr)
				if err != nil {
					return nil, err
				}
				mu.Lock()
				defer mu.Unlock()
				sessions = append(sessions, new(bytes.Buffer))
				return sentConn{nc, &mu, sessions[len(sessions)-1]}, nil
			}
		})
		step := func(value string) {
			honest.put("key", value)
			n.put("another", value)
			n.arrives("key", value)
			honest.arrives("another", value)
		}
		replay := func(of int) {
			mu.Lock()
			sent := bytes.Clone(sessions[of].Bytes())
			mu.Unlock()
			p := c.dialHostile("evil", n, false)
			require.NoError(t, p.SetDeadline(time.Now().Add(5*time.Second)))
			p.Write(sent)
			io.Copy(io.Discard, p)
			p.Close()
		}
		step("first")
		for i := range 3 { // sessions with something in each
			c.net.Partition([]string{"n0"}, []string{"n1"})
			honest.delete("key")
			c.net.Heal()
			step(fmt.Sprint("later ", i))
		}
		mu.Lock()
		count := len(sessions)
		mu.Unlock()
		require.GreaterOrEqual(t, count, 4)
		for of := range count {
			before, vector := n.state(), replicator.Vector(n.r)
			replay(of)
			require.True(t, before.equal(n.state()), "session %d again, beside its sender's", of)
			require.Equal(t, vector, replicator.Vector(n.r))
			step(fmt.Sprint("after ", of))
			mu.Lock()
			require.Len(t, sessions, count, "session %d again ended that of its sender", of)
			mu.Unlock()
		}
		c.net.Isolate("n1")
		time.Sleep(time.Minute)
		honest.put("key", "meanwhile")
		for of := range count {
			before, vector := n.state(), replicator.Vector(n.r)
			replay(of)
			require.True(t, before.equal(n.state()), "session %d again, without its sender", of)
			require.Equal(t, vector, replicator.Vector(n.r))
		}
		c.net.Heal()
		n.arrives("key", "meanwhile")
		step("at last")
		c.settleDown()
	})
}

// sentConn keeps what is sent.
type sentConn struct {
	net.Conn
	mu   *sync.Mutex
	sent *bytes.Buffer
}

func (c sentConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.sent.Write(b)
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// TestHostileCrowd: a thousand connections at once, from one address and from many, in
// each state that a stranger can get into.
func TestHostileCrowd(t *testing.T) {
	scripts := hostileScripts()
	for where, from := range map[string]func(i int) string{
		"from one address":     func(int) string { return "evil" },
		"from many addresses":  func(i int) string { return fmt.Sprint("evil", i) },
		"from a few addresses": func(i int) string { return fmt.Sprint("evil", i%20) },
	} {
		t.Run(where, func(t *testing.T) {
			inSiege(t, func(t *testing.T, s *besieged) {
				var all []*wirePeer
				for i := range 1000 {
					p := s.dialIn(from(i))
					all = append(all, p)
					switch i % 4 {
					case 0:
						go scripts["half a hello"](p)
					case 1:
						go scripts["hello"](p)
					case 2:
						go p.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
					}
				}
				s.converges()
				require.Less(t, replicator.Connections(s.n.r), 300)
				if from(0) == from(1) { // from elsewhere, others still get in
					s.nodes[1].close()
					s.nodes[1].open(func(o *replicator.Options) {
						if change := hostileWays["a member"]; s.member {
							change(o)
						}
					})
					s.converges()
				}
				time.Sleep(time.Minute)
				s.converges()
				require.Equal(t, 1, replicator.Connections(s.n.r))
				require.Less(t, s.refusals(), 130)
				for _, p := range all {
					p.Close()
				}
			})
		})
	}
}

// TestHostileFlood: a connection a millisecond, for a minute. What is refused is told of at
// a bounded rate, and counted.
func TestHostileFlood(t *testing.T) {
	inSiege(t, func(t *testing.T, s *besieged) {
		hello, garbage := wireFrame(wireHello, newWireHi().payload()), []byte(noise(100))
		connections := budget(5_000, 60_000, 60_000)
		if s.member {
			connections = budget(5_000, 20_000, 60_000)
		}
		for i := range connections {
			// Those that have the key are few: the handshakes are what takes time here.
			p := s.dialHostile(fmt.Sprint("evil", i%50), s.n, s.member && i%20 == 0)
			go func() {
				defer p.Close()
				switch i % 5 {
				case 0:
					p.Write(hello)
				case 1:
					p.Write(garbage)
				case 2:
					p.Write(hello[:20])
				case 3:
					return
				}
				io.Copy(io.Discard, p)
			}()
			time.Sleep(time.Millisecond)
			if i%1000 == 0 {
				s.converges()
			}
		}
		time.Sleep(30 * time.Second)
		require.Equal(t, 1, replicator.Connections(s.n.r))
		require.NotZero(t, s.refusals())
		require.Less(t, s.refusals(), 300)
		require.NotEmpty(t, s.n.r.Status().Refused)
	})
}

// TestHostileFloodOverTCP is TestHostileFlood in real time, for 10 s, over TCP, from several
// loopback addresses.
func TestHostileFloodOverTCP(t *testing.T) {
	if !*long {
		t.Skip("it takes 20 s; only with -long")
	}
	for way, change := range hostileWays {
		t.Run(way, func(t *testing.T) {
			h, good := newHost(t, change), newHost(t, change)
			require.NoError(t, good.AddPeer(h.Addr().String(), nil))
			require.NoError(t, good.syncWithin(5*time.Second))
			hello, garbage, heap := wireFrame(wireHello, newWireHi().payload()), []byte(noise(100)), heapInUse()
			var wg sync.WaitGroup
			ticker := time.NewTicker(time.Millisecond)
			defer ticker.Stop()
			begin, connected := time.Now(), 0
			for i := 0; time.Since(begin) < 10*time.Second; i++ {
				<-ticker.C
				from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%8))}, Timeout: 5 * time.Second}
				nc, err := from.Dial("tcp", h.Addr().String())
				require.NoError(t, err)
				connected++
				wg.Go(func() {
					defer nc.Close()
					nc.SetDeadline(time.Now().Add(5 * time.Second))
					switch i % 4 {
					case 0:
						nc.Write(hello)
					case 1:
						nc.Write(garbage)
					case 2:
						nc.Write(hello[:20])
					}
					io.Copy(io.Discard, nc)
				})
				if i%500 == 0 {
					mark := fmt.Sprint(i)
					require.NoError(t, good.Put([]byte("mark"), []byte(mark), nil))
					require.True(t, pollFor(2*time.Second, func() bool { v, err := h.Get([]byte("mark"), nil); return err == nil && string(v) == mark }))
					require.Less(t, int64(heapInUse())-int64(heap), int64(maxSiege))
				}
			}
			wg.Wait()
			require.Less(t, strings.Count(h.log.String(), "level=WARN"), 100)
			t.Logf("%d connections", connected)
			h.goesOn()
		})
	}
}
