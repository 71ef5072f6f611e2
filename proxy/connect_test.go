package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// connected is the stream of an extended CONNECT, as its client has it.
type connected interface {
	status() string
	io.ReadWriter
}

type connectedH2 struct {
	*rawH2
	id   uint32
	rest []byte
}

func (c *connectedH2) status() string { return c.result(c.id) }

func (c *connectedH2) Write(p []byte) (int, error) { return len(p), c.WriteData(c.id, false, p) }

func (c *connectedH2) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		fr, err := c.ReadFrame()
		if err != nil {
			return 0, err
		}
		switch fr := fr.(type) {
		case *http2.DataFrame:
			if c.rest = bytes.Clone(fr.Data()); fr.StreamEnded() && len(c.rest) == 0 {
				return 0, io.EOF
			}
		case *http2.RSTStreamFrame:
			return 0, fmt.Errorf("reset by %v", fr.ErrCode)
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

type connectedH3 struct {
	*quic.Stream
	rest uint64
}

func (c *connectedH3) next() (t, n uint64, err error) {
	r := quicvarint.NewReader(c.Stream)
	if t, err = quicvarint.Read(r); err == nil {
		n, err = quicvarint.Read(r)
	}
	return t, n, err
}

func (c *connectedH3) status() string {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		t, n, err := c.next()
		if err != nil {
			return outcome(err)
		}
		b := make([]byte, n)
		_, _ = io.ReadFull(c.Stream, b)
		if t == 1 {
			for _, f := range fieldsOf(b) {
				if f.Name == ":status" {
					return f.Value
				}
			}
		}
	}
}

func (c *connectedH3) Write(p []byte) (int, error) {
	_, err := c.Stream.Write(frame(0, p...))
	return len(p), err
}

func (c *connectedH3) Read(p []byte) (int, error) {
	if c.rest == 0 {
		_, n, err := c.next()
		if err != nil {
			return 0, err
		}
		c.rest = n
	}
	n, err := c.Stream.Read(p[:min(uint64(len(p)), c.rest)])
	c.rest -= uint64(n)
	return n, err
}

// connectors open extended CONNECTs with more fields, by protocol.
func (f *fixture) connectors() map[string]func(protocol, path string, more ...string) connected {
	addr := f.quicPort()
	fields := func(protocol, path string, more []string) []string {
		return append([]string{":method", "CONNECT", ":protocol", protocol, ":scheme", "https", ":authority", host, ":path", path}, more...)
	}
	return map[string]func(string, string, ...string) connected{
		"h2": func(protocol, path string, more ...string) connected {
			r := f.rawH2()
			return &connectedH2{rawH2: r, id: r.open(false, fields(protocol, path, more)...)}
		},
		"h3": func(protocol, path string, more ...string) connected {
			q := f.rawQUIC(addr)
			q.settings()
			s, err := q.OpenStream()
			if err != nil {
				f.t.Fatal(err)
			}
			_, _ = s.Write(frame(1, section(fields(protocol, path, more)...)...))
			return &connectedH3{Stream: s}
		},
	}
}

const version13 = "sec-websocket-version"

// WebSocket over HTTP/2 and HTTP/3 is an upgrade of HTTP/1.1 to the application,
// and a carrier with a lease here.
func TestS12_WebSocketByExtendedConnect(t *testing.T) {
	f := newFixture(t, webSocketUpstream(t, nil, nil))
	released := 0
	for name, connect := range f.connectors() {
		t.Run(name, func(t *testing.T) {
			c := connect("websocket", "/ws", version13, "13", "origin", "https://"+host)
			if got := c.status(); got != "200" {
				t.Fatal(got)
			}
			carrier := <-f.gate.acquired
			if carrier.Kind() != access.WebSocket {
				t.Errorf("kind %v", carrier.Kind())
			}
			for _, msg := range []string{"\x81\x05hello", "\x82\x7e\x20\x00" + strings.Repeat("x", 8<<10), "\x81\x02ok"} {
				_, _ = io.WriteString(c, msg)
				got := make([]byte, len(msg))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != msg {
					t.Fatalf("%.40q %v", got, err)
				}
			}
			start := time.Now()
			carrier.Cut(reason.GrantRevoked)
			released++
			waitReleased(t, f, released, start, promptly)
			last, err := io.ReadAll(c)
			if want := reason.GrantRevoked.Result(); len(last) != 4+len(want) || string(last[:4]) != "\x88"+string(rune(2+len(want)))+"\x03\xf0" {
				t.Errorf("got %q, %v, want a close frame of code 1008 with %q", last, err, want)
			}
			if u := f.gate.used[released-1]; u.Status != 101 || u.BytesIn == 0 || u.BytesIn != u.BytesOut {
				t.Errorf("usage %+v", u)
			}
		})
	}
}

// Nothing reaches the application before its 101, and a tunnel is never said to
// be open without one.
func TestS11_ExtendedConnectWaitsFor101(t *testing.T) {
	early, gate := make(chan string, 1), make(chan struct{}, 2)
	f := newFixture(t, webSocketUpstream(t, early, gate))
	for name, connect := range f.connectors() {
		c := connect("websocket", "/ws", version13, "13")
		_, _ = io.WriteString(c, "GET /smuggled HTTP/1.1\r\n\r\n")
		<-f.gate.acquired
		gate <- struct{}{}
		if b := <-early; b != "" {
			t.Errorf("%s: %q reached the application before its 101", name, b)
		}
		if got := c.status(); got != "200" {
			t.Errorf("%s: %s", name, got)
		}
		b := make([]byte, 26)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "GET /smuggled HTTP/1.1\r\n\r\n" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestS11_ExtendedConnectThatIsRefused(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/no":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path != "/plain":
			t.Errorf("%s %s reached the application", r.Method, r.URL.Path)
		}
	}))
	f.gate.refuse = func(r *policy.Request) access.Refusal {
		if r.Method == "GET" && r.Path == "/denied" {
			return access.Refusal{Reason: reason.PolicyApp, PolicyID: "POL00000001"}
		}
		return access.Refusal{}
	}
	for name, connect := range f.connectors() {
		for _, c := range []struct {
			protocol, path string
			more           []string
			want           string
		}{
			{"websocket", "/plain", []string{version13, "13"}, "502"}, // 200 of the application would open a tunnel
			{"websocket", "/no", []string{version13, "13"}, "403"},
			{"websocket", "/denied", []string{version13, "13"}, "403"},
			{"websocket", "/x", nil, "400"},
			{"websocket", "/x", []string{version13, "8"}, "400"},
			{"websocket", "/x", []string{version13, "13", version13, "13"}, "400"},
			{"websocket", "/x", []string{version13, "13", "sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="}, "400"},
			{"websocket", "/..%2fx", []string{version13, "13"}, "400"},
			{"websocket", jwksPath, []string{version13, "13"}, "400"},
			{"webtransport", "/x", []string{version13, "13"}, "400"},
			{"connect-udp", "/x", nil, "400"},
			{"websocket", "/x", []string{version13, "13", "content-length", "1"}, "reset"},
		} {
			got := connect(c.protocol, c.path, c.more...).status()
			if got == "stream 0x10e" {
				got = "reset"
			}
			if got != c.want {
				t.Errorf("%s: %s %s %v: %s, want %s", name, c.protocol, c.path, c.more, got, c.want)
			}
		}
	}
}

// A browser that shares a connection among hosts of one certificate opens
// WebSockets to them on it, and does not come back after a 421; for everything
// else it does.
func TestS33_WebSocketOnASharedConnection(t *testing.T) {
	const other = "other.example.test"
	up := webSocketUpstream(t, nil, nil)
	shares := func(sni, to string) bool { return sni == host && to == other }
	for _, c := range []struct {
		name      string
		coalesces func(sni, host string) bool
		fields    []string
		end       bool
		want      string
	}{
		{"WebSocket to a host of the certificate", shares, []string{":method", "CONNECT", ":protocol", "websocket", ":authority", other, version13, "13"}, false, "200"},
		{"WebSocket to another one", shares, []string{":method", "CONNECT", ":protocol", "websocket", ":authority", "third.example.test", version13, "13"}, false, "421"},
		{"WebSocket where nothing is shared", nil, []string{":method", "CONNECT", ":protocol", "websocket", ":authority", other, version13, "13"}, false, "421"},
		{"request to a host of the certificate", shares, []string{":method", "GET", ":authority", other}, true, "421"},
	} {
		f := newFixture(t, up, with(func(fc *fixtureConfig) { fc.cfg.Coalesces = c.coalesces }))
		r := f.rawH2()
		if got := r.result(r.open(c.end, append(c.fields[:2:2], append([]string{":scheme", "https", ":path", "/ws"}, c.fields[2:]...)...)...)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
