package guard

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/gateway"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/tunnel/spa"
)

const (
	hidden    = 8443
	published = 443
	knockPort = 62201
	gw4       = "10.77.0.1"
	gw6       = "fd77::1"
)

func addrPort(host string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), port)
}

func at(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: the guard needs root")
	}
	for _, p := range []string{"ip", "nft", "nmap", "ping", "curl"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("NOT TESTED: %s is not here (make needs)", p)
		}
	}
}

var listenLine = regexp.MustCompile(`(?m)^listen: \[(.*)\]$`)

// site is a guarded one.
type site struct {
	*testbed.Site
	*network
	app  testbed.App
	pins string
	port string // of the control center
}

func newSite(t *testing.T, mode string) *site {
	t.Helper()
	n := newNetwork(t)
	echo := testbed.NewTCPApp(t, false)
	app := testbed.App{ID: "APP00000005", Name: "echo", Upstream: "tcp://" + echo.Address}
	s := &site{Site: testbed.NewSite(t, testbed.SiteConfig{Apps: []testbed.App{app}, Addresses: []string{at(gw4, hidden)}, Hosts: []string{gw4}}), network: n, app: app, pins: t.TempDir()}
	raw, err := os.ReadFile(s.GatewayConfig)
	if err != nil {
		t.Fatal(err)
	}
	pins := s.pins
	if err := unix.Mount("bpf", pins, "bpf", 0, "mode=0700"); err != nil { // as systemd does
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", pins).Run() })
	cc, err := control.LoadConfig(s.ControlConfig)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(cc.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.port = u.Port()
	text := listenLine.ReplaceAllString(string(raw), fmt.Sprintf("listen: [$1, %q, %q, %q]", at(gw4, hidden), at(gw6, hidden), at(gw4, published)))
	// The site's own loopback port is not guarded: it is another interface.
	text += fmt.Sprintf("guard: {interface: g0, mode: %s, published: [%q], management: [10.77.0.77], pin_dir: %s, ticket_life: 10m, syn_token: true, alert_rate: 200, doors: [%s]}\n", mode, fmt.Sprint(published), pins, s.port)
	if err := os.WriteFile(s.GatewayConfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Do("PUT", "/v1/devices/"+s.GatewayID+"/addresses", control.Addresses{Addresses: []string{at(gw4, hidden)}}, nil)
	s.restart(t)
	n.a.relay(t, "127.0.0.1", s.port)
	n.self.relay(t, gw4, s.port) // as if it listened there: behind the guard
	return s
}

func (s *site) restart(t *testing.T) {
	t.Helper()
	if err := s.Gateway.Stop(); err != nil {
		t.Logf("gateway: %v", err)
	}
	bounded(t, minimal, s.StartGateway)
	s.connected(t)
}

func (s *site) connected(t *testing.T) {
	t.Helper()
	testbed.Eventually(t, 60*time.Second, "gateway is connected", func() bool {
		st, err := s.Status()
		return err == nil && st.Health == gateway.Ready && st.Control != nil && st.Control.Push
	})
}

// verb runs a verb of the binary against the gateway's socket.
func (s *site) verb(t *testing.T, env string, words ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(testbed.Binary(t), append(words, "--socket", filepath.Join(s.Dir, "gateway", "state", "admin.sock"))...)
	cmd.Env = append(os.Environ(), "SSH_CONNECTION="+env)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *site) guard(t *testing.T) (g gateway.GuardStatus) {
	t.Helper()
	out, err := s.verb(t, "", "guard", "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &g)
	}
	if err != nil {
		t.Fatalf("guard status: %v: %s", err, out)
	}
	return g
}

// pass makes the permit of a device as the control center does.
func (s *site) pass(t *testing.T, device string, shift time.Duration) *spa.Pass {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.Dir, "gateway", "state", "permit.key"))
	if err != nil {
		t.Fatal(err)
	}
	p := &spa.Pass{Port: knockPort}
	for _, k := range permit.Root(raw).Times(time.Now().Add(shift), 10*time.Minute) {
		ticket := k.Ticket(s.GatewayID, device)
		ticket.Until = time.Now().Add(time.Hour) // what its holder may claim
		p.Tickets = append(p.Tickets, ticket)
		break
	}
	return p
}

// caught makes a knock and keeps it off the wire.
func caught(t *testing.T, d *spa.Dialer, pass *spa.Pass, port uint16) []byte {
	t.Helper()
	trap, err := net.ListenPacket("udp", at("127.0.0.9", knockPort))
	if err != nil {
		t.Fatal(err)
	}
	defer trap.Close()
	if err := d.Knock(context.Background(), pass, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), port)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	if err := trap.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	k, _, err := trap.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:k]
}

// throw sends a datagram from n to the knock port and lets it be judged.
func (n *netns) throw(t *testing.T, host string, b []byte) {
	t.Helper()
	n.in(t, func() {
		c, err := net.Dial("udp", at(host, knockPort))
		if err == nil {
			_, err = c.Write(b)
			c.Close()
		}
		if err != nil {
			t.Error(err)
		}
	})
	time.Sleep(100 * time.Millisecond)
}

// echoed says a word over c and demands it back.
func echoed(t *testing.T, what string, c net.Conn, word []byte) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { _, _ = c.Write(word) }() // the read below tells when it fails
	b := make([]byte, len(word))
	if _, err := io.ReadFull(c, b); err != nil || !bytes.Equal(b, word) {
		t.Errorf("%s: %v", what, err)
	}
}

// lines of nmap's grepable output: port/state.
var portState = regexp.MustCompile(`(\d+)/([a-z|]+)/`)

// scan returns the state of each port.
func (n *netns) scan(t *testing.T, words string) map[string]string {
	t.Helper()
	out := n.sh(t, "nmap -n -Pn -oG - --max-retries 0 --min-rate 50 --host-timeout 60s "+words)
	states := map[string]string{}
	for _, m := range portState.FindAllStringSubmatch(out, -1) {
		states[m[1]] = m[2]
	}
	if len(states) == 0 {
		t.Errorf("nmap %s: nothing read of\n%s", words, out)
	}
	return states
}

// everyday are connections that the guard must not touch: each returns after it
// has worked.
func (s *site) everyday(t *testing.T, when string) {
	t.Helper()
	// DNS and NTP: a connected UDP socket of the gateway's host, answered by r.
	var server net.PacketConn
	s.r.in(t, func() {
		var err error
		if server, err = net.ListenPacket("udp", "10.77.0.2:0"); err != nil {
			t.Error(err)
		}
	})
	defer server.Close()
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(b[:n], from)
		}
	}()
	c, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echoed(t, when+": UDP answer", c, []byte("who is it"))
	sh(t, "ping -6 -c 2 -i 0.2 -W 5 fd77::2 >/dev/null")
	sh(t, "ping -4 -c 2 -i 0.2 -W 5 10.77.0.2 >/dev/null")
	// A path of 1280 bytes: the router's ICMP error must come through.
	sh(t, "ip route flush cache; ping -4 -M do -c 1 -W 2 -s 1400 10.1.1.2 >/dev/null; ping -4 -M do -c 1 -W 2 -s 1400 10.1.1.2 >/dev/null; true")
	if out := sh(t, "ip route get 10.1.1.2"); !strings.Contains(out, "mtu 1280") {
		t.Errorf("%s: path MTU not learnt: %s", when, out)
	}
}

func modes(t *testing.T, f func(t *testing.T, mode string)) {
	needRoot(t)
	for _, mode := range []string{"native", "generic", "nftables"} {
		if mode != "native" && !testbed.Long() {
			continue // TestS38_TiersAgree is their short form, and bpf's own tests attach the program in both modes
		}
		t.Run(mode, func(t *testing.T) { f(t, mode) })
	}
}

// The gateway does not exist for a scanner, and is there at once for an agent
// behind a NAT that it shares with strangers, over a path of 1,280 bytes. It
// starts with four capabilities and keeps none. The guard stays closed, and
// leaks nothing, while the gateway is killed under a flood; an agent whose
// tickets count no more comes home.
func TestS20_S38_S39_GuardedGateway(t *testing.T) {
	modes(t, func(t *testing.T, mode string) {
		s := newSite(t, mode)
		defer func() {
			if t.Failed() {
				t.Logf("%+v", s.guard(t))
				out, _ := s.verb(t, "", "guard", "drops")
				t.Log(out)
			}
		}()
		s.unprivileged(t, "before the guard is on", mode)
		user := s.NewUser("anna")

		// An SSH session from before: a listener of the host's.
		ln, err := net.Listen("tcp", at(gw4, 2222))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go pipe(c, c)
			}
		}()
		ssh, err := s.r.reach(t, at(gw4, 2222), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer ssh.Close()
		s.everyday(t, "before")

		if out, err := s.verb(t, "10.77.0.2 5000 10.77.0.1 2222", "guard", "on"); err == nil || !strings.Contains(out, "10.77.0.2") {
			t.Errorf("guard on from an address that may not manage: %v: %s", err, out)
		}
		if out, err := s.verb(t, "10.77.0.77 5000 10.77.0.1 2222", "guard", "on"); err != nil {
			t.Fatalf("guard on: %v: %s", err, out)
		}
		if g := s.guard(t); !g.On || g.Pinned || g.ConfirmBy.IsZero() || string(g.Mode) != mode {
			t.Errorf("after guard on: %+v", g)
		}
		if out, err := s.verb(t, "", "guard", "confirm"); err != nil {
			t.Fatalf("guard confirm: %v: %s", err, out)
		}
		if g := s.guard(t); !g.On || !g.Pinned || !g.ConfirmBy.IsZero() {
			t.Errorf("after guard confirm: %+v", g)
		}
		echoed(t, "the SSH session after guard on", ssh, []byte("still here"))
		s.everyday(t, "after")

		ports := fmt.Sprintf("-p 22,%d,2222,%d,9999 ", published, hidden)
		for _, words := range []string{"-sS " + ports + gw4, "-sS -f " + ports + gw4, "-6 -sS " + ports + gw6} {
			for port, state := range s.r.scan(t, words) {
				want := "filtered"
				if port == fmt.Sprint(published) && strings.HasSuffix(words, gw4) && !strings.Contains(words, "-f") {
					want = "open"
				}
				if port == fmt.Sprint(published) && strings.HasSuffix(words, gw6) {
					want = "closed" // published, and nobody listens there
				}
				if state != want {
					t.Errorf("nmap %s: port %s is %s, not %s", words, port, state, want)
				}
			}
		}
		for _, words := range []string{"-sA -p 22,2222,8443,9999 " + gw4, "-6 -sA -p 22,2222,8443 " + gw6} {
			for port, state := range s.r.scan(t, words) {
				if state != "filtered" {
					t.Errorf("nmap %s: port %s is %s", words, port, state)
				}
			}
		}
		for _, words := range []string{"-sU -p 53,123,%d " + gw4, "-6 -sU -p 53,123,%d " + gw6} {
			for port, state := range s.r.scan(t, fmt.Sprintf(words, knockPort)) {
				if state != "open|filtered" {
					t.Errorf("UDP port %s is %s", port, state)
				}
			}
		}
		if out := s.r.sh(t, "curl -sk -m 20 -o /dev/null -w '%{http_code}' https://"+at(gw4, published)+"/"); out == "" || out == "000" {
			t.Errorf("curl to the published port: %q", out)
		}

		// The agent, behind the NAT.
		var agent *testbed.Agent
		s.a.in(t, func() { agent = s.NewAgent(t, "laptop", s.app) })
		s.Grant(user, agent.DeviceID, time.Now().Add(time.Hour), s.app.ID)
		kept, err := os.ReadFile(filepath.Join(filepath.Dir(agent.Config), "keys", "home.sealed"))
		if err != nil || bytes.Contains(kept, []byte("gateways")) {
			t.Errorf("the long-lived permit of the enrolment: %v, %.100q", err, kept)
		}
		start := time.Now()
		agent.SignIn(user)
		took := time.Since(start)
		st, err := agent.Status()
		if err != nil || st.Permit != "knock" {
			t.Errorf("the agent got in by %q: %v", st.Permit, err)
		}
		t.Logf("sign-in to tunnel %v", took)
		s.b.shut(t, "behind the same address, while the tunnel is up", at(gw4, hidden))
		s.r.shut(t, "the NAT itself", at(gw4, hidden))
		flow, err := s.a.reach(t, agent.Forwards[0], 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer flow.Close()
		echoed(t, "256 KiB over a path of 1280 bytes", flow, bytes.Repeat([]byte("0123456789abcdef"), 16<<10))

		// Knocks by hand, from the router.
		d := &spa.Dialer{}
		mine := s.pass(t, agent.DeviceID, 0)
		good := caught(t, d, mine, hidden)
		for i, bad := range [][]byte{flip(good, 0), flip(good, 15), flip(good, 22), flip(good, 63), good[:63], good[:20], append(bytes.Clone(good), 0)} {
			s.r.throw(t, gw4, bad)
			s.r.shut(t, fmt.Sprintf("forged knock %d", i), at(gw4, hidden))
		}
		good = caught(t, d, mine, hidden) // a forged body has used the counter of its token
		s.r.throw(t, gw4, good)
		c, err := s.r.reach(t, at(gw4, hidden), 5*time.Second)
		if err != nil {
			t.Fatalf("after a genuine knock: %v", err)
		}
		s.b.shut(t, "the second connection of one knock", at(gw4, hidden))
		c.Close()
		s.r.throw(t, gw4, good)
		s.r.shut(t, "a knock that was played again", at(gw4, hidden))
		s.b.throw(t, gw4, good)
		s.b.shut(t, "a knock that was played again from elsewhere", at(gw4, hidden))
		s.r.throw(t, gw4, caught(t, d, mine, 2222))
		s.r.shut(t, "a knock for a port that is not hidden but closed", at(gw4, 2222))
		s.r.throw(t, gw4, caught(t, d, s.pass(t, agent.DeviceID, -time.Hour), hidden))
		s.r.shut(t, "a ticket of an hour ago", at(gw4, hidden))
		s.r.throw(t, gw4, caught(t, d, s.pass(t, "DEV99999999", 0), hidden))
		s.r.shut(t, "a ticket of a device without a grant", at(gw4, hidden))
		six := caught(t, d, mine, hidden)
		s.r.shut(t, "over IPv6, before a knock", at(gw6, hidden))
		s.r.throw(t, gw6, six)
		if c, err := s.r.reach(t, at(gw6, hidden), 5*time.Second); err != nil {
			t.Errorf("after a genuine knock over IPv6: %v", err)
		} else {
			c.Close()
		}

		// Revocation.
		s.r.throw(t, gw4, caught(t, d, mine, hidden)) // opened, and not used yet
		s.Lock(user, "")
		s.r.shut(t, "an opening whose user was locked", at(gw4, hidden))
		s.r.throw(t, gw4, caught(t, d, mine, hidden))
		s.r.shut(t, "a knock of a locked user", at(gw4, hidden))
		_ = flow.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := flow.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("the flow of a locked user lives: %v", err)
		}
		s.Unlock(user)
		if g := s.guard(t); g.Dropped["guard_unauthorized"] == 0 || g.Dropped["guard_ticket_unknown"] == 0 || g.Dropped["guard_token_replayed"] == 0 || g.Dropped["guard_token_forged"] == 0 {
			t.Errorf("counters: %+v", g.Dropped)
		}
		if out, err := s.verb(t, "", "guard", "top"); err != nil || !strings.Contains(out, "10.77.0.2") {
			t.Errorf("guard top: %v: %s", err, out)
		}

		agent.SignIn(user) // the lock has ended the session, and with it the device's tickets
		s.bySYN(t, agent, user, mode)
		s.unprivileged(t, "with the guard on", mode)
		// The gateway dies; the guard stays closed, and comes back with it.
		s.home(t, agent)
		// User space admits now: no byte of a handshake, but an answer.
		if c, err := s.r.reach(t, at(gw4, hidden), 5*time.Second); err == nil {
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("without the guard a stranger is heard: %v", err)
			}
			c.Close()
		}
	})
}

// A guard that nobody confirms is gone after a minute, and so is one whose
// gateway dies before it was confirmed.
func TestS38_UnconfirmedGuardIsUndone(t *testing.T) {
	needRoot(t)
	if !testbed.Long() {
		t.Skip("the wait is a minute: YUMEN_LONG=1")
	}
	s := newSite(t, "native")
	on := func() {
		t.Helper()
		if out, err := s.verb(t, "", "guard", "on"); err != nil {
			t.Fatalf("guard on: %v: %s", err, out)
		}
		s.r.shut(t, "the guard is on", at(gw4, 2222))
	}
	refused := func(what string) {
		t.Helper()
		if _, err := s.r.reach(t, at(gw4, 2222), 5*time.Second); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: the host's stack does not answer: %v", what, err)
		}
	}
	refused("before")
	on()
	start := time.Now()
	testbed.Eventually(t, 90*time.Second, "the guard is off again", func() bool { return !s.guard(t).On })
	if d := time.Since(start); d < 55*time.Second {
		t.Errorf("undone after %v", d)
	}
	refused("after a minute")
	on()
	s.Gateway.Kill()
	refused("after the gateway died")
	s.StartGateway()
	if g := s.guard(t); g.On {
		t.Errorf("an unconfirmed guard came back: %+v", g)
	}
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}
