package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/proxyproto"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

func TestS7_TheClientBehindForwarders(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:f::/48")}
	const bad = "bad"
	for _, c := range []struct{ field, from, value, want string }{
		{FieldXForwardedFor, "10.0.0.1", "192.0.2.7", "192.0.2.7:0"},
		{FieldXForwardedFor, "10.0.0.1", "1.1.1.1, 192.0.2.7", "192.0.2.7:0"},
		{FieldXForwardedFor, "10.0.0.1", "1.1.1.1|192.0.2.7", "192.0.2.7:0"}, // | begins another line
		{FieldXForwardedFor, "10.0.0.1", "192.0.2.7|10.2.3.4", "192.0.2.7:0"},
		{FieldXForwardedFor, "10.0.0.1", "junk, 192.0.2.7, 10.2.3.4", "192.0.2.7:0"}, // what is left of the client is not looked at
		{FieldXForwardedFor, "10.0.0.1", "10.9.9.9, 10.2.3.4", "10.9.9.9:0"},
		{FieldXForwardedFor, "10.0.0.1", "2001:db8::7", "[2001:db8::7]:0"},
		{FieldXForwardedFor, "10.0.0.1", "[2001:db8::7]", "[2001:db8::7]:0"},
		{FieldXForwardedFor, "10.0.0.1", "[2001:db8::7]:80, [2001:db8:f::1]:81", "[2001:db8::7]:80"},
		{FieldXForwardedFor, "10.0.0.1", "192.0.2.7:4711", "192.0.2.7:4711"},
		{FieldXForwardedFor, "10.0.0.1", "::ffff:192.0.2.7", "192.0.2.7:0"},
		{FieldXForwardedFor, "::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7:0"},
		{FieldXForwardedFor, "10.0.0.1", "", "10.0.0.1:9"},
		{FieldXForwardedFor, "192.0.2.1", "1.1.1.1", "192.0.2.1:9"}, // no forwarder
		{FieldXForwardedFor, "10.0.0.1", "192.0.2.7, junk", bad},
		{FieldXForwardedFor, "10.0.0.1", "192.0.2.7,", bad},
		{FieldXForwardedFor, "10.0.0.1", "192.0.2.07", bad},
		{FieldXForwardedFor, "10.0.0.1", "unknown", bad},
		{FieldXForwardedFor, "10.0.0.1", "fe80::1%eth0", bad},
		{FieldXForwardedFor, "10.0.0.1", "0.0.0.0", bad},
		{FieldXForwardedFor, "10.0.0.1", strings.Repeat("10.0.0.2,", 40) + "10.0.0.2", bad},
		{FieldForwarded, "10.0.0.1", "for=192.0.2.7", "192.0.2.7:0"},
		{FieldForwarded, "10.0.0.1", `for=1.1.1.1, For="192.0.2.7:80";proto=https;by=10.0.0.9`, "192.0.2.7:80"},
		{FieldForwarded, "10.0.0.1", `for="[2001:db8::7]:4711";host="a,b"`, "[2001:db8::7]:4711"},
		{FieldForwarded, "10.0.0.1", `for="[2001:db8::7]", for=10.0.0.4`, "[2001:db8::7]:0"},
		{FieldForwarded, "10.0.0.1", `for="a, for=1.1.1.1", for=192.0.2.7`, "192.0.2.7:0"},
		{FieldForwarded, "10.0.0.1", "proto=https", bad},
		{FieldForwarded, "10.0.0.1", "for=_hidden", bad},
		{FieldForwarded, "10.0.0.1", "for=unknown", bad},
		{FieldForwarded, "10.0.0.1", "for=192.0.2.7;for=192.0.2.8", bad},
		{FieldForwarded, "10.0.0.1", "for=2001:db8::7", bad},
		{FieldForwarded, "10.0.0.1", `for="192.0.2.7`, bad},
		{FieldForwarded, "10.0.0.1", `for="2001:db8::7"`, bad},
	} {
		x := &Exchange{Conn: &Conn{Remote: netip.AddrPortFrom(netip.MustParseAddr(c.from), 9)}}
		x.Conn.Remote = netip.AddrPortFrom(x.Conn.Remote.Addr().Unmap(), 9)
		for line := range strings.SplitSeq(c.value, "|") {
			x.Header.Add(c.field, line)
		}
		other := FieldForwarded
		if c.field == FieldForwarded {
			other = FieldXForwardedFor
		}
		x.Header.Add(other, "for=6.6.6.6") // the field that is not theirs says nothing
		got, err := bad, (&Forwarders{Networks: trusted, Field: c.field}).client(x)
		if err == nil {
			got = x.Client().String()
		}
		if got != c.want {
			t.Errorf("%s of %s: %q: %s, %v, want %s", c.field, c.from, c.value, got, err, c.want)
		}
	}
}

// The address so learned is what policy, audit and application see.
func TestS7_TheAddressBehindAForwarderIsTheOneThatCounts(t *testing.T) {
	var seen atomic.Value
	up := upstreamOf(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(strings.Join(r.Header.Values("X-Forwarded-For"), "|"))
	})
	f := newFixture(t, up, with(func(c *fixtureConfig) {
		c.cfg.Forwarders = Forwarders{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	}))
	policyAddr := make(chan netip.Addr, 4)
	f.gate.refuse = func(r *policy.Request) access.Refusal { policyAddr <- r.Remote; return access.Refusal{} }
	for _, proto := range protocols {
		res, _ := do(t, f.client(proto), "GET", "https://"+host+"/", http.Header{"X-Forwarded-For": {"6.6.6.6, 192.0.2.7"}}, nil)
		if got := <-policyAddr; res.StatusCode != 200 || got.String() != "192.0.2.7" || seen.Load() != "192.0.2.7" {
			t.Errorf("%s: %d, policy saw %s, the application %v", proto, res.StatusCode, got, seen.Load())
		}
		res, _ = do(t, f.client(proto), "GET", "https://"+host+"/", http.Header{"X-Forwarded-For": {"192.0.2.7, nobody"}}, nil)
		if res.StatusCode != 400 {
			t.Errorf("%s: %d for a hop that cannot be read", proto, res.StatusCode)
		}
		res, _ = do(t, f.client(proto), "GET", "https://nowhere.example.test/", http.Header{"X-Forwarded-For": {"192.0.2.8"}}, nil)
		if res.StatusCode == 200 {
			t.Errorf("%s: %d", proto, res.StatusCode)
		}
	}
	f.audit.mu.Lock()
	defer f.audit.mu.Unlock()
	found := false
	for _, r := range f.audit.all {
		found = found || r.Remote == "192.0.2.8"
	}
	if !found {
		t.Errorf("the audit does not know the client: %+v", f.audit.all)
	}
}

func TestS7_ForwardersFieldsOfStrangersSayNothing(t *testing.T) {
	var seen atomic.Value
	up := upstreamOf(t, func(w http.ResponseWriter, r *http.Request) { seen.Store(r.Header.Get("X-Forwarded-For")) })
	f := newFixture(t, up, with(func(c *fixtureConfig) {
		c.cfg.Forwarders = Forwarders{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	}))
	do(t, f.client("http/1.1"), "GET", "https://"+host+"/", http.Header{"X-Forwarded-For": {"192.0.2.7"}}, nil)
	if seen.Load() != "127.0.0.1" {
		t.Errorf("the application saw %v", seen.Load())
	}
}

// An application with proxy_protocol learns the client of each connection, which
// is one request's.
func TestProxyHeaderTowardsAnApplication(t *testing.T) {
	headers := make(chan proxyproto.Header, 8)
	up := broken(t, func(c net.Conn) {
		h, err := proxyproto.Read(c)
		if err != nil {
			t.Errorf("header: %v", err)
			return
		}
		headers <- h
		for br := bufio.NewReader(c); ; {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	})
	f := newFixture(t, up, with(func(c *fixtureConfig) {
		c.app.ProxyProtocol = true
		c.cfg.Forwarders = Forwarders{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	}))
	c := f.client("http/1.1")
	for _, from := range []string{"192.0.2.7:0", "192.0.2.8:0"} {
		a, _, _ := strings.Cut(from, ":")
		if res, _ := do(t, c, "GET", "https://"+host+"/", http.Header{"X-Forwarded-For": {a}}, nil); res.StatusCode != 200 {
			t.Fatalf("status %d", res.StatusCode)
		}
		if h := <-headers; h.From.String() != from || h.To.String() != f.addr {
			t.Errorf("%+v, want from %s to %s", h, from, f.addr)
		}
	}
}

func FuzzForwarded(f *testing.F) {
	for _, s := range []string{"for=192.0.2.7", `for="[2001:db8::7]:4711";proto=https, for=10.0.0.1`, "192.0.2.7, 10.0.0.1:80", `"\",`, "for=_x"} {
		f.Add(s)
	}
	fw := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, s string) {
		for _, field := range []string{FieldForwarded, FieldXForwardedFor} {
			x := &Exchange{Conn: &exchange.Conn{Remote: netip.MustParseAddrPort("10.0.0.1:9")}}
			x.Header.Add(field, s)
			if err := (&Forwarders{Networks: fw, Field: field}).client(x); err == nil && (!x.Client().IsValid() || x.Client().Addr().Zone() != "") {
				t.Fatalf("%q: %v", s, x.Client())
			}
		}
	})
}
