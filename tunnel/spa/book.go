package spa

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/internal/reason"
)

// OpenFor is how long what a knock opened waits for its one connection.
const OpenFor = 5 * time.Second

const (
	maxOpen  = 65536 // openings in user space at once; only genuine knocks make one
	useEvery = 100 * time.Millisecond
	useBurst = 50 // knocks of one ticket at once
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
	lost    uint64
}

type entry struct {
	permit.Ticket
	device string
	seen   seen
	tat    time.Time // GCRA of its uses
}

type opening struct {
	source netip.Addr
	port   uint16
	alias  [8]byte
}

// NewBook makes one for knocks at the UDP port knockPort. now is the wall
// clock; nil is time.Now.
func NewBook(knockPort uint16, now func() time.Time) *Book {
	if now == nil {
		now = time.Now
	}
	return &Book{port: knockPort, start: now(), now: now, tickets: map[[8]byte]*entry{}, open: map[opening]time.Time{}}
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
	for o := range b.open {
		if o.alias == alias {
			delete(b.open, o)
		}
	}
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
	next := e.tat
	if next.Before(now) {
		next = now
	}
	if next = next.Add(useEvery); next.Sub(now) > useEvery*useBurst {
		return Wanted{}, alias, e.device, reason.GuardTicketRate
	}
	e.tat = next
	return w, alias, e.device, reason.OK
}

// Open lets the next connection of source to port in: in user space, where no
// guard runs.
func (b *Book) Open(source netip.Addr, port uint16, alias [8]byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if len(b.open) >= maxOpen {
		for o, until := range b.open {
			if !now.Before(until) {
				delete(b.open, o)
			}
		}
		if len(b.open) >= maxOpen {
			b.lost++
			return false
		}
	}
	b.open[opening{source.Unmap(), port, alias}] = now.Add(OpenFor)
	return true
}

// Admit takes an opening of source to port, each at most once.
func (b *Book) Admit(source netip.Addr, port uint16) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for o, until := range b.open {
		if o.source != source.Unmap() || o.port != port {
			continue
		}
		delete(b.open, o)
		if now.Before(until) {
			return true
		}
	}
	return false
}
