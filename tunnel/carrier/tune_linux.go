package carrier

import (
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/internal/sock"
)

// notSentLowat is the most unsent bytes that the kernel holds for a carrier,
// so that a reset or a message waits behind little.
const notSentLowat = 128 << 10

// tcpRoundTrip asks the kernel for the shortest round trip of a connection.
func tcpRoundTrip(t *net.TCPConn) (d time.Duration) {
	rc, err := t.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) { // a socket that is closed has none
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			d = time.Duration(info.Min_rtt) * time.Microsecond
		}
	})
	return d
}

// Tune sets the options of a carrier's TCP socket, below whatever c is. It is best effort: c may be
// anything.
func Tune(c net.Conn) {
	t := sock.TCP(c)
	if t == nil {
		return
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
	})
}
