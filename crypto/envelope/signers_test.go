package envelope

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/reason"
)

// TestSignerCertificateIsCheckedAgain: a certificate that the look-up trusts
// must still be valid now, for signatures, and its sender's.
func TestSignerCertificateIsCheckedAgain(t *testing.T) {
	s := testSite(t)
	raw := mustSeal(t, s.gw.sender(), statusHeader, statusBody, nil)
	is := func(c *smx509.Certificate, err error) func(string, string) (*smx509.Certificate, error) {
		return func(string, string) (*smx509.Certificate, error) { return c, err }
	}
	for _, c := range []struct {
		name string
		f    func(*Config)
		want reason.Reason
	}{
		{"look-up fails", func(c *Config) { c.Signers = is(nil, errors.New("store is down")) }, reason.MessageSignature},
		{"look-up finds nothing", func(c *Config) { c.Signers = is(nil, nil) }, reason.MessageSignature},
		{"look-up gives another", func(c *Config) { c.Signers = is(s.app.sign, nil) }, reason.MessageSignature},
		{"expired", func(c *Config) { c.Now, c.Skew = at(s.gw.sign.NotAfter.Add(time.Second)), -1 }, reason.MessageSignature},
		{"not yet valid", func(c *Config) { c.Now, c.Skew = at(s.gw.sign.NotBefore.Add(-time.Second)), -1 }, reason.MessageSignature},
		{"look-up refuses with a reason", func(c *Config) {
			c.Signers = is(nil, &RejectedError{Reason: reason.NotAuthenticated})
		}, reason.NotAuthenticated},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.control.receiver(t, s.gw, c.f).Open(raw)
			wantRejected(t, err, c.want)
		})
	}

	// Certificates for other purposes, with signatures by their own keys.
	encKey, err := s.gw.store.Signer(keystore.Enc)
	if err != nil {
		t.Fatal(err)
	}
	tlsChain, err := s.gw.store.Chain(keystore.TLS)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*smx509.Certificate{"encryption certificate": s.gw.enc, "TLS certificate": tlsChain[0]} {
		t.Run(name, func(t *testing.T) {
			raw := forge(t, headerOf(t, s, set("keyId", KeyID(c))), statusBody, encKey)
			r := s.control.receiver(t, s.gw, func(cfg *Config) { cfg.Signers = Pinned(c) })
			_, err := r.Open(raw)
			wantRejected(t, err, reason.MessageSignature)
		})
	}
}

func TestSealRefusesWhatNoReceiverTakes(t *testing.T) {
	s := testSite(t)
	for _, c := range []struct {
		name string
		from Sender
		h    Header
		body string
		to   *smx509.Certificate
		want string
	}{
		{"no key", Sender{ID: s.gw.id, Cert: s.gw.sign}, statusHeader, `{}`, nil, "no key"},
		{"certificate of another key", Sender{ID: s.gw.id, Key: s.gw.signer, Cert: s.app.sign}, statusHeader, `{}`, nil, "another key"},
		{"another's name", Sender{ID: s.app.id, Key: s.gw.signer, Cert: s.gw.sign}, statusHeader, `{}`, nil, "not APP00000001's"},
		{"body is no object", *s.gw.sender(), statusHeader, `[]`, nil, "not a JSON object"},
		{"body is cut", *s.gw.sender(), statusHeader, `{`, nil, "body"},
		{"no type", *s.gw.sender(), Header{Receiver: "CTL00000001"}, `{}`, nil, "msgType"},
		{"no receiver", *s.gw.sender(), Header{MsgType: "T10"}, `{}`, nil, "receiver"},
		{"bad extension", *s.gw.sender(), Header{MsgType: "T10", Receiver: "CTL00000001", Ext: map[string]jsontext.Value{"x": jsontext.Value(`9007199254740992`)}}, `{}`, nil, "2^53"},
		{"sealed to a signing certificate", *s.gw.sender(), statusHeader, `{}`, s.control.sign, "another purpose"},
		{"sealed to somebody else", *s.gw.sender(), statusHeader, `{}`, s.app.enc, "not CTL00000001's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := c.from.Seal(c.h, []byte(c.body), c.to)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %s, %v; want an error with %q", raw, err, c.want)
			}
		})
	}
}

func TestReceiverConfigIsChecked(t *testing.T) {
	s := testSite(t)
	for name, cfg := range map[string]Config{
		"nothing":              {},
		"no signers":           {ID: "CTL00000001"},
		"two ways to a signer": {ID: "CTL00000001", Signers: Pinned(), Resolve: ListSigner(nil, nil)},
		"sealed without key":   {ID: "CTL00000001", Signers: Pinned(), RequireSealed: true},
		"bad id":               {ID: "a b", Signers: Pinned(), Decrypter: s.control.decrypter},
		"negative size":        {ID: "CTL00000001", Signers: Pinned(), MaxBytes: -1},
	} {
		if _, err := NewReceiver(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestListSigner: lists are signed by a key of its own, under its own root.
func TestListSigner(t *testing.T) {
	s := testSite(t)
	roots, err := s.gw.store.Root(keystore.ListRoot)
	if err != nil {
		t.Fatal(err)
	}
	messageRoots, err := s.gw.store.Root(keystore.MessageRoot)
	if err != nil {
		t.Fatal(err)
	}
	lists := &Sender{ID: s.control.id, Key: s.control.listSigner, Cert: s.control.listChain[0]}
	header := func(chain ...*smx509.Certificate) Header {
		return Header{MsgType: "X.manifest", Receiver: s.gw.id, Ext: map[string]jsontext.Value{"signer": SignerExt(chain)}}
	}
	receiver := func(roots *smx509.CertPool, now func() time.Time) *Receiver {
		return s.gw.receiver(t, s.control, func(c *Config) { c.Signers, c.Resolve = nil, ListSigner(roots, now) })
	}
	good := mustSeal(t, lists, header(s.control.listChain...), `{"list":"grants"}`, s.gw.enc)
	m, err := receiver(roots, nil).Open(good, "X.manifest")
	if err != nil || !m.Signer.Equal(s.control.listChain[0]) {
		t.Fatalf("good list: %v", errors.Unwrap(err))
	}

	// Another control center under the same root, and one under its own.
	second, err := newParty(s.ca, filepath.Join(t.TempDir(), "keys"), certid.Identity{Control: "CTL00000002"})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := lab.New(lab.Config{Iterations: 1})
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := newParty(ca, filepath.Join(t.TempDir(), "keys"), certid.Identity{Control: "CTL00000001"})
	if err != nil {
		t.Fatal(err)
	}
	none := header()
	none.Ext = nil
	huge := header(s.control.listChain[0], s.control.listChain[0], s.control.listChain[0], s.control.listChain[0], s.control.listChain[0])
	for name, c := range map[string]struct {
		raw []byte
		r   *Receiver
	}{
		"no root pinned":           {good, receiver(nil, nil)},
		"under the message root":   {good, receiver(messageRoots, nil)},
		"signer expired":           {good, receiver(roots, at(s.control.listChain[0].NotAfter.Add(time.Second)))},
		"no chain":                 {mustSeal(t, lists, none, `{}`, nil), receiver(roots, nil)},
		"empty chain":              {mustSeal(t, lists, header(), `{}`, nil), receiver(roots, nil)},
		"long chain":               {mustSeal(t, lists, huge, `{}`, nil), receiver(roots, nil)},
		"message key signs a list": {mustSeal(t, s.control.sender(), header(s.control.sign), `{}`, nil), receiver(roots, nil)},
		"stranger's root":          {mustSeal(t, &Sender{ID: stranger.id, Key: stranger.listSigner, Cert: stranger.listChain[0]}, header(stranger.listChain...), `{}`, nil), receiver(roots, nil)},
		"another center's name": {forge(t, `{"version":"1","msgType":"X.manifest","msgId":"a","timestamp":"`+time.Now().UTC().Format(timeLayout)+
			`","sender":"CTL00000001","receiver":"GW000000001","keyId":"`+KeyID(second.listChain[0])+`","encAlg":"none","sigAlg":"SM2-SM3","ext":{"signer":`+
			string(SignerExt(second.listChain))+`}}`, `{}`, second.listSigner), receiver(roots, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.r.Open(c.raw)
			wantRejected(t, err, reason.ListSigner)
		})
	}
}

func TestPeekReadsTheHeader(t *testing.T) {
	s := testSite(t)
	raw := mustSeal(t, s.gw.sender(), statusHeader, statusBody, s.control.enc)
	h, err := Peek(raw, DefaultMax)
	if err != nil || h.Sender != s.gw.id || h.EncAlg != EncSM2SM4 {
		t.Errorf("got %+v, %v", h, err)
	}
	_, err = Peek(raw, len(raw)-1)
	wantRejected(t, err, reason.MessageTooLarge)
	_, err = Peek([]byte("{}"), DefaultMax)
	wantRejected(t, err, reason.MessageMalformed)
}

// TestDigestFollowsTheMessageNotTheHeader: a message that is sent again has the
// same digest, whatever its time and seal; another one has not.
func TestDigestFollowsTheMessageNotTheHeader(t *testing.T) {
	s := testSite(t)
	r := s.control.receiver(t, s.gw, nil)
	open := func(h Header, body string, to *smx509.Certificate) [32]byte {
		m, err := r.Open(mustSeal(t, s.gw.sender(), h, body, to))
		if err != nil {
			t.Fatal(errors.Unwrap(err))
		}
		return m.Digest
	}
	with := func(ext string) Header {
		h := statusHeader
		h.Ext = map[string]jsontext.Value{"v": jsontext.Value(ext)}
		return h
	}
	want := open(with(`{"a":1,"b":2}`), statusBody, nil)
	if got := open(with(`{"b":2, "a":1.0}`), statusBody, s.control.enc); got != want {
		t.Error("sent again, sealed: another digest")
	}
	alert := with(`{"a":1,"b":2}`)
	alert.MsgType = "T11"
	for name, got := range map[string][32]byte{
		"extension": open(with(`{"a":1,"b":3}`), statusBody, nil),
		"body":      open(with(`{"a":1,"b":2}`), strings.Replace(statusBody, "1,", "0,", 1), nil),
		"type":      open(alert, statusBody, nil),
		"none":      open(statusHeader, statusBody, nil),
	} {
		if got == want {
			t.Errorf("another %s: the same digest", name)
		}
	}
}

// TestOutwardAnswerIsOne: whatever is wrong with an envelope, the sender is
// told the same.
func TestOutwardAnswerIsOne(t *testing.T) {
	for _, r := range reason.All() {
		e := &RejectedError{Reason: r, cause: errors.New("detail")}
		want := reason.MessageMalformed
		if r == reason.MessageConflict || r == reason.Overload || r == reason.InternalError {
			want = r
		}
		if e.Outward() != want || strings.Contains(e.Error(), "detail") {
			t.Errorf("%s: outward %s, %q; want %s", r, e.Outward(), e, want)
		}
	}
}
