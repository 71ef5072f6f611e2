// Package hello reads the first message of a connection before anything is
// decided about it: the ClientHello of TLS (RFC 8446 §4.1.2, RFC 5246
// §7.4.1.2) or of TLCP (GB/T 38636-2020 §6.4.5.2.1), so that one port can serve
// both, choose by server name and application protocol, and say what a client
// that it refuses had offered.
//
//	conn.SetReadDeadline(time.Now().Add(5 * time.Second)) // the caller's, for the whole hello
//	h, err := hello.Read(conn)                            // [*Error]: it is no hello, and what it is
//	conn = hello.Replay(conn, h.Raw)                      // the handshake reads from the beginning
//	if h.TLCP() { ... tlcp.Server(conn, ...) } else { ... tls.Server(conn, ...) }
//
// Nothing is verified and nothing is answered here.
package hello

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Versions as they stand on the wire.
const (
	VersionSSL2  uint16 = 0x0002
	VersionTLCP  uint16 = 0x0101 // GB/T 38636-2020; also GM/T 0024
	VersionTLS12 uint16 = 0x0303
	VersionTLS13 uint16 = 0x0304
)

// What a hello may take.
const (
	maxMessage    = 32 << 10 // bytes of handshake message; a hello with post-quantum key shares is about 2 KiB
	maxRecord     = 16 << 10
	maxRaw        = 2 * maxMessage // with the headers of its records, which may be tiny
	recordHeader  = 5
	typeHandshake = 22
)

// Hello is what a client offers. Its memory is the reader's own.
type Hello struct {
	// Raw is every byte that was read, also after an error, for [Replay].
	Raw []byte

	Version    uint16   // legacy_version: VersionTLS12 for TLS 1.2 and 1.3
	Versions   []uint16 // supported_versions; empty before TLS 1.3
	Suites     []uint16 // cipher suites in the client's order
	Groups     []uint16 // supported_groups
	Signatures []uint16 // signature_algorithms
	ServerName string   // SNI as sent; empty when absent
	ALPN       []string // application protocols in the client's order
}

// Error is a first message that is no hello, and what it is instead.
type Error struct {
	Reason reason.Reason // PlainHTTP, TLSVersion for SSLv2, HelloMalformed
	Detail string
}

// Error returns the reason's name and the detail.
func (e *Error) Error() string { return e.Reason.String() + ": " + e.Detail }

func fault(r reason.Reason, format string, args ...any) error {
	return &Error{r, fmt.Sprintf(format, args...)}
}

// Read reads the whole ClientHello from r, however many records carry it, and
// nothing more; the caller sets the deadline. It keeps what has arrived, and no
// more memory than twice that and 512 bytes, at most 64 KiB. The Hello is never
// nil. Errors are [*Error] for what is no hello, and r's own.
func Read(r io.Reader) (*Hello, error) {
	h := &Hello{}
	var message []byte // the handshake message so far
	need := 4          // bytes of message that must be there before its length is known
	var tlcp bool      // by the version of the records
	for len(message) < need {
		head := len(h.Raw)
		if err := h.fill(r, recordHeader); err != nil {
			return h, err
		}
		rec := h.Raw[head:]
		if rec[0] != typeHandshake {
			return h, notHandshake(rec, head == 0)
		}
		if v := binary.BigEndian.Uint16(rec[1:]); v>>8 != 3 && v != VersionTLCP {
			return h, fault(reason.HelloMalformed, "record version 0x%04x", v)
		} else if head > 0 && tlcp != (v == VersionTLCP) {
			return h, fault(reason.TLSVersion, "records of TLS and of TLCP in one hello")
		} else {
			tlcp = v == VersionTLCP
		}
		n := int(binary.BigEndian.Uint16(rec[3:]))
		if n == 0 || n > maxRecord || len(h.Raw)+n > maxRaw {
			return h, fault(reason.HelloMalformed, "record of %d bytes after %d", n, head)
		}
		if err := h.fill(r, n); err != nil {
			return h, err
		}
		if body := h.Raw[head+recordHeader : len(h.Raw) : len(h.Raw)]; message == nil {
			message = body // usually all of it: no copy
		} else {
			message = append(message, body...) // the first time it leaves Raw: its capacity ends with the record
		}
		if len(message) >= 4 {
			if message[0] != 1 {
				return h, fault(reason.HelloMalformed, "handshake message %d is no client hello", message[0])
			}
			need = 4 + (int(message[1])<<16 | int(message[2])<<8 | int(message[3]))
			if need > maxMessage {
				return h, fault(reason.HelloMalformed, "hello of %d bytes, at most %d", need, maxMessage)
			}
		}
	}
	if !h.parse(message[4:need]) {
		return h, fault(reason.HelloMalformed, "hello cannot be read")
	}
	if tlcp != h.TLCP() {
		return h, fault(reason.TLSVersion, "a hello of version 0x%04x in records of the other protocol", h.Version)
	}
	return h, nil
}

// notHandshake says what a record is that carries no handshake message.
func notHandshake(rec []byte, first bool) error {
	switch {
	case first && isHTTP(rec):
		return fault(reason.PlainHTTP, "plain HTTP")
	case first && rec[0]&0x80 != 0 && rec[2] == 1 && rec[3] <= 3: // RFC 5246 appendix E.2
		return fault(reason.TLSVersion, "a hello of SSL 2.0")
	}
	return fault(reason.HelloMalformed, "first byte 0x%02x is no handshake record", rec[0])
}

// fill reads n more bytes into Raw, growing it as they arrive: a length that is
// claimed costs nothing.
func (h *Hello) fill(r io.Reader, n int) error {
	start := len(h.Raw)
	for end := start + n; len(h.Raw) < end; {
		if len(h.Raw) == cap(h.Raw) {
			h.Raw = slices.Grow(h.Raw, min(end-len(h.Raw), max(512, len(h.Raw)/2)))
		}
		at := len(h.Raw)
		m, err := r.Read(h.Raw[at:min(end, cap(h.Raw))])
		h.Raw = h.Raw[:at+m]
		if err == nil || len(h.Raw) == end {
			continue
		}
		if errors.Is(err, io.EOF) && len(h.Raw) > 0 {
			err = io.ErrUnexpectedEOF
			if start == 0 && isHTTP(h.Raw) {
				err = fault(reason.PlainHTTP, "plain HTTP")
			}
		}
		return err
	}
	return nil
}

func isHTTP(b []byte) bool {
	for _, m := range []string{"GET ", "HEAD ", "POST ", "PUT ", "PATC", "DELE", "OPTI", "CONN", "TRAC", "PRI "} {
		if n := min(len(m), len(b)); n >= 3 && string(b[:n]) == m[:n] {
			return true
		}
	}
	return false
}

// Newest returns the newest version that h offers. TLCP has one alone, whatever
// the extensions say.
func (h *Hello) Newest() uint16 {
	v := h.Version
	if h.TLCP() {
		return v
	}
	for _, s := range h.Versions {
		if s>>8 == 3 && s > v { // GREASE values have other high bytes
			v = s
		}
	}
	return v
}

// TLCP reports whether h is a hello of GB/T 38636.
func (h *Hello) TLCP() bool { return h.Version == VersionTLCP }

// ListsTLCP reports whether h is a TLS hello of a client that would also speak
// TLCP: it lists E053 or E013. Browsers that do so try TLCP when TLS ends with
// handshake_failure, and never when it succeeds.
func (h *Hello) ListsTLCP() bool {
	return !h.TLCP() && slices.ContainsFunc(h.Suites, func(s uint16) bool { return s == 0xe053 || s == 0xe013 })
}

// Describe returns what h offers in a line of at most a few hundred bytes, for
// logs and audit records. It holds no text that the client chose.
func (h *Hello) Describe() string {
	if h.Version == 0 {
		return "no hello"
	}
	var b strings.Builder
	versions := h.Versions
	if len(versions) == 0 {
		versions = []uint16{h.Version}
	}
	list(&b, "offered versions", versions, versionName)
	list(&b, "; suites", h.Suites, func(v uint16) string { return fmt.Sprintf("%04X", v) })
	list(&b, "; groups", h.Groups, func(v uint16) string { return fmt.Sprintf("%04X", v) })
	return b.String()
}

func list(b *strings.Builder, what string, values []uint16, name func(uint16) string) {
	const most = 24
	if len(values) == 0 {
		return
	}
	b.WriteString(what)
	for i, v := range values {
		if i == most {
			fmt.Fprintf(b, " and %d more", len(values)-most)
			return
		}
		b.WriteString(" " + name(v))
	}
}

func versionName(v uint16) string {
	switch {
	case v == VersionTLCP:
		return "TLCP"
	case v>>8 == 3:
		return strings.ReplaceAll(tls.VersionName(v), " ", "")
	}
	return fmt.Sprintf("%04X", v)
}
