package selftest

import (
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// Tests returns the table, cheapest primitives first. random is the source that
// is examined, and that signatures and encryptions draw from.
func Tests(random io.Reader) []Test {
	return []Test{
		{"random source", "随机数发生器", "repetition count and adaptive proportion of NIST SP 800-90B §4.4; two reads differ", func() error { return Health(random) }},
		{"SM3", "SM3 杂凑", "GB/T 32905-2016 annex A", testSM3},
		{"HMAC-SM3", "HMAC-SM3", "GM/T 0042-2015 annex D.3", testHMAC},
		{"SM4", "SM4 分组加密", "GB/T 32907-2016 annex A.1", testSM4},
		{"SM4-CBC", "SM4-CBC 模式", "draft-ribose-cfrg-sm4-10 A.2.2", testCBC},
		{"SM4-GCM", "SM4-GCM 模式", "RFC 8998 A.1", testGCM},
		{"SM2 signature", "SM2 数字签名", "GB/T 32918.5-2017 annex A.2; then a fresh signature", func() error { return testSign(random) }},
		{"SM2 encryption", "SM2 公钥加密", "GB/T 32918.5-2017 annex C.2; then a fresh encryption", func() error { return testEncrypt(random) }},
		{"SM2 key exchange", "SM2 密钥交换", "GB/T 32918.5-2017 annex B.2", testExchange},
		{"TLCP PRF", "TLCP 密钥派生", "GB/T 38636-2020 §6.5; value by an independent HMAC over OpenSSL's SM3", testPRF},
	}
}

// unhex is for constants of this file; a fault in one is caught by [Test.try].
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func equal(what string, got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s: got %x, want %x", what, got, want)
	}
	return nil
}

func testSM3() error {
	one := sm3.Sum([]byte("abc"))
	two := sm3.Sum(bytes.Repeat([]byte("abcd"), 16))
	return errors.Join(
		equal("example 1", one[:], unhex("66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0")),
		equal("example 2", two[:], unhex("debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732")),
	)
}

func testHMAC() error {
	mac := hmac.New(sm3.New, unhex("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"))
	mac.Write(bytes.Repeat([]byte("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"), 2))
	return equal("code", mac.Sum(nil), unhex("ca05e144ed05d1857840d1f318a4a8669e559fc8391f414485bfdf7bb408963a"))
}

// sm4Key is the key, and the plaintext, of the standard's example.
const sm4Key = "0123456789abcdeffedcba9876543210"

func testSM4() error {
	block, err := sm4.NewCipher(unhex(sm4Key))
	if err != nil {
		return err
	}
	plain, want := unhex(sm4Key), unhex("681edf34d206965e86b3e94f536e4246")
	got := make([]byte, len(plain))
	block.Encrypt(got, plain)
	back := make([]byte, len(plain))
	block.Decrypt(back, got)
	return errors.Join(equal("encryption", got, want), equal("decryption", back, plain))
}

func testCBC() error {
	block, err := sm4.NewCipher(unhex(sm4Key))
	if err != nil {
		return err
	}
	iv := unhex("000102030405060708090a0b0c0d0e0f")
	plain := unhex("aaaaaaaabbbbbbbbccccccccddddddddeeeeeeeeffffffffaaaaaaaabbbbbbbb")
	sealed := unhex("78ebb11cc40b0a48312aaeb2040244cb4cb7016951909226979b0d15dc6a8f6d")
	got, back := make([]byte, len(plain)), make([]byte, len(plain))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(got, plain)
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(back, sealed)
	return errors.Join(equal("encryption", got, sealed), equal("decryption", back, plain))
}

func testGCM() error {
	aead, err := sm4gcm.New(unhex(sm4Key))
	if err != nil {
		return err
	}
	nonce, aad := unhex("00001234567800000000abcd"), unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
	plain := unhex("aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccddddddddddddddddeeeeeeeeeeeeeeeeffffffffffffffffeeeeeeeeeeeeeeeeaaaaaaaaaaaaaaaa")
	sealed := unhex("17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d" +
		"83de3541e4c2b58177e065a9bf7b62ec")
	if err := equal("sealed", aead.Seal(nil, nonce, plain, aad), sealed); err != nil {
		return err
	}
	back, err := aead.Open(nil, nonce, sealed, aad)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	sealed[0] ^= 1
	if _, err := aead.Open(nil, nonce, sealed, aad); err == nil {
		return errors.New("a forged message was opened")
	}
	return errors.Join(equal("opened", back, plain), testWide(aead, nonce, aad))
}

// testWide compares the code that takes many blocks at a time, which the short
// examples of the standards do not reach, with the one block at a time of the
// standard library.
func testWide(aead cipher.AEAD, nonce, aad []byte) error {
	block, err := sm4.NewCipher(unhex(sm4Key))
	if err != nil {
		return err
	}
	slow, err := cipher.NewGCM(struct{ cipher.Block }{block}) // hides what is faster
	if err != nil {
		return err
	}
	plain := make([]byte, 64*sm4.BlockSize+5)
	for i := range plain {
		plain[i] = byte(i * 7)
	}
	sealed := slow.Seal(nil, nonce, plain, aad)
	if err := equal("long message, sealed", aead.Seal(nil, nonce, plain, aad), sealed); err != nil {
		return err
	}
	back, err := aead.Open(nil, nonce, sealed, aad)
	if err != nil {
		return fmt.Errorf("long message: open: %w", err)
	}
	return equal("long message, opened", back, plain)
}

// The key of GB/T 32918.5-2017, annexes A.2 and C.2.
const sm2Key = "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8"

func testSign(random io.Reader) error {
	key, err := sm2.NewPrivateKey(unhex(sm2Key))
	if err != nil {
		return err
	}
	msg := []byte("message digest")
	digest, err := sm2.CalculateSM2Hash(&key.PublicKey, msg, nil)
	if err != nil {
		return err
	}
	if err := equal("digest with identity", digest, unhex("f0b43e94ba45accaace692ed534382eb17e6ab5a19ce7b31f4486fdfc0d28640")); err != nil {
		return err
	}
	sig, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(unhex("f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3")),
		new(big.Int).SetBytes(unhex("b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa")),
	})
	if err != nil {
		return err
	}
	verify := func(msg, sig []byte) bool { return sm2.VerifyASN1WithSM2(&key.PublicKey, nil, msg, sig) }
	if !verify(msg, sig) {
		return errors.New("the standard's signature does not verify")
	}
	if verify([]byte("message digesT"), sig) {
		return errors.New("a signature verifies for another message")
	}
	fresh, err := key.Sign(random, msg, sm2.DefaultSM2SignerOpts)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	if !verify(msg, fresh) {
		return errors.New("a fresh signature does not verify")
	}
	return nil
}

func testEncrypt(random io.Reader) error {
	key, err := sm2.NewPrivateKey(unhex(sm2Key))
	if err != nil {
		return err
	}
	plain := []byte("encryption standard")
	// C1, C3, C2, as the standard of 2017 has it.
	sealed := unhex("04" +
		"04ebfc718e8d1798620432268e77feb6415e2ede0e073c0f4f640ecd2e149a73e858f9d81e5430a57b36daab8f950a3c64e6ee6a63094d99283aff767e124df0" +
		"59983c18f809e262923c53aec295d30383b54e39d609d160afcb1908d0bd8766" +
		"21886ca989ca9c7d58087307ca93092d651efa")
	back, err := key.Decrypt(nil, sealed, nil)
	if err != nil {
		return fmt.Errorf("decrypt the standard's example: %w", err)
	}
	if err := equal("the standard's example", back, plain); err != nil {
		return err
	}
	fresh, err := sm2.EncryptASN1(random, &key.PublicKey, plain)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	if back, err = key.Decrypt(nil, fresh, sm2.ASN1DecrypterOpts); err != nil {
		return fmt.Errorf("decrypt: %w", err)
	}
	return equal("a fresh encryption", back, plain)
}

func testExchange() error {
	type party struct {
		static    *ecdh.PrivateKey
		ephemeral *ecdh.PrivateKey
	}
	var parties [2]party
	for i, keys := range [2][2]string{
		{"81eb26e941bb5af16df116495f90695272ae2cd63d6c4ae1678418be48230029", "d4de15474db74d06491c440d305e012400990f3e390c7e87153c12db2ea60bb3"},
		{"785129917d45a9ea5437a59356b82338eaadda6ceb199088f14ae10defa229b5", "7e07124814b309489125eaed101113164ebf0f3458c5bd88335c1f9d596243d6"},
	} {
		var err error
		if parties[i].static, err = ecdh.P256().NewPrivateKey(unhex(keys[0])); err != nil {
			return err
		}
		if parties[i].ephemeral, err = ecdh.P256().NewPrivateKey(unhex(keys[1])); err != nil {
			return err
		}
	}
	a, b := parties[0], parties[1]
	want := unhex("6c89347354de2484c60b4ab1fde4c6e5")
	for _, side := range []struct {
		name       string
		own, other party
		responder  bool
	}{{"initiator", a, b, false}, {"responder", b, a, true}} {
		point, err := side.own.static.SM2MQV(side.own.ephemeral, side.other.static.PublicKey(), side.other.ephemeral.PublicKey())
		if err != nil {
			return fmt.Errorf("%s: %w", side.name, err)
		}
		key, err := point.SM2SharedKey(side.responder, len(want), side.own.static.PublicKey(), side.other.static.PublicKey(), nil, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", side.name, err)
		}
		if err := equal(side.name, key, want); err != nil {
			return err
		}
	}
	return nil
}

func testPRF() error {
	seed := make([]byte, 64)
	for i := range seed {
		seed[i] = byte(i)
	}
	return equal("master secret", tlcp.PRF(seed[:48], "master secret", seed, 48),
		unhex("0136afc11c90f0ede6f4de2d45a7ab36f02f9e283bbb1d9b561ab13ba8ce25da3fc6d73518d068322ad99cbfdc7d4847"))
}
