package guard

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/bpf/nft"
	"github.com/yumen-zt/yumen/internal/siphash"
)

// tier is what both tiers have.
type tier interface {
	Attach() error
	Detach() error
	Close() error
	Deny([]netip.Prefix) error
	AddTicket(bpf.Ticket) error
	RemoveTicket([8]byte) error
	OpenPort(netip.Addr, uint16, uint8, [8]byte, time.Duration) error
	Counters() (bpf.Counters, error)
	Run(context.Context, func(bpf.Knock), func(bpf.Drop)) error
}

// wire4 and wire6 are IP packets; hops is the limit, fragment the IPv4 field.
func wire4(source string, protocol, hops uint8, fragment uint16, body []byte) []byte {
	b := make([]byte, 20, 20+len(body))
	b[0], b[8], b[9] = 0x45, hops, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
	binary.BigEndian.PutUint16(b[4:], 7)
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], netip.MustParseAddr(source).AsSlice())
	copy(b[16:], netip.MustParseAddr(gw4).AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b))
	return append(b, checked(b[12:20], protocol, body)...)
}

func wire6(source string, next, hops uint8, body []byte) []byte {
	b := make([]byte, 40, 40+len(body))
	b[0], b[6], b[7] = 0x60, next, hops
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	copy(b[8:], netip.MustParseAddr(source).AsSlice())
	copy(b[24:], netip.MustParseAddr(gw6).AsSlice())
	return append(b, checked(b[8:40], next, body)...)
}

// checked puts the checksum in, which conntrack looks at.
func checked(addresses []byte, protocol uint8, body []byte) []byte {
	at, ok := map[uint8]int{1: 2, 6: 16, 17: 6, 58: 2}[protocol]
	if !ok || len(body) < at+2 {
		return body
	}
	start := uint32(0)
	if protocol != 1 {
		start = uint32(sum(uint32(protocol)+uint32(len(body)), addresses))
	}
	binary.BigEndian.PutUint16(body[at:], 0)
	binary.BigEndian.PutUint16(body[at:], ^sum(start, body))
	return body
}

func sum(s uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

func segment(from, to uint16, flags uint8) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	b[12], b[13] = 0x50, flags
	return b
}

func gram(from, to uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

func icmp(kind uint8) []byte { return []byte{kind, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0} }

// token of k for the UDP port of knocks.
func token(k bpf.Ticket, counter uint32, port uint16) []byte {
	b := binary.BigEndian.AppendUint32(k.Alias[:], counter)
	covered := [7]byte{6: 17}
	copy(covered[:], b[8:])
	binary.BigEndian.PutUint16(covered[4:], port)
	return binary.LittleEndian.AppendUint64(b, siphash.Sum7(&k.Key, &covered))
}

// Both tiers have the same verdict, for the same reason, on packets of every
// kind (S38).
func TestS38_TiersAgree(t *testing.T) {
	needRoot(t)
	for name, open := range map[string]func(bpf.Config) (tier, error){
		"native":   func(c bpf.Config) (tier, error) { return bpf.Open(c) },
		"nftables": func(c bpf.Config) (tier, error) { return nft.Open(c) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			g, err := open(bpf.Config{
				Interface: "g0", TCP: []uint16{published}, UDP: []uint16{published}, TokenUDP: []uint16{hidden}, KnockPort: knockPort, PinDir: t.TempDir(),
				Management: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8:9::/48")},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if err := g.Attach(); err != nil {
				t.Fatal(err)
			}
			agree(t, n, g)
			if err := g.Detach(); err != nil {
				t.Error(err)
			}
		})
	}
}

func agree(t *testing.T, n *network, g tier) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	drops := make(chan bpf.Drop, 1024)
	go func() {
		done <- g.Run(ctx, nil, func(d bpf.Drop) {
			select {
			case drops <- d:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	ticket := bpf.Ticket{Alias: [8]byte{0x90, 1}, Key: [16]byte{1, 2}, Until: bpf.Now() + time.Hour, Port: hidden, Knock: true}
	expired := bpf.Ticket{Alias: [8]byte{0x90, 2}, Key: [16]byte{3}, Until: 1, Knock: true}
	mute := bpf.Ticket{Alias: [8]byte{0x90, 3}, Key: [16]byte{3}, Until: bpf.Now() + time.Hour, Port: hidden}
	for _, k := range []bpf.Ticket{ticket, expired, mute} {
		if err := g.AddTicket(k); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Deny([]netip.Prefix{netip.MustParsePrefix("203.0.113.5/32"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("2001:db8:bad::/64"), netip.MustParsePrefix("2001:db8:c0::/44")}); err != nil {
		t.Fatal(err)
	}
	stranger, six, manager, manager6 := "198.51.100.7", "2001:db8:1::7", "10.9.0.3", "2001:db8:9::3"
	open := func(source string, port uint16, protocol uint8) {
		t.Helper()
		if err := g.OpenPort(netip.MustParseAddr(source), port, protocol, ticket.Alias, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	open(stranger, hidden, 6)
	open(six, 8444, 17)
	forged := token(ticket, 5, knockPort)
	forged[19] ^= 1
	genuine := token(ticket, 6, knockPort)
	send := n.r.sender(t)
	for i, c := range []struct {
		what string
		f    bpf.Family
		v    bpf.Verdict
		p    []byte
	}{
		{"unknown link protocol", bpf.Other, bpf.DropLink, nil},
		{"SYN, closed port", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 6, 64, 0, segment(40000, 22, 2))},
		{"SYN, closed port", bpf.IPv6, bpf.DropUnauthorized, wire6(six, 6, 64, segment(40000, hidden, 2))},
		{"ACK", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 6, 64, 0, segment(40000, 22, 16))},
		{"ACK", bpf.IPv6, bpf.DropUnauthorized, wire6(six, 6, 64, segment(40000, hidden, 16))},
		{"SYN and ACK", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 6, 64, 0, segment(40000, 22, 18))},
		{"RST", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 6, 64, 0, segment(40000, 22, 4))},
		{"no flags", bpf.IPv4, bpf.DropTCPFlags, wire4(stranger, 6, 64, 0, segment(40000, published, 0))},
		{"FIN alone", bpf.IPv6, bpf.DropTCPFlags, wire6(six, 6, 64, segment(40000, published, 1))},
		{"SYN and FIN", bpf.IPv4, bpf.DropTCPFlags, wire4(stranger, 6, 64, 0, segment(40000, published, 3))},
		{"SYN and RST", bpf.IPv4, bpf.DropTCPFlags, wire4(stranger, 6, 64, 0, segment(40000, published, 6))},
		{"SYN, published", bpf.IPv4, bpf.PassPublished, wire4(stranger, 6, 64, 0, segment(40000, published, 2))},
		{"SYN, published", bpf.IPv6, bpf.PassPublished, wire6(six, 6, 64, segment(40000, published, 2))},
		{"UDP, published", bpf.IPv4, bpf.PassPublished, wire4(stranger, 17, 64, 0, gram(40000, published, nil))},
		{"UDP, closed", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 17, 64, 0, gram(53, 40000, []byte("answer")))},
		{"UDP, closed", bpf.IPv6, bpf.DropUnauthorized, wire6(six, 17, 64, gram(53, 40000, []byte("answer")))},
		{"GRE", bpf.IPv4, bpf.DropProtocol, wire4(stranger, 47, 64, 0, make([]byte, 8))},
		{"SCTP of who manages", bpf.IPv4, bpf.PassManagement, wire4(manager, 132, 64, 0, make([]byte, 12))},
		{"TCP, first fragment", bpf.IPv4, bpf.DropFragment, wire4(stranger, 6, 64, 0x2000, segment(40000, published, 2))},
		{"UDP, later fragment", bpf.IPv4, bpf.DropFragment, wire4(stranger, 17, 64, 100, gram(40000, published, nil))},
		{"TCP fragment of who manages", bpf.IPv4, bpf.DropFragment, wire4(manager, 6, 64, 0x2000, segment(40000, published, 2))},
		{"fragment", bpf.IPv6, bpf.DropFragment, wire6(six, 44, 64, append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, gram(40000, published, nil)...))},
		{"from 127.0.0.1", bpf.IPv4, bpf.DropSource, wire4("127.0.0.1", 6, 64, 0, segment(40000, published, 2))},
		{"from multicast", bpf.IPv4, bpf.DropSource, wire4("224.0.0.5", 6, 64, 0, segment(40000, published, 2))},
		{"from multicast", bpf.IPv6, bpf.DropSource, wire6("ff02::1", 6, 64, segment(40000, published, 2))},
		{"from a mapped address", bpf.IPv6, bpf.DropSource, wire6("::ffff:10.9.0.3", 6, 64, segment(40000, published, 2))},
		{"denied address", bpf.IPv4, bpf.DropDenied, wire4("203.0.113.5", 6, 64, 0, segment(40000, published, 2))},
		{"denied network", bpf.IPv4, bpf.DropDenied, wire4("100.65.1.1", 17, 64, 0, gram(40000, published, nil))},
		{"denied /64", bpf.IPv6, bpf.DropDenied, wire6("2001:db8:bad::9", 6, 64, segment(40000, published, 2))},
		{"denied network", bpf.IPv6, bpf.DropDenied, wire6("2001:db8:cf::9", 6, 64, segment(40000, published, 2))},
		{"who manages", bpf.IPv4, bpf.PassManagement, wire4(manager, 6, 64, 0, segment(40000, 22, 2))},
		{"who manages", bpf.IPv6, bpf.PassManagement, wire6(manager6, 17, 64, gram(40000, 53, nil))},
		{"echo request", bpf.IPv4, bpf.DropICMPType, wire4(stranger, 1, 64, 0, icmp(8))},
		{"echo request", bpf.IPv6, bpf.DropICMPType, wire6(six, 58, 64, icmp(128))},
		{"timestamp", bpf.IPv4, bpf.DropICMPType, wire4(stranger, 1, 64, 0, icmp(13))},
		{"unreachable", bpf.IPv4, bpf.PassICMP, wire4(stranger, 1, 64, 0, icmp(3))},
		{"packet too big", bpf.IPv6, bpf.PassICMP, wire6(six, 58, 64, icmp(2))},
		{"solicitation from beyond a router", bpf.IPv6, bpf.DropICMPType, wire6(six, 58, 254, icmp(135))},
		{"solicitation", bpf.IPv6, bpf.PassNeighbour, wire6(six, 58, 255, icmp(135))},
		{"echo request of who manages", bpf.IPv4, bpf.PassManagement, wire4(manager, 1, 64, 0, icmp(8))},
		{"knock, forged", bpf.IPv4, bpf.DropTokenForged, wire4(stranger, 17, 64, 0, gram(40000, knockPort, forged))},
		{"knock, genuine", bpf.IPv4, bpf.TakeKnock, wire4(stranger, 17, 64, 0, gram(40000, knockPort, genuine))},
		{"knock, again", bpf.IPv4, bpf.DropTokenReplayed, wire4(stranger, 17, 64, 0, gram(40000, knockPort, genuine))},
		{"knock, too old", bpf.IPv4, bpf.DropTokenReplayed, wire4(stranger, 17, 64, 0, gram(40000, knockPort, token(ticket, 0, knockPort)))},
		{"knock, unknown ticket", bpf.IPv6, bpf.DropTicketUnknown, wire6(six, 17, 64, gram(40000, knockPort, token(bpf.Ticket{Alias: [8]byte{0x99}}, 1, knockPort)))},
		{"knock, expired ticket", bpf.IPv6, bpf.DropTicketExpired, wire6(six, 17, 64, gram(40000, knockPort, token(expired, 1, knockPort)))},
		{"knock, of who may not", bpf.IPv6, bpf.DropTicketPort, wire6(six, 17, 64, gram(40000, knockPort, token(mute, 1, knockPort)))},
		{"knock, genuine", bpf.IPv6, bpf.TakeKnock, wire6(six, 17, 64, gram(40000, knockPort, token(ticket, 7, knockPort)))},
		{"knock, of who is denied", bpf.IPv4, 0, wire4("203.0.113.5", 17, 64, 0, gram(40000, knockPort, token(ticket, 8, knockPort)))},
		{"ACK to what a knock opened", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 6, 64, 0, segment(40001, hidden, 16))},
		{"SYN to what a knock opened", bpf.IPv4, bpf.PassPermit, wire4(stranger, 6, 64, 0, segment(40002, hidden, 2))},
		{"second connection of one knock", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 6, 64, 0, segment(40003, hidden, 2))},
		{"neighbour of who knocked", bpf.IPv4, bpf.DropUnauthorized, wire4("198.51.100.8", 6, 64, 0, segment(40002, hidden, 2))},
		{"UDP to what a knock opened", bpf.IPv6, bpf.PassPermit, wire6(six, 17, 64, gram(40000, 8444, []byte("one")))},
		{"its flow", bpf.IPv6, bpf.PassFlow, wire6(six, 17, 64, gram(40000, 8444, []byte("two")))},
		{"second flow of one knock", bpf.IPv6, bpf.DropUnauthorized, wire6(six, 17, 64, gram(40001, 8444, []byte("one")))},
		{"first datagram with a token", bpf.IPv4, bpf.PassToken, wire4(stranger, 17, 64, 0, gram(40005, hidden, append([]byte("initial"), token(ticket, 9, hidden)...)))},
		{"its flow", bpf.IPv4, bpf.PassFlow, wire4(stranger, 17, 64, 0, gram(40005, hidden, []byte("later")))},
		{"other port beside a flow", bpf.IPv4, bpf.DropUnauthorized, wire4(stranger, 17, 64, 0, gram(40006, hidden, []byte("later")))},
		{"first datagram, token for another port", bpf.IPv4, bpf.DropTokenForged, wire4(stranger, 17, 64, 0, gram(40007, hidden, append([]byte("initial"), token(ticket, 10, 99)...)))},
	} {
		counters := func() bpf.Counters {
			k, err := g.Counters()
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		was := counters()
		send(c.p)
		if c.v == 0 { // a drop, in any case
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if now := counters(); now.Dropped() > was.Dropped() && now[c.f][bpf.TakeKnock] == was[c.f][bpf.TakeKnock] {
					break
				}
				if time.Now().After(end) {
					t.Errorf("%d %s: not dropped", i, c.what)
					break
				}
			}
			continue
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(200 * time.Microsecond) {
			now := counters()
			if now[c.f][c.v] > was[c.f][c.v] {
				break
			}
			if time.Now().After(end) {
				s := ""
				for f := range now {
					for v := range now[f] {
						if now[f][v] > was[f][v] {
							s += fmt.Sprint(" ", bpf.Family(f), " ", bpf.Verdict(v))
						}
					}
				}
				t.Errorf("%d %s: not %v %v but%s", i, c.what, c.f, c.v, s)
				break
			}
		}
	}

	// What a ticket opened closes with it, at once.
	if err := g.RemoveTicket(ticket.Alias); err != nil {
		t.Fatal(err)
	}
	was, err := g.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{
		wire4(stranger, 17, 64, 0, gram(40005, hidden, []byte("later"))), wire6(six, 17, 64, gram(40000, 8444, []byte("three"))),
		wire4(stranger, 17, 64, 0, gram(40000, knockPort, token(ticket, 30, knockPort))),
	} {
		send(p)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		now, err := g.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if now.Dropped() >= was.Dropped()+3 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("after the ticket went %d of 3 were dropped, flows +%d +%d", now.Dropped()-was.Dropped(), now[bpf.IPv4][bpf.PassFlow]-was[bpf.IPv4][bpf.PassFlow], now[bpf.IPv6][bpf.PassFlow]-was[bpf.IPv6][bpf.PassFlow])
			break
		}
	}

	// Samples name source, port and reason.
	for end := time.After(5 * time.Second); ; {
		select {
		case d := <-drops:
			if d.Source == netip.MustParseAddrPort("198.51.100.7:40000") && d.Port == 22 && d.Protocol == 6 && d.Verdict == bpf.DropUnauthorized && d.Weight > 0 {
				return
			}
		case <-end:
			t.Error("no sample of a drop came")
			return
		}
	}
}

// sender returns what puts IP packets on n's wire to the gateway; nil: a frame
// of no IP.
func (n *netns) sender(t *testing.T) func([]byte) {
	t.Helper()
	ifc, err := net.InterfaceByName("g0")
	if err != nil {
		t.Fatal(err)
	}
	var fd, index int
	var mac net.HardwareAddr
	n.in(t, func() {
		h, err := net.InterfaceByName("h0")
		if err != nil {
			t.Error(err)
			return
		}
		index, mac = h.Index, h.HardwareAddr
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func(p []byte) {
		t.Helper()
		kind := uint16(0x88b5)
		switch {
		case len(p) == 0:
			p = make([]byte, 50)
		case p[0]>>4 == 4:
			kind = 0x0800
		default:
			kind = 0x86dd
		}
		frame := append(append(append([]byte{}, ifc.HardwareAddr...), mac...), byte(kind>>8), byte(kind))
		if err := unix.Sendto(fd, append(frame, p...), 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
			t.Error(err)
		}
	}
}
