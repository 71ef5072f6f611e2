package listen

import (
	"crypto"
	"crypto/tls"
	"io"
	"runtime"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// signers bounds private-key operations in progress to what the processors can
// do; everything else of a handshake is bounded by half-open limits alone.
var signers = make(chan struct{}, 2*runtime.GOMAXPROCS(0))

func bounded(operation func()) {
	signers <- struct{}{}
	defer func() { <-signers }()
	operation()
}

// Bounded returns cert with its private key behind the semaphore of the
// process: a flood of handshakes waits there, not on the processors.
func Bounded(cert tls.Certificate) tls.Certificate {
	if s, ok := cert.PrivateKey.(crypto.Signer); ok {
		cert.PrivateKey = boundedSigner{s}
	}
	return cert
}

// BoundedPair returns pair with both private keys behind the same semaphore:
// signing, decrypting and agreeing on keys.
func BoundedPair(pair *tlcp.Pair) *tlcp.Pair { return pair.WithGate(bounded) }

type boundedSigner struct{ crypto.Signer }

func (s boundedSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) (sig []byte, err error) {
	bounded(func() { sig, err = s.Signer.Sign(rand, digest, opts) })
	return sig, err
}
