// Package failed says why a TLS or TLCP handshake failed, in the words that all
// of Yumen has for it, and how many of them may be told: a stranger can make
// handshakes fail as often as he likes.
package failed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Reason gives a failed handshake its reason.
func Reason(err error) reason.Reason {
	var f *hello.Error
	var a *tlcp.AlertError
	var op *net.OpError
	switch {
	case errors.As(err, &f):
		return f.Reason
	case errors.As(err, &a):
		return classifyTLCP(a)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return reason.HelloTimeout
	case errors.As(err, &op) && op.Op == "remote error": // an alert, as crypto/tls reports it
		return reason.PeerAlert
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return reason.ClientGone
	}
	if errors.Is(err, tlcp.ErrRevoked) { // over TLS
		return reason.ClientCertGone
	}
	if r, ok := classifyCertificate(err); ok {
		return r
	}
	return classifyText(err.Error())
}

// classifyTLCP reads the alert that our side sent, or got.
func classifyTLCP(a *tlcp.AlertError) reason.Reason {
	switch {
	case a.Remote:
		return reason.PeerAlert
	case errors.Is(a, tlcp.ErrNoClientCertificate):
		return reason.ClientCertAbsent
	case errors.Is(a, tlcp.ErrRevoked):
		return reason.ClientCertGone
	}
	switch a.Alert {
	case tlcp.AlertHandshakeFailure, tlcp.AlertInsufficientSecurity:
		return reason.NoCommonSuite
	case tlcp.AlertCertificateRevoked, tlcp.AlertCertificateExpired:
		return reason.ClientCertGone
	case tlcp.AlertUnsupportedCertificate:
		return reason.ClientCertUsage
	case tlcp.AlertUnknownCA:
		return reason.ClientCertIssuer
	case tlcp.AlertBadCertificate, tlcp.AlertCertificateUnknown:
		return reason.ClientCertBad
	case tlcp.AlertUnrecognizedName:
		return reason.SNIUnknown
	case tlcp.AlertNoApplicationProtocol:
		return reason.ALPNRefused
	case tlcp.AlertProtocolVersion:
		return reason.TLSVersion
	case tlcp.AlertInternalError:
		return reason.InternalError
	}
	return reason.HandshakeFailed
}

// classifyCertificate reads what crypto/tls or the TLCP stack found wrong with a
// client's certificate.
func classifyCertificate(err error) (reason.Reason, bool) {
	var invalid x509.CertificateInvalidError
	var invalidSM smx509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &invalid):
		return invalidFor(invalid.Reason), true
	case errors.As(err, &invalidSM):
		return invalidFor(x509.InvalidReason(invalidSM.Reason)), true
	case errors.As(err, &unknown):
		return reason.ClientCertIssuer, true
	case errors.As(err, &verify):
		return reason.ClientCertBad, true
	}
	return 0, false
}

func invalidFor(r x509.InvalidReason) reason.Reason {
	switch r {
	case x509.Expired:
		return reason.ClientCertGone
	case x509.IncompatibleUsage:
		return reason.ClientCertUsage
	}
	return reason.ClientCertBad
}

// classifyText reads the errors of crypto/tls that have no type. The tests make
// each of them, so a change of the text is noticed.
func classifyText(s string) reason.Reason {
	for _, c := range []struct {
		part string
		is   reason.Reason
	}{
		{"didn't provide a certificate", reason.ClientCertAbsent},
		{"unsupported application protocols", reason.ALPNRefused},
		{"no certificate for", reason.SNIUnknown},
		{"invalid signature by the client certificate", reason.ClientCertBad},
		{"failed to parse certificate", reason.ClientCertBad},
		{"no cipher suite supported", reason.NoCommonSuite},
		{"no key exchanges supported", reason.NoCommonSuite},
		{"unsupported versions", reason.TLSVersion},
	} {
		if strings.Contains(s, c.part) {
			return c.is
		}
	}
	return reason.HandshakeFailed
}
