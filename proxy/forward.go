package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/h3"
	"github.com/yumen-zt/yumen/proxy/upstream"
)

// forward sends x to one of its application's upstreams and the answer back.
func (p *Proxy) forward(x *Exchange, s *site) error {
	if x.App.State(x.Start) == apps.Offline {
		return p.deny(x, denied(reason.AppOffline, "no valid Table 1"))
	}
	if !x.App.Enter(x.Start) {
		return p.deny(x, denied(reason.AppBusy, "max_requests"))
	}
	defer x.App.Leave()
	t := trips.Get().(*trip)
	defer t.end()
	t.x = x
	h, err := p.rewrite(t.fields[:0], x) // 4
	t.fields, t.most = h, len(h)
	if err != nil {
		return p.deny(x, denied(reason.InternalError, err.Error()))
	}
	req := &t.req
	req.Method, req.Host, req.Path, req.Query, req.Header, req.Informed = x.Method, x.App.HostHeader, x.Path, x.Query, h, t
	if req.Host == "" {
		req.Host = publicHost(x)
	}
	var b *body
	if x.Body != nil {
		b = newBody(x, &p.cfg.Limits)
		defer b.stop()
		req.Body, req.Length = b, x.Length
		if req.Trailers = forwardableTrailers(x.Announced); len(req.Trailers) > 0 {
			req.Trailer = x.Trailer
		}
	}
	if x.Carrier == exchange.WebSocket {
		req.Upgrade = "websocket"
	}
	res, u, err := p.roundTrip(x, s, req, b)
	if err != nil {
		return p.deny(x, p.failure(x, b, err))
	}
	defer func() {
		u.Release()
		res.Body.Close()
	}()
	if res.Tunnel != nil {
		return p.tunnel(x, res)
	}
	if x.Connect != "" && res.Status < 300 {
		return p.deny(x, denied(reason.UpstreamBadResponse, "no 101 to an upgrade")) // 2xx would be a tunnel
	}
	if x.Carrier == exchange.WebSocket {
		x.Stream.CloseAfter() // a client that takes the upgrade for granted sends what is no HTTP
	}
	return p.answer(x, res, b, &t.fields)
}

// trip is what one way to an upstream and back needs.
type trip struct {
	x      *Exchange
	req    upstream.Request
	fields exchange.Header // of the request, then of the answer
	most   int             // of them were set
}

var trips = sync.Pool{New: func() any { return &trip{fields: make(exchange.Header, 0, 32)} }}

// Inform passes an informational answer on.
func (t *trip) Inform(status int, h exchange.Header) error {
	return t.x.Stream.WriteInfo(status, answerable(nil, h))
}

// end lets another request have t, unless somebody may still look at it: who
// sends a body, and the engine of HTTP/2.
func (t *trip) end() {
	if t.req.Body != nil || t.x.App.HTTP2 || cap(t.fields) > 256 {
		return
	}
	clear(t.fields[:max(t.most, len(t.fields))]) // its strings are parts of whole heads
	t.x, t.req, t.most = nil, upstream.Request{}, 0
	trips.Put(t)
}

// failure finds why a round trip failed: what access or the client did comes
// before what the upstream did.
func (p *Proxy) failure(x *Exchange, b *body, err error) *deniedError {
	if r, cut := x.CutReason(); cut {
		p.metrics.cuts.WithLabelValues(r.String()).Inc()
		return &deniedError{why: r, detail: "cut", audited: true}
	}
	if b != nil && b.why() != reason.OK {
		return denied(b.why(), "request body")
	}
	if x.Over() {
		return denied(reason.ClientGone, "")
	}
	var d *deniedError
	if errors.As(err, &d) {
		return d
	}
	var f *upstream.Error
	if errors.As(err, &f) {
		return denied(f.Why, err.Error())
	}
	return denied(reason.UpstreamBadResponse, err.Error())
}

// answer sends the upstream's answer to the client.
func (p *Proxy) answer(x *Exchange, res *upstream.Response, b *body, list *exchange.Header) error {
	h := answerable((*list)[:0], res.Header)
	h.Add("X-Request-Id", x.ID)
	if p.altSvc != "" && x.Conn.Protocol == policy.TLS13 && x.Conn.ALPN != h3.ALPN {
		h.Add("Alt-Svc", p.altSvc)
	}
	*list = h
	trailers := forwardableTrailers(res.Trailers)
	if res.Trailer != nil && trailers == nil && x.Carrier != exchange.H1 {
		trailers = []string{} // some may come unannounced, as those of gRPC do
	}
	err := x.WriteHeader(res.Status, h, res.Length, trailers)
	if errors.Is(err, exchange.ErrCut) {
		return p.deny(x, p.failure(x, b, err))
	}
	if err == nil && bodyAllowed(x.Method, res.Status) {
		err = copyAnswer(x, res)
	}
	if err != nil {
		if r, cut := x.CutReason(); cut {
			p.metrics.cuts.WithLabelValues(r.String()).Inc()
			return fmt.Errorf("send answer: cut: %s", r)
		}
		x.Why = reason.ClientGone
		if errors.Is(err, errShort) {
			x.Why = reason.UpstreamBadResponse
		}
		return fmt.Errorf("send answer: %w", err)
	}
	if trailers != nil {
		var t exchange.Header
		for _, f := range res.Trailer() {
			if len(forwardableTrailers([]string{f.Name})) > 0 {
				t = append(t, f)
			}
		}
		err = x.Stream.WriteTrailer(t)
	}
	return err
}

func bodyAllowed(method string, status int) bool {
	return method != http.MethodHead && status != http.StatusNoContent && status != http.StatusNotModified
}

// errShort marks an answer that the upstream did not complete.
var errShort = errors.New("read upstream")

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyAnswer streams the body. When its length is not known, what the upstream
// has sent goes on before more is waited for: events, messages and downloads
// that are made as they go.
func copyAnswer(x *Exchange, res *upstream.Response) error {
	if p, rest := res.Take(); len(p) > 0 { // small answers come with their heads
		if err := pass(x, p); err != nil || rest {
			return err
		}
	}
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		if res.Length < 0 && !res.Ready() {
			if err := x.Stream.Flush(); err != nil {
				return err
			}
		}
		n, rerr := res.Body.Read(buf[:])
		if n > 0 {
			if err := pass(x, buf[:n]); err != nil {
				return err
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			if x.Over() {
				return fmt.Errorf("read upstream: %w", rerr)
			}
			return fmt.Errorf("%w: %w", errShort, rerr)
		}
	}
}

// pass sends a part of the answer's body on.
func pass(x *Exchange, p []byte) error {
	if _, cut := x.CutReason(); cut {
		return exchange.ErrCut
	}
	n, err := x.Stream.Write(p)
	x.BytesOut.Add(int64(n))
	return err
}
