package envelope

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// b64 is standard base64 that refuses anything but the one encoding of a value.
var b64 = base64.StdEncoding.Strict()

// outer is the envelope on the wire.
type outer struct {
	Header    jsontext.Value `json:"header"`
	Body      jsontext.Value `json:"body"`
	Signature string         `json:"signature"`
}

// sealedBody is the body on the wire when it is sealed.
type sealedBody struct {
	Key        string `json:"key"`
	Nonce      string `json:"nonce"`
	Ciphertext string `json:"ciphertext"`
}

const sealUsage = smx509.KeyUsageKeyEncipherment | smx509.KeyUsageDataEncipherment | smx509.KeyUsageKeyAgreement

// Sender makes envelopes. Its fields must not change while it is used; it may
// then be used by several goroutines at once.
type Sender struct {
	ID   string              // identifier that Cert certifies
	Key  crypto.Signer       // SM2
	Cert *smx509.Certificate // of Key
	Now  func() time.Time    // default time.Now
}

// Seal returns the envelope of body, a JSON object, under h. It fills Version,
// MsgID (unless set), Timestamp, Sender, KeyID, EncAlg and SigAlg. With the
// encryption certificate of h.Receiver as to, the body is sealed; with nil it
// is plain. It refuses what a receiver would not take.
func (s *Sender) Seal(h Header, body []byte, to *smx509.Certificate) ([]byte, error) {
	raw, err := s.seal(h, body, to)
	if err != nil {
		return nil, fmt.Errorf("seal message %s to %s: %w", h.MsgType, h.Receiver, err)
	}
	return raw, nil
}

func (s *Sender) seal(h Header, body []byte, to *smx509.Certificate) ([]byte, error) {
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	at := now().UTC()
	h.Version, h.SigAlg, h.EncAlg = Version, SigSM2SM3, EncNone
	h.Sender, h.KeyID, h.Timestamp = s.ID, KeyID(s.Cert), at.Format(timeLayout)
	if h.MsgID == "" {
		h.MsgID = rand.Text()
	}
	if to != nil {
		h.EncAlg = EncSM2SM4
	}

	// 1 Would it be accepted?
	if s.Key == nil || s.Cert == nil {
		return nil, errors.New("the sender has no key or no certificate")
	}
	if pub, ok := s.Key.Public().(*ecdsa.PublicKey); !ok || !pub.Equal(s.Cert.PublicKey) {
		return nil, errors.New("the sender's certificate is for another key")
	}
	if err := checkCert(s.Cert, s.ID, smx509.KeyUsageDigitalSignature, at); err != nil {
		return nil, fmt.Errorf("sender: %w", err)
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	if err := checkObject(body); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}

	// 2 Canonical header and body.
	text, err := json.Marshal(&h)
	if err == nil {
		err = strict(text) // the extension fields
	}
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	header, err := canonical(text)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	sent, err := canonical(body)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}

	// 3 Seal, then sign.
	if to != nil {
		if err := checkCert(to, h.Receiver, sealUsage, at); err != nil {
			return nil, fmt.Errorf("receiver: %w", err)
		}
		if sent, err = sealBody(header, sent, to.PublicKey.(*ecdsa.PublicKey)); err != nil {
			return nil, err
		}
	}
	sig, err := s.Key.Sign(rand.Reader, signedBytes(header, sent), sm2.DefaultSM2SignerOpts)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return json.Marshal(&outer{header, sent, b64.EncodeToString(sig)})
}

// sealBody returns the sealed form of body, canonical.
func sealBody(header, body []byte, to *ecdsa.PublicKey) (jsontext.Value, error) {
	var key [sm4gcm.KeySize]byte
	var nonce [sm4gcm.NonceSize]byte
	_, _ = rand.Read(key[:]) // never fails
	_, _ = rand.Read(nonce[:])
	defer clear(key[:])
	wrapped, err := sm2.EncryptASN1(rand.Reader, to, key[:])
	if err != nil {
		return nil, fmt.Errorf("wrap key: %w", err)
	}
	aead, err := sm4gcm.New(key[:])
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(&sealedBody{
		Key:        b64.EncodeToString(wrapped),
		Nonce:      b64.EncodeToString(nonce[:]),
		Ciphertext: b64.EncodeToString(aead.Seal(nil, nonce[:], body, header)),
	})
	if err != nil {
		return nil, err
	}
	return canonical(text)
}

// checkCert returns an error unless cert is an SM2 certificate, valid at this
// time, with one of the usages, whose holder may call itself id.
func checkCert(cert *smx509.Certificate, id string, usage smx509.KeyUsage, at time.Time) error {
	switch who, err := certid.OfSM(cert); {
	case err != nil:
		return err
	case !sm2.IsSM2PublicKey(cert.PublicKey):
		return errors.New("the certificate's key is not an SM2 key")
	case at.Before(cert.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", cert.NotBefore.UTC().Format(time.RFC3339))
	case at.After(cert.NotAfter):
		return fmt.Errorf("the certificate has expired at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	case cert.KeyUsage&usage == 0:
		return errors.New("the certificate's key usage is for another purpose")
	case !who.Speaks(id):
		return &identityError{id, who}
	}
	return nil
}

// identityError says that a good certificate belongs to somebody else.
type identityError struct {
	want string
	have certid.Identity
}

func (e *identityError) Error() string {
	return fmt.Sprintf("the certificate is %s's, not %s's", e.have.Name(), clip(e.want))
}

// checkObject refuses what is not one strict JSON object.
func checkObject(v []byte) error {
	if err := strict(v); err != nil {
		return err
	}
	if jsontext.Value(v).Kind() != '{' {
		return errors.New("not a JSON object")
	}
	return nil
}
