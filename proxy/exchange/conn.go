package exchange

import (
	"crypto/tls"
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

// recordSize is what TLS sends at once.
const recordSize = 16 << 10

// WriteAll writes p, in one write to the socket if it takes several records.
func (c *Conn) WriteAll(p []byte) error {
	if len(p) > recordSize {
		if t, ok := c.Conn.(*tls.Conn); ok { // TLCP does so itself
			if g, ok := t.NetConn().(gatherer); ok {
				return g.Gather(func() error {
					_, err := t.Write(p)
					return err
				})
			}
		}
	}
	_, err := c.Conn.Write(p)
	return err
}

// gatherer is the connection below TLS, as the listener makes it.
type gatherer interface{ Gather(func() error) error }

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
