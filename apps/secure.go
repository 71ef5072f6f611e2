package apps

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Values of tls.protocol.
const (
	protocolTLS  = "tls"
	protocolTLCP = "tlcp"
)

// security is how https upstreams of an application are spoken to: one of the
// two is set. It does not change.
type security struct {
	tls  *tls.Config
	tlcp *tlcp.Config
}

func (c *TLSConfig) validate(at string, fault func(path, format string, args ...any)) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		fault(at, "cert_file and key_file go together")
	}
	pair := []string{c.SignCertFile, c.SignKeyFile, c.EncCertFile, c.EncKeyFile}
	some := slices.ContainsFunc(pair, func(f string) bool { return f != "" })
	switch c.Protocol {
	case "", protocolTLS:
		if some {
			fault(at, "sign_cert_file, sign_key_file, enc_cert_file and enc_key_file are for protocol: tlcp")
		}
	case protocolTLCP:
		if c.CAFile == "" {
			fault(at+".ca_file", "missing (the SM2 root of the upstream: the system has none)")
		}
		if c.CertFile != "" {
			fault(at+".cert_file", "is for TLS (protocol: tlcp takes sign_cert_file, sign_key_file, enc_cert_file and enc_key_file)")
		}
		if some && slices.Contains(pair, "") {
			fault(at, "sign_cert_file, sign_key_file, enc_cert_file and enc_key_file go together")
		}
	default:
		fault(at+".protocol", "%q is neither tls nor tlcp", c.Protocol)
	}
}

// load reads the files that c names.
func (c *TLSConfig) load(now time.Time) (security, error) {
	if c.Protocol == protocolTLCP {
		return c.loadTLCP(now)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return security{}, fmt.Errorf("tls.ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return security{}, fmt.Errorf("tls.ca_file: read %s: no PEM certificate in it", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return security{}, fmt.Errorf("tls.cert_file: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return security{tls: t}, nil
}

func (c *TLSConfig) loadTLCP(now time.Time) (security, error) {
	t := &tlcp.Config{ServerName: c.ServerName, RootCAs: smx509.NewCertPool()}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return security{}, fmt.Errorf("tls.ca_file: %w", err)
	}
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return security{}, fmt.Errorf("tls.ca_file: read %s: no PEM certificate in it", c.CAFile)
	}
	if c.SignCertFile != "" {
		pair, err := tlcp.PairFiles{SignCert: c.SignCertFile, SignKey: c.SignKeyFile, EncCert: c.EncCertFile, EncKey: c.EncKeyFile}.Load(now)
		if err != nil {
			return security{}, fmt.Errorf("tls: %w", err)
		}
		t.Certificates = []*tlcp.Pair{pair}
	}
	return security{tlcp: t}, nil
}

// secureTimeout bounds the handshake with an upstream.
const secureTimeout = 5 * time.Second

// Secure shakes hands with the https upstream host on raw, which [Registry.Dial]
// made, by TLS or TLCP as the application's `tls:` says, and verifies it. alpn
// is the one application protocol wanted; empty: HTTP/1.1, which needs none.
// An error is a [*CertificateError] when a certificate is wrong. Secure owns
// raw: after an error it is closed.
func (a *App) Secure(ctx context.Context, raw net.Conn, host, alpn string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, secureTimeout)
	defer cancel()
	var protos []string
	if alpn != "" {
		protos = []string{alpn}
	}
	var c interface {
		net.Conn
		HandshakeContext(context.Context) error
	}
	if a.secure.tlcp != nil {
		t := a.secure.tlcp.Clone()
		if t.NextProtos = protos; t.ServerName == "" {
			t.ServerName = host
		}
		c = tlcp.Client(raw, t)
	} else {
		t := a.secure.tls.Clone()
		if t.NextProtos = protos; t.ServerName == "" {
			t.ServerName = host
		}
		c = tls.Client(raw, t)
	}
	err := c.HandshakeContext(ctx)
	if err == nil && alpn != "" && negotiated(c) != alpn {
		err = fmt.Errorf("the upstream does not speak %s (remove http2, or switch it on there)", alpn)
	}
	if err != nil {
		raw.Close()
		return nil, a.handshakeFault(host, err)
	}
	return c, nil
}

// TLCP reports whether https upstreams are spoken to by TLCP.
func (a *App) TLCP() bool { return a.secure.tlcp != nil }

func negotiated(c net.Conn) string {
	switch c := c.(type) {
	case *tls.Conn:
		return c.ConnectionState().NegotiatedProtocol
	case *tlcp.Conn:
		return c.ConnectionState().NegotiatedProtocol
	}
	return ""
}

// CertificateError says which certificate kept an upstream and the gateway
// apart: the upstream's, or ours, which it refused.
type CertificateError struct {
	AppID, Host string
	Ours        bool // the upstream refused the gateway's certificate, or wants one
	Err         error
}

// Error names application, upstream, certificate and remedy.
func (e *CertificateError) Error() string {
	if e.Ours {
		return fmt.Sprintf("shake hands with upstream %s of %s: it refuses the gateway's certificate, or wants one: %v (set the client certificate in the application's tls)", e.Host, e.AppID, e.Err)
	}
	return fmt.Sprintf("shake hands with upstream %s of %s: its certificate is not good: %v (look at ca_file and server_name in the application's tls)", e.Host, e.AppID, e.Err)
}

// Unwrap returns the protocol's error.
func (e *CertificateError) Unwrap() error { return e.Err }

func (a *App) handshakeFault(host string, err error) error {
	var gm *tlcp.AlertError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &verify):
		return &CertificateError{a.ID, host, false, err}
	case errors.As(err, &gm):
		switch gm.Alert {
		case tlcp.AlertBadCertificate, tlcp.AlertUnsupportedCertificate, tlcp.AlertCertificateRevoked, tlcp.AlertCertificateExpired,
			tlcp.AlertCertificateUnknown, tlcp.AlertUnknownCA:
			return &CertificateError{a.ID, host, gm.Remote, err}
		case tlcp.AlertProtocolVersion:
			return fmt.Errorf("shake hands with upstream %s of %s: %w (it speaks no TLCP: tls.protocol)", host, a.ID, err)
		}
	}
	return fmt.Errorf("shake hands with upstream %s of %s: %w", host, a.ID, err)
}
