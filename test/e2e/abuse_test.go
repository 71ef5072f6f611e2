package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/test/testbed"
)

// beside sends legitimate requests, each on a new connection, while an attack
// runs, and fails the test when one is not served. The returned function ends
// it and says how many were served and how long they took.
func beside(t *testing.T, l *lone) func() (int, time.Duration, time.Duration) {
	t.Helper()
	c := l.HTTP(l.Client(alice, aliceDevice), false)
	ctx, cancel := context.WithCancel(context.Background())
	var took []time.Duration
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil || len(took) < 10 { // a short attack, too, has somebody beside it
			path, began := fresh(), time.Now()
			if status, body, err := ask(c, l.URL(l.app, path)); err != nil || status != 200 {
				t.Errorf("a legitimate request beside the attack: %d %.200q, %v", status, body, err)
				return
			}
			took = append(took, time.Since(began))
			time.Sleep(10 * time.Millisecond) // the pace of the client; nothing is waited for
		}
	}()
	t.Cleanup(cancel)
	return func() (int, time.Duration, time.Duration) {
		cancel()
		<-done
		return len(took), quantile(took, .5), quantile(took, .99)
	}
}

// ambiguous are requests that two parsers read in two ways. HOST and PATH are
// replaced.
var ambiguous = map[string]string{
	"CL.TE":               "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE.CL":               "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE space colon":      "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE identity, CL":     "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE twice":            "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE list":             "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE vertical tab":     "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE folded":           "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE in HTTP/1.0":      "POST PATH HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED",
	"TE behind a bare LF": "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED",
	"CL twice":            "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\nSMUGGLED",
	"CL list":             "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0, 40\r\n\r\nSMUGGLED",
	"CL plus":             "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: +0\r\n\r\nSMUGGLED",
	"CL hex":              "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0x0\r\n\r\nSMUGGLED",
	"CL overflow":         "POST PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: 18446744073709551617\r\n\r\nhSMUGGLED",
	"chunk size sign":     "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n+0\r\n\r\nSMUGGLED",
	"chunk bare LF":       "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\n\nSMUGGLED",
	"chunk extension CR":  "POST PATH HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0;\rx\r\n\r\nSMUGGLED",
	"two hosts":           "GET PATH HTTP/1.1\r\nHost: HOST\r\nHost: evil.test\r\n\r\nSMUGGLED",
	"no host":             "GET PATH HTTP/1.1\r\n\r\nSMUGGLED",
	"name with a space":   "GET PATH HTTP/1.1\r\nHost: HOST\r\nX Y: z\r\n\r\nSMUGGLED",
	"header folded":       "GET PATH HTTP/1.1\r\nHost: HOST\r\nX: a\r\n b\r\n\r\nSMUGGLED",
	"NUL":                 "GET PATH HTTP/1.1\r\nHost: HOST\r\nX: a\x00b\r\n\r\nSMUGGLED",
	"bare CR":             "GET PATH HTTP/1.1\r\nHost: HOST\r\nX: a\rb\r\n\r\nSMUGGLED",
	"h2 preface over h1":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nSMUGGLED",
	"encoded slash":       "GET /..%2f..PATH HTTP/1.1\r\nHost: HOST\r\n\r\nSMUGGLED",
	"backslash":           "GET /..\\..PATH HTTP/1.1\r\nHost: HOST\r\n\r\nSMUGGLED",
	"encoded NUL":         "GET /%00PATH HTTP/1.1\r\nHost: HOST\r\n\r\nSMUGGLED",
	"double encoding":     "GET /%252e%252ePATH HTTP/1.1\r\nHost: HOST\r\n\r\nSMUGGLED",
}

// Ambiguous requests through the real port, of somebody who may: nothing that
// hides in one reaches the application.
func TestS9_SmugglingThroughTheRealPort(t *testing.T) {
	t.Parallel()
	l := shared(t)
	rest := beside(t, l)
	cert, ctx := l.Client(alice, aliceDevice), within(t, 2*time.Minute)
	host := fmt.Sprintf("%s:%d", l.app.Host(), l.Port)
	// A connection stays open for as long as the idle limit; it is fenced instead.
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	for name, raw := range ambiguous {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			path, hidden := fresh(), "/hidden"+fresh()
			raw := strings.NewReplacer("PATH", path, "HOST", host, "SMUGGLED", "GET "+hidden+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n").Replace(raw)
			c, err := l.Dial(ctx, false, l.TLS(l.app.Host(), cert, "http/1.1"))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			status, closed, _ := rawExchange(c, raw)
			if status != 0 && status != 400 && status != 421 && status != 505 {
				t.Errorf("%s: status %d, want a refusal", name, status)
			}
			if !closed {
				t.Errorf("%s: the connection stays open after status %d", name, status)
			}
			if reached(l.web, hidden) {
				t.Errorf("%s: the hidden request reached the application", name)
			}
		})
	}
	all.Wait()
	for _, s := range l.web.Seen() {
		if strings.HasPrefix(s.Path, "/hidden") {
			t.Errorf("the application saw %s", s.Path)
		}
	}
	n, p50, p99 := rest()
	t.Logf("%d cases; beside them %d honest requests, p50 %v, p99 %v", len(ambiguous), n, p50, p99)
}

// slow holds connections and feeds each a byte now and then, until the gateway
// gives them up.
func slow(t *testing.T, ctx context.Context, n int, open func() (net.Conn, string, error)) (ended *atomic.Int64) {
	t.Helper()
	ended = &atomic.Int64{}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	for range n {
		c, feed, err := open()
		if err != nil {
			ended.Add(1) // refused at once: as good an end as any
			continue
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		all.Go(func() {
			defer stop()
			defer c.Close()
			gone := make(chan struct{})
			go func() { // the gateway's end, or an answer and then its end
				defer close(gone)
				_, _ = io.Copy(io.Discard, c)
				if ctx.Err() == nil {
					ended.Add(1)
				}
			}()
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-gone:
					return
				case <-tick.C:
					if _, err := c.Write([]byte{feed[i%len(feed)]}); err != nil {
						<-gone
						return
					}
				}
			}
		})
	}
	return ended
}

// Clients that send a byte now and then, in the handshake, in a head or in a
// body, are given up; others are served meanwhile.
func TestS10_SlowClientsAreGivenUp(t *testing.T) {
	t.Parallel()
	l := newLone(t, "proxy: {limits: {header_timeout: 3s, body_grace: 3s}}\nlimits: {hello_timeout: 3s, handshake_timeout: 3s}\n")
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	rest := beside(t, l)
	cert := l.Client(alice, aliceDevice)
	host := l.app.Host()
	const each = 40
	tcp := func() (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", testbed.Loopback(false, l.Port))
	}
	tlsConn := func() (net.Conn, error) {
		return l.Dial(ctx, false, l.TLS(host, cert, "http/1.1"))
	}
	attacks := map[string]func() (net.Conn, string, error){
		"silent": func() (net.Conn, string, error) { c, err := tcp(); return c, "\x16", err },
		"hello by bytes": func() (net.Conn, string, error) {
			c, err := tcp()
			if err == nil {
				_, err = c.Write([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3})
			}
			return c, "a", err
		},
		"head by bytes": func() (net.Conn, string, error) {
			c, err := tlsConn()
			if err == nil {
				_, err = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s:%d\r\nX: ", host, l.Port)
			}
			return c, "a", err
		},
		"body by bytes": func() (net.Conn, string, error) {
			c, err := tlsConn()
			if err == nil {
				_, err = fmt.Fprintf(c, "POST /slow HTTP/1.1\r\nHost: %s:%d\r\nContent-Length: 100000\r\n\r\n", host, l.Port)
			}
			return c, "a", err
		},
	}
	ended := map[string]*atomic.Int64{}
	for name, open := range attacks {
		ended[name] = slow(t, ctx, each, open)
	}
	for name, n := range ended {
		testbed.Eventually(t, 30*time.Second, name+": all are given up", func() bool { return n.Load() >= each })
	}
	n, p50, p99 := rest()
	t.Logf("beside %d slow clients: %d honest requests, p50 %v, p99 %v", each*len(attacks), n, p50, p99)
	if n == 0 {
		t.Error("no honest request was served")
	}
}

// 500 connections that say nothing at all fill the half-open table; a newcomer
// finds a place.
func TestS10_HalfOpenFlood(t *testing.T) {
	t.Parallel()
	l := newLone(t, "limits: {half_open: 200, half_open_per_source: 180}\n")
	rest := beside(t, l)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	refused := 0
	for i := range 500 {
		c, err := net.DialTimeout("tcp", testbed.Loopback(i%2 == 1, l.Port), 5*time.Second)
		if err != nil {
			refused++
			continue
		}
		held = append(held, c)
		if i%3 == 0 {
			_, _ = c.Write([]byte{0x16, 3, 1}) // the beginning of a hello; the gateway may be faster
		}
	}
	if len(held) < 400 {
		t.Errorf("only %d connections were opened: the test floods nothing", len(held))
	}
	// More handshakes that stop half way, by a client that does speak TLS.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			if c, err := l.Dial(ctx, false, &tls.Config{RootCAs: nil, ServerName: l.app.Host()}); err == nil {
				c.Close()
			}
		})
	}
	wg.Wait()
	time.Sleep(time.Second) // the flood stands while honest clients come
	n, p50, p99 := rest()
	t.Logf("beside %d half-open connections (%d refused): %d honest requests, p50 %v, p99 %v", len(held), refused, n, p50, p99)
	if n < 10 {
		t.Errorf("%d honest requests were served beside the flood, at least 10 wanted", n)
	}
}

// Resets, unfinished uploads and requests that nobody waits for leave nothing
// behind.
func TestS10_AbandonedRequestsLeaveNothing(t *testing.T) {
	t.Parallel()
	l := newLone(t, "")
	c := l.HTTP(l.Client(alice, aliceDevice), true)
	rest := beside(t, l)
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			for _, path := range []string{"/endless", "/events", "/hold?for=1m", "/endless?rate=1000000"} {
				ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
				defer cancel()
				r, err := http.NewRequestWithContext(ctx, "GET", l.URL(l.app, path), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if resp, err := c.Do(r); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body) // ended by the context
					resp.Body.Close()
				}
			}
		})
	}
	all.Wait()
	n, p50, p99 := rest()
	t.Logf("%d honest requests beside, p50 %v, p99 %v", n, p50, p99)
	testbed.Eventually(t, 15*time.Second, "no flow is left", func() bool {
		st, err := l.Status()
		return err == nil && st.Access.Leases == 0
	})
}
