package proxy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/yumen-zt/yumen/internal/reason"
)

// The fields in which a forwarder may name its client.
const (
	FieldXForwardedFor = "X-Forwarded-For"
	FieldForwarded     = "Forwarded" // RFC 7239
)

// Forwarders says whose word on the client's address counts.
type Forwarders struct {
	Networks []netip.Prefix // of connections, and of the hops that a field names
	Field    string         // the one field that they set; the other is ignored; default X-Forwarded-For
}

func (f *Forwarders) trusts(a netip.Addr) bool {
	a = a.WithZone("").Unmap()
	for _, n := range f.Networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// maxHops bounds the hops that are looked at.
const maxHops = 32

// client finds the address of the client of x behind trusted forwarders: from
// the right, the first hop that is none of them. What stands further left the
// client may have written itself. A hop that has to be believed and cannot be
// read refuses the request.
func (f *Forwarders) client(x *Exchange) error {
	x.Remote = netip.AddrPort{}
	if len(f.Networks) == 0 || !f.trusts(x.Conn.Remote.Addr()) {
		return nil
	}
	name, read := FieldXForwardedFor, hopXFF
	if f.Field == FieldForwarded {
		name, read = FieldForwarded, hopForwarded
	}
	values := x.Header.Values(name)
	hops := 0
	for i := len(values) - 1; i >= 0; i-- {
		for rest := values[i]; rest != ""; hops++ {
			var hop string
			if rest, hop = lastElement(rest); hops >= maxHops {
				return denied(reason.RequestMalformed, fmt.Sprintf("more than %d forwarders", maxHops))
			}
			at, err := read(strings.Trim(hop, " \t"))
			if err != nil {
				return denied(reason.RequestMalformed, fmt.Sprintf("%s: %v", name, err))
			}
			x.Remote = at
			if !f.trusts(at.Addr()) {
				return nil
			}
		}
	}
	return nil
}

// lastElement cuts the last element off a list; commas in quotes do not count.
func lastElement(list string) (rest, last string) {
	quoted, at := false, -1
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			at = i
		}
	}
	if at < 0 {
		return "", list
	}
	return list[:at], list[at+1:]
}

// hopXFF reads an element of X-Forwarded-For: an address, perhaps with a port.
func hopXFF(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return hopOf(a, 0)
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return hopOf(ap.Addr(), ap.Port())
	}
	if in, ok := strings.CutPrefix(s, "["); ok { // an IPv6 address in brackets, without a port
		if in, ok = strings.CutSuffix(in, "]"); ok {
			if a, err := netip.ParseAddr(in); err == nil && a.Is6() {
				return hopOf(a, 0)
			}
		}
	}
	return netip.AddrPort{}, fmt.Errorf("%q is no address", s)
}

func hopOf(a netip.Addr, port uint16) (netip.AddrPort, error) {
	if a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%s is no client's address", a)
	}
	return netip.AddrPortFrom(a.Unmap(), port), nil
}

// hopForwarded reads an element of Forwarded (RFC 7239 §4): its one for=, which
// must be an address.
func hopForwarded(s string) (netip.AddrPort, error) {
	found, node := false, ""
	for pair := range strings.SplitSeq(s, ";") {
		name, value, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
		if !ok {
			return netip.AddrPort{}, fmt.Errorf("element %q", s)
		}
		if !strings.EqualFold(name, "for") {
			continue
		}
		if found {
			return netip.AddrPort{}, fmt.Errorf("two for= in %q", s)
		}
		found, node = true, value
	}
	if q, ok := strings.CutPrefix(node, `"`); ok {
		if q, ok = strings.CutSuffix(q, `"`); !ok || strings.ContainsAny(q, `"\`) {
			return netip.AddrPort{}, fmt.Errorf("element %q", s)
		}
		node = q
	} else if strings.ContainsAny(node, `[]:"`) {
		return netip.AddrPort{}, fmt.Errorf("%q needs quotes", node)
	}
	if !found || strings.Count(node, ":") > 1 && !strings.HasPrefix(node, "[") {
		return netip.AddrPort{}, fmt.Errorf("element %q names no client", s)
	}
	return hopXFF(node)
}
