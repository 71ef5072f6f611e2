package h2

import (
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// headers begins a request, or ends the body of one with its trailer.
func (c *conn) headers(b *block) error {
	id := b.id
	c.mu.Lock()
	defer c.mu.Unlock()
	if id%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if id <= c.lastID {
		return c.trailers(b)
	}
	c.lastID = id
	if b.circular {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if c.leaving {
		return nil // it was told so
	}
	s := newStream(c, id)
	if !s.read(b) {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if len(c.streams) >= int(c.s.cfg.Streams) {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	s.tooLarge = b.truncated
	if c.streams[id] = s; len(c.streams) == 1 {
		c.looking.Arm(lookEvery)
	}
	c.s.live.Add(1) // the connection is counted still
	c.s.workers.walk(s)
	return nil
}

// trailers ends the body of a stream. mu is held.
func (c *conn) trailers(b *block) error {
	s := c.streams[b.id]
	switch {
	case s != nil && s.recvErr == nil:
	case c.onTheirWay(b.id, s):
		return nil
	case s != nil:
		return http2.StreamError{StreamID: b.id, Code: http2.ErrCodeStreamClosed}
	case slices.Contains(c.closed[:], b.id):
		return http2.ConnectionError(http2.ErrCodeStreamClosed)
	default: // a new one, below the newest
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if !b.last || len(b.fields) > 0 && b.fields[0].IsPseudo() || s.declared >= 0 && s.received != s.declared {
		return http2.StreamError{StreamID: b.id, Code: http2.ErrCodeProtocol}
	}
	for _, h := range b.fields {
		if forbidden(h.Name, h.Value) {
			return http2.StreamError{StreamID: b.id, Code: http2.ErrCodeProtocol}
		}
		s.trailer.Add(h.Name, h.Value)
	}
	s.recvErr = io.EOF
	s.wake.Broadcast()
	return nil
}

// forbidden reports a field that belongs to a connection (RFC 9113 §8.2.2).
func forbidden(name, value string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return true
	case "te":
		return value != "trailers"
	}
	return false
}

// read makes the request of b. It reports false when b is none (RFC 9113
// §8.3.1); readBlock has checked the order and the spelling.
func (s *stream) read(b *block) bool {
	x := &s.x
	var scheme, protocol string
	seen := 0
	for _, h := range b.fields {
		if !h.IsPseudo() {
			break
		}
		var to *string
		switch h.Name {
		case ":method":
			to = &x.Method
		case ":scheme":
			to = &scheme
		case ":path":
			to = &x.Target
		case ":authority":
			to = &x.Authority
		case ":protocol":
			to = &protocol
		default:
			return false
		}
		if *to != "" || h.Value == "" {
			return false // twice, or empty
		}
		*to = h.Value
		seen++
	}
	switch {
	case x.Method == "":
		return false
	case x.Method == "CONNECT" && protocol == "":
		if x.Target != "" {
			return false
		}
	case protocol != "" && x.Method != "CONNECT":
		return false
	case scheme != "https" && scheme != "http" || x.Target == "":
		return false
	}
	x.Header = s.fields[:0]
	s.declared = -1
	for _, h := range b.fields[seen:] {
		switch {
		case forbidden(h.Name, h.Value):
			return false
		case h.Name == "content-length":
			n, err := strconv.ParseUint(h.Value, 10, 62)
			if err != nil || s.declared >= 0 && s.declared != int64(n) || h.Value[0] == '+' {
				return false
			}
			s.declared = int64(n)
		case h.Name == "trailer":
			for n := range strings.SplitSeq(h.Value, ",") {
				if n = strings.Trim(n, " \t"); n != "" {
					x.Announced = append(x.Announced, n)
				}
			}
		case h.Name == "host" && x.Authority == "":
			x.Authority = h.Value // RFC 9113 §8.3.1
			continue
		}
		x.Header = append(x.Header, exchange.Field{Name: h.Name, Value: h.Value})
	}
	sent := x.Header
	x.Header = exchange.JoinCookies(sent)
	clear(sent[len(x.Header):])
	s.fields = x.Header
	x.Proto = "HTTP/2.0"
	if protocol != "" {
		return s.connect(b, protocol)
	}
	switch {
	case b.last:
		s.recvErr = io.EOF
		return s.declared <= 0
	case s.declared >= 0:
		x.Length = s.declared
	default:
		x.Length = -1
	}
	x.Body = bodyReader{s}
	if len(x.Announced) > 0 {
		x.Trailer = s.announced
	}
	return true
}

// announced returns the trailer fields that the head has announced.
func (s *stream) announced() exchange.Header {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.trailer.Named(s.x.Announced)
}
