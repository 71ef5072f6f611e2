package channel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Config is what a [Client] needs. The zero value of an optional field selects
// its default.
type Config struct {
	Keys *keystore.Store // our certificates and the roots; required
	TLCP bool            // by TLCP; otherwise by TLS 1.2 or newer

	// Peer says by its error who may not be at the other end; required. The
	// identity is empty for a certificate that carries none of ours.
	Peer func(certid.Identity) error
	// AnyName accepts a peer of the right identity under whatever name it was
	// dialed. Otherwise its certificate must be for the host, too.
	AnyName bool
	// ALPN are the application protocols to offer; default none.
	ALPN    []string
	Timeout time.Duration // of the handshake; default 10 s
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	Now     func() time.Time
}

// Client opens channels. It may be used by several goroutines at once.
type Client struct {
	cfg Config
	own atomic.Pointer[own]
}

// own is what we prove ourselves with, and whom we trust. Of each pair of
// fields one is set. It does not change.
type own struct {
	tls      tls.Certificate
	tlsRoots *x509.CertPool
	pair     *tlcp.Pair
	roots    *smx509.CertPool
}

// New reads the certificates that the protocol needs.
func New(cfg Config) (*Client, error) {
	if cfg.Keys == nil || cfg.Peer == nil {
		return nil, errors.New("make channel: keys and the peer's check are required")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		d := &net.Dialer{Timeout: cfg.Timeout}
		d.SetMultipathTCP(false)
		cfg.Dial = d.DialContext
	}
	c := &Client{cfg: cfg}
	return c, c.Renew(cfg.Keys, cfg.TLCP)
}

// Renew takes keys and roots of a folder, and the protocol, into use for the
// connections that are opened from now on. After an error the old ones stay.
func (c *Client) Renew(keys *keystore.Store, byTLCP bool) (err error) {
	var o own
	if byTLCP {
		if o.pair, err = keys.TLCPPair(); err == nil {
			o.roots, err = keys.Root(keystore.TLCPRoot)
		}
	} else {
		if o.tls, err = keys.TLSCertificate(keystore.TLS); err == nil {
			o.tlsRoots, err = keys.TLSRoots()
		}
	}
	if err != nil {
		return fmt.Errorf("make channel: %w", err)
	}
	c.own.Store(&o)
	return nil
}

// Over shakes hands on a connection that is there already, inside which another
// channel is to run. It leaves conn open after an error.
func (c *Client) Over(ctx context.Context, conn net.Conn, host string, check func(certid.Identity) error) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	return c.shake(ctx, conn, c.own.Load(), host, check)
}

// TLS returns the configuration of a client that dials host, for carriers that
// shake hands themselves: check says by its error who may not be there. A client
// by TLCP has none.
func (c *Client) TLS(host string, check func(certid.Identity) error) (*tls.Config, error) {
	o := c.own.Load()
	if o.pair != nil {
		return nil, errors.New("make TLS configuration: this channel is by TLCP")
	}
	return c.tls(o, host, check), nil
}

// DialError says that there was no connection to shake hands on.
type DialError struct{ Err error }

// Error returns the cause.
func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Dial connects to addr (host:port) and returns after the handshake, in which
// both ends proved themselves: a *tls.Conn or a *tlcp.Conn. Its errors wrap
// [*DialError], or say what the handshake failed on.
func (c *Client) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return c.DialPeer(ctx, network, addr, c.cfg.Peer)
}

// DialPeer is [Client.Dial] with another check of who is at the other end.
func (c *Client) DialPeer(ctx context.Context, network, addr string, check func(certid.Identity) error) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &DialError{err}
	}
	raw, err := c.cfg.Dial(ctx, network, addr)
	if err != nil {
		return nil, &DialError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	conn, err := c.shake(ctx, raw, c.own.Load(), host, check)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}

func (c *Client) shake(ctx context.Context, raw net.Conn, o *own, host string, check func(certid.Identity) error) (net.Conn, error) {
	if o.pair != nil {
		conn := tlcp.Client(raw, c.tlcp(o, host, check))
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, explain(err)
		}
		return conn, nil
	}
	conn := tls.Client(hello.Replay(raw, nil), c.tls(o, host, check)) // for what is to be written at once (hello.ReplayConn.Gather)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	return conn, nil
}

// tlcp offers E051 first, which has forward secrecy. Sessions are not resumed:
// the identity is checked anew each time, and a link dials rarely.
func (c *Client) tlcp(o *own, host string, check func(certid.Identity) error) *tlcp.Config {
	return &tlcp.Config{
		Certificates: []*tlcp.Pair{o.pair}, RootCAs: o.roots, ServerName: host, SkipServerName: c.cfg.AnyName,
		CipherSuites: []uint16{tlcp.ECDHE_SM4_GCM_SM3, tlcp.ECDHE_SM4_CBC_SM3},
		NextProtos:   c.cfg.ALPN, Time: c.cfg.Now,
		VerifyConnection: func(s tlcp.ConnectionState) error {
			id, err := certid.OfPair(s.PeerSign, s.PeerEnc)
			if err != nil && !errors.Is(err, certid.ErrNone) {
				return err
			}
			return check(id)
		},
	}
}

func (c *Client) tls(o *own, host string, check func(certid.Identity) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{o.tls}, RootCAs: o.tlsRoots, ServerName: host,
		NextProtos: c.cfg.ALPN, Time: c.cfg.Now, DynamicRecordSizingDisabled: true, // whole messages travel, not pages that somebody watches grow
		// Whoever is known by identity alone is verified below.
		InsecureSkipVerify: c.cfg.AnyName,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("verify peer: it showed no certificate")
			}
			if c.cfg.AnyName {
				if err := verify(s.PeerCertificates, o.tlsRoots, c.cfg.Now()); err != nil {
					return err
				}
			}
			id, err := certid.Of(s.PeerCertificates[0])
			if err != nil && !errors.Is(err, certid.ErrNone) {
				return err
			}
			return check(id)
		},
	}
}

// verify builds a server's chain to the roots, without its name.
func verify(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return fmt.Errorf("verify peer: %w", err)
	}
	return nil
}

// explain adds the remedy to the error of a handshake with a peer that speaks
// the other protocol only.
func explain(err error) error {
	var gm *tlcp.AlertError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &gm) && gm.Alert == tlcp.AlertProtocolVersion:
		return fmt.Errorf("handshake by TLCP: %w (the other side speaks no TLCP; nothing falls back to TLS: serve TLCP there, or set crypto.profile to intl here)", err)
	case gm != nil:
		return fmt.Errorf("handshake by TLCP: %w", err)
	case remoteAlert(err) && strings.Contains(err.Error(), "protocol version"), errors.As(err, &header):
		return fmt.Errorf("handshake by TLS: %w (the other side refuses TLS: set crypto.profile to mixed or gm here)", err)
	}
	return fmt.Errorf("handshake: %w", err)
}

// Answered reports whether a peer was there and had its say: its certificate
// was refused, or ours was. A connection that was not made, or broke, has no
// answer.
func Answered(err error) bool {
	var gm *tlcp.AlertError
	var told *tls.CertificateVerificationError
	return errors.As(err, &gm) || errors.As(err, &told) || remoteAlert(err)
}

// remoteAlert reports whether err is an alert of TLS that the peer sent.
func remoteAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}
