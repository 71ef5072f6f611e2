package guard

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/test/testbed"
)

// flood is UDP from the router to a port of the gateway's host where somebody
// listens: what he hears has leaked.
type flood struct {
	sent, leaked atomic.Int64
	end          func()
}

func (s *site) flood(t *testing.T) *flood {
	t.Helper()
	f := &flood{}
	sink, err := net.ListenPacket("udp", at(gw4, 9999))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 64)
		for {
			if _, _, err := sink.ReadFrom(b); err != nil {
				return
			}
			f.leaked.Add(1)
		}
	}()
	var c net.PacketConn
	s.r.in(t, func() { c, err = net.ListenPacket("udp", "10.77.0.2:0") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for range 10 {
				if _, err := c.WriteTo([]byte("flood"), sink.LocalAddr()); err == nil {
					f.sent.Add(1)
				}
			}
			time.Sleep(time.Millisecond)
		}
	}()
	f.end = func() { cancel(); <-done; c.Close(); sink.Close() }
	t.Cleanup(f.end)
	return f
}

func mustInt(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// more waits until another n packets were sent.
func (f *flood) more(n int64) {
	for was := f.sent.Load(); f.sent.Load() < was+n; time.Sleep(time.Millisecond) {
	}
}

// bySYN starts the agent anew with another order of ways, and with a control
// center that is behind the guard: it knocks with what it keeps.
func (s *site) bySYN(t *testing.T, agent *testbed.Agent, user *testbed.User, mode string) {
	t.Helper()
	if err := agent.Stop(); err != nil {
		t.Logf("agent: %v", err)
	}
	raw, err := os.ReadFile(agent.Config)
	if err == nil {
		text := strings.Replace(string(raw), "https://127.0.0.1:"+s.port, "https://"+at(gw4, mustInt(s.port)), 1)
		err = os.WriteFile(agent.Config, []byte(text+"permit: [syn, knock]\ncarrier: tlcp\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.a.in(t, func() { agent.Process = testbed.Run(t, "agent", "agent", "run", "-c", agent.Config) })
	testbed.Eventually(t, 30*time.Second, "the agent answers", func() bool { _, err := agent.Status(); return err == nil })
	agent.SignIn(user)
	if g := s.guard(t); g.Home == 0 {
		t.Errorf("the agent reached a guarded control center without its long-lived key: %+v", g)
	}
	s.b.shut(t, "the control center behind the guard", net.JoinHostPort(gw4, s.port))
	st, err := agent.Status()
	// nftables hears a SYN's token in user space and lets the next SYN in, which
	// may be too late for the attempt.
	if g := s.guard(t); mode != "nftables" && g.Passed["token"] == 0 {
		t.Errorf("no token opened a connection: %+v", g)
	}
	if err != nil || st.Permit != "syn" && (mode != "nftables" || st.Permit != "knock") {
		t.Errorf("the agent got in by %q: %v", st.Permit, err)
	}
}

// home kills gateway and control center under a flood and starts the gateway
// alone, in another time: no ticket that the agent has counts there.
func (s *site) home(t *testing.T, agent *testbed.Agent) {
	t.Helper()
	f := s.flood(t)
	f.more(1000)
	testbed.Eventually(t, 30*time.Second, "the flood is alerted with its source", func() bool {
		out := s.Gateway.Output()
		at := strings.Index(out, `"3.005"`)
		return at >= 0 && strings.Contains(out[at:], "10.77.0.2 guard_unauthorized")
	})
	s.Gateway.Kill()
	s.Control.Kill()
	f.more(2000)
	s.r.shut(t, "the gateway was killed", at(gw4, hidden))
	s.r.shut(t, "the gateway was killed", at(gw4, 2222))
	raw, err := os.ReadFile(s.GatewayConfig)
	if err == nil {
		err = os.WriteFile(s.GatewayConfig, []byte(strings.Replace(string(raw), "ticket_life: 10m", "ticket_life: 11m", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	bounded(t, minimal, s.StartGateway)
	if g := s.guard(t); !g.On || !g.Pinned {
		t.Errorf("after the restart: %+v", g)
	}
	s.r.shut(t, "the gateway came back", at(gw4, hidden))
	testbed.Eventually(t, 60*time.Second, "the agent comes home", func() bool {
		st, err := agent.Status()
		return err == nil && st.Gateway != "" && st.Permit == "home"
	})
	if g := s.guard(t); g.Home == 0 {
		t.Errorf("no knock by a long-lived key: %+v", g)
	}
	s.b.shut(t, "behind the address of an agent that came home", at(gw4, hidden))
	flow, err := s.a.reach(t, agent.Forwards[0], 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	echoed(t, "after coming home", flow, []byte("home"))
	flow.Close()
	t.Logf("%d packets of the flood, %d leaked", f.sent.Load(), f.leaked.Load())
	if f.leaked.Load() != 0 {
		t.Errorf("%d of %d packets leaked over kill and restart", f.leaked.Load(), f.sent.Load())
	}
	if out, err := s.verb(t, "", "guard", "off"); err != nil {
		t.Fatalf("guard off: %v: %s", err, out)
	}
	testbed.Eventually(t, 10*time.Second, "the flood passes without the guard", func() bool { return f.leaked.Load() > 0 })
	f.end()
}
