package tlcp

import (
	"crypto/cipher"
	"crypto/hmac"
	"fmt"
	"hash"
	"slices"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// Cipher suites (§6.4.5.2.1, table 2).
const (
	ECDHE_SM4_CBC_SM3 uint16 = 0xE011
	ECC_SM4_CBC_SM3   uint16 = 0xE013
	ECDHE_SM4_GCM_SM3 uint16 = 0xE051
	ECC_SM4_GCM_SM3   uint16 = 0xE053
)

// cipherSuite is a row of the table of suites. Sizes in bytes.
type cipherSuite struct {
	id     uint16
	name   string
	ecdhe  bool // otherwise ECC
	gcm    bool // otherwise CBC with HMAC-SM3
	macLen int
	ivLen  int // of the key block; CBC derives its own and uses an explicit one
}

const keyLen = 16

// suites in the order of preference.
var suites = []*cipherSuite{
	{ECDHE_SM4_GCM_SM3, "ECDHE_SM4_GCM_SM3", true, true, 0, 4},
	{ECC_SM4_GCM_SM3, "ECC_SM4_GCM_SM3", false, true, 0, 4},
	{ECDHE_SM4_CBC_SM3, "ECDHE_SM4_CBC_SM3", true, false, 32, 16},
	{ECC_SM4_CBC_SM3, "ECC_SM4_CBC_SM3", false, false, 32, 16},
}

func suiteByID(id uint16) *cipherSuite {
	for _, s := range suites {
		if s.id == id {
			return s
		}
	}
	return nil
}

// CipherSuiteName returns the standard's name of a suite, or its number.
func CipherSuiteName(id uint16) string {
	if s := suiteByID(id); s != nil {
		return s.name
	}
	return fmt.Sprintf("0x%04X", id)
}

// enabled returns the suites that c allows, best first. ECDHE is left out
// where it cannot work.
func (c *Config) enabled(ecdhe bool) []*cipherSuite {
	var out []*cipherSuite
	if len(c.CipherSuites) == 0 {
		for _, s := range suites {
			if ecdhe || !s.ecdhe {
				out = append(out, s)
			}
		}
		return out
	}
	for _, id := range c.CipherSuites {
		if s := suiteByID(id); s != nil && (ecdhe || !s.ecdhe) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// protection is one direction's cipher under its keys.
type protection struct {
	// GCM
	gcm   bool
	key   [sm4gcm.KeySize]byte
	aead  cipher.AEAD            // under key; nil while the connection rests
	nonce [sm4gcm.NonceSize]byte // 4 bytes of the key block, 8 explicit
	// CBC
	block cipher.BlockMode // decrypter or encrypter, its IV set anew for each record
	mac   hash.Hash
}

// cipher returns the cipher, made anew after rest.
func (p *protection) cipher() (_ cipher.AEAD, err error) {
	if p.aead == nil {
		p.aead, err = sm4gcm.New(p.key[:])
	}
	return p.aead, err
}

// rest lets the expanded key go: it is 850 bytes, and made anew within a
// microsecond.
func (p *protection) rest() {
	if p != nil && p.gcm {
		p.aead = nil
	}
}

// setIV is what gmsm's CBC modes can do beside cipher.BlockMode.
type setIV interface{ SetIV([]byte) }

func (s *cipherSuite) protect(key, macKey, iv []byte, decrypt bool) (*protection, error) {
	p := new(protection)
	if s.gcm {
		p.gcm = true
		copy(p.key[:], key)
		copy(p.nonce[:], iv)
		_, err := p.cipher()
		return p, err
	}
	block, err := sm4.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if decrypt {
		p.block = cipher.NewCBCDecrypter(block, iv)
	} else {
		p.block = cipher.NewCBCEncrypter(block, iv)
	}
	if _, ok := p.block.(setIV); !ok {
		return nil, fmt.Errorf("make SM4-CBC cipher: %T cannot change its IV", p.block)
	}
	p.mac = hmac.New(sm3.New, macKey)
	return p, nil
}
