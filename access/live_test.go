package access

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Every policy type ends a live flow when it stops holding.
func TestGCR002_M60_EveryTypeCutsALiveFlow(t *testing.T) {
	for _, c := range []struct {
		typ, data string
		lose      func(w *world) // the flow is live; now it loses its right
		want      reason.Reason
	}{
		{"ipallow", "10.0.0.0/8", func(w *world) { w.in.Policies[0].PolicyData = "192.0.2.0/24"; w.apply() }, reason.PolicyIPAllow},
		{"ipdeny", "192.0.2.0/24", func(w *world) { w.in.Policies[0].PolicyData = "10.1.0.0/16"; w.apply() }, reason.PolicyIPDeny},
		{"time", "6 0000-0800 +00", func(w *world) { time.Sleep(8 * time.Hour); synctest.Wait() }, reason.PolicyTime}, // bubbles start on a Saturday
		{"posture", ">=80", func(w *world) { w.in.Grants[0].Posture = policy.ScoreOf(70); w.apply() }, reason.PolicyPosture},
		{"posture", ">=80", func(w *world) { w.in.Grants[0].Posture = policy.Score{}; w.apply() }, reason.PolicyPosture},
		{"authage", "15m", func(w *world) { time.Sleep(15 * time.Minute); synctest.Wait() }, reason.PolicyAuthAge},
		{"mfa", "1", func(w *world) { w.in.Policies[0].PolicyData = "1,5"; w.apply() }, reason.PolicyMFA},
		{"level", "2", func(w *world) { w.in.Grants[0].Level = 1; w.apply() }, reason.PolicyLevel},
		{"rate", "100/s", func(w *world) { w.in.Policies[0].PolicyData = "0/s"; w.apply() }, reason.PolicyRate},
		{"maxconn", "20", func(w *world) { w.in.Policies[0].PolicyData = "0"; w.apply() }, reason.PolicyMaxConn},
		{"app", "GET /api/*", func(w *world) { w.in.Policies[0].PolicyData = "GET /web/*"; w.apply() }, reason.PolicyApp},
		{"risk", "<=60", func(w *world) { w.in.Grants[0].Risk = policy.ScoreOf(61); w.apply() }, reason.PolicyRisk},
		{"tls", "tls1.3", func(w *world) { w.in.Policies[0].PolicyData = "tlcp"; w.apply() }, reason.PolicyTLS},
		{"level", "1", func(w *world) {
			w.in.Policies[0] = pol("POL00000001", "geo", "31.23,121.47,50km")
			w.apply()
		}, reason.PolicyGeo},
		{"level", "1", func(w *world) {
			w.in.Policies[0] = pol("POL00000001", "ref", "s3:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
			w.apply()
		}, reason.PolicyRef},
		{"level", "1", func(w *world) { w.in.Policies[0] = pol("POL00000001", "nosuch", "x"); w.apply() }, reason.PolicyUnknownType},
		{"level", "1", func(w *world) { w.in.Policies[0].PolicyData = "high"; w.apply() }, reason.PolicyInvalid},
		{"level", "1", func(w *world) { // bind: the scope moves to this application
			w.in.Policies = append(w.in.Policies, pol("POL00000002", "tls", "tlcp"), pol("BND00000002", "bind", "POL00000002 APP00000001"))
			w.apply()
		}, reason.PolicyTLS},
	} {
		t.Run(c.typ+" "+c.want.String(), func(t *testing.T) {
			bubble(t, Config{}, func(w *world) {
				w.in.Policies = []wire.Policy{pol("POL00000001", c.typ, c.data), pol("BND00000001", "bind", "POL00000001 APP00000001")}
				if faults := w.apply(); len(faults) != 0 {
					t.Fatal(faults)
				}
				s := w.attach(w.facts())
				f, other := w.open(s, w.app), w.open(s, w.two)
				wantLive(t, f)
				c.lose(w)
				wantCut(t, f, c.want)
				wantLive(t, other) // M11: only the application that the rule is bound to
				if c.typ != "maxconn" {
					w.refused(s, w.app, c.want)
				}
				if n := w.rec.count(alert.SessionCut); n != 1 {
					t.Errorf("%d alerts of a cut, want 1", n)
				}
				end := w.rec.kind(audit.End)
				if len(end) != 1 || end[0].Result != c.want.String() || end[0].RequestID != "REQ1" || end[0].Allowed {
					t.Errorf("audit of the end: %+v", end)
				}
			})
		})
	}
}

func TestTypesHaveALiveTest(t *testing.T) {
	// The table above must grow with the registry.
	if n := len(policy.Types()); n != 15 {
		t.Errorf("%d policy types, the table of live cuts knows 15", n)
	}
}

func TestM11_LevelFloorOfOneApplicationCutsOnlyThat(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		f, other := w.open(s, w.app), w.open(s, w.two)
		w.in.Apps[0].Level = 3
		w.apply()
		wantCut(t, f, reason.PolicyLevel)
		wantLive(t, other)
	})
}

func TestGCR002_M57_RemovalFromTheNextFullListCutsLiveFlows(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		b := w.attach(policy.Facts{SessionID: "B1", UserID: user2, Browser: true})
		f, g := w.open(s, w.app), w.open(b, w.app)
		w.in.Grants = w.in.Grants[1:]
		w.apply()
		wantCut(t, f, reason.GrantRevoked)
		wantLive(t, g)
		if s.Reason() != reason.GrantRevoked {
			t.Errorf("the tunnel's session ended for %v", s.Reason())
		}
		<-s.Done()
		w.in.Grants = nil
		w.apply()
		wantCut(t, g, reason.GrantRevoked)
		if b.Reason() != reason.OK {
			t.Errorf("the browser's session ended for %v, want it to live and see a deny page", b.Reason())
		}
		w.refused(b, w.app, reason.NoGrant)
	})
}

func TestGCR002_M56_ApplicationTakenFromTheListCutsOnlyThat(t *testing.T) {
	for name, list := range map[string][]string{"absent": nil, "empty": {}, "other": {app2}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(w *world) {
				s := w.attach(w.facts())
				f, g := w.open(s, w.app), w.open(s, w.two)
				w.in.Grants[0].AppIDList = list
				w.apply()
				wantCut(t, f, reason.GrantRevoked)
				if name == "other" {
					wantLive(t, g)
				} else {
					wantCut(t, g, reason.GrantRevoked)
				}
				w.refused(s, w.app, reason.AppNotGranted)
			})
		})
	}
}

func TestGCR002_M61_UnknownTypeRaisesAnAlert(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Policies = []wire.Policy{pol("POL00000001", "nosuch", "x")}
		if faults := w.apply(); len(faults) != 1 {
			t.Errorf("faults %v", faults)
		}
		if w.rec.count(alert.PolicyUnreadable) != 1 {
			t.Error("no alert 1.005")
		}
		w.refused(w.attach(w.facts()), w.app, reason.PolicyUnknownType)
		w.in.Grants = append(w.in.Grants, policy.Row{})
		w.apply()
		if w.rec.count(alert.ListBadRow) != 1 {
			t.Error("no alert 2.002")
		}
	})
}

func TestGCR002_M55_GrantEndsToTheSecond(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Grants[1] = row(user2, policy.BrowserDevice, "TOKENB", 90*time.Second, app1)
		w.apply()
		f := w.open(w.attach(policy.Facts{SessionID: "B1", UserID: user2, Browser: true}), w.app)
		time.Sleep(90*time.Second - time.Millisecond)
		synctest.Wait()
		wantLive(t, f)
		start := time.Now()
		time.Sleep(time.Second)
		synctest.Wait()
		wantCut(t, f, reason.GrantExpired)
		if late := time.Unix(0, f.at.Load()).Sub(start); late > 10*time.Millisecond {
			t.Errorf("cut %v after expiry", late)
		}
	})
}

func TestS2_ListExpiryCutsEverythingAndKeepsSessions(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.NotAfter = time.Now().Add(time.Minute)
		w.apply()
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		time.Sleep(time.Minute)
		synctest.Wait()
		wantCut(t, f, reason.ListExpired)
		w.refused(s, w.app, reason.ListExpired)
		w.in.NotAfter = time.Now().Add(time.Minute)
		w.apply()
		w.open(s, w.app)
	})
}

func TestS6_NoListAllowsNothing(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		a := New(Config{})
		if _, why := a.Attach(w.facts()); why != reason.NoList {
			t.Errorf("attach: %v, want no list", why)
		}
		s, why := a.Attach(policy.Facts{SessionID: "B1", UserID: user2, Browser: true})
		if why != reason.OK {
			t.Fatal(why)
		}
		if l, no := a.Acquire(s, a.App(app1), w.request(), &flow{}); l != nil || no.Reason != reason.NoList {
			t.Errorf("acquire: %v", no)
		}
		if l, no := a.Acquire(s, App{}, w.request(), &flow{}); l != nil || no.Reason == reason.OK {
			t.Errorf("acquire of the zero application: %v", no)
		}
		if l, no := a.Acquire(nil, a.App(app1), w.request(), &flow{}); l != nil || no.Reason != reason.LoginRequired {
			t.Errorf("acquire without a session: %v", no)
		}
	})
}

func TestMaxConnLoweredCutsTheNewest(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Grants = append(w.in.Grants, row(user1, device2, "TOKEN2", time.Hour, app1))
		w.apply()
		s := w.attach(w.facts())
		two := w.facts()
		two.SessionID, two.DeviceID, two.Token = "S2", device2, "TOKEN2"
		s2 := w.attach(two)
		var flows []*flow
		for i := range 6 { // counted per user, over both sessions
			flows = append(flows, w.open([]*Session{s, s2}[i%2], w.app))
		}
		w.in.Policies = []wire.Policy{pol("POL00000001", "maxconn", "2")}
		w.apply()
		for i, f := range flows {
			if i < 2 {
				wantLive(t, f)
			} else {
				wantCut(t, f, reason.PolicyMaxConn)
			}
		}
		l, no := w.Acquire(s, w.app, w.request(), &flow{})
		if l != nil || no.Reason != reason.PolicyMaxConn || no.PolicyID != "POL00000001" {
			t.Errorf("a third: %+v", no)
		}
		flows[0].lease.Load().Release(Usage{})
		w.apply() // counts outlive a snapshot
		f := w.open(s2, w.app)
		w.refused(s, w.app, reason.PolicyMaxConn)
		wantLive(t, f)
	})
}

func TestRateCountsPerUserAndOutlivesASnapshot(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Policies = []wire.Policy{pol("POL00000001", "rate", "3/m")}
		w.apply()
		s := w.attach(w.facts())
		for range 3 {
			w.open(s, w.app)
		}
		w.refused(s, w.app, reason.PolicyRate)
		w.apply()
		w.refused(s, w.app, reason.PolicyRate)
		w.Close(s, reason.TunnelClosed)
		s = w.attach(w.facts())
		w.refused(s, w.app, reason.PolicyRate) // a new session is no fresh start
		w.open(s, w.two)
		time.Sleep(20 * time.Second)
		w.open(s, w.app)
		w.refused(s, w.app, reason.PolicyRate)
	})
}

func TestIntroducedRateLeavesLiveFlows(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		w.in.Policies = []wire.Policy{pol("POL00000001", "rate", "1/h")}
		w.apply()
		wantLive(t, f)
		w.open(s, w.app)
		w.refused(s, w.app, reason.PolicyRate)
	})
}
