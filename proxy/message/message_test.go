package message

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

var limits = Limits{Bytes: 64 << 10, Fields: 100}

// parts gives at most n bytes a read.
type parts struct {
	r io.Reader
	n int
}

func (p parts) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }

// requests reads requests until the end or an error, as one line each: the
// request line, the fields, and the content.
func requests(src io.Reader) (out []string, err error) {
	var r Reader
	r.Init(src)
	var h Head
	for {
		if err := r.Wait(); err != nil {
			return out, err
		}
		if err := r.ReadRequest(&h, limits); err != nil {
			return out, err
		}
		f := None
		switch {
		case h.Chunked:
			f = ByChunks
		case h.Length > 0:
			f = ByLength
		}
		var b Body
		b.Init(&r, f, h.Length, false, limits.Bytes)
		content, err := io.ReadAll(&b)
		if err != nil {
			return out, err
		}
		out = append(out, fmt.Sprintf("%s %s 1.%d %s %v %q %v", h.Method, h.Target, h.Minor, h.Host, h.Fields, content, b.Trailer))
	}
}

func TestRequestsAreTheSameInParts(t *testing.T) {
	const host = "Host: a.example\r\n"
	for _, c := range []struct {
		name, raw string
		want      error
	}{
		{"good", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n" + host + "\r\n", io.EOF},
		{"chunks", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", io.EOF},
		{"bytes that look like a head in a body", "POST / HTTP/1.1\r\n" + host + "Content-Length: 14\r\n\r\nGET / HTTP/9\n\n", io.EOF},
		{"cut in a body", "POST / HTTP/1.1\r\n" + host + "Content-Length: 14\r\n\r\nGET", io.ErrUnexpectedEOF},
		{"cut in a head", "POST / HTTP/1.1\r\n" + host + "Content-", io.ErrUnexpectedEOF},
		{"cut in a chunk", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nab", io.ErrUnexpectedEOF},
		{"cut before the last chunk", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", io.ErrUnexpectedEOF},
		{"both", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", ErrBoth},
		{"second bad", "GET / HTTP/1.1\r\n" + host + "\r\nGET / HTTP/1.1\r\n\r\n", ErrHosts},
		{"fold", "GET / HTTP/1.1\r\n" + host + " x\r\n\r\n", ErrFold},
		{"line end", "GET / HTTP/1.1\n", ErrLineEnd},
		{"expect", "GET / HTTP/1.1\r\nExpect: x\r\n", ErrExpect},
		{"control", "GET / HTTP/1.1\r\nX: a\x01\r\n", ErrByte},
		{"long line", "GET /" + strings.Repeat("a", 140<<10), ErrLong},
		{"many fields", "GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 101) + "\r\n", ErrFields},
		{"long trailer", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: y\r\n", 20<<10), ErrLong},
		{"chunk too long to be true", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1000000000000000\r\n", ErrChunk},
		{"chunk extension", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;a\r\nabc\r\n0\r\n\r\n", ErrChunk},
		{"framing in a trailer", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n", ErrTrailer},
	} {
		whole, err := requests(strings.NewReader(c.raw))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		for _, n := range []int{1, 2, 3, 7, 64} {
			got, err2 := requests(parts{strings.NewReader(c.raw), n})
			if err2 != err || strings.Join(got, "\n") != strings.Join(whole, "\n") {
				t.Errorf("%s in parts of %d: %q %v, whole: %q %v", c.name, n, got, err2, whole, err)
			}
		}
		if got, err2 := requests(iotest.DataErrReader(strings.NewReader(c.raw))); err2 != err || len(got) != len(whole) {
			t.Errorf("%s, end with the data: %d requests, %v", c.name, len(got), err2)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		raw     string
		status  int
		content string
		err     error
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokrest", 200, "ok", nil},
		{"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, "ok", nil},
		{"HTTP/1.1 200\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", 200, "ok", nil},
		{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 0, "", ErrLength},
		{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0 \r\nA: b\r\n\r\n", 200, "ok", nil},
		{"HTTP/1.0 200 OK\r\n\r\nok", 200, "ok", nil},
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", 200, "ok", io.ErrUnexpectedEOF},
		{"HTTP/1.1 99 x\r\n\r\n", 0, "", ErrLine},
		{"HTTP/2 200 OK\r\n\r\n", 0, "", ErrLine},
		{"HTTP/1.7 200 OK\r\n\r\n", 0, "", ErrVersion},
		{"junk\r\n\r\n", 0, "", ErrLine},
		{"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", 0, "", ErrFold},
		{"HTTP/1.1 200 OK\r\nSet-Cookie : a\r\n\r\n", 0, "", ErrField},
	} {
		var r Reader
		r.Init(strings.NewReader(c.raw))
		var h Head
		err := r.ReadAnswer(&h, limits)
		if err == nil {
			f := UntilClose
			switch {
			case h.Chunked:
				f = ByChunks
			case h.Length >= 0:
				f = ByLength
			}
			var b Body
			b.Init(&r, f, h.Length, true, limits.Bytes)
			var content []byte
			content, err = io.ReadAll(&b)
			if string(content) != c.content || h.Status != c.status {
				t.Errorf("%q: %d %q", c.raw, h.Status, content)
			}
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%q: %v, want %v", c.raw, err, c.err)
		}
	}
}

// A reader that waits holds nothing, and one byte at the end of the wait is not
// lost.
func TestWaitHoldsNoBuffer(t *testing.T) {
	in, out := io.Pipe()
	var r Reader
	r.Init(in)
	go func() {
		for range 3 {
			_, _ = io.WriteString(out, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		}
		out.Close()
	}()
	var h Head
	for range 3 {
		if err := r.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := r.ReadRequest(&h, limits); err != nil {
			t.Fatal(err)
		}
		r.Release()
		if r.buf != nil {
			t.Fatal("a buffer is held between requests")
		}
	}
	if err := r.Wait(); err != io.EOF {
		t.Fatal(err)
	}
}

func TestReadyTellsWhetherAReadWaits(t *testing.T) {
	raw := "5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n"
	for n := range len(raw) {
		var r Reader
		r.Init(parts{strings.NewReader(raw[:n]), n})
		if n > 0 {
			if err := r.fill(); err != nil {
				t.Fatal(err)
			}
		}
		r.src = iotest.ErrReader(errors.New("it waits"))
		var b Body
		b.Init(&r, ByChunks, -1, true, 100)
		buf := make([]byte, 64)
		for {
			ready := b.Ready()
			_, err := b.Read(buf)
			if ready && err != nil && err != io.EOF {
				t.Fatalf("%q: ready, and then %v", raw[:n], err)
			}
			if err != nil {
				break
			}
		}
	}
}

func TestValuesNeverEndTheirLine(t *testing.T) {
	got := string(AppendField(nil, "Location", "/a\r\nSet-Cookie: evil\x00"))
	if got != "Location: /a  Set-Cookie: evil \r\n" {
		t.Errorf("%q", got)
	}
}

// What is accepted here, net/http must read as the same requests: one reading
// of every byte.
func FuzzRequestsAgreeWithNetHTTP(f *testing.F) {
	const h = "Host: a.example\r\n"
	for _, s := range []string{
		"GET / HTTP/1.1\r\n" + h + "\r\n", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\n" + h + "\r\n",
		"POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nGET /2 HTTP/1.1\r\n" + h + "\r\n",
		"POST / HTTP/1.0\r\n" + h + "Content-Length: 0\r\n\r\nGET /2 HTTP/1.1\r\n" + h + "\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		br := bufio.NewReader(bytes.NewReader(raw))
		var r Reader
		r.Init(bytes.NewReader(raw))
		var head Head
		for r.Wait() == nil {
			if r.ReadRequest(&head, limits) != nil {
				return
			}
			framing := None
			switch {
			case head.Chunked:
				framing = ByChunks
			case head.Length > 0:
				framing = ByLength
			}
			var b Body
			b.Init(&r, framing, head.Length, false, limits.Bytes)
			content, err := io.ReadAll(&b)
			if err != nil {
				return
			}
			other, err := http.ReadRequest(br)
			if err != nil {
				return // stricter still
			}
			theirs, err := io.ReadAll(other.Body)
			if err != nil {
				return
			}
			if other.Method != head.Method || other.RequestURI != head.Target || !bytes.Equal(content, theirs) {
				t.Fatalf("%q: %s %s %q here, %s %s %q there", raw, head.Method, head.Target, content, other.Method, other.RequestURI, theirs)
			}
		}
		if rest, _ := io.ReadAll(br); len(rest) > 0 {
			t.Fatalf("net/http would read another request: %q of %q", rest, raw)
		}
	})
}

func BenchmarkReadRequest(b *testing.B) {
	raw := []byte("GET /api/v1/things?limit=10 HTTP/1.1\r\nHost: app.example.test:8443\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n" +
		"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: zh-CN,en;q=0.5\r\nAccept-Encoding: gzip, br\r\n" +
		"Cookie: __Host-yumen=0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\r\n\r\n")
	src := &again{raw: raw}
	var r Reader
	r.Init(src)
	var h Head
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Wait(); err != nil {
			b.Fatal(err)
		}
		if err := r.ReadRequest(&h, limits); err != nil {
			b.Fatal(err)
		}
		r.Release()
	}
}

// again gives the same bytes for ever, one message at a time.
type again struct {
	raw []byte
	at  int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.raw[a.at:])
	if a.at += n; a.at == len(a.raw) {
		a.at = 0
	}
	return n, nil
}
