package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
)

// Options are what a certificate carries beside the identity.
type Options struct {
	Hosts []string      // DNS names and IP addresses, for TLS servers
	TTL   time.Duration // default Config.LeafTTL; never past the end of the root
}

// profile is one purpose of a leaf.
type profile struct {
	root string
	sm2  bool
	// anonymous: the certificate carries no identity.
	anonymous bool
	usage     smx509.KeyUsage
	ext       []smx509.ExtKeyUsage
}

var (
	tlsProfile = profile{
		root:  keystore.TLSRoot,
		usage: smx509.KeyUsageDigitalSignature,
		ext:   []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth, smx509.ExtKeyUsageClientAuth},
	}
	webProfile = profile{
		root: keystore.TLSRoot, anonymous: true,
		usage: smx509.KeyUsageDigitalSignature,
		ext:   []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth},
	}
	signProfile = profile{root: keystore.MessageRoot, sm2: true, usage: smx509.KeyUsageDigitalSignature}
	encProfile  = profile{
		root: keystore.MessageRoot, sm2: true,
		usage: smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement,
	}
	listProfile = profile{root: keystore.ListRoot, sm2: true, usage: smx509.KeyUsageDigitalSignature}

	tlcpExt         = []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth, smx509.ExtKeyUsageClientAuth}
	tlcpSignProfile = profile{root: keystore.TLCPRoot, sm2: true, usage: smx509.KeyUsageDigitalSignature, ext: tlcpExt}
	tlcpEncProfile  = profile{
		root: keystore.TLCPRoot, sm2: true, ext: tlcpExt,
		usage: smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement,
	}
)

// IssueTLS answers a P-256 request (DER) with a TLS server and client
// certificate. Of the request only the public key is used, after its signature
// is checked; the names are the caller's. The result is a PEM chain without the
// root.
func (c *CA) IssueTLS(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	id.ListSigner = ""
	return c.issue(csr, id, o, tlsProfile)
}

// IssueWeb answers a P-256 request (DER) with a certificate for the hosts of a
// web server. It carries no identity of ours, so it speaks for nobody on any
// link.
func (c *CA) IssueWeb(csr []byte, o Options) ([]byte, error) {
	if len(o.Hosts) == 0 {
		return nil, errors.New("issue web certificate: no host")
	}
	return c.issue(csr, certid.Identity{}, o, webProfile)
}

// IssueSign answers an SM2 request with a certificate for message signatures.
func (c *CA) IssueSign(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	id.ListSigner = ""
	return c.issue(csr, id, o, signProfile)
}

// IssueEnc answers an SM2 request with a certificate for sealed messages.
func (c *CA) IssueEnc(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	id.ListSigner = ""
	return c.issue(csr, id, o, encProfile)
}

// IssueTLCPSign answers an SM2 request (DER) with a signing certificate for
// TLCP, server and client.
func (c *CA) IssueTLCPSign(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	id.ListSigner = ""
	return c.issue(csr, id, o, tlcpSignProfile)
}

// IssueTLCPEnc answers an SM2 request (DER) with an encryption certificate for
// TLCP, server and client. Unlike authorities that serve the public, the lab
// makes no encryption keys and holds none in escrow.
func (c *CA) IssueTLCPEnc(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	id.ListSigner = ""
	return c.issue(csr, id, o, tlcpEncProfile)
}

// IssueTLCPWeb is [CA.IssueWeb] for TLCP: it answers the two SM2 requests (DER)
// of a web server with its signing and its encryption certificate.
func (c *CA) IssueTLCPWeb(signCSR, encCSR []byte, o Options) (sign, enc []byte, err error) {
	if len(o.Hosts) == 0 {
		return nil, nil, errors.New("issue web certificates: no host")
	}
	p := tlcpSignProfile
	p.anonymous, p.ext = true, webProfile.ext
	if sign, err = c.issue(signCSR, certid.Identity{}, o, p); err != nil {
		return nil, nil, err
	}
	p.usage = tlcpEncProfile.usage
	enc, err = c.issue(encCSR, certid.Identity{}, o, p)
	return sign, enc, err
}

// IssueList answers an SM2 request with a list signer's certificate under the
// list root. Of id only ListSigner goes into it (Control, when that is empty).
func (c *CA) IssueList(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	return c.issue(csr, listIdentity(id), o, listProfile)
}

func listIdentity(id certid.Identity) certid.Identity {
	if id.ListSigner == "" {
		id.ListSigner = id.Control
	}
	return certid.Identity{ListSigner: id.ListSigner}
}

func (c *CA) issue(csr []byte, id certid.Identity, o Options, p profile) (chain []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("issue certificate for %q: %w", id.Name(), err)
		}
	}()
	if !p.anonymous {
		if err := id.Validate(); err != nil {
			return nil, err
		}
	}
	names, ips, err := certid.SplitHosts(o.Hosts)
	if err != nil {
		return nil, err
	}
	pub, err := requestKey(csr, p.sm2)
	if err != nil {
		return nil, err
	}
	serial, err := c.serial()
	if err != nil {
		return nil, err
	}
	ski, err := subjectKeyID(pub)
	if err != nil {
		return nil, err
	}
	r := c.roots[p.root]
	common := id.Name()
	if p.anonymous {
		common = o.Hosts[0]
	}
	now := c.cfg.Now()
	ttl := o.TTL
	if ttl == 0 {
		ttl = c.cfg.LeafTTL
	}
	end := now.Add(ttl)
	if end.After(r.cert.NotAfter) {
		end = r.cert.NotAfter
	}
	if !end.After(now) {
		return nil, errors.New("it would have expired already")
	}
	// No basicConstraints: RFC 5280 leaves them out of leaves, and some SM2
	// stacks refuse the empty SEQUENCE that says "not an authority".
	tmpl := &smx509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{c.cfg.Name}, CommonName: common},
		NotBefore:    now.Add(-backDating),
		NotAfter:     end,
		KeyUsage:     p.usage,
		ExtKeyUsage:  p.ext,
		SubjectKeyId: ski,
		URIs:         id.URIs(),
		DNSNames:     names,
		IPAddresses:  ips,
	}
	der, err := smx509.CreateCertificate(c.cfg.Rand, tmpl, r.cert, pub, r.key)
	if err != nil {
		return nil, err
	}
	cert, err := smx509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return keystore.EncodeChain(cert), nil
}

// requestKey returns the public key of a request, whose signature proves that
// the requester has the private one.
func requestKey(csr []byte, wantSM2 bool) (*ecdsa.PublicKey, error) {
	req, err := smx509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("parse request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check request's signature: %w", err)
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	switch {
	case ok && wantSM2 && sm2.IsSM2PublicKey(pub):
	case ok && !wantSM2 && pub.Curve == elliptic.P256():
	default:
		want := "P-256"
		if wantSM2 {
			want = "SM2"
		}
		return nil, fmt.Errorf("the request's key is not a %s key", want)
	}
	return pub, nil
}

// Party makes the complete folder of a party in one call: keys tls, tlcp-sign,
// tlcp-enc, sign and enc (and list when id has Control or ListSigner), their
// certificates and the pinned roots. hosts go into the certificates of the
// channels, TLS and TLCP. The authority remembers the
// certificates of the control center that it made last and adds them as
// control-sign.crt and control-enc.crt to the folders of later parties. A
// folder that has one of the keys already is refused.
func (c *CA) Party(dir string, passphrase []byte, id certid.Identity, hosts []string) (*keystore.Store, error) {
	s, err := c.party(dir, passphrase, id, hosts)
	if err != nil {
		return nil, fmt.Errorf("make key folder of %q: %w", id.Name(), err)
	}
	return s, nil
}

func (c *CA) party(dir string, passphrase []byte, id certid.Identity, hosts []string) (*keystore.Store, error) {
	s, err := keystore.New(keystore.Config{Dir: dir, Passphrase: passphrase, Iterations: c.cfg.Iterations, Rand: c.cfg.Rand})
	if err != nil {
		return nil, err
	}
	keys := []struct {
		name  string
		kind  keystore.Kind
		issue func([]byte, certid.Identity, Options) ([]byte, error)
		hosts []string
	}{
		{keystore.TLS, keystore.P256, c.IssueTLS, hosts},
		{keystore.TLCPSign, keystore.SM2, c.IssueTLCPSign, hosts},
		{keystore.TLCPEnc, keystore.SM2, c.IssueTLCPEnc, hosts},
		{keystore.Sign, keystore.SM2, c.IssueSign, nil},
		{keystore.Enc, keystore.SM2, c.IssueEnc, nil},
		{keystore.List, keystore.SM2, c.IssueList, nil},
	}
	if listIdentity(id).ListSigner == "" {
		keys = keys[:len(keys)-1]
	}
	chains := make(map[string][]byte)
	for _, k := range keys {
		if err := s.Generate(k.name, k.kind); err != nil {
			return nil, err
		}
		csr, err := s.CSR(k.name, id, k.hosts)
		if err != nil {
			return nil, err
		}
		if chains[k.name], err = k.issue(csr, id, Options{Hosts: k.hosts}); err != nil {
			return nil, err
		}
		if err := s.PutChain(k.name, chains[k.name]); err != nil {
			return nil, err
		}
	}
	if id.Gateway != "" || id.Agent != "" {
		if err := s.Generate(keystore.State, keystore.P256); err != nil {
			return nil, err
		}
	}
	for _, name := range rootNames {
		if err := s.PutRoot(name, c.RootPEM(name)); err != nil {
			return nil, err
		}
	}
	if id.Control != "" {
		c.SetControl(chains[keystore.Sign], chains[keystore.Enc])
		return s, nil
	}
	if sign, enc := c.control(); sign != nil && enc != nil {
		return s, errors.Join(s.PutChain(keystore.ControlSign, sign), s.PutChain(keystore.ControlEnc, enc))
	}
	return s, nil
}
