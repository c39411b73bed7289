// Command replicator looks after replicated databases: it shows what a database holds,
// compares two, runs a replica, and watches replicas that run in other programs.
//
//	go install github.com/level-replicator/replicator/cmd/replicator@latest
//	replicator help
//
// Its output with -json is a contract, which docs/COMMAND.md describes.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// This file owns how the arguments lead to a command, and the exit codes.

// Exit codes.
const (
	exitOK    = 0
	exitFound = 1 // a difference, damage or lag was found: what the command was asked to look for
	exitError = 2 // the command could not do its work, or was called in the wrong way
)

// These end a command that has told what it found.
var (
	errFound    = errors.New("found")
	errCritical = errors.New("critical")
)

// command is one of the commands.
type command struct {
	name    string
	args    string // what follows the flags
	count   int    // of the arguments
	summary string
	help    string                          // a paragraph, and examples
	setup   func(c *call) func(*call) error // registers flags, and returns what does the work
}

// call is one run of a command.
type call struct {
	context.Context
	flags  *flag.FlagSet
	args   []string
	json   bool
	out    io.Writer
	err    io.Writer
	outTTY bool // out is a terminal
	errTTY bool
	now    func() time.Time
	wait   func(context.Context, time.Duration) // pauses, or ends with the context
}

// commands are in the order in which help lists them.
var commands = []*command{
	inspectCommand, logCommand, compareCommand, verifyCommand, backupCommand,
	serveCommand, statusCommand, watchCommand, checkCommand,
	keygenCommand, versionCommand,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	code := run(&call{
		Context: ctx, out: os.Stdout, err: os.Stderr, outTTY: isTerminal(os.Stdout), errTTY: isTerminal(os.Stderr),
		now: time.Now, wait: pause,
	}, os.Args[1:])
	stop()
	os.Exit(code)
}

// isTerminal reports whether somebody looks at what is written to a file.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// pause waits for some time, or until the context is done.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// run does what the arguments say, and returns the exit code.
func run(c *call, args []string) int {
	err := dispatch(c, args)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFound):
		return exitFound
	case errors.Is(err, errCritical):
		return exitError
	}
	fmt.Fprintln(c.err, "replicator:", strings.TrimPrefix(err.Error(), "replicator: "))
	return exitError
}

func dispatch(c *call, args []string) error {
	if len(args) == 0 {
		overview(c.err)
		return errors.New("which command?")
	}
	name, args := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		if len(args) == 0 {
			overview(c.out)
			return nil
		}
		name, args = args[0], []string{"-h"}
	}
	i := slices.IndexFunc(commands, func(k *command) bool { return k.name == name })
	if i < 0 {
		overview(c.err)
		return fmt.Errorf("there is no command %q", name)
	}
	k := commands[i]
	work, err := k.parse(c, args)
	if errors.Is(err, flag.ErrHelp) {
		k.explain(c.out, c.flags)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w; see replicator %s -h", k.name, err, k.name)
	}
	if err := work(c); err != nil {
		if errors.Is(err, errFound) || errors.Is(err, errCritical) {
			return err
		}
		text := strings.TrimPrefix(err.Error(), "replicator: ")
		return fmt.Errorf("%s: %s", k.name, strings.TrimPrefix(text, k.name+": "))
	}
	return nil
}

// parse reads flags and arguments, and returns what does the work.
func (k *command) parse(c *call, args []string) (work func(*call) error, err error) {
	c.flags = flag.NewFlagSet(k.name, flag.ContinueOnError)
	c.flags.SetOutput(io.Discard)
	work = k.setup(c)
	c.flags.BoolVar(&c.json, "json", false, "print `JSON`, which docs/COMMAND.md describes")
	for rest := args; ; { // flags may follow arguments
		if err := c.flags.Parse(rest); err != nil {
			return nil, err
		}
		if rest = c.flags.Args(); len(rest) == 0 {
			break
		}
		c.args, rest = append(c.args, rest[0]), rest[1:]
	}
	if len(c.args) != k.count {
		return nil, fmt.Errorf("needs %s, got %s", cmp.Or(k.args, "no arguments"), plural(uint64(len(c.args)), "argument", "arguments"))
	}
	return work, nil
}

// overview lists the commands.
func overview(w io.Writer) {
	fmt.Fprint(w, "Usage: replicator COMMAND [flags] [arguments]\n\n")
	for _, k := range commands {
		fmt.Fprintf(w, "  %-28s %s\n", strings.TrimSpace(k.name+" "+k.args), k.summary)
	}
	fmt.Fprint(w, `
replicator help COMMAND, or COMMAND -h, shows examples and flags.
Exit codes: 0 all is well; 1 a difference, damage or lag was found; 2 it could not be done.
`)
}

// explain is what -h prints.
func (k *command) explain(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintf(w, "Usage: replicator %s\n\n%s\nFlags:\n", strings.TrimSpace(k.name+" [flags] "+k.args), k.help)
	flags.VisitAll(func(f *flag.Flag) {
		value, usage := flag.UnquoteUsage(f)
		if f.Name == "json" { // it has no value
			value, usage = "", strings.ReplaceAll(f.Usage, "`", "")
		}
		line := strings.TrimSpace("-" + f.Name + " " + value)
		if d := f.DefValue; d != "" && d != "false" && d != "0" {
			usage += " (default " + d + ")"
		}
		fmt.Fprintf(w, "  %-18s %s\n", line, usage)
	})
}

// print prints text, or with -json a value.
func (c *call) print(value any, text func(w io.Writer)) error {
	if !c.json {
		text(c.out)
		return nil
	}
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// printLine prints a value on a line of its own, as JSON.
func (c *call) printLine(value any) error { return json.NewEncoder(c.out).Encode(value) }
