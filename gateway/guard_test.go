package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/tunnel/spa"
	"github.com/yumen-zt/yumen/wire"
)

func newPermits(now *time.Time) *devicePermits {
	clock := func() time.Time { return *now }
	p := &devicePermits{
		gatewayID: gwID, root: permit.Root{1}, life: time.Hour, now: clock, log: zap.NewNop(), book: spa.NewBook(62201, clock),
		users: map[string]map[string]struct{}{}, have: map[string][]permit.Ticket{},
	}
	p.keys = p.counting()
	return p
}

func row(user, device string) policy.Row {
	return policy.Row{Grant: wire.Grant{UserID: user, DeviceID: device}}
}

// Tickets follow grants and locks, one device apart from the other, and time.
func TestTicketsFollowGrantsAndLocks(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := newPermits(&now)
	want := func(what string, devices ...string) {
		t.Helper()
		have := map[string]bool{}
		for d, all := range p.have {
			have[d] = len(all) > 0
		}
		if len(have) != len(devices) || p.book.Len() != 0 && len(devices) == 0 {
			t.Errorf("%s: tickets of %v, %d in the book", what, have, p.book.Len())
		}
		for _, d := range devices {
			if !have[d] {
				t.Errorf("%s: none of %s", what, d)
			}
		}
	}
	give := func(rows ...policy.Row) { p.delta(&access.Delta{Grants: rows}, nil) }
	give(row("U1", "D1"), row("U2", "D1"), row("U2", "D2"))
	want("grants", "D1", "D2")
	home := 0
	for _, k := range p.have["D1"] {
		if k.Home() {
			home++
		}
	}
	if home < 1 || home == len(p.have["D1"]) {
		t.Errorf("%d of %d tickets of a device are long-lived", home, len(p.have["D1"]))
	}
	p.delta(&access.Delta{Remove: []access.Pair{{UserID: "U1", DeviceID: "D1"}}}, nil)
	want("one of two users went", "D1", "D2")
	lock := policy.Lock{Kind: "user", ID: "U2"}
	p.delta(&access.Delta{Locks: []policy.Lock{lock}}, []policy.Lock{lock})
	want("the other is locked")
	p.delta(&access.Delta{Unlocks: []policy.Lock{lock}}, nil)
	want("and unlocked", "D1", "D2")
	ends := policy.Lock{Kind: "device", ID: "D2", Until: now.Add(time.Minute)}
	p.delta(&access.Delta{Locks: []policy.Lock{ends}}, []policy.Lock{ends})
	want("a device is locked", "D1")
	was := p.have["D1"]
	now = now.Add(3 * time.Hour)
	p.mu.Lock()
	p.setLocks([]policy.Lock{ends})
	p.settle()
	p.mu.Unlock()
	want("its lock has ended", "D1", "D2")
	for _, old := range was {
		for _, next := range p.have["D1"] {
			if old.Alias == next.Alias && !old.Home() {
				t.Errorf("a ticket until %v counts at %v", old.Until, now)
			}
		}
	}
	p.renew(new(policy.Snapshot), nil)
	want("rows that have ended")
	give(row("U1", "D1"))
	p.full(new(policy.Snapshot), nil)
	want("an empty list")
}

// A change of one device among many is in force within 5 ms.
func TestOneChangeAmongManyIsFast(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := newPermits(&now)
	var all []policy.Row
	for i := range 10_000 {
		all = append(all, row("U", fmt.Sprintf("D%d", i)))
	}
	p.delta(&access.Delta{Grants: all}, nil)
	best := time.Hour
	for i := range 20 {
		start := time.Now()
		p.delta(&access.Delta{Grants: []policy.Row{row("V", fmt.Sprintf("E%d", i))}, Remove: []access.Pair{{UserID: "U", DeviceID: fmt.Sprintf("D%d", i)}}}, nil)
		best = min(best, time.Since(start))
	}
	t.Logf("one device comes, one goes, among 10000: %v", best)
	if best > 5*time.Millisecond {
		t.Errorf("%v, 5 ms allowed", best)
	}
}

// A guard that was switched on and can not run is an alert.
func TestGCR002_M68_AGuardThatDoesNotRunIsAlerted(t *testing.T) {
	w := newWorld(t)
	must(t, os.MkdirAll(filepath.Join(w.dir, "state"), 0o700))
	w.write("state/guard.on", "", 0o600) // it was switched on, and its interface is gone
	w.config(twoApps + "guard: {interface: nosuch0, management: [192.0.2.0/24]}\n")
	w.start()
	if n := w.raised(alert.GuardOff); n != 1 {
		t.Errorf("alert %s was raised %d times, want once", alert.GuardOff, n)
	}
}

// Where no guard runs, user space admits to hidden ports: nobody shakes hands
// before a knock, and a knock lets one connection in (S38).
func TestS38_UserSpaceAdmits(t *testing.T) {
	w := newWorld(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := ln.Addr().String()
	ln.Close()
	knocks, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	port := knocks.LocalAddr().(*net.UDPAddr).Port
	knocks.Close()
	path := w.config(twoApps + fmt.Sprintf("guard: {interface: nosuch0, knock_port: %d, management: [192.0.2.0/24], syn_token: true}\n", port))
	raw, err := os.ReadFile(path)
	must(t, err)
	w.write("gateway.yaml", strings.Replace(string(raw), "127.0.0.1:0", addr, 1), 0o600)
	w.start()

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.RootPEM(keystore.TLSRoot))
	shake := func(c net.Conn) error {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return tls.Client(c, &tls.Config{RootCAs: roots, ServerName: host1}).Handshake()
	}
	stranger := func(what string) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = shake(c)
		}
		var cert *tls.CertificateVerificationError
		if err == nil || errors.As(err, &cert) {
			t.Errorf("%s: a stranger shook hands: %v", what, err)
		}
	}
	stranger("before a knock")
	key, err := os.ReadFile(filepath.Join(w.dir, "state", "permit.key"))
	must(t, err)
	ticket := permit.Root(key).Times(time.Now(), time.Hour)[0].Ticket(gwID, dev)
	d := &spa.Dialer{}
	pass := &spa.Pass{Port: uint16(port), Tickets: []permit.Ticket{ticket}}
	c, _, err := d.Dial(context.Background(), pass, addr)
	must(t, err)
	if err := shake(c); err != nil {
		t.Errorf("after a knock: %v", err)
	}
	stranger("after the knock was used")

	// A token before the hello, as a SYN's payload arrives.
	shown := func(token []byte) error {
		c, err := net.Dial("tcp", addr)
		must(t, err)
		_, err = c.Write(token)
		must(t, err)
		return shake(c)
	}
	hidden := netip.MustParseAddrPort(addr).Port()
	now := time.Now()
	token := spa.AppendToken(nil, &ticket, spa.Counter(&ticket, now)+1, hidden, spa.TCP)
	if err := shown(token); err != nil {
		t.Errorf("with a token: %v", err)
	}
	for what, b := range map[string][]byte{
		"a token that was used":   token,
		"a token of another port": spa.AppendToken(nil, &ticket, spa.Counter(&ticket, now)+2, hidden+1, spa.TCP),
		"a token of UDP":          spa.AppendToken(nil, &ticket, spa.Counter(&ticket, now)+2, hidden, spa.UDP),
		"a forged token":          append(spa.AppendToken(nil, &ticket, spa.Counter(&ticket, now)+2, hidden, spa.TCP)[:19], 0),
		"a token of before":       spa.AppendToken(nil, &ticket, 1, hidden, spa.TCP),
	} {
		if err := shown(b); err == nil {
			t.Errorf("%s: a hand was shaken", what)
		}
	}

	// QUIC on the same port: who shows no token gets no datagram.
	q := func(wrap func(*net.UDPConn) net.PacketConn, limit time.Duration) error {
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		must(t, err)
		defer udp.Close()
		tr := &quic.Transport{Conn: wrap(udp)}
		defer tr.Close()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)), &tls.Config{RootCAs: roots, ServerName: host1, NextProtos: []string{"h3"}}, &quic.Config{InitialPacketSize: 1200})
		if err == nil {
			_ = conn.CloseWithError(0, "")
		}
		return err
	}
	if err := q(func(c *net.UDPConn) net.PacketConn { return c }, 200*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("QUIC without a token: %v", err)
	}
	if err := q(func(c *net.UDPConn) net.PacketConn { return d.PacketConn(c, pass) }, 10*time.Second); err != nil {
		t.Errorf("QUIC with a token: %v", err)
	}

	// The switch says what is wrong, and where the way back is missing.
	if _, err := w.g.guard.switchOn(netip.MustParseAddr("198.51.100.1")); err == nil {
		t.Error("guard on: nothing said")
	}
	if err := w.g.guard.confirm(); err == nil {
		t.Error("confirmed what is not on")
	}
	s := w.g.guard.status()
	if s.On || s.Opened != 1 || len(s.Hidden) != 1 {
		t.Errorf("status %+v", s)
	}

	// A lock takes the ticket.
	w.lists(2, 2)
	must(t, w.g.Reload())
	if err := d.Knock(context.Background(), pass, netip.MustParseAddrPort(addr)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); w.g.guard.results[1].Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the knock of a device without a grant was not refused")
		}
	}
	stranger("a knock without a grant")
}

func TestBlocklistsNameTheLine(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, "list")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	all, err := readBlocklists([]string{file("# bad people\n192.0.2.1\n  198.51.100.0/24 # here\n\n2001:db8::/48\n")})
	if err != nil || len(all) != 3 {
		t.Errorf("%v, %v", all, err)
	}
	for _, bad := range []string{"1.2.3.4\nnobody\n", "1.2.3.4\n0.0.0.0/0\n", "1.2.3.4\nfe80::1%eth0\n"} {
		if _, err := readBlocklists([]string{file(bad)}); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestGuardConfigIsChecked(t *testing.T) {
	for text, part := range map[string]string{
		"{}":                                "guard.interface",
		"{interface: e, mode: fast}":        "guard.mode",
		"{interface: e, published: [http]}": "guard.published[0]",
		"{interface: e, management: [0.0.0.0/0]}": "guard.management[0]",
		"{interface: e, knock_port: 70000}":       "guard.knock_port",
		"{interface: e, ticket_life: 1s}":         "guard.ticket_life",
	} {
		w := newWorld(t)
		_, err := Load(w.config(twoApps + "guard: " + text + "\n"))
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
