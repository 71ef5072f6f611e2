package nft

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/internal/siphash"
)

const (
	tokenBytes = 20
	maxKnock   = 256 // bytes of a knock, as in bpf/src/guard.h
)

// ticket is one that counts, with its replay window and the credit of its uses.
type ticket struct {
	bpf.Ticket
	newest, before uint32 // counters: the newest, and a bit for each of the 32 before it
	tat            time.Duration
}

// AddTicket lets t count. A ticket that is there keeps its replay window.
func (g *Guard) AddTicket(t bpf.Ticket) error {
	if t.Alias[0] < 0x80 {
		return errors.New("add ticket: the first bit of its alias is not set")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tickets[t.Alias] != nil {
		return nil
	}
	if len(g.tickets) >= g.cfg.Sizes.Tickets {
		return errors.New("add ticket: no room (raise guard.sizes.tickets)")
	}
	k := &ticket{Ticket: t, newest: t.Used}
	if t.Used > 0 {
		k.before = 1<<32 - 1
	}
	g.tickets[t.Alias] = k
	return nil
}

// RemoveTicket ends a ticket. What it opened closes with it, at once.
func (g *Guard) RemoveTicket(alias [8]byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.tickets, alias)
	return g.shut(alias)
}

// Tickets calls f for each ticket that is there.
func (g *Guard) Tickets(f func(alias [8]byte, until time.Duration)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for alias, t := range g.tickets {
		f(alias, t.Until)
	}
	return nil
}

// check returns PassToken for a genuine token at port that was not used before.
// The caller holds mu.
func (g *Guard) check(b []byte, port uint16, protocol uint8) bpf.Verdict {
	if len(b) < tokenBytes || b[0] < 0x80 {
		return bpf.DropUnauthorized
	}
	t := g.tickets[[8]byte(b)]
	if t == nil {
		return bpf.DropTicketUnknown
	}
	covered := [7]byte{6: protocol}
	copy(covered[:], b[8:12])
	binary.BigEndian.PutUint16(covered[4:], port)
	if siphash.Sum7(&t.Key, &covered) != binary.LittleEndian.Uint64(b[12:]) {
		return bpf.DropTokenForged
	}
	now := bpf.Now()
	if now >= t.Until {
		return bpf.DropTicketExpired
	}
	if knock := protocol == 17 && port == g.cfg.KnockPort; knock && !t.Knock || !knock && (t.Port == 0 || t.Port != port || t.Protocol != 0 && t.Protocol != protocol) {
		return bpf.DropTicketPort
	}
	if !t.take(binary.BigEndian.Uint32(b[8:])) {
		return bpf.DropTokenReplayed
	}
	if interval, burst := g.cfg.Uses.Interval(); interval > 0 {
		next := max(t.tat, now) + interval
		if next-now > burst+interval {
			return bpf.DropTicketRate
		}
		t.tat = next
	}
	return bpf.PassToken
}

// take reports whether counter n is new, and takes it.
func (t *ticket) take(n uint32) bool {
	if n > t.newest {
		if step := n - t.newest; step > 32 {
			t.before = 0
		} else {
			t.before = uint32((uint64(t.before)<<1 | 1) << (step - 1))
		}
		t.newest = n
		return true
	}
	back := t.newest - n
	if back == 0 || back > 32 || t.before&(1<<(back-1)) != 0 {
		return false
	}
	t.before |= 1 << (back - 1)
	return true
}
