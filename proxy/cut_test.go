package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// endless sends for ever, as fast as it is taken.
func endless(w http.ResponseWriter, r *http.Request) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := w.Write(buf); err != nil {
			return
		}
	}
}

// promptly bounds what is promised within 100 ms: on a machine that others use
// chance alone is more, and what does not work takes many seconds.
const promptly = 3 * time.Second

// M57: an answer that has begun is cut within 100 ms, also when the client
// takes it slowly and the kernel holds much of it.
func TestGCR002_M57_CutOfADownloadThatIsTakenSlowly(t *testing.T) {
	fastest := time.Hour
	for _, network := range []string{"127.0.0.1:0", "[::1]:0"} {
		f := newFixture(t, upstreamOf(t, endless), with(func(c *fixtureConfig) { c.network = network }))
		c := f.raw(host)
		fmt.Fprintf(c, "GET /big HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		carrier := <-f.gate.acquired
		if carrier.Kind() != access.H1 {
			t.Errorf("kind %v", carrier.Kind())
		}
		// 1 MiB/s for half a second: the buffers on the way are full then.
		buf := make([]byte, 16<<10)
		tick := time.NewTicker(16 * time.Millisecond)
		defer tick.Stop()
		for range 32 {
			<-tick.C
			if _, err := io.ReadFull(c, buf); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		carrier.Cut(reason.GrantRevoked)
		fastest = min(fastest, time.Since(start))
		waitReleased(t, f, 1, start, promptly)
		for { // what the client's own buffers hold, and then a reset
			if _, err := c.Read(buf); err != nil {
				if err == io.EOF {
					t.Errorf("%s: the answer ended well", network)
				}
				break
			}
		}
	}
	if fastest > 50*time.Millisecond { // of two: chance does not last
		t.Errorf("Cut blocked for %v", fastest)
	}
}

// waitReleased waits for n releases and wants them within limit of start.
func waitReleased(t *testing.T, f *fixture, n int, start time.Time, limit time.Duration) {
	t.Helper()
	for {
		if _, r := f.gate.balance(); r >= n {
			break
		}
		if time.Since(start) > 5*time.Second {
			t.Fatal("the lease is not released after 5 s")
		}
		time.Sleep(time.Millisecond) // another goroutine's progress: nothing to wait on
	}
	d := time.Since(start)
	if d > limit {
		t.Errorf("released after %v, want %v at most", d, limit)
	}
	t.Logf("cut to release: %v", d)
}

// A stream of a shared connection is reset alone.
func TestGCR002_M57_CutOfOneStreamLeavesTheOthers(t *testing.T) {
	step := make(chan struct{})
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			endless(w, r)
			return
		}
		_, _ = io.WriteString(w, "first\n")
		w.(http.Flusher).Flush()
		select {
		case <-step:
			_, _ = io.WriteString(w, "second\n")
		case <-r.Context().Done():
		}
	}))
	c := f.h2()
	get := func(path string) (*http.Response, access.Carrier) {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+path, nil)
		res, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return res, <-f.gate.acquired
	}
	other, _ := get("/other")
	defer other.Body.Close()
	big, carrier := get("/big") // its window fills up: the writer waits for credit
	defer big.Body.Close()
	if carrier.Kind() != access.H2 {
		t.Errorf("kind %v", carrier.Kind())
	}
	if _, err := io.CopyN(io.Discard, big.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	carrier.Cut(reason.GrantRevoked)
	waitReleased(t, f, 1, start, promptly)
	if _, err := io.Copy(io.Discard, big.Body); err == nil {
		t.Error("the answer ended well")
	}
	close(step)
	b, err := io.ReadAll(other.Body)
	if err != nil || string(b) != "first\nsecond\n" {
		t.Errorf("the other stream: %q, %v", b, err)
	}
}

// An exchange that has not begun its answer says why.
func TestGCR002_M57_CutBeforeTheAnswerSaysWhy(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	for i, proto := range protocols {
		for j, body := range []func() io.Reader{func() io.Reader { return nil }, func() io.Reader {
			r, w := io.Pipe()
			t.Cleanup(func() { w.Close() })
			return r
		}} {
			done := make(chan string, 1)
			go func() {
				r, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+host+"/", body())
				res, err := f.client(proto).Do(r)
				if err != nil {
					done <- err.Error()
					return
				}
				b, _ := io.ReadAll(res.Body)
				res.Body.Close()
				done <- fmt.Sprint(res.StatusCode, " ", string(b))
			}()
			carrier := <-f.gate.acquired
			start := time.Now()
			carrier.Cut(reason.GrantRevoked)
			carrier.Cut(reason.Locked) // at most once; a second is ignored
			waitReleased(t, f, 2*i+j+1, start, promptly)
			if got := <-done; !strings.Contains(got, "403") || !strings.Contains(got, "YM-304") {
				t.Errorf("%s: %s", proto, got)
			}
		}
	}
}

func TestGCR002_M57_CutOfServerSentEvents(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	for i, proto := range protocols {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/events", nil)
		r.Header.Set("Accept", "text/event-stream")
		res, err := f.client(proto).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(res.Body).ReadString('\n') // comes although the answer has not ended
		if err != nil || line != "data: 1\n" {
			t.Fatalf("%s: %q %v", proto, line, err)
		}
		carrier := <-f.gate.acquired
		if carrier.Kind() != access.SSE {
			t.Errorf("%s: kind %v", proto, carrier.Kind())
		}
		start := time.Now()
		carrier.Cut(reason.SessionRevoked)
		waitReleased(t, f, i+1, start, promptly)
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("%s: the events ended well", proto)
		}
		res.Body.Close()
	}
}

// webSocketUpstream accepts handshakes and echoes what it gets; early gets
// every byte that came before its 101.
func webSocketUpstream(t *testing.T, early chan<- string, gate <-chan struct{}) string {
	return upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		if gate != nil {
			<-gate
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			b, _ := io.ReadAll(rw.Reader)
			early <- string(b)
			_ = c.SetReadDeadline(time.Time{})
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			webSocketAccept(r.Header.Get("Sec-WebSocket-Key")))
		_, _ = io.Copy(c, c)
	})
}

const webSocketHello = "GET /ws HTTP/1.1\r\nHost: " + host + "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

func TestS12_WebSocketEchoesAndIsCut(t *testing.T) {
	f := newFixture(t, webSocketUpstream(t, nil, nil))
	c := f.raw(host)
	_, _ = io.WriteString(c, webSocketHello+"\r\n")
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%v %v", res, err)
	}
	carrier := <-f.gate.acquired
	if carrier.Kind() != access.WebSocket {
		t.Errorf("kind %v", carrier.Kind())
	}
	for range 3 { // not HTTP: the guard must not look at it
		msg := "\x81\x14hello\n\nGET / HTTP/9\n"
		_, _ = io.WriteString(c, msg)
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(br, got); err != nil || string(got) != msg {
			t.Fatalf("%q %v", got, err)
		}
	}
	start := time.Now()
	carrier.Cut(reason.GrantRevoked)
	waitReleased(t, f, 1, start, promptly)
	last, err := io.ReadAll(br)
	if want := reason.GrantRevoked.Result(); len(last) != 4+len(want) || last[0] != 0x88 || string(last[2:4]) != "\x03\xf0" || string(last[4:]) != want {
		t.Errorf("got %q, %v, want a close frame of code 1008 with %q", last, err, want)
	}
	if u := f.gate.used[0]; u.Status != 101 || u.BytesIn == 0 || u.BytesIn != u.BytesOut {
		t.Errorf("usage %+v", u)
	}
}

// No frame of ours is put into one of the application's, and none behind its
// own farewell.
func TestS12_WebSocketIsCutInsideAFrame(t *testing.T) {
	for name, sent := range map[string]string{
		"in the payload":     "\x82\x7e\x01\x00half",
		"in the head":        "\x82",
		"in a long head":     "\x82\x7f\x00\x00\x00",
		"behind a close":     "\x88\x02\x03\xe8",
		"behind two, inside": "\x81\x05hello\x89\x00\x82\x10",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, webSocketUpstream(t, nil, nil))
			c := f.raw(host)
			_, _ = io.WriteString(c, webSocketHello+"\r\n")
			br := bufio.NewReader(c)
			if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
				t.Fatal(res, err)
			}
			carrier := <-f.gate.acquired
			_, _ = io.WriteString(c, sent) // the application echoes
			if _, err := io.ReadFull(br, make([]byte, len(sent))); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			carrier.Cut(reason.GrantRevoked)
			waitReleased(t, f, 1, start, promptly)
			if b, _ := io.ReadAll(br); len(b) != 0 {
				t.Errorf("got %q behind %q", b, sent)
			}
		})
	}
}

// A WebSocket's handshake is judged as the GET that it is.
func TestS12_WebSocketToADeniedPath(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	f.gate.refuse = func(r *policy.Request) access.Refusal {
		if r.Method == "GET" && r.Path == "/ws" {
			return access.Refusal{Reason: reason.PolicyApp, PolicyID: "POL00000001"}
		}
		return access.Refusal{}
	}
	if status, closed, _ := f.exchange(host, webSocketHello+"\r\n", false); status != 403 || !closed {
		t.Errorf("status %d, closed %v", status, closed)
	}
	if n, all := rec.seen("/ws"); n > 0 {
		t.Errorf("the upstream saw %s", all)
	}
}

func TestS11_BytesBefore101AreNotForwarded(t *testing.T) {
	early, gate := make(chan string, 1), make(chan struct{})
	f := newFixture(t, webSocketUpstream(t, early, gate))
	c := f.raw(host)
	_, _ = io.WriteString(c, webSocketHello+"\r\nGET /smuggled HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	<-f.gate.acquired
	close(gate)
	if b := <-early; b != "" {
		t.Errorf("%q reached the upstream before its 101", b)
	}
	b, _ := io.ReadAll(c)
	if strings.Contains(string(b), "101 Switching") {
		t.Errorf("the upgrade was answered although bytes came before it: %q", b)
	}
}

func TestS11_OtherUpgradesAreRefused(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	get := "GET /x HTTP/1.1\r\nHost: " + host + "\r\n"
	for name, raw := range map[string]string{
		"h2c":              get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
		"h2c and ws":       strings.Replace(webSocketHello, "Upgrade: websocket", "Upgrade: h2c, websocket", 1) + "\r\n",
		"unknown":          get + "Connection: Upgrade\r\nUpgrade: foo\r\n\r\n",
		"tls":              get + "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
		"not in list":      strings.Replace(webSocketHello, "Connection: Upgrade\r\n", "", 1) + "\r\n",
		"settings":         webSocketHello + "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
		"version 8":        strings.Replace(webSocketHello, "Version: 13", "Version: 8", 1) + "\r\n",
		"no key":           get + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"short key":        strings.Replace(webSocketHello, "dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 1) + "\r\n",
		"post":             strings.Replace(webSocketHello, "GET", "POST", 1) + "\r\n",
		"old":              strings.Replace(webSocketHello, "HTTP/1.1", "HTTP/1.0", 1) + "\r\n",
		"body":             webSocketHello + "Content-Length: 2\r\n\r\nxx",
		"twice":            webSocketHello + "Upgrade: websocket\r\n\r\n",
		"connection alone": get + "Connection: Upgrade\r\n\r\n",
	} {
		if status, closed, _ := f.exchange(host, raw, false); status != 400 || !closed {
			t.Errorf("%s: status %d, closed %v, want 400 and closed", name, status, closed)
		}
	}
	if n, all := rec.seen("/x"); n > 0 || strings.Contains(all, "/ws") {
		t.Errorf("the upstream saw %s", all)
	}
}

func TestS11_AnswerThatIsNo101OfRFC6455(t *testing.T) {
	for name, raw := range map[string]string{
		"wrong accept": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
		"other":        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
	} {
		f := newFixture(t, rawUpstream(t, raw))
		if status, _, _ := f.exchange(host, webSocketHello+"\r\n", false); status != 502 {
			t.Errorf("%s: status %d, want 502", name, status)
		}
	}
}

func TestEndOfRunDrainsAndReturns(t *testing.T) {
	ws := newFixture(t, webSocketUpstream(t, nil, nil), with(func(c *fixtureConfig) { c.cfg.Limits.Drain = 50 * time.Millisecond }))
	c := ws.raw(host)
	_, _ = io.WriteString(c, webSocketHello+"\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v %v", res, err)
	}
	f := newFixture(t, upstreamOf(t, endless), with(func(c *fixtureConfig) { c.cfg.Limits.Drain = 50 * time.Millisecond }))
	for _, proto := range protocols {
		r, _ := http.NewRequestWithContext(context.WithoutCancel(t.Context()), "GET", "https://"+host+"/", nil)
		res, err := f.client(proto).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
	}
	if c, err := net.Dial("tcp", f.addr); err == nil {
		t.Cleanup(func() { c.Close() })
	}
	// The fixtures' clean-ups end Run with downloads and a tunnel in flight, and wait.
}

// S26: a client that takes nothing is gone after write_stall; one that waits
// for rare events is not.
func TestS26_ClientsThatTakeNothing(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			endless(w, r)
			return
		}
		for range 3 {
			_, _ = io.WriteString(w, "event\n")
			w.(http.Flusher).Flush()
			select {
			case <-time.After(150 * time.Millisecond): // longer than the stall
			case <-r.Context().Done():
				return
			}
		}
	}), with(func(c *fixtureConfig) { c.cfg.Limits.WriteStall = 100 * time.Millisecond }))
	for i, proto := range protocols {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/big", nil)
		res, err := f.client(proto).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		waitReleased(t, f, 2*i+1, time.Now(), 3*time.Second)
		res.Body.Close()
		if res, body := do(t, f.client(proto), "GET", "https://"+host+"/events", nil, nil); body != "event\nevent\nevent\n" {
			t.Errorf("%s: rare events: %d %q", proto, res.StatusCode, body)
		}
	}
}
