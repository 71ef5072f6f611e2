package hostile

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// Key usages of the two certificates.
const (
	UsageSign = smx509.KeyUsageDigitalSignature | smx509.KeyUsageContentCommitment
	UsageEnc  = smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement
)

// Authority issues certificates.
type Authority struct {
	Cert *smx509.Certificate
	Key  *sm2.PrivateKey
	Over *Authority // nil: a root
}

// Leaf is a certificate with its key and those that lead to the root.
type Leaf struct {
	Cert *smx509.Certificate
	Key  *sm2.PrivateKey
	By   *Authority
}

// Identity is what a peer has: the two certificates.
type Identity struct{ Sign, Enc *Leaf }

// Host is the name in the certificates that this package makes.
const Host = "gw.example.org"

var serial atomic.Int64

// NewKey returns a new SM2 key.
func NewKey() *sm2.PrivateKey {
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

// NewAuthority makes a root, or with over an intermediate.
func NewAuthority(name string, over *Authority) *Authority {
	a := &Authority{Key: NewKey(), Over: over}
	tmpl := &smx509.Certificate{
		Subject: pkix.Name{CommonName: name, Country: []string{"CN"}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: smx509.KeyUsageCertSign | smx509.KeyUsageCRLSign, SubjectKeyId: random(20),
	}
	by := over
	if by == nil {
		by = &Authority{Key: a.Key, Cert: tmpl}
	}
	a.Cert = by.issue(tmpl, &a.Key.PublicKey)
	return a
}

func (a *Authority) issue(tmpl *smx509.Certificate, pub *ecdsa.PublicKey) *smx509.Certificate {
	tmpl.SerialNumber = big.NewInt(serial.Add(1))
	if tmpl.NotBefore.IsZero() {
		// Before the clock of a bubble, too.
		tmpl.NotBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Now().Add(24 * time.Hour)
	}
	der, err := smx509.CreateCertificate(rand.Reader, tmpl, a.Cert, pub, a.Key)
	if err != nil {
		panic(err)
	}
	c, err := smx509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

// Leaf issues one certificate; edits may change it before it is signed.
func (a *Authority) Leaf(usage smx509.KeyUsage, edits ...func(*smx509.Certificate)) *Leaf {
	return a.LeafFor(NewKey(), usage, edits...)
}

// LeafFor is Leaf for a given key.
func (a *Authority) LeafFor(key *sm2.PrivateKey, usage smx509.KeyUsage, edits ...func(*smx509.Certificate)) *Leaf {
	tmpl := &smx509.Certificate{
		Subject: pkix.Name{CommonName: "leaf", Country: []string{"CN"}}, KeyUsage: usage, DNSNames: []string{Host},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		ExtKeyUsage: []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth, smx509.ExtKeyUsageClientAuth},
	}
	for _, e := range edits {
		e(tmpl)
	}
	return &Leaf{Cert: a.issue(tmpl, &key.PublicKey), Key: key, By: a}
}

// Identity issues both certificates.
func (a *Authority) Identity(edits ...func(*smx509.Certificate)) *Identity {
	return &Identity{Sign: a.Leaf(UsageSign, edits...), Enc: a.Leaf(UsageEnc, edits...)}
}

// List returns the certificates as they are sent: sign, enc, intermediates.
func (id *Identity) List() [][]byte {
	out := [][]byte{id.Sign.Cert.Raw, id.Enc.Cert.Raw}
	for a := id.Sign.By; a != nil && a.Over != nil; a = a.Over {
		out = append(out, a.Cert.Raw)
	}
	return out
}

// Pool holds the authority alone.
func (a *Authority) Pool() *smx509.CertPool {
	p := smx509.NewCertPool()
	p.AddCert(a.Cert)
	return p
}

// CRL revokes certificates.
func (a *Authority) CRL(revoked ...*smx509.Certificate) []byte {
	tmpl := &smx509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries,
			smx509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := smx509.CreateRevocationList(rand.Reader, tmpl, a.Cert, a.Key)
	if err != nil {
		panic(err)
	}
	return der
}
