package keystore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const (
	pemCert  = "CERTIFICATE"
	maxChain = 16 // certificates in one file
)

// ParseChain reads PEM certificates of any key type: at least one, at most 16,
// and nothing else between them but white space.
func ParseChain(data []byte) ([]*smx509.Certificate, error) {
	var chain []*smx509.Certificate
	for len(bytes.TrimSpace(data)) > 0 {
		if len(chain) == maxChain {
			return nil, fmt.Errorf("parse certificates: more than %d", maxChain)
		}
		block, rest := pem.Decode(data)
		if block == nil || block.Type != pemCert {
			return nil, fmt.Errorf("parse certificates: certificate %d is no PEM block %q", len(chain)+1, pemCert)
		}
		cert, err := smx509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificates: certificate %d: %w", len(chain)+1, err)
		}
		chain = append(chain, cert)
		data = rest
	}
	if len(chain) == 0 {
		return nil, errors.New("parse certificates: there is none")
	}
	return chain, nil
}

// EncodeChain returns the certificates as PEM, in their order.
func EncodeChain(chain ...*smx509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: c.Raw})...)
	}
	return out
}

// Chain returns the certificates in NAME.crt, leaf first; never empty without
// an error. The error wraps fs.ErrNotExist when there is no such file.
func (s *Store) Chain(name string) ([]*smx509.Certificate, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return s.readChain(s.file(name, certExt))
}

func (s *Store) readChain(path string) ([]*smx509.Certificate, error) {
	if err := checkDir(s.cfg.Dir); err != nil {
		return nil, err
	}
	data, err := readFile(path, trusted, maxFile)
	if err != nil {
		return nil, err
	}
	chain, err := ParseChain(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return chain, nil
}

// PutChain writes NAME.crt from PEM certificates, leaf first. When the store
// has a private key of this name the leaf must certify it.
func (s *Store) PutChain(name string, pem []byte) error {
	chain, err := ParseChain(pem)
	if err != nil {
		return fmt.Errorf("store certificates %s: %w", name, err)
	}
	if s.Has(name) {
		key, err := s.Signer(name)
		if err == nil {
			err = certifies(chain[0], key)
		}
		if err != nil {
			return fmt.Errorf("store certificates %s: %w", name, err)
		}
	}
	if err := checkName(name); err != nil {
		return err
	}
	return writeFile(s.file(name, certExt), EncodeChain(chain...), 0o644, true)
}

// certifies returns an error unless cert is for key.
func certifies(cert *smx509.Certificate, key crypto.Signer) error {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || !pub.Equal(cert.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	return nil
}

// TLSCertificate returns key and chain of a P-256 key for crypto/tls.
func (s *Store) TLSCertificate(name string) (tls.Certificate, error) {
	key, err := s.Signer(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := s.Chain(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := certifies(chain[0], key); err != nil {
		return tls.Certificate{}, fmt.Errorf("load TLS certificate %s: %w", name, err)
	}
	out := tls.Certificate{PrivateKey: key}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	if out.Leaf, err = x509.ParseCertificate(chain[0].Raw); err != nil {
		return tls.Certificate{}, fmt.Errorf("load TLS certificate %s: %w", name, err)
	}
	return out, nil
}

// TLCPPair returns the pair of the keys [TLCPSign] and [TLCPEnc] for package
// tlcp. An error names the certificate that is wrong; it wraps fs.ErrNotExist
// when the folder was made without them. That both certificates are of one
// party is checked by their identities.
func (s *Store) TLCPPair() (*tlcp.Pair, error) {
	var certs [2]tlcp.Certificate
	for i, name := range []string{TLCPSign, TLCPEnc} {
		chain, err := s.Chain(name)
		if err != nil {
			return nil, fmt.Errorf("load TLCP pair: %w", err)
		}
		key, err := s.Signer(name)
		if err != nil {
			return nil, fmt.Errorf("load TLCP pair: %w", err)
		}
		if err := certifies(chain[0], key); err != nil {
			return nil, fmt.Errorf("load TLCP pair: %s: %w", name, err)
		}
		certs[i] = tlcp.Certificate{Chain: chain, Key: key}
	}
	if _, err := certid.OfPair(certs[0].Chain[0], certs[1].Chain[0]); err != nil && !errors.Is(err, certid.ErrNone) {
		return nil, fmt.Errorf("load TLCP pair: %w", err)
	}
	p, err := tlcp.NewPair(certs[0], certs[1])
	if err != nil {
		return nil, fmt.Errorf("load TLCP pair: %w", err)
	}
	if p.SignLeaf() != certs[0].Chain[0] {
		return nil, fmt.Errorf("load TLCP pair: %s is the encryption certificate and %s the signing one (exchange them)", TLCPSign, TLCPEnc)
	}
	return p, nil
}

// rootChain reads a pinned root file and refuses what is no authority.
func (s *Store) rootChain(name string) ([]*smx509.Certificate, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := s.file(name+rootSuffix, certExt)
	chain, err := s.readChain(path)
	if err != nil {
		return nil, err
	}
	if err := authorities(chain); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return chain, nil
}

func authorities(chain []*smx509.Certificate) error {
	for i, c := range chain {
		if !c.BasicConstraintsValid || !c.IsCA {
			return fmt.Errorf("certificate %d (%s) is not an authority's", i+1, c.Subject)
		}
	}
	return nil
}

// Root returns the pinned root of this name ([MessageRoot], [ListRoot],
// [TLSRoot], [TLCPRoot]) for certificates of any key type.
func (s *Store) Root(name string) (*smx509.CertPool, error) {
	chain, err := s.rootChain(name)
	if err != nil {
		return nil, err
	}
	pool := smx509.NewCertPool()
	for _, c := range chain {
		pool.AddCert(c)
	}
	return pool, nil
}

// RootPEM returns the pinned root of this name as PEM.
func (s *Store) RootPEM(name string) ([]byte, error) {
	chain, err := s.rootChain(name)
	if err != nil {
		return nil, err
	}
	return EncodeChain(chain...), nil
}

// TLSRoots returns the pinned TLS root for crypto/tls.
func (s *Store) TLSRoots() (*x509.CertPool, error) {
	chain, err := s.rootChain(TLSRoot)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range chain {
		std, err := x509.ParseCertificate(c.Raw)
		if err != nil {
			return nil, fmt.Errorf("load TLS root: %w", err)
		}
		pool.AddCert(std)
	}
	return pool, nil
}

// PutRoot writes the pinned root name from PEM certificates of authorities.
func (s *Store) PutRoot(name string, pem []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	chain, err := ParseChain(pem)
	if err == nil {
		err = authorities(chain)
	}
	if err != nil {
		return fmt.Errorf("store root %s: %w", name, err)
	}
	return writeFile(s.file(name+rootSuffix, certExt), EncodeChain(chain...), 0o644, true)
}
