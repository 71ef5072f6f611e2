package login

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// Sealer seals what a browser carries for us with SM4-GCM. What is sealed for
// one purpose and host opens for no other. The gateways of a site share its
// keys, so any of them accepts what another sealed. It is safe for concurrent
// use.
type Sealer struct{ keys []cipher.AEAD } // the first seals, all open

// errSeal is the one answer to whatever does not open.
var errSeal = errors.New("login: sealed value does not open")

const (
	sealVersion = 1
	nonceBytes  = 12
	keyBytes    = 16
)

// NewSealer returns a sealer of SM4 keys of 16 bytes: the first seals, all
// open, so that keys can rotate.
func NewSealer(keys ...[]byte) (*Sealer, error) {
	if len(keys) == 0 {
		return nil, errors.New("make cookie sealer: no key")
	}
	s := &Sealer{}
	for _, k := range keys {
		a, err := sm4gcm.New(k)
		if err != nil {
			return nil, fmt.Errorf("make cookie sealer: %w", err)
		}
		s.keys = append(s.keys, a)
	}
	return s, nil
}

// LoadSealer reads the keys of a site from file: one key of 32 hexadecimal
// digits a line, the newest first. A missing file is made with a random key and
// mode 0600; one that others may read is refused.
func LoadSealer(file string) (*Sealer, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		key := make([]byte, keyBytes)
		rand.Read(key)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, fmt.Errorf("make cookie key: %w", err)
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("make cookie key: %w", err)
		}
		_, err = fmt.Fprintln(f, hex.EncodeToString(key))
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return nil, fmt.Errorf("make cookie key: %w", err)
		}
		return NewSealer(key)
	}
	if err != nil {
		return nil, fmt.Errorf("read cookie key: %w", err)
	}
	if fi, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("read cookie key: %w", err)
	} else if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read cookie key %s: mode %v lets others read it (chmod 600 it)", file, fi.Mode().Perm())
	}
	var keys [][]byte
	for i, line := range strings.Fields(string(raw)) {
		k, err := hex.DecodeString(line)
		if err != nil || len(k) != keyBytes {
			return nil, fmt.Errorf("read cookie key %s: key %d is not 32 hexadecimal digits", file, i+1)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("read cookie key %s: it is empty (remove it: a new one is made, and everybody signs in again)", file)
	}
	return NewSealer(keys...)
}

// purpose separates what is sealed; its text is part of the additional data.
type purpose string

const (
	forSession purpose = "session" // a cookie of an application's host
	forSite    purpose = "site"    // the cookie of the login host
	forState   purpose = "state"   // the cookie of a login in progress
	forCode    purpose = "code"    // a hand-over code to an application's host
	forLeave   purpose = "leave"   // a sign-out on its way to the login host
)

func additional(p purpose, host string) []byte {
	return []byte("yumen login v1\x00" + string(p) + "\x00" + host)
}

// seal returns b sealed for p at host as base64url.
func (s *Sealer) seal(p purpose, host string, b []byte) string {
	out := make([]byte, 1+nonceBytes, 1+nonceBytes+len(b)+16)
	out[0] = sealVersion
	rand.Read(out[1:])
	out = s.keys[0].Seal(out, out[1:1+nonceBytes], b, additional(p, host))
	return base64.RawURLEncoding.EncodeToString(out)
}

// open returns what seal was given for the same p and host.
func (s *Sealer) open(p purpose, host, text string) ([]byte, error) {
	const most = 6 << 10 // bytes of text; cookies and codes are far shorter
	if len(text) > most {
		return nil, errSeal
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) < 1+nonceBytes || raw[0] != sealVersion {
		return nil, errSeal
	}
	nonce, box := raw[1:1+nonceBytes], raw[1+nonceBytes:]
	for _, k := range s.keys {
		if b, err := k.Open(nil, nonce, box, additional(p, host)); err == nil {
			return b, nil
		}
	}
	return nil, errSeal
}

// session is what a session cookie says: who signed in, when, how strongly, and
// until when that counts.
type session struct {
	id      string // 12 characters
	user    string // userId, at most 11 characters
	auth    time.Time
	expiry  time.Time
	level   uint8
	factors policy.Factors
}

const (
	sidBytes  = 9
	sidLength = 12
)

func newSessionID() string {
	var b [sidBytes]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (v *session) marshal() []byte {
	b := make([]byte, 0, 48)
	b = append(b, v.id...)
	b = binary.BigEndian.AppendUint32(b, uint32(v.auth.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(v.expiry.Unix()))
	b = append(b, v.level)
	b = binary.BigEndian.AppendUint16(b, uint16(v.factors))
	return append(b, v.user...)
}

func (v *session) unmarshal(b []byte) error {
	const head = sidLength + 4 + 4 + 1 + 2
	if len(b) <= head || len(b) > head+11 {
		return errSeal
	}
	v.id = string(b[:sidLength])
	v.auth = time.Unix(int64(binary.BigEndian.Uint32(b[sidLength:])), 0)
	v.expiry = time.Unix(int64(binary.BigEndian.Uint32(b[sidLength+4:])), 0)
	v.level = b[sidLength+8]
	v.factors = policy.Factors(binary.BigEndian.Uint16(b[sidLength+9:]))
	v.user = string(b[head:])
	return nil
}
