package access

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

const (
	user1, user2     = "USR00000001", "USR00000002"
	device1, device2 = "DEV00000001", "DEV00000002"
	app1, app2       = "APP00000001", "APP00000002"
	agent1           = "AGT00000001"
)

// flow is a carrier that notes how it was cut, and releases its lease then.
type flow struct {
	kind  Kind
	n     atomic.Int32
	why   atomic.Uint32
	at    atomic.Int64
	lease atomic.Pointer[Lease] // set after Acquire; Cut may come before
	onCut func(reason.Reason)
}

func (f *flow) Kind() Kind { return f.kind }

func (f *flow) Cut(r reason.Reason) {
	f.n.Add(1)
	f.why.Store(uint32(r))
	f.at.Store(time.Now().UnixNano())
	if f.onCut != nil {
		f.onCut(r)
	}
	if l := f.lease.Load(); l != nil {
		l.Release(Usage{BytesIn: 1})
	}
}

func (f *flow) cut() reason.Reason { return reason.Reason(f.why.Load()) }

func (f *flow) Describe(r *audit.Record) { r.RequestID = "REQ1" }

// recorder keeps audit records and alerts.
type recorder struct {
	mu      sync.Mutex
	records []audit.Record
	alerts  []alert.Alert
}

func (r *recorder) Write(a *audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, *a)
}

func (r *recorder) Raise(a alert.Alert) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alerts = append(r.alerts, a)
}

func (r *recorder) count(c alert.Code) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.alerts {
		if a.Code == c {
			n++
		}
	}
	return n
}

func (r *recorder) kind(k audit.Kind) (out []audit.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.records {
		if a.Kind == k {
			out = append(out, a)
		}
	}
	return out
}

// world is an Access with its monitor in a synctest bubble.
type world struct {
	*Access
	t   *testing.T
	rec *recorder
	in  policy.Input
	app App
	two App
}

func row(user, device, token string, ttl time.Duration, apps ...string) policy.Row {
	return policy.Row{Grant: wire.Grant{UserID: user, DeviceID: device, AuthenticationToken: token,
		ExpirationDate: time.Now().Add(ttl).UTC().Format(time.RFC3339), AppIDList: apps}}
}

func pol(id, typ, data string) wire.Policy {
	return wire.Policy{PolicyID: id, PolicyName: id, PolicyType: typ, PolicyData: data}
}

func newWorld(t *testing.T, c Config) *world {
	w := &world{t: t, rec: &recorder{}}
	c.GatewayID, c.Audit, c.Alerts = "GW000000001", w.rec, w.rec
	w.Access = New(c)
	w.app, w.two = w.App(app1), w.App(app2)
	w.in = policy.Input{Version: 1, PolicyVersion: 1, Apps: []policy.App{{ID: app1}, {ID: app2}}}
	full := row(user1, device1, "TOKEN1", 24*time.Hour, app1, app2)
	full.Level, full.Factors, full.Posture, full.Risk, full.AuthTime = 2, policy.FactorsOf(1, 4), policy.ScoreOf(90), policy.ScoreOf(10), time.Now()
	w.in.Grants = []policy.Row{full, row(user2, policy.BrowserDevice, "TOKENB", 24*time.Hour, app1, app2)}
	return w
}

// bubble runs f with a world whose monitor runs.
func bubble(t *testing.T, c Config, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.Run(ctx); close(done) }()
		w.apply()
		f(w)
		cancel()
		<-done
	})
}

func (w *world) apply() []policy.Fault {
	w.t.Helper()
	w.in.Version++
	w.in.PolicyVersion++
	return w.Apply(w.in)
}

func (w *world) facts() policy.Facts {
	return policy.Facts{SessionID: "S1", UserID: user1, DeviceID: device1, AgentID: agent1, Token: "TOKEN1"}
}

func (w *world) attach(f policy.Facts) *Session {
	w.t.Helper()
	s, why := w.Attach(f)
	if why != reason.OK {
		w.t.Fatalf("attach %s: %v", f.SessionID, why)
	}
	return s
}

func (w *world) request() *policy.Request {
	return &policy.Request{Remote: netip.MustParseAddr("10.1.2.3"), Protocol: policy.TLS13, Method: "GET", Path: "/api/x"}
}

func (w *world) open(s *Session, app App) *flow {
	w.t.Helper()
	f := &flow{kind: WebSocket}
	l, no := w.Acquire(s, app, w.request(), f)
	if l == nil {
		w.t.Fatalf("acquire: %v", no)
	}
	f.lease.Store(l)
	return f
}

func (w *world) refused(s *Session, app App, want reason.Reason) {
	w.t.Helper()
	l, no := w.Acquire(s, app, w.request(), &flow{})
	if l != nil || no.Reason != want {
		w.t.Errorf("acquire: lease %v, %v, want refused for %v", l != nil, no.Reason, want)
	}
	if l != nil {
		l.Release(Usage{})
	}
}

func wantCut(t *testing.T, f *flow, want reason.Reason) {
	t.Helper()
	if f.n.Load() != 1 || f.cut() != want {
		t.Errorf("cut %d times, for %v; want once for %v", f.n.Load(), f.cut(), want)
	}
}

func wantLive(t *testing.T, f *flow) {
	t.Helper()
	if f.n.Load() != 0 {
		t.Errorf("cut for %v, want live", f.cut())
	}
}

func ids(prefix string, n int) string { return fmt.Sprintf("%s%08d", prefix, n) }
