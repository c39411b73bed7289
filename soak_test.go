package replicator_test

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// This file owns the soak: processes that write to replicas over real TCP and real files,
// and are killed every few seconds, for as long as one likes.
//
//	go test -run '^TestSoakOfProcesses$' -long -soak 20m -timeout 30m .

var soakFor = flag.Duration("soak", 2*time.Minute, "how long TestSoakOfProcesses runs with -long")

const (
	soakReplicas = 3
	soakKeys     = 150 // own keys of each replica, and as many that all write
	soakLog      = 1000
	soakFiles    = 24 << 20 // bytes that a replica may take: three small tables, and journals
)

// The environment of a process of the soak.
const (
	soakDir  = "REPLICATOR_SOAK_DIR"
	soakSelf = "REPLICATOR_SOAK_SELF"
	soakLife = "REPLICATOR_SOAK_LIFE"
	soakAt   = "REPLICATOR_SOAK_AT" // the addresses of all, separated by spaces
)

// soakOp is an operation on a key that only one replica writes.
type soakOp struct {
	key     string
	value   string // unless deleted
	deleted bool
}

// soakKey is what the test knows of such a key.
type soakKey struct {
	done  soakOp   // the last one that was acknowledged
	maybe []soakOp // those after it that were begun
}

// soakProcess is a process that writes to one replica.
type soakProcess struct {
	t     *testing.T
	env   []string
	self  int
	life  int
	cmd   *exec.Cmd
	in    io.WriteCloser
	said  chan string // answers to commands
	ended chan struct{}

	mu   sync.Mutex
	keys map[string]*soakKey
	ops  int
}

// start runs the process, and takes in what it says.
func (p *soakProcess) start() {
	p.life++
	p.cmd = exec.Command(os.Args[0], "-test.run=^TestSoakProcess$", "-test.timeout=24h")
	p.cmd.Env = append(append(os.Environ(), p.env...), fmt.Sprint(soakSelf, "=", p.self), fmt.Sprint(soakLife, "=", p.life))
	var err error
	p.in, err = p.cmd.StdinPipe()
	require.NoError(p.t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(p.t, err)
	p.cmd.Stderr = os.Stderr
	require.NoError(p.t, p.cmd.Start())
	p.said, p.ended = make(chan string, 100), make(chan struct{})
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.hear(lines.Text())
		}
	}()
}

func (p *soakProcess) hear(line string) {
	word, rest, _ := strings.Cut(line, " ")
	p.mu.Lock()
	defer p.mu.Unlock()
	key, value, put := strings.Cut(rest, " ")
	op := soakOp{key, value, !put}
	switch word {
	case "try":
		k := p.keys[key]
		if k == nil {
			k = &soakKey{}
			p.keys[key] = k
		}
		k.maybe = append(k.maybe, op)
	case "done":
		*p.keys[key] = soakKey{done: op}
		p.ops++
	case "said":
		p.said <- rest
	default:
		p.t.Log(line)
	}
}

// kill kills the process, and returns once all that it has said is taken in.
func (p *soakProcess) kill() {
	require.NoError(p.t, p.cmd.Process.Kill())
	<-p.ended
	_ = p.cmd.Wait()
}

// ask sends a command, and returns the answer.
func (p *soakProcess) ask(command string) string {
	_, err := fmt.Fprintln(p.in, command)
	require.NoError(p.t, err)
	select {
	case answer := <-p.said:
		return answer
	case <-p.ended:
		require.Fail(p.t, "the process has ended", "%s", command)
	case <-time.After(time.Minute):
		require.Fail(p.t, "no answer", "%s", command)
	}
	return ""
}

// TestSoakOfProcesses kills replicas that write and let their logs expire, and finds that
// they end equal, that nothing acknowledged is lost, and that their files do not grow.
func TestSoakOfProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds of real time")
	}
	t.Parallel()
	soak := 2 * time.Second
	lives := 700 * time.Millisecond
	if *long {
		soak, lives = *soakFor, 3*time.Second
	}
	dir := t.TempDir()
	var at []string
	for range soakReplicas {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		at = append(at, l.Addr().String())
		defer l.Close()
		l.Close()
	}
	rng := rand.New(rand.NewPCG(uint64(*seed), 1))
	var processes []*soakProcess
	for i := range soakReplicas {
		p := &soakProcess{t: t, self: i, keys: map[string]*soakKey{},
			env: []string{soakDir + "=" + dir, soakAt + "=" + strings.Join(at, " ")}}
		p.start()
		processes = append(processes, p)
		defer func() { _ = p.cmd.Process.Kill() }()
	}
	kills, most := 0, int64(0)
	for end := time.Now().Add(soak); time.Now().Before(end); {
		time.Sleep(time.Duration(float64(lives) * (0.5 + rng.Float64())))
		p := processes[rng.IntN(soakReplicas)]
		p.kill()
		kills++
		if rng.IntN(3) == 0 { // the others go on without it
			time.Sleep(lives / 2)
		}
		for i := range soakReplicas {
			most = max(most, sizeOf(filepath.Join(dir, fmt.Sprint("n", i))))
		}
		p.start()
	}

	for _, p := range processes {
		require.Equal(t, "stopped", p.ask("stop"))
	}
	equal := func() bool {
		first := processes[0].ask("digest")
		return first == processes[1].ask("digest") && first == processes[2].ask("digest")
	}
	require.Eventually(t, equal, 2*time.Minute, 100*time.Millisecond, "the replicas do not become equal")
	for i, p := range processes {
		t.Logf("replica %d: %s tombstones reaped since its last start", i, p.ask("reaped"))
		require.Equal(t, "closed", p.ask("close"))
		<-p.ended
		require.NoError(t, p.cmd.Wait())
	}
	for i, p := range processes {
		t.Logf("replica %d: %d lives, %d operations on %d keys of its own", i, p.life, p.ops, len(p.keys))
		require.NotZero(t, p.ops)
		p.check(dir)
	}
	t.Logf("%d kills in %v; at most %.1f MiB of files", kills, soak, float64(most)/(1<<20))
	require.Less(t, most, int64(soakFiles))
}

// check finds in every replica the last operation on each of the process's keys.
func (p *soakProcess) check(dir string) {
	for i := range soakReplicas {
		r, err := replicator.OpenFile(filepath.Join(dir, fmt.Sprint("n", i)), nil, nil)
		require.NoError(p.t, err)
		require.NoError(p.t, replicator.CheckConsistent(r))
		for key, k := range p.keys {
			value, err := r.Get([]byte(key), nil)
			now := soakOp{key, string(value), err != nil}
			if now != k.done && !slices.Contains(k.maybe, now) && (k.done.key != "" || !now.deleted) {
				require.Failf(p.t, "lost", "replica %d: %s is %+v, after %+v", i, key, now, *k)
			}
		}
		require.NoError(p.t, r.Close())
	}
}

// sizeOf returns how many bytes of files there are below a directory.
func sizeOf(dir string) (size int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil
	})
	return size
}

// TestSoakProcess is a process of TestSoakOfProcesses.
func TestSoakProcess(t *testing.T) {
	dir := os.Getenv(soakDir)
	if dir == "" {
		t.Skip("run by TestSoakOfProcesses")
	}
	self, err := strconv.Atoi(os.Getenv(soakSelf))
	require.NoError(t, err)
	at := strings.Fields(os.Getenv(soakAt))
	o := replicator.Options{Listen: at[self], Peers: map[string]replicator.Meta{}, MaxLogRecords: soakLog, TombstoneAge: time.Second}
	for i, addr := range at {
		if i != self {
			o.Peers[addr] = nil
		}
	}
	o = *replicator.WithExpiry(*replicator.WithDurable(o, time.Second), 50*time.Millisecond, soakLog/10)
	r, err := replicator.OpenFile(filepath.Join(dir, fmt.Sprint("n", self)), &opt.Options{WriteBuffer: 256 << 10}, &o)
	require.NoError(t, err)

	commands := make(chan string)
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			commands <- lines.Text()
		}
		os.Exit(1) // the test is gone
	}()
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
	rng := rand.New(rand.NewPCG(uint64(self), uint64(time.Now().UnixNano())))
	writing := true
	for n := 0; ; n++ {
		var pause <-chan time.Time
		if writing {
			soakWrite(t, r, rng, self, n, say)
			pause = time.After(time.Duration(rng.IntN(2000)) * time.Microsecond)
		}
		select {
		case <-pause:
		case command := <-commands:
			switch command {
			case "stop":
				writing = false
				say("said stopped")
			case "digest":
				d, err := r.Digest()
				require.NoError(t, err)
				say("said %v", d)
			case "reaped":
				say("said %d", r.Status().Tombstones.Reaped)
			case "close":
				require.NoError(t, r.Close())
				say("said closed")
				return
			}
		}
	}
}

// soakWrite does one operation, on an own key that the test is told of, or on one of all.
func soakWrite(t *testing.T, r *replicator.Replicator, rng *rand.Rand, self, n int, say func(string, ...any)) {
	number := rng.IntN(soakKeys)
	value := fmt.Sprintf("%s.%d.%s", os.Getenv(soakLife), n, strings.Repeat("v", rng.IntN(200)))
	deleted := rng.IntN(4) == 0
	key := fmt.Sprintf("own-%d-%d", self, number)
	shared := rng.IntN(3) == 0
	if shared {
		key = fmt.Sprint("shared-", number)
		say = func(string, ...any) {}
	}
	if deleted {
		say("try %s", key)
		require.NoError(t, r.Delete([]byte(key), nil))
		say("done %s", key)
		return
	}
	say("try %s %s", key, value)
	require.NoError(t, r.Put([]byte(key), []byte(value), nil))
	say("done %s %s", key, value)
}
