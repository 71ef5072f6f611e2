package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/hello"
)

// A connection waits for its socket, below TLS. What TLS has in its buffers
// then must not wait with it: several requests in one record, several records in
// one segment, a record in parts.
func TestRequestsThatTLSHasAlreadyAreServed(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) }))
	raw, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	below := hello.Replay(raw, nil)
	c := tls.Client(below, &tls.Config{ServerName: host, RootCAs: f.roots, NextProtos: []string{"http/1.1"}})
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	sent, got := 0, 0
	request := func() string {
		sent++
		return fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n", sent, host)
	}
	answers := func(t *testing.T) {
		t.Helper()
		for got < sent {
			got++
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("answer %d: %v", got, err)
			}
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != fmt.Sprintf("/%d", got) {
				t.Fatalf("answer %d: %q, %v", got, b, err)
			}
		}
	}
	write := func(t *testing.T, w io.Writer, s string) {
		t.Helper()
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		write(t, c, request()+request()+request())
		answers(t)
		if err := below.Gather(func() error {
			for range 3 {
				write(t, c, request())
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		answers(t)
		// One record and a part of the next in one segment, its rest later.
		r := request()
		if err := below.Gather(func() error {
			write(t, c, r+request()[:20])
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		sent--
		answers(t)
		r = request()
		write(t, c, r[20:])
		answers(t)
	}
}
