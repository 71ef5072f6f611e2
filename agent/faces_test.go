package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/yumen-zt/yumen/agent/socks5"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func allFaces(c *Config) {
	c.SOCKS5 = []string{"127.0.0.1:0", "[::1]:0"}
	c.HTTPConnect = []string{"127.0.0.1:0"}
	c.Forwards = []Forward{{Listen: "[::1]:0", App: "APP00000001"}}
	c.StatusPage = "127.0.0.1:0"
}

func TestGCR002_M98_OnlyResourcesAreRouted(t *testing.T) {
	r := newRig(t, allFaces)
	r.dialer.open = echo(t)
	r.link.resources = resources(row("APP00000001", "10.0.0.5", 5432), row("APP00000002", "fd00::7", 443), row("APP00000003", "fd00::7", 8443), row("APP00000004", "fd00::7", 8443))
	r.link.resources.Facts = []wire.ResourceFacts{{I: 0, Hosts: []string{"DB.example.test."}}, {I: 2, Hosts: []string{"shared.example.test"}}}
	r.serve()
	var faces []string
	for _, f := range r.a.Status().Faces {
		if f.Kind == "socks5" {
			faces = append(faces, f.Addr)
		}
	}
	for _, face := range faces {
		for to, app := range map[string]string{
			"10.0.0.5:5432": "APP00000001", "db.example.test:5432": "APP00000001", "Db.Example.Test.:5432": "APP00000001",
			"[fd00::7]:443": "APP00000002", "shared.example.test:8443": "APP00000003",
		} {
			c, code := socks(t, face, to)
			if code != 0 {
				t.Errorf("%s: code %d, want 0", to, code)
				continue
			}
			roundTrip(t, c)
			asked := r.dialer.last().requests()
			m := asked[len(asked)-1]
			if m.AppID != app || m.AuthToken != "aaaaaaaaaa1" || m.UserID != testUser || m.AgentID != testID.AgentID || m.DeviceID != testID.DeviceID {
				t.Errorf("%s: Table 12 is %+v, want application %s", to, m, app)
			}
		}
	}
	before := len(r.dialer.last().requests())
	l, err := net.Listen("tcp", "127.0.0.1:0") // what a direct way would reach
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	direct := make(chan struct{})
	go func() {
		defer close(direct)
		if c, err := l.Accept(); err == nil {
			c.Close()
			t.Error("a refused destination was connected directly")
		}
	}()
	refusedTo := []string{l.Addr().String(), "10.0.0.5:5433", "10.0.0.6:5432", "db.example.test:443", "evil.test:5432", "[fd00::7]:8443", "x.db.example.test:5432"}
	for _, to := range refusedTo {
		if _, code := socks(t, faces[0], to); code != byte(socks5.NotAllowed) {
			t.Errorf("%s: code %d, want 2", to, code)
		}
	}
	l.Close()
	<-direct
	if n := len(r.dialer.last().requests()); n != before {
		t.Errorf("%d access requests for refused destinations, want none", n-before)
	}
	lines := r.logs.FilterMessage("destination refused").All()
	if len(lines) != len(refusedTo) {
		t.Fatalf("%d log lines, want %d", len(lines), len(refusedTo))
	}
	for _, l := range lines {
		if l.Level != zapcore.WarnLevel || l.ContextMap()["reason"] != reason.DestinationRule.String() || l.ContextMap()["destination"] == "" {
			t.Errorf("log line %v %v", l.Level, l.ContextMap())
		}
	}
}

func TestConnectFace(t *testing.T) {
	r := newRig(t, allFaces)
	r.dialer.open = echo(t)
	r.serve()
	ask := func(head string) (*http.Response, string, *bufio.Reader, *net.TCPConn) {
		c, err := net.Dial("tcp", r.face("http_connect"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"})
		if err != nil {
			t.Fatal(err)
		}
		body := ""
		if res.StatusCode != 200 {
			b, _ := io.ReadAll(br)
			body = string(b)
		}
		return res, body, br, c.(*net.TCPConn)
	}
	res, _, br, c := ask("CONNECT 10.0.0.5:5432 HTTP/1.1\r\n\r\nearly ")
	if res.StatusCode != 200 {
		t.Fatalf("status %d, want 200", res.StatusCode)
	}
	if _, err := io.WriteString(c, "late"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(br); err != nil || string(got) != "early late" {
		t.Errorf("got %q, %v, want what came with the head and after it", got, err)
	}
	for head, want := range map[string]struct {
		status int
		words  []string
	}{
		"CONNECT evil.test:443 HTTP/1.1\r\n\r\n":    {403, []string{"not one of the application's", "不属于该应用", "YM-706"}},
		"GET http://evil.test/ HTTP/1.1\r\n\r\n":    {501, []string{"SOCKS5", "明文"}},
		"CONNECT 10.0.0.5:5432 HTTP/1.1\r\nx y\r\n": {400, []string{"malformed"}},
	} {
		res, body, _, _ := ask(head)
		if res.StatusCode != want.status {
			t.Errorf("%q: status %d, want %d", head, res.StatusCode, want.status)
		}
		for _, w := range want.words {
			if !strings.Contains(body, w) {
				t.Errorf("%q: body %q lacks %q", head, body, w)
			}
		}
	}
}

func TestForwardFace(t *testing.T) {
	r := newRig(t, allFaces)
	r.dialer.open = echo(t)
	r.serve()
	c, err := net.Dial("tcp", r.face("forward"))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c)
	r.link.ev.Resources(resources(row("APP00000002", "10.0.0.5", 5432)))
	if b, err := untilReset(r.face("forward")); !errors.Is(err, syscall.ECONNRESET) || len(b) != 0 {
		t.Errorf("a forward without its application: got %q, %v, want a reset", b, err)
	}
}

// untilReset reads what a face sends to a caller whom it resets. The reset may
// come before connect returns.
func untilReset(addr string) ([]byte, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return io.ReadAll(c)
}

func TestForwardNeedsATargetWhenThereAreSeveral(t *testing.T) {
	rs := resources(row("APP00000001", "10.0.0.5", 80), row("APP00000001", "10.0.0.5", 443))
	rs.Facts = []wire.ResourceFacts{{I: 1, Hosts: []string{"a.test"}}}
	tab, err := newRoutes(rs)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]reason.Reason{
		"": reason.DestinationRule, "10.0.0.5:443": reason.OK, "A.test:443": reason.OK, "a.test:80": reason.DestinationRule, "10.0.0.6:443": reason.DestinationRule,
	} {
		if _, got := tab.forward(Forward{App: "APP00000001", Target: target}); got != want {
			t.Errorf("target %q: %v, want %v", target, got, want)
		}
	}
	if _, got := tab.forward(Forward{App: "APP00000009"}); got != reason.AppNotGranted {
		t.Errorf("other application: %v", got)
	}
}

func TestGCR002_M98_RemovalClosesLiveFlowsWithTheReason(t *testing.T) {
	r := newRig(t, nil)
	r.dialer.open = echo(t)
	r.link.resources = resources(row("APP00000001", "10.0.0.5", 5432), row("APP00000002", "10.0.0.6", 80))
	r.serve()
	gone, code1 := socks(t, r.face("socks5"), "10.0.0.5:5432")
	stays, code2 := socks(t, r.face("socks5"), "10.0.0.6:80")
	if code1 != 0 || code2 != 0 {
		t.Fatalf("codes %d and %d", code1, code2)
	}
	start := time.Now()
	r.link.ev.Resources(resources(row("APP00000002", "10.0.0.6", 80)))
	if _, err := io.ReadAll(gone); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow of the removed resource: got %v, want a reset", err)
	}
	t.Logf("cut %v after the list", time.Since(start))
	roundTrip(t, stays)
	if _, code := socks(t, r.face("socks5"), "10.0.0.5:5432"); code != byte(socks5.NotAllowed) {
		t.Errorf("removed route: code %d, want 2", code)
	}
	n, ok := r.a.notices.about("APP00000001")
	if !ok || n.Reason != reason.GrantRevoked.Code() || !strings.Contains(n.ZH, "授权已被收回") || !strings.Contains(n.EN, "withdrawn") {
		t.Errorf("notice %+v, want GrantRevoked in both languages", n)
	}
	if l := r.logs.FilterMessage("flow closed").All(); len(l) != 1 || l[0].ContextMap()["reason"] != "grant_revoked" {
		t.Errorf("log lines %v", l)
	}
}

// A list that arrives between the gateway's yes and the first byte must not
// leave a flow behind.
func TestRemovalDuringOpenLeavesNoFlow(t *testing.T) {
	r := newRig(t, nil)
	serve := echo(t)
	r.dialer.open = func(ctx context.Context, n string, m *wire.AccessRequest) (net.Conn, error) {
		r.link.ev.Resources(resources())
		return serve(ctx, n, m)
	}
	r.serve()
	if _, code := socks(t, r.face("socks5"), "10.0.0.5:5432"); code != byte(socks5.NotAllowed) {
		t.Errorf("code %d, want 2", code)
	}
	if s := r.a.Status(); s.Flows != 0 {
		t.Errorf("%d flows live on", s.Flows)
	}
}

func TestSOCKSCodes(t *testing.T) {
	r := newRig(t, nil)
	r.serve()
	for result, want := range map[string]socks5.Code{
		reason.PolicyTime.Result():          socks5.NotAllowed,
		reason.TokenExpired.Result():        socks5.NotAllowed,
		reason.UpstreamUnreachable.Result(): socks5.HostUnreachable,
		reason.UpstreamTimeout.Result():     socks5.Expired,
		reason.FlowLimit.Result():           socks5.GeneralFailure,
		"something else":                    socks5.GeneralFailure,
	} {
		r.dialer.open = refuse(result)
		if _, code := socks(t, r.face("socks5"), "10.0.0.5:5432"); code != byte(want) {
			t.Errorf("%s: code %d, want %d", result, code, want)
		}
	}
	r.a.Logout()
	if _, code := socks(t, r.face("socks5"), "10.0.0.5:5432"); code != byte(socks5.NotAllowed) {
		t.Errorf("signed out: code %d, want 2", code)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxFlows = 2 })
	r.dialer.open = echo(t)
	r.serve()
	face := r.face("socks5")
	a, _ := socks(t, face, "10.0.0.5:5432")
	if _, code := socks(t, face, "10.0.0.5:5432"); code != 0 {
		t.Fatalf("second: code %d", code)
	}
	c, err := net.Dial("tcp", face)
	switch {
	case errors.Is(err, syscall.ECONNRESET): // as fast as that
	case err != nil:
		t.Fatal(err)
	default:
		if _, err := io.ReadAll(c); err == nil {
			t.Error("a third connection was served, want a reset")
		}
	}
	if s := r.a.Status(); s.OverLimit != 1 {
		t.Errorf("%d counted, want 1", s.OverLimit)
	}
	a.Close()
	r.wait("room", func(s Status) bool { return s.Flows == 1 && len(r.a.slots) == 1 })
	if _, code := socks(t, face, "10.0.0.5:5432"); code != 0 {
		t.Errorf("after one has ended: code %d", code)
	}
}

func TestDatagrams(t *testing.T) {
	r := newRig(t, allFaces)
	r.link.resources = resources(row("APP00000001", "10.0.0.53", 53), row("APP00000002", "10.0.0.5", 80))
	r.link.resources.Facts = []wire.ResourceFacts{{I: 0, Protocol: "udp", Hosts: []string{"dns.test"}}}
	r.dialer.open = func(_ context.Context, network string, m *wire.AccessRequest) (net.Conn, error) {
		if network != "udp" || m.AppID != "APP00000001" {
			return nil, fmt.Errorf("asked for %s to %s", network, m.AppID)
		}
		ours, theirs := net.Pipe() // one Write is one Read
		go func() {
			b := make([]byte, 2048)
			for {
				n, err := theirs.Read(b)
				if err != nil {
					return
				}
				theirs.Write(append([]byte("re: "), b[:n]...))
			}
		}()
		return ours, nil
	}
	r.serve()
	for _, f := range r.a.Status().Faces {
		if f.Kind != "socks5" {
			continue
		}
		c, err := net.Dial("tcp", f.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 2)
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatal(err)
		}
		rep := make([]byte, 64)
		n, err := c.Read(rep)
		if err != nil || rep[1] != 0 {
			t.Fatalf("reply % x, %v", rep[:n], err)
		}
		relay, _, err := socks5.ParseDatagram(append([]byte{0, 0, 0}, rep[3:n]...))
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.Dial("udp", relay.String())
		if err != nil {
			t.Fatal(err)
		}
		send := func(to socks5.Target, word string) {
			if _, err := u.Write(socks5.AppendDatagram(nil, to, []byte(word))); err != nil {
				t.Fatal(err)
			}
		}
		other, err := net.Dial("udp", relay.String())
		if err != nil {
			t.Fatal(err)
		}
		to := socks5.Target{Name: "dns.test", Port: 53}
		send(to, "who")
		b := make([]byte, 2048)
		u.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err = u.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		from, payload, err := socks5.ParseDatagram(b[:n])
		if err != nil || from != to || string(payload) != "re: who" {
			t.Errorf("got %v %q, %v", from, payload, err)
		}
		strangers := r.a.Status().Strangers
		other.Write(socks5.AppendDatagram(nil, to, []byte("second socket")))
		r.wait("second source refused", func(s Status) bool { return s.Strangers == strangers+1 })
		refusals := r.a.Status().Refused
		send(socks5.Target{Name: "evil.test", Port: 53}, "who")
		r.wait("refusal", func(s Status) bool { return s.Refused == refusals+1 })
		c.Close()
		r.wait("end of the association", func(s Status) bool { return s.Flows == 0 })
	}
}

func TestWhySaysItInBothLanguages(t *testing.T) {
	r := newRig(t, nil)
	r.dialer.open = refuse(reason.PolicyTime.Result() + "; outside 08:00-20:00 (policy POL00000007)")
	r.run()
	r.wait("faces", func(s Status) bool { return len(s.Faces) > 0 })
	if w := r.a.Why(t.Context(), "APP00000001"); w.Allowed || w.Reason != reason.LoginRequired.Code() {
		t.Errorf("signed out: %+v", w)
	}
	r.login()
	w := r.a.Why(t.Context(), "APP00000001")
	for _, want := range []string{"not allowed", "08:00-20:00", "POL00000007", "YM-403"} {
		if !strings.Contains(w.EN, want) {
			t.Errorf("English %q lacks %q", w.EN, want)
		}
	}
	for _, want := range []string{"不允许", "08:00-20:00", "策略 POL00000007", "YM-403"} {
		if !strings.Contains(w.ZH, want) {
			t.Errorf("Chinese %q lacks %q", w.ZH, want)
		}
	}
	if w := r.a.Why(t.Context(), "APP00000002"); w.Reason != reason.AppNotGranted.Code() {
		t.Errorf("not in the list: %+v", w)
	}
	r.dialer.open = echo(t)
	if w := r.a.Why(t.Context(), "APP00000001"); !w.Allowed {
		t.Errorf("allowed: %+v", w)
	}
	if n := r.a.Status().Flows; n != 0 {
		t.Errorf("%d flows left by why", n)
	}
}
