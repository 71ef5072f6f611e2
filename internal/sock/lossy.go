package sock

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
)

// udp is what a QUIC stack uses of a *net.UDPConn.
type udp interface {
	net.Conn
	net.PacketConn
	SyscallConn() (syscall.RawConn, error)
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
	ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error)
	WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error)
}

// lossy is a UDP socket whose datagrams get lost where there is no way.
type lossy struct {
	udp
	from *atomic.Bool
}

// Lossy returns a socket on which a datagram that the system has no way for is
// lost, as it would be a hop further on, once from is true; nil means always. A
// QUIC stack ends a connection at the first error of its socket, and a device
// that changes networks has no way for a moment. A socket that is none of UDP
// comes back as it is.
func Lossy(pc net.PacketConn, from *atomic.Bool) net.PacketConn {
	if c, ok := pc.(udp); ok {
		return &lossy{c, from}
	}
	return pc
}

// WriteTo implements [net.PacketConn].
func (l *lossy) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := l.udp.WriteTo(b, to)
	if l.lost(err) {
		return len(b), nil
	}
	return n, err
}

// WriteMsgUDP is as [net.UDPConn.WriteMsgUDP].
func (l *lossy) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	n, oobn, err = l.udp.WriteMsgUDP(b, oob, to)
	if l.lost(err) {
		return len(b), len(oob), nil
	}
	return n, oobn, err
}

func (l *lossy) lost(err error) bool {
	return err != nil && NoWay(err) && (l.from == nil || l.from.Load())
}

// NoWay reports whether err of a write says that the system has, just now, no
// way to where it goes.
func NoWay(err error) bool {
	for _, e := range noWay {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// noWay are those of POSIX systems, and the numbers of Windows for the same.
var noWay = []syscall.Errno{
	syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, 10051, 10065, 10050, 10049,
}
