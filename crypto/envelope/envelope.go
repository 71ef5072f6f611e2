// Package envelope is the signed, and optionally sealed, wrapping of every
// message of CSA GCR 002 (clauses 6.1, 7.1 and 8.1):
//
//	{"header": {...}, "body": ..., "signature": "..."}
package envelope

import (
	"crypto"
	"errors"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Values of the header's fields.
const (
	Version    = "1"
	SigSM2SM3  = "SM2-SM3"     // SM2-with-SM3, the only signature algorithm
	EncNone    = "none"        // the body is plain JSON
	EncSM2SM4  = "SM2-SM4-GCM" // the body is sealed
	DefaultMax = 1 << 20       // bytes of an envelope
)

// Header says what a message is. All of it is signed, and is the additional
// data of a sealed body.
type Header struct {
	Version   string                    `json:"version"`
	MsgType   string                    `json:"msgType"`       // "T1" to "T22", or "X." and a name
	MsgID     string                    `json:"msgId"`         // unique for the sender; 1 to 64 printable ASCII characters
	Timestamp string                    `json:"timestamp"`     // time of sending, RFC 3339, UTC
	Sender    string                    `json:"sender"`        // identifier of the signing party
	Receiver  string                    `json:"receiver"`      // identifier of the party it is meant for
	Seq       string                    `json:"seq,omitempty"` // decimal, below 2^64; optional
	KeyID     string                    `json:"keyId"`         // of the signing certificate, see [KeyID]
	EncAlg    string                    `json:"encAlg"`        // EncNone or EncSM2SM4
	SigAlg    string                    `json:"sigAlg"`        // SigSM2SM3
	Ext       map[string]jsontext.Value `json:"ext,omitempty"` // extension fields
}

// KeyID returns the identifier of a certificate's key: the first 16 bytes of
// the SM3 digest of its DER form, in lower-case hexadecimal.
func KeyID(cert *smx509.Certificate) string { return "" }

// Sender makes envelopes. Its fields must not change while it is used; it may
// then be used by several goroutines at once.
type Sender struct {
	ID   string              // identifier that Cert certifies
	Key  crypto.Signer       // SM2
	Cert *smx509.Certificate // of Key
	Now  func() time.Time    // default time.Now
}

// Seal returns the envelope of body, a JSON value, under h. It fills Version,
// MsgID (unless set), Timestamp, Sender, KeyID, EncAlg and SigAlg. With a
// receiver's encryption certificate to, the body is sealed; with nil it is
// plain.
func (s *Sender) Seal(h Header, body []byte, to *smx509.Certificate) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

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
	// RequireSealed refuses plain bodies.
	RequireSealed bool
	// Skew is the most that the header's time may differ from ours; default
	// 60 s, negative: not checked (lists and files, which have a notAfter).
	Skew time.Duration
	// MaxBytes is the most bytes of an envelope; default DefaultMax.
	MaxBytes int
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Receiver opens envelopes. It may be used by several goroutines at once.
type Receiver struct{ cfg Config }

// NewReceiver returns a receiver for cfg.
func NewReceiver(cfg Config) (*Receiver, error) { return &Receiver{cfg: cfg}, nil }

// Message is an envelope that was opened: signed by Signer, addressed to us.
type Message struct {
	Header Header
	Body   []byte // the table's JSON
	Signer *smx509.Certificate
	Digest [32]byte // SM3 of msgType, extensions and body: equal for a repeat under a new header, see [Once]
}

// Open checks and opens the envelope raw. With types, the message must be of
// one of them. Every error is a [*RejectedError].
func (r *Receiver) Open(raw []byte, types ...string) (*Message, error) {
	return nil, errors.ErrUnsupported
}

// Peek returns the header of raw WITHOUT any check of its signature: for
// routing and logs, never for a decision.
func Peek(raw []byte, maxBytes int) (*Header, error) { return nil, errors.ErrUnsupported }

// RejectedError is the one answer to every message that is not accepted. Its
// text is the same for every cause; Reason is for metrics and logs, and
// [errors.Unwrap] gives the detail for logs.
type RejectedError struct {
	Reason reason.Reason
	cause  error
}

// Error returns the same text for every cause.
func (e *RejectedError) Error() string { return "open message: not accepted" }

// Unwrap returns the cause, for logs only. It may be nil.
func (e *RejectedError) Unwrap() error { return e.cause }

// ListSigner returns a Resolve function for lists: it takes the certificate
// chain from the header's extension "signer", verifies it under roots and
// demands the identity urn:yumen:listsigner of the sender.
func ListSigner(roots *smx509.CertPool, now func() time.Time) func(*Header) (*smx509.Certificate, error) {
	return nil
}

// SignerExt returns the value of the header's extension "signer": the DER
// certificates of chain, one after the other, in base64.
func SignerExt(chain []*smx509.Certificate) jsontext.Value { return nil }

// OnceConfig bounds a [Once]. The zero value of a field selects its default.
type OnceConfig struct {
	Window       time.Duration    // skew window of the link; entries live twice as long; default 60 s
	MaxEntries   int              // message ids in all; default 65536
	MaxPerSender int              // message ids of one sender; default a quarter of MaxEntries
	MaxBytes     int              // bytes of replies; default 16 MiB
	Now          func() time.Time // default time.Now
}

// Once gives each message of a sender its effect once (M22). It may be used by
// several goroutines at once.
type Once struct{}

// NewOnce returns an empty Once.
func NewOnce(cfg OnceConfig) *Once { return &Once{} }

// Do calls f for the first message msgID of sender and keeps its reply; a
// repeat with the same digest gets that reply and repeated = true, after
// waiting for a first call that is still running. Another digest under the
// same id is a RejectedError with MessageConflict.
func (o *Once) Do(sender, msgID string, digest [32]byte, f func() []byte) (reply []byte, repeated bool, err error) {
	return nil, false, errors.ErrUnsupported
}
