// Package upstream carries requests to applications: pooled HTTP/1.1 (or, for
// an application that is configured so, HTTP/2) over the gateway's only dialer.
//
// It stands on net/http's Transport as a plain round trip. Nothing is
// decompressed, redirected or buffered, and a request is tried again on another
// connection only when nothing of it was sent or it is idempotent.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// Config is what an [Engine] needs. All fields are required.
type Config struct {
	Dial          func(ctx context.Context, app *apps.App, network, addr string) (net.Conn, error)
	AnswerTimeout time.Duration // for the head of the answer
	IdleTimeout   time.Duration // of pooled connections
}

const (
	maxAnswerHead = 64 << 10
	maxInfos      = 8   // informational answers to one request
	maxIdle       = 512 // of one upstream: with fewer, a burst of HTTP/2 streams dials anew for each request
)

// Engine sends requests. Its methods are safe for concurrent use.
type Engine struct {
	cfg Config
	mu  sync.Mutex
	by  map[*apps.App]*http.Transport // guarded by mu
}

// New returns an engine.
func New(cfg Config) *Engine { return &Engine{cfg: cfg, by: map[*apps.App]*http.Transport{}} }

// CloseIdle closes the connections that are not in use. Those in use close
// themselves when they have been idle for the idle timeout.
func (e *Engine) CloseIdle() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.by {
		t.CloseIdleConnections()
	}
}

func (e *Engine) transport(a *apps.App) *http.Transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.by[a]; t != nil {
		return t
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return e.cfg.Dial(ctx, a, "tcp", addr)
		},
		TLSClientConfig:        a.TLSConfig(),
		TLSHandshakeTimeout:    5 * time.Second,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        e.cfg.IdleTimeout,
		ResponseHeaderTimeout:  e.cfg.AnswerTimeout,
		MaxResponseHeaderBytes: maxAnswerHead,
		WriteBufferSize:        16 << 10,
		ReadBufferSize:         16 << 10,
		Protocols:              new(http.Protocols),
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	t.Protocols.SetHTTP1(!a.HTTP2)
	if a.HTTP2 {
		t.TLSNextProto = nil
		t.Protocols.SetHTTP2(true)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	e.by[a] = t
	return t
}

// Request is what goes to an upstream. Path and Query are sent as they are.
type Request struct {
	Method      string
	Host        string
	Path, Query string
	Header      exchange.Header // without framing fields
	Body        io.ReadCloser   // nil: none; the engine closes it
	Length      int64           // -1: not known
	Trailers    []string        // names of request trailers
	Trailer     func() exchange.Header
	Upgrade     string // "websocket" or ""
	// Info is called with each informational answer but 100; nil: none wanted.
	Info func(status int, h exchange.Header) error
}

// Response is an upstream's answer. The caller closes Body.
type Response struct {
	Status   int
	Header   exchange.Header
	Length   int64 // -1: not known
	Body     io.ReadCloser
	Trailers []string
	Trailer  func() exchange.Header // valid at the body's end
	Tunnel   io.ReadWriteCloser     // after 101, instead of Body
}

// Error is a failed round trip.
type Error struct {
	Why reason.Reason
	Err error
}

// Error names the cause.
func (e *Error) Error() string { return fmt.Sprintf("forward to upstream: %v", e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Do sends req to u and returns the head of its answer. Errors are [*Error].
// When ctx ends, the round trip and the answer's body end with it.
func (e *Engine) Do(ctx context.Context, app *apps.App, u *apps.Upstream, req *Request) (*Response, error) {
	trace := &httptrace.ClientTrace{}
	infos := 0
	trace.Got1xxResponse = func(code int, h textproto.MIMEHeader) error {
		if infos++; infos > maxInfos {
			return fmt.Errorf("more than %d informational answers", maxInfos)
		}
		if code == http.StatusContinue || code == http.StatusSwitchingProtocols || req.Info == nil {
			return nil
		}
		return req.Info(code, list(http.Header(h)))
	}
	r := &http.Request{
		Method: req.Method, Host: req.Host,
		URL:    &url.URL{Scheme: u.Scheme, Host: u.Addr(), Opaque: req.Path, RawQuery: req.Query},
		Header: make(http.Header, len(req.Header)+1), ContentLength: req.Length,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	for _, f := range req.Header {
		k := http.CanonicalHeaderKey(f.Name)
		r.Header[k] = append(r.Header[k], f.Value)
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // none of our own
	}
	if req.Upgrade != "" {
		r.Header["Connection"] = []string{"Upgrade"}
		r.Header["Upgrade"] = []string{req.Upgrade}
	}
	if req.Body != nil {
		r.Body = req.Body
		if len(req.Trailers) > 0 {
			r.ContentLength = -1
			r.Trailer = make(http.Header, len(req.Trailers))
			for _, n := range req.Trailers {
				r.Trailer[http.CanonicalHeaderKey(n)] = nil
			}
			r.Body = &trailing{ReadCloser: req.Body, to: r.Trailer, from: req.Trailer}
		}
	}
	if app.HTTP2 && req.Header.Get("Content-Type") != "" {
		r.Header["Te"] = []string{"trailers"}
	}
	res, err := e.transport(app).RoundTrip(r.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		return nil, &Error{classify(err), err}
	}
	return e.answer(req, res)
}

func (e *Engine) answer(req *Request, res *http.Response) (*Response, error) {
	out := &Response{Status: res.StatusCode, Header: list(res.Header), Length: res.ContentLength, Body: res.Body}
	bad := func(format string, args ...any) (*Response, error) {
		res.Body.Close()
		return nil, &Error{reason.UpstreamBadResponse, fmt.Errorf(format, args...)}
	}
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols:
		if req.Upgrade == "" {
			return bad("101 to a request without upgrade")
		}
		rw, ok := res.Body.(io.ReadWriteCloser)
		if !ok {
			return bad("101 without a tunnel")
		}
		out.Tunnel = rw
		return out, nil
	case res.StatusCode < 200 || res.StatusCode > 599:
		return bad("status %d", res.StatusCode)
	}
	if len(res.Trailer) > 0 {
		for n := range res.Trailer {
			out.Trailers = append(out.Trailers, n)
		}
		out.Trailer = func() exchange.Header { return list(res.Trailer) }
	}
	return out, nil
}

// trailing copies the request's trailers at the body's end, where Transport
// reads them.
type trailing struct {
	io.ReadCloser
	to   http.Header
	from func() exchange.Header
}

func (t *trailing) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err == io.EOF {
		for _, f := range t.from() {
			if k := http.CanonicalHeaderKey(f.Name); t.has(k) {
				t.to[k] = append(t.to[k], f.Value)
			}
		}
	}
	return n, err
}

func (t *trailing) has(k string) bool { _, ok := t.to[k]; return ok }

func list(h http.Header) exchange.Header {
	out := make(exchange.Header, 0, len(h))
	for name, values := range h {
		for _, v := range values {
			out.Add(name, v)
		}
	}
	return out
}

// classify finds the reason of a failed round trip.
func classify(err error) reason.Reason {
	var refused *apps.RefusedError
	var timeout net.Error
	var op *net.OpError
	switch {
	case errors.As(err, &refused):
		return reason.AddressRefused
	case errors.As(err, &timeout) && timeout.Timeout():
		return reason.UpstreamTimeout
	case errors.As(err, &op) && op.Op == "dial":
		return reason.UpstreamUnreachable
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return reason.UpstreamUnreachable
	}
	return reason.UpstreamBadResponse
}
