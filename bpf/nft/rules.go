package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/yumen-zt/yumen/bpf"
)

// dropped are the verdicts that the rules have themselves, each a chain that
// samples, counts and drops.
var dropped = []bpf.Verdict{
	bpf.DropLink, bpf.DropProtocol, bpf.DropFragment, bpf.DropSource, bpf.DropUnauthorized, bpf.DropDenied, bpf.DropRate, bpf.DropICMPRate,
	bpf.DropICMPType, bpf.DropTCPFlags, bpf.DropKnockLost,
}

var passed = []bpf.Verdict{
	bpf.PassARP, bpf.PassNeighbour, bpf.PassICMP, bpf.PassDHCP, bpf.PassPublished, bpf.PassManagement, bpf.PassEstablished, bpf.PassReply,
	bpf.PassFlow, bpf.PassPermit, bpf.PassPing,
}

// counterOf is the name of a counter.
func counterOf(f bpf.Family, v bpf.Verdict) string { return fmt.Sprintf("c%d_%d", f, v) }

// groups of nfnetlink_log: knocks, samples.
func (g *Guard) group(samples bool) uint16 {
	n := 22860 + 2*uint16(g.index%1000)
	if samples {
		n++
	}
	return n
}

// writer writes lines, in a %-form with words for what comes often.
type writer struct {
	strings.Builder
	r *strings.Replacer
}

func (w *writer) line(format string, args ...any) {
	w.WriteString(w.r.Replace(fmt.Sprintf(format, args...)))
	w.WriteByte('\n')
}

// rules returns both tables as the program nft reads them: one transaction that
// keeps sets and counters, or with fresh begins anew. Nothing in it comes from
// outside but numbers, networks and the name of the interface.
func (g *Guard) rules(fresh bool) string {
	w := &writer{r: strings.NewReplacer("TABLE", g.table())}
	for _, family := range []string{"inet", "netdev"} {
		w.line("add table %s TABLE", family)
		if fresh {
			w.line("delete table %s TABLE\nadd table %s TABLE", family, family)
		}
	}
	g.counters(w, "inet")
	g.counters(w, "netdev")
	g.early(w)
	g.sets(w)
	g.stateless(w)
	g.stateful(w)
	if fresh && g.pinned {
		w.line("add element inet TABLE guarded { \"%s\" }\nadd element netdev TABLE guarded { \"%s\" }", g.cfg.Interface, g.cfg.Interface)
	}
	return w.String()
}

func (g *Guard) counters(w *writer, family string) {
	w.line("add set %s TABLE guarded { type iface_index; flags timeout; }", family)
	for _, f := range []bpf.Family{bpf.Other, bpf.IPv4, bpf.IPv6} {
		for _, v := range append(slices.Clone(dropped), passed...) {
			w.line("add counter %s TABLE %s", family, counterOf(f, v))
		}
	}
	for _, v := range dropped {
		chain := fmt.Sprintf("%s TABLE drop%d", family, v)
		w.line("add chain %s\nflush chain %s", chain, chain)
		// Few enough that a flood of them costs nothing, all of them when they are few.
		w.line("add rule %s limit rate 500/second burst 100 packets log prefix \"%d\" group %d snaplen 96 queue-threshold 8", chain, v, g.group(true))
		w.line("add rule %s meta protocol ip counter name %s drop", chain, counterOf(bpf.IPv4, v))
		w.line("add rule %s meta protocol ip6 counter name %s drop", chain, counterOf(bpf.IPv6, v))
		w.line("add rule %s counter name %s drop", chain, counterOf(bpf.Other, v))
	}
}

// early is the chain at the device, before fragments are put together: what is
// no IP, what is in fragments, and who is denied.
func (g *Guard) early(w *writer) {
	w.line("add set netdev TABLE deny4 { type ipv4_addr; size %d; }", g.cfg.Sizes.Denied)
	w.line("add set netdev TABLE deny6 { type ipv6_addr; size %d; }", g.cfg.Sizes.Denied)
	w.line("add set netdev TABLE deny4net { type ipv4_addr; flags interval; }")
	w.line("add set netdev TABLE deny6net { type ipv6_addr; flags interval; }")
	w.line("add chain netdev TABLE judge\nflush chain netdev TABLE judge")
	rule := func(format string, args ...any) { w.line("add rule netdev TABLE judge "+format, args...) }
	rule("meta protocol arp counter name %s accept", counterOf(bpf.Other, bpf.PassARP))
	rule("meta protocol != { ip, ip6 } goto drop%d", bpf.DropLink)
	rule("ip saddr { 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3 } goto drop%d", bpf.DropSource)
	rule("ip6 saddr { ::1, ::ffff:0:0/96, ff00::/8 } goto drop%d", bpf.DropSource)
	rule("ip frag-off & 0x3fff != 0 ip protocol tcp goto drop%d", bpf.DropFragment)
	four, six := g.management()
	if four != "" {
		rule("ip saddr { %s } accept", four)
	}
	if six != "" {
		rule("ip6 saddr { %s } accept", six)
	}
	rule("ip frag-off & 0x3fff != 0 goto drop%d", bpf.DropFragment)
	rule("exthdr frag exists goto drop%d", bpf.DropFragment)
	rule("ip saddr @deny4 goto drop%d", bpf.DropDenied)
	rule("ip saddr @deny4net goto drop%d", bpf.DropDenied)
	rule("ip6 saddr & ffff:ffff:ffff:ffff:: @deny6 goto drop%d", bpf.DropDenied)
	rule("ip6 saddr @deny6net goto drop%d", bpf.DropDenied)
	w.line("add chain netdev TABLE early { type filter hook ingress device \"%s\" priority -400; policy accept; }", g.cfg.Interface)
	w.line("flush chain netdev TABLE early\nadd rule netdev TABLE early iif @guarded jump judge")
}

// management returns the networks that manage, by family.
func (g *Guard) management() (four, six string) {
	var a, b []netip.Prefix
	for _, p := range g.cfg.Management {
		if p.Addr().Unmap().Is4() {
			bits := p.Bits()
			if p.Addr().Is4In6() {
				bits -= 96
			}
			a = append(a, netip.PrefixFrom(p.Addr().Unmap(), bits))
		} else {
			b = append(b, p)
		}
	}
	list := func(spans []span) string {
		var all []string
		for _, s := range spans {
			all = append(all, s.String())
		}
		return strings.Join(all, ", ")
	}
	return list(merge(a)), list(merge(b))
}

func numbers(ports []uint16) string {
	var all []string
	for _, p := range ports {
		all = append(all, fmt.Sprint(p))
	}
	return strings.Join(all, ", ")
}

// versions are the two forms of what names an address.
var versions = []struct {
	family                 bpf.Family
	kind, saddr, of, group string // group: what shares a rate
	is                     string
}{
	{bpf.IPv4, "ipv4_addr", "ip saddr", "4", "ip saddr", "meta nfproto ipv4"},
	{bpf.IPv6, "ipv6_addr", "ip6 saddr", "6", "ip6 saddr & ffff:ffff:ffff:ffff::", "meta nfproto ipv6"},
}

// sets of the stateful half.
//
//	open    what a knock opened: source, protocol, port
//	taken   whoever took it: one packet's worth of rate, so one connection
//	flow    5-tuples that are open
//	before  connections that were there before conntrack was
//	rate    credits of sources
func (g *Guard) sets(w *writer) {
	for _, v := range versions {
		set := func(name, format string, args ...any) {
			w.line("add set inet TABLE %s%s { type %s%s }", name, v.of, v.kind, fmt.Sprintf(format, args...))
		}
		n := g.cfg.Sizes.Openings
		set("open", " . inet_proto . inet_service; flags timeout; size %d;", n)
		set("taken", " . inet_proto . inet_service; flags dynamic, timeout; timeout 6s; size %d;", n)
		set("flow", " . inet_proto . inet_service . inet_service; flags dynamic, timeout; timeout %ds; size %d;", int(g.cfg.FlowIdle.Seconds()), n)
		set("before", " . inet_service . inet_service; flags timeout; timeout 7d; size 65536;")
		set("rate", "; flags dynamic, timeout; timeout 10s; size %d;", g.cfg.Sizes.Sources)
		set("icmprate", "; flags dynamic, timeout; timeout 10s; size %d;", g.cfg.Sizes.Sources)
	}
}

const firstSYN = "tcp flags & (syn | ack) == syn"

// stateless comes before conntrack, which strangers must cost nothing: SYNs,
// knocks, what may end in a token.
func (g *Guard) stateless(w *writer) {
	c := &g.cfg
	w.line("add chain inet TABLE knock\nflush chain inet TABLE knock")
	w.line("add rule inet TABLE knock limit rate 20000/second burst 2000 packets log prefix \"k\" group %d snaplen 2048 queue-threshold 1 drop", g.group(false))
	for _, v := range versions {
		w.line("add rule inet TABLE knock %s counter name %s drop", v.is, counterOf(v.family, bpf.DropKnockLost))
	}
	w.line("add chain inet TABLE stateless\nflush chain inet TABLE stateless")
	rule := func(format string, args ...any) { w.line("add rule inet TABLE stateless "+format, args...) }
	four, six := g.management()
	if four != "" {
		rule("ip saddr { %s } return", four)
	}
	if six != "" {
		rule("ip6 saddr { %s } return", six)
	}
	rule("meta l4proto != { tcp, udp, icmp, icmpv6 } goto drop%d", bpf.DropProtocol)
	if c.KnockPort != 0 { // a token begins with a bit that is set
		rule("udp dport %d udp length 28-%d @th,64,8 >= 128 goto knock", c.KnockPort, 8+maxKnock)
	}
	rule("meta l4proto != tcp return")
	rule("tcp flags & (syn | fin) == (syn | fin) goto drop%d", bpf.DropTCPFlags)
	rule("tcp flags & (syn | rst) == (syn | rst) goto drop%d", bpf.DropTCPFlags)
	rule("tcp flags & (syn | ack | rst) == 0 goto drop%d", bpf.DropTCPFlags)
	if len(c.TCP) > 0 {
		rule("tcp dport { %s } notrack", numbers(c.TCP)) // a flood of SYNs there fills no table
		rule("tcp dport { %s } return", numbers(c.TCP))
	}
	rule("tcp flags & (syn | ack) != syn return")
	for _, v := range versions {
		rule("%s . meta l4proto . tcp sport . tcp dport @flow%s return", v.saddr, v.of)
		rule("%s . meta l4proto . tcp dport @open%s return", v.saddr, v.of)
	}
	for doff := 5; c.SYNToken && doff <= 15; doff++ { // behind the header there is room for a token
		rule("tcp doff %d ip hdrlength 5 ip length >= %d goto knock", doff, 20+4*doff+tokenBytes)
		rule("tcp doff %d ip6 length >= %d goto knock", doff, 4*doff+tokenBytes)
	}
	rule("goto drop%d", bpf.DropUnauthorized)
	w.line("add chain inet TABLE pre { type filter hook prerouting priority -310; policy accept; }")
	w.line("flush chain inet TABLE pre\nadd rule inet TABLE pre iif @guarded jump stateless")
	w.line("add chain inet TABLE out { type filter hook output priority -310; policy accept; }\nflush chain inet TABLE out")
	if len(c.TCP) > 0 {
		w.line("add rule inet TABLE out oif @guarded tcp sport { %s } notrack", numbers(c.TCP))
	}
}

// stateful comes behind conntrack: what is established, opened, answered.
func (g *Guard) stateful(w *writer) {
	c := &g.cfg
	w.line("add chain inet TABLE datagram\nflush chain inet TABLE datagram\nadd chain inet TABLE icmp4\nflush chain inet TABLE icmp4\nadd chain inet TABLE icmp6\nflush chain inet TABLE icmp6")
	w.line("add chain inet TABLE stateful\nflush chain inet TABLE stateful")
	chain := "stateful"
	rule := func(format string, args ...any) { w.line("add rule inet TABLE "+chain+" "+format, args...) }
	pass := func(v bpf.Verdict, format string, args ...any) {
		for _, f := range versions {
			r := strings.NewReplacer("SADDR", f.saddr, "GROUP", f.group, "OPEN", "@open"+f.of, "TAKEN", "@taken"+f.of, "FLOW", "@flow"+f.of, "BEFORE", "@before"+f.of, "ICMPRATE", "@icmprate"+f.of, "RATE", "@rate"+f.of)
			rule("%s %s counter name %s accept", f.is, r.Replace(fmt.Sprintf(format, args...)), counterOf(f.family, v))
		}
	}
	managed := func() {
		four, six := g.management()
		if four != "" {
			rule("ip saddr { %s } counter name %s accept", four, counterOf(bpf.IPv4, bpf.PassManagement))
		}
		if six != "" {
			rule("ip6 saddr { %s } counter name %s accept", six, counterOf(bpf.IPv6, bpf.PassManagement))
		}
	}
	rate := ""
	if n := c.Rate.PerSecond; n > 0 {
		rate = fmt.Sprintf("add RATE { GROUP limit rate %d/second burst %d packets } ", n, max(c.Rate.Burst, 1))
	}
	rule("meta l4proto udp goto datagram")
	rule("meta l4proto icmp goto icmp4")
	rule("meta l4proto icmpv6 goto icmp6")
	if len(c.TCP) > 0 {
		pass(bpf.PassEstablished, "tcp dport { %s } tcp flags & (syn | ack) != syn", numbers(c.TCP))
		pass(bpf.PassPublished, "tcp dport { %s } %s", numbers(c.TCP), rate)
		rule("tcp dport { %s } goto drop%d", numbers(c.TCP), bpf.DropRate)
	}
	pass(bpf.PassEstablished, "meta l4proto tcp ct state established")
	pass(bpf.PassEstablished, "SADDR . tcp sport . tcp dport BEFORE")
	pass(bpf.PassFlow, "%s SADDR . meta l4proto . tcp sport . tcp dport FLOW", firstSYN)
	pass(bpf.PassPermit, "%s SADDR . meta l4proto . tcp dport OPEN add TAKEN { SADDR . meta l4proto . tcp dport limit rate 1/day burst 1 packets } add FLOW { SADDR . meta l4proto . tcp sport . tcp dport timeout %ds }", firstSYN, int(max(c.SYNOpen.Seconds(), 1)))
	managed()
	rule("goto drop%d", bpf.DropUnauthorized)

	chain = "datagram"
	if len(c.UDP) > 0 {
		pass(bpf.PassPublished, "udp dport { %s } %s", numbers(c.UDP), rate)
		rule("udp dport { %s } goto drop%d", numbers(c.UDP), bpf.DropRate)
	}
	pass(bpf.PassFlow, "SADDR . meta l4proto . udp sport . udp dport FLOW update FLOW { SADDR . meta l4proto . udp sport . udp dport }")
	pass(bpf.PassPermit, "SADDR . meta l4proto . udp dport OPEN add TAKEN { SADDR . meta l4proto . udp dport limit rate 1/day burst 1 packets } add FLOW { SADDR . meta l4proto . udp sport . udp dport }")
	if len(c.TokenUDP) > 0 {
		rule("udp dport { %s } udp length >= 28 goto knock", numbers(c.TokenUDP))
	}
	pass(bpf.PassReply, "udp dport >= 1024 ct direction reply ct state established")
	if c.DHCP {
		rule("udp sport 67 udp dport 68 meta nfproto ipv4 counter name %s accept", counterOf(bpf.IPv4, bpf.PassDHCP))
		rule("udp sport 547 udp dport 546 meta nfproto ipv6 counter name %s accept", counterOf(bpf.IPv6, bpf.PassDHCP))
	}
	managed()
	rule("goto drop%d", bpf.DropUnauthorized)

	limited := ""
	if n := c.ICMP.PerSecond; n > 0 {
		limited = fmt.Sprintf("add ICMPRATE { GROUP limit rate %d/second burst %d packets }", n, max(c.ICMP.Burst, 1))
	}
	one := func(v bpf.Verdict, f int, match string) {
		r := strings.NewReplacer("GROUP", versions[f].group, "ICMPRATE", "@icmprate"+versions[f].of)
		rule("%s %s counter name %s accept", match, r.Replace(limited), counterOf(versions[f].family, v))
		rule("%s goto drop%d", match, bpf.DropICMPRate)
	}
	chain = "icmp4"
	one(bpf.PassICMP, 0, "icmp type { 0, 3, 11, 12 }")
	if c.Ping {
		one(bpf.PassPing, 0, "icmp type 8")
	}
	managed()
	rule("goto drop%d", bpf.DropICMPType)
	chain = "icmp6"
	rule("icmpv6 type { 133, 134, 135, 136, 137 } ip6 hoplimit 255 counter name %s accept", counterOf(bpf.IPv6, bpf.PassNeighbour))
	rule("icmpv6 type { 130, 131, 132, 143 } ip6 hoplimit 1 counter name %s accept", counterOf(bpf.IPv6, bpf.PassNeighbour))
	rule("icmpv6 type { 130-137, 143 } goto drop%d", bpf.DropICMPType)
	one(bpf.PassICMP, 1, "icmpv6 type { 1, 2, 3, 4, 129 }")
	if c.Ping {
		one(bpf.PassPing, 1, "icmpv6 type 128")
	}
	managed()
	rule("goto drop%d", bpf.DropICMPType)
	w.line("add chain inet TABLE main { type filter hook prerouting priority -150; policy accept; }")
	w.line("flush chain inet TABLE main\nadd rule inet TABLE main iif @guarded jump stateful")
}
