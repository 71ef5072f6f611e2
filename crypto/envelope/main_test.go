package envelope

import (
	"crypto"
	"crypto/ecdsa"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/reason"
)

// party is one end of a link in tests.
type party struct {
	id         string
	store      *keystore.Store
	sign, enc  *smx509.Certificate
	signer     crypto.Signer
	decrypter  crypto.Decrypter
	listSigner crypto.Signer
	listChain  []*smx509.Certificate
}

// site is a lab authority with a gateway, a control center and an application.
type site struct {
	ca               *lab.CA
	gw, control, app *party
}

// theSite is shared by all tests: none of them changes it.
var theSite = sync.OnceValues(func() (*site, error) {
	dir := testDir
	ca, err := lab.New(lab.Config{Iterations: 1})
	if err != nil {
		return nil, err
	}
	s := &site{ca: ca}
	for _, p := range []struct {
		to *(*party)
		id certid.Identity
	}{
		{&s.control, certid.Identity{Control: "CTL00000001"}},
		{&s.gw, certid.Identity{Gateway: "GW000000001", Device: "DEV00000001"}},
		{&s.app, certid.Identity{App: "APP00000001"}},
	} {
		if *p.to, err = newParty(ca, filepath.Join(dir, p.id.Name()), p.id); err != nil {
			return nil, err
		}
	}
	return s, nil
})

func newParty(ca *lab.CA, dir string, id certid.Identity) (*party, error) {
	st, err := ca.Party(dir, []byte("correct horse"), id, nil)
	if err != nil {
		return nil, err
	}
	p := &party{id: id.Name(), store: st}
	sign, err1 := st.Chain(keystore.Sign)
	enc, err2 := st.Chain(keystore.Enc)
	var err3, err4 error
	p.signer, err3 = st.Signer(keystore.Sign)
	p.decrypter, err4 = st.Decrypter(keystore.Enc)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	p.sign, p.enc = sign[0], enc[0]
	if id.Control != "" {
		p.listSigner, err1 = st.Signer(keystore.List)
		p.listChain, err2 = st.Chain(keystore.List)
	}
	return p, errors.Join(err1, err2)
}

func testSite(t testing.TB) *site {
	t.Helper()
	s, err := theSite()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (p *party) sender() *Sender { return &Sender{ID: p.id, Key: p.signer, Cert: p.sign} }

// receiver returns p's receiver for messages of from, changed by f.
func (p *party) receiver(t testing.TB, from *party, f func(*Config)) *Receiver {
	t.Helper()
	cfg := Config{ID: p.id, Decrypter: p.decrypter, Signers: Pinned(from.sign)}
	if f != nil {
		f(&cfg)
	}
	r, err := NewReceiver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustSeal(t testing.TB, s *Sender, h Header, body string, to *smx509.Certificate) []byte {
	t.Helper()
	raw, err := s.Seal(h, []byte(body), to)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// wantRejected fails unless err is the one refusal, for this reason.
func wantRejected(t testing.TB, err error, want reason.Reason) {
	t.Helper()
	var r *RejectedError
	if !errors.As(err, &r) {
		t.Fatalf("got error %v, want a RejectedError for %s", err, want)
	}
	if r.Reason != want {
		t.Fatalf("rejected for %s (%v), want %s", r.Reason, r.Unwrap(), want)
	}
	if got := (&RejectedError{}).Error(); r.Error() != got {
		t.Fatalf("outward text %q differs from %q", r.Error(), got)
	}
}

const statusBody = `{"gatewayId":"GW000000001","deviceId":"DEV00000001","runningStatus":1,"timestamp":"2026-11-21T08:00:00Z"}`

var statusHeader = Header{MsgType: "T10", Receiver: "CTL00000001"}

// at is a clock that stands still.
func at(t time.Time) func() time.Time { return func() time.Time { return t } }

// ecKey returns the public key of an SM2 certificate.
func ecKey(t testing.TB, cert *smx509.Certificate) *ecdsa.PublicKey {
	t.Helper()
	k, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		t.Fatalf("key of type %T", cert.PublicKey)
	}
	return k
}
