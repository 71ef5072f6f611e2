package carrier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// ALPN is the protocol name of version 1 records.
const ALPN = "yumen/1"

// Conn is an authenticated carrier: an ordered, reliable byte stream.
type Conn interface {
	net.Conn
	// Peer returns the leaf certificate that the other end proved.
	Peer() *x509.Certificate
}

// Dialer connects an agent to a gateway's address (host:port). Dial returns
// after the handshake. A Dialer may be used by several goroutines at once.
type Dialer interface {
	Dial(ctx context.Context, addr string) (Conn, error)
}

// Listener gives out carriers whose handshake is done. The gateway's one port
// has its own; this one serves tests and tools.
type Listener interface {
	Accept() (Conn, error)
	Addr() net.Addr
	Close() error
}

// TLS dials TLS 1.2 or newer over TCP (M71). Config must hold the agent's
// certificate and the roots of the gateway; versions and ALPN are set here.
type TLS struct {
	Config    *tls.Config
	NetDialer *net.Dialer   // default: a zero net.Dialer
	Timeout   time.Duration // of connecting and handshake; default 10 s
}

// Dial connects, verifies the gateway and demands ALPN.
func (d *TLS) Dial(ctx context.Context, addr string) (Conn, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	nd := d.NetDialer
	if nd == nil {
		nd = &net.Dialer{}
	}
	raw, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial gateway: %w", err)
	}
	cfg := d.Config.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.NextProtos = []string{ALPN}
	cfg.DynamicRecordSizingDisabled = true
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("dial gateway: %w", err), raw.Close())
		}
		cfg.ServerName = host
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("handshake with gateway %s: %w", addr, err), raw.Close())
	}
	if p := c.ConnectionState().NegotiatedProtocol; p != ALPN {
		return nil, errors.Join(fmt.Errorf("handshake with gateway %s: it does not speak %s (the port of agents is needed)", addr, ALPN), c.Close())
	}
	Tune(raw)
	return tlsConn{c}, nil
}

type tlsConn struct{ *tls.Conn }

// Peer returns the verified leaf of the gateway.
func (c tlsConn) Peer() *x509.Certificate {
	if p := c.ConnectionState().PeerCertificates; len(p) > 0 {
		return p[0]
	}
	return nil
}
