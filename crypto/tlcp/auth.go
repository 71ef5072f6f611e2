package tlcp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"
)

// defaultUID is the identifier under which TLCP signs (GM/T 0009 §10).
const defaultUID = "1234567812345678"

const (
	usageSign = smx509.KeyUsageDigitalSignature | smx509.KeyUsageContentCommitment
	usageEnc  = smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement
)

// Certificate is one of the two certificates of a party, with its key.
type Certificate struct {
	// Chain is the leaf and the intermediates that lead to the root. The root
	// itself may be there, but is never sent.
	Chain []*smx509.Certificate
	// Key belongs to the leaf: a crypto.Signer for the signing certificate
	// (called with the raw message and sm2.DefaultSM2SignerOpts; a
	// *sm2.PrivateKey with the digest instead), a crypto.Decrypter for the encryption certificate (called with an ASN.1
	// ciphertext and sm2.ASN1DecrypterOpts). *sm2.PrivateKey is both.
	Key crypto.PrivateKey
}

// KeyAgreer is what an encryption key must be beside a crypto.Decrypter to
// serve the ECDHE suites: the SM2 key exchange of GB/T 32918.3 up to the shared
// point. *ecdh.PrivateKey of gmsm has this method; *sm2.PrivateKey is
// understood, too.
type KeyAgreer interface {
	SM2MQV(ephemeral *ecdh.PrivateKey, peerStatic, peerEphemeral *ecdh.PublicKey) (*ecdh.PublicKey, error)
}

// Pair is the two certificates of a party: one to sign with, one that keys are
// encrypted to. It does not change and may be used by several goroutines.
type Pair struct {
	signLeaf, encLeaf *smx509.Certificate
	signer            crypto.Signer
	decrypter         crypto.Decrypter
	agreer            KeyAgreer // nil: no ECDHE
	encPublic         *ecdh.PublicKey
	za                []byte   // of the signing key and the default identifier; nil: the signer hashes
	message           [][]byte // what goes into the Certificate message
	issuers           [][]byte // of every certificate that is sent
	gate              func(func())
}

// WithGate returns a copy of p that makes each operation of its two private
// keys (signing, decrypting, agreeing on keys) inside gate, which must call its
// argument once and may wait first: so a server bounds how many run at once.
func (p *Pair) WithGate(gate func(func())) *Pair {
	c := *p
	c.gate = gate
	return &c
}

// keyOperation runs f, which uses a private key of p.
func (p *Pair) keyOperation(f func()) {
	if p.gate == nil {
		f()
		return
	}
	p.gate(f)
}

// NewPair makes a pair of two certificates in any order: which is which is
// told by their key usage. It checks that the keys belong to the certificates,
// are SM2 keys and are two.
func NewPair(a, b Certificate) (*Pair, error) {
	if len(a.Chain) == 0 || len(b.Chain) == 0 {
		return nil, errors.New("make certificate pair: a chain is empty")
	}
	fits := func(c *smx509.Certificate, use smx509.KeyUsage) bool { return c.KeyUsage == 0 || c.KeyUsage&use != 0 }
	switch {
	case fits(a.Chain[0], usageSign) && fits(b.Chain[0], usageEnc):
	case fits(b.Chain[0], usageSign) && fits(a.Chain[0], usageEnc):
		a, b = b, a
	default:
		return nil, errors.New("make certificate pair: one certificate must be for signatures (digitalSignature) and one for encryption (keyEncipherment, dataEncipherment or keyAgreement)")
	}
	p := &Pair{signLeaf: a.Chain[0], encLeaf: b.Chain[0]}
	if bytes.Equal(p.signLeaf.RawSubjectPublicKeyInfo, p.encLeaf.RawSubjectPublicKeyInfo) {
		return nil, errors.New("make certificate pair: both certificates have the same key")
	}
	var ok bool
	if p.signer, ok = a.Key.(crypto.Signer); !ok {
		return nil, fmt.Errorf("make certificate pair: the signing key, a %T, does not sign", a.Key)
	}
	if p.decrypter, ok = b.Key.(crypto.Decrypter); !ok {
		return nil, fmt.Errorf("make certificate pair: the encryption key, a %T, does not decrypt", b.Key)
	}
	if err := belongs(p.signLeaf, p.signer.Public()); err != nil {
		return nil, fmt.Errorf("make certificate pair: signing certificate: %w", err)
	}
	if err := belongs(p.encLeaf, p.decrypter.Public()); err != nil {
		return nil, fmt.Errorf("make certificate pair: encryption certificate: %w", err)
	}
	var err error
	if k, ours := p.signer.(*sm2.PrivateKey); ours {
		if p.za, err = sm2.CalculateZA(&k.PublicKey, []byte(defaultUID)); err != nil {
			return nil, fmt.Errorf("make certificate pair: signing key: %w", err)
		}
	}
	if p.encPublic, err = sm2.PublicKeyToECDH(p.encLeaf.PublicKey.(*ecdsa.PublicKey)); err != nil {
		return nil, fmt.Errorf("make certificate pair: encryption certificate: %w", err)
	}
	switch k := b.Key.(type) {
	case KeyAgreer:
		p.agreer = k
	case *sm2.PrivateKey:
		if p.agreer, err = k.ECDH(); err != nil {
			return nil, fmt.Errorf("make certificate pair: encryption key: %w", err)
		}
	}
	p.message = [][]byte{p.signLeaf.Raw, p.encLeaf.Raw}
	p.issuers = [][]byte{p.signLeaf.RawIssuer, p.encLeaf.RawIssuer}
	for _, chain := range [][]*smx509.Certificate{a.Chain[1:], b.Chain[1:]} {
		for _, c := range chain {
			root := bytes.Equal(c.RawIssuer, c.RawSubject)
			if !root && !contains(p.message, c.Raw) {
				p.message = append(p.message, c.Raw)
				p.issuers = append(p.issuers, c.RawIssuer)
			}
		}
	}
	if len(p.message) > maxChain {
		return nil, fmt.Errorf("make certificate pair: %d certificates, at most %d", len(p.message), maxChain)
	}
	return p, nil
}

// WithRoot returns a copy of p that is sent with the root, for peers that know
// their root by its digest alone ([Config].PinnedRoot). Some clients of other
// make refuse a chain that has it.
func (p *Pair) WithRoot(root *smx509.Certificate) *Pair {
	c := *p
	if !contains(c.message, root.Raw) && len(c.message) < maxChain {
		c.message = append(slices.Clone(c.message), root.Raw)
	}
	return &c
}

// SignLeaf returns the signing certificate.
func (p *Pair) SignLeaf() *smx509.Certificate { return p.signLeaf }

// EncLeaf returns the encryption certificate.
func (p *Pair) EncLeaf() *smx509.Certificate { return p.encLeaf }

func contains(list [][]byte, b []byte) bool {
	for _, x := range list {
		if bytes.Equal(x, b) {
			return true
		}
	}
	return false
}

func belongs(leaf *smx509.Certificate, key crypto.PublicKey) error {
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !sm2.IsSM2PublicKey(pub) {
		return errors.New("not an SM2 certificate")
	}
	if !pub.Equal(key) {
		return errors.New("the private key is another certificate's")
	}
	return nil
}

// sign makes an SM2 signature with SM3 and the default identifier over msg.
func (p *Pair) sign(cfg *Config, msg []byte) (sig []byte, err error) {
	var opts crypto.SignerOpts = sm2.DefaultSM2SignerOpts
	if p.za != nil {
		h := sm3.New()
		h.Write(p.za)
		h.Write(msg)
		msg, opts = h.Sum(nil), nil
	}
	p.keyOperation(func() { sig, err = p.signer.Sign(cfg.rand(), msg, opts) })
	return sig, err
}

func verifySignature(cert *smx509.Certificate, msg, sig []byte) bool {
	pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
	return ok && sm2.VerifyASN1WithSM2(pub, nil, msg, sig)
}

// peer is what the other side presented.
type peer struct {
	certs     []*smx509.Certificate // in its order
	sign, enc *smx509.Certificate   // enc may be nil for a client
	signChain []*smx509.Certificate // after verify
	encChain  []*smx509.Certificate
	roots     *smx509.CertPool // that verified it
}

// readPeer parses a peer's certificates and finds the encryption certificate
// among them, by its key usage: authorities and clients of other make do not
// all put it second.
func readPeer(ders [][]byte, lax bool) (*peer, error) {
	p := new(peer)
	for i, der := range ders {
		c, err := smx509.ParseCertificate(bytes.Clone(der))
		if err != nil {
			return nil, alertf(AlertBadCertificate, "parse certificate %d: %w", i, err)
		}
		if !affordable(c.PublicKey) {
			return nil, alertf(AlertUnsupportedCertificate, "check certificate %d: a key of type %T, or too long", i, c.PublicKey)
		}
		p.certs = append(p.certs, c)
	}
	use := func(c *smx509.Certificate, u smx509.KeyUsage) bool {
		return !c.IsCA && (c.KeyUsage&u != 0 || lax && c.KeyUsage == 0)
	}
	p.sign = p.certs[0]
	if !use(p.sign, usageSign) {
		return nil, alertf(AlertUnsupportedCertificate, "check certificates: the first is not for signatures")
	}
	for _, c := range p.certs[1:] {
		if use(c, usageEnc) {
			p.enc = c
			break
		}
	}
	for _, c := range []*smx509.Certificate{p.sign, p.enc} {
		if c != nil && !sm2.IsSM2PublicKey(c.PublicKey) {
			return nil, alertf(AlertUnsupportedCertificate, "check certificates: %q has no SM2 key", c.Subject)
		}
	}
	if p.enc != nil && bytes.Equal(p.enc.RawSubjectPublicKeyInfo, p.sign.RawSubjectPublicKeyInfo) {
		return nil, alertf(AlertUnsupportedCertificate, "check certificates: the same key signs and decrypts")
	}
	return p, nil
}

// affordable reports whether signatures of a key may be verified for somebody
// who has proved nothing yet.
func affordable(key crypto.PublicKey) bool {
	const maxRSA = 8192 // bits
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return true
	case *rsa.PublicKey:
		return k.N.BitLen() <= maxRSA
	}
	return false
}

// verify builds the chains of both certificates to a root of the role's pool.
// host is empty for clients, and where another check takes its place.
func (p *peer) verify(c *Config, roots *smx509.CertPool, host string, eku smx509.ExtKeyUsage) error {
	opts := smx509.VerifyOptions{
		Roots: roots, Intermediates: smx509.NewCertPool(), CurrentTime: c.now(), DNSName: host,
		KeyUsages: []smx509.ExtKeyUsage{eku},
	}
	if c.LaxUsage {
		opts.KeyUsages[0] = smx509.ExtKeyUsageAny
	}
	for _, cert := range p.certs[1:] {
		if cert != p.enc {
			opts.Intermediates.AddCert(cert)
		}
	}
	chain, err := c.verifyOne(p.sign, opts)
	if err != nil {
		return refused("signing", err)
	}
	p.signChain = chain
	if p.enc != nil {
		if p.encChain, err = c.verifyOne(p.enc, opts); err != nil {
			return refused("encryption", err)
		}
	}
	p.roots = roots
	return nil
}

func (c *Config) verifyOne(cert *smx509.Certificate, opts smx509.VerifyOptions) ([]*smx509.Certificate, error) {
	chains, err := cert.Verify(opts)
	if err != nil {
		return nil, err
	}
	// Another chain may be without a revoked authority.
	for _, chain := range chains {
		if err = c.checkRevocation(chain); err == nil {
			return chain, nil
		}
	}
	return nil, err
}

// revokedError marks the refusal of Config.CheckRevocation.
type revokedError struct{ error }

func (e revokedError) Unwrap() error { return e.error }

func (c *Config) checkRevocation(chain []*smx509.Certificate) error {
	if c.CheckRevocation == nil {
		return nil
	}
	for i := range len(chain) - 1 {
		if err := c.CheckRevocation(chain[i], chain[i+1]); err != nil {
			return revokedError{err}
		}
	}
	return nil
}

// stillGood repeats, for a session that is to be resumed, the checks whose
// outcome may have changed: validity, revocation and, when another pool of
// roots is in use than the one that verified it, everything.
// It returns p, or a copy with other chains: sessions do not change.
func (p *peer) stillGood(c *Config, roots *smx509.CertPool, host string, eku smx509.ExtKeyUsage) (*peer, error) {
	if p.roots != roots {
		fresh := *p
		return &fresh, fresh.verify(c, roots, host, eku)
	}
	now := c.now()
	for _, chain := range [][]*smx509.Certificate{p.signChain, p.encChain} {
		for _, cert := range chain {
			if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
				return nil, fmt.Errorf("certificate %q is not valid now", cert.Subject)
			}
		}
		if len(chain) > 0 {
			if err := c.checkRevocation(chain); err != nil {
				return nil, err
			}
			if host != "" {
				if err := chain[0].VerifyHostname(host); err != nil {
					return nil, err
				}
			}
		}
	}
	return p, nil
}

// refused gives a verification error the alert that tells the peer's operator
// most.
func refused(which string, err error) error {
	alert := AlertBadCertificate
	var unknown smx509.UnknownAuthorityError
	var invalid smx509.CertificateInvalidError
	var revoked revokedError
	switch {
	case errors.As(err, &revoked):
		alert = AlertCertificateRevoked
	case errors.As(err, &unknown):
		alert = AlertUnknownCA
	case errors.As(err, &invalid) && invalid.Reason == smx509.Expired:
		alert = AlertCertificateExpired
	case errors.As(err, &invalid) && invalid.Reason == smx509.IncompatibleUsage:
		alert = AlertUnsupportedCertificate
	}
	return alertf(alert, "verify %s certificate: %w", which, err)
}

// alertf makes the error of a handshake that ends by our alert.
func alertf(a Alert, format string, args ...any) error {
	return &AlertError{Alert: a, Err: fmt.Errorf(format, args...)}
}
