package listen

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"

	"github.com/yumen-zt/yumen/access/policy"
)

// Conn is an accepted connection after its handshake. Peer is the leaf that
// proved its key in the handshake, nil without a client certificate; never
// another certificate of the chain.
type Conn struct {
	*tls.Conn
	Protocol policy.Protocol
	Suite    string
	SNI      string
	ALPN     string
	Peer     *x509.Certificate
	Remote   netip.AddrPort
}

// TCP returns the socket of conn, however many layers stand on it, or nil.
func TCP(conn net.Conn) *net.TCPConn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
