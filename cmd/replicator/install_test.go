package main

import (
	"archive/zip"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var long = flag.Bool("long", false, "install the command as a user would, which takes long")

// TestInstall publishes this module to a proxy in a directory, and installs the command from
// there, with an empty module cache. It needs -long.
func TestInstall(t *testing.T) {
	if !*long {
		t.Skip("needs -long")
	}
	const module, version = "github.com/level-replicator/replicator", "v0.999.0"
	proxy := t.TempDir()
	dir := filepath.Join(proxy, filepath.FromSlash(module), "@v")
	require.NoError(t, os.MkdirAll(dir, 0o777))
	mod, err := os.ReadFile("../../go.mod")
	require.NoError(t, err)
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666))
	}
	write("list", version+"\n")
	write(version+".mod", string(mod))
	write(version+".info", fmt.Sprintf(`{"Version": %q, "Time": %q}`, version, time.Now().UTC().Format(time.RFC3339)))
	zipModule(t, "../..", filepath.Join(dir, version+".zip"), module+"@"+version+"/")

	cache, err := exec.Command("go", "env", "GOMODCACHE").Output()
	require.NoError(t, err)
	url := func(dir string) string { return "file://" + filepath.ToSlash(dir) }
	home := t.TempDir()
	install := exec.Command("go", "install", module+"/cmd/replicator@latest")
	install.Dir = home // in no module
	install.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-modcacherw", "GOSUMDB=off", "GOBIN="+filepath.Join(home, "bin"),
		"GOMODCACHE="+filepath.Join(home, "cache"), "GOPROXY="+url(proxy)+","+url(filepath.Join(strings.TrimSpace(string(cache)), "cache", "download")))
	out, err := install.CombinedOutput()
	require.NoError(t, err, "%s", out)

	name := filepath.Join(home, "bin", "replicator")
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	shown, err := exec.Command(name, "version").CombinedOutput()
	require.NoError(t, err, "%s", shown)
	require.Contains(t, string(shown), version)
	require.Error(t, exec.Command(name, "fly").Run())
}

// zipModule writes the zip file of the module in a directory, without the modules in it.
func zipModule(t *testing.T, dir, file, prefix string) {
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	z := zip.NewWriter(f)
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			_, err := os.Stat(filepath.Join(path, "go.mod"))
			if path != dir && (err == nil || strings.HasPrefix(e.Name(), ".")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() || e.Name() == ".git" {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		w, err := z.Create(prefix + filepath.ToSlash(name))
		if err != nil {
			return err
		}
		r, err := os.Open(path)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(w, r)
		return err
	}))
	require.NoError(t, z.Close())
}
