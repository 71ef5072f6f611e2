package envelope

import (
	"errors"
	"fmt"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/internal/reason"
)

// extSigner is the header's extension that carries a signer's chain.
const extSigner = "signer"

const maxSignerChain = 4

// Pinned returns a Signers function that knows exactly these certificates.
func Pinned(certs ...*smx509.Certificate) func(keyID, sender string) (*smx509.Certificate, error) {
	byKey := make(map[string]*smx509.Certificate, len(certs))
	for _, c := range certs {
		byKey[KeyID(c)] = c
	}
	return func(keyID, _ string) (*smx509.Certificate, error) {
		c, ok := byKey[keyID]
		if !ok {
			return nil, errors.New("not a pinned certificate")
		}
		return c, nil
	}
}

// SignerExt returns the value of the header's extension "signer": the DER
// certificates of chain, leaf first, one after the other, in base64.
func SignerExt(chain []*smx509.Certificate) jsontext.Value {
	var der []byte
	for _, c := range chain {
		der = append(der, c.Raw...)
	}
	return jsontext.Value(`"` + b64.EncodeToString(der) + `"`)
}

// ListSigner returns a Resolve function for lists: it takes the certificate
// chain from the header's extension "signer", verifies it under roots at the
// time of now (default time.Now) and demands the identity urn:yumen:listsigner
// of the sender.
func ListSigner(roots *smx509.CertPool, now func() time.Time) func(*Header) (*smx509.Certificate, error) {
	if now == nil {
		now = time.Now
	}
	return func(h *Header) (*smx509.Certificate, error) {
		cert, err := listSigner(h, roots, now())
		if err != nil {
			return nil, reject(reason.ListSigner, err)
		}
		return cert, nil
	}
}

func listSigner(h *Header, roots *smx509.CertPool, at time.Time) (*smx509.Certificate, error) {
	leaf, err := headerChain(h, roots, at)
	if err != nil {
		return nil, err
	}
	id, err := certid.OfSM(leaf)
	if err != nil {
		return nil, fmt.Errorf("verify list signer: %w", err)
	}
	if id.ListSigner != h.Sender {
		return nil, fmt.Errorf("verify list signer: the certificate is for lists of %q, not of %s", id.ListSigner, clip(h.Sender))
	}
	return leaf, nil
}

// headerChain returns the leaf of the chain in the header's extension "signer",
// verified under roots at the time at.
func headerChain(h *Header, roots *smx509.CertPool, at time.Time) (*smx509.Certificate, error) {
	if roots == nil {
		return nil, errors.New("no root is pinned")
	}
	var text string
	if err := json.Unmarshal(h.Ext[extSigner], &text); err != nil {
		return nil, fmt.Errorf("read signer: %w", err)
	}
	der, err := b64.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("read signer: %w", err)
	}
	return Leaf(der, roots, at)
}

// Leaf returns the leaf of a chain of DER certificates, leaf first and one after
// the other, verified under roots at the time at. What it may be used for is the
// caller's to look at.
func Leaf(der []byte, roots *smx509.CertPool, at time.Time) (*smx509.Certificate, error) {
	chain, err := smx509.ParseCertificates(der)
	if err != nil {
		return nil, fmt.Errorf("read signer: %w", err)
	}
	if len(chain) == 0 || len(chain) > maxSignerChain {
		return nil, fmt.Errorf("read signer: %d certificates, 1 to %d are possible", len(chain), maxSignerChain)
	}
	between := smx509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	leaf := chain[0]
	if _, err := leaf.Verify(smx509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []smx509.ExtKeyUsage{smx509.ExtKeyUsageAny},
	}); err != nil {
		return nil, fmt.Errorf("verify signer: %w", err)
	}
	return leaf, nil
}

// PartySigner returns a Resolve function for links on which the receiver does
// not keep every peer's certificate: it takes the chain from the header's
// extension "signer" and verifies it under roots, the message root, at the time
// of now (default time.Now). That the certificate is the sender's own is
// checked by [Receiver.Open]; that the sender is the peer of the channel is the
// caller's check.
func PartySigner(roots *smx509.CertPool, now func() time.Time) func(*Header) (*smx509.Certificate, error) {
	if now == nil {
		now = time.Now
	}
	return func(h *Header) (*smx509.Certificate, error) {
		leaf, err := headerChain(h, roots, now())
		if err != nil {
			return nil, reject(reason.MessageSignature, err)
		}
		return leaf, nil
	}
}
