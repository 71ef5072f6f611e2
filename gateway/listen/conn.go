package listen

import (
	"crypto/x509"
	"net"
	"net/netip"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/sock"
)

// Conn is an accepted connection after its handshake. Peer is the leaf that
// proved its key in the handshake, nil without a client certificate; never
// another certificate of the chain.
type Conn struct {
	net.Conn            // *tls.Conn or *tlcp.Conn: what is read and written is in the clear; nil over QUIC
	QUIC     *quic.Conn // nil over TCP
	Protocol policy.Protocol
	Suite    string
	SNI      string
	ALPN     string
	Peer     *x509.Certificate
	Remote   netip.AddrPort

	offered string // what the client offered, of a handshake that failed
}

// NetConn returns the connection below the protocol, as [tls.Conn.NetConn] does.
func (c *Conn) NetConn() net.Conn {
	if u, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		return u.NetConn()
	}
	return nil
}

// Reset ends the connection at once, whatever it stands on. Over TCP what is
// unsent is forgotten.
func (c *Conn) Reset() {
	if c.QUIC != nil {
		_ = c.QUIC.CloseWithError(0, "")
	} else if tcp := sock.TCP(c.Conn); tcp != nil {
		reset(tcp)
	}
}
