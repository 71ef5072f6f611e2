package control

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

func TestGCR002_T16_PasswordGivesATokenThatTheGatewaysKnow(t *testing.T) {
	s := newSite(t)
	p := s.gw.stream("").begun()
	var mu sync.Mutex
	var told time.Time
	done := make(chan *wire.Delta)
	go func() {
		d, _ := p.delta()
		mu.Lock()
		told = time.Now()
		mu.Unlock()
		s.gw.ackGrants(d.To)
		done <- d
	}()
	start := time.Now()
	r := s.signIn()
	answered := time.Now()
	d := <-done
	mu.Lock()
	defer mu.Unlock()
	if !told.Before(answered) {
		t.Error("Table 18 was answered before the gateway knew the token")
	}
	if len(d.Grants) != 1 || d.Grants[0].AuthenticationToken != r.AuthToken || d.Grants[0].ExpirationDate != r.ExpirationDate || !slices.Equal(d.Grants[0].AppIDList, []string{s.app}) {
		t.Errorf("delta %+v, reply %+v", d, r)
	}
	if len(d.Ext) != 1 || d.Ext[0].Level != 1 {
		t.Errorf("facts %+v", d.Ext)
	}
	if s.agent.answered.Header.EncAlg == "none" {
		t.Error("Table 18 is not sealed")
	}
	until, err := wire.ParseTime(r.ExpirationDate)
	if left := until.Sub(answered); err != nil || left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("expires in %v, %v", left, err)
	}
	t.Logf("login with password, push and acknowledgement: %v", answered.Sub(start))
	if got := s.audited("T16"); len(got) != 1 || got[0].UserID != s.alice || !got[0].Allowed || got[0].AgentID != s.agent.id {
		t.Errorf("audit %+v", got)
	}
}

// Who signs in may give the name: the userId that counts from then on comes
// back, and stands in the lists.
func TestGCR002_T16_NameIsResolvedToTheUserID(t *testing.T) {
	s := newSite(t)
	status, r := s.agent.login("Alice", password)
	if got := extText(s.agent.answered.Header.Ext, wire.ExtUserID); status != 200 || got != s.alice {
		t.Fatalf("sign-in by name: %d %+v, userId %q, want %q", status, r, got, s.alice)
	}
	if l := s.gw.pull(wire.GrantsList); len(l.grants) != 1 || l.grants[0].UserID != s.alice || l.grants[0].AuthenticationToken != r.AuthToken {
		t.Errorf("grants %+v", l.grants)
	}
	if status, again := s.agent.login(s.alice); status != 200 || again.AuthToken != r.AuthToken {
		t.Errorf("report by the userId: %d %+v", status, again)
	}
	if status, _ := s.agent.login("alice"); status != 403 {
		t.Errorf("report by the name: %d, want 403: reports name the userId", status)
	}
	own := s.enrol(NewDevice{Kind: "agent", User: "alice"})
	if status, r := own.login("alice", password); status != 200 {
		t.Errorf("by name on the own device: %d %+v", status, r)
	}
	s.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice", Message: "请联系管理员"}, nil)
	if status, r := s.agent.login("alice", password); status != 400 || !strings.Contains(r.Result, "LOCKED") || extText(s.agent.answered.Header.Ext, wire.ExtMessage) != "请联系管理员" {
		t.Errorf("a locked user by name: %d %+v, message %q", status, r, extText(s.agent.answered.Header.Ext, wire.ExtMessage))
	}
	for _, rec := range s.audited("T16") {
		if rec.UserID != s.alice && rec.UserID != "alice" { // the report that named the name
			t.Errorf("audit %+v", rec)
		}
	}
}

// Without an acknowledgement T18 is answered after AckWait all the same.
func TestGCR002_T18_SilentGatewayDoesNotHoldTheAnswer(t *testing.T) {
	s := newSite(t, func(c *Config) { c.AckWait = 150 * time.Millisecond })
	s.gw.stream("").begun()
	start := time.Now()
	s.signIn()
	if took := time.Since(start); took < 150*time.Millisecond || took > 3*time.Second {
		t.Errorf("answered after %v", took)
	}
}

func TestGCR002_T16_Refusals(t *testing.T) {
	s := newSite(t)
	bob := s.user("bob")
	own := s.enrol(NewDevice{Kind: "agent", User: "bob"})
	other := s.enrol(NewDevice{Kind: "agent"})
	vectors := map[string]struct {
		edit   func(*wire.Authentication)
		status int
		reason string
	}{
		"wrong password": {func(m *wire.Authentication) { m.UserAuthenticationList[0].AuthenticationContent = "correct horse 2" }, 400, "LOGIN_FAILED"},
		"unknown user":   {func(m *wire.Authentication) { m.UserID = "USR99999999" }, 400, "LOGIN_FAILED"},
		"another agent":  {func(m *wire.Authentication) { m.AgentID = other.id }, 400, "AGENT_MISMATCH"},
		"another device": {func(m *wire.Authentication) { m.DeviceID = other.device }, 400, "DEVICE_MISMATCH"},
		"third party":    {func(m *wire.Authentication) { m.UserAuthenticationMethod = 2 }, 400, "FACTOR_REFUSED: this way to sign in is not supported here (method 2"},
		"another factor": {func(m *wire.Authentication) { m.UserAuthenticationList[0].AuthenticationType = 4 }, 400, "FACTOR_REFUSED: this way to sign in is not supported here (factor of type 4"},
		"a factor more": {func(m *wire.Authentication) {
			m.UserAuthenticationList = append(m.UserAuthenticationList, wire.Factor{AuthenticationType: 4, AuthenticationContent: "314159"})
		}, 400, "factor of type 4"},
		"unknown method":        {func(m *wire.Authentication) { m.UserAuthenticationMethod = 3 }, 400, "MESSAGE_INVALID"},
		"report, not signed in": {func(m *wire.Authentication) { m.UserAuthenticationList = nil }, 403, "NOT_AUTHENTICATED"},
	}
	for name, v := range vectors {
		m := s.agent.t16(s.alice, password)
		v.edit(&m)
		status, body := s.agent.message("/authentication", "T16", m)
		if status != v.status || !strings.Contains(body, v.reason) || strings.Contains(body, "authToken") {
			t.Errorf("%s: %d %s, want %d %s", name, status, body, v.status, v.reason)
		}
	}
	if status, r := own.login(s.alice, password); status != 400 || !strings.Contains(r.Result, "USER_MISMATCH") {
		t.Errorf("a user on another user's device: %d %+v", status, r)
	}
	if status, _ := own.login(bob, password); status != 200 {
		t.Errorf("the owner: %d", status)
	}
	// Plain bodies are refused on this link (§9.1).
	s.agent.sealed = false
	if status, body := s.agent.message("/authentication", "T16", s.agent.t16(s.alice, password)); status != 400 || !strings.Contains(body, "MESSAGE_ALGORITHM") {
		t.Errorf("plain body: %d %s", status, body)
	}
	s.agent.sealed = true
	for _, kind := range []string{"user", "device", "agent"} {
		id := map[string]string{"user": s.alice, "device": s.agent.device, "agent": s.agent.id}[kind]
		s.do("POST", "/v1/locks", NewLock{Kind: kind, ID: id, Message: "请联系管理员"}, nil)
		if status, r := s.agent.login(s.alice, password); status != 400 || !strings.Contains(r.Result, "LOCKED") {
			t.Errorf("locked %s: %d %+v", kind, status, r)
		}
		if got := extText(s.agent.answered.Header.Ext, wire.ExtMessage); got != "请联系管理员" {
			t.Errorf("locked %s: message %q", kind, got)
		}
		if kind != "user" { // whether a user is locked is for who knows the password
			if resp, body := s.agent.get("/resources"); resp.StatusCode != 400 || !strings.Contains(body, "LOCKED") || extText(s.agent.answered.Header.Ext, wire.ExtMessage) != "请联系管理员" {
				t.Errorf("resources with a locked %s: %d %s", kind, resp.StatusCode, body)
			}
		}
		s.do("DELETE", "/v1/locks/"+kind+"/"+id, nil, nil)
	}
}

func TestQ25_IdentityReportKeepsAndRotatesTheToken(t *testing.T) {
	c := &movedClock{}
	s := newSite(t, func(cfg *Config) { cfg.Now = c.Now })
	first := s.signIn()
	if status, r := s.agent.login(s.alice); status != 200 || r.AuthToken != first.AuthToken || r.ExpirationDate != first.ExpirationDate {
		t.Errorf("report at once: %d %+v, want the same token as %+v", status, r, first)
	}
	c.move(5*time.Minute + time.Second)
	s.gw.identify()
	status, second := s.agent.login(s.alice)
	if status != 200 || second.AuthToken == first.AuthToken || second.ExpirationDate <= first.ExpirationDate {
		t.Errorf("report with less than half left: %d %+v after %+v", status, second, first)
	}
	l := s.gw.pull(wire.GrantsList)
	if len(l.grants) != 1 || l.grants[0].AuthenticationToken != second.AuthToken {
		t.Errorf("grants %+v", l.grants)
	}
	if at, _ := wire.ParseTime(l.facts[0].AuthTime); c.Now().Sub(at) < 5*time.Minute {
		t.Error("a report made the sign-in younger")
	}
	// Another agent cannot report for this user.
	other := s.enrol(NewDevice{Kind: "agent"})
	if status, _ := other.login(s.alice); status != 403 {
		t.Errorf("another agent's report: %d", status)
	}
	// Past its end the token is gone, with its row, and only a password helps.
	p := s.gw.stream("").begun()
	c.move(10*time.Minute + time.Second)
	if d, _ := p.delta(); len(d.Remove) != 1 {
		t.Errorf("delta at the end of the token: %+v", d)
	}
	if status, _ := s.agent.login(s.alice); status != 403 {
		t.Errorf("report after the end: %d", status)
	}
	s.signIn()
}

func TestSignInOfAnotherUserEndsTheFirst(t *testing.T) {
	s := newSite(t)
	bob := s.user("bob")
	s.grant("bob", s.agent.device, s.app)
	s.signIn()
	if status, _ := s.agent.login(bob, password); status != 200 {
		t.Fatal(status)
	}
	if l := s.gw.pull(wire.GrantsList); len(l.grants) != 1 || l.grants[0].UserID != bob {
		t.Errorf("grants %+v", l.grants)
	}
}

func TestGCR002_M168_PasswordGuessingLocksOut(t *testing.T) {
	attacks := make(chan alert.Alert, 100)
	s := newSite(t, func(c *Config) {
		c.Lockout = Lockout{Attempts: 3, PerSource: 8}
		c.Alerts = alert.Func(func(a alert.Alert) { attacks <- a })
	})
	for i := range 3 {
		if status, r := s.agent.login(s.alice, "wrong password 1"); status != 400 {
			t.Fatalf("attempt %d: %d %+v", i, status, r)
		}
	}
	if status, r := s.agent.login(s.alice, password); status != 429 || !strings.Contains(r.Result, "LOGIN_LIMIT") {
		t.Errorf("the right password after 3 wrong ones: %d %+v", status, r)
	}
	select {
	case a := <-attacks:
		if a.Code != alert.LoginAttack || a.Remote == "" {
			t.Errorf("alert %+v, want %s with the source", a, alert.LoginAttack)
		}
	default:
		t.Error("guessing was not alerted")
	}
	var users []UserInfo
	s.do("GET", "/v1/users", nil, &users)
	if users[0].LockedOut.IsZero() {
		t.Errorf("users %+v", users)
	}
	// An operator's unlock helps, though there is no lock to take away.
	s.do("DELETE", "/v1/locks/user/alice", nil, nil)
	s.signIn()
	// Many names from one address lock the address.
	for i := range 5 {
		s.agent.login(fmt.Sprintf("USR9999999%d", i), password)
	}
	if status, _ := s.agent.login(s.alice, password); status != 429 {
		t.Errorf("after many names: %d", status)
	}
}

func TestGCR002_T19_OnlyGrantedApplications(t *testing.T) {
	s := newSite(t)
	secret := s.world.app("secret", "10.0.0.9:22")
	if resp, _ := s.agent.get("/resources"); resp.StatusCode != 403 {
		t.Errorf("before the sign-in: %d", resp.StatusCode)
	}
	s.signIn()
	fetch := func() (l wire.ResourceList, gateways []wire.GatewayRef) {
		t.Helper()
		resp, body := s.agent.get("/resources")
		if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		got, err := wire.Decode[wire.ResourceList]([]byte(body), wire.Strict)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(s.agent.answered.Header.Ext[wire.ExtGateways], &gateways); err != nil {
			t.Fatal(err)
		}
		return *got, gateways
	}
	l, gws := fetch()
	if len(l.ResourceList) != 1 || l.ResourceList[0] != (wire.Resource{AppID: s.app, AppName: "wiki", IP: "10.0.0.5", Port: 443}) || l.UserID != s.alice {
		t.Errorf("resources %+v", l)
	}
	if len(gws) != 1 || gws[0].ID != s.gw.id || gws[0].Addresses[0] != "gw.test:443" || len(gws[0].Sign) == 0 || len(gws[0].Enc) == 0 {
		t.Errorf("gateways %+v", gws)
	}
	g := s.grant("alice", s.agent.device, secret)
	if l, _ := fetch(); len(l.ResourceList) != 2 {
		t.Errorf("after the grant: %+v", l.ResourceList)
	}
	s.do("DELETE", "/v1/grants/"+g, nil, nil)
	if l, _ := fetch(); len(l.ResourceList) != 1 {
		t.Errorf("after its removal: %+v", l.ResourceList)
	}
	s.do("POST", "/v1/locks", NewLock{Kind: "app", ID: s.app}, nil)
	if l, _ := fetch(); len(l.ResourceList) != 0 {
		t.Errorf("a locked application is offered: %+v", l.ResourceList)
	}
	other := s.enrol(NewDevice{Kind: "agent"})
	if resp, _ := other.get("/resources?userId=" + s.alice); resp.StatusCode != 403 {
		t.Errorf("another agent: %d", resp.StatusCode)
	}
}

func TestGCR002_T21_T22_AgentReports(t *testing.T) {
	s := newSite(t)
	good := wire.AgentStatus{AgentID: s.agent.id, UserID: s.alice, DeviceID: s.agent.device, Timestamp: s.agent.now(), IP: "::1", Port: 1, CPUUsage: "005.00%"}
	if status, body := s.agent.message("/status", "T21", good); status != 200 {
		t.Errorf("T21: %d %s", status, body)
	}
	good.DeviceID = s.gw.device
	if status, _ := s.agent.message("/status", "T21", good); status != 400 {
		t.Errorf("T21 of another device: %d", status)
	}
	late := wire.AgentAlert{AgentID: s.agent.id, UserID: s.alice, DeviceID: s.agent.device, Timestamp: "2026-01-01T00:00:00Z",
		ExceptionAlertType: "2.016", ExceptionAlertLevel: 2, ExceptionAlertContent: "隧道故障"}
	if status, body := s.agent.message("/alerts", "T22", late); status != 200 {
		t.Errorf("T22 from the backlog: %d %s", status, body)
	}
	late.ExceptionAlertLevel = 4
	if status, _ := s.agent.message("/alerts", "T22", late); status != 400 {
		t.Errorf("T22 with level 4: %d", status)
	}
}

func TestGCR002_M46_RepeatedSignInGivesTheSameToken(t *testing.T) {
	s := newSite(t)
	id := newMsgID()
	m := s.agent.t16(s.alice, password)
	status, first := s.agent.post("/authentication", s.agent.seal("T16", id, m))
	if status != 200 {
		t.Fatalf("%d %s", status, first)
	}
	version := s.s.Status().GrantsVersion
	// Hedged: the same message on a fresh connection, in a new envelope.
	s.agent.hc.CloseIdleConnections()
	if status, again := s.agent.post("/authentication", s.agent.seal("T16", id, m)); status != 200 || again != first {
		t.Errorf("repeat: %d %s, want %s", status, again, first)
	}
	if got := s.s.Status().GrantsVersion; got != version {
		t.Errorf("the repeat changed the list: version %d, then %d", version, got)
	}
	m.UserAuthenticationList = nil
	if status, body := s.agent.post("/authentication", s.agent.seal("T16", id, m)); status != 400 || !strings.Contains(body, "MESSAGE_CONFLICT") || strings.Contains(body, "authToken") {
		t.Errorf("another body under the same id: %d %s", status, body)
	}
}
