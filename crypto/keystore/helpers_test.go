package keystore

import (
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// selfSigned returns an authority's certificate for the key name, as PEM.
func selfSigned(t testing.TB, s *Store, name string) []byte {
	t.Helper()
	return certFor(t, s, name, true)
}

func certFor(t testing.TB, s *Store, name string, isCA bool) []byte {
	t.Helper()
	key, err := s.Signer(name)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &smx509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: isCA,
	}
	der, err := smx509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

// decodeBase64 returns the content of one PEM block.
func decodeBase64(t testing.TB, data []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("no PEM block in %q", data)
	}
	return block.Bytes
}

// privateNumber returns the private number of an SM2 key.
func privateNumber(t testing.TB, k *sm2.PrivateKey) []byte {
	t.Helper()
	e, err := k.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return e.Bytes()
}
