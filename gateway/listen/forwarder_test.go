package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/proxyproto"
	"github.com/yumen-zt/yumen/internal/reason"
)

// behind runs a port whose forwarders are these, and whose handler answers with
// the address of the client.
func behind(t *testing.T, limits Limits, forwarders ...string) *fixture {
	t.Helper()
	f := &fixture{ca: newAuthority(t), audit: &recorder{}}
	site := Bounded(f.ca.issue(t, time.Now().Add(time.Hour), "app.example"))
	c := Config{
		Handlers: map[string]Handler{HTTP1: func(ctx context.Context, c *Conn) {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			io.WriteString(c, c.Remote.String()+"\n")
			io.Copy(io.Discard, c)
		}},
		Faces:  &Faces{Certificate: func(string) (*tls.Certificate, error) { return &site, nil }},
		Limits: limits, Drain: time.Second, Audit: f.audit,
	}
	for _, n := range forwarders {
		c.Forwarders = append(c.Forwarders, netip.MustParsePrefix(n))
	}
	port, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f.run(t, port, "127.0.0.1:0")
	return f
}

// through sends header before the hello and returns what the handler says.
func (f *fixture) through(t *testing.T, header string) (string, error) {
	t.Helper()
	raw, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(raw, header); err != nil {
		return "", err
	}
	c := tls.Client(raw, &tls.Config{RootCAs: f.ca.pool(), ServerName: "app.example"})
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func TestForwardersNameTheClient(t *testing.T) {
	f := behind(t, Limits{}, "127.0.0.0/8")
	from, to := netip.MustParseAddrPort("192.0.2.9:4711"), netip.MustParseAddrPort("198.51.100.1:443")
	six := netip.MustParseAddrPort("[2001:db8::9]:4711")
	for name, c := range map[string]struct{ header, want string }{
		"v1":            {"PROXY TCP4 192.0.2.9 198.51.100.1 4711 443\r\n", "192.0.2.9:4711"},
		"v1 IPv6":       {"PROXY TCP6 2001:db8::9 2001:db8::1 4711 443\r\n", "[2001:db8::9]:4711"},
		"v2":            {string(proxyproto.Append(nil, from, to)), "192.0.2.9:4711"},
		"v2 IPv6":       {string(proxyproto.Append(nil, six, to)), "[2001:db8::9]:4711"},
		"v2 for itself": {string(proxyproto.Append(nil, netip.AddrPort{}, to)), "127.0.0.1:"},
		"v1 for itself": {"PROXY UNKNOWN\r\n", "127.0.0.1:"},
	} {
		if got, err := f.through(t, c.header); err != nil || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, %v, want %s", name, got, err, c.want)
		}
	}
	for name, header := range map[string]string{
		"none": "", "twice": "PROXY UNKNOWN\r\nPROXY UNKNOWN\r\n", "ambiguous": "PROXY TCP4 192.0.2.09 198.51.100.1 4711 443\r\n", "plain HTTP": "GET / HTTP/1.1\r\n\r\n",
	} {
		if got, err := f.through(t, header); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	eventually(t, func() (int, bool) {
		n := f.refused(reason.ProxyHeader)
		return n, n == 4
	})
}

// refused counts the audit records with a reason.
func (f *fixture) refused(why reason.Reason) (n int) {
	f.audit.mu.Lock()
	defer f.audit.mu.Unlock()
	for _, r := range f.audit.records {
		if r.Code == why {
			n++
		}
	}
	return n
}

func TestOnlyForwardersMaySendAHeader(t *testing.T) {
	f := behind(t, Limits{}, "192.0.2.0/24")
	if got, err := f.through(t, ""); err != nil || !strings.HasPrefix(got, "127.0.0.1:") {
		t.Errorf("without a header: %q, %v", got, err)
	}
	for _, header := range []string{"PROXY TCP4 192.0.2.9 198.51.100.1 4711 443\r\n", string(proxyproto.Append(nil, netip.AddrPort{}, netip.AddrPort{}))} {
		if got, err := f.through(t, header); err == nil {
			t.Errorf("%q: %q", header, got)
		}
	}
	eventually(t, func() (int, bool) {
		n := f.refused(reason.ProxyHeader)
		return n, n == 2
	})
}

// What one source may hold is counted for the client, not for the forwarder.
func TestLimitsCountTheClientOfAForwarder(t *testing.T) {
	f := behind(t, Limits{ConnectionsPerSource: 2, HalfOpenPerSource: 2}, "127.0.0.0/8")
	from := func(a string) string { return "PROXY TCP4 " + a + " 198.51.100.1 4711 443\r\n" }
	for _, a := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3"} {
		if _, err := f.through(t, from(a)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	if got, err := f.through(t, from("192.0.2.1")); err == nil {
		t.Errorf("a third connection of one client: %q", got)
	}
	eventually(t, func() (int, bool) {
		n := f.refused(reason.SourceLimit)
		return n, n == 1
	})
	f.audit.mu.Lock()
	defer f.audit.mu.Unlock()
	for _, r := range f.audit.records {
		if r.Code == reason.SourceLimit && r.Remote != "192.0.2.1:4711" {
			t.Errorf("the audit names %s", r.Remote)
		}
	}
}
