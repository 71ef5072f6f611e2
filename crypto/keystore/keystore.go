// Package keystore holds the key material of one party in a folder: encrypted
// private keys NAME.key (PKCS#8 PEM, mode 0600), certificate chains NAME.crt
// and pinned roots NAME-root.crt. The folder has mode 0700. Private keys leave
// it only as a [crypto.Signer] or a [crypto.Decrypter], so that a device can
// take the folder's place.
//
// A gateway, an agent or an application has five keys: tls (ECDSA P-256, TLS
// client and server), tlcp-sign and tlcp-enc (SM2, the pair of TLCP, client and
// server), sign (SM2, signatures of messages) and enc (SM2, messages sealed to
// it); a control center also list (SM2, signatures of lists).
//
// P-256 keys are encrypted by PBES2 with PBKDF2-HMAC-SHA256 and AES-256-CBC, SM2
// keys by PBES2 with PBKDF2-HMAC-SM3 and SM4-CBC. A file that group or others
// can read, that is a symbolic link or belongs to another user, is refused
// with the remedy in the error. Files are written beside their place, synced
// and renamed, so that a crash leaves the old file or the new.
package keystore

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
)

// Names of a party's keys, and of the certificates of its control center.
const (
	TLS         = "tls"          // ECDSA P-256: TLS server and client
	TLCPSign    = "tlcp-sign"    // SM2: proves who it is in a TLCP handshake
	TLCPEnc     = "tlcp-enc"     // SM2: TLCP keys are encrypted to it, or agreed with it
	Sign        = "sign"         // SM2: message signatures
	Enc         = "enc"          // SM2: messages sealed to us
	List        = "list"         // SM2: list signer, of a control center
	State       = "outbox"       // ECDSA P-256, without a certificate: what is sealed on this disk hangs on it
	ControlSign = "control-sign" // certificates of the control center, no key
	ControlEnc  = "control-enc"
)

// Names of the pinned roots: the files are tls-root.crt and so on.
const (
	TLSRoot     = "tls"
	TLCPRoot    = "tlcp"
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

const (
	keyExt     = ".key"
	certExt    = ".crt"
	rootSuffix = "-root"

	maxIterations = 100_000_000
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

// Validate returns every fault of c, joined.
func (c *Config) Validate() error {
	var faults []error
	if c.Dir == "" {
		faults = append(faults, errors.New("open key store: no folder is named"))
	}
	if len(c.Passphrase) == 0 {
		faults = append(faults, errors.New("open key store: the passphrase is empty"))
	}
	if c.Iterations < 0 || c.Iterations > maxIterations {
		faults = append(faults, fmt.Errorf("open key store: %d iterations (0 to %d are possible)", c.Iterations, maxIterations))
	}
	return errors.Join(faults...)
}

// Store is a folder of keys. It may be used by several goroutines at once. A
// key is decrypted once and then kept: another process that changes the folder
// is seen by the next Store.
type Store struct {
	cfg Config

	mu   sync.Mutex
	keys map[string]crypto.Signer // decrypted keys by name, guarded by mu
}

// Open returns the store in dir with the default settings. See [New].
func Open(dir string, passphrase []byte) (*Store, error) {
	return New(Config{Dir: dir, Passphrase: passphrase})
}

// New returns the store that cfg describes. A folder that does not exist yet is
// made by the first write; one that group or others may enter is refused.
func New(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := checkDir(cfg.Dir); err != nil {
		return nil, err
	}
	cfg.Passphrase = bytes.Clone(cfg.Passphrase)
	if cfg.Iterations == 0 {
		cfg.Iterations = DefaultIterations
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	return &Store{cfg: cfg, keys: make(map[string]crypto.Signer)}, nil
}

// Dir returns the store's folder.
func (s *Store) Dir() string { return s.cfg.Dir }

// checkName refuses what is no simple file name, or would name a pinned root.
func checkName(name string) error {
	ok := len(name) > 0 && len(name) <= 64 && name[0] != '.' && !strings.HasSuffix(name, rootSuffix)
	for i := range len(name) {
		c := name[i]
		ok = ok && ('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.')
	}
	if !ok {
		return fmt.Errorf("find key %q: a name has 1 to 64 lower-case letters, digits, hyphens or dots, and does not end in %s", name, rootSuffix)
	}
	return nil
}

func (s *Store) file(name, ext string) string { return filepath.Join(s.cfg.Dir, name+ext) }
