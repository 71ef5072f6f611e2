package tunnel

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// connection makes one connection of p's tunnel of that name.
func (w *world) connection(p party, name []byte, join bool) (*carrier.Client, error) {
	w.t.Helper()
	c, err := carrier.Connect(w.t.Context(), w.dial(p), carrier.ClientConfig{
		Hello: w.hello(p, p.agent), Mux: mux.Config{Window: 1 << 20},
		Identity: wire.TunnelHello{AgentID: p.agent, DeviceID: p.device, UserID: p.user, AuthToken: p.token, Tunnel: name, Join: join},
	})
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (w *world) connections(t *testing.T, p party, n int) (out []*carrier.Client) {
	t.Helper()
	name := carrier.NewTunnelName()
	for i := range n {
		c, err := w.connection(p, name, i > 0)
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		out = append(out, c)
	}
	return out
}

// tunnelOf returns what an operator sees of p's tunnels.
func (w *world) tunnelOf(p party) []Info {
	return slices.DeleteFunc(w.srv.Tunnels(), func(x Info) bool { return x.DeviceID != p.device })
}

// What dies with a connection is its flows; the tunnel and its session live with
// the others, whichever was the first, and end with the last.
func TestConnectionsOfATunnelLiveAndDie(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	all := w.connections(t, w.alice, 3)
	var flows []*mux.Flow
	for _, c := range all {
		f := w.open(c, "tcp", w.request(w.alice))
		w.echoes(f, "hello")
		flows = append(flows, f)
	}
	if x := w.tunnelOf(w.alice); len(x) != 1 || x[0].Connections != 3 || x[0].Flows != 3 {
		t.Fatalf("an operator sees %+v", x)
	}
	id := w.tunnelOf(w.alice)[0].ID
	all[0].Close()
	var re *mux.ResetError
	if _, err := flows[0].Read(make([]byte, 1)); !errors.As(err, &re) {
		t.Errorf("the flow of the lost connection: %v", err)
	}
	eventually(t, "two connections", func() bool { x := w.tunnelOf(w.alice); return len(x) == 1 && x[0].Connections == 2 })
	if x := w.tunnelOf(w.alice)[0]; x.ID != id {
		t.Errorf("session %s, was %s", x.ID, id)
	}
	w.echoes(flows[1], "still here")
	if err := all[2].Renew(t.Context(), &wire.Renewal{AuthToken: w.alice.token, UpdateTime: wire.FormatTime(w.clock.now())}); err != nil {
		t.Errorf("renewal over another connection: %v", err)
	}
	all[1].Close()
	w.echoes(flows[2], "and here")
	all[2].Close()
	eventually(t, "no tunnel", func() bool { return len(w.tunnelOf(w.alice)) == 0 })
	eventually(t, "no session", func() bool { return w.access.Stats().Sessions == 0 })
}

// Another connection proves the same device, user and token as the first, and
// finds a tunnel that lives.
func TestS1_OnlyItsOwnDeviceJoinsATunnel(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{PerDevice: 16})
	name := carrier.NewTunnelName()
	first, err := w.connection(w.alice, name, false)
	if err != nil {
		t.Fatal(err)
	}
	thief := w.alice
	thief.token = "tokenThief1"
	other := w.alice
	other.user = w.bob.user
	for what, c := range map[string]struct {
		p    party
		name []byte
		want reason.Reason
	}{
		"another device":       {w.bob, name, reason.SessionUnknown},
		"another user":         {other, name, reason.UserMismatch},
		"a guessed token":      {thief, name, reason.TokenUnknown},
		"another tunnel":       {w.alice, carrier.NewTunnelName(), reason.SessionUnknown},
		"a name that is short": {w.alice, name[:8], reason.SessionUnknown},
		"no name":              {w.alice, nil, reason.SessionUnknown},
	} {
		if _, err := w.connection(c.p, c.name, true); refusal(err).Public() != c.want.Public() {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	eventually(t, "the tunnel as it was", func() bool { x := w.tunnelOf(w.alice); return len(x) == 1 && x[0].Connections == 1 })
	for range 3 {
		if _, err := w.connection(w.alice, name, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.connection(w.alice, name, true); refusal(err) != reason.TunnelLimit {
		t.Errorf("a fifth connection: %v", err)
	}
	w.echoes(w.open(first, "tcp", w.request(w.alice)), "unharmed")
}

// A cut takes the flows of every connection, and the end of the session every
// connection.
func TestGCR002_M57_RevocationCutsEveryConnection(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	all := w.connections(t, w.alice, 4)
	var flows []*mux.Flow
	for _, c := range all {
		f := w.open(c, "tcp", w.request(w.alice))
		w.echoes(f, "x")
		flows = append(flows, f)
	}
	in := w.input()
	in.Version, in.Grants[0].AppIDList = 2, nil
	w.apply(in)
	for i, f := range flows {
		_ = f.SetReadDeadline(time.Now().Add(3 * time.Second))
		var re *mux.ResetError
		if _, err := f.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason == reason.TunnelClosed {
			t.Errorf("flow on connection %d: %v", i+1, err)
		}
	}
	w.access.Cut(access.Selector{DeviceID: w.alice.device}, reason.CutByOperator)
	for i, c := range all {
		select {
		case <-c.Done():
		case <-time.After(5 * time.Second):
			t.Errorf("connection %d lives on", i+1)
		}
	}
	eventually(t, "no tunnel", func() bool { return len(w.tunnelOf(w.alice)) == 0 })
}

// Limits are the tunnel's, and so is the end of one that breaks a rule.
func TestS22_LimitsAndFaultsAreTheWholeTunnels(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{Flows: 3})
	all := w.connections(t, w.alice, 2)
	for i := range 3 {
		w.open(all[i%2], "tcp", w.request(w.alice))
	}
	var re *carrier.RefusedError
	if _, err := all[1].Open(t.Context(), "tcp", w.request(w.alice)); !errors.As(err, &re) || re.Reason != reason.FlowLimit {
		t.Errorf("a fourth flow: %v", err)
	}
	name := carrier.NewTunnelName()
	x := &tap{Conn: w.dial(w.bob)}
	cfg := carrier.ClientConfig{Hello: w.hello(w.bob, w.bob.agent), Identity: wire.TunnelHello{AgentID: w.bob.agent, DeviceID: w.bob.device, UserID: w.bob.user, AuthToken: w.bob.token, Tunnel: name}}
	bad, err := carrier.Connect(t.Context(), x, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	good, err := w.connection(w.bob, name, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Conn.Write([]byte{9, 0, 0, 0, 0, 0, 0, 0}); err != nil { // a kind that there is not
		t.Fatal(err)
	}
	for _, c := range []*carrier.Client{bad, good} {
		<-c.Done()
		if got := refusal(c.Err()); got != reason.FrameMalformed {
			t.Errorf("ended by %v", c.Err())
		}
	}
	eventually(t, "an alert", func() bool { _, ok := w.rec.raised(alert.TunnelAbuse); return ok })
}

// A bundle makes what it lost anew, opens where the fewest flows are, and renews
// over what is left.
func TestBundleKeepsItsConnections(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	name := carrier.NewTunnelName()
	first, err := w.connection(w.alice, name, false)
	if err != nil {
		t.Fatal(err)
	}
	b := carrier.NewBundle(first, carrier.BundleConfig{
		Connections: 3, Token: w.alice.token, Wait: 10 * time.Millisecond,
		Join: func(ctx context.Context, token string) (*carrier.Client, error) {
			p := w.alice
			p.token = token
			return w.connection(p, name, true)
		},
	})
	defer b.Close()
	count := func(n int) func() bool {
		return func() bool { x := w.tunnelOf(w.alice); return len(x) == 1 && x[0].Connections == n }
	}
	eventually(t, "three connections", func() bool { _, n := b.Stats(); return n == 3 })
	carriers := map[string]bool{}
	for range 3 {
		f, err := b.Open(t.Context(), "tcp", w.request(w.alice))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w.echoes(f, "x")
		carriers[f.LocalAddr().String()] = true
	}
	if len(carriers) != 3 {
		t.Errorf("three flows on %d connections", len(carriers))
	}
	first.Close()
	eventually(t, "three connections again", func() bool { _, n := b.Stats(); return n == 3 && count(3)() })
	if err := b.Renew(t.Context(), &wire.Renewal{AuthToken: w.alice.token, UpdateTime: wire.FormatTime(w.clock.now())}); err != nil {
		t.Error(err)
	}
	w.access.Cut(access.Selector{DeviceID: w.alice.device}, reason.CutByOperator)
	select {
	case <-b.Done():
	case <-time.After(5 * time.Second):
		t.Error("the bundle outlives its session")
	}
	if got := refusal(b.Err()); got == reason.OK {
		t.Errorf("ended by %v", b.Err())
	}
}
