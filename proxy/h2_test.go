package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawH2 is a connection for hand-made HTTP/2.
type rawH2 struct {
	*http2.Framer
	c    *tls.Conn
	enc  *hpack.Encoder
	buf  bytes.Buffer
	next uint32
}

func (f *fixture) rawH2() *rawH2 {
	f.t.Helper()
	c, err := tls.Dial("tcp", f.addr, &tls.Config{RootCAs: f.roots, ServerName: host, NextProtos: []string{"h2"}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := &rawH2{Framer: http2.NewFramer(c, c), c: c, next: 1}
	r.enc = hpack.NewEncoder(&r.buf)
	r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = r.WriteSettings()
	return r
}

// open sends a request's head and returns its stream.
func (r *rawH2) open(end bool, fields ...string) uint32 {
	r.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	id := r.next
	r.next += 2
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.buf.Bytes(), EndHeaders: true, EndStream: end})
	return id
}

// result reads until stream id has a status, is reset, or all ends.
func (r *rawH2) result(id uint32) string {
	for {
		fr, err := r.ReadFrame()
		if err != nil {
			var code http2.ConnectionError
			if errors.As(err, &code) || err == io.EOF || strings.Contains(err.Error(), "reset") {
				return "closed"
			}
			return err.Error()
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			if fr.StreamID == id {
				return fr.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if fr.StreamID == id {
				return "reset"
			}
		case *http2.GoAwayFrame:
			if fr.ErrCode != http2.ErrCodeNo {
				return "closed"
			}
		}
	}
}

func TestS10_DowngradeCannotSmuggle(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	good := []string{":method", "POST", ":scheme", "https", ":authority", host, ":path", "/x"}
	with := func(fields ...string) []string { return append(append([]string{}, good...), fields...) }
	replaced := func(name, value string) []string {
		out := append([]string{}, good...)
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = value
			}
		}
		return out
	}
	cases := map[string][]string{
		"TE chunked":             with("transfer-encoding", "chunked"),
		"TE identity":            with("transfer-encoding", "identity"),
		"connection":             with("connection", "transfer-encoding"),
		"upgrade":                with("upgrade", "h2c"),
		"keep-alive":             with("keep-alive", "5"),
		"proxy-connection":       with("proxy-connection", "keep-alive"),
		"CRLF in value":          with("x", "a\r\ntransfer-encoding: chunked"),
		"LF in value":            with("x", "a\nb"),
		"NUL in value":           with("x", "a\x00b"),
		"CRLF in name":           with("x\r\ny", "z"),
		"colon in name":          with("x:y", "z"),
		"upper case name":        with("X-Upper", "z"),
		"space in name":          with("x y", "z"),
		"empty name":             with("", "z"),
		"host differs":           with("host", "other.example.test"),
		"two CL":                 with("content-length", "1", "content-length", "2"),
		"CL junk":                with("content-length", "+1"),
		"late pseudo":            with("x", "y", ":path", "/z"),
		"two paths":              with(":path", "/z"),
		"two authorities":        with(":authority", "other.example.test"),
		"unknown pseudo":         with(":x", "y"),
		"path with space":        replaced(":path", "/x HTTP/1.1\r\nHost: evil"),
		"path with CRLF":         replaced(":path", "/x\r\n\r\nGET /smuggled HTTP/1.1"),
		"path empty":             replaced(":path", ""),
		"path absolute":          replaced(":path", "https://"+host+"/x"),
		"path star":              replaced(":path", "*"),
		"method with space":      replaced(":method", "GET /smuggled HTTP/1.1\r\n\r\nGET"),
		"method CONNECT":         {":method", "CONNECT", ":authority", "169.254.169.254:80"},
		"scheme junk":            replaced(":scheme", "https://evil/?"),
		"scheme http":            replaced(":scheme", "ftp"),
		"authority with user":    replaced(":authority", "a@"+host),
		"authority with path":    replaced(":authority", host+"/x"),
		"authority other":        replaced(":authority", "other.example.test"),
		"authority empty":        replaced(":authority", ""),
		"no path":                {":method", "GET", ":scheme", "https", ":authority", host},
		"extended CONNECT":       {":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", host, ":path", "/x"},
		"TE other than trailers": with("te", "gzip"),
	}
	for i, v := range []string{"a\x01", "a\x0b", "a\x1f", "a\x7f", "a\r", "\na", " a\r\n\r\nGET /smuggled HTTP/1.1"} {
		cases[fmt.Sprintf("value %d", i)] = with("x", v)
		cases[fmt.Sprintf("cookie %d", i)] = with("cookie", "a=b", "cookie", v)
		cases[fmt.Sprintf("path %d", i)] = replaced(":path", "/x"+v)
		cases[fmt.Sprintf("query %d", i)] = replaced(":path", "/x?"+v)
		cases[fmt.Sprintf("authority %d", i)] = replaced(":authority", host+v)
		cases[fmt.Sprintf("method %d", i)] = replaced(":method", "POST"+v)
	}
	for i, n := range []string{"x\ty", "x\x00", "x\x7f", "x\u00e9", "x(", "x/", "x@", "X", "xY", "content_length", "x_yumen_user", "transfer-encoding ", " x", "x\n", ":method "} {
		cases[fmt.Sprintf("name %d", i)] = with(n, "z")
	}
	for _, v := range []string{"", "-1", "0x5", "5,5", "5 ", "18446744073709551617", "1e3", "5\t5", "\u0665"} {
		cases["CL "+v] = with("content-length", v)
	}
	for _, v := range []string{"x", "/../x", "/%2e%2e/x", "/x#y", "/x\\y", "/x;y", "/x%00", "/x%0d%0a", "http://" + host + "/x", "?x", "/x y"} {
		cases["path "+v] = replaced(":path", v)
	}
	for _, v := range []string{host + ":", host + ":x", host + ":99999", host + ".", host + " ", host + "," + host, "[::1]", "127.0.0.1", host + "#", host + "?", "http://" + host} {
		cases["authority "+v] = replaced(":authority", v)
	}
	for _, v := range []string{"get", "TRACE", "PRI", "POST,GET", "GET ", "\u0047ET\x00"} {
		cases["method "+v] = replaced(":method", v)
	}
	for _, f := range [][2]string{{":status", "200"}, {"host", ""}, {"te", "trailers, chunked"}, {"http2-settings", "x"}, {"expect", "x"}, {"connection", ""}, {"connection", "close"}, {":authority", host}, {":method", "GET"}, {":scheme", "https"}} {
		cases[f[0]+" added: "+f[1]] = with(f[0], f[1])
	}
	for name, fields := range cases {
		r := f.rawH2()
		id := r.open(true, fields...)
		got := r.result(id)
		if got != "reset" && got != "closed" && got != "400" && got != "405" && got != "421" {
			t.Errorf("%s: %s, want a reset or 400", name, got)
		}
		r.c.Close()
	}
	// A body that is not as long as it was said to be.
	for name, c := range map[string]struct{ said, sent string }{"longer": {"3", "hello"}, "shorter": {"9", "hello"}} {
		r := f.rawH2()
		id := r.open(false, with("content-length", c.said)...)
		_ = r.WriteData(id, true, []byte(c.sent))
		if got := r.result(id); got == "200" {
			t.Errorf("body %s: %s", name, got)
		}
		r.c.Close()
	}
	for name, frames := range framesThatSmuggle {
		r := f.rawH2()
		frames(r, with)
		if got := r.result(1); got == "200" && !strings.HasPrefix(name, "late") {
			t.Errorf("%s: %s", name, got)
		}
		r.c.Close()
	}
	t.Logf("%d cases", len(cases)+2+len(framesThatSmuggle))
	if n, all := rec.seen("/x"); n > 2+len(framesThatSmuggle) || // the heads of the bodies above
		strings.Contains(all, "smuggled") || strings.Contains(all, "evil") {
		t.Errorf("%d requests at the upstream:\n%s", n, all)
	}
	r := f.rawH2()
	if got := r.result(r.open(true, good...)); got != "200" {
		t.Errorf("an honest request: %s", got)
	}
}

// framesThatSmuggle are requests whose fault is in their frames. What is late
// may come when the request has been answered.
var framesThatSmuggle = map[string]func(r *rawH2, with func(...string) []string){
	"trailer with a pseudo field": func(r *rawH2, with func(...string) []string) {
		r.trailer(r.open(false, with()...), true, ":path", "/smuggled")
	},
	"trailer that frames": func(r *rawH2, with func(...string) []string) {
		r.trailer(r.open(false, with()...), true, "transfer-encoding", "chunked")
	},
	"trailer without end": func(r *rawH2, with func(...string) []string) {
		r.trailer(r.open(false, with()...), false, "x", "y")
	},
	"trailer with CR LF": func(r *rawH2, with func(...string) []string) {
		r.trailer(r.open(false, with("trailer", "x")...), true, "x", "y\r\n\r\nGET /smuggled HTTP/1.1")
	},
	"trailer before the length": func(r *rawH2, with func(...string) []string) {
		r.trailer(r.open(false, with("content-length", "5")...), true, "x", "y")
	},
	"data on no stream": func(r *rawH2, with func(...string) []string) { _ = r.WriteData(1, true, []byte("GET /smuggled")) },
	"late data": func(r *rawH2, with func(...string) []string) {
		_ = r.WriteData(r.open(true, with()...), true, []byte("GET /smuggled HTTP/1.1\r\n\r\n"))
	},
	"late head": func(r *rawH2, with func(...string) []string) {
		id := r.open(true, with()...)
		r.next = id
		r.open(true, with("x", "smuggled")...)
	},
	"even stream": func(r *rawH2, with func(...string) []string) {
		r.next = 2
		r.open(true, with()...)
	},
	"stream 0": func(r *rawH2, with func(...string) []string) {
		r.AllowIllegalWrites = true
		r.next = 0
		r.open(true, with()...)
	},
	"continuation of another": func(r *rawH2, with func(...string) []string) {
		r.AllowIllegalWrites = true
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
		_ = r.WriteContinuation(3, true, []byte{0x86})
	},
	"data between head and continuation": func(r *rawH2, with func(...string) []string) {
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x83}})
		_ = r.WriteData(1, true, []byte("smuggled"))
	},
	"padding longer than the frame": func(r *rawH2, with func(...string) []string) {
		r.open(false, with()...)
		_ = r.WriteRawFrame(http2.FrameData, http2.FlagDataPadded|http2.FlagDataEndStream, 1, []byte{200, 'x'})
	},
	"block that ends in a field": func(r *rawH2, with func(...string) []string) {
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x40, 0x01, 'x', 0x7f}, EndHeaders: true, EndStream: true})
	},
	"push from a client": func(r *rawH2, with func(...string) []string) {
		r.AllowIllegalWrites = true
		_ = r.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: []byte{0x82}, EndHeaders: true})
	},
}

// trailer sends the fields behind a body.
func (r *rawH2) trailer(id uint32, end bool, fields ...string) {
	r.next = id
	r.open(end, fields...)
}

// Floods end in GOAWAY or a cap, and others are served.
func TestS25_FloodsEnd(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	good := []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", "/x"}
	for name, flood := range map[string]func(*rawH2) error{
		"rapid reset": func(r *rawH2) error {
			for range 20_000 {
				id := r.open(true, good...)
				if err := r.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
					return err
				}
			}
			return nil
		},
		"continuation": func(r *rawH2) error {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			for range 20_000 {
				if err := r.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 1000)); err != nil {
					return err
				}
			}
			return nil
		},
		"header bomb": func(r *rawH2) error {
			fields := append([]string{}, good...)
			for range 10_000 {
				fields = append(fields, "x-long-name-to-fill-the-table", "y")
			}
			r.buf.Reset()
			for i := 0; i < len(fields); i += 2 {
				_ = r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
			}
			b := r.buf.Bytes()
			first := min(len(b), 16000)
			return r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:first], EndHeaders: true, EndStream: true})
		},
		"settings": func(r *rawH2) error {
			for range 50_000 {
				if err := r.WriteSettings(); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		r := f.rawH2()
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(io.Discard, r.c) }()
		start := time.Now()
		_ = flood(r)
		if res, body := do(t, f.h2(), "GET", "https://"+host+"/good", nil, nil); body != "ok" {
			t.Errorf("%s: another client: %d", name, res.StatusCode)
		}
		r.c.Close()
		<-done
		t.Logf("%s: %v", name, time.Since(start))
	}
	if n, _ := rec.seen("/x"); n > 20_000 {
		t.Errorf("%d requests", n)
	}
}
