package ctlclient

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/emmansun/gmsm/sm3"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/wire"
)

// homeName is the file of the key folder that keeps an agent's long-lived
// permits: nonce (12) and SM4-GCM of [wire.HomePermits], under a key that is
// derived from the private key "state".
const homeName = "home.sealed"

func homeSeal(keys *keystore.Store) (cipher.AEAD, error) {
	key, err := OutboxKey(keys)()
	if err != nil {
		return nil, err
	}
	sum := sm3.Sum(append([]byte("yumen home permits v1\n"), key...))
	return sm4gcm.New(sum[:16])
}

// StoreHome keeps an agent's long-lived permits, sealed, beside its keys. It
// writes nothing when they are there already.
func StoreHome(keys *keystore.Store, p *wire.HomePermits) error {
	if old, err := LoadHome(keys); err == nil && old != nil {
		a, err := wire.EncodeExtension(old)
		b, err2 := wire.EncodeExtension(p)
		if err == nil && err2 == nil && bytes.Equal(a, b) {
			return nil
		}
	}
	aead, err := homeSeal(keys)
	if err != nil {
		return fmt.Errorf("seal permits: %w", err)
	}
	body, err := wire.EncodeExtension(p)
	if err != nil {
		return fmt.Errorf("seal permits: %w", err)
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(body)+aead.Overhead())
	_, _ = rand.Read(nonce) // never fails
	path := filepath.Join(keys.Dir(), homeName)
	f, err := os.CreateTemp(keys.Dir(), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("store permits: %w", err)
	}
	_, err = f.Write(aead.Seal(nonce, nonce, body, []byte(homeName)))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("store permits: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// LoadHome returns what [StoreHome] has kept; nil when nothing was.
func LoadHome(keys *keystore.Store) (*wire.HomePermits, error) {
	raw, err := os.ReadFile(filepath.Join(keys.Dir(), homeName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read permits: %w", err)
	}
	aead, err := homeSeal(keys)
	if err != nil {
		return nil, fmt.Errorf("open permits: %w", err)
	}
	n := aead.NonceSize()
	if len(raw) < n {
		return nil, fmt.Errorf("open permits: %s is cut short (remove it; the next resource list brings them)", homeName)
	}
	body, err := aead.Open(nil, raw[:n], raw[n:], []byte(homeName))
	if err != nil {
		return nil, fmt.Errorf("open permits: %s was altered, or is of other keys (remove it; the next resource list brings them)", homeName)
	}
	p, err := wire.DecodeExtension[wire.HomePermits](body)
	if err != nil {
		return nil, fmt.Errorf("open permits: %w", err)
	}
	return p, nil
}
