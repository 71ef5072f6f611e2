package apps

import (
	"net"
	"net/netip"
)

// denied are the networks that no application may lie in unless its
// configuration permits it.
var denied = []struct {
	net  netip.Prefix
	rule string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"}, // holds 169.254.169.254
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata"},
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local"},
	{netip.MustParsePrefix("fd00:ec2::254/128"), "metadata"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// embedding are the IPv6 networks whose addresses carry an IPv4 address, and
// the byte at which it starts.
var embedding = []struct {
	net netip.Prefix
	at  int
}{
	{netip.MustParsePrefix("::/96"), 12},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12},
	{netip.MustParsePrefix("64:ff9b::/96"), 12},
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12},
	{netip.MustParsePrefix("2002::/16"), 2},
}

// addressRule returns the rule that forbids a, or "".
func addressRule(a netip.Addr) string {
	a = a.WithZone("").Unmap()
	for i := range denied {
		if denied[i].net.Contains(a) {
			return denied[i].rule
		}
	}
	if !a.Is6() {
		return ""
	}
	for i := range embedding {
		if embedding[i].net.Contains(a) {
			b := a.As16()
			if rule := addressRule(netip.AddrFrom4([4]byte(b[embedding[i].at:][:4]))); rule != "" {
				return rule + " (embedded)"
			}
		}
	}
	return ""
}

func (a *App) permits(ip netip.Addr) bool {
	ip = ip.WithZone("").Unmap()
	for _, p := range a.allow {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// own reports whether ap is one of the gateway's listeners. A listener on the
// unspecified address is met by every address of this host, and no
// configuration can permit it: the gateway would serve itself.
func (r *Registry) own(ap netip.AddrPort) bool {
	if r.cfg.Own == nil {
		return false
	}
	ip := ap.Addr().WithZone("").Unmap()
	for _, l := range r.cfg.Own() {
		if l.Port() != ap.Port() {
			continue
		}
		if at := l.Addr().WithZone("").Unmap(); at == ip || at.IsUnspecified() && isLocal(ip) {
			return true
		}
	}
	return false
}

func isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // deny when in doubt
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if i, ok := netip.AddrFromSlice(n.IP); ok && i.Unmap() == ip {
				return true
			}
		}
	}
	return false
}
