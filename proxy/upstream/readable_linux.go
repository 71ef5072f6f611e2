package upstream

import (
	"net"

	"golang.org/x/sys/unix"
)

// readable reports whether the peer of an idle connection has sent something or
// ended it: either way it is not to be used.
func readable(c net.Conn) bool {
	t, ok := bottom(c).(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return true
	}
	there := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		there = err != nil || n > 0
	})
	return there || err != nil
}
