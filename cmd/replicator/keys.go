package main

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
)

// This file owns making keys, and the version.

var keygenCommand = &command{
	name: "keygen", args: "FILE", count: 1,
	summary: "make a cluster key",
	help: `Writes a new cluster key to FILE, which must not exist and which only its owner may read.
Copy it to all servers. The bytes of the file, as they are, are one of Options.ClusterKeys:

  replicator keygen cluster.key
  replicator serve -key-file cluster.key -listen 0.0.0.0:8000 -path data
`,
	setup: func(c *call) func(*call) error { return keygen },
}

// keyBytes is how many random bytes a key has.
const keyBytes = 32

func keygen(c *call) error {
	secret := make([]byte, keyBytes)
	rand.Read(secret)
	f, err := os.OpenFile(c.args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(base64.RawURLEncoding.EncodeToString(secret)) // text survives being copied
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return c.print(struct {
		File string `json:"file"`
	}{c.args[0]}, func(w io.Writer) { fmt.Fprintf(w, "a new cluster key is in %s\n", c.args[0]) })
}

var versionCommand = &command{
	name:    "version",
	summary: "show which version this is",
	help: `Shows the version of the module, and what it was built from and with.

  replicator version
`,
	setup: func(c *call) func(*call) error { return showVersion },
}

// versionInfo is what version prints with -json.
type versionInfo struct {
	Version  string `json:"version"` // of the module; "(devel)" if it was built from a work tree
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the work tree had changes
	Go       string `json:"go"`
	System   string `json:"system"`
}

func showVersion(c *call) error {
	info, _ := debug.ReadBuildInfo()
	v := versionIn(info)
	return c.print(v, func(w io.Writer) {
		fmt.Fprint(w, "replicator ", v.Version)
		if v.Revision != "" {
			fmt.Fprint(w, ", revision ", v.Revision)
		}
		if v.Modified {
			fmt.Fprint(w, " with changes")
		}
		fmt.Fprintf(w, ", %s, %s\n", v.Go, v.System)
	})
}

// versionIn reads the build information, which may be missing.
func versionIn(info *debug.BuildInfo) versionInfo {
	v := versionInfo{Version: "(unknown)", Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH}
	if info == nil {
		return v
	}
	v.Version = cmp.Or(info.Main.Version, "(devel)")
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}
