package tlcp

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"sync"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

const explicitNonce = 8 // bytes of a GCM record before the ciphertext

// maxOverhead is the most bytes that protection adds to a payload: CBC's IV,
// MAC and padding.
const maxOverhead = recordHeader + sm4.BlockSize + sm3.Size + sm4.BlockSize

// halfConn is one direction of the record layer (§6.3).
type halfConn struct {
	mu   sync.Mutex
	err  error       // ends the direction for good; guarded by mu
	seq  uint64      // of the next record; guarded by mu
	prot *protection // nil: records are in the clear; guarded by mu
	next *protection // takes over at ChangeCipherSpec

	aad [13]byte       // scratch
	sum [sm3.Size]byte // scratch
}

// changeCipherSpec puts the prepared keys to use.
func (h *halfConn) changeCipherSpec() error {
	if h.next == nil {
		return alertf(AlertUnexpectedMessage, "change cipher spec: no keys are agreed yet")
	}
	h.prot, h.next, h.seq = h.next, nil, 0
	return nil
}

// header fills in what is authenticated with a payload of n bytes: sequence
// number, type, version, length.
func (h *halfConn) header(typ recordType, n int) {
	binary.BigEndian.PutUint64(h.aad[:], h.seq)
	h.aad[8] = byte(typ)
	binary.BigEndian.PutUint16(h.aad[9:], Version)
	binary.BigEndian.PutUint16(h.aad[11:], uint16(n))
}

var errSequence = errors.New("tlcp: the sequence numbers are used up")

// seal appends payload as one record to dst. payload has at most maxPlaintext
// bytes and does not overlap dst.
func (h *halfConn) seal(dst []byte, typ recordType, payload []byte, rand io.Reader) ([]byte, error) {
	if h.seq == math.MaxUint64 {
		return dst, errSequence
	}
	head := len(dst)
	dst = append(dst, byte(typ), byte(Version>>8), byte(Version&0xff), 0, 0)
	switch p := h.prot; {
	case p == nil:
		dst = append(dst, payload...)
	case p.gcm:
		aead, err := p.cipher()
		if err != nil {
			return dst[:head], err
		}
		binary.BigEndian.PutUint64(p.nonce[4:], h.seq)
		dst = append(dst, p.nonce[4:]...)
		h.header(typ, len(payload))
		dst = aead.Seal(dst, p.nonce[:], payload, h.aad[:])
	default:
		var err error
		if dst, err = h.sealCBC(dst, typ, payload, rand); err != nil {
			return dst[:head], err
		}
	}
	binary.BigEndian.PutUint16(dst[head+3:], uint16(len(dst)-head-recordHeader))
	h.seq++
	return dst, nil
}

func (h *halfConn) sealCBC(dst []byte, typ recordType, payload []byte, rand io.Reader) ([]byte, error) {
	p := h.prot
	at := len(dst)
	var iv [sm4.BlockSize]byte
	dst = append(dst, iv[:]...)
	if _, err := io.ReadFull(rand, dst[at:]); err != nil {
		return dst, err
	}
	p.block.(setIV).SetIV(dst[at:])
	at = len(dst)
	dst = append(dst, payload...)
	h.header(typ, len(payload))
	p.mac.Reset()
	p.mac.Write(h.aad[:])
	p.mac.Write(payload)
	dst = p.mac.Sum(dst)
	pad := sm4.BlockSize - (len(dst)-at)%sm4.BlockSize
	for range pad {
		dst = append(dst, byte(pad-1))
	}
	p.block.CryptBlocks(dst[at:], dst[at:])
	return dst, nil
}

// errMAC is the one answer to every record that does not open.
var errMAC = errors.New("a record does not authenticate")

// open returns the payload of the record body, decrypted in place, or into the
// memory of into when there is room for it.
func (h *halfConn) open(typ recordType, body, into []byte) ([]byte, error) {
	if h.seq == math.MaxUint64 {
		return nil, errSequence
	}
	p := h.prot
	if p == nil {
		h.seq++
		return body, nil
	}
	var payload []byte
	ok := false
	if p.gcm {
		payload, ok = h.openGCM(typ, body, into)
	} else {
		payload, ok = h.openCBC(typ, body)
	}
	if !ok {
		return nil, &AlertError{Alert: AlertBadRecordMAC, Err: errMAC}
	}
	h.seq++
	return payload, nil
}

func (h *halfConn) openGCM(typ recordType, body, into []byte) ([]byte, bool) {
	if len(body) < explicitNonce+sm4gcm.Overhead {
		return nil, false
	}
	p := h.prot
	copy(p.nonce[4:], body[:explicitNonce])
	h.header(typ, len(body)-explicitNonce-sm4gcm.Overhead)
	aead, err := p.cipher()
	if err != nil {
		return nil, false
	}
	ct := body[explicitNonce:]
	if len(into) < len(ct)-sm4gcm.Overhead {
		into = ct
	}
	payload, err := aead.Open(into[:0], p.nonce[:], ct, h.aad[:])
	return payload, err == nil
}

// openCBC decrypts, and looks at padding and MAC in a time that depends on the
// record's length only: the padding is checked without branches, and the number
// of SM3 compressions does not depend on how much of the record is payload.
func (h *halfConn) openCBC(typ recordType, body []byte) ([]byte, bool) {
	const least = (sm3.Size + 1 + sm4.BlockSize - 1) / sm4.BlockSize * sm4.BlockSize
	if len(body) < sm4.BlockSize+least || len(body)%sm4.BlockSize != 0 {
		return nil, false
	}
	p := h.prot
	p.block.(setIV).SetIV(body[:sm4.BlockSize])
	data := body[sm4.BlockSize:]
	p.block.CryptBlocks(data, data)

	pad, good := padding(data)
	n := len(data) - sm3.Size - pad
	h.header(typ, n)
	p.mac.Reset()
	p.mac.Write(h.aad[:])
	p.mac.Write(data[:n])
	want := p.mac.Sum(h.sum[:0])
	// Compressions that a payload of the greatest length would have cost.
	extra := compressions(len(data)-sm3.Size-1) - compressions(n)
	p.mac.Write(idle[:extra*sm3.BlockSize])

	good &= subtle.ConstantTimeCompare(want, data[n:n+sm3.Size])
	return data[:n], good == 1
}

// idle is hashed to spend time. The padding differs by 255 bytes at most, which
// is less than five blocks.
var idle [5 * sm3.BlockSize]byte

// compressions returns how many blocks SM3 compresses for the header and n
// bytes of payload, closing bit and length included, behind the key's block.
func compressions(n int) int {
	return (13 + n + 9 + sm3.BlockSize - 1) / sm3.BlockSize
}

// padding returns the length of the padding of a decrypted record, its length
// byte included, and 1 when every byte of it is right. When it is wrong the
// length is 1. It takes the same time for every content of data.
func padding(data []byte) (length, good int) {
	last := data[len(data)-1]
	length = int(last) + 1
	good = subtle.ConstantTimeLessOrEq(length+sm3.Size, len(data))
	var diff byte
	for i := range min(256, len(data)) {
		inside := subtle.ConstantTimeLessOrEq(i+1, length)
		diff |= byte(-inside) & (data[len(data)-1-i] ^ last)
	}
	good &= subtle.ConstantTimeByteEq(diff, 0)
	return subtle.ConstantTimeSelect(good, length, 1), good
}

// recordPool holds buffers for one record each, so that a connection that is
// not in the middle of one needs none.
var recordPool = sync.Pool{New: func() any {
	b := make([]byte, recordHeader+maxCiphertext)
	return &b
}}

// batchRecords is how many records go to the transport in one write. Each write
// costs the kernel some microseconds, a tenth of what it costs to seal a record;
// many more would let the peer wait for the first.
const batchRecords = 4

// batchSize is the size of as many records, protection included.
const batchSize = batchRecords * (maxOverhead + maxPlaintext)

// batchPool holds buffers for the records of one write, and for what one read
// finds while records come one upon the other.
var batchPool = sync.Pool{New: func() any {
	b := make([]byte, batchSize)
	return &b
}}
