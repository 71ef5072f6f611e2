package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/yumen-zt/yumen/internal/siphash"
)

// tokenOf makes a token of t.
func tokenOf(t Ticket, counter uint32, port uint16, protocol uint8) []byte {
	b := binary.BigEndian.AppendUint32(t.Alias[:], counter)
	covered := [7]byte{6: protocol}
	copy(covered[:], b[8:])
	binary.BigEndian.PutUint16(covered[4:], port)
	return binary.LittleEndian.AppendUint64(b, siphash.Sum7(&t.Key, &covered))
}

func datagram(from, port uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], port)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

func (g *Guard) passes(t testing.TB, f []byte) bool {
	t.Helper()
	ret, err := g.prog.Run(&ebpf.RunOptions{Data: f})
	if err != nil {
		t.Fatal(err)
	}
	return ret == 2
}

// One map delete closes what a ticket opened, at once.
func TestS38_RevocationClosesFlows(t *testing.T) {
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", TokenUDP: []uint16{8443}, PinDir: t.TempDir()})
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Hour, Port: 8443}
	for i := range uint32(20) {
		if err := g.AddTicket(ticket); err != nil {
			t.Fatal(err)
		}
		from := uint16(1000 + i)
		first := frame("198.51.100.1", 17, datagram(from, 8443, append([]byte("hello"), tokenOf(ticket, i+1, 8443, 17)...)))
		later := frame("198.51.100.1", 17, datagram(from, 8443, []byte("later")))
		if g.passes(t, later) || !g.passes(t, first) || !g.passes(t, later) || !g.passes(t, later) {
			t.Fatal("a token does not open its flow, or something else does")
		}
		if g.passes(t, frame("198.51.100.1", 17, datagram(from+500, 8443, []byte("other port")))) {
			t.Fatal("another port of the same address is open")
		}
		if err := g.RemoveTicket(ticket.Alias); err != nil {
			t.Fatal(err)
		}
		if g.passes(t, later) {
			t.Fatal("the flow outlives its ticket")
		}
	}
}

// A source that is denied loses its open flows, at once, and has them again
// when it is denied no more.
func TestS38_DenyListClosesFlows(t *testing.T) {
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", TokenUDP: []uint16{8443}, PinDir: t.TempDir()})
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Hour, Port: 8443}
	if err := g.AddTicket(ticket); err != nil {
		t.Fatal(err)
	}
	later := frame("198.51.100.1", 17, datagram(5, 8443, []byte("later")))
	if !g.passes(t, frame("198.51.100.1", 17, datagram(5, 8443, tokenOf(ticket, 1, 8443, 17)))) || !g.passes(t, later) || !g.passes(t, later) {
		t.Fatal("the token opens nothing")
	}
	for _, c := range []struct {
		list []netip.Prefix
		want bool
	}{
		{[]netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}, false},
		{nil, true},
		{[]netip.Prefix{netip.MustParsePrefix("198.51.0.0/16")}, false},
		{[]netip.Prefix{netip.MustParsePrefix("198.52.0.0/16")}, true},
	} {
		if err := g.Deny(c.list); err != nil {
			t.Fatal(err)
		}
		if got := g.passes(t, later); got != c.want {
			t.Errorf("denied %v: passes %v", c.list, got)
		}
	}
	// A denied source's genuine token opens nothing that outlives the list.
	if err := g.Deny([]netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}); err != nil {
		t.Fatal(err)
	}
	other := frame("198.51.100.1", 17, datagram(6, 8443, []byte("later")))
	if g.passes(t, frame("198.51.100.1", 17, datagram(6, 8443, tokenOf(ticket, 2, 8443, 17)))) || g.passes(t, other) || g.passes(t, other) {
		t.Error("a token lets a denied source in")
	}
}

// Nothing that comes to the knock port is answered or reaches the stack: the
// program's only answer to one is to take it away (S21).
func TestS21_KnocksGetNoAnswer(t *testing.T) {
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", KnockPort: 62201, PinDir: t.TempDir()})
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Hour, Knock: true}
	if err := g.AddTicket(ticket); err != nil {
		t.Fatal(err)
	}
	for i, payload := range [][]byte{nil, []byte("x"), make([]byte, 1400), tokenOf(ticket, 1, 62201, 17), append(tokenOf(ticket, 2, 62201, 17), make([]byte, 44)...), tokenOf(ticket, 2, 62201, 17)} {
		f := frame("198.51.100.1", 17, datagram(9, 62201, payload))
		out := make([]byte, len(f)+64)
		ret, err := g.prog.Run(&ebpf.RunOptions{Data: f, DataOut: out})
		if err != nil || ret != 1 {
			t.Errorf("datagram %d: returned %d, %v, not drop", i, ret, err)
		}
	}
	c, err := g.Counters()
	if err != nil || c[IPv4][TakeKnock] != 2 || c[IPv4][DropTokenReplayed] != 1 || c[IPv4][DropUnauthorized] != 3 {
		t.Errorf("knocks %d, replayed %d, others %d; %v", c[IPv4][TakeKnock], c[IPv4][DropTokenReplayed], c[IPv4][DropUnauthorized], err)
	}
}

// A rate of one ticket: its holder cannot open without end.
func TestUsesOfATicketAreLimited(t *testing.T) {
	needBPF(t)
	g := mustOpen(t, Config{Interface: "lo", KnockPort: 62201, Uses: Rate{10, 5}, PinDir: t.TempDir()})
	ticket := Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: Now() + time.Hour, Knock: true}
	if err := g.AddTicket(ticket); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for i := range uint32(100) {
		g.passes(t, frame("198.51.100.1", 17, datagram(9, 62201, tokenOf(ticket, i+1, 62201, 17))))
	}
	c, err := g.Counters()
	most := uint64(6 + time.Since(start)/(100*time.Millisecond) + 1)
	if n := c[IPv4][TakeKnock]; err != nil || n < 5 || n > most || n+c[IPv4][DropTicketRate] != 100 {
		t.Errorf("%d of 100 uses counted, 5 to %d expected; %v", n, most, err)
	}
}
