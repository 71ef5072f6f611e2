package listen

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
)

func fault(r reason.Reason, format string, args ...any) error {
	return &hello.Error{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// greet runs steps 2 and 3 on a goroutine of its own, whose grown stack goes
// with it: the handler starts on a fresh one.
func (p *Port) greet(tcp *net.TCPConn, remote netip.AddrPort, pend *pending, release func()) {
	conn, err := p.safely(tcp, remote)
	if !p.half.done(pend) { // whatever the handshake made of the closed socket
		err = fault(reason.HandshakeLimit, "pushed out by newer connections")
	}
	if err != nil {
		p.failed(tcp, remote, conn, err)
		release()
		return
	}
	h := p.cfg.Handlers[conn.ALPN]
	if h == nil {
		h = p.cfg.Handlers[HTTP1]
	}
	p.metrics.handshake(conn.Protocol, reason.OK)
	go func() { // step 4
		defer release()
		defer p.contain(tcp, remote, "handler of "+conn.ALPN)
		h(p.handlers, conn)
	}()
}

// contain keeps a panic inside its connection (R22).
func (p *Port) contain(tcp *net.TCPConn, remote netip.AddrPort, part string) {
	v := recover()
	if v == nil {
		return
	}
	reset(tcp)
	p.cfg.Logger.Error("connection panicked", zap.String("part", part), zap.Any("error", v), zap.Stringer("remote_addr", remote),
		zap.Stringer("reason", reason.InternalError), zap.ByteString("stack", debug.Stack()))
	p.cfg.Alerts.Raise(alert.Alert{Code: alert.InternalFault, Reason: reason.InternalError, Detail: part})
}

// safely is handshake that turns a panic into an error.
func (p *Port) safely(tcp *net.TCPConn, remote netip.AddrPort) (c *Conn, err error) {
	err = fault(reason.InternalError, "panic")
	defer p.contain(tcp, remote, "handshake")
	return p.handshake(tcp, remote)
}

// handshake peeks the hello, chooses the face and handshakes. On an error after
// the peek it returns what is known of the connection, too.
func (p *Port) handshake(tcp *net.TCPConn, remote netip.AddrPort) (*Conn, error) {
	now := time.Now()
	if err := tcp.SetReadDeadline(now.Add(p.cfg.Limits.Hello)); err != nil {
		return nil, err
	}
	h, err := hello.Read(tcp)
	if err != nil {
		return nil, err
	}
	c := &Conn{SNI: canonicalName(h.ServerName), Remote: remote}
	switch v := h.Newest(); {
	case v == hello.VersionTLCP:
		return c, fault(reason.ProtocolRefused, "TLCP is not enabled")
	case v < hello.VersionTLS12:
		return c, fault(reason.TLSVersion, "offered at most 0x%04x", v)
	}
	if err := tcp.SetDeadline(time.Now().Add(p.cfg.Limits.Handshake)); err != nil {
		return c, err
	}
	c.Conn = tls.Server(hello.Replay(tcp, h.Raw), p.faces.Load().choose(h))
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Limits.Handshake)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return c, err
	}
	s := c.ConnectionState()
	c.ALPN, c.Suite, c.Protocol = s.NegotiatedProtocol, tls.CipherSuiteName(s.CipherSuite), policy.TLS12
	if s.Version == tls.VersionTLS13 {
		c.Protocol = policy.TLS13
	}
	if len(s.PeerCertificates) > 0 {
		c.Peer = s.PeerCertificates[0]
	}
	return c, tcp.SetDeadline(time.Time{})
}

// failed names why there is no connection: in the metric, the log, the audit
// and, over plain HTTP, to the client.
func (p *Port) failed(tcp *net.TCPConn, remote netip.AddrPort, c *Conn, err error) {
	r := classify(err)
	protocol := policy.Protocol(0)
	p.metrics.handshake(protocol, r)
	if r == reason.PlainHTTP {
		_ = tcp.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(tcp, plainAnswer) // a courtesy: the connection ends either way
		_ = tcp.CloseWrite()
	}
	tcp.Close()
	if r == reason.ClientGone {
		return // a probe or a health check that said nothing
	}
	sni := ""
	if c != nil {
		sni = c.SNI
	}
	if ce := p.cfg.Logger.Check(zap.DebugLevel, "handshake failed"); ce != nil {
		ce.Write(zap.Stringer("reason", r), zap.Stringer("remote_addr", remote), zap.String("server_name", sni), zap.Error(err))
	}
	switch r {
	case reason.ClientCertAbsent, reason.ClientCertBad, reason.ClientCertGone:
		p.cfg.Audit.Write(&audit.Record{
			Time: p.cfg.Now(), Kind: audit.Login, GatewayID: p.cfg.GatewayID, Object: sni,
			Remote: remote.String(), Result: r.String(), Code: r, Detail: err.Error(),
		})
	}
	p.cfg.Alerts.Raise(alert.Alert{Code: alert.HandshakeFaults, Reason: r, Remote: remote.Addr().String(), Detail: sni})
}

const plainAnswer = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" +
	"YM-105 This port speaks TLS: use https. 该端口使用 TLS，请通过 https 访问。\n"

// classify gives a failed handshake its reason.
func classify(err error) reason.Reason {
	var f *hello.Error
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &f):
		return f.Reason
	case errors.As(err, &invalid):
		if invalid.Reason == x509.Expired {
			return reason.ClientCertGone
		}
		return reason.ClientCertBad
	case errors.As(err, &unknown), errors.As(err, &verify):
		return reason.ClientCertBad
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return reason.HelloTimeout
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrUnexpectedEOF):
		return reason.ClientGone
	}
	switch s := err.Error(); {
	case strings.Contains(s, "didn't provide a certificate"):
		return reason.ClientCertAbsent
	case strings.Contains(s, "unsupported application protocols"):
		return reason.ALPNRefused
	case strings.Contains(s, "no certificate for"):
		return reason.SNIUnknown
	case strings.Contains(s, "invalid signature by the client certificate"), strings.Contains(s, "failed to parse certificate"):
		return reason.ClientCertBad
	case strings.Contains(s, "connection reset"), strings.Contains(s, "broken pipe"):
		return reason.ClientGone
	}
	return reason.HandshakeFailed
}

// choose picks the face for a hello. Each face has one tls.Config for its whole
// life, so that session tickets of one face and set of client authorities are
// of no use to another.
func (f *Faces) choose(h *hello.Hello) *tls.Config {
	f.once.Do(f.build)
	if slices.Contains(h.ALPN, Tunnel) {
		return f.tunnel
	}
	if f.Demand != nil && f.Demand(canonicalName(h.ServerName)) {
		return f.device
	}
	return f.open
}

func (f *Faces) build() {
	roots := f.ClientRoots
	if roots == nil {
		roots = x509.NewCertPool() // nobody is accepted, instead of everybody that the system trusts
	}
	base := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return f.Certificate(canonicalName(h.ServerName))
		},
		// TLS 1.2 keeps only forward-secret AEAD suites.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{HTTP2, HTTP1},
		ClientCAs:  roots,
	}
	f.open = base
	f.device = base.Clone()
	f.device.ClientAuth = tls.RequireAndVerifyClientCert
	f.tunnel = f.device.Clone()
	f.tunnel.NextProtos = []string{Tunnel}
	f.tunnel.DynamicRecordSizingDisabled = true // tunnels carry their own records
}

// canonicalName is a server name as certificates and routes spell it.
func canonicalName(s string) string { return strings.TrimSuffix(strings.ToLower(s), ".") }

// Bounded returns cert with its private key behind the semaphore of the
// process: a flood of handshakes waits there, not on the processors.
func Bounded(cert tls.Certificate) tls.Certificate {
	if s, ok := cert.PrivateKey.(crypto.Signer); ok {
		cert.PrivateKey = boundedSigner{s}
	}
	return cert
}

type boundedSigner struct{ crypto.Signer }

func (s boundedSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signers <- struct{}{}
	defer func() { <-signers }()
	return s.Signer.Sign(rand, digest, opts)
}
