package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// agentSite is a center that signs users in, and an agent's link, in a bubble:
// one that takes reports whole, and one that knows the standard's tables alone.
func agentSite(t *testing.T, f func(t *testing.T, c *center, a *Agent, seen *agentSeen)) {
	for _, whole := range []bool{true, false} {
		t.Run(map[bool]string{true: "X.report", false: "by tables"}[whole], func(t *testing.T) { agentSiteOf(t, whole, f) })
	}
}

func agentSiteOf(t *testing.T, whole bool, f func(t *testing.T, c *center, a *Agent, seen *agentSeen)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.center(w.agent, agtID)
		c.whole = whole
		defer c.start()()
		seen := &agentSeen{apps: []string{"APP00000001"}}
		tokens := 0
		c.answer = func(kind string, m *envelope.Message) (string, []byte, extMap) {
			switch kind {
			case "T16":
				q, err := wire.Decode[wire.Authentication](m.Body, wire.Lax)
				if err != nil {
					t.Errorf("T16: %v", err)
					return "", nil, nil
				}
				if len(q.UserAuthenticationList) > 0 || time.Now().Minute()%10 == 0 { // now and then a report brings a new token
					tokens++
				}
				r := wire.AuthenticationReply{
					Code: wire.Success, Result: "OK", AuthToken: fmt.Sprintf("token%06d", tokens), ExpirationDate: wire.FormatTime(time.Now().Add(time.Hour)),
				}
				body, err := wire.Encode(&r)
				if err != nil {
					t.Error(err)
				}
				if q.UserID == "alice" {
					return "T18", body, extMap{wire.ExtUserID: ext("USR00000001")}
				}
				return "T18", body, nil
			case "T19":
				l := wire.ResourceList{AgentID: agtID, UserID: "USR00000001", DeviceID: agDev, KeyType: "SM2-SM4", Timestamp: wire.FormatTime(time.Now())}
				seen.mu.Lock()
				for _, app := range seen.apps {
					l.ResourceList = append(l.ResourceList, wire.Resource{AppID: app, AppName: "wiki", IP: "10.0.0.1", Port: 443})
				}
				seen.mu.Unlock()
				body, err := wire.Encode(&l)
				if err != nil {
					t.Error(err)
				}
				return "T19", body, extMap{
					wire.ExtGateways:  ext([]wire.GatewayRef{{ID: gwID, Addresses: []string{"gw.test:443"}, Sign: []byte{1}, Enc: []byte{2}}}),
					wire.ExtResources: ext([]wire.ResourceFacts{{I: 0, Hosts: []string{"wiki.test"}}}),
				}
			}
			return "", nil, nil
		}
		a, err := NewAgent(AgentConfig{
			URL: "https://control.test:8443", AgentID: agtID, DeviceID: agDev, Keys: w.agent, Dial: c.dial, Usage: func() Usage { return Usage{1, 2, -1} },
			Address: func() (string, int) { return "192.0.2.9", 40000 },
			Posture: func() *wire.Posture {
				return &wire.Posture{OS: "linux", Arch: "amd64", DiskEncrypted: wire.PostureYes, Firewall: wire.PostureUnknown}
			},
			OnToken: func(k Token) { seen.add(&seen.tokens, k.AuthToken) },
			OnResources: func(r *Resources) {
				seen.add(&seen.resources, fmt.Sprint(len(r.List.ResourceList), r.Facts, r.Gateways[0].Addresses))
			},
			OnSignedOut: func(err error) { seen.add(&seen.out, err.Error()) },
		})
		must(t, err)
		f(t, c, a, seen)
	})
}

type agentSeen struct {
	mu                     sync.Mutex
	tokens, resources, out []string
	apps                   []string
}

func (s *agentSeen) add(to *[]string, v string) {
	s.mu.Lock()
	*to = append(*to, v)
	s.mu.Unlock()
}

func (s *agentSeen) get(from *[]string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), *from...)
}

const secret = "correct horse battery staple"

func TestGCR002_M90_M99_AgentReportsAtLeastEvery60s(t *testing.T) {
	agentSite(t, func(t *testing.T, c *center, a *Agent, seen *agentSeen) {
		stop := run(t, a.Run)
		time.Sleep(5 * time.Minute)
		if n := len(c.of("T16")) + len(c.of("T21")); n != 0 {
			t.Errorf("%d reports before anybody signed in", n)
		}
		token, err := a.Login(context.Background(), "USR00000001", wire.MethodLocal, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: secret}})
		if err != nil || token.AuthToken != "token000001" || token.UserID != "USR00000001" {
			t.Fatalf("Login: %+v, %v", token, err)
		}
		start := time.Now()
		time.Sleep(30 * time.Minute)
		seen.mu.Lock()
		seen.apps = append(seen.apps, "APP00000002")
		seen.mu.Unlock()
		time.Sleep(61 * time.Second)
		raised := time.Now()
		a.Raise(alert.Alert{Code: alert.TunnelFault, Detail: "the carrier broke\x1b[31m"})
		time.Sleep(3 * time.Second)
		if got := c.of("T22"); len(got) != 1 || got[0].at.Sub(raised) > time.Second {
			t.Errorf("%d alerts of the agent", len(got))
		} else if m, err := wire.Decode[wire.AgentAlert](got[0].body, wire.Strict); err != nil || m.UserID != "USR00000001" || !strings.Contains(m.ExceptionAlertContent, "carrier broke") {
			t.Errorf("T22: %+v, %v", m, err)
		}
		end := time.Now()
		stop()
		for _, kind := range []string{"T16", "T21"} {
			if gap := maxGap(start, end, c.of(kind)); gap > 60*time.Second {
				t.Errorf("%s: a gap of %v, at most 60s", kind, gap)
			}
		}
		for i, r := range c.of("T16") {
			if has := strings.Contains(string(r.body), secret); has != (i == 0) {
				t.Errorf("T16 number %d has the password: %v", i, has)
			}
		}
		want := []string{"1 [{0 [wiki.test] }] [gw.test:443]", "2 [{0 [wiki.test] }] [gw.test:443]"}
		if got := seen.get(&seen.resources); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("resources %q, want %q: once each", got, want)
		}
		if got := seen.get(&seen.tokens); len(got) < 3 || got[0] != "token000001" {
			t.Errorf("tokens %q", got)
		}
		m, err := wire.Decode[wire.AgentStatus](c.of("T21")[0].body, wire.Strict)
		if err != nil || m.CPUUsage != "001.00%" || m.DiskUsage != "" {
			t.Errorf("T21: %+v, %v", m, err)
		}
		c.mu.Lock()
		if c.whole && (c.lists != 2 || len(c.requests) > 2*c.countHeld("T16")) {
			t.Errorf("%d lists in %d requests for %d reports: want 2, and one request a report", c.lists, len(c.requests), c.countHeld("T16"))
		}
		c.mu.Unlock()
		// The password is nowhere in what stays.
		if s := fmt.Sprintf("%+v %+v", a, a.cfg.Outbox); strings.Contains(s, secret) {
			t.Error("the password is kept")
		}
	})
}

func TestGCR002_M92_AgentBuffersAndIsSignedOut(t *testing.T) {
	agentSite(t, func(t *testing.T, c *center, a *Agent, seen *agentSeen) {
		defer run(t, a.Run)()
		_, err := a.Login(context.Background(), "USR00000001", wire.MethodLocal, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: secret}})
		must(t, err)
		time.Sleep(30 * time.Second)
		c.setDead(true)
		down := time.Now()
		time.Sleep(30 * time.Minute)
		if s := a.Status(); s.Connected || s.Outbox[ClassStatus].Pending < 30 || s.Outbox[ClassIdentity].Pending < 29 {
			t.Errorf("during the outage: %+v", s)
		}
		raw, err := a.cfg.Outbox.Next(ClassIdentity, 0, 100)
		must(t, err)
		for _, e := range raw {
			if strings.Contains(string(e.Payload), secret) || strings.Contains(string(e.Payload), "userAuthenticationList") {
				t.Fatal("a buffered report has factors")
			}
		}
		c.setDead(false)
		back := time.Now()
		time.Sleep(75 * time.Second)
		n := 0
		for _, r := range c.of("T21") {
			var m wire.AgentStatus
			must(t, json.Unmarshal(r.body, &m))
			if at, _ := wire.ParseTime(m.Timestamp); at.After(down) && at.Before(back) {
				n++
			}
		}
		if n < 30 {
			t.Errorf("%d statuses of the outage arrived, want 30", n)
		}
		c.mu.Lock()
		c.refuse = func(kind string) reason.Reason { return map[string]reason.Reason{"T16": reason.Locked}[kind] }
		c.mu.Unlock()
		time.Sleep(60 * time.Second)
		if out := seen.get(&seen.out); len(out) != 1 || !strings.Contains(out[0], "LOCKED") || a.Status().UserID != "" {
			t.Errorf("signed out: %q, %+v", out, a.Status())
		}
		before := len(c.of("T16"))
		time.Sleep(10 * time.Minute)
		if n := len(c.of("T16")); n != before {
			t.Errorf("%d reports after the sign-out", n-before)
		}
		var no *RefusedError
		if _, err := a.Login(context.Background(), "USR00000001", wire.MethodLocal, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "x"}}); !errors.As(err, &no) || no.Reason != reason.Locked {
			t.Errorf("Login of a locked user: %v", err)
		}
		if r, err := a.Authenticate(context.Background(), a.authentication("USR00000001", 1, nil)); err != nil || r.Code != wire.Failure || !strings.Contains(r.Result, "LOCKED") {
			t.Errorf("Authenticate: %+v, %v: want the reply as it came", r, err)
		}
	})
}

// A name is said once; every later message has the userId of the answer.
func TestGCR002_T16_LoginByNameReportsTheUserID(t *testing.T) {
	agentSite(t, func(t *testing.T, c *center, a *Agent, seen *agentSeen) {
		defer run(t, a.Run)()
		token, err := a.Login(context.Background(), "alice", wire.MethodLocal, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: secret}})
		if err != nil || token.UserID != "USR00000001" {
			t.Fatalf("Login: %+v, %v", token, err)
		}
		time.Sleep(3 * time.Minute)
		if s := a.Status(); !s.Connected || s.UserID != "USR00000001" || len(seen.get(&seen.resources)) != 1 || len(seen.get(&seen.out)) != 0 {
			t.Errorf("status %+v, resources %q, out %q", s, seen.get(&seen.resources), seen.get(&seen.out))
		}
		for i, r := range c.of("T16") {
			if has := strings.Contains(string(r.body), `"alice"`); has != (i == 0) {
				t.Errorf("T16 number %d has the name: %v", i, has)
			}
		}
	})
}

func TestOnlyAFaultOfTheConnectionIsUnreachable(t *testing.T) {
	agentSite(t, func(t *testing.T, c *center, a *Agent, _ *agentSeen) {
		login := func() error {
			_, err := a.Login(context.Background(), "USR00000001", wire.MethodLocal, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: secret}})
			return err
		}
		c.mu.Lock()
		c.refuse = func(kind string) reason.Reason { return reason.InternalError }
		c.mu.Unlock()
		if err := login(); !errors.Is(err, ErrDown) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "INTERNAL_ERROR") {
			t.Errorf("an answer: %v", err)
		}
		c.setDead(true)
		if err := login(); !errors.Is(err, ErrDown) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("no answer: %v", err)
		}
	})
}

// A clock that is set, here or at the control center, signs nobody out and
// costs no report: a message that was refused for its sending time goes again.
func TestR17_ASteppedClockSignsNobodyOut(t *testing.T) {
	agentSite(t, func(t *testing.T, c *center, a *Agent, seen *agentSeen) {
		defer run(t, a.Run)()
		_, err := a.Login(context.Background(), "USR00000001", wire.MethodLocal, []wire.Factor{{AuthenticationType: 1, AuthenticationContent: secret}})
		must(t, err)
		time.Sleep(30 * time.Second)
		refuse := func(next func() bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.refuse = func(string) reason.Reason {
				if next() {
					return reason.MessageSkew
				}
				return reason.OK
			}
		}
		var n atomic.Int64
		refuse(func() bool { return n.Add(1)%2 == 1 }) // the message under way when the clock was set
		time.Sleep(10 * time.Minute)
		if s := a.Status(); !s.Connected || s.Failures != 0 || s.Rejected != 0 || n.Load() < 20 {
			t.Errorf("after %d messages of which each second was refused: %+v", n.Load(), s)
		}
		refuse(func() bool { return true }) // a clock that is wrong
		time.Sleep(10 * time.Minute)
		if s := a.Status(); s.Connected || s.UserID == "" || s.Rejected != 0 {
			t.Errorf("while everything is refused: %+v", s)
		}
		refuse(func() bool { return false })
		time.Sleep(3 * time.Minute)
		if s := a.Status(); !s.Connected || s.UserID == "" || s.Outbox[ClassStatus].Pending != 0 || s.Rejected != 0 {
			t.Errorf("after it: %+v", s)
		}
		if out := seen.get(&seen.out); len(out) != 0 {
			t.Errorf("signed out: %q", out)
		}
	})
}
