package mux

import (
	"encoding/binary"
	"fmt"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Kind is the first byte of a record.
type Kind uint8

// The kinds of records (docs/tunnel.md §2).
const (
	Open     Kind = 1
	Data     Kind = 2
	Window   Kind = 3
	Close    Kind = 4
	Datagram Kind = 5
	Message  Kind = 6
	Ping     Kind = 7
)

// String returns the kind's name in the protocol's text.
func (k Kind) String() string {
	if names := [...]string{"", "OPEN", "DATA", "WINDOW", "CLOSE", "DATAGRAM", "MESSAGE", "PING"}; int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Sizes in bytes.
const (
	HeaderSize  = 8
	MaxRecord   = 64 << 10
	MaxPayload  = MaxRecord - HeaderSize
	MaxOpen     = 4 << 10  // payload of OPEN
	MaxMessage  = 16 << 10 // payload of MESSAGE
	MaxDatagram = 65507
	maxCredit   = 1<<31 - 1
)

const (
	flagDatagram = 1 // OPEN: a UDP association
	flagAnswer   = 1 // PING: the answer
)

// Header is the head of a record.
type Header struct {
	Kind   Kind
	Flags  uint8
	Length int
	Flow   uint32
}

// ParseHeader reads a header and checks what can be known without a session:
// kind, flags, length and whether a flow is named. Every fault is
// FrameMalformed. fromAgent says who sent it.
func ParseHeader(b *[HeaderSize]byte, fromAgent bool) (Header, reason.Reason) {
	h := Header{
		Kind:   Kind(b[0]),
		Flags:  b[1],
		Length: int(binary.BigEndian.Uint16(b[2:])),
		Flow:   binary.BigEndian.Uint32(b[4:]),
	}
	lo, hi, flags, tunnel, flow := 0, 0, uint8(0), false, true
	switch h.Kind {
	case Open:
		lo, hi = 6, MaxOpen
		if fromAgent {
			lo, flags = 4, flagDatagram
		}
	case Data:
		lo, hi = 1, MaxPayload
	case Window:
		lo, hi = 4, 4
	case Close:
		lo, hi, tunnel = 2, 2, true
	case Datagram:
		hi = MaxDatagram
	case Message:
		lo, hi, tunnel, flow = 1, MaxMessage, true, false
	case Ping:
		lo, hi, flags, tunnel, flow = 8, 8, flagAnswer, true, false
	default:
		return h, reason.FrameMalformed
	}
	if h.Length < lo || h.Length > hi || h.Flags&^flags != 0 || h.Flow == 0 && !tunnel || h.Flow != 0 && !flow {
		return h, reason.FrameMalformed
	}
	return h, reason.OK
}

// putHeader writes h over the first HeaderSize bytes of b.
func putHeader(b []byte, h Header) {
	b[0], b[1] = byte(h.Kind), h.Flags
	binary.BigEndian.PutUint16(b[2:], uint16(h.Length))
	binary.BigEndian.PutUint32(b[4:], h.Flow)
}

// appendRecord appends a control record whose payload is parts, one after the
// other.
func appendRecord(b []byte, k Kind, flags uint8, flow uint32, parts ...[]byte) []byte {
	var head [HeaderSize]byte
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	putHeader(head[:], Header{Kind: k, Flags: flags, Length: n, Flow: flow})
	b = append(b, head[:]...)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func u16(r reason.Reason) []byte { return binary.BigEndian.AppendUint16(nil, uint16(r)) }

func u32(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
