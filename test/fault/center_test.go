package fault

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
)

// center is a real control center on loopback that can be stopped and started.
type center struct {
	t     *testing.T
	cfg   control.Config
	admin *control.AdminClient
	stop  func()
}

const passphrase = "a passphrase for tests"

var authority = sync.OnceValues(func() (*lab.CA, error) { return lab.New(lab.Config{Iterations: 1000}) })

func newCenter(t *testing.T) *center {
	t.Helper()
	dir := t.TempDir()
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	pass := filepath.Join(dir, "passphrase")
	if err := errors.Join(ca.Save(filepath.Join(dir, "ca"), []byte(passphrase)), os.WriteFile(pass, []byte(passphrase), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Party(filepath.Join(dir, "keys"), []byte(passphrase), certid.Identity{Control: "CTL00000001"}, []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	c := &center{t: t, cfg: control.Config{ID: "CTL00000001", Listen: []string{freePort(t)}, DataDir: filepath.Join(dir, "data"), KeysDir: filepath.Join(dir, "keys"),
		CADir: filepath.Join(dir, "ca"), PassphraseFile: pass, AdminSocket: filepath.Join(dir, "admin.sock"), Audit: audit.Discard, Alerts: alert.Discard}}
	c.cfg.URL = "https://" + c.cfg.Listen[0]
	c.start()
	t.Cleanup(func() { c.stop() })
	return c
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (c *center) start() {
	c.t.Helper()
	s, err := control.New(c.cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		c.t.Fatal(err)
	}
	c.admin = control.NewAdminClient(c.cfg.AdminSocket)
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("control center: %v", err)
		}
	})
}

// positions returns what `yumen control outbox` shows.
func (c *center) positions() map[string]control.OutboxPosition {
	c.t.Helper()
	var all []control.OutboxPosition
	if err := c.admin.Do(c.t.Context(), "GET", "/v1/outbox", nil, &all); err != nil {
		c.t.Fatal(err)
	}
	out := map[string]control.OutboxPosition{}
	for _, p := range all {
		out[p.Class] = p
	}
	return out
}

// line is an alert as the control center keeps it.
type line struct {
	Received time.Time `json:"received"`
	MsgID    string    `json:"msg_id"`
	Time     string    `json:"time"`
	Type     string    `json:"type"`
	Content  string    `json:"content"`
}

// alerts returns what the control center keeps, in its order.
func (c *center) alerts() (out []line) {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.cfg.DataDir, "alerts.jsonl*"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			c.t.Fatal(err)
		}
		for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
			var l line
			if err := json.Unmarshal(s.Bytes(), &l); err != nil {
				c.t.Fatalf("%s: %v: %.200s", name, err, s.Text())
			}
			if l.Type != "" {
				out = append(out, l)
			}
		}
	}
	return out
}

// party is an enrolled gateway or agent.
type party struct {
	c        *center
	id       string
	device   string
	keys     *keystore.Store
	stateDir string
	relay    *relay
}

func (c *center) enrol(kind string) *party {
	c.t.Helper()
	var n control.NewCode
	if err := c.admin.Do(c.t.Context(), "POST", "/v1/devices", control.NewDevice{Kind: kind, Name: "test"}, &n); err != nil {
		c.t.Fatal(err)
	}
	dir := filepath.Join(c.t.TempDir(), "keys")
	got, err := ctlclient.Enrol(c.t.Context(), ctlclient.EnrolConfig{Code: n.Code, Dir: dir, Passphrase: []byte("p"), Iterations: 1000})
	if err != nil {
		c.t.Fatal(err)
	}
	keys, err := keystore.New(keystore.Config{Dir: dir, Passphrase: []byte("p"), Iterations: 1000})
	if err != nil {
		c.t.Fatal(err)
	}
	return &party{c: c, id: got.ID, device: got.DeviceID, keys: keys, stateDir: filepath.Join(c.t.TempDir(), "state"), relay: newRelay(c.t, c.cfg.Listen[0])}
}

// durable returns the outbox that the party's link uses.
func (p *party) durable() *ctlclient.Durable {
	return ctlclient.NewDurable(ctlclient.DurableConfig{Dir: filepath.Join(p.stateDir, "outbox"), Key: ctlclient.OutboxKey(p.keys), Reserve: -1})
}

// sink keeps the link's own alerts.
type sink struct {
	mu  sync.Mutex
	got []alert.Alert // guarded by mu
}

func (s *sink) Raise(a alert.Alert) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, a)
}

func (s *sink) count(code alert.Code) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.got {
		if a.Code == code {
			n++
		}
	}
	return n
}

type handler struct{}

func (handler) Grants(_ context.Context, g *ctlclient.Grants) error {
	if g.Store != nil {
		return g.Store()
	}
	return nil
}
func (handler) Policies(context.Context, *ctlclient.Policies) error { return nil }
func (handler) Delta(context.Context, *ctlclient.Delta) error       { return nil }

// run runs a gateway's link over the party's relay until stop.
func (p *party) run(out *ctlclient.Durable, own alert.Sink) (g *ctlclient.Gateway, stop func()) {
	p.c.t.Helper()
	g, err := ctlclient.NewGateway(ctlclient.GatewayConfig{
		URL: p.c.cfg.URL, GatewayID: p.id, DeviceID: p.device, DeviceName: "edge", IP: "127.0.0.1", StateDir: p.stateDir, Keys: p.keys, Handler: handler{},
		Outbox: out, Alerts: own, Dial: p.relay.dial, Usage: func() ctlclient.Usage { return ctlclient.Usage{} },
	})
	if err != nil {
		p.c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	p.c.t.Cleanup(stop)
	return g, stop
}

// relay dials the control center, or nobody while it is cut.
type relay struct {
	addr string
	down atomic.Bool

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func newRelay(_ *testing.T, addr string) *relay { return &relay{addr: addr} }

func (r *relay) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if r.down.Load() {
		return nil, errors.New("the path is cut")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.addr)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, conn)
	return conn, nil
}

// cut ends every connection and lets no new one come until mend.
func (r *relay) cut() {
	r.down.Store(true)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

func (r *relay) mend() { r.down.Store(false) }

// eventually waits for what must become true.
func eventually(t *testing.T, within time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within %v: %s", within, what)
}

func alertReport(p *party, n int) []byte {
	body := fmt.Sprintf(`{"gatewayId":%q,"deviceId":%q,"timestamp":"2026-01-02T03:04:05Z","exceptionAlertType":"3.001","exceptionAlertLevel":2,"exceptionAlertContent":"backlog %d"}`, p.id, p.device, n)
	raw, err := json.Marshal(map[string]any{"type": "T11", "msgId": fmt.Sprintf("m-%s-%06d", p.id, n), "at": time.Now(), "body": json.RawMessage(body)})
	if err != nil {
		p.c.t.Fatal(err)
	}
	return raw
}
