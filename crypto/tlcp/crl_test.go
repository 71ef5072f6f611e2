package tlcp

import (
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
)

func (a *authority) crl(t *testing.T, from, until time.Time, revoked ...*smx509.Certificate) []byte {
	t.Helper()
	tmpl := &smx509.RevocationList{Number: big.NewInt(from.Unix()), ThisUpdate: from, NextUpdate: until}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, smx509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: from})
	}
	der, err := smx509.CreateRevocationList(a.rand, tmpl, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCRLs(t *testing.T) {
	root := newRoot(t, "root")
	sub := root.intermediate("sub")
	good, bad := sub.pair(), sub.pair()
	now := testTime
	l := &CRLs{Now: func() time.Time { return now }}
	check := func(p *Pair, want bool) {
		t.Helper()
		if err := l.Check(p.signLeaf, sub.cert); (err == nil) != want {
			t.Errorf("got %v, want accepted %v", err, want)
		}
	}
	check(bad, true) // no list
	l.Required = true
	check(good, false)
	if err := l.Add(sub.crl(t, testTime, testTime.Add(time.Hour), bad.signLeaf, bad.encLeaf), sub.cert); err != nil {
		t.Fatal(err)
	}
	check(good, true)
	check(bad, false)
	if err := l.Check(bad.encLeaf, sub.cert); !errors.Is(err, ErrRevoked) {
		t.Errorf("got %v, want ErrRevoked", err)
	}
	if err := l.Add(sub.crl(t, testTime.Add(-time.Minute), testTime.Add(time.Hour)), sub.cert); err == nil {
		t.Error("an older list was taken")
	}
	check(bad, false)
	if err := l.Add(newRoot(t, "sub").crl(t, testTime, testTime.Add(time.Hour)), sub.cert); err == nil {
		t.Error("a list of another authority was taken")
	}
	now = testTime.Add(2 * time.Hour)
	check(good, false) // overdue
	l.Required = false
	check(good, true)
	check(bad, false)
	if err := l.Add(sub.crl(t, testTime.Add(time.Minute), testTime.Add(9*time.Hour)), sub.cert); err != nil {
		t.Fatal(err)
	}
	check(bad, true) // no longer on it
}

func TestCRLsEndAHandshake(t *testing.T) {
	root := newRoot(t, "root")
	sub := root.intermediate("sub")
	s := &site{root: root, server: sub.pair(), client: sub.pair()}
	l := &CRLs{Required: true, Now: testClock}
	for a, der := range map[*authority][]byte{
		root: root.crl(t, testTime, testTime.Add(time.Hour)),
		sub:  sub.crl(t, testTime, testTime.Add(time.Hour), s.client.encLeaf),
	} {
		if err := l.Add(der, a.cert); err != nil {
			t.Fatal(err)
		}
	}
	server, client := s.configs(ECC_SM4_GCM_SM3, true)
	client.CheckRevocation = l.Check
	mustHandshake(t, "tcp4", server, client)
	server.CheckRevocation = l.Check
	_, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
	judgeBoth(t, "revoked encryption certificate", serverErr, clientErr, AlertCertificateRevoked)
	if !errors.Is(serverErr, ErrRevoked) {
		t.Errorf("server: %v", serverErr)
	}
}

func TestX509KeepsTheIdentity(t *testing.T) {
	cert := newSite(t).client.signLeaf
	std := X509(cert)
	id, err := certid.Of(std)
	if err != nil || id.Device != "DEV00000001" {
		t.Errorf("identity %+v, %v", id, err)
	}
	if std.KeyUsage != x509.KeyUsageDigitalSignature || std.SerialNumber.Cmp(cert.SerialNumber) != 0 || std.IsCA || len(std.DNSNames) != 1 {
		t.Errorf("got %v, %v, %v", std.KeyUsage, std.SerialNumber, std.DNSNames)
	}
	if X509(nil) != nil {
		t.Error("nil became something")
	}
}
