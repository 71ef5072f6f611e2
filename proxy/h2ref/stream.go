package h2ref

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// handler walks each request that the server has parsed. Nothing else in the
// proxy sees net/http's types of a request.
type handler struct {
	cfg   *Config
	serve func(*exchange.Exchange) error
	conn  func(context.Context) *exchange.Conn
}

// ServeHTTP walks r.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := &stream{w: w, rc: http.NewResponseController(w), stall: h.cfg.WriteStall}
	x := &exchange.Exchange{
		Conn: h.conn(r.Context()), Stream: s, Carrier: exchange.H2,
		Proto: r.Proto, Method: r.Method, Authority: r.Host, Target: r.RequestURI,
		Header: fields(r.Header), Length: r.ContentLength,
	}
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		x.Body = r.Body
	}
	if len(r.Trailer) > 0 {
		for name := range r.Trailer {
			x.Announced = append(x.Announced, name)
		}
		x.Trailer = func() exchange.Header { return fields(r.Trailer) }
	}
	// A timer and not a deadline: a deadline that passes between two writes
	// would end a stream of rare events.
	s.late = time.AfterFunc(time.Hour, x.Abort)
	s.late.Stop()
	x.Begin(r.Context(), h.cfg.Now())
	err := h.serve(x)
	x.End()
	s.late.Stop()
	if err != nil {
		panic(http.ErrAbortHandler) // resets the stream; the server knows this value and logs nothing
	}
}

// fields lists h. Where a Host stands beside :authority it stays, for the walk
// to judge.
func fields(h http.Header) exchange.Header {
	out := make(exchange.Header, 0, len(h)+2)
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
	stall time.Duration
	late  *time.Timer // aborts a write that waits for longer than stall

	announced []string // trailer fields that the head named
}

func (s *stream) set(h exchange.Header) {
	to := s.w.Header()
	for _, f := range h {
		k := http.CanonicalHeaderKey(f.Name)
		to[k] = append(to[k], f.Value)
	}
}

func (s *stream) WriteInfo(status int, h exchange.Header) error {
	to := s.w.Header()
	s.set(h)
	s.w.WriteHeader(status)
	clear(to)
	return nil
}

func (s *stream) WriteHeader(status int, h exchange.Header, length int64, trailers []string) error {
	s.set(h)
	s.announced = trailers
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
	s.w.WriteHeader(status)
	return nil
}

func (s *stream) Write(p []byte) (int, error) {
	s.late.Reset(s.stall)
	defer s.late.Stop()
	return s.w.Write(p)
}

func (s *stream) Flush() error {
	s.late.Reset(s.stall)
	defer s.late.Stop()
	return s.rc.Flush()
}

func (s *stream) WriteTrailer(h exchange.Header) error {
	named := func(name string) bool {
		return slices.ContainsFunc(s.announced, func(n string) bool { return strings.EqualFold(n, name) })
	}
	for _, f := range h {
		k := http.CanonicalHeaderKey(f.Name)
		if !named(k) {
			k = http.TrailerPrefix + k
		}
		s.w.Header()[k] = append(s.w.Header()[k], f.Value)
	}
	return nil
}

func (s *stream) Upgrade(exchange.Header) (net.Conn, error) {
	return nil, errors.New("h2ref: upgrade on a shared connection")
}

func (s *stream) CloseAfter() {}

// Abort resets the stream: a deadline in the past does so at once, and to this
// stream alone.
func (s *stream) Abort() {
	_ = s.rc.SetWriteDeadline(time.Unix(1, 0))
	_ = s.rc.SetReadDeadline(time.Unix(1, 0))
}

func (s *stream) WakeReader() error { return s.rc.SetReadDeadline(time.Unix(1, 0)) }
