package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/level-replicator/replicator"
)

// patience bounds the duration of the story. The story never sleeps: it waits for
// conditions.
const patience = 2 * time.Minute

// story is told on three servers. They are counted from 0 in the code, and from 1 in the
// output.
type story struct {
	out     io.Writer
	dir     string
	servers [3]*server
	addrs   [3]string

	files fs.FS
	paths []string
}

// tell tells the story with the given number of files, or with all files if it is 0. The
// first failed check ends the story.
func tell(ctx context.Context, out io.Writer, files int) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the story was not over after %v", patience))
	defer cancel()
	s := &story{out: out}
	if s.files, s.paths, err = standardLibrary(ctx); err != nil {
		return err
	}
	if files > 0 {
		s.paths = s.paths[:min(files, len(s.paths))]
	}
	if s.dir, err = os.MkdirTemp("", "three-servers-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(), os.RemoveAll(s.dir)) }()

	for i, chapter := range []struct {
		title string
		tell  func(context.Context) error
	}{
		{"Three servers start, each with its own leveldb database.", s.start},
		{"Each server writes a third of the source of Go's standard library, all at once.", s.load},
		{"All three write the same keys while they cannot reach each other.", s.conflict},
		{"A file is deleted on one server.", s.remove},
		{"One server is closed, misses some writes, and comes back.", s.comeBack},
		{"All three are compared.", s.compare},
	} {
		fmt.Fprintf(out, "%d. %s\n", i+1, chapter.title)
		if err := chapter.tell(ctx); err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	fmt.Fprintln(out, "Every check passed.")
	return nil
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "   "+format+"\n", args...)
}

// everywhere calls do for all servers concurrently.
func (s *story) everywhere(do func(i int, v *server) error) error {
	var errs [3]error
	var wg sync.WaitGroup
	for i, v := range s.servers {
		wg.Go(func() {
			if err := do(i, v); err != nil {
				errs[i] = fmt.Errorf("server %d: %w", i+1, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

// settle returns once the servers agree. The first round brings every change to every
// server. In the second round, each server also reads the records that its peers added to
// their logs in the first.
func (s *story) settle(ctx context.Context) error {
	for range 2 {
		if err := s.everywhere(func(_ int, v *server) error { return v.SyncNow(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) open(i int, o *replicator.Options) (err error) {
	s.servers[i], err = openServer(filepath.Join(s.dir, fmt.Sprintf("server-%d", i+1)), o)
	return err
}

func (s *story) close() error {
	var errs []error
	for _, v := range s.servers {
		if v != nil {
			errs = append(errs, v.Close())
		}
	}
	return errors.Join(errs...)
}

// join makes every server a peer of the two others.
func (s *story) join() error {
	return s.everywhere(func(i int, v *server) error {
		for j, addr := range s.addrs {
			if j != i {
				if err := v.AddPeer(addr, nil); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// part undoes join, and returns once there are no sessions.
func (s *story) part(ctx context.Context) error {
	err := s.everywhere(func(i int, v *server) error {
		for j, addr := range s.addrs {
			if j != i {
				if err := v.RemovePeer(addr); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.everywhere(func(_ int, v *server) error {
		return until(ctx, func() bool { return len(v.Status().Peers) == 0 })
	})
}

// until polls until a condition holds, or ctx is done.
func until(ctx context.Context, holds func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
