package testbed

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/internal/adminsock"
)

// The identifiers of a lone gateway.
const (
	LoneGateway = "GW000000001"
	LoneDevice  = "DEV00000001"
	loneControl = "CTL00000001"
)

// Lone is a gateway alone: its lists come from files that the test signs, its
// clients are known by their certificates.
type Lone struct {
	Dir    string
	Port   int // on 127.0.0.1 and [::1]
	CA     *lab.CA
	Signer *Signer // the right one
	Keys   *keystore.Store
	Admin  *adminsock.Client
	Audit  AuditFile
	// Metrics is the host:port of /metrics.
	Metrics string
	*Process

	apps  []App
	more  string // further lines of gateway.yaml
	roots *x509.CertPool
	tlsCA crypto.Signer // issues certificates with any name
	top   *x509.Certificate
	o     Owner
}

// LoneConfig chooses a lone gateway.
type LoneConfig struct {
	Apps     []App
	Gateway  string // further lines of gateway.yaml
	Grants   []Grant
	Policies []Policy
}

// NewLone makes and starts a lone gateway with version 1 of its lists.
func NewLone(o Owner, c LoneConfig) *Lone {
	o.Helper()
	l := &Lone{Dir: folder(o), Port: Port(o), Metrics: Loopback(false, Port(o)), apps: c.Apps, o: o}
	pass := []byte(randomText(32))
	var err error
	if l.CA, err = lab.New(lab.Config{Name: "Yumen test", Iterations: iterations}); err != nil {
		o.Fatalf("%v", err)
	}
	ctl, err := l.CA.Party(filepath.Join(l.Dir, "control"), pass, certid.Identity{Control: loneControl}, []string{"127.0.0.1"})
	if err != nil {
		o.Fatalf("%v", err)
	}
	if l.Signer, err = newSigner(ctl, loneControl); err != nil {
		o.Fatalf("%v", err)
	}
	dir := filepath.Join(l.Dir, "gateway")
	if err := os.Mkdir(dir, 0o700); err != nil {
		o.Fatalf("%v", err)
	}
	l.Keys, err = l.CA.Party(filepath.Join(dir, "keys"), pass, certid.Identity{Gateway: LoneGateway, Device: LoneDevice}, []string{"127.0.0.1", "::1"})
	if err != nil {
		o.Fatalf("%v", err)
	}
	if err := l.openCA(filepath.Join(l.Dir, "ca"), pass); err != nil {
		o.Fatalf("%v", err)
	}
	var hosts []string
	for _, a := range c.Apps {
		hosts = append(hosts, a.Host())
	}
	config := filepath.Join(dir, "gateway.yaml")
	l.more = c.Gateway
	err = errors.Join(webCertificate(l.CA, dir, hosts), os.WriteFile(filepath.Join(dir, "passphrase"), append(pass, '\n'), 0o600))
	if err != nil {
		o.Fatalf("%v", err)
	}
	l.Rewrite(c.Apps)
	l.PutGrants(l.Grants(1, c.Grants...))
	l.PutPolicies(l.Policies(1, c.Policies...))
	l.Audit, l.Admin = AuditFile{Gateway: config}, adminsock.NewClient(filepath.Join(dir, "state", "admin.sock"))
	l.Process = Run(o, "lone gateway", "gateway", "run", "-c", config)
	l.until(30*time.Second, func() error { _, err := l.Status(); return err })
	return l
}

// Rewrite writes the configuration anew, with these applications. It counts after
// a reload.
func (l *Lone) Rewrite(apps []App) {
	l.o.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `listen: [%q, %q]
keys: {dir: keys, passphrase_file: passphrase}
certificates: [{cert_file: site.crt, key_file: site.key}]
lists: {grants: grants.list, policies: policies.list}
metrics: {listen: %q}
`, Loopback(false, l.Port), Loopback(true, l.Port), l.Metrics)
	writeApps(&b, apps)
	b.WriteString(l.more)
	if err := os.WriteFile(filepath.Join(l.Dir, "gateway", "gateway.yaml"), []byte(b.String()), 0o600); err != nil {
		l.o.Fatalf("%v", err)
	}
}

// openCA gets at the key of the TLS root, for certificates that the laboratory
// does not issue.
func (l *Lone) openCA(dir string, pass []byte) error {
	if err := l.CA.Save(dir, pass); err != nil {
		return err
	}
	ks, err := keystore.Open(dir, pass)
	if err != nil {
		return err
	}
	if l.tlsCA, err = ks.Signer(keystore.TLSRoot + "-ca"); err != nil {
		return err
	}
	block, _ := pem.Decode(l.CA.RootPEM(keystore.TLSRoot))
	if block == nil {
		return errors.New("no TLS root")
	}
	if l.top, err = x509.ParseCertificate(block.Bytes); err != nil {
		return err
	}
	l.roots = x509.NewCertPool()
	l.roots.AddCert(l.top)
	return nil
}

// Status returns the gateway's state.
func (l *Lone) Status() (*gateway.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var st gateway.Status
	return &st, l.Admin.Do(ctx, http.MethodGet, "/status", nil, &st)
}

// Reload asks for a reload and returns why it was refused.
func (l *Lone) Reload() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return l.Admin.Do(ctx, http.MethodPost, "/reload", nil, nil)
}

// Client makes a client certificate of a device and a user; an empty user makes
// one that must sign in.
func (l *Lone) Client(user, device string) *tls.Certificate {
	l.o.Helper()
	return l.issue(l.top, l.tlsCA, user, device, time.Now().Add(time.Hour))
}

// Expired makes a certificate whose time is over.
func (l *Lone) Expired(user, device string) *tls.Certificate {
	l.o.Helper()
	return l.issue(l.top, l.tlsCA, user, device, time.Now().Add(-time.Minute))
}

// Stranger makes a certificate with the same names by another authority.
func (l *Lone) Stranger(user, device string) *tls.Certificate {
	l.o.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	top := *l.top // the same name, another key
	top.PublicKey = key.Public()
	return l.issue(&top, key, user, device, time.Now().Add(time.Hour))
}

func (l *Lone) issue(top *x509.Certificate, ca crypto.Signer, user, device string, until time.Time) *tls.Certificate {
	l.o.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: device}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "urn", Opaque: "yumen:device:" + device}},
	}
	if user != "" {
		t.URIs = append(t.URIs, &url.URL{Scheme: "urn", Opaque: "yumen:user:" + user})
	}
	der, err := x509.CreateCertificate(rand.Reader, t, top, key.Public(), ca)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TLS returns a client's configuration for a host; cert may be nil.
func (l *Lone) TLS(host string, cert *tls.Certificate, protocols ...string) *tls.Config {
	c := &tls.Config{RootCAs: l.roots, ServerName: host, NextProtos: protocols}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c
}

// Dial opens a TLS connection to a host of the gateway.
func (l *Lone) Dial(ctx context.Context, v6 bool, c *tls.Config) (*tls.Conn, error) {
	raw, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", Loopback(v6, l.Port))
	if err != nil {
		return nil, err
	}
	t := tls.Client(raw, c)
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return t, nil
}

// HTTP returns a client that shows cert; h2 chooses the protocol.
func (l *Lone) HTTP(cert *tls.Certificate, h2 bool) *http.Client {
	c := l.TLS("", cert)
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: h2, DisableKeepAlives: !h2,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, Loopback(false, l.Port))
		}}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	l.o.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// URL returns the URL of path on an application's host.
func (l *Lone) URL(a App, path string) string {
	return fmt.Sprintf("https://%s:%d%s", a.Host(), l.Port, path)
}

// Party makes the keys of an agent under the gateway's authority.
func (l *Lone) Party(id certid.Identity) *keystore.Store {
	l.o.Helper()
	ks, err := l.CA.Party(filepath.Join(l.Dir, "party-"+id.Name()+randomText(4)), []byte(randomText(16)), id, nil)
	if err != nil {
		l.o.Fatalf("%v", err)
	}
	return ks
}
