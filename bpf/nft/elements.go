package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/yumen-zt/yumen/bpf"
)

// opening is what a knock or a token opened.
type opening struct {
	source   netip.Addr
	from     uint16 // 0: for the next connection or flow, of any port
	port     uint16
	protocol uint8
}

// set returns where o stands, and its key there.
func (o opening) set() (name string, key []byte) {
	name = "open"
	key = append(key, o.source.AsSlice()...)
	key = append(key, o.protocol, 0, 0, 0)
	if o.from != 0 {
		name = "flow"
		key = append(binary.BigEndian.AppendUint16(key, o.from), 0, 0)
	}
	key = append(binary.BigEndian.AppendUint16(key, o.port), 0, 0)
	if o.source.Is4() {
		return name + "4", key
	}
	return name + "6", key
}

// OpenPort lets the next connection, or the next flow, of source to port in,
// one only, for d: what a knock opens.
func (g *Guard) OpenPort(source netip.Addr, port uint16, protocol uint8, alias [8]byte, d time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tickets[alias] == nil {
		return nil // it went meanwhile
	}
	if err := g.open(opening{source.Unmap(), 0, port, protocol}, alias, d); err != nil {
		return fmt.Errorf("open port %d for %s: %w", port, source, err)
	}
	return nil
}

// open puts o in force for d. The caller holds mu.
func (g *Guard) open(o opening, alias [8]byte, d time.Duration) error {
	if !g.loaded {
		return nil
	}
	if len(g.opened) >= g.cfg.Sizes.Openings {
		g.forget(bpf.Now())
		if len(g.opened) >= g.cfg.Sizes.Openings {
			return errors.New("too many openings (raise guard.sizes.openings)")
		}
	}
	name, key := o.set()
	var b batch
	b.add(inet, g.table(), name, element{key: key}) // away first: the time of one that is there does not change
	b.remove(inet, g.table(), name, element{key: key})
	if o.from == 0 { // whoever took the one before
		b.add(inet, g.table(), "taken"+name[4:], element{key: key})
		b.remove(inet, g.table(), "taken"+name[4:], element{key: key})
	}
	b.add(inet, g.table(), name, element{key: key, timeout: d})
	if err := g.nl.commit(&b); err != nil {
		return err
	}
	if o.from != 0 || o.protocol == 17 {
		d = g.cfg.FlowIdle // its flow lives on in the set as long as it is used
	}
	g.opened[o] = bpf.Now() + d
	g.byTicket[alias] = append(g.byTicket[alias], o)
	return nil
}

// forget drops what has run out of our books; the caller holds mu. A flow that
// is used for longer is found in its set.
func (g *Guard) forget(now time.Duration) {
	for o, until := range g.opened {
		if until <= now && o.protocol != 17 {
			delete(g.opened, o)
		}
	}
	live := map[opening]bool{}
	for _, name := range []string{"flow4", "flow6"} {
		all, err := g.nl.elements(inet, g.table(), name)
		if err != nil {
			return
		}
		for _, e := range all {
			if o, ok := flowOf(e.key); ok {
				live[o] = true
				o.from = 0
				live[o] = true
			}
		}
	}
	for o, until := range g.opened {
		if until <= now && !live[o] {
			delete(g.opened, o)
		}
	}
	for alias, all := range g.byTicket {
		all = slices.DeleteFunc(all, func(o opening) bool { _, ok := g.opened[o]; return !ok })
		if g.byTicket[alias] = all; len(all) == 0 {
			delete(g.byTicket, alias)
		}
	}
}

// flowOf is the inverse of a flow's key.
func flowOf(key []byte) (o opening, ok bool) {
	n := len(key) - 12
	if n != 4 && n != 16 {
		return o, false
	}
	a, _ := netip.AddrFromSlice(key[:n])
	return opening{a, binary.BigEndian.Uint16(key[n+4:]), binary.BigEndian.Uint16(key[n+8:]), key[n]}, true
}

// shut closes what a ticket opened. The caller holds mu.
func (g *Guard) shut(alias [8]byte) error {
	var errs []error
	for _, o := range g.byTicket[alias] {
		delete(g.opened, o)
		name, key := o.set()
		errs = append(errs, g.drop(name, key))
		if o.from != 0 || o.protocol != 17 {
			continue // an accepted TCP connection is the gateway's to close
		}
		all, err := g.nl.elements(inet, g.table(), "flow"+name[4:])
		errs = append(errs, err)
		for _, e := range all {
			f, ok := flowOf(e.key)
			if f.from = 0; ok && f == o {
				errs = append(errs, g.drop("flow"+name[4:], e.key))
			}
		}
	}
	delete(g.byTicket, alias)
	return errors.Join(errs...)
}

func (g *Guard) drop(set string, key []byte) error {
	var b batch
	b.remove(inet, g.table(), set, element{key: key})
	if err := g.nl.commit(&b); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// span is the addresses from first to last.
type span struct{ first, last netip.Addr }

// String returns it as nft reads it.
func (s span) String() string {
	if s.first == s.last {
		return s.first.String()
	}
	return s.first.String() + "-" + s.last.String()
}

// merge returns the networks as spans that do not touch, in order.
func merge(all []netip.Prefix) (out []span) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Masked().Addr().Compare(b.Masked().Addr()) })
	for _, p := range all {
		s := span{p.Masked().Addr(), lastOf(p)}
		if n := len(out) - 1; n >= 0 && (s.first.Compare(out[n].last) <= 0 || out[n].last.Next() == s.first) {
			if out[n].last.Less(s.last) {
				out[n].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// exact reports whether p stands in a hash, as [bpf.Guard] has it: an IPv4
// address, or an IPv6 /64.
func exact(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() == 32 || p.Addr().Is6() && p.Bits() == 64
}

// Deny puts networks in force as the whole deny list.
func (g *Guard) Deny(networks []netip.Prefix) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	want := make(map[netip.Prefix]struct{}, len(networks))
	nets := [2][]netip.Prefix{}
	var hosts [2]int
	for _, p := range networks {
		if !p.IsValid() || p.Bits() == 0 {
			return fmt.Errorf("deny %s: not a network that can be denied", p)
		}
		if p.Addr().Is4In6() && p.Bits() > 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		p = p.Masked()
		if _, ok := want[p]; ok {
			continue
		}
		want[p] = struct{}{}
		i := familyOf(p.Addr())
		if exact(p) {
			hosts[i]++
		} else {
			nets[i] = append(nets[i], p)
		}
	}
	if max(hosts[0], hosts[1]) > g.cfg.Sizes.Denied || len(nets[0])+len(nets[1]) > g.cfg.Sizes.Networks {
		return fmt.Errorf("deny %d networks: no room (raise guard.sizes)", len(want))
	}
	merged := [2][]span{merge(nets[0]), merge(nets[1])}
	if g.loaded {
		if err := g.putDenied(g.denied, want, g.merged, merged); err != nil {
			return fmt.Errorf("deny: %w", err)
		}
	}
	g.denied, g.merged = want, merged
	return nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// perCommit bounds one transaction.
const perCommit = 16 << 10

// putDenied changes the sets from was to want: what is new is denied before
// what is gone is let in.
func (g *Guard) putDenied(was, want map[netip.Prefix]struct{}, old, spans [2][]span) error {
	change := func(from, to map[netip.Prefix]struct{}, do func(b *batch, set string, all []element)) error {
		var parts [2][]element
		flush := func() error {
			var b batch
			for i, all := range parts {
				do(&b, fmt.Sprint("deny", 4+2*i), all)
				parts[i] = parts[i][:0]
			}
			return g.nl.commit(&b)
		}
		for p := range to {
			if _, ok := from[p]; ok || !exact(p) {
				continue
			}
			i := familyOf(p.Addr())
			if parts[i] = append(parts[i], element{key: p.Addr().AsSlice()}); len(parts[i]) == perCommit {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return flush()
	}
	if err := change(was, want, func(b *batch, set string, all []element) { b.add(netdev, g.table(), set, all...) }); err != nil {
		return err
	}
	for i := range spans {
		if slices.Equal(spans[i], old[i]) {
			continue
		}
		var b batch
		set := fmt.Sprintf("deny%dnet", 4+2*i)
		var all []element
		for _, s := range spans[i] {
			all = append(all, element{key: s.first.AsSlice()})
			if next := s.last.Next(); next.IsValid() {
				all = append(all, element{key: next.AsSlice(), end: true})
			}
		}
		b.flush(netdev, g.table(), set)
		b.add(netdev, g.table(), set, all...)
		if err := g.nl.commit(&b); err != nil {
			return err
		}
	}
	return change(want, was, func(b *batch, set string, all []element) { b.remove(netdev, g.table(), set, all...) })
}

// fill puts what user space knows into tables that were loaded: openings of
// before are nobody's. The caller holds mu, or is Open.
func (g *Guard) fill(fresh bool) error {
	var b batch
	for _, set := range []string{"open4", "open6", "taken4", "taken6", "flow4", "flow6"} {
		b.flush(inet, g.table(), set)
	}
	if err := g.nl.commit(&b); err != nil {
		return fmt.Errorf("fill guard tables: %w", err)
	}
	if !fresh {
		return nil // the deny lists of before are there, until Deny
	}
	if g.pinned { // only addresses are known of them
		g.merged = [2][]span{}
	}
	return g.putDenied(nil, g.denied, [2][]span{}, g.merged)
}

// Denied returns how many networks are denied.
func (g *Guard) Denied() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.denied)
}
