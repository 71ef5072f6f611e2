package listen

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/yumen-zt/yumen/crypto/failed"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
)

// smAuthority issues TLCP pairs.
type smAuthority struct {
	cert *smx509.Certificate
	key  *sm2.PrivateKey
}

func newSMAuthority(t testing.TB) *smAuthority {
	t.Helper()
	key, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &smAuthority{key: key}
	a.cert = a.sign(t, &smx509.Certificate{
		Subject: pkix.Name{CommonName: "SM2 test root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: smx509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: key.X.Bytes()[:20],
	}, key)
	return a
}

func (a *smAuthority) sign(t testing.TB, c *smx509.Certificate, key *sm2.PrivateKey) *smx509.Certificate {
	t.Helper()
	parent := a.cert
	if parent == nil {
		parent = c
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := smx509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := smx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

const (
	forSigning    = smx509.KeyUsageDigitalSignature
	forEncryption = smx509.KeyUsageKeyEncipherment | smx509.KeyUsageKeyAgreement
)

func (a *smAuthority) leaf(t testing.TB, usage smx509.KeyUsage, edit func(*smx509.Certificate), names ...string) tlcp.Certificate {
	t.Helper()
	key, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &smx509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, KeyUsage: usage,
		ExtKeyUsage: []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth, smx509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if edit != nil {
		edit(c)
	}
	return tlcp.Certificate{Chain: []*smx509.Certificate{a.sign(t, c, key)}, Key: key}
}

func (a *smAuthority) pair(t testing.TB, names ...string) *tlcp.Pair {
	t.Helper()
	return newPair(t, a.leaf(t, forSigning, nil, names...), a.leaf(t, forEncryption, nil, names...))
}

func newPair(t testing.TB, sign, enc tlcp.Certificate) *tlcp.Pair {
	t.Helper()
	p, err := tlcp.NewPair(sign, enc)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (a *smAuthority) pool() *smx509.CertPool {
	p := smx509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// both is a port with both protocols. Its handler answers with a line
// "protocol suite ALPN SNI peer" and waits for the client to close.
type both struct {
	*fixture
	sm    *smAuthority
	pair  *tlcp.Pair
	logs  *observer.ObservedLogs
	faces func(func(*Faces)) *Faces
}

func startBoth(t testing.TB, address string, limits Limits) *both {
	t.Helper()
	f := &both{fixture: &fixture{ca: newAuthority(t), audit: &recorder{}, reg: prometheus.NewRegistry()}, sm: newSMAuthority(t)}
	names := []string{"app.example", "secret.example", "curl.example"}
	site := Bounded(f.ca.issue(t, time.Now().Add(time.Hour), names...))
	f.pair = BoundedPair(f.sm.pair(t, names...))
	f.faces = func(edit func(*Faces)) *Faces {
		faces := &Faces{
			Certificate: func(string) (*tls.Certificate, error) { return &site, nil },
			Pair: func(name string) (*tlcp.Pair, error) {
				if name == "unknown.example" {
					return nil, fmt.Errorf("no certificate for %q", name)
				}
				return f.pair, nil
			},
			Demand:      func(name string) bool { return name == "secret.example" },
			ClientRoots: f.ca.pool(), ClientRootsTLCP: f.sm.pool(),
		}
		if edit != nil {
			edit(faces)
		}
		return faces
	}
	answer := func(ctx context.Context, c *Conn) {
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		peer := "-"
		if c.Peer != nil {
			peer = c.Peer.Subject.CommonName
		}
		line := fmt.Sprintf("%s %s %s %s %s\n", c.Protocol, c.Suite, c.ALPN, c.SNI, peer)
		if c.SNI == "curl.example" {
			line = fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(line), line)
		}
		io.WriteString(c, line)
		io.Copy(io.Discard, c)
	}
	core, logs := observer.New(zapcore.InfoLevel)
	f.logs = logs
	port, err := New(Config{
		Handlers: map[string]Handler{HTTP1: answer, HTTP2: answer, Tunnel: answer}, Faces: f.faces(nil),
		Limits: limits, Drain: time.Second, Audit: f.audit, Registerer: f.reg, Logger: zap.New(core),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.run(t, port, address)
	return f
}

// run serves port until the test ends.
func (f *fixture) run(t testing.TB, port *Port, address string) {
	t.Helper()
	ln, err := Listen(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	f.port, f.address = port, ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- port.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// tlcp returns the port's line for a TLCP client.
func (f *both) tlcp(t testing.TB, cfg *tlcp.Config) (*tlcp.Conn, string, error) {
	t.Helper()
	if cfg.RootCAs == nil {
		cfg.RootCAs = f.sm.pool()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := tlcp.Dial(ctx, "tcp", f.address, cfg)
	if err != nil {
		return nil, "", err
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	return c, strings.TrimSpace(line), err
}

func TestGCR002_M4_M5_TLCPByALPNFaceAndFamily(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		f := startBoth(t, address, Limits{})
		device := f.sm.pair(t, "device-1")
		for name, c := range map[string]struct {
			cfg  *tlcp.Config
			want string
		}{
			"h2":               {&tlcp.Config{ServerName: "app.example", NextProtos: []string{"h2", "http/1.1"}}, "tlcp ECC_SM4_GCM_SM3 h2 app.example -"},
			"h1, CBC":          {&tlcp.Config{ServerName: "app.example", NextProtos: []string{"http/1.1"}, CipherSuites: []uint16{tlcp.ECC_SM4_CBC_SM3}}, "tlcp ECC_SM4_CBC_SM3 http/1.1 app.example -"},
			"no alpn":          {&tlcp.Config{ServerName: "app.example"}, "tlcp ECC_SM4_GCM_SM3  app.example -"},
			"no extensions":    {&tlcp.Config{ServerName: "app.example", NoExtensions: true}, "tlcp ECC_SM4_GCM_SM3   -"},
			"host with device": {&tlcp.Config{ServerName: "secret.example", Certificates: []*tlcp.Pair{device}}, "tlcp ECDHE_SM4_GCM_SM3  secret.example device-1"},
			"tunnel":           {&tlcp.Config{ServerName: "app.example", NextProtos: []string{Tunnel}, Certificates: []*tlcp.Pair{device}}, "tlcp ECDHE_SM4_GCM_SM3 yumen/1 app.example device-1"},
			"browser, device":  {&tlcp.Config{ServerName: "secret.example", Certificates: []*tlcp.Pair{device}, CipherSuites: []uint16{tlcp.ECC_SM4_GCM_SM3}}, "tlcp ECC_SM4_GCM_SM3  secret.example device-1"},
			"app with device":  {&tlcp.Config{ServerName: "app.example", Certificates: []*tlcp.Pair{device}}, "tlcp ECC_SM4_GCM_SM3  app.example -"},
		} {
			if _, got, err := f.tlcp(t, c.cfg); err != nil || got != c.want {
				t.Errorf("%s over %s: %q, %v, want %q", name, address, got, err, c.want)
			}
		}
		if _, got, err := f.dial(t, &tls.Config{ServerName: "app.example", NextProtos: []string{"h2"}}); err != nil || got != "tls1.3 TLS_AES_128_GCM_SHA256 h2 app.example -" {
			t.Errorf("TLS beside it: %q, %v", got, err)
		}
	}
}

// Why a handshake failed stands in the metric, the log and the audit, with what
// the client offered.
func TestS23_S24_FailuresAreDecoded(t *testing.T) {
	f := startBoth(t, "127.0.0.1:0", Limits{})
	device, stranger := f.sm.pair(t, "device-1"), newSMAuthority(t)
	uri := func(s string) func(*smx509.Certificate) {
		return func(c *smx509.Certificate) { u, _ := url.Parse(s); c.URIs = []*url.URL{u} }
	}
	old := func(c *smx509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	unused := func(c *smx509.Certificate) { c.KeyUsage = 0 }
	serverOnly := func(c *smx509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }
	with := func(sign, enc tlcp.Certificate) *tlcp.Config {
		return &tlcp.Config{ServerName: "secret.example", Certificates: []*tlcp.Pair{newPair(t, sign, enc)}}
	}
	sign := func(edit func(*smx509.Certificate)) tlcp.Certificate {
		return f.sm.leaf(t, forSigning, edit, "device-1")
	}
	enc := func(edit func(*smx509.Certificate)) tlcp.Certificate {
		return f.sm.leaf(t, forEncryption, edit, "device-1")
	}
	for name, c := range map[string]struct {
		tlcp *tlcp.Config
		tls  *tls.Config
		want reason.Reason
		says string // in log and audit
	}{
		"no certificate":          {tlcp: &tlcp.Config{ServerName: "secret.example"}, want: reason.ClientCertAbsent, says: "presented no certificate"},
		"foreign":                 {tlcp: &tlcp.Config{ServerName: "secret.example", Certificates: []*tlcp.Pair{stranger.pair(t, "x")}}, want: reason.ClientCertIssuer, says: "signing certificate"},
		"expired, enc":            {tlcp: with(sign(nil), enc(old)), want: reason.ClientCertGone, says: "encryption certificate"},
		"expired, sign":           {tlcp: with(sign(old), enc(nil)), want: reason.ClientCertGone, says: "signing certificate"},
		"no usage":                {tlcp: with(sign(unused), enc(nil)), want: reason.ClientCertUsage, says: "not for signatures"},
		"server's":                {tlcp: with(sign(serverOnly), enc(nil)), want: reason.ClientCertUsage, says: "signing certificate"},
		"two parties":             {tlcp: with(sign(uri("urn:yumen:device:D1")), enc(uri("urn:yumen:device:D2"))), want: reason.ClientCertBad, says: "D1"},
		"tunnel, no ECDHE":        {tlcp: &tlcp.Config{ServerName: "app.example", NextProtos: []string{Tunnel}, Certificates: []*tlcp.Pair{device}, CipherSuites: []uint16{tlcp.ECC_SM4_GCM_SM3}}, want: reason.NoCommonSuite, says: "suites E053"},
		"other protocols":         {tlcp: &tlcp.Config{ServerName: "app.example", NextProtos: []string{"smtp"}}, want: reason.ALPNRefused, says: "smtp"},
		"unknown name":            {tlcp: &tlcp.Config{ServerName: "unknown.example"}, want: reason.SNIUnknown, says: "unknown.example"},
		"client's refusal":        {tlcp: &tlcp.Config{ServerName: "app.example", RootCAs: stranger.pool()}, want: reason.PeerAlert, says: "unknown_ca"},
		"tls, client's refusal":   {tls: &tls.Config{ServerName: "other.example"}, want: reason.PeerAlert, says: "bad certificate"},
		"tls, suites":             {tls: &tls.Config{ServerName: "app.example", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}}, want: reason.NoCommonSuite, says: "suites 002F"},
		"tls, other protocols":    {tls: &tls.Config{ServerName: "app.example", NextProtos: []string{"smtp"}}, want: reason.ALPNRefused, says: "smtp"},
		"tls, version":            {tls: &tls.Config{ServerName: "app.example", MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}, want: reason.TLSVersion, says: "TLS1.1"},
		"tls, certificate's use":  {tls: &tls.Config{ServerName: "secret.example", Certificates: []tls.Certificate{f.ca.usage(t, "device-1")}}, want: reason.ClientCertUsage, says: "incompatible key usage"},
		"tls 1.3, no certificate": {tls: &tls.Config{ServerName: "secret.example"}, want: reason.ClientCertAbsent, says: "offered versions TLS1.3"},
	} {
		t.Run(name, func(t *testing.T) {
			protocol := "tlcp"
			if c.tls != nil {
				protocol = "tls1.3"
				switch c.tls.MaxVersion {
				case tls.VersionTLS12:
					protocol = "tls1.2"
				case tls.VersionTLS11:
					protocol = "unknown"
				}
			}
			counter := f.port.metrics.handshakes.WithLabelValues(protocol, c.want.String())
			before, audited := testutil.ToFloat64(counter), len(f.audited())
			var line string
			var err error
			if c.tls != nil {
				_, line, err = f.dial(t, c.tls)
			} else {
				_, line, err = f.tlcp(t, c.tlcp)
			}
			if err == nil {
				t.Fatalf("let in: %q", line)
			}
			rec := f.waitAudited(t, audited+1)[audited]
			if rec.Code != c.want || rec.Allowed || rec.Protocol != protocol || !strings.Contains(rec.Detail, c.says) || !strings.Contains(rec.Detail, "offered versions ") {
				t.Errorf("audit %+v, want %s and %q", rec, c.want, c.says)
			}
			if got := testutil.ToFloat64(counter); got != before+1 {
				t.Errorf("counted %v as %s of %s", got-before, c.want, protocol)
			}
			logged := f.logs.TakeAll()
			if len(logged) != 1 || logged[0].ContextMap()["reason"] != c.want.String() || !strings.Contains(logged[0].ContextMap()["error"].(string), c.says) {
				t.Errorf("logged %+v", logged)
			}
		})
	}
}

func TestS24_TheProfileSaysWhichProtocols(t *testing.T) {
	f := startBoth(t, "127.0.0.1:0", Limits{})
	tlsClient := &tls.Config{ServerName: "app.example"}
	asTLS := func() error { _, _, err := f.dial(t, tlsClient.Clone()); return err }
	asTLCP := func() error { _, _, err := f.tlcp(t, &tlcp.Config{ServerName: "app.example"}); return err }
	count := func(protocol string, r reason.Reason) float64 {
		return testutil.ToFloat64(f.port.metrics.handshakes.WithLabelValues(protocol, r.String()))
	}

	f.port.SetFaces(f.faces(func(s *Faces) { s.NoTLS = true }))
	if err := asTLS(); err == nil || !strings.Contains(err.Error(), "protocol version not supported") {
		t.Errorf("TLS at gm: %v, want the alert", err)
	}
	if err := asTLCP(); err != nil {
		t.Errorf("TLCP at gm: %v", err)
	}
	f.port.SetFaces(f.faces(func(s *Faces) { s.NoTLCP = true }))
	var alert *tlcp.AlertError
	if err := asTLCP(); !errors.As(err, &alert) || !alert.Remote || alert.Alert != tlcp.AlertProtocolVersion {
		t.Errorf("TLCP at intl: %v, want the alert", err)
	}
	if err := asTLS(); err != nil {
		t.Errorf("TLS at intl: %v", err)
	}
	f.port.SetFaces(f.faces(func(s *Faces) { s.Pair = nil }))
	if err := asTLCP(); err == nil {
		t.Error("TLCP without certificates was served")
	}
	eventually(t, func() ([2]float64, bool) {
		n := [2]float64{count("tls1.3", reason.TLSRefused), count("tlcp", reason.TLCPRefused)}
		return n, n == [2]float64{1, 2}
	})
}

// A browser that lists TLCP suites in its TLS hello is sent back to try TLCP,
// when that is asked for; every other TLS client is served.
func TestPreferTLCP(t *testing.T) {
	f := startBoth(t, "127.0.0.1:0", Limits{})
	browser := captureHello(t, &tls.Config{ServerName: "app.example"})
	const suites = 5 + 4 + 2 + 32 + 33 + 2 // headers, version, random, session id of 32 bytes, length
	browser[suites], browser[suites+1] = 0xe0, 0x53
	say := func() []byte {
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(browser)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 7)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	if got := say(); got[0] != 22 {
		t.Errorf("by default such a browser gets % x, want a ServerHello", got)
	}
	f.port.SetFaces(f.faces(func(s *Faces) { s.PreferTLCP = true }))
	if got := say(); got[0] != 21 || got[5] != 2 || got[6] != 40 {
		t.Errorf("it gets % x, want handshake_failure", got)
	}
	if _, got, err := f.dial(t, &tls.Config{ServerName: "app.example"}); err != nil || !strings.HasPrefix(got, "tls1.3") {
		t.Errorf("another TLS client: %q, %v", got, err)
	}
	f.port.SetFaces(f.faces(func(s *Faces) { s.NoTLS = true }))
	if got := say(); got[0] != 21 || got[5] != 2 || got[6] != 40 {
		t.Errorf("at gm it gets % x, want handshake_failure, at which it tries TLCP", got)
	}
	if n := len(f.audited()); n != 0 {
		t.Errorf("%d audit records of browsers that come back", n)
	}
	if _, _, err := f.tlcp(t, &tlcp.Config{ServerName: "app.example"}); err != nil {
		t.Errorf("the browser's second attempt: %v", err)
	}
}

// A TLCP session is of use at its face alone; after a reload it counts as long
// as the client's certificates would.
func TestTLCPSessionsStayWithTheirFace(t *testing.T) {
	for _, tickets := range []bool{false, true} {
		f := startBoth(t, "127.0.0.1:0", Limits{})
		device := f.sm.pair(t, "device-1")
		open, shown := tlcp.NewLRUSessionCache(8), tlcp.NewLRUSessionCache(8)
		dial := func(cache tlcp.SessionCache, cfg *tlcp.Config) (bool, string, error) {
			cfg.SessionCache, cfg.OfferTickets = anyName{cache}, tickets
			c, line, err := f.tlcp(t, cfg)
			return err == nil && c.ConnectionState().DidResume, line, err
		}
		with := func(name string) *tlcp.Config {
			return &tlcp.Config{ServerName: name, Certificates: []*tlcp.Pair{device}}
		}
		for i := range 2 {
			if resumed, _, err := dial(open, &tlcp.Config{ServerName: "app.example"}); err != nil || resumed != (i == 1) {
				t.Fatalf("open, connection %d: resumed %v, %v", i, resumed, err)
			}
			if resumed, line, err := dial(shown, with("secret.example")); err != nil || resumed != (i == 1) || !strings.HasSuffix(line, " device-1") {
				t.Fatalf("device, connection %d: resumed %v, %q, %v", i, resumed, line, err)
			}
		}
		if _, line, err := dial(open, &tlcp.Config{ServerName: "secret.example"}); err == nil {
			t.Errorf("tickets %v: an open session entered the face of devices: %q", tickets, line)
		}
		tunnel := with("secret.example")
		tunnel.NextProtos = []string{Tunnel}
		if resumed, _, err := dial(shown, tunnel); err != nil || resumed {
			t.Errorf("tickets %v: a session of HTTP was resumed in the tunnel: %v, %v", tickets, resumed, err)
		}
		if _, _, err := dial(shown, with("secret.example")); err != nil {
			t.Fatal(err)
		}
		f.port.SetFaces(f.faces(nil))
		if resumed, line, err := dial(shown, with("secret.example")); err != nil || !resumed || !strings.HasSuffix(line, " device-1") {
			t.Errorf("tickets %v: after a reload resumed %v, %q, %v", tickets, resumed, line, err)
		}
		f.port.SetFaces(f.faces(func(s *Faces) { s.ClientRootsTLCP = newSMAuthority(t).pool() }))
		if resumed, line, err := dial(shown, with("secret.example")); err == nil {
			t.Errorf("tickets %v: a session outlived its authority: resumed %v, %q", tickets, resumed, line)
		}
	}
}

// anyName gives every server name the newest session, as a hostile client would.
type anyName struct{ tlcp.SessionCache }

func (c anyName) Get(string) *tlcp.Session      { return c.SessionCache.Get("any") }
func (c anyName) Put(_ string, s *tlcp.Session) { c.SessionCache.Put("any", s) }

func TestTicketKeysAreReplaced(t *testing.T) {
	s := newSessions().open
	now := time.Now()
	first, until := s.ticketKeys(now)
	if again, _ := s.ticketKeys(until.Add(-time.Second)); string(again[0]) != string(first[0]) || len(again) != 1 {
		t.Error("the key changed before its time")
	}
	next, _ := s.ticketKeys(until)
	last, _ := s.ticketKeys(until.Add(ticketLife))
	if len(next) != 2 || string(next[1]) != string(first[0]) || len(last) != 2 || string(last[1]) != string(next[0]) || string(last[0]) == string(next[0]) {
		t.Errorf("keys %x, then %x, then %x", first, next, last)
	}
}

// What no test of a handshake makes: faults of our own, lists of revoked
// certificates, alerts in their bare form.
func TestClassify(t *testing.T) {
	ours := func(a tlcp.Alert, err error) error {
		return fmt.Errorf("handshake: %w", &tlcp.AlertError{Alert: a, Err: err})
	}
	for _, c := range []struct {
		err  error
		want reason.Reason
	}{
		{ours(tlcp.AlertCertificateRevoked, fmt.Errorf("verify signing certificate: %w", tlcp.ErrRevoked)), reason.ClientCertGone},
		{ours(tlcp.AlertHandshakeFailure, tlcp.ErrNoClientCertificate), reason.ClientCertAbsent},
		{ours(tlcp.AlertInternalError, errors.New("sign key exchange")), reason.InternalError},
		{ours(tlcp.AlertDecryptError, errors.New("finished")), reason.HandshakeFailed},
		{&tlcp.AlertError{Alert: tlcp.AlertCertificateExpired, Remote: true}, reason.PeerAlert},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: unknown certificate authority")}, reason.PeerAlert},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, reason.ClientGone},
		{smx509.CertificateInvalidError{Reason: smx509.IncompatibleUsage}, reason.ClientCertUsage},
		{context.DeadlineExceeded, reason.HelloTimeout},
		{errTooCostly, reason.HandshakeLimit},
		{errors.New("something else"), reason.HandshakeFailed},
	} {
		if got := failed.Reason(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}
