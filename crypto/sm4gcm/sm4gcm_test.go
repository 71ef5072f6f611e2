package sm4gcm

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRFC8998_A1 is the SM4-GCM vector of RFC 8998, appendix A.1.
func TestRFC8998_A1(t *testing.T) {
	aead, err := New(unhex(t, "0123456789abcdeffedcba9876543210"))
	if err != nil {
		t.Fatal(err)
	}
	var (
		nonce  = unhex(t, "00001234567800000000abcd")
		aad    = unhex(t, "feedfacedeadbeeffeedfacedeadbeefabaddad2")
		plain  = unhex(t, "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccddddddddddddddddeeeeeeeeeeeeeeeeffffffffffffffffeeeeeeeeeeeeeeeeaaaaaaaaaaaaaaaa")
		sealed = unhex(t, "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d"+
			"83de3541e4c2b58177e065a9bf7b62ec")
	)
	if got := aead.Seal(nil, nonce, plain, aad); !bytes.Equal(got, sealed) {
		t.Errorf("seal: got %x, want %x", got, sealed)
	}
	got, err := aead.Open(nil, nonce, sealed, aad)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("open: got %x, %v; want %x", got, err, plain)
	}
	if aead.NonceSize() != NonceSize || aead.Overhead() != Overhead {
		t.Errorf("sizes: got %d and %d, want %d and %d", aead.NonceSize(), aead.Overhead(), NonceSize, Overhead)
	}
}

func TestGCR002_M2_EveryFlippedBitIsRejected(t *testing.T) {
	aead, err := New(make([]byte, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	nonce, aad := make([]byte, NonceSize), []byte("header")
	sealed := aead.Seal(nil, nonce, []byte("a message of more than one block"), aad)
	for i := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := aead.Open(nil, nonce, bad, aad); err == nil {
			t.Fatalf("bit %d flipped: accepted", i)
		}
	}
	if _, err := aead.Open(nil, nonce, sealed, []byte("Header")); err == nil {
		t.Error("other additional data: accepted")
	}
}

func TestNewRefusesOtherKeySizes(t *testing.T) {
	for _, n := range []int{0, 15, 17, 32} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes was taken", n)
		}
	}
}
