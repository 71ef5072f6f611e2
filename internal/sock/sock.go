// Package sock reads and writes sockets below package net, for those who hold a
// [syscall.RawConn]: one system call, without a word to the scheduler, which
// expects that a call may block. These never do.
//
// [TCP] finds the socket below whatever stands on it.
package sock

import "net"

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
