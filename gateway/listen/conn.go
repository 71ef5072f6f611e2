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

// replayConn gives the peeked bytes back to the handshake and then reads from
// the socket.
type replayConn struct {
	*net.TCPConn
	peeked []byte // nil once replayed
}

func (c *replayConn) Read(b []byte) (int, error) {
	if len(c.peeked) == 0 {
		return c.TCPConn.Read(b)
	}
	n := copy(b, c.peeked)
	if c.peeked = c.peeked[n:]; len(c.peeked) == 0 {
		c.peeked = nil // the hello's memory must not stay with an idle connection
	}
	return n, nil
}

// NetConn returns the socket below, as [tls.Conn.NetConn] does.
func (c *replayConn) NetConn() net.Conn { return c.TCPConn }

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
