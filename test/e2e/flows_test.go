package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// flow is one thing that flows through the gateway, seen by its client.
type flow struct {
	name string
	kind access.Kind
	slow bool // the client reads 1 MiB/s: what it sees last may have waited in its own kernel

	bytes atomic.Int64  // received
	last  atomic.Int64  // UnixNano of the last byte
	begun chan struct{} // closed when the first byte has come
	hurry chan struct{} // closed when the end is expected: a slow client may read what its kernel has
	ended chan struct{} // closed when the client knows the end
	err   error         // set before ended is closed
	once  sync.Once
}

func (f *flow) got(n int) {
	if n > 0 {
		f.bytes.Add(int64(n))
		f.last.Store(time.Now().UnixNano())
		f.once.Do(func() { close(f.begun) })
	}
}

// read reads r to its end, at 1 MiB/s when the client is slow.
func (f *flow) read(r io.Reader) error {
	buf := make([]byte, 16<<10)
	var tick <-chan time.Time
	if f.slow {
		t := time.NewTicker(time.Second / 64)
		defer t.Stop()
		tick = t.C
	}
	for {
		n, err := r.Read(buf)
		if f.slow && err == nil {
			var more int
			more, err = io.ReadFull(r, buf[n:])
			n += more
			select {
			case <-tick:
			case <-f.hurry:
			}
		}
		f.got(n)
		if err != nil {
			return err
		}
	}
}

// opener opens flows for a browser with a session of a user and an agent at
// which the same user is signed in.
type opener struct {
	t   testing.TB
	ctx context.Context
	w   *world
	b   *testbed.Browser
	a   *testbed.Agent
	all []*flow
	wg  sync.WaitGroup

	cancel context.CancelFunc
}

// close ends what still flows and waits for it.
func (o *opener) close() { o.cancel(); o.wg.Wait() }

func (o *opener) add(name string, kind access.Kind, slow bool, run func(f *flow) error) {
	f := &flow{name: name, kind: kind, slow: slow, begun: make(chan struct{}), hurry: make(chan struct{}), ended: make(chan struct{})}
	o.all = append(o.all, f)
	o.wg.Go(func() { defer close(f.ended); f.err = run(f) })
}

// raw sends a request by hand and returns the connection behind the head.
func (o *opener) raw(host, path string, fields string) (net.Conn, *bufio.Reader, error) {
	c, err := o.b.Raw(o.ctx, host+"."+testbed.Domain)
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(o.ctx, func() { c.Close() })
	u := o.w.URL(host, path)
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s.%s:%d\r\nCookie: %s\r\n%s\r\n", path, host, testbed.Domain, o.w.Port, o.b.Cookies(u), fields); err != nil {
		return nil, nil, err
	}
	return c, bufio.NewReader(c), nil
}

// accept is the field by which a browser asks for events.
func accept(path string) string {
	if path == "/events" {
		return "Accept: text/event-stream\r\n"
	}
	return ""
}

func (o *opener) h1(path string) func(*flow) error {
	return func(f *flow) error {
		c, r, err := o.raw("web", path, accept(path))
		if err != nil {
			return err
		}
		defer c.Close()
		if f.slow {
			if t, ok := c.(interface{ NetConn() net.Conn }); ok {
				_ = t.NetConn().(*net.TCPConn).SetReadBuffer(64 << 10) // as much as a kernel gives
			}
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != 200 {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return f.read(resp.Body)
	}
}

func (o *opener) h2(path string) func(*flow) error { return o.shared(o.b.Client, 2, path) }

// shared reads path on a stream of a connection that others use, too.
func (o *opener) shared(c *http.Client, major int, path string) func(*flow) error {
	return func(f *flow) error {
		r, err := http.NewRequestWithContext(o.ctx, "GET", o.w.URL("web", path), nil)
		if err != nil {
			return err
		}
		if path == "/events" {
			r.Header.Set("Accept", "text/event-stream")
		}
		resp, err := c.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 || resp.ProtoMajor != major {
			return fmt.Errorf("status %d over %s", resp.StatusCode, resp.Proto)
		}
		return f.read(resp.Body)
	}
}

func (o *opener) webSocket(f *flow) error {
	c, err := o.b.Raw(o.ctx, "web."+testbed.Domain)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(o.ctx, func() { c.Close() })()
	cfg, err := websocket.NewConfig("wss"+o.w.URL("web", "/ws")[len("https"):], o.w.URL("web", "/"))
	if err != nil {
		return err
	}
	cfg.Header = http.Header{"Cookie": {o.b.Cookies(o.w.URL("web", "/"))}}
	ws, err := websocket.NewClient(cfg, c)
	if err != nil {
		return err
	}
	for {
		if err := websocket.Message.Send(ws, []byte("ping")); err != nil {
			return err
		}
		var b []byte
		if err := websocket.Message.Receive(ws, &b); err != nil {
			return err
		}
		f.got(len(b))
		time.Sleep(5 * time.Millisecond) // the pace of the client; nothing is waited for
	}
}

func (o *opener) tcp(first string) func(*flow) error {
	return func(f *flow) error {
		c, err := testbed.DialSOCKS(o.ctx, o.a.SOCKS5, o.w.app(echoID).Address())
		if err != nil {
			return err
		}
		defer c.Close()
		defer context.AfterFunc(o.ctx, func() { c.Close() })()
		if _, err := io.WriteString(c, first); err != nil {
			return err
		}
		if first == "f" {
			return f.read(c)
		}
		buf := make([]byte, 64)
		for {
			n, err := c.Read(buf)
			f.got(n)
			if err != nil {
				return err
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return err
			}
			time.Sleep(2 * time.Millisecond) // the pace of the client; nothing is waited for
		}
	}
}

// errSilent says that datagrams are no longer answered.
var errSilent = errors.New("no answer any more")

func (o *opener) udp(f *flow) error {
	a, err := testbed.AssociateSOCKS(o.ctx, o.a.SOCKS5, o.w.app(udpID).Address())
	if err != nil {
		return err
	}
	defer a.Close()
	patience := 500 // a loaded machine may be silent for long
	hurry := f.hurry
	for missed := 0; missed < patience; {
		select {
		case <-o.ctx.Done():
			return o.ctx.Err()
		case <-hurry: // the end is expected
			patience, hurry = 15, nil
		default:
		}
		if err := a.Send([]byte("datagram")); err != nil {
			return err
		}
		b, err := a.Receive(20 * time.Millisecond)
		if err != nil {
			missed++
			continue
		}
		missed = 0
		f.got(len(b))
		time.Sleep(5 * time.Millisecond) // the pace of the client; nothing is waited for
	}
	return errSilent
}

// openAll opens a flow of each kind that is built, and slow ones. Each has
// received a byte when it returns.
func openAll(t testing.TB, w *world, b *testbed.Browser, a *testbed.Agent) *opener {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := &opener{t: t, ctx: ctx, w: w, b: b, a: a, cancel: cancel}
	t.Cleanup(o.close)
	const rate = "/endless?rate=2000000"
	o.add("h1", access.H1, false, o.h1(rate))
	o.add("h1, 1 MiB/s client", access.H1, true, o.h1("/endless/slow"))
	o.add("h2", access.H2, false, o.h2(rate))
	o.add("h2, 1 MiB/s client", access.H2, true, o.h2("/endless/slow"))
	if w.Profile.TLS() {
		three := b.HTTP3(t)
		o.add("h3", access.H3, false, o.shared(three, 3, rate))
		o.add("h3, 1 MiB/s client", access.H3, true, o.shared(three, 3, "/endless/slow"))
		o.add("sse over h3", access.SSE, false, o.shared(three, 3, "/events"))
	}
	o.add("sse over h1", access.SSE, false, o.h1("/events"))
	o.add("sse over h2", access.SSE, false, o.h2("/events"))
	o.add("websocket", access.WebSocket, false, o.webSocket)
	o.add("tcp", access.TCP, false, o.tcp("echo this"))
	o.add("tcp, 1 MiB/s client", access.TCP, true, o.tcp("f"))
	o.add("udp", access.UDP, false, o.udp)
	for _, f := range o.all {
		select {
		case <-f.begun:
		case <-f.ended:
			t.Fatalf("%s ended before it began: %v", f.name, f.err)
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: nothing came in 20 s", f.name)
		}
	}
	return o
}

// ends waits until every client knows the end.
func (o *opener) ends(limit time.Duration) {
	o.t.Helper()
	timeout := time.After(limit)
	for _, f := range o.all {
		close(f.hurry)
	}
	for _, f := range o.all {
		select {
		case <-f.ended:
		case <-timeout:
			o.t.Fatalf("%s still flows, %d bytes came, the last %v ago", f.name, f.bytes.Load(), time.Since(time.Unix(0, f.last.Load())))
		}
	}
}

// isFlow reports whether r is of a flow of openAll: not of a page.
func isFlow(r *audit.Record) bool {
	return slices.Contains([]string{"", "/endless", "/endless/slow", "/events", "/ws"}, r.Path)
}

// endRecords waits for the end records of a user's flows that began after from,
// one a flow.
func (o *opener) endRecords(u *testbed.User) []audit.Record {
	o.t.Helper()
	return o.w.GatewayAudit.Await(o.t, len(o.all), "the ends of "+u.Name, func(r *audit.Record) bool {
		return r.Kind == audit.End && r.UserID == u.ID && isFlow(r)
	})
}
