package replicator_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// floors are the package's files, from the ground up. A file uses its own floor and
// those below; store and wire do not use each other. docs/ARCHITECTURE.md says what
// each file owns.
var floors = []struct {
	name  string
	below []string // floors that its files may use, too
	files string
}{
	{"base", nil, "clock.go codec.go cursor.go errors.go exchange.go feedcursor.go fingerprint.go history.go limits.go turn.go vector.go"},
	{"store", []string{"base"}, "changelog.go engine.go boot_linux.go boot_darwin.go boot_other.go " +
		"store.go store_adopt.go store_backlog.go store_backup.go store_commit.go store_compare.go store_conflict.go store_digest.go store_durable.go store_expire.go store_feed.go store_reap.go store_rejoin.go store_first.go store_forget.go store_merge.go " +
		"store_open.go store_page.go store_peers.go store_read.go store_sums.go store_vector.go store_verify.go"},
	{"wire", []string{"base"}, "protocol.go protocol_ranges.go secure.go transport.go"},
	{"sync", []string{"base", "store", "wire"}, "access.go admission.go compare.go dialer.go handshake.go lineage.go pairing.go report.go schedule.go " +
		"session.go session_compare.go session_pull.go session_serve.go sync.go syncnow.go turns.go verify.go session_rejoin.go waits.go"},
	{"door", []string{"base", "store", "wire", "sync"}, "backup.go doc.go feed.go gate.go inspect.go options.go recent.go replicator.go snapshot.go status.go token.go warnings.go"},
}

// floorOf tells for each file which floor it is on.
func floorOf() map[string]int {
	of := map[string]int{}
	for i, f := range floors {
		for _, file := range strings.Fields(f.files) {
			of[file] = i
		}
	}
	return of
}

// TestFloors fails on every use of something on a floor that the file must not know, and
// on a file that is on no floor.
func TestFloors(t *testing.T) {
	t.Parallel()
	of := floorOf()
	names := sourceFiles(t)
	for _, name := range names {
		require.Contains(t, of, name, "%s is on no floor", name)
	}
	for name := range of {
		require.Contains(t, names, name, "a file that is not there has a floor")
	}
	p := checkPackage(t)
	uses, wrong := 0, map[string]bool{}
	for ident, object := range p.info.Uses {
		if object.Pkg() != p.types {
			continue
		}
		from, to := p.fset.Position(ident.Pos()), p.fset.Position(object.Pos())
		if from.Filename == to.Filename {
			continue
		}
		uses++
		if i, j := of[from.Filename], of[to.Filename]; i != j && !slices.Contains(floors[i].below, floors[j].name) {
			wrong[fmt.Sprintf("%v (%s) uses %s of %s (%s)", from, floors[i].name, object.Name(), to.Filename, floors[j].name)] = true
		}
	}
	t.Logf("%d references between %d files, %d of them wrong", uses, len(p.files), len(wrong))
	require.Empty(t, slices.Sorted(maps.Keys(wrong)))
}

// sourceFiles returns the names of the package's files, without those of the tests.
func sourceFiles(t *testing.T) []string {
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
}

// checkedPackage is this package, type-checked, without its tests.
type checkedPackage struct {
	types *types.Package
	info  *types.Info
	fset  *token.FileSet
	files []*ast.File
}

func checkPackage(t *testing.T) *checkedPackage {
	p := &checkedPackage{info: &types.Info{Uses: map[*ast.Ident]types.Object{}}, fset: token.NewFileSet()}
	for _, name := range sourceFiles(t) {
		if ok, err := build.Default.MatchFile(".", name); !ok || err != nil {
			continue // of another system
		}
		file, err := parser.ParseFile(p.fset, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		p.files = append(p.files, file)
	}
	config := types.Config{Importer: importer.ForCompiler(p.fset, "gc", exports(t))}
	var err error
	p.types, err = config.Check("replicator", p.fset, p.files, p.info)
	require.NoError(t, err)
	return p
}

// exports finds the export data of what the package imports.
func exports(t *testing.T) func(path string) (io.ReadCloser, error) {
	list := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}", ".")
	list.Stderr = os.Stderr
	out, err := list.Output()
	require.NoError(t, err)
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		files[path] = file
	}
	return func(path string) (io.ReadCloser, error) {
		content, err := os.ReadFile(files[path])
		return io.NopCloser(bytes.NewReader(content)), err
	}
}

// TestFloorsAreDescribed compares the table of files in docs/ARCHITECTURE.md to the
// floors.
func TestFloorsAreDescribed(t *testing.T) {
	text, err := os.ReadFile("docs/ARCHITECTURE.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## Files")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	described := map[string]string{}
	floor := ""
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		if name := strings.TrimSpace(cells[1]); name != "" {
			floor = name
		}
		for _, file := range regexp.MustCompile("`([a-z_]+\\.go)`").FindAllStringSubmatch(cells[2], -1) {
			described[file[1]] = floor
		}
	}
	wanted := map[string]string{}
	for file, i := range floorOf() {
		wanted[file] = floors[i].name
	}
	require.Equal(t, wanted, described)
}
