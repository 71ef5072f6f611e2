package listen

import (
	"container/list"
	"net/netip"
	"sync"
)

// halfOpen bounds the connections that nobody has authenticated yet: in all,
// where the oldest makes room for the newest, and per source, where the newest
// is refused, so that one source cannot push out the others.
type halfOpen struct {
	max, perSource int

	mu     sync.Mutex
	order  *list.List                 // of *pending, oldest first; guarded by mu
	source map[netip.Prefix]int       // guarded by mu
	open   map[netip.Prefix]int       // every connection of a source, finished handshakes too; guarded by mu
	evict  map[*pending]*list.Element // guarded by mu
}

type pending struct {
	from  netip.Prefix
	close func() // called without mu
}

func newHalfOpen(most, perSource int) *halfOpen {
	return &halfOpen{
		max: most, perSource: perSource, order: list.New(),
		source: map[netip.Prefix]int{}, open: map[netip.Prefix]int{}, evict: map[*pending]*list.Element{},
	}
}

// sourceOf is what counts as one source: an IPv4 address, or an IPv6 /64.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// add registers a connection of from, or reports false when the source has its
// share. The pending that it pushed out, if any, is closed.
func (h *halfOpen) add(from netip.Prefix, close func()) (*pending, bool) {
	p := &pending{from, close}
	h.mu.Lock()
	if h.source[from] >= h.perSource {
		h.mu.Unlock()
		return nil, false
	}
	var out *pending
	if h.order.Len() >= h.max {
		out = h.order.Front().Value.(*pending)
		h.drop(out)
	}
	h.source[from]++
	h.evict[p] = h.order.PushBack(p)
	h.mu.Unlock()
	if out != nil {
		out.close()
	}
	return p, true
}

// done forgets p: its handshake has ended, either way. It reports false when p
// was pushed out before.
func (h *halfOpen) done(p *pending) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.evict[p]; !ok {
		return false
	}
	h.drop(p)
	return true
}

// drop removes p; the caller holds mu.
func (h *halfOpen) drop(p *pending) {
	h.order.Remove(h.evict[p])
	delete(h.evict, p)
	if h.source[p.from]--; h.source[p.from] == 0 {
		delete(h.source, p.from)
	}
}

// enter counts a connection of from, or refuses it at most.
func (h *halfOpen) enter(from netip.Prefix, most int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[from] >= most {
		return false
	}
	h.open[from]++
	return true
}

// leave ends what enter counted.
func (h *halfOpen) leave(from netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[from]--; h.open[from] == 0 {
		delete(h.open, from)
	}
}

// len returns the number of half-open connections.
func (h *halfOpen) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.order.Len()
}

// closeAll closes every half-open connection.
func (h *halfOpen) closeAll() {
	h.mu.Lock()
	var all []*pending
	for e := h.order.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*pending))
	}
	h.mu.Unlock()
	for _, p := range all {
		p.close()
	}
}
