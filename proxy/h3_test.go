package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/internal/reason"
)

// A real client of HTTP/3 gets what one of HTTP/2 gets.
func TestHTTP3AnswersAsHTTP2Does(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		sum := sha256.Sum256(b)
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
			return
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-Sum", "7")
			return
		case "/large":
			_, _ = w.Write(bytes.Repeat([]byte("0123456789abcdef"), 64<<10))
			return
		}
		fmt.Fprintf(w, "%s %s %s %d %s %v %v %q %q", r.Method, r.Host, r.RequestURI, len(b), hex.EncodeToString(sum[:4]), err, r.Trailer,
			r.Header["Cookie"], r.Header["X-Forwarded-For"])
	}))
	two, three := f.h2(), f.h3(f.quicPort())
	for _, q := range []struct {
		method, path string
		body         string
		header       http.Header
	}{
		{"GET", "/a%20b?x=1", "", http.Header{"Cookie": {"a=b; c=d"}}},
		{"HEAD", "/large", "", nil},
		{"GET", "/204", "", nil},
		{"GET", "/trailer", "", nil},
		{"GET", "/large", "", nil},
		{"POST", "/", "hello", nil},
		{"POST", "/", "", nil},
		{"PUT", "/", strings.Repeat("x", 1<<20), nil},
		{"DELETE", "/", "", nil},
		{"OPTIONS", "/", "", nil},
		{"BREW", "/", "", nil},
		{"GET", "/..%2fetc", "", nil},
		{"GET", "/", "", http.Header{"X-Forwarded-For": {"9.9.9.9"}, "X_Under": {"1"}}},
		{"GET", "/", "", http.Header{"X-Forwarded-For": {"9.9.9.9"}}},
	} {
		var got [2]string
		for i, c := range []*http.Client{two, three} {
			var body io.Reader
			if q.body != "" {
				body = io.MultiReader(strings.NewReader(q.body)) // of unknown length
			}
			res, text := do(t, c, q.method, "https://"+host+q.path, q.header, body)
			if strings.Contains(text, "request_id") {
				text = ""
			}
			got[i] = fmt.Sprint(res.StatusCode, " ", res.Trailer, " ", res.Header["Content-Type"], " ", text)
			if i == 1 && res.ProtoMajor != 3 {
				t.Errorf("%s %s: %s", q.method, q.path, res.Proto)
			}
		}
		if got[0] != got[1] {
			t.Errorf("%s %s: HTTP/2 %.300s\nHTTP/3 %.300s", q.method, q.path, got[0], got[1])
		}
	}
	for _, r := range f.audit.all {
		if r.Carrier == "h3" && r.Suite == "" {
			t.Errorf("no suite in the audit: %+v", r)
		}
	}
}

// 0 requests of the corpus reach the upstream but those that are requests.
func TestHTTP3RefusesWhatIsAmbiguous(t *testing.T) {
	r := newRecorder(t)
	f := newFixture(t, r.url())
	addr := f.quicPort()
	const conn, stream = "conn ", "stream "
	fields := func(kv ...string) []byte { return frame(1, section(kv...)...) }
	data := func(s string) []byte { return frame(0, []byte(s)...) }
	many := func(n int, b []byte) []byte { return bytes.Repeat(b, n) }
	cases := []struct {
		name string
		want string
		b    []byte
		open bool // the client does not end its side
		way  []byte
		end  bool // of way
	}{
		{name: "good", want: "200", b: get3("/good")},
		{name: "good with a body", want: "200", b: append(post3("/good", "content-length", "2"), data("ok")...)},
		{name: "good with grease", want: "200", b: append(frame(0x21, 1, 2, 3), get3("/good")...)},
		{name: "good trailer", want: "200", b: append(append(post3("/good", "trailer", "x-sum"), data("ok")...), fields("x-sum", "1")...)},
		{name: "data first", want: conn + "0x105", b: data("x")},
		{name: "nothing", want: stream + "0x10d", b: nil},
		{name: "half a frame", want: conn + "0x106", b: []byte{1, 20, 0, 0}},
		{name: "settings on a request", want: conn + "0x105", b: frame(4)},
		{name: "goaway on a request", want: conn + "0x105", b: frame(7, 0)},
		{name: "max push id on a request", want: conn + "0x105", b: frame(0xd, 0)},
		{name: "cancel push on a request", want: conn + "0x105", b: frame(3, 0)},
		{name: "push promise", want: conn + "0x105", b: frame(5, 0, 0, 0)},
		{name: "ping of HTTP/2", want: conn + "0x105", b: frame(6)},
		{name: "window update of HTTP/2", want: conn + "0x105", b: frame(8)},
		{name: "continuation of HTTP/2", want: conn + "0x105", b: frame(9)},
		{name: "no method", want: stream + "0x10e", b: fields(":scheme", "https", ":authority", host, ":path", "/x")},
		{name: "no path", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "https", ":authority", host)},
		{name: "no scheme", want: stream + "0x10e", b: fields(":method", "GET", ":authority", host, ":path", "/x")},
		{name: "scheme http", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "http", ":authority", host, ":path", "/x")},
		{name: "two methods", want: stream + "0x10e", b: get3("/x", ":method", "GET")},
		{name: "two paths", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "https", ":path", "/x", ":authority", host, ":path", "/y")},
		{name: "two authorities", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "https", ":path", "/x", ":authority", host, ":authority", host)},
		{name: "empty path", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "https", ":authority", host, ":path", "")},
		{name: "unknown pseudo", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "https", ":authority", host, ":path", "/x", ":evil", "1")},
		{name: "status in a request", want: stream + "0x10e", b: fields(":status", "200", ":method", "GET", ":scheme", "https", ":authority", host, ":path", "/x")},
		{name: "pseudo behind", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "https", ":path", "/x", "a", "b", ":authority", host)},
		{name: "upper case", want: stream + "0x10e", b: get3("/x", "X-Upper", "1")},
		{name: "name with a space", want: stream + "0x10e", b: get3("/x", "a b", "1")},
		{name: "name with a colon", want: stream + "0x10e", b: get3("/x", "a:b", "1")},
		{name: "empty name", want: stream + "0x10e", b: get3("/x", "", "1")},
		{name: "value with CRLF", want: stream + "0x10e", b: get3("/x", "a", "b\r\nx: y")},
		{name: "value with NUL", want: stream + "0x10e", b: get3("/x", "a", "b\x00")},
		{name: "connection", want: stream + "0x10e", b: get3("/x", "connection", "close")},
		{name: "transfer-encoding", want: stream + "0x10e", b: post3("/x", "transfer-encoding", "chunked")},
		{name: "upgrade", want: stream + "0x10e", b: get3("/x", "upgrade", "websocket")},
		{name: "keep-alive", want: stream + "0x10e", b: get3("/x", "keep-alive", "1")},
		{name: "te", want: stream + "0x10e", b: get3("/x", "te", "gzip")},
		{name: "two lengths", want: stream + "0x10e", b: post3("/x", "content-length", "1", "content-length", "2")},
		{name: "length with a sign", want: stream + "0x10e", b: post3("/x", "content-length", "+1")},
		{name: "a body that is not there", want: stream + "0x10e", b: get3("/x", "content-length", "5")},
		{name: "a body too long", want: stream + "0x10e", b: append(post3("/long", "content-length", "1"), data("xy")...)},
		{name: "a body too short", want: stream + "0x10e", b: append(post3("/short", "content-length", "9"), data("xy")...)},
		{name: "underscore", want: "400", b: get3("/x", "x_yumen_user", "root")},
		{name: "another host", want: "421", b: fields(":method", "GET", ":scheme", "https", ":authority", "other.example.test", ":path", "/x")},
		{name: "host differs", want: "400", b: get3("/x", "host", "other.example.test")},
		{name: "no authority", want: "400", b: fields(":method", "GET", ":scheme", "https", ":path", "/x")},
		{name: "user in authority", want: "400", b: fields(":method", "GET", ":scheme", "https", ":authority", "a@"+host, ":path", "/x")},
		{name: "asterisk", want: "400", b: get3("*")},
		{name: "absolute path", want: "400", b: get3("https://" + host + "/x")},
		{name: "encoded slash", want: "400", b: get3("/a%2f..%2fx")},
		{name: "dots", want: "400", b: get3("/a/..%5cx")},
		{name: "connect", want: "405", b: fields(":method", "CONNECT", ":authority", host)},
		{name: "connect with a path", want: stream + "0x10e", b: fields(":method", "CONNECT", ":authority", host, ":path", "/x")},
		{name: "protocol without connect", want: stream + "0x10e", b: fields(":method", "GET", ":scheme", "https", ":authority", host, ":path", "/x", ":protocol", "websocket")},
		{name: "connect-udp", want: "400", b: fields(":method", "CONNECT", ":scheme", "https", ":authority", host, ":path", "/x", ":protocol", "connect-udp"), open: true},
		{name: "trace", want: "405", b: fields(":method", "TRACE", ":scheme", "https", ":authority", host, ":path", "/x")},
		{name: "too many fields", want: "431", b: get3("/x", strings.Split(strings.Repeat("a b ", 120), " ")[:240]...)},
		{name: "a large field", want: "431", b: get3("/x", "a", strings.Repeat("é", 20<<10))},
		{name: "a huge head", want: "431", b: append([]byte{1, 0xbf, 0xff, 0xff, 0xff}, many(2000, []byte{0})...), open: true},
		{name: "a bomb", want: "431", b: frame(1, append([]byte{0, 0}, many(2000, []byte{0xd1})...)...)},
		{name: "a reference to a table", want: conn + "0x200", b: frame(1, 0, 0, 0x80)},
		{name: "an insert count", want: conn + "0x200", b: frame(1, 1, 0, 0xd1)},
		{name: "an index that is none", want: conn + "0x200", b: frame(1, 0, 0, 0xff, 0x7f)},
		{name: "a cut section", want: conn + "0x200", b: frame(1, 0, 0, 0x51, 0x7f, 0xff)},
		{name: "pseudo in the trailer", want: stream + "0x10e", b: append(append(post3("/tr"), data("x")...), fields(":path", "/y")...)},
		{name: "data behind the trailer", want: conn + "0x105", b: append(append(append(post3("/tr"), data("x")...), fields("a", "b")...), data("GET")...)},
		{name: "second trailer", want: conn + "0x105", b: append(append(append(post3("/tr"), data("x")...), fields("a", "b")...), fields("a", "b")...)},
		{name: "a body cut inside a frame", want: conn + "0x106", b: append(post3("/cut"), 0, 9, 'x')},
		{name: "empty frames", want: conn + "0x107", b: append(post3("/empty"), many(300, frame(0))...), open: true},
		{name: "unknown frames", want: conn + "0x107", b: many(300, frame(0x21)), open: true},
		{name: "no settings", want: conn + "0x10a", way: append([]byte{0}, frame(0x21)...)},
		{name: "two settings", want: conn + "0x105", way: append(append([]byte{0}, frame(4)...), frame(4)...)},
		{name: "settings of HTTP/2", want: conn + "0x109", way: append([]byte{0}, frame(4, 2, 0)...)},
		{name: "settings twice", want: conn + "0x109", way: append([]byte{0}, frame(4, 6, 0, 6, 0)...)},
		{name: "half a setting", want: conn + "0x106", way: append([]byte{0}, frame(4, 6)...)},
		{name: "data on control", want: conn + "0x105", way: append([]byte{0, 4, 0}, data("x")...)},
		{name: "headers on control", want: conn + "0x105", way: append([]byte{0, 4, 0}, get3("/x")...)},
		{name: "control ends", want: conn + "0x104", way: []byte{0, 4, 0}, end: true},
		{name: "push stream", want: conn + "0x103", way: []byte{1, 0}},
		{name: "insert into the table", want: conn + "0x201", way: []byte{2, 0xc0, 1, 'x'}},
		{name: "acknowledgement of nothing", want: conn + "0x202", way: []byte{3, 0x84}},
		{name: "encoder ends", want: conn + "0x104", way: []byte{2}, end: true},
		{name: "max push id falls", want: conn + "0x108", way: append(append([]byte{0, 4, 0}, frame(0xd, 9)...), frame(0xd, 8)...)},
		{name: "goaway rises", want: conn + "0x108", way: append(append([]byte{0, 4, 0}, frame(7, 0)...), frame(7, 4)...)},
		{name: "goaway too long", want: conn + "0x106", way: append([]byte{0, 4, 0}, frame(7, 0, 0)...)},
		{name: "control flood", want: conn + "0x107", way: append([]byte{0, 4, 0}, many(300, frame(0x21))...)},
		{name: "priority update", want: "200", way: append([]byte{0, 4, 0}, append([]byte{0x80, 0x0f, 0x07, 0x00, 1}, 0)...), b: get3("/good")},
		{name: "grease stream", want: "200", way: []byte{0x21, 1, 2, 3}, b: get3("/good")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			q := f.rawQUIC(addr)
			q.t = t
			if c.way != nil {
				q.oneWay(c.way, c.end)
			}
			var got string
			if c.way != nil && c.b == nil {
				got = q.ended()
			} else if got = q.request(c.b, !c.open); strings.HasPrefix(c.want, conn) && strings.HasPrefix(got, stream) {
				got = q.ended()
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Those whose body breaks a rule have begun well: they end with a broken
	// connection at the application, and never as a whole request.
	broken := map[string]bool{"/long": true, "/short": true, "/tr": true, "/cut": true, "/empty": true}
	for path, n := range r.n {
		if (path != "/good" || n != 6) && !broken[path] {
			t.Errorf("%d requests for %s reached the application", n, path)
		}
	}
	t.Logf("%d cases", len(cases))
}

// M57: a stream that is cut is reset alone, at once, and says what HTTP/3 has for
// it.
func TestGCR002_M57_CutOfOneHTTP3StreamLeavesTheOthers(t *testing.T) {
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
	c := f.h3(f.quicPort())
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
	big, carrier := get("/big")
	defer big.Body.Close()
	if carrier.Kind() != access.H3 {
		t.Errorf("kind %v", carrier.Kind())
	}
	if _, err := io.CopyN(io.Discard, big.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	carrier.Cut(reason.GrantRevoked)
	waitReleased(t, f, 1, start, promptly)
	if _, err := io.Copy(io.Discard, big.Body); err == nil || !strings.Contains(err.Error(), "H3_REQUEST_CANCELLED") {
		t.Errorf("the answer ended with %v", err)
	}
	close(step)
	if b, err := io.ReadAll(other.Body); err != nil || string(b) != "first\nsecond\n" {
		t.Errorf("the other stream: %q, %v", b, err)
	}
}

// A request that is cut before its answer began is told why.
func TestGCR002_M57_CutOfHTTP3BeforeTheAnswerSaysWhy(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	c := f.h3(f.quicPort())
	go func() { (<-f.gate.acquired).Cut(reason.GrantRevoked) }()
	res, text := do(t, c, "GET", "https://"+host+"/", http.Header{"Accept": {"application/json"}}, nil)
	if res.StatusCode != reason.GrantRevoked.Status() || !strings.Contains(text, reason.GrantRevoked.Code()) {
		t.Errorf("%d %s", res.StatusCode, text)
	}
}

// A client that takes streams back all the time is sent away.
func TestS25_HTTP3RapidResetEndsTheConnection(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	c := f.rawQUIC(f.quicPort())
	c.settings()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n := 0
	for ; ctx.Err() == nil; n++ {
		s, err := c.OpenStreamSync(ctx)
		if err != nil {
			break
		}
		_, _ = s.Write(get3("/slow"))
		s.CancelWrite(0x10c)
		s.CancelRead(0x10c)
	}
	if got := c.ended(); got != "conn 0x107" {
		t.Errorf("%s after %d streams", got, n)
	}
	t.Logf("ended after %d streams", n)
}

// The end of the proxy says GOAWAY, lets what is in flight end, and refuses what
// comes after.
func TestHTTP3DrainsByGoAway(t *testing.T) {
	step := make(chan struct{})
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		w.(http.Flusher).Flush()
		<-step
		_, _ = io.WriteString(w, "second\n")
	}))
	q := f.rawQUIC(f.quicPort())
	control, err := q.AcceptUniStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := q.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Write(get3("/x"))
	_ = s.Close()
	<-f.gate.acquired
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { defer close(done); _ = f.p.h3.Run(ctx) }()
	cancel()
	b := make([]byte, 64)
	_ = control.SetReadDeadline(time.Now().Add(5 * time.Second))
	n := 0
	for !bytes.HasSuffix(b[:n], []byte{7, 1, 4}) {
		m, err := control.Read(b[n:])
		if n += m; err != nil {
			t.Fatalf("no GOAWAY in %x: %v", b[:n], err)
		}
	}
	if got := q.request(get3("/late"), true); got != "stream 0x10b" {
		t.Errorf("a request after GOAWAY: %s", got)
	}
	close(step)
	if status, body, err := readAnswer(s); status != "200" || body != "first\nsecond\n" || err != nil {
		t.Errorf("in flight: %s %q %v", status, body, err)
	}
	<-done
	if got := q.ended(); got != "conn 0x100" {
		t.Errorf("ended by %s", got)
	}
}
