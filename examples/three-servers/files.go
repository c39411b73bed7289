package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxFileSize is the size in bytes of the largest file that becomes a value. It is also
// the servers' Options.MaxValueSize.
const maxFileSize = 16 << 20

// regularFiles returns the paths of the regular files that can be values, in lexical
// order, and the number of those that are too large.
func regularFiles(fsys fs.FS, want func(path string) bool) (paths []string, tooLarge int, err error) {
	err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !want(path) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Size() > maxFileSize {
			tooLarge++
			return nil
		}
		paths = append(paths, path)
		return nil
	})
	return paths, tooLarge, err
}

// standardLibrary finds the source of Go's own standard library.
func standardLibrary(ctx context.Context) (fs.FS, []string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	root := strings.TrimSpace(string(out))
	if err == nil && root == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the story needs the source of Go's standard library, and `go env GOROOT` did not tell where it is: %w", err)
	}
	fsys := os.DirFS(filepath.Join(root, "src"))
	paths, _, err := regularFiles(fsys, func(path string) bool {
		return strings.HasSuffix(path, ".go") && !strings.HasPrefix(path, "cmd/") // cmd holds Go's tools
	})
	if err == nil && len(paths) == 0 {
		err = errors.New("there are no .go files")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the story needs the source of Go's standard library in %s: %w", filepath.Join(root, "src"), err)
	}
	return fsys, paths, nil
}

// humanSize formats a number of bytes.
func humanSize(n int64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%d B", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
