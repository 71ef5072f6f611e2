// Package certid reads and writes the identities of a certificate: URI subject
// alternative names of the form
//
//	urn:yumen:gateway:GW000000001
//	urn:yumen:device:DEV00000001
//
// The kinds are gateway, device, agent, control, app and listsigner. A
// certificate may carry several kinds (a gateway's carries gateway and device)
// but at most one identifier of each. Only the leaf that proved its key in a
// handshake, or whose key made a signature, speaks for anybody: never another
// certificate of the chain. [Of] therefore refuses certificates of authorities.
//
// Other URIs, and kinds that this version does not know, give no identity and
// are passed over; a known kind with a malformed or a second identifier is an
// error, because a certificate that can be read in two ways is none.
package certid

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/emmansun/gmsm/smx509"
)

// MaxLength is the most characters an identifier may have (CSA GCR 002 tables:
// 字符串 11 位).
const MaxLength = 11

// ErrNone is returned for a certificate that carries no identity of ours.
var ErrNone = errors.New("read certificate identity: no urn:yumen URI among the subject alternative names")

// Identity is what a certificate says of its holder. An empty field is an
// identity that the certificate does not give.
type Identity struct {
	Gateway    string // gatewayId
	Device     string // deviceId
	Agent      string // agentId
	Control    string // identifier of a control center
	App        string // appId
	ListSigner string // identifier of the control center whose lists it signs
}

const prefix = "yumen:" // after the scheme "urn:"

// kinds returns the kinds in their fixed order with a pointer to each field.
func (id *Identity) kinds() [6]struct {
	name  string
	value *string
} {
	return [6]struct {
		name  string
		value *string
	}{
		{"gateway", &id.Gateway},
		{"device", &id.Device},
		{"agent", &id.Agent},
		{"control", &id.Control},
		{"app", &id.App},
		{"listsigner", &id.ListSigner},
	}
}

// Of returns the identity that the leaf certificate cert carries. It returns
// [ErrNone] when there is none, and an error for an authority's certificate or
// an ambiguous or malformed identity. It does not verify the certificate.
func Of(cert *x509.Certificate) (Identity, error) {
	if cert == nil {
		return Identity{}, ErrNone
	}
	return of(cert.IsCA, cert.URIs)
}

// OfSM is [Of] for a certificate that was parsed by smx509, of any key type.
func OfSM(cert *smx509.Certificate) (Identity, error) {
	if cert == nil {
		return Identity{}, ErrNone
	}
	return of(cert.IsCA, cert.URIs)
}

// OfPair returns the identity of a party by its two TLCP certificates, which
// must both carry it: a pair put together from two parties speaks for nobody.
// enc may be nil, for a client that showed its signing certificate alone.
func OfPair(sign, enc *smx509.Certificate) (Identity, error) {
	id, err := OfSM(sign)
	if err != nil || enc == nil {
		return id, err
	}
	switch other, err := OfSM(enc); {
	case err != nil:
		return Identity{}, fmt.Errorf("%w (encryption certificate)", err)
	case other != id:
		return Identity{}, fmt.Errorf("read certificate identity: the signing certificate is of %q, the encryption certificate of %q", id.Name(), other.Name())
	}
	return id, nil
}

func of(isCA bool, uris []*url.URL) (Identity, error) {
	if isCA {
		return Identity{}, errors.New("read certificate identity: the certificate is an authority's, not a leaf")
	}
	id, err := FromURIs(uris)
	if err == nil && id == (Identity{}) {
		err = ErrNone
	}
	return id, err
}

// FromURIs reads the identity from a list of URIs. Without any URI of ours the
// result is the zero Identity.
func FromURIs(uris []*url.URL) (Identity, error) {
	var id Identity
	for _, u := range uris {
		if u == nil || u.Scheme != "urn" || !strings.HasPrefix(u.Opaque, prefix) {
			continue
		}
		kind, value, _ := strings.Cut(u.Opaque[len(prefix):], ":")
		for _, k := range id.kinds() {
			if k.name != kind {
				continue
			}
			if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || !ValidID(value) {
				return Identity{}, fmt.Errorf("read certificate identity: malformed URI %q", u)
			}
			if *k.value != "" {
				return Identity{}, fmt.Errorf("read certificate identity: two %s URIs, %q and %q", kind, *k.value, value)
			}
			*k.value = value
		}
	}
	return id, nil
}

// ValidID reports whether s may stand as an identifier in a certificate: 1 to
// 11 letters, digits, hyphens or underscores.
func ValidID(s string) bool {
	if len(s) == 0 || len(s) > MaxLength {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// Validate returns an error for an identity that is empty or has an identifier
// that a certificate cannot carry.
func (id Identity) Validate() error {
	if id == (Identity{}) {
		return errors.New("check identity: it is empty")
	}
	var faults []error
	for _, k := range id.kinds() {
		if *k.value != "" && !ValidID(*k.value) {
			faults = append(faults, fmt.Errorf("check identity: %s %q is not 1 to %d letters, digits, hyphens or underscores", k.name, *k.value, MaxLength))
		}
	}
	return errors.Join(faults...)
}

// URIs returns the URIs that carry id, in a fixed order.
func (id Identity) URIs() []*url.URL {
	var out []*url.URL
	for _, k := range id.kinds() {
		if *k.value != "" {
			out = append(out, &url.URL{Scheme: "urn", Opaque: prefix + k.name + ":" + *k.value})
		}
	}
	return out
}

// Speaks reports whether a message may name sender as its sender when it is
// signed by a certificate of id: the sender is its gateway, agent, control
// center, application or list signer. A device as such sends no messages.
func (id Identity) Speaks(sender string) bool {
	if sender == "" {
		return false
	}
	return sender == id.Gateway || sender == id.Agent || sender == id.Control || sender == id.App || sender == id.ListSigner
}

// Name returns the identifier that names the holder best, for subject names
// and logs: gateway, agent, control center, application, list signer, device.
func (id Identity) Name() string {
	for _, s := range []string{id.Gateway, id.Agent, id.Control, id.App, id.ListSigner} {
		if s != "" {
			return s
		}
	}
	return id.Device
}
