package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/level-replicator/replicator"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

// server is a leveldb database and the Replicator that wraps it.
type server struct {
	*replicator.Replicator
	db *leveldb.DB
}

func openServer(dir string, o *replicator.Options) (*server, error) {
	// Without this setting goleveldb can hang after a failed write.
	db, err := leveldb.OpenFile(dir, &opt.Options{DisableLargeBatchTransaction: true})
	if err != nil {
		return nil, fmt.Errorf("open the database in %s: %w", dir, err)
	}
	o.MaxValueSize = maxFileSize
	r, err := replicator.Open(db, o)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &server{r, db}, nil
}

// Close closes the Replicator and then the handle, which we still own after Open.
func (s *server) Close() error {
	return errors.Join(s.Replicator.Close(), s.db.Close())
}

// config holds the settings of one server.
type config struct {
	number      int
	dir, listen string
	peers       []string
}

// serve runs one server until the command quit, the end of the input, or the end of ctx.
func serve(ctx context.Context, c config, stdin io.Reader, stdout io.Writer) (err error) {
	peers := map[string]replicator.Meta{}
	for _, addr := range c.peers {
		peers[addr] = nil
	}
	s, err := openServer(c.dir, &replicator.Options{Listen: c.listen, Peers: peers})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	fmt.Fprintf(stdout, "server %d listens on %v\n", c.number, s.Addr())
	fmt.Fprintf(stdout, "its data is in %s, its peers are %s\n", c.dir, strings.Join(c.peers, " and "))
	fmt.Fprintln(stdout, "type help for a list of commands")
	lines := readLines(ctx, stdin)
	for {
		select {
		case <-ctx.Done():
			return nil
		case line, ok := <-lines:
			if !ok {
				return nil
			}
			err := s.command(ctx, stdout, line)
			if errors.Is(err, errQuit) {
				return nil
			}
			if err != nil {
				fmt.Fprintln(stdout, "error:", err)
			}
		}
	}
}

// readLines sends the lines of r. A read cannot be interrupted: if ctx is done first, the
// goroutine stays in its read, and ends with the process.
func readLines(ctx context.Context, r io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		in := bufio.NewReader(r)
		for {
			line, err := in.ReadString('\n')
			if line = strings.TrimSpace(line); line != "" {
				select {
				case lines <- line:
				case <-ctx.Done():
				}
			}
			if err != nil || ctx.Err() != nil {
				return
			}
		}
	}()
	return lines
}

const help = `put KEY VALUE   set a key, which has no spaces, to the rest of the line
get KEY         print a value
del KEY         delete a key
list [PREFIX]   print the keys and how their values begin
load DIR        put every regular file below DIR, with its path as the key
status          print the state of this server and its peers
quit            stop`

var errQuit = errors.New("quit")

// command executes one line of input.
func (s *server) command(ctx context.Context, out io.Writer, line string) error {
	name, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	if rest == "" && (name == "put" || name == "get" || name == "del" || name == "load") {
		return fmt.Errorf("%s of what? type help for a list of commands", name)
	}
	switch name {
	case "put":
		key, value, ok := strings.Cut(rest, " ")
		if !ok {
			return errors.New("put needs a key and a value")
		}
		return s.Put([]byte(key), []byte(strings.TrimSpace(value)), nil)
	case "get":
		value, err := s.Get([]byte(rest), nil)
		if err == nil {
			fmt.Fprintln(out, printable(value))
		}
		return err
	case "del":
		return s.Delete([]byte(rest), nil)
	case "list":
		return s.list(out, rest)
	case "load":
		return s.load(ctx, out, rest)
	case "status":
		s.printStatus(out)
	case "help":
		fmt.Fprintln(out, help)
	case "quit":
		return errQuit
	default:
		return fmt.Errorf("unknown command %q: type help for a list of commands", name)
	}
	return nil
}

// printable returns text unchanged, and quotes bytes that could disturb a terminal.
func printable(b []byte) string {
	control := func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }
	if text := string(b); utf8.Valid(b) && !strings.ContainsFunc(text, control) {
		return text
	}
	return fmt.Sprintf("%q", b)
}

func (s *server) list(out io.Writer, prefix string) error {
	it := s.NewIterator(util.BytesPrefix([]byte(prefix)), nil)
	defer it.Release()
	n := 0
	for ; it.Next(); n++ {
		fmt.Fprintf(out, "%s = %.40q, %d bytes\n", printable(it.Key()), it.Value(), len(it.Value()))
	}
	fmt.Fprintf(out, "%d keys\n", n)
	return it.Error()
}

func (s *server) load(ctx context.Context, out io.Writer, dir string) error {
	fsys := os.DirFS(dir)
	paths, tooLarge, err := regularFiles(fsys, func(string) bool { return true })
	if err != nil {
		return err
	}
	var size int64
	for _, path := range paths {
		content, err := fs.ReadFile(fsys, path)
		if err == nil {
			err = errors.Join(ctx.Err(), s.Put([]byte(path), content, nil))
		}
		if err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
		size += int64(len(content))
	}
	fmt.Fprintf(out, "loaded %d files, %s; %d were too large\n", len(paths), humanSize(size), tooLarge)
	return nil
}

func (s *server) printStatus(out io.Writer) {
	st := s.Status()
	fmt.Fprintf(out, "listens on %s, database id %v\n", st.Listening, st.ID)
	fmt.Fprintf(out, "clock %d, %d records in the log, head %d\n", st.Clock, st.LogRecords, st.Head)
	if st.Failed != "" {
		fmt.Fprintf(out, "refuses writes: %s\n", st.Failed)
	}
	for _, p := range st.Peers {
		fmt.Fprintf(out, "peer %s: %s", p.Addr, p.State)
		if p.DialedBy != "" {
			fmt.Fprintf(out, ", dialled by %s", p.DialedBy)
		} else if p.LastError != "" {
			fmt.Fprintf(out, ", %s", p.LastError)
		}
		fmt.Fprintf(out, "\n  we are behind by %s records, the peer has not confirmed %s records\n", figure(p.Behind), figure(p.Unconfirmed))
		fmt.Fprintf(out, "  received %d records, %s; sent %d records, %s\n",
			p.RecordsIn, humanSize(p.BytesIn), p.RecordsOut, humanSize(p.BytesOut))
	}
}

// figure formats a figure that may be unknown.
func figure(n *uint64) string {
	if n == nil {
		return "an unknown number of"
	}
	return fmt.Sprint(*n)
}
