// Package lab is a small certificate authority for laboratories, demonstrations
// and small sites, with four separate roots: TLS (P-256), TLCP (SM2), messages
// (SM2) and lists (SM2). Sites that have their own authority do without it.
//
// A leaf carries the identity of its holder as URIs (package certid), a
// critical key usage for its one purpose, subject and authority key
// identifiers and a random serial number; it begins five minutes ago, so that
// a receiver whose clock is a little behind accepts it at once.
//
// [CA.Party] makes the whole key folder of a party in one call.
package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/keystore"
)

// Config is what a [CA] needs. The zero value of an optional field selects its
// default.
type Config struct {
	Name       string           // organization in every subject; default "Yumen lab"
	RootTTL    time.Duration    // life of the roots; default 10 years
	LeafTTL    time.Duration    // life of leaves that name none; default 90 days
	Iterations int              // PBKDF2 iterations of keys that are written; default keystore.DefaultIterations
	Now        func() time.Time // default time.Now
	Rand       io.Reader        // default crypto/rand
}

const (
	day        = 24 * time.Hour
	backDating = 5 * time.Minute
)

func (c *Config) setDefaults() {
	if c.Name == "" {
		c.Name = "Yumen lab"
	}
	if c.RootTTL == 0 {
		c.RootTTL = 3652 * day
	}
	if c.LeafTTL == 0 {
		c.LeafTTL = 90 * day
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
}

// root is one of the four authorities.
type root struct {
	key  crypto.Signer
	cert *smx509.Certificate
}

// CA issues certificates under its four roots. It may be used by several
// goroutines at once.
type CA struct {
	cfg   Config
	roots map[string]root // by keystore.TLSRoot, TLCPRoot, MessageRoot, ListRoot; not changed after New

	mu                      sync.Mutex
	controlSign, controlEnc []byte // PEM of the control center's certificates, guarded by mu
}

var rootNames = []string{keystore.TLSRoot, keystore.TLCPRoot, keystore.MessageRoot, keystore.ListRoot}

// New makes an authority with fresh roots. It writes nothing; see [CA.Save].
func New(cfg Config) (*CA, error) {
	cfg.setDefaults()
	c := &CA{cfg: cfg, roots: make(map[string]root)}
	for _, name := range rootNames {
		r, err := c.makeRoot(name)
		if err != nil {
			return nil, fmt.Errorf("make %s root: %w", name, err)
		}
		c.roots[name] = r
	}
	return c, nil
}

func (c *CA) makeRoot(name string) (root, error) {
	var key crypto.Signer
	var err error
	if name == keystore.TLSRoot {
		key, err = ecdsa.GenerateKey(elliptic.P256(), c.cfg.Rand)
	} else {
		key, err = sm2.GenerateKey(c.cfg.Rand)
	}
	if err != nil {
		return root{}, err
	}
	serial, err := c.serial()
	if err != nil {
		return root{}, err
	}
	ski, err := subjectKeyID(key.Public())
	if err != nil {
		return root{}, err
	}
	now := c.cfg.Now()
	tmpl := &smx509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{c.cfg.Name}, CommonName: c.cfg.Name + " " + name + " root"},
		NotBefore:             now.Add(-backDating),
		NotAfter:              now.Add(c.cfg.RootTTL),
		KeyUsage:              smx509.KeyUsageCertSign | smx509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // leaves only
		SubjectKeyId:          ski,
		AuthorityKeyId:        ski,
	}
	der, err := smx509.CreateCertificate(c.cfg.Rand, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return root{}, err
	}
	cert, err := smx509.ParseCertificate(der)
	return root{key, cert}, err
}

// serial returns 16 random bytes as a positive number.
func (c *CA) serial() (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(c.cfg.Rand, b[:]); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and always of the same length
	return new(big.Int).SetBytes(b[:]), nil
}

// subjectKeyID is method 1 of RFC 7093: the leftmost 20 bytes of the SHA-256
// of the public key's bits.
func subjectKeyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := smx509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("make key identifier: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("make key identifier: %w", err)
	}
	sum := sha256.Sum256(spki.Key.Bytes)
	return sum[:20], nil
}

// RootPEM returns the root of this name (keystore.TLSRoot, TLCPRoot,
// MessageRoot or ListRoot) as PEM, nil for another name.
func (c *CA) RootPEM(name string) []byte {
	r, ok := c.roots[name]
	if !ok {
		return nil
	}
	return keystore.EncodeChain(r.cert)
}

// SetControl tells the certificates (PEM) of the control center that later
// calls of [CA.Party] put into the folders of its parties.
func (c *CA) SetControl(sign, enc []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.controlSign, c.controlEnc = sign, enc
}

func (c *CA) control() (sign, enc []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.controlSign, c.controlEnc
}

// caKey is the name of a root's private key in the folder of an authority.
func caKey(rootName string) string { return rootName + "-ca" }

// Save writes roots and root keys to dir, the keys encrypted under passphrase.
// It may be called again; a folder that holds another authority is refused.
func (c *CA) Save(dir string, passphrase []byte) error {
	s, err := keystore.New(keystore.Config{Dir: dir, Passphrase: passphrase, Iterations: c.cfg.Iterations, Rand: c.cfg.Rand})
	if err != nil {
		return fmt.Errorf("save authority: %w", err)
	}
	for _, name := range rootNames {
		r := c.roots[name]
		if !s.Has(caKey(name)) {
			if err := s.Import(caKey(name), r.key); err != nil {
				return fmt.Errorf("save authority: %w", err)
			}
		}
		// PutChain refuses the certificate when the folder has another key.
		if err := s.PutChain(caKey(name), c.RootPEM(name)); err != nil {
			return fmt.Errorf("save authority: %w (the folder holds another authority?)", err)
		}
	}
	if sign, enc := c.control(); sign != nil && enc != nil {
		if err := errors.Join(s.PutChain(keystore.ControlSign, sign), s.PutChain(keystore.ControlEnc, enc)); err != nil {
			return fmt.Errorf("save authority: %w", err)
		}
	}
	return nil
}

// Load reads the authority that [CA.Save] wrote to dir.
func Load(dir string, passphrase []byte) (*CA, error) {
	return LoadConfig(Config{}, dir, passphrase)
}

// LoadConfig is [Load] with settings of the caller's. Name and RootTTL are
// without effect on roots that exist.
func LoadConfig(cfg Config, dir string, passphrase []byte) (*CA, error) {
	cfg.setDefaults()
	s, err := keystore.New(keystore.Config{Dir: dir, Passphrase: passphrase, Iterations: cfg.Iterations, Rand: cfg.Rand})
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	c := &CA{cfg: cfg, roots: make(map[string]root)}
	for _, name := range rootNames {
		key, err := s.Signer(caKey(name))
		if err != nil {
			return nil, fmt.Errorf("load authority: %w", err)
		}
		chain, err := s.Chain(caKey(name))
		if err != nil {
			return nil, fmt.Errorf("load authority: %w", err)
		}
		if pub, ok := key.Public().(*ecdsa.PublicKey); !ok || !pub.Equal(chain[0].PublicKey) || !chain[0].IsCA {
			return nil, fmt.Errorf("load authority: key and certificate of the %s root do not belong together", name)
		}
		if sm2.IsSM2PublicKey(key.Public()) != (name != keystore.TLSRoot) {
			return nil, fmt.Errorf("load authority: the %s root has a key of the wrong kind", name)
		}
		c.roots[name] = root{key, chain[0]}
		if o := chain[0].Subject.Organization; len(o) > 0 {
			c.cfg.Name = o[0]
		}
	}
	if sign, err := s.Chain(keystore.ControlSign); err == nil {
		if enc, err := s.Chain(keystore.ControlEnc); err == nil {
			c.SetControl(keystore.EncodeChain(sign...), keystore.EncodeChain(enc...))
		}
	}
	return c, nil
}
