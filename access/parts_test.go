package access

import (
	"slices"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// A sign-in that is used with a device's certificate is the session
// "sid/device"; what ends the sign-in ends it there, too.
func TestWhatEndsASignInEndsItOnEveryDevice(t *testing.T) {
	onDevice := policy.Facts{SessionID: "S1/" + device1, UserID: user1, DeviceID: device1, AgentID: agent1, Token: "TOKEN1"}
	other := policy.Facts{SessionID: "S10/" + device1, UserID: user1, DeviceID: device1, AgentID: agent1, Token: "TOKEN1"}
	t.Run("revoked", func(t *testing.T) {
		bubble(t, Config{}, func(w *world) {
			s := w.attach(onDevice)
			f, stays := w.open(s, w.app), w.open(w.attach(other), w.app)
			w.Narrow(Delta{Revoke: []Revocation{{SessionID: "S1"}}})
			wantCut(t, f, reason.SessionRevoked)
			wantLive(t, stays)
			w.attachRefused(onDevice, reason.SessionRevoked)
		})
	})
	t.Run("revoked before it came", func(t *testing.T) {
		bubble(t, Config{}, func(w *world) {
			w.Narrow(Delta{Revoke: []Revocation{{SessionID: "S1"}}})
			w.attachRefused(onDevice, reason.SessionRevoked)
			w.attach(other)
		})
	})
	for name, lock := range map[string]func(*world, policy.Lock){
		"locked by a change": func(w *world, l policy.Lock) { w.Narrow(Delta{Locks: []policy.Lock{l}}) },
		"locked by a list":   func(w *world, l policy.Lock) { w.in.Locks = []policy.Lock{l}; w.apply() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(w *world) {
				s := w.attach(onDevice)
				f, stays := w.open(s, w.app), w.open(w.attach(other), w.app)
				lock(w, policy.Lock{Kind: "session", ID: "S1", Until: time.Now().Add(time.Hour)})
				wantCut(t, f, reason.Locked)
				wantLive(t, stays)
			})
		})
	}
}

// A control center locks a user and revokes the sessions in one change: what
// flows ends for the lock, and a revocation without a lock for itself.
func TestGCR002_M57_ALockThatRevokesIsToldAsALock(t *testing.T) {
	for name, c := range map[string]struct {
		locks []policy.Lock
		want  reason.Reason
	}{
		"locked":           {[]policy.Lock{{Kind: "user", ID: user1, Message: "lost"}}, reason.Locked},
		"another locked":   {[]policy.Lock{{Kind: "user", ID: user2}}, reason.SessionRevoked},
		"the lock is over": {[]policy.Lock{{Kind: "user", ID: user1, Until: time.Unix(1, 0)}}, reason.SessionRevoked},
		"not locked":       {nil, reason.SessionRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(w *world) {
				s := w.attach(w.facts())
				f := w.open(s, w.app)
				time.Sleep(time.Second)
				w.Narrow(Delta{Locks: c.locks, Revoke: []Revocation{{UserID: user1}}})
				wantCut(t, f, c.want)
				if s.Reason() != c.want {
					t.Errorf("the session ended for %v, want %v", s.Reason(), c.want)
				}
			})
		})
	}
}

// An operator's cut ends what flows and asks for a new sign-in. Who proves
// himself by his certificate alone has none to make and may come again.
func TestCutByAnOperatorRevokesSignInsOnly(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		cert := policy.Facts{SessionID: "c1", UserID: user1, DeviceID: device1}
		cookie := policy.Facts{SessionID: "S1/" + device1, UserID: user1, DeviceID: device1, AuthTime: time.Now()}
		f, g := w.open(w.attach(cert), w.app), w.open(w.attach(cookie), w.app)
		if n := w.Cut(Selector{SessionID: "S1"}, reason.CutByOperator); n != 1 {
			t.Errorf("cut %d flows of the sign-in, want 1", n)
		}
		wantCut(t, g, reason.CutByOperator)
		wantLive(t, f)
		w.Cut(Selector{UserID: user1}, reason.CutByOperator)
		wantCut(t, f, reason.CutByOperator)
		w.attachRefused(cookie, reason.SessionRevoked)
		w.attach(cert)
	})
}

// The alert of a lock reaches the agent, which then ends its flows itself:
// what is cut must be cut before.
func TestGCR002_M57_CutsComeBeforeTheAlertOfALock(t *testing.T) {
	lock := policy.Lock{Kind: "user", ID: user1}
	for name, do := range map[string]func(*world){
		"by a change": func(w *world) { w.Narrow(Delta{Locks: []policy.Lock{lock}}) },
		"by a change that revokes": func(w *world) {
			w.Narrow(Delta{Locks: []policy.Lock{lock}, Revoke: []Revocation{{UserID: user1}}})
		},
		"by a list": func(w *world) { w.in.Locks = []policy.Lock{lock}; w.apply() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(w *world) {
				f, alerts := w.open(w.attach(w.facts()), w.app), -1
				f.onCut = func(reason.Reason) { alerts = w.rec.count(alert.LockInForce) }
				do(w)
				wantCut(t, f, reason.Locked)
				if alerts != 0 || w.rec.count(alert.LockInForce) != 1 {
					t.Errorf("%d alerts before the cut and %d after, want 0 and 1", alerts, w.rec.count(alert.LockInForce))
				}
			})
		})
	}
}

// Flows share a carrier: the first cut of an ended session may end the others
// before their turn. The audit knows why they ended.
func TestGCR002_M57_FlowsThatEndWithTheirSessionSayWhy(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		flows := []*flow{w.open(s, w.app), w.open(s, w.app), w.open(s, w.app)}
		for _, f := range flows {
			f.onCut = func(reason.Reason) {
				for _, g := range flows {
					g.lease.Load().Release(Usage{})
				}
			}
		}
		if n := w.End(s, reason.LoggedOut); n != 1 {
			t.Errorf("%d flows cut, want the 1 that lived at its turn", n)
		}
		ends := w.rec.kind(audit.End)
		if len(ends) != len(flows) {
			t.Fatalf("%d ends, want %d", len(ends), len(flows))
		}
		for i, r := range ends {
			if r.Code != reason.LoggedOut || r.Allowed {
				t.Errorf("end %d: %s, allowed %v; want logged_out", i, r.Result, r.Allowed)
			}
		}
	})
}

// brief is a flow that is mostly over at once.
type brief struct{ *flow }

func (brief) Brief() bool { return true }

func TestGCR002_M14_ABriefFlowHasOneRecordALastingOneTwo(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		for _, c := range []struct {
			lasts int
			kinds []audit.Kind
		}{{0, []audit.Kind{audit.End}}, {2, []audit.Kind{audit.Decision, audit.End}}} {
			before := len(w.rec.records)
			l, no := w.Acquire(s, w.app, &policy.Request{Method: "GET", Path: "/x"}, brief{&flow{}})
			if l == nil {
				t.Fatal(no)
			}
			if n := len(w.rec.records) - before; n != 0 {
				t.Errorf("%d records of a brief flow that goes on, want none yet", n)
			}
			for range c.lasts {
				l.Lasts()
			}
			l.Release(Usage{Status: 200})
			l.Lasts()
			var kinds []audit.Kind
			for _, r := range w.rec.records[before:] {
				kinds = append(kinds, r.Kind)
				if !r.Allowed || r.UserID == "" || r.AppID == "" || r.RequestID != "REQ1" {
					t.Errorf("record %+v", r)
				}
			}
			if !slices.Equal(kinds, c.kinds) {
				t.Errorf("records %v, want %v", kinds, c.kinds)
			}
		}
		// A refusal is recorded at once, whatever carries it.
		before := len(w.rec.records)
		if l, _ := w.Acquire(s, w.App("APP99999999"), &policy.Request{Method: "GET", Path: "/x"}, brief{&flow{}}); l != nil || len(w.rec.records) != before+1 {
			t.Errorf("a refusal: lease %v, %d records", l, len(w.rec.records)-before)
		}
	})
}
