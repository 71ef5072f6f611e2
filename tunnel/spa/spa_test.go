package spa

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/internal/reason"
)

const knockPort = 62201

var (
	start = time.Unix(1_800_000_100, 0)
	root  = permit.Root{7}
	want  = Wanted{8443, TCP}
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func setup() (*Book, permit.Ticket, *clock, *counters) {
	c := &clock{start}
	b := NewBook(knockPort, c.now)
	t := root.Times(start, time.Hour)[0].Ticket("GW", "DEV")
	b.Add("DEV", t)
	return b, t, c, &counters{}
}

// A genuine knock counts once; one that was seen, is old, of the future, for
// another port, cut, longer or altered in any bit, never (S20).
func TestS20_KnocksCountOnce(t *testing.T) {
	b, ticket, c, n := setup()
	k := makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)
	for i := range len(k) * 8 {
		bad := bytes.Clone(k)
		bad[i/8] ^= 1 << (i % 8)
		if _, _, _, r := b.Knock(bad); r == reason.OK {
			t.Fatalf("bit %d flipped: accepted", i)
		}
	}
	for i := range len(k) {
		if _, _, _, r := b.Knock(k[:i]); r == reason.OK {
			t.Fatalf("%d bytes: accepted", i)
		}
	}
	if _, _, _, r := b.Knock(append(bytes.Clone(k), 0)); r == reason.OK {
		t.Error("a longer one: accepted")
	}
	w, alias, device, r := b.Knock(k)
	if r != reason.OK || w != want || alias != ticket.Alias || device != "DEV" {
		t.Fatalf("genuine: %v %x %q %v (the faults before must not cost it)", w, alias, device, r)
	}
	if _, _, _, r := b.Knock(k); r != reason.GuardTokenReplayed {
		t.Errorf("again: %v", r)
	}
	for _, d := range []time.Duration{-61 * time.Second, 61 * time.Second} {
		late := makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t.Add(d))
		if _, _, _, r := b.Knock(late); r != reason.GuardKnockRefused {
			t.Errorf("its time is %v away: %v", d, r)
		}
	}
	elsewhere := makeKnock(&ticket, n.next(&ticket, c.t), knockPort+1, want, c.t)
	if _, _, _, r := b.Knock(elsewhere); r != reason.GuardTokenForged {
		t.Errorf("for another knock port: %v", r)
	}
	c.t = ticket.Until
	if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r != reason.GuardTicketExpired {
		t.Errorf("after the ticket's end: %v", r)
	}
	c.t = start
	b.Remove(ticket.Alias)
	if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r != reason.GuardTicketUnknown {
		t.Errorf("after it was taken away: %v", r)
	}
}

// What was seen before a restart does not count after it (S20).
func TestS20_NoReplayOverARestart(t *testing.T) {
	b, ticket, c, n := setup()
	k := makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)
	if _, _, _, r := b.Knock(k); r != reason.OK {
		t.Fatal(r)
	}
	c.t = c.t.Add(time.Second)
	b = NewBook(knockPort, c.now)
	b.Add("DEV", ticket)
	if _, _, _, r := b.Knock(k); r != reason.GuardTokenReplayed {
		t.Errorf("after a restart: %v", r)
	}
	if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r != reason.OK {
		t.Errorf("a fresh one: %v", r)
	}
}

// Knocks that a network reorders count, and each of the window once.
func TestWindow(t *testing.T) {
	var s seen
	for _, c := range []struct {
		n    uint32
		want bool
	}{{0, false}, {5, true}, {5, false}, {4, true}, {4, false}, {1, true}, {40, true}, {8, true}, {7, false}, {8, false}, {41, true}, {40, false}, {9, true}, {1 << 31, true}, {41, false}, {1<<31 - 32, true}, {1<<31 - 33, false}, {1<<32 - 1, true}, {1<<32 - 1, false}} {
		if got := s.take(c.n); got != c.want {
			t.Errorf("%d: %v", c.n, got)
		}
	}
}

func TestCountersRiseOverRestarts(t *testing.T) {
	_, ticket, c, n := setup()
	last := uint32(0)
	for range 100 {
		if v := n.next(&ticket, c.t); v <= last {
			t.Fatalf("%d after %d", v, last)
		} else {
			last = v
		}
	}
	c.t = c.t.Add(200 * time.Millisecond)
	if v := (&counters{}).next(&ticket, c.t); v <= last {
		t.Errorf("after a restart %d, not above %d", v, last)
	}
}

// What a knock opened in user space lets one connection in, from its source,
// for a while, and not after the ticket is gone.
func TestAdmissionInUserSpace(t *testing.T) {
	b, ticket, c, _ := setup()
	a, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if b.Admit(a, want) {
		t.Error("admitted before any knock")
	}
	b.Open(a, want, ticket.Alias)
	if b.Admit(other, want) || b.Admit(a, Wanted{8444, TCP}) || b.Admit(a, Wanted{8443, UDP}) {
		t.Error("another source, or another port, admitted")
	}
	if !b.Admit(netip.MustParseAddr("::ffff:192.0.2.1"), want) || b.Admit(a, want) {
		t.Error("not admitted once and only once")
	}
	b.Open(a, want, ticket.Alias)
	c.t = c.t.Add(OpenFor)
	if b.Admit(a, want) {
		t.Error("admitted too late")
	}
	b.Open(a, want, ticket.Alias)
	b.Remove(ticket.Alias)
	if b.Admit(a, want) {
		t.Error("admitted with a ticket that is gone")
	}
	for i := range maxOpen + 10 {
		b.Open(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), want, ticket.Alias)
	}
	if len(b.open) > maxOpen {
		t.Errorf("%d openings", len(b.open))
	}
}

// One ticket cannot make the gateway work for ever.
func TestKnocksOfOneTicketAreLimited(t *testing.T) {
	b, ticket, c, n := setup()
	ok := 0
	for range 500 {
		if _, _, _, r := b.Knock(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)); r == reason.OK {
			ok++
		} else if r != reason.GuardTicketRate {
			t.Fatal(r)
		}
	}
	if ok != int(ordinary.burst) {
		t.Errorf("%d of 500 counted, %d expected", ok, ordinary.burst)
	}
}

// An agent whose tickets have all expired comes home by the long-lived key: it
// knocks, seldom, and opens nothing by a token alone. It counts for 90 days and
// more, each knock once, and not after it was taken away (S20).
func TestS20_TheLongLivedKeyKnocksSeldom(t *testing.T) {
	c := &clock{start}
	b := NewBook(knockPort, c.now)
	home := root.Times(start, permit.HomeLife)[0].Ticket("GW", "DEV")
	short := root.Times(start, time.Hour)[0].Ticket("GW", "DEV")
	if !home.Home() || short.Home() || home.Alias == short.Alias {
		t.Fatal("one ticket looks like the other")
	}
	b.Add("DEV", home)
	var n counters
	knock := func() []byte { return makeKnock(&home, n.next(&home, c.t), knockPort, want, c.t) }
	ok := 0
	for range 50 {
		if _, _, _, r := b.Knock(knock()); r == reason.OK {
			ok++
		} else if r != reason.GuardTicketRate {
			t.Fatal(r)
		}
	}
	if ok != int(homeward.burst) {
		t.Errorf("%d of 50 knocks counted at once, %d expected", ok, homeward.burst)
	}
	c.t = c.t.Add(80 * time.Second)
	k := knock()
	if _, _, device, r := b.Knock(k); r != reason.OK || device != "DEV" || !b.Home(home.Alias) {
		t.Errorf("80 s later: %v, %q", r, device)
	}
	if _, _, _, r := b.Knock(k); r != reason.GuardTokenReplayed {
		t.Errorf("again: %v", r)
	}
	if _, r := b.Token(AppendToken(nil, &home, n.next(&home, c.t), 8443, TCP), 8443, TCP); r != reason.GuardTicketPort {
		t.Errorf("a token alone: %v", r)
	}
	c.t = home.Until.Add(-time.Second)
	if v := Counter(&home, c.t); v >= 1<<31 || v < 7_000_000 {
		t.Errorf("counter %d at its end", v)
	}
	if _, _, _, r := b.Knock(knock()); r != reason.OK {
		t.Errorf("at its end: %v", r)
	}
	b.Remove(home.Alias)
	if _, _, _, r := b.Knock(knock()); r != reason.GuardTicketUnknown {
		t.Errorf("after it was taken away: %v", r)
	}
}

// A pass whose tickets have expired knocks by the long-lived one, and one with
// tickets that the gateway does not know comes to it.
func TestDialerComesHome(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	knocks, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer knocks.Close()
	port := uint16(knocks.LocalAddr().(*net.UDPAddr).Port)
	now := time.Now()
	home := root.Times(now, permit.HomeLife)[0].Ticket("GW", "DEV")
	old := root.Times(now.Add(-10*time.Hour), time.Hour)[0].Ticket("GW", "DEV")
	pass := &Pass{Port: port, Tickets: []permit.Ticket{old}, Home: []permit.Ticket{home}}
	c, way, err := (&Dialer{Ways: []Way{SYN}}).Dial(t.Context(), pass, ln.Addr().String())
	if err != nil || way != Home {
		t.Fatalf("by %q: %v", way, err)
	}
	c.Close()
	b := make([]byte, 2048)
	n, _, err := knocks.ReadFrom(b)
	if err != nil || n != KnockBytes || [8]byte(b) != home.Alias {
		t.Errorf("knock % x, %v", b[:n], err)
	}
	if _, _, err := (&Dialer{}).Dial(t.Context(), &Pass{Port: port}, ln.Addr().String()); !errors.Is(err, ErrNoTicket) {
		t.Errorf("with nothing: %v", err)
	}
}

// Of what quic-go sends, Initials alone carry a token, the same for a while.
func TestInitialsCarryOneToken(t *testing.T) {
	far, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	bk, ticket, c, _ := setup()
	d := &Dialer{Now: c.now}
	p := d.PacketConn(near, &Pass{Tickets: []permit.Ticket{ticket}})
	to := far.LocalAddr().(*net.UDPAddr)
	port := to.AddrPort().Port()
	b := make([]byte, 2048)
	send := func(data []byte, msg bool) []byte {
		t.Helper()
		n := 0
		if msg {
			n, _, err = p.WriteMsgUDP(data, nil, to)
		} else {
			n, err = p.WriteTo(data, to)
		}
		if err != nil || n != len(data) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
		n, _, err := far.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(b[:n])
	}
	initial := append([]byte{0xc3, 0, 0, 0, 1, 8}, make([]byte, 1194)...)
	first := send(initial, false)
	if len(first) != len(initial)+TokenBytes || len(first) > MaxInitial+TokenBytes || !bytes.Equal(first[:len(initial)], initial) {
		t.Fatalf("%d bytes of %d", len(first), len(initial))
	}
	c.t = c.t.Add(time.Second)
	if again := send(initial, true); !bytes.Equal(again, first) {
		t.Error("sent again: another token")
	}
	for _, other := range [][]byte{append([]byte{0xe3, 0, 0, 0, 1, 8}, make([]byte, 50)...), append([]byte{0x43}, make([]byte, 50)...), append([]byte{0xc3, 0, 0, 0, 2, 8}, make([]byte, 50)...), {0xc3}} {
		if got := send(other, true); !bytes.Equal(got, other) {
			t.Errorf("% x became % x", other, got)
		}
	}
	from := netip.MustParseAddrPort("192.0.2.1:7")
	if bk.Datagram(from, port, initial) || !bk.Datagram(from, port, first) || !bk.Datagram(from, port, []byte("later")) {
		t.Error("user space does not open one flow by it")
	}
	if bk.Datagram(netip.MustParseAddrPort("192.0.2.1:8"), port, first) || bk.Datagram(from, port+1, []byte("later")) {
		t.Error("user space opens another")
	}
	c.t = c.t.Add(sameToken)
	if next := send(initial, false); bytes.Equal(next, first) || !bk.Datagram(netip.MustParseAddrPort("192.0.2.1:9"), port, next) {
		t.Error("later: the same token, or one that does not count")
	}
	bk.Remove(ticket.Alias)
	if bk.Datagram(from, port, []byte("later")) {
		t.Error("a flow outlives its ticket")
	}
}

func FuzzKnock(f *testing.F) {
	b, ticket, c, n := setup()
	f.Add(makeKnock(&ticket, n.next(&ticket, c.t), knockPort, want, c.t)[:60])
	f.Add(AppendToken(nil, &ticket, 9, knockPort, UDP))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, _, r := b.Knock(data); r == reason.OK {
			t.Errorf("accepted % x", data)
		}
	})
}

// A SYN that nobody answers is a timeout, so that the next way is tried.
func TestSilenceAfterASYNIsATimeout(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { _ = unix.Listen(int(fd), 0) }); err != nil { // room for one
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	for range 5 {
		c, err := dialSYN(ctx, net.Dialer{}, to, make([]byte, TokenBytes))
		if err == nil {
			defer c.Close()
			continue
		}
		var ne net.Error
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skipf("NOT TESTED: %v", err)
		}
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%T %v", err, err)
		}
		return
	}
	t.Error("a listener without room answered five times")
}
