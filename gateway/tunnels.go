package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/tunnel"
	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// serveTunnel makes a carrier of an agent's connection, and serves the tunnel.
// It stays on the stack of an idle tunnel, and so has little there.
func (g *Gateway) serveTunnel(ctx context.Context, c *listen.Conn) {
	g.hold(c)
	defer g.drop(c)
	if t := g.carrierOf(ctx, c); t != nil {
		_ = g.tunnel.ServeConn(ctx, *t) // it has logged and counted why it ended
	}
}

// carrierOf returns the carrier of an agent's connection, or nil when there is
// none.
func (g *Gateway) carrierOf(ctx context.Context, c *listen.Conn) *tunnel.Conn {
	t := &tunnel.Conn{Conn: c.Conn, Protocol: c.Protocol, Suite: c.Suite, Peer: c.Peer, Remote: c.Remote}
	if c.QUIC != nil {
		first, cancel := context.WithTimeout(ctx, helloWait)
		conn, err := carrier.AcceptQUIC(first, c.QUIC)
		cancel()
		if err != nil {
			return nil // no stream: nothing was said
		}
		t.Conn = conn
		t.Where = func() netip.AddrPort {
			if a, ok := c.QUIC.RemoteAddr().(*net.UDPAddr); ok {
				return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
			}
			return c.Remote
		}
	}
	if c.ALPN == listen.TunnelSealed {
		in, err := g.port.Inside(ctx, t.Conn)
		if err == nil {
			err = sameParty(c, in)
		}
		if err != nil {
			g.log.Info("tunnel refused", zap.Stringer("remote_addr", c.Remote), zap.Error(err))
			c.Reset()
			return nil
		}
		s := in.ConnectionState()
		t.Conn, t.Protocol, t.Suite, t.Peer = in, policy.TLCP, tlcp.CipherSuiteName(s.CipherSuite), tlcp.X509(s.PeerSign)
	}
	c.Peer = nil                             // an agent's certificates are larger than its idle tunnel
	settles := c.ALPN != listen.TunnelSealed // it waits at the socket, where TLS is
	if s, ok := t.Conn.(interface{ Settle() }); ok && settles {
		s.Settle()
	}
	return t
}

// sameParty wants one agent on one device inside and outside.
func sameParty(c *listen.Conn, in *tlcp.Conn) error {
	inner := in.ConnectionState().PeerSign
	if c.Peer == nil || inner == nil {
		return errors.New("serve tunnel: a certificate is missing")
	}
	outside, err := certid.Of(c.Peer)
	if err != nil {
		return err
	}
	inside, err := certid.OfSM(inner)
	if err != nil {
		return err
	}
	if outside.Agent != inside.Agent || outside.Device != inside.Device {
		return errors.New("serve tunnel: the certificates inside and outside are of two parties")
	}
	return nil
}
