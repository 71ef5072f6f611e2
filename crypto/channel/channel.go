// Package channel is what Yumen's own links have in common: a connection on
// which both ends proved themselves by certificate, over TLS or over TLCP.
//
// [Client] opens them from a party's key folder, by the protocol that the
// configuration names and no other. [Of] says of a connection of either
// protocol, of either end, what its handshake agreed on and who is there.
package channel

import (
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// The protocols as State names them, and as policies, logs and metrics do.
const (
	TLCP  = "tlcp"
	TLS12 = "tls1.2"
	TLS13 = "tls1.3"
)

// State is what a handshake agreed on. The zero State is that of a connection
// without one.
type State struct {
	Protocol string            // TLCP, TLS12 or TLS13
	Suite    string            // by the name of its standard
	ALPN     string            // application protocol; empty when none was agreed
	Peer     *x509.Certificate // leaf whose key the peer proved, verified; nil without one
}

// Of returns the state of conn, or of the TLS or TLCP connection that it stands
// on. It is false for any other connection, and before the handshake.
func Of(conn net.Conn) (State, bool) {
	for conn != nil {
		switch c := conn.(type) {
		case *tls.Conn:
			s := c.ConnectionState()
			if !s.HandshakeComplete {
				return State{}, false
			}
			return OfTLS(s), true
		case *tlcp.Conn:
			s := c.ConnectionState()
			if !s.HandshakeComplete {
				return State{}, false
			}
			return State{TLCP, tlcp.CipherSuiteName(s.CipherSuite), s.NegotiatedProtocol, tlcp.X509(s.PeerSign)}, true
		}
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	return State{}, false
}

// OfTLS is [Of] for what crypto/tls tells. Peer is set when the leaf was
// verified by crypto/tls, or by the configuration's own VerifyConnection.
func OfTLS(s tls.ConnectionState) State {
	out := State{TLS12, tls.CipherSuiteName(s.CipherSuite), s.NegotiatedProtocol, nil}
	if s.Version == tls.VersionTLS13 {
		out.Protocol = TLS13
	}
	if len(s.PeerCertificates) > 0 {
		out.Peer = s.PeerCertificates[0]
	}
	return out
}
