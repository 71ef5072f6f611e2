package proxy

import (
	"net"

	"golang.org/x/sys/unix"
)

// notSent is how much the kernel may hold of what has not been sent yet on a
// client connection: the most that a stream of a shared connection still sends
// after it has been cut.
const notSent = 128 << 10

func boundSendBuffer(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
	})
}
