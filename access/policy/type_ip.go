package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// addrs is the data of ipallow and ipdeny: addresses and prefixes of either
// family, such as "10.0.0.0/8,2001:db8::/32".
type addrs struct {
	prefixes []netip.Prefix
	ranges   []addrRange // disjoint, ascending
}

type addrRange struct{ lo, hi netip.Addr }

func parseAddrs(s string) (grammar, error) {
	a := &addrs{}
	for _, item := range list(s) {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			addr, err2 := netip.ParseAddr(item)
			if err2 != nil || addr.Zone() != "" {
				return nil, fmt.Errorf("%q is neither an address nor a prefix", item)
			}
			addr = addr.Unmap()
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return nil, fmt.Errorf("%q mixes the families (write the IPv4 prefix)", item)
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%q has bits beyond its length (write %s)", item, p.Masked())
		}
		a.prefixes = append(a.prefixes, p)
	}
	slices.SortFunc(a.prefixes, comparePrefix)
	a.prefixes = slices.Compact(a.prefixes)
	for _, p := range a.prefixes {
		if n := len(a.ranges); n > 0 && p.Addr().Compare(a.ranges[n-1].hi) <= 0 {
			continue // prefixes nest or are disjoint
		}
		a.ranges = append(a.ranges, addrRange{p.Addr(), last(p)})
	}
	return a, nil
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// last returns the last address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	first := p.Bits()
	if p.Addr().Is4() {
		first += 96
	}
	for i := first; i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		a = a.Unmap()
	}
	return a
}

// contains reports whether remote is in a. An invalid address is in none.
func (a *addrs) contains(remote netip.Addr) bool {
	lo, hi := 0, len(a.ranges)
	for lo < hi { // the first range that ends at or behind remote
		mid := (lo + hi) / 2
		if a.ranges[mid].hi.Less(remote) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo < len(a.ranges) && remote.IsValid() && !remote.Less(a.ranges[lo].lo)
}

func (a *addrs) String() string {
	parts := make([]string, len(a.prefixes))
	for i, p := range a.prefixes {
		if p.IsSingleIP() {
			parts[i] = p.Addr().String()
		} else {
			parts[i] = p.String()
		}
	}
	return strings.Join(parts, ",")
}
