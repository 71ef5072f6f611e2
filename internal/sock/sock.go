// Package sock reads and writes sockets below package net, for those who hold a
// [syscall.RawConn]: one system call, without a word to the scheduler, which
// expects that a call may block. These never do.
//
// [TCP] finds the socket below whatever stands on it.
package sock

import (
	"net"
	"syscall"
)

// Wait waits until something may be read from a socket, on a shallow stack: a
// connection that is idle needs no more than that. The zero value is not ready;
// it is for one goroutine.
type Wait struct {
	raw    syscall.RawConn
	step   func(fd uintptr) (done bool) // made once
	looked bool
}

// Init makes w wait for c, and reports whether it can.
func (w *Wait) Init(c *net.TCPConn) bool {
	if !Built {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	w.raw, w.step = raw, w.look
	return true
}

// Readable blocks until a read would find something: bytes, the end, an error
// of the connection. It returns the deadline's error when that passes.
func (w *Wait) Readable() error {
	w.looked = false
	return w.raw.Read(w.step)
}

// look is called at once, when nothing may be there yet, and when the poller
// says that something is: it then need not look again.
func (w *Wait) look(fd uintptr) (done bool) {
	if w.looked {
		return true
	}
	w.looked = true
	return !Silent(fd)
}

// TCP returns the socket of conn, however many layers stand on it, or nil.
func TCP(conn net.Conn) *net.TCPConn {
	t, _ := Bottom(conn).(*net.TCPConn)
	return t
}

// Bottom returns the connection below TLS, TLCP and wrappers, which show what
// they stand on as [crypto/tls.Conn.NetConn] does.
func Bottom(conn net.Conn) net.Conn {
	for {
		u, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return conn
		}
		conn = u.NetConn()
	}
}
