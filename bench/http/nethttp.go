//go:build linux

package main

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
)

// serveNetHTTP is the reverse proxy that Go's standard library gives, over
// HTTP/1.1 and HTTP/2: what every Go program has without a line of its own.
func serveNetHTTP(addr, upstream, cert, key string) error {
	to, err := url.Parse("http://" + upstream)
	if err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost, transport.DisableCompression = 0, 1024, true
	proxy := &httputil.ReverseProxy{
		Transport: transport, BufferPool: &pool{},
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host; r.SetXForwarded() },
	}
	return (&http.Server{Addr: addr, Handler: proxy}).ListenAndServeTLS(cert, key)
}

// pool is a httputil.BufferPool.
type pool struct{ sync.Pool }

func (p *pool) Get() []byte {
	if b, ok := p.Pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}

func (p *pool) Put(b []byte) { p.Pool.Put(&b) }
