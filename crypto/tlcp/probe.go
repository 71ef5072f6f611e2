package tlcp

import (
	"bytes"
	"crypto/ecdsa"
	"io"
	"net"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// ProbeConfig is what [Probe] asks for.
type ProbeConfig struct {
	Suites       []uint16 // offered; required
	ServerName   string   // SNI; empty: none
	NextProtos   []string // ALPN
	NoExtensions bool     // a hello without any
	Rand         io.Reader
}

// ProbeResult is what a server said up to its ServerHelloDone. Nothing of it is
// verified: it is for people who want to know what is wrong with a server.
type ProbeResult struct {
	Suite        uint16
	ALPN         string
	SessionID    bool     // the server will let the session be resumed by identifier
	Certificates [][]byte // DER, in the server's order
	AsksClient   bool     // a CertificateRequest came
	Authorities  [][]byte // of clients, DER of distinguished names

	// SignedBy is the place of the certificate whose key made the signature of
	// the ServerKeyExchange, -1 when it is none of those that were sent.
	SignedBy int
	// Covers is, for the ECC suites, the place of the certificate that the
	// signature covers, -1 when it is none of them or the suite is ECDHE.
	Covers int
}

// Probe says a ClientHello on conn and listens until the ServerHelloDone. It
// goes no further and accepts nothing: the certificates are for the caller to
// judge. The result is never nil and holds what came before an error. The
// caller sets deadlines, bounds what conn may deliver, and closes it.
func Probe(conn net.Conn, p ProbeConfig) (*ProbeResult, error) {
	r := &ProbeResult{SignedBy: -1, Covers: -1}
	config := &Config{Rand: p.Rand, ServerName: p.ServerName, NextProtos: p.NextProtos, NoExtensions: p.NoExtensions}
	c := newConn(conn, config, true)
	h := &clientHandshake{c: c, config: config, log: newTranscript()}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	err := h.probe(p, r)
	if err != nil {
		return r, c.fail(err)
	}
	// The server would wait for us; a failure to say goodbye changes nothing.
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = c.sendAlert(levelFatal, AlertUserCanceled)
	return r, nil
}

func (h *clientHandshake) probe(p ProbeConfig, r *ProbeResult) error {
	random, err := newRandom(h.config)
	if err != nil {
		return err
	}
	h.hello = &clientHello{version: Version, random: random, compressions: []byte{0}, suites: p.Suites, noExtensions: p.NoExtensions}
	if !p.NoExtensions {
		h.hello.serverName, h.hello.alpn = sni(p.ServerName), p.NextProtos
	}
	if err := h.send(h.hello.marshal()); err != nil {
		return err
	}
	if _, err := h.readServerHello(); err != nil {
		return err
	}
	r.Suite, r.ALPN, r.SessionID = h.suite.id, h.reply.alpn, len(h.reply.sessionID) > 0
	msg, err := h.c.expect(typeCertificate)
	if err != nil {
		return err
	}
	var certs certificateMsg
	if !certs.unmarshal(msg[4:]) {
		return alertf(AlertDecodeError, "read server certificates: malformed")
	}
	r.Certificates = certs.certificates
	if msg, err = h.c.expect(typeServerKeyExchange); err != nil {
		return err
	}
	var skx serverKeyExchange
	if !skx.unmarshal(msg[4:], h.suite.ecdhe) {
		return alertf(AlertDecodeError, "read server key exchange: malformed")
	}
	h.whoSigned(&skx, r)
	kind, msg, err := h.c.readMessage()
	if err == nil && kind == typeCertificateRequest {
		var asked certificateRequest
		if !asked.unmarshal(msg[4:]) {
			return alertf(AlertDecodeError, "read certificate request: malformed")
		}
		r.AsksClient, r.Authorities = true, asked.authorities
		kind, _, err = h.c.readMessage()
	}
	if err == nil && kind != typeServerHelloDone {
		err = unexpected(kind, typeServerHelloDone)
	}
	return err
}

// whoSigned finds out which certificate's key made the signature, over which.
func (h *clientHandshake) whoSigned(skx *serverKeyExchange, r *ProbeResult) {
	const most = 4 // certificates that are tried: the pair stands in front
	var certs []*smx509.Certificate
	for _, der := range r.Certificates[:min(most, len(r.Certificates))] {
		c, err := smx509.ParseCertificate(bytes.Clone(der))
		if err != nil {
			c = nil
		}
		certs = append(certs, c)
	}
	for i, signer := range certs {
		if signer == nil {
			continue
		}
		if pub, ok := signer.PublicKey.(*ecdsa.PublicKey); !ok || !sm2.IsSM2PublicKey(pub) {
			continue
		}
		if h.suite.ecdhe {
			if verifySignature(signer, signedParams(h.hello.random, h.reply.random, skx.params, nil), skx.signature) {
				r.SignedBy = i
				return
			}
			continue
		}
		for j, der := range r.Certificates[:len(certs)] {
			if verifySignature(signer, signedParams(h.hello.random, h.reply.random, nil, &smx509.Certificate{Raw: der}), skx.signature) {
				r.SignedBy, r.Covers = i, j
				return
			}
		}
	}
}
