package link

import (
	"crypto/ecdsa"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
)

// encryptionCert returns the certificate that a reply to m is sealed to: the
// one that the sender put into its header, verified under the message root, and
// the sender's own.
func encryptionCert(m *envelope.Message, roots *smx509.CertPool, app string, now time.Time) (*smx509.Certificate, error) {
	cert, err := verifiedCert(m.Header.Ext[extEnc], roots, now)
	if err != nil {
		return nil, fmt.Errorf("header.ext.enc: %w", err)
	}
	if id, err := certid.OfSM(cert); err != nil || id.App != app {
		return nil, errors.New("header.ext.enc: not the sender's certificate")
	}
	return cert, nil
}

// verifiedCert reads a chain in the form of [envelope.SignerExt] and verifies
// its leaf for encryption.
func verifiedCert(v jsontext.Value, roots *smx509.CertPool, now time.Time) (*smx509.Certificate, error) {
	var text string
	if err := json.Unmarshal(v, &text); err != nil {
		return nil, errors.New("no certificate")
	}
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	leaf, err := envelope.Leaf(der, roots, now)
	if err != nil {
		return nil, err
	}
	if leaf.KeyUsage&smx509.KeyUsageKeyEncipherment == 0 {
		return nil, errors.New("the certificate is not for encryption")
	}
	return leaf, nil
}

func publicKey(c *smx509.Certificate) *ecdsa.PublicKey {
	k, _ := c.PublicKey.(*ecdsa.PublicKey) // SM2: the envelope has been verified with it
	return k
}
