// Package keystore holds the key material of one party in a folder: encrypted
// private keys NAME.key (PKCS#8 PEM, mode 0600), certificate chains NAME.crt
// and pinned roots NAME-root.crt. The folder has mode 0700. Private keys leave
// it only as a [crypto.Signer] or a [crypto.Decrypter], so that a device can
// take the folder's place.
//
// A gateway, an agent or an application has three keys: tls (ECDSA P-256, TLS
// client and server), sign (SM2, signatures of messages) and enc (SM2, messages
// sealed to it); a control center also list (SM2, signatures of lists).
//
// P-256 keys are encrypted by PBES2 with PBKDF2-HMAC-SHA256 and AES-256-CBC, SM2
// keys by PBES2 with PBKDF2-HMAC-SM3 and SM4-CBC. A file that group or others
// can read, that is a symbolic link or belongs to another user, is refused
// with the remedy in the error. Files are written beside their place, synced
// and renamed, so that a crash leaves the old file or the new.
package keystore

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
)

// Names of a party's keys, and of the certificates of its control center.
const (
	TLS         = "tls"          // ECDSA P-256: TLS server and client
	Sign        = "sign"         // SM2: message signatures
	Enc         = "enc"          // SM2: messages sealed to us
	List        = "list"         // SM2: list signer, of a control center
	ControlSign = "control-sign" // certificates of the control center, no key
	ControlEnc  = "control-enc"
)

// Names of the pinned roots: the files are tls-root.crt and so on.
const (
	TLSRoot     = "tls"
	MessageRoot = "message"
	ListRoot    = "list"
)

// Kind is the type of a private key. The zero Kind is invalid.
type Kind uint8

// The kinds of keys.
const (
	P256 Kind = iota + 1 // ECDSA on NIST P-256
	SM2                  // GB/T 32918
)

// DefaultIterations is the count of PBKDF2 iterations that protects a key when
// [Config] names none.
const DefaultIterations = 600_000

// Config is what a [Store] needs. The zero value of an optional field selects
// its default.
type Config struct {
	Dir        string    // the folder; required; made with mode 0700 by the first write
	Passphrase []byte    // protects the private keys; required; copied
	Iterations int       // PBKDF2 iterations of keys that are written; default DefaultIterations
	Rand       io.Reader // default crypto/rand; tests set their own
}

// Store is a folder of keys. It may be used by several goroutines at once.
type Store struct{ cfg Config }

// Open returns the store in dir with the default settings. See [New].
func Open(dir string, passphrase []byte) (*Store, error) {
	return New(Config{Dir: dir, Passphrase: passphrase})
}

// New returns the store that cfg describes. A folder that does not exist yet is
// made by the first write; one that group or others may enter is refused.
func New(cfg Config) (*Store, error) { return &Store{cfg: cfg}, nil }

// Dir returns the store's folder.
func (s *Store) Dir() string { return s.cfg.Dir }

// Generate makes the private key name and writes it. It fails when there is
// one already: a key is replaced by [Store.Promote] of another.
func (s *Store) Generate(name string, kind Kind) error { return errors.ErrUnsupported }

// Has reports whether there is a private key of this name.
func (s *Store) Has(name string) bool { return false }

// Signer returns the private key name for signatures: an SM2 key signs with
// SM2-with-SM3 when it is given sm2.NewSM2SignerOption(true, nil).
func (s *Store) Signer(name string) (crypto.Signer, error) { return nil, errors.ErrUnsupported }

// Decrypter returns the SM2 private key name for messages sealed to it.
func (s *Store) Decrypter(name string) (crypto.Decrypter, error) { return nil, errors.ErrUnsupported }

// Chain returns the certificates in NAME.crt, leaf first; never empty without
// an error.
func (s *Store) Chain(name string) ([]*smx509.Certificate, error) { return nil, errors.ErrUnsupported }

// PutChain writes NAME.crt from PEM certificates, leaf first. When the store
// has a private key of this name the leaf must certify it.
func (s *Store) PutChain(name string, pem []byte) error { return errors.ErrUnsupported }

// CSR returns a certificate request (DER) for the key name, with id as URI and
// hosts (names and IP addresses) as further subject alternative names.
func (s *Store) CSR(name string, id certid.Identity, hosts []string) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// TLSCertificate returns key and chain of a P-256 key for crypto/tls.
func (s *Store) TLSCertificate(name string) (tls.Certificate, error) {
	return tls.Certificate{}, errors.ErrUnsupported
}

// Root returns the pinned root of this name ([MessageRoot], [ListRoot],
// [TLSRoot]) for certificates of any key type.
func (s *Store) Root(name string) (*smx509.CertPool, error) { return nil, errors.ErrUnsupported }

// TLSRoots returns the pinned TLS root for crypto/tls.
func (s *Store) TLSRoots() (*x509.CertPool, error) { return nil, errors.ErrUnsupported }

// PutRoot writes the pinned root name from PEM certificates of authorities.
func (s *Store) PutRoot(name string, pem []byte) error { return errors.ErrUnsupported }

// ReadPassphrase reads a passphrase file: the first line, without its line end.
// The file must be a regular file that only its owner can read.
func ReadPassphrase(file string) ([]byte, error) { return nil, errors.ErrUnsupported }
