package spool

import (
	"crypto/cipher"
	"crypto/hmac"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"
)

// Sizes in bytes; the package doc draws the layouts.
const (
	segmentMagic = "YUMENSPL"
	cursorMagic  = "YUMENCUR"
	version      = 1

	headerSize = 128
	frameSize  = 28
	tagSize    = 16
	nonceSize  = 12
	gapSize    = 33
	saltSize   = 16
	macSize    = sm3.Size
	endSize    = 8 + sm3.Size
	keySize    = 16
)

// The kinds of frames.
const (
	kindRecord = iota
	kindGaps
	kindEnd
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var be = binary.BigEndian

// keys derives from the state key. Its methods may be called from any
// goroutine.
type keys struct {
	state []byte
	seal  func(key []byte) (cipher.AEAD, error)
}

func (k *keys) mac(label string, parts ...[]byte) []byte {
	h := hmac.New(sm3.New, k.state)
	h.Write([]byte(label))
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// identity of a segment: what its key is made of.
func (h *header) identity() []byte {
	b := make([]byte, 0, 1+saltSize+8)
	b = append(b, byte(h.class))
	b = append(b, h.salt[:]...)
	return be.AppendUint64(b, h.first)
}

func (k *keys) segment(h *header) (cipher.AEAD, error) {
	aead, err := k.seal(k.mac("segment", h.identity())[:keySize])
	if err != nil {
		return nil, fmt.Errorf("make segment cipher: %w", err)
	}
	if aead.NonceSize() != nonceSize || aead.Overhead() != tagSize {
		return nil, fmt.Errorf("make segment cipher: nonce of %d and tag of %d bytes, want %d and %d", aead.NonceSize(), aead.Overhead(), nonceSize, tagSize)
	}
	return aead, nil
}

// header is the head of a segment.
type header struct {
	class   Class
	ordinal uint64 // in the name alone: the order of the segments of a class
	salt    [saltSize]byte
	first   uint64
	made    int64
	prev    [sm3.Size]byte
}

// name returns the segment's file name.
func (h *header) name() string { return fmt.Sprintf("%016x-%016x-%x.seg", h.ordinal, h.first, h.salt) }

// parseName reads what name returns.
func parseName(c Class, name string) (h header, ok bool) {
	base, ok := strings.CutSuffix(name, ".seg")
	parts := strings.Split(base, "-")
	if !ok || len(parts) != 3 || len(parts[0]) != 16 || len(parts[1]) != 16 || len(parts[2]) != 2*saltSize {
		return h, false
	}
	var errs [3]error
	h.class = c
	h.ordinal, errs[0] = strconv.ParseUint(parts[0], 16, 64)
	h.first, errs[1] = strconv.ParseUint(parts[1], 16, 64)
	_, errs[2] = hex.Decode(h.salt[:], []byte(parts[2]))
	return h, errors.Join(errs[:]...) == nil && h.first > 0 && h.name() == name
}

// encode returns the 128 bytes.
func (h *header) encode(k *keys) []byte {
	b := make([]byte, headerSize)
	copy(b, segmentMagic)
	be.PutUint16(b[8:], version)
	b[10] = byte(h.class)
	copy(b[16:], h.salt[:])
	be.PutUint64(b[32:], h.first)
	be.PutUint64(b[40:], uint64(h.made))
	copy(b[48:], h.prev[:])
	copy(b[80:], k.mac("header", b[:80]))
	be.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// check compares b, the start of the file, with the header that its name
// promises, and takes the rest over. An error means that b is not what encode
// wrote; h then keeps what the name says.
func (h *header) check(k *keys, b []byte) error {
	switch {
	case len(b) < headerSize:
		return errors.New("read segment header: too short")
	case crc32.Checksum(b[:124], castagnoli) != be.Uint32(b[124:]):
		return errors.New("read segment header: wrong checksum")
	case string(b[:8]) != segmentMagic || be.Uint16(b[8:]) != version:
		return errors.New("read segment header: unknown format")
	}
	full := *h
	full.made = int64(be.Uint64(b[40:]))
	copy(full.prev[:], b[48:])
	if !hmac.Equal(full.encode(k), b[:headerSize]) {
		return errors.New("read segment header: it was altered, or another key wrote it")
	}
	*h = full
	return nil
}

// chainStart returns the chain value before the first frame.
func (h *header) chainStart() [sm3.Size]byte {
	return sm3.Sum(append(append([]byte(nil), h.prev[:]...), h.identity()...))
}

// chainNext returns the chain value after a frame. Its tag stands for all of
// it: no other head or payload has this tag under the segment's key.
func chainNext(chain [sm3.Size]byte, frame []byte) [sm3.Size]byte {
	var b [sm3.Size + tagSize]byte
	copy(b[:], chain[:])
	copy(b[sm3.Size:], frame[len(frame)-tagSize:])
	return sm3.Sum(b[:])
}

// frame is a frame's head and where it lies.
type frame struct {
	kind byte
	seq  uint64
	at   int64
	off  int64  // in the file
	raw  []byte // the whole frame
}

func (f *frame) end() int64 { return f.off + int64(len(f.raw)) }

func nonce(kind byte, seq uint64) (n [nonceSize]byte) {
	n[3] = kind
	be.PutUint64(n[4:], seq)
	return n
}

// appendFrame seals payload and appends the frame to dst.
func appendFrame(dst []byte, aead cipher.AEAD, c Class, kind byte, seq uint64, at int64, payload []byte) []byte {
	start := len(dst)
	dst = append(dst, 'Y', 'M', kind, byte(c))
	dst = be.AppendUint32(dst, uint32(len(payload)+tagSize))
	dst = be.AppendUint64(dst, seq)
	dst = be.AppendUint64(dst, uint64(at))
	dst = append(dst, 0, 0, 0, 0)
	n := nonce(kind, seq)
	dst = aead.Seal(dst, n[:], payload, dst[start:start+24])
	f := dst[start:]
	be.PutUint32(f[24:], frameSum(f))
	return dst
}

func frameSum(f []byte) uint32 {
	return crc32.Update(crc32.Checksum(f[:24], castagnoli), castagnoli, f[frameSize:])
}

// frameLen returns the length of the frame that begins in b, or 0 if none can.
// b holds at least frameSize bytes.
func frameLen(b []byte, c Class, most int) int {
	if b[0] != 'Y' || b[1] != 'M' || b[2] > kindEnd || b[3] != byte(c) {
		return 0
	}
	if n := be.Uint32(b[4:]); n >= tagSize && n <= uint32(most) {
		return frameSize + int(n)
	}
	return 0
}

// open returns the payload in a new slice, or an error if the frame was not
// made with aead.
func (f *frame) open(aead cipher.AEAD) ([]byte, error) {
	n := nonce(f.kind, f.seq)
	p, err := aead.Open(nil, n[:], f.raw[frameSize:], f.raw[:24])
	if err != nil {
		return nil, fmt.Errorf("open record %d: %w", f.seq, err)
	}
	return p, nil
}

// appendGaps and parseGaps are the list of gaps in a gaps frame and in the
// cursor.
func appendGaps(dst []byte, gaps []Gap) []byte {
	for _, g := range gaps {
		dst = be.AppendUint64(dst, g.From)
		dst = be.AppendUint64(dst, g.To)
		dst = be.AppendUint64(dst, g.Count)
		dst = be.AppendUint64(dst, uint64(g.At.UnixNano()))
		dst = append(dst, byte(g.Reason))
	}
	return dst
}

func parseGaps(b []byte) ([]Gap, error) {
	if len(b)%gapSize != 0 {
		return nil, fmt.Errorf("read gaps: %d bytes are no list", len(b))
	}
	var gaps []Gap
	for ; len(b) > 0; b = b[gapSize:] {
		g := Gap{From: be.Uint64(b), To: be.Uint64(b[8:]), Count: be.Uint64(b[16:]), At: time.Unix(0, int64(be.Uint64(b[24:]))), Reason: Reason(b[32])}
		if g.From == 0 || g.From > g.To || g.To-g.From == ^uint64(0) || g.Count > g.To-g.From+1 {
			return nil, fmt.Errorf("read gaps: %d to %d with %d records", g.From, g.To, g.Count)
		}
		gaps = append(gaps, g)
	}
	return gaps, nil
}
