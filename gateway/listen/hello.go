package listen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/yumen-zt/yumen/internal/reason"
)

// hello is what a ClientHello says before anything is decided (RFC 8446 §4.1.2,
// RFC 5246 §7.4.1.2, GB/T 38636-2020 §6.4.5.2.1).
type hello struct {
	raw      []byte   // every byte read so far, to be replayed to the handshake
	version  uint16   // legacy_version: 0x0303 for TLS 1.2 and 1.3, 0x0101 for TLCP
	versions []uint16 // supported_versions; empty before TLS 1.3
	suites   []uint16
	sni      string
	alpn     []string
}

const (
	versionTLCP   = 0x0101
	versionTLS12  = 0x0303
	versionTLS13  = 0x0304
	maxHello      = 32 << 10 // bytes of handshake message; a hello with post-quantum key shares is about 2 KiB
	maxRecord     = 16 << 10
	recordHeader  = 5
	typeHandshake = 22
)

// faultError is a hello that is refused, and why.
type faultError struct {
	reason reason.Reason
	detail string
}

func (e *faultError) Error() string { return e.reason.String() + ": " + e.detail }

func fault(r reason.Reason, format string, args ...any) error {
	return &faultError{r, fmt.Sprintf(format, args...)}
}

// readHello reads the whole ClientHello from r, however many records carry it,
// and nothing more. The caller sets the deadline.
func readHello(r io.Reader) (*hello, error) {
	h := &hello{raw: make([]byte, 0, 2048)}
	var message []byte // the handshake message so far
	need := 4          // bytes of message that must be there before its length is known
	for len(message) < need {
		head := len(h.raw)
		if err := h.fill(r, recordHeader); err != nil {
			return h, err
		}
		rec := h.raw[head:]
		if rec[0] != typeHandshake {
			if isHTTP(rec) {
				return h, fault(reason.PlainHTTP, "plain HTTP")
			}
			return h, fault(reason.HelloMalformed, "first byte 0x%02x is no handshake record", rec[0])
		}
		if v := binary.BigEndian.Uint16(rec[1:]); v>>8 != 3 && v != versionTLCP {
			return h, fault(reason.HelloMalformed, "record version 0x%04x", v)
		}
		n := int(binary.BigEndian.Uint16(rec[3:]))
		if n == 0 || n > maxRecord {
			return h, fault(reason.HelloMalformed, "record of %d bytes", n)
		}
		if err := h.fill(r, n); err != nil {
			return h, err
		}
		message = append(message, h.raw[head+recordHeader:]...)
		if len(message) >= 4 {
			if message[0] != 1 {
				return h, fault(reason.HelloMalformed, "handshake message %d is no client hello", message[0])
			}
			need = 4 + (int(message[1])<<16 | int(message[2])<<8 | int(message[3]))
			if need > maxHello {
				return h, fault(reason.HelloMalformed, "hello of %d bytes, at most %d", need, maxHello)
			}
		}
	}
	if !h.parse(message[4:need]) {
		return h, fault(reason.HelloMalformed, "hello cannot be read")
	}
	return h, nil
}

// fill reads n more bytes into raw.
func (h *hello) fill(r io.Reader, n int) error {
	at := len(h.raw)
	h.raw = slices.Grow(h.raw, n)[:at+n]
	m, err := io.ReadFull(r, h.raw[at:])
	h.raw = h.raw[:at+m]
	if errors.Is(err, io.ErrUnexpectedEOF) && at == 0 && isHTTP(h.raw) {
		return fault(reason.PlainHTTP, "plain HTTP")
	}
	return err
}

func isHTTP(b []byte) bool {
	for _, m := range []string{"GET ", "HEAD ", "POST ", "PUT ", "PATC", "DELE", "OPTI", "CONN", "TRAC", "PRI "} {
		if n := min(len(m), len(b)); n >= 3 && string(b[:n]) == m[:n] {
			return true
		}
	}
	return false
}

// parse reads the body of a ClientHello and reports whether it is whole.
func (h *hello) parse(b []byte) bool {
	c := cursor{b}
	h.version = c.u16()
	c.skip(32) // random
	c.vector8()
	suites := cursor{c.vector16()}
	for len(suites.b) >= 2 {
		h.suites = append(h.suites, suites.u16())
	}
	c.vector8() // compression methods
	if c.b == nil || len(suites.b) != 0 {
		return false
	}
	if len(c.b) == 0 {
		return true // no extensions
	}
	ext := cursor{c.vector16()}
	if c.b == nil || len(c.b) != 0 {
		return false
	}
	seen := map[uint16]bool{}
	for len(ext.b) > 0 {
		kind := ext.u16()
		body := cursor{ext.vector16()}
		if ext.b == nil || seen[kind] {
			return false
		}
		seen[kind] = true
		switch kind {
		case 0: // server_name
			list := cursor{body.vector16()}
			for len(list.b) > 0 {
				t := list.u8()
				name := list.vector16()
				if list.b == nil {
					return false
				}
				if t == 0 && h.sni == "" {
					h.sni = string(name)
				}
			}
		case 16: // application_layer_protocol_negotiation
			list := cursor{body.vector16()}
			for len(list.b) > 0 {
				name := list.vector8()
				if list.b == nil || len(name) == 0 {
					return false
				}
				h.alpn = append(h.alpn, string(name))
			}
		case 43: // supported_versions
			list := cursor{body.vector8()}
			for len(list.b) >= 2 {
				h.versions = append(h.versions, list.u16())
			}
		}
	}
	return ext.b != nil
}

// newest returns the newest version that the hello offers.
func (h *hello) newest() uint16 {
	v := h.version
	for _, s := range h.versions {
		if s>>8 == 3 && s > v { // GREASE values have other high bytes
			v = s
		}
	}
	return v
}

// cursor takes fields off the front of b; after a short read b is nil and every
// further field is empty.
type cursor struct{ b []byte }

func (c *cursor) skip(n int) []byte {
	if c.b == nil || len(c.b) < n {
		c.b = nil
		return nil
	}
	taken := c.b[:n:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) u8() byte {
	if b := c.skip(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.skip(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) vector8() []byte {
	n := int(c.u8())
	return c.skip(n)
}

func (c *cursor) vector16() []byte {
	n := int(c.u16())
	return c.skip(n)
}
