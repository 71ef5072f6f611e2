package h3

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// Types of frames (RFC 9114 §7.2, RFC 9218 §7.2).
const (
	frameData        = 0x0
	frameHeaders     = 0x1
	frameCancelPush  = 0x3
	frameSettings    = 0x4
	framePushPromise = 0x5
	frameGoAway      = 0x7
	frameMaxPushID   = 0xd
)

// Types of one-way streams (RFC 9114 §6.2, RFC 9204 §4.2).
const (
	streamControl = 0x0
	streamPush    = 0x1
	streamEncoder = 0x2
	streamDecoder = 0x3
)

// Settings (RFC 9114 §7.2.4.1, RFC 9204 §5, RFC 9220 §3).
const (
	settingMaxFieldSection        = 0x6
	settingExtendedConnect        = 0x8
	maxSettings                   = 64
	maxSettingsFrame              = 4 << 10
	maxPushIDs             uint64 = 1<<62 - 1
)

// code is an error code of RFC 9114 §8.1 or RFC 9204 §6.
type code uint64

const (
	errNo                code = 0x100
	errInternal          code = 0x102
	errStreamCreation    code = 0x103
	errClosedCritical    code = 0x104
	errFrameUnexpected   code = 0x105
	errFrame             code = 0x106
	errExcessiveLoad     code = 0x107
	errID                code = 0x108
	errSettings          code = 0x109
	errMissingSettings   code = 0x10a
	errRequestRejected   code = 0x10b
	errRequestCancelled  code = 0x10c
	errRequestIncomplete code = 0x10d
	errMessage           code = 0x10e
	errDecompression     code = 0x200
	errEncoderStream     code = 0x201
	errDecoderStream     code = 0x202
)

// connError ends the connection, streamError one stream.
type (
	connError   struct{ code code }
	streamError struct {
		code code
		why  string
	}
)

func (e connError) Error() string { return fmt.Sprintf("h3: connection error %#x", uint64(e.code)) }
func (e streamError) Error() string {
	return fmt.Sprintf("h3: stream error %#x: %s", uint64(e.code), e.why)
}

// forbiddenFrame reports the types of HTTP/2 that must not come (RFC 9114
// §7.2.8).
func forbiddenFrame(t uint64) bool { return t == 0x2 || t == 0x6 || t == 0x8 || t == 0x9 }

// maxUnknown is how many frames of unknown types, or without content, may come in
// a row, and maxUnknownBytes how long each may be.
const (
	maxUnknown      = 100
	maxUnknownBytes = 16 << 10
	perRequest      = 4 // further ones on the control stream for each request, such as its priority (RFC 9218 §7)
)

// reader reads frames of one stream.
type reader struct {
	*bufio.Reader
	unknown int // in a row
}

// header reads the type and length of the next frame. io.EOF: the stream has
// ended between two frames; io.ErrUnexpectedEOF: within one.
func (r *reader) header() (t, n uint64, err error) {
	if t, err = quicvarint.Read(r.Reader); err != nil {
		return 0, 0, err
	}
	if n, err = quicvarint.Read(r.Reader); err != nil {
		return 0, 0, within(err)
	}
	return t, n, nil
}

// within is what the end of a stream means inside a frame.
func within(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// firstBlock is how much room a field section has before any of it has come.
const firstBlock = 1 << 10

// block reads n bytes. It holds about as much as has come, whatever n says: a
// client must send what it makes us keep.
func (r *reader) block(n int) ([]byte, error) {
	b := make([]byte, 0, min(n, firstBlock))
	for len(b) < n {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(2*len(b), n)), b...)
		}
		m, err := r.Read(b[len(b):cap(b)])
		if b = b[:len(b)+m]; err != nil && len(b) < n {
			return nil, err
		}
	}
	return b, nil
}

// skip passes over a frame of an unknown type (RFC 9114 §9).
func (r *reader) skip(n uint64) error {
	if r.unknown++; r.unknown > maxUnknown || n > maxUnknownBytes {
		return connError{errExcessiveLoad}
	}
	if _, err := io.CopyN(io.Discard, r.Reader, int64(n)); err != nil {
		return within(err)
	}
	return nil
}

// appendFrame appends the head of a frame.
func appendFrame(b []byte, t, n uint64) []byte {
	return quicvarint.Append(quicvarint.Append(b, t), n)
}
