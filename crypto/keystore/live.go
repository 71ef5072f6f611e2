package keystore

import (
	"crypto"
	"io"
	"sync/atomic"
)

// LiveDecrypter is the decrypter of a key that may be renewed while others hold
// it: each call goes to the key that was set last. It may be used by several
// goroutines at once, after the first Set.
type LiveDecrypter struct {
	key atomic.Pointer[crypto.Decrypter]
}

// Set puts key in the place of the one before.
func (d *LiveDecrypter) Set(key crypto.Decrypter) { d.key.Store(&key) }

// Public returns the public key of the one in use.
func (d *LiveDecrypter) Public() crypto.PublicKey { return (*d.key.Load()).Public() }

// Decrypt implements [crypto.Decrypter].
func (d *LiveDecrypter) Decrypt(rand io.Reader, msg []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	return (*d.key.Load()).Decrypt(rand, msg, opts)
}
