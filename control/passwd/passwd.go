// Package passwd hashes passwords and bounds guessing them. A hash is a PHC
// string, argon2id by default or PBKDF2-HMAC-SM3 where national algorithms are
// demanded; [Hasher.Check] reads both, whatever new hashes are made with.
package passwd

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/emmansun/gmsm/sm3"
	"golang.org/x/crypto/argon2"
)

// The names of the hashes.
const (
	Argon2id  = "argon2id"
	PBKDF2SM3 = "pbkdf2-sm3"
)

// Shortest and longest password, in characters and bytes.
const (
	MinLength = 10
	MaxBytes  = 500 // authenticationContent of Table 17
)

// ErrWrong says that a password is not the right one.
var ErrWrong = errors.New("check password: wrong")

// Parameters of new hashes. Argon2id: 2 passes over 19 MiB, one lane; PBKDF2
// takes about as long.
const (
	argonTime, argonMemory, argonLanes = 2, 19 << 10, 1
	pbkdf2Iterations                   = 210_000
	saltBytes, keyBytes                = 16, 32
)

// Hasher makes and checks hashes, a bounded number at a time: each costs
// memory and CPU, and whoever asks need not be anybody yet. It is safe for
// concurrent use.
type Hasher struct {
	kind  string
	slots chan struct{}
	dummy string
}

// New returns a hasher whose new hashes are of kind (default argon2id), with
// at most parallel at work (default 2).
func New(kind string, parallel int) (*Hasher, error) {
	if kind == "" {
		kind = Argon2id
	}
	if parallel <= 0 {
		parallel = 2
	}
	if kind != Argon2id && kind != PBKDF2SM3 {
		return nil, fmt.Errorf("make password hasher: %q is neither %s nor %s", kind, Argon2id, PBKDF2SM3)
	}
	h := &Hasher{kind: kind, slots: make(chan struct{}, parallel)}
	h.dummy = phc(kind, make([]byte, saltBytes), make([]byte, keyBytes))
	return h, nil
}

// Hash returns the PHC string of password, which must be fit for use.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	if err := Fit(password); err != nil {
		return "", err
	}
	salt := make([]byte, saltBytes)
	rand.Read(salt)
	key, err := h.derive(ctx, h.kind, password, salt)
	if err != nil {
		return "", err
	}
	return phc(h.kind, salt, key), nil
}

// Check returns nil when password belongs to hash, [ErrWrong] when not, and
// another error when it could not be checked. With an empty hash (nobody of
// that name) it works as long and returns ErrWrong.
func (h *Hasher) Check(ctx context.Context, hash, password string) error {
	nobody := hash == ""
	if nobody {
		hash = h.dummy
	}
	kind, salt, want, err := parse(hash)
	if err != nil {
		return err
	}
	if len(password) > MaxBytes {
		return ErrWrong
	}
	key, err := h.derive(ctx, kind, password, salt)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(key, want) != 1 || nobody {
		return ErrWrong
	}
	return nil
}

// Fit says what is wrong with a new password.
func Fit(password string) error {
	switch {
	case utf8.RuneCountInString(password) < MinLength:
		return fmt.Errorf("set password: it has fewer than %d characters", MinLength)
	case len(password) > MaxBytes:
		return fmt.Errorf("set password: it has more than %d bytes", MaxBytes)
	}
	classes := map[int]bool{}
	for _, c := range password {
		switch {
		case 'a' <= c && c <= 'z':
			classes[0] = true
		case 'A' <= c && c <= 'Z':
			classes[1] = true
		case '0' <= c && c <= '9':
			classes[2] = true
		default:
			classes[3] = true
		}
	}
	if len(classes) < 2 && utf8.RuneCountInString(password) < 16 {
		return errors.New("set password: mix letters, digits or signs, or take 16 characters")
	}
	return nil
}

func (h *Hasher) derive(ctx context.Context, kind, password string, salt []byte) ([]byte, error) {
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("hash password: %w (too many sign-ins at once)", ctx.Err())
	}
	defer func() { <-h.slots }()
	if kind == PBKDF2SM3 {
		return pbkdf2.Key(sm3.New, password, salt, pbkdf2Iterations, keyBytes)
	}
	return argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonLanes, keyBytes), nil
}

func parameters(kind string) string {
	if kind == PBKDF2SM3 {
		return fmt.Sprintf("$%s$i=%d$", kind, pbkdf2Iterations)
	}
	return fmt.Sprintf("$%s$v=%d$m=%d,t=%d,p=%d$", kind, argon2.Version, argonMemory, argonTime, argonLanes)
}

func phc(kind string, salt, key []byte) string {
	b := base64.RawStdEncoding
	return parameters(kind) + b.EncodeToString(salt) + "$" + b.EncodeToString(key)
}

// parse reads a hash. Only the parameters that this version writes are taken;
// a change of them needs a branch here.
func parse(hash string) (kind string, salt, key []byte, err error) {
	for _, kind := range []string{Argon2id, PBKDF2SM3} {
		rest, ok := strings.CutPrefix(hash, parameters(kind))
		if !ok {
			continue
		}
		s, k, _ := strings.Cut(rest, "$")
		salt, err1 := base64.RawStdEncoding.DecodeString(s)
		key, err2 := base64.RawStdEncoding.DecodeString(k)
		if err1 == nil && err2 == nil && len(key) == keyBytes {
			return kind, salt, key, nil
		}
	}
	return "", nil, nil, errors.New("check password: the stored hash cannot be read (set the password again)")
}
