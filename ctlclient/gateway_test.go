package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// site is a center with lists, and a gateway's link to it, in a bubble.
func site(t *testing.T, f func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.center(w.gateway, gwID)
		c.setLists(1, w.grants(1, grantRow(1, "APP00000001")), 1, w.policies(1, nil, policyRow(1, "level", "1")))
		stop := c.start()
		defer stop()
		e := &enforcer{}
		f(t, w, c, e, w.gatewayConfig(c, e))
	})
}

func newGateway(t testing.TB, cfg GatewayConfig) *Gateway {
	t.Helper()
	g, err := NewGateway(cfg)
	must(t, err)
	return g
}

// maxGap returns the longest pause between two arrivals, from start to end.
func maxGap(start, end time.Time, got []received) (gap time.Duration) {
	last := start
	for _, g := range got {
		gap = max(gap, g.at.Sub(last))
		last = g.at
	}
	return max(gap, end.Sub(last))
}

func TestGCR002_M47_M63_ReportsAtLeastEvery60s(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		g := newGateway(t, cfg)
		start := time.Now()
		stop := run(t, g.Run)
		time.Sleep(30 * time.Minute)
		// The stream breaks often: every reconnect proves the device and reports
		// its status at once.
		var breaks []time.Time
		for range 20 {
			breaks = append(breaks, time.Now())
			c.mu.Lock()
			for ch := range c.streams {
				ch <- ""
			}
			c.mu.Unlock()
			time.Sleep(47 * time.Second)
		}
		end := time.Now()
		stop()
		for _, kind := range []string{"T4", "T10"} {
			if gap := maxGap(start, end, c.of(kind)); gap > 60*time.Second {
				t.Errorf("%s: a gap of %v, at most 60s", kind, gap)
			}
		}
		t10 := c.of("T10")
		for _, at := range breaks {
			if !slices.ContainsFunc(t10, func(g received) bool { return !g.at.Before(at) && g.at.Sub(at) < 5*time.Second }) {
				t.Errorf("no T10 within 5 s of the break at %v", at.Sub(start))
			}
		}
		first, last := string(t10[0].ext[wire.ExtState]), string(t10[len(t10)-1].ext[wire.ExtState])
		if first != `"start"` || last != `"stop"` || t10[0].at.Sub(start) > 3*time.Second {
			t.Errorf("first T10 says %s after %v, the last %s, want start and stop", first, t10[0].at.Sub(start), last)
		}
		m, err := wire.Decode[wire.GatewayStatus](t10[1].body, wire.Strict)
		if err != nil || m.CPUUsage != "001.00%" || m.DiskUsage != "003.00%" || string(t10[1].ext[wire.ExtListVersion]) != `"1"` {
			t.Errorf("T10: %+v, %v, extensions %s", m, err, t10[1].ext)
		}
		if n := len(c.of("T4")); n > 90 {
			t.Errorf("%d T4 in %v: that is a flood", n, end.Sub(start))
		}
	})
}

func TestGCR002_M49_ReportsOfAnOutageComeWithTheirOwnTime(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		g := newGateway(t, cfg)
		stop := run(t, g.Run)
		time.Sleep(time.Minute)
		c.setDead(true)
		c.mu.Lock()
		for ch := range c.streams {
			ch <- ""
		}
		c.mu.Unlock()
		cut := time.Now()
		time.Sleep(2 * time.Hour)
		g.Raise(alert.Alert{Code: alert.AppDown, AppID: "APP00000001"})
		raised := time.Now()
		time.Sleep(2 * time.Hour)
		if s := g.Status(); s.Connected || s.LastError == "" || s.Outbox[ClassStatus].Pending < 240 {
			t.Errorf("during the outage: %+v", s)
		}
		c.setDead(false)
		back := time.Now()
		time.Sleep(75 * time.Second) // the longest pause of the back-off
		stop()

		statuses, late := 0, 0
		for _, r := range c.of("T10") {
			m, err := wire.Decode[wire.GatewayStatus](r.body, wire.Strict)
			must(t, err)
			at, err := wire.ParseTime(m.Timestamp)
			must(t, err)
			if at.After(cut) && at.Before(back) {
				statuses++
				if r.at.Before(back) {
					t.Error("a status arrived over a dead link")
				}
			}
			if r.at.Sub(at) > 3*time.Second {
				late++
			}
		}
		if statuses < 240 {
			t.Errorf("%d statuses of four hours arrived, want at least 240", statuses)
		}
		identities := 0
		for _, r := range c.of("T4") {
			m, err := wire.Decode[wire.DeviceIdentity](r.body, wire.Strict)
			must(t, err)
			if at, _ := wire.ParseTime(m.Timestamp); at.After(cut) && at.Before(back) {
				identities++
			}
		}
		if identities < 240 {
			t.Errorf("%d identity reports of four hours arrived, want at least 240", identities)
		}
		found := false
		for _, r := range c.of("T11") {
			m, err := wire.Decode[wire.GatewayAlert](r.body, wire.Strict)
			must(t, err)
			found = found || m.ExceptionAlertType == string(alert.AppDown) && m.Timestamp == wire.FormatTime(raised)
		}
		if !found {
			t.Error("the alert of the outage did not arrive with its own time")
		}
		for _, s := range g.Status().Outbox {
			if s.Pending != 0 || s.Dropped != 0 {
				t.Errorf("outbox after the replay: %+v", s)
			}
		}
	})
}

func TestGCR002_M66_AlertArrivesAtOnceAlsoOverADeadPath(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(10 * time.Second)
		raised := time.Now()
		g.Raise(alert.Alert{Code: alert.AppDown})
		time.Sleep(3 * time.Second)
		if got := c.of("T11"); len(got) != 1 || got[0].at.Sub(raised) > time.Second {
			t.Fatalf("got %d alerts %v", len(got), got)
		}
		// From now on the kept connection swallows what is sent.
		var swallowed atomic.Int32
		c.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/ztna/v1/gateway/alerts" && r.Header.Get("Connection") != "close" {
				swallowed.Add(1)
				io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return true
			}
			return false
		})
		raised = time.Now()
		g.Raise(alert.Alert{Code: alert.AppBack})
		time.Sleep(3 * time.Second)
		got := c.of("T11")
		if len(got) != 2 || got[1].at.Sub(raised) > time.Second || swallowed.Load() < 1 {
			t.Errorf("%d alerts, %d swallowed, the last after %v: want it within 1s by a fresh connection", len(got), swallowed.Load(), got[len(got)-1].at.Sub(raised))
		}
		if s := g.Status(); !s.Connected || s.Outbox[ClassAlert].Pending != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestR20_AHalfBrokenCenterIsMetWithPauses(t *testing.T) {
	faults := map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"slow": func(_ http.ResponseWriter, r *http.Request) bool {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return true
		},
		"status500": func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true },
		"garbage":   func(w http.ResponseWriter, _ *http.Request) bool { w.Write([]byte("<html>hello")); return true },
		"wrongJSON": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Write([]byte(`{"code":200,"result":"OK"}`))
			return true
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://control.test:8443/ztna/v1/gateway/elsewhere", http.StatusTemporaryRedirect)
			return true
		},
		"garbageLists": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/lists/") {
				w.Write([]byte("[]"))
			}
			return strings.Contains(r.URL.Path, "/lists/")
		},
		"garbageEvents": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/events") {
				w.Write([]byte("no stream"))
			}
			return strings.HasSuffix(r.URL.Path, "/events")
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
				c.setFault(fault)
				g := newGateway(t, cfg)
				start := time.Now()
				defer run(t, g.Run)()
				time.Sleep(20 * time.Minute)
				c.mu.Lock()
				n, last := len(c.requests), c.requests[len(c.requests)-1]
				var early int
				for _, at := range c.requests {
					if at.Sub(start) < 65*time.Second {
						early++
					}
				}
				c.mu.Unlock()
				// A session whose stream fails is up for some seconds of each minute:
				// the error is what stands between two of them.
				s := g.Status()
				for end := time.Now().Add(10 * time.Second); s.Connected && time.Now().Before(end); s = g.Status() {
					time.Sleep(100 * time.Millisecond)
				}
				// 1+2+4+...+60 s, then one try a minute; a try is at most 8 requests,
				// and 4 more for each of the five times that a stream is opened.
				most := 8 * 35
				if name == "garbageEvents" {
					most = 28 * 35
				}
				if n > most || early < 4 || time.Since(last) > 85*time.Second {
					t.Errorf("%d requests in 20 minutes, %d in the first, the last %v ago", n, early, time.Since(last))
				}
				if s.Failures < 15 || s.Failures > 35 || s.LastError == "" || e.version != 0 && name != "garbageEvents" {
					t.Errorf("status %+v, list version %d", s, e.version)
				}
				if lost := cfg.Alerts.(*alerts).count(alert.ControlLost); lost < 1 {
					t.Errorf("%d alerts that the control center is lost", lost)
				}
				c.setFault(nil)
				time.Sleep(75 * time.Second)
				if s := g.Status(); !s.Connected || !s.Push || s.GrantsVersion != 1 || s.PolicyVersion != 1 {
					t.Errorf("after the repair: %+v", s)
				}
			})
		})
	}
}

func TestGCR002_M52_ListsOnlyAfterTheDeviceIsProved(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		c.refuse = func(kind string) reason.Reason { return map[string]reason.Reason{"T4": reason.DeviceMismatch}[kind] }
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(2 * time.Minute)
		if s := g.Status(); s.Connected || !strings.Contains(s.LastError, "DEVICE_MISMATCH") {
			t.Errorf("status shows %q, want the reason (M51)", s.LastError)
		}
		c.mu.Lock()
		pulls, streams := c.pulls, len(c.streams)
		c.refuse = nil
		c.mu.Unlock()
		if pulls != 0 || streams != 0 {
			t.Errorf("%d pulls and %d streams before Table 5 said 200", pulls, streams)
		}
		time.Sleep(75 * time.Second)
		if got := e.calls(); got != "policies 1, grants 1" {
			t.Errorf("calls %q, want policies before grants", got)
		}
		if got := c.of(wire.TypeAck); len(got) != 2 {
			t.Errorf("%d acknowledgements, want 2", len(got))
		}
	})
}

func TestPullsAreConditionalUntilHalfOfALifeIsOver(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(25 * time.Minute)
		c.mu.Lock()
		pulls, notMod := c.pulls, c.notMod
		c.mu.Unlock()
		if pulls != 2 || notMod < 40 {
			t.Errorf("%d whole lists and %d unchanged, want 2 and at least 40", pulls, notMod)
		}
		fresh := w.grants(1, grantRow(1, "APP00000001"))
		c.setLists(1, fresh, 1, c.policies)
		time.Sleep(10 * time.Minute)
		if left := time.Until(g.Status().GrantsNotAfter); left < 45*time.Minute {
			t.Errorf("the grants still end in %v: a new life was not fetched", left)
		}
		// A list that is changed without a new version is refused.
		c.setLists(1, w.grants(1, grantRow(2, "APP00000001")), 1, c.policies)
		time.Sleep(40 * time.Minute)
		if e.users() != "USR00000001" || g.Status().Refused == 0 || cfg.Alerts.(*alerts).count(alert.ListRefused) == 0 {
			t.Errorf("users %s, refused %d", e.users(), g.Status().Refused)
		}
	})
}

func ackOf(t *testing.T, r received) string {
	t.Helper()
	a, err := wire.DecodeExtension[wire.Ack](r.body)
	must(t, err)
	return fmt.Sprintf("%s %d %v", a.List, a.Version, a.Applied)
}

func TestGCR002_M57_DeltasNarrowFirstAndGapsPull(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		c.setLists(5, w.grants(5, grantRow(1), grantRow(2), grantRow(3)), 1, c.policies)
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		pair := func(n int) []wire.PairRef {
			return []wire.PairRef{{UserID: fmt.Sprintf("USR%08d", n), DeviceID: fmt.Sprintf("DEV%08d", n)}}
		}
		var row wire.Grant
		must(t, json.Unmarshal([]byte(grantRow(4)), &row))
		step := func(name string, id string, line []byte, calls, users, ack string) {
			t.Helper()
			e.mu.Lock()
			e.log = nil
			e.mu.Unlock()
			acked := len(c.of(wire.TypeAck))
			pushed := time.Now()
			c.push(id, "delta", line)
			synctest.Wait()
			if time.Since(pushed) != 0 {
				t.Errorf("%s: took %v", name, time.Since(pushed))
			}
			if e.calls() != calls || e.users() != users {
				t.Errorf("%s: calls %q users %q, want %q and %q", name, e.calls(), e.users(), calls, users)
			}
			var got []string
			for _, r := range c.of(wire.TypeAck)[acked:] {
				got = append(got, ackOf(t, r))
			}
			if strings.Join(got, ", ") != ack {
				t.Errorf("%s: acknowledged %q, want %q", name, got, ack)
			}
		}
		u := func(ns ...int) string {
			var out []string
			for _, n := range ns {
				out = append(out, fmt.Sprintf("USR%08d", n))
			}
			return strings.Join(out, " ")
		}
		step("follows", "6", w.delta(wire.Delta{From: 5, To: 6, Remove: pair(1), Grants: []wire.Grant{row}}), "delta 5-6", u(2, 3, 4), "grants 6 true")
		step("a part of the same change", "6", w.delta(wire.Delta{From: 5, To: 6, Remove: pair(2)}), "delta 6-6", u(3, 4), "grants 6 true")
		step("seen before", "6", w.delta(wire.Delta{From: 3, To: 4, Remove: pair(3)}), "", u(3, 4), "grants 4 true")
		step("revocations of a new stream", "6", w.delta(wire.Delta{From: 6, To: 6, Revoke: []wire.Revocation{{SessionID: "s"}}}), "delta 6-6", u(3, 4), "grants 6 true")

		// Version 8 follows 7, which never came: the removal holds before the
		// full list, which is slow.
		release := make(chan struct{})
		c.setLists(8, w.grants(8, grantRow(4), grantRow(9)), 1, c.policies)
		c.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/lists/grants") {
				<-release
			}
			return false
		})
		step("gap", "8", w.delta(wire.Delta{From: 7, To: 8, Remove: pair(3), Grants: []wire.Grant{row}}), "narrow 7-8", u(4), "")
		close(release)
		synctest.Wait()
		if e.users() != u(4, 9) || g.Status().GrantsVersion != 8 {
			t.Errorf("after the pull: users %s, version %d", e.users(), g.Status().GrantsVersion)
		}
		if d := e.deltas[len(e.deltas)-1]; len(d.Rows) != 0 {
			t.Errorf("a delta that did not follow widened: %+v", d)
		}

		// A list that is older than a delta on the way is not put in force.
		c.setLists(7, w.grants(7, grantRow(1)), 1, c.policies)
		g.Sync()
		time.Sleep(time.Second)
		if e.users() != u(4, 9) || g.Status().LastRefusal == "" {
			t.Errorf("an older list: users %s, %+v", e.users(), g.Status())
		}

		// The stream resumes where it was.
		c.mu.Lock()
		for ch := range c.streams {
			ch <- ""
		}
		c.mu.Unlock()
		time.Sleep(5 * time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		if got := fmt.Sprint(c.lastIDs); got != "[ 8]" {
			t.Errorf("Last-Event-ID %v, want none and then 8", got)
		}
	})
}

func TestHandlerErrorIsAcknowledgedAsNotApplied(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		e.fail = func(what string) error {
			if what == "grants 1" {
				return errors.New("no")
			}
			return nil
		}
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		var got []string
		for _, r := range c.of(wire.TypeAck) {
			got = append(got, ackOf(t, r))
		}
		if strings.Join(got, ", ") != "policies 1 true, grants 1 false" || g.Status().GrantsVersion != 0 {
			t.Errorf("acknowledged %v, version %d", got, g.Status().GrantsVersion)
		}
	})
}

// A policy list that was made before a lock and arrives after it must not take
// the lock away.
func TestALockOutlivesAListThatWasOnItsWay(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		hold, later, asked := make(chan struct{}), make(chan struct{}), make(chan struct{}, 8)
		old := w.policies(2, []wire.LockRow{{Kind: "user", ID: "USR00000007"}})
		c.setFault(func(rw http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/lists/policies") {
				asked <- struct{}{}
				if len(asked) > 1 {
					<-later // made after the lock: it has it
					return false
				}
				<-hold
				rw.Write(old)
				return true
			}
			return false
		})
		g.Sync()
		synctest.Wait()
		defer close(later)
		c.push("2", "delta", w.delta(wire.Delta{From: 1, To: 2, Locks: []wire.LockRow{{Kind: "user", ID: "USR00000001"}}, Unlocks: []wire.LockRef{{Kind: "user", ID: "USR00000007"}}}))
		synctest.Wait()
		close(hold)
		synctest.Wait()
		e.mu.Lock()
		locks := fmt.Sprint(e.policies.Locks)
		e.mu.Unlock()
		if want := fmt.Sprint([]wire.LockRow{{Kind: "user", ID: "USR00000001"}}); locks != want {
			t.Errorf("locks %s, want %s", locks, want)
		}
	})
}

func TestR1_RestartServesFromTheStoredLists(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		c.setLists(5, w.grants(5, grantRow(1), grantRow(2), grantRow(3)), 2, w.policies(2, nil, policyRow(1, "level", "1")))
		stop := run(t, newGateway(t, cfg).Run)
		time.Sleep(5 * time.Second)
		if _, err := NewGateway(cfg); err == nil {
			t.Error("a second link on the same state folder was made (R19)")
		}
		c.push("6", "delta", w.delta(wire.Delta{From: 5, To: 6, Remove: []wire.PairRef{{UserID: "USR00000001", DeviceID: "DEV00000001"}}}))
		c.push("7", "delta", w.delta(wire.Delta{From: 6, To: 7, Revoke: []wire.Revocation{{UserID: "USR00000002", IssuedBefore: "2026-01-01T00:00:00Z"}}, Locks: []wire.LockRow{{Kind: "app", ID: "APP00000009"}}}))
		c.push("9", "delta", w.delta(wire.Delta{From: 8, To: 9, Remove: []wire.PairRef{{UserID: "USR00000003", DeviceID: "DEV00000003"}}}))
		time.Sleep(time.Second)
		stop()
		before := e.users()

		c.setDead(true)
		restart := func() (*enforcer, *alerts, func()) {
			e, a := &enforcer{}, &alerts{}
			cfg.Handler, cfg.Alerts = e, a
			stop := run(t, newGateway(t, cfg).Run)
			synctest.Wait()
			return e, a, stop
		}
		e2, _, stop := restart()
		if got := e2.users(); got != "USR00000002" || got != before {
			t.Errorf("after the restart: %q, before %q, want only USR00000002: a removal was forgotten", got, before)
		}
		if got := e2.calls(); got != "policies 2, grants 7, narrow 0-7" {
			t.Errorf("calls %q", got)
		}
		if d := e2.deltas[0]; len(d.Revoke) != 1 || len(d.Locks) != 1 {
			t.Errorf("locks and revocations after the restart: %+v", d)
		}
		// S4: the link is back with an older list than was ever seen.
		c.setLists(8, w.grants(8, grantRow(1)), 2, c.policies)
		c.setDead(false)
		time.Sleep(75 * time.Second)
		if e2.users() != "USR00000002" {
			t.Errorf("an older list after the restart: users %s", e2.users())
		}
		c.setLists(9, w.grants(9, grantRow(2), grantRow(4)), 2, c.policies)
		time.Sleep(75 * time.Second)
		if e2.users() != "USR00000002 USR00000004" {
			t.Errorf("version 9: users %s", e2.users())
		}
		stop()
		c.setDead(true)
		e3, _, stop := restart() // the carried revocation outlived the full list
		stop()
		if len(e3.deltas) != 1 || len(e3.deltas[0].Revoke) != 1 {
			t.Errorf("after a full list: deltas %+v, calls %s", e3.deltas, e3.calls())
		}

		// R5: a changed file is not used; nothing is granted.
		files, _ := filepath.Glob(filepath.Join(cfg.StateDir, "grants-*"))
		if len(files) != 1 {
			t.Fatalf("stored grants: %v, want one file", files)
		}
		raw, err := os.ReadFile(files[0])
		must(t, err)
		raw[len(raw)/2] ^= 1
		must(t, os.WriteFile(files[0], raw, 0o600))
		e4, a4, stop := restart()
		stop()
		if e4.version != 0 || a4.count(alert.StateAltered) != 1 {
			t.Errorf("an altered file: version %d, %d alerts", e4.version, a4.count(alert.StateAltered))
		}
		// versions.json is damaged: the floor comes from the names.
		must(t, os.WriteFile(filepath.Join(cfg.StateDir, "versions.json"), []byte("{"), 0o600))
		e5, a5, stop := restart()
		c.setLists(8, w.grants(8, grantRow(1)), 2, c.policies)
		c.setDead(false)
		time.Sleep(75 * time.Second)
		stop()
		if e5.version != 0 || a5.count(alert.StateAltered) != 1 {
			t.Errorf("damaged versions: version %d, %d alerts", e5.version, a5.count(alert.StateAltered))
		}
	})
}

func TestStoredListThatExpiredGrantsNothing(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		stop := run(t, newGateway(t, cfg).Run)
		time.Sleep(5 * time.Second)
		stop()
		c.setDead(true)
		time.Sleep(61 * time.Minute)
		e2, a := &enforcer{}, &alerts{}
		cfg.Handler, cfg.Alerts = e2, a
		run(t, newGateway(t, cfg).Run)()
		if e2.calls() != "" || a.count(alert.ListStale) == 0 {
			t.Errorf("calls %q, %d alerts", e2.calls(), a.count(alert.ListStale))
		}
	})
}

func TestQ26_SubjectsAreResolvedAndKept(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		g := newGateway(t, cfg)
		c.answer = subjectAnswer(t)
		defer run(t, g.Run)()
		time.Sleep(5 * time.Second)
		for range 3 {
			if id, why := g.Resolve(context.Background(), "https://idp", "alice@example"); id != "USR00000001" || why != reason.OK {
				t.Errorf("alice: got %q, %v", id, why)
			}
		}
		if n := len(c.of(wire.TypeSubject)); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		c.refuse = func(kind string) reason.Reason {
			return map[string]reason.Reason{wire.TypeSubject: reason.SubjectUnmapped}[kind]
		}
		if id, why := g.Resolve(context.Background(), "https://idp", "mallory"); id != "" || why != reason.SubjectUnmapped {
			t.Errorf("mallory: got %q, %v", id, why)
		}
		c.setDead(true)
		c.setFault(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true })
		time.Sleep(10 * time.Minute)
		if id, why := g.Resolve(context.Background(), "https://idp", "alice@example"); id != "USR00000001" || why != reason.OK {
			t.Errorf("alice without the control center: got %q, %v", id, why)
		}
		if id, why := g.Resolve(context.Background(), "https://idp", "bob"); id != "" || why != reason.UpstreamUnreachable {
			t.Errorf("bob without the control center: got %q, %v", id, why)
		}
	})
}

func subjectAnswer(t *testing.T) func(string, *envelope.Message) (string, []byte, extMap) {
	return func(kind string, m *envelope.Message) (string, []byte, extMap) {
		if kind != wire.TypeSubject {
			return "", nil, nil
		}
		q, err := wire.DecodeExtension[wire.SubjectQuery](m.Body)
		if err != nil || q.Subject != "alice@example" {
			t.Errorf("asked for %+v, %v", q, err)
		}
		body, err := wire.EncodeExtension(wire.SubjectReply{UserID: "USR00000001"})
		if err != nil {
			t.Error(err)
		}
		return wire.TypeSubject, body, nil
	}
}
