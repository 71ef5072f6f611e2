package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func TestAdminSocketServesTheOperatorsVerbs(t *testing.T) {
	w := newWorld(t)
	w.start()
	alice := w.client(w.alice())
	end := w.download(alice, "https://one.test/big")

	var st Status
	must(t, w.admin("GET", "/status", nil, &st))
	if st.GatewayID != gwID || st.DeviceID != gwDev || st.Health != Ready || st.Access.Leases != 1 || len(st.Apps) != 2 || st.Control != nil || st.Listen[0] != w.addr {
		t.Errorf("status %+v", st)
	}
	var all []access.SessionInfo
	must(t, w.admin("GET", "/sessions", nil, &all))
	if len(all) != 1 || all[0].UserID != user || all[0].DeviceID != dev || all[0].Leases != 1 {
		t.Errorf("sessions %+v", all)
	}
	var tunnels []json.RawMessage
	must(t, w.admin("GET", "/tunnels", nil, &tunnels))

	var x ExplainReply
	for _, c := range []struct {
		in      ExplainRequest
		allowed bool
		code    string
	}{
		{ExplainRequest{UserID: user, DeviceID: dev, AppID: app1}, true, "YM-000"},
		{ExplainRequest{UserID: user, DeviceID: dev, AppID: app2, Remote: "::1", Method: "GET", Path: "/", Factors: []int{-1, 1, 99}, AuthAge: Duration(time.Minute)}, false, "YM-303"},
		{ExplainRequest{UserID: user, AppID: app1}, false, "YM-3"},
	} {
		must(t, w.admin("POST", "/explain", c.in, &x))
		if x.Allowed != c.allowed || !strings.HasPrefix(x.Code, c.code) && c.code != "YM-000" || x.Trace == "" {
			t.Errorf("explain %+v: %+v", c.in, x)
		}
	}
	if err := w.admin("POST", "/explain", ExplainRequest{Remote: "here"}, nil); err == nil || !strings.Contains(err.Error(), "remote_addr") {
		t.Errorf("explain of a bad address: %v", err)
	}
	if err := w.admin("POST", "/sessions/cut", CutRequest{}, nil); err == nil || !strings.Contains(err.Error(), "choose") {
		t.Errorf("cut of everything: %v", err)
	}
	var cut CutReply
	must(t, w.admin("POST", "/sessions/cut", CutRequest{UserID: user}, &cut))
	if err := <-end; err == nil || cut.Flows != 1 {
		t.Errorf("cut %+v, the download ended with %v", cut, err)
	}
	must(t, w.admin("POST", "/reload", nil, nil))
	w.config("x: 1\n")
	if err := w.admin("POST", "/reload", nil, nil); err == nil || !strings.Contains(err.Error(), "stays in force") {
		t.Errorf("reload of a bad file: %v", err)
	}
	must(t, w.stop())
	raw := w.auditText()
	for _, want := range []string{`"sessions cut"`, `"reload"`, `"refused"`, `"start"`} {
		if !strings.Contains(raw, want) {
			t.Errorf("the audit lacks %s", want)
		}
	}
	for _, f := range []string{"audit/0000000000000001.audit", "revoked.jsonl", "list-files.json"} {
		if fi, err := os.Stat(filepath.Join(w.dir, "state", f)); err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v, want mode 0600", f, fi.Mode(), err)
		}
	}
}

// S37: metrics and health are on loopback, and never on the port.
func TestS37_MetricsAreOnTheirOwnLoopbackPort(t *testing.T) {
	w := newWorld(t)
	w.start()
	alice := w.client(w.alice())
	w.want(alice, "https://one.test/metrics", 200, "one.test for") // the application's
	base := "http://" + w.g.metrics.Addr().String()
	if a, ok := w.g.metrics.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		t.Fatalf("metrics on %v", w.g.metrics.Addr())
	}
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		r, err := plain.Get(base + path)
		must(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		must(t, err)
		return r.StatusCode, string(b)
	}
	// A request is counted when it has ended, a moment after its answer.
	status, body := get("/metrics")
	for end := time.Now().Add(5 * time.Second); !strings.Contains(body, "yumen_proxy_requests_total") && time.Now().Before(end); {
		status, body = get("/metrics")
	}
	if status != 200 || !strings.Contains(body, "yumen_handshakes_total") || !strings.Contains(body, "yumen_proxy_requests_total") {
		t.Errorf("metrics: %d", status)
	} else if strings.Contains(body, user) || strings.Contains(body, dev) {
		t.Error("metrics name a user or a device")
	}
	if status, body := get("/healthz"); status != 200 || strings.TrimSpace(body) != string(Ready) {
		t.Errorf("healthz: %d %s", status, body)
	}
	for _, path := range []string{"/debug/pprof/", "/", "/status"} {
		if status, _ := get(path); status != 404 {
			t.Errorf("%s: %d, want 404", path, status)
		}
	}
}

// One process of the host must not take the descriptors of the gateway.
func TestMetricsConnectionsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.start()
	var held []net.Conn
	for range metricsConnections + 20 {
		c, err := net.Dial("tcp", w.g.metrics.Addr().String())
		must(t, err)
		held = append(held, c)
	}
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	w.want(w.client(w.alice()), "https://one.test/", 200, "")
	held[len(held)-1].SetDeadline(time.Now().Add(200 * time.Millisecond))
	io.WriteString(held[len(held)-1], "GET /healthz HTTP/1.0\r\n\r\n")
	if n, err := held[len(held)-1].Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("connection %d is served beside %d others", len(held), metricsConnections)
	}
}

func TestHealthFollowsTheLists(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	g, err := New(t.Context(), filepath.Join(w.dir, "gateway.yaml"), Options{Logger: quiet(), Now: func() time.Time { return now }})
	must(t, err)
	defer g.close()
	if h := g.Health(); h != Ready {
		t.Errorf("with lists: %s, want %s", h, Ready)
	}
	now = now.Add(2 * time.Hour)
	if h := g.Health(); h != Live {
		t.Errorf("after their end: %s, want %s", h, Live)
	}
}

// A gateway without policies grants nothing, whatever the grants say.
func TestNothingIsGrantedBeforeBothLists(t *testing.T) {
	row := ctlclient.GrantRow{Grant: wire.Grant{UserID: user, DeviceID: dev, AuthenticationToken: "token000001", ExpirationDate: "2099-01-01T00:00:00Z", AppIDList: []string{app1}}}
	end := time.Now().Add(time.Hour)
	for _, first := range []string{"grants", "policies"} {
		t.Run(first, func(t *testing.T) {
			g := &Gateway{now: time.Now, log: quiet(), access: access.New(access.Config{})}
			g.alerts = newAlerts(g.log, g.now)
			var err error
			g.audit, err = audit.OpenFile(audit.FileConfig{Path: filepath.Join(t.TempDir(), "audit")})
			must(t, err)
			defer g.audit.Close()
			g.lists = &lists{g: g}
			app := g.access.App(app1)
			_, err = g.access.Change(func(b *policy.Builder) { b.SetApps([]policy.App{{ID: app1}}) }, nil)
			must(t, err)
			ask := func() reason.Reason {
				s, why := g.access.Attach(policy.Facts{SessionID: "S", UserID: user, DeviceID: dev})
				if why != reason.OK {
					return why
				}
				l, no := g.access.Acquire(s, app, &policy.Request{}, nothing{})
				if l != nil {
					l.Release(access.Usage{})
				}
				return no.Reason
			}
			grants := func() error {
				return g.lists.Grants(t.Context(), &ctlclient.Grants{Version: 1, NotAfter: end, Rows: []ctlclient.GrantRow{row}})
			}
			policies := func() error { return g.lists.Policies(t.Context(), &ctlclient.Policies{Version: 1, NotAfter: end}) }
			if first == "policies" {
				grants, policies = policies, grants
			}
			must(t, grants())
			if why := ask(); why != reason.NoList || g.Health() != Live {
				t.Errorf("with %s alone: %v, %s; want %v, %s", first, why, g.Health(), reason.NoList, Live)
			}
			must(t, policies())
			if why := ask(); why != reason.OK || g.Health() != Ready {
				t.Errorf("with both: %v, %s", why, g.Health())
			}
			// A list that cannot be stored does not lengthen the life of the old rows.
			full := errors.New("disk full")
			err = g.lists.Grants(t.Context(), &ctlclient.Grants{Version: 2, NotAfter: end.Add(time.Hour), Store: func() error { return full }})
			if !errors.Is(err, full) {
				t.Errorf("store: %v", err)
			}
			must(t, g.lists.Policies(t.Context(), &ctlclient.Policies{Version: 2, NotAfter: end.Add(2 * time.Hour)}))
			if got := g.access.Snapshot().NotAfter(); got.After(end) {
				t.Errorf("the old rows end at %v, want %v", got, end)
			}
		})
	}
}

type nothing struct{}

func (nothing) Kind() access.Kind { return access.H1 }
func (nothing) Cut(reason.Reason) {}

// A signed-out cookie outlives the process, and so does its end.
func TestRevocationsOutliveARestart(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.dir, "gateway.yaml")
	open := func(now time.Time) *Gateway {
		core, logs := observer.New(zapcore.InfoLevel)
		w.logs = logs
		g, err := New(t.Context(), path, Options{Logger: zap.New(core), Now: func() time.Time { return now }})
		must(t, err)
		return g
	}
	now := time.Now()
	attach := func(g *Gateway, sid, user string) reason.Reason {
		_, why := g.access.Attach(policy.Facts{SessionID: sid, UserID: user, Browser: true, AuthTime: now.Add(-time.Hour)})
		return why
	}
	g := open(now)
	g.loggedOut("sid000000001", time.Now().Add(time.Hour))
	must(t, g.lists.Delta(t.Context(), &ctlclient.Delta{NarrowOnly: true, To: 1, Revoke: []wire.Revocation{{UserID: "USR00000007", IssuedBefore: "never"}}}))
	g.close()
	for i := range 2 {
		g = open(now)
		if a, b := attach(g, "sid000000001", user), attach(g, "sid000000002", "USR00000007"); a != reason.SessionRevoked || b != reason.SessionRevoked {
			t.Errorf("restart %d: %v, %v", i, a, b)
		}
		if why := attach(g, "sid000000003", user); why != reason.OK {
			t.Errorf("restart %d: another session: %v", i, why)
		}
		g.close()
	}
	// Cut short by a crash: the rest counts, without an alert. Altered: with one.
	file := filepath.Join(w.dir, "state", "revoked.jsonl")
	raw, err := os.ReadFile(file)
	must(t, err)
	for name, c := range map[string]struct {
		raw    string
		alerts int
	}{"cut short": {string(raw) + `{"at":"20`, 0}, "altered": {"x\n" + string(raw), 1}} {
		must(t, os.WriteFile(file, []byte(c.raw), 0o600))
		g = open(now)
		if why := attach(g, "sid000000001", user); why != reason.SessionRevoked || w.raised(alert.StateAltered) != c.alerts {
			t.Errorf("%s: %v, %d alerts, want %d", name, why, w.raised(alert.StateAltered), c.alerts)
		}
		g.close()
	}
	r, all, _, err := openRevoked(file, now.Add(revokeFor+time.Hour))
	must(t, err)
	must(t, r.close())
	if len(all) != 0 {
		t.Errorf("%d revocations count for ever", len(all))
	}
	if raw, err := os.ReadFile(file); err != nil || len(raw) != 0 {
		t.Errorf("what has lapsed is still in the file: %s %v", raw, err)
	}
}
