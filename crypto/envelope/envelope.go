// Package envelope is the signed, and optionally sealed, wrapping of every
// message of CSA GCR 002 (clauses 6.1, 7.1 and 8.1):
//
//	{"header": {...}, "body": {...}, "signature": "..."}
//
// # The signed bytes
//
// The signature is SM2-with-SM3 (GB/T 32918, identifier 1234567812345678, DER
// form, base64) over
//
//	"yumen-envelope-v1\n" || JCS({"header": header, "body": body as sent})
//
// where JCS is the canonical form of RFC 8785; [SignedBytes] makes them. Two
// texts of one envelope, with other white space say, have one signature. What
// [Receiver.Open] returns as a plain body is the canonical form, so what is
// read is what was signed. testdata holds vectors.
//
// # Sealing
//
// A sealed body takes the place of the plain one, before it is signed:
//
//	{"key": ..., "nonce": ..., "ciphertext": ...}
//
// key is a fresh 16-byte SM4 key under SM2 public key encryption (C1C3C2 in
// ASN.1, GM/T 0009) to the receiver's encryption certificate; ciphertext is
// SM4-GCM of the plain body with the 12-byte nonce and JCS(header) as
// additional data. All three are base64.
//
// # What is accepted
//
// A [Receiver] decides by its own [Config] alone; the header only says which
// of the accepted forms came. Every refusal is a [*RejectedError] with one
// text, so that the answer to a stranger tells nothing; its Reason is for logs
// and metrics. [Once] gives a repeated message its first result.
package envelope

import (
	"encoding/hex"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Values of the header's fields.
const (
	Version   = "1"
	SigSM2SM3 = "SM2-SM3"     // SM2-with-SM3, the only signature algorithm
	EncNone   = "none"        // the body is plain JSON
	EncSM2SM4 = "SM2-SM4-GCM" // the body is sealed
)

// Limits of an envelope.
const (
	DefaultMax = 1 << 20 // bytes, unless the receiver's Config says otherwise
	MaxDepth   = 32      // nesting of JSON arrays and objects
	maxInteger = 1 << 53 // integers are below it: larger ones are not exact everywhere
	maxExt     = 32      // extension fields
)

// Header says what a message is. All of it is signed, and is the additional
// data of a sealed body.
type Header struct {
	Version   string                    `json:"version"`
	MsgType   string                    `json:"msgType"`       // "T1" to "T22", or "X." and a name of lower-case letters
	MsgID     string                    `json:"msgId"`         // unique for the sender; 1 to 64 printable ASCII characters
	Timestamp string                    `json:"timestamp"`     // time of sending, RFC 3339, UTC
	Sender    string                    `json:"sender"`        // identifier of the signing party
	Receiver  string                    `json:"receiver"`      // identifier of the party it is meant for
	Seq       string                    `json:"seq,omitempty"` // decimal, below 2^64; optional
	KeyID     string                    `json:"keyId"`         // of the signing certificate, see [KeyID]
	EncAlg    string                    `json:"encAlg"`        // EncNone or EncSM2SM4
	SigAlg    string                    `json:"sigAlg"`        // SigSM2SM3
	Ext       map[string]jsontext.Value `json:"ext,omitempty"` // extension fields, at most 32
}

// KeyID returns the identifier of a certificate's key: the first 16 bytes of
// the SM3 digest of its DER form, in lower-case hexadecimal.
func KeyID(cert *smx509.Certificate) string {
	if cert == nil {
		return ""
	}
	sum := sm3.Sum(cert.Raw)
	return hex.EncodeToString(sum[:16])
}

// RejectedError is the one answer to every message that is not accepted. Its
// text is the same for every cause; Reason is for metrics and logs, and
// [errors.Unwrap] gives the detail for logs.
type RejectedError struct {
	Reason reason.Reason
	cause  error
}

// Error returns the same text for every cause.
func (e *RejectedError) Error() string { return "open message: it is not accepted" }

// Unwrap returns the cause, for logs only. It may be nil.
func (e *RejectedError) Unwrap() error { return e.cause }

// Outward returns the reason that the sender may be told: one for every fault
// of the envelope. A conflict of message ids and an overload concern a sender
// whose signature was good, who may know.
func (e *RejectedError) Outward() reason.Reason {
	switch e.Reason {
	case reason.MessageConflict, reason.Overload, reason.InternalError:
		return e.Reason
	}
	return reason.MessageMalformed
}

func reject(r reason.Reason, cause error) *RejectedError { return &RejectedError{r, cause} }
