package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

func fault(r reason.Reason, format string, args ...any) error {
	return &hello.Error{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// greet runs steps 2 and 3 on a goroutine of its own, whose grown stack goes
// with it: the handler starts on a fresh one.
func (p *Port) greet(tcp *net.TCPConn, remote netip.AddrPort, admission Admission, pend *pending) {
	conn, err := p.safely(tcp, remote, admission, pend)
	from := pend.from
	if !p.half.done(pend) { // whatever the handshake made of the closed socket
		err = fault(reason.HandshakeLimit, "pushed out by newer connections")
	}
	if err != nil {
		if conn != nil {
			remote = conn.Remote // which its forwarder may have named
		}
		p.failed(tcp, remote, conn, err)
		p.release(from)
		return
	}
	h := p.cfg.Handlers[conn.ALPN]
	if h == nil {
		h = p.cfg.Handlers[HTTP1]
	}
	p.metrics.handshake(conn.Protocol, reason.OK)
	p.metrics.suites.WithLabelValues(conn.Protocol.String(), conn.Suite).Inc()
	go func() { // step 4
		defer p.release(from)
		defer p.contain(conn, "handler of "+conn.ALPN)
		h(p.handlers, conn)
	}()
}

// contain keeps a panic inside its connection (R22).
func (p *Port) contain(c *Conn, part string) {
	v := recover()
	if v == nil {
		return
	}
	c.Reset()
	p.cfg.Logger.Error("connection panicked", zap.String("part", part), zap.Any("error", v), zap.Stringer("remote_addr", c.Remote),
		zap.Stringer("reason", reason.InternalError), zap.ByteString("stack", debug.Stack()))
	p.cfg.Alerts.Raise(alert.Alert{Code: alert.InternalFault, Reason: reason.InternalError, Detail: part})
}

// safely is handshake that turns a panic into an error.
func (p *Port) safely(tcp *net.TCPConn, remote netip.AddrPort, admission Admission, pend *pending) (c *Conn, err error) {
	err = fault(reason.InternalError, "panic")
	defer p.contain(&Conn{Conn: tcp, Remote: remote}, "handshake")
	return p.handshake(tcp, remote, admission, pend)
}

// handshake peeks the hello, chooses the protocol and the face and handshakes.
// On an error it returns what is known of the connection, too.
func (p *Port) handshake(tcp *net.TCPConn, remote netip.AddrPort, admission Admission, pend *pending) (c *Conn, err error) {
	c = &Conn{Remote: remote}
	if err := tcp.SetReadDeadline(time.Now().Add(p.cfg.Limits.Hello)); err != nil {
		return c, err
	}
	below := &meter{TCPConn: tcp, half: p.half, pend: pend, base: costPeek}
	if p.forwarder(remote.Addr()) {
		if err := p.forwarded(below, c); err != nil {
			return c, err
		}
	}
	from, err := p.stepOver(tcp, below, admission)
	if err != nil {
		return c, err
	}
	h, err := hello.Read(from)
	if err != nil {
		err = notForwarder(h, err)
		if _, read := errors.AsType[*hello.Error](err); read {
			sendAlert(tcp, h, alertDecode)
		}
		return c, err
	}
	c.SNI, c.Protocol = canonicalName(h.ServerName), protocolOf(h.Newest())
	defer func() {
		if err != nil {
			c.offered = h.Describe()
		}
	}()
	f := p.faces.Load()
	if no := f.admits(h); no != nil {
		sendAlert(tcp, h, no.alert)
		return c, no.cause
	}
	now := time.Now()
	if err := tcp.SetDeadline(now.Add(p.cfg.Limits.Handshake)); err != nil {
		return c, err
	}
	ctx, cancel := context.WithDeadline(context.Background(), now.Add(p.cfg.Limits.Handshake))
	defer cancel()
	if h.TLCP() {
		if err = below.enters(costTLCP); err == nil {
			err = c.serveTLCP(ctx, hello.Replay(below, h.Raw), f.choose(h.ALPN, h.ServerName, true).tlcp.config(now))
		}
	} else if err = below.enters(costTLS); err == nil {
		err = c.serveTLS(ctx, hello.Replay(below, h.Raw), f.choose(h.ALPN, h.ServerName, false).tls)
	}
	if err != nil {
		return c, err
	}
	below.pend = nil
	return c, tcp.SetDeadline(time.Time{})
}

// tokenBytes is the size of a permit's token; its first bit is set, which no
// hello's is.
const tokenBytes = 20

// stepOver returns where the hello is to be read: behind the token of a permit,
// if one stands there. A hello without one gets no word where it is demanded.
func (p *Port) stepOver(tcp *net.TCPConn, below io.Reader, admission Admission) (io.Reader, error) {
	if admission == Admitted {
		return below, nil
	}
	token := make([]byte, tokenBytes)
	if _, err := io.ReadFull(below, token[:1]); err != nil {
		return nil, err
	}
	if token[0] < 0x80 {
		if admission == MustShowToken {
			return nil, fault(reason.GuardUnauthorized, "no permit before the hello")
		}
		return io.MultiReader(bytes.NewReader(token[:1]), below), nil
	}
	if _, err := io.ReadFull(below, token[1:]); err != nil {
		return nil, err
	}
	if admission == MustShowToken && !p.cfg.Token(localOf(tcp), token) {
		return nil, fault(reason.GuardUnauthorized, "the permit before the hello is not genuine, or was used")
	}
	return below, nil
}

func (c *Conn) serveTLS(ctx context.Context, below net.Conn, cfg *tls.Config) error {
	t := tls.Server(below, cfg)
	c.Conn = t
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	s := t.ConnectionState()
	c.ALPN, c.Suite, c.Protocol = s.NegotiatedProtocol, tls.CipherSuiteName(s.CipherSuite), protocolOf(s.Version)
	if len(s.PeerCertificates) > 0 {
		c.Peer = s.PeerCertificates[0]
	}
	return nil
}

func (c *Conn) serveTLCP(ctx context.Context, below net.Conn, cfg *tlcp.Config) error {
	t := tlcp.Server(below, cfg)
	c.Conn = t
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	s := t.ConnectionState()
	c.ALPN, c.Suite, c.Protocol = s.NegotiatedProtocol, tlcp.CipherSuiteName(s.CipherSuite), policy.TLCP
	if s.PeerSign != nil {
		c.Peer = tlcp.X509(s.PeerSign)
	}
	return nil
}

func protocolOf(version uint16) policy.Protocol {
	switch version {
	case hello.VersionTLCP:
		return policy.TLCP
	case hello.VersionTLS12:
		return policy.TLS12
	case hello.VersionTLS13:
		return policy.TLS13
	}
	return policy.Unknown
}

// refusal is a hello that is understood and not served.
type refusal struct {
	cause error // a hello.Error
	alert byte
}

// admits says which protocols are served at all; nil: this one is.
func (f *Faces) admits(h *hello.Hello) *refusal {
	no := func(alert byte, r reason.Reason, detail string) *refusal {
		return &refusal{fault(r, "%s", detail), alert}
	}
	switch {
	case h.TLCP() && f.NoTLCP:
		return no(alertVersion, reason.TLCPRefused, "the profile is intl: TLS only")
	case h.TLCP() && f.Pair == nil:
		return no(alertVersion, reason.TLCPRefused, "there are no TLCP certificates")
	case h.TLCP():
		return nil
	case f.Pair != nil && h.ListsTLCP() && (f.NoTLS || f.PreferTLCP):
		return no(alertHandshake, reason.TLCPPreferred, "the client also speaks TLCP")
	case f.NoTLS:
		return no(alertVersion, reason.TLSRefused, "the profile is gm: TLCP only")
	case h.Newest() < hello.VersionTLS12:
		return no(alertVersion, reason.TLSVersion, fmt.Sprintf("offered at most 0x%04x", h.Newest()))
	}
	return nil
}

// Alerts of TLS and TLCP that are sent before either stack has begun.
const (
	alertHandshake = 40
	alertDecode    = 50
	alertVersion   = 70
)

// sendAlert tells a client that spoke TLS or TLCP why it is refused.
func sendAlert(tcp *net.TCPConn, h *hello.Hello, alert byte) {
	const handshake, fatal, alertType = 22, 2, 21
	if len(h.Raw) < 3 || h.Raw[0] != handshake {
		return
	}
	_ = tcp.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = tcp.Write([]byte{alertType, h.Raw[1], h.Raw[2], 0, 2, fatal, alert}) // a courtesy: the connection ends either way
}

// Inside shakes hands by TLCP inside an agent's connection that agreed on
// [TunnelSealed], with the tunnel's face. c is closed after an error.
func (p *Port) Inside(ctx context.Context, c net.Conn) (*tlcp.Conn, error) {
	f := p.faces.Load().tunnel.tlcp
	if f == nil {
		return nil, errors.Join(errors.New("shake hands inside the tunnel: there are no TLCP certificates"), c.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Limits.Handshake)
	defer cancel()
	in := tlcp.Server(c, f.config(time.Now()))
	if err := in.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("shake hands inside the tunnel: %w", err), c.Close())
	}
	return in, nil
}
