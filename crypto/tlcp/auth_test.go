package tlcp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// crooked makes a pair of anything: NewPair would refuse most of it.
func crooked(sign, enc Certificate, message ...*smx509.Certificate) *Pair {
	signKey, encKey := sign.Key.(*sm2.PrivateKey), enc.Key.(*sm2.PrivateKey)
	p := &Pair{signLeaf: sign.Chain[0], encLeaf: enc.Chain[0], signer: signKey, decrypter: encKey}
	if a, err := encKey.ECDH(); err == nil {
		p.agreer, p.encPublic = a, a.PublicKey()
	}
	for _, c := range message {
		p.message = append(p.message, c.Raw)
		p.issuers = append(p.issuers, c.RawIssuer)
	}
	return p
}

// certificateCase is what one side presents, and what the other says to it.
type certificateCase struct {
	name string
	make func(a *authority) *Pair
	want Alert // AlertCloseNotify: accepted
	lax  Alert // with LaxUsage
}

const accepted = AlertCloseNotify

func certificateCases(forServers bool) []certificateCase {
	const sign, enc = smx509.KeyUsageDigitalSignature, usageEnc
	edit := func(f func(*smx509.Certificate)) func(*smx509.Certificate) { return f }
	old := edit(func(c *smx509.Certificate) {
		c.NotBefore, c.NotAfter = testTime.Add(-48*time.Hour), testTime.Add(-time.Second)
	})
	early := edit(func(c *smx509.Certificate) { c.NotBefore = testTime.Add(time.Minute) })
	ekuServer := edit(func(c *smx509.Certificate) { c.ExtKeyUsage = []smx509.ExtKeyUsage{smx509.ExtKeyUsageServerAuth} })
	ekuClient := edit(func(c *smx509.Certificate) { c.ExtKeyUsage = []smx509.ExtKeyUsage{smx509.ExtKeyUsageClientAuth} })
	right, wrong := ekuServer, ekuClient
	if !forServers {
		right, wrong = wrong, right
	}
	other := edit(func(c *smx509.Certificate) { c.DNSNames = []string{"other.example.org"} })
	both := func(a *authority, s, e func(*smx509.Certificate)) *Pair {
		var se, ee []func(*smx509.Certificate)
		if s != nil {
			se = append(se, s)
		}
		if e != nil {
			ee = append(ee, e)
		}
		x, y := a.leaf(sign, se...), a.leaf(enc, ee...)
		return crooked(x, y, append([]*smx509.Certificate{x.Chain[0], y.Chain[0]}, x.Chain[1:]...)...)
	}
	list := func(f func(s, e *smx509.Certificate, a *authority) []*smx509.Certificate) func(*authority) *Pair {
		return func(a *authority) *Pair {
			x, y := a.leaf(sign), a.leaf(enc)
			return crooked(x, y, f(x.Chain[0], y.Chain[0], a)...)
		}
	}
	usages := func(s, e smx509.KeyUsage) func(*authority) *Pair {
		return func(a *authority) *Pair {
			x, y := a.leaf(s), a.leaf(e)
			return crooked(x, y, x.Chain[0], y.Chain[0], a.cert)
		}
	}
	type certs = []*smx509.Certificate
	cases := []certificateCase{
		{"as it should be", func(a *authority) *Pair { return both(a, nil, nil) }, accepted, accepted},
		{"sign expired", func(a *authority) *Pair { return both(a, old, nil) }, AlertCertificateExpired, AlertCertificateExpired},
		{"enc expired", func(a *authority) *Pair { return both(a, nil, old) }, AlertCertificateExpired, AlertCertificateExpired},
		{"sign not yet valid", func(a *authority) *Pair { return both(a, early, nil) }, AlertCertificateExpired, AlertCertificateExpired},
		{"enc not yet valid", func(a *authority) *Pair { return both(a, nil, early) }, AlertCertificateExpired, AlertCertificateExpired},
		{"extended usage for it", func(a *authority) *Pair { return both(a, right, right) }, accepted, accepted},
		{"sign with extended usage for the other role", func(a *authority) *Pair { return both(a, wrong, nil) }, AlertUnsupportedCertificate, accepted},
		{"enc with extended usage for the other role", func(a *authority) *Pair { return both(a, nil, wrong) }, AlertUnsupportedCertificate, accepted},
		{"content commitment, key agreement", usages(smx509.KeyUsageContentCommitment, smx509.KeyUsageKeyAgreement), accepted, accepted},
		{"data encipherment", usages(sign, smx509.KeyUsageDataEncipherment), accepted, accepted},
		{"sign without usage", usages(0, enc), AlertUnsupportedCertificate, accepted},
		{"sign for encryption", usages(enc, enc), AlertUnsupportedCertificate, AlertUnsupportedCertificate},
		{"swapped", list(func(s, e *smx509.Certificate, a *authority) certs { return certs{e, s, a.cert} }), AlertUnsupportedCertificate, AlertUnsupportedCertificate},
		{"enc behind the intermediate", list(func(s, e *smx509.Certificate, a *authority) certs { return certs{s, a.cert, e} }), accepted, accepted},
		{"a stranger's certificate at the end", list(func(s, e *smx509.Certificate, a *authority) certs {
			return certs{s, e, a.cert, newRoot(a.t, "stranger").cert}
		}), accepted, accepted},
		{"with the root", list(func(s, e *smx509.Certificate, a *authority) certs { return certs{s, e, a.cert, a.over.cert} }), accepted, accepted},
		{"without the intermediate", list(func(s, e *smx509.Certificate, a *authority) certs { return certs{s, e} }), AlertUnknownCA, AlertUnknownCA},
		{"an authority's certificate first", list(func(s, e *smx509.Certificate, a *authority) certs { return certs{a.cert, e} }), AlertUnsupportedCertificate, AlertUnsupportedCertificate},
		{"no certificate at all but rubbish", func(a *authority) *Pair {
			p := both(a, nil, nil)
			p.message = [][]byte{[]byte("rubbish"), p.message[1]}
			return p
		}, AlertBadCertificate, AlertBadCertificate},
		{"another authority", func(a *authority) *Pair {
			stranger := newRoot(a.t, "root").intermediate("sub")
			return both(stranger, nil, nil)
		}, AlertUnknownCA, AlertUnknownCA},
		{"enc of another authority", func(a *authority) *Pair {
			x, y := a.leaf(sign), newRoot(a.t, "root").intermediate("sub").leaf(enc)
			return crooked(x, y, x.Chain[0], y.Chain[0], a.cert)
		}, AlertUnknownCA, AlertUnknownCA},
		{"one key for both", func(a *authority) *Pair {
			key := newKey(a.t)
			s, e := a.leafFor(key, sign), a.leafFor(key, enc)
			return crooked(Certificate{certs{s}, key}, Certificate{certs{e}, key}, s, e, a.cert)
		}, AlertUnsupportedCertificate, AlertUnsupportedCertificate},
		{"one certificate for both", func(a *authority) *Pair {
			key := newKey(a.t)
			c := a.leafFor(key, sign|enc)
			return crooked(Certificate{certs{c}, key}, Certificate{certs{c}, key}, c, c, a.cert)
		}, AlertUnsupportedCertificate, AlertUnsupportedCertificate},
		{"a P-256 key", func(a *authority) *Pair {
			p := both(a, nil, nil)
			key, err := ecdsa.GenerateKey(elliptic.P256(), testRand(a.t))
			if err != nil {
				a.t.Fatal(err)
			}
			der, err := smx509.CreateCertificate(testRand(a.t), &smx509.Certificate{
				SerialNumber: big.NewInt(1), NotBefore: testTime.Add(-time.Hour), NotAfter: testTime.Add(time.Hour), KeyUsage: sign,
			}, a.cert, key.Public(), a.key)
			if err != nil {
				a.t.Fatal(err)
			}
			p.message[0] = der
			return p
		}, AlertUnsupportedCertificate, AlertUnsupportedCertificate},
		{"an authority with an RSA key of 9000 bits", func(a *authority) *Pair {
			p := both(a, nil, nil)
			n := new(big.Int).SetBit(big.NewInt(1), 9000, 1)
			der, err := smx509.CreateCertificate(testRand(a.t), &smx509.Certificate{
				SerialNumber: big.NewInt(1), NotBefore: testTime.Add(-time.Hour), NotAfter: testTime.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
			}, a.cert, &rsa.PublicKey{N: n, E: 3}, a.key)
			if err != nil {
				a.t.Fatal(err)
			}
			p.message = append(p.message, der)
			return p
		}, AlertUnsupportedCertificate, AlertUnsupportedCertificate},
		{"another's certificate, without its key", func(a *authority) *Pair {
			p, q := both(a, nil, nil), both(a, nil, nil)
			p.signer = q.signer
			return p
		}, AlertDecryptError, AlertDecryptError},
	}
	if forServers {
		cases = append(cases, []certificateCase{
			{"sign for another name", func(a *authority) *Pair { return both(a, other, nil) }, AlertBadCertificate, AlertBadCertificate},
			{"enc for another name", func(a *authority) *Pair { return both(a, nil, other) }, AlertBadCertificate, AlertBadCertificate},
			{"enc for signatures", usages(sign, sign), AlertUnsupportedCertificate, AlertUnsupportedCertificate},
			{"enc without usage", usages(sign, 0), AlertUnsupportedCertificate, accepted},
			{"sign alone", list(func(s, e *smx509.Certificate, a *authority) certs { return certs{s, a.cert} }), AlertUnsupportedCertificate, AlertUnsupportedCertificate},
			{"none", list(func(s, e *smx509.Certificate, a *authority) certs { return nil }), AlertDecodeError, AlertDecodeError},
		}...)
	}
	return cases
}

func TestServerCertificates(t *testing.T) {
	site := newSite(t)
	sub := site.root.intermediate("other sub")
	for _, suite := range []uint16{ECC_SM4_GCM_SM3, ECDHE_SM4_GCM_SM3} {
		for _, c := range certificateCases(true) {
			for _, lax := range []bool{false, true} {
				server, client := site.configs(suite, isECDHE(suite))
				server.Certificates = []*Pair{c.make(sub)}
				client.LaxUsage = lax
				s, k, serverErr, clientErr := handshake(t, "tcp4", server, client)
				judge(t, c, lax, clientErr, serverErr)
				s.Close()
				k.Close()
			}
		}
	}
}

func TestClientCertificates(t *testing.T) {
	site := newSite(t)
	sub := site.root.intermediate("other sub")
	for _, suite := range []uint16{ECC_SM4_GCM_SM3, ECDHE_SM4_GCM_SM3} {
		for _, c := range certificateCases(false) {
			for _, lax := range []bool{false, true} {
				server, client := site.configs(suite, true)
				client.Certificates = []*Pair{c.make(sub)}
				server.LaxUsage = lax
				s, k, serverErr, clientErr := handshake(t, "tcp4", server, client)
				judge(t, c, lax, serverErr, clientErr)
				s.Close()
				k.Close()
			}
		}
	}
}

// judge checks what the side that looked at the certificates said, and that the
// other heard it.
func judge(t *testing.T, c certificateCase, lax bool, looked, heard error) {
	t.Helper()
	want := c.want
	if lax {
		want = c.lax
	}
	if want == accepted {
		if looked != nil || heard != nil {
			t.Errorf("%s (lax %v): refused: %v, %v", c.name, lax, looked, heard)
		}
		return
	}
	if a, remote, ok := alertOf(looked); !ok || remote || a != want {
		t.Errorf("%s (lax %v): got %v, want %v", c.name, lax, looked, want)
	}
	if a, remote, ok := alertOf(heard); !ok || !remote || a != want {
		t.Errorf("%s (lax %v): the other side has %v, want %v from its peer", c.name, lax, heard, want)
	}
}

// TestClientMayLackTheEncryptionCertificate: with an ECC suite it serves
// nothing, and some clients do not send it.
func TestClientMayLackTheEncryptionCertificate(t *testing.T) {
	site := newSite(t)
	for suite, want := range map[uint16]Alert{ECC_SM4_GCM_SM3: accepted, ECDHE_SM4_GCM_SM3: AlertBadCertificate} {
		server, client := site.configs(suite, true)
		alone := *site.client
		alone.message = slices.Delete(slices.Clone(alone.message), 1, 2)
		client.Certificates = []*Pair{&alone}
		server.VerifyConnection = func(st ConnectionState) error {
			if st.PeerSign == nil || st.PeerEnc != nil {
				t.Errorf("peer %v, %v", st.PeerSign, st.PeerEnc)
			}
			return nil
		}
		_, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
		judge(t, certificateCase{"sign alone", nil, want, want}, false, serverErr, clientErr)
	}
}

func TestClientAuth(t *testing.T) {
	site := newSite(t)
	for _, c := range []struct {
		auth    ClientAuthType
		present bool
		ok      bool
		seen    bool
	}{
		{NoClientCert, false, true, false},
		{NoClientCert, true, true, false},
		{VerifyClientCertIfGiven, false, true, false},
		{VerifyClientCertIfGiven, true, true, true},
		{RequireAndVerifyClientCert, false, false, false},
		{RequireAndVerifyClientCert, true, true, true},
	} {
		server, client := site.configs(ECC_SM4_GCM_SM3, true)
		server.ClientAuth = c.auth
		if !c.present {
			client.Certificates = nil
		}
		s, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
		if (serverErr == nil) != c.ok || (clientErr == nil) != c.ok {
			t.Errorf("%+v: server %v, client %v", c, serverErr, clientErr)
		}
		if !c.ok && !errors.Is(serverErr, ErrNoClientCertificate) {
			t.Errorf("%+v: server %v, want ErrNoClientCertificate", c, serverErr)
		}
		if got := s.ConnectionState().PeerSign != nil; got != c.seen {
			t.Errorf("%+v: certificate seen %v", c, got)
		}
	}
}

func TestRevokedCertificatesAreRefused(t *testing.T) {
	site := newSite(t)
	refuse := func(bad *smx509.Certificate) func(cert, issuer *smx509.Certificate) error {
		return func(cert, issuer *smx509.Certificate) error {
			if cert.CheckSignatureFrom(issuer) != nil {
				t.Errorf("asked for %q with an issuer that is not its own", cert.Subject)
			}
			if cert.Equal(bad) {
				return errors.New("it is on the list")
			}
			return nil
		}
	}
	intermediate, err := smx509.ParseCertificate(site.server.message[2])
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]*smx509.Certificate{
		"sign": site.server.signLeaf, "enc": site.server.encLeaf, "intermediate": intermediate,
	} {
		server, client := site.configs(ECC_SM4_GCM_SM3, false)
		client.CheckRevocation = refuse(bad)
		_, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
		judge(t, certificateCase{"server's " + name, nil, AlertCertificateRevoked, 0}, false, clientErr, serverErr)
	}
	for name, bad := range map[string]*smx509.Certificate{
		"sign": site.client.signLeaf, "enc": site.client.encLeaf, "intermediate": intermediate,
	} {
		server, client := site.configs(ECDHE_SM4_GCM_SM3, true)
		server.CheckRevocation = refuse(bad)
		_, _, serverErr, clientErr := handshake(t, "tcp4", server, client)
		judge(t, certificateCase{"client's " + name, nil, AlertCertificateRevoked, 0}, false, serverErr, clientErr)
	}
}

func TestNewPair(t *testing.T) {
	site := newSite(t)
	a := site.root.intermediate("sub")
	sign, enc := a.leaf(smx509.KeyUsageDigitalSignature), a.leaf(usageEnc)
	for _, order := range [][2]Certificate{{sign, enc}, {enc, sign}} {
		p, err := NewPair(order[0], order[1])
		if err != nil {
			t.Fatal(err)
		}
		if !p.SignLeaf().Equal(sign.Chain[0]) || !p.EncLeaf().Equal(enc.Chain[0]) || p.agreer == nil {
			t.Error("the certificates were told apart wrongly")
		}
		if len(p.message) != 3 {
			t.Errorf("%d certificates are sent, want 3: sign, enc and the intermediate once, without the root", len(p.message))
		}
	}
	key := newKey(t)
	for name, pair := range map[string][2]Certificate{
		"two for signatures": {sign, a.leaf(smx509.KeyUsageDigitalSignature)},
		"two for encryption": {a.leaf(usageEnc), enc},
		"no chain":           {sign, {Key: enc.Key}},
		"no key":             {sign, {Chain: enc.Chain}},
		"another's key":      {sign, {Chain: enc.Chain, Key: key}},
		"another's sign key": {{Chain: sign.Chain, Key: key}, enc},
		"one key":            {{a.chain(a.leafFor(key, smx509.KeyUsageDigitalSignature)), key}, {a.chain(a.leafFor(key, usageEnc)), key}},
	} {
		if _, err := NewPair(pair[0], pair[1]); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
