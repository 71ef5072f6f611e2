package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// sink is a front end that throws the answer away.
type sink struct{ status int }

func (s *sink) WriteInfo(int, exchange.Header) error { return nil }
func (s *sink) WriteHeader(status int, _ exchange.Header, _ int64, _ []string) error {
	s.status = status
	return nil
}
func (s *sink) Write(p []byte) (int, error)               { return len(p), nil }
func (s *sink) Flush() error                              { return nil }
func (s *sink) WriteTrailer(exchange.Header) error        { return nil }
func (s *sink) Upgrade(exchange.Header) (net.Conn, error) { return nil, io.ErrClosedPipe }
func (s *sink) CloseAfter()                               {}
func (s *sink) Abort()                                    {}
func (s *sink) WakeReader() error                         { return nil }

// BenchmarkServe is the walk without a front end, in front of an upstream on
// the loopback that answers 1 KiB: a look at its allocations.
func BenchmarkServe(b *testing.B) {
	page := make([]byte, 1024)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(page) }))
	defer up.Close()
	reg, err := apps.New(apps.Config{Apps: []apps.AppConfig{{ID: "APP00000001", Hosts: []string{host}, Upstreams: []string{up.URL}, AllowAddresses: []string{"127.0.0.0/8"}}}})
	if err != nil {
		b.Fatal(err)
	}
	g := &fakeGate{}
	p, err := build(Config{GatewayID: "GW000000001", Apps: reg, Authenticate: everyone{}}, g)
	if err != nil {
		b.Fatal(err)
	}
	defer p.site.Load().engine.CloseIdle()
	conn := &Conn{SNI: host, ALPN: "http/1.1", Remote: netip.MustParseAddrPort("192.0.2.1:1024")}
	h := exchange.Header{{Name: "User-Agent", Value: "bench"}, {Name: "Accept", Value: "text/html"}, {Name: "Accept-Encoding", Value: "gzip"}, {Name: "Cookie", Value: "a=b"}}
	b.ReportAllocs()
	for b.Loop() {
		s := &sink{}
		x := &Exchange{Conn: conn, Stream: s, Carrier: exchange.H1, Proto: "HTTP/1.1", Method: "GET", Authority: host, Target: "/page?x=1", Header: h}
		x.Begin(context.Background(), time.Now())
		if err := p.serve(x); err != nil || s.status != 200 {
			b.Fatal(s.status, err)
		}
		x.End()
		g.carriers, g.used, g.paths = nil, nil, nil
	}
}
