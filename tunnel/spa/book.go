package spa

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// OpenFor is how long what a knock opened waits for its one connection.
const OpenFor = 5 * time.Second

// FlowIdle is how long an opened flow of UDP may be silent.
const FlowIdle = 2 * time.Minute

const (
	maxOpen = 65536 // openings in user space at once; only genuine knocks make one
)

// usage is how often one ticket may be used, and how often at once.
type usage struct {
	every time.Duration
	burst time.Duration
}

var (
	ordinary = usage{100 * time.Millisecond, 50}
	homeward = usage{10 * time.Second, 6}
)

// Book holds the tickets that count at a gateway, and judges knocks. Its
// methods may be called from any goroutine.
type Book struct {
	port  uint16
	start time.Time
	now   func() time.Time

	mu      sync.Mutex
	tickets map[[8]byte]*entry
	open    map[opening]time.Time
	flows   map[flow]*flowState // of UDP, in user space
}

type entry struct {
	permit.Ticket
	device string
	seen   seen
	tat    time.Time // GCRA of its uses
}

type opening struct {
	source netip.Addr
	to     Wanted
	alias  [8]byte
}

type flow struct {
	from netip.AddrPort
	port uint16
}

type flowState struct {
	until time.Time
	alias [8]byte
}

// NewBook makes one for knocks at the UDP port knockPort. now is the wall
// clock; nil is time.Now.
func NewBook(knockPort uint16, now func() time.Time) *Book {
	if now == nil {
		now = time.Now
	}
	return &Book{port: knockPort, start: now(), now: now, tickets: map[[8]byte]*entry{}, open: map[opening]time.Time{}, flows: map[flow]*flowState{}}
}

// Add lets a device's ticket count. One that is there keeps its window.
func (b *Book) Add(device string, t permit.Ticket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tickets[t.Alias] == nil {
		b.tickets[t.Alias] = &entry{Ticket: t, device: device}
	}
}

// Remove ends a ticket and what it opened.
func (b *Book) Remove(alias [8]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.tickets, alias)
	maps.DeleteFunc(b.open, func(o opening, _ time.Time) bool { return o.alias == alias })
	maps.DeleteFunc(b.flows, func(_ flow, f *flowState) bool { return f.alias == alias })
}

// Home reports whether alias is a long-lived ticket's.
func (b *Book) Home(alias [8]byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tickets[alias]
	return e != nil && e.Ticket.Home()
}

// Len returns how many tickets count.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.tickets)
}

// Knock judges a datagram. It returns what is to be opened, the ticket and its
// device; the reason is not OK when nothing is.
func (b *Book) Knock(data []byte) (w Wanted, alias [8]byte, device string, r reason.Reason) {
	if len(data) < TokenBytes {
		return w, alias, "", reason.GuardUnauthorized
	}
	alias = [8]byte(data)
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tickets[alias]
	switch {
	case e == nil:
		return w, alias, "", reason.GuardTicketUnknown
	case now.Before(e.From.Add(-Skew)) || !now.Before(e.Until):
		return w, alias, e.device, reason.GuardTicketExpired
	}
	if w, r = readKnock(&e.Ticket, data, b.port, now); r != reason.OK {
		return Wanted{}, alias, e.device, r
	}
	// A window that a restart emptied must not take what was used before it: an
	// agent whose clock is behind waits for so long after one.
	if at := time.UnixMilli(int64(binary.BigEndian.Uint64(data[24:]))); at.Before(b.start.Truncate(time.Millisecond)) || !e.seen.take(binary.BigEndian.Uint32(data[8:])) {
		return Wanted{}, alias, e.device, reason.GuardTokenReplayed
	}
	if !e.use(now) {
		return Wanted{}, alias, e.device, reason.GuardTicketRate
	}
	return w, alias, e.device, reason.OK
}

// use counts one use of a ticket, if its rate allows it.
func (e *entry) use(now time.Time) bool {
	u := ordinary
	if e.Home() {
		u = homeward
	}
	next := e.tat
	if next.Before(now) {
		next = now
	}
	if next = next.Add(u.every); next.Sub(now) > u.every*u.burst {
		return false
	}
	e.tat = next
	return true
}

// Token judges 20 bytes that came to port, of a SYN's payload or from behind an
// Initial: in user space, where no guard runs.
func (b *Book) Token(data []byte, port uint16, protocol uint8) (device string, r reason.Reason) {
	if len(data) != TokenBytes || data[0] < 0x80 {
		return "", reason.GuardUnauthorized
	}
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.tickets[[8]byte(data)]
	switch {
	case e == nil:
		return "", reason.GuardTicketUnknown
	case !genuine(&e.Ticket, data, port, protocol):
		return "", reason.GuardTokenForged
	case now.Before(e.From.Add(-Skew)) || !now.Before(e.Until):
		return e.device, reason.GuardTicketExpired
	case e.Home(): // knocks only, whose time is checked
		return e.device, reason.GuardTicketPort
	}
	// The counter is a time, as a knock's is.
	n := binary.BigEndian.Uint32(data[8:])
	if n < Counter(&e.Ticket, b.start) || n > Counter(&e.Ticket, now.Add(Skew)) || !e.seen.take(n) {
		return e.device, reason.GuardTokenReplayed
	}
	if !e.use(now) {
		return e.device, reason.GuardTicketRate
	}
	return e.device, reason.OK
}

// Open lets the next connection, or the next flow, of source to w in: in user
// space, where no guard runs.
func (b *Book) Open(source netip.Addr, w Wanted, alias [8]byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if len(b.open) >= maxOpen {
		maps.DeleteFunc(b.open, func(_ opening, until time.Time) bool { return !now.Before(until) })
	}
	if len(b.open) >= maxOpen {
		return false
	}
	b.open[opening{source.Unmap(), w, alias}] = now.Add(OpenFor)
	return true
}

// Admit takes an opening of source to w, each at most once.
func (b *Book) Admit(source netip.Addr, w Wanted) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.take(source, w)
	return ok
}

// take is Admit. The caller holds mu.
func (b *Book) take(source netip.Addr, w Wanted) (alias [8]byte, ok bool) {
	now := b.now()
	for o, until := range b.open {
		if o.source != source.Unmap() || o.to != w {
			continue
		}
		delete(b.open, o)
		if now.Before(until) {
			return o.alias, true
		}
	}
	return alias, false
}

// Datagram reports whether data from from to the UDP port may be heard: it is
// of a flow that is open, or opens one by a token at its end or by what a knock
// opened.
func (b *Book) Datagram(from netip.AddrPort, port uint16, data []byte) bool {
	k := flow{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), port}
	now := b.now()
	b.mu.Lock()
	if f := b.flows[k]; f != nil && now.Before(f.until) {
		f.until = now.Add(FlowIdle)
		b.mu.Unlock()
		return true
	}
	alias, ok := b.take(from.Addr(), Wanted{port, UDP})
	b.mu.Unlock()
	if n := len(data) - TokenBytes; !ok && n >= 0 {
		alias = [8]byte(data[n:])
		_, r := b.Token(data[n:], port, UDP)
		ok = r == reason.OK
	}
	if !ok {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.flows) >= maxOpen {
		maps.DeleteFunc(b.flows, func(_ flow, f *flowState) bool { return !now.Before(f.until) })
	}
	if len(b.flows) >= maxOpen || b.tickets[alias] == nil {
		return false
	}
	b.flows[k] = &flowState{now.Add(FlowIdle), alias}
	return true
}
