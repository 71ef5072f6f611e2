package message

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Why a message is refused. Everything that two programs may read differently
// is, whether or not RFC 9112 would permit a reading.
var (
	ErrLineEnd    = errors.New("a line does not end in CR LF")
	ErrByte       = errors.New("a control character in the head")
	ErrLine       = errors.New("the first line is malformed")
	ErrVersion    = errors.New("the version is not HTTP/1.0 or HTTP/1.1")
	ErrFold       = errors.New("a line begins with a space")
	ErrField      = errors.New("a field is malformed")
	ErrHosts      = errors.New("not exactly one Host")
	ErrLength     = errors.New("Content-Length is not one plain number")
	ErrEncoding   = errors.New("Transfer-Encoding is not chunked alone")
	ErrBoth       = errors.New("Content-Length and Transfer-Encoding together")
	ErrOldChunked = errors.New("Transfer-Encoding in HTTP/1.0")
	ErrExpect     = errors.New("an expectation other than 100-continue")
	ErrLong       = errors.New("a head is too long")
	ErrFields     = errors.New("a head has too many fields")
	ErrChunk      = errors.New("a chunk's size is malformed")
	ErrTrailer    = errors.New("a trailer field is malformed or frames the message")
)

// Malformed reports whether err says that a message breaks the grammar, as
// opposed to a connection that failed.
func Malformed(err error) bool {
	for _, e := range []error{ErrLineEnd, ErrByte, ErrLine, ErrVersion, ErrFold, ErrField, ErrHosts, ErrLength, ErrEncoding, ErrBoth,
		ErrOldChunked, ErrExpect, ErrLong, ErrFields, ErrChunk, ErrTrailer} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Head is the head of a message. Its strings stay valid; Fields is used again
// by the next ReadRequest or ReadAnswer into the same Head.
type Head struct {
	Method, Target string          // of a request
	Status         int             // of an answer
	Minor          int             // HTTP/1.Minor
	Host           string          // of a request; "" when there is none (HTTP/1.0)
	Fields         exchange.Header // as sent, in order; a request's without Host
	Length         int64           // Content-Length, -1 when there is none
	Chunked        bool            // Transfer-Encoding: chunked
	Close          bool            // Connection says close
	KeepAlive      bool            // Connection says keep-alive
	Expect         bool            // 100-continue
	Trailers       []string        // names that Trailer announces

	answer bool
	hosts  int
	lines  []mark
}

// Clear forgets the head: its strings may be long.
func (h *Head) Clear() {
	clear(h.Fields)
	*h = Head{Fields: h.Fields[:0], lines: h.lines[:0]}
}

// mark is where the parts of a line are.
type mark struct{ name, nameEnd, value, valueEnd int32 }

// Limits of a head.
type Limits struct {
	Bytes  int // of the whole head
	Fields int // number of fields
}

// ReadRequest reads the head of a request into h. The errors of this package
// say what is malformed; it is noticed at the first line at fault. io.EOF means
// that the connection ended between two messages.
func (r *Reader) ReadRequest(h *Head, l Limits) error {
	*h = Head{Length: -1, Fields: h.Fields[:0], lines: h.lines[:0]}
	return r.readHead(h, l)
}

// ReadAnswer reads the head of an answer into h. It is as strict as
// ReadRequest, except that lines may end in LF alone and that a
// Transfer-Encoding replaces a Content-Length beside it.
func (r *Reader) ReadAnswer(h *Head, l Limits) error {
	*h = Head{Length: -1, Fields: h.Fields[:0], lines: h.lines[:0], answer: true}
	return r.readHead(h, l)
}

func (r *Reader) readHead(h *Head, l Limits) error {
	at, scanned := 0, 0 // behind r.r: the line begins, the search for its end goes on
	first := true
	for {
		for r.buf != nil {
			b := (*r.buf)[r.r:r.w]
			end := bytes.IndexByte(b[scanned:], '\n')
			if end < 0 {
				scanned = len(b)
				break
			}
			end += scanned
			if end+1 > l.Bytes {
				return ErrLong
			}
			done, err := h.line(b[at:end], at, first)
			if err != nil {
				return err
			}
			first = false
			at, scanned = end+1, end+1
			if done {
				return r.finish(h, b[:at], l)
			}
			if len(h.lines) > l.Fields+1 {
				return ErrFields
			}
		}
		if scanned > l.Bytes {
			return ErrLong
		}
		if err := r.fill(); err != nil {
			if scanned == 0 {
				return err
			}
			return short(err)
		}
	}
}

// line checks one line, without its LF, that begins at off, and notes where its
// parts are. It reports the head's end.
func (h *Head) line(b []byte, off int, first bool) (done bool, err error) {
	switch n := len(b); {
	case n > 0 && b[n-1] == '\r':
		b = b[:n-1]
	case !h.answer:
		return false, ErrLineEnd
	}
	if first {
		return false, h.firstLine(b)
	}
	if len(b) == 0 {
		return true, nil
	}
	colon := 0
	for colon < len(b) && tokenByte[b[colon]] {
		colon++
	}
	switch {
	case b[0] == ' ' || b[0] == '\t':
		return false, ErrFold
	case colon == 0 || colon == len(b) || b[colon] != ':':
		if exchange.HasControl(b) {
			return false, ErrByte
		}
		return false, ErrField
	}
	v, e := colon+1, len(b)
	for v < e && (b[v] == ' ' || b[v] == '\t') {
		v++
	}
	for e > v && (b[e-1] == ' ' || b[e-1] == '\t') {
		e--
	}
	if exchange.HasControl(b[v:e]) {
		return false, ErrByte
	}
	h.lines = append(h.lines, mark{int32(off), int32(off + colon), int32(off + v), int32(off + e)})
	return false, h.special(b[:colon], b[v:e])
}

var tokenByte [256]bool

func init() {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		tokenByte[c] = true
	}
}

// firstLine checks the request line or the status line. Where its parts are is
// noted as a mark: method and target, or the status alone.
func (h *Head) firstLine(b []byte) error {
	if exchange.HasControl(b) {
		return ErrByte
	}
	if h.answer {
		return h.statusLine(b)
	}
	m := 0
	for m < len(b) && tokenByte[b[m]] {
		m++
	}
	if m == 0 || m == len(b) || b[m] != ' ' {
		return ErrLine
	}
	t := bytes.IndexByte(b[m+1:], ' ')
	if t <= 0 || bytes.IndexByte(b[m+1:m+1+t], '\t') >= 0 {
		return ErrLine
	}
	t += m + 1
	switch string(b[t+1:]) {
	case "HTTP/1.1":
		h.Minor = 1
	case "HTTP/1.0":
	default:
		return ErrVersion
	}
	h.lines = append(h.lines, mark{0, int32(m), int32(m + 1), int32(t)})
	return nil
}

func (h *Head) statusLine(b []byte) error {
	if len(b) < 12 || string(b[:7]) != "HTTP/1." || b[8] != ' ' || len(b) > 12 && b[12] != ' ' {
		return ErrLine
	}
	switch b[7] {
	case '1':
		h.Minor = 1
	case '0':
	default:
		return ErrVersion
	}
	for _, c := range b[9:12] {
		if c < '0' || c > '9' {
			return ErrLine
		}
		h.Status = h.Status*10 + int(c-'0')
	}
	if h.Status < 100 || h.Status > 599 {
		return ErrLine
	}
	h.lines = append(h.lines, mark{})
	return nil
}

// special reads the fields that frame the message or speak of the connection.
func (h *Head) special(name, value []byte) error {
	switch len(name) {
	case 4:
		if !h.answer && fold(name, "host") {
			h.hosts++
		}
	case 6:
		if !h.answer && fold(name, "expect") {
			if !fold(value, "100-continue") {
				return ErrExpect
			}
			h.Expect = true
		}
	case 7:
		if fold(name, "trailer") {
			for n := range strings.SplitSeq(string(value), ",") {
				if n = strings.Trim(n, " \t"); n != "" {
					h.Trailers = append(h.Trailers, n)
				}
			}
		}
	case 10:
		if fold(name, "connection") {
			h.connection(value)
		}
	case 14:
		if fold(name, "content-length") {
			return h.contentLength(value)
		}
	case 17:
		if fold(name, "transfer-encoding") {
			if h.Chunked || !fold(value, "chunked") {
				return ErrEncoding
			}
			h.Chunked = true
		}
	}
	return nil
}

func (h *Head) contentLength(value []byte) error {
	if len(value) == 0 || len(value) > 18 {
		return ErrLength
	}
	n := int64(0)
	for _, c := range value {
		if c < '0' || c > '9' {
			return ErrLength
		}
		n = n*10 + int64(c-'0')
	}
	if h.Length >= 0 && (!h.answer || h.Length != n) {
		return ErrLength
	}
	h.Length = n
	return nil
}

func (h *Head) connection(value []byte) {
	for len(value) > 0 {
		t := value
		if i := bytes.IndexByte(value, ','); i >= 0 {
			t, value = value[:i], value[i+1:]
		} else {
			value = nil
		}
		switch t = bytes.Trim(t, " \t"); {
		case fold(t, "close"):
			h.Close = true
		case fold(t, "keep-alive"):
			h.KeepAlive = true
		}
	}
}

// finish judges the whole head, and makes strings of it: one for all of them.
func (r *Reader) finish(h *Head, b []byte, l Limits) error {
	switch {
	case len(h.lines)-1 > l.Fields:
		return ErrFields
	case h.answer && h.Chunked:
		// Somebody may have read it otherwise: the last one here (RFC 9112 §6.1, §6.3).
		h.Close = h.Close || h.Length >= 0 || h.Minor == 0
		h.Length = -1
	case h.answer:
	case h.hosts > 1 || h.hosts == 0 && h.Minor > 0:
		return ErrHosts
	case h.Chunked && h.Length >= 0:
		return ErrBoth
	case h.Chunked && h.Minor == 0:
		return ErrOldChunked
	}
	s := string(b)
	r.r += len(b)
	if m := h.lines[0]; !h.answer {
		h.Method, h.Target = method(s[m.name:m.nameEnd]), s[m.value:m.valueEnd]
	}
	for _, m := range h.lines[1:] {
		f := exchange.Field{Name: s[m.name:m.nameEnd], Value: s[m.value:m.valueEnd]}
		if !h.answer && len(f.Name) == 4 && strings.EqualFold(f.Name, "host") {
			h.Host = f.Value
			continue
		}
		h.Fields = append(h.Fields, f)
	}
	return nil
}

// method returns m, without keeping the head alive for the usual ones.
func method(m string) string {
	switch m {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "HEAD":
		return "HEAD"
	}
	return m
}

// fold compares b with s, which is in lower case, without regard to case.
func fold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

var _ io.Reader = (*Reader)(nil)
