package lab

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
)

var (
	pass      = []byte("correct horse battery")
	gateway   = certid.Identity{Gateway: "GW000000001", Device: "DEV00000001"}
	agent     = certid.Identity{Agent: "AGT00000001", Device: "DEV00000002"}
	control   = certid.Identity{Control: "CTL00000001"}
	gwHosts   = []string{"gw.example.org", "127.0.0.1", "::1"}
	tlsExtKey = []smx509.ExtKeyUsage{smx509.ExtKeyUsageAny}
)

func newCA(t testing.TB, cfg Config) *CA {
	t.Helper()
	cfg.Iterations = 1
	ca, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func mustParty(t testing.TB, ca *CA, id certid.Identity, hosts []string) *keystore.Store {
	t.Helper()
	s, err := ca.Party(filepath.Join(t.TempDir(), "keys"), pass, id, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func chain(t testing.TB, s *keystore.Store, name string) *smx509.Certificate {
	t.Helper()
	c, err := s.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	return c[0]
}

func openssl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("this test needs the program openssl 3 (run: apt-get install openssl)")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

// TestTLSHandshakeWithIdentities lets crypto/tls, which knows nothing of us,
// verify both sides.
func TestTLSHandshakeWithIdentities(t *testing.T) {
	ca := newCA(t, Config{})
	gw, ag := mustParty(t, ca, gateway, gwHosts), mustParty(t, ca, agent, nil)
	for _, name := range []string{"gw.example.org", "127.0.0.1", "::1"} {
		server, client, err := handshake(t, gw, ag, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if id, err := certid.Of(server.PeerCertificates[0]); err != nil || id != agent {
			t.Errorf("%s: the server sees %+v, %v; want %+v", name, id, err, agent)
		}
		if id, err := certid.Of(client.PeerCertificates[0]); err != nil || id != gateway {
			t.Errorf("%s: the client sees %+v, %v; want %+v", name, id, err, gateway)
		}
		if len(server.PeerCertificates) != 1 {
			t.Errorf("%s: a chain of %d certificates; the root must not be sent", name, len(server.PeerCertificates))
		}
	}
	if _, _, err := handshake(t, gw, ag, "other.example.org"); err == nil {
		t.Error("the certificate is good for another host")
	}
	stranger := mustParty(t, newCA(t, Config{}), agent, nil)
	if _, _, err := handshake(t, gw, stranger, "gw.example.org"); err == nil {
		t.Error("a party of another authority got in")
	}
}

// handshake connects the party client to the party server in memory.
func handshake(t testing.TB, server, client *keystore.Store, host string) (s, c tls.ConnectionState, err error) {
	t.Helper()
	config := func(st *keystore.Store) *tls.Config {
		cert, err1 := st.TLSCertificate(keystore.TLS)
		roots, err2 := st.TLSRoots()
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return &tls.Config{
			Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots,
			ClientAuth: tls.RequireAndVerifyClientCert, ServerName: host, MinVersion: tls.VersionTLS12,
		}
	}
	a, b := net.Pipe()
	sc, cc := tls.Server(a, config(server)), tls.Client(b, config(client))
	done := make(chan error, 1)
	go func() {
		err := sc.Handshake()
		if err != nil {
			_ = a.Close()
		}
		done <- err
	}()
	cerr := cc.Handshake()
	if cerr != nil {
		_ = b.Close()
	}
	// In TLS 1.3 the client ends first; what the server says about its
	// certificate comes with the first read.
	go func() { _, _ = io.Copy(io.Discard, cc) }()
	serr := <-done
	_ = a.Close()
	_ = b.Close()
	return sc.ConnectionState(), cc.ConnectionState(), errors.Join(cerr, serr)
}

func TestMessageCertificates(t *testing.T) {
	ca := newCA(t, Config{})
	ctl := mustParty(t, ca, control, []string{"control.example.org"})
	gw := mustParty(t, ca, gateway, gwHosts)
	for _, c := range []struct {
		store *keystore.Store
		name  string
		root  string
		usage smx509.KeyUsage
		id    certid.Identity
	}{
		{gw, keystore.TLS, keystore.TLSRoot, smx509.KeyUsageDigitalSignature, gateway},
		{gw, keystore.TLCPSign, keystore.TLCPRoot, smx509.KeyUsageDigitalSignature, gateway},
		{gw, keystore.TLCPEnc, keystore.TLCPRoot, smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement, gateway},
		{ctl, keystore.TLCPSign, keystore.TLCPRoot, smx509.KeyUsageDigitalSignature, control},
		{gw, keystore.Sign, keystore.MessageRoot, smx509.KeyUsageDigitalSignature, gateway},
		{gw, keystore.Enc, keystore.MessageRoot, smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement, gateway},
		{gw, keystore.ControlSign, keystore.MessageRoot, smx509.KeyUsageDigitalSignature, control},
		{gw, keystore.ControlEnc, keystore.MessageRoot, smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement, control},
		{ctl, keystore.List, keystore.ListRoot, smx509.KeyUsageDigitalSignature, certid.Identity{ListSigner: "CTL00000001"}},
	} {
		t.Run(c.id.Name()+" "+c.name, func(t *testing.T) {
			cert := chain(t, c.store, c.name)
			for _, root := range rootNames {
				pool, err := c.store.Root(root)
				if err != nil {
					t.Fatal(err)
				}
				_, err = cert.Verify(smx509.VerifyOptions{Roots: pool, KeyUsages: tlsExtKey})
				if (err == nil) != (root == c.root) {
					t.Errorf("under the %s root: %v", root, err)
				}
			}
			if id, err := certid.OfSM(cert); err != nil || id != c.id {
				t.Errorf("identity: got %+v, %v; want %+v", id, err, c.id)
			}
			if cert.KeyUsage != c.usage || cert.IsCA {
				t.Errorf("key usage: got %b, CA %v; want %b", cert.KeyUsage, cert.IsCA, c.usage)
			}
			if sm2.IsSM2PublicKey(cert.PublicKey) == (c.name == keystore.TLS) {
				t.Errorf("key type: got %T on %v", cert.PublicKey, cert.PublicKeyAlgorithm)
			}
			if age := time.Since(cert.NotBefore); age < backDating || age > backDating+time.Minute {
				t.Errorf("not before: %s ago, want 5 minutes", age)
			}
			if len(cert.SubjectKeyId) != 20 || len(cert.AuthorityKeyId) != 20 || cert.SerialNumber.BitLen() != 127 {
				t.Errorf("identifiers: %x %x, serial number of %d bits", cert.SubjectKeyId, cert.AuthorityKeyId, cert.SerialNumber.BitLen())
			}
		})
	}
	if a, b := chain(t, gw, keystore.Sign), chain(t, gw, keystore.Enc); a.SerialNumber.Cmp(b.SerialNumber) == 0 {
		t.Error("two certificates have one serial number")
	}
}

// TestOpenSSLVerifiesEverything has every certificate checked, strictly, by a
// program that we did not write.
func TestOpenSSLVerifiesEverything(t *testing.T) {
	ca := newCA(t, Config{})
	ctl := mustParty(t, ca, control, []string{"control.example.org"})
	gw := mustParty(t, ca, gateway, gwHosts)
	for _, c := range []struct {
		store *keystore.Store
		name  string
		root  string
		text  []string // in x509 -text
	}{
		{gw, keystore.TLS, keystore.TLSRoot, []string{
			"URI:urn:yumen:gateway:GW000000001", "URI:urn:yumen:device:DEV00000001", "DNS:gw.example.org", "IP Address:127.0.0.1",
			"Key Usage: critical\n                Digital Signature\n", "TLS Web Server Authentication, TLS Web Client Authentication", "ecdsa-with-SHA256",
		}},
		{gw, keystore.TLCPSign, keystore.TLCPRoot, []string{
			"URI:urn:yumen:gateway:GW000000001", "DNS:gw.example.org", "IP Address:127.0.0.1", "Key Usage: critical\n                Digital Signature\n",
			"TLS Web Server Authentication, TLS Web Client Authentication", "SM2-with-SM3", "ASN1 OID: SM2",
		}},
		{gw, keystore.TLCPEnc, keystore.TLCPRoot, []string{
			"DNS:gw.example.org", "Key Usage: critical\n                Key Encipherment, Data Encipherment, Key Agreement\n",
		}},
		{gw, keystore.Sign, keystore.MessageRoot, []string{"Key Usage: critical\n                Digital Signature\n", "SM2-with-SM3", "ASN1 OID: SM2"}},
		{gw, keystore.Enc, keystore.MessageRoot, []string{"Key Usage: critical\n                Key Encipherment, Data Encipherment, Key Agreement\n"}},
		{gw, keystore.ControlSign, keystore.MessageRoot, []string{"URI:urn:yumen:control:CTL00000001"}},
		{ctl, keystore.List, keystore.ListRoot, []string{"URI:urn:yumen:listsigner:CTL00000001"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaf, root := filepath.Join(c.store.Dir(), c.name+".crt"), filepath.Join(c.store.Dir(), c.root+"-root.crt")
			args := []string{"verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", root}
			if c.name != keystore.TLS {
				args = append(args, "-vfyopt", "distid:1234567812345678")
			} else {
				// OpenSSL gives the distinguishing identifier to the leaf only,
				// so it cannot check an SM2 root's signature of itself.
				args = append(args, "-check_ss_sig")
			}
			if out, err := openssl(t, append(args, leaf)...); err != nil || !strings.HasSuffix(out, ": OK\n") {
				t.Errorf("openssl verify: %v\n%s", err, out)
			}
			out, err := openssl(t, "x509", "-noout", "-text", "-in", leaf)
			if err != nil {
				t.Fatalf("openssl x509: %v\n%s", err, out)
			}
			for _, want := range c.text {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			out, err = openssl(t, "x509", "-noout", "-text", "-in", root)
			if err != nil {
				t.Fatalf("openssl x509: %v\n%s", err, out)
			}
			for _, want := range []string{
				`Basic Constraints: critical\s+CA:TRUE, pathlen:0\n`,
				`Key Usage: critical\s+Certificate Sign, CRL Sign\n`, `Subject Key Identifier`, `Authority Key Identifier`,
			} {
				if !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("root: no %q in\n%s", want, out)
				}
			}
		})
	}
	// The proof can fail: another root, and another distinguishing identifier.
	leaf := filepath.Join(gw.Dir(), "sign.crt")
	for _, args := range [][]string{
		{"-CAfile", filepath.Join(gw.Dir(), "list-root.crt"), "-vfyopt", "distid:1234567812345678"},
		{"-CAfile", filepath.Join(gw.Dir(), "message-root.crt"), "-vfyopt", "distid:8765432187654321"},
	} {
		if out, err := openssl(t, append(append([]string{"verify"}, args...), leaf)...); err == nil {
			t.Errorf("openssl verify %v: succeeded\n%s", args, out)
		}
	}
}

func TestRequestsAreChecked(t *testing.T) {
	ca := newCA(t, Config{})
	gw := mustParty(t, ca, gateway, nil)
	csr := func(name string) []byte {
		der, err := gw.CSR(name, gateway, nil)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	p256, sm := csr(keystore.TLS), csr(keystore.Sign)
	forged := bytes.Clone(sm)
	forged[len(forged)-1] ^= 1
	for name, err := range map[string]error{
		"P-256 for sign":     last(ca.IssueSign(p256, gateway, Options{})),
		"P-256 for enc":      last(ca.IssueEnc(p256, gateway, Options{})),
		"P-256 for tlcp":     last(ca.IssueTLCPSign(p256, gateway, Options{})),
		"P-256 for list":     last(ca.IssueList(p256, control, Options{})),
		"SM2 for tls":        last(ca.IssueTLS(sm, gateway, Options{})),
		"signature altered":  last(ca.IssueSign(forged, gateway, Options{})),
		"no request":         last(ca.IssueSign(nil, gateway, Options{})),
		"no identity":        last(ca.IssueSign(sm, certid.Identity{}, Options{})),
		"no list identity":   last(ca.IssueList(sm, gateway, Options{})),
		"bad identity":       last(ca.IssueSign(sm, certid.Identity{Agent: "a b"}, Options{})),
		"bad host":           last(ca.IssueTLS(p256, gateway, Options{Hosts: []string{"a b"}})),
		"expired on arrival": last(ca.IssueTLS(p256, gateway, Options{TTL: -time.Second})),
	} {
		if err == nil {
			t.Errorf("%s: a certificate was issued", name)
		}
	}
	// What the request claims beside its key is not taken over.
	out, err := ca.IssueSign(sm, agent, Options{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := keystore.ParseChain(out)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := certid.OfSM(certs[0]); err != nil || id != agent {
		t.Errorf("identity: got %+v, %v; want the caller's %+v", id, err, agent)
	}
	if left := time.Until(certs[0].NotAfter); left > time.Hour || left < 59*time.Minute {
		t.Errorf("life: %s, want 1 hour", left)
	}
}

func last(_ []byte, err error) error { return err }

func TestLeavesEndWithTheRoot(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	ca := newCA(t, Config{RootTTL: 48 * time.Hour, Now: func() time.Time { return now }})
	gw := mustParty(t, ca, gateway, nil)
	if got, want := chain(t, gw, keystore.TLS).NotAfter, now.Add(48*time.Hour); !got.Equal(want) {
		t.Errorf("not after: got %s, want the root's end %s", got, want)
	}
}

func TestSaveLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	ca := newCA(t, Config{Name: "Jade"})
	mustParty(t, ca, control, nil)
	for range 2 { // again is no error
		if err := ca.Save(dir, pass); err != nil {
			t.Fatal(err)
		}
	}
	if err := newCA(t, Config{}).Save(dir, pass); err == nil {
		t.Error("another authority was saved over the first")
	}
	if _, err := Load(dir, []byte("wrong")); err == nil {
		t.Error("loaded with another passphrase")
	}
	if _, err := Load(filepath.Join(dir, "absent"), pass); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent folder: got %v, want fs.ErrNotExist", err)
	}
	back, err := LoadConfig(Config{Iterations: 1}, dir, pass)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range rootNames {
		if !bytes.Equal(back.RootPEM(name), ca.RootPEM(name)) || len(back.RootPEM(name)) == 0 {
			t.Errorf("%s root differs", name)
		}
	}
	gw := mustParty(t, back, gateway, nil)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.RootPEM(keystore.TLSRoot))
	cert, err := gw.TLSCertificate(keystore.TLS)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Errorf("a certificate of the loaded authority: %v", err)
	}
	if got := cert.Leaf.Subject.Organization; len(got) != 1 || got[0] != "Jade" {
		t.Errorf("organization: got %q, want Jade", got)
	}
	if id, err := certid.OfSM(chain(t, gw, keystore.ControlSign)); err != nil || id != control {
		t.Errorf("control center's certificate: got %+v, %v", id, err)
	}
}

func TestPartyDoesNotOverwrite(t *testing.T) {
	ca := newCA(t, Config{})
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := ca.Party(dir, pass, gateway, nil); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Party(dir, pass, gateway, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Party: got %v, want fs.ErrExist", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "tls.key")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key changed: %v", err)
	}
}

func BenchmarkParty(b *testing.B) {
	ca := newCA(b, Config{})
	for b.Loop() {
		mustParty(b, ca, gateway, gwHosts)
	}
}
