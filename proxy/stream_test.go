package proxy

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/reason"
)

func TestBodiesStreamBothWays(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		br := bufio.NewReader(r.Body)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, "echo "+line)
			w.(http.Flusher).Flush()
		}
	}))
	for _, proto := range protocols {
		pr, pw := io.Pipe()
		r, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+host+"/", pr)
		go func() { _, _ = io.WriteString(pw, "0\n") }()
		res, err := f.client(proto).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(res.Body)
		for i := range 5 {
			got, err := br.ReadString('\n')
			if err != nil || got != fmt.Sprintf("echo %d\n", i) {
				t.Fatalf("%s: round %d: %q %v", proto, i, got, err)
			}
			if i < 4 {
				_, _ = fmt.Fprintf(pw, "%d\n", i+1)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
			t.Errorf("%s: %q %v", proto, rest, err)
		}
		res.Body.Close()
	}
}

func TestLargeBodiesArriveWhole(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		_, _ = w.Write(b)
	}))
	big := make([]byte, 5<<20)
	_, _ = rand.Read(big)
	for _, proto := range protocols {
		c := f.client(proto)
		for range 3 { // also on a connection that has been used
			res, body := do(t, c, "POST", "https://"+host+"/", nil, bytes.NewReader(big))
			if body != string(big) || res.Header.Get("X-Length") != fmt.Sprint(len(big)) {
				t.Errorf("%s: %d bytes came back, length %s at the upstream", proto, len(body), res.Header.Get("X-Length"))
			}
			if res, body := do(t, c, "POST", "https://"+host+"/", nil, io.MultiReader(bytes.NewReader(big))); body != string(big) || res.Header.Get("X-Length") != "-1" {
				t.Errorf("%s: chunked: %d bytes came back, length %s at the upstream", proto, len(body), res.Header.Get("X-Length"))
			}
			if res, body := do(t, c, "HEAD", "https://"+host+"/", nil, nil); res.StatusCode != 200 || body != "" {
				t.Errorf("%s: HEAD: %d %q", proto, res.StatusCode, body)
			}
		}
	}
	waitReleased(t, f, 18, time.Now(), 5*time.Second)
	f.gate.mu.Lock()
	defer f.gate.mu.Unlock()
	if u := len(f.gate.used); u != 18 || f.gate.used[0].BytesIn != int64(len(big)) || f.gate.used[0].BytesOut != int64(len(big)) || f.gate.used[0].Status != 200 {
		t.Errorf("%d releases, usage %+v", u, f.gate.used[0])
	}
}

func TestAnswersKeepTheirMeaning(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		case "/302":
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(302)
		case "/103":
			w.Header().Set("Link", "</s.css>; rel=preload")
			w.Header().Set("X-Yumen-User", "evil")
			w.WriteHeader(103)
			w.Header().Del("Link")
			w.WriteHeader(200)
		case "/trailers":
			w.Header().Set("Trailer", "Grpc-Status, X-Yumen-User")
			_, _ = io.WriteString(w, "data")
			w.(http.Flusher).Flush()
			w.Header().Set("Grpc-Status", "0")
			w.Header().Set("X-Yumen-User", "evil")
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(w, "not really")
		}
	}))
	for _, proto := range protocols {
		c := f.client(proto)
		for _, status := range []int{204, 304, 302} {
			res, body := do(t, c, "GET", fmt.Sprintf("https://%s/%d", host, status), nil, nil)
			if res.StatusCode != status || body != "" || status == 302 && res.Header.Get("Location") != "/elsewhere" || status == 304 && res.Header.Get("Etag") != `"x"` {
				t.Errorf("%s: %d %v %q", proto, res.StatusCode, res.Header, body)
			}
		}
		res, body := do(t, c, "GET", "https://"+host+"/trailers", nil, nil)
		if body != "data" || res.Trailer.Get("Grpc-Status") != "0" || res.Trailer.Get("X-Yumen-User") != "" {
			t.Errorf("%s: body %q, trailers %v", proto, body, res.Trailer)
		}
		if _, body = do(t, c, "GET", "https://"+host+"/gzip", nil, nil); body != "not really" {
			t.Errorf("%s: %q", proto, body)
		}
		var hints []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, h.Get("Link"), h.Get("X-Yumen-User")))
			return nil
		}})
		r, _ := http.NewRequestWithContext(ctx, "GET", "https://"+host+"/103", nil)
		res, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if len(hints) != 1 || hints[0] != "103</s.css>; rel=preload" || res.Header.Get("Link") != "" {
			t.Errorf("%s: informational answers %q, Link %q", proto, hints, res.Header.Get("Link"))
		}
	}
}

// A denied request is never asked for its body.
func TestExpectIsAnsweredOnlyAfterTheDecision(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader))
	head := "POST /%s HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 5\r\nExpect: %s\r\n\r\n"
	f.gate.refuse = func(r *policy.Request) access.Refusal {
		if r.Path == "/no" {
			return access.Refusal{Reason: reason.AppNotGranted}
		}
		return access.Refusal{}
	}
	if status, closed, _ := f.exchange(host, fmt.Sprintf(head, "no", "100-continue"), false); status != 403 || !closed {
		t.Errorf("denied: %d, closed %v", status, closed)
	}
	if status, _, _ := f.exchange(host, fmt.Sprintf(head, "yes", "junk"), false); status != 417 && status != 400 {
		t.Errorf("junk: %d", status)
	}
	// What was not read as a body must not be read as a request.
	f.gate.mu.Lock()
	n := len(f.gate.paths)
	f.gate.mu.Unlock()
	smuggle := fmt.Sprintf("POST /no HTTP/1.1\r\nHost: %s\r\nContent-Length: 100000\r\n\r\n", host) + "GET /smuggled HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	if status, closed, rest := f.exchange(host, smuggle, false); status != 403 || !closed || strings.Contains(rest, "HTTP/1.1 ") {
		t.Errorf("unread body: %d, closed %v, %q", status, closed, rest)
	}
	f.gate.mu.Lock()
	if len(f.gate.paths) != n {
		t.Errorf("paths %q", f.gate.paths[n:])
	}
	f.gate.mu.Unlock()
	c := f.raw(host)
	fmt.Fprintf(c, head, "yes", "100-Continue")
	br := bufio.NewReader(c)
	if line, err := br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = br.ReadString('\n')
	_, _ = io.WriteString(c, "hello")
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	b, _ := io.ReadAll(res.Body)
	if headersOf(t, string(b))["Expect"] != nil {
		t.Error("Expect crossed the hop")
	}
}

func TestS26_SlowBodiesAndHeadsEnd(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url(), with(func(c *fixtureConfig) {
		c.cfg.Limits.BodyGrace, c.cfg.Limits.BodyRate, c.cfg.Limits.HeaderTimeout = 100*time.Millisecond, 100, 100*time.Millisecond
	}))
	post := "POST /slow HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 1000\r\n\r\n"
	var wg sync.WaitGroup
	for name, c := range map[string]struct {
		raw  string
		want int
	}{"no body": {post, 408}, "a little": {post + "0123456789", 408}, "half a head": {post[:30], 0}, "nothing": {"", 0}} {
		wg.Go(func() {
			start := time.Now()
			status, closed, _ := f.exchange(host, c.raw, false)
			if status != c.want || !closed || time.Since(start) > 3*time.Second {
				t.Errorf("%s: %d, closed %v, after %v", name, status, closed, time.Since(start))
			}
		})
	}
	wg.Wait()
	c := f.h2()
	pr, pw := io.Pipe()
	defer pw.Close()
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+host+"/slow", pr)
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 408 {
		t.Errorf("h2: %d, want 408", res.StatusCode)
	}
	if res, body := do(t, c, "GET", "https://"+host+"/good", nil, nil); body != "ok" {
		t.Errorf("the connection's next stream: %d %q", res.StatusCode, body)
	}
}

func TestLimitsOfSizes(t *testing.T) {
	f := newFixture(t, upstreamOf(t, echoHeader), with(func(c *fixtureConfig) { c.cfg.Limits.BodyBytes = 1000 }))
	many := http.Header{}
	for i := range 120 {
		many[fmt.Sprintf("X-%d", i)] = []string{"y"}
	}
	for _, proto := range protocols {
		c := f.client(proto)
		if res, _ := do(t, c, "GET", "https://"+host+"/", many, nil); res.StatusCode != 431 {
			t.Errorf("%s: 120 fields: %d", proto, res.StatusCode)
		}
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+host+"/", nil)
		r.Header.Set("X", strings.Repeat("x", 34<<10))
		if res, err := c.Do(r); err == nil { // on HTTP/2 the client obeys the limit that it was told
			res.Body.Close()
			if res.StatusCode != 431 {
				t.Errorf("%s: 34 KiB: %d", proto, res.StatusCode)
			}
		}
		if res, _ := do(t, c, "POST", "https://"+host+"/", nil, strings.NewReader(strings.Repeat("x", 1001))); res.StatusCode != 413 {
			t.Errorf("%s: 1001 bytes: %d", proto, res.StatusCode)
		}
		if res, _ := do(t, c, "POST", "https://"+host+"/", nil, io.MultiReader(strings.NewReader(strings.Repeat("x", 1001)))); res.StatusCode != 413 {
			t.Errorf("%s: 1001 bytes, length not told: %d", proto, res.StatusCode)
		}
		if res, _ := do(t, c, "POST", "https://"+host+"/", nil, strings.NewReader(strings.Repeat("x", 1000))); res.StatusCode != 200 {
			t.Errorf("%s: 1000 bytes: %d", proto, res.StatusCode)
		}
	}
}

// A body that the upstream takes slowly is not a slow body.
func TestS26_BackPressureIsNotSlowness(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		buf, total := make([]byte, 256<<10), 0
		for {
			n, err := io.ReadFull(r.Body, buf)
			total += n
			if err != nil {
				break
			}
			time.Sleep(100 * time.Millisecond) // an upstream at work: that is the point
		}
		fmt.Fprint(w, total)
	}), with(func(c *fixtureConfig) { c.cfg.Limits.BodyGrace, c.cfg.Limits.BodyRate = 700*time.Millisecond, 1<<40 }))
	big := strings.Repeat("x", 4<<20)
	for _, proto := range protocols {
		if res, body := do(t, f.client(proto), "POST", "https://"+host+"/", nil, strings.NewReader(big)); body != fmt.Sprint(len(big)) {
			t.Errorf("%s: %d %s", proto, res.StatusCode, body)
		}
	}
}

// gRPC's status comes in a trailer that nobody announces, or in a head that
// ends its stream.
func TestGRPCOverHTTP2ToTheUpstream(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			w.WriteHeader(500)
		}
		w.Header().Set("Content-Type", "application/grpc")
		switch r.URL.Path {
		case "/announced":
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = io.Copy(w, r.Body)
			w.Header().Set("Grpc-Status", "0")
		case "/unannounced":
			_, _ = io.Copy(w, r.Body)
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			w.Header().Set(http.TrailerPrefix+"X-Yumen-User", "evil")
			w.Header().Set(http.TrailerPrefix+"Set-Cookie", "evil")
		case "/length":
			w.Header().Set("Content-Length", "7")
			_, _ = io.Copy(w, r.Body)
		case "/head":
			w.Header().Set("Grpc-Status", "12")
			w.Header().Set("Content-Length", "0")
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	own := newFixture(t, s.URL, with(func(c *fixtureConfig) { c.app.HTTP2 = true }))
	reference := newFixture(t, s.URL, with(func(c *fixtureConfig) { c.app.HTTP2, c.cfg.HTTP2Engine = true, HTTP2Reference }))
	for name, client := range map[string]*http.Client{"h2": own.h2(), "h2 by the reference": reference.h2(), "h3": own.h3(own.quicPort())} {
		for path, want := range map[string]string{
			"/announced":   "message head [] trailer map[Grpc-Status:[0]]",
			"/unannounced": "message head [] trailer map[Grpc-Status:[0]]",
			"/length":      "message head [] trailer map[]",
			"/head":        " head [12] trailer map[]",
		} {
			res, body := do(t, client, "POST", "https://"+host+path, http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}, strings.NewReader("message"))
			if got := fmt.Sprintf("%s head %v trailer %v", body, res.Header["Grpc-Status"], res.Trailer); res.StatusCode != 200 || got != want {
				t.Errorf("%s %s: %d %s, want %s", name, path, res.StatusCode, got, want)
			}
		}
	}
}

// The upstream is verified by the application's CA, and sees our certificate.
func TestUpstreamTLS(t *testing.T) {
	ca := newCA(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.ServerName+" "+r.TLS.PeerCertificates[0].DNSNames[0])
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "inner.example.test")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	dir := t.TempDir()
	mine := ca.issue(t, "gateway.example.test")
	key, err := x509.MarshalPKCS8PrivateKey(mine.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"ca": {Type: "CERTIFICATE", Bytes: ca.cert.Raw}, "crt": {Type: "CERTIFICATE", Bytes: mine.Certificate[0]}, "key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	full := apps.TLSConfig{CAFile: filepath.Join(dir, "ca"), ServerName: "inner.example.test", CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key")}
	noCA, noCert, otherName := full, full, full
	noCA.CAFile, noCert.CertFile, noCert.KeyFile, otherName.ServerName = "", "", "", "else.example.test"
	for name, c := range map[string]struct {
		tls  apps.TLSConfig
		want int
	}{"full": {full, 200}, "no ca": {noCA, 502}, "no certificate": {noCert, 502}, "other name": {otherName, 502}} {
		f := newFixture(t, s.URL, with(func(fc *fixtureConfig) { fc.app.TLS = c.tls }))
		res, body := do(t, f.client("http/1.1"), "GET", "https://"+host+"/", nil, nil)
		if res.StatusCode != c.want || c.want == 200 && body != "inner.example.test gateway.example.test" {
			t.Errorf("%s: %d %s, want %d", name, res.StatusCode, body, c.want)
		}
	}
}
