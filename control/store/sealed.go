package store

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/emmansun/gmsm/sm3"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// ErrPassphrase says that the values were sealed under another passphrase.
var ErrPassphrase = errors.New("open store: the passphrase is not the one that sealed it (use the passphrase file that was made with it)")

const (
	keySalt    = "meta/salt"  // plain: 16 bytes
	keyCheck   = "meta/check" // sealed: checkText
	checkText  = "yumen control store"
	iterations = 100_000
)

// Sealed is a [Store] whose values are sealed at rest: SM4-GCM under a key that
// PBKDF2-HMAC-SM3 derives from a passphrase, the entry's key as additional
// data, so that no value can be put in another's place. Keys, sizes and
// revisions stay readable.
type Sealed struct {
	Store
	aead cipher.AEAD
	root []byte // of the keys that Key derives
}

// Seal returns s with sealed values. The first call on an empty store sets its
// passphrase; later ones return [ErrPassphrase] for another.
func Seal(s Store, passphrase []byte) (*Sealed, error) {
	salt, ok, err := s.Get(keySalt)
	if err != nil {
		return nil, err
	}
	if !ok {
		salt.Value = make([]byte, 16)
		rand.Read(salt.Value)
		if s.Rev() > 0 {
			return nil, errors.New("open store: it has no salt (it was not made by this program)")
		}
	}
	key, err := pbkdf2.Key(sm3.New, string(passphrase), salt.Value, iterations, 16+32)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	aead, err := sm4gcm.New(key[:16])
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	z := &Sealed{Store: s, aead: aead, root: key[16:]}
	if !ok {
		ops := []Op{Put(keySalt, salt.Value), Put(keyCheck, z.seal(keyCheck, []byte(checkText)))}
		if _, err := s.Txn([]Compare{{Key: keySalt}}, ops); err != nil {
			return nil, err
		}
		return z, nil
	}
	check, ok, err := z.Get(keyCheck)
	if err != nil || !ok || string(check.Value) != checkText {
		return nil, ErrPassphrase
	}
	return z, nil
}

// Key derives a further secret of 32 bytes for purpose, bound to the passphrase
// and this store: HMAC-SM3 under a key of its own.
func (z *Sealed) Key(purpose string) []byte {
	mac := hmac.New(sm3.New, z.root)
	mac.Write([]byte(purpose))
	return mac.Sum(nil)
}

func (z *Sealed) seal(key string, value []byte) []byte {
	nonce := make([]byte, z.aead.NonceSize(), z.aead.NonceSize()+len(value)+z.aead.Overhead())
	if _, err := io.ReadFull(rand.Reader, nonce); err != nil {
		panic(err)
	}
	return z.aead.Seal(nonce, nonce, value, []byte(key))
}

func (z *Sealed) open(key string, raw []byte) ([]byte, error) {
	n := z.aead.NonceSize()
	if len(raw) < n {
		return nil, fmt.Errorf("open %s: the value is cut short (restore the file from a backup)", key)
	}
	value, err := z.aead.Open(nil, raw[:n], raw[n:], []byte(key))
	if err != nil {
		return nil, fmt.Errorf("open %s: the value was altered (restore the file from a backup)", key)
	}
	return value, nil
}

// Get returns the opened entry of key.
func (z *Sealed) Get(key string) (Entry, bool, error) {
	e, ok, err := z.Store.Get(key)
	if !ok || err != nil || key == keySalt {
		return e, ok, err
	}
	e.Value, err = z.open(key, e.Value)
	return e, err == nil, err
}

// Snapshot returns the opened entries under prefix; the store's own are left
// out.
func (z *Sealed) Snapshot(prefix string) (uint64, []Entry, error) {
	rev, raw, err := z.Store.Snapshot(prefix)
	if err != nil {
		return 0, nil, err
	}
	entries := raw[:0]
	for _, e := range raw {
		if e.Key == keySalt || e.Key == keyCheck {
			continue
		}
		if e.Value, err = z.open(e.Key, e.Value); err != nil {
			return 0, nil, err
		}
		entries = append(entries, e)
	}
	return rev, entries, nil
}

// Txn seals the values of ops and applies them.
func (z *Sealed) Txn(compares []Compare, ops []Op) (uint64, error) {
	sealed := make([]Op, len(ops))
	for i, op := range ops {
		sealed[i] = Op{Key: op.Key, Delete: op.Delete}
		if !op.Delete {
			sealed[i].Value = z.seal(op.Key, op.Value)
		}
	}
	return z.Store.Txn(compares, sealed)
}

// Watch returns a watcher of opened transactions.
func (z *Sealed) Watch(from uint64) (*Watcher, error) {
	w, err := z.Store.Watch(from)
	if err != nil {
		return nil, err
	}
	read := w.read
	w.read = func(after uint64) (Batch, <-chan struct{}, error) {
		b, wake, err := read(after)
		if err != nil || wake != nil {
			return b, wake, err
		}
		opened := Batch{Rev: b.Rev, Ops: make([]Op, 0, len(b.Ops))}
		for _, op := range b.Ops {
			if op.Key == keySalt || op.Key == keyCheck {
				continue
			}
			if !op.Delete {
				if op.Value, err = z.open(op.Key, op.Value); err != nil {
					return Batch{}, nil, err
				}
			}
			opened.Ops = append(opened.Ops, op)
		}
		return opened, nil, nil
	}
	return w, nil
}

var _ Store = (*Sealed)(nil)
