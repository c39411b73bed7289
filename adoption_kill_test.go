package replicator_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
)

// killDir and killMoment are the environment of the process that is killed.
const (
	killDir    = "REPLICATOR_TEST_DIR"
	killMoment = "REPLICATOR_TEST_MOMENT"
)

// killReport is what that process says at its start and, unless it is killed, at
// its end.
type killReport struct {
	Adopted uint64 // keys taken in at the source
	Done    bool   // adoption
	Arrived uint64 // keys at the target
}

// adoptedKeys is how many keys there are: with the race detector, which makes
// goleveldb ten times slower, a few less.
var adoptedKeys = func() uint64 {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return 20_000
	}
	return 100_000
}()

var killMoments = []struct {
	name    string
	reached func(killReport) bool
}{
	{"early in adoption", func(k killReport) bool { return k.Adopted >= adoptedKeys/20 }},
	{"during the pull", func(k killReport) bool { return k.Arrived >= adoptedKeys/5 }},
	{"late in the pull", func(k killReport) bool { return k.Arrived >= adoptedKeys*7/10 }},
	{"never", func(killReport) bool { return false }},
}

// TestAdoptionSurvivesKills adopts a database of 100,000 keys, in real files, and
// brings it to an empty peer over real TCP, in a process that gets a SIGKILL three
// times on the way.
func TestAdoptionSurvivesKills(t *testing.T) {
	dir := t.TempDir()
	key := func(i uint64) []byte { return fmt.Appendf(nil, "key %06d", i) }
	value := func(i uint64) []byte { return fmt.Appendf(nil, "value of key %d, written before", i) }
	db, err := leveldb.OpenFile(filepath.Join(dir, "source"), nil)
	require.NoError(t, err)
	var b leveldb.Batch
	for i := range adoptedKeys {
		b.Put(key(i), value(i))
		if b.Len() == 1000 {
			require.NoError(t, db.Write(&b, nil))
			b.Reset()
		}
	}
	require.NoError(t, db.Close())

	var starts []killReport
	for _, moment := range killMoments {
		reports := runUntilKilled(t, dir, moment.name, moment.name != "never")
		t.Logf("process to be killed %s: %+v", moment.name, reports)
		starts = append(starts, reports[0])
	}
	require.False(t, starts[1].Done, "adoption was interrupted")
	for i := 2; i <= 3; i++ {
		require.True(t, killMoments[i-1].reached(starts[i]), "what was merged is there")
		require.Less(t, starts[i].Arrived, adoptedKeys, "the pull was interrupted")
	}
	if runtime.GOOS == "linux" { // elsewhere an opening after a kill does not continue the last one
		require.True(t, killMoments[0].reached(starts[1]), "what was adopted is")
	}

	var digests []replicator.Digest
	for _, name := range []string{"source", "target"} {
		r, err := replicator.OpenFile(filepath.Join(dir, name), nil, nil)
		require.NoError(t, err)
		defer r.Close()
		it := r.NewIterator(nil, nil)
		for i := range adoptedKeys {
			if !it.Next() || !bytes.Equal(key(i), it.Key()) || !bytes.Equal(value(i), it.Value()) {
				require.Failf(t, "keys differ", "%s: at %d there is %q: %q, %v", name, i, it.Key(), it.Value(), it.Error())
			}
		}
		require.False(t, it.Next())
		it.Release()
		require.NoError(t, replicator.CheckConsistent(r))
		d, err := r.Digest()
		require.NoError(t, err)
		digests = append(digests, d)
	}
	require.Equal(t, digests[0], digests[1])
	require.EqualValues(t, adoptedKeys, digests[0].Keys)
}

// runUntilKilled runs TestKilledProcess in a process of its own, and returns
// what that reported.
func runUntilKilled(t *testing.T, dir, moment string, kill bool) (reports []killReport) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
	cmd.Env = append(os.Environ(), killDir+"="+dir, killMoment+"="+moment)
	output, err := cmd.CombinedOutput()
	for line := range bytes.Lines(output) {
		var report killReport
		if json.Unmarshal(line, &report) == nil {
			reports = append(reports, report)
		}
	}
	require.NotEmpty(t, reports, "%v\n%s", err, output)
	if !kill {
		require.NoError(t, err, "%s", output)
		return reports
	}
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit) && !exit.Exited(), "it was not killed: %v\n%s", err, output)
	return reports
}

// TestKilledProcess is the process that TestAdoptionSurvivesKills runs. Once the
// moment is reached it sends the SIGKILL itself: from outside, the moment might be
// over when it arrives.
func TestKilledProcess(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		t.Skip("run by TestAdoptionSurvivesKills")
	}
	reached := killMoments[0].reached
	for _, moment := range killMoments {
		if moment.name == os.Getenv(killMoment) {
			reached = moment.reached
		}
	}
	source, err := replicator.OpenFile(filepath.Join(dir, "source"), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	target, err := replicator.OpenFile(filepath.Join(dir, "target"), nil, &replicator.Options{
		Peers: map[string]replicator.Meta{source.Addr().String(): nil},
	})
	require.NoError(t, err)
	observe := func() killReport {
		s := source.Status().Adoption
		return killReport{Adopted: s.Adopted, Done: s.Done, Arrived: target.Status().Head}
	}
	tell := func(k killReport) {
		line, err := json.Marshal(k)
		require.NoError(t, err)
		fmt.Printf("%s\n", line)
	}
	self, err := os.FindProcess(os.Getpid())
	require.NoError(t, err)
	tell(observe())
	synced := make(chan error, 1)
	for syncing := false; ; {
		now := observe()
		if reached(now) {
			require.NoError(t, self.Kill())
			select {}
		}
		if now.Done && !syncing {
			syncing = true
			go func() { synced <- target.SyncNow(t.Context()) }()
		}
		select {
		case err := <-synced:
			require.NoError(t, err)
			require.NoError(t, target.Close())
			require.NoError(t, source.Close())
			tell(observe())
			return
		case <-time.After(time.Millisecond):
		}
	}
}
