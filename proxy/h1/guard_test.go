package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// requests counts what the scanner lets pass of b, given in parts of n bytes.
func scan(b []byte, n int) (good int, err error) {
	s := scanner{limit: 64 << 10}
	for at := 0; at < len(b); at += n {
		g, err := s.feed(b[at:min(at+n, len(b))])
		if err != nil {
			return at + g, err
		}
	}
	return len(b), nil
}

func TestGuardIsTheSameInParts(t *testing.T) {
	const h = "Host: a.example\r\n"
	for _, c := range []struct {
		name, raw string
		want      error
	}{
		{"good", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n" + h + "\r\n", nil},
		{"chunks", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\n" + h + "\r\n", nil},
		{"bytes that look like a head in a body", "POST / HTTP/1.1\r\n" + h + "Content-Length: 14\r\n\r\nGET / HTTP/9\n\n", nil},
		{"both", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", errBoth},
		{"second bad", "GET / HTTP/1.1\r\n" + h + "\r\nGET / HTTP/1.1\r\n\r\n", errHosts},
		{"fold", "GET / HTTP/1.1\r\n" + h + " x\r\n\r\n", errFold},
		{"line end", "GET / HTTP/1.1\n", errLineEnd},
		{"expect", "GET / HTTP/1.1\r\nExpect: x\r\n", errExpect},
		{"long line", "GET /" + strings.Repeat("a", 70<<10), errLong},
		{"long trailer", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: y\r\n", 20<<10), errLong},
	} {
		at, err := scan([]byte(c.raw), len(c.raw))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		for _, n := range []int{1, 2, 3, 7, 64} {
			at2, err2 := scan([]byte(c.raw), n)
			if err2 != err || at2 < at {
				t.Errorf("%s in parts of %d: %d %v, whole: %d %v", c.name, n, at2, err2, at, err)
			}
		}
	}
}

// What the guard lets pass, net/http must read as the same requests: one
// reading of every byte.
func FuzzGuardAgreesWithTheParser(f *testing.F) {
	const h = "Host: a.example\r\n"
	for _, s := range []string{
		"GET / HTTP/1.1\r\n" + h + "\r\n", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n" + h + "\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nGET /2 HTTP/1.1\r\n" + h + "\r\n",
		"POST / HTTP/1.0\r\n" + h + "Content-Length: 0\r\n\r\nGET /2 HTTP/1.1\r\n" + h + "\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := scanner{limit: 64 << 10}
		var lines []string // request lines that the guard saw
		for at := 0; at < len(raw); at++ {
			if s.state == requestLine && s.size == 0 {
				if end := bytes.IndexByte(raw[at:], '\r'); end >= 0 {
					lines = append(lines, string(raw[at:at+end]))
				}
			}
			if _, err := s.feed(raw[at : at+1]); err != nil {
				return // rejected: nothing to compare
			}
		}
		if s.state != requestLine || s.size != 0 || len(lines) == 0 {
			return // not complete
		}
		br := bufio.NewReader(bytes.NewReader(raw))
		for i, line := range lines {
			r, err := http.ReadRequest(br)
			if err != nil {
				return // stricter still: it answers 400 and closes
			}
			if got := r.Method + " " + r.RequestURI + " " + r.Proto; got != line {
				t.Fatalf("request %d: net/http reads %q, the guard %q of %q", i, got, line, raw)
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
		}
		if rest, _ := io.ReadAll(br); len(rest) > 0 {
			t.Fatalf("net/http would read another request: %q of %q", rest, raw)
		}
	})
}
