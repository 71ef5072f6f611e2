package proxy

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An upstream of this corpus answers /bad with the bytes of a case and goes on
// with the connection as the case says; /good/N it answers honestly, with N.
const (
	keepOpen  = iota // and serves the next request on it
	thenClose        // after the bytes
	thenReset
)

// hostile is one answer of an upstream that is broken or hostile.
type hostile struct {
	raw    string // "|" is a pause: the rest comes when the client has its answer
	after  int
	method string // of the request; "": GET
	want   string // statuses that the client may see; "0": none, or an answer that is cut short

	answered chan struct{} // closed when the client has its answer
	rest     chan struct{} // has one when the gateway's kernel has the rest
}

// evil is an answer that nobody has asked for.
const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"

func hostileAnswers() map[string]hostile {
	const ok = "HTTP/1.1 200 OK\r\n"
	long := strings.Repeat("x", 20_000) // its body is read around the reader's buffer
	cases := map[string]hostile{
		"junk behind a short body":        {raw: ok + "Content-Length: 2\r\n\r\nok" + evil, want: "200"},
		"junk behind a long body":         {raw: ok + "Content-Length: 20000\r\n\r\n" + long + evil, want: "200"},
		"junk a moment later":             {raw: ok + "Content-Length: 2\r\n\r\nok|" + evil, want: "200"},
		"junk behind chunks":              {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + evil, want: "200"},
		"junk behind long chunks":         {raw: ok + "Transfer-Encoding: chunked\r\n\r\n4e20\r\n" + long + "\r\n0\r\n\r\n|" + evil, want: "200"},
		"junk behind a trailer":           {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n" + evil, want: "200"},
		"half a head behind":              {raw: ok + "Content-Length: 2\r\n\r\nok|HTTP/1.1 200 OK\r\nContent-Le", want: "200"},
		"a line end behind":               {raw: ok + "Content-Length: 2\r\n\r\nok\r\n", want: "200"},
		"HEAD with a body":                {raw: ok + "Content-Length: 4\r\n\r\n|" + evil, method: "HEAD", want: "200"},
		"HEAD with chunks":                {raw: ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", method: "HEAD", want: "200"},
		"204 with a body":                 {raw: "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n|" + evil, want: "204"},
		"204 with chunks":                 {raw: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", want: "204"},
		"304 with a body":                 {raw: "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n|" + evil, want: "304"},
		"205 with a body":                 {raw: "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n|" + evil, want: "205"},
		"shorter than said":               {raw: ok + "Content-Length: 20\r\n\r\nok", after: thenClose, want: "0"},
		"shorter than said, reset":        {raw: ok + "Content-Length: 20\r\n\r\nok", after: thenReset, want: "0 502"},
		"two lengths":                     {raw: ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok" + evil, want: "502"},
		"a list of lengths":               {raw: ok + "Content-Length: 2, 2\r\n\r\nok" + evil, want: "502"},
		"a length below zero":             {raw: ok + "Content-Length: -1\r\n\r\nok", want: "502"},
		"a length with a sign":            {raw: ok + "Content-Length: +2\r\n\r\nok", want: "502"},
		"a length in hex":                 {raw: ok + "Content-Length: 0x2\r\n\r\nok", want: "502"},
		"a length without end":            {raw: ok + "Content-Length: 99999999999999999999\r\n\r\nok", want: "502"},
		"an empty length":                 {raw: ok + "Content-Length:\r\n\r\nok", want: "502"},
		"a length and chunks":             {raw: ok + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n|" + evil, want: "200"},
		"chunks of HTTP/1.0":              {raw: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n|" + evil, want: "200"},
		"identity":                        {raw: ok + "Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"gzip, chunked":                   {raw: ok + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", want: "502"},
		"chunked twice":                   {raw: ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", want: "502"},
		"chunk without size":              {raw: ok + "Transfer-Encoding: chunked\r\n\r\n\r\nok\r\n0\r\n\r\n", want: "0"},
		"chunk of 0x2":                    {raw: ok + "Transfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", want: "0"},
		"chunk of +2":                     {raw: ok + "Transfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n", want: "0"},
		"chunk of -2":                     {raw: ok + "Transfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n", want: "0"},
		"chunk without end":               {raw: ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nok\r\n0\r\n\r\n", want: "0"},
		"chunk longer than said":          {raw: ok + "Transfer-Encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n", want: "0"},
		"chunk shorter than said":         {raw: ok + "Transfer-Encoding: chunked\r\n\r\n9\r\nok\r\n0\r\n\r\n", after: thenClose, want: "0"},
		"chunk ends in LF":                {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n", want: "0"},
		"chunk with a long extension":     {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2;" + strings.Repeat("x", 500) + "\r\nok\r\n0\r\n\r\n", want: "0"},
		"chunks without the last":         {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", after: thenClose, want: "0"},
		"a trailer that frames":           {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nContent-Length: 5\r\n\r\n", want: "0"},
		"a trailer without end":           {raw: ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + strings.Repeat("X: y\r\n", 20_000), want: "0"},
		"a folded field":                  {raw: ok + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"a bare CR":                       {raw: ok + "X: a\rSet-Cookie: b=c\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"NUL in a field":                  {raw: ok + "X: a\x00b\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"a name with a space":             {raw: ok + "X Y: a\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"a space before the colon":        {raw: ok + "Content-Length : 2\r\n\r\nok", want: "502"},
		"no colon":                        {raw: ok + "X\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"no name":                         {raw: ok + ": x\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"a head of 70 KB":                 {raw: ok + "X: " + strings.Repeat("x", 70_000) + "\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"a head without end":              {raw: ok + strings.Repeat("X: y\r\n", 20_000), want: "502"},
		"a line without end":              {raw: strings.Repeat("x", 100_000), want: "502"},
		"600 fields":                      {raw: ok + strings.Repeat("X: y\r\n", 600) + "Content-Length: 2\r\n\r\nok", want: "502"},
		"101 that nobody asked for":       {raw: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + evil, want: "502"},
		"101 behind 103":                  {raw: "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n" + evil, want: "502"},
		"1xx for ever":                    {raw: strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 1000), want: "502"},
		"100 for ever":                    {raw: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1000), want: "502"},
		"1xx and the end":                 {raw: "HTTP/1.1 102 Processing\r\n\r\n", after: thenClose, want: "502"},
		"1xx with a length":               {raw: "HTTP/1.1 103 Early Hints\r\nContent-Length: 4\r\n\r\nevil\r\n", want: "502"},
		"two heads":                       {raw: ok + ok + "Content-Length: 2\r\n\r\nok", want: "502"},
		"status 99":                       {raw: "HTTP/1.1 099 X\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"status 600":                      {raw: "HTTP/1.1 600 X\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"status of two digits":            {raw: "HTTP/1.1 20 X\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"status of four digits":           {raw: "HTTP/1.1 2000 X\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"status with a sign":              {raw: "HTTP/1.1 +20 X\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"HTTP/2.0":                        {raw: "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"HTTP/1.2":                        {raw: "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok", want: "502"},
		"HTTP/0.9":                        {raw: "<html>evil</html>", after: thenClose, want: "502"},
		"a request for an answer":         {raw: "GET /good/1 HTTP/1.1\r\nHost: x\r\n\r\n", want: "502"},
		"an empty line first":             {raw: "\r\n" + ok + "Content-Length: 2\r\n\r\nok", want: "502"},
		"TLS":                             {raw: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", after: thenClose, want: "502"},
		"nothing":                         {raw: "", after: thenClose, want: "502"},
		"a reset":                         {raw: "", after: thenReset, want: "502"},
		"half a line":                     {raw: "HTTP/1.1 2", after: thenClose, want: "502"},
		"half a head, reset":              {raw: ok + "X: y\r\n", after: thenReset, want: "502"},
		"until the end":                   {raw: ok + "\r\nok", after: thenClose, want: "200"},
		"until the end of HTTP/1.0":       {raw: "HTTP/1.0 200 OK\r\n\r\nok", after: thenClose, want: "200"},
		"until the end, kept alive":       {raw: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nok", after: thenClose, want: "200"},
		"close, and more":                 {raw: ok + "Connection: close\r\nContent-Length: 2\r\n\r\nok|" + evil, want: "200"},
		"close and keep-alive":            {raw: "HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 2\r\n\r\nok|" + evil, want: "200"},
		"closed behind the answer":        {raw: ok + "Content-Length: 2\r\n\r\nok", after: thenClose, want: "200"},
		"reset behind the answer":         {raw: ok + "Content-Length: 2\r\n\r\nok", after: thenReset, want: "0 200 502"},
		"splitting in a value":            {raw: ok + "Location: /\xc4\x8d\xc4\x8aSet-Cookie: x=y\r\nContent-Length: 2\r\n\r\nok", want: "200"},
		"LF alone":                        {raw: "HTTP/1.1 200 OK\nContent-Length: 2\n\nok|" + evil, want: "200"},
		"a cookie of the gateway's":       {raw: ok + "Set-Cookie: " + CookiePrefix + "-session=x\r\nContent-Length: 2\r\n\r\nok", want: "200"},
		"fields of the hop":               {raw: ok + "Connection: X-A, keep-alive\r\nX-A: evil\r\nKeep-Alive: evil\r\nUpgrade: evil\r\nTE: evil\r\nContent-Length: 2\r\n\r\nok", want: "200"},
		"a name of the gateway's":         {raw: ok + "X-Yumen-User: evil\r\nX-Request-Id: evil\r\nContent-Length: 2\r\n\r\nok", want: "200"},
		"Transfer-Encoding in a 103":      {raw: "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok", want: "200"},
		"an answer to a POST that begins": {raw: "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nok|" + evil, method: "POST", want: "413"},
	}
	whole := ok + "X: y\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	for n := range len(whole) {
		want := "502"
		if strings.Contains(whole[:n], "\r\n\r\n") {
			want = "0"
		}
		cases[fmt.Sprintf("cut at byte %d", n)] = hostile{raw: whole[:n], after: thenClose, want: want}
	}
	return cases
}

// hostileUpstream serves case c on every connection; wrap makes TLS of it.
func hostileUpstream(t *testing.T, c *atomic.Pointer[hostile], wrap func(net.Conn) net.Conn) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveHostile(t, raw.(*net.TCPConn), wrap(raw), c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func serveHostile(t *testing.T, raw *net.TCPConn, c net.Conn, current *atomic.Pointer[hostile]) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	br := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if n, good := strings.CutPrefix(req.URL.Path, "/good/"); good {
			if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(n), n); err != nil {
				return
			}
			continue
		}
		h := current.Load()
		for i, part := range strings.Split(h.raw, "|") {
			if i > 0 {
				<-h.answered
			}
			_, err := io.WriteString(c, part)
			if i > 0 {
				taken(t, raw)
				h.rest <- struct{}{}
			}
			if err != nil {
				return
			}
		}
		if h.after == thenReset {
			_ = raw.SetLinger(0)
		}
		if h.after != keepOpen {
			return
		}
	}
}

// taken waits until the other side's kernel has all that was sent, or the
// connection is gone.
func taken(t *testing.T, c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	const closed = 7 // TCP_CLOSE
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		var left int
		var info *unix.TCPInfo
		err := raw.Control(func(fd uintptr) {
			left, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		})
		if err != nil || left == 0 || info == nil || info.State == closed {
			return
		}
	}
	t.Error("what the upstream has sent is not taken")
}

// TestS36_HostileUpstreams: whatever an upstream answers, nothing of it comes to
// a request that it was not the answer of, nor anything that is the gateway's.
func TestS36_HostileUpstreams(t *testing.T) {
	ca := newCA(t)
	server := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "inner.example.test")}}
	cases := hostileAnswers()
	for _, over := range []string{"tcp", "tls"} {
		var current atomic.Pointer[hostile]
		var dialled atomic.Int64
		wrap := func(c net.Conn) net.Conn { dialled.Add(1); return c }
		url := "http://"
		if over == "tls" {
			wrap = func(c net.Conn) net.Conn { dialled.Add(1); return tls.Server(c, server) }
			url = "https://"
		}
		var opts []option
		if over == "tls" {
			file := t.TempDir() + "/ca"
			writePEM(t, file, "CERTIFICATE", ca.cert.Raw)
			opts = append(opts, with(func(c *fixtureConfig) { c.app.TLS.CAFile, c.app.TLS.ServerName = file, "inner.example.test" }))
		}
		f := newFixture(t, url+hostileUpstream(t, &current, wrap), append(opts, with(func(c *fixtureConfig) {
			c.cfg.Limits.AnswerTimeout = 2 * time.Second
		}))...)
		for _, proto := range protocols {
			client := f.client(proto)
			before := dialled.Load()
			for i := range 20 {
				get(t, client, fmt.Sprintf("/good/%d", i), fmt.Sprint(i), "honest answers")
			}
			if n := dialled.Load() - before; n > 2 {
				t.Errorf("%s, %s: %d connections for 20 honest answers", over, proto, n)
			}
			for name, c := range cases {
				if c.method == "" {
					c.method = "GET"
				}
				c.answered, c.rest = make(chan struct{}), make(chan struct{}, 8)
				current.Store(&c)
				name = over + ", " + proto + ", " + name
				get(t, client, "/good/0", "0", name) // so that a connection is there
				status, whole := hostileAnswer(t, client, &c, name)
				if !strings.Contains(c.want, status) && (whole || !strings.Contains(c.want, "0 ") && c.want != "0") {
					t.Errorf("%s: status %s, want %s", name, status, c.want)
				}
				if c.want == "0" && whole {
					t.Errorf("%s: status %s, a whole answer", name, status)
				}
				close(c.answered)
				if strings.Contains(c.raw, "|") {
					select {
					case <-c.rest:
					case <-time.After(5 * time.Second):
						t.Errorf("%s: the upstream has not sent the rest", name)
					}
				}
				for i := 1; i <= 2; i++ {
					get(t, client, fmt.Sprintf("/good/%d", i), fmt.Sprint(i), name)
				}
			}
		}
	}
	t.Logf("%d answers, each over %d ways to the upstream and %d protocols", len(cases), 2, len(protocols))
}

func get(t *testing.T, c *http.Client, path, want, name string) {
	t.Helper()
	if res, body := do(t, c, "GET", "https://"+host+path, nil, nil); res.StatusCode != 200 || body != want {
		t.Errorf("%s: then %s: %d %q", name, path, res.StatusCode, body[:min(len(body), 100)])
	}
}

// hostileAnswer asks for the case's answer, and reports whether it was whole.
func hostileAnswer(t *testing.T, client *http.Client, c *hostile, name string) (status string, whole bool) {
	var body io.Reader
	if c.method == "POST" {
		body = strings.NewReader(strings.Repeat("x", 1<<20))
	}
	r, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+host+"/bad", body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(r)
	if err != nil {
		return "0", false
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if res.StatusCode == 200 && strings.Contains(string(b)+fmt.Sprint(res.Header), "evil") || len(res.Cookies()) > 0 {
		t.Errorf("%s: %v %.100q", name, res.Header, b)
	}
	return fmt.Sprint(res.StatusCode), err == nil
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
