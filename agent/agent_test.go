package agent

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func TestVerbsOverTheSocket(t *testing.T) {
	r := newRig(t, nil)
	r.dialer.open = echo(t)
	r.run()
	r.wait("faces", func(s Status) bool { return len(s.Faces) > 0 })
	fi, err := os.Stat(r.a.cfg.Socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("socket mode %v, %v, want 0600", fi.Mode(), err)
	}
	c := NewClient(r.a.cfg.Socket)
	defer c.Close()
	ctx := t.Context()
	if s, err := c.Status(ctx); err != nil || s.State != SignedOut || s.AgentID != testID.AgentID {
		t.Fatalf("got %+v, %v", s, err)
	}
	a, err := c.Login(ctx, LoginRequest{UserID: testUser, Factors: []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "x"}}})
	if err != nil || !a.OK || !strings.Contains(a.ZH, testUser) {
		t.Fatalf("sign in: %+v, %v", a, err)
	}
	if rs, err := c.Resources(ctx); err != nil || len(rs) != 1 || rs[0].AppID != "APP00000001" {
		t.Errorf("resources %+v, %v", rs, err)
	}
	if w, err := c.Why(ctx, "APP00000001"); err != nil || !w.Allowed {
		t.Errorf("why: %+v, %v", w, err)
	}
	if a, err := c.Logout(ctx); err != nil || !a.OK {
		t.Errorf("sign out: %+v, %v", a, err)
	}
	r.link.mu.Lock()
	r.link.loginErr = &Refusal{Reason: reason.LoginFailed}
	r.link.mu.Unlock()
	if a, err := c.Login(ctx, LoginRequest{UserID: testUser, Factors: []wire.Factor{{AuthenticationType: 1, AuthenticationContent: "x"}}}); err != nil || a.OK || a.Reason != reason.LoginFailed.Code() {
		t.Errorf("failed sign-in: %+v, %v", a, err)
	}
}

func TestASecondAgentIsRefusedAndLeavesTheFirstAlone(t *testing.T) {
	r := newRig(t, nil).run()
	r.wait("faces", func(s Status) bool { return len(s.Faces) > 0 })
	second := newRig(t, func(c *Config) { c.Socket = r.a.cfg.Socket })
	if err := second.a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("got %v", err)
	}
	c := NewClient(r.a.cfg.Socket)
	defer c.Close()
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("the first agent does not answer any more: %v", err)
	}
}

func TestAnOldSocketIsReplacedAndNothingIsLeftBehind(t *testing.T) {
	r := newRig(t, allFaces)
	l, err := net.Listen("unix", filepath.Join(r.dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	r.dialer.open = echo(t)
	r.serve()
	addr := r.face("socks5")
	c, code := socks(t, addr, "10.0.0.5:5432")
	if code != 0 {
		t.Fatalf("code %d", code)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the flow outlived the agent")
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("the face outlived the agent")
	}
	var left []string
	filepath.Walk(r.dir, func(p string, fi os.FileInfo, _ error) error {
		if !fi.IsDir() {
			left = append(left, filepath.Base(p))
		}
		return nil
	})
	if strings.Join(left, " ") != markName+" "+stateName {
		t.Errorf("left behind: %v, want the state file and its mark alone", left)
	}
	if f := r.a.Status().Flows; f != 0 {
		t.Errorf("%d flows", f)
	}
	select {
	case <-r.dialer.last().Done():
	default:
		t.Error("the tunnel was not closed")
	}
}

func TestFailedListenLeavesNothing(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	r := newRig(t, func(c *Config) { c.StatusPage = busy.Addr().String() })
	if err := r.a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(r.a.cfg.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket was left: %v", err)
	}
	if _, err := net.Dial("tcp", r.face("socks5")); err == nil {
		t.Error("a face listens on")
	}
}

func TestConfig(t *testing.T) {
	load := func(text string) (Config, error) {
		p := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(p)
	}
	c, err := load("control: https://control.example.test:8443\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.SOCKS5) != 1 || c.SOCKS5[0] != "127.0.0.1:1080" || c.Keys != filepath.Join(c.Dir, "keys") || c.MaxFlows != 1024 {
		t.Errorf("defaults: %+v", c)
	}
	for text, want := range map[string]string{
		"":                                                   "control: missing",
		"control: http://x":                                  "control:",
		"control: https://x\nsock5: [a]":                     "sock5",
		"control: https://x\nuser: USR000000001":             "user:",
		"control: https://x\nmax_flows: -1":                  "max_flows:",
		"control: https://x\nlatitude: 91":                   "latitude:",
		"control: https://x\nsocks5: [0.0.0.0:1080]":         "socks5[0]: 0.0.0.0:1080 is not a loopback",
		"control: https://x\nsocks5: ['[::]:1080']":          "socks5[0]",
		"control: https://x\nsocks5: [localhost:1080]":       "socks5[0]",
		"control: https://x\nhttp_connect: [192.168.1.2:80]": "http_connect[0]",
		"control: https://x\nstatus_page: ':8117'":           "status_page",
		"control: https://x\nforwards: [{listen: '10.0.0.1:1', app: APP00000001}]":               "forwards[0].listen",
		"control: https://x\nforwards: [{listen: '127.0.0.1:1', app: x}]":                        "forwards[0].app",
		"control: https://x\nforwards: [{listen: '127.0.0.1:1', app: APP00000001, target: '1'}]": "forwards[0].target",
		"control: https://x\nsocks5: ['127.0.0.1:1080']\nstatus_page: 127.0.0.1:1080":            "already taken by socks5[0]",
	} {
		if _, err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		result string
		want   reason.Reason
		en, zh string
	}{
		{"YM-403 POLICY_TIME: " + reason.PolicyTime.Text(reason.English) + " (outside 08:00-20:00, policy POL00000007)", reason.PolicyTime, "policy POL00000007", "策略 POL00000007"},
		{reason.PolicyTime.Result() + " (policy POL00000007 * 0800-2000 Z)", reason.PolicyTime, "not allowed: outside 08:00-20:00 UTC (policy POL00000007) [YM-", "不允许：不在 08:00-20:00（UTC）之内（策略 POL00000007）"},
		{reason.PolicyTime.Result() + " (policy POL00000007 1-5,7 0800-1200,1330-1800 +0530)", reason.PolicyTime, "outside 08:00-12:00, 13:30-18:00 Mon-Fri, Sun UTC+05:30 (policy POL00000007)", "不在 周一至周五、周日 08:00-12:00、13:30-18:00（UTC+05:30）之内（策略 POL00000007）"},
		{reason.PolicyPosture.Result() + " (policy POL00000009 >=80)", reason.PolicyPosture, "(policy POL00000009 >=80)", "（策略 POL00000009 >=80）"},
		{reason.AppOffline.Result(), reason.AppOffline, "failed: the application is offline", "失败：应用系统不在线"},
		{reason.NoGrant.Result(), reason.NoGrant, "not allowed: no access", "不允许：该用户"},
		{"computer says no", reason.OK, "computer says no", "被拒绝：computer says no"},
		{"YM-999 NEW_THING: later version", reason.OK, "YM-999 NEW_THING", "YM-999"},
		{"", reason.OK, "without a reason", "未说明原因"},
		{"YM-303 APP_NOT_GRANTED: \x1b[2Jgone\n", reason.AppNotGranted, "[2Jgone", "[2Jgone"},
	} {
		r, w := Explain(tc.result)
		if r != tc.want || !strings.Contains(w.EN, tc.en) || !strings.Contains(w.ZH, tc.zh) || strings.ContainsAny(w.EN+w.ZH, "\x1b\n") {
			t.Errorf("%q: %v %q %q", tc.result, r, w.EN, w.ZH)
		}
	}
	for _, r := range reason.All() {
		if got, w := Explain(r.Result()); r != reason.OK && got != r.Public() || w.EN == "" || w.ZH == "" {
			t.Errorf("%v: became %v, %+v", r, got, w)
		}
	}
}
