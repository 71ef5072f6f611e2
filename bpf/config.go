package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// Mode says how the program hangs on the interface.
type Mode string

// The modes.
const (
	Auto    Mode = ""        // native, else generic with a warning, else nftables with one
	Native  Mode = "native"  // in the driver
	Generic Mode = "generic" // behind the driver, about three times as costly

	Nftables Mode = "nftables" // no XDP at all: package nft
)

// Rate is so many packets a second, and so many at once.
type Rate struct {
	PerSecond int // 0: no limit
	Burst     int // default: one second's
}

// Interval returns r as its credit is counted: the time of one, and how much
// of it may be owed. Both are 0 without a limit.
func (r Rate) Interval() (interval, burst time.Duration) {
	if r.PerSecond <= 0 {
		return 0, 0
	}
	interval = time.Second / time.Duration(r.PerSecond)
	return interval, interval * time.Duration(cmp.Or(r.Burst, r.PerSecond)-1)
}

func (r Rate) gcra() (interval, burst uint64) {
	i, b := r.Interval()
	return uint64(i), uint64(b)
}

// Sizes bounds the maps. Changed ones are taken into use by new maps.
type Sizes struct {
	Denied   int // exact addresses and IPv6 /64; default 65536
	Networks int // other denied networks; default 4096
	Tickets  int // default 65536
	Openings int // 5-tuples at once, rounded up to a power of two; where half of them are in use the oldest may go; default 65536
	Sources  int // buckets of the sources' rate, a power of two; default 65536
}

// buckets is how many buckets of flows there are.
func (s *Sizes) buckets() int {
	n := 1
	for n*flowWays < s.Openings {
		n *= 2
	}
	return n
}

// MaxManagement is how many networks may manage.
const MaxManagement = 32

// Config is what a [Guard] needs. The zero value of an optional field selects
// its default.
type Config struct {
	Interface  string // required
	Mode       Mode
	TCP, UDP   []uint16       // published ports: open for everybody
	TokenUDP   []uint16       // UDP ports whose first datagram may end in a token
	Management []netip.Prefix // sources that reach every port; at most MaxManagement
	KnockPort  uint16         // UDP; 0: none
	DHCP       bool           // answers of DHCP servers pass
	Ping       bool           // echo requests pass, at the rate of ICMP
	SYNToken   bool           // a SYN may carry a token
	SYNCookies int            // packets a second to published ports from which on the guard answers SYNs itself; 0: never

	Rate     Rate          // of one source to published ports; default: no limit
	ICMP     Rate          // of one source, errors and echo replies; default 100/s, 200 at once
	Uses     Rate          // of one ticket; default 10/s, 50 at once
	FlowIdle time.Duration // an opened UDP flow may be silent; default 2m
	SYNOpen  time.Duration // a token in a SYN opens its 5-tuple; default 10s

	Sizes  Sizes
	PinDir string      // a folder of bpffs, mounted when it is not; default /sys/fs/bpf
	Logger *zap.Logger // default: none
}

// Complete puts the defaults in.
func (c *Config) Complete() {
	set := func(p *int, n int) { *p = cmp.Or(*p, n) }
	set(&c.Sizes.Denied, 65536)
	set(&c.Sizes.Networks, 4096)
	set(&c.Sizes.Tickets, 65536)
	set(&c.Sizes.Openings, 65536)
	set(&c.Sizes.Sources, 65536)
	if c.ICMP == (Rate{}) {
		c.ICMP = Rate{100, 200}
	}
	if c.Uses == (Rate{}) {
		c.Uses = Rate{10, 50}
	}
	c.FlowIdle = cmp.Or(c.FlowIdle, 2*time.Minute)
	c.SYNOpen = cmp.Or(c.SYNOpen, 10*time.Second)
	c.PinDir = cmp.Or(c.PinDir, "/sys/fs/bpf")
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
}

// Validate returns every fault of c, each named by its field.
func (c *Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Interface == "" {
		fault("interface: missing (the one that strangers reach, for example eth0)")
	}
	if c.Mode != Auto && c.Mode != Native && c.Mode != Generic && c.Mode != Nftables {
		fault("mode: %q is none of native, generic, nftables", c.Mode)
	}
	if n := len(c.Management); n > MaxManagement {
		fault("management: %d networks, at most %d", n, MaxManagement)
	}
	for i, p := range c.Management {
		if !p.IsValid() {
			fault("management[%d]: not a network", i)
		} else if p.Bits() == 0 {
			fault("management[%d]: %s is everybody (the guard would guard nothing)", i, p)
		}
	}
	for name, r := range map[string]Rate{"rate": c.Rate, "icmp": c.ICMP, "uses": c.Uses} {
		if r.PerSecond < 0 || r.PerSecond > 10_000_000 || r.Burst < 0 || r.Burst > 10_000_000 {
			fault("%s: not between 0 and 10000000", name)
		}
	}
	for name, n := range map[string]int{"denied": c.Sizes.Denied, "networks": c.Sizes.Networks, "tickets": c.Sizes.Tickets, "openings": c.Sizes.Openings, "sources": c.Sizes.Sources} {
		if n != 0 && (n < 16 || n > 16<<20) {
			fault("sizes.%s: %d is not between 16 and 16777216", name, n)
		}
	}
	if c.SYNCookies < 0 {
		fault("syn_cookies: negative")
	}
	if c.FlowIdle != 0 && c.FlowIdle < time.Second {
		fault("flow_idle: %v is below 1s", c.FlowIdle)
	}
	if s := c.Sizes.Sources; s&(s-1) != 0 {
		fault("sizes.sources: %d is no power of two", s)
	}
	return errors.Join(errs...)
}

// settings returns c as the program's read-only data.
func (c *Config) settings() *guardGuardSettings {
	s := &guardGuardSettings{
		RateMask: uint32(c.Sizes.Sources - 1), FlowMask: uint32(c.Sizes.buckets() - 1), KnockPort: c.KnockPort,
		FlowIdle: moments(c.FlowIdle), SynOpen: moments(c.SYNOpen), Managements: uint32(len(c.Management)),
		Dhcp: bit(c.DHCP), Ping: bit(c.Ping), SynToken: bit(c.SYNToken),
	}
	s.RateInterval, s.RateBurst = c.Rate.gcra()
	s.IcmpInterval, s.IcmpBurst = c.ICMP.gcra()
	s.TicketInterval, s.TicketBurst = c.Uses.gcra()
	for _, l := range []struct {
		set   *[1024]uint64
		ports []uint16
	}{{&s.TcpPublished, c.TCP}, {&s.UdpPublished, c.UDP}, {&s.UdpToken, c.TokenUDP}} {
		for _, p := range l.ports {
			l.set[p>>6] |= 1 << (p & 63)
		}
	}
	for i, p := range c.Management {
		p = mapped(p)
		s.Management[i].Address.W = words(p.Addr())
		s.Management[i].Mask.W = words(netip.AddrFrom16([16]byte(net.CIDRMask(p.Bits(), 128))))
	}
	return s
}

func bit(yes bool) uint8 {
	if yes {
		return 1
	}
	return 0
}

// mapped returns p as an IPv6 network, masked.
func mapped(p netip.Prefix) netip.Prefix {
	a, bits := p.Addr(), p.Bits()
	if a.Is4() {
		a, bits = netip.AddrFrom16(a.As16()), bits+96
	}
	return netip.PrefixFrom(a, bits).Masked()
}
