package access

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

func (w *world) attachRefused(f policy.Facts, want reason.Reason) {
	w.t.Helper()
	if s, why := w.Attach(f); s != nil || why != want {
		w.t.Errorf("attach %+v: %v, want refused for %v", f, why, want)
	}
}

func TestS1_TokenOfAnotherDeviceIsRefusedWithAnAlert(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		f := w.facts()
		f.DeviceID = device2
		w.attachRefused(f, reason.TokenOtherDevice)
		if w.rec.count(alert.TokenMisuse) != 1 {
			t.Error("no alert 1.002")
		}
		if reason.TokenOtherDevice.Public() != reason.TokenUnknown {
			t.Error("a stranger learns that the token exists")
		}
		login := w.rec.kind(audit.Login)
		if len(login) != 1 || login[0].Allowed || login[0].DeviceID != device2 {
			t.Errorf("audit %+v", login)
		}
	})
}

func TestGCR002_M79_WrongInputsInTurn(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		for want, spoil := range map[reason.Reason]func(*policy.Facts){
			reason.TokenUnknown:   func(f *policy.Facts) { f.Token = "TOKEN9" },
			reason.UserMismatch:   func(f *policy.Facts) { f.UserID = user2 },
			reason.DeviceUnknown:  func(f *policy.Facts) { f.DeviceID = "" },
			reason.DeviceMismatch: func(f *policy.Facts) { f.DeviceID = policy.BrowserDevice },
			reason.SessionUnknown: func(f *policy.Facts) { f.SessionID = "" },
		} {
			f := w.facts()
			spoil(&f)
			w.attachRefused(f, want)
		}
		f := w.facts()
		f.UserID = ""
		if s := w.attach(f); s.Facts().UserID != user1 {
			t.Errorf("user %q, want that of the token's row", s.Facts().UserID)
		}
		other := w.facts()
		other.AgentID = "AGT00000009"
		w.attachRefused(other, reason.AgentMismatch) // the live session is another agent's
	})
}

func TestS3_GuessingIsLimitedPerDevice(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Grants = append(w.in.Grants, row(user2, device2, "TOKEN2", time.Hour, app1))
		w.apply()
		live := w.attach(w.facts())
		bad := w.facts()
		bad.SessionID = "S2"
		for i := range 10 {
			bad.Token = ids("T", i)
			w.attachRefused(bad, reason.TokenUnknown)
		}
		if w.rec.count(alert.TokenGuessing) != 1 {
			t.Errorf("%d alerts 1.003, want 1", w.rec.count(alert.TokenGuessing))
		}
		bad.Token = "TOKEN1"
		w.attachRefused(bad, reason.TokenGuessLimit) // even the right one: who guesses learns nothing
		w.open(live, w.app)                          // but what is attached lives on
		other := policy.Facts{SessionID: "S3", UserID: user2, DeviceID: device2, Token: "TOKEN2"}
		w.attach(other) // another device is not concerned
		time.Sleep(time.Minute)
		w.attach(bad)
		if why := w.Renew(live, "nosuch", time.Now()); why != reason.TokenUnknown {
			t.Errorf("renewal with a wrong token: %v", why)
		}
	})
}

func TestM81_RotatedTokenKeepsFlowsAndCountsForAMinute(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		w.in.Grants[0].AuthenticationToken = "TOKEN2"
		w.apply()
		wantLive(t, f)
		w.open(s, w.app) // the old token counts still
		late := w.facts()
		late.SessionID = "S2"
		old := w.attach(late) // also for a new tunnel
		stolen := w.facts()
		stolen.SessionID, stolen.DeviceID = "S3", device2
		w.attachRefused(stolen, reason.TokenOtherDevice)
		time.Sleep(30 * time.Second)
		w.apply() // a further list does not make it longer
		if why := w.Renew(s, "TOKEN2", time.Now()); why != reason.OK {
			t.Fatalf("renew: %v", why)
		}
		g := w.open(old, w.app)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		wantLive(t, f)
		wantCut(t, g, reason.RenewalMissed)
		late.SessionID = "S4"
		w.attachRefused(late, reason.TokenExpired)
		late.Token = "TOKEN2"
		w.attach(late)
	})
}

func TestGCR002_M80_NewerUpdateTimeWins(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		w.in.Grants[0].AuthenticationToken = "TOKEN2"
		w.apply()
		now := time.Now()
		for _, c := range []struct {
			token string
			at    time.Time
			want  reason.Reason
			holds string
		}{
			{"TOKEN2", now, reason.OK, "TOKEN2"},
			{"TOKEN1", now.Add(-time.Second), reason.OK, "TOKEN2"}, // older: ignored
			{"nosuch", now, reason.OK, "TOKEN2"},                   // not newer: ignored
			{"nosuch", now.Add(time.Second), reason.TokenUnknown, "TOKEN2"},
			{"", now.Add(time.Second), reason.TokenUnknown, "TOKEN2"},
			{"TOKEN2", now.Add(2 * time.Second), reason.OK, "TOKEN2"},
			{"TOKEN2", now.Add(time.Hour), reason.MessageSkew, "TOKEN2"},
		} {
			if why := w.Renew(s, c.token, c.at); why != c.want || s.Facts().Token != c.holds {
				t.Errorf("renew %q at %v: %v, token %q; want %v, %q", c.token, c.at, why, s.Facts().Token, c.want, c.holds)
			}
		}
		w.Close(s, reason.TunnelClosed)
		if why := w.Renew(s, "TOKEN2", now.Add(3*time.Second)); why != reason.TunnelClosed {
			t.Errorf("renewal of a closed session: %v", why)
		}
	})
}

func TestGCR002_M81_M82_TunnelLivesWhileRenewedAndClosesWithout(t *testing.T) {
	bubble(t, Config{RenewWithin: 2 * time.Minute}, func(w *world) {
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		for range 24 * 60 { // a day, with a token an hour
			time.Sleep(time.Minute)
			if time.Since(s.Since())%time.Hour == 0 {
				w.in.Grants[0].AuthenticationToken = ids("T", int(time.Since(s.Since())/time.Hour))
				w.in.Grants[0].ExpirationDate = time.Now().Add(90 * time.Minute).UTC().Format(time.RFC3339)
				w.apply()
			}
			if why := w.Renew(s, w.in.Grants[0].AuthenticationToken, time.Now()); why != reason.OK {
				t.Fatalf("renewal after %v: %v", time.Since(s.Since()), why)
			}
			wantLive(t, f)
		}
		time.Sleep(2*time.Minute - time.Second)
		synctest.Wait()
		wantLive(t, f)
		time.Sleep(time.Second)
		synctest.Wait()
		wantCut(t, f, reason.RenewalMissed)
		if w.rec.count(alert.RenewalMissed) != 1 {
			t.Error("no alert 1.008")
		}
		<-s.Done()
	})
}

func TestGCR002_M10_IdleTunnelClosesWhenItsTokenEnds(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Grants[0].ExpirationDate = time.Now().Add(5 * time.Minute).UTC().Format(time.RFC3339)
		w.apply()
		s := w.attach(w.facts()) // no flow at all
		time.Sleep(5*time.Minute - time.Second)
		synctest.Wait()
		if s.Reason() != reason.OK {
			t.Fatalf("ended early for %v", s.Reason())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s.Reason() != reason.RenewalMissed {
			t.Errorf("ended for %v, want missed renewal", s.Reason())
		}
		w.refused(s, w.app, reason.RenewalMissed)
	})
}

func TestLogoutRevokesTheSessionID(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		b := policy.Facts{SessionID: "B1", UserID: user2, Browser: true, AuthTime: time.Now()}
		s := w.attach(b)
		f, g := w.open(s, w.app), w.open(s, w.two)
		if n := w.End(s, reason.LoggedOut); n != 2 {
			t.Errorf("cut %d, want 2", n)
		}
		wantCut(t, f, reason.LoggedOut)
		wantCut(t, g, reason.LoggedOut)
		w.attachRefused(b, reason.SessionRevoked)
		w.refused(s, w.app, reason.LoggedOut)
		if w.rec.count(alert.SessionCut) != 0 || len(w.rec.kind(audit.Logout)) != 1 {
			t.Error("a log-out is an audit record and no alert")
		}
		b.SessionID = "B2"
		w.attach(b)
		// After a restart the revocations come back.
		again := New(Config{})
		again.Narrow(Delta{Revoke: w.Revocations()})
		b.SessionID = "B1"
		if _, why := again.Attach(b); why != reason.SessionRevoked {
			t.Errorf("after a restart: %v", why)
		}
	})
}

func TestS2_RevokedUserLosesSessionsIssuedBefore(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		at := func(id string, d time.Duration) policy.Facts {
			return policy.Facts{SessionID: id, UserID: user2, Browser: true, AuthTime: time.Now().Add(d)}
		}
		old, fresh := w.attach(at("B1", -time.Hour)), w.attach(at("B2", -time.Minute))
		f, g := w.open(old, w.app), w.open(fresh, w.app)
		other := w.open(w.attach(w.facts()), w.app)
		w.Narrow(Delta{Revoke: []Revocation{{UserID: user2, IssuedBefore: time.Now().Add(-10 * time.Minute)}}})
		wantCut(t, f, reason.SessionRevoked)
		wantLive(t, g)
		wantLive(t, other)
		w.attachRefused(at("B3", -time.Hour), reason.SessionRevoked)
		w.Narrow(Delta{Revoke: []Revocation{{SessionID: "B2"}}})
		wantCut(t, g, reason.SessionRevoked)
		w.apply() // a list does not bring a revoked session back
		w.attachRefused(at("B2", 0), reason.SessionRevoked)
	})
}

func TestNarrowDeniesBeforeTheListIsBuilt(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		w.Narrow(Delta{To: 10, Remove: []Pair{{user1, device1}}})
		wantCut(t, f, reason.GrantRevoked)
		<-s.Done()
		w.attachRefused(w.facts(), reason.GrantRevoked)
		w.in.Version = 8 // older than the delta: it cannot know of it
		w.Apply(w.in)
		w.attachRefused(w.facts(), reason.GrantRevoked)
		w.in.Version = 10
		w.Apply(w.in) // the list knows of it, and grants
		w.attach(w.facts())
	})
}

func TestNarrowDuringABuildIsNotLost(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		f := w.open(w.attach(w.facts()), w.app)
		w.in.Version++
		_, err := w.ApplyStored(w.in, func() error { // the list was built already
			w.Narrow(Delta{Remove: []Pair{{user1, device1}}})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		wantCut(t, f, reason.GrantRevoked)
		w.attachRefused(w.facts(), reason.GrantRevoked)
	})
}

func TestDeltaRemovesReplacesLocks(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		b := w.attach(policy.Facts{SessionID: "B1", UserID: user2, Browser: true})
		f, g := w.open(s, w.app), w.open(b, w.app)
		v, _ := w.Snapshot().Version()
		d := Delta{From: v, To: v + 1, Remove: []Pair{{user1, device1}}, Grants: []policy.Row{row(user2, policy.BrowserDevice, "TOKENB", time.Hour, app2), row(user1, device2, "TOKEN3", time.Hour, app1)}}
		if faults, err := w.ApplyDelta(d, nil); err != nil || len(faults) != 0 {
			t.Fatal(faults, err)
		}
		wantCut(t, f, reason.GrantRevoked)
		wantCut(t, g, reason.GrantRevoked) // app1 is not in the new row
		w.open(b, w.two)
		moved := w.facts()
		moved.DeviceID, moved.Token = device2, "TOKEN3"
		h := w.open(w.attach(moved), w.app)
		// A gap narrows and does not widen.
		d = Delta{From: v + 9, To: v + 10, Remove: []Pair{{user1, device2}}, Grants: []policy.Row{row(user1, device1, "TOKEN4", time.Hour, app1)}}
		if _, err := w.ApplyDelta(d, nil); err != ErrGap {
			t.Errorf("a gap: %v", err)
		}
		wantCut(t, h, reason.GrantRevoked)
		gap := w.facts()
		gap.Token = "TOKEN4"
		w.attachRefused(gap, reason.TokenUnknown)
	})
}

func TestStoreFailsNarrowStaysWideningWaits(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Grants[0].AppIDList = []string{app1}
		w.apply()
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		w.in.Grants[0].AppIDList = []string{app2}
		w.in.Version++
		var during reason.Reason
		_, err := w.ApplyStored(w.in, func() error {
			during = f.cut() // the cut does not wait for the disk
			return audit2
		})
		if err == nil || during != reason.GrantRevoked {
			t.Errorf("error %v, cut before storing: %v", err, during)
		}
		w.refused(s, w.app, reason.AppNotGranted)
		w.refused(s, w.two, reason.AppNotGranted) // not stored, not granted
		if !w.Stats().Storing {
			t.Error("stats hide that a list is not stored")
		}
		w.in.Version++
		if _, err := w.ApplyStored(w.in, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		w.open(s, w.two)
	})
}

type testError string

func (e testError) Error() string { return string(e) }

const audit2 = testError("disk full")

func TestLockCutsUnlockOpens(t *testing.T) {
	for kind, id := range map[string]string{"user": user1, "device": device1, "agent": agent1, "app": app1, "session": "S1", "nosuch": user1} {
		t.Run(kind, func(t *testing.T) {
			bubble(t, Config{}, func(w *world) {
				s := w.attach(w.facts())
				f := w.open(s, w.app)
				lock := policy.Lock{Kind: kind, ID: id, Message: "lost laptop"}
				w.Narrow(Delta{Locks: []policy.Lock{lock}})
				wantCut(t, f, reason.Locked)
				if w.rec.count(alert.LockInForce) != 1 {
					t.Error("no alert 1.006")
				}
				if s.Reason() != reason.OK {
					t.Errorf("the session ended for %v: it must be told why", s.Reason())
				}
				l, no := w.Acquire(s, w.app, w.request(), &flow{})
				if l != nil || no.Reason != reason.Locked || no.Message != "lost laptop" {
					t.Errorf("acquire under lock: %+v", no)
				}
				w.apply() // the list does not know of it yet
				w.refused(s, w.app, reason.Locked)
				w.in.Locks = []policy.Lock{lock}
				w.apply() // now it does
				w.refused(s, w.app, reason.Locked)
				w.in.Locks = nil
				w.apply() // and takes it back
				w.open(s, w.app)
				w.Narrow(Delta{Locks: []policy.Lock{lock}})
				w.refused(s, w.app, reason.Locked)
				w.Narrow(Delta{Unlocks: []policy.Lock{lock}})
				w.open(s, w.app)
				v, _ := w.Snapshot().Version()
				if _, err := w.ApplyDelta(Delta{From: v, To: v + 1, Locks: []policy.Lock{lock}}, nil); err != nil {
					t.Fatal(err)
				}
				w.refused(s, w.app, reason.Locked)
				if _, err := w.ApplyDelta(Delta{From: v + 1, To: v + 2, Unlocks: []policy.Lock{lock}}, nil); err != nil {
					t.Fatal(err)
				}
				w.open(s, w.app)
				if n := w.rec.count(alert.LockInForce); n != 1 {
					t.Errorf("%d alerts of one lock", n)
				}
			})
		})
	}
}

func TestOperatorCutsBySelector(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		b := w.attach(policy.Facts{SessionID: "B1", UserID: user2, Browser: true})
		f, other, g := w.open(s, w.app), w.open(s, w.two), w.open(b, w.app)
		if n := w.Cut(Selector{}, reason.CutByOperator); n != 0 {
			t.Errorf("an empty selector cut %d", n)
		}
		if n := w.Cut(Selector{UserID: user1, AppID: app1}, reason.CutByOperator); n != 1 {
			t.Errorf("cut %d, want 1", n)
		}
		wantCut(t, f, reason.CutByOperator)
		wantLive(t, other)
		if i := w.Sessions(); len(i) != 2 || i[1].ID != "S1" || i[1].Leases != 1 || i[1].Apps[app2] != 1 || i[1].Kinds["websocket"] != 1 {
			t.Errorf("sessions %+v", i)
		}
		if n := w.Cut(Selector{DeviceID: device1}, reason.CutByOperator); n != 1 {
			t.Errorf("cut %d, want 1", n)
		}
		wantCut(t, other, reason.CutByOperator)
		wantLive(t, g)
		w.attachRefused(w.facts(), reason.SessionRevoked)
	})
}

func TestStepUpReplacesFactsAndAnOlderCookieDoesNot(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		w.in.Apps[0].Level = 2
		w.apply()
		b := policy.Facts{SessionID: "B1", UserID: user2, Browser: true, Level: 1, AuthTime: time.Now()}
		s := w.attach(b)
		w.refused(s, w.app, reason.PolicyLevel)
		up := b
		up.Level, up.AuthTime = 2, b.AuthTime.Add(time.Minute)
		if w.attach(up) != s {
			t.Error("a step-up made another session")
		}
		f := w.open(s, w.app)
		w.attach(b)
		wantLive(t, f)
		down := up
		down.Level, down.AuthTime = 1, up.AuthTime.Add(time.Minute)
		w.attach(down)
		wantCut(t, f, reason.PolicyLevel)
		down.UserID = user1
		w.attachRefused(down, reason.UserMismatch)
	})
}

func TestIdleSessionsEndBusyOnesStay(t *testing.T) {
	bubble(t, Config{MaxSessions: 3}, func(w *world) {
		s := w.attach(w.facts())
		f := w.open(s, w.app)
		b := policy.Facts{SessionID: "B1", UserID: user2, Browser: true}
		idle := w.attach(b)
		time.Sleep(16 * time.Minute)
		synctest.Wait()
		if idle.Reason() != reason.IdleTimeout {
			t.Errorf("idle session: %v", idle.Reason())
		}
		wantLive(t, f)
		if s.Reason() != reason.OK {
			t.Errorf("busy session: %v", s.Reason())
		}
		if w.attach(b) == idle {
			t.Error("an ended session came back")
		}
		for i := range 2 { // the limit: one is free
			b.SessionID = ids("B", i)
			_, why := w.Attach(b)
			if want := []reason.Reason{reason.OK, reason.SessionLimit}[i]; why != want {
				t.Errorf("session %d: %v, want %v", i+3, why, want)
			}
		}
	})
}

func TestRefusedAgainAndAgainRaisesAnAlert(t *testing.T) {
	bubble(t, Config{}, func(w *world) {
		s := w.attach(w.facts())
		for range 30 {
			w.refused(s, w.App("APP00000099"), reason.AppUnknown)
		}
		if n := w.rec.count(alert.AccessRefused); n != 1 {
			t.Errorf("%d alerts 1.001, want 1 a minute", n)
		}
	})
}

func TestWallClockJumpIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		jump := time.Duration(0)
		w := newWorld(t, Config{Now: func() time.Time { return time.Now().Add(jump) }})
		w.in.Grants[1] = row(user2, policy.BrowserDevice, "TOKENB", time.Hour, app1)
		w.apply()
		f := w.open(w.attach(policy.Facts{SessionID: "B1", UserID: user2, Browser: true}), w.app)
		jump = 2 * time.Hour
		ctx, done := t.Context(), make(chan struct{})
		go func() { w.Run(ctx); close(done) }()
		t.Cleanup(func() { <-done })
		time.Sleep(time.Second)
		synctest.Wait()
		wantCut(t, f, reason.GrantExpired)
	})
}
