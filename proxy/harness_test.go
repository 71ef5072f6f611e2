package proxy

//lint:file-ignore SA1019 the tests want an HTTP/2 client that does nothing else

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const host = "app.example.test"

// fakeGate grants everything but what refuse names, and keeps what it gave.
type fakeGate struct {
	mu       sync.Mutex
	refuse   func(*policy.Request) access.Refusal
	carriers []access.Carrier
	used     []access.Usage
	paths    []string
	acquired chan access.Carrier
	exact    bool // nobody cuts after Release, as access has it; else exchanges are not used again
}

func (g *fakeGate) app(string) access.App { return access.App{} }

func (g *fakeGate) acquire(f policy.Facts, _ access.App, r *policy.Request, c access.Carrier) (lease, access.Refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse != nil {
		if no := g.refuse(r); no.Reason != reason.OK {
			return nil, no
		}
	}
	l := &fakeLease{g: g}
	if g.exact {
		c = exactly{c, l}
	}
	g.carriers = append(g.carriers, c)
	g.paths = append(g.paths, r.Path)
	select {
	case g.acquired <- c:
	default:
	}
	return l, access.Refusal{}
}

type fakeLease struct {
	g    *fakeGate
	once sync.Once
	over atomic.Bool // cut or released
}

// exactly is a carrier that is cut at most once, and not after the release.
type exactly struct {
	access.Carrier
	l *fakeLease
}

func (e exactly) Cut(r reason.Reason) {
	if e.l.over.CompareAndSwap(false, true) {
		e.Carrier.Cut(r)
	}
}

func (*fakeLease) Lasts() {}

func (l *fakeLease) Release(u access.Usage) bool {
	twice := true
	l.once.Do(func() { twice = false })
	if twice {
		panic("lease released twice")
	}
	l.g.mu.Lock()
	l.g.used = append(l.g.used, u)
	l.g.mu.Unlock()
	return l.g.exact && l.over.CompareAndSwap(false, true)
}

func (g *fakeGate) balance() (leases, released int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.carriers), len(g.used)
}

// everyone is an Authenticator that knows one user.
type everyone struct{}

func (everyone) Authenticate(x *Exchange) (policy.Facts, reason.Reason) {
	return policy.Facts{SessionID: "s1", UserID: "USR00000001", DeviceID: "DEV00000001", Level: 2}, reason.OK
}
func (everyone) Challenge(*Exchange, reason.Reason) bool { return false }

// records is an audit sink.
type records struct {
	mu  sync.Mutex
	all []audit.Record
}

func (r *records) Write(a *audit.Record) {
	r.mu.Lock()
	r.all = append(r.all, *a)
	r.mu.Unlock()
}

type fixture struct {
	t       *testing.T
	p       *Proxy
	gate    *fakeGate
	audit   *records
	alerts  chan alert.Alert
	metrics *prometheus.Registry
	addr    string
	roots   *x509.CertPool
	ca      *testCA
	h2c     *http.Client
}

// h2 returns one HTTP/2 client for the whole test.
func (f *fixture) h2() *http.Client {
	if f.h2c == nil {
		f.h2c = f.client("h2")
	}
	return f.h2c
}

type option func(*fixtureConfig)

type fixtureConfig struct {
	cfg      Config
	app      apps.AppConfig
	network  string
	upstream string
	more     []string // upstreams instead of the one
	second   string   // of the second application; empty: the same
}

func with(f func(*fixtureConfig)) option { return f }

// newFixture runs a proxy on a real TLS socket in front of upstream, a URL.
func newFixture(t *testing.T, upstream string, opts ...option) *fixture {
	t.Helper()
	f := &fixture{t: t, gate: &fakeGate{acquired: make(chan access.Carrier, 16)}, audit: &records{},
		alerts: make(chan alert.Alert, 1024), metrics: prometheus.NewRegistry(), ca: newCA(t)}
	c := fixtureConfig{network: "127.0.0.1:0", upstream: upstream, app: apps.AppConfig{
		ID: "APP00000001", Hosts: []string{host}, AllowAddresses: []string{"127.0.0.0/8", "::1/128"},
	}}
	c.cfg = Config{GatewayID: "GW000000001", Authenticate: everyone{}, Registerer: f.metrics}
	for _, o := range opts {
		o(&c)
	}
	c.app.Upstreams = []string{c.upstream}
	if c.more != nil {
		c.app.Upstreams, c.upstream = c.more, c.more[0]
	}
	c.second = cmp.Or(c.second, c.upstream)
	sink := alert.Func(func(a alert.Alert) {
		select {
		case f.alerts <- a:
		default:
		}
	})
	reg, err := apps.New(apps.Config{Apps: []apps.AppConfig{c.app, {ID: "APP00000002", Hosts: []string{"other.example.test"},
		Upstreams: []string{c.second}, AllowAddresses: []string{"127.0.0.0/8"}}}, Alerts: sink})
	if err != nil {
		t.Fatal(err)
	}
	c.cfg.Apps, c.cfg.Audit, c.cfg.Alerts = reg, f.audit, sink
	if f.p, err = build(c.cfg, f.gate); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", c.network)
	if err != nil {
		t.Fatal(err)
	}
	f.addr, f.roots = l.Addr().String(), f.ca.pool
	server := &tls.Config{Certificates: []tls.Certificate{f.ca.issue(t, "app.example.test", "other.example.test", "*.example.test")},
		NextProtos: []string{"h2", "http/1.1"}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: f.ca.pool}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.p.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				c := tls.Server(hello.Replay(raw, nil), server) // as the listener makes it
				if err := c.HandshakeContext(ctx); err != nil {
					raw.Close()
					return
				}
				s := c.ConnectionState()
				pc := &Conn{Conn: c, Protocol: policy.TLS13, Suite: tls.CipherSuiteName(s.CipherSuite), SNI: s.ServerName,
					ALPN: s.NegotiatedProtocol, Remote: raw.RemoteAddr().(*net.TCPAddr).AddrPort()}
				if len(s.PeerCertificates) > 0 {
					pc.Peer = s.PeerCertificates[0]
				}
				f.p.ServeConn(ctx, pc)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
		if leases, released := f.gate.balance(); leases != released {
			t.Errorf("%d leases, %d released", leases, released)
		}
	})
	return f
}

// client returns a client that speaks proto ("http/1.1" or "h2") to the
// gateway, whatever the URL's host.
func (f *fixture) client(proto string, certs ...tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: f.roots, NextProtos: []string{proto}, Certificates: certs}
	dial := func(ctx context.Context, sni string) (net.Conn, error) {
		c := conf.Clone()
		c.ServerName = sni
		return (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", f.addr)
	}
	var rt http.RoundTripper
	if proto == "h2" {
		t := &http2.Transport{DisableCompression: true, DialTLSContext: func(ctx context.Context, _, addr string, _ *tls.Config) (net.Conn, error) {
			h, _, _ := net.SplitHostPort(addr)
			return dial(ctx, h)
		}}
		f.t.Cleanup(t.CloseIdleConnections)
		rt = t
	} else {
		t := &http.Transport{DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			h, _, _ := net.SplitHostPort(addr)
			return dial(ctx, h)
		}, DisableCompression: true}
		f.t.Cleanup(t.CloseIdleConnections)
		rt = t
	}
	return &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw opens a TLS connection for hand-made HTTP/1.1.
func (f *fixture) raw(sni string) *tls.Conn {
	f.t.Helper()
	c, err := tls.Dial("tcp", f.addr, &tls.Config{RootCAs: f.roots, ServerName: sni, NextProtos: []string{"http/1.1"}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

// exchange sends bytes and returns the first answer's status and whether the
// connection was closed after it.
func (f *fixture) exchange(sni, bytes string, end bool) (status int, closed bool, rest string) {
	f.t.Helper()
	c := f.raw(sni)
	defer c.Close()
	if _, err := io.WriteString(c, bytes); err != nil {
		return 0, true, ""
	}
	if end {
		_ = c.CloseWrite() // no more is coming: the server need not wait for it
	}
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		return 0, !errors.Is(err, os.ErrDeadlineExceeded), ""
	}
	body, _ := io.ReadAll(res.Body)
	more, err := io.ReadAll(br)
	closed = !errors.Is(err, os.ErrDeadlineExceeded)
	return res.StatusCode, closed, string(body) + string(more)
}

func do(t *testing.T, c *http.Client, method, url string, h http.Header, body io.Reader) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range h {
		r.Header[k] = v
	}
	res, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: read body: %v", method, url, err)
	}
	return res, string(b)
}

// testCA issues certificates.
type testCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newCA(t *testing.T) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{key: key, cert: cert, pool: x509.NewCertPool()}
	ca.pool.AddCert(cert)
	return ca
}

// issue makes a certificate; names with a colon become URIs.
func (ca *testCA) issue(t *testing.T, names ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, n := range names {
		if strings.Contains(n, ":") {
			u, err := url.Parse(n)
			if err != nil {
				t.Fatal(err)
			}
			tpl.URIs = append(tpl.URIs, u)
		} else {
			tpl.DNSNames = append(tpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// recorder is an upstream that records the bytes of every request and answers
// each with 200, parsing as little as it can: it counts what a lenient server
// would take for request lines.
type recorder struct {
	l  net.Listener
	mu sync.Mutex
	b  bytes.Buffer
	n  map[string]int // by path
	wg sync.WaitGroup
}

func newRecorder(t *testing.T) *recorder {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{l: l, n: map[string]int{}}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); r.wg.Wait() })
	return r
}

func (r *recorder) url() string { return "http://" + r.l.Addr().String() }

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(io.TeeReader(c, writerFunc(func(p []byte) {
		r.mu.Lock()
		r.b.Write(p)
		r.mu.Unlock()
	})))
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.n[req.URL.Path]++
		r.mu.Unlock()
		_, _ = io.Copy(io.Discard, req.Body)
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

func (r *recorder) seen(path string) (requests int, bytes string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n[path], r.b.String()
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// rawUpstream answers each connection's first request with raw and closes.
func rawUpstream(t *testing.T, raw string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_, _ = io.WriteString(c, raw)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return "http://" + l.Addr().String()
}
