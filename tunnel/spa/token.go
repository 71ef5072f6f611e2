package spa

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/internal/siphash"
)

// TokenBytes is the size of a token: the largest connection id of QUIC, too.
//
//	alias (8) | counter (4, big-endian) | SipHash-2-4 (8, little-endian)
//
// The code covers counter, destination port (2, big-endian) and protocol (1):
// one block of SipHash. The alias needs no cover, its ticket has a key of its own.
const TokenBytes = 20

// window is how far behind the newest a counter may be. Each counts once.
const window = 32

// Transport protocols, as IP numbers them.
const (
	TCP uint8 = 6
	UDP uint8 = 17
)

// AppendToken appends a token of t to b.
func AppendToken(b []byte, t *permit.Ticket, counter uint32, port uint16, protocol uint8) []byte {
	at := len(b)
	b = append(b, t.Alias[:]...)
	b = binary.BigEndian.AppendUint32(b, counter)
	return binary.LittleEndian.AppendUint64(b, code(t, b[at+8:at+12], port, protocol))
}

func code(t *permit.Ticket, counter []byte, port uint16, protocol uint8) uint64 {
	var m [7]byte
	copy(m[:], counter)
	binary.BigEndian.PutUint16(m[4:], port)
	m[6] = protocol
	return siphash.Sum7(&t.Gate, &m)
}

// genuine reports whether b begins with a token of t for port.
func genuine(t *permit.Ticket, b []byte, port uint16, protocol uint8) bool {
	return len(b) >= TokenBytes && code(t, b[8:12], port, protocol) == binary.LittleEndian.Uint64(b[12:])
}

// Counter is the counter of t at now: milliseconds of its time, or seconds of a
// long-lived one's. So an agent that starts anew does not repeat what it has
// used, and a gateway that starts anew knows what may have been used before.
func Counter(t *permit.Ticket, now time.Time) uint32 {
	unit := time.Millisecond
	if t.Home() {
		unit = time.Second
	}
	return uint32(max(now.Sub(t.From)/unit, 1))
}

// counters gives each ticket rising counters, from [Counter] on. Its methods may
// be called from any goroutine.
type counters struct {
	mu   sync.Mutex
	last map[[8]byte]uint32 // guarded by mu; a few tickets, the old ones are forgotten
}

func (c *counters) next(t *permit.Ticket, now time.Time) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.last) > 64 || c.last == nil {
		c.last = map[[8]byte]uint32{}
	}
	n := max(Counter(t, now), c.last[t.Alias]+1)
	c.last[t.Alias] = n
	return n
}

// seen is a ticket's replay window: the newest counter and those before it.
type seen struct {
	newest uint32
	bits   uint32 // bit 0 is the counter just below the newest
}

// take reports whether n was not taken yet, and takes it.
func (s *seen) take(n uint32) bool {
	switch {
	case n == 0:
		return false
	case n > s.newest:
		if step := n - s.newest; step > window {
			s.bits = 0
		} else {
			s.bits = uint32((uint64(s.bits)<<1 | 1) << (step - 1))
		}
		s.newest = n
		return true
	case n == s.newest || s.newest-n > window:
		return false
	}
	bit := uint32(1) << (s.newest - n - 1)
	if s.bits&bit != 0 {
		return false
	}
	s.bits |= bit
	return true
}
