package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/yumen-zt/yumen/internal/siphash"
)

// The world of the differential test.
var (
	here4   = netip.MustParseAddr("192.0.2.1")
	here6   = netip.MustParseAddr("2001:db8::1")
	sources = []netip.Addr{
		netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.8"), netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("203.0.113.6"),
		netip.MustParseAddr("10.9.0.3"), netip.MustParseAddr("10.8.0.3"), netip.MustParseAddr("100.64.1.1"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("0.0.0.0"),
		netip.MustParseAddr("2001:db8:1::7"), netip.MustParseAddr("2001:db8:1::8"), netip.MustParseAddr("2001:db8:bad::5"), netip.MustParseAddr("2001:db8:bad:1::5"),
		netip.MustParseAddr("2001:db8:9::3"), netip.MustParseAddr("2001:db8:c0::1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("::1"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("::"),
	}
	ports = []uint16{443, 8443, 8444, 4433, 62201, 5353, 68, 546, 22, 0, 65535}
)

// newWorld returns a configuration, its model, and sockets that the model
// knows, in this thread's namespace.
func newWorld(t testing.TB) (Config, *model) {
	t.Helper()
	ip(t, "addr add 192.0.2.1/32 dev lo")
	ip(t, "addr add 2001:db8::1/128 dev lo nodad")
	cfg := Config{
		Interface: "lo", TCP: []uint16{443}, UDP: []uint16{443}, TokenUDP: []uint16{8443, 8444}, KnockPort: 62201, DHCP: true, SYNToken: true,
		Management: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8:9::/48")},
		ICMP:       Rate{10_000_000, 10_000_000}, Uses: Rate{10_000_000, 10_000_000}, FlowIdle: time.Hour, SYNOpen: time.Hour,
	}
	m := &model{
		tcp: map[uint16]bool{443: true}, udp: map[uint16]bool{443: true}, tokenUDP: map[uint16]bool{8443: true, 8444: true}, knock: 62201, dhcp: true, syn: true,
		management: cfg.Management,
		denied: []netip.Prefix{
			netip.MustParsePrefix("203.0.113.5/32"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("10.9.0.3/32"),
			netip.MustParsePrefix("2001:db8:bad::/64"), netip.MustParsePrefix("2001:db8:c0::/44"), netip.MustParsePrefix("203.0.112.0/25"),
		},
		tickets: map[[8]byte]*modelTicket{}, knocked: map[modelOpening]*modelKnocked{}, flows: map[modelOpening][8]byte{},
	}
	type pair struct{ a, b netip.AddrPort }
	tcp, udp := map[pair]bool{}, map[pair]bool{}
	for _, h := range []netip.Addr{here4, here6} {
		ln, err := net.Listen("tcp", netip.AddrPortFrom(h, 8443).String())
		if err != nil {
			t.Fatal(err)
		}
		var c net.Conn
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the address may still be on its way
			if c, err = net.Dial("tcp", ln.Addr().String()); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h, 5353))) // not connected
		if err != nil {
			t.Fatal(err)
		}
		d, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(h, 5353)))
		if err != nil {
			t.Fatal(err)
		}
		own, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h, 8444)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(h, 5353))) // from a port of tokens
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ln.Close()
			c.Close()
			far.Close()
			u.Close()
			d.Close()
			own.Close()
		})
		local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), ln.Addr().(*net.TCPAddr).AddrPort()
		tcp[pair{local, remote}], tcp[pair{remote, local}] = true, true
		udp[pair{u.LocalAddr().(*net.UDPAddr).AddrPort(), d.LocalAddr().(*net.UDPAddr).AddrPort()}] = true
		udp[pair{u.LocalAddr().(*net.UDPAddr).AddrPort(), own.LocalAddr().(*net.UDPAddr).AddrPort()}] = true
	}
	for p := range tcp {
		sockets = append(sockets, [2]netip.AddrPort{p.a, p.b})
	}
	for p := range udp {
		sockets = append(sockets, [2]netip.AddrPort{p.a, p.b})
	}
	at := func(p *modelPacket) pair {
		return pair{netip.AddrPortFrom(p.source, p.from), netip.AddrPortFrom(p.dest, p.port)}
	}
	m.established = func(p *modelPacket) bool { return tcp[at(p)] }
	m.connected = func(p *modelPacket) bool { return udp[at(p)] }
	return cfg, m
}

var sockets [][2]netip.AddrPort // both ends of what the world connected

// fill puts the model's lists, tickets and openings into g.
func (m *model) fill(t testing.TB, g *Guard) {
	t.Helper()
	if err := g.Deny(m.denied); err != nil {
		t.Fatal(err)
	}
	for i, v := range []Ticket{
		{Port: 8443, Knock: true}, {Port: 8443, Protocol: 6}, {Port: 8444, Protocol: 17, Knock: true}, {Port: 8444, Protocol: 17},
		{Port: 8443, Knock: true, Until: 1}, {Knock: true}, {Port: 4433},
	} {
		v.Alias, v.Key = [8]byte{0x80 | byte(i), 1, 2, 3}, [16]byte{byte(i), 0xaa, 15: byte(i)}
		expired := v.Until == 1
		if !expired {
			v.Until = Now() + time.Hour
		}
		if err := g.AddTicket(v); err != nil {
			t.Fatal(err)
		}
		m.tickets[v.Alias] = &modelTicket{Ticket: v, expired: expired, used: map[uint32]bool{}}
	}
	m.knocking(t, g)
}

// knocking opens ports as knocks do, and forgets some tickets.
func (m *model) knocking(t testing.TB, g *Guard) {
	for i, s := range []netip.Addr{sources[0], sources[2], sources[3], sources[10], sources[12], sources[13]} {
		for _, o := range []struct {
			port     uint16
			protocol uint8
		}{{8443, 6}, {8444, 17}, {22, 6}} {
			alias := [8]byte{0x80 | byte(i%7), 1, 2, 3}
			if o.port == 22 {
				alias[7] = 9 // of a ticket that is gone
			}
			if err := g.OpenPort(s, o.port, o.protocol, alias, time.Hour); err != nil {
				t.Fatal(err)
			}
			m.knocked[modelOpening{s, 0, o.port, o.protocol}] = &modelKnocked{alias: alias}
		}
	}
}

// token makes one, genuine or nearly.
func (m *model) anyToken(r *rand.Rand, port uint16, protocol uint8) []byte {
	b := make([]byte, 20)
	alias := [8]byte{0x80 | byte(r.IntN(9)), 1, 2, 3}
	copy(b, alias[:])
	counter := r.Uint32N(200)
	if k := m.tickets[alias]; k != nil {
		switch r.IntN(4) {
		case 0:
			counter = k.newest + 1 + r.Uint32N(40)
		case 1:
			counter = k.newest - min(k.newest, r.Uint32N(36))
		case 2:
			counter = k.newest + 1
		}
	}
	binary.BigEndian.PutUint32(b[8:], counter)
	covered := [7]byte{6: protocol}
	copy(covered[:], b[8:12])
	binary.BigEndian.PutUint16(covered[4:], port)
	var key [16]byte
	if k := m.tickets[alias]; k != nil {
		key = k.Key
	}
	binary.LittleEndian.PutUint64(b[12:], siphash.Sum7(&key, &covered))
	if r.IntN(8) == 0 {
		b[r.IntN(20)] ^= 1 << r.IntN(8)
	}
	return b
}

// packet makes one that is well-formed but for what it mutates.
func (m *model) packet(r *rand.Rand) []byte {
	six := r.IntN(2) == 0
	src := sources[r.IntN(10)]
	dst := here4
	if six {
		src, dst = sources[10+r.IntN(10)], here6
	}
	from, port := uint16(r.IntN(9)), ports[r.IntN(len(ports))]
	if r.IntN(3) > 0 {
		from = 40000 + from
	}
	if r.IntN(20) == 0 {
		from = []uint16{67, 547}[r.IntN(2)]
	}
	protocol := []uint8{6, 6, 6, 17, 17, 17, 1, 58, 47, 0}[r.IntN(10)]
	if r.IntN(6) == 0 { // one of the sockets'
		s := sockets[r.IntN(len(sockets))]
		src, from, dst, port = s[0].Addr(), s[0].Port(), s[1].Addr(), s[1].Port()
		six = src.Is6()
		if protocol != 6 && protocol != 17 {
			protocol = 6
		}
	}
	if r.IntN(4) == 0 { // where tickets are for
		k := []struct {
			port     uint16
			protocol uint8
		}{{8443, 6}, {8444, 17}, {62201, 17}, {4433, 6}, {8443, 17}, {22, 6}}[r.IntN(6)]
		port, protocol = k.port, k.protocol
		src = sources[r.IntN(4)]
		if dst == here6 {
			src = sources[10+r.IntN(4)]
		}
	}
	payload := make([]byte, r.IntN(60))
	if r.IntN(2) == 0 {
		payload = append(m.anyToken(r, port, protocol), payload...)
		if r.IntN(2) == 0 {
			payload = append(payload, m.anyToken(r, port, protocol)...)
		}
	}
	if r.IntN(30) == 0 {
		payload = append(payload, make([]byte, 200)...)
	}
	var seg []byte
	switch protocol {
	case 6:
		opts := 4 * (r.IntN(10) / 6)
		seg = make([]byte, 20+opts)
		seg[12] = byte(5+opts/4) << 4
		seg[13] = []byte{2, 2, 2, 16, 18, 24, 4, 1, 0, 3, 6, 41, byte(r.IntN(256))}[r.IntN(13)]
		seg = append(seg, payload...)
	case 17:
		seg = append(make([]byte, 8), payload...)
		n := len(seg)
		if r.IntN(10) == 0 {
			n -= min(r.IntN(30), n)
		}
		binary.BigEndian.PutUint16(seg[4:], uint16(n))
	case 1, 58:
		seg = append(make([]byte, 8), payload...)
		seg[0] = []byte{0, 3, 8, 11, 12, 13, 1, 2, 4, 128, 129, 130, 133, 135, 137, 138, 143}[r.IntN(17)]
	default:
		seg = payload
	}
	if (protocol == 6 || protocol == 17) && len(seg) >= 4 {
		binary.BigEndian.PutUint16(seg, from)
		binary.BigEndian.PutUint16(seg[2:], port)
	}
	frame := make([]byte, 12, 256)
	for range r.IntN(8) / 5 * (1 + r.IntN(3)) {
		frame = binary.BigEndian.AppendUint16(frame, []uint16{0x8100, 0x88a8}[r.IntN(2)])
		frame = append(frame, 0, 5)
	}
	if six {
		frame = binary.BigEndian.AppendUint16(frame, 0x86dd)
		frame = append(frame, packet6(r, src, dst, protocol, seg)...)
	} else {
		frame = binary.BigEndian.AppendUint16(frame, []uint16{0x0800, 0x0800, 0x0800, 0x0800, 0x0800, 0x0800, 0x0800, 0x0806, 0x88cc}[r.IntN(9)])
		frame = append(frame, packet4(r, src, dst, protocol, seg)...)
	}
	switch r.IntN(12) {
	case 0:
		frame[r.IntN(len(frame))] ^= 1 << r.IntN(8)
	case 1:
		frame[r.IntN(len(frame))] = byte(r.IntN(256))
	case 2:
		frame = frame[:14+r.IntN(len(frame)-13)]
	case 3:
		frame = append(frame, make([]byte, r.IntN(20))...) // padding of the link
	}
	return frame
}

func packet4(r *rand.Rand, src, dst netip.Addr, protocol uint8, seg []byte) []byte {
	opts := 4 * (r.IntN(12) / 9)
	b := make([]byte, 20+opts)
	b[0], b[8], b[9] = 0x40|byte(5+opts/4), 64, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(seg)))
	if r.IntN(10) == 0 {
		binary.BigEndian.PutUint16(b[6:], []uint16{0x4000, 0x2000, 0x2001, 0x0100, 0x8000, 0x1fff}[r.IntN(6)])
	}
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	return append(b, seg...)
}

func packet6(r *rand.Rand, src, dst netip.Addr, protocol uint8, seg []byte) []byte {
	b := make([]byte, 40)
	b[0], b[7] = 0x60, []byte{64, 255, 255, 1}[r.IntN(4)]
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	last := &b[6]
	n := r.IntN(10) / 6 * r.IntN(9)
	chain := make([]byte, 0, 16*n)
	for i := range n {
		kind := []byte{0, 43, 60, 51, 44, 60}[r.IntN(6)]
		if kind == 0 && i > 0 && r.IntN(4) > 0 {
			kind = 60
		}
		*last = kind
		at := len(chain)
		switch kind {
		case 51:
			k := 1 + r.IntN(4)
			chain = append(chain, make([]byte, (k+2)*4)...)
			chain[at+1] = byte(k)
		case 44:
			chain = append(chain, make([]byte, 8)...)
			if r.IntN(2) == 0 {
				chain[at+2+r.IntN(2)] = byte(r.IntN(256))
			}
		default:
			k := r.IntN(2)
			chain = append(chain, make([]byte, (k+1)*8)...)
			chain[at+1] = byte(k)
		}
		last = &chain[:cap(chain)][at]
		if cap(chain) < len(chain)+64 {
			grown := make([]byte, len(chain), 2*cap(chain)+64)
			copy(grown, chain)
			chain = grown
			last = &chain[at]
		}
	}
	*last = protocol
	binary.BigEndian.PutUint16(b[4:], uint16(len(chain)+len(seg)))
	return append(append(b, chain...), seg...)
}

// disagreement is a packet of which program and model think differently.
type disagreement struct {
	n         int
	frame     []byte
	want, got string
}

func (d *disagreement) Error() string {
	return fmt.Sprintf("packet %d: model %s, program %s\n% x", d.n, d.want, d.got, d.frame)
}

// compare runs n packets through program and model.
func compare(t testing.TB, g *Guard, m *model, seed uint64, n int) (seen map[Verdict]int, err error) {
	r := rand.New(rand.NewPCG(seed, 1))
	knocks, err := ringbuf.NewReader(g.maps[guardMapKnocks])
	if err != nil {
		t.Fatal(err)
	}
	defer knocks.Close()
	counters := g.maps[guardMapCounters]
	var shadow Counters
	var cpus []uint64
	count := func(f Family, v Verdict) (sum uint64) {
		if err := counters.Lookup(uint32(f)*verdicts+uint32(v), &cpus); err != nil {
			t.Fatal(err)
		}
		for _, c := range cpus {
			sum += c
		}
		return sum
	}
	if shadow, err = g.Counters(); err != nil {
		t.Fatal(err)
	}
	seen = map[Verdict]int{}
	for i := range n {
		if i%5000 == 4999 {
			if err := g.rebuildKnown(); err != nil {
				t.Fatal(err)
			}
			m.revoke(t, g)
		}
		frame := m.packet(r)
		f, v := m.verdict(frame)
		ret, err := g.prog.Run(&ebpf.RunOptions{Data: frame})
		if err != nil {
			t.Fatal(err)
		}
		shadow[f][v]++
		seen[v]++
		if count(f, v) != shadow[f][v] || v.Passed() != (ret == 2) {
			d := &disagreement{n: i, frame: frame, want: fmt.Sprint(f, " ", v), got: fmt.Sprint("returned ", ret)}
			now, _ := g.Counters()
			for f := range now {
				for v := range now[f] {
					if now[f][v] > shadow[f][v] {
						d.got += fmt.Sprint(" ", Family(f), " ", Verdict(v))
					}
				}
			}
			return seen, d
		}
		if v == TakeKnock {
			knocks.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := knocks.Read(); err != nil {
				return seen, fmt.Errorf("packet %d: knock not delivered: %w", i, err)
			}
		}
	}
	return seen, nil
}

// revoke takes the next ticket away, and brings the one before back, unused.
// What it opened ends at once.
func (m *model) revoke(t testing.TB, g *Guard) {
	t.Helper()
	if k := m.revoked; k != nil {
		k.used, k.newest = map[uint32]bool{}, 0
		m.tickets[k.Alias] = k
		if err := g.AddTicket(k.Ticket); err != nil {
			t.Fatal(err)
		}
	}
	m.turn++
	alias := [8]byte{0x80 | byte(m.turn%4), 1, 2, 3}
	m.revoked = m.tickets[alias]
	delete(m.tickets, alias)
	if err := g.RemoveTicket(alias); err != nil {
		t.Fatal(err)
	}
}

func packets() int {
	if os.Getenv("YUMEN_LONG") == "1" {
		return 2_000_000
	}
	return 180_000
}

// openWorld loads the guard, without attaching it, with the world's entries.
func openWorld(t testing.TB, cfg Config, m *model) *Guard {
	t.Helper()
	spec, err := loadGuard()
	if err != nil {
		t.Fatal(err)
	}
	return openWorldOf(t, spec, cfg, m)
}

func openWorldOf(t testing.TB, spec *ebpf.CollectionSpec, cfg Config, m *model) *Guard {
	t.Helper()
	cfg.Sizes = Sizes{Denied: 64, Networks: 64, Tickets: 64, Openings: 4096, Sources: 64}
	cfg.PinDir = t.TempDir() // nothing is pinned here
	g, err := openSpec(spec, cfg)
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("NOT TESTED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	g.tune.store32(tuneSample, noSamples)
	m.fill(t, g)
	return g
}

// The program and the model agree in verdict and reason on packets of every
// kind. Long: a million and more.
func TestS38_ProgramAgreesWithModel(t *testing.T) {
	needBPF(t)
	inNetns(t)
	cfg, m := newWorld(t)
	total := map[Verdict]int{}
	rounds := max(1, packets()/60_000)
	for seed := range rounds {
		m.revoked, m.tickets, m.knocked, m.flows = nil, map[[8]byte]*modelTicket{}, map[modelOpening]*modelKnocked{}, map[modelOpening][8]byte{}
		cfg.Ping, m.ping = seed%2 == 1, seed%2 == 1
		g := openWorld(t, cfg, m)
		seen, err := compare(t, g, m, uint64(seed)+uint64(time.Now().UnixNano()), packets()/rounds)
		if err != nil {
			t.Fatal(err)
		}
		for v, n := range seen {
			total[v] += n
		}
		g.Close()
	}
	t.Logf("%d packets: %v", packets(), total)
	for _, v := range []Verdict{
		PassARP, PassNeighbour, PassICMP, PassDHCP, PassPublished, PassManagement, PassEstablished, PassReply, PassFlow, PassPermit, PassToken,
		DropMalformed, DropLink, DropProtocol, DropFragment, DropExtension, DropSource, DropUnauthorized, DropDenied, DropICMPType, DropTCPFlags,
		TakeKnock, DropTicketUnknown, DropTicketExpired, DropTicketPort, DropTokenForged, DropTokenReplayed,
	} {
		if total[v] == 0 {
			t.Errorf("no packet was %v: the test does not reach it", v)
		}
	}
}
