package gateway

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/bpf"
)

// GuardConfig is the guard in front of the gateway. Ports of listen that are
// not published are hidden: only who shows a permit gets in.
type GuardConfig struct {
	Interface  string   `yaml:"interface"`  // that strangers reach, such as eth0; required
	Mode       bpf.Mode `yaml:"mode"`       // native or generic; default: native, else generic with a warning
	Required   bool     `yaml:"required"`   // on from the start, and no gateway without it; default: on by `yumen guard on`
	Published  []string `yaml:"published"`  // ports open for everybody, such as 443 or 443/udp
	Management []string `yaml:"management"` // networks that reach every port of this host
	KnockPort  int      `yaml:"knock_port"` // UDP; default 62201
	Doors      []int    `yaml:"doors"`      // other TCP ports of this host that a knock opens, such as the control center's
	SYNToken   bool     `yaml:"syn_token"`  // agents may show their permit in the payload of the SYN; off until the path is known to carry it
	DHCP       bool     `yaml:"dhcp"`       // this host gets its address by DHCP on the interface
	Ping       bool     `yaml:"ping"`       // answer echo requests

	Rate       int           `yaml:"rate"`        // packets a second of one source to published ports; default: no limit
	SYNCookies int           `yaml:"syn_cookies"` // packets a second to published ports from which on the guard answers SYNs by cookies; default: never
	TicketLife time.Duration `yaml:"ticket_life"` // of agents' tickets; default 1h
	AlertRate  int           `yaml:"alert_rate"`  // drops a second that raise an alert; default 10000
	Blocklists []string      `yaml:"blocklists"`  // files with an address or network a line

	Sizes  GuardSizes `yaml:"sizes"`
	PinDir string     `yaml:"pin_dir"` // folder of bpffs; default /sys/fs/bpf
}

// GuardSizes bounds the guard's tables; 0 is the default of bpf.Sizes.
type GuardSizes struct {
	Denied   int `yaml:"denied"`   // exact addresses and IPv6 /64; default 65536
	Networks int `yaml:"networks"` // other denied networks; default 4096
	Tickets  int `yaml:"tickets"`  // about four a device; default 65536
	Openings int `yaml:"openings"` // UDP flows that are open, connections that are being opened; default 65536
}

func (c *GuardConfig) complete() {
	c.KnockPort = cmp.Or(c.KnockPort, 62201)
	c.TicketLife = cmp.Or(c.TicketLife, time.Hour)
	c.AlertRate = cmp.Or(c.AlertRate, 10_000)
}

// bpf returns the program's configuration.
func (c *GuardConfig) bpf(log *zap.Logger) (bpf.Config, error) {
	b := bpf.Config{
		Interface: c.Interface, Mode: c.Mode, KnockPort: uint16(c.KnockPort), SYNToken: c.SYNToken, DHCP: c.DHCP, Ping: c.Ping, Rate: bpf.Rate{PerSecond: c.Rate, Burst: 2 * c.Rate}, SYNCookies: c.SYNCookies,
		Sizes:  bpf.Sizes{Denied: c.Sizes.Denied, Networks: c.Sizes.Networks, Tickets: c.Sizes.Tickets, Openings: c.Sizes.Openings},
		PinDir: c.PinDir, Logger: log,
	}
	var errs []error
	for i, p := range c.Published {
		port, udp, err := publishedPort(p)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("published[%d]: %w", i, err))
		case udp:
			b.UDP = append(b.UDP, port)
		default:
			b.TCP = append(b.TCP, port)
		}
	}
	for i, s := range c.Management {
		p, err := network(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("management[%d]: %w", i, err))
			continue
		}
		b.Management = append(b.Management, p)
	}
	if c.KnockPort < 1 || c.KnockPort > 65535 {
		errs = append(errs, fmt.Errorf("knock_port: %d is no port", c.KnockPort))
	}
	for i, p := range c.Doors {
		if p < 1 || p > 65535 {
			errs = append(errs, fmt.Errorf("doors[%d]: %d is no port", i, p))
		}
	}
	if c.TicketLife < time.Minute || c.TicketLife > 30*24*time.Hour {
		errs = append(errs, fmt.Errorf("ticket_life: %v is not between 1m and 720h", c.TicketLife))
	}
	if c.AlertRate < 0 {
		errs = append(errs, errors.New("alert_rate: negative"))
	}
	if err := b.Validate(); err != nil {
		errs = append(errs, err)
	}
	return b, errors.Join(errs...)
}

func publishedPort(s string) (port uint16, udp bool, err error) {
	n, proto, _ := strings.Cut(s, "/")
	v, err := strconv.ParseUint(n, 10, 16)
	if err != nil || v == 0 || proto != "" && proto != "tcp" && proto != "udp" {
		return 0, false, fmt.Errorf("%q is no port such as 443, 443/tcp or 443/udp", s)
	}
	return uint16(v), proto == "udp", nil
}

// network reads an address or a network.
func network(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is no address or network such as 192.0.2.7 or 2001:db8::/32", s)
	}
	return p.Masked(), nil
}

// hidden returns the ports that the gateway listens on and the guard does not
// publish.
func (c *Config) hidden() (tcp, udp []uint16) {
	b, _ := c.Guard.bpf(nil) // Validate has seen it
	not := func(published []uint16, listen []string) (out []uint16) {
		for _, a := range outward(listen) {
			_, p, err := net.SplitHostPort(a)
			n, err2 := net.LookupPort("tcp", p)
			if err == nil && err2 == nil && !slices.Contains(published, uint16(n)) && !slices.Contains(out, uint16(n)) {
				out = append(out, uint16(n))
			}
		}
		return out
	}
	tcp = not(b.TCP, c.Listen)
	switch {
	case c.QUIC.Disabled || !c.Crypto.Profile.TLS():
	case len(c.QUIC.Listen) > 0:
		udp = not(b.UDP, c.QUIC.Listen)
	default:
		udp = not(b.UDP, c.Listen)
	}
	return tcp, udp
}

// outward returns addresses, those of loopback last: tokens open the first port.
func outward(listen []string) []string {
	at := func(a string) int {
		host, _, _ := net.SplitHostPort(a)
		if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
			return 1
		}
		return 0
	}
	listen = slices.Clone(listen)
	slices.SortStableFunc(listen, func(a, b string) int { return at(a) - at(b) })
	return listen
}

// maxBlocked bounds what blocklists may hold together.
const maxBlocked = 4 << 20

// readBlocklists returns the networks of all files; a fault names its line.
func readBlocklists(files []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read blocklist: %w", err)
		}
		in := bufio.NewScanner(f)
		for line := 1; in.Scan(); line++ {
			text, _, _ := strings.Cut(in.Text(), "#")
			if text = strings.TrimSpace(text); text == "" {
				continue
			}
			p, err := network(text)
			if err == nil && p.Bits() == 0 {
				err = fmt.Errorf("%s is everybody", p)
			}
			if err == nil && len(all) == maxBlocked {
				err = fmt.Errorf("more than %d networks", maxBlocked)
			}
			if err != nil {
				f.Close()
				return nil, fmt.Errorf("read blocklist %s: line %d: %w", name, line, err)
			}
			all = append(all, p)
		}
		err = in.Err()
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read blocklist %s: %w", name, err)
		}
	}
	return all, nil
}

// same reports whether two configurations differ at most in what a reload takes
// into use: the blocklists.
func (c *GuardConfig) same(old *GuardConfig) bool {
	if c == nil || old == nil {
		return c == old
	}
	a, b := *c, *old
	a.Blocklists, b.Blocklists = nil, nil
	return reflect.DeepEqual(a, b)
}
