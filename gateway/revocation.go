package gateway

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"unique"

	"github.com/emmansun/gmsm/smx509"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/gateway/listen"
	"github.com/yumen-zt/yumen/internal/reason"
)

// RevocationConfig names the revocation lists (RFC 5280 §5) of the authorities
// whose client certificates the port accepts, over TLS and over TLCP.
type RevocationConfig struct {
	Files    []string `yaml:"files"`    // PEM or DER, one or more lists each
	Required bool     `yaml:"required"` // refuse clients whose authority has no list here, or an overdue one; default false
}

// revocation knows which client certificates were revoked.
type revocation struct {
	lists   *tlcp.CRLs
	issuers []*smx509.Certificate
}

// newRevocation loads the lists that cfg names. Each must be signed by one of
// the gateway's client roots.
func (g *Gateway) newRevocation(cfg *RevocationConfig, keys *keystore.Store) (*revocation, error) {
	r := &revocation{lists: &tlcp.CRLs{Required: cfg.Required, Now: g.now}}
	if len(cfg.Files) == 0 && !cfg.Required {
		return r, nil
	}
	for _, name := range []string{keystore.TLSRoot, keystore.TLCPRoot} {
		raw, err := keys.RootPEM(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		roots, err := keystore.ParseChain(raw)
		if err != nil {
			return nil, err
		}
		r.issuers = append(r.issuers, roots...)
	}
	for i, file := range cfg.Files {
		at := fmt.Sprintf("revocation.files[%d]", i)
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		for _, der := range derLists(raw) {
			if err := r.add(der); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", at, file, err)
			}
		}
	}
	return r, nil
}

// derLists returns the lists of a file; one without PEM is taken for DER.
func derLists(raw []byte) (out [][]byte) {
	if !bytes.Contains(raw, []byte("-----BEGIN ")) {
		return [][]byte{raw}
	}
	for {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			return out
		}
		if b.Type == "X509 CRL" {
			out = append(out, b.Bytes)
		}
	}
}

func (r *revocation) add(der []byte) error {
	l, err := smx509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	err = fmt.Errorf("no root of the gateway's clients has the name of the list's authority (tls-root.crt and tlcp-root.crt in the key folder hold them)")
	for _, issuer := range r.issuers {
		if bytes.Equal(issuer.RawSubject, l.RawIssuer) {
			if err = r.lists.Add(der, issuer); err == nil {
				return nil
			}
		}
	}
	return err
}

// revoked says why a leaf is refused, nil when it is not.
func (r *revocation) revoked(h *held) error {
	for _, issuer := range r.issuers { // its signature was verified in the handshake
		if string(issuer.RawSubject) == h.issuer.Value() && string(issuer.SubjectKeyId) == h.keyID.Value() {
			return r.lists.Check(&smx509.Certificate{SerialNumber: new(big.Int).SetBytes(h.serial), Subject: pkix.Name{CommonName: h.name}}, issuer)
		}
	}
	return nil // the handshake has verified it, by an authority between
}

// held is what a revocation asks of a connection's leaf, which the connection
// itself may let go: a certificate is larger than an idle tunnel.
type held struct {
	issuer, keyID unique.Handle[string] // many have the same
	serial        []byte
	name, device  string
}

func holdable(leaf *x509.Certificate) *held {
	h := &held{
		issuer: unique.Make(string(leaf.RawIssuer)), keyID: unique.Make(string(leaf.AuthorityKeyId)),
		serial: leaf.SerialNumber.Bytes(), name: strings.Clone(leaf.Subject.CommonName),
	}
	if id, err := certid.Of(leaf); err == nil {
		h.device = strings.Clone(id.Device)
	}
	return h
}

// hold remembers a connection that a client certificate opened, until drop.
func (g *Gateway) hold(c *listen.Conn) {
	if c.Peer == nil {
		return
	}
	h := holdable(c.Peer)
	g.peers.Store(c, h)
	// Remembered first, judged again second: lists that came during the handshake
	// are seen here, or see the connection.
	if g.site.Load().revocation.revoked(h) != nil {
		c.Reset()
	}
}

func (g *Gateway) drop(c *listen.Conn) { g.peers.Delete(c) }

// cutRevoked ends what was opened by certificates that are revoked now: the
// sessions of their devices, and the connections.
func (g *Gateway) cutRevoked(r *revocation) {
	g.peers.Range(func(k, v any) bool {
		c, h := k.(*listen.Conn), v.(*held)
		err := r.revoked(h)
		if err == nil {
			return true
		}
		g.log.Warn("client certificate revoked", zap.Stringer("remote_addr", c.Remote), zap.Error(err))
		if h.device != "" {
			g.access.Cut(access.Selector{DeviceID: h.device}, reason.ClientCertGone)
		}
		c.Reset()
		return true
	})
}
