package proxy

import (
	"bytes"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
)

// What a client says that it will send is no reason to hold memory for it.
func TestS25_HTTP3HeadsAreHeldAsTheyCome(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(http.ResponseWriter, *http.Request) {}))
	c := f.rawQUIC(f.quicPort())
	c.settings()
	if got := c.request(get3("/x"), true); got != "200" {
		t.Fatal(got)
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	const streams = 90
	size := uint64(f.p.cfg.Limits.HeaderBytes)
	for range streams {
		s, err := c.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Write(append(quicvarint.Append([]byte{1}, size), 0, 0))
	}
	time.Sleep(300 * time.Millisecond) // until they have come; fewer would only make the sum smaller
	held := int64(heap()) - int64(before)
	t.Logf("%d heads of %d bytes announced, 2 sent: %d bytes a stream, client and server", streams, size, held/streams)
	if held > streams*int64(size)/3 {
		t.Errorf("%d bytes are held for %d that were sent", held, streams*5)
	}
}

// Chromium tells the priority of each request on its control stream: a
// connection is not too talkative that has made many requests.
func TestHTTP3PrioritiesMayComeWithEachRequest(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "fine") }))
	c := f.rawQUIC(f.quicPort())
	control, err := c.OpenUniStream()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = control.Write([]byte{0, 4, 0})
	update := frame(0xf0700, 0, 'u', '=', '1') // PRIORITY_UPDATE (RFC 9218 §7.2)
	for i := range 150 {
		_, _ = control.Write(update)
		if got := c.request(get3("/x"), true); got != "200" {
			t.Fatalf("request %d: %s", i, got)
		}
	}
	_, _ = control.Write(bytes.Repeat(update, 1000)) // and now without one
	if got := c.ended(); got != "conn 0x107" {
		t.Errorf("1,000 more: %s", got)
	}
}

func TestHTTP3HostsThatDoNotAgree(t *testing.T) {
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		if c := r.Header.Get("Cookie"); c != "" {
			_, _ = io.WriteString(w, c)
		}
	}))
	addr := f.quicPort()
	without := func(more ...string) []byte {
		return frame(1, section(append([]string{":method", "GET", ":scheme", "https", ":path", "/x"}, more...)...)...)
	}
	for name, c := range map[string]struct {
		head []byte
		want string
	}{
		"Host alone":               {without("host", host), "200"},
		"Host and :authority":      {get3("/x", "host", host), "200"},
		"another Host":             {get3("/x", "host", "other.example.test"), "400"},
		"two":                      {without("host", host, "host", host), "stream 0x10e"},
		"an empty one, another":    {without("host", "", "host", host), "stream 0x10e"},
		"two behind :authority":    {get3("/x", "host", host, "host", host), "stream 0x10e"},
		"none":                     {without(), "400"},
		"hundreds of cookie parts": {get3("/x", strings.Split(strings.Repeat("cookie a ", 700), " ")[:1400]...), "200"},
		"Content-Length as a list": {post3("/x", "content-length", "5, 5"), "stream 0x10e"},
		"two Content-Lengths":      {post3("/x", "content-length", "5", "content-length", "6"), "stream 0x10e"},
	} {
		q := f.rawQUIC(addr)
		q.settings()
		if got := q.request(c.head, true); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// A process that is replaced says goodbye over HTTP/3: what is in flight ends
// well, and the client hears that nothing was amiss.
func TestR12_HTTP3ClientsAreToldToComeBack(t *testing.T) {
	step := make(chan struct{})
	f := newFixture(t, upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-step
		}
		_, _ = io.WriteString(w, "fine")
	}))
	addr := f.quicPort()
	idle, busy := f.rawQUIC(addr), f.rawQUIC(addr)
	idle.settings()
	busy.settings()
	if got := idle.request(get3("/x"), true); got != "200" {
		t.Fatal(got)
	}
	answer := make(chan string, 1)
	go func() { answer <- busy.request(get3("/slow"), true) }()
	<-f.gate.acquired
	<-f.gate.acquired
	left := make(chan struct{})
	go func() { defer close(left); f.p.LeaveQUIC(10 * time.Second) }()
	for { // until it has begun to leave
		if got := idle.request(get3("/late"), true); got != "200" {
			if got != "stream 0x10b" && got != "conn 0x100" {
				t.Errorf("a request after GOAWAY: %s", got)
			}
			break
		}
	}
	close(step)
	if got := <-answer; got != "200" {
		t.Errorf("in flight: %s", got)
	}
	<-left
	for name, c := range map[string]*rawH3{"idle": idle, "busy": busy} {
		if got := c.ended(); got != "conn 0x100" {
			t.Errorf("%s: %s", name, got)
		}
	}
}
