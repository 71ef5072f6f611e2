package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/test/testbed"
)

// grpcEcho is an application over HTTP/2 without TLS that answers each message
// of a stream, and says in the trailer how many there were.
func grpcEcho(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", testbed.Loopback(false, testbed.Port(t)))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		flush := http.NewResponseController(w)
		n := 0
		for {
			m, err := readMessage(r.Body)
			if err != nil {
				break
			}
			n++
			if _, err := w.Write(message(m)); err != nil || flush.Flush() != nil {
				return
			}
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set("Grpc-Message", fmt.Sprint(n))
	})}
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }() // ends by Close
	t.Cleanup(func() { s.Close(); <-done })
	return "http://" + ln.Addr().String()
}

// message frames a message as gRPC does.
func message(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func readMessage(r io.Reader) ([]byte, error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(h[1:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// A gRPC stream goes on through reloads, also through one that gives its
// application another upstream; its trailer arrives. What a reload takes away
// ends with its stream.
func TestGRPCStreamsStayThroughAReload(t *testing.T) {
	t.Parallel()
	app := testbed.App{ID: webID, Name: "grpc", Upstream: grpcEcho(t), Extra: "    http2: true\n"}
	l := testbed.NewLone(t, testbed.LoneConfig{Apps: []testbed.App{app}, Grants: loneGrants()})
	c := l.HTTP(l.Client(alice, aliceDevice), true)
	c.Timeout = 0
	type stream struct {
		send *io.PipeWriter
		res  *http.Response
	}
	open := func() *stream {
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", l.URL(app, "/echo.Echo/Each"), r)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
		go func() { _, _ = w.Write(message([]byte("first"))) }() // the test sees whether it is answered
		res, err := c.Do(req)
		if err != nil || res.StatusCode != 200 || res.ProtoMajor != 2 {
			t.Fatalf("%v %v", res, err)
		}
		t.Cleanup(func() { res.Body.Close(); w.Close() })
		if m, err := readMessage(res.Body); err != nil || string(m) != "first" {
			t.Fatalf("%q %v", m, err)
		}
		return &stream{w, res}
	}
	echo := func(s *stream, what string) {
		t.Helper()
		if _, err := s.send.Write(message([]byte(what))); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if m, err := readMessage(s.res.Body); err != nil || string(m) != what {
			t.Fatalf("%s: %q %v", what, m, err)
		}
	}
	reload := func() {
		t.Helper()
		if err := l.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	one, two := open(), open()
	reload()
	echo(one, "after a reload")
	other := app
	other.Upstream = grpcEcho(t)
	l.Rewrite([]testbed.App{other})
	reload()
	echo(one, "after another upstream")
	one.send.Close()
	if _, err := io.Copy(io.Discard, one.res.Body); err != nil {
		t.Fatal(err)
	}
	if got := one.res.Trailer; got.Get("Grpc-Status") != "0" || got.Get("Grpc-Message") != "3" {
		t.Errorf("trailer %v", got)
	}
	l.PutGrants(l.Grants(2, testbed.NewGrant(alice, aliceDevice, aliceToken, echoID)))
	start := time.Now()
	reload()
	if _, err := readMessage(two.res.Body); err == nil || err == io.EOF {
		t.Errorf("the stream goes on, or ended well: %v", err)
	}
	t.Logf("cut %v after the reload was asked for", time.Since(start))
}
