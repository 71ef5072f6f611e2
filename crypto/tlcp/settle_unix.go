//go:build unix

package tlcp

import (
	"net"
	"os"
	"syscall"
)

const pollable = true

// try reads once. It reports false, without a buffer, when there is nothing
// yet.
func (l *lull) try(fd uintptr) bool {
	b := l.pool.Get().(*[]byte)
	for {
		n, err := syscall.Read(int(fd), *b)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			l.pool.Put(b)
			l.c.rest()
			return false
		case err != nil:
			l.err = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", err)}
			n = 0
		}
		l.b, l.n = b, n
		return true
	}
}
