package apps

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/yumen-zt/yumen/internal/alert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func one(t *testing.T, a AppConfig, more ...func(*Config)) (*Registry, *App) {
	t.Helper()
	if a.ID == "" {
		a.ID = "APP00000001"
	}
	if a.Hosts == nil {
		a.Hosts = []string{"app.example.test"}
	}
	if a.Upstreams == nil {
		a.Upstreams = []string{"http://10.0.0.1"}
	}
	c := Config{Apps: []AppConfig{a}}
	for _, m := range more {
		m(&c)
	}
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r, r.All()[0]
}

func TestValidateNamesEveryFaultByItsPath(t *testing.T) {
	c := Config{ConnectTimeout: -1, Apps: []AppConfig{
		{ID: "toolongtoolong", Hosts: []string{"a b", "10.0.0.1"}, Upstreams: []string{"ftp://x", "http://u@h/", "tcp://h", "https://h:0", "http://h/path"}},
		{ID: "A1", Hosts: []string{"x.example"}, Upstreams: []string{"http://h"}, Balance: "random", Level: -1, PublicPaths: []string{"x", "/a*b", "/%2e"}, AllowAddresses: []string{"here"}, ProxyProtocol: true, HostHeader: "a b"},
		{ID: "A1", Hosts: []string{"X.Example."}, Upstreams: []string{"http://h", "https://h"}, TLS: TLSConfig{CertFile: "x"}},
		{ID: "A2"},
		{ID: "A3", Upstreams: []string{"http://h"}},
	}}
	err := c.Validate()
	if err == nil {
		t.Fatal("no fault")
	}
	for _, want := range []string{"connect_timeout:", "apps[0].id:", "apps[0].hosts[0]:", "apps[0].hosts[1]:", "apps[0].upstreams[0]:", "apps[0].upstreams[1]:", "apps[0].upstreams[2]:",
		"apps[0].upstreams[3]:", "apps[0].upstreams[4]:", "apps[1].balance:", "apps[1].level:", "apps[1].public_paths[0]:", "apps[1].public_paths[1]:", "apps[1].public_paths[2]:",
		"apps[1].allow_addresses[0]:", "apps[1].host_header:", "apps[2].id:", "apps[2].hosts[0]:", "apps[2].upstreams:", "apps[2].tls:", "apps[3].upstreams:", "apps[4].hosts:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault at %s in:\n%v", want, err)
		}
	}
}

func TestHostFindsEverySpelling(t *testing.T) {
	r, a := one(t, AppConfig{Hosts: []string{"App.Example.TEST.", "玉门.example.test"}})
	for _, h := range []string{"app.example.test", "APP.example.test", "app.example.test.", "app.example.test:8443", "xn--oby464e.example.test", "玉门.example.test", "玉门.Example.test:443"} {
		if r.Host(h) != a {
			t.Errorf("%q is not found", h)
		}
	}
	for _, h := range []string{"", ".", "example.test", "xapp.example.test", "app.example.test..", "a@app.example.test", "app.example.test:x:y", "[::1]:1", "1.2.3.4"} {
		if r.Host(h) != nil {
			t.Errorf("%q is found", h)
		}
	}
	if r.ID("APP00000001") != a || r.ID("APP00000002") != nil {
		t.Error("lookup by id")
	}
}

func TestGCR002_T1_StateRunsOutAndOutlivesAReload(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	r, a := one(t, AppConfig{DemandIdentity: true})
	if a.State(now) != Offline {
		t.Error("online without Table 1")
	}
	a.SetOnline(now.Add(2 * time.Minute))
	if a.State(now) != Online || a.State(now.Add(2*time.Minute)) != Offline {
		t.Error("Table 1 does not hold for its two minutes")
	}
	_, b := one(t, AppConfig{DemandIdentity: true}, func(c *Config) { c.Previous = r })
	if b.State(now) != Online {
		t.Error("a reload took the application offline")
	}
	a.SetOffline()
	if b.State(now) != Offline {
		t.Error("the state is not shared with the old registry's requests")
	}
	if _, c := one(t, AppConfig{}); c.State(now) != Online {
		t.Error("an application that need not prove itself is offline")
	}
}

func TestS15_AddressRules(t *testing.T) {
	for a, want := range map[string]bool{ // true: refused
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true, "0.0.0.0": true, "0.1.2.3": true, "::": true, "::ffff:0.0.0.0": true,
		"169.254.169.254": true, "::ffff:169.254.169.254": true, "169.254.1.1": true, "fe80::1": true, "fe80::1%eth0": true, "fd00:ec2::254": true, "100.100.100.200": true, "168.63.129.16": true,
		"224.0.0.1": true, "239.255.255.255": true, "ff02::1": true, "255.255.255.255": true, "240.0.0.1": true, "fec0::1": true,
		"::127.0.0.1": true, "64:ff9b::7f00:1": true, "64:ff9b::a9fe:a9fe": true, "2002:7f00:1::": true, "2002:a9fe:a9fe::1": true, "::ffff:0:127.0.0.1": true,
		"10.0.0.1": false, "192.168.1.1": false, "172.16.0.1": false, "8.8.8.8": false, "fd00::1": false, "2001:db8::1": false, "64:ff9b::a00:1": false, "100.64.0.1": false, "::ffff:10.0.0.1": false,
	} {
		if got := addressRule(netip.MustParseAddr(a)); (got != "") != want {
			t.Errorf("%s: rule %q, refused wanted: %v", a, got, want)
		}
	}
}

// listener counts what reaches it.
func listener(t *testing.T, addr string) (netip.AddrPort, *atomic.Int64) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			c.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort(), &n
}

func TestS15_DialRefusesInnerAddressesInEverySpelling(t *testing.T) {
	at, n := listener(t, "127.0.0.1:0")
	at6, n6 := listener(t, "[::1]:0")
	var alerts atomic.Int64
	r, a := one(t, AppConfig{}, func(c *Config) {
		c.Alerts = alert.Func(func(a alert.Alert) {
			if a.Code == alert.DestinationFault {
				alerts.Add(1)
			}
		})
	})
	p, p6 := at.String()[len("127.0.0.1"):], at6.String()[len("[::1]"):]
	tries := []string{"127.0.0.1" + p, "localhost" + p, "[::ffff:127.0.0.1]" + p, "127.1.2.3" + p, "0.0.0.0" + p, "[::]" + p, "[::1]" + p6, "[::]" + p6, "169.254.169.254:80", "[fd00:ec2::254]:80"}
	for _, addr := range tries {
		for _, network := range []string{"tcp", "udp"} {
			c, err := r.Dial(t.Context(), a, network, addr)
			var refused *RefusedError
			if !errors.As(err, &refused) {
				t.Errorf("%s %s: %v, want a refusal", network, addr, err)
			}
			if c != nil {
				c.Close()
			}
		}
	}
	if n.Load()+n6.Load() != 0 {
		t.Errorf("%d connections arrived", n.Load()+n6.Load())
	}
	if int(alerts.Load()) != 2*len(tries) {
		t.Errorf("%d alerts for %d refusals", alerts.Load(), 2*len(tries))
	}
	for _, bad := range []string{"unix", "ip", "tcp4", ""} {
		if _, err := r.Dial(t.Context(), a, bad, "127.0.0.1:1"); err == nil {
			t.Errorf("network %q is taken", bad)
		}
	}
}

func TestS15_AllowAddressesPermitsButNeverTheOwnListener(t *testing.T) {
	at, _ := listener(t, "127.0.0.1:0")
	own, nOwn := listener(t, "127.0.0.1:0")
	for _, o := range []netip.AddrPort{own, netip.AddrPortFrom(netip.IPv4Unspecified(), own.Port()), netip.AddrPortFrom(netip.IPv6Unspecified(), own.Port())} {
		r, a := one(t, AppConfig{AllowAddresses: []string{"127.0.0.0/8"}}, func(c *Config) { c.Own = func() []netip.AddrPort { return []netip.AddrPort{o} } })
		c, err := r.Dial(t.Context(), a, "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		var refused *RefusedError
		if _, err := r.Dial(t.Context(), a, "tcp", own.String()); !errors.As(err, &refused) || refused.Rule != "own listener" {
			t.Errorf("own listener %s: %v", o, err)
		}
	}
	if nOwn.Load() != 0 {
		t.Errorf("%d connections to the own listener", nOwn.Load())
	}
}

// A name that led to a good address at first and to an inner one later is
// refused at the dial (S16).
func TestS16_RebindingIsRefusedAtTheDial(t *testing.T) {
	at, n := listener(t, "127.0.0.1:0")
	answer := atomic.Pointer[netip.Addr]{}
	set := func(s string) { a := netip.MustParseAddr(s); answer.Store(&a) }
	resolver := fakeDNS(t, &answer)
	r, a := one(t, AppConfig{AllowAddresses: []string{"127.0.0.1/32"}}, func(c *Config) { c.Resolver = resolver })
	_, port, _ := net.SplitHostPort(at.String())
	set("127.0.0.1")
	c, err := r.Dial(t.Context(), a, "tcp", "upstream.example.test:"+port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, to := range []string{"127.0.0.2", "169.254.169.254", "::1", "fd00:ec2::254", "::ffff:127.0.0.2", "0.0.0.0"} {
		set(to)
		var refused *RefusedError
		if _, err := r.Dial(t.Context(), a, "tcp", "upstream.example.test:"+port); !errors.As(err, &refused) {
			t.Errorf("rebound to %s: %v, want a refusal", to, err)
		}
	}
	if n.Load() > 1 {
		t.Errorf("%d connections arrived, want 1", n.Load())
	}
}

// fakeDNS returns a resolver whose every answer is what answer holds.
func fakeDNS(t *testing.T, answer *atomic.Pointer[netip.Addr]) *net.Resolver {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			q, a := m.Questions[0], *answer.Load()
			h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, Type: q.Type}
			if q.Type == dnsmessage.TypeA && a.Unmap().Is4() {
				m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: a.Unmap().As4()}}}
			} else if q.Type == dnsmessage.TypeAAAA && a.Is6() {
				m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}}}
			}
			if b, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

func TestProxyProtocolHeader(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, a := one(t, AppConfig{AllowAddresses: []string{"127.0.0.0/8"}, ProxyProtocol: true, Upstreams: []string{"tcp://" + l.Addr().String()}})
	for name, c := range map[string]struct {
		ctx  context.Context
		want string
	}{
		"v4":    {WithSource(t.Context(), netip.MustParseAddrPort("192.0.2.1:1025"), netip.MustParseAddrPort("[::ffff:198.51.100.2]:443")), "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\x04\x01\x01\xbb"},
		"v6":    {WithSource(t.Context(), netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::2]:2")), "\x21\x21\x00\x24 \x01\r\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01 \x01\r\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01\x00\x02"},
		"local": {t.Context(), "\x20\x00\x00\x00"},
	} {
		conn, err := r.Dial(c.ctx, a, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		got, err := io.ReadAll(s)
		s.Close()
		if err != nil || string(got) != "\r\n\r\n\x00\r\nQUIT\n"+c.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestReachesOnlyItsResources(t *testing.T) {
	_, a := one(t, AppConfig{Upstreams: []string{"tcp://10.0.0.1:22", "udp://10.0.0.1:53", "tcp://db.example.test:5432"}})
	for _, c := range []struct {
		network, host string
		port          uint16
		want          bool
	}{
		{"tcp", "10.0.0.1", 22, true}, {"tcp", "::ffff:10.0.0.1", 22, true}, {"tcp", "DB.example.test.", 5432, true}, {"udp", "10.0.0.1", 53, true},
		{"udp", "10.0.0.1", 22, false}, {"tcp", "10.0.0.1", 23, false}, {"tcp", "10.0.0.2", 22, false}, {"tcp", "", 22, false},
	} {
		if _, got := a.Reach(c.network, c.host, c.port); got != c.want {
			t.Errorf("%s %s:%d: %v", c.network, c.host, c.port, got)
		}
	}
	if n := len(a.Resources()); n != 3 {
		t.Errorf("%d resources", n)
	}
}

func FuzzCanonicalHost(f *testing.F) {
	for _, s := range []string{"app.example.test", "APP.", "玉门.example", "[::1]", "::ffff:1.2.3.4", "1.2.3.4", "0x7f.1", "a..b", "xn--a", "fe80::1%eth0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := CanonicalHost(s)
		if err != nil {
			return
		}
		if again, err := CanonicalHost(h); err != nil || again != h {
			t.Fatalf("%q: %q, again %q %v", s, h, again, err)
		}
		if strings.ContainsAny(h, "@/\\ %[]\x00") || h != strings.ToLower(h) {
			t.Fatalf("%q: %q", s, h)
		}
	})
}

// An address of Table 20 stands for the upstream with a name, which is what is
// dialed; with two names of one port it stands for neither.
func TestGCR002_M98_AddressStandsForANamedUpstream(t *testing.T) {
	r, err := New(Config{Apps: []AppConfig{
		{ID: "APP00000001", Upstreams: []string{"tcp://db.internal:5432", "tcp://10.0.0.9:5433"}},
		{ID: "APP00000002", Upstreams: []string{"tcp://a.internal:5432", "tcp://b.internal:5432", "tcp://10.0.0.9:5432"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		app, host string
		port      uint16
		want      string
	}{
		{"APP00000001", "10.1.2.3", 5432, "db.internal:5432"},
		{"APP00000001", "db.internal", 5432, "db.internal:5432"},
		{"APP00000001", "other.internal", 5432, ""},
		{"APP00000001", "10.1.2.3", 5433, ""},
		{"APP00000001", "10.0.0.9", 5433, "10.0.0.9:5433"},
		{"APP00000002", "10.1.2.3", 5432, ""},
		{"APP00000002", "10.0.0.9", 5432, "10.0.0.9:5432"},
	} {
		if got, _ := r.ID(c.app).Reach("tcp", c.host, c.port); got != c.want {
			t.Errorf("%s %s:%d leads to %q, want %q", c.app, c.host, c.port, got, c.want)
		}
	}
}
