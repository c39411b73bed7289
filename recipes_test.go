package replicator_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/level-replicator/replicator/statuspage"
	"github.com/stretchr/testify/require"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// This file owns the recipes of README.md and docs/OPERATING.md, as they stand there.

// certificates returns a configuration for both roles. The files are read for each session,
// so a certificate that was renewed counts from then on.
func certificates(dir string) (*tls.Config, error) {
	authority, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, errors.New("ca.pem holds no certificate")
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
		return &pair, err
	}
	return &tls.Config{
		RootCAs:              roots,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() },
	}, nil
}

// addServer opens a new replica, and returns once it holds what its peers hold.
func addServer(ctx context.Context, path string, o *replicator.Options) (*replicator.Replicator, error) {
	r, err := replicator.OpenFile(path, nil, o)
	if err != nil {
		return nil, err
	}
	if err := r.SyncNow(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// leave closes a replica for good, once n peers hold everything that was written here.
func leave(ctx context.Context, r *replicator.Replicator, n int) error {
	if err := r.WaitReplicated(ctx, n); err != nil {
		return err // it is still open
	}
	return r.Close()
}

// dismiss removes a peer that will not come back.
func dismiss(r *replicator.Replicator, addr string, id replicator.DatabaseID) error {
	return errors.Join(r.RemovePeer(addr), r.Forget(id))
}

// closeForUpgrade is the second step of an upgrade.
func closeForUpgrade(ctx context.Context, r *replicator.Replicator) error {
	if err := r.WaitMerged(ctx, 1); err != nil {
		return err
	}
	return r.Close()
}

// issueTo writes the files of a server with a new certificate, and returns its serial number.
func issueTo(t *testing.T, a *ownAuthority, dir string) *big.Int {
	pair := a.issue()
	secret, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"ca.pem":     {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		"server.pem": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		"server.key": {Type: "PRIVATE KEY", Bytes: secret},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	require.NoError(t, err)
	return cert.SerialNumber
}

// TestRecipeTLS: two servers of one authority replicate, a renewed certificate counts for
// the next session, and a server of another authority is refused.
func TestRecipeTLS(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	first, second := issueTo(t, ours, dirs[0]), issueTo(t, ours, dirs[1])
	issueTo(t, theirs, dirs[2])
	serials := make(chan *big.Int, 100)
	open := func(i int, peers map[string]replicator.Meta) *replicator.Replicator {
		config, err := certificates(dirs[i])
		require.NoError(t, err)
		r, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{
			TLS: config, Listen: "127.0.0.1:0", Peers: peers,
			Authorize: func(p replicator.PeerInfo) (replicator.Access, error) {
				serials <- p.Certificates[0].SerialNumber
				return replicator.ReadWrite, nil
			},
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, r.Close()) })
		return r
	}
	a := open(0, nil)
	require.NoError(t, a.Put([]byte("key"), []byte("value"), nil))
	peers := map[string]replicator.Meta{a.Addr().String(): nil}
	require.NoError(t, open(1, peers).SyncNow(t.Context()))
	require.ElementsMatch(t, []*big.Int{first, second}, []*big.Int{<-serials, <-serials})

	renewed := issueTo(t, ours, dirs[0])
	require.NoError(t, open(1, peers).SyncNow(t.Context()))
	require.ElementsMatch(t, []*big.Int{renewed, second}, []*big.Int{<-serials, <-serials})

	require.ErrorContains(t, open(2, peers).SyncNow(t.Context()), "certificate")
}

// TestRecipeServers: a server joins, is ready, is closed for an upgrade, comes back, and
// leaves for good.
func TestRecipeServers(t *testing.T) {
	t.Parallel()
	old, err := replicator.OpenFile(t.TempDir(), nil, &replicator.Options{Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	defer old.Close()
	require.NoError(t, old.Put([]byte("key"), []byte("value"), nil))
	path, o := t.TempDir(), &replicator.Options{Listen: "127.0.0.1:0", Peers: map[string]replicator.Meta{old.Addr().String(): nil}}
	ready := func(r *replicator.Replicator) int {
		mux := http.NewServeMux()
		mux.Handle("/replica/", statuspage.Handler([]*replicator.Replicator{r}, statuspage.WithReadyPeers(1)))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/replica/readyz", nil))
		return w.Code
	}
	r, err := addServer(t.Context(), path, o)
	require.NoError(t, err)
	_, err = r.Get([]byte("key"), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, ready(r))
	require.NoError(t, old.AddPeer(r.Addr().String(), nil))
	addr, id := r.Addr().String(), r.Status().ID
	require.NoError(t, r.Put([]byte("before the upgrade"), nil, nil))
	require.NoError(t, closeForUpgrade(t.Context(), r))
	require.Equal(t, http.StatusServiceUnavailable, ready(r))
	has, err := old.Has([]byte("before the upgrade"), nil)
	require.NoError(t, err)
	require.True(t, has)

	r, err = addServer(t.Context(), path, o)
	require.NoError(t, err)
	require.NoError(t, r.Put([]byte("last"), nil, nil))
	require.NoError(t, leave(t.Context(), r, 1))
	has, err = old.Has([]byte("last"), nil)
	require.NoError(t, err)
	require.True(t, has)
	require.NoError(t, dismiss(old, addr, id))
	require.Empty(t, old.Status().Peers)
	require.Equal(t, id, old.Status().Forgotten[0].ID)

	nobody := &replicator.Options{Peers: map[string]replicator.Meta{"127.0.0.1:1": nil}}
	_, err = addServer(t.Context(), t.TempDir(), nobody)
	require.Error(t, err)
}

// opened, wrapped and secured are compiled only: they claim ports that others may use.
func opened() error {
	r, err := replicator.OpenFile("data", nil, &replicator.Options{
		Listen: "127.0.0.1:8000",
		Peers:  map[string]replicator.Meta{"127.0.0.1:8001": nil, "127.0.0.1:8002": nil},
	})
	if err != nil {
		return err
	}
	defer r.Close()
	err = r.Put([]byte("some-key"), []byte("some-value"), nil)
	return err
}

func wrapped(options *replicator.Options) error {
	options.TombstoneAge = 30 * 24 * time.Hour // the same on all replicas
	db, err := leveldb.OpenFile("data", &opt.Options{DisableLargeBatchTransaction: true})
	if err != nil {
		return err
	}
	defer db.Close()
	r, err := replicator.Open(db, options)
	return errors.Join(err, r.Close())
}

func secured() error {
	key, err := os.ReadFile("cluster.key") // replicator keygen cluster.key
	if err != nil {
		return err
	}
	r, err := replicator.OpenFile("data", nil, &replicator.Options{
		Listen:      "0.0.0.0:8000",
		Peers:       map[string]replicator.Meta{"server-2.example:8000": nil},
		ClusterKeys: [][]byte{key},
	})
	return errors.Join(err, r.Close())
}

var _ = []any{opened, wrapped, secured}

// repaired compares a replica with a peer, and makes both equal.
func repaired(ctx context.Context, r *replicator.Replicator) (replicator.Difference, error) {
	d, err := r.Compare(ctx, "127.0.0.1:8001")
	if err == nil && !d.Equal {
		d, err = r.Repair(ctx, "127.0.0.1:8001")
	}
	return d, err
}

// followed applies what changes.
func followed(ctx context.Context, r *replicator.Replicator, cursor replicator.Cursor, apply func(replicator.Change, replicator.Cursor) error) error {
	for change, err := range r.Changes(ctx, cursor) {
		if err != nil {
			return err // after ErrCursor, forget what was built, and start from the zero Cursor
		}
		if err := apply(change, change.Cursor); err != nil {
			return err
		}
	}
	return nil
}

// shown serves the page of a replica.
func shown(mux *http.ServeMux, r *replicator.Replicator) {
	mux.Handle("/replica/", statuspage.Handler([]*replicator.Replicator{r}))
}

// backedUp copies a replica.
func backedUp(ctx context.Context, r *replicator.Replicator) (string, error) {
	dir := filepath.Join("backups", time.Now().UTC().Format("2006-01-02T150405"))
	err := r.Backup(ctx, dir, nil)
	return dir, err
}

// mended verifies a replica, and repairs it.
func mended(ctx context.Context, r *replicator.Replicator) (replicator.Report, error) {
	report, err := r.Verify(ctx, nil)
	if err == nil && !report.OK {
		report, err = r.Verify(ctx, &replicator.VerifyOptions{Repair: true})
	}
	return report, err
}

// rejoined has a replica rejoin.
func rejoined(ctx context.Context, r *replicator.Replicator) error {
	done, err := r.Rejoin(ctx, "127.0.0.1:8001", nil)
	if err != nil {
		return err
	}
	fmt.Println(done.Dropped, "keys were deleted in the meantime,", done.Kept, "are new")
	return nil
}

// TestRecipesOfReadme: two replicas differ, are repaired, followed, backed up, damaged,
// mended, and shown.
func TestRecipesOfReadme(t *testing.T) {
	t.Chdir(t.TempDir())
	a := wrap(t, memDB(t), &replicator.Options{Listen: "127.0.0.1:0"})
	db := memDB(t)
	b := wrap(t, db, &replicator.Options{
		Peers: map[string]replicator.Meta{"127.0.0.1:8001": nil},
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", a.Addr().String())
		},
	})
	for i := range 10 {
		require.NoError(t, a.Put(fmt.Append(nil, "key ", i), []byte("value"), nil))
	}
	require.NoError(t, b.SyncNow(t.Context()))
	require.NoError(t, replicator.LoseKeys(db, "key 3"))
	d, err := repaired(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, 1, d.Repaired)

	enough := errors.New("enough")
	var keys []string
	err = followed(t.Context(), b, replicator.Cursor{}, func(change replicator.Change, at replicator.Cursor) error {
		require.Equal(t, change.Cursor, at)
		if keys = append(keys, string(change.Key)); len(keys) == 10 {
			return enough
		}
		return nil
	})
	require.ErrorIs(t, err, enough)
	require.Contains(t, keys, "key 3")

	dir, err := backedUp(t.Context(), b)
	require.NoError(t, err)
	backup, err := replicator.OpenFile(dir, nil, nil)
	require.NoError(t, err)
	value, err := backup.Get([]byte("key 3"), nil)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))
	require.NoError(t, backup.Close())

	require.NoError(t, db.Delete([]byte("key 4"), nil)) // around the Replicator
	report, err := mended(t.Context(), b)
	require.NoError(t, err)
	require.True(t, report.OK)
	require.EqualValues(t, 1, report.Disagreements[0].Repaired)
	value, err = b.Get([]byte("key 4"), nil)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))

	require.NoError(t, rejoined(t.Context(), b)) // there is nothing to catch up on

	mux := http.NewServeMux()
	shown(mux, b)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/replica/status.json", nil))
	require.Equal(t, http.StatusOK, w.Code)
}

// TestRecipesAreRun: the Go code of docs/OPERATING.md stands in tests.
func TestRecipesAreRun(t *testing.T) {
	code := ""
	for _, file := range []string{"recipes_test.go", "metrics/example_test.go"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		code += flattened(string(text))
	}
	for _, file := range []string{"README.md", "docs/OPERATING.md"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		blocks := regexp.MustCompile("(?s)\n *```go\n(.*?)```").FindAllStringSubmatch(string(text), -1)
		require.Greater(t, len(blocks), 5)
		for _, b := range blocks {
			require.Contains(t, code, flattened(b[1]), file)
		}
	}
}

// flattened removes the indentation.
func flattened(code string) string {
	return regexp.MustCompile(`(?m)^[ \t]+`).ReplaceAllString(code, "")
}

// TestWarningsHaveAdvice: docs/OPERATING.md has a row for each warning that is logged, and for
// no other.
func TestWarningsHaveAdvice(t *testing.T) {
	var warnings []string
	for _, name := range sourceFiles(t) {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			call, is := n.(*ast.CallExpr)
			if !is || len(call.Args) == 0 {
				return true
			}
			method, is := call.Fun.(*ast.SelectorExpr)
			if !is || !slices.Contains([]string{"Warn", "Error", "lost"}, method.Sel.Name) {
				return true
			}
			message := call.Args[0]
			for {
				sum, is := message.(*ast.BinaryExpr)
				if !is {
					break
				}
				message = sum.X
			}
			if literal, is := message.(*ast.BasicLit); is {
				text, err := strconv.Unquote(literal.Value)
				require.NoError(t, err)
				if text, is := strings.CutPrefix(text, "replicator: "); is {
					text, _, _ = strings.Cut(regexp.MustCompile(`[:;,]`).ReplaceAllString(text, "\n"), "\n")
					warnings = append(warnings, text)
				}
			}
			return true
		})
	}
	require.Greater(t, len(warnings), 15)
	text, err := os.ReadFile("docs/OPERATING.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## What to do at a warning\n")
	require.True(t, found)
	rows := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| .+ \\| .+ \\|$").FindAllStringSubmatch(section, -1) {
		require.False(t, rows[row[1]], "twice: %s", row[1])
		rows[row[1]] = true
	}
	slices.Sort(warnings)
	require.Equal(t, slices.Compact(warnings), slices.Sorted(maps.Keys(rows)))
}
