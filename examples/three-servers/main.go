// Command three-servers shows three databases that replicate one another.
//
// Without arguments, it tells the whole story in one process, checks every step, and
// leaves nothing behind:
//
//	go run ./examples/three-servers
//
// With -http, three servers in one process are shown and operated by a browser:
//
//	go run ./examples/three-servers -http 127.0.0.1:8080
//
// With -server, it is one of the three servers. Start each in its own terminal:
//
//	go run ./examples/three-servers -server 1
//	go run ./examples/three-servers -server 2
//	go run ./examples/three-servers -server 3
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "three-servers:", err)
		os.Exit(1)
	}
}

// defaultAddrs are the addresses of servers 1, 2 and 3.
var defaultAddrs = []string{"127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8002"}

// run is the program: the story, the demo, or one server.
func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("three-servers", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the caller prints the error
	var c config
	files := flags.Int("files", 0, "take only the first `N` files into the story; 0 means all")
	web := flags.String("http", "", "show three servers to a browser at `ADDR`, such as 127.0.0.1:8080")
	flags.IntVar(&c.number, "server", 0, "be server `N`, 1 to 3, and read commands from standard input")
	flags.StringVar(&c.dir, "dir", "", "keep the server's data in `DIR`, by default three-servers/server-N in the system's\ntemporary folder")
	flags.StringVar(&c.listen, "listen", "", "accept peers at `ADDR`, by default 127.0.0.1:8000, 8001 or 8002")
	flags.Func("peers", "dial the peers at `A,B`, by default the two others; empty means none", func(list string) error {
		c.peers = slices.DeleteFunc(strings.Split(list, ","), func(addr string) bool { return addr == "" })
		return nil
	})

	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stdout, "usage: three-servers [-files N] | -http ADDR | -server N [-dir DIR] [-listen ADDR] [-peers A,B]")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return fmt.Errorf("%w (-help lists the flags)", err)
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q (-help lists the flags)", flags.Arg(0))
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })

	if given["http"] {
		if len(given) > 1 {
			return errors.New("-http excludes the other flags")
		}
		return demonstrate(ctx, *web, stdout)
	}
	if !given["server"] {
		if given["dir"] || given["listen"] || given["peers"] {
			return errors.New("-dir, -listen and -peers need -server")
		}
		if *files < 0 {
			return fmt.Errorf("-files is %d, and must not be negative", *files)
		}
		return tell(ctx, stdout, *files)
	}
	if given["files"] {
		return errors.New("-files and -server exclude each other")
	}
	if c.number < 1 || c.number > len(defaultAddrs) {
		return fmt.Errorf("-server is %d, and must be 1, 2 or 3", c.number)
	}
	if c.dir == "" {
		c.dir = filepath.Join(os.TempDir(), "three-servers", fmt.Sprintf("server-%d", c.number))
	}
	if c.listen == "" {
		c.listen = defaultAddrs[c.number-1]
	}
	if !given["peers"] {
		c.peers = slices.Delete(slices.Clone(defaultAddrs), c.number-1, c.number)
	}
	return serve(ctx, c, stdin, stdout)
}
