package exchange

import (
	"crypto/x509"
	"net"
	"net/netip"

	"github.com/yumen-zt/yumen/access/policy"
)

// Conn is one client connection after its handshake, as a listener hands it
// over. Its fields are read only.
type Conn struct {
	net.Conn                   // what is read and written is in the clear
	Protocol policy.Protocol   // what the handshake agreed upon
	Suite    string            // cipher suite
	SNI      string            // server name that the client sent; empty: none
	ALPN     string            // "h2", "http/1.1" or empty
	Peer     *x509.Certificate // the leaf that proved its key, verified; nil: none
	Remote   netip.AddrPort    // the client; behind a trusted forwarder, the one that it names
}

// Raw returns the connection at the bottom, below TLS and wrappers.
func (c *Conn) Raw() net.Conn {
	raw := c.Conn
	for {
		u, ok := raw.(interface{ NetConn() net.Conn })
		if !ok {
			return raw
		}
		raw = u.NetConn()
	}
}

// Reset ends the connection at once: what the kernel has not sent is thrown
// away, and the client sees a reset. It does not block, and may be called from
// any goroutine and more than once.
func (c *Conn) Reset() {
	raw := c.Raw()
	if l, ok := raw.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = raw.Close()
}
