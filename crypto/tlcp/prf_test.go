package tlcp

import (
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"testing"

	"github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ascending(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// TestPRF holds values that Python's hmac made over OpenSSL's SM3, from the
// formula of §6.5.
func TestPRF(t *testing.T) {
	abc := sm3.Sum([]byte("abc"))
	for _, c := range []struct {
		secret []byte
		label  string
		seed   []byte
		want   string
	}{
		{ascending(48), "master secret", ascending(64), "0136afc11c90f0ede6f4de2d45a7ab36f02f9e283bbb1d9b561ab13ba8ce25da3fc6d73518d068322ad99cbfdc7d4847"},
		{bytes.Repeat([]byte{0xff}, 48), "key expansion", make([]byte, 64), "00fb1125c5cb52368892b6ff2f24f66e78451fa2f60cfffadd917195c9c2595d31c69941a23a4baaa6ec7f541e5a445dc33ac404ccd3f8e2e7f78b6b4d7282fe825a28436b45995d7b602ed2feaaaf8154459d90c8f311436f98cc88e699959d5e10707527ad6a4d82b9258be16adb7cca95e8c389c195027edbf334fe7a2eee6ca7bd56988cb207cd09220580cc2729d7e76528630c363da1bc4481ba32cd38"},
		{make([]byte, 48), "client finished", abc[:], "5f8ed0c19132d49eeb709e38"},
		{bytes.Repeat([]byte{'k'}, 100), "server finished", nil, "758115c9764e2156865a03e118a5cfd8bfade72254a1d353df692885aa88b936dc"},
	} {
		want := unhex(t, c.want)
		got := make([]byte, len(want))
		prf(got, c.secret, c.label, c.seed)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", c.label, got, want)
		}
		clear(got)
		prf(got, c.secret, c.label, c.seed[:len(c.seed)/2], c.seed[len(c.seed)/2:])
		if !bytes.Equal(got, want) {
			t.Errorf("%s, seed in two parts: got %x, want %x", c.label, got, want)
		}
	}
}

func TestKeyBlockOrder(t *testing.T) {
	for _, s := range suites {
		k := keysFromMaster(s, newDerivation(ascending(48)), ascending(32), make([]byte, 32))
		all := bytes.Join([][]byte{k.clientMAC, k.serverMAC, k.clientKey, k.serverKey, k.clientIV, k.serverIV}, nil)
		want := make([]byte, len(all))
		prf(want, ascending(48), labelKeyExpansion, make([]byte, 32), ascending(32))
		if !bytes.Equal(all, want) || len(k.clientKey) != 16 || len(k.clientMAC) != s.macLen || len(k.serverIV) != s.ivLen {
			t.Errorf("%s: the parts are not the key block in its order", s.name)
		}
	}
}

// TestKeyAgreement is the example of GB/T 32918.5-2017 for the key exchange: A,
// the initiator, is the server. Its 128 bits are the beginning of our 384.
func TestKeyAgreement(t *testing.T) {
	const (
		dA  = "81eb26e941bb5af16df116495f90695272ae2cd63d6c4ae1678418be48230029"
		rA  = "d4de15474db74d06491c440d305e012400990f3e390c7e87153c12db2ea60bb3"
		dB  = "785129917d45a9ea5437a59356b82338eaadda6ceb199088f14ae10defa229b5"
		rB  = "7e07124814b309489125eaed101113164ebf0f3458c5bd88335c1f9d596243d6"
		kAB = "6c89347354de2484c60b4ab1fde4c6e5"
	)
	party := func(d, r string) (*Pair, *ecdh.PrivateKey, *smx509.Certificate) {
		key, err := sm2.NewPrivateKey(unhex(t, d))
		if err != nil {
			t.Fatal(err)
		}
		agreer, err := key.ECDH()
		if err != nil {
			t.Fatal(err)
		}
		ephemeral, err := ecdh.P256().NewPrivateKey(unhex(t, r))
		if err != nil {
			t.Fatal(err)
		}
		return &Pair{agreer: agreer, encPublic: agreer.PublicKey()}, ephemeral, &smx509.Certificate{PublicKey: &key.PublicKey}
	}
	a, ephA, certA := party(dA, rA)
	b, ephB, certB := party(dB, rB)
	server, err := agree(a, ephA, certB, ephB.PublicKey().Bytes(), false)
	if err != nil {
		t.Fatal(err)
	}
	client, err := agree(b, ephB, certA, ephA.PublicKey().Bytes(), true)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(server, client) || len(server) != premasterLen {
		t.Errorf("server has %x, client %x", server, client)
	}
	if want := unhex(t, kAB); !bytes.HasPrefix(server, want) {
		t.Errorf("got %x, want %x in front", server, want)
	}
}

func TestDerivationIsHMAC(t *testing.T) {
	for _, n := range []int{0, 1, 32, 48, 63, 64, 65, 200} {
		secret := ascending(n)
		d := newDerivation(secret)
		for _, parts := range [][][]byte{{}, {ascending(32)}, {ascending(100), ascending(29)}} {
			h := hmac.New(sm3.New, secret)
			for _, p := range parts {
				h.Write(p)
			}
			if got, want := d.mac(nil, parts...), h.Sum(nil); !bytes.Equal(got, want) {
				t.Errorf("secret of %d bytes, %d parts: got %x, want %x", n, len(parts), got, want)
			}
		}
	}
}

// BenchmarkDerive derives what one full handshake needs.
func BenchmarkDerive(b *testing.B) {
	premaster, randoms, digest := ascending(48), ascending(64), ascending(32)
	s := suiteByID(ECC_SM4_GCM_SM3)
	b.ReportAllocs()
	for b.Loop() {
		d := newDerivation(masterSecret(premaster, randoms[:32], randoms[32:]))
		keysFromMaster(s, d, randoms[:32], randoms[32:])
		var verify [2 * verifyDataLen]byte
		d.fill(verify[:verifyDataLen], labelClientFinished, digest)
		d.fill(verify[verifyDataLen:], labelServerFinished, digest)
	}
}
