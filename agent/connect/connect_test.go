package connect

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	const end = " HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, tc := range []struct {
		in, name, addr string
		port           uint16
		status         int
	}{
		{in: "CONNECT db.test:5432" + end, name: "db.test", port: 5432},
		{in: "CONNECT 10.0.0.5:443" + end, addr: "10.0.0.5", port: 443},
		{in: "CONNECT [fd00::5]:443" + end, addr: "fd00::5", port: 443},
		{in: "CONNECT [::ffff:10.0.0.5]:443" + end, addr: "10.0.0.5", port: 443},
		{in: "CONNECT db.test" + end, status: 400},
		{in: "CONNECT db.test:0" + end, status: 400},
		{in: "CONNECT db.test:+80" + end, status: 400},
		{in: "CONNECT db.test:70000" + end, status: 400},
		{in: "CONNECT fd00::5:443" + end, status: 400},
		{in: "CONNECT a/b:443" + end, status: 400},
		{in: "CONNECT db.test:443 HTTP/2.0\r\n\r\n", status: 400},
		{in: "CONNECT db.test:443 HTTP/1.1\n\n", status: 400},
		{in: "CONNECT db.test:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\n", status: 400},
		{in: "CONNECT db.test:443 HTTP/1.1\r\nbad field\r\n\r\n", status: 400},
		{in: "CONNECT db.test:443 HTTP/1.1\r\nX: a\x00b\r\n\r\n", status: 400},
		{in: "CONNECT db.test:443 HTTP/1.1\r\nX: " + strings.Repeat("a", MaxHead) + "\r\n\r\n", status: 431},
		{in: "GET http://db.test/ HTTP/1.1\r\nHost: db.test\r\n\r\n", status: 501},
		{in: "GET / HTTP/1.1\r\nHost: db.test\r\n\r\n", status: 405},
	} {
		got, err := Read(bufio.NewReaderSize(strings.NewReader(tc.in), 64))
		show := tc.in[:min(len(tc.in), 60)]
		if tc.status != 0 {
			var re *RequestError
			if !errors.As(err, &re) || re.Status != tc.status || re.EN == "" || re.ZH == "" {
				t.Errorf("%q: got %+v, want status %d with both texts", show, err, tc.status)
			}
			continue
		}
		addr := ""
		if got.Addr.IsValid() {
			addr = got.Addr.String()
		}
		if err != nil || got.Name != tc.name || addr != tc.addr || got.Port != tc.port {
			t.Errorf("%q: got %+v, %v", show, got, err)
		}
	}
}

func TestBytesAfterTheHeadBelongToTheFlow(t *testing.T) {
	br := bufio.NewReader(strings.NewReader("CONNECT db.test:443 HTTP/1.1\r\n\r\n\x16\x03\x01"))
	if _, err := Read(br); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(br); string(rest) != "\x16\x03\x01" {
		t.Errorf("% x is left, want 16 03 01", rest)
	}
}

func TestReplyIsHTTP(t *testing.T) {
	var b bytes.Buffer
	if err := WriteReply(&b, 403, "not allowed", "不允许"); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(&b), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 403 || string(body) != "not allowed\n不允许\n" {
		t.Errorf("got %d %q, %v", r.StatusCode, body, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("CONNECT db.test:443 HTTP/1.1\r\nHost: x\r\n\r\nrest"))
	f.Add([]byte("CONNECT [::1]:443 HTTP/1.0\r\n\r\n"))
	f.Add([]byte("GET http://a/ HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := Read(bufio.NewReaderSize(bytes.NewReader(in), 64))
		if err != nil {
			return
		}
		if got.Port == 0 || (got.Name == "") == !got.Addr.IsValid() || strings.ContainsAny(got.Name, "\r\n\x00 /:@") {
			t.Errorf("%q gave %+v", in, got)
		}
		// What we take, net/http takes alike: one head, one meaning.
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err == nil && req.Method != "CONNECT" {
			t.Errorf("%q: net/http reads method %s", in, req.Method)
		}
	})
}
