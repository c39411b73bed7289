package replicator_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// The environment of the process that is killed.
const (
	killDir    = "REPLICATOR_TEST_DIR"
	killMoment = "REPLICATOR_TEST_MOMENT"
	killKeys   = "REPLICATOR_TEST_KEYS"
)

// killProgress is how many keys are in the index, at both ends.
type killProgress struct{ source, target uint64 }

// adoptedKeys is how many keys there are. With the race detector, which makes
// goleveldb ten times slower, there are a few less.
func adoptedKeys() uint64 {
	if keys, err := strconv.ParseUint(os.Getenv(killKeys), 10, 64); err == nil {
		return keys
	}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return 20_000
	}
	return uint64(budget(20_000, 50_000, 500_000))
}

var killMoments = []struct {
	name    string
	reached func(p killProgress, keys uint64) bool
}{
	{"early in adoption", func(p killProgress, keys uint64) bool { return p.source >= keys/20 }},
	{"during the pull", func(p killProgress, keys uint64) bool { return p.target >= keys/5 }},
	{"late in the pull", func(p killProgress, keys uint64) bool { return p.target >= keys*7/10 }},
	{"never", func(killProgress, uint64) bool { return false }},
}

// TestAdoptionSurvivesKills adopts a large database, in real files, and brings it to
// an empty peer over real TCP, in a process that gets a SIGKILL three times on the
// way.
func TestAdoptionSurvivesKills(t *testing.T) {
	t.Parallel()
	dir, keys := t.TempDir(), adoptedKeys()
	key := func(i uint64) []byte { return fmt.Appendf(nil, "key %06d", i) }
	value := func(i uint64) []byte { return fmt.Appendf(nil, "value of key %d, written before", i) }
	db, err := leveldb.OpenFile(filepath.Join(dir, "source"), nil)
	require.NoError(t, err)
	var b leveldb.Batch
	for i := range keys {
		b.Put(key(i), value(i))
		if b.Len() == 1000 {
			require.NoError(t, db.Write(&b, nil))
			b.Reset()
		}
	}
	require.NoError(t, db.Close())

	var last killProgress
	for i, moment := range killMoments {
		runUntilKilled(t, dir, moment.name, keys)
		now := killProgress{indexedKeys(t, filepath.Join(dir, "source")), indexedKeys(t, filepath.Join(dir, "target"))}
		t.Logf("killed %s: %+v", moment.name, now)
		if moment.name == "never" {
			require.Equal(t, killProgress{keys, keys}, now)
			break
		}
		require.True(t, moment.reached(now, keys), "what was there when it was killed is there")
		require.True(t, now.source >= last.source && now.target >= last.target)
		require.Less(t, [...]uint64{now.source, now.target, now.target}[i], keys, "it was interrupted")
		last = now
	}

	var digests []replicator.Digest
	for _, name := range []string{"source", "target"} {
		r, err := replicator.OpenFile(filepath.Join(dir, name), nil, nil)
		require.NoError(t, err)
		defer r.Close()
		it := r.NewIterator(nil, nil)
		for i := range keys {
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
	require.EqualValues(t, keys, digests[0].Keys)
}

// runUntilKilled runs TestKilledProcess in a process of its own.
func runUntilKilled(t *testing.T, dir, moment string, keys uint64) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
	cmd.Env = append(os.Environ(), killDir+"="+dir, killMoment+"="+moment, fmt.Sprint(killKeys, "=", keys))
	output, err := cmd.CombinedOutput()
	if moment == "never" {
		require.NoError(t, err, "%s", output)
		return
	}
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit) && !exit.Exited(), "it was not killed: %v\n%s", err, output)
}

func indexedKeys(t *testing.T, path string) (n uint64) {
	db, err := leveldb.OpenFile(path, nil)
	require.NoError(t, err)
	defer db.Close()
	it := db.NewIterator(util.BytesPrefix([]byte(reservedPrefix+"i")), nil)
	defer it.Release()
	for it.Next() {
		n++
	}
	require.NoError(t, it.Error())
	return n
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
	target, err := replicator.OpenFile(filepath.Join(dir, "target"), nil, nil)
	require.NoError(t, err)
	source, err := replicator.OpenFile(filepath.Join(dir, "source"), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	require.NoError(t, target.AddPeer(source.Addr().String(), nil))
	self, err := os.FindProcess(os.Getpid())
	require.NoError(t, err)
	synced := make(chan error, 1)
	for syncing := false; ; {
		adoption := source.Status().Adoption
		if reached(killProgress{adoption.Adopted, target.Status().Head}, adoptedKeys()) {
			require.NoError(t, self.Kill())
			select {}
		}
		if adoption.Done && !syncing {
			syncing = true
			go func() { synced <- target.SyncNow(t.Context()) }()
		}
		select {
		case err := <-synced:
			require.NoError(t, err)
			require.NoError(t, target.Close())
			require.NoError(t, source.Close())
			return
		case <-time.After(time.Millisecond):
		}
	}
}
