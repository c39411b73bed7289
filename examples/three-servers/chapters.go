package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
)

func (s *story) start(context.Context) error {
	for i := range s.servers {
		// The system chooses free ports, so the peers are added afterwards.
		if err := s.open(i, &replicator.Options{Listen: "127.0.0.1:0"}); err != nil {
			return err
		}
		s.addrs[i] = s.servers[i].Addr().String()
		s.say("server %d listens on %s", i+1, s.addrs[i])
	}
	return s.join()
}

func (s *story) load(ctx context.Context) error {
	began := time.Now()
	var counts [3]int
	var sizes [3]int64
	err := s.everywhere(func(i int, v *server) error {
		for n := i; n < len(s.paths) && ctx.Err() == nil; n += len(s.servers) {
			content, err := fs.ReadFile(s.files, s.paths[n])
			if err != nil {
				return err
			}
			if err := v.Put([]byte(s.paths[n]), content, nil); err != nil {
				return err
			}
			counts[i]++
			sizes[i] += int64(len(content))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range counts {
		s.say("server %d wrote %d files, %s", i+1, counts[i], humanSize(sizes[i]))
	}
	s.say("all files were written after %.2f s", time.Since(began).Seconds())
	if err := s.settle(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	if err := s.everywhere(func(_ int, v *server) error { return s.checkFiles(v) }); err != nil {
		return err
	}
	s.say("each of the three held all %d files, %s, after %.2f s",
		len(s.paths), humanSize(sizes[0]+sizes[1]+sizes[2]), took.Seconds())
	return nil
}

// checkFiles compares the values on a server to the files.
func (s *story) checkFiles(v *server) error {
	for _, path := range s.paths {
		want, err := fs.ReadFile(s.files, path)
		if err != nil {
			return err
		}
		got, err := v.Get([]byte(path), nil)
		if err != nil {
			return fmt.Errorf("get %s: %w", path, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s differs from the file", path)
		}
	}
	return nil
}

func (s *story) conflict(ctx context.Context) error {
	if err := s.part(ctx); err != nil {
		return err
	}
	// Replicas that agree have equal clocks. So one write on each server is a tie, and
	// a server that writes twice is ahead.
	tie, err := s.writeApart("greeting", [3]int{1, 1, 1})
	if err != nil {
		return err
	}
	ahead, err := s.writeApart("farewell", [3]int{2, 1, 1})
	if err != nil {
		return err
	}
	s.say("the servers are joined again")
	if err := errors.Join(s.join(), s.settle(ctx)); err != nil {
		return err
	}
	return errors.Join(s.checkWinner("greeting", tie), s.checkWinner("farewell", ahead))
}

// writeApart writes a key on every server, as often as times says, and returns the stamps
// of the last writes.
func (s *story) writeApart(key string, times [3]int) (stamps [3]replicator.Stamp, err error) {
	for i, v := range s.servers {
		value := spoken(key, i)
		for range times[i] {
			if err := v.Put([]byte(key), []byte(value), nil); err != nil {
				return stamps, err
			}
		}
		version, err := v.Version([]byte(key))
		if err != nil {
			return stamps, err
		}
		stamps[i] = version.Stamp
		often := [...]string{1: "once", 2: "twice"}[times[i]]
		s.say("server %d writes %q %s, stamp %v", i+1, value, often, version)
	}
	for i, v := range s.servers {
		if got, err := v.Get([]byte(key), nil); err != nil || string(got) != spoken(key, i) {
			return stamps, fmt.Errorf("server %d, alone, reads %q (error: %v)", i+1, got, err)
		}
	}
	return stamps, nil
}

func spoken(key string, i int) string { return fmt.Sprintf("%s from server %d", key, i+1) }

// checkWinner checks that the greatest of the stamps has won on all servers.
func (s *story) checkWinner(key string, stamps [3]replicator.Stamp) error {
	winner := 0
	for i, stamp := range stamps {
		if stamp.Compare(stamps[winner]) > 0 {
			winner = i
		}
	}
	why := "its clock is the greatest"
	for i, stamp := range stamps {
		if i != winner && stamp.Clock == stamps[winner].Clock {
			why = "of those with the greatest clock, its origin is the greatest"
		}
	}
	want := spoken(key, winner)
	for i, v := range s.servers {
		value, err := v.Get([]byte(key), nil)
		if err != nil {
			return err
		}
		version, err := v.Version([]byte(key))
		if err != nil {
			return err
		}
		if string(value) != want || version.Stamp != stamps[winner] {
			return fmt.Errorf("server %d reads %q, stamp %v, and should read %q", i+1, value, version, want)
		}
	}
	s.say("all read %q: %s", want, why)
	return nil
}

func (s *story) remove(ctx context.Context) error {
	key := []byte(s.paths[0])
	if err := s.servers[1].Delete(key, nil); err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	err := s.everywhere(func(_ int, v *server) error {
		if _, err := v.Get(key, nil); !errors.Is(err, leveldb.ErrNotFound) {
			return fmt.Errorf("%s is still there (error: %v)", key, err)
		}
		version, err := v.Version(key)
		if err == nil && !version.Deleted {
			err = fmt.Errorf("%s is gone, but was not deleted", key)
		}
		return err
	})
	if err != nil {
		return err
	}
	s.say("server 2 deleted %s: it is gone on all three", key)
	return nil
}

func (s *story) comeBack(ctx context.Context) error {
	if err := s.servers[2].Close(); err != nil {
		return err
	}
	s.servers[2] = nil
	const missed = 100
	for n := range missed {
		if err := s.servers[n%2].Put(missedKey(n), []byte("written while server 3 was away"), nil); err != nil {
			return err
		}
	}
	// SyncNow would report that server 3 can't be reached.
	if err := until(ctx, func() bool { return hasMissed(s.servers[0], missed) && hasMissed(s.servers[1], missed) }); err != nil {
		return fmt.Errorf("servers 1 and 2 do not get each other's keys: %w", err)
	}
	s.say("server 3 is closed; servers 1 and 2 write %d keys", missed)

	// Server 3 need not be reachable, because a session serves both directions.
	peers := map[string]replicator.Meta{s.addrs[0]: nil, s.addrs[1]: nil}
	if err := s.open(2, &replicator.Options{Peers: peers}); err != nil {
		return err
	}
	if err := s.servers[2].SyncNow(ctx); err != nil {
		return err
	}
	if !hasMissed(s.servers[2], missed) {
		return errors.New("server 3 does not have the keys that it missed")
	}
	s.say("server 3 is back, dials the others, and has all of them")

	var fetched int64
	for _, p := range s.servers[2].Status().Peers {
		fetched += p.RecordsIn
	}
	// Both neighbours can send every record, and neither sends a record twice.
	const most = 2 * missed
	if fetched < missed || fetched > most {
		return fmt.Errorf("server 3 was sent %d records instead of %d to %d", fetched, missed, most)
	}
	s.say("it was sent only the %d records after its checkpoints (%d if one neighbour sends them,", fetched, missed)
	s.say("%d if both do), of %d records in the logs of the two", most, s.servers[0].Status().LogRecords+s.servers[1].Status().LogRecords)
	return nil
}

func hasMissed(v *server, missed int) bool {
	for n := range missed {
		if ok, err := v.Has(missedKey(n), nil); !ok || err != nil {
			return false
		}
	}
	return true
}

func missedKey(n int) []byte { return fmt.Appendf(nil, "missed-%03d", n) }

func (s *story) compare(context.Context) error {
	var digests [3]replicator.Digest
	err := s.everywhere(func(i int, v *server) (err error) {
		digests[i], err = v.Digest()
		return err
	})
	if err != nil {
		return err
	}
	for i, d := range digests {
		s.say("server %d: %d keys, %s, digest of keys, values and stamps", i+1, d.Keys, humanSize(d.Bytes))
		s.say("  %v", d)
		if d != digests[0] {
			err = errors.Join(err, fmt.Errorf("servers 1 and %d differ", i+1))
		}
	}
	return err
}
