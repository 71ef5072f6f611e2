package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
)

const (
	bitExact = 1 // of a slot: something is in deny_exact
	bitTrie  = 2 // something is in deny_trie
)

// denied is what the deny lists hold: the shadow of three maps.
type denied struct {
	mu    sync.Mutex
	all   map[netip.Prefix]struct{} // guarded by mu; mapped, masked
	slots [2]map[uint32]int         // guarded by mu; how many exact, how many of the trie
	wide  [2]uint32                 // guarded by mu; networks of IPv4, IPv6 that no slot shows
}

// place is where a denied network stands.
type place struct {
	exact      bool
	key        uint64 // exact
	first, num uint32 // its slots
	family     int    // 0 IPv4, 1 IPv6
}

func placeOf(seed [2]uint64, p netip.Prefix) place {
	upper, lower := halves(words(p.Addr()))
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		slot := uint32(lower) >> 8
		switch b := p.Bits() - 96; {
		case b == 32:
			return place{exact: true, key: lower, first: slot, num: 1}
		case b >= 24:
			return place{first: slot, num: 1}
		case b >= 12:
			return place{first: slot, num: 1 << (24 - b)}
		}
		return place{}
	}
	slot := uint32(mix(seed, upper>>16, 0) >> 40)
	switch b := p.Bits(); {
	case b == 64:
		return place{exact: true, key: upper, first: slot, num: 1, family: 1}
	case b >= 48:
		return place{first: slot, num: 1, family: 1}
	}
	return place{family: 1}
}

// recall fills the shadow from maps that were taken over.
func (d *denied) recall(g *Guard) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = map[netip.Prefix]struct{}{}
	d.slots = [2]map[uint32]int{{}, {}}
	var key uint64
	var one uint8
	it := g.maps[guardMapDenyExact].Iterate()
	for it.Next(&key, &one) {
		d.note(g.seed(), exactPrefix(key), 1)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read deny list: %w", err)
	}
	var t guardTrieKey
	it = g.maps[guardMapDenyTrie].Iterate()
	for it.Next(&t, &one) {
		a := netip.AddrFrom16(addressOf(t.Address.W).As16())
		d.note(g.seed(), netip.PrefixFrom(a, int(t.Bits)), 1)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read deny list: %w", err)
	}
	return nil
}

// exactPrefix is the inverse of a place's key. The upper half of an IPv6
// address below 0:1::/32 is never routed, so an IPv4 address has it to itself.
func exactPrefix(key uint64) netip.Prefix {
	var b [16]byte
	put := func(at int) {
		for i := range 8 {
			b[at+i] = byte(key >> (56 - 8*i))
		}
	}
	if key>>32 == 0xffff {
		put(8)
		return netip.PrefixFrom(netip.AddrFrom16(b), 128)
	}
	put(0)
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// note counts p in or out of the shadow and says which slots changed.
func (d *denied) note(seed [2]uint64, p netip.Prefix, n int) place {
	w := placeOf(seed, p)
	if n > 0 {
		d.all[p] = struct{}{}
	} else {
		delete(d.all, p)
	}
	if w.num == 0 {
		d.wide[w.family] += uint32(n) //nolint:gosec // n is 1 or -1
	}
	kind := 1
	if w.exact {
		kind = 0
	}
	for s := w.first; s < w.first+w.num; s++ {
		if d.slots[kind][s] += n; d.slots[kind][s] == 0 {
			delete(d.slots[kind], s)
		}
	}
	return w
}

// show puts the bits of a place's slots into the shared bitmap.
func (d *denied) show(g *Guard, w place) {
	g.tune.store32(tuneTrie4, d.wide[0])
	g.tune.store32(tuneTrie6, d.wide[1])
	for s := w.first; s < w.first+w.num; s++ {
		var v uint64
		if d.slots[0][s] > 0 {
			v |= bitExact
		}
		if d.slots[1][s] > 0 {
			v |= bitTrie
		}
		i, shift := int(s>>5), (s&31)*2
		g.bits.store(i, g.bits.load(i)&^(3<<shift)|v<<shift)
	}
}

// Deny puts networks in force as the whole deny list: what is new is denied
// before what is gone is let in. IPv4 networks are those of their addresses,
// IPv6 hosts are best given as their /64.
func (g *Guard) Deny(networks []netip.Prefix) error {
	d := &g.deny
	d.mu.Lock()
	defer d.mu.Unlock()
	want := make(map[netip.Prefix]struct{}, len(networks))
	for _, p := range networks {
		if !p.IsValid() || p.Bits() == 0 {
			return fmt.Errorf("deny %s: not a network that can be denied", p)
		}
		want[mapped(p)] = struct{}{}
	}
	var errs []error
	for p := range want {
		if _, ok := d.all[p]; ok {
			continue
		}
		if err := g.deny.put(g, p, true); err != nil {
			errs = append(errs, fmt.Errorf("deny %s: %w (raise guard.sizes)", p, err))
			if len(errs) > 3 {
				break
			}
		}
	}
	for p := range d.all {
		if _, ok := want[p]; ok {
			continue
		}
		if err := g.deny.put(g, p, false); err != nil {
			errs = append(errs, fmt.Errorf("end deny of %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// put adds p or takes it away: the entry first, then the bit that shows it; the
// bit stays until the last entry of its slot is gone.
func (d *denied) put(g *Guard, p netip.Prefix, add bool) error {
	w := placeOf(g.seed(), p)
	m, key := g.maps[guardMapDenyTrie], any(nil)
	if w.exact {
		m, key = g.maps[guardMapDenyExact], w.key
	} else {
		t := guardTrieKey{Bits: uint32(p.Bits())}
		t.Address.W = words(p.Addr())
		key = &t
	}
	if add {
		if err := m.Put(key, uint8(1)); err != nil {
			return err
		}
		d.show(g, d.note(g.seed(), p, 1))
		g.recheck()
		return nil
	}
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	d.show(g, d.note(g.seed(), p, -1))
	return nil
}

// Denied returns how many networks are denied.
func (g *Guard) Denied() int {
	g.deny.mu.Lock()
	defer g.deny.mu.Unlock()
	return len(g.deny.all)
}
