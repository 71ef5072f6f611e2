package policy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// addrs is the data of ipallow and ipdeny: addresses and prefixes of either
// family, such as "10.0.0.0/8,2001:db8::/32".
type addrs struct {
	prefixes []netip.Prefix
	v4, v6   []addrRange // disjoint, ascending
}

// addrRange is a closed range of addresses.
type addrRange struct{ lo, hi bits128 }

// bits128 is an address as an integer, IPv4 in its mapped form.
type bits128 struct{ hi, lo uint64 }

func bitsOf(a netip.Addr) bits128 {
	if a.Is4() { // reading 16 bytes behind two writes of 8 waits for both
		b := a.As4()
		return bits128{lo: 0xffff<<32 | uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return bits128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a bits128) less(b bits128) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

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
		r, list := rangeOf(p), &a.v6
		if p.Addr().Is4() {
			list = &a.v4
		}
		if n := len(*list); n > 0 && !(*list)[n-1].hi.less(r.lo) {
			continue // prefixes nest or are disjoint
		}
		*list = append(*list, r)
	}
	return a, nil
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func rangeOf(p netip.Prefix) addrRange {
	lo, n := bitsOf(p.Addr()), p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	hi := bits128{lo.hi, lo.lo | ^uint64(0)>>max(n-64, 0)}
	if n < 64 {
		hi = bits128{lo.hi | ^uint64(0)>>n, ^uint64(0)}
	}
	return addrRange{lo, hi}
}

// contains reports whether the address remote is in a.
func (a *addrs) contains(remote bits128, v4 bool) bool {
	ranges := a.v6
	if v4 {
		ranges = a.v4
	}
	for lo, hi := 0, len(ranges); lo < hi; {
		mid := (lo + hi) / 2
		switch r := &ranges[mid]; {
		case r.hi.less(remote):
			lo = mid + 1
		case remote.less(r.lo):
			hi = mid
		default:
			return true
		}
	}
	return false
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
