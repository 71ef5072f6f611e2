package listen

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority issues the certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) issue(t testing.TB, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore: until.Add(-2 * time.Hour), NotAfter: until,
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// usage issues a certificate that is no client's.
func (a *authority) usage(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		KeyUsage: x509.KeyUsageDigitalSignature, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

type recorder struct {
	mu      sync.Mutex
	records []audit.Record
}

func (r *recorder) Write(rec *audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, *rec)
}

type fixture struct {
	ca      *authority
	port    *Port
	address string
	audit   *recorder
	reg     *prometheus.Registry
}

// start serves a port whose handler answers with "ALPN SNI peer\n" and waits
// for the client to close.
func start(t *testing.T, address string, limits Limits) *fixture {
	t.Helper()
	f := &fixture{ca: newAuthority(t), audit: &recorder{}, reg: prometheus.NewRegistry()}
	site := Bounded(f.ca.issue(t, time.Now().Add(time.Hour), "app.example", "secret.example"))
	answer := func(ctx context.Context, c *Conn) {
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		peer := "-"
		if c.Peer != nil {
			peer = c.Peer.Subject.CommonName
		}
		io.WriteString(c, c.ALPN+" "+c.SNI+" "+peer+"\n")
		io.Copy(io.Discard, c)
	}
	port, err := New(Config{
		Handlers: map[string]Handler{HTTP1: answer, HTTP2: answer, Tunnel: answer},
		Faces: &Faces{
			Certificate: func(string) (*tls.Certificate, error) { return &site, nil },
			Demand:      func(name string) bool { return name == "secret.example" },
			ClientRoots: f.ca.pool(),
		},
		Limits: limits, Drain: time.Second, Audit: f.audit, Registerer: f.reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.run(t, port, address)
	return f
}

func (f *fixture) dial(t *testing.T, cfg *tls.Config) (*tls.Conn, string, error) {
	t.Helper()
	cfg.RootCAs = f.ca.pool()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 30 * time.Second}, Config: cfg}
	raw, err := d.DialContext(t.Context(), "tcp", f.address)
	if err != nil {
		return nil, "", err
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetReadDeadline(time.Now().Add(30 * time.Second))
	line, err := bufio.NewReader(raw).ReadString('\n')
	return raw.(*tls.Conn), strings.TrimSpace(line), err
}

func TestGCR002_M4_M16_HandshakesByVersionALPNAndFamily(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		f := start(t, address, Limits{})
		device := f.ca.issue(t, time.Now().Add(time.Hour), "device-1")
		for name, c := range map[string]struct {
			cfg  *tls.Config
			want string
		}{
			"tls1.3 h2":        {&tls.Config{ServerName: "app.example", NextProtos: []string{"h2", "http/1.1"}}, "h2 app.example -"},
			"tls1.2 h1":        {&tls.Config{ServerName: "app.example", NextProtos: []string{"http/1.1"}, MaxVersion: tls.VersionTLS12}, "http/1.1 app.example -"},
			"no alpn":          {&tls.Config{ServerName: "app.example"}, "app.example -"},
			"host with device": {&tls.Config{ServerName: "secret.example", Certificates: []tls.Certificate{device}}, "secret.example device-1"},
			"tunnel":           {&tls.Config{ServerName: "app.example", NextProtos: []string{Tunnel}, Certificates: []tls.Certificate{device}}, "yumen/1 app.example device-1"},
			"app with device":  {&tls.Config{ServerName: "app.example", Certificates: []tls.Certificate{device}}, "app.example -"},
		} {
			if _, got, err := f.dial(t, c.cfg); err != nil || got != c.want {
				t.Errorf("%s over %s: %q, %v, want %q", name, address, got, err, c.want)
			}
		}
	}
}

func TestGCR002_M16_OldVersionsAreRefused(t *testing.T) {
	f := start(t, "127.0.0.1:0", Limits{})
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		_, _, err := f.dial(t, &tls.Config{ServerName: "app.example", MinVersion: v, MaxVersion: v})
		if err == nil {
			t.Errorf("version 0x%04x was accepted", v)
		}
	}
	eventually(t, func() (float64, bool) {
		n := testutil.ToFloat64(f.port.metrics.handshakes.WithLabelValues("unknown", reason.TLSVersion.String()))
		return n, n == 2
	})
}

// A wrong client certificate is refused with its own reason and audited.
func TestGCR002_M3_ClientCertificates(t *testing.T) {
	f := start(t, "127.0.0.1:0", Limits{})
	stranger := newAuthority(t)
	for name, c := range map[string]struct {
		cert *tls.Certificate
		want reason.Reason
	}{
		"none":    {nil, reason.ClientCertAbsent},
		"foreign": {ptr(stranger.issue(t, time.Now().Add(time.Hour), "device-9")), reason.ClientCertIssuer},
		"expired": {ptr(f.ca.issue(t, time.Now().Add(-time.Minute), "device-1")), reason.ClientCertGone},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := &tls.Config{ServerName: "secret.example", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if c.cert == nil {
					return &tls.Certificate{}, nil
				}
				return c.cert, nil
			}}
			before := len(f.audited())
			if _, line, err := f.dial(t, cfg); err == nil {
				t.Fatalf("let in: %q", line)
			}
			all := f.waitAudited(t, before+1)
			if got := all[before]; got.Code != c.want || got.Allowed || got.Remote == "" || got.Object != "secret.example" {
				t.Errorf("audit %+v, want reason %s", got, c.want)
			}
		})
	}
}

func (f *fixture) audited() []audit.Record {
	f.audit.mu.Lock()
	defer f.audit.mu.Unlock()
	return append([]audit.Record(nil), f.audit.records...)
}

func (f *fixture) waitAudited(t *testing.T, n int) []audit.Record {
	t.Helper()
	return eventually(t, func() ([]audit.Record, bool) { a := f.audited(); return a, len(a) >= n })
}

// eventually polls for a state that another goroutine reaches.
func eventually[T any](t *testing.T, f func() (T, bool)) T {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		v, ok := f()
		if ok {
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %+v after 5 s", v)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func ptr[T any](v T) *T { return &v }

func TestGCR002_M1_PlainHTTPGetsOneAnswerAndNothingElse(t *testing.T) {
	f := start(t, "127.0.0.1:0", Limits{})
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /secret HTTP/1.1\r\nHost: app.example\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	answer, _ := io.ReadAll(c)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) || !bytes.Contains(answer, []byte("YM-105")) {
		t.Errorf("answer %q", answer)
	}
}

// Accept must go on while others are silent, and a silent one must end.
func TestSilentConnectionsEndAndBlockNobody(t *testing.T) {
	f := start(t, "127.0.0.1:0", Limits{Hello: 300 * time.Millisecond})
	var silent []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{22, 3, 1}) // the beginning of a record
		silent = append(silent, c)
	}
	if _, got, err := f.dial(t, &tls.Config{ServerName: "app.example"}); err != nil || got != "app.example -" {
		t.Fatalf("beside silent connections: %q, %v", got, err)
	}
	for _, c := range silent {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("a silent connection was not closed: %v", err)
		}
	}
	if n := f.port.half.count(); n != 0 {
		t.Errorf("%d half-open connections are left", n)
	}
}

func TestHalfOpenOldestGoesFirst(t *testing.T) {
	f := start(t, "127.0.0.1:0", Limits{HalfOpen: 4})
	var silent []net.Conn
	for range 8 {
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
		want := min(len(silent), 4)
		eventually(t, func() (int, bool) { n := f.port.half.count(); return n, n == want })
	}
	for i, c := range silent[:4] {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("connection %d of the oldest four lives: %v", i, err)
		}
	}
	if _, got, err := f.dial(t, &tls.Config{ServerName: "app.example"}); err != nil || got == "" {
		t.Errorf("a real client beside them: %q, %v", got, err)
	}
}

func TestSourceLimits(t *testing.T) {
	f := start(t, "127.0.0.1:0", Limits{ConnectionsPerSource: 3})
	for i := range 3 {
		if _, _, err := f.dial(t, &tls.Config{ServerName: "app.example"}); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if _, _, err := f.dial(t, &tls.Config{ServerName: "app.example"}); err == nil {
		t.Error("the fourth connection of a source was accepted")
	}
	if got := testutil.ToFloat64(f.port.metrics.drops.WithLabelValues("listen", reason.SourceLimit.String())); got != 1 {
		t.Errorf("counted %v, want 1", got)
	}
}

func (h *halfOpen) count() int { n, _ := h.size(); return n }

func captureHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	return capture(t, func(c net.Conn) { _ = tls.Client(c, cfg).Handshake() })
}

// capture returns the first record that client sends.
func capture(t testing.TB, client func(net.Conn)) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	go func() { client(near); near.Close() }()
	head := make([]byte, 5)
	if _, err := io.ReadFull(far, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(far, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}
