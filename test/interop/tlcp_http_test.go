package interop

//lint:file-ignore SA1019 net/http offers HTTP/2 by ALPN to *tls.Conn only; x/net/http2 takes any connection

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// connKey is where the handler finds the connection of a request.
type connKey struct{}

// handler answers with protocol, suite, device and the body that came.
func handler(w http.ResponseWriter, r *http.Request) {
	st := r.Context().Value(connKey{}).(*tlcp.Conn).ConnectionState()
	id, err := certid.OfSM(st.PeerSign)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %q", r.Proto, tlcp.CipherSuiteName(st.CipherSuite), id.Device, st.NegotiatedProtocol))
	body, err := io.ReadAll(r.Body) // HTTP/1.1 is not full duplex
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Write(body)
}

// serve accepts connections, handshakes, and hands each to the HTTP version
// that ALPN chose.
func serve(t *testing.T, config *tlcp.Config) (addr string) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := tlcp.NewListener(inner, config)
	h1conns := make(chan net.Conn)
	h1 := &http.Server{
		Handler:     http.HandlerFunc(handler),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	h2 := &http2.Server{}
	var wg sync.WaitGroup
	wg.Go(func() { _ = h1.Serve(&chanListener{ln, h1conns}) })
	wg.Go(func() {
		defer close(h1conns)
		var conns sync.WaitGroup
		defer conns.Wait()
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				c := raw.(*tlcp.Conn)
				if c.HandshakeContext(t.Context()) != nil {
					c.Close()
					return
				}
				if c.ConnectionState().NegotiatedProtocol != "h2" {
					h1conns <- c
					return
				}
				h2.ServeConn(c, &http2.ServeConnOpts{
					Handler: http.HandlerFunc(handler), Context: context.WithValue(t.Context(), connKey{}, c),
				})
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		h1.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

type chanListener struct {
	net.Listener
	conns chan net.Conn
}

func (l *chanListener) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func TestTLCPCarriesHTTP(t *testing.T) {
	s := newSite(t)
	addr := serve(t, &tlcp.Config{
		Certificates: []*tlcp.Pair{s.server.pair}, ClientAuth: tlcp.RequireAndVerifyClientCert, ClientCAs: s.roots,
		NextProtos: []string{"h2", "http/1.1"}, SessionCache: tlcp.NewLRUSessionCache(0),
	})
	dial := func(suite uint16, protos ...string) func(ctx context.Context, network, addr string) (net.Conn, error) {
		return func(ctx context.Context, network, addr string) (net.Conn, error) {
			return tlcp.Dial(ctx, network, addr, &tlcp.Config{
				RootCAs: s.roots, Certificates: []*tlcp.Pair{s.client.pair}, CipherSuites: []uint16{suite}, NextProtos: protos,
			})
		}
	}
	for _, suite := range []uint16{tlcp.ECC_SM4_GCM_SM3, tlcp.ECC_SM4_CBC_SM3, tlcp.ECDHE_SM4_GCM_SM3, tlcp.ECDHE_SM4_CBC_SM3} {
		d2 := dial(suite, "h2")
		for want, rt := range map[string]http.RoundTripper{
			"HTTP/1.1": &http.Transport{DialTLSContext: dial(suite, "http/1.1"), MaxIdleConnsPerHost: 8},
			"HTTP/2.0": &http2.Transport{DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
				return d2(ctx, network, addr)
			}},
		} {
			t.Run(want+" "+tlcp.CipherSuiteName(suite), func(t *testing.T) {
				client := &http.Client{Transport: rt}
				defer client.CloseIdleConnections()
				var wg sync.WaitGroup
				for i := range 16 {
					wg.Go(func() {
						body := bytes.Repeat([]byte{byte(i)}, i*9001)
						resp, err := client.Post("https://"+addr+"/", "application/octet-stream", bytes.NewReader(body))
						if err != nil {
							t.Error(err)
							return
						}
						defer resp.Body.Close()
						got, err := io.ReadAll(resp.Body)
						if err != nil || !bytes.Equal(got, body) || resp.StatusCode != http.StatusOK {
							t.Errorf("status %d, %d bytes of %d, %v", resp.StatusCode, len(got), len(body), err)
						}
						seen := resp.Header.Get("X-Seen")
						if !strings.HasPrefix(seen, want+" "+tlcp.CipherSuiteName(suite)+" DEV00000002 ") {
							t.Errorf("the server saw %q", seen)
						}
					})
				}
				wg.Wait()
			})
		}
	}
}
