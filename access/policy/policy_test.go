package policy

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == "100" {
		flag.Set("rapid.checks", "600")
	}
	os.Exit(m.Run())
}

const (
	user1, user2     = "USR00000001", "USR00000002"
	device1, device2 = "DEV00000001", "DEV00000002"
	app1, app2       = "APP00000001", "APP00000002"
)

func row(user, device, token string, apps ...string) Row {
	return Row{Grant: wire.Grant{UserID: user, DeviceID: device, AuthenticationToken: token, ExpirationDate: epoch.Add(time.Hour).Format(time.RFC3339), AppIDList: apps}}
}

func pol(id, typ, data string) wire.Policy {
	return wire.Policy{PolicyID: id, PolicyName: id, PolicyType: typ, PolicyData: data}
}

func input(rows ...Row) Input {
	return Input{Key: testKey, Version: 7, Apps: []App{{ID: app1}, {ID: app2}}, Grants: rows}
}

func agent(token string) Facts {
	return Facts{SessionID: "S1", UserID: user1, DeviceID: device1, Token: token}
}

var anyRequest = Request{Remote: netip.MustParseAddr("10.1.2.3"), Protocol: TLCP, Method: "GET", Path: "/api/x"}

func wantReason(t *testing.T, s *Snapshot, f Facts, app string, want reason.Reason) {
	t.Helper()
	if got := verdict(s, f, app, anyRequest, epoch); got.Reason != want {
		t.Errorf("%s for %s on %s: got %v, want %v\n%s", app, f.UserID, f.DeviceID, got.Reason, want, s.Explain(f, app, anyRequest, epoch))
	}
}

func TestGCR002_M56_AbsentAndEmptyListGrantNothing(t *testing.T) {
	absent, empty := row(user1, device1, "TOKEN1"), row(user1, device2, "TOKEN2")
	empty.AppIDList = []string{}
	s, _ := Build(input(absent, empty, row(user2, device1, "TOKEN3", app1)))
	wantReason(t, s, agent("TOKEN1"), app1, reason.AppNotGranted)
	f := agent("TOKEN2")
	f.DeviceID = device2
	wantReason(t, s, f, app1, reason.AppNotGranted)
	f = agent("TOKEN3")
	f.UserID = user2
	wantReason(t, s, f, app1, reason.OK)
	wantReason(t, s, f, app2, reason.AppNotGranted)
}

func TestS6_NoListAndEmptyListAllowNothing(t *testing.T) {
	in := input()
	s, _ := Build(in)
	wantReason(t, s, agent(""), app1, reason.NoGrant)
	wantReason(t, s, agent("TOKEN1"), app1, reason.TokenUnknown)
	in.NoList = true
	s, _ = Build(in)
	wantReason(t, s, agent(""), app1, reason.NoList)
	var zero Facts
	s, _ = Build(input(row(user1, device1, "TOKEN1", app1)))
	wantReason(t, s, zero, app1, reason.LoginRequired)
}

func TestS1_TokenCountsOnItsDeviceOnly(t *testing.T) {
	s, _ := Build(input(row(user1, device1, "TOKEN1", app1), row(user1, device2, "TOKEN2", app1)))
	wantReason(t, s, agent("TOKEN1"), app1, reason.OK)
	wantReason(t, s, agent("TOKEN2"), app1, reason.TokenOtherDevice)
	f := agent("TOKEN1")
	f.UserID = user2
	wantReason(t, s, f, app1, reason.UserMismatch)
	f = agent("TOKEN1")
	f.DeviceID = ""
	wantReason(t, s, f, app1, reason.DeviceUnknown) // M9
}

func TestQ27_BrowserUsesOnlyRowsOfTheBrowserDevice(t *testing.T) {
	in := input(row(user1, device1, "TOKEN1", app1), row(user2, BrowserDevice, "TOKEN2", app1, app2))
	in.Apps[1].RefuseBrowser = true
	s, _ := Build(in)
	wantReason(t, s, Facts{UserID: user1, Browser: true}, app1, reason.NoGrant)
	wantReason(t, s, Facts{UserID: user1, DeviceID: device1, Browser: true, Token: "TOKEN1"}, app1, reason.NoGrant)
	wantReason(t, s, Facts{UserID: user2, Browser: true}, app1, reason.OK)
	wantReason(t, s, Facts{UserID: user2, Browser: true}, app2, reason.BrowserRefused)
	wantReason(t, s, Facts{UserID: user2, DeviceID: BrowserDevice}, app1, reason.DeviceMismatch)
	wantReason(t, s, Facts{UserID: user2, DeviceID: device1, Token: "TOKEN2"}, app1, reason.TokenUnknown)
}

func TestGCR002_M54_BadRowGrantsNothingAndStopsNoOther(t *testing.T) {
	for name, spoil := range map[string]func(*Row){
		"user":    func(r *Row) { r.UserID = "" },
		"device":  func(r *Row) { r.DeviceID = strings.Repeat("D", 12) },
		"token":   func(r *Row) { r.AuthenticationToken = "" },
		"blank":   func(r *Row) { r.AuthenticationToken = "a b" },
		"expiry":  func(r *Row) { r.ExpirationDate = "tomorrow" },
		"app":     func(r *Row) { r.AppIDList = append(r.AppIDList, "") },
		"level":   func(r *Row) { r.Level = -1 },
		"expired": func(r *Row) { r.ExpirationDate = epoch.Format(time.RFC3339) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := row(user1, device1, "TOKEN1", app1)
			spoil(&bad)
			s, faults := Build(input(bad, row(user2, device1, "TOKEN3", app1)))
			if want := 1; name != "expired" && (len(faults) != want || !faults[0].Grant || faults[0].Reason != reason.ListBadRow) {
				t.Errorf("faults %v, want one", faults)
			}
			if got := verdict(s, agent("TOKEN1"), app1, anyRequest, epoch).Reason; got == reason.OK {
				t.Error("a bad row grants")
			}
			if got := verdict(s, agent(""), app1, anyRequest, epoch).Reason; got == reason.OK {
				t.Error("a bad row grants by its pair")
			}
			f := agent("TOKEN3")
			f.UserID = user2
			wantReason(t, s, f, app1, reason.OK)
		})
	}
}

func TestGCR002_M54_TwoRowsOfOnePairGrantNothing(t *testing.T) {
	a, b := row(user1, device1, "TOKEN1", app1), row(user1, device1, "TOKEN2", app1)
	for _, rows := range [][]Row{{a, b}, {b, a}, {a, b, a}, {a, a, b}} {
		s, faults := Build(input(rows...))
		if len(faults) == 0 || !errors.Is(faults[0], errPairTwice) {
			t.Errorf("faults %v", faults)
		}
		for _, token := range []string{"TOKEN1", "TOKEN2", ""} {
			if got := verdict(s, agent(token), app1, anyRequest, epoch).Reason; got == reason.OK {
				t.Errorf("token %q opens one of two contradicting rows", token)
			}
		}
	}
	s, faults := Build(input(a, a))
	if len(faults) != 0 {
		t.Errorf("the same row twice is a fault: %v", faults)
	}
	wantReason(t, s, agent("TOKEN1"), app1, reason.OK)
	s.replace(t, row(user1, device1, "TOKEN9", app1), &s)
	wantReason(t, s, agent("TOKEN9"), app1, reason.OK)
}

func (s *Snapshot) replace(t *testing.T, r Row, to **Snapshot) Row {
	t.Helper()
	b := s.Edit()
	b.Put(r)
	*to, _ = b.Finish()
	return r
}

func TestTokenOfTwoDevicesOpensNothing(t *testing.T) {
	s, faults := Build(input(row(user1, device1, "TOKEN1", app1), row(user1, device2, "TOKEN1", app1)))
	if len(faults) != 1 || !errors.Is(faults[0], errTokenTwice) {
		t.Errorf("faults %v", faults)
	}
	wantReason(t, s, agent("TOKEN1"), app1, reason.TokenUnknown)
	wantReason(t, s, agent(""), app1, reason.OK) // by (user, device), as a browser with a certificate comes
}

func TestGCR002_M61_UnknownTypeClosesItsScope(t *testing.T) {
	in := input(row(user1, device1, "TOKEN1", app1, app2))
	for _, c := range []struct {
		name     string
		policies []wire.Policy
		one, two reason.Reason
	}{
		{"bound", []wire.Policy{pol("POL1", "nosuch", "x"), pol("BND1", "bind", "POL1 APP00000001")}, reason.PolicyUnknownType, reason.OK},
		{"unbound", []wire.Policy{pol("POL1", "nosuch", "x")}, reason.PolicyUnknownType, reason.PolicyUnknownType},
		{"unreadable", []wire.Policy{pol("POL1", "posture", "high"), pol("BND1", "bind", "POL1 APP00000001")}, reason.PolicyInvalid, reason.OK},
		{"geo", []wire.Policy{pol("POL1", "geo", "31.23,121.47,50km"), pol("BND1", "bind", "POL1 APP00000001")}, reason.PolicyGeo, reason.OK},
		{"ref", []wire.Policy{pol("POL1", "ref", "s3:"+strings.Repeat("A", 36)), pol("BND1", "bind", "POL1 USR00000001/APP00000001")}, reason.PolicyRef, reason.OK},
		{"an alternative does not open it", []wire.Policy{pol("POL1", "ipallow", "x"), pol("POL2", "ipallow", "0.0.0.0/0"), pol("BND1", "bind", "POL1 APP00000001"), pol("BND2", "bind", "POL2 APP00000001")}, reason.PolicyInvalid, reason.OK},
		{"missing policy", []wire.Policy{pol("BND1", "bind", "POL1 APP00000001")}, reason.PolicyInvalid, reason.OK},
		{"same id", []wire.Policy{pol("POL1", "level", "1"), pol("POL1", "level", "2"), pol("BND1", "bind", "POL1 APP00000001")}, reason.PolicyInvalid, reason.OK},
		{"bind without a policy's name", []wire.Policy{pol("BND1", "bind", "")}, reason.PolicyInvalid, reason.PolicyInvalid},
		{"unreadable bind", []wire.Policy{pol("POL1", "posture", ">=50"), pol("BND1", "bind", "POL1 //")}, reason.PolicyPosture, reason.PolicyPosture},
		{"two binds", []wire.Policy{pol("POL1", "posture", ">=50"), pol("BND1", "bind", "POL1 APP00000001"), pol("BND2", "bind", "POL1 USR00000002/*")}, reason.PolicyPosture, reason.PolicyPosture},
	} {
		t.Run(c.name, func(t *testing.T) {
			in.Policies = c.policies
			s, faults := Build(in)
			if len(faults) == 0 {
				t.Error("no fault")
			}
			wantReason(t, s, agent("TOKEN1"), app1, c.one)
			wantReason(t, s, agent("TOKEN1"), app2, c.two)
		})
	}
	in.Policies, in.BadPolicies = []wire.Policy{pol("BND1", "bind", "POL1 APP00000001")}, []BadRow{{Index: 3, PolicyID: "POL1"}}
	s, _ := Build(in)
	wantReason(t, s, agent("TOKEN1"), app1, reason.PolicyInvalid)
	wantReason(t, s, agent("TOKEN1"), app2, reason.OK)
	in.BadPolicies[0].PolicyID = ""
	s, _ = Build(in)
	wantReason(t, s, agent("TOKEN1"), app2, reason.PolicyInvalid)
}

func TestUnboundPolicyIsNobodysAlternative(t *testing.T) {
	in := input(row(user1, device1, "TOKEN1", app1))
	in.Policies = []wire.Policy{pol("POL1", "ipallow", "10.0.0.0/8"), pol("POL2", "ipallow", "192.0.2.0/24")}
	s, _ := Build(in)
	wantReason(t, s, agent("TOKEN1"), app1, reason.PolicyIPAllow)
	in.Policies = append(in.Policies, pol("BND1", "bind", "POL1 *"), pol("BND2", "bind", "POL2 *"))
	s, faults := Build(in)
	if len(faults) != 0 {
		t.Error(faults)
	}
	wantReason(t, s, agent("TOKEN1"), app1, reason.OK)
}

func TestCeilingHoldsBesideTheList(t *testing.T) {
	in := input(row(user1, device1, "TOKEN1", app1))
	in.Ceiling = []wire.Policy{pol("POL1", "ipallow", "192.0.2.0/24"), pol("BND1", "bind", "POL1 *")}
	in.Policies = []wire.Policy{pol("POL1", "ipallow", "10.0.0.0/8"), pol("BND1", "bind", "POL1 *")}
	s, faults := Build(in)
	if len(faults) != 0 {
		t.Error(faults)
	}
	d := verdict(s, agent("TOKEN1"), app1, anyRequest, epoch)
	if d.Reason != reason.PolicyIPAllow || d.PolicyID != "POL1" {
		t.Errorf("got %+v: the list's row was an alternative of the ceiling's", d)
	}
	for _, st := range s.Explain(agent("TOKEN1"), app1, anyRequest, epoch).Steps {
		if st.Type == "ipallow" && st.Pass == (st.Layer == "ceiling") {
			t.Errorf("step %+v", st)
		}
	}
}

func TestLockWinsAndEnds(t *testing.T) {
	in := input(row(user1, device1, "TOKEN1", app1, app2))
	f := agent("TOKEN1")
	f.AgentID = "AGT00000001"
	for kind, id := range map[string]string{"user": user1, "device": device1, "agent": "AGT00000001", "app": app1, "session": "S1", "nosuch": user1} {
		in.Locks = []Lock{{Kind: kind, ID: id, Message: "call 110", Until: epoch.Add(time.Minute)}, {Kind: kind, ID: id, Until: epoch}}
		s, _ := Build(in)
		d := verdict(s, f, app1, anyRequest, epoch)
		if d.Reason != reason.Locked || d.Message != "call 110" {
			t.Errorf("lock on %s: %+v", kind, d)
		}
		if d := verdict(s, f, app1, anyRequest, epoch.Add(time.Minute)); d.Reason != reason.OK {
			t.Errorf("lock on %s does not end: %+v", kind, d)
		}
		want := reason.Locked
		if kind == "app" {
			want = reason.OK
		}
		if d := verdict(s, f, app2, anyRequest, epoch); d.Reason != want {
			t.Errorf("lock on %s: %v on another application", kind, d.Reason)
		}
	}
	in.Locks = []Lock{{Kind: "device", ID: BrowserDevice}}
	in.Grants = append(in.Grants, row(user1, BrowserDevice, "x", app1))
	s, _ := Build(in)
	wantReason(t, s, Facts{UserID: user1, Browser: true}, app1, reason.Locked)
}

func TestQ31_AbsentFactFailsThePolicyThatAsks(t *testing.T) {
	for typ, c := range map[string]struct {
		data string
		give func(*Row)
		why  reason.Reason
	}{
		"posture": {">=0", func(r *Row) { r.Posture = ScoreOf(0) }, reason.PolicyPosture},
		"risk":    {"<=100", func(r *Row) { r.Risk = ScoreOf(100) }, reason.PolicyRisk},
		"level":   {"1", func(r *Row) { r.Level = 1 }, reason.PolicyLevel},
		"mfa":     {"4", func(r *Row) { r.Factors = FactorsOf(4, 5) }, reason.PolicyMFA},
		"authage": {"15m", func(r *Row) { r.AuthTime = epoch.Add(-time.Minute) }, reason.PolicyAuthAge},
	} {
		in := input(row(user1, device1, "TOKEN1", app1))
		in.Policies = []wire.Policy{pol("POL1", typ, c.data)}
		s, _ := Build(in)
		wantReason(t, s, agent("TOKEN1"), app1, c.why)
		c.give(&in.Grants[0])
		s, _ = Build(in)
		wantReason(t, s, agent("TOKEN1"), app1, reason.OK)
	}
}

func TestDecideAllocatesNothing(t *testing.T) {
	s, subs := manyGrants(t, 2000)
	app, r := s.App(app1), anyRequest
	i := 0
	if n := testing.AllocsPerRun(1000, func() {
		i++
		if d := s.Decide(subs[i%len(subs)], app, &r, epoch); d.Reason != reason.OK || !d.Limited {
			t.Fatal(d)
		}
		if l := s.Limits(subs[0], app); l.MaxConn != 20 {
			t.Fatal(l)
		}
	}); n != 0 {
		t.Errorf("%v allocations a decision, want 0", n)
	}
}

func manyGrants(t testing.TB, n int) (*Snapshot, []*Subject) {
	in := input()
	subs := make([]*Subject, n)
	for i := range n {
		in.Grants = append(in.Grants, row(fmt.Sprintf("USR%08d", i), device1, fmt.Sprintf("T%010d", i), app1, app2))
		subs[i] = testKey.Subject(Facts{UserID: fmt.Sprintf("USR%08d", i), DeviceID: device1, Token: fmt.Sprintf("T%010d", i), AuthTime: epoch})
	}
	in.Policies = []wire.Policy{
		pol("POL1", "ipallow", "10.0.0.0/8,2001:db8::/32"), pol("POL2", "time", "1-7 0000-2400 Z"), pol("POL3", "tls", "tlcp"),
		pol("POL4", "app", "GET /api/*"), pol("POL5", "maxconn", "20"), pol("POL6", "rate", "100/s"), pol("POL7", "authage", "8h"),
		pol("POL8", "ipdeny", "192.0.2.0/24"), pol("POL9", "level", "1"), pol("BND1", "bind", "POL9 USR00000000/APP00000002"),
	}
	s, faults := Build(in)
	if len(faults) != 0 {
		t.Fatal(faults)
	}
	return s, subs
}

func TestGCR002_M54_ManyRowsAndManyDeltas(t *testing.T) {
	s, subs := manyGrants(t, 20_000)
	for i := range 12_000 {
		b := s.Edit()
		b.Remove(fmt.Sprintf("USR%08d", i), device1)
		if i%2 == 0 {
			b.Put(row(fmt.Sprintf("USR%08d", i), device2, fmt.Sprintf("N%010d", i), fmt.Sprintf("APP%08d", 100+i)))
		}
		s, _ = b.Finish()
	}
	if n, _, _ := s.Counts(); n != 14_000 {
		t.Errorf("%d rows, want 14000", n)
	}
	r := anyRequest
	for i, sub := range subs {
		want := reason.OK
		if i < 12_000 {
			want = reason.TokenUnknown
		}
		if d := s.Decide(sub, s.App(app1), &r, epoch); d.Reason != want {
			t.Fatalf("row %d: got %v, want %v", i, d.Reason, want)
		}
	}
	if len(s.setOff) > 2*14_000+4096+2 || s.rows.n > 2*14_000+4096+2 {
		t.Errorf("%d sets and %d rows for 14000 live ones: nothing was compacted", len(s.setOff), s.rows.n)
	}
}

func TestDiffNamesWhatChangedAndNoToken(t *testing.T) {
	in := input(row(user1, device1, "SECRETTOKEN", app1, app2), row(user2, device1, "TOKEN2", app1))
	a, _ := Build(in)
	in.Grants = []Row{row(user1, device1, "OTHERTOKEN1", app1), row(user1, device2, "TOKEN3", app1)}
	in.Policies = []wire.Policy{pol("POL1", "level", "2")}
	in.Locks = []Lock{{Kind: "user", ID: user2}}
	b, _ := Build(in)
	var got []string
	for _, c := range Diff(a, b) {
		got = append(got, c.String())
	}
	text := strings.Join(got, "\n")
	for _, want := range []string{
		"changed grant USR00000001 DEV00000001 -APP00000002, new token", "added grant USR00000001 DEV00000002 APP00000001 until",
		"removed grant USR00000002 DEV00000001", "added policy POL1 level 2", "added lock user USR00000002",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q lacks %q", text, want)
		}
	}
	if strings.Contains(text, "TOKEN1") || strings.Contains(text, "SECRET") {
		t.Errorf("a token in %q", text)
	}
	if rot := b.Rotated(); len(rot) != 0 {
		t.Errorf("rotations %v without an older snapshot", rot)
	}
	c, _ := BuildAfter(in, a)
	if rot := c.Rotated(); len(rot) != 1 || rot[0].UserID != user1 {
		t.Errorf("rotations %v, want that of %s", rot, user1)
	}
}
