package envelope

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/internal/reason"
)

// DefaultSkew is the most that the header's time may differ from ours when
// [Config] says nothing.
const DefaultSkew = 60 * time.Second

// Config says what a [Receiver] accepts. Nothing of it is left to the header
// of a message.
type Config struct {
	// ID is the identifier that messages must be addressed to; required.
	ID string
	// Decrypter opens sealed bodies; without it they are refused.
	Decrypter crypto.Decrypter
	// Signers returns the trusted certificate of this key and sender, verified
	// to a pinned root by whoever stored it. Validity, key usage and identity
	// are checked here again. Required unless Resolve is set.
	Signers func(keyID, sender string) (*smx509.Certificate, error)
	// Resolve takes the place of Signers when the certificate travels in the
	// header's extensions; it must verify it to a pinned root. See ListSigner.
	Resolve func(h *Header) (*smx509.Certificate, error)
	// RequireSealed refuses plain bodies. Without it a plain body is accepted,
	// and a sealed one when there is a Decrypter.
	RequireSealed bool
	// Skew is the most that the header's time may differ from ours; default
	// DefaultSkew, negative: not checked (lists and files, which have their
	// own version and notAfter).
	Skew time.Duration
	// MaxBytes is the most bytes of an envelope; default DefaultMax.
	MaxBytes int
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Validate returns every fault of c, joined.
func (c *Config) Validate() error {
	var faults []error
	if !printable(c.ID) {
		faults = append(faults, errors.New("configure envelope receiver: ID is not 1 to 64 printable ASCII characters"))
	}
	if (c.Signers == nil) == (c.Resolve == nil) {
		faults = append(faults, errors.New("configure envelope receiver: one of Signers and Resolve is needed"))
	}
	if c.RequireSealed && c.Decrypter == nil {
		faults = append(faults, errors.New("configure envelope receiver: RequireSealed needs a Decrypter"))
	}
	if c.MaxBytes < 0 {
		faults = append(faults, errors.New("configure envelope receiver: MaxBytes is negative"))
	}
	return errors.Join(faults...)
}

// Receiver opens envelopes. It may be used by several goroutines at once.
type Receiver struct{ cfg Config }

// NewReceiver returns a receiver for cfg.
func NewReceiver(cfg Config) (*Receiver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Skew == 0 {
		cfg.Skew = DefaultSkew
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMax
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Receiver{cfg}, nil
}

// Message is an envelope that was opened: signed by Signer, addressed to us.
type Message struct {
	Header Header
	Body   []byte // the table's JSON object, strict; canonical unless it came sealed
	Signer *smx509.Certificate
	// Digest is the SM3 of message type, extensions (but "outbox") and body:
	// equal when the same message comes again under a new header. See [Once].
	Digest [32]byte
	// Raw is the envelope as it came, where the caller keeps it as evidence; Open
	// leaves it empty.
	Raw []byte
}

// Open checks and opens the envelope raw. With types, the message must be of
// one of them. Every error is a [*RejectedError]. Open keeps no part of raw.
func (r *Receiver) Open(raw []byte, types ...string) (*Message, error) {
	m, rejected := r.open(raw, types)
	if rejected != nil { // a nil *RejectedError is no nil error
		return nil, rejected
	}
	return m, nil
}

// OpenVouched is Open for an envelope whose very bytes a signature that the
// caller has verified vouches for, and that was opened by [Receiver.Open] once:
// its own signature is not verified again, nor is the form of what is in it,
// which the caller's reader checks. The Message has no Digest.
func (r *Receiver) OpenVouched(raw []byte, types ...string) (*Message, error) {
	m, rejected := r.openVouched(raw, types)
	if rejected != nil {
		return nil, rejected
	}
	return m, nil
}

func (r *Receiver) openVouched(raw []byte, types []string) (*Message, *RejectedError) {
	e, h, cert, rejected := r.admit(raw, types, parseOuter)
	if rejected != nil {
		return nil, rejected
	}
	body := bytes.Clone(e.Body)
	if h.EncAlg == EncSM2SM4 {
		header, err := canonical(e.Header)
		if err == nil {
			body, err = r.unseal(header, body)
		}
		if err != nil {
			return nil, reject(reason.MessageSealed, err)
		}
	}
	return &Message{Header: *h, Body: body, Signer: cert}, nil
}

func (r *Receiver) open(raw []byte, types []string) (*Message, *RejectedError) {
	e, h, cert, rejected := r.admit(raw, types, parse) // 1 to 3
	if rejected != nil {
		return nil, rejected
	}

	// 4 The signature, over what will be read.
	header, err := canonical(e.Header)
	if err != nil {
		return nil, reject(reason.MessageMalformed, err)
	}
	body, err := canonical(e.Body)
	if err != nil {
		return nil, reject(reason.MessageMalformed, err)
	}
	sig, err := b64.DecodeString(e.Signature)
	if err != nil || !sm2.VerifyASN1WithSM2(cert.PublicKey.(*ecdsa.PublicKey), nil, signedBytes(header, body), sig) {
		return nil, reject(reason.MessageSignature, fmt.Errorf("signature of %s by key %s does not verify", clip(h.Sender), h.KeyID))
	}

	// 5 The seal.
	if h.EncAlg == EncSM2SM4 {
		if body, err = r.unseal(header, body); err != nil {
			return nil, reject(reason.MessageSealed, err)
		}
	}
	if err := checkObject(body); err != nil {
		return nil, reject(reason.MessageMalformed, fmt.Errorf("body: %w", err))
	}
	return &Message{Header: *h, Body: body, Signer: cert, Digest: digest(h, body)}, nil
}

// admit is what comes before any signature.
func (r *Receiver) admit(raw []byte, types []string, parse func([]byte) (*outer, *Header, *RejectedError)) (*outer, *Header, *smx509.Certificate, *RejectedError) {
	// 1 Size, before a byte is parsed; then form.
	if len(raw) > r.cfg.MaxBytes {
		return nil, nil, nil, reject(reason.MessageTooLarge, fmt.Errorf("%d bytes, at most %d", len(raw), r.cfg.MaxBytes))
	}
	e, h, rejected := parse(raw)
	if rejected != nil {
		return nil, nil, nil, rejected
	}

	// 2 What the header says against what the configuration accepts.
	now := r.cfg.Now()
	if rejected := r.accepts(h, types, now); rejected != nil {
		return nil, nil, nil, rejected
	}

	// 3 Who signed.
	cert, rejected := r.signer(h, now)
	return e, h, cert, rejected
}

// accepts compares what the header says with what the configuration accepts.
func (r *Receiver) accepts(h *Header, types []string, now time.Time) *RejectedError {
	switch {
	case h.SigAlg != SigSM2SM3:
		return reject(reason.MessageAlgorithm, fmt.Errorf("header sigAlg: %q", clip(h.SigAlg)))
	case h.EncAlg != EncNone && h.EncAlg != EncSM2SM4:
		return reject(reason.MessageAlgorithm, fmt.Errorf("header encAlg: %q", clip(h.EncAlg)))
	case h.EncAlg == EncNone && r.cfg.RequireSealed:
		return reject(reason.MessageAlgorithm, errors.New("the body is plain, and must be sealed here"))
	case h.EncAlg == EncSM2SM4 && r.cfg.Decrypter == nil:
		return reject(reason.MessageAlgorithm, errors.New("the body is sealed, and must be plain here"))
	case h.Receiver != r.cfg.ID:
		return reject(reason.MessageReceiver, fmt.Errorf("it is for %s, not for %s", clip(h.Receiver), r.cfg.ID))
	case len(types) > 0 && !slices.Contains(types, h.MsgType):
		return reject(reason.MessageInvalid, fmt.Errorf("message type %s where %v is accepted", h.MsgType, types))
	}
	sent, _ := h.time() // checked by parse
	if off := now.Sub(sent); r.cfg.Skew > 0 && off.Abs() > r.cfg.Skew {
		return reject(reason.MessageSkew, fmt.Errorf("sent %s from our time, at most %s", off.Round(time.Second), r.cfg.Skew))
	}
	return nil
}

// parse takes an envelope apart and checks the form of its header.
func parse(raw []byte) (*outer, *Header, *RejectedError) {
	if err := strict(raw); err != nil {
		return nil, nil, reject(reason.MessageMalformed, err)
	}
	return parseOuter(raw)
}

func parseOuter(raw []byte) (*outer, *Header, *RejectedError) {
	var e outer
	if err := json.Unmarshal(raw, &e, json.RejectUnknownMembers(true)); err != nil {
		return nil, nil, reject(reason.MessageMalformed, err)
	}
	if e.Header.Kind() != '{' || e.Body.Kind() != '{' || e.Signature == "" {
		return nil, nil, reject(reason.MessageMalformed, errors.New("header, body or signature is missing or no JSON object"))
	}
	var h Header
	if err := json.Unmarshal(e.Header, &h, json.RejectUnknownMembers(true)); err != nil {
		return nil, nil, reject(reason.MessageMalformed, fmt.Errorf("header: %w", err))
	}
	if err := h.check(); err != nil {
		return nil, nil, reject(reason.MessageInvalid, err)
	}
	for name, v := range h.Ext {
		h.Ext[name] = bytes.Clone(v) // nothing of raw is kept
	}
	return &e, &h, nil
}

// signer finds the certificate of the header's key and checks that it may sign
// for the sender now.
func (r *Receiver) signer(h *Header, now time.Time) (*smx509.Certificate, *RejectedError) {
	var cert *smx509.Certificate
	var err error
	if r.cfg.Resolve != nil {
		cert, err = r.cfg.Resolve(h)
	} else {
		cert, err = r.cfg.Signers(h.KeyID, h.Sender)
	}
	if rejected := (*RejectedError)(nil); errors.As(err, &rejected) {
		return nil, rejected
	}
	switch {
	case err != nil:
		return nil, reject(reason.MessageSignature, fmt.Errorf("find key %s of %s: %w", h.KeyID, clip(h.Sender), err))
	case cert == nil:
		return nil, reject(reason.MessageSignature, fmt.Errorf("find key %s of %s: not known", h.KeyID, clip(h.Sender)))
	case KeyID(cert) != h.KeyID:
		return nil, reject(reason.MessageSignature, fmt.Errorf("find key %s of %s: the certificate at hand is %s", h.KeyID, clip(h.Sender), KeyID(cert)))
	}
	if err := checkCert(cert, h.Sender, smx509.KeyUsageDigitalSignature, now); err != nil {
		why := reason.MessageSignature
		if id := (*identityError)(nil); errors.As(err, &id) {
			why = reason.MessageSender
		}
		return nil, reject(why, err)
	}
	return cert, nil
}

// unseal opens a sealed body whose signature has been verified.
func (r *Receiver) unseal(header, body []byte) (jsontext.Value, error) {
	var s sealedBody
	if err := json.Unmarshal(body, &s, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("read sealed body: %w", err)
	}
	wrapped, err1 := b64.DecodeString(s.Key)
	nonce, err2 := b64.DecodeString(s.Nonce)
	sealed, err3 := b64.DecodeString(s.Ciphertext)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("read sealed body: %w", err)
	}
	if len(nonce) != sm4gcm.NonceSize {
		return nil, fmt.Errorf("read sealed body: the nonce has %d bytes", len(nonce))
	}
	key, err := r.cfg.Decrypter.Decrypt(rand.Reader, wrapped, sm2.ASN1DecrypterOpts)
	if err != nil {
		return nil, fmt.Errorf("unwrap key: %w", err)
	}
	defer clear(key)
	aead, err := sm4gcm.New(key)
	if err != nil {
		return nil, fmt.Errorf("unwrap key: %w", err)
	}
	plain, err := aead.Open(nil, nonce, sealed, header)
	if err != nil {
		return nil, fmt.Errorf("open body: %w", err)
	}
	return plain, nil
}

// digest is the same for a message that is sent again under a new header.
func digest(h *Header, body []byte) [32]byte {
	ext := []byte("{}")
	own := h.Ext
	if _, ok := own[placeExt]; ok {
		own = maps.Clone(own)
		delete(own, placeExt)
	}
	if len(own) > 0 {
		// Strict values, as they came out of strict JSON: neither can fail.
		text, err := json.Marshal(own, json.Deterministic(true))
		if err == nil {
			if c, err := canonical(text); err == nil {
				ext = c
			}
		}
	}
	d := sm3.New()
	for _, part := range [][]byte{[]byte(h.MsgType), ext, body} {
		_, _ = d.Write(part) // a hash does not fail
		_, _ = d.Write([]byte{'\n'})
	}
	return [32]byte(d.Sum(nil))
}

// placeExt says where a message stands in its sender's outbox. That may be told
// otherwise when it is sent again, and is no part of what it says.
const placeExt = "outbox"

// Peek returns the header of raw WITHOUT any check of its signature: for
// routing and logs, never for a decision. Every error is a [*RejectedError].
func Peek(raw []byte, maxBytes int) (*Header, error) {
	if len(raw) > maxBytes {
		return nil, reject(reason.MessageTooLarge, fmt.Errorf("%d bytes, at most %d", len(raw), maxBytes))
	}
	_, h, rejected := parse(raw)
	if rejected != nil {
		return nil, rejected
	}
	return h, nil
}
