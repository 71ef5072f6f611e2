package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"

	"github.com/yumen-zt/yumen/access/policy"
)

// quicPort serves HTTP/3 of the fixture on a UDP socket, and returns its address.
func (f *fixture) quicPort() string {
	f.t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	tr := &quic.Transport{Conn: pc}
	ln, err := tr.Listen(&tls.Config{Certificates: []tls.Certificate{f.ca.issue(f.t, host, "other.example.test")}, NextProtos: []string{"h3"},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: f.ca.pool}, &quic.Config{MaxIncomingStreams: 100, MaxIncomingUniStreams: 8,
		RequireStreamCreditRelease: true, InitialStreamReceiveWindow: 256 << 10, MaxStreamReceiveWindow: 1 << 20, InitialConnectionReceiveWindow: 1 << 20})
	if err != nil {
		f.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			q, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				s := q.ConnectionState().TLS
				c := &Conn{Protocol: policy.TLS13, Suite: tls.CipherSuiteName(s.CipherSuite), SNI: s.ServerName, ALPN: "h3",
					Remote: q.RemoteAddr().(*net.UDPAddr).AddrPort()}
				if len(s.PeerCertificates) > 0 {
					c.Peer = s.PeerCertificates[0]
				}
				f.p.ServeQUIC(q, c)
			})
		}
	})
	f.t.Cleanup(func() { tr.Close(); pc.Close(); wg.Wait() })
	return pc.LocalAddr().String()
}

// h3 returns an HTTP/3 client of quic-go for addr.
func (f *fixture) h3(addr string) *http.Client {
	t := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: f.roots}, DisableCompression: true,
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, addr, c, q)
		}}
	f.t.Cleanup(func() { t.Close() })
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// rawH3 is a client that writes frames by hand.
type rawH3 struct {
	t *testing.T
	*quic.Conn
}

// rawQUIC dials addr and opens no stream.
func (f *fixture) rawQUIC(addr string) *rawH3 {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	q, err := quic.DialAddr(ctx, addr, &tls.Config{RootCAs: f.roots, ServerName: host, NextProtos: []string{"h3"}}, &quic.Config{})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = q.CloseWithError(0x100, "") })
	return &rawH3{f.t, q}
}

func frame(t uint64, payload ...byte) []byte {
	return append(quicvarint.Append(quicvarint.Append(nil, t), uint64(len(payload))), payload...)
}

func section(fields ...string) []byte {
	var b bytes.Buffer
	enc := qpack.NewEncoder(&b)
	if len(fields) == 0 {
		return []byte{0, 0}
	}
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(qpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// get3 are the fields of a good request, and more.
func get3(path string, more ...string) []byte {
	return frame(1, section(append([]string{":method", "GET", ":scheme", "https", ":authority", host, ":path", path}, more...)...)...)
}

func post3(path string, more ...string) []byte {
	return frame(1, section(append([]string{":method", "POST", ":scheme", "https", ":authority", host, ":path", path}, more...)...)...)
}

// settings opens the control stream with a SETTINGS frame and more.
func (c *rawH3) settings(more ...byte) {
	c.oneWay(append([]byte{0, 4, 0}, more...), false)
}

func (c *rawH3) oneWay(b []byte, end bool) {
	s, err := c.OpenUniStream()
	if err != nil {
		c.t.Error(err)
		return
	}
	_, _ = s.Write(b)
	if end {
		_ = s.Close()
	}
}

// request sends b on a stream, ends it if end, and returns the status of the
// answer, or the codes by which stream or connection were ended.
func (c *rawH3) request(b []byte, end bool) string {
	s, err := c.OpenStream()
	if err != nil {
		return outcome(err)
	}
	_, _ = s.Write(b) // an answer may be there before all is sent
	if end {
		_ = s.Close()
	}
	status, _, err := readAnswer(s)
	if err != nil {
		return outcome(err)
	}
	return status
}

// readAnswer reads an answer whole.
func readAnswer(s *quic.Stream) (status, body string, err error) {
	_ = s.SetReadDeadline(time.Now().Add(5 * time.Second))
	r := quicvarint.NewReader(s)
	for {
		t, err := quicvarint.Read(r)
		if err == io.EOF && status != "" {
			return status, body, nil
		}
		if err != nil {
			return status, body, err
		}
		n, err := quicvarint.Read(r)
		if err != nil {
			return status, body, err
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(r, p); err != nil {
			return status, body, err
		}
		switch t {
		case 0:
			body += string(p)
		case 1:
			for _, f := range fieldsOf(p) {
				if f.Name == ":status" && !strings.HasPrefix(f.Value, "1") {
					status = f.Value
				}
			}
		}
	}
}

func fieldsOf(block []byte) (all []qpack.HeaderField) {
	next := qpack.NewDecoder().Decode(block)
	for f, err := next(); err == nil; f, err = next() {
		all = append(all, f)
	}
	return all
}

func outcome(err error) string {
	var app *quic.ApplicationError
	var str *quic.StreamError
	switch {
	case errors.As(err, &app):
		return fmt.Sprintf("conn %#x", uint64(app.ErrorCode))
	case errors.As(err, &str):
		return fmt.Sprintf("stream %#x", uint64(str.ErrorCode))
	}
	return err.Error()
}

// ended waits for the end of the connection and returns its code.
func (c *rawH3) ended() string {
	select {
	case <-c.Context().Done():
		return outcome(context.Cause(c.Context()))
	case <-time.After(5 * time.Second):
		return "open"
	}
}
