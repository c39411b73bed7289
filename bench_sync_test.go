//go:build unix

package replicator_test

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// replica is a Replicator on disk, with the handle that it wraps.
type replica struct {
	*replicator.Replicator
	db  *leveldb.DB
	dir string
}

func newReplica(b *testing.B) *replica { return openReplica(b, tempDir(b)) }

func openReplica(b *testing.B, dir string) *replica { return newReplicaOf(b, openDB(b, dir), dir) }

func newReplicaOf(b *testing.B, db *leveldb.DB, dir string) *replica {
	return newReplicaWith(b, db, dir, &replicator.Options{})
}

// newReplicaWith is newReplicaOf with options, but for where it listens.
func newReplicaWith(b *testing.B, db *leveldb.DB, dir string, o *replicator.Options) *replica {
	o.Listen = "127.0.0.1:0"
	r, err := replicator.Open(db, o)
	require.NoError(b, err)
	return &replica{r, db, dir}
}

func (a *replica) close(b *testing.B) {
	require.NoError(b, a.Close())
	require.NoError(b, a.db.Close())
}

func (a *replica) remove(b *testing.B) {
	a.close(b)
	require.NoError(b, os.RemoveAll(a.dir))
}

// fill writes entries, in batches.
func (a *replica) fill(b *testing.B, order []int) {
	store{add: (*leveldb.Batch).Put, write: a.Write}.fill(b, order, 1000)
}

// pull makes a replica dial another, and returns when it has merged all that
// the other holds.
func (a *replica) pull(b *testing.B, from *replica) {
	require.NoError(b, a.AddPeer(from.Addr().String(), nil))
	a.sync(b)
}

// sync is SyncNow.
func (a *replica) sync(b *testing.B) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	require.NoError(b, a.SyncNow(ctx))
}

// part undoes pull, and returns when the other side has noticed.
func (a *replica) part(b *testing.B, from *replica) {
	require.NoError(b, a.RemovePeer(from.Addr().String()))
	for len(from.Status().Peers) > 0 {
		time.Sleep(time.Millisecond)
	}
}

// traffic sums up what the replica and its peers have sent each other.
func (a *replica) traffic() (t replicator.PeerStatus) {
	for _, p := range a.Status().Peers {
		t.BytesIn += p.BytesIn
		t.BytesOut += p.BytesOut
		t.RecordsIn += p.RecordsIn
	}
	return t
}

// settle waits until leveldb has nothing left to compact.
func settle(b *testing.B, replicas ...*replica) {
	for _, a := range replicas {
		var before, now leveldb.DBStats
		for same := 0; same < 10; same++ {
			time.Sleep(50 * time.Millisecond)
			require.NoError(b, a.db.Stats(&now))
			if now.IOWrite != before.IOWrite || now.IORead != before.IORead {
				same = 0
			}
			before = now
		}
	}
}

func benchFirstSync(b *testing.B) {
	n := *entries
	straight := rate(b, n, straightStore, func(s store) { s.fill(b, ascending(0, n), 1000) })
	for _, c := range []struct {
		name       string
		order      []int
		ofStraight float64
	}{
		{"first sync, written in key order", ascending(0, n), 1.1},
		{"first sync, written in random order", shuffled(0, n), 1.1},
	} {
		if !wanted(c.name) {
			continue
		}
		a := newReplica(b)
		a.fill(b, c.order)
		settle(b, a)
		m := medians(3, straight, func() float64 {
			z := newReplica(b)
			defer z.remove(b)
			start := time.Now()
			z.pull(b, a)
			elapsed := time.Since(start)
			require.GreaterOrEqual(b, z.Status().Head, uint64(n))
			return float64(n) / elapsed.Seconds()
		})
		report(b, figure{name: c.name, ours: m[1], unit: "entries/s", other: m[0], than: "straight", atLeast: c.ofStraight})
		if c.order[1] == 1 {
			report(b, figure{name: c.name, ours: m[1], unit: "entries/s", other: 250_000, than: "limit", atLeast: 1})
		}
		a.remove(b)
	}
}

func benchCatchUp(b *testing.B) {
	const rounds = 3
	missed := *entries / 5
	total := *entries + (rounds-1)*missed // the first round ends with entries
	for _, c := range []struct {
		name       string
		order      []int
		ofStraight float64
	}{
		{"catch-up by log, written in key order", ascending(0, total), 0.5},
		{"catch-up by log, written in random order", shuffled(0, total), 0.5},
	} {
		if !wanted(c.name) {
			continue
		}
		a, z := newReplica(b), newReplica(b)
		db := openDB(b, tempDir(b))
		s := straightStore(b, db)
		known := *entries - missed
		a.fill(b, c.order[:known])
		s.fill(b, c.order[:known], 1000)
		z.pull(b, a)
		next := c.order[known:]
		settle(b, a, z, &replica{db: db})
		var straight, ours []float64
		for range rounds {
			z.part(b, a)
			a.fill(b, next[:missed])
			settle(b, a)
			start := time.Now()
			z.pull(b, a)
			ours = append(ours, float64(missed)/time.Since(start).Seconds())
			settle(b, z)
			start = time.Now()
			s.fill(b, next[:missed], 1000)
			straight = append(straight, float64(missed)/time.Since(start).Seconds())
			settle(b, &replica{db: db})
			next = next[missed:]
		}
		require.GreaterOrEqual(b, z.Status().Head, uint64(total))
		require.NoError(b, db.Close())
		a.remove(b)
		z.remove(b)
		report(b, figure{
			name: c.name, ours: quantile(ours, 0.5), unit: "entries/s",
			other: quantile(straight, 0.5), than: "straight", atLeast: c.ofStraight,
		})
	}
}

func benchDelta(b *testing.B) {
	const duration, volume = "time for 100 changed keys", "bytes for 100 changed keys"
	if !wanted(duration, volume) {
		return
	}
	const small, changed, rounds = 10_000, 100, 5
	var bytes [2][]float64
	var delta [2]func() float64
	for i, size := range []int{small, *entries} {
		keys := shuffled(0, size)
		a, z := newReplica(b), newReplica(b)
		defer a.close(b)
		defer z.close(b)
		a.fill(b, ascending(0, size))
		z.pull(b, a)
		settle(b, a, z)
		delta[i] = func() float64 {
			before := z.traffic()
			z.part(b, a)
			a.fill(b, keys[:changed])
			keys = keys[changed:]
			start := time.Now()
			z.pull(b, a)
			elapsed := time.Since(start)
			time.Sleep(time.Second) // the acknowledgement counts
			after := z.traffic()
			bytes[i] = append(bytes[i], float64(after.BytesIn+after.BytesOut-before.BytesIn-before.BytesOut))
			return float64(elapsed.Microseconds()) / 1000
		}
	}
	m := medians(rounds, delta[:]...)
	than := "of 10,000 keys"
	report(b, figure{name: duration, ours: m[1], unit: "ms", other: m[0], than: than, atMost: 1.3})
	report(b, figure{name: volume, ours: quantile(bytes[1], 0.5), unit: "bytes",
		other: quantile(bytes[0], 0.5), than: than, atMost: 1.5})
}

func benchLatency(b *testing.B) {
	const p50, p99 = "put to readable, p50", "put to readable, p99"
	const loadedP50, loadedP99, theLoad = "put to readable under load, p50", "put to readable under load, p99", "the load"
	benchChain(b)
	benchFollower(b)
	if !wanted(p50, p99, loadedP50, loadedP99, theLoad) {
		return
	}
	samples := min(5000, *entries/20)
	a, z := newReplica(b), newReplica(b)
	defer a.close(b)
	defer z.close(b)
	z.pull(b, a)
	if wanted(p50, p99) {
		echo := quantile(echoRoundTrips(b, samples, 0), 0.5)
		paced := echoRoundTrips(b, samples, time.Millisecond)
		quiet := latencies(b, a, z, samples, 0)
		half, most := quantile(quiet, 0.5), quantile(quiet, 0.99)
		report(b, figure{name: p50, ours: half, unit: "µs", other: echo, than: "TCP echo"})
		report(b, figure{name: p50, ours: half, unit: "µs", other: quantile(paced, 0.5), than: "TCP echo, one each ms", atMost: 2.4})
		report(b, figure{name: p50, ours: half, unit: "µs", other: 100, than: "limit", atMost: 1})
		report(b, figure{name: p99, ours: most, unit: "µs", other: quantile(paced, 0.99), than: "TCP echo, one each ms", atMost: 2.6})
		report(b, figure{name: p99, ours: most, unit: "µs", other: 1000, than: "limit", atMost: 1})
	}
	if !wanted(loadedP50, loadedP99, theLoad) {
		return
	}
	const load = 20_000
	stop, done := make(chan struct{}), make(chan float64)
	go func() { done <- putSteadily(b, a, load, stop) }()
	time.Sleep(500 * time.Millisecond)
	loaded := latencies(b, a, z, samples, samples)
	close(stop)
	reached := <-done
	report(b, figure{name: loadedP50, ours: quantile(loaded, 0.5), unit: "µs", other: 2000, than: "limit", atMost: 1})
	report(b, figure{name: loadedP99, ours: quantile(loaded, 0.99), unit: "µs", other: 2000, than: "limit", atMost: 1})
	report(b, figure{name: theLoad, ours: reached, unit: "puts/s", other: load, than: "wanted", atLeast: 0.98})
}

// benchFollower measures what a follower costs whoever puts one by one, as fast as the
// follower can keep up with.
func benchFollower(b *testing.B) {
	n := *entries / 5
	for _, c := range []struct {
		order   string
		keys    []int
		atLeast float64
		atMost  float64
	}{
		{"ascending keys", ascending(0, n), 0.55, 1.3},
		{"random keys", shuffled(0, n), 0, 0},
	} {
		rate, cpu := "puts that a follower keeps up with, "+c.order, "CPU of both sides, a put, "+c.order
		if !wanted(rate, cpu) {
			continue
		}
		var cpus [2][]float64
		var work [2]func() float64
		for i := range work {
			work[i] = func() float64 {
				a := newReplica(b)
				defer a.remove(b)
				lag := func() int { return 0 }
				if i == 1 {
					z := newReplica(b)
					defer z.remove(b)
					z.pull(b, a)
					before := z.Status().Head - a.Status().Head // what has no record
					lag = func() int { return int(a.Status().Head + before - z.Status().Head) }
				}
				used, start := cpuTime(b), time.Now()
				putWithin(b, a, c.keys, lag)
				elapsed := time.Since(start)
				cpus[i] = append(cpus[i], float64((cpuTime(b)-used).Nanoseconds())/1000/float64(n))
				return float64(n) / elapsed.Seconds()
			}
		}
		m := medians(3, work[:]...)
		report(b, figure{name: rate, ours: m[1], unit: "puts/s", other: m[0], than: "alone", atLeast: c.atLeast})
		report(b, figure{name: cpu, ours: quantile(cpus[1], 0.5), unit: "µs", other: quantile(cpus[0], 0.5), than: "alone", atMost: c.atMost})
	}
}

// putWithin puts keys one by one, and returns when nobody lags behind. It waits while
// somebody does by more than a part of what is kept in memory.
func putWithin(b *testing.B, a *replica, keys []int, lag func() int) {
	const most, every = 10_000, 500
	var key []byte
	for i, n := range keys {
		key = appendKey(key[:0], n)
		if err := a.Put(key, testValue(n, valueSize), nil); err != nil {
			b.Fatal(err)
		}
		for i%every == 0 && lag() > most {
			time.Sleep(time.Millisecond)
		}
	}
	for lag() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// benchChain measures how long a put takes through a chain of five, compared to a pair.
func benchChain(b *testing.B) {
	const name = "put to readable over a chain of five, p50"
	if !wanted(name) {
		return
	}
	samples := min(1000, *entries/20)
	through := func(replicas int) func() float64 {
		return func() float64 {
			var chain []*replica
			for i := range replicas {
				chain = append(chain, newReplica(b))
				defer chain[i].close(b)
				if i > 0 {
					chain[i].pull(b, chain[i-1])
				}
			}
			return quantile(latencies(b, chain[0], chain[replicas-1], samples, 0), 0.5)
		}
	}
	m := medians(3, through(2), through(5))
	report(b, figure{name: name, ours: m[1], unit: "µs", other: m[0], than: "a pair", atMost: 5})
}

// latencies puts a key each millisecond on one replica, and returns the microseconds
// after which it could be read on the other. It looks there after each commit, and does
// not poll, which would take one of two cores. It gives up early if the other can't keep
// up.
func latencies(b *testing.B, a, z *replica, samples, first int) (µs []float64) {
	const patience = 30 * time.Second
	commits, stop := replicator.Commits(z.Replicator)
	defer stop()
	over := time.After(patience)
	for i := first; i < first+samples; i++ {
		key := appendKey(nil, i)
		start := time.Now()
		if err := a.Put(key, testValue(i, valueSize), nil); err != nil {
			b.Fatal(err)
		}
		for !z.has(b, key) {
			select {
			case <-commits:
			case <-over:
				return µs
			}
		}
		elapsed := time.Since(start)
		µs = append(µs, float64(elapsed.Nanoseconds())/1000)
		time.Sleep(time.Millisecond - elapsed)
	}
	return µs
}

// has reports whether there is a key.
func (a *replica) has(b *testing.B, key []byte) bool {
	_, err := a.Get(key, nil)
	if err != nil && err != leveldb.ErrNotFound {
		b.Fatal(err)
	}
	return err == nil
}

// putSteadily puts other keys until stopped, and returns how many a second.
func putSteadily(b *testing.B, a *replica, perSecond int, stop <-chan struct{}) float64 {
	const other = 1 << 30 // above the keys of latencies
	start := time.Now()
	for n := 0; ; {
		select {
		case <-stop:
			return float64(n) / time.Since(start).Seconds()
		case <-time.After(100 * time.Microsecond):
		}
		for due := int(time.Since(start).Seconds() * float64(perSecond)); n < due; n++ {
			if err := a.Put(appendKey(nil, other+n), testValue(n, valueSize), nil); err != nil {
				b.Error(err)
			}
		}
	}
}

// echoRoundTrips returns the microseconds that small messages take over
// loopback TCP to a goroutine that sends them back, and home.
func echoRoundTrips(b *testing.B, samples int, pause time.Duration) (µs []float64) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		message := make([]byte, valueSize)
		for err == nil {
			if _, err = io.ReadFull(c, message); err == nil {
				_, err = c.Write(message)
			}
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(b, err)
	defer c.Close()
	message := make([]byte, valueSize)
	for range samples {
		start := time.Now()
		_, err := c.Write(message)
		require.NoError(b, err)
		_, err = io.ReadFull(c, message)
		require.NoError(b, err)
		µs = append(µs, float64(time.Since(start).Nanoseconds())/1000)
		time.Sleep(pause)
	}
	return µs
}

func benchTraffic(b *testing.B) {
	for _, c := range []struct {
		name   string
		size   int
		atMost float64
	}{
		{"bytes received in a mesh of three, values of 4 KiB", 4 << 10, 1.1},
		{"bytes received in a mesh of three, values of 100 bytes", 100, 1.15},
	} {
		if wanted(c.name) {
			in, _, payload := spread(b, 3, c.size)
			report(b, figure{name: c.name, ours: in[1] + in[2], unit: "bytes", other: 2 * payload, than: "payload", atMost: c.atMost})
		}
	}
	const bytesBack, recordsBack = "bytes that come back between two", "records that come back between two"
	if wanted(bytesBack, recordsBack) {
		in, records, payload := spread(b, 2, 100)
		report(b, figure{name: bytesBack, ours: in[0], unit: "bytes", other: payload, than: "payload"})
		report(b, figure{name: recordsBack, ours: records[0], unit: "records", other: 10_000, than: "sent", atMost: 0.5 / 10_000})
	}
	const needless = "records sent to a replica that has them, mesh of five, all writing"
	if wanted(needless) {
		sent, needed := steadyMesh(b, 5)
		report(b, figure{name: needless, ours: sent - needed, unit: "records", other: needed, than: "needed", atMost: 0.05})
	}
	benchThird(b)
	benchAfterPowerCut(b)
}

// steadyMesh has all replicas of a mesh write for some seconds, and returns how many
// records were received, and how many had to be.
func steadyMesh(b *testing.B, replicas int) (received, needed float64) {
	const perSecond, lasting = 200, 5 * time.Second
	mesh := newMesh(b, replicas)
	before := 0.0
	for _, a := range mesh {
		defer a.close(b)
		before += float64(a.traffic().RecordsIn)
	}
	stop := make(chan struct{})
	var writing sync.WaitGroup
	made := make([]int, replicas)
	for i, a := range mesh {
		writing.Go(func() {
			ticker := time.NewTicker(time.Second / perSecond)
			defer ticker.Stop()
			for j := i; ; j += replicas { // each has keys of its own
				select {
				case <-stop:
					return
				case <-ticker.C:
				}
				if err := a.Put(appendKey(nil, j), testValue(j, valueSize), nil); err != nil {
					b.Error(err)
					return
				}
				made[i]++
			}
		})
	}
	time.Sleep(lasting)
	close(stop)
	writing.Wait()
	time.Sleep(2 * time.Second)
	digest, err := mesh[0].Digest()
	require.NoError(b, err)
	for i, a := range mesh {
		other, err := a.Digest()
		require.NoError(b, err)
		require.Equal(b, digest, other)
		received += float64(a.traffic().RecordsIn)
		needed += float64(made[i] * (replicas - 1))
	}
	return received - before, needed
}

// newMesh returns replicas that all know each other, and have nothing more to tell.
func newMesh(b *testing.B, replicas int) []*replica {
	mesh := make([]*replica, replicas)
	for i := range mesh {
		mesh[i] = newReplica(b)
		for _, other := range mesh[:i] {
			mesh[i].pull(b, other)
		}
	}
	time.Sleep(time.Second)
	return mesh
}

// benchThird has a replica join two that are equal: what one has sent, the other
// need not send.
func benchThird(b *testing.B) {
	const name = "bytes received by a third replica that joins two equal ones"
	if !wanted(name) {
		return
	}
	a, z := newReplica(b), newReplica(b)
	defer a.close(b)
	defer z.close(b)
	a.fill(b, ascending(0, *entries))
	z.pull(b, a)
	join := func(peers ...*replica) float64 {
		n := newReplica(b)
		defer n.remove(b)
		for _, peer := range peers {
			require.NoError(b, n.AddPeer(peer.Addr().String(), nil))
		}
		n.sync(b)
		_, err := n.Get(appendKey(nil, *entries-1), nil)
		require.NoError(b, err)
		return float64(n.traffic().BytesIn)
	}
	m := medians(3, func() float64 { return join(a) }, func() float64 { return join(a, z) })
	report(b, figure{name: name, ours: m[1], unit: "bytes", other: m[0], than: "one copy", atMost: 1.02})
}

// benchAfterPowerCut has a replica lose changes that it had merged, and some that it
// had made, in a power cut.
func benchAfterPowerCut(b *testing.B) {
	const name = "bytes received after a power cut that took 100 changes"
	if !wanted(name) {
		return
	}
	a, z := newReplica(b), newReplica(b)
	defer a.close(b)
	a.fill(b, ascending(0, *entries))
	z.pull(b, a)
	z.close(b) // all is durable now
	z = openReplica(b, z.dir)
	z.pull(b, a)
	kept := tempDir(b)
	require.NoError(b, os.CopyFS(kept, os.DirFS(z.dir)))
	for i := range 50 {
		require.NoError(b, a.Put(appendKey(nil, i), testValue(i+1, valueSize), nil))
		require.NoError(b, z.Put(appendKey(nil, i+50), testValue(i+1, valueSize), nil))
	}
	a.pull(b, z)
	z.sync(b)
	require.NoError(b, a.RemovePeer(z.Addr().String()))
	z.close(b)

	db := openDB(b, kept)
	r, err := replicator.Open(db, replicator.WithBootID(replicator.Options{Listen: "127.0.0.1:0"}, "the next one"))
	require.NoError(b, err)
	after := &replica{r, db, kept}
	defer after.close(b)
	after.pull(b, a)
	for i := range 100 {
		value, err := after.Get(appendKey(nil, i), nil)
		require.NoError(b, err)
		require.Equal(b, testValue(i%50+1, valueSize), value)
	}
	report(b, figure{name: name, ours: float64(after.traffic().BytesIn), unit: "bytes", other: 64 << 10, than: "limit", atMost: 1})
}

// spread writes 10,000 entries on the first replica of a mesh, and returns what
// each replica received until all was quiet.
func spread(b *testing.B, replicas, size int) (bytes, records []float64, payload float64) {
	const n = 10_000
	mesh := newMesh(b, replicas)
	var before []replicator.PeerStatus
	for _, a := range mesh {
		defer a.close(b)
		before = append(before, a.traffic())
	}
	for i := range n {
		key, value := appendKey(nil, i), testValue(i, size)
		require.NoError(b, mesh[0].Put(key, value, nil))
		payload += float64(len(key) + len(value))
	}
	time.Sleep(3 * time.Second)
	for i, a := range mesh {
		_, err := a.Get(appendKey(nil, n-1), nil)
		require.NoError(b, err)
		after := a.traffic()
		bytes = append(bytes, float64(after.BytesIn-before[i].BytesIn))
		records = append(records, float64(after.RecordsIn-before[i].RecordsIn))
	}
	return bytes, records, payload
}
