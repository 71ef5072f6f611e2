package spa

import (
	"net"
	"net/netip"
	"syscall"

	"github.com/yumen-zt/yumen/internal/sock"
)

// Gate is a UDP socket on which strangers are not heard: what Admit refuses is
// read and forgotten, before QUIC sees it. It is for hidden ports, where the
// guard may not run, and closes what the guard cannot. Make it with [NewGate].
//
// It has no methods that read several datagrams at once: quic-go would read
// past Admit.
type Gate struct {
	net.PacketConn // *net.UDPConn
	admit          func(from netip.AddrPort, data []byte) bool
}

// NewGate puts admit in front of c. admit is called by whoever reads.
func NewGate(c *net.UDPConn, admit func(from netip.AddrPort, data []byte) bool) *Gate {
	return &Gate{c, admit}
}

// ReadFrom implements [net.PacketConn].
func (g *Gate) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := g.PacketConn.ReadFrom(b)
		if err != nil {
			return n, from, err
		}
		if a, ok := from.(*net.UDPAddr); ok && g.admit(a.AddrPort(), b[:n]) {
			return n, from, nil
		}
	}
}

// WriteTo implements [net.PacketConn]. What there is no way for is lost: see
// [sock.Lossy].
func (g *Gate) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := g.PacketConn.WriteTo(b, to)
	if err != nil && sock.NoWay(err) {
		return len(b), nil
	}
	return n, err
}

// SyscallConn lets quic-go forbid fragmentation.
func (g *Gate) SyscallConn() (syscall.RawConn, error) {
	return g.PacketConn.(syscall.Conn).SyscallConn()
}

// SetReadBuffer lets quic-go ask for a larger buffer.
func (g *Gate) SetReadBuffer(n int) error { return g.PacketConn.(*net.UDPConn).SetReadBuffer(n) }

// SetWriteBuffer is the same for what is sent.
func (g *Gate) SetWriteBuffer(n int) error { return g.PacketConn.(*net.UDPConn).SetWriteBuffer(n) }
