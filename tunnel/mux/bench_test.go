package mux

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// tlsConns returns both ends of a TLS 1.3 connection on loopback.
func tlsConns(tb testing.TB) (client, server net.Conn) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"x"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	a, b := tcpConns(tb)
	server = tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, DynamicRecordSizingDisabled: true})
	client = tls.Client(a, &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
	done := make(chan error, 1)
	go func() { done <- server.(*tls.Conn).Handshake() }()
	if err := client.(*tls.Conn).Handshake(); err != nil {
		tb.Fatal(err)
	}
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
	return client, server
}

// stream sends b.N pieces from one end to the other.
func stream(b *testing.B, from io.Writer, to io.Reader, size int) {
	b.SetBytes(int64(size))
	b.ReportAllocs()
	buf := make([]byte, size)
	var wg sync.WaitGroup
	b.ResetTimer()
	wg.Go(func() { io.CopyN(io.Discard, to, int64(size)*int64(b.N)) })
	for range b.N {
		if _, err := from.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
}

func BenchmarkStream64KiB(b *testing.B) {
	b.Run("tls", func(b *testing.B) {
		c, s := tlsConns(b)
		defer c.Close()
		defer s.Close()
		stream(b, c, s, MaxPayload)
	})
	b.Run("flow", func(b *testing.B) {
		c, s := tlsConns(b)
		p := newPair(b, c, s, Config{}, Config{})
		f, g := p.open(b, false)
		defer f.Close()
		defer g.Close()
		stream(b, f, g, MaxPayload)
	})
	b.Run("flow-window-1MiB", func(b *testing.B) {
		c, s := tlsConns(b)
		p := newPair(b, c, s, Config{Window: 1 << 20}, Config{Window: 1 << 20})
		f, g := p.open(b, false)
		defer f.Close()
		defer g.Close()
		stream(b, f, g, MaxPayload)
	})
}

// pingpong measures one small write and its echo.
func pingpong(b *testing.B, near, far io.ReadWriter) {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64)
		for range b.N {
			if _, err := io.ReadFull(far, buf); err != nil {
				return
			}
			far.Write(buf)
		}
	})
	buf := make([]byte, 64)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		near.Write(buf)
		if _, err := io.ReadFull(near, buf); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
}

func BenchmarkPingPong64B(b *testing.B) {
	b.Run("tls", func(b *testing.B) {
		c, s := tlsConns(b)
		defer c.Close()
		defer s.Close()
		pingpong(b, c, s)
	})
	b.Run("flow", func(b *testing.B) {
		c, s := tlsConns(b)
		p := newPair(b, c, s, Config{}, Config{})
		f, g := p.open(b, false)
		defer f.Close()
		defer g.Close()
		pingpong(b, f, g)
	})
}
