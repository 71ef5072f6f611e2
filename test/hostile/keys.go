package hostile

import (
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
)

func isGCM(suite uint16) bool   { return suite == ECDHEGCM || suite == ECCGCM }
func isECDHE(suite uint16) bool { return suite == ECDHEGCM || suite == ECDHECBC }

func digest(b []byte) []byte {
	d := sm3.Sum(b)
	return d[:]
}

// prf is P_hash with HMAC-SM3 (§6.2).
func prf(secret []byte, label string, seed []byte, n int) []byte {
	s := append([]byte(label), seed...)
	mac := func(b []byte) []byte {
		m := hmac.New(sm3.New, secret)
		m.Write(b)
		return m.Sum(nil)
	}
	var out []byte
	for a := mac(s); len(out) < n; a = mac(a) {
		out = append(out, mac(cat(a, s))...)
	}
	return out[:n]
}

// halves derives both directions' ciphers: client's, server's.
func halves(suite uint16, master, clientRandom, serverRandom []byte) (client, server *half) {
	macLen, ivLen := 32, 16
	if isGCM(suite) {
		macLen, ivLen = 0, 4
	}
	b := prf(master, "key expansion", cat(serverRandom, clientRandom), 2*(macLen+16+ivLen))
	cut := func(n int) []byte {
		out := b[:n]
		b = b[n:]
		return out
	}
	cm, sm, ck, sk, ci, si := cut(macLen), cut(macLen), cut(16), cut(16), cut(ivLen), cut(ivLen)
	return newHalf(isGCM(suite), cm, ck, ci), newHalf(isGCM(suite), sm, sk, si)
}

// sign returns uint16 length and the SM2 signature with the default identity.
func sign(key *sm2.PrivateKey, msg []byte) []byte {
	sig, err := key.Sign(rand.Reader, msg, sm2.NewSM2SignerOption(true, nil))
	if err != nil {
		panic(err)
	}
	return vec(2, sig)
}

func verified(pub *ecdsa.PublicKey, msg, sig []byte) bool {
	return sm2.VerifyASN1WithSM2(pub, nil, msg, sig)
}

// ecParams is the ephemeral point on curveSM2: named_curve, 41, point.
func ecParams(point []byte) []byte { return cat([]byte{3}, u16(41), vec(1, point)) }

func parseECParams(b []byte) (point, rest []byte, err error) {
	c := &cursor{b: b}
	if t, curve := c.num(1), c.num(2); t != 3 || curve != 41 {
		return nil, nil, fmt.Errorf("curve type %d, curve %d", t, curve)
	}
	point = c.vec(1)
	if c.bad {
		return nil, nil, errShort
	}
	return point, c.b, nil
}

// agree runs the SM2 key exchange of GB/T 32918.3 with 48 bytes of key. The
// server is its initiator.
func agree(server bool, static *sm2.PrivateKey, ephemeral *ecdh.PrivateKey, peerStatic *ecdsa.PublicKey, peerPoint []byte) ([]byte, error) {
	own, err := static.ECDH()
	if err != nil {
		return nil, err
	}
	peer, err := sm2.PublicKeyToECDH(peerStatic)
	if err != nil {
		return nil, err
	}
	point, err := ecdh.P256().NewPublicKey(peerPoint)
	if err != nil {
		return nil, err
	}
	uv, err := own.SM2MQV(ephemeral, peer, point)
	if err != nil {
		return nil, err
	}
	return uv.SM2SharedKey(!server, 48, own.PublicKey(), peer, nil, nil)
}

func newEphemeral() *ecdh.PrivateKey {
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

var errFinished = errors.New("the peer's Finished is wrong")
