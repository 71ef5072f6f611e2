package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

func TestMain(m *testing.M) {
	if args := os.Getenv(agentsEnv); args != "" {
		if err := agents(args); err != nil {
			panic(err)
		}
		return
	}
	var err error
	if tempRoot, err = os.MkdirTemp("", "tunnel"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(tempRoot)
		os.Exit(code)
	}))
}

const (
	gatewayID, gatewayDevice = "GW000000001", "DEV00000099"
	appID, otherApp, secret  = "APP00000001", "APP00000002", "APP00000003"
)

// party is an agent of the tests: its keys, user and token.
type party struct {
	keys                       *keystore.Store
	agent, device, user, token string
}

// pki is made once: key generation is slow.
var pki = sync.OnceValues(func() (map[string]*keystore.Store, error) {
	ca, err := lab.New(lab.Config{Iterations: 1000})
	if err != nil {
		return nil, err
	}
	out := map[string]*keystore.Store{}
	for name, id := range map[string]certid.Identity{
		"gateway": {Gateway: gatewayID, Device: gatewayDevice},
		"alice":   {Agent: "AGT00000001", Device: "DEV00000001"},
		"bob":     {Agent: "AGT00000002", Device: "DEV00000002"},
		"nobody":  {Device: "DEV00000003"},
	} {
		if out[name], err = ca.Party(tempDir(name), []byte("test"), id, []string{"gateway.example", "127.0.0.1", "::1"}); err != nil {
			return nil, err
		}
	}
	return out, nil
})

var (
	tempRoot string
	tempDir  = func(name string) string { return tempRoot + "/" + name }
)

// recorder keeps alerts and audit records.
type recorder struct {
	mu     sync.Mutex
	alerts []alert.Alert
	audits []audit.Record
	next   alert.Sink // the server
}

func (r *recorder) Raise(a alert.Alert) {
	r.mu.Lock()
	r.alerts = append(r.alerts, a)
	next := r.next
	r.mu.Unlock()
	if next != nil {
		next.Raise(a)
	}
}

func (r *recorder) Write(a *audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.audits = append(r.audits, *a)
}

func (r *recorder) raised(c alert.Code) (alert.Alert, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.alerts {
		if a.Code == c {
			return a, true
		}
	}
	return alert.Alert{}, false
}

func (r *recorder) audited(kind audit.Kind, object string) (n int, last audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.audits {
		if a.Kind == kind && (object == "" || a.Object == object) {
			n, last = n+1, a
		}
	}
	return n, last
}

// world is a gateway's tunnel server on a real TLS port, real access, and an
// echo application.
type world struct {
	t          *testing.T
	host       string // "127.0.0.1" or "::1"
	srv        *Server
	access     *access.Access
	rec        *recorder
	port       string // of the gateway
	echo       uint16
	other      uint16 // a port that no application has
	hits       chan string
	alice, bob party
	clock      *clock
}

// clock is the wall clock and what a test adds to it.
type clock struct {
	mu  sync.Mutex
	add time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.add)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add += d
}

func newWorld(t *testing.T, host string, limits Limits) *world {
	t.Helper()
	keys, err := pki()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, host: host, rec: &recorder{}, clock: &clock{}, hits: make(chan string, 64)}
	w.alice = party{keys["alice"], "AGT00000001", "DEV00000001", "USR00000001", "tokenAlice1"}
	w.bob = party{keys["bob"], "AGT00000002", "DEV00000002", "USR00000002", "tokenBob001"}
	w.echo = w.serveEcho()
	w.other = w.serveOther()

	registry, err := apps.New(apps.Config{Apps: []apps.AppConfig{
		w.app(appID, w.echo), w.app(otherApp, w.echo), w.app(secret, w.other),
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.access = access.New(access.Config{GatewayID: gatewayID, Audit: w.rec, Alerts: w.rec, Now: w.clock.now})
	w.apply(w.input())
	recv, err := envelope.NewReceiver(envelope.Config{
		ID: gatewayID, Decrypter: must(keys["gateway"].Decrypter(keystore.Enc)), RequireSealed: true,
		Resolve: envelope.PartySigner(must(keys["gateway"].Root(keystore.MessageRoot)), nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	if w.srv, err = New(Config{
		GatewayID: gatewayID, DeviceID: gatewayDevice, Access: w.access, Apps: registry, Hello: recv,
		Limits: limits, Audit: w.rec, Alerts: w.rec, Now: w.clock.now,
	}); err != nil {
		t.Fatal(err)
	}
	w.rec.mu.Lock()
	w.rec.next = w.srv
	w.rec.mu.Unlock()
	w.listen(keys["gateway"])
	return w
}

func (w *world) app(id string, port uint16) apps.AppConfig {
	return apps.AppConfig{
		ID: id, Name: "Echo", AllowAddresses: []string{"127.0.0.0/8", "::1/128"},
		Upstreams: []string{fmt.Sprintf("tcp://%s", net.JoinHostPort(w.host, fmt.Sprint(port))), fmt.Sprintf("udp://%s", net.JoinHostPort(w.host, fmt.Sprint(port)))},
	}
}

// input grants appID to Alice and Bob, and not the rest.
func (w *world) input() policy.Input {
	row := func(p party) policy.Row {
		return policy.Row{Grant: wire.Grant{
			UserID: p.user, DeviceID: p.device, AuthenticationToken: p.token,
			ExpirationDate: wire.FormatTime(w.clock.now().Add(time.Hour)), AppIDList: []string{appID},
		}}
	}
	return policy.Input{
		Apps: []policy.App{{ID: appID}, {ID: otherApp}, {ID: secret}}, Grants: []policy.Row{row(w.alice), row(w.bob)},
		Version: 1, PolicyVersion: 1, NotAfter: w.clock.now().Add(24 * time.Hour),
	}
}

func (w *world) apply(in policy.Input) {
	w.t.Helper()
	for _, f := range w.access.Apply(in) {
		w.t.Errorf("fault %v", f)
	}
}

// listen serves tunnels on a real port until the test ends.
func (w *world) listen(keys *keystore.Store) {
	l, err := net.Listen("tcp", net.JoinHostPort(w.host, "0"))
	if err != nil {
		w.t.Fatal(err)
	}
	_, w.port, _ = net.SplitHostPort(l.Addr().String())
	cert := must(keys.TLSCertificate(keystore.TLS))
	cfg := &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: must(keys.TLSRoots()),
		NextProtos: []string{carrier.ALPN}, MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true,
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.srv.Run(ctx) })
	wg.Go(func() { _ = w.access.Run(ctx) })
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				c := tls.Server(raw, cfg)
				done := make(chan error)
				go func() { done <- c.HandshakeContext(ctx) }()
				if err := <-done; err != nil {
					raw.Close()
					return
				}
				remote, _ := netip.ParseAddrPort(raw.RemoteAddr().String())
				_ = w.srv.ServeConn(ctx, Conn{Conn: c, Protocol: policy.TLS13, Suite: "test", Peer: peerOf(c), Remote: remote})
			})
		}
	})
	w.t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
}

func peerOf(c *tls.Conn) *x509.Certificate { return c.ConnectionState().PeerCertificates[0] }

// serveEcho answers TCP and UDP on one port and reports who came.
func (w *world) serveEcho() uint16 {
	for range 20 {
		l, err := net.Listen("tcp", net.JoinHostPort(w.host, "0"))
		if err != nil {
			w.t.Fatal(err)
		}
		u, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				select {
				case w.hits <- "tcp":
				default: // more than a test counts
				}
				wg.Go(func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				})
			}
		})
		wg.Go(func() {
			b := make([]byte, 65536)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		})
		w.t.Cleanup(func() { l.Close(); u.Close(); wg.Wait() })
		return netip.MustParseAddrPort(l.Addr().String()).Port()
	}
	w.t.Fatal("no port that is free for TCP and UDP")
	return 0
}

// serveOther listens where no flow may ever come.
func (w *world) serveOther() uint16 {
	l, err := net.Listen("tcp", net.JoinHostPort(w.host, "0"))
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
			w.t.Error("a flow reached an address that is not granted")
		}
	})
	w.t.Cleanup(func() { l.Close(); wg.Wait() })
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// dial makes p's TLS connection to the gateway.
func (w *world) dial(p party) carrier.Conn {
	w.t.Helper()
	d := &carrier.TCP{Channel: must(channel.New(channel.Config{Keys: p.keys, ALPN: []string{carrier.ALPN}, Peer: func(certid.Identity) error { return nil }}))}
	c, err := d.Dial(w.t.Context(), net.JoinHostPort(w.host, w.port))
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// hello seals X.hello of p to the gateway.
func (w *world) hello(p party, sender string) func(h wire.TunnelHello) ([]byte, error) {
	chain := must(p.keys.Chain(keystore.Sign))
	s := envelope.Sender{ID: sender, Key: must(p.keys.Signer(keystore.Sign)), Cert: chain[0]}
	enc := must(must(pki())["gateway"].Chain(keystore.Enc))[0]
	return sealHello(&s, chain, enc)
}

func sealHello(s *envelope.Sender, chain []*smx509.Certificate, enc *smx509.Certificate) func(h wire.TunnelHello) ([]byte, error) {
	return func(h wire.TunnelHello) ([]byte, error) {
		body, err := wire.EncodeExtension(h)
		if err != nil {
			return nil, err
		}
		return s.Seal(envelope.Header{
			MsgType: wire.TypeHello, Receiver: gatewayID, Ext: map[string]jsontext.Value{wire.ExtSigner: envelope.SignerExt(chain)},
		}, body, enc)
	}
}

// connect returns p's tunnel, or why there is none.
func (w *world) connect(p party, notices func(*wire.Notice)) (*carrier.Client, error) {
	w.t.Helper()
	c, err := carrier.Connect(w.t.Context(), w.dial(p), carrier.ClientConfig{
		Hello: w.hello(p, p.agent), Notices: notices, Mux: mux.Config{Window: 1 << 20},
		Identity: wire.TunnelHello{AgentID: p.agent, DeviceID: p.device, UserID: p.user, AuthToken: p.token},
	})
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (w *world) mustConnect(p party, notices func(*wire.Notice)) *carrier.Client {
	w.t.Helper()
	c, err := w.connect(p, notices)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// request is Table 12 of p for the echo application.
func (w *world) request(p party) *wire.AccessRequest {
	return &wire.AccessRequest{AgentID: p.agent, UserID: p.user, DeviceID: p.device, AuthToken: p.token, AppID: appID, AppName: "Echo", IP: w.host, Port: int(w.echo)}
}

func (w *world) open(c *carrier.Client, network string, m *wire.AccessRequest) *mux.Flow {
	w.t.Helper()
	f, err := c.Open(w.t.Context(), network, m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { f.Close() })
	return f.(*mux.Flow)
}

// echoes sends s through f and wants it back.
func (w *world) echoes(f net.Conn, s string) {
	w.t.Helper()
	if _, err := f.Write([]byte(s)); err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, len(s))
	_ = f.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(f, b); err != nil || string(b) != s {
		w.t.Fatalf("echo: %q, %v", b, err)
	}
	_ = f.SetReadDeadline(time.Time{})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// eventually waits for what another goroutine does after its last message.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func isSubset(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

func mustApps(c ...apps.AppConfig) *apps.Registry { return must(apps.New(apps.Config{Apps: c})) }
