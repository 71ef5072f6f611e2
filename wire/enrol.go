package wire

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"
)

// enrolPrefix starts every enrolment code; its digit is the version.
const enrolPrefix = "yumen1."

// The kinds of parties that a code enrols.
const (
	EnrolAgent   = "agent"
	EnrolGateway = "gateway"
	EnrolApp     = "app"
)

// EnrolCode is what an operator hands over, once, to enrol a party. It is a
// secret while it lives.
type EnrolCode struct {
	URL         string `json:"u"`           // https base of the control center
	Fingerprint string `json:"f"`           // SHA-256 of the TLS root's DER, lower-case hexadecimal
	TLCPRoot    string `json:"g,omitempty"` // SM3 of the TLCP root's DER, the same form; empty where TLCP is not spoken
	Secret      string `json:"s"`
	Kind        string `json:"k"` // EnrolAgent, EnrolGateway or EnrolApp
}

// Text returns the code as it is typed or pasted. It is not named String, so
// that no log prints it by chance.
func (c EnrolCode) Text() (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode enrolment code: %w", err)
	}
	return enrolPrefix + base64.RawURLEncoding.EncodeToString(b), nil
}

// String hides the secret.
func (c EnrolCode) String() string { return "enrolment code for " + c.Kind + " at " + c.URL }

// ParseEnrolCode reads a code. Blanks and line breaks of a careless paste are
// let through; everything else must be right.
func ParseEnrolCode(text string) (EnrolCode, error) {
	text = strings.Join(strings.Fields(text), "")
	body, ok := strings.CutPrefix(text, enrolPrefix)
	if !ok {
		return EnrolCode{}, fmt.Errorf("read enrolment code: it does not start with %q (paste the whole code)", enrolPrefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return EnrolCode{}, errors.New("read enrolment code: it is cut short or altered (paste the whole code)")
	}
	var c EnrolCode
	if err := json.Unmarshal(raw, &c); err != nil {
		return EnrolCode{}, errors.New("read enrolment code: it is cut short or altered (paste the whole code)")
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return EnrolCode{}, errors.New("read enrolment code: its address is no https address (ask for a new code)")
	}
	if f, err := hex.DecodeString(c.Fingerprint); err != nil || len(f) != 32 {
		return EnrolCode{}, errors.New("read enrolment code: its fingerprint is no SHA-256 (ask for a new code)")
	}
	if f, err := hex.DecodeString(c.TLCPRoot); err != nil || len(f) != 32 && len(f) != 0 {
		return EnrolCode{}, errors.New("read enrolment code: its TLCP fingerprint is no SM3 (ask for a new code)")
	}
	if c.Secret == "" {
		return EnrolCode{}, errors.New("read enrolment code: it has no secret (ask for a new code)")
	}
	switch c.Kind {
	case EnrolAgent, EnrolGateway, EnrolApp:
	default:
		return EnrolCode{}, fmt.Errorf("read enrolment code: kind %q is unknown (agent, gateway or app)", c.Kind)
	}
	return c, nil
}

// EnrolRequest is posted to /ztna/v1/enrol over a channel, TLCP or TLS, that
// only the server proves. The keys stay where they were made.
type EnrolRequest struct {
	Secret     string    `json:"secret"`
	CSR        EnrolCSRs `json:"csr"`
	DeviceName string    `json:"deviceName"`
	DeviceType string    `json:"deviceType"`
	SystemType string    `json:"systemType"`
}

// EnrolCSRs holds the DER of one certificate request for each key.
type EnrolCSRs struct {
	TLS      []byte `json:"tls"`
	TLCPSign []byte `json:"tlcpSign"`
	TLCPEnc  []byte `json:"tlcpEnc"`
	Sign     []byte `json:"sign"`
	Enc      []byte `json:"enc"`
}

// EnrolReply gives the party its identifiers, its certificates and whom to
// trust. An application has no DeviceID.
type EnrolReply struct {
	ID        string       `json:"id"`
	DeviceID  string       `json:"deviceId,omitempty"`
	ControlID string       `json:"controlId"`
	Certs     EnrolPEMs    `json:"certs"`
	Roots     EnrolRoots   `json:"roots"`
	Control   EnrolControl `json:"control"`
	Home      *HomePermits `json:"home,omitempty"` // an agent's, where gateways have a guard
}

// EnrolPEMs holds a PEM chain, leaf first, for each key.
type EnrolPEMs struct {
	TLS      string `json:"tls"`
	TLCPSign string `json:"tlcpSign"`
	TLCPEnc  string `json:"tlcpEnc"`
	Sign     string `json:"sign"`
	Enc      string `json:"enc"`
}

// EnrolRoots holds the PEM of the four roots.
type EnrolRoots struct {
	TLS     string `json:"tls"`
	TLCP    string `json:"tlcp"`
	Message string `json:"message"`
	List    string `json:"list"`
}

// EnrolControl says where the control center is, and its message certificates
// in PEM.
type EnrolControl struct {
	URL  string `json:"url"`
	Sign string `json:"sign"`
	Enc  string `json:"enc"`
}
