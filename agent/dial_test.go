package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

func TestDialForEmbedders(t *testing.T) {
	r := newRig(t, nil)
	r.dialer.open = echo(t)
	r.link.resources.Facts = []wire.ResourceFacts{{I: 0, Hosts: []string{"db.test"}}}
	r.serve()
	for _, addr := range []string{"10.0.0.5:5432", "DB.test.:5432"} {
		c, err := r.a.Dial(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatalf("%s: %v", addr, err)
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
			t.Errorf("%s: %q, %v", addr, b, err)
		}
		c.Close()
		c.Close()
	}
	for addr, want := range map[string]reason.Reason{"10.0.0.6:5432": reason.DestinationRule, "example.org:443": reason.DestinationRule} {
		_, err := r.a.Dial(t.Context(), "tcp", addr)
		if code, w := ExplainError(err); code != want.Code() || w.ZH == "" {
			t.Errorf("%s: %v", addr, err)
		}
	}
	for _, bad := range [][2]string{{"tcp", "10.0.0.5"}, {"tcp", "10.0.0.5:0"}, {"ip", "10.0.0.5:1"}} {
		if _, err := r.a.Dial(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("%v was dialed", bad)
		}
	}
	c, err := r.a.Dial(t.Context(), "tcp", "10.0.0.5:5432")
	if err != nil {
		t.Fatal(err)
	}
	r.a.Logout()
	_, err = c.Read(make([]byte, 1))
	var no *Refusal
	if !errors.As(err, &no) || no.Reason != reason.LoggedOut {
		t.Errorf("after the sign-out: %v", err)
	}
	c.Close()
	if n := len(r.a.slots); n != 0 {
		t.Errorf("%d slots are still taken", n)
	}
}

// echoDatagrams answers each flow of datagrams by what it gets.
func echoDatagrams(app string) func(context.Context, string, *wire.AccessRequest) (net.Conn, error) {
	return func(_ context.Context, network string, m *wire.AccessRequest) (net.Conn, error) {
		if network != "udp" || m.AppID != app {
			return nil, fmt.Errorf("asked for %s to %s", network, m.AppID)
		}
		ours, theirs := net.Pipe() // one Write is one Read
		go func() {
			b := make([]byte, 2048)
			for {
				n, err := theirs.Read(b)
				if err != nil {
					return
				}
				theirs.Write(b[:n])
			}
		}()
		return ours, nil
	}
}

func TestForwardOfDatagrams(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Forwards = []Forward{{Listen: "127.0.0.1:0", App: "APP00000001", Protocol: "udp"}}
	})
	r.link.resources = resources(row("APP00000001", "10.0.0.53", 53))
	r.link.resources.Facts = []wire.ResourceFacts{{I: 0, Protocol: "udp"}}
	r.dialer.open = echoDatagrams("APP00000001")
	r.serve()
	for i := range 3 { // each sender has a flow of its own
		c, err := net.Dial("udp", r.face("forward"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for k := range 3 {
			want := fmt.Sprint("datagram ", i, k)
			if _, err := io.WriteString(c, want); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := c.Read(b); err != nil || string(b[:n]) != want {
				t.Fatalf("%q, %v", b[:n], err)
			}
		}
	}
	if s := r.a.Status(); s.Flows != 3 {
		t.Errorf("%d flows of 3 senders", s.Flows)
	}
}

func TestResolverAnswersNamesOfTheListAlone(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Resolver = "127.0.0.1:0" })
	r.link.resources = resources(row("APP00000001", "10.0.0.5", 80), row("APP00000002", "fd00::5", 80), row("APP00000002", "10.0.0.6", 80))
	r.link.resources.Facts = []wire.ResourceFacts{{I: 0, Hosts: []string{"wiki.corp"}}, {I: 1, Hosts: []string{"wiki.corp", "six.corp"}}, {I: 2, Hosts: []string{"Wiki.corp"}}}
	r.serve()
	at := map[string]string{}
	for _, f := range r.a.Status().Faces { // by UDP first, then by TCP: of port 0 each has its own
		if f.Kind == "resolver" && at["udp"] == "" {
			at["udp"] = f.Addr
		} else if f.Kind == "resolver" {
			at["tcp"] = f.Addr
		}
	}
	for network, addr := range at {
		res := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}}
		got, err := res.LookupNetIP(t.Context(), "ip", "WIKI.corp.")
		slices.SortFunc(got, netip.Addr.Compare)
		if want := []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.6"), netip.MustParseAddr("fd00::5")}; err != nil || !slices.EqualFunc(got, want, func(a, b netip.Addr) bool { return a.Unmap() == b }) {
			t.Errorf("%s: %v, %v, want %v", network, got, err, want)
		}
		if got, err := res.LookupNetIP(t.Context(), "ip", "example.org."); err == nil {
			t.Errorf("%s: a name of the world became %v", network, got)
		}
	}
	ask := func(name string, kind dnsmessage.Type) dnsmessage.Message {
		q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
		raw, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var m dnsmessage.Message
		if err := m.Unpack(r.a.resolve(raw, 512)); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := ask("six.corp.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
		t.Errorf("a name with IPv6 alone, asked for IPv4: %v", m)
	}
	if m := ask("example.org.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("another name: %v", m.RCode)
	}
	for _, junk := range [][]byte{nil, {1}, make([]byte, 11), append(make([]byte, 2), 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0)} {
		if out := r.a.resolve(junk, 512); out != nil {
			t.Errorf("% x was answered", junk)
		}
	}
	r.a.Logout()
	if m := ask("wiki.corp.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("after the sign-out: %v", m.RCode)
	}
}

func FuzzResolve(f *testing.F) {
	q := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("wiki.corp."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	raw, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	a := &Agent{routes: &routes{list: []*Resource{{Addr: netip.MustParseAddrPort("10.0.0.5:80"), Hosts: []string{"wiki.corp"}}}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		if out := a.resolve(b, 512); len(out) > 512 {
			t.Errorf("%d bytes", len(out))
		}
	})
}
