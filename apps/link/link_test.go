package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/channel"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/crypto/profile"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

const (
	appID     = "APP00000001"
	gatewayID = "GW000000001"
)

type fixture struct {
	ca     *lab.CA
	apps   *apps.Registry
	server *Server
	web    *httptest.Server
	gm     *httptest.Server // the same by TLCP
	gw     *keystore.Store

	mu     sync.Mutex
	now    time.Time      // guarded by mu
	audit  []audit.Record // guarded by mu
	alerts []alert.Alert  // guarded by mu
}

func (f *fixture) clock() time.Time { f.mu.Lock(); defer f.mu.Unlock(); return f.now }

func (f *fixture) advance(d time.Duration) { f.mu.Lock(); defer f.mu.Unlock(); f.now = f.now.Add(d) }

// Write and Raise make the fixture the sinks of the server.
func (f *fixture) Write(r *audit.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.audit = append(f.audit, *r)
}

func (f *fixture) Raise(a alert.Alert) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alerts = append(f.alerts, a)
}

func (f *fixture) lastAudit() audit.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.audit[len(f.audit)-1]
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	ca, err := lab.New(lab.Config{Iterations: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{ca: ca, now: time.Now()}
	f.gw = f.party(t, certid.Identity{Gateway: gatewayID, Device: "DEV00000009"}, "gate.example")
	if f.apps, err = apps.New(apps.Config{Apps: []apps.AppConfig{
		{ID: appID, Hosts: []string{"app.example"}, Upstreams: []string{"http://127.0.0.1:1"}, DemandIdentity: true},
	}}); err != nil {
		t.Fatal(err)
	}
	if f.server, err = New(Config{
		GatewayID: gatewayID, Keys: f.gw, Apps: func() *apps.Registry { return f.apps }, Audit: f, Alerts: f, Now: f.clock,
		Peer: func(r *http.Request) *x509.Certificate {
			s, _ := r.Context().Value(channelKey{}).(channel.State)
			return s.Peer
		},
	}); err != nil {
		t.Fatal(err)
	}
	pair, err := f.gw.TLSCertificate(keystore.TLS)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := f.gw.TLSRoots()
	if err != nil {
		t.Fatal(err)
	}
	f.web = httptest.NewUnstartedServer(f.server)
	f.web.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots}
	withState := func(ctx context.Context, c net.Conn) context.Context {
		if err := c.(interface{ HandshakeContext(context.Context) error }).HandshakeContext(ctx); err != nil {
			return ctx // its requests say why
		}
		s, _ := channel.Of(c)
		return context.WithValue(ctx, channelKey{}, s)
	}
	f.web.Config.ConnContext = withState
	f.web.StartTLS()
	t.Cleanup(f.web.Close)
	gm, err := f.gw.TLCPPair()
	if err != nil {
		t.Fatal(err)
	}
	smRoots, err := f.gw.Root(keystore.TLCPRoot)
	if err != nil {
		t.Fatal(err)
	}
	f.gm = httptest.NewUnstartedServer(f.server)
	f.gm.Config.ConnContext = withState
	f.gm.Listener = tlcp.NewListener(f.gm.Listener, &tlcp.Config{
		Certificates: []*tlcp.Pair{gm}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: smRoots, NextProtos: []string{"http/1.1"},
	})
	f.gm.Start()
	t.Cleanup(f.gm.Close)
	return f
}

// channelKey is where the servers of these tests keep who is at a connection.
type channelKey struct{}

func (f *fixture) party(t *testing.T, id certid.Identity, hosts ...string) *keystore.Store {
	t.Helper()
	s, err := f.ca.Party(filepath.Join(t.TempDir(), "keys"), []byte("p"), id, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (f *fixture) client(t *testing.T, app, service string) *Client {
	t.Helper()
	c, err := NewClient(ClientConfig{
		URL: "https://gate.example", Address: f.gm.Listener.Addr().String(), Service: service, Now: f.clock,
		Keys: f.party(t, certid.Identity{App: app}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The connector speaks the protocol of its profile, and no other.
func TestConnectorByEachProtocol(t *testing.T) {
	f := newFixture(t)
	keys := f.party(t, certid.Identity{App: appID})
	for _, c := range []struct {
		profile profile.Profile
		server  *httptest.Server
		want    string
	}{
		{profile.Mixed, f.gm, ""}, {profile.GM, f.gm, ""}, {profile.Intl, f.web, ""},
		{profile.Mixed, f.web, "speaks no TLCP"}, {profile.GM, f.web, "speaks no TLCP"}, {profile.Intl, f.gm, "refuses TLS"},
	} {
		client, err := NewClient(ClientConfig{
			URL: "https://gate.example", Address: c.server.Listener.Addr().String(), Service: "127.0.0.1:8080", Now: f.clock, Keys: keys, Crypto: c.profile,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Report(t.Context(), wire.Online)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.profile, err, c.want)
		}
	}
	if _, err := NewClient(ClientConfig{URL: "https://gate.example", Service: "127.0.0.1:8080", Keys: keys, Crypto: "gn"}); err == nil {
		t.Error("an unknown profile")
	}
}

func (f *fixture) state() apps.State { return f.apps.ID(appID).State(f.clock()) }

func TestGCR002_M29_M30_M33_M34_OnlineOfflineExpired(t *testing.T) {
	f := newFixture(t)
	c := f.client(t, appID, "127.0.0.1:8080")
	if f.state() != apps.Offline {
		t.Fatal("online before the first Table 1")
	}
	t2, err := c.Report(t.Context(), wire.Online) // the client verifies Table 2's signature
	if err != nil {
		t.Fatal(err)
	}
	if t2.Code != wire.Success || len(t2.AuthKey) != 22 || t2.Expiry != wire.FormatTime(f.clock().Add(Life)) || t2.SignatureType == "" || t2.Signature == "" {
		t.Errorf("Table 2 %+v", t2)
	}
	if f.state() != apps.Online {
		t.Fatal("offline after Table 1 with state 1")
	}
	if r := f.lastAudit(); r.Kind != audit.Interface || r.AppID != appID || !r.Allowed || r.Remote == "" || r.Time.IsZero() {
		t.Errorf("audit %+v", r)
	}
	f.advance(Life + time.Second)
	if f.state() != apps.Offline {
		t.Error("online after the expiry (M34)")
	}
	f.server.Check()
	if _, err := c.Report(t.Context(), wire.Online); err != nil || f.state() != apps.Online {
		t.Errorf("a new Table 1: %v, %v", f.state(), err)
	}
	if _, err := c.Report(t.Context(), wire.Offline); err != nil || f.state() != apps.Offline {
		t.Errorf("state 0: %v, %v", f.state(), err)
	}
	var codes []alert.Code
	for _, a := range f.alerts {
		codes = append(codes, a.Code)
	}
	if want := []alert.Code{alert.AppBack, alert.AppDown, alert.AppBack, alert.AppDown}; len(codes) != 4 || codes[0] != want[0] || codes[1] != want[1] || codes[3] != want[3] {
		t.Errorf("alerts %v, want %v", codes, want)
	}
}

// send seals t1 as the client would and posts it; it returns status and the
// opened Table 2 (nil: the answer was no envelope).
func (f *fixture) send(t *testing.T, c *Client, t1 wire.AppIdentity, change func(*envelope.Header)) (int, *wire.AppIdentityReply) {
	t.Helper()
	body, err := wire.Encode(&t1)
	if err != nil {
		t.Fatal(err)
	}
	return f.sendRaw(t, c, body, change)
}

func (f *fixture) sendRaw(t *testing.T, c *Client, body []byte, change func(*envelope.Header)) (int, *wire.AppIdentityReply) {
	t.Helper()
	enc, err := f.gw.Chain(keystore.Enc)
	if err != nil {
		t.Fatal(err)
	}
	h := envelope.Header{MsgType: "T1", Receiver: gatewayID, Ext: map[string]jsontext.Value{extSigner: envelope.SignerExt(c.chain), extEnc: envelope.SignerExt(c.enc)}}
	if change != nil {
		change(&h)
	}
	raw, err := c.sender.Seal(h, body, enc[0])
	if err != nil {
		t.Fatal(err)
	}
	resp, answer, err := c.do(t.Context(), http.MethodPost, IdentityPath, raw)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.open.Open(answer, "T2")
	if err != nil {
		return resp.StatusCode, nil
	}
	t2, err := wire.Decode[wire.AppIdentityReply](m.Body, wire.Profile{})
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, t2
}

func (f *fixture) table1() wire.AppIdentity {
	return wire.AppIdentity{AppID: appID, AppName: "应用", State: wire.Online, Timestamp: wire.FormatTime(f.clock()), IP: "127.0.0.1", Port: 80}
}

func TestGCR002_M31_M32_RefusedWithItsOwnReason(t *testing.T) {
	f := newFixture(t)
	c := f.client(t, appID, "127.0.0.1:8080")
	good := f.table1()
	status, t2 := f.send(t, c, good, nil)
	if status != 200 || t2 == nil || t2.Code != wire.Success {
		t.Fatalf("without the optional fields: %d %+v", status, t2)
	}
	for name, tc := range map[string]struct {
		change func(*wire.AppIdentity)
		want   reason.Reason
	}{
		"sessionToken right":  {func(m *wire.AppIdentity) { m.SessionToken = t2.AuthKey }, reason.OK},
		"sessionToken wrong":  {func(m *wire.AppIdentity) { m.SessionToken = "0123456789012345678901" }, reason.TokenUnknown},
		"authMethod wrong":    {func(m *wire.AppIdentity) { m.AuthMethod = "OIDC" }, reason.MessageInvalid},
		"timestamp too old":   {func(m *wire.AppIdentity) { m.Timestamp = wire.FormatTime(f.clock().Add(-2 * time.Minute)) }, reason.MessageSkew},
		"timestamp ahead":     {func(m *wire.AppIdentity) { m.Timestamp = wire.FormatTime(f.clock().Add(2 * time.Minute)) }, reason.MessageSkew},
		"another application": {func(m *wire.AppIdentity) { m.AppID = "APP00000002" }, reason.MessageSender},
		"nonce new":           {func(m *wire.AppIdentity) { m.Nonce = "n-1" }, reason.OK},
	} {
		if tc.want == reason.OK && name == "sessionToken right" {
			m := f.table1()
			tc.change(&m)
			if status, r := f.send(t, c, m, nil); status != 200 || r == nil {
				t.Errorf("%s: %d %+v", name, status, r)
			} else {
				t2 = r
			}
			continue
		}
		m := f.table1()
		tc.change(&m)
		status, r := f.send(t, c, m, nil)
		if r == nil {
			t.Errorf("%s: status %d and no Table 2", name, status)
			continue
		}
		if tc.want == reason.OK {
			if status != 200 || r.Code != wire.Success {
				t.Errorf("%s: %d %+v", name, status, r)
			}
			t2 = r
			continue
		}
		if status != 400 || r.Code != wire.Failure || !strings.HasPrefix(r.Result, tc.want.Public().Code()) || r.AuthKey != "" {
			t.Errorf("%s: %d %+v, want %s", name, status, r, tc.want.Code())
		}
		if a := f.lastAudit(); a.Code != tc.want || a.Allowed {
			t.Errorf("%s: audited as %s", name, a.Result)
		}
	}
	m := f.table1()
	m.Nonce = "n-2"
	f.send(t, c, m, nil)
	if status, r := f.send(t, c, m, nil); status != 400 || r == nil || r.Code != wire.Failure {
		t.Errorf("the same nonce twice: %d %+v (M31)", status, r)
	}
	if status, r := f.sendRaw(t, c, []byte(`{"appId":"APP00000001"}`), nil); status != 400 || r == nil || !strings.Contains(r.Result, "Table 1 appName") {
		t.Errorf("missing fields: %d %+v: the field must be named", status, r)
	}
}

func TestGCR002_M20_M22_EnvelopesOfOthers(t *testing.T) {
	f := newFixture(t)
	c := f.client(t, appID, "127.0.0.1:8080")
	stranger := newFixture(t).client(t, appID, "127.0.0.1:8080") // another authority
	other := f.client(t, "APP00000002", "127.0.0.1:8080")
	device := f.party(t, certid.Identity{Agent: "AGT00000001", Device: "DEV00000001"})

	// Another application's certificate on the channel, this one's signature.
	mixed := *c
	mixed.http = other.http
	if status, _ := f.send(t, &mixed, f.table1(), nil); status != 400 || f.lastAudit().Code != reason.MessageSender {
		t.Errorf("signed by another than the channel's: %d, %s", status, f.lastAudit().Result)
	}
	// A signature under a foreign root.
	forged := *c
	forged.sender, forged.chain = stranger.sender, stranger.chain
	if status, _ := f.send(t, &forged, f.table1(), nil); status != 400 || f.lastAudit().Code != reason.MessageSignature {
		t.Errorf("foreign signer: %d, %s", status, f.lastAudit().Result)
	}
	// An unregistered application.
	m := f.table1()
	m.AppID = "APP00000002"
	if status, r := f.send(t, other, m, nil); status != 400 || r == nil || r.Result != reason.AppUnknown.Result() {
		t.Errorf("unregistered application: %d %+v", status, r)
	}
	// A device is no application.
	channels, err := channel.New(channel.Config{
		Keys: device, TLCP: true, Peer: func(certid.Identity) error { return nil },
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, f.gm.Listener.Addr().String())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	asDevice := *c
	asDevice.http = &http.Client{Transport: &http.Transport{DialTLSContext: channels.Dial}}
	if status, _ := f.send(t, &asDevice, f.table1(), nil); status != 401 || f.lastAudit().Code != reason.ClientCertBad {
		t.Errorf("a device's certificate: %d, %s", status, f.lastAudit().Result)
	}
	if f.state() != apps.Offline {
		t.Fatal("one of them set the application online")
	}
	// The same message id: the same answer, one effect; another body: refused.
	id := func(h *envelope.Header) { h.MsgID = "m-1" }
	_, first := f.send(t, c, f.table1(), id)
	_, again := f.send(t, c, f.table1(), id)
	if first == nil || again == nil || first.AuthKey != again.AuthKey {
		t.Errorf("repeat: %+v then %+v", first, again)
	}
	m = f.table1()
	m.State = wire.Offline
	if status, _ := f.send(t, c, m, id); status != 400 || f.lastAudit().Code != reason.MessageConflict || f.state() != apps.Online {
		t.Errorf("another body under the same id: %d, %s, %v", status, f.lastAudit().Result, f.state())
	}
	// No certificate, too large, not JSON.
	bare := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for name, tc := range map[string]struct {
		http *http.Client
		body []byte
		want int
	}{
		"no certificate": {bare, []byte("{}"), 401},
		"too large":      {c.http, bytes.Repeat([]byte("x"), wire.MaxMessage+1), 413},
		"not JSON":       {c.http, []byte("<T1/>"), 400},
	} {
		resp, err := tc.http.Post(f.web.URL+IdentityPath, "application/json", bytes.NewReader(tc.body))
		if tc.http == c.http {
			var answer *http.Response
			answer, _, err = c.do(t.Context(), http.MethodPost, IdentityPath, tc.body)
			resp = answer
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if resp.StatusCode != tc.want {
			t.Errorf("%s: status %d, want %d", name, resp.StatusCode, tc.want)
		}
	}
}

// The connector follows the application: up, down, and offline when it ends.
func TestGCR002_M23_ConnectorFollowsTheApplication(t *testing.T) {
	f := newFixture(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	c := f.client(t, appID, ln.Addr().String())
	c.cfg.Now, c.sender.Now = time.Now, time.Now
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	waitFor(t, func() bool { return f.state() == apps.Online })
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if f.state() != apps.Offline {
		t.Error("online after the connector ended")
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("not within 5 s")
		}
		<-time.After(2 * time.Millisecond)
	}
}
