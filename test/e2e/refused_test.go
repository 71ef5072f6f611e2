package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// The cast of a lone gateway.
const (
	alice, aliceDevice, aliceAgent, aliceToken = "USR00000001", "DEV00000011", "AGT00000011", "tokenAlice1"
	late, lateDevice, lateAgent, lateToken     = "USR00000002", "DEV00000012", "AGT00000012", "tokenLate01"
	empty, emptyDevice                         = "USR00000003", "DEV00000013"
	nobody, nobodyDevice                       = "USR00000009", "DEV00000019"
)

// lone is a gateway alone with two applications for browsers and one for
// agents.
type lone struct {
	*testbed.Lone
	web        *testbed.WebApp
	echo       *testbed.TCPApp
	app, other testbed.App
}

func loneGrants() []testbed.Grant {
	return []testbed.Grant{
		testbed.NewGrant(alice, aliceDevice, aliceToken, webID, echoID),
		testbed.NewGrant(late, lateDevice, lateToken, webID, echoID).With("expirationDate", wire.FormatTime(time.Now().Add(-time.Minute))),
		testbed.NewGrant(empty, emptyDevice, "tokenEmpty1"),
	}
}

func newLone(o testbed.Owner, extra string) *lone {
	l := &lone{web: testbed.NewWebApp(o, false), echo: testbed.NewTCPApp(o, false)}
	l.app = testbed.App{ID: webID, Name: "web", Upstream: l.web.URL}
	l.other = testbed.App{ID: "APP00000009", Name: "other", Upstream: l.web.URL}
	l.Lone = testbed.NewLone(o, testbed.LoneConfig{
		Apps: []testbed.App{l.app, l.other, {ID: echoID, Name: "echo", Upstream: "tcp://" + l.echo.Address}}, Grants: loneGrants(), Gateway: extra,
	})
	return l
}

var shared = testbed.Once(suite, "lone gateway", func(o testbed.Owner) *lone { return newLone(o, "") })

// ask sends a GET and returns status and body.
func ask(c *http.Client, url string) (int, string, error) {
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Accept", "application/json")
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(b), err
}

// reached reports whether a request for path came to the application.
func reached(a *testbed.WebApp, path string) bool {
	for _, s := range a.Seen() {
		if s.Path == path {
			return true
		}
	}
	return false
}

var serial struct {
	sync.Mutex
	n int
}

// fresh returns a path that nobody else asks for.
func fresh() string {
	serial.Lock()
	defer serial.Unlock()
	serial.n++
	return "/fresh/" + strconv.Itoa(serial.n)
}

// Who may not is refused with the reason of it, the audit says so, and the
// application sees nothing.
func TestGCR002_M8_M57_RefusedWithItsOwnReason(t *testing.T) {
	t.Parallel()
	l := shared(t)
	for _, c := range []struct {
		name         string
		cert         *tls.Certificate
		app          testbed.App
		want         reason.Reason
		user, device string
	}{
		{"no grant", l.Client(nobody, nobodyDevice), l.app, reason.NoGrant, nobody, nobodyDevice},
		{"the grant of another device", l.Client(alice, nobodyDevice), l.app, reason.NoGrant, alice, nobodyDevice},
		{"another user on the device", l.Client(nobody, aliceDevice), l.app, reason.NoGrant, nobody, aliceDevice},
		{"expired grant", l.Client(late, lateDevice), l.app, reason.GrantExpired, late, lateDevice},
		{"application not in the list", l.Client(alice, aliceDevice), l.other, reason.AppNotGranted, alice, aliceDevice},
		{"empty list of applications", l.Client(empty, emptyDevice), l.app, reason.AppNotGranted, empty, emptyDevice},
		{"certificate without a user", l.Client("", aliceDevice), l.app, reason.LoginRequired, "", ""},
	} {
		for _, h2 := range []bool{false, true} {
			path := fresh()
			status, body, err := ask(l.HTTP(c.cert, h2), l.URL(c.app, path))
			if err != nil || status != c.want.Status() || !strings.Contains(body, c.want.Code()) {
				t.Errorf("%s: %d %q, %v; want %d %s", c.name, status, body, err, c.want.Status(), c.want.Code())
			}
			for _, r := range l.Audit.Await(t, 1, c.name, func(r *audit.Record) bool { return r.Path == path }) {
				if r.Kind != audit.Decision || r.Allowed || r.Code != c.want || r.UserID != c.user || r.DeviceID != c.device || r.Remote == "" || r.RequestID == "" {
					t.Errorf("%s: audit %+v", c.name, r)
				}
			}
			if reached(l.web, path) {
				t.Errorf("%s: the application saw the request", c.name)
			}
		}
	}
	// Beside it, who may is served.
	path := fresh()
	if status, body, err := ask(l.HTTP(l.Client(alice, aliceDevice), true), l.URL(l.app, path)); err != nil || status != 200 || !strings.Contains(body, "user "+alice+" device "+aliceDevice) || !reached(l.web, path) {
		t.Errorf("who may: %d %q, %v", status, body, err)
	}
}

// A certificate that is none ends the handshake, and the audit says why.
func TestGCR002_M52_WrongClientCertificates(t *testing.T) {
	t.Parallel()
	l := shared(t)
	for name, c := range map[string]struct {
		cert *tls.Certificate
		want reason.Reason
	}{
		"none":              {nil, reason.ClientCertAbsent},
		"another authority": {l.Stranger(alice, aliceDevice), reason.ClientCertIssuer},
		"expired":           {l.Expired(alice, aliceDevice), reason.ClientCertGone},
	} {
		count := func() int {
			return len(l.Audit.Find(t, func(r *audit.Record) bool {
				return r.Kind == audit.Login && r.Code == c.want && r.Object == l.app.Host()
			}))
		}
		before, path := count(), fresh()
		if status, body, err := ask(l.HTTP(c.cert, false), l.URL(l.app, path)); err == nil {
			t.Errorf("%s: answered %d %q", name, status, body)
		}
		testbed.Eventually(t, 10*time.Second, name+": an audit record of "+c.want.String(), func() bool { return count() > before })
		if reached(l.web, path) {
			t.Errorf("%s: the application saw the request", name)
		}
	}
}

// Names that no application has, and requests that name another host than the
// connection.
func TestS9_UnknownAndOtherHosts(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ctx := within(t, time.Minute)
	cert := l.Client(alice, aliceDevice)
	for _, c := range []struct {
		sni, host string
		want      []int
	}{
		{l.app.Host(), "unknown." + testbed.Domain, []int{404, 421}},
		{l.app.Host(), l.other.Host(), []int{421}},
	} {
		conn, err := l.Dial(ctx, true, l.TLS(c.sni, cert, "http/1.1"))
		if err != nil {
			t.Fatal(err)
		}
		path := fresh()
		status, _, _ := rawExchange(conn, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s:%d\r\n\r\n", path, c.host, l.Port))
		if status != c.want[0] && status != c.want[len(c.want)-1] || reached(l.web, path) {
			t.Errorf("host %s on a connection for %s: status %d, want %v; reached %v", c.host, c.sni, status, c.want, reached(l.web, path))
		}
	}
}

// refusal returns the reason of a tunnel's refusal.
func refusal(err error) reason.Reason {
	var r *carrier.RefusedError
	if errors.As(err, &r) {
		return r.Reason
	}
	return reason.OK
}

// Tokens in the tunnel: expired, of another device, of another user, guessed.
// What a stranger hears is the same; the audit knows.
func TestGCR002_M72_M78_TokensInTheTunnel(t *testing.T) {
	t.Parallel()
	l := shared(t)
	ctx := within(t, time.Minute)
	hello := func(agent, device, user, token string) wire.TunnelHello {
		return wire.TunnelHello{AgentID: agent, DeviceID: device, UserID: user, AuthToken: token}
	}
	const strangeAgent = "AGT00000019"
	keys := map[string]func() (*carrier.Client, error){
		"right": func() (*carrier.Client, error) {
			return l.Tunnel(ctx, l.AgentKeys(aliceAgent, aliceDevice), aliceAgent, hello(aliceAgent, aliceDevice, alice, aliceToken))
		},
		"expired": func() (*carrier.Client, error) {
			return l.Tunnel(ctx, l.AgentKeys(lateAgent, lateDevice), lateAgent, hello(lateAgent, lateDevice, late, lateToken))
		},
		"token of another device": func() (*carrier.Client, error) {
			return l.Tunnel(ctx, l.AgentKeys(strangeAgent, nobodyDevice), strangeAgent, hello(strangeAgent, nobodyDevice, alice, aliceToken))
		},
		"device of another": func() (*carrier.Client, error) {
			return l.Tunnel(ctx, l.AgentKeys(strangeAgent, nobodyDevice), strangeAgent, hello(strangeAgent, aliceDevice, alice, aliceToken))
		},
		"agent of another": func() (*carrier.Client, error) {
			return l.Tunnel(ctx, l.AgentKeys(strangeAgent, aliceDevice), strangeAgent, hello(aliceAgent, aliceDevice, alice, aliceToken))
		},
		"another user": func() (*carrier.Client, error) {
			return l.Tunnel(ctx, l.AgentKeys(aliceAgent, aliceDevice), aliceAgent, hello(aliceAgent, aliceDevice, nobody, aliceToken))
		},
		"guessed": func() (*carrier.Client, error) {
			return l.Tunnel(ctx, l.AgentKeys(strangeAgent, nobodyDevice), strangeAgent, hello(strangeAgent, nobodyDevice, nobody, "guessed0001"))
		},
	}
	for name, want := range map[string]struct {
		outward []reason.Reason // what the stranger may be told
		audited []reason.Reason
	}{
		"expired":                 {[]reason.Reason{reason.TokenExpired, reason.GrantExpired, reason.TokenUnknown}, []reason.Reason{reason.TokenExpired, reason.GrantExpired}},
		"token of another device": {[]reason.Reason{reason.TokenUnknown}, []reason.Reason{reason.TokenOtherDevice, reason.TokenUnknown}},
		"device of another":       {[]reason.Reason{reason.DeviceMismatch}, []reason.Reason{reason.DeviceMismatch}},
		"agent of another":        {[]reason.Reason{reason.AgentMismatch, reason.MessageSender}, []reason.Reason{reason.AgentMismatch, reason.MessageSender}},
		"another user":            {[]reason.Reason{reason.UserMismatch, reason.TokenUnknown}, []reason.Reason{reason.UserMismatch, reason.TokenUnknown}},
		"guessed":                 {[]reason.Reason{reason.TokenUnknown}, []reason.Reason{reason.TokenUnknown}},
	} {
		count := func() (n int) {
			for _, w := range want.audited {
				n += len(l.Audit.Find(t, func(r *audit.Record) bool { return !r.Allowed && r.Code == w }))
			}
			return n
		}
		before := count()
		c, err := keys[name]()
		if err == nil {
			c.Close()
			t.Errorf("%s: the tunnel was accepted", name)
			continue
		}
		if got := refusal(err); !contains(want.outward, got) {
			t.Errorf("%s: refused for %v (%v), want one of %v", name, got, err, want.outward)
		}
		testbed.Eventually(t, 10*time.Second, name+": an audit record", func() bool { return count() > before })
	}
	c, err := keys["right"]()
	if err != nil {
		t.Fatalf("right token: %v", err)
	}
	defer c.Close()
	host, port, _ := net.SplitHostPort(l.echo.Address)
	n, _ := strconv.Atoi(port)
	request := wire.AccessRequest{AgentID: aliceAgent, UserID: alice, DeviceID: aliceDevice, AuthToken: aliceToken, AppID: echoID, AppName: "echo", IP: host, Port: n}
	for name, f := range map[string]struct {
		set     func(*wire.AccessRequest)
		want    reason.Reason // what the agent is told
		audited reason.Reason // what the log knows
	}{
		"unknown application":         {func(m *wire.AccessRequest) { m.AppID = "APP00000077" }, reason.AppNotGranted, reason.AppUnknown},
		"application not in the list": {func(m *wire.AccessRequest) { m.AppID = l.other.ID }, reason.AppNotGranted, reason.AppNotGranted},
		"another destination":         {func(m *wire.AccessRequest) { m.Port++ }, reason.DestinationRule, reason.DestinationRule},
		"the metadata address":        {func(m *wire.AccessRequest) { m.IP = "169.254.169.254"; m.Port = 80 }, reason.DestinationRule, reason.DestinationRule},
	} {
		m, before := request, l.echo.Connections()
		f.set(&m)
		if conn, err := c.Open(ctx, "tcp", &m); refusal(err) != f.want {
			t.Errorf("%s: %v, %v; want %v", name, conn, err, f.want)
		}
		if l.echo.Connections() != before {
			t.Errorf("%s: the application saw a connection", name)
		}
		l.Audit.Await(t, 1, name, func(r *audit.Record) bool {
			return !r.Allowed && r.Code == f.audited && r.UserID == alice && r.DeviceID == aliceDevice
		})
	}
	conn, err := c.Open(ctx, "tcp", &request)
	if err != nil {
		t.Fatalf("right request: %v", err)
	}
	defer conn.Close()
	buf := make([]byte, 4)
	if _, err := io.WriteString(conn, "echo"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "echo" {
		t.Errorf("echo: %q, %v", buf, err)
	}
}

func contains[T comparable](all []T, v T) bool {
	for _, x := range all {
		if x == v {
			return true
		}
	}
	return false
}

// A browser without a device has no use for the grant of a device.
func TestGCR002_M57_ABrowserHasNoUseForADevicesGrant(t *testing.T) {
	t.Parallel()
	w := worlds[ownLinks](t)
	u := w.NewUser("deviceonly")
	w.Grant(u, "any", time.Time{}, webID, echoID)
	a := w.NewAgent(t, "deviceonly")
	a.SignIn(u) // the row of the device stands now
	b := w.NewBrowser(t, true, false)
	path := fresh()
	p, err := b.SignIn(within(t, time.Minute), w.URL("web", path), u)
	if err != nil || p.Status != 403 || !strings.Contains(p.Body, reason.NoGrant.Code()) && !strings.Contains(p.Body, reason.AppNotGranted.Code()) {
		t.Errorf("%v; %+v", err, p)
	}
	if reached(w.web, path) {
		t.Error("the application saw the request")
	}
	w.GatewayAudit.Await(t, 1, "the refusal", func(r *audit.Record) bool {
		return r.Path == path && r.UserID == u.ID && !r.Allowed && (r.Code == reason.NoGrant || r.Code == reason.AppNotGranted)
	})
}

// Lists that are not what they must be change nothing: the list in force stays,
// with an alert and a record of why.
func TestS4_S5_ListsThatAreRefused(t *testing.T) {
	t.Parallel()
	l := newLone(t, "")
	client := l.HTTP(l.Client(alice, aliceDevice), true)
	stranger := l.HTTP(l.Client(nobody, nobodyDevice), true)
	l.PutGrants(l.Grants(10, loneGrants()...))
	if err := l.Reload(); err != nil {
		t.Fatalf("a good list: %v", err)
	}
	wider := append(loneGrants(), testbed.NewGrant(nobody, nobodyDevice, "tokenNobody", webID))
	impostor := l.Impostor()
	for _, c := range []struct {
		name string
		edit func(*testbed.List)
		want reason.Reason
	}{
		{"signed by another key", func(x *testbed.List) { x.Signer = impostor }, reason.ListSigner},
		{"older", func(x *testbed.List) { x.Version = 9 }, reason.ListOlder},
		{"for another gateway", l.ForAnother, reason.ListOtherReceiver},
		{"over", func(x *testbed.List) { x.NotAfter = time.Now().Add(-time.Minute) }, reason.ListExpired},
	} {
		list := l.Grants(11, wider...)
		c.edit(&list)
		l.PutGrants(list)
		before := len(l.Audit.Find(t, func(r *audit.Record) bool { return r.Kind == audit.List && r.Code == c.want }))
		if err := l.Reload(); err == nil {
			t.Errorf("%s: taken", c.name)
		}
		testbed.Eventually(t, 10*time.Second, c.name+": an audit record of "+c.want.String(), func() bool {
			return len(l.Audit.Find(t, func(r *audit.Record) bool { return r.Kind == audit.List && !r.Allowed && r.Code == c.want })) > before
		})
		path := fresh()
		if status, body, err := ask(stranger, l.URL(l.app, path)); err != nil || status != 403 || reached(l.web, path) {
			t.Errorf("%s: what it gives is in force: %d %q, %v", c.name, status, body, err)
		}
		if status, body, err := ask(client, l.URL(l.app, fresh())); err != nil || status != 200 {
			t.Errorf("%s: the old list is gone: %d %q, %v", c.name, status, body, err)
		}
		if st, err := l.Status(); err != nil || st.Access.Version != 10 {
			t.Errorf("%s: version %d in force, %v", c.name, st.Access.Version, err)
		}
	}

	// One bad row in a good list: only that row.
	for name, bad := range map[string]testbed.Grant{
		"a user of 14 characters": testbed.NewGrant("USR00000001234", "DEV00000014", "tokenBad001", webID),
		"no expiry":               testbed.NewGrant(nobody, nobodyDevice, "tokenBad001", webID).With("expirationDate", "soon"),
		"a number for a name":     testbed.NewGrant(nobody, nobodyDevice, "tokenBad001", webID).With("userId", 7),
	} {
		st, err := l.Status()
		if err != nil {
			t.Fatal(err)
		}
		l.PutGrants(l.Grants(st.Access.Version+1, append([]testbed.Grant{bad}, loneGrants()...)...))
		if err := l.Reload(); err != nil {
			t.Errorf("%s: the whole list was refused: %v", name, err)
			continue
		}
		if status, body, err := ask(client, l.URL(l.app, fresh())); err != nil || status != 200 {
			t.Errorf("%s: a good row: %d %q, %v", name, status, body, err)
		}
		if status, body, err := ask(stranger, l.URL(l.app, fresh())); err != nil || status != 403 {
			t.Errorf("%s: the bad row: %d %q, %v", name, status, body, err)
		}
	}

	// A bad row of Table 9 closes its scope instead.
	l.PutPolicies(l.Policies(2, testbed.NewPolicy("POL00000001", "ipallow", "127.0.0.1,::1"), testbed.NewPolicy("POL00000002", "moonphase", "full")))
	if err := l.Reload(); err != nil {
		t.Fatalf("a policy of unknown type: the whole list was refused: %v", err)
	}
	if status, body, err := ask(client, l.URL(l.app, fresh())); err != nil || status != 403 || !strings.Contains(body, reason.PolicyUnknownType.Code()) {
		t.Errorf("a policy of unknown type for everything: %d %q, %v", status, body, err)
	}
	l.PutPolicies(l.Policies(3))
	l.PutGrants(l.Grants(100))
	if err := l.Reload(); err != nil {
		t.Fatalf("an empty list: %v", err)
	}
	if status, body, err := ask(client, l.URL(l.app, fresh())); err != nil || status != 403 || !strings.Contains(body, reason.NoGrant.Code()) {
		t.Errorf("an empty list: %d %q, %v", status, body, err)
	}
}
