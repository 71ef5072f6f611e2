package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/yumen-zt/yumen/internal/siphash"
)

// model is what the guard should do, said once more and in another way: it
// reads a packet from the front with slices, knows nothing of offsets, maps or
// prefilters, and is the oracle of the differential test.
type model struct {
	tcp, udp, tokenUDP map[uint16]bool
	management         []netip.Prefix
	denied             []netip.Prefix
	knock              uint16
	dhcp, ping, syn    bool
	tickets            map[[8]byte]*modelTicket
	knocked            map[modelOpening]*modelKnocked // what knocks opened: port of the source is 0
	flows              map[modelOpening][8]byte
	revoked            *modelTicket
	turn               int
	established        func(p *modelPacket) bool
	connected          func(p *modelPacket) bool
}

type modelTicket struct {
	Ticket
	expired bool
	used    map[uint32]bool
	newest  uint32
}

type modelOpening struct {
	source     netip.Addr
	from, port uint16
	protocol   uint8
}

type modelKnocked struct {
	alias [8]byte
	bound uint16
	taken bool
}

type modelPacket struct {
	family             Family
	source, dest       netip.Addr
	protocol, hops     uint8
	fragment           bool
	from, port         uint16
	flags              uint8 // of TCP, or type of ICMP
	payload, transport []byte
}

func (m *model) verdict(frame []byte) (Family, Verdict) {
	p, v := m.read(frame)
	if v != 0 {
		return p.family, v
	}
	managed := inAny(m.management, p.source)
	if p.fragment {
		if managed && p.protocol != 6 {
			return p.family, PassManagement
		}
		return p.family, DropFragment
	}
	switch v = p.ports(); {
	case v == DropProtocol && managed:
		return p.family, PassManagement
	case v != 0:
		return p.family, v
	}
	v = m.admit(p, managed)
	if !v.Passed() || v == PassNeighbour || v == PassManagement {
		return p.family, v
	}
	if inAny(m.denied, p.source) && !managed {
		return p.family, DropDenied
	}
	return p.family, v
}

func inAny(all []netip.Prefix, a netip.Addr) bool {
	for _, p := range all {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// read is everything below the transport.
func (m *model) read(frame []byte) (*modelPacket, Verdict) {
	p := &modelPacket{}
	if len(frame) < 14 {
		return p, DropMalformed
	}
	kind, rest := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for range 2 {
		if kind != 0x8100 && kind != 0x88a8 {
			break
		}
		if len(rest) < 4 {
			return p, DropMalformed
		}
		kind, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	switch kind {
	case 0x0806:
		return p, PassARP
	case 0x0800:
		p.family = IPv4
		return p, p.readV4(rest)
	case 0x86dd:
		p.family = IPv6
		return p, p.readV6(rest)
	}
	return p, DropLink
}

func (p *modelPacket) readV4(b []byte) Verdict {
	if len(b) < 20 || b[0]>>4 != 4 {
		return DropMalformed
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return DropMalformed
	}
	p.source, p.dest = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	p.protocol, p.hops = b[9], b[8]
	p.fragment = binary.BigEndian.Uint16(b[6:])&0x3fff != 0
	p.transport = b[header:total]
	if first := b[12]; first == 0 || first == 127 || first >= 224 {
		return DropSource
	}
	return 0
}

func (p *modelPacket) readV6(b []byte) Verdict {
	if len(b) < 40 || b[0]>>4 != 6 {
		return DropMalformed
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n == 0 || n > len(b)-40 {
		return DropMalformed
	}
	p.source, p.dest = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	p.hops = b[7]
	next, rest := b[6], b[40:40+n]
	for i := 0; ; i++ {
		switch next {
		case 0:
			if i != 0 {
				return DropExtension
			}
		case 43, 60, 51, 44:
		default:
			p.protocol, p.transport = next, rest
			s := p.source
			switch {
			case s.Is4In6(), s.IsMulticast(), s.IsLoopback():
				return DropSource
			case bytes.Equal(s.AsSlice()[:12], make([]byte, 12)) && (!s.IsUnspecified() || next != 58):
				return DropSource
			}
			return 0
		}
		if i == 6 {
			return DropExtension
		}
		if len(rest) < 8 {
			return DropMalformed
		}
		size := (int(rest[1]) + 1) * 8
		switch next {
		case 44:
			p.fragment, size = true, 8
			if binary.BigEndian.Uint16(rest[2:])>>3 != 0 {
				p.protocol = rest[0]
				return 0
			}
		case 51:
			size = (int(rest[1]) + 2) * 4
		}
		if size > len(rest) {
			return DropMalformed
		}
		next, rest = rest[0], rest[size:]
	}
}

// ports reads the transport's header.
func (p *modelPacket) ports() Verdict {
	b := p.transport
	switch {
	case p.protocol == 6:
		if len(b) < 20 {
			return DropMalformed
		}
		header := int(b[12]>>4) * 4
		if header < 20 || header > len(b) {
			return DropMalformed
		}
		p.from, p.port, p.flags, p.payload = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[13], b[header:]
		if p.from == 0 || p.port == 0 {
			return DropMalformed
		}
		syn, ack, fin, rst := p.flags&2 != 0, p.flags&16 != 0, p.flags&1 != 0, p.flags&4 != 0
		if syn && (fin || rst) || !syn && !ack && !rst {
			return DropTCPFlags
		}
	case p.protocol == 17:
		if len(b) < 8 {
			return DropMalformed
		}
		n := int(binary.BigEndian.Uint16(b[4:]))
		if n < 8 || n > len(b) {
			return DropMalformed
		}
		p.from, p.port, p.payload = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[8:n]
		if p.from == 0 || p.port == 0 {
			return DropMalformed
		}
	case p.protocol == 1 && p.family == IPv4, p.protocol == 58 && p.family == IPv6:
		if len(b) < 8 {
			return DropMalformed
		}
		p.flags = b[0]
	default:
		return DropProtocol
	}
	return 0
}

// admit is who may pass, deny lists and rates apart.
func (m *model) admit(p *modelPacket, managed bool) Verdict {
	else_ := func(v Verdict) Verdict {
		if managed {
			return PassManagement
		}
		return v
	}
	switch p.protocol {
	case 6:
		return m.admitTCP(p, else_)
	case 17:
		return m.admitUDP(p, else_)
	case 1:
		switch p.flags {
		case 0, 3, 11, 12:
			return PassICMP
		case 8:
			if m.ping {
				return PassPing
			}
		}
	default:
		switch t := p.flags; {
		case t >= 133 && t <= 137:
			if p.hops == 255 {
				return PassNeighbour
			}
			return DropICMPType
		case t >= 130 && t <= 132, t == 143:
			if p.hops == 1 {
				return PassNeighbour
			}
			return DropICMPType
		case t >= 1 && t <= 4, t == 129:
			return PassICMP
		case t == 128 && m.ping:
			return PassPing
		}
	}
	return else_(DropICMPType)
}

func (m *model) admitTCP(p *modelPacket, else_ func(Verdict) Verdict) Verdict {
	first := p.flags&18 == 2
	if !first && m.established(p) {
		return PassEstablished
	}
	if m.tcp[p.port] {
		return PassPublished
	}
	if v := m.opened(p); v != 0 {
		return v
	}
	v := DropUnauthorized
	if m.syn && first && len(p.payload) >= 20 {
		if v = m.token(p, p.payload[:20]); v == PassToken {
			return v
		}
	}
	return else_(v)
}

func (m *model) admitUDP(p *modelPacket, else_ func(Verdict) Verdict) Verdict {
	v := DropUnauthorized
	own := m.tokenUDP[p.port] || m.knock != 0 && p.port == m.knock
	if m.knock != 0 && p.port == m.knock && len(p.payload) >= 20 && len(p.payload) <= 256 {
		if v = m.token(p, p.payload[:20]); v == PassToken {
			if inAny(m.denied, p.source) {
				return DropDenied
			}
			return TakeKnock
		}
		if v != DropUnauthorized {
			return v
		}
	}
	if m.udp[p.port] {
		return PassPublished
	}
	if v := m.opened(p); v != 0 {
		return v
	}
	if n := len(p.payload); m.tokenUDP[p.port] && n >= 20 {
		if v = m.token(p, p.payload[n-20:]); v == PassToken {
			return v
		}
	}
	if !own && p.port >= 1024 && m.connected(p) {
		return PassReply
	}
	if m.dhcp && (p.family == IPv4 && p.from == 67 && p.port == 68 || p.family == IPv6 && p.from == 547 && p.port == 546) {
		return PassDHCP
	}
	return else_(v)
}

// opened is what knocks and tokens opened.
func (m *model) opened(p *modelPacket) Verdict {
	k := modelOpening{p.source, p.from, p.port, p.protocol}
	counts := func(alias [8]byte) bool { return m.tickets[alias] != nil && !m.tickets[alias].expired }
	if alias, ok := m.flows[k]; ok && counts(alias) {
		return PassFlow
	}
	k.from = 0
	o := m.knocked[k]
	if o == nil || !counts(o.alias) {
		return 0
	}
	if !o.taken {
		if p.protocol == 6 && p.flags&2 == 0 {
			return 0
		}
		o.taken, o.bound = true, p.from
	}
	if o.bound != p.from {
		return 0
	}
	if p.protocol == 17 {
		m.flows[modelOpening{p.source, p.from, p.port, p.protocol}] = o.alias
	}
	return PassPermit
}

// token judges 20 bytes; what it opens is not for a knock.
func (m *model) token(p *modelPacket, b []byte) Verdict {
	if b[0] < 0x80 {
		return DropUnauthorized
	}
	k := m.tickets[[8]byte(b)]
	if k == nil {
		return DropTicketUnknown
	}
	covered := [7]byte{6: p.protocol}
	copy(covered[:], b[8:12])
	binary.BigEndian.PutUint16(covered[4:], p.port)
	if siphash.Sum7(&k.Key, &covered) != binary.LittleEndian.Uint64(b[12:]) {
		return DropTokenForged
	}
	if k.expired {
		return DropTicketExpired
	}
	knock := p.protocol == 17 && p.port == m.knock
	if knock && !k.Knock || !knock && (k.Port == 0 || k.Port != p.port || k.Protocol != 0 && k.Protocol != p.protocol) {
		return DropTicketPort
	}
	n := binary.BigEndian.Uint32(b[8:])
	if k.used[n] || n == 0 || n <= k.newest && k.newest-n > 32 {
		return DropTokenReplayed
	}
	k.used[n] = true
	k.newest = max(k.newest, n)
	if !knock {
		m.flows[modelOpening{p.source, p.from, p.port, p.protocol}] = k.Alias
	}
	return PassToken
}
