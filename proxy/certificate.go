package proxy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/internal/reason"
)

// ClientCertificate is an [Authenticator] for enrolled devices: the device is
// the one of the leaf that proved its key, the user that of its
// "urn:yumen:user:" URI. A certificate without a user must sign in.
type ClientCertificate struct {
	// Level is the level of a sign-in by certificate. Default 0: not known.
	Level int `yaml:"level"`
}

// Authenticate reads the connection's client certificate.
func (a ClientCertificate) Authenticate(x *Exchange) (policy.Facts, reason.Reason) {
	leaf := x.Conn.Peer
	if leaf == nil {
		return policy.Facts{}, reason.LoginRequired
	}
	id, err := certid.Of(leaf)
	if err != nil {
		return policy.Facts{}, reason.ClientCertBad
	}
	if id.Device == "" {
		return policy.Facts{}, reason.DeviceUnknown
	}
	user, ok := userOf(leaf)
	if !ok {
		return policy.Facts{}, reason.ClientCertBad
	}
	if user == "" {
		return policy.Facts{}, reason.LoginRequired
	}
	d := sha256.New()
	d.Write(leaf.Raw)
	d.Write([]byte(user))
	return policy.Facts{
		SessionID: "c" + hex.EncodeToString(d.Sum(nil)[:10]), UserID: user, DeviceID: id.Device, AgentID: id.Agent, Level: a.Level,
	}, reason.OK
}

// Challenge has nothing to offer: a certificate cannot be asked for any more.
func (ClientCertificate) Challenge(*Exchange, reason.Reason) bool { return false }

// userOf returns the userId of the leaf's user URI, "" when it has none. ok is
// false when the leaf can be read in two ways.
func userOf(leaf *x509.Certificate) (user string, ok bool) {
	for _, u := range leaf.URIs {
		if !strings.EqualFold(u.Scheme, "urn") {
			continue
		}
		v, is := strings.CutPrefix(u.Opaque, "yumen:user:")
		if !is {
			continue
		}
		if user != "" || v == "" || len(v) > certid.MaxLength || strings.Trim(v, idLetters) != "" {
			return "", false
		}
		user = v
	}
	return user, true
}

const idLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// FirstOf tries authenticators in turn until one finds a subject or refuses
// for another cause than the want of a sign-in. The first that can challenge
// does.
func FirstOf(as ...Authenticator) Authenticator { return firstOf(as) }

type firstOf []Authenticator

func (as firstOf) Authenticate(x *Exchange) (policy.Facts, reason.Reason) {
	for _, a := range as {
		if f, r := a.Authenticate(x); r != reason.LoginRequired {
			return f, r
		}
	}
	return policy.Facts{}, reason.LoginRequired
}

func (as firstOf) Challenge(x *Exchange, r reason.Reason) bool {
	for _, a := range as {
		if a.Challenge(x, r) {
			return true
		}
	}
	return false
}
