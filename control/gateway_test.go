package control

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

func TestGCR002_M52_ListsOnlyAfterT4(t *testing.T) {
	c := &movedClock{}
	w := newWorld(t, func(cfg *Config) { cfg.Now = c.Now })
	gw := w.enrol(NewDevice{Kind: "gateway", Name: "edge"})
	refused := func(when string) {
		t.Helper()
		for _, path := range []string{"/lists/grants", "/lists/policies", "/events"} {
			if resp, body := gw.get(path); resp.StatusCode != 403 || !strings.Contains(body, "NOT_AUTHENTICATED") {
				t.Errorf("%s, %s: %d %s", when, path, resp.StatusCode, body)
			}
		}
		if status, body := gw.message("/status", "T10", wire.GatewayStatus{GatewayID: gw.id, DeviceID: gw.device, Timestamp: gw.now()}); status != 403 {
			t.Errorf("%s, T10: %d %s", when, status, body)
		}
	}
	refused("before T4")
	gw.identify()
	if l := gw.pull(wire.GrantsList); l.manifest.Version == 0 || l.manifest.Rows != 0 {
		t.Errorf("manifest %+v", l.manifest)
	}
	c.move(identityLife + time.Second)
	refused("120 s after T4")
	gw.identify()
	gw.pull(wire.PoliciesList)
}

func TestGCR002_M50_T4Refusals(t *testing.T) {
	w := newWorld(t)
	gw, other := w.enrol(NewDevice{Kind: "gateway"}), w.enrol(NewDevice{Kind: "gateway"})
	vectors := map[string]struct {
		edit   func(*wire.DeviceIdentity)
		reason string
	}{
		"another gateway's id": {func(m *wire.DeviceIdentity) { m.GatewayID = other.id }, "MESSAGE_SENDER"},
		"another device":       {func(m *wire.DeviceIdentity) { m.DeviceID = other.device }, "DEVICE_MISMATCH"},
		"no device name":       {func(m *wire.DeviceIdentity) { m.DeviceName = "" }, "MESSAGE_INVALID"},
		"port too large":       {func(m *wire.DeviceIdentity) { m.Port = 65536 }, "MESSAGE_INVALID"},
		"no time":              {func(m *wire.DeviceIdentity) { m.Timestamp = "yesterday" }, "MESSAGE_INVALID"},
	}
	for name, v := range vectors {
		m := gw.t4()
		v.edit(&m)
		if status, body := gw.message("/identity", "T4", m); status != 400 || !strings.Contains(body, v.reason) {
			t.Errorf("%s: %d %s, want %s", name, status, body, v.reason)
		}
	}
	// A message of another type, of another sender, or altered.
	if status, _ := gw.post("/identity", gw.seal("T10", "", gw.t4())); status != 400 {
		t.Errorf("another type: %d", status)
	}
	if status, body := gw.post("/identity", other.seal("T4", "", other.t4())); status != 400 || !strings.Contains(body, "MESSAGE_SENDER") {
		t.Errorf("an envelope of another gateway on this channel: %d %s", status, body)
	}
	raw := gw.seal("T4", "", gw.t4())
	if status, body := gw.post("/identity", []byte(strings.Replace(string(raw), "linux", "linuX", 1))); status != 400 || !strings.Contains(body, "MESSAGE_SIGNATURE") {
		t.Errorf("an altered body: %d %s", status, body)
	}
	if status, _ := gw.post("/identity", []byte(strings.Repeat(" ", wire.MaxMessage+1))); status != 413 {
		t.Errorf("too large: %d", status)
	}
	if resp, _ := gw.get("/lists/grants"); resp.StatusCode != 403 {
		t.Error("one of the refused messages identified the gateway")
	}
	if got := w.audited("T4"); len(got) < len(vectors)+3 || got[0].Allowed || got[0].Remote == "" || got[0].GatewayID == "" {
		t.Errorf("%d audit records, first %+v", len(got), got)
	}
}

func TestGCR002_M3_ChannelsOfNobody(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	agent := w.enrol(NewDevice{Kind: "agent"})
	get := func(hc *http.Client, path string) int {
		resp, err := hc.Get(w.url(0) + path)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(w.anonymous(), gatewayBase+"/lists/grants"); got != 401 {
		t.Errorf("no certificate: %d", got)
	}
	if got := get(agent.hc, gatewayBase+"/lists/grants"); got != 401 {
		t.Errorf("an agent on a gateway's path: %d", got)
	}
	if got := get(gw.hc, agentBase+"/resources"); got != 401 {
		t.Errorf("a gateway on an agent's path: %d", got)
	}
	gw.identify()
	w.do("DELETE", "/v1/devices/"+gw.id, nil, nil)
	if got := get(gw.hc, gatewayBase+"/lists/grants"); got != 401 {
		t.Errorf("a removed gateway: %d", got)
	}
}

func TestGCR002_M46_DuplicateMessagesHaveOneEffect(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	gw.identify()
	lines := func() (n int) {
		sub := w.audited("T11")
		for _, r := range sub {
			if r.Allowed && r.Detail == "" {
				n++
			}
		}
		return n
	}
	alert := wire.GatewayAlert{GatewayID: gw.id, DeviceID: gw.device, Timestamp: gw.now(), ExceptionAlertType: "1.001", ExceptionAlertLevel: 2, ExceptionAlertContent: "one"}
	id := newMsgID()
	raw := gw.seal("T11", id, alert)
	for range 3 {
		if status, body := gw.post("/alerts", raw); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	// A new envelope of the same message is a repeat, too.
	if status, _ := gw.post("/alerts", gw.seal("T11", id, alert)); status != 200 {
		t.Errorf("repeat under a new envelope: %d", status)
	}
	if lines() != 1 {
		t.Errorf("%d effects, want 1", lines())
	}
	alert.ExceptionAlertContent = "two"
	if status, body := gw.post("/alerts", gw.seal("T11", id, alert)); status != 400 || !strings.Contains(body, "MESSAGE_CONFLICT") {
		t.Errorf("another body under the same id: %d %s", status, body)
	}
	// The id belongs to its sender: another gateway may use it.
	other := w.enrol(NewDevice{Kind: "gateway"})
	other.identify()
	alert.GatewayID, alert.DeviceID = other.id, other.device
	if status, body := other.post("/alerts", other.seal("T11", id, alert)); status != 200 {
		t.Errorf("the same id of another sender: %d %s", status, body)
	}
}

func TestGCR002_M54_GrantListIsSignedPagedSealedAndCached(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	agent := w.enrol(NewDevice{Kind: "agent"})
	alice := w.user("alice")
	app := w.app("wiki", "10.0.0.5:443")
	w.grant("alice", "any", app)
	w.grant("alice", "browser", app)
	if status, r := agent.login(alice, password); status != 200 || len(r.AuthToken) != 11 {
		t.Fatalf("login: %d %+v", status, r)
	}
	gw.identify()
	l := gw.pull(wire.GrantsList)
	if len(l.grants) != 2 || l.grants[0].DeviceID != "BROWSER0000" || l.grants[1].DeviceID != agent.device || l.grants[1].UserID != alice {
		t.Fatalf("grants %+v", l.grants)
	}
	if f := l.facts[1]; f.Level != 1 || len(f.Factors) != 1 || f.AuthTime == "" {
		t.Errorf("facts %+v", f)
	}
	etag := fmt.Sprintf(`"grants-%d"`, l.manifest.Version)
	if resp, _ := gw.get("/lists/grants", "If-None-Match", etag); resp.StatusCode != 304 || resp.Header.Get("ETag") != etag {
		t.Errorf("If-None-Match: %d %q", resp.StatusCode, resp.Header.Get("ETag"))
	}
	_, one := gw.get("/lists/grants")
	_, two := gw.get("/lists/grants")
	if one != two {
		t.Error("the same version was made twice")
	}
	w.grant("alice", "any", w.app("mail", "[fd00::5]:25"))
	if resp, _ := gw.get("/lists/grants", "If-None-Match", etag); resp.StatusCode != 200 {
		t.Errorf("after a change: %d", resp.StatusCode)
	}
	// Another gateway's list is another's: it does not open here.
	other := w.enrol(NewDevice{Kind: "gateway"})
	other.identify()
	_, body := other.get("/lists/grants")
	if _, err := gw.lists.Open([]byte(strings.Split(body, "\n")[0])); err == nil {
		t.Error("a manifest for another gateway was accepted")
	}
}

func TestGCR002_M54_LongListHasPages(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	gw.identify()
	bulkRows(t, w.s, 6000)
	l := gw.pull(wire.GrantsList)
	if len(l.grants) != 6000 || l.pages < 2 || l.manifest.Rows != 6000 {
		t.Errorf("%d rows in %d pages, manifest %d", len(l.grants), l.pages, l.manifest.Rows)
	}
	// The next version has the same pages, but for that of a row that went.
	w.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "USRB0003000"}, nil)
	next := gw.pull(wire.GrantsList)
	same := 0
	for _, p := range next.manifest.Pages {
		if slices.Contains(l.manifest.Pages, p) {
			same++
		}
	}
	if len(next.grants) != 5999 || next.manifest.Version <= l.manifest.Version || same < l.pages-1 || same == next.pages && next.pages == l.pages {
		t.Errorf("after a lock: %d rows, version %d after %d, %d of %d pages are those of before (%d)", len(next.grants), next.manifest.Version, l.manifest.Version, same, next.pages, l.pages)
	}
}

func TestQ26_SubjectsAreMappedOrRefused(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	alice := w.user("alice")
	ask := func(subject string) (int, string) {
		return gw.message("/subjects", wire.TypeSubject, wire.SubjectQuery{Issuer: "https://idp.example", Subject: subject})
	}
	if status, _ := ask("a@example"); status != 403 {
		t.Errorf("before T4: %d", status)
	}
	gw.identify()
	if status, body := ask("a@example"); status != 400 || !strings.Contains(body, "SUBJECT_UNMAPPED") {
		t.Errorf("unmapped: %d %s", status, body)
	}
	key := w.id("POST", "/v1/subjects", map[string]string{"issuer": "https://idp.example", "subject": "a@example", "user_id": "alice"})
	if status, body := ask("a@example"); status != 200 || !strings.Contains(body, alice) || gw.answered.Header.EncAlg == "none" {
		t.Errorf("mapped: %d %s", status, body)
	}
	w.do("POST", "/v1/locks", NewLock{Kind: "user", ID: "alice"}, nil)
	if status, _ := ask("a@example"); status != 400 {
		t.Errorf("a locked user: %d", status)
	}
	w.do("DELETE", "/v1/locks/user/alice", nil, nil)
	w.do("DELETE", "/v1/subjects/"+key, nil, nil)
	if status, _ := ask("a@example"); status != 400 {
		t.Errorf("after removal: %d", status)
	}
}

func TestGCR002_M59_PoliciesAreCheckedWhenTheyAreSet(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	gw.identify()
	add := func(kind, data string) error {
		return w.admin.Do(t.Context(), "POST", "/v1/policies", wire.Policy{PolicyName: "办公网", PolicyType: kind, PolicyData: data}, nil)
	}
	for _, bad := range [][2]string{{"ipallow", "10.0.0.0/33"}, {"magic", "1"}, {"level", ""}, {"ipallow", strings.Repeat("10.0.0.0/8,", 8)}} {
		if err := add(bad[0], bad[1]); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	if err := add("ipallow", "10.0.0.0/8"); err != nil {
		t.Fatal(err)
	}
	if l := gw.pull(wire.PoliciesList); len(l.policies) != 1 || l.policies[0].PolicyID != "POL00000001" || l.policies[0].PolicyName != "办公网" {
		t.Errorf("policies %+v", l.policies)
	}
}

func TestGCR002_M4_BothFamilies(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	for family, name := range []string{"IPv4", "IPv6"} {
		gw.base = w.url(family) + gatewayBase
		gw.identify()
		if l := gw.pull(wire.GrantsList); l.manifest.Receiver != gw.id {
			t.Errorf("%s: %+v", name, l.manifest)
		}
		s := gw.stream("").begun()
		w.do("POST", "/v1/locks", NewLock{Kind: "session", ID: name}, nil)
		if d, _ := s.delta(); len(d.Locks) != 1 {
			t.Errorf("%s: %+v", name, d)
		}
	}
}
