package h3

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/quic-go/qpack"
	"golang.org/x/net/http/httpguts"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// head reads the request's HEADERS frame. A head that is too large is read no
// further, and answered.
func (s *stream) head() error {
	_ = s.str.SetReadDeadline(time.Now().Add(s.c.s.cfg.HeaderTimeout))
	for {
		t, n, err := s.r.header()
		if err != nil {
			return err
		}
		switch {
		case t == frameHeaders:
			fields, large, err := s.fields(n)
			if err != nil {
				return err
			}
			_ = s.str.SetReadDeadline(time.Time{})
			if s.tooLarge = large; large {
				return nil
			}
			return s.request(fields)
		case t <= frameMaxPushID && t != 0xa && t != 0xb && t != 0xc:
			return connError{errFrameUnexpected}
		}
		if err := s.r.skip(n); err != nil {
			return err
		}
	}
}

// fieldOverhead is what a field counts beside its letters (RFC 9114 §4.2.2).
const fieldOverhead = 32

// fields reads and decodes a field section of n coded bytes. large: it is more
// than we take.
func (s *stream) fields(n uint64) (fields exchange.Header, large bool, err error) {
	most := s.c.s.cfg.HeaderBytes
	if n > uint64(most) {
		return nil, true, nil
	}
	block, err := s.r.block(int(n))
	if err != nil {
		return nil, false, within(err)
	}
	next := qpack.NewDecoder().Decode(block)
	for {
		f, err := next()
		if err == io.EOF {
			return fields, false, nil
		}
		if err != nil {
			return nil, false, connError{errDecompression}
		}
		if most -= len(f.Name) + len(f.Value) + fieldOverhead; most < 0 {
			return nil, true, nil
		}
		if !validName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
			return nil, false, streamError{errMessage, "field " + strconv.Quote(f.Name)}
		}
		fields = append(fields, exchange.Field{Name: f.Name, Value: f.Value})
	}
}

// validName wants a token in lower case, behind a colon for a pseudo-header.
func validName(n string) bool {
	n = strings.TrimPrefix(n, ":")
	for i := 0; i < len(n); i++ {
		if c := n[i]; c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return httpguts.ValidHeaderFieldName(n)
}

// forbidden reports a field that belongs to a connection (RFC 9114 §4.2).
func forbidden(f exchange.Field) bool {
	switch f.Name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings":
		return true
	case "te":
		return f.Value != "trailers"
	}
	return false
}

// request makes the request of its fields (RFC 9114 §4.3.1).
func (s *stream) request(fields exchange.Header) error {
	bad := func(why string) error { return streamError{errMessage, why} }
	x := &s.x
	var scheme, protocol string
	pseudo := 0
	for _, f := range fields {
		if f.Name[0] != ':' {
			break
		}
		var to *string
		switch f.Name {
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
			return bad("pseudo-header " + strconv.Quote(f.Name))
		}
		if *to != "" || f.Value == "" {
			return bad(f.Name + " twice, or empty")
		}
		*to = f.Value
		pseudo++
	}
	switch {
	case x.Method == "":
		return bad("no :method")
	case x.Method == "CONNECT" && protocol == "":
		if scheme != "" || x.Target != "" {
			return bad("CONNECT with :scheme or :path")
		}
	case protocol != "" && x.Method != "CONNECT":
		return bad(":protocol without CONNECT")
	case scheme != "https" || x.Target == "":
		return bad(":scheme or :path")
	}
	if err := s.regular(fields[pseudo:]); err != nil {
		return err
	}
	x.Proto = "HTTP/3.0"
	if protocol != "" {
		return s.connect(protocol)
	}
	if ended, err := s.endsHere(); err != nil {
		return err
	} else if ended {
		if s.declared > 0 {
			return bad("a body that is not there")
		}
		return nil
	}
	x.Length = s.declared
	x.Body = bodyReader{s}
	if len(x.Announced) > 0 {
		x.Trailer = s.announced
	}
	return nil
}

// regular takes the fields after the pseudo-headers.
func (s *stream) regular(fields exchange.Header) error {
	x := &s.x
	x.Header = make(exchange.Header, 0, len(fields))
	hosts := 0
	s.declared = -1
	for _, f := range fields {
		switch {
		case f.Name[0] == ':':
			return streamError{errMessage, "a pseudo-header behind others"}
		case forbidden(f):
			return streamError{errMessage, "connection field " + f.Name}
		case f.Name == "content-length":
			n, err := strconv.ParseUint(f.Value, 10, 62)
			if err != nil || s.declared >= 0 && s.declared != int64(n) || f.Value[0] == '+' {
				return streamError{errMessage, "Content-Length"}
			}
			s.declared = int64(n)
		case f.Name == "trailer":
			for n := range strings.SplitSeq(f.Value, ",") {
				if n = strings.Trim(n, " \t"); n != "" {
					x.Announced = append(x.Announced, n)
				}
			}
		case f.Name == "host":
			if hosts++; hosts > 1 {
				return streamError{errMessage, "Host twice"}
			}
			if x.Authority == "" {
				x.Authority = f.Value
				continue
			}
		}
		x.Header = append(x.Header, f)
	}
	x.Header = exchange.JoinCookies(x.Header)
	return nil
}

// endsHere reports whether the client has ended its side with the head: a
// request without a body. For a method that has none as a rule it waits for the
// end, or for a first byte.
func (s *stream) endsHere() (bool, error) {
	until := past
	switch s.x.Method {
	case "POST", "PUT", "PATCH", "CONNECT":
	default:
		if s.declared < 0 {
			until = time.Now().Add(s.c.s.cfg.HeaderTimeout)
		}
	}
	_ = s.str.SetReadDeadline(until)
	_, err := s.r.Peek(1)
	_ = s.str.SetReadDeadline(time.Time{})
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	case errors.Is(err, io.EOF):
		s.ended = true
		return true, nil
	}
	return false, err
}

// past is a deadline that is over.
var past = time.Unix(1, 0)
