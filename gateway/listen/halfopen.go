package listen

import (
	"container/list"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/yumen-zt/yumen/internal/reason"
)

// What a half-open connection costs in memory, heap and stack, as measured
// (TestS22_HalfOpenHandshakesStayWithinTheirMemory holds it): while its hello
// is awaited, and in the handshake of each protocol. What it sends is kept up
// to three times over: as read, as a message and in its parts.
const (
	costPeek = 6 << 10
	costTLCP = 20 << 10
	costTLS  = 34 << 10
	costByte = 3
)

// halfOpen bounds the connections that nobody has authenticated yet, in number
// and in memory: in all, where the oldest makes room for the newest, and per
// source, where the newest is refused, so that one source cannot push out the
// others. Those that have said nothing and those in a handshake are two queues:
// the one that holds more gives way, so that a flood of the silent ends no
// handshake, however long that takes.
type halfOpen struct {
	max, perSource           int
	maxBytes, perSourceBytes int

	mu     sync.Mutex
	silent queue                      // whose hello is awaited; guarded by mu
	shakes queue                      // in a handshake; guarded by mu
	source map[netip.Prefix]share     // guarded by mu
	open   map[netip.Prefix]int       // every connection of a source, finished handshakes too; guarded by mu
	evict  map[*pending]*list.Element // guarded by mu
}

// queue is some of the half-open connections, and what they cost.
type queue struct {
	order list.List // of *pending, oldest first
	bytes int
}

// share is what a source holds.
type share struct{ n, bytes int }

type pending struct {
	from  netip.Prefix // zero: not known yet, of a forwarder; set by its goroutine alone
	close func()       // called without mu
	cost  int          // guarded by halfOpen.mu
	in    *queue       // guarded by halfOpen.mu
}

func newHalfOpen(l Limits) *halfOpen {
	return &halfOpen{
		max: l.HalfOpen, perSource: l.HalfOpenPerSource,
		maxBytes: l.HalfOpenBytes, perSourceBytes: max(l.HalfOpenBytes/4, costTLS),
		source: map[netip.Prefix]share{}, open: map[netip.Prefix]int{}, evict: map[*pending]*list.Element{},
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
// share. What it pushed out, if anything, is closed.
func (h *halfOpen) add(from netip.Prefix, close func()) (*pending, bool) {
	p := &pending{from: from, close: close, cost: costPeek, in: &h.silent}
	h.mu.Lock()
	s := h.source[from]
	if from.IsValid() && (s.n >= h.perSource || s.bytes+p.cost > h.perSourceBytes) {
		h.mu.Unlock()
		return nil, false
	}
	h.evict[p] = p.in.order.PushBack(p)
	h.source[from] = share{s.n + 1, s.bytes + p.cost}
	p.in.bytes += p.cost
	out := h.overflow()
	h.mu.Unlock()
	for _, o := range out {
		o.close()
	}
	return p, true
}

// grow says that p costs more now. It reports false when its source has its
// share, or p was pushed out, perhaps by this.
func (h *halfOpen) grow(p *pending, cost int) bool {
	h.mu.Lock()
	_, held := h.evict[p]
	more := cost - p.cost
	if !held || more <= 0 {
		h.mu.Unlock()
		return held
	}
	s := h.source[p.from]
	if p.from.IsValid() && s.bytes+more > h.perSourceBytes {
		h.mu.Unlock()
		return false
	}
	p.cost, p.in.bytes = cost, p.in.bytes+more
	h.source[p.from] = share{s.n, s.bytes + more}
	out := h.overflow()
	_, held = h.evict[p]
	h.mu.Unlock()
	for _, o := range out {
		o.close()
	}
	return held
}

// begin says that the hello of p is there, and that its handshake begins.
func (h *halfOpen) begin(p *pending) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, held := h.evict[p]; held && p.in != &h.shakes {
		p.in.order.Remove(e)
		p.in.bytes -= p.cost
		p.in = &h.shakes
		h.evict[p] = p.in.order.PushBack(p)
		p.in.bytes += p.cost
	}
}

// overflow takes the oldest of the queue that holds more away until the rest
// fits; the caller holds mu, and closes them without it.
func (h *halfOpen) overflow() (out []*pending) {
	for {
		silent, shakes, from := h.silent.order.Len(), h.shakes.order.Len(), &h.shakes
		switch {
		case silent+shakes > h.max:
			if silent > shakes {
				from = &h.silent
			}
		case h.silent.bytes+h.shakes.bytes > h.maxBytes && silent+shakes > 1:
			if h.silent.bytes > h.shakes.bytes {
				from = &h.silent
			}
		default:
			return out
		}
		p := from.order.Front().Value.(*pending)
		h.drop(p)
		out = append(out, p)
	}
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
	p.in.order.Remove(h.evict[p])
	delete(h.evict, p)
	p.in.bytes -= p.cost
	s := h.source[p.from]
	if s = (share{s.n - 1, s.bytes - p.cost}); s.n == 0 {
		delete(h.source, p.from)
		return
	}
	h.source[p.from] = s
}

// learn says that p, of a forwarder, is of from, which it counts as add and enter
// would have. It reports why that is too much, or OK.
func (h *halfOpen) learn(p *pending, from netip.Prefix, most int) reason.Reason {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.source[from]
	_, held := h.evict[p]
	switch {
	case !held, s.n >= h.perSource, s.bytes+p.cost > h.perSourceBytes:
		return reason.HandshakeLimit
	case h.open[from] >= most:
		return reason.SourceLimit
	}
	old := h.source[p.from]
	if old = (share{old.n - 1, old.bytes - p.cost}); old.n == 0 {
		delete(h.source, p.from)
	} else {
		h.source[p.from] = old
	}
	h.source[from] = share{s.n + 1, s.bytes + p.cost}
	if h.open[p.from]--; h.open[p.from] == 0 {
		delete(h.open, p.from)
	}
	h.open[from]++
	p.from = from
	return reason.OK
}

// enter counts a connection of from, or refuses it at most. A source that is not
// known yet has no limit.
func (h *halfOpen) enter(from netip.Prefix, most int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if from.IsValid() && h.open[from] >= most {
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

// of returns how many half-open connections a source has.
func (h *halfOpen) of(from netip.Prefix) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.source[from].n
}

// size returns the number of half-open connections and what they cost.
func (h *halfOpen) size() (n, bytes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.evict), h.silent.bytes + h.shakes.bytes
}

// closeAll closes every half-open connection.
func (h *halfOpen) closeAll() {
	h.mu.Lock()
	all := slices.Collect(maps.Keys(h.evict))
	h.mu.Unlock()
	for _, p := range all {
		p.close()
	}
}

// meter is the socket of a half-open connection: what is read from it counts
// into its cost.
type meter struct {
	*net.TCPConn
	half *halfOpen
	pend *pending // nil once the handshake is done
	base int
	n    int // bytes read
}

// free is what a connection may send before it is counted: most hellos.
const free = 1 << 10

// Read reads, and fails when the connection has become too costly.
func (m *meter) Read(b []byte) (int, error) {
	n, err := m.TCPConn.Read(b)
	if m.pend == nil || n == 0 {
		return n, err
	}
	if m.n += n; m.n > free && !m.half.grow(m.pend, m.cost()) {
		return 0, errTooCostly
	}
	return n, err
}

// enters says that the handshake of a protocol begins.
func (m *meter) enters(base int) error {
	m.base = base
	m.half.begin(m.pend)
	if !m.half.grow(m.pend, m.cost()) {
		return errTooCostly
	}
	return nil
}

func (m *meter) cost() int { return m.base + costByte*max(0, m.n-free) }

var errTooCostly = fault(reason.HandshakeLimit, "half-open connections take too much memory")

// NetConn returns the socket.
func (m *meter) NetConn() net.Conn { return m.TCPConn }
