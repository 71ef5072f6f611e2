package tlcp

import (
	"bytes"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// PairFiles are the PEM files of a pair: each certificate with what leads to
// its root, leaf first, and its private key (PKCS#8 or SEC 1, not encrypted).
type PairFiles struct {
	SignCert, SignKey, EncCert, EncKey string
}

// Load reads the files and makes the pair, after [CheckPair]. Every error begins
// with which of the two certificates it is about.
func (f PairFiles) Load(now time.Time) (*Pair, error) {
	sign, err := loadCertificate(f.SignCert, f.SignKey)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	enc, err := loadCertificate(f.EncCert, f.EncKey)
	if err != nil {
		return nil, fmt.Errorf("encryption certificate: %w", err)
	}
	if err := CheckPair(sign, enc, now); err != nil {
		return nil, err
	}
	return NewPair(sign, enc)
}

func loadCertificate(certFile, keyFile string) (c Certificate, err error) {
	raw, err := os.ReadFile(certFile)
	if err != nil {
		return c, err
	}
	if c.Chain, err = parseChain(raw); err != nil {
		return c, fmt.Errorf("read %s: %w", certFile, err)
	}
	if raw, err = os.ReadFile(keyFile); err != nil {
		return c, err
	}
	key, err := ParseKey(raw)
	if err != nil {
		return c, fmt.Errorf("read %s: %w", keyFile, err)
	}
	c.Key = key
	return c, nil
}

func parseChain(raw []byte) ([]*smx509.Certificate, error) {
	var chain []*smx509.Certificate
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block %q among the certificates", block.Type)
		}
		cert, err := smx509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return chain, nil
}

// ParseKey returns the SM2 private key in a PEM text.
func ParseKey(text []byte) (*sm2.PrivateKey, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("no PEM private key in it")
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = smx509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = smx509.ParseTypedECPrivateKey(block.Bytes)
		case "EC PARAMETERS", "SM2 PARAMETERS": // openssl writes them before the key
			continue
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the key is encrypted (decrypt it: openssl pkcs8 -in FILE -out NEW, and chmod 600 NEW)")
		default:
			return nil, fmt.Errorf("a PEM block %q (PRIVATE KEY or EC PRIVATE KEY is needed)", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("parse private key: %w", err)
		}
		k, ok := key.(*sm2.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("a key of type %T, not SM2", key)
		}
		return k, nil
	}
}

// CheckPair returns what is wrong with a pair that a server is to present:
// which of the two certificates, and how. Keys and usages, that both are valid
// at now, and that clients, who look at both, find the same names in them.
func CheckPair(sign, enc Certificate, now time.Time) error {
	if len(sign.Chain) == 0 || len(enc.Chain) == 0 {
		return errors.New("a certificate is missing (a pair has one to sign and one to encrypt)")
	}
	s, e := sign.Chain[0], enc.Chain[0]
	if s.KeyUsage != 0 && e.KeyUsage != 0 && s.KeyUsage&usageSign == 0 && e.KeyUsage&usageEnc == 0 {
		return errors.New("signing and encryption certificate: exchanged (the first must be the one for signatures)")
	}
	for _, c := range []struct {
		which string
		cert  Certificate
		usage smx509.KeyUsage
		need  string
	}{
		{"signing certificate", sign, usageSign, "digitalSignature"},
		{"encryption certificate", enc, usageEnc, "keyEncipherment, dataEncipherment or keyAgreement"},
	} {
		leaf := c.cert.Chain[0]
		switch {
		case leaf.IsCA:
			return fmt.Errorf("%s: it is an authority's, not a server's (the leaf comes first)", c.which)
		case leaf.KeyUsage&c.usage == 0:
			return fmt.Errorf("%s: its key usage is %s (%s is needed)", c.which, usageText(leaf.KeyUsage), c.need)
		case now.After(leaf.NotAfter):
			return fmt.Errorf("%s: it expired on %s", c.which, leaf.NotAfter.UTC().Format(time.DateOnly))
		case now.Before(leaf.NotBefore):
			return fmt.Errorf("%s: it is not valid before %s", c.which, leaf.NotBefore.UTC().Format(time.RFC3339))
		}
		public, ok := c.cert.Key.(interface{ Public() crypto.PublicKey })
		if !ok {
			return fmt.Errorf("%s: a private key of type %T", c.which, c.cert.Key)
		}
		if err := belongs(leaf, public.Public()); err != nil {
			return fmt.Errorf("%s: %w", c.which, err)
		}
	}
	if bytes.Equal(s.RawSubjectPublicKeyInfo, e.RawSubjectPublicKeyInfo) {
		return errors.New("encryption certificate: it has the same key as the signing certificate (two keys are needed)")
	}
	for _, name := range s.DNSNames {
		if !slices.Contains(e.DNSNames, name) {
			return fmt.Errorf("encryption certificate: it does not name %s, as the signing certificate does (clients look at both)", name)
		}
	}
	for _, name := range e.DNSNames {
		if !slices.Contains(s.DNSNames, name) {
			return fmt.Errorf("signing certificate: it does not name %s, as the encryption certificate does (clients look at both)", name)
		}
	}
	return nil
}

// usageText names the key usages that matter here.
func usageText(u smx509.KeyUsage) string {
	var all []string
	for _, n := range []struct {
		bit  smx509.KeyUsage
		name string
	}{
		{smx509.KeyUsageDigitalSignature, "digitalSignature"},
		{smx509.KeyUsageContentCommitment, "nonRepudiation"},
		{smx509.KeyUsageKeyEncipherment, "keyEncipherment"},
		{smx509.KeyUsageDataEncipherment, "dataEncipherment"},
		{smx509.KeyUsageKeyAgreement, "keyAgreement"},
		{smx509.KeyUsageCertSign, "keyCertSign"},
		{smx509.KeyUsageCRLSign, "cRLSign"},
	} {
		if u&n.bit != 0 {
			all = append(all, n.name)
		}
	}
	if len(all) == 0 {
		return "not stated"
	}
	return strings.Join(all, "+")
}
