package proxy

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Both engines of HTTP/2 must make the same of the same requests: what the
// application sees, and what the client gets.
func TestHTTP2EnginesAgree(t *testing.T) {
	up := upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		h := r.Header.Clone()
		for _, own := range []string{"X-Request-Id", "X-Yumen-Assertion"} {
			h.Del(own)
		}
		w.Header().Set("X-Path", r.URL.Path)
		w.Header().Add("Set-Cookie", "a=b")
		w.Header().Add("Set-Cookie", "c=d")
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		case "/404":
			w.WriteHeader(404)
			fallthrough
		case "/known":
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "known")
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-Sum", "7")
		case "/large":
			_, _ = w.Write(bytes.Repeat([]byte("0123456789abcdef"), 64<<10))
		default:
			names := slices.Sorted(maps.Keys(h))
			for _, n := range names {
				fmt.Fprintf(w, "%s: %q\n", n, h[n])
			}
			fmt.Fprintf(w, "%s %s %s %d %d %v %v %q", r.Method, r.Host, r.RequestURI, r.ContentLength, len(b), err, r.Trailer, b[:min(len(b), 100)])
		}
	})
	var clients []*http.Client
	for _, engine := range []string{HTTP2Own, HTTP2Reference} {
		f := newFixture(t, up, with(func(c *fixtureConfig) { c.cfg.HTTP2Engine = engine }))
		clients = append(clients, f.client("h2"))
	}
	type request struct {
		method, path string
		header       http.Header
		body         func() io.Reader
		trailer      http.Header
	}
	none := func() io.Reader { return nil }
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	for _, q := range []request{
		{"GET", "/", nil, none, nil},
		{"GET", "/a%20b/c?x=%20y&z", http.Header{"X-Twice": {"a", "b"}, "Cookie": {"a=b; c=d"}, "Accept": {"text/html"}}, none, nil},
		{"HEAD", "/known", nil, none, nil},
		{"HEAD", "/large", nil, none, nil},
		{"GET", "/known", nil, none, nil},
		{"GET", "/204", nil, none, nil},
		{"GET", "/304", nil, none, nil},
		{"GET", "/404", nil, none, nil},
		{"GET", "/trailer", nil, none, nil},
		{"GET", "/large", nil, none, nil},
		{"GET", "/..%2f", nil, none, nil},
		{"POST", "/", nil, none, nil},
		{"POST", "/", nil, text(""), nil},
		{"POST", "/", http.Header{"Content-Type": {"text/plain"}}, text("hello"), nil},
		{"PUT", "/", nil, func() io.Reader { return io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20))) }, nil},
		{"POST", "/", nil, func() io.Reader { return io.MultiReader(strings.NewReader("with a trailer")) }, http.Header{"X-Sum": {"9"}}},
		{"PATCH", "/", http.Header{"X-Yumen-User": {"evil"}, "X-Forwarded-For": {"evil"}, "Te": {"trailers"}}, text("x"), nil},
		{"DELETE", "/", nil, none, nil},
		{"BREW", "/", nil, none, nil},
		{"OPTIONS", "/", nil, none, nil},
	} {
		var got []string
		for _, c := range clients {
			r, err := http.NewRequestWithContext(t.Context(), q.method, "https://"+host+q.path, q.body())
			if err != nil {
				t.Fatal(err)
			}
			maps.Copy(r.Header, q.header)
			if q.trailer != nil {
				r.Trailer = q.trailer.Clone()
			}
			res, err := c.Do(r)
			if err != nil {
				got = append(got, "error")
				t.Logf("%s %s: %v", q.method, q.path, err)
				continue
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			for _, n := range []string{"Date", "X-Request-Id"} {
				res.Header.Del(n)
			}
			if len(res.Trailer) > 0 { // the reference counts a small body, and says so
				res.Header.Del("Content-Length")
				res.ContentLength = -1
			}
			if strings.Contains(string(b), "request_id") {
				b = nil // a refusal: its id differs
				res.Header.Del("Content-Length")
			}
			got = append(got, fmt.Sprintf("%d %v %d %v %v %.2000s", res.StatusCode, res.Header, res.ContentLength, res.Trailer, err, b))
		}
		if got[0] != got[1] {
			t.Errorf("%s %s:\nown       %s\nreference %s", q.method, q.path, got[0], got[1])
		}
	}
}
