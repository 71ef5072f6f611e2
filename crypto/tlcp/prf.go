package tlcp

import (
	"encoding"
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

// hashState is what every SM3 of ours can do: its state can be kept and taken
// up again.
type hashState interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

const maxHashState = 128 // bytes of a kept state of SM3; 108 are used

// derivation is the pseudo random function under one secret. SM3 is a good part
// of what a handshake costs, so what HMAC (RFC 2104) makes of the secret is kept
// for all that is derived. It is for one goroutine.
type derivation struct {
	h             hashState
	inner, outer  []byte // states of h behind the padded secret
	states        [2 * maxHashState]byte
	pad           [sm3.BlockSize]byte
	a, sum, block [sm3.Size]byte
	seed          [96]byte
}

func newDerivation(secret []byte) *derivation {
	d := &derivation{h: sm3.New().(hashState)}
	if len(secret) > len(d.pad) {
		d.h.Write(secret)
		secret = d.h.Sum(d.a[:0])
		d.h.Reset()
	}
	keep := func(state []byte, x byte) []byte {
		clear(d.pad[:])
		copy(d.pad[:], secret)
		for i := range d.pad {
			d.pad[i] ^= x
		}
		d.h.Reset()
		d.h.Write(d.pad[:])
		state, err := d.h.AppendBinary(state)
		if err != nil {
			panic("tlcp: SM3 cannot keep its state: " + err.Error())
		}
		return state
	}
	d.inner = keep(d.states[:0:maxHashState], 0x36)
	d.outer = keep(d.states[maxHashState:maxHashState], 0x5c)
	clear(d.pad[:])
	return d
}

// mac appends HMAC-SM3 of the parts to out.
func (d *derivation) mac(out []byte, parts ...[]byte) []byte {
	d.resume(d.inner)
	for _, p := range parts {
		d.h.Write(p)
	}
	inner := d.h.Sum(d.sum[:0])
	d.resume(d.outer)
	d.h.Write(inner)
	return d.h.Sum(out)
}

func (d *derivation) resume(state []byte) {
	if err := d.h.UnmarshalBinary(state); err != nil {
		panic("tlcp: SM3 refuses its own state: " + err.Error())
	}
}

// fill is [prf].
func (d *derivation) fill(out []byte, label string, seeds ...[]byte) {
	seed := append(d.seed[:0], label...)
	for _, s := range seeds {
		seed = append(seed, s...)
	}
	a := d.mac(d.a[:0], seed) // A(1)
	for len(out) > 0 {
		n := copy(out, d.mac(d.block[:0], a, seed))
		out = out[n:]
		if len(out) > 0 {
			a = d.mac(d.a[:0], a)
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

func keysFromMaster(s *cipherSuite, master *derivation, clientRandom, serverRandom []byte) keyBlock {
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
func (t transcript) finished(master *derivation, label string) []byte {
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
