package control

import (
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// report sends X.report; edit changes it.
func (c *client) report(user string, edit func(*wire.AgentReport)) (int, string) {
	c.w.t.Helper()
	who, err := wire.Encode(new(c.t16(user)))
	if err != nil {
		c.w.t.Fatal(err)
	}
	status, err := wire.Encode(&wire.AgentStatus{AgentID: c.id, UserID: user, DeviceID: c.device, Timestamp: c.now(), IP: "192.0.2.9", Port: 443, CPUUsage: "001.00%"})
	if err != nil {
		c.w.t.Fatal(err)
	}
	m := wire.AgentReport{Authentication: who, Status: status}
	if edit != nil {
		edit(&m)
	}
	return c.message("/report", wire.TypeReport, m)
}

func (c *client) goodReport(user string, edit func(*wire.AgentReport)) *wire.AgentReportReply {
	c.w.t.Helper()
	status, body := c.report(user, edit)
	if status != 200 || c.answered.Header.MsgType != wire.TypeReport || c.answered.Header.EncAlg == "none" {
		c.w.t.Fatalf("report: %d %s", status, body)
	}
	r, err := wire.DecodeExtension[wire.AgentReportReply]([]byte(body))
	if err != nil {
		c.w.t.Fatal(err)
	}
	return r
}

// One message in place of three: token, resource list and status; the list
// comes once, and again when it is another one.
func TestGCR002_M90_M99_OneReportAMinute(t *testing.T) {
	s := newSite(t)
	token := s.signIn()
	first := s.agent.goodReport(s.alice, nil)
	who, err := wire.Decode[wire.AuthenticationReply](first.Authentication, wire.Strict)
	if err != nil || who.AuthToken != token.AuthToken || who.ExpirationDate != token.ExpirationDate {
		t.Errorf("table 18: %+v, %v, want the token of the sign-in %+v", who, err, token)
	}
	if first.Resources == nil || len(first.Resources.Gateways) != 1 || !strings.Contains(string(first.Resources.List), s.app) || first.Status != "" {
		t.Fatalf("first report: %+v", first)
	}
	var seen time.Time
	s.s.hub.with(s.agent.id, func(l *link) { seen = l.status })
	if seen.IsZero() {
		t.Error("the status was not taken")
	}
	has := func(tag string) func(*wire.AgentReport) {
		return func(m *wire.AgentReport) { m.Resources = tag }
	}
	if r := s.agent.goodReport(s.alice, has(first.Resources.Tag)); r.Resources != nil {
		t.Errorf("the list that the agent has came again: %+v", r.Resources)
	}
	s.grant("alice", "any", s.app2())
	again := s.agent.goodReport(s.alice, has(first.Resources.Tag))
	if again.Resources == nil || again.Resources.Tag == first.Resources.Tag {
		t.Fatalf("after a new grant: %+v", again.Resources)
	}
	if resp, body := s.agent.get("/resources"); resp.StatusCode != 200 || len(body) != len(again.Resources.List) {
		t.Errorf("table 19 by itself: %d %s, in the report %s", resp.StatusCode, body, again.Resources.List)
	}
	if got := s.audited(wire.TypeReport); len(got) != 3 || got[0].UserID != s.alice || !got[0].Allowed {
		t.Errorf("audit %+v", got)
	}
	for table, want := range map[string]int{"T16": 1 + 3, "T21": 3, "T19": 2 + 1} { // by themselves, and in the reports
		got := s.audited(table)
		for _, r := range got {
			if r.UserID != s.alice || !r.Allowed || r.AgentID != s.agent.id {
				t.Errorf("audit of %s: %+v", table, r)
			}
		}
		if len(got) != want {
			t.Errorf("%d audit records of %s, want %d", len(got), table, want)
		}
	}
	other := s.enrol(NewDevice{Kind: "agent"})
	for what, try := range map[string]func() (int, string){
		"nobody is signed in": func() (int, string) { return other.report(s.alice, nil) },
		"another agent's table": func() (int, string) {
			return other.report(s.alice, func(m *wire.AgentReport) { m.Authentication, _ = wire.Encode(new(s.agent.t16(s.alice))) })
		},
		"a report with proofs": func() (int, string) {
			return s.agent.report(s.alice, func(m *wire.AgentReport) { m.Authentication, _ = wire.Encode(new(s.agent.t16(s.alice, password))) })
		},
		"a state that is none": func() (int, string) {
			return s.agent.report(s.alice, func(m *wire.AgentReport) { m.Posture = &wire.Posture{OS: "x", Firewall: "maybe"} })
		},
		"a tag that is too long": func() (int, string) { return s.agent.report(s.alice, has(strings.Repeat("x", 65))) },
	} {
		if status, body := try(); status == 200 || strings.Contains(body, "authToken") || s.agent.answered.Header.MsgType == wire.TypeReport && other.answered == nil {
			t.Errorf("%s: %d %s", what, status, body)
		}
	}
	// A status that is refused takes nothing else with it.
	if r := s.agent.goodReport(s.alice, func(m *wire.AgentReport) { m.Status = []byte(`{"agentId":"x"}`) }); !strings.Contains(r.Status, "MESSAGE_INVALID") {
		t.Errorf("a bad status: %+v", r)
	}
	s.do("POST", "/v1/locks", NewLock{Kind: "device", ID: s.agent.device, Message: "请联系管理员"}, nil)
	if status, body := s.agent.report(s.alice, nil); status != 400 || !strings.Contains(body, "LOCKED") || s.agent.answered.Header.MsgType != "T18" || extText(s.agent.answered.Header.Ext, wire.ExtMessage) != "请联系管理员" {
		t.Errorf("a locked device: %d %s", status, body)
	}
}

func (s *site) app2() string {
	s.t.Helper()
	return s.world.app("files", "10.0.0.6:445")
}

// What an agent reports of its device becomes a fact of its row, at once and
// only when it changes; an operator's word takes its place.
func TestGCR002_M11_PostureOfTheReportReachesTheRow(t *testing.T) {
	clock := &movedClock{}
	s := newSite(t, func(c *Config) { c.Now, c.Posture.Minimum = clock.Now, map[string]string{"linux": "5.10"} })
	s.signIn()
	rest := 2 * postureRest
	posture := func(firewall wire.PostureAnswer, kernel string) {
		t.Helper()
		clock.move(rest)
		s.agent.goodReport(s.alice, func(m *wire.AgentReport) {
			m.Posture = &wire.Posture{OS: "linux", Arch: "amd64", Kernel: kernel, DiskEncrypted: wire.PostureYes, Firewall: firewall}
		})
	}
	score := func(want int) {
		t.Helper()
		l := s.gw.pull(wire.GrantsList)
		if len(l.facts) != 1 || l.facts[0].Posture == nil || *l.facts[0].Posture != want {
			t.Fatalf("facts %+v, want posture %d", l.facts, want)
		}
	}
	if l := s.gw.pull(wire.GrantsList); l.facts[0].Posture != nil {
		t.Errorf("before any report: %+v", l.facts)
	}
	posture(wire.PostureYes, "6.1.0-13-amd64")
	score(100)
	version := s.gw.pull(wire.GrantsList).manifest.Version
	posture(wire.PostureYes, "6.1.0-13-amd64")
	if now := s.gw.pull(wire.GrantsList).manifest.Version; now != version {
		t.Errorf("a report that says the same made version %d of %d", now, version)
	}
	posture(wire.PostureNo, "6.1.0-13-amd64")
	score(70)
	rest = 0 // what is worse counts at once, what is better a moment later
	posture(wire.PostureNo, "5.9")
	score(40)
	posture(wire.PostureYes, "6.1")
	score(40)
	rest = 2 * postureRest
	posture(wire.PostureYes, "6.1")
	score(100)
	posture(wire.PostureUnknown, "5.9.1")
	score(40)
	s.do("PUT", "/v1/devices/"+s.agent.id+"/facts", Facts{Posture: new(90)}, nil)
	score(90)
	posture(wire.PostureYes, "6.1")
	score(90)
	s.do("PUT", "/v1/devices/"+s.agent.id+"/facts", Facts{}, nil)
	score(100)
	var all []DeviceInfo
	s.do("GET", "/v1/devices", nil, &all)
	for _, d := range all {
		if d.ID == s.agent.id && (d.Device == nil || d.Device.Kernel != "6.1" || d.Posture == nil || *d.Posture != 100) {
			t.Errorf("the operator sees %+v", d)
		}
	}
}

func TestPostureScore(t *testing.T) {
	c := PostureConfig{Minimum: map[string]string{"windows": "10.0.19045", "linux": "5.10"}}
	c.defaults()
	yes, no, unknown := wire.PostureYes, wire.PostureNo, wire.PostureUnknown
	for _, v := range []struct {
		p    wire.Posture
		want int
	}{
		{wire.Posture{OS: "windows", Version: "10.0.19045", DiskEncrypted: yes, Firewall: yes}, 100},
		{wire.Posture{OS: "windows", Version: "10.0.9999", DiskEncrypted: yes, Firewall: no}, 40},
		{wire.Posture{OS: "linux", Version: "12", Kernel: "5.10", DiskEncrypted: unknown, Firewall: yes}, 60},
		{wire.Posture{OS: "linux", Kernel: "5.9.16-rc1", DiskEncrypted: no, Firewall: yes}, 30},
		{wire.Posture{OS: "linux", Kernel: "next", DiskEncrypted: unknown, Firewall: unknown}, 0},
		{wire.Posture{OS: "darwin", Version: "14.1", DiskEncrypted: yes, Firewall: unknown}, 70},
	} {
		if got := c.score(&v.p); got != v.want {
			t.Errorf("%+v: %d points, want %d", v.p, got, v.want)
		}
	}
}
