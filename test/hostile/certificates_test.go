package hostile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509/pkix"
	"slices"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// badIdentity is a party that must not get in, and the alerts that may say so.
type badIdentity struct {
	own    *Identity
	chain  [][]byte // nil: own's list
	alerts []byte
	both   bool // also from a client of an ECC suite, whose second certificate is not needed
	server bool // only from a server
}

func certificateFaults() map[string]badIdentity {
	w := world()
	good, alien := w.server, NewAuthority("alien", nil)
	with := func(sign, enc *Leaf) *Identity { return &Identity{Sign: sign, Enc: enc} }
	expired := func(c *smx509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	future := func(c *smx509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }
	otherHost := func(c *smx509.Certificate) { c.DNSNames, c.IPAddresses = []string{"other.example"}, nil }
	noCA := w.sub.Leaf(UsageSign) // no authority, and issues all the same
	fake := &Authority{Cert: noCA.Cert, Key: noCA.Key, Over: w.sub}
	oneKey := NewKey()
	sub := w.sub.Cert.Raw
	p256 := p256Leaf(w.root)
	faults := map[string]badIdentity{
		"swapped":                {own: with(good.Enc, good.Sign), alerts: []byte{43, 42}, both: true},
		"signing alone":          {own: good, chain: [][]byte{good.Sign.Cert.Raw}, alerts: []byte{42, 43, 40}},
		"signing and authority":  {own: good, chain: [][]byte{good.Sign.Cert.Raw, sub}, alerts: []byte{42, 43, 40}},
		"encryption alone":       {own: good, chain: [][]byte{good.Enc.Cert.Raw, sub}, alerts: []byte{42, 43}, both: true},
		"none":                   {own: good, chain: [][]byte{}, alerts: []byte{40, 42, 50}, both: true},
		"an empty one":           {own: good, chain: [][]byte{{}, {}}, alerts: []byte{42, 50}, both: true},
		"garbage":                {own: good, chain: [][]byte{random(400), random(400)}, alerts: []byte{42, 43}, both: true},
		"signing twice":          {own: with(good.Sign, good.Sign), alerts: []byte{42, 43}},
		"encryption twice":       {own: with(good.Enc, good.Enc), alerts: []byte{42, 43}, both: true},
		"one key in both":        {own: with(w.sub.LeafFor(oneKey, UsageSign), w.sub.LeafFor(oneKey, UsageEnc)), alerts: []byte{42, 43}},
		"one cert for both":      {own: func() *Identity { l := w.sub.Leaf(UsageSign | UsageEnc); return with(l, l) }(), alerts: []byte{42, 43}},
		"sign of other usage":    {own: with(w.sub.Leaf(smx509.KeyUsageCRLSign), good.Enc), alerts: []byte{42, 43}, both: true},
		"enc of other usage":     {own: with(good.Sign, w.sub.Leaf(smx509.KeyUsageCRLSign)), alerts: []byte{42, 43, 40}},
		"usage of other purpose": {own: w.sub.Identity(func(c *smx509.Certificate) { c.ExtKeyUsage = []smx509.ExtKeyUsage{smx509.ExtKeyUsageCodeSigning} }), alerts: []byte{42, 43}, both: true},
		"sign expired":           {own: with(w.sub.Leaf(UsageSign, expired), good.Enc), alerts: []byte{45}, both: true},
		"enc expired":            {own: with(good.Sign, w.sub.Leaf(UsageEnc, expired)), alerts: []byte{45}},
		"sign in the future":     {own: with(w.sub.Leaf(UsageSign, future), good.Enc), alerts: []byte{45, 42}, both: true},
		"enc in the future":      {own: with(good.Sign, w.sub.Leaf(UsageEnc, future)), alerts: []byte{45, 42}},
		"unknown root":           {own: alien.Identity(), alerts: []byte{48}, both: true},
		"unknown root, sent":     {own: alien.Identity(), chain: append(alien.Identity().List(), alien.Cert.Raw), alerts: []byte{48}, both: true},
		"enc of unknown root":    {own: with(good.Sign, alien.Leaf(UsageEnc)), alerts: []byte{48}},
		"issued by a leaf":       {own: with(fake.Leaf(UsageSign), fake.Leaf(UsageEnc)), alerts: []byte{48, 42}, both: true},
		"intermediate missing":   {own: good, chain: [][]byte{good.Sign.Cert.Raw, good.Enc.Cert.Raw}, alerts: []byte{48}, both: true},
		"self-signed":            {own: with(selfSigned(UsageSign), selfSigned(UsageEnc)), alerts: []byte{48, 42, 43}, both: true},
		"NIST curve":             {own: good, chain: [][]byte{p256, good.Enc.Cert.Raw, sub}, alerts: []byte{42, 43}, both: true},
		"enc on NIST curve":      {own: good, chain: [][]byte{good.Sign.Cert.Raw, p256, sub}, alerts: []byte{42, 43, 40}},
		"authority as leaf":      {own: with(&Leaf{w.sub.Cert, w.sub.Key, w.root}, good.Enc), alerts: []byte{42, 43}, both: true},
		"sign of another host":   {own: with(w.sub.Leaf(UsageSign, otherHost), good.Enc), alerts: []byte{42, 46}, server: true},
		"enc of another host":    {own: with(good.Sign, w.sub.Leaf(UsageEnc, otherHost)), alerts: []byte{42, 46}, server: true},
		"second pair behind":     {own: with(alien.Leaf(UsageSign), alien.Leaf(UsageEnc)), chain: append(alien.Identity().List(), good.List()...), alerts: []byte{48, 42, 43, 40}, both: true},
		"somebody else's":        {own: alien.Identity(), chain: good.List(), alerts: []byte{51, 40, 20}, both: true},
		"signature altered":      {own: good, chain: [][]byte{altered(good.Sign.Cert.Raw), good.Enc.Cert.Raw, sub}, alerts: []byte{42, 48}, both: true},
		"signature of enc":       {own: good, chain: [][]byte{good.Sign.Cert.Raw, altered(good.Enc.Cert.Raw), sub}, alerts: []byte{42, 48}},
	}
	return faults
}

func altered(der []byte) []byte {
	out := bytes.Clone(der)
	out[len(out)-1] ^= 1
	return out
}

func selfSigned(usage smx509.KeyUsage) *Leaf {
	k := NewKey()
	tmpl := &smx509.Certificate{Subject: pkix.Name{CommonName: "self"}}
	l := (&Authority{Cert: tmpl, Key: k}).LeafFor(k, usage)
	return &Leaf{l.Cert, k, nil}
}

// p256Leaf returns a certificate for a key on another curve.
func p256Leaf(a *Authority) []byte {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return a.issue(&smx509.Certificate{KeyUsage: UsageSign, DNSNames: []string{Host}}, &k.PublicKey).Raw
}

// Certificates that a client must not get in with.
func TestS24_ClientCertificates(t *testing.T) {
	for name, bad := range certificateFaults() {
		if bad.server {
			continue
		}
		for _, suite := range suites {
			if !bad.both && !isECDHE(suite) {
				continue // ECC does not look at what it does not need
			}
			f := face{suite, true}
			c, done := against(t, f, f.server(t))
			c.Own, c.Chain = bad.own, bad.chain
			check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
			c.Do(c.Rest()...)
			if a := refusedEarly(t, &c.Peer, done); !slices.Contains(bad.alerts, a.Code) {
				t.Errorf("%v, %s: %v, want one of %v", f, name, a, bad.alerts)
			}
			if t.Failed() {
				t.Fatalf("%v, %s", f, name)
			}
		}
	}
}

// Certificates that a server must not be believed with.
func TestS24_ServerCertificates(t *testing.T) {
	for name, bad := range certificateFaults() {
		for _, suite := range suites {
			f := face{suite, isECDHE(suite)}
			s, done := before(t, f, f.client(t))
			s.Own, s.Chain = bad.own, bad.chain
			check(t, s.Do(HearClient, SayHello), "hello")
			check(t, s.Do(s.Flight()...), "flight")
			if a := refusedEarly(t, &s.Peer, done); !slices.Contains(bad.alerts, a.Code) {
				t.Errorf("%v, %s: %v, want one of %v", f, name, a, bad.alerts)
			}
			if t.Failed() {
				t.Fatalf("%v, %s", f, name)
			}
		}
	}
}

// Revoked: either certificate, or their authority.
func TestS24_Revoked(t *testing.T) {
	w := world()
	for _, f := range faces {
		for i, cert := range []*smx509.Certificate{w.client.Sign.Cert, w.client.Enc.Cert, w.sub.Cert, w.server.Sign.Cert, w.server.Enc.Cert} {
			lists := new(tlcp.CRLs)
			by := w.sub
			if cert == w.sub.Cert {
				by = w.root
			}
			check(t, lists.Add(by.CRL(cert), by.Cert), "add list")
			if f.mutual && i < 3 && (i != 1 || isECDHE(f.suite)) {
				cfg := f.server(t)
				cfg.CheckRevocation = lists.Check
				c, done := against(t, f, cfg)
				check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
				c.Do(c.Rest()...)
				if a := refusedEarly(t, &c.Peer, done); a.Code != 44 {
					t.Errorf("%v, client %d: %v", f, i, a)
				}
			}
			if i >= 2 {
				cfg := f.client(t)
				cfg.CheckRevocation = lists.Check
				s, done := before(t, f, cfg)
				check(t, s.Do(HearClient, SayHello), "hello")
				check(t, s.Do(s.Flight()...), "flight")
				if a := refusedEarly(t, &s.Peer, done); a.Code != 44 {
					t.Errorf("%v, server %d: %v", f, i, a)
				}
			}
		}
	}
}

// Many certificates that could all lead on: the search must end, and soon.
func TestS24_ChainBombs(t *testing.T) {
	w := world()
	many := func(n int) (out [][]byte) {
		for range n {
			out = append(out, w.sub.Cert.Raw)
		}
		return out
	}
	// Authorities of one name and one key that have all issued one another.
	knot := func(n int) (*Identity, [][]byte) {
		key := NewKey()
		self := &smx509.Certificate{Subject: pkix.Name{CommonName: "knot"}}
		a := &Authority{Cert: self, Key: key}
		var list [][]byte
		for range n {
			c := a.issue(&smx509.Certificate{
				Subject: pkix.Name{CommonName: "knot"}, IsCA: true, BasicConstraintsValid: true,
				KeyUsage: smx509.KeyUsageCertSign, DNSNames: []string{named("%d.example", serial.Load())},
			}, &key.PublicKey)
			list = append(list, c.Raw)
		}
		id := &Identity{Sign: a.Leaf(UsageSign), Enc: a.Leaf(UsageEnc)}
		return id, append([][]byte{id.Sign.Cert.Raw, id.Enc.Cert.Raw}, list...)
	}
	long := func(n int) (*Identity, [][]byte) {
		a := w.root
		for range n {
			a = NewAuthority("link", a)
		}
		id := a.Identity()
		return id, id.List()
	}
	bombs := map[string]func() (*Identity, [][]byte){
		"one 500 times":           func() (*Identity, [][]byte) { return w.client, append(w.client.List(), many(500)...) },
		"10,000 empty ones":       func() (*Identity, [][]byte) { return w.client, append(w.client.List(), make([][]byte, 10000)...) },
		"30 that fit one another": func() (*Identity, [][]byte) { return knot(30) },
		"9 that fit one another":  func() (*Identity, [][]byte) { return knot(9) },
		"chain of 60":             func() (*Identity, [][]byte) { return long(60) },
		"one of 1 MiB":            func() (*Identity, [][]byte) { return w.client, append(w.client.List(), make([]byte, 1<<20)) },
	}
	for name, bomb := range bombs {
		id, list := bomb()
		for _, f := range []face{{ECCGCM, true}, {ECDHECBC, true}} {
			start := time.Now()
			c, done := against(t, f, f.server(t))
			c.Own, c.Chain, c.Frame = id, list, Bytes(16384)
			check(t, c.Do(SendHello, HearHello, HearFlight), "first flight")
			c.Do(c.Rest()...)
			refusedEarly(t, &c.Peer, done)
			s, done := before(t, f, f.client(t))
			s.Own, s.Chain, s.Frame = id, list, Bytes(16384)
			check(t, s.Do(HearClient, SayHello), "hello")
			s.Do(s.Flight()...)
			refusedEarly(t, &s.Peer, done)
			took := time.Since(start)
			t.Logf("%s, %v: %v", name, f, took)
			if took > 5*time.Second {
				t.Errorf("%s: %v", name, took)
			}
			if t.Failed() {
				t.Fatalf("%s, %v", name, f)
			}
		}
	}
}
