// Command stream tells another process what changes in a database, a JSON object in a line
// for each change, and goes on where that process has stopped:
//
//	go run ./examples/stream -dir data -from "$cursor"
//
// Without arguments, it shows itself at work: it reads the lines of a stream that it kills
// again and again, and checks that it has got everything in the end. It leaves nothing
// behind:
//
//	go run ./examples/stream
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"

	"github.com/level-replicator/replicator"
)

func main() {
	dir := flag.String("dir", "", "stream the changes of the database in this `directory`")
	from := flag.String("from", "", "a `cursor` behind which to begin")
	count := flag.Int("count", 0, "write so many changes meanwhile, and end when they are told")
	flag.Parse()
	var err error
	if *dir == "" {
		err = run(os.Stdout, os.Args[0])
	} else {
		err = stream(*dir, *from, *count, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stream:", err)
		os.Exit(1)
	}
}

// line is a line of the stream.
type line struct {
	Key     string            `json:"key"`
	Value   string            `json:"value,omitempty"`
	Deleted bool              `json:"deleted,omitempty"`
	Cursor  replicator.Cursor `json:"cursor"` // go on from here once this line has had its effect
}

// stream writes what changes behind a cursor.
func stream(dir, from string, count int, out io.Writer) (err error) {
	var cursor replicator.Cursor
	if err := cursor.UnmarshalText([]byte(from)); err != nil {
		return err
	}
	r, err := replicator.OpenFile(dir, nil, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	written := make(chan error, 1)
	go func() { written <- work(r, count) }()
	lines := json.NewEncoder(out)
	for change, err := range r.Changes(context.Background(), cursor) {
		if err != nil {
			return err // with ErrCursor, the reader has to forget all, and to begin with ""
		}
		if err := lines.Encode(line{string(change.Key), string(change.Value), change.Deleted, change.Cursor}); err != nil {
			return err
		}
		if string(change.Key) == "end" {
			break
		}
	}
	return <-written
}

// work stands for what a program does with its database: it puts and deletes keys. It goes on
// where an earlier process was killed.
func work(r *replicator.Replicator, count int) error {
	if count == 0 {
		return nil
	}
	first := 0
	if text, err := r.Get([]byte("count"), nil); err == nil {
		if _, err := fmt.Sscan(string(text), &first); err != nil {
			return err
		}
	}
	for i := first; i < count; i++ {
		key := fmt.Appendf(nil, "key %d", i%17)
		err := r.Put(key, fmt.Append(nil, i), nil)
		if i%5 == 0 {
			err = errors.Join(err, r.Delete(key, nil))
		}
		if err = errors.Join(err, r.Put([]byte("count"), fmt.Append(nil, i), nil)); err != nil {
			return err
		}
	}
	return r.Put([]byte("end"), nil, nil)
}

const (
	changes = 400 // that are made
	between = 150 // lines from one kill to the next
)

// run tells the story, and returns the first check that failed. self is the path of this
// program.
func run(out io.Writer, self string) error {
	dir, err := os.MkdirTemp("", "replicator-stream-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	copied, cursor := map[string]string{}, ""
	kills, told := 0, 0
	for ended := false; !ended; {
		cmd := exec.Command(self, "-dir", dir, "-from", cursor, "-count", fmt.Sprint(changes))
		cmd.Stderr = os.Stderr
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		// A process that is killed leaves half a line. Only whole lines count.
		lines, killed := bufio.NewReader(pipe), false
		for n := 1; ; n++ {
			text, err := lines.ReadBytes('\n')
			if err != nil {
				break
			}
			var l line
			if err := json.Unmarshal(text, &l); err != nil {
				return err
			}
			if l.Deleted {
				delete(copied, l.Key)
			} else {
				copied[l.Key] = l.Value
			}
			cursor = l.Cursor.String() // a reader that keeps what it gets on disk writes both together
			told++
			ended = ended || l.Key == "end"
			if n == between && !ended {
				if err := cmd.Process.Kill(); err != nil {
					return err
				}
				kills, killed = kills+1, true
			}
		}
		if err := cmd.Wait(); err != nil && !killed {
			return err
		}
	}
	fmt.Fprintf(out, "The stream was killed %d times, and told %d changes.\n", kills, told)
	if kills == 0 {
		return errors.New("it was never killed")
	}
	r, err := replicator.OpenFile(dir, nil, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	there := map[string]string{}
	it := r.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		there[string(it.Key())] = string(it.Value())
	}
	if err := it.Error(); err != nil {
		return err
	}
	if !maps.Equal(there, copied) {
		return fmt.Errorf("the reader has %v, and the database %v", copied, there)
	}
	fmt.Fprintf(out, "The reader has all %d keys of the database, and no others.\nEvery check passed.\n", len(there))
	return nil
}
