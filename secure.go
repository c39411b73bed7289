package replicator

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// This file owns TLS: the certificates that are made of cluster keys, and the handshake.

const (
	// minClusterKey is the least size of a cluster key in bytes.
	minClusterKey = 32
	// clusterHost is the name in all certificates of a cluster. Addresses may change.
	clusterHost = "replicator.invalid"
	// clusterInfo separates what is made of a cluster key from other uses of it.
	clusterInfo = "level-replicator/replicator: certificate authority, version 1"

	speaksTLS = "the other side speaks TLS, this side does not: check that both set ClusterKeys, or both TLS"
)

// secureByKeys returns the configuration, for both roles, of a cluster whose members share
// keys. The first key signs; the others are accepted, too.
//
// Everything follows from the key, so all members have the same authority without
// exchanging it. Certificates are valid from 1970 to 9999, for devices without a clock.
func secureByKeys(keys [][]byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	var leaf tls.Certificate
	for i, key := range keys {
		authority, signer, err := clusterAuthority(key)
		if err != nil {
			return nil, err
		}
		pool.AddCert(authority)
		if i == 0 {
			if leaf, err = clusterLeaf(authority, signer); err != nil {
				return nil, err
			}
		}
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{leaf}, ServerName: clusterHost,
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true,
	}, nil
}

// always is the validity of all certificates of a cluster.
func always(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Unix(0, 0).UTC(), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
}

// clusterAuthority returns the authority of a cluster key, and the key that it signs with.
func clusterAuthority(key []byte) (*x509.Certificate, ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, key, nil, clusterInfo, ed25519.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	signer := ed25519.NewKeyFromSeed(seed)
	public := signer.Public().(ed25519.PublicKey)
	sum := sha256.Sum256(public)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), SubjectKeyId: sum[:20],
		Subject:               pkix.Name{CommonName: "replicator cluster " + hex.EncodeToString(sum[:8])},
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	always(template)
	der, err := x509.CreateCertificate(nil, template, template, public, signer) // Ed25519 needs no random numbers
	if err != nil {
		return nil, nil, err
	}
	c, err := x509.ParseCertificate(der)
	return c, signer, err
}

// clusterLeaf returns a certificate for this opening. Its key is only in memory.
func clusterLeaf(authority *x509.Certificate, signer ed25519.PrivateKey) (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "replicator"}, DNSNames: []string{clusterHost},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	always(template)
	der, err := x509.CreateCertificate(nil, template, authority, public, signer)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, err
}

// secureBy returns the caller's own configuration, completed for both roles.
func secureBy(own *tls.Config) *tls.Config {
	c := own.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	if c.ClientCAs == nil {
		c.ClientCAs = c.RootCAs
	}
	if c.RootCAs == nil {
		c.RootCAs = c.ClientCAs
	}
	return c
}

// checkTLS returns what is missing in a caller's configuration.
func checkTLS(c *tls.Config) error {
	switch {
	case c.MaxVersion != 0 && c.MaxVersion < tls.VersionTLS13:
		return errors.New("TLS: MaxVersion is below TLS 1.3")
	case c.RootCAs == nil && c.ClientCAs == nil:
		return errors.New("TLS: RootCAs is nil: with the system's authorities, everybody with a public certificate would be let in")
	case len(c.Certificates) == 0 && (c.GetCertificate == nil && c.GetConfigForClient == nil || c.GetClientCertificate == nil):
		return errors.New("TLS: set Certificates, or both GetCertificate and GetClientCertificate")
	case c.InsecureSkipVerify && c.VerifyConnection == nil:
		return errors.New("TLS: InsecureSkipVerify without VerifyConnection would let any server in")
	}
	return nil
}

// secure has the frames of a connection go over TLS. Without a ServerName, the host of the
// address that was dialled must be in the server's certificate.
func (c *conn) secure(ctx context.Context, config *tls.Config, addr string, dialed bool) error {
	below := paced{c.Conn, c}
	t := tls.Server(below, config)
	if dialed {
		if config.ServerName == "" {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				host = addr
			}
			config = config.Clone()
			config.ServerName = host
		}
		t = tls.Client(below, config)
	}
	if err := t.HandshakeContext(ctx); err != nil {
		return tlsError(err)
	}
	c.over(t)
	c.certificates = t.ConnectionState().PeerCertificates
	return nil
}

// tlsError says what to check after a handshake that has failed. Other errors it
// returns as they are.
func tlsError(err error) error {
	var plain tls.RecordHeaderError
	var untrusted *tls.CertificateVerificationError
	var remote *net.OpError
	switch {
	case errors.As(err, &plain):
		return fmt.Errorf("%w: the other side does not speak TLS, this side does: check that both set ClusterKeys, or both TLS (%w)", ErrRefused, err)
	case errors.As(err, &untrusted):
		return fmt.Errorf("%w: the other side's certificate is not trusted here: check that both have a cluster key in common, or the authorities in TLS (%w)", ErrRefused, err)
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf("%w: the other side does not trust this side's certificate: check that both have a cluster key in common, or the authorities in TLS (%w)", ErrRefused, err)
	}
	return err
}
