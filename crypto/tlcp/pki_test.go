package tlcp

import (
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// authority issues the certificates of the tests.
type authority struct {
	t    testing.TB
	key  *sm2.PrivateKey
	cert *smx509.Certificate
	over *authority // nil: a root
	rand io.Reader
}

var serials atomic.Int64

func newKey(t testing.TB) *sm2.PrivateKey { return keyFrom(t, testRand(t)) }

func keyFrom(t testing.TB, rand io.Reader) *sm2.PrivateKey {
	t.Helper()
	k, err := sm2.GenerateKey(rand)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newRoot(t testing.TB, name string) *authority { return rootFrom(t, name, testRand(t)) }

// rootFrom makes an authority all of whose keys and signatures come from rand.
func rootFrom(t testing.TB, name string, rand io.Reader) *authority {
	t.Helper()
	a := &authority{t: t, key: keyFrom(t, rand), rand: rand}
	a.cert = a.issue(&smx509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: smx509.KeyUsageCertSign | smx509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte(name),
	}, a.key, nil)
	return a
}

func (a *authority) intermediate(name string) *authority {
	a.t.Helper()
	sub := &authority{t: a.t, key: keyFrom(a.t, a.rand), over: a, rand: a.rand}
	sub.cert = a.issue(&smx509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: smx509.KeyUsageCertSign | smx509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte(name),
	}, sub.key, a.cert)
	return sub
}

// issue signs tmpl for key; a nil parent makes it self-signed.
func (a *authority) issue(tmpl *smx509.Certificate, key *sm2.PrivateKey, parent *smx509.Certificate) *smx509.Certificate {
	a.t.Helper()
	if tmpl.SerialNumber == nil {
		tmpl.SerialNumber = big.NewInt(serials.Add(1))
	}
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore = testTime.Add(-time.Hour)
	}
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = testTime.Add(1000 * time.Hour)
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := smx509.CreateCertificate(a.rand, tmpl, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := smx509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// leaf makes a certificate for usage, with a new key; edit may change it.
func (a *authority) leaf(usage smx509.KeyUsage, edit ...func(*smx509.Certificate)) Certificate {
	a.t.Helper()
	key := keyFrom(a.t, a.rand)
	return Certificate{Chain: a.chain(a.leafFor(key, usage, edit...)), Key: key}
}

func (a *authority) leafFor(key *sm2.PrivateKey, usage smx509.KeyUsage, edit ...func(*smx509.Certificate)) *smx509.Certificate {
	a.t.Helper()
	tmpl := &smx509.Certificate{
		Subject: pkix.Name{CommonName: "leaf"}, KeyUsage: usage,
		DNSNames: []string{"gw.example.org"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		URIs: []*url.URL{{Scheme: "urn", Opaque: "yumen:device:DEV00000001"}},
	}
	for _, f := range edit {
		f(tmpl)
	}
	return a.issue(tmpl, key, a.cert)
}

func (a *authority) chain(leaf *smx509.Certificate) []*smx509.Certificate {
	out := []*smx509.Certificate{leaf}
	for x := a; x != nil; x = x.over {
		out = append(out, x.cert)
	}
	return out
}

// pair makes the two certificates of a party.
func (a *authority) pair(edit ...func(*smx509.Certificate)) *Pair {
	a.t.Helper()
	p, err := NewPair(a.leaf(smx509.KeyUsageDigitalSignature, edit...), a.leaf(usageEnc, edit...))
	if err != nil {
		a.t.Fatal(err)
	}
	return p
}

func (a *authority) pool() *smx509.CertPool {
	p := smx509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// testTime is the clock of the tests.
var testTime = time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC)

func testClock() time.Time { return testTime }

// site is a server's and a client's material under one root.
type site struct {
	root           *authority
	server, client *Pair
}

var sites struct {
	sync.Once
	s *site
}

// newSite returns material that the tests share: none of them changes it.
func newSite(t testing.TB) *site {
	t.Helper()
	sites.Do(func() {
		root := newRoot(t, "root")
		sub := root.intermediate("sub")
		sites.s = &site{root: root, server: sub.pair(), client: sub.pair()}
	})
	if sites.s == nil {
		t.Fatal("the shared certificates could not be made")
	}
	return sites.s
}

// configs returns a fresh pair of configurations for one suite.
func (s *site) configs(suite uint16, mutual bool) (server, client *Config) {
	server = &Config{Time: testClock, Certificates: []*Pair{s.server}, CipherSuites: []uint16{suite}}
	client = &Config{Time: testClock, RootCAs: s.root.pool(), ServerName: "gw.example.org", CipherSuites: []uint16{suite}}
	if mutual {
		server.ClientAuth, server.ClientCAs = RequireAndVerifyClientCert, s.root.pool()
		client.Certificates = []*Pair{s.client}
	}
	return server, client
}

// hostOnly makes a leaf for one host name.
func hostOnly(host string) func(*smx509.Certificate) {
	return func(c *smx509.Certificate) { c.DNSNames, c.IPAddresses = []string{host}, nil }
}

func subjectOf(name string) pkix.Name { return pkix.Name{CommonName: name} }
