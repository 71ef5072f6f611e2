// Package sm4gcm is SM4 (GB/T 32907-2016) in Galois/counter mode with a
// 12-byte nonce and a 16-byte tag, as RFC 8998 uses it. It is the one place
// where the rest of Yumen gets this cipher, so that a faster one can take its
// place.
package sm4gcm

import (
	"crypto/cipher"
	"fmt"

	"github.com/emmansun/gmsm/sm4"
)

// Sizes in bytes.
const (
	KeySize   = 16
	NonceSize = 12
	Overhead  = 16
)

// New returns SM4-GCM under key, which is 16 bytes long. The AEAD may be used
// by several goroutines at once. A nonce must never be used twice with one key.
func New(key []byte) (cipher.AEAD, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("make SM4-GCM cipher: the key has %d bytes, not %d", len(key), KeySize)
	}
	block, err := sm4.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make SM4-GCM cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make SM4-GCM cipher: %w", err)
	}
	return aead, nil
}
