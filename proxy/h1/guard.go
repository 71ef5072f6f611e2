package h1

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Why the guard rejects. net/http answers 400 to each and closes.
var (
	errLineEnd    = errors.New("a line does not end in CR LF")
	errByte       = errors.New("a control character in the head")
	errLine       = errors.New("the request line is malformed")
	errVersion    = errors.New("the version is not HTTP/1.0 or HTTP/1.1")
	errFold       = errors.New("a line begins with a space")
	errField      = errors.New("a field is malformed")
	errHosts      = errors.New("not exactly one Host")
	errLength     = errors.New("Content-Length is not one plain number")
	errEncoding   = errors.New("Transfer-Encoding is not chunked alone")
	errBoth       = errors.New("Content-Length and Transfer-Encoding together")
	errOldChunked = errors.New("Transfer-Encoding in HTTP/1.0")
	errExpect     = errors.New("an expectation other than 100-continue")
	errLong       = errors.New("a head is too long")
	errChunk      = errors.New("a chunk's size is malformed")
	errTrailer    = errors.New("a trailer field is malformed or frames the message")
)

// guard is a connection that reads along with net/http, and rejects a request
// whose framing two programs may read differently. It never changes a byte and
// never decides where a request ends for anybody else: its grammar is so
// strict that there is one reading of what it lets pass. Each head must be
// pure CR LF lines without folding, with one Host, at most one of one plain
// Content-Length and "Transfer-Encoding: chunked"; chunks have plain sizes
// without extensions.
//
// The bytes before a line at fault are delivered, the line never is, so
// net/http cannot begin to serve the request that holds it.
type guard struct {
	net.Conn
	conn      *exchange.Conn
	malformed func(*exchange.Conn, error)

	off    atomic.Bool // after an upgrade
	closed chan struct{}
	once   sync.Once

	// Used by Read alone; net/http has one reader at a time.
	fault error
	scan  scanner
}

func newGuard(c *exchange.Conn, headerBytes int, malformed func(*exchange.Conn, error)) *guard {
	// net/http takes 4096 bytes more than it is told.
	return &guard{Conn: c, conn: c, malformed: malformed, closed: make(chan struct{}), scan: scanner{limit: headerBytes + 4096}}
}

// NetConn returns the connection below.
func (g *guard) NetConn() net.Conn { return g.conn.Conn }

// release ends the guard's watch: what follows is not HTTP.
func (g *guard) release() { g.off.Store(true) }

// Read reads for net/http.
func (g *guard) Read(p []byte) (int, error) {
	if g.fault != nil {
		return 0, g.fault
	}
	n, err := g.Conn.Read(p)
	if n == 0 || g.off.Load() {
		return n, err
	}
	good, fault := g.scan.feed(p[:n])
	if fault == nil {
		return n, err
	}
	g.fault = fault
	g.malformed(g.conn, fault)
	if good == 0 {
		return 0, fault
	}
	return good, nil
}

// CloseWrite ends this side's sending, where the connection can.
func (g *guard) CloseWrite() error {
	if c, ok := g.Conn.(*exchange.Conn).Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close closes the connection and tells who waits for it.
func (g *guard) Close() error {
	err := g.Conn.Close()
	g.once.Do(func() { close(g.closed) })
	return err
}

type state uint8

const (
	requestLine state = iota
	field
	body
	chunkSize
	chunkData
	chunkEnd
	trailer
)

// scanner follows the framing of one connection's requests.
type scanner struct {
	limit int // of a head's bytes, and of a trailer's

	state   state
	line    []byte // of a line that has come in parts
	size    int    // of the head or trailer so far
	left    int64  // of the body or chunk
	old     bool   // HTTP/1.0
	hosts   int
	lengths int
	length  int64
	chunked int
}

// feed takes the next bytes. On a fault it returns how many bytes stand before
// the line at fault, as far as they are in p.
func (s *scanner) feed(p []byte) (good int, err error) {
	for at := 0; at < len(p); {
		switch s.state {
		case body, chunkData:
			n := int(min(s.left, int64(len(p)-at)))
			at += n
			if s.left -= int64(n); s.left > 0 {
				continue
			}
			if s.state == body {
				s.reset()
			} else {
				s.state = chunkEnd
			}
			continue
		}
		end := bytes.IndexByte(p[at:], '\n')
		if end < 0 {
			if s.size += len(p) - at; s.size > s.limit {
				return at, errLong
			}
			s.line = append(s.line, p[at:]...)
			return len(p), nil
		}
		line := p[at : at+end+1]
		if s.size += len(line); s.size > s.limit {
			return at, errLong
		}
		if len(s.line) > 0 {
			line = append(s.line, line...)
			s.line = nil // heads that come in parts are rare: hold nothing while idle
		}
		if err := s.take(line); err != nil {
			return at, err
		}
		at += end + 1
	}
	return len(p), nil
}

func (s *scanner) reset() {
	*s = scanner{limit: s.limit}
}

// take judges one line with its end.
func (s *scanner) take(line []byte) error {
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return errLineEnd
	}
	line = line[:len(line)-2]
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return errByte
		}
	}
	switch s.state {
	case requestLine:
		return s.takeRequestLine(line)
	case field:
		if len(line) == 0 {
			return s.endHead()
		}
		return s.takeField(line)
	case chunkSize:
		return s.takeChunkSize(line)
	case chunkEnd:
		if len(line) != 0 {
			return errChunk
		}
		s.state, s.size = chunkSize, 0
	case trailer:
		if len(line) == 0 {
			s.reset()
			return nil
		}
		return s.takeTrailer(line)
	}
	return nil
}

func (s *scanner) takeRequestLine(line []byte) error {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 || len(target) == 0 || !isToken(method) || bytes.IndexByte(target, '\t') >= 0 {
		return errLine
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		s.old = true
	default:
		return errVersion
	}
	s.state = field
	return nil
}

func (s *scanner) takeField(line []byte) error {
	name, value, err := splitField(line)
	if err != nil {
		return err
	}
	switch {
	case equalFold(name, "host"):
		s.hosts++
	case equalFold(name, "content-length"):
		if len(value) == 0 || len(value) > 18 {
			return errLength
		}
		s.length = 0
		for _, c := range value {
			if c < '0' || c > '9' {
				return errLength
			}
			s.length = s.length*10 + int64(c-'0')
		}
		if s.lengths++; s.lengths > 1 {
			return errLength
		}
	case equalFold(name, "expect"):
		if !equalFold(value, "100-continue") {
			return errExpect // net/http answers 417, and then waits for the body without a limit
		}
	case equalFold(name, "transfer-encoding"):
		if !equalFold(value, "chunked") {
			return errEncoding
		}
		if s.chunked++; s.chunked > 1 {
			return errEncoding
		}
	}
	return nil
}

// splitField returns the name and the value without its outer spaces.
func splitField(line []byte) (name, value []byte, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return nil, nil, errFold
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) {
		return nil, nil, errField
	}
	return name, bytes.Trim(value, " \t"), nil
}

func (s *scanner) endHead() error {
	switch {
	case s.hosts > 1 || s.hosts == 0 && !s.old:
		return errHosts
	case s.chunked > 0 && s.lengths > 0:
		return errBoth
	case s.chunked > 0 && s.old:
		return errOldChunked
	case s.chunked > 0:
		s.state, s.size = chunkSize, 0
	case s.length > 0:
		s.state, s.left, s.size = body, s.length, 0
	default:
		s.reset()
	}
	return nil
}

func (s *scanner) takeChunkSize(line []byte) error {
	if len(line) == 0 || len(line) > 15 {
		return errChunk
	}
	s.left = 0
	for _, c := range line {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return errChunk // chunk extensions, too
		}
		s.left = s.left<<4 | int64(c)
	}
	s.size = 0
	if s.state = chunkData; s.left == 0 {
		s.state = trailer
	}
	return nil
}

func (s *scanner) takeTrailer(line []byte) error {
	name, _, err := splitField(line)
	if err != nil {
		return errTrailer
	}
	for _, bad := range []string{"host", "content-length", "transfer-encoding", "trailer", "connection"} {
		if equalFold(name, bad) {
			return errTrailer
		}
	}
	return nil
}

// equalFold compares b with s, which is in lower case, without regard to case.
func equalFold(b []byte, s string) bool {
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

func isToken(b []byte) bool {
	for _, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0:
		default:
			return false
		}
	}
	return len(b) > 0
}
