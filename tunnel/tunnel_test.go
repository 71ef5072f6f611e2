package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// both runs f over IPv4 and IPv6.
func both(t *testing.T, limits Limits, f func(t *testing.T, w *world)) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) { f(t, newWorld(t, host, limits)) })
	}
}

func refusal(err error) reason.Reason {
	var re *carrier.RefusedError
	if errors.As(err, &re) {
		return re.Reason
	}
	return reason.OK
}

func TestGCR002_M77_M78_AccessRequestOpensAFlow(t *testing.T) {
	both(t, Limits{}, func(t *testing.T, w *world) {
		c := w.mustConnect(w.alice, nil)
		f := w.open(c, "tcp", w.request(w.alice))
		w.echoes(f, "through the gate")
		if err := f.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(f); len(b) != 0 || err != nil { // half-close goes to the application and back
			t.Errorf("after half-close: %q, %v", b, err)
		}
		f.Close()
		eventually(t, "the end is audited", func() bool { n, _ := w.rec.audited(audit.End, ""); return n == 1 })
		_, end := w.rec.audited(audit.End, "")
		if end.BytesIn != 16 || end.BytesOut != 16 || end.Carrier != "tcp" || end.FlowID == "" || end.Upstream == "" || end.Remote == "" || end.Protocol != "tls1.3" {
			t.Errorf("end record %+v", end)
		}
		for _, object := range []string{"hello", "T12"} {
			if n, r := w.rec.audited(audit.Interface, object); n != 1 || !r.Allowed || r.AgentID != w.alice.agent || r.DeviceID != w.alice.device {
				t.Errorf("%d records of %s: %+v", n, object, r)
			}
		}
		in := w.srv.Tunnels()
		if len(in) != 1 || in[0].UserID != w.alice.user || in[0].BytesIn != 16 {
			t.Errorf("info %+v", in)
		}
	})
}

func TestGCR002_M77_DatagramsOverTheTunnel(t *testing.T) {
	both(t, Limits{}, func(t *testing.T, w *world) {
		c := w.mustConnect(w.alice, nil)
		f := w.open(c, "udp", w.request(w.alice))
		for _, s := range []string{"one", "two", "three"} {
			w.echoes(f, s)
		}
		f.Close()
		eventually(t, "the end is audited", func() bool { _, r := w.rec.audited(audit.End, ""); return r.Carrier == "udp" })
	})
}

func TestGCR002_M79_EachWrongFieldIsRefused(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.mustConnect(w.alice, nil)
	for _, tt := range []struct {
		field string
		set   func(m *wire.AccessRequest)
		want  reason.Reason
	}{
		{"agentId", func(m *wire.AccessRequest) { m.AgentID = w.bob.agent }, reason.AgentMismatch},
		{"deviceId", func(m *wire.AccessRequest) { m.DeviceID = w.bob.device }, reason.DeviceMismatch},
		{"userId", func(m *wire.AccessRequest) { m.UserID = w.bob.user }, reason.UserMismatch},
		{"authToken", func(m *wire.AccessRequest) { m.AuthToken = "tokenNobody" }, reason.TokenUnknown},
		{"authToken of another", func(m *wire.AccessRequest) { m.AuthToken = w.bob.token }, reason.TokenUnknown},
		{"appId unknown", func(m *wire.AccessRequest) { m.AppID = "APP00000009" }, reason.AppNotGranted},
		{"appId not granted", func(m *wire.AccessRequest) { m.AppID = otherApp }, reason.AppNotGranted},
		{"ip", func(m *wire.AccessRequest) { m.IP = "127.0.0.2" }, reason.DestinationRule},
		{"port", func(m *wire.AccessRequest) { m.Port = int(w.other) }, reason.DestinationRule},
		{"port 0", func(m *wire.AccessRequest) { m.Port = 0 }, reason.DestinationRule},
	} {
		t.Run(tt.field, func(t *testing.T) {
			m := w.request(w.alice)
			tt.set(m)
			_, err := c.Open(t.Context(), "tcp", m)
			if got := refusal(err); got != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	if len(w.hits) != 0 {
		t.Errorf("%d connections came to the application", len(w.hits))
	}
	// The name is no secret and no proof: it is counted, and the flow opens.
	m := w.request(w.alice)
	m.AppName = "Another"
	w.echoes(w.open(c, "tcp", m), "named otherwise")
	eventually(t, "no flow is left behind", func() bool { return w.access.Stats().Leases == 1 })
}

func TestGCR002_M78_RefusalTellsNoExistence(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.mustConnect(w.alice, nil)
	var said []string
	for _, m := range []func(m *wire.AccessRequest){
		func(m *wire.AccessRequest) { m.AppID = "APP00000009" },                                // no such application
		func(m *wire.AccessRequest) { m.AppID = secret; m.Port = int(w.other) },                // exists, not granted
		func(m *wire.AccessRequest) { m.AppID = secret },                                       // and not its address
		func(m *wire.AccessRequest) { m.AppID = "APP00000009"; m.IP = "10.9.8.7"; m.Port = 1 }, // nor this
	} {
		r := w.request(w.alice)
		m(r)
		_, err := c.Open(t.Context(), "tcp", r)
		var re *carrier.RefusedError
		if !errors.As(err, &re) || re.Result == "" {
			t.Fatalf("got %v, want Table 13", err)
		}
		said = append(said, re.Result)
	}
	for _, s := range said[1:] {
		if s != said[0] {
			t.Errorf("the answers differ: %q and %q", said[0], s)
		}
	}
}

func TestS17_NothingOutsideTheResourcesIsReached(t *testing.T) {
	both(t, Limits{}, func(t *testing.T, w *world) {
		c := w.mustConnect(w.alice, nil)
		for _, ip := range []string{"169.254.169.254", "127.0.0.9", "::ffff:127.0.0.9", "0.0.0.0", "::", "10.0.0.1", "fe80::1"} {
			for _, network := range []string{"tcp", "udp"} {
				m := w.request(w.alice)
				m.IP = ip
				if _, err := c.Open(t.Context(), network, m); refusal(err) != reason.DestinationRule && refusal(err) != reason.MessageInvalid {
					t.Errorf("%s %s: %v", network, ip, err)
				}
				m = w.request(w.alice)
				m.Port = int(w.other)
				if _, err := c.Open(t.Context(), network, m); refusal(err) != reason.DestinationRule {
					t.Errorf("%s port %d: %v", network, w.other, err)
				}
			}
		}
		if len(w.hits) != 0 {
			t.Error("a packet came to the application")
		}
	})
}

func TestS1_TokenOfAnotherDevice(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	thief := w.bob
	thief.token, thief.user = w.alice.token, w.alice.user
	_, err := w.connect(thief, nil)
	if got := refusal(err); got != reason.TokenUnknown {
		t.Errorf("hello: %v, want what an unknown token gets", err)
	}
	a, ok := w.rec.raised(alert.TokenMisuse)
	if e, _ := alert.Lookup(a.Code); !ok || a.DeviceID != w.bob.device || a.Reason != reason.TokenOtherDevice || e.Level < alert.Warning {
		t.Errorf("alert %+v", a)
	}
	// And inside an honest tunnel.
	c := w.mustConnect(w.bob, nil)
	m := w.request(w.bob)
	m.AuthToken = w.alice.token
	if _, err := c.Open(t.Context(), "tcp", m); refusal(err) != reason.TokenUnknown {
		t.Errorf("Table 12: %v", err)
	}
	if err := c.Renew(t.Context(), &wire.Renewal{AuthToken: w.alice.token, UpdateTime: wire.FormatTime(time.Now())}); refusal(err) != reason.TokenUnknown {
		t.Errorf("Table 14: %v", err)
	}
}

func TestGCR002_M71_M3_OnlyAnAgentsCertificateOpensATunnel(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	keys := must(pki())
	p := w.alice
	p.keys = keys["nobody"] // a device without an agent
	conn := w.dial(p)
	_, err := carrier.Connect(t.Context(), conn, carrier.ClientConfig{Hello: w.hello(w.alice, w.alice.agent), Identity: wire.TunnelHello{AgentID: p.agent, DeviceID: p.device, UserID: p.user, AuthToken: p.token}})
	if got := refusal(err); got != reason.ClientCertBad {
		t.Errorf("got %v", err)
	}
	// Bob's connection with Alice's hello, and Alice's identifiers in Bob's.
	for name, cfg := range map[string]carrier.ClientConfig{
		"hello of another": {Hello: w.hello(w.alice, w.alice.agent), Identity: wire.TunnelHello{AgentID: w.alice.agent, DeviceID: w.alice.device, UserID: w.alice.user, AuthToken: w.alice.token}},
		"agentId":          {Hello: w.hello(w.bob, w.bob.agent), Identity: wire.TunnelHello{AgentID: w.alice.agent, DeviceID: w.bob.device, UserID: w.bob.user, AuthToken: w.bob.token}},
		"deviceId":         {Hello: w.hello(w.bob, w.bob.agent), Identity: wire.TunnelHello{AgentID: w.bob.agent, DeviceID: w.alice.device, UserID: w.bob.user, AuthToken: w.bob.token}},
		"userId":           {Hello: w.hello(w.bob, w.bob.agent), Identity: wire.TunnelHello{AgentID: w.bob.agent, DeviceID: w.bob.device, UserID: w.alice.user, AuthToken: w.bob.token}},
		"no token":         {Hello: w.hello(w.bob, w.bob.agent), Identity: wire.TunnelHello{AgentID: w.bob.agent, DeviceID: w.bob.device, UserID: w.bob.user}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := carrier.Connect(t.Context(), w.dial(w.bob), cfg)
			if refusal(err) == reason.OK {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
	if n := w.access.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
}

func TestGCR002_M57_M13_RevocationCutsALiveFlow(t *testing.T) {
	both(t, Limits{}, func(t *testing.T, w *world) {
		notices := make(chan *wire.Notice, 16)
		c := w.mustConnect(w.alice, func(n *wire.Notice) { notices <- n })
		tcp := w.open(c, "tcp", w.request(w.alice))
		udp := w.open(c, "udp", w.request(w.alice))
		w.echoes(tcp, "alive")
		w.echoes(udp, "alive")
		in := w.input()
		in.Grants, in.Version = in.Grants[1:], 2
		begin := time.Now()
		w.apply(in)
		for _, f := range []*mux.Flow{tcp, udp} {
			var re *mux.ResetError
			if _, err := f.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.GrantRevoked || !re.Remote {
				t.Errorf("read after revocation: %v", err)
			}
		}
		if d := time.Since(begin); d > 3*time.Second { // the standard's limit; the goal is 100 ms
			t.Errorf("cut after %v", d)
		} else {
			t.Logf("two flows cut %v after the list was applied", d)
		}
		n := <-notices
		if n.ExceptionAlertType != string(alert.SessionCut) || n.GatewayID != gatewayID || !isSubset(n.ExceptionAlertContent, "YM-304", appID, "在线会话被切断", "a live session was cut") {
			t.Errorf("notice %+v", n)
		}
		eventually(t, "both ends are audited with the reason", func() bool {
			n, r := w.rec.audited(audit.End, "")
			return n == 2 && r.Code == reason.GrantRevoked && w.access.Stats().Leases == 0
		})
	})
}

func TestGCR002_M13_RevocationCutsManyFlows(t *testing.T) {
	const n = 400
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.mustConnect(w.alice, nil)
	var wg sync.WaitGroup
	var last atomic.Int64
	for range n {
		f := w.open(c, "tcp", w.request(w.alice))
		w.echoes(f, "alive")
		wg.Go(func() {
			var re *mux.ResetError
			if _, err := f.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.GrantRevoked {
				t.Errorf("read: %v", err)
			}
			last.Store(time.Now().UnixNano())
		})
	}
	in := w.input()
	in.Grants, in.Version = in.Grants[1:], 2
	begin := time.Now()
	w.apply(in)
	wg.Wait()
	d := time.Unix(0, last.Load()).Sub(begin)
	t.Logf("the agent saw the last of %d resets %v after the list was applied", n, d)
	if d > 3*time.Second { // the standard's limit; the goal is 100 ms
		t.Errorf("after %v", d)
	}
	eventually(t, "all is released", func() bool { return w.access.Stats().Leases == 0 })
}

func TestGCR002_M80_M81_RenewalKeepsTheTunnel(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	w.srv.mux.MessageRate, w.srv.mux.MessageBurst = 1<<20, 1<<20 // a day in a moment
	c := w.mustConnect(w.alice, nil)
	f := w.open(c, "tcp", w.request(w.alice))
	token := w.alice.token
	// 24 hours, a renewal each 55 s, a new token each hour.
	for i := range 24 * 3600 / 55 {
		w.clock.advance(55 * time.Second)
		if i%65 == 0 {
			w.alice.token = token[:7] + string([]byte{byte('a' + i/65/10), byte('0' + i/65%10)}) + "xy"
			in := w.input()
			in.Version = uint64(i + 2)
			w.apply(in)
		}
		if err := c.Renew(t.Context(), &wire.Renewal{AuthToken: w.alice.token, UpdateTime: wire.FormatTime(w.clock.now())}); err != nil {
			t.Fatalf("renewal %d: %v", i, err)
		}
		for _, tun := range w.srv.all(nil) {
			tun.review(w.clock.now())
		}
	}
	w.echoes(f, "still the same flow")
	// The old token of Table 12 is refused, the new one opens.
	m := w.request(w.alice)
	w.echoes(w.open(c, "tcp", m), "new token")
	m.AuthToken = token
	if _, err := c.Open(t.Context(), "tcp", m); refusal(err) != reason.TokenUnknown {
		t.Errorf("old token: %v", err)
	}
	// An older updateTime is answered and does not renew.
	before := w.srv.Tunnels()[0].Renewed
	w.clock.advance(10 * time.Second)
	if err := c.Renew(t.Context(), &wire.Renewal{AuthToken: w.alice.token, UpdateTime: "2020-01-02T03:04:05Z"}); err != nil {
		t.Errorf("older updateTime: %v", err)
	}
	if after := w.srv.Tunnels()[0].Renewed; !after.Equal(before) {
		t.Errorf("an older updateTime renewed the tunnel")
	}
}

func TestGCR002_M82_MissingRenewalClosesTheTunnel(t *testing.T) {
	both(t, Limits{}, func(t *testing.T, w *world) {
		notices := make(chan *wire.Notice, 16)
		c := w.mustConnect(w.alice, func(n *wire.Notice) { notices <- n })
		f := w.open(c, "tcp", w.request(w.alice))
		w.clock.advance(60 * time.Second)
		time.Sleep(1100 * time.Millisecond) // one round of the review
		if err := c.Err(); err != nil {
			t.Fatalf("closed before its time: %v", err)
		}
		w.clock.advance(15 * time.Second)
		var re *mux.ResetError
		if _, err := f.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.RenewalMissed {
			t.Errorf("flow: %v", err)
		}
		<-c.Done()
		if got := refusal(c.Err()); got != reason.RenewalMissed {
			t.Errorf("tunnel: %v", c.Err())
		}
		n := <-notices
		if n.ExceptionAlertType != string(alert.RenewalMissed) {
			t.Errorf("notice %+v", n)
		}
		if a, ok := w.rec.raised(alert.RenewalMissed); !ok || a.DeviceID != w.alice.device {
			t.Errorf("alert %+v", a)
		}
		eventually(t, "the lease is released", func() bool { return w.access.Stats().Leases == 0 && len(w.srv.Tunnels()) == 0 })
		if len(notices) != 0 {
			t.Errorf("a second notice: %+v", <-notices)
		}
	})
}

func TestGCR002_M83_M85_AlertsReachTheAgentConcerned(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	alice, bob := make(chan *wire.Notice, 16), make(chan *wire.Notice, 16)
	w.mustConnect(w.alice, func(n *wire.Notice) { alice <- n })
	w.mustConnect(w.bob, func(n *wire.Notice) { bob <- n })
	begin := time.Now()
	w.srv.Raise(alert.Alert{Code: alert.LockInForce, UserID: w.alice.user, Reason: reason.Locked, Detail: "see\nthe desk"})
	w.srv.Raise(alert.Alert{Code: alert.TokenGuessing, UserID: w.alice.user}) // not for agents
	w.srv.Raise(alert.Alert{Code: alert.AccessRefused})                       // concerns nobody
	w.srv.Raise(alert.Alert{Code: alert.AccessRefused, UserID: w.bob.user, DeviceID: w.bob.device})
	n := <-alice
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("after %v", d)
	}
	if err := n.Validate(wire.Strict); err != nil {
		t.Error(err)
	}
	if n.ExceptionAlertType != string(alert.LockInForce) || n.ExceptionAlertLevel != int(alert.Warning) || n.DeviceID != gatewayDevice ||
		!isSubset(n.ExceptionAlertContent, n.Timestamp, "锁定已生效", "a lock is in force", "YM-219") {
		t.Errorf("notice %+v", n)
	}
	if b := <-bob; b.ExceptionAlertType != string(alert.AccessRefused) {
		t.Errorf("Bob's notice %+v", b)
	}
	if k, err := w.srv.Notify(access.Selector{UserID: w.bob.user}, n); k != 1 || err != nil {
		t.Errorf("Notify: %d, %v", k, err)
	}
	<-bob
	if len(alice) != 0 || len(bob) != 0 {
		t.Errorf("more notices: %d, %d", len(alice), len(bob))
	}
}

func TestLimitsOfTunnelsAndFlows(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{PerDevice: 2, Flows: 3})
	c := w.mustConnect(w.alice, nil)
	w.mustConnect(w.alice, nil)
	if _, err := w.connect(w.alice, nil); refusal(err) != reason.TunnelLimit {
		t.Errorf("third tunnel of a device: %v", err)
	}
	w.mustConnect(w.bob, nil)
	var last *mux.Flow
	for range 3 {
		last = w.open(c, "tcp", w.request(w.alice))
	}
	var re *carrier.RefusedError
	if _, err := c.Open(t.Context(), "tcp", w.request(w.alice)); !errors.As(err, &re) || re.Reason != reason.FlowLimit || re.Result == "" {
		t.Errorf("fourth flow: %v", err)
	}
	last.Reset(reason.ClientGone)
	eventually(t, "room for another flow", func() bool {
		f, err := c.Open(t.Context(), "tcp", w.request(w.alice))
		if err == nil {
			f.Close()
		}
		return err == nil
	})
}

func TestUnreachableApplicationIsNamed(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.mustConnect(w.alice, nil)
	dead := w.echoOff()
	m := w.request(w.alice)
	m.Port = dead
	if _, err := c.Open(t.Context(), "tcp", m); refusal(err) != reason.UpstreamUnreachable {
		t.Errorf("got %v", err)
	}
	eventually(t, "the lease is released", func() bool { return w.access.Stats().Leases == 0 })
}

// echoOff gives appID a port behind which nobody listens.
func (w *world) echoOff() int {
	w.t.Helper()
	cfg := w.app(appID, 1)
	w.srv.SetApps(mustApps(cfg))
	return 1
}

func TestPolicyAndLockReachTheAgent(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	notices := make(chan *wire.Notice, 16)
	c := w.mustConnect(w.alice, func(n *wire.Notice) { notices <- n })
	in := w.input()
	in.Version, in.PolicyVersion = 2, 2
	in.Policies = []wire.Policy{{PolicyID: "POL00000001", PolicyName: "nowhere", PolicyType: "ipallow", PolicyData: "192.0.2.0/24"}}
	w.apply(in)
	_, err := c.Open(t.Context(), "tcp", w.request(w.alice))
	if refusal(err) != reason.PolicyIPAllow {
		t.Errorf("got %v", err)
	}
	for {
		if n := <-notices; isSubset(n.ExceptionAlertContent, "POL00000001") {
			break
		}
	}
	// What helps is told in the answer itself, where to stand is not.
	var no *carrier.RefusedError
	if !errors.As(err, &no) || !strings.HasSuffix(no.Result, " (policy POL00000001)") {
		t.Errorf("Table 13 said %v", err)
	}
	in = w.input()
	in.Version, in.PolicyVersion = 4, 4
	day := int(w.clock.now().UTC().Weekday()+3)%7 + 1 // three days on: never today
	hours := fmt.Sprintf("%d 0800-2000 Z", day)
	in.Policies = []wire.Policy{{PolicyID: "POL00000007", PolicyName: "hours", PolicyType: "time", PolicyData: hours}}
	w.apply(in)
	_, err = c.Open(t.Context(), "tcp", w.request(w.alice))
	if want := reason.PolicyTime.Result() + " (policy POL00000007 " + hours + ")"; !errors.As(err, &no) || no.Result != want {
		t.Errorf("Table 13 said %v, want %q", err, want)
	}
	in = w.input()
	in.Version, in.PolicyVersion = 5, 5
	in.Locks = []policy.Lock{{Kind: "app", ID: appID, Message: "closed for stocktaking"}}
	w.apply(in)
	if _, err := c.Open(t.Context(), "tcp", w.request(w.alice)); refusal(err) != reason.Locked {
		t.Errorf("got %v", err)
	}
	for {
		if n := <-notices; isSubset(n.ExceptionAlertContent, "closed for stocktaking") {
			break
		}
	}
}

func TestSessionCutByAnOperatorClosesTheTunnel(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.mustConnect(w.alice, nil)
	w.access.Cut(access.Selector{UserID: w.alice.user}, reason.CutByOperator)
	<-c.Done() // without a flow: the review finds it
	if got := refusal(c.Err()); got != reason.CutByOperator {
		t.Errorf("got %v", c.Err())
	}
}

func TestShutdownClosesTunnels(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.mustConnect(w.alice, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.srv.Run(ctx); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if got := refusal(c.Err()); got != reason.Shutdown {
		t.Errorf("got %v", c.Err())
	}
	if _, err := w.connect(w.alice, nil); refusal(err) != reason.Shutdown {
		t.Errorf("a new tunnel: %v", err)
	}
}

// Reports of a time without a tunnel (Table 14 with an older updateTime) are
// answered and recorded with their own time, each once however often it comes,
// and change nothing: neither the token nor how long the tunnel lives.
func TestGCR002_M76_LateReportsAreRecordedOnce(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	c := w.mustConnect(w.alice, nil)
	before := w.srv.Tunnels()[0].Renewed
	w.clock.advance(5 * time.Second)
	start := w.clock.now().Add(-time.Hour)
	for round := range 2 { // the second time as if no reply had come
		for i := range 5 {
			at := start.Add(time.Duration(i) * time.Minute)
			if err := c.Renew(t.Context(), &wire.Renewal{AuthToken: "oldToken001", UpdateTime: wire.FormatTime(at)}); err != nil {
				t.Fatalf("round %d, report %d: %v", round, i, err)
			}
		}
	}
	n, last := w.rec.audited(audit.Interface, "T14")
	if want := "late: made at " + wire.FormatTime(start.Add(4*time.Minute)); n != 5 || last.Detail != want {
		t.Errorf("%d records, the last with %q; want 5, the last with %q", n, last.Detail, want)
	}
	if s := w.srv.Tunnels(); len(s) != 1 || !s[0].Renewed.Equal(before) {
		t.Errorf("tunnels after late reports: %+v", s)
	}
	if err := c.Renew(t.Context(), &wire.Renewal{AuthToken: w.alice.token, UpdateTime: wire.FormatTime(w.clock.now())}); err != nil {
		t.Errorf("a live report behind them: %v", err)
	}
}
