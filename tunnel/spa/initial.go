package spa

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// MaxInitial is the largest Initial datagram that still fits a path of 1,280
// bytes with a token behind it: the InitialPacketSize that QUIC over a
// [PacketConn] must be given at most. 1,200 is the least that QUIC may send.
const MaxInitial = 1212

// sameToken is how long the Initials to one address carry one token. Those that
// are sent again then open nothing new, and none is left over that somebody on
// the path could use.
const sameToken = 3 * time.Second

// maxTokens bounds the addresses that tokens are kept for.
const maxTokens = 64

// PacketConn puts a token behind each Initial datagram of QUIC (RFC 9000,
// 17.2.2) that leaves it: the guard opens the 5-tuple, and the peer's QUIC
// drops the 20 bytes as a packet that is not its (12.2). It is for clients.
// Make it with [Dialer.PacketConn]; its methods may be called from any
// goroutine, and writes by [PacketConn.WriteTo] and [PacketConn.WriteMsgUDP]
// only, as quic-go does.
type PacketConn struct {
	*net.UDPConn
	d    *Dialer
	pass *Pass

	mu     sync.Mutex
	tokens map[netip.AddrPort]initialToken // guarded by mu
}

type initialToken struct {
	token []byte
	made  time.Time
}

// PacketConn wraps c for QUIC connections to gateways that take pass.
func (d *Dialer) PacketConn(c *net.UDPConn, pass *Pass) *PacketConn {
	return &PacketConn{UDPConn: c, d: d, pass: pass, tokens: map[netip.AddrPort]initialToken{}}
}

// WriteTo implements [net.PacketConn].
func (c *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok || !isInitial(b) {
		return c.UDPConn.WriteTo(b, to)
	}
	n, err := c.UDPConn.WriteTo(c.withToken(b, a), to)
	return min(n, len(b)), err
}

// WriteMsgUDP sends b with the control messages oob. An Initial is one
// datagram: no client sends several of them by segmentation offload.
func (c *PacketConn) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	if to == nil || !isInitial(b) {
		return c.UDPConn.WriteMsgUDP(b, oob, to)
	}
	n, oobn, err = c.UDPConn.WriteMsgUDP(c.withToken(b, to), oob, to)
	return min(n, len(b)), oobn, err
}

// withToken returns a copy of b with the token for to behind it; b when no
// ticket counts.
func (c *PacketConn) withToken(b []byte, to *net.UDPAddr) []byte {
	at := to.AddrPort()
	now := c.d.now()
	t := c.pass.at(now)
	if t == nil {
		return b
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.tokens[at]
	if age := now.Sub(k.made); !ok || age < 0 || age >= sameToken {
		if len(c.tokens) >= maxTokens {
			clear(c.tokens)
		}
		k = initialToken{AppendToken(nil, t, c.d.counters.next(t, now), at.Port(), UDP), now}
		c.tokens[at] = k
	}
	return append(append(make([]byte, 0, len(b)+TokenBytes), b...), k.token...)
}

// isInitial reports whether the datagram b begins with an Initial of QUIC
// version 1 (RFC 9000) or 2 (RFC 9369).
func isInitial(b []byte) bool {
	if len(b) < 7 || b[0]&0xc0 != 0xc0 {
		return false
	}
	switch kind := b[0] >> 4 & 3; [4]byte(b[1:5]) {
	case [4]byte{0, 0, 0, 1}:
		return kind == 0
	case [4]byte{0x6b, 0x33, 0x43, 0xcf}:
		return kind == 1
	}
	return false
}
