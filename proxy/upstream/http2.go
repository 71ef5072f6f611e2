package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// HTTP/2 upstreams (gRPC) are net/http's: a plain round trip of its Transport.

func (e *Engine) transport(a *apps.App) *http.Transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.http2[a]; t != nil {
		return t
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return e.cfg.Dial(ctx, a, "tcp", addr)
		},
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			raw, err := e.cfg.Dial(ctx, a, "tcp", addr)
			if err != nil {
				return nil, err
			}
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, errors.Join(err, raw.Close())
			}
			return a.Secure(ctx, raw, host, "h2") // what is no *tls.Conn carries HTTP/2 by prior knowledge
		},
		DisableCompression:     true,
		IdleConnTimeout:        e.cfg.IdleTimeout,
		ResponseHeaderTimeout:  cmp.Or(a.AnswerTimeout, e.cfg.AnswerTimeout),
		MaxResponseHeaderBytes: maxAnswerHead,
		WriteBufferSize:        16 << 10,
		ReadBufferSize:         16 << 10,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP2(true)
	t.Protocols.SetUnencryptedHTTP2(true)
	e.http2[a] = t
	return t
}

// doHTTP2 is Do for an application whose upstreams speak HTTP/2.
func (e *Engine) doHTTP2(ctx context.Context, app *apps.App, u *apps.Upstream, req *Request) (*Response, error) {
	trace := &httptrace.ClientTrace{}
	infos := 0
	trace.Got1xxResponse = func(code int, h textproto.MIMEHeader) error {
		if infos++; infos > maxInfos {
			return fmt.Errorf("more than %d informational answers", maxInfos)
		}
		if code == http.StatusContinue || code == http.StatusSwitchingProtocols || req.Informed == nil {
			return nil
		}
		return req.Informed.Inform(code, list(http.Header(h)))
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
	if req.Header.Get("Content-Type") != "" {
		r.Header["Te"] = []string{"trailers"}
	}
	res, err := e.transport(app).RoundTrip(r.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		return nil, fault(err)
	}
	return answerHTTP2(res)
}

// fault makes an error of what the Transport says. Only a failed dial has surely
// sent nothing.
func fault(err error) *Error {
	op, ok := errors.AsType[*net.OpError](err)
	return &Error{Why: classify(err), Err: err, Unsent: ok && op.Op == "dial"}
}

func answerHTTP2(res *http.Response) (*Response, error) {
	out := &Response{Status: res.StatusCode, Header: list(res.Header), Length: res.ContentLength, Body: res.Body}
	if res.StatusCode < 200 || res.StatusCode > 599 {
		res.Body.Close()
		return nil, &Error{Why: reason.UpstreamBadResponse, Err: fmt.Errorf("status %d", res.StatusCode)}
	}
	if res.ContentLength != 0 { // 0: the stream ended with its head
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
