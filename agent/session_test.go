package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// bubble runs an agent's session and tunnel in simulated time, without sockets.
func bubble(t *testing.T, change func(*rig), body func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRig(t, func(c *Config) {
			c.Elapsed = func() time.Duration { return time.Since(start) + 1 }
		})
		if change != nil {
			change(r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var ends []chan error
		for _, run := range []func(context.Context) error{r.a.keepTunnel, r.a.keepSession, r.a.keepIdentity, r.a.watch} {
			end := make(chan error, 1)
			ends = append(ends, end)
			go func() { end <- run(ctx) }()
		}
		body(t, r)
		cancel()
		for _, e := range ends {
			if err := <-e; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestGCR002_M94_M95_LoginSendsEachProofOnceAndKeepsNone(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		proofs := []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "correct horse"}, {AuthenticationType: 4, AuthenticationContent: "314159"}}
		if err := r.a.Login(t.Context(), testUser, proofs); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(r.link.allLogins()) != 1 || r.link.allLogins()[0].method != wire.MethodLocal || !slices.Equal(r.link.allLogins()[0].factors, proofs) {
			t.Errorf("Table 16 was sent as %+v", r.link.allLogins())
		}
		kept := fmt.Sprintf("%+v %+v %+v", r.a.Status(), r.a.session, r.a.state.body)
		for _, e := range r.logs.All() {
			kept += fmt.Sprint(e.Message, e.ContextMap())
		}
		for _, secret := range []string{"correct horse", "314159"} {
			if strings.Contains(kept, secret) {
				t.Errorf("%q is kept", secret)
			}
		}
	})
}

func TestGCR002_M96_SuccessWithoutTokenIsFailure(t *testing.T) {
	for name, tok := range map[string]ctlclient.Token{
		"no token":      {UserID: testUser, Expires: time.Now().Add(time.Hour)},
		"no expiration": {UserID: testUser, AuthToken: "aaaaaaaaaa1"},
		"expired":       {UserID: testUser, AuthToken: "aaaaaaaaaa1", Expires: time.Unix(1, 0)},
		"no user":       {AuthToken: "aaaaaaaaaa1", Expires: time.Now().Add(time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.link.token = tok
			err := r.a.Login(t.Context(), testUser, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "x"}})
			if err == nil || r.a.Status().State != SignedOut || r.link.nFetches() != 0 || r.link.nLogouts() != 1 {
				t.Errorf("got %v, status %+v, %d fetches", err, r.a.Status(), r.link.nFetches())
			}
		})
	}
}

func TestLoginFailureIsWordedInBothLanguages(t *testing.T) {
	for _, tc := range []struct {
		err    error
		en, zh string
	}{
		{&ctlclient.RefusedError{Table: 18, Reason: reason.LoginFailed, Result: reason.LoginFailed.Result()}, "the sign-in failed", "登录失败"},
		{&ctlclient.RefusedError{Table: 18, Reason: reason.Locked, Result: reason.Locked.Result()}, "locked by the administrator", "已被管理员锁定"},
		{&ctlclient.RefusedError{Table: 18, Reason: reason.FactorRefused, Result: reason.FactorRefused.Result() + " (factor of type 4; a static password, type 1, is all that is taken)"}, "type 4", "此处不支持该登录方式"},
		{fmt.Errorf("dial: %w: %w", ctlclient.ErrDown, ctlclient.ErrUnreachable), "cannot be reached", "无法连接控制中心"},
		{fmt.Errorf("%w: YM-803 INTERNAL_ERROR: an internal error", ctlclient.ErrDown), "answered, but", "控制中心有应答"},
		{&ctlclient.RefusedError{Table: 18, Reason: reason.MessageInvalid, Result: "nope"}, "nope", "nope"},
	} {
		r := newRig(t, nil)
		r.link.loginErr = tc.err
		err := r.a.Login(t.Context(), testUser, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "secret"}})
		_, w := explainError(err)
		if !strings.Contains(w.EN, tc.en) || !strings.Contains(w.ZH, tc.zh) || strings.Contains(w.String(), "secret") {
			t.Errorf("%v: worded as %q and %q", tc.err, w.EN, w.ZH)
		}
		if strings.Contains(w.EN, "cannot be reached") != errors.Is(tc.err, ctlclient.ErrUnreachable) {
			t.Errorf("%v: worded as %q: only a fault of the connection may read so", tc.err, w.EN)
		}
		if s := r.a.Status(); s.UserID != "" || s.State == Ready {
			t.Error("signed in after a failure")
		}
	}
}

// Who signs in by name is the user whom the control center names: in the
// status, in the hello to the gateway and in the state of the next start.
func TestLoginByNameTakesTheUserIDOfTheAnswer(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		if err := r.a.Login(t.Context(), "alice", []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "x"}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s := r.a.Status()
		if s.UserID != testUser || s.LastUser != testUser || s.State != Ready {
			t.Errorf("status %+v", s)
		}
		if d := r.dialer.allDials(); len(d) != 1 || d[0].hello.UserID != testUser {
			t.Errorf("hello %+v, want the userId", d)
		}
	})
}

func TestNameThatTable16CannotCarrySaysWhatToDo(t *testing.T) {
	for _, name := range []string{"", "bartholomew.k", "张三", "two words"} {
		r := newRig(t, nil)
		_, w := explainError(r.a.Login(t.Context(), name, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "x"}}))
		for _, text := range []string{w.EN, w.ZH} {
			if !strings.Contains(text, "yumen control user list") || !strings.Contains(text, "USR00000001") || strings.Contains(text, "cannot be reached") {
				t.Errorf("%q: worded as %q, want the remedy", name, text)
			}
		}
		if len(r.link.allLogins()) != 0 {
			t.Errorf("%q was sent", name)
		}
	}
}

func TestTokenExpirySignsOut(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		r.dialer.open = func(context.Context, string, *wire.AccessRequest) (net.Conn, error) { return ours, nil }
		r.login()
		synctest.Wait()
		f, err := r.a.open(t.Context(), nil, func(rt *routes) (*Resource, reason.Reason) { return rt.list[0], reason.OK })
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Second)
		if r.a.Status().State != Ready {
			t.Fatal("signed out early")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s := r.a.Status(); s.State != SignedOut || s.Resources != 0 || s.Gateway != "" {
			t.Errorf("after expiry: %+v", s)
		}
		if got := reason.Reason(f.why.Load()); got != reason.TokenExpired {
			t.Errorf("the flow was closed for %v", got)
		}
		if r.link.nLogouts() != 1 {
			t.Errorf("%d log-outs at the link, want 1", r.link.nLogouts())
		}
		r.a.drop(f)
		// A report that was under way must not bring the session back.
		r.link.ev.Token(ctlclient.Token{UserID: testUser, AuthToken: "late0000000", Expires: time.Now().Add(time.Hour)})
		r.link.ev.Resources(resources(row("APP00000001", "10.0.0.5", 5432)))
		if s := r.a.Status(); s.State != SignedOut || s.Resources != 0 {
			t.Errorf("a late report signed in: %+v", s)
		}
	})
}

func TestControlCenterEndsTheSession(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		r.link.ev.SignedOut(&ctlclient.RefusedError{Table: 18, Reason: reason.Locked, Result: reason.Locked.Result(), Message: "请联系管理员"})
		synctest.Wait()
		s := r.a.Status()
		if s.State != Locked || s.UserID != "" || s.Lock.Message != "请联系管理员" || s.Gateway != "" || len(s.Notices) == 0 || s.Notices[0].Reason != reason.Locked.Code() {
			t.Errorf("got %+v", s)
		}
	})
}

func TestControlCenterDownLeavesTheTunnelUp(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		r.link.mu.Lock()
		r.link.down = true
		r.link.mu.Unlock()
		time.Sleep(30 * time.Minute)
		if s := r.a.Status(); s.State != Degraded || s.Resources != 1 || s.Gateway == "" {
			t.Errorf("got %+v", s)
		}
	})
}

func TestAFlowWaitsForATunnelThatIsBeingMade(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		down := errors.New("not yet")
		r.dialer.set("gw1:443", down)
		r.dialer.set("gw2:443", down)
		ours, theirs := net.Pipe()
		defer theirs.Close()
		r.dialer.open = func(context.Context, string, *wire.AccessRequest) (net.Conn, error) { return ours, nil }
		r.login()
		find := func(rt *routes) (*Resource, reason.Reason) { return rt.list[0], reason.OK }
		start := time.Now()
		_, err := r.a.open(t.Context(), nil, find)
		var own *Refusal
		if !errors.As(err, &own) || own.Reason != reason.TunnelClosed || time.Since(start) != tunnelWait {
			t.Errorf("without a gateway: %v after %v", err, time.Since(start))
		}
		start = time.Now()
		_, err = r.a.open(t.Context(), nil, func(rt *routes) (*Resource, reason.Reason) {
			return rt.lookup(Target{Network: "tcp", Name: "evil.test", Port: 80})
		})
		if !errors.As(err, &own) || own.Reason != reason.DestinationRule || time.Since(start) != 0 {
			t.Errorf("a foreign destination without a gateway: %v after %v, want a refusal at once", err, time.Since(start))
		}
		time.AfterFunc(time.Second, func() { r.dialer.set("gw1:443", nil) })
		time.Sleep(time.Second)
		f, err := r.a.open(t.Context(), nil, find)
		for range 5 { // the back-off may be at its longest
			if err == nil {
				break
			}
			f, err = r.a.open(t.Context(), nil, find)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.a.drop(f)
	})
}

func TestGCR002_M84_M85_NoticesAreShownAtOnceWithTypeLevelTimeContent(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		fetches := r.link.nFetches()
		at := time.Now().Add(-time.Second).Truncate(time.Second)
		r.dialer.last().notices(&wire.Notice{
			GatewayID: "GW000000001", DeviceID: testID.DeviceID, Timestamp: wire.FormatTime(at), ExceptionAlertType: string(alert.SessionCut),
			ExceptionAlertLevel: 2, ExceptionAlertContent: "设备 DEV00000001，会话被切断\x1b[31m; app APP00000001",
		})
		n := r.a.Status().Notices[0]
		if n.Type != "1.004" || n.Level != 2 || !n.Time.Equal(at) || n.Content != "设备 DEV00000001，会话被切断[31m; app APP00000001" {
			t.Errorf("notice %+v", n)
		}
		if !strings.Contains(n.EN, "a live session was cut") || !strings.Contains(n.ZH, "在线会话被切断") {
			t.Errorf("worded as %q and %q", n.EN, n.ZH)
		}
		synctest.Wait()
		if r.link.nFetches() != fetches+1 {
			t.Errorf("%d fetches after a cut, want one more than %d", r.link.nFetches(), fetches)
		}
		for range 10 * maxNotices {
			r.dialer.last().notices(&wire.Notice{ExceptionAlertType: "1.004"})
		}
		if got := len(r.a.Status().Notices); got != maxNotices {
			t.Errorf("%d notices are kept, want %d", got, maxNotices)
		}
		synctest.Wait()
		if r.link.nFetches() > fetches+3 {
			t.Errorf("a flood of notices made %d fetches", r.link.nFetches()-fetches)
		}
	})
}

func TestGCR002_M100_M101_M102_ClockJumpIsReportedAtOnce(t *testing.T) {
	var shift atomic.Int64 // time.Duration
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRig(t, func(c *Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
			c.Elapsed = func() time.Duration { return time.Since(start) + 1 }
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.a.watch(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(r.link.alerts(alert.ClockJump)); n != 0 {
			t.Fatalf("%d alerts without a jump", n)
		}
		shift.Store(int64(-time.Hour))
		time.Sleep(watchPeriod)
		synctest.Wait()
		got := r.link.alerts(alert.ClockJump)
		if len(got) != 1 || got[0].Level != alert.Warning || got[0].Time.IsZero() || got[0].DeviceID != testID.DeviceID || !strings.Contains(got[0].Detail, "-1h0m0s") {
			t.Fatalf("alerts %+v", got)
		}
		m := r.a.alertTable(got[0])
		if err := m.Validate(wire.Strict); err != nil {
			t.Errorf("Table 22: %v", err)
		}
		shift.Add(int64(-time.Second)) // slewing is no jump
		time.Sleep(watchPeriod)
		synctest.Wait()
		if n := len(r.link.alerts(alert.ClockJump)); n != 1 {
			t.Errorf("%d alerts after a small correction, want 1", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A token stolen from another place is of no use here: what a tunnel says is
// its own device and agent, whatever a list or a token names.
func TestS1_TheTunnelSpeaksForItsOwnDeviceOnly(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		h := r.dialer.allDials()[0].hello
		if h.AgentID != testID.AgentID || h.DeviceID != testID.DeviceID || h.UserID != testUser || h.AuthToken != "aaaaaaaaaa1" {
			t.Errorf("hello %+v", h)
		}
		foreign := resources(row("APP00000009", "10.0.0.9", 80))
		foreign.List.DeviceID = "DEV00000002"
		r.link.ev.Resources(foreign)
		other := resources(row("APP00000009", "10.0.0.9", 80))
		other.List.UserID = "USR00000002"
		r.link.ev.Resources(other)
		r.link.ev.Token(ctlclient.Token{UserID: "USR00000002", AuthToken: "stolen00000", Expires: time.Now().Add(time.Hour)})
		synctest.Wait()
		if len(r.a.Resources()) != 1 || r.a.Resources()[0].AppID != "APP00000001" {
			t.Errorf("a list for another device or user was taken: %+v", r.a.Resources())
		}
		if s := r.a.Status(); s.UserID != testUser {
			t.Errorf("a token for another user was taken: %+v", s)
		}
		for _, out := range []any{r.a.Status(), r.a.Resources()} {
			if strings.Contains(fmt.Sprintf("%+v", out), "aaaaaaaaaa1") {
				t.Errorf("the token stands in %+v", out)
			}
		}
	})
}

func TestGCR002_M97_ABadRowGivesNoWayAndHidesNoOther(t *testing.T) {
	rs := resources(row("APP00000001", "not an ip", 80), row("APP00000002", "10.0.0.5", 0), row("", "10.0.0.5", 80),
		row("APP00000003", "10.0.0.5", 80), row("APP00000004", "10.0.0.6", 53))
	rs.Facts = []wire.ResourceFacts{{I: 9}, {I: -1}, {I: 4, Protocol: "icmp"}}
	tab, err := newRoutes(rs)
	if err == nil || len(tab.list) != 1 || tab.list[0].AppID != "APP00000003" {
		t.Errorf("got %v, %v", tab.list, err)
	}
}

// A list that was fetched on a hint and taken back before the link's own next
// look must not stay: the link passes on only what differs from its last.
func TestAHintedListIsLookedAtAgain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		set := func(rs *ctlclient.Resources) {
			r.link.mu.Lock()
			r.link.resources = rs
			r.link.mu.Unlock()
		}
		a := r.link.resources
		set(resources())
		r.dialer.last().notices(&wire.Notice{ExceptionAlertType: string(alert.SessionCut)})
		synctest.Wait()
		if n := len(r.a.Resources()); n != 0 {
			t.Fatalf("%d resources right after the hint, want 0", n)
		}
		set(a)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(r.a.Resources()); n != 1 {
			t.Errorf("%d resources a minute later, want 1", n)
		}
		fetches := r.link.nFetches()
		time.Sleep(10 * time.Minute)
		if n := r.link.nFetches() - fetches; n > 1 {
			t.Errorf("%d further fetches without a hint", n)
		}
	})
}
