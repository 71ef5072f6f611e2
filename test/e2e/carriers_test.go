package e2e

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/test/testbed"
)

// notYet are the kinds of carriers that are named and not built. A kind that is
// built leaves this list, or TestGCR002_M57_EveryCarrier fails.
var notYet = map[access.Kind]bool{access.Packet: true}

// newcomer is a user with a browser and an agent of its own, both signed in.
func (w *world) newcomer(t testing.TB, name string, until time.Time) (*testbed.User, *testbed.Browser, *testbed.Agent) {
	t.Helper()
	u := w.NewUser(name)
	w.Grant(u, "browser", until, webID)
	w.Grant(u, "any", until, echoID, udpID)
	a := w.NewAgent(t, name)
	a.SignIn(u)
	return u, w.signedIn(t, u, true, "web"), a
}

// Every kind of carrier through a real socket: what is revoked ends, what
// expires ends though no control center says so, and what flowed is counted.
func TestGCR002_M57_EveryCarrier(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		world   func(testing.TB) *world
		expires bool
		want    []reason.Reason
	}{
		{"revokedTLS", worlds[overTLS], false, []reason.Reason{reason.Locked}},
		{"revokedTLCP", worlds[ownLinks], false, []reason.Reason{reason.Locked}},
		{"revokedGM", worlds[gmOnly], false, []reason.Reason{reason.Locked}},
		{"expired", func(t testing.TB) *world { return newWorld(t, nil, ownLinks) }, true, []reason.Reason{reason.GrantExpired, reason.TokenExpired, reason.RenewalMissed}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := c.world(t)
			var until time.Time
			if c.expires {
				until = time.Now().Add(18 * time.Second).Truncate(time.Second)
			}
			u, b, a := w.newcomer(t, "carrier"+c.name, until)
			o := openAll(t, w, b, a)
			end := until
			if c.expires {
				w.Control.Kill() // the gateway alone has to know
				if left := time.Until(until.Add(-model.EarlyEnd)); left < 0 {
					t.Fatalf("the control center was ended %v too late: the machine is too slow for this test", -left)
				}
			} else {
				locked := w.Lock(u, "the desk knows why")
				end = time.Now()
				if len(locked.Gateways) != 1 || !locked.Gateways[0].Applied {
					t.Errorf("the gateway has not confirmed: %+v", locked)
				}
			}
			time.Sleep(time.Until(end)) // the right counts until then, whatever else happens
			o.ends(20 * time.Second)
			driven := map[access.Kind]int{}
			kinds := map[string]access.Kind{}
			for _, k := range access.Kinds() {
				kinds[k.String()] = k
			}
			for _, r := range o.endRecords(u) {
				kind, known := kinds[r.Carrier]
				if !known {
					t.Errorf("audit names the carrier %q", r.Carrier)
					continue
				}
				driven[kind]++
				if !slices.Contains(c.want, r.Code) {
					t.Errorf("%s %s ended for %s, want one of %v", r.Carrier, r.Path, r.Result, c.want)
				}
				if r.BytesOut == 0 || r.Duration <= 0 || (kind == access.TCP || kind == access.UDP || kind == access.WebSocket) && r.BytesIn == 0 {
					t.Errorf("%s: %d bytes in, %d out in %v", r.Carrier, r.BytesIn, r.BytesOut, r.Duration)
				}
				if d := r.Time.Sub(end); d > 2*time.Second || c.expires && d < 0 {
					t.Errorf("%s %s ended %v after its right", r.Carrier, r.Path, d)
				}
				t.Logf("%-9s %s, %v after the end of the right, %d bytes in, %d out", r.Carrier, r.Result, r.Time.Sub(end).Round(time.Millisecond), r.BytesIn, r.BytesOut)
			}
			for _, f := range o.all {
				if f.err == nil {
					t.Errorf("%s: the client saw a good end", f.name)
				}
			}
			for _, k := range access.Kinds() {
				switch {
				case k == access.H3 && !w.Profile.TLS(): // QUIC is TLS
				case driven[k] == 0 && !notYet[k]:
					t.Errorf("carrier %s was not driven: drive it in openAll, or list it as not yet built", k)
				case driven[k] > 0 && notYet[k]:
					t.Errorf("carrier %s is built: it is not to be listed as not yet built", k)
				}
			}
		})
	}
}

// A tunnel over QUIC, plain and with TLCP inside, by the real programs; the race
// takes QUIC, too. And one of three connections over TLCP.
func TestGCR002_M71_M73_TunnelsOverQUIC(t *testing.T) {
	t.Parallel()
	w := worlds[ownLinks](t)
	for _, c := range []struct{ name, lines, carrier, suite string }{
		{"quic", "carrier: quic\n", "quic", "TLS_"},
		{"sealed", "carrier: quic\nseal_tunnels: true\n", "quic+tlcp", "ECDHE_SM4_GCM_SM3"},
		{"sealedtls", "carrier: tls\nseal_tunnels: true\n", "tls1.3+tlcp", "ECDHE_SM4_GCM_SM3"},
		{"auto", "carrier: auto\n", "quic", "TLS_"},
		{"several", "carrier: tlcp\nconnections: 3\n", "tlcp", "ECDHE_SM4_GCM_SM3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			u := w.NewUser("over" + c.name)
			w.Grant(u, "any", time.Time{}, echoID, udpID)
			a := w.NewAgentWith(t, "over"+c.name, c.lines)
			a.SignIn(u)
			o := &opener{t: t, ctx: t.Context(), w: w, a: a}
			conn, err := testbed.DialSOCKS(o.ctx, a.SOCKS5, w.app(echoID).Address())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			b := make([]byte, 4)
			if _, err := io.WriteString(conn, "echo"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, b); err != nil || string(b) != "echo" {
				t.Errorf("%q, %v", b, err)
			}
			s, err := a.Status()
			if err != nil {
				t.Fatal(err)
			}
			if s.Carrier != c.carrier || !strings.HasPrefix(s.Suite, c.suite) {
				t.Errorf("carrier %s, suite %s (%s), want %s and %s", s.Carrier, s.Suite, s.CarrierWhy, c.carrier, c.suite)
			}
			for end := time.Now().Add(20 * time.Second); c.name == "several" && s.Connections != 3; time.Sleep(100 * time.Millisecond) {
				if s, err = a.Status(); err != nil || time.Now().After(end) {
					t.Fatalf("%d connections, want 3; %v", s.Connections, err)
				}
			}
			start := time.Now()
			w.Lock(u, "for the test")
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Read(b); err == nil {
				t.Error("the flow goes on behind a lock")
			}
			t.Logf("lock to the client's reset: %v", time.Since(start))
		})
	}
}
