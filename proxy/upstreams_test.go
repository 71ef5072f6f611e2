package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/apps"
)

// upstreams makes the first application's upstreams these.
func upstreams(urls ...string) option {
	return with(func(c *fixtureConfig) { c.more = urls })
}

// broken is an upstream that takes connections and then does what how says.
func broken(t *testing.T, how func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				how(c)
			})
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); all.Wait() })
	return "http://" + l.Addr().String()
}

// dead returns the URL of a port that refuses.
func dead(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	return s.URL
}

func ok(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d", r.Method, n)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// One of three upstreams is dead: nobody notices, whatever the method, because
// nothing has been sent to it.
func TestR9_OneOfThreeUpstreamsDead(t *testing.T) {
	f := newFixture(t, "", upstreams(ok(t).URL, dead(t), ok(t).URL))
	c := f.client("http/1.1")
	for i := range 60 {
		method, body := http.MethodGet, io.Reader(nil)
		if i%2 == 1 {
			method, body = http.MethodPost, strings.NewReader("abc")
		}
		if res, b := do(t, c, method, "https://"+host+"/", nil, body); res.StatusCode != 200 || method == "POST" && b != "POST 3" {
			t.Fatalf("request %d: %d %s", i, res.StatusCode, b)
		}
	}
}

// One of three talks garbage, or hangs up: requests that may have had an effect
// are not repeated, and after a few faults nobody is sent there any more.
func TestR9_OneOfThreeUpstreamsIsBroken(t *testing.T) {
	for name, how := range map[string]func(net.Conn){
		"garbage": func(c net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "\x00\x01 nonsense\r\n\r\n")
		},
		"hangs up": func(c net.Conn) { _, _ = http.ReadRequest(bufio.NewReader(c)) },
	} {
		t.Run(name, func(t *testing.T) {
			var arrived atomic.Int64
			bad := broken(t, func(c net.Conn) { arrived.Add(1); how(c) })
			f := newFixture(t, "", upstreams(ok(t).URL, bad, ok(t).URL))
			c := f.client("http/1.1")
			faults := 0
			for range 150 {
				res, _ := do(t, c, http.MethodPost, "https://"+host+"/", nil, strings.NewReader("abc"))
				switch res.StatusCode {
				case 200:
				case 502:
					faults++
				default:
					t.Fatalf("status %d", res.StatusCode)
				}
			}
			if n := arrived.Load(); int64(faults) != n || faults != 3 {
				t.Errorf("%d faults of 150 requests, %d arrived at the broken one; want the 3 that eject it", faults, n)
			}
		})
	}
}

// A request that reached an upstream is not repeated there or elsewhere.
func TestR9_NothingThatMayHaveHadAnEffectIsRepeated(t *testing.T) {
	var arrived atomic.Int64
	hangup := func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			arrived.Add(1)
		}
	}
	f := newFixture(t, "", upstreams(broken(t, hangup), broken(t, hangup), broken(t, hangup)))
	c := f.client("http/1.1")
	for i, method := range []string{"POST", "PUT", "DELETE", "PATCH", "GET"} {
		if res, _ := do(t, c, method, "https://"+host+"/", nil, nil); res.StatusCode != 502 {
			t.Errorf("%s: %d", method, res.StatusCode)
		}
		if n := arrived.Load(); n != int64(i+1) {
			t.Errorf("%s arrived %d times", method, n-int64(i))
		}
	}
}

func TestMaxRequestsAnswers503AtOnce(t *testing.T) {
	release := make(chan struct{})
	var waiting atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		waiting.Add(1)
		<-release
	}))
	defer srv.Close()
	f := newFixture(t, srv.URL, with(func(c *fixtureConfig) { c.app.MaxRequests = 2 }))
	c := f.client("http/1.1")
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() { do(t, c, "GET", "https://"+host+"/", nil, nil) })
	}
	for waiting.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	res, body := do(t, c, "GET", "https://"+host+"/", nil, nil)
	took := time.Since(start)
	close(release)
	all.Wait()
	if res.StatusCode != 503 || !strings.Contains(body, "YM-519") || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	t.Logf("refused within %v", took)
	if res, _ := do(t, c, "GET", "https://"+host+"/", nil, nil); res.StatusCode != 200 {
		t.Errorf("%d when there is room again", res.StatusCode)
	}
}

// Each phase has a limit of the application's own.
func TestR8_TimeLimitsOfPhases(t *testing.T) {
	hang := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	half := func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le")
		hang(c)
	}
	stuck := func(c net.Conn) { // answers, and then sends nothing of the body
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
		hang(c)
	}
	deaf := func(c net.Conn) { // never reads
		_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		var b [1]byte
		_, _ = c.Read(b[:])
		for c.SetDeadline(time.Time{}) == nil { // until the fixture closes it
			time.Sleep(10 * time.Millisecond)
		}
	}
	limits := with(func(c *fixtureConfig) {
		c.app.Timeouts = apps.TimeoutsConfig{Answer: 300 * time.Millisecond, Idle: 300 * time.Millisecond}
	})
	for name, c := range map[string]struct {
		how    func(net.Conn)
		body   int
		status int
	}{
		"no byte": {hang, 0, 504}, "half a head": {half, 0, 504}, "half a body": {stuck, 0, 200}, "reads nothing": {deaf, 16 << 20, 504},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, broken(t, c.how), limits)
			start := time.Now()
			r, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+host+"/", strings.NewReader(strings.Repeat("x", c.body)))
			if err != nil {
				t.Fatal(err)
			}
			res, err := f.h2().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			took := time.Since(start)
			if res.StatusCode != c.status || (err != nil) != (c.status == 200) {
				t.Errorf("%d, %v", res.StatusCode, err)
			}
			t.Logf("ended after %v", took)
			if took < 250*time.Millisecond || took > 8*time.Second {
				t.Errorf("ended after %v, want some 0.3 s", took)
			}
		})
	}
}
