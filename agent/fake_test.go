package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

var testID = Identity{AgentID: "AGT00000001", DeviceID: "DEV00000001"}

const testUser = "USR00000001"

// fakeLink is a control center of one user.
type fakeLink struct {
	ev  Events
	now func() time.Time

	mu        sync.Mutex
	token     ctlclient.Token      // guarded by mu; what Login gives
	loginErr  error                // guarded by mu
	resources *ctlclient.Resources // guarded by mu
	down      bool                 // guarded by mu
	logins    []fakeLogin          // guarded by mu
	raised    []alert.Alert        // guarded by mu
	sent      []*wire.AgentAlert   // guarded by mu
	logouts   int                  // guarded by mu
	fetches   int                  // guarded by mu
	running   bool                 // guarded by mu
	reports   int                  // guarded by mu; asked for at once
}

type fakeLogin struct {
	user    string
	method  int
	factors []wire.Factor
}

func (l *fakeLink) Run(ctx context.Context) error {
	l.mu.Lock()
	l.running = true
	l.mu.Unlock()
	<-ctx.Done()
	l.mu.Lock()
	l.running = false
	l.mu.Unlock()
	return nil
}

func (l *fakeLink) Login(_ context.Context, user string, method int, factors []wire.Factor) (ctlclient.Token, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logins = append(l.logins, fakeLogin{user, method, slices.Clone(factors)})
	return l.token, l.loginErr
}

func (l *fakeLink) Logout() {
	l.mu.Lock()
	l.logouts++
	l.mu.Unlock()
}

func (l *fakeLink) FetchResources(context.Context) (*ctlclient.Resources, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fetches++
	if l.down {
		return nil, ctlclient.ErrDown
	}
	return l.resources, nil
}

func (l *fakeLink) Raise(a alert.Alert) {
	l.mu.Lock()
	l.raised = append(l.raised, a)
	l.mu.Unlock()
}

func (l *fakeLink) SendAlert(_ context.Context, m *wire.AgentAlert) error {
	l.mu.Lock()
	l.sent = append(l.sent, m)
	l.mu.Unlock()
	return nil
}

func (l *fakeLink) ReportNow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reports++
}

func (l *fakeLink) Status() ctlclient.AgentStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ctlclient.AgentStatus{Connected: !l.down}
}

func (l *fakeLink) alerts(c alert.Code) (out []alert.Alert) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.raised {
		if a.Code == c {
			out = append(out, a)
		}
	}
	return out
}

// fakeDialer makes fakeTunnels to the addresses that are up.
type fakeDialer struct {
	now  func() time.Time
	open func(ctx context.Context, network string, m *wire.AccessRequest) (net.Conn, error)

	mu      sync.Mutex
	down    map[string]error // guarded by mu; by address
	dials   []fakeDial       // guarded by mu
	tunnels []*fakeTunnel    // guarded by mu; the newest last
	slow    time.Duration    // guarded by mu; of the tunnels to come: how long Renew takes to reply
}

type fakeDial struct {
	at    time.Time
	addr  string
	hello wire.TunnelHello
}

func (d *fakeDialer) Dial(_ context.Context, _ wire.GatewayRef, addr string, h wire.TunnelHello, notices func(*wire.Notice)) (Tunnel, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials = append(d.dials, fakeDial{d.now(), addr, h})
	if err := d.down[addr]; err != nil {
		return nil, err
	}
	t := &fakeTunnel{d: d, notices: notices, done: make(chan struct{}), slow: d.slow}
	d.tunnels = append(d.tunnels, t)
	return t, nil
}

func (d *fakeDialer) set(addr string, err error) {
	d.mu.Lock()
	d.down[addr] = err
	d.mu.Unlock()
}

func (d *fakeDialer) last() *fakeTunnel {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.tunnels) == 0 {
		return nil
	}
	return d.tunnels[len(d.tunnels)-1]
}

func (d *fakeDialer) allDials() []fakeDial {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.dials)
}

type fakeTunnel struct {
	d       *fakeDialer
	notices func(*wire.Notice)
	done    chan struct{}
	once    sync.Once

	mu       sync.Mutex
	asked    []wire.AccessRequest // guarded by mu
	renewals []fakeRenewal        // guarded by mu
	renewErr error                // guarded by mu
	slow     time.Duration        // guarded by mu; how long Renew takes to reply
	knows    []string             // guarded by mu; the tokens that Renew accepts; nil: any
	err      error                // guarded by mu
}

type fakeRenewal struct {
	at time.Time
	m  wire.Renewal
}

func (t *fakeTunnel) Open(ctx context.Context, network string, m *wire.AccessRequest) (net.Conn, error) {
	t.mu.Lock()
	t.asked = append(t.asked, *m)
	t.mu.Unlock()
	return t.d.open(ctx, network, m)
}

func (t *fakeTunnel) Carrier() channel.State {
	return channel.State{Protocol: channel.TLCP, Suite: "ECDHE_SM4_GCM_SM3"}
}

func (t *fakeTunnel) Renew(ctx context.Context, m *wire.Renewal) error {
	t.mu.Lock()
	slow := t.slow
	t.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.done:
		return t.Err()
	case <-time.After(slow):
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.renewals = append(t.renewals, fakeRenewal{t.d.now(), *m})
	if t.knows != nil && !slices.Contains(t.knows, m.AuthToken) {
		return &carrier.RefusedError{Reason: reason.TokenUnknown, Result: reason.TokenUnknown.Result()}
	}
	return t.renewErr
}

func (t *fakeTunnel) Done() <-chan struct{} { return t.done }

func (t *fakeTunnel) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func (t *fakeTunnel) Close() error { t.fail(errors.New("closed")); return nil }

func (t *fakeTunnel) fail(err error) {
	t.once.Do(func() {
		t.mu.Lock()
		t.err = err
		t.mu.Unlock()
		close(t.done)
	})
}

func (t *fakeTunnel) requests() []wire.AccessRequest {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.asked)
}

func (t *fakeTunnel) sentRenewals() []fakeRenewal {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.renewals)
}

// rig is an agent over fakes.
type rig struct {
	t      testing.TB
	a      *Agent
	link   *fakeLink
	dialer *fakeDialer
	logs   *observer.ObservedLogs
	dir    string
	key    StateKey
	stop   func() error // ends Run and gives its result; idempotent
}

var testKey = sync.OnceValue(func() StateKey {
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	s, err := NewStateKey(k)
	if err != nil {
		panic(err)
	}
	return s
})

// newRig makes an agent; change may alter its configuration.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	r := &rig{t: t, logs: logs, dir: t.TempDir(), key: testKey()}
	if err := os.Mkdir(filepath.Join(r.dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Dir: r.dir, SOCKS5: []string{"127.0.0.1:0"}, Logger: zap.New(core), Now: time.Now, Identity: testID, Sealer: r.key,
	}
	if change != nil {
		change(&cfg)
	}
	r.link = &fakeLink{now: cfg.Now, token: ctlclient.Token{UserID: testUser, AuthToken: "aaaaaaaaaa1", Expires: cfg.Now().Add(time.Hour)}}
	r.dialer = &fakeDialer{now: cfg.Now, down: map[string]error{}, open: func(context.Context, string, *wire.AccessRequest) (net.Conn, error) {
		return nil, errors.New("no flow was expected")
	}}
	cfg.NewLink = func(e Events) (Link, error) { r.link.ev = e; return r.link, nil }
	cfg.Dialer = r.dialer
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.a = a
	r.link.resources = resources(row("APP00000001", "10.0.0.5", 5432))
	return r
}

// run starts the agent; the test ends it.
func (r *rig) run() *rig {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.a.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	r.t.Cleanup(func() { r.stop() })
	return r
}

// serve starts the agent, waits for its faces, signs in and waits for the
// tunnel.
func (r *rig) serve() *rig {
	r.t.Helper()
	r.run()
	r.wait("faces", func(s Status) bool { return len(s.Faces) >= len(r.a.faces) })
	r.login()
	r.wait("tunnel", func(s Status) bool { return s.State == Ready })
	return r
}

func (r *rig) login() {
	r.t.Helper()
	if err := r.a.Login(r.t.Context(), testUser, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "correct horse"}}); err != nil {
		r.t.Fatal(err)
	}
}

// wait polls the status of an agent on real time.
func (r *rig) wait(what string, cond func(Status) bool) Status {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s := r.a.Status()
		if cond(s) {
			return s
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 10 s, status %+v", what, s)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func (r *rig) face(kind string) string {
	r.t.Helper()
	for _, f := range r.a.Status().Faces {
		if f.Kind == kind {
			return f.Addr
		}
	}
	r.t.Fatalf("no %s face", kind)
	return ""
}

func row(app, ip string, port int) wire.Resource {
	return wire.Resource{AppID: app, AppName: "应用 " + app, IP: ip, Port: port}
}

func resources(rows ...wire.Resource) *ctlclient.Resources {
	return &ctlclient.Resources{
		List:     wire.ResourceList{AgentID: testID.AgentID, DeviceID: testID.DeviceID, UserID: testUser, ResourceList: rows},
		Gateways: []wire.GatewayRef{{ID: "GW000000001", Addresses: []string{"gw1:443"}}, {ID: "GW000000002", Addresses: []string{"gw2:443"}}},
	}
}

// echo answers each flow by what it gets, over a real socket with half-close.
func echo(t testing.TB) func(context.Context, string, *wire.AccessRequest) (net.Conn, error) {
	t.Helper()
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
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return func(_ context.Context, _ string, m *wire.AccessRequest) (net.Conn, error) {
		return net.Dial("tcp", l.Addr().String())
	}
}

// refuse answers each flow by Table 13 with this result.
func refuse(result string) func(context.Context, string, *wire.AccessRequest) (net.Conn, error) {
	r, _ := Explain(result)
	return func(context.Context, string, *wire.AccessRequest) (net.Conn, error) {
		return nil, &carrier.RefusedError{Reason: r, Result: result}
	}
}

// socks asks the SOCKS5 face for to and returns the code of the reply.
func socks(t testing.TB, face, to string) (net.Conn, byte) {
	t.Helper()
	c, err := net.Dial("tcp", face)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	fmt.Sscan(port, &n)
	b := []byte{5, 1, 0, 5, 1, 0}
	if a, err := netip.ParseAddr(host); err != nil {
		b = append(append(b, 3, byte(len(host))), host...)
	} else if a.Is4() {
		b = append(append(b, 1), a.AsSlice()...)
	} else {
		b = append(append(b, 4), a.AsSlice()...)
	}
	if _, err := c.Write(append(b, byte(n>>8), byte(n))); err != nil {
		t.Fatal(err)
	}
	var reply [12]byte
	if _, err := io.ReadFull(c, reply[:]); err != nil {
		t.Fatalf("read reply for %s: %v", to, err)
	}
	return c, reply[3]
}

// roundTrip sends a word, half-closes and wants the word back.
func roundTrip(t testing.TB, c net.Conn) {
	t.Helper()
	const word = "through the gate"
	if _, err := io.WriteString(c, word); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != word {
		t.Errorf("got %q, %v, want %q", got, err, word)
	}
}

func (l *fakeLink) nFetches() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fetches
}

func (l *fakeLink) nLogouts() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.logouts
}

func (l *fakeLink) allSent() []*wire.AgentAlert {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.sent)
}

func (l *fakeLink) allRaised() []alert.Alert {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.raised)
}

func (l *fakeLink) allLogins() []fakeLogin {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.logins)
}
