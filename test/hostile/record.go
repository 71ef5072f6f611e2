package hostile

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
)

// half is one direction's cipher; nil is none.
type half struct {
	block cipher.Block
	fixed []byte // GCM: the first 4 bytes of the nonce
	mac   []byte // CBC: the key of HMAC-SM3
	seq   uint64

	// nonce makes the explicit nonce of GCM; nil takes the sequence number.
	nonce func(seq uint64) []byte
	// edit may change content, MAC and padding of CBC before it is encrypted.
	edit func(plain []byte) []byte
	// pad is how many blocks of padding CBC adds beside the needed.
	pad int
}

func newHalf(gcm bool, mac, key, iv []byte) *half {
	block, err := sm4.NewCipher(key)
	if err != nil {
		panic(err) // the key is of our making
	}
	if gcm {
		return &half{block: block, fixed: iv}
	}
	return &half{block: block, mac: mac}
}

func (h *half) ad(typ byte, version uint16, n int) []byte {
	b := binary.BigEndian.AppendUint64(nil, h.seq)
	return append(b, typ, byte(version>>8), byte(version), byte(n>>8), byte(n))
}

func (h *half) sum(typ byte, version uint16, p []byte) []byte {
	m := hmac.New(sm3.New, h.mac)
	m.Write(h.ad(typ, version, len(p)))
	m.Write(p)
	return m.Sum(nil)
}

// seal returns the fragment of a record.
func (h *half) seal(typ byte, version uint16, p []byte) []byte {
	if h == nil {
		return p
	}
	defer func() { h.seq++ }()
	if h.mac == nil {
		explicit := binary.BigEndian.AppendUint64(nil, h.seq)
		if h.nonce != nil {
			explicit = h.nonce(h.seq)
		}
		aead, err := cipher.NewGCM(h.block)
		if err != nil {
			panic(err)
		}
		return append(explicit, aead.Seal(nil, cat(h.fixed, explicit), p, h.ad(typ, version, len(p)))...)
	}
	plain := cat(p, h.sum(typ, version, p))
	n := 16 - len(plain)%16 + 16*h.pad
	for range n {
		plain = append(plain, byte(n-1))
	}
	if h.edit != nil {
		plain = h.edit(plain)
	}
	out := make([]byte, 16+len(plain))
	rand.Read(out[:16])
	cipher.NewCBCEncrypter(h.block, out[:16]).CryptBlocks(out[16:], plain)
	return out
}

var errRecord = errors.New("the record does not open")

// open returns the content of a fragment.
func (h *half) open(typ byte, version uint16, f []byte) ([]byte, error) {
	if h == nil {
		return f, nil
	}
	defer func() { h.seq++ }()
	if h.mac == nil {
		aead, err := cipher.NewGCM(h.block)
		if err != nil {
			panic(err)
		}
		if len(f) < 24 {
			return nil, errRecord
		}
		return aead.Open(nil, cat(h.fixed, f[:8]), f[8:], h.ad(typ, version, len(f)-24))
	}
	if len(f) < 16+48 || len(f)%16 != 0 {
		return nil, errRecord
	}
	plain := make([]byte, len(f)-16)
	cipher.NewCBCDecrypter(h.block, f[:16]).CryptBlocks(plain, f[16:])
	n := int(plain[len(plain)-1]) + 1
	if len(plain) < n+32 {
		return nil, errRecord
	}
	for _, b := range plain[len(plain)-n:] {
		if int(b) != n-1 {
			return nil, errRecord
		}
	}
	plain = plain[:len(plain)-n]
	content, mac := plain[:len(plain)-32], plain[len(plain)-32:]
	if !hmac.Equal(mac, h.sum(typ, version, content)) {
		return nil, errRecord
	}
	return content, nil
}

// RawRecord returns a record whose header says length, whatever f has.
func RawRecord(typ byte, version uint16, length int, f []byte) []byte {
	return append([]byte{typ, byte(version >> 8), byte(version), byte(length >> 8), byte(length)}, f...)
}
