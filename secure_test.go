package replicator_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// clusterKey returns a key that depends on a number.
func clusterKey(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 32) }

// keyed has all nodes of a cluster share a key.
func (c *cluster) keyed() *cluster {
	c.paging = func(o replicator.Options) *replicator.Options {
		o.ClusterKeys = [][]byte{clusterKey(1)}
		return &o
	}
	return c
}

// TestSecureByKeys: replicas that share a key replicate as ever, and nothing of it can be
// read on the way.
func TestSecureByKeys(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh().keyed()
		var mu sync.Mutex
		var onTheWay bytes.Buffer
		for _, n := range c.nodes {
			n.open(func(o *replicator.Options) {
				dial := o.Dial
				o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
					nc, err := dial(ctx, addr)
					if err != nil {
						return nil, err
					}
					return &recordedConn{nc, &mu, &onTheWay}, nil
				}
			})
		}
		large := strings.Repeat("a large secret", 20_000)
		c.nodes[0].put("the key", "the value")
		c.nodes[1].put("large", large)
		for _, n := range c.nodes {
			n.arrives("the key", "the value")
			n.arrives("large", large)
		}
		c.settleDown()
		mu.Lock()
		defer mu.Unlock()
		require.Greater(t, onTheWay.Len(), len(large))
		for _, secret := range []string{"the key", "the value", "a large secret", string(clusterKey(1))} {
			require.NotContains(t, onTheWay.String(), secret)
		}
	})
}

// recordedConn keeps all that goes over a connection.
type recordedConn struct {
	net.Conn
	mu  *sync.Mutex
	all *bytes.Buffer
}

func (c *recordedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all.Write(b[:n])
	return n, err
}

func (c *recordedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.all.Write(b)
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// TestSecureSlowLinks: TLS does not end a session over a link that is slow, but alive.
func TestSecureSlowLinks(t *testing.T) {
	t.Parallel()
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.link(0, 1)
		c.keyed().open()
		require.NoError(t, c.nodes[0].sync())
		c.net.SetSpeed("n0", "n1", 1000)
		for _, n := range c.nodes {
			n.put("large of "+n.name, strings.Repeat(n.name, 200_000))
		}
		start := time.Now()
		for !c.equal() && time.Since(start) < time.Hour {
			time.Sleep(time.Second)
		}
		require.True(t, c.equal())
		require.Equal(t, 1, c.net.Connections())
		require.Empty(t, c.nodes[0].peer("n1").LastError)
	})
}

// TestSecureRotation replaces the key of a cluster that is in use, one replica after the
// other, in three steps. They replicate all the time.
func TestSecureRotation(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.mesh()
		before, after := clusterKey(1), clusterKey(2)
		for step, keys := range [][][]byte{{before}, {before, after}, {after, before}, {after}} {
			c.paging = func(o replicator.Options) *replicator.Options {
				o.ClusterKeys = keys
				return &o
			}
			for _, n := range c.nodes {
				if n.r != nil {
					n.close()
				}
				n.open()
				if step == 0 && n != c.nodes[2] {
					continue
				}
				key := fmt.Sprintf("step %d at %s", step, n.name)
				n.put(key, "value")
				for _, other := range c.nodes {
					other.arrives(key, "value")
				}
			}
		}
		c.settleDown()
	})
}

// ownAuthority is a certificate authority of a test.
type ownAuthority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *ownAuthority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(100, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &ownAuthority{t, cert, key, pool}
}

// issue returns a certificate for 127.0.0.1.
func (a *ownAuthority) issue() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "replica"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(100, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(a.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *ownAuthority) config() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue()}, RootCAs: a.pool}
}

// TestSecureStrangers: who does not have what the other has, is refused, and both are told
// what to check.
func TestSecureStrangers(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	withKey := func(i int) func(*replicator.Options) {
		return func(o *replicator.Options) { o.ClusterKeys = [][]byte{clusterKey(i)} }
	}
	plain := func(o *replicator.Options) {}
	withTLS := func(c *tls.Config) func(*replicator.Options) {
		return func(o *replicator.Options) { o.TLS = c }
	}
	for name, c := range map[string]struct {
		server, client         func(*replicator.Options)
		serverSays, clientSays string
	}{
		"another key":           {withKey(1), withKey(2), "does not trust this side's certificate", "is not trusted here"},
		"a key meets plain TCP": {plain, withKey(1), "speaks TLS, this side does not", "does not speak TLS, this side does"},
		"plain TCP meets a key": {withKey(1), plain, "does not speak TLS, this side does", "speaks TLS, this side does not"},
		"another authority": {withTLS(ours.config()), withTLS(theirs.config()),
			"does not trust this side's certificate", "is not trusted here"},
		"a client of another authority": {withTLS(ours.config()), withTLS(&tls.Config{Certificates: []tls.Certificate{theirs.issue()}, RootCAs: ours.pool}),
			"is not trusted here", "does not trust this side's certificate"},
		"a key meets an authority": {withTLS(ours.config()), withKey(1), "does not trust this side's certificate", "is not trusted here"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, client := newHost(t, c.server), newHost(t, c.client)
			require.NoError(t, client.AddPeer(server.Addr().String(), nil))
			err := client.SyncNow(within(t, 5*time.Second))
			require.ErrorContains(t, err, c.clientSays)
			require.Equal(t, 1, strings.Count(err.Error(), "replicator: "), "%v", err)
			server.logged("level=WARN", "refused a connection", c.serverSays)
			require.Empty(t, server.Status().Peers)
		})
	}
}

// TestSecureByCertificates: certificates of the caller's own, which are replaced while
// the replicas run.
func TestSecureByCertificates(t *testing.T) {
	authority := newAuthority(t)
	var mu sync.Mutex
	current, asked := authority.issue(), 0
	get := func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		c := current
		return &c, nil
	}
	var seen sync.Map // serial numbers
	config := &tls.Config{
		RootCAs:              authority.pool,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return get() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return get() },
		VerifyConnection: func(s tls.ConnectionState) error {
			seen.Store(s.PeerCertificates[0].SerialNumber.String(), true)
			return nil
		},
	}
	a := newHost(t, func(o *replicator.Options) { o.TLS = config })
	b := newHost(t, func(o *replicator.Options) { o.TLS = config })
	addr := a.Addr().String()
	for range 2 {
		require.NoError(t, b.AddPeer(addr, nil))
		require.NoError(t, b.SyncNow(within(t, 5*time.Second)))
		require.NoError(t, b.RemovePeer(addr))
		require.Eventually(t, func() bool { return len(a.Status().Peers) == 0 }, 5*time.Second, time.Millisecond)
		mu.Lock()
		require.Positive(t, asked)
		asked, current = 0, authority.issue()
		mu.Unlock()
	}
	count := 0
	seen.Range(func(any, any) bool { count++; return true })
	require.Equal(t, 2, count, "certificates that were seen")
}

// TestSecureCertificates: those that share a key have the same authority without having
// met, each opening has a certificate of its own, and none of them ever expires.
func TestSecureCertificates(t *testing.T) {
	var leaves []*x509.Certificate
	configs := []*tls.Config{}
	for range 2 {
		config, err := replicator.SecureByKeys([][]byte{clusterKey(1)})
		require.NoError(t, err)
		leaf, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
		require.NoError(t, err)
		leaves, configs = append(leaves, leaf), append(configs, config)
	}
	require.True(t, configs[0].RootCAs.Equal(configs[1].RootCAs))
	require.True(t, configs[0].ClientCAs.Equal(configs[1].RootCAs))
	require.NotEqual(t, leaves[0].PublicKey, leaves[1].PublicKey)
	for _, leaf := range leaves {
		require.Equal(t, x509.Ed25519, leaf.PublicKeyAlgorithm)
		for _, now := range []time.Time{time.Unix(0, 0), time.Now(), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)} {
			for _, role := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
				_, err := leaf.Verify(x509.VerifyOptions{Roots: configs[1].RootCAs, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{role}})
				require.NoError(t, err)
			}
		}
	}
	other, err := replicator.SecureByKeys([][]byte{clusterKey(2)})
	require.NoError(t, err)
	_, err = leaves[0].Verify(x509.VerifyOptions{Roots: other.RootCAs})
	require.Error(t, err)
}

// TestSecureNothingLess: neither an older TLS nor a client without a certificate is let in,
// whatever the caller does to its configuration after Open.
func TestSecureNothingLess(t *testing.T) {
	authority := newAuthority(t)
	own := authority.config()
	hosts := map[string]*host{
		"TLS":         newHost(t, func(o *replicator.Options) { o.TLS = own }),
		"ClusterKeys": newHost(t, func(o *replicator.Options) { o.ClusterKeys = [][]byte{clusterKey(1)} }),
	}
	own.ClientAuth, own.RootCAs, own.MaxVersion = tls.NoClientCert, x509.NewCertPool(), tls.VersionTLS12
	member := memberTLS().Clone()
	for name, h := range hosts {
		good := authority.config()
		good.ServerName = "127.0.0.1"
		if name == "ClusterKeys" {
			good = member
		}
		older, without := good.Clone(), good.Clone()
		older.MaxVersion, older.MinVersion, without.Certificates = tls.VersionTLS12, tls.VersionTLS12, nil
		for what, config := range map[string]*tls.Config{"good": good, "older": older, "without": without} {
			p := dialWire(t, h.Addr())
			p.Conn = tls.Client(p.Conn, config)
			p.say(wireHello, newWireHi().payload())
			kind, _, err := p.hear()
			if what == "good" {
				require.NoError(t, err, name)
				require.EqualValues(t, wireHello, kind)
				continue
			}
			require.Error(t, err, "%s, %s", name, what)
			require.Empty(t, h.Status().Peers)
		}
	}
}

// TestSecureOptions: what would not protect is refused.
func TestSecureOptions(t *testing.T) {
	authority := newAuthority(t)
	for want, o := range map[string]replicator.Options{
		"ClusterKeys: key 1 has 31 bytes": {ClusterKeys: [][]byte{clusterKey(1), make([]byte, 31)}},
		"ClusterKeys is empty":            {ClusterKeys: [][]byte{}},
		"both set":                        {ClusterKeys: [][]byte{clusterKey(1)}, TLS: authority.config()},
		"RootCAs is nil":                  {TLS: &tls.Config{Certificates: []tls.Certificate{authority.issue()}}},
		"set Certificates":                {TLS: &tls.Config{RootCAs: authority.pool}},
		"MaxVersion is below":             {TLS: &tls.Config{RootCAs: authority.pool, MaxVersion: tls.VersionTLS12}},
		"set ClusterKeys or TLS to protect it, or Insecure to": {Listen: "0.0.0.0:0"},
	} {
		require.ErrorContains(t, o.Validate(), want)
	}
	for _, o := range []replicator.Options{
		{Listen: "0.0.0.0:0", ClusterKeys: [][]byte{clusterKey(1)}}, {Listen: "0.0.0.0:0", TLS: authority.config()},
		{Peers: map[string]replicator.Meta{"server.example:8000": nil}, TLS: authority.config()},
	} {
		require.NoError(t, o.Validate())
	}
}

// TestAuthorize: the program decides who may do what. What a peer with read-only access
// writes, stays there.
func TestAuthorize(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		var mu sync.Mutex
		var asked []replicator.PeerInfo
		server := newHost(t, func(o *replicator.Options) {
			o.ClusterKeys = [][]byte{clusterKey(1)}
			o.Authorize = func(p replicator.PeerInfo) (replicator.Access, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, p)
				return replicator.ReadWrite, fmt.Errorf("decommissioned: %s", p.Name)
			}
		})
		client := newHost(t, func(o *replicator.Options) {
			o.ClusterKeys, o.Name = [][]byte{clusterKey(1)}, "old"
		})
		require.NoError(t, client.AddPeer(server.Addr().String(), nil))
		require.ErrorContains(t, client.SyncNow(within(t, 5*time.Second)), "not authorized: decommissioned: old")
		server.logged("level=WARN", "refused a connection", "decommissioned: old")
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, client.Status().ID, asked[0].ID)
		require.Len(t, asked[0].Certificates, 1)
		refused := server.Status().Refused
		require.Len(t, refused, 1)
		require.Equal(t, "127.0.0.1", refused[0].Host)
		require.Contains(t, refused[0].Error, "decommissioned: old")
		require.Positive(t, refused[0].Count)
	})
	t.Run("read-only", func(t *testing.T) {
		inCluster(t, 3, func(t *testing.T, c *cluster) {
			c.link(1, 0)
			c.link(2, 0)
			server, reader, writer := c.nodes[0], c.nodes[1], c.nodes[2]
			server.open(func(o *replicator.Options) {
				o.Authorize = func(p replicator.PeerInfo) (replicator.Access, error) {
					if p.Name == "reader" {
						return replicator.ReadOnly, nil
					}
					return replicator.ReadWrite, nil
				}
			})
			reader.open(func(o *replicator.Options) { o.Name = "reader" })
			writer.open()
			server.put("from the server", "value")
			writer.put("from the writer", "value")
			reader.put("from the reader", "value")
			for _, n := range []*node{server, reader} {
				n.arrives("from the server", "value")
				n.arrives("from the writer", "value")
			}
			require.NoError(t, server.sync())
			require.NoError(t, reader.sync())
			time.Sleep(time.Minute)
			for _, n := range []*node{server, writer} {
				_, found := n.get("from the reader")
				require.False(t, found, n.name)
			}
			there := reader.peer("n0")
			require.Equal(t, replicator.ReadOnly, *there.Granted)
			require.Equal(t, replicator.ReadWrite, *there.Access)
			require.Equal(t, replicator.StateInSync, there.State)
			for _, p := range server.r.Status().Peers {
				if p.Name == "reader" {
					require.Equal(t, replicator.ReadOnly, *p.Access)
					require.Equal(t, replicator.StateReadOnly, p.State)
				}
			}
		})
	})
	t.Run("read-only, and it sends", func(t *testing.T) {
		server := newHost(t, mergesNothing)
		client := newHost(t, nil)
		require.NoError(t, client.AddPeer(server.Addr().String(), nil))
		require.NoError(t, client.SyncNow(within(t, 5*time.Second)))
		require.NoError(t, server.SyncNow(within(t, 5*time.Second)), "it does not wait for a reader")
		require.NoError(t, client.Put([]byte("key of the client"), nil, nil))
		time.Sleep(50 * time.Millisecond)
		_, err := server.Get([]byte("key of the client"), nil)
		require.Error(t, err)
	})
}
