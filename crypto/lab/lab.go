// Package lab is a small certificate authority for laboratories, demonstrations
// and small sites, with three separate roots: TLS (P-256), messages (SM2) and
// lists (SM2). Sites that have their own authority do without it.
package lab

import (
	"errors"
	"io"
	"time"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/keystore"
)

// Config is what a [CA] needs. The zero value of an optional field selects its
// default.
type Config struct {
	Name       string           // organization in every subject; default "Yumen lab"
	RootTTL    time.Duration    // life of the roots; default 10 years
	LeafTTL    time.Duration    // life of leaves that name none; default 90 days
	Iterations int              // PBKDF2 iterations of keys that are written; default keystore.DefaultIterations
	Now        func() time.Time // default time.Now
	Rand       io.Reader        // default crypto/rand
}

// CA issues certificates under its three roots. It may be used by several
// goroutines at once.
type CA struct{ cfg Config }

// Options are what a certificate carries beside the identity.
type Options struct {
	Hosts []string      // DNS names and IP addresses, for TLS servers
	TTL   time.Duration // default Config.LeafTTL
}

// New makes an authority with fresh roots.
func New(cfg Config) (*CA, error) { return &CA{cfg: cfg}, nil }

// Load reads the authority that [CA.Save] wrote to dir.
func Load(dir string, passphrase []byte) (*CA, error) { return nil, errors.ErrUnsupported }

// LoadConfig is [Load] with settings of the caller's.
func LoadConfig(cfg Config, dir string, passphrase []byte) (*CA, error) {
	return nil, errors.ErrUnsupported
}

// Save writes roots and root keys to dir, the keys encrypted under passphrase.
func (c *CA) Save(dir string, passphrase []byte) error { return errors.ErrUnsupported }

// RootPEM returns the root that stands behind keystore.TLSRoot,
// keystore.MessageRoot or keystore.ListRoot, nil for another name.
func (c *CA) RootPEM(name string) []byte { return nil }

// IssueTLS answers a P-256 request with a TLS server and client certificate.
// Of the request only the public key is used, after its signature is checked;
// the names are the caller's. The result is a PEM chain without the root.
func (c *CA) IssueTLS(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// IssueSign answers an SM2 request with a certificate for message signatures.
func (c *CA) IssueSign(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// IssueEnc answers an SM2 request with a certificate for sealed messages.
func (c *CA) IssueEnc(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// IssueList answers an SM2 request with a list signer's certificate under the
// list root. Of id only ListSigner goes into it (Control, when that is empty).
func (c *CA) IssueList(csr []byte, id certid.Identity, o Options) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// Party makes the complete folder of a party in one call: keys tls, sign and
// enc (and list when id has Control or ListSigner), their certificates and the
// pinned roots. hosts go into the TLS certificate. The authority remembers the
// certificates of the control center that it made last and adds them as
// control-sign.crt and control-enc.crt to the folders of later parties.
func (c *CA) Party(dir string, passphrase []byte, id certid.Identity, hosts []string) (*keystore.Store, error) {
	return nil, errors.ErrUnsupported
}
