package access

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// leaks counts the leases that live although the state in force denies them.
func leaks(a *Access) (n int) {
	st, now := a.state.Load(), a.cfg.Now()
	for _, s := range a.sessions.all() {
		for _, l := range s.copyLeases(nil) {
			if l.state.Load() == live && a.decide(st, s.subject.Load(), l.app, &l.req, now).Reason != reason.OK {
				n++
			}
		}
	}
	return n
}

// chase lets n Acquire calls race with every kind of change, and counts leaks
// at moments at which no Acquire is under way.
func chase(a *Access, n int) (leaked, granted, changes int) {
	in := policy.Input{Version: 1, Apps: []policy.App{{ID: app1}, {ID: app2}}}
	const users = 8
	for i := range users {
		in.Grants = append(in.Grants, row(ids("USR", i), device1, ids("T", i), time.Hour, app1, app2))
	}
	full := in.Grants
	apps := []App{a.App(app1), a.App(app2)}
	a.Apply(in)
	var wg sync.WaitGroup
	var working, given atomic.Int64
	var mu sync.RWMutex // held for writing while leaks are counted
	working.Store(users)
	for i := range users {
		wg.Go(func() {
			defer working.Add(-1)
			f := policy.Facts{SessionID: ids("S", i), UserID: ids("USR", i), DeviceID: device1}
			var held [8]*Lease // a few leases live on for a while
			for k := range n / users {
				mu.RLock()
				if s, why := a.Attach(f); why == reason.OK {
					if l, _ := a.Acquire(s, apps[k%2], &policy.Request{}, &flow{kind: TCP}); l != nil {
						given.Add(1)
						if old := held[k%len(held)]; old != nil {
							old.Release(Usage{})
						}
						held[k%len(held)] = l
					}
				}
				mu.RUnlock()
				if k%16 == 0 {
					runtime.Gosched()
				}
			}
			for _, l := range held {
				if l != nil {
					l.Release(Usage{})
				}
			}
		})
	}
	for ; working.Load() > 0; changes++ {
		in.Version++
		switch changes % 4 {
		case 0: // everything is taken away, by a list
			in.Grants = nil
			a.Apply(in)
		case 2: // by a delta
			d := Delta{To: in.Version}
			for i := range users {
				d.Remove = append(d.Remove, Pair{ids("USR", i), device1})
			}
			a.Narrow(d)
		default:
			in.Grants = full
			a.Apply(in)
		}
		if changes%2 == 0 {
			mu.Lock()
			leaked += leaks(a)
			mu.Unlock()
		}
		runtime.Gosched()
	}
	wg.Wait()
	return leaked, int(given.Load()), changes
}

func TestGCR002_M13_AcquireRacingWithChangesLeaksNothing(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	leaked, granted, changes := chase(New(Config{}), n)
	if leaked != 0 {
		t.Fatalf("%d leases outlived their right, of %d", leaked, granted)
	}
	if granted == 0 || changes < 10 {
		t.Errorf("%d granted, %d changes: nothing raced", granted, changes)
	}
	t.Logf("%d Acquire calls, %d granted, %d changes, none leaked", n, granted, changes)
}

// The test above bites: with the order turned round, one interleaving is enough.
func TestDecidingBeforeRegisteringWouldLeak(t *testing.T) {
	in := policy.Input{Version: 1, Apps: []policy.App{{ID: app1}}, Grants: []policy.Row{row(user1, device1, "TOKEN1", time.Hour, app1)}}
	setup := func() (*Access, *Session, App) {
		a := New(Config{})
		app := a.App(app1)
		a.Apply(in)
		s, why := a.Attach(policy.Facts{SessionID: "S1", UserID: user1, DeviceID: device1})
		if why != reason.OK {
			t.Fatal(why)
		}
		return a, s, app
	}
	t.Run("wrong order", func(t *testing.T) {
		a, s, app := setup()
		l := &Lease{a: a, s: s, app: app, carrier: &flow{}, pos: -1}
		d := a.decide(a.state.Load(), s.subject.Load(), app, &l.req, time.Now()) // decides ...
		a.Apply(policy.Input{Version: 2, Apps: in.Apps})                         // ... everything is taken away and walked ...
		l.register()                                                             // ... registers
		l.state.CompareAndSwap(pending, live)
		if d.Reason != reason.OK || leaks(a) != 1 {
			t.Fatalf("decision %v, %d leaks: the check of leaks sees nothing", d.Reason, leaks(a))
		}
	})
	t.Run("our order", func(t *testing.T) {
		a, s, app := setup()
		a.afterRegister = func() { a.Apply(policy.Input{Version: 2, Apps: in.Apps}) }
		l, no := a.Acquire(s, app, &policy.Request{}, &flow{})
		if l != nil || no.Reason != reason.NoGrant || leaks(a) != 0 {
			t.Fatalf("lease %v, %v, %d leaks", l != nil, no.Reason, leaks(a))
		}
	})
}

func TestConcurrentMaxConnIsNeverExceeded(t *testing.T) {
	a := New(Config{})
	app := a.App(app1)
	in := policy.Input{Version: 1, Apps: []policy.App{{ID: app1}}, Grants: []policy.Row{row(user1, device1, "TOKEN1", time.Hour, app1)},
		Policies: []wire.Policy{pol("POL00000001", "maxconn", "5")}}
	a.Apply(in)
	var wg sync.WaitGroup
	var held atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			s, why := a.Attach(policy.Facts{SessionID: ids("S", i), UserID: user1, DeviceID: device1})
			if why != reason.OK {
				t.Error(why)
				return
			}
			for range 2000 {
				l, _ := a.Acquire(s, app, &policy.Request{}, &flow{kind: TCP})
				if l == nil {
					continue
				}
				if n := held.Add(1); n > 5 {
					t.Errorf("%d leases at once, at most 5", n)
				}
				held.Add(-1)
				l.Release(Usage{})
			}
		})
	}
	wg.Wait()
	if n := a.Stats().Leases; n != 0 {
		t.Errorf("%d leases are counted after all were released", n)
	}
}

// A carrier may call back into Access from Cut: no lock is held.
func TestCutIsCalledUnderNoLock(t *testing.T) {
	a := New(Config{})
	app := a.App(app1)
	in := policy.Input{Version: 1, Apps: []policy.App{{ID: app1}}, Grants: []policy.Row{row(user1, device1, "TOKEN1", time.Hour, app1)}}
	facts := policy.Facts{SessionID: "S1", UserID: user1, DeviceID: device1, Token: "TOKEN1"}
	for name, lose := range map[string]func(s *Session){
		"apply":  func(*Session) { a.Apply(policy.Input{Version: 9, Apps: in.Apps}) },
		"narrow": func(*Session) { a.Narrow(Delta{To: 9, Remove: []Pair{{user1, device1}}}) },
		"lock":   func(*Session) { a.Narrow(Delta{Locks: []policy.Lock{{Kind: "app", ID: app1}}}) },
		"end":    func(s *Session) { a.End(s, reason.LoggedOut) },
		"cut":    func(*Session) { a.Cut(Selector{AppID: app1}, reason.CutByOperator) },
		"renew":  func(s *Session) { a.Renew(s, "TOKEN1", time.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			facts.SessionID = name
			in.Version += 10
			a.Apply(in)
			a.Narrow(Delta{Unlocks: []policy.Lock{{Kind: "app", ID: app1}}})
			s, why := a.Attach(facts)
			if why != reason.OK {
				t.Fatal(why)
			}
			c := &flow{}
			l, no := a.Acquire(s, app, &policy.Request{}, c)
			if l == nil {
				t.Fatal(no)
			}
			c.onCut = func(reason.Reason) {
				l.Release(Usage{})
				l.Release(Usage{}) // twice has no effect
				a.Narrow(Delta{Locks: []policy.Lock{{Kind: "user", ID: "nobody"}}})
				a.Attach(facts)
				a.Acquire(s, app, &policy.Request{}, &flow{})
				a.Sessions()
				a.Stats()
				a.App("APP00000003")
				a.Renew(s, "nosuch", time.Now())
				a.End(s, reason.LoggedOut)
			}
			done := make(chan struct{})
			go func() { lose(s); close(done) }()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("deadlock")
			}
			if want := int32(1); name != "renew" && c.n.Load() != want {
				t.Errorf("cut %d times, want %d", c.n.Load(), want)
			}
			l.Release(Usage{})
		})
	}
}

func TestPanicInCutIsContained(t *testing.T) {
	rec := &recorder{}
	a := New(Config{Alerts: rec})
	app := a.App(app1)
	in := policy.Input{Version: 1, Apps: []policy.App{{ID: app1}}, Grants: []policy.Row{row(user1, device1, "TOKEN1", time.Hour, app1)}}
	a.Apply(in)
	s, _ := a.Attach(policy.Facts{SessionID: "S1", UserID: user1, DeviceID: device1})
	one := &flow{onCut: func(reason.Reason) { panic("boom") }}
	two := &flow{}
	a.Acquire(s, app, &policy.Request{}, one)
	a.Acquire(s, app, &policy.Request{}, two)
	a.Apply(policy.Input{Version: 2})
	wantCut(t, one, reason.GrantRevoked)
	wantCut(t, two, reason.GrantRevoked)
	if rec.count("2.012") != 1 {
		t.Error("no alert of the contained panic")
	}
}

func TestGCR002_M14_EveryDecisionHasARecordAndIsCounted(t *testing.T) {
	reg, rec := prometheus.NewRegistry(), &recorder{}
	a := New(Config{GatewayID: "GW000000001", Audit: rec, Registerer: reg})
	app := a.App(app1)
	a.Apply(policy.Input{Version: 1, Apps: []policy.App{{ID: app1}}, Grants: []policy.Row{row(user1, device1, "TOKEN1", time.Hour, app1)}})
	s, _ := a.Attach(policy.Facts{SessionID: "S1", UserID: user1, DeviceID: device1, AgentID: agent1})
	for _, k := range Kinds() {
		r := policy.Request{Protocol: policy.TLCP, Method: "GET", Path: "/x"}
		l, no := a.Acquire(s, app, &r, &flow{kind: k})
		if l == nil {
			t.Fatal(no)
		}
		if n := testutil.CollectAndCount(a.metrics, "yumen_access_leases"); n != len(Kinds()) {
			t.Errorf("%d kinds are counted, want %d", n, len(Kinds()))
		}
		l.Release(Usage{BytesIn: 3, BytesOut: 4, Status: 200})
		a.Acquire(s, a.App(app2), &r, &flow{kind: k})
	}
	allowed, refused, ended := 0, 0, 0
	for _, r := range rec.records {
		if r.UserID != user1 || r.DeviceID != device1 || r.AgentID != agent1 || r.SessionID != "S1" || r.GatewayID == "" || r.Carrier == "" || r.RequestID != "REQ1" || r.Protocol != "tlcp" || r.Time.IsZero() {
			t.Errorf("record %+v", r)
		}
		switch {
		case r.Kind == audit.End && r.BytesIn == 3 && r.BytesOut == 4 && r.Allowed:
			ended++
		case r.Kind == audit.Decision && r.Allowed && r.AppID == app1:
			allowed++
		case r.Kind == audit.Decision && r.Code == reason.AppUnknown && r.AppID == app2:
			refused++
		}
	}
	if n := len(Kinds()); allowed != n || refused != n || ended != n {
		t.Errorf("%d allowed, %d refused, %d ended; want %d of each", allowed, refused, ended, n)
	}
	if n, err := testutil.GatherAndCount(reg, "yumen_access_decisions_total", "yumen_access_sessions", "yumen_access_cut_duration_seconds"); err != nil || n != 4 {
		t.Errorf("%d series, %v; want two reasons, sessions and the histogram", n, err)
	}
}

func TestRunEndedMeansClosed(t *testing.T) {
	a := New(Config{})
	app := a.App(app1)
	a.Apply(policy.Input{Version: 1, Apps: []policy.App{{ID: app1}}, Grants: []policy.Row{row(user1, device1, "TOKEN1", time.Hour, app1)}})
	facts := policy.Facts{SessionID: "S1", UserID: user1, DeviceID: device1}
	s, _ := a.Attach(facts)
	c := &flow{}
	a.Acquire(s, app, &policy.Request{}, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	wantCut(t, c, reason.Shutdown)
	if _, why := a.Attach(facts); why != reason.Shutdown {
		t.Errorf("attach: %v", why)
	}
}
