package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// The reconnect schedule: 0.2 s to 30 s, doubling, jittered; no alert storm;
// back within one attempt when the gateway is.
func TestReconnectSchedule(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		down := errors.New("connection refused")
		r.dialer.set("gw1:443", down)
		r.dialer.set("gw2:443", down)
		r.login()
		time.Sleep(5 * time.Minute)
		var tries []time.Time
		for _, d := range r.dialer.allDials() {
			if d.addr == "gw1:443" {
				tries = append(tries, d.at)
			}
		}
		most := 400 * time.Millisecond
		for i := 1; i < len(tries); i++ {
			gap := tries[i].Sub(tries[i-1])
			if gap < most/2 || gap > most {
				t.Errorf("gap %d is %v, want %v to %v", i, gap, most/2, most)
			}
			most = min(2*most, 30*time.Second)
		}
		if len(tries) < 14 || len(tries) > 28 {
			t.Errorf("%d attempts in 5 minutes", len(tries))
		}
		if n := len(r.link.alerts(alert.TunnelFault)); n < 1 || n > 6 {
			t.Errorf("%d alerts of the tunnel in 5 minutes, want the first and one a minute at most", n)
		}
		if s := r.a.Status(); s.State != Connecting || !strings.Contains(s.Fault, "connection refused") {
			t.Errorf("status %+v", s)
		}
		r.dialer.set("gw2:443", nil)
		time.Sleep(30*time.Second + time.Millisecond)
		synctest.Wait()
		if s := r.a.Status(); s.State != Ready || s.Gateway != "GW000000002" || s.Fault != "" {
			t.Errorf("after the gateway is back: %+v", s)
		}
	})
}

func TestReconnectsAreSpread(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 50 {
		var b Backoff
		seen[b.Next(errors.New("gone"))] = true
	}
	if len(seen) < 40 {
		t.Errorf("50 agents draw only %d different first waits", len(seen))
	}
}

// Ten thousand agents whose gateway is down for a while: everybody asks again
// within 2.5 s of its return, and no tenth of a second gets more than a tenth of
// them. A gateway that is there and does not answer in time is asked ever later.
func TestAgentsReturnSoonAndNotAtOnce(t *testing.T) {
	const agents, slot = 10_000, 100 * time.Millisecond
	refused := fmt.Errorf("dial gateway: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)})
	for _, down := range []time.Duration{time.Second, 5 * time.Second, 40 * time.Second} {
		var at [26]int
		for range agents {
			var b Backoff
			when := b.Next(errors.New("tunnel ended"))
			for when < down {
				when += b.Next(refused)
			}
			if late := when - down; late > closedMost {
				t.Fatalf("down for %v: an agent comes %v after the return", down, late)
			} else {
				at[late/slot]++
			}
		}
		if most := slices.Max(at[:]); most > agents/10 {
			t.Errorf("down for %v: %d of %d agents in one %v", down, most, agents, slot)
		}
	}
	var b Backoff
	for range 20 {
		b.Next(context.DeadlineExceeded)
	}
	if d := b.Next(context.DeadlineExceeded); d < retryMost/2 {
		t.Errorf("a gateway that does not answer is asked again after %v", d)
	}
	if d := b.Next(refused); d > closedMost {
		t.Errorf("one that was restarted then, after %v", d)
	}
	for range closedTries {
		b.Next(refused)
	}
	if d := b.Next(refused); d < retryMost/2 {
		t.Errorf("a port that stays closed is asked again after %v", d)
	}
}

func TestTunnelFallsOverAndFollowsTheList(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		if g := r.a.Status().Gateway; g != "GW000000001" {
			t.Fatalf("gateway %q, want the first of the list", g)
		}
		time.Sleep(time.Minute)
		r.dialer.set("gw1:443", errors.New("gone"))
		r.dialer.last().fail(errors.New("peer reset"))
		time.Sleep(400*time.Millisecond + 1)
		synctest.Wait()
		if s := r.a.Status(); s.State != Ready || s.Gateway != "GW000000002" {
			t.Errorf("0.4 s after the loss: %+v", s)
		}
		if len(r.link.alerts(alert.TunnelFault)) != 1 {
			t.Errorf("alerts %v, want one of the tunnel", r.link.allRaised())
		}
		// The list withdraws every gateway, then gives the first one back.
		none := resources(row("APP00000001", "10.0.0.5", 5432))
		none.Gateways = nil
		r.link.ev.Resources(none)
		synctest.Wait()
		_, _, err := r.a.waitTunnel(t.Context())
		if s := r.a.Status(); s.Gateway != "" || err == nil || !strings.Contains(err.Error(), "names no gateway") {
			t.Errorf("without gateways: %+v, %v", s, err)
		}
		r.dialer.set("gw1:443", nil)
		rs := resources(row("APP00000001", "10.0.0.5", 5432))
		rs.Gateways = rs.Gateways[:1]
		r.link.ev.Resources(rs)
		synctest.Wait()
		if g := r.a.Status().Gateway; g != "GW000000001" {
			t.Errorf("gateway %q after the other was withdrawn", g)
		}
	})
}

// 24 hours with a new token every 10 minutes: one tunnel, no gap of 60 s
// between proofs (Q25), each new token at once.
func TestGCR002_M81_RenewalsKeepOneTunnelFor24Hours(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		tun := r.dialer.last()
		for i := range 24 * 6 {
			time.Sleep(10 * time.Minute)
			tok := ctlclient.Token{UserID: testUser, AuthToken: fmt.Sprintf("token%06d", i), Expires: time.Now().Add(15 * time.Minute)}
			r.link.ev.Token(tok)
			synctest.Wait()
			last := tun.sentRenewals()[len(tun.sentRenewals())-1]
			if last.m.AuthToken != tok.AuthToken || !last.at.Equal(time.Now()) {
				t.Fatalf("token %d is not renewed at once: %+v", i, last)
			}
		}
		if n := len(r.dialer.allDials()); n != 1 {
			t.Errorf("%d dials in 24 h, want 1", n)
		}
		rs := tun.sentRenewals()
		for i := 1; i < len(rs); i++ {
			if gap := rs[i].at.Sub(rs[i-1].at); gap > 55*time.Second {
				t.Fatalf("gap of %v before renewal %d", gap, i)
			}
			if rs[i].m.UpdateTime < rs[i-1].m.UpdateTime {
				t.Fatalf("updateTime went back at %d", i)
			}
		}
		t.Logf("%d renewals", len(rs))
	})
}

// A tunnel whose packets vanish: the identity is proved by another within 3 s,
// which takes its place. One that is only slow is kept.
func TestGCR002_M81_RenewalDoesNotWaitForADeadTunnel(t *testing.T) {
	for name, c := range map[string]struct {
		slow  time.Duration
		taken bool
	}{"dead": {time.Hour, true}, "slow": {2 * time.Second, false}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *rig) {
				r.login()
				synctest.Wait()
				old := r.dialer.last()
				old.mu.Lock()
				old.slow = c.slow
				old.mu.Unlock()
				began := time.Now()
				r.link.ev.Token(ctlclient.Token{UserID: testUser, AuthToken: "token000001", Expires: time.Now().Add(time.Hour)})
				time.Sleep(time.Second)
				dials := r.dialer.allDials()
				if last := dials[len(dials)-1]; len(dials) != 2 || last.hello.AuthToken != "token000001" || last.at.Sub(began) > time.Second {
					t.Fatalf("after 1 s without a reply: %d dials, the last %+v; want a second one with the new token", len(dials), last)
				}
				time.Sleep(3 * time.Second)
				closed := false
				select {
				case <-old.Done():
					closed = true
				default:
				}
				if st := r.a.Status(); closed != c.taken || st.Gateway == "" {
					t.Errorf("old tunnel closed: %v, want %v; status %+v", closed, c.taken, st)
				}
				if n := len(r.dialer.allDials()); n != 2 {
					t.Errorf("%d dials, want 2", n)
				}
			})
		})
	}
}

func TestARefusedRenewalMakesTheTunnelAnew(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		old := r.dialer.last()
		old.mu.Lock()
		old.renewErr = &carrier.RefusedError{Reason: reason.TokenUnknown, Result: reason.TokenUnknown.Result()}
		old.mu.Unlock()
		time.Sleep(56 * time.Second)
		if r.dialer.last() == old {
			t.Error("the tunnel was kept after its renewal was refused")
		}
		select {
		case <-old.Done():
		default:
			t.Error("the old tunnel was not closed")
		}
	})
}

// The gateway has lost its control center when the user signs in again: the
// healthy tunnel stands on the old token until the gateway knows the new one.
func TestATokenThatTheGatewayDoesNotKnowYetKeepsTheTunnel(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		r.dialer.open = func(context.Context, string, *wire.AccessRequest) (net.Conn, error) { return ours, nil }
		r.login()
		synctest.Wait()
		tun := r.dialer.last()
		old := r.link.token.AuthToken
		knows := func(tokens ...string) {
			tun.mu.Lock()
			tun.knows = tokens
			tun.mu.Unlock()
		}
		knows(old)
		r.link.token.AuthToken = "bbbbbbbbbb2"
		began := time.Now()
		r.login()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if r.dialer.last() != tun || r.a.Status().State != Ready {
			t.Fatalf("the tunnel was given up: %+v", r.a.Status())
		}
		f, err := r.a.open(t.Context(), nil, func(rt *routes) (*Resource, reason.Reason) { return rt.list[0], reason.OK })
		if err != nil {
			t.Fatal(err)
		}
		r.a.drop(f)
		if got := tun.requests()[0].AuthToken; got != old {
			t.Errorf("Table 12 has %q, want the token that the gateway knows", got)
		}
		var lastOld, lastTry time.Time
		tries, first := 0, 0
		var newest string
		for _, x := range tun.sentRenewals() {
			if x.m.UpdateTime <= newest {
				t.Errorf("updateTime %s after %s: a gateway would ignore it", x.m.UpdateTime, newest)
			}
			newest = x.m.UpdateTime
			if x.m.AuthToken == old {
				if !lastOld.IsZero() && x.at.Sub(lastOld) > 55*time.Second {
					t.Errorf("%v between two proofs", x.at.Sub(lastOld))
				}
				lastOld = x.at
				continue
			}
			if gap := x.at.Sub(lastTry); !lastTry.IsZero() && (gap < time.Second || gap > 12*time.Second) {
				t.Errorf("%v between two tries, want 1 s to 12 s", gap)
			}
			if lastTry = x.at; x.at.Sub(began) < time.Minute {
				first++
			}
			tries++
		}
		if tries < 25 || first >= 10 {
			t.Errorf("%d tries in 5 minutes, %d in the first: want at least 25, and fewer than the 10 wrong tokens of a minute", tries, first)
		}
		knows(old, "bbbbbbbbbb2") // the one that was replaced counts for a minute
		time.Sleep(12*time.Second + time.Millisecond)
		synctest.Wait()
		r.a.mu.Lock()
		token := r.a.tunnel.token
		r.a.mu.Unlock()
		if r.dialer.last() != tun || token != "bbbbbbbbbb2" {
			t.Errorf("12 s after the gateway learned it the tunnel has %q", token)
		}
	})
}

// When the old token is over, there is nothing to stand on.
func TestATokenThatIsNotKnownWhenTheOldOneEndsMakesTheTunnelAnew(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.link.token.Expires = time.Now().Add(2 * time.Minute)
		r.login()
		synctest.Wait()
		tun := r.dialer.last()
		tun.mu.Lock()
		tun.knows = []string{r.link.token.AuthToken}
		tun.mu.Unlock()
		r.link.token = ctlclient.Token{UserID: testUser, AuthToken: "bbbbbbbbbb2", Expires: time.Now().Add(time.Hour)}
		r.login()
		time.Sleep(119 * time.Second)
		synctest.Wait()
		if r.dialer.last() != tun {
			t.Error("the tunnel was given up while its token counted")
		}
		time.Sleep(14 * time.Second)
		synctest.Wait()
		if r.dialer.last() == tun {
			t.Error("the tunnel was kept past the end of its token")
		}
	})
}

// Half an hour without a tunnel: an identity report is made each minute all the
// same, and when there is a tunnel again the gateway gets each once, in order
// and with its own time, beside the live ones. What had no reply comes again on
// the next tunnel.
func TestGCR002_M74_M76_ReportsOfATimeWithoutATunnelAreSentLater(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *rig) {
		r.login()
		synctest.Wait()
		began := time.Now()
		r.dialer.set("gw1:443", errors.New("unreachable"))
		r.dialer.set("gw2:443", errors.New("unreachable"))
		r.dialer.last().fail(errors.New("the network is gone"))
		time.Sleep(30 * time.Minute)
		r.dialer.set("gw1:443", nil)
		time.Sleep(40 * time.Second)
		back := time.Now()
		synctest.Wait()
		var late []time.Time
		for _, x := range r.dialer.last().sentRenewals() {
			at, err := wire.ParseTime(x.m.UpdateTime)
			if err != nil {
				t.Fatal(err)
			}
			if at.Before(back.Add(-time.Minute)) {
				late = append(late, at)
			}
		}
		if len(late) < 30 {
			t.Fatalf("%d reports of half an hour came, want one a minute at least", len(late))
		}
		last := began
		for i, at := range late {
			if gap := at.Sub(last); gap > 56*time.Second || gap < 0 {
				t.Errorf("report %d is %v behind the one before", i, gap)
			}
			last = at
		}
		if st := r.a.kept.Stats()[ctlclient.ClassIdentity]; st.Pending != 0 || st.Dropped != 0 {
			t.Errorf("%d reports wait, %d were dropped", st.Pending, st.Dropped)
		}

		// Another outage, and a tunnel that dies before it has answered anything.
		r.dialer.set("gw1:443", errors.New("unreachable"))
		r.dialer.last().fail(errors.New("the network is gone"))
		time.Sleep(10 * time.Minute)
		kept := r.a.kept.Stats()[ctlclient.ClassIdentity].Pending
		r.dialer.mu.Lock()
		r.dialer.slow = time.Hour
		r.dialer.mu.Unlock()
		r.dialer.set("gw1:443", nil)
		time.Sleep(35 * time.Second)
		dead := r.dialer.last()
		r.dialer.mu.Lock()
		r.dialer.slow = 0
		r.dialer.mu.Unlock()
		dead.fail(errors.New("the network is gone"))
		time.Sleep(time.Minute)
		if n := len(dead.sentRenewals()); n != 0 {
			t.Fatalf("the dead tunnel has answered %d", n)
		}
		n := 0
		for _, x := range r.dialer.last().sentRenewals() {
			if at, err := wire.ParseTime(x.m.UpdateTime); err == nil && at.Before(x.at.Add(-2*time.Second)) {
				n++
			}
		}
		if n < kept || kept < 10 {
			t.Errorf("%d reports came again, %d were kept", n, kept)
		}
	})
}
