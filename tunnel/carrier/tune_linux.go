package carrier

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// notSentLowat is the most unsent bytes that the kernel holds for a carrier,
// so that a reset or a message waits behind little.
const notSentLowat = 128 << 10

// Tune sets the options of a carrier's TCP socket. It is best effort: c may be
// anything.
func Tune(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
	})
}
