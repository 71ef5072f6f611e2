package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// servesRaw runs serve for every connection to an upstream; it is to return when
// the connection ends.
func servesRaw(t *testing.T, serve func(c *net.TCPConn, br *bufio.Reader)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				serve(c.(*net.TCPConn), bufio.NewReader(c))
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String()
}

// R8: a request that an upstream has taken, and not answered in time, is not
// sent to it again.
func TestR8_NoSecondTryAfterTheTimeout(t *testing.T) {
	var hung atomic.Int64
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			hung.Add(1)
			<-r.Context().Done()
		}
	}), with(func(c *fixtureConfig) { c.cfg.Limits.AnswerTimeout = 300 * time.Millisecond }))
	for i, proto := range protocols {
		c := f.client(proto)
		do(t, c, "GET", "https://"+host+"/", nil, nil) // a connection is in the pool now
		if res, _ := do(t, c, "GET", "https://"+host+"/hang", nil, nil); res.StatusCode != 504 {
			t.Errorf("%s: %d, want 504", proto, res.StatusCode)
		}
		if n := hung.Load(); n != int64(i+1) {
			t.Errorf("%s: %d requests reached the upstream, want %d", proto, n, i+1)
		}
	}
}

// R8: an upstream that takes nothing of a body, or ends in the middle of its
// answer without closing, is given up after the idle timeout.
func TestR8_UpstreamsThatStandStill(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	f := newFixture(t, servesRaw(t, func(c *net.TCPConn, br *bufio.Reader) {
		_ = c.SetReadBuffer(4096)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if req.URL.Path == "/half" {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
			_, _ = br.ReadByte() // until the gateway closes
			return
		}
		<-end // takes nothing: that is the point
	}), with(func(c *fixtureConfig) { c.cfg.Limits.UpstreamIdle = 300 * time.Millisecond }))
	for _, proto := range protocols {
		start := time.Now()
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/half", nil)
		res, err := f.client(proto).Do(r)
		if err == nil { // on HTTP/1.1 the reset may come before the head
			if b, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("%s: half an answer is whole: %q", proto, b)
			}
			res.Body.Close()
		}
		r, _ = http.NewRequestWithContext(t.Context(), "POST", "https://"+host+"/stuck", strings.NewReader(strings.Repeat("x", 32<<20)))
		if res, err := f.client(proto).Do(r); err == nil { // on HTTP/1.1 the client may notice its own side first
			if res.Body.Close(); res.StatusCode != 504 {
				t.Errorf("%s: a body that is not taken: %d, want 504", proto, res.StatusCode)
			}
		}
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("%s: took %v", proto, took)
		}
	}
}

// An upstream that refuses a body, and closes, is heard.
func TestAnAnswerBeforeTheBodyIsHeard(t *testing.T) {
	f := newFixture(t, servesRaw(t, func(c *net.TCPConn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 8\r\n\r\ntoo much")
		} // and a reset: most of the body was not read
	}))
	body := strings.Repeat("x", 4<<20)
	for range 20 {
		if res, b := do(t, f.h2(), "POST", "https://"+host+"/", nil, strings.NewReader(body)); res.StatusCode != 413 || b != "too much" {
			t.Fatalf("%d %q, want 413", res.StatusCode, b)
		}
	}
}

// The least rate holds for bodies of any length: a product of bytes and
// nanoseconds overflows at 9 GiB.
func TestS26_LargeUploadsAreNotSlow(t *testing.T) {
	x := &Exchange{Body: strings.NewReader("x"), Length: -1}
	b := newBody(x, &Limits{BodyBytes: -1, BodyGrace: time.Second, BodyRate: 500})
	b.total = 64 << 30
	if _, err := b.Read(make([]byte, 1)); err != nil {
		t.Errorf("after 64 GiB: %v", err)
	}
	b.stop()
}

// After a refusal because of a cut the connection is not used again, and says so.
func TestACutEndsTheConnectionInWords(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	c := f.raw(host)
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	carrier := <-f.gate.acquired
	carrier.Cut(reason.GrantRevoked)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 403 || !res.Close {
		t.Errorf("%v %v, want 403 and close", res, err)
	}
}

// A client that does not read its answers does not fill the gateway's memory
// with them, also when they are heads alone.
func TestS25_AnswersWaitForTheClient(t *testing.T) {
	fill := strings.Repeat("0123456789abcdef", 1000) // much of one head, so that few fill the kernel
	var n atomic.Int64
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Fill", fmt.Sprint(n.Add(1), fill))
	}))
	r := f.rawH2()
	_ = r.c.NetConn().(*net.TCPConn).SetReadBuffer(4096)
	head := []string{":method", "HEAD", ":scheme", "https", ":authority", host, ":path", "/x"}
	const most = 2000 // of 16 KB: 32 MB
	for i := range most {
		r.open(true, head...)
		for wait := time.Now(); ; time.Sleep(time.Millisecond) { // another goroutine's progress
			if _, released := f.gate.balance(); released > i {
				break
			}
			if time.Since(wait) > time.Second {
				t.Logf("the client's %dth request waits for it", i+1)
				return
			}
		}
	}
	t.Errorf("%d answers were made for a client that reads nothing", most)
}
