package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

type exchangeKey struct{}

// ExchangeOf returns the exchange that a [Handler] serves: its connection with
// the client's certificate, the request id, the application.
func ExchangeOf(r *http.Request) *Exchange {
	x, _ := r.Context().Value(exchangeKey{}).(*Exchange)
	return x
}

// serveHandler gives x to one of the gateway's own handlers: the cold path.
func (p *Proxy) serveHandler(x *Exchange, h http.Handler) error {
	path, err := url.PathUnescape(x.Path)
	if err != nil {
		return fmt.Errorf("serve own page: %w", err) // canonical paths never fail
	}
	r := &http.Request{
		Method: x.Method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL:    &url.URL{Path: path, RawPath: x.Path, RawQuery: x.Query},
		Header: make(http.Header, len(x.Header)), Body: http.NoBody, ContentLength: x.Length,
		Host: publicHost(x), RemoteAddr: x.ClientText(), RequestURI: x.Target,
	}
	for _, f := range x.Header {
		var low [lowest]byte
		if l := lower(&low, f.Name); classOf(l)&(hop|spoofed) != 0 || string(l) == "host" {
			continue
		}
		k := http.CanonicalHeaderKey(f.Name)
		r.Header[k] = append(r.Header[k], f.Value)
	}
	if x.Body != nil {
		b := newBody(x, &p.cfg.Limits)
		defer b.stop()
		r.Body = b
	}
	w := &writer{x: x, header: http.Header{}}
	h.ServeHTTP(w, r.WithContext(context.WithValue(x.Context(), exchangeKey{}, x)))
	return w.end()
}

// writer is http.ResponseWriter over an exchange.
type writer struct {
	x      *Exchange
	header http.Header
	begun  bool
	err    error
}

func (w *writer) Header() http.Header { return w.header }

func (w *writer) WriteHeader(status int) {
	if w.begun {
		return
	}
	w.begun = true
	var h exchange.Header
	length := int64(-1)
	for name, values := range w.header {
		if name == "Content-Length" && len(values) == 1 {
			if n, err := strconv.ParseInt(values[0], 10, 64); err == nil {
				length = n
				continue
			}
		}
		for _, v := range values {
			if classOf([]byte(strings.ToLower(name)))&hop != 0 || !cleanValue(v) {
				continue
			}
			h.Add(name, v)
		}
	}
	h.Add("X-Request-Id", w.x.ID)
	w.err = w.x.WriteHeader(status, h, length, nil)
}

func (w *writer) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.err != nil {
		return 0, w.err
	}
	if !bodyAllowed(w.x.Method, w.x.Status) {
		return len(b), nil
	}
	n, err := w.x.Stream.Write(b)
	w.x.BytesOut.Add(int64(n))
	w.err = err
	return n, err
}

// Flush sends what is buffered.
func (w *writer) Flush() {
	if w.err == nil {
		w.err = w.x.Stream.Flush()
	}
}

func (w *writer) end() error {
	w.WriteHeader(http.StatusOK)
	return w.err
}

var _ io.Writer = (*writer)(nil)
