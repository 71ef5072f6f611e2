package tlcp

import (
	"crypto/ecdsa"
	"crypto/subtle"
	"errors"
	"io"

	"github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// premasterLen is the length of the premaster secret of both key exchanges.
const premasterLen = 48

// signedParams is what a ServerKeyExchange signs (§6.4.5.4): both randoms and
// either the ECDHE parameters or, with its length, the encryption certificate.
func signedParams(clientRandom, serverRandom, params []byte, enc *smx509.Certificate) []byte {
	out := make([]byte, 0, 1024)
	out = append(append(out, clientRandom...), serverRandom...)
	if params != nil {
		return append(out, params...)
	}
	n := len(enc.Raw)
	out = append(out, byte(n>>16), byte(n>>8), byte(n))
	return append(out, enc.Raw...)
}

// newEphemeral makes a key of the SM2 curve from 32 bytes of rand, nothing more
// and nothing less, so that a handshake can be repeated from a recorded source.
func newEphemeral(rand io.Reader) (*ecdh.PrivateKey, error) {
	var b [32]byte
	for range 64 { // a value out of range has a chance of 2^-32
		if _, err := io.ReadFull(rand, b[:]); err != nil {
			return nil, err
		}
		if k, err := ecdh.P256().NewPrivateKey(b[:]); err == nil {
			return k, nil
		}
	}
	return nil, errors.New("the random source gives no valid key")
}

// agree runs the SM2 key exchange. The server is its initiator: its identity
// stands first in the key derivation.
func agree(p *Pair, ephemeral *ecdh.PrivateKey, peerEnc *smx509.Certificate, peerPoint []byte, client bool) ([]byte, error) {
	if p.agreer == nil {
		return nil, errors.New("the encryption key cannot agree on keys")
	}
	point, err := ecdh.P256().NewPublicKey(peerPoint)
	if err != nil {
		return nil, err
	}
	static, err := sm2.PublicKeyToECDH(peerEnc.PublicKey.(*ecdsa.PublicKey))
	if err != nil {
		return nil, err
	}
	var shared *ecdh.PublicKey
	p.keyOperation(func() { shared, err = p.agreer.SM2MQV(ephemeral, static, point) })
	if err != nil {
		return nil, err
	}
	return shared.SM2SharedKey(client, premasterLen, p.encPublic, static, nil, nil)
}

// newPremaster makes the premaster secret of ECC: the version and 46 random
// bytes.
func newPremaster(rand io.Reader) ([]byte, error) {
	b := make([]byte, premasterLen)
	if _, err := io.ReadFull(rand, b); err != nil {
		return nil, err
	}
	b[0], b[1] = byte(Version>>8), byte(Version&0xff)
	return b, nil
}

// sealPremaster returns the body of an ECC ClientKeyExchange.
func sealPremaster(rand io.Reader, enc *smx509.Certificate, premaster []byte) ([]byte, error) {
	ct, err := sm2.EncryptASN1(rand, enc.PublicKey.(*ecdsa.PublicKey), premaster)
	if err != nil {
		return nil, err
	}
	return append([]byte{byte(len(ct) >> 8), byte(len(ct))}, ct...), nil
}

// openPremaster decrypts the body of an ECC ClientKeyExchange. Whatever is
// wrong with it, or with the version inside, the result is a random secret, and
// the handshake goes on to fail at Finished: a client learns nothing from where
// it failed. An error is a fault of our own.
func openPremaster(rand io.Reader, p *Pair, body []byte, helloVersion uint16) ([]byte, error) {
	secret := make([]byte, premasterLen)
	if _, err := io.ReadFull(rand, secret); err != nil {
		return nil, err
	}
	s := cryptobyte.String(body)
	var ct cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&ct) || !allZero(s) {
		return secret, nil
	}
	der := canonicalCiphertext(ct)
	if der == nil {
		return secret, nil
	}
	var plain []byte
	var err error
	p.keyOperation(func() { plain, err = p.decrypter.Decrypt(rand, der, sm2.ASN1DecrypterOpts) })
	if err != nil || len(plain) != premasterLen {
		return secret, nil
	}
	good := subtle.ConstantTimeByteEq(plain[0], byte(helloVersion>>8)) & subtle.ConstantTimeByteEq(plain[1], byte(helloVersion&0xff))
	subtle.ConstantTimeCopy(good, secret, plain)
	return secret, nil
}

// canonicalCiphertext returns the SM2 ciphertext of GB/T 35276 in strict DER,
// nil when it is none. Some senders write coordinates of a fixed 33 bytes, or
// leave zeros behind the sequence.
func canonicalCiphertext(b []byte) []byte {
	s := cryptobyte.String(b)
	var seq, x, y, c3, c2 cryptobyte.String
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !allZero(s) ||
		!seq.ReadASN1(&x, asn1.INTEGER) || !seq.ReadASN1(&y, asn1.INTEGER) ||
		!seq.ReadASN1(&c3, asn1.OCTET_STRING) || !seq.ReadASN1(&c2, asn1.OCTET_STRING) || !seq.Empty() {
		return nil
	}
	x, y = trimZeros(x), trimZeros(y)
	if len(x) == 0 || len(x) > 32 || len(y) == 0 || len(y) > 32 || len(c3) != 32 || len(c2) != premasterLen {
		return nil
	}
	var out cryptobyte.Builder
	out.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, v := range [][]byte{x, y} {
			b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) {
				if v[0]&0x80 != 0 {
					b.AddUint8(0)
				}
				b.AddBytes(v)
			})
		}
		b.AddASN1OctetString(c3)
		b.AddASN1OctetString(c2)
	})
	return out.BytesOrPanic()
}

func trimZeros(b []byte) []byte {
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

func allZero(b []byte) bool { return len(trimZeros(b)) == 0 }

// clientECDHE returns the body of an ECDHE ClientKeyExchange.
func clientECDHE(point []byte, vector bool) []byte {
	params := ecdheParams(point)
	if vector {
		return append([]byte{byte(len(params) >> 8), byte(len(params))}, params...)
	}
	return params
}

// parseClientECDHE reads both forms of it, which differ in their length.
func parseClientECDHE(body []byte) (point []byte, ok bool) {
	s := cryptobyte.String(body)
	if len(body) == 2+4+pointLen {
		var inner cryptobyte.String
		if !s.ReadUint16LengthPrefixed(&inner) || !s.Empty() {
			return nil, false
		}
		s = inner
	}
	point, ok = parseECDHEParams(&s)
	return point, ok && s.Empty()
}
