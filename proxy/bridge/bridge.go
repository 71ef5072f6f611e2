// Package bridge makes an [exchange.Exchange] of a request that net/http's
// server has parsed, and carries the answer back. It is shared by the front
// ends h1 and h2 as long as they stand on net/http and x/net/http2; nothing
// else in the proxy sees their types.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Handler is an http.Handler that walks each request.
type Handler struct {
	Carrier exchange.Carrier
	// Serve is the walk. An error means that the answer cannot be completed:
	// the stream is reset.
	Serve func(*exchange.Exchange) error
	// Conn finds the connection of a request's context.
	Conn func(context.Context) *exchange.Conn
	Now  func() time.Time
	// Taken is called with the connection that an upgrade took from the server.
	Taken func(net.Conn)
}

// ServeHTTP walks r.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := &stream{w: w, rc: http.NewResponseController(w), h: h, r: r, conn: h.Conn(r.Context())}
	x := &exchange.Exchange{
		Conn: s.conn, Stream: s, Carrier: h.Carrier,
		Proto: r.Proto, Method: r.Method, Authority: r.Host, Target: r.RequestURI,
		Header: fields(r), Length: r.ContentLength,
	}
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		s.body = &tracked{Reader: r.Body}
		x.Body = s.body
		if h.Carrier == exchange.H1 {
			// Answers may begin before the body has ended, as on HTTP/2.
			_ = s.rc.EnableFullDuplex()
		}
	}
	if len(r.Trailer) > 0 {
		for name := range r.Trailer {
			x.Announced = append(x.Announced, name)
		}
		x.Trailer = func() exchange.Header { return list(r.Trailer) }
	}
	x.Begin(r.Context(), h.Now())
	err := h.Serve(x)
	x.End()
	switch {
	case s.taken:
	case err != nil:
		panic(http.ErrAbortHandler) // resets the stream; the server knows this value and logs nothing
	case s.unread():
		s.linger()
	}
}

// tracked knows whether a body has been read to its end.
type tracked struct {
	io.Reader
	ended atomic.Bool
}

func (b *tracked) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	}
	return n, err
}

// unread reports whether bytes of an HTTP/1.1 request's body may still be on
// their way. Such a connection is never used again: what comes must not be
// read as a request.
func (s *stream) unread() bool {
	return s.h.Carrier == exchange.H1 && s.body != nil && !s.body.ended.Load()
}

const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

// linger takes what the client is still sending, so that a reset does not
// overtake the answer, and leaves nothing for the server to wait for.
func (s *stream) linger() {
	if s.rc.Flush() == nil && s.r.Header.Get("Expect") == "" && s.rc.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, s.body, lingerBytes)
	}
	_ = s.rc.SetReadDeadline(time.Unix(1, 0))
}

// fields lists the request's fields. net/http has taken Host out on HTTP/1.1;
// where HTTP/2 left one beside :authority it stays, for the walk to judge.
func fields(r *http.Request) exchange.Header {
	out := make(exchange.Header, 0, len(r.Header)+2)
	for name, values := range r.Header {
		for _, v := range values {
			out = append(out, exchange.Field{Name: name, Value: v})
		}
	}
	return out
}

func list(h http.Header) exchange.Header {
	var out exchange.Header
	for name, values := range h {
		for _, v := range values {
			out.Add(name, v)
		}
	}
	return out
}

// stream is exchange.Stream over a http.ResponseWriter.
type stream struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	h     *Handler
	r     *http.Request
	conn  *exchange.Conn
	body  *tracked // nil: none
	taken bool     // by Upgrade
	close bool
}

func (s *stream) set(h exchange.Header) {
	to := s.w.Header()
	for _, f := range h {
		k := http.CanonicalHeaderKey(f.Name)
		to[k] = append(to[k], f.Value)
	}
}

func (s *stream) WriteInfo(status int, h exchange.Header) error {
	s.set(h)
	s.w.WriteHeader(status)
	clear(s.w.Header())
	return nil
}

func (s *stream) WriteHeader(status int, h exchange.Header, length int64, trailers []string) error {
	s.set(h)
	to := s.w.Header()
	if _, ok := to["Content-Type"]; !ok {
		to["Content-Type"] = nil // no guess
	}
	if length >= 0 && len(trailers) == 0 && status != http.StatusNoContent {
		to["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	if len(trailers) > 0 {
		to["Trailer"] = []string{strings.Join(trailers, ", ")}
	}
	if s.unread() || s.close && s.h.Carrier == exchange.H1 {
		to["Connection"] = []string{"close"}
	}
	s.w.WriteHeader(status)
	return nil
}

func (s *stream) Write(p []byte) (int, error) { return s.w.Write(p) }

func (s *stream) Flush() error { return s.rc.Flush() }

func (s *stream) WriteTrailer(h exchange.Header) error {
	to := s.w.Header()
	for _, f := range h {
		k := http.CanonicalHeaderKey(f.Name)
		to[k] = append(to[k], f.Value)
	}
	return nil
}

// ErrEarly is returned for an upgrade whose client went on before the answer.
var ErrEarly = errors.New("bridge: bytes came before the upgrade was answered")

func (s *stream) Upgrade(h exchange.Header) (net.Conn, error) {
	if s.h.Carrier != exchange.H1 {
		return nil, errors.New("bridge: upgrade on a shared connection")
	}
	c, rw, err := s.rc.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take connection for upgrade: %w", err)
	}
	s.taken = true
	if s.h.Taken != nil {
		s.h.Taken(c)
	}
	if err := s.answerUpgrade(c, rw.Reader.Buffered(), h); err != nil {
		s.conn.Reset()
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (s *stream) answerUpgrade(c net.Conn, early int, h exchange.Header) error {
	if early > 0 {
		return ErrEarly
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("answer upgrade: %w", err)
	}
	var b strings.Builder
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	for _, f := range h {
		if strings.ContainsAny(f.Name+f.Value, "\r\n\x00") {
			return fmt.Errorf("answer upgrade: field %q is malformed", f.Name)
		}
		b.WriteString(f.Name + ": " + f.Value + "\r\n")
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(c, b.String()); err != nil {
		return fmt.Errorf("answer upgrade: %w", err)
	}
	return nil
}

func (s *stream) CloseAfter() { s.close = true }

func (s *stream) Abort() {
	if s.h.Carrier == exchange.H1 {
		s.conn.Reset()
		return
	}
	// A deadline in the past resets this stream alone, at once.
	_ = s.rc.SetWriteDeadline(time.Unix(1, 0))
	_ = s.rc.SetReadDeadline(time.Unix(1, 0))
}

func (s *stream) WakeReader() error { return s.rc.SetReadDeadline(time.Unix(1, 0)) }
