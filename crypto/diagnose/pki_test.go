package diagnose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const host = "gw.example.org"

type authorityKey struct {
	t    *testing.T
	key  *sm2.PrivateKey
	cert *smx509.Certificate
}

var serial atomic.Int64

func sm2Key(t *testing.T) *sm2.PrivateKey {
	t.Helper()
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newAuthority(t *testing.T, name string, over *authorityKey) *authorityKey {
	t.Helper()
	a := &authorityKey{t: t, key: sm2Key(t)}
	tmpl := &smx509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: smx509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte(name),
	}
	if over == nil {
		over = a
	}
	a.cert = over.issue(tmpl, &a.key.PublicKey)
	return a
}

func (a *authorityKey) issue(tmpl *smx509.Certificate, pub crypto.PublicKey) *smx509.Certificate {
	a.t.Helper()
	tmpl.SerialNumber = big.NewInt(serial.Add(1))
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore = time.Now().Add(-time.Hour)
	}
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Now().Add(1000 * time.Hour)
	}
	parent := a.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := smx509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := smx509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

type edit = func(*smx509.Certificate)

// leaf makes a certificate with a fresh SM2 key.
func (a *authorityKey) leaf(usage smx509.KeyUsage, edits ...edit) tlcp.Certificate {
	key := sm2Key(a.t)
	return tlcp.Certificate{Chain: []*smx509.Certificate{a.leafFor(&key.PublicKey, usage, edits...)}, Key: key}
}

func (a *authorityKey) leafFor(pub crypto.PublicKey, usage smx509.KeyUsage, edits ...edit) *smx509.Certificate {
	tmpl := &smx509.Certificate{
		Subject: pkix.Name{CommonName: "leaf"}, KeyUsage: usage, DNSNames: []string{host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	for _, f := range edits {
		f(tmpl)
	}
	return a.issue(tmpl, pub)
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writePEM(t *testing.T, dir, name, kind string, mode os.FileMode, ders ...[]byte) string {
	t.Helper()
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, out, mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func keyDER(t *testing.T, key crypto.PrivateKey) []byte {
	t.Helper()
	der, err := smx509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func codes(f Findings) []string {
	var out []string
	for _, x := range f {
		out = append(out, x.Code)
	}
	return out
}
