// Package upstream carries requests to applications over the gateway's only
// dialer: HTTP/1.1 by an engine of its own, HTTP/2 (for applications that are
// configured so) by net/http's Transport.
//
// Over HTTP/1.1 the goroutine of the exchange writes the request and reads the
// answer itself; only a request with a body has a second one. Connections are
// pooled, the newest first. Nothing is decompressed, redirected or buffered. A
// request is tried again on another connection only when nothing of an answer
// has come, the connection had been used before, and the request may be
// repeated.
//
// Start with [Engine.Do]. conn.go is one connection, answer.go what it gives.
package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/message"
)

// Config is what an [Engine] needs. All fields are required.
type Config struct {
	Dial          func(ctx context.Context, app *apps.App, network, addr string) (net.Conn, error)
	AnswerTimeout time.Duration // for the head of the answer
	IdleTimeout   time.Duration // of pooled connections, and of a body that does not move
	Watch         *watch.Watch
}

const (
	maxAnswerHead   = 64 << 10
	maxAnswerFields = 512
	maxInfos        = 8   // informational answers to one request
	maxIdle         = 512 // of one upstream: with fewer, a burst of HTTP/2 streams dials anew for each request
	sweepEvery      = 5 * time.Second
)

var answerLimits = message.Limits{Bytes: maxAnswerHead, Fields: maxAnswerFields}

// Engine sends requests. Its methods are safe for concurrent use.
type Engine struct {
	cfg   Config
	sweep watch.Alarm

	mu     sync.Mutex
	closed bool                          // guarded by mu: nothing is kept any more
	idle   map[*apps.Upstream][]*conn    // guarded by mu; the newest last
	http2  map[*apps.App]*http.Transport // guarded by mu
}

// New returns an engine. It is in use until CloseIdle.
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg, idle: map[*apps.Upstream][]*conn{}, http2: map[*apps.App]*http.Transport{}}
	cfg.Watch.Add(&e.sweep, e.closeOld)
	e.sweep.Arm(sweepEvery)
	return e
}

// CloseIdle closes the connections that are not in use, and lets those in use
// close when their answer ends. The engine can be used still, at the price of a
// connection a request.
func (e *Engine) CloseIdle() {
	e.cfg.Watch.Remove(&e.sweep)
	e.mu.Lock()
	e.closed = true
	idle := e.idle
	e.idle = nil
	for _, t := range e.http2 {
		t.CloseIdleConnections()
	}
	e.mu.Unlock()
	for _, conns := range idle {
		for _, c := range conns {
			c.drop()
		}
	}
}

// closeOld closes connections that were not used for the idle timeout.
func (e *Engine) closeOld() {
	var old []*conn
	e.mu.Lock()
	limit := e.cfg.Watch.Now() - e.cfg.IdleTimeout
	for u, conns := range e.idle {
		n := 0
		for n < len(conns) && conns[n].since < limit {
			n++
		}
		old = append(old, conns[:n]...)
		if e.idle[u] = append(conns[:0:0], conns[n:]...); n == len(conns) {
			delete(e.idle, u)
		}
	}
	again := !e.closed
	e.mu.Unlock()
	for _, c := range old {
		c.drop()
	}
	if again {
		e.sweep.Arm(sweepEvery)
	}
}

// take returns a pooled connection to u for req, or nil.
func (e *Engine) take(u *apps.Upstream, req *Request) *conn {
	for {
		e.mu.Lock()
		conns := e.idle[u]
		if len(conns) == 0 {
			e.mu.Unlock()
			return nil
		}
		c := conns[len(conns)-1]
		conns[len(conns)-1] = nil
		e.idle[u] = conns[:len(conns)-1]
		e.mu.Unlock()
		if c.asks(req) || c.usable() {
			return c
		}
		c.close()
	}
}

// keep puts c into the pool, or closes it.
func (e *Engine) keep(c *conn) {
	c.since = e.cfg.Watch.Now()
	e.mu.Lock()
	full := e.closed || len(e.idle[c.u]) >= maxIdle
	if !full {
		e.idle[c.u] = append(e.idle[c.u], c)
	}
	e.mu.Unlock()
	if full {
		c.close()
	}
}

// Request is what goes to an upstream. Path and Query are sent as they are.
type Request struct {
	Method      string
	Host        string
	Path, Query string
	Header      exchange.Header // without framing fields
	Body        io.ReadCloser   // nil: none. Close ends a read that waits; the engine calls it when the answer has come first
	Length      int64           // -1: not known
	Trailers    []string        // names of request trailers
	Trailer     func() exchange.Header
	Upgrade     string // "websocket" or ""
	// Informed gets each informational answer but 100; nil: none wanted.
	Informed Informed
}

// Informed is who wants to know of informational answers.
type Informed interface {
	Inform(status int, h exchange.Header) error
}

// Response is an upstream's answer. The caller closes Body; Header is valid
// until then.
type Response struct {
	Status   int
	Header   exchange.Header
	Length   int64 // -1: not known
	Body     io.ReadCloser
	Trailers []string               // that are announced
	Trailer  func() exchange.Header // valid at the body's end, announced or not; nil: none will come
	Tunnel   io.ReadWriteCloser     // after 101, beside an empty Body

	body *message.Body // nil: HTTP/2's
}

// Ready reports whether a part of the body is here already.
func (r *Response) Ready() bool { return r.body != nil && r.body.Ready() }

// Take returns what is here of the body, and takes it out, and whether that was
// the rest. It is valid until the next use of Body. There may be none.
func (r *Response) Take() (p []byte, rest bool) {
	if r.body == nil {
		return nil, false
	}
	p = r.body.Take()
	return p, r.body.Ended()
}

// Error is a failed round trip.
type Error struct {
	Why    reason.Reason
	Err    error
	Unsent bool // nothing of the request has left: there was no connection
}

// Error names the cause.
func (e *Error) Error() string { return fmt.Sprintf("forward to upstream: %v", e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Do sends req to u on behalf of x and returns the head of its answer. Errors
// are [*Error]. When x is over, the round trip and the answer's body end.
func (e *Engine) Do(x *exchange.Exchange, app *apps.App, u *apps.Upstream, req *Request) (*Response, error) {
	if app.HTTP2 {
		return e.doHTTP2(x.Context(), app, u, req)
	}
	var c *conn
	if !app.ProxyProtocol { // else a connection is one client's
		c = e.take(u, req)
	}
	for {
		pooled := c != nil
		if !pooled {
			var err error
			if c, err = e.dial(x, app, u); err != nil {
				return nil, &Error{Why: classify(err), Err: err, Unsent: true}
			}
		}
		res, err := c.roundTrip(x, req)
		if err == nil {
			return res, nil
		}
		c.close()
		if pooled && err == errStale {
			c = e.take(u, req)
			continue
		}
		if pooled && c.silent && !c.timeout.Load() && !x.Over() && repeatable(req) {
			c = nil // the upstream may have closed it as we wrote: once more, on a fresh one
			continue
		}
		return nil, &Error{Why: classify(err), Err: err}
	}
}

// repeatable reports whether req may be sent twice (RFC 9110 §9.2.2).
func repeatable(req *Request) bool {
	switch req.Method {
	case "GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH":
		return req.Body == nil
	}
	return false
}

// dial connects to u.
func (e *Engine) dial(x *exchange.Exchange, app *apps.App, u *apps.Upstream) (*conn, error) {
	ctx := x.Context()
	if app.ProxyProtocol {
		local, _ := netip.ParseAddrPort(x.Conn.LocalAddr().String())
		ctx = apps.WithSource(ctx, x.Client(), local)
	}
	raw, err := e.cfg.Dial(ctx, app, "tcp", u.Addr())
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" {
		if raw, err = app.Secure(ctx, raw, u.Host, ""); err != nil {
			return nil, err
		}
	}
	c := newConn(e, u, raw)
	c.single = app.ProxyProtocol
	c.answerTimeout, c.idleTimeout = cmp.Or(app.AnswerTimeout, e.cfg.AnswerTimeout), cmp.Or(app.IdleTimeout, e.cfg.IdleTimeout)
	return c, nil
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
	var cert *apps.CertificateError
	if errors.As(err, &cert) {
		return reason.UpstreamUnreachable
	}
	return reason.UpstreamBadResponse
}
