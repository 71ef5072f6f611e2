package tlcp

import (
	"crypto/hmac"
	"hash"

	"github.com/emmansun/gmsm/sm3"
)

const (
	masterSecretLen = 48
	verifyDataLen   = 12
)

const (
	labelMasterSecret   = "master secret"
	labelKeyExpansion   = "key expansion"
	labelClientFinished = "client finished"
	labelServerFinished = "server finished"
)

// prf fills out with the pseudo random function of §6.5: P_hash of RFC 5246 §5
// over HMAC-SM3.
func prf(out, secret []byte, label string, seeds ...[]byte) {
	newDerivation(secret).fill(out, label, seeds...)
}

// derivation is the pseudo random function under one secret. SM3 is a good part
// of what a handshake costs, so what it makes of the secret is kept for all
// that is derived. It is for one goroutine.
type derivation struct{ mac hash.Hash }

func newDerivation(secret []byte) derivation {
	d := derivation{hmac.New(sm3.New, secret)}
	d.mac.Reset() // from the first Reset on the state behind the secret is kept
	return d
}

// fill is [prf].
func (d derivation) fill(out []byte, label string, seeds ...[]byte) {
	seed := make([]byte, 0, 96)
	seed = append(seed, label...)
	for _, s := range seeds {
		seed = append(seed, s...)
	}
	h := d.mac
	h.Reset()
	h.Write(seed)
	a := h.Sum(nil) // A(1)
	var block [sm3.Size]byte
	for len(out) > 0 {
		h.Reset()
		h.Write(a)
		h.Write(seed)
		n := copy(out, h.Sum(block[:0]))
		out = out[n:]
		if len(out) > 0 {
			h.Reset()
			h.Write(a)
			a = h.Sum(a[:0])
		}
	}
}

func masterSecret(premaster, clientRandom, serverRandom []byte) []byte {
	out := make([]byte, masterSecretLen)
	prf(out, premaster, labelMasterSecret, clientRandom, serverRandom)
	return out
}

// keyBlock are the keys of both directions, in the order of the key block
// (§6.5.2).
type keyBlock struct {
	clientMAC, serverMAC, clientKey, serverKey, clientIV, serverIV []byte
}

func keysFromMaster(s *cipherSuite, master derivation, clientRandom, serverRandom []byte) keyBlock {
	b := make([]byte, 2*(s.macLen+keyLen+s.ivLen))
	master.fill(b, labelKeyExpansion, serverRandom, clientRandom)
	take := func(n int) []byte {
		t := b[:n:n]
		b = b[n:]
		return t
	}
	return keyBlock{take(s.macLen), take(s.macLen), take(keyLen), take(keyLen), take(s.ivLen), take(s.ivLen)}
}

// transcript is the running SM3 digest of all handshake messages.
type transcript struct{ h hash.Hash }

func newTranscript() transcript { return transcript{sm3.New()} }

func (t transcript) add(msg []byte) { t.h.Write(msg) }

func (t transcript) sum() []byte { return t.h.Sum(nil) }

// finished returns the verify_data of §6.4.5.9 for the messages so far.
func (t transcript) finished(master derivation, label string) []byte {
	out := make([]byte, verifyDataLen)
	master.fill(out, label, t.sum())
	return out
}

// PRF returns n bytes of the pseudo random function of §6.5. The protocol calls
// it itself; it is exported for known-answer tests.
func PRF(secret []byte, label string, seed []byte, n int) []byte {
	out := make([]byte, n)
	prf(out, secret, label, seed)
	return out
}
