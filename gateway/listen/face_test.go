package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// oneTicket gives every host the newest ticket, as a hostile client would.
type oneTicket struct {
	mu sync.Mutex
	s  *tls.ClientSessionState
}

func (c *oneTicket) Get(string) (*tls.ClientSessionState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.s, c.s != nil
}

func (c *oneTicket) Put(_ string, s *tls.ClientSessionState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != nil {
		c.s = s
	}
}

func (c *oneTicket) has() bool { _, ok := c.Get(""); return ok }

// A session ticket of one face is of no use at another, and none outlives a
// reload: no handshake goes round the client's certificate.
func TestTicketsStayWithTheirFace(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		f := start(t, "127.0.0.1:0", Limits{})
		device := f.ca.issue(t, time.Now().Add(time.Hour), "device-1")
		open, shown := &oneTicket{}, &oneTicket{}
		dial := func(cache *oneTicket, cfg *tls.Config) (*tls.Conn, string, error) {
			cfg.ClientSessionCache, cfg.MaxVersion = cache, version
			return f.dial(t, cfg)
		}
		if _, _, err := dial(open, &tls.Config{ServerName: "app.example"}); err != nil || !open.has() {
			t.Fatalf("no ticket: %v", err)
		}
		if c, _, err := dial(open, &tls.Config{ServerName: "app.example"}); err != nil || !c.ConnectionState().DidResume {
			t.Fatalf("the open face does not resume its own: %v", err)
		}
		if _, got, err := dial(open, &tls.Config{ServerName: "secret.example"}); err == nil {
			t.Errorf("0x%x: an open ticket entered the face of devices: %q", version, got)
		}
		if _, _, err := dial(open, &tls.Config{ServerName: "app.example", NextProtos: []string{Tunnel}}); err == nil {
			t.Errorf("0x%x: an open ticket entered the tunnel", version)
		}
		if _, _, err := dial(shown, &tls.Config{ServerName: "secret.example", Certificates: []tls.Certificate{device}}); err != nil || !shown.has() {
			t.Fatalf("no ticket with a certificate: %v", err)
		}
		if c, got, err := dial(shown, &tls.Config{ServerName: "secret.example"}); err != nil || !c.ConnectionState().DidResume || !strings.HasSuffix(got, "device-1") {
			t.Errorf("0x%x: a resumed session is %q, %v; want the device of its handshake", version, got, err)
		}
		if _, _, err := dial(shown, &tls.Config{ServerName: "app.example", NextProtos: []string{Tunnel}}); err == nil {
			t.Errorf("0x%x: a ticket of HTTP entered the tunnel", version)
		}
		old := f.port.faces.Load()
		f.port.SetFaces(&Faces{Certificate: old.Certificate, Demand: old.Demand, ClientRoots: old.ClientRoots})
		if _, got, err := dial(shown, &tls.Config{ServerName: "secret.example"}); err == nil {
			t.Errorf("0x%x: a ticket outlived the reload: %q", version, got)
		}
	}
}

// R22: a panic ends its connection and nothing else, with an alert.
func TestR22_PanicsEndTheirConnectionOnly(t *testing.T) {
	ca := newAuthority(t)
	site := ca.issue(t, time.Now().Add(time.Hour), "app.example", "broken.example")
	raised := make(chan alert.Alert, 8)
	port, err := New(Config{
		Handlers: map[string]Handler{
			HTTP1: func(_ context.Context, c *Conn) { c.Close(); panic("handler") },
			HTTP2: func(_ context.Context, c *Conn) { c.Write([]byte("fine")); c.Close() },
		},
		Faces: &Faces{Certificate: func(name string) (*tls.Certificate, error) {
			if name == "broken.example" {
				panic("certificate")
			}
			return &site, nil
		}},
		Alerts: alert.Func(func(a alert.Alert) {
			if a.Code == alert.InternalFault {
				raised <- a
			}
		}),
		Drain: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- port.Run(ctx, ln) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	dial := func(name, proto string) (string, error) {
		c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: ca.pool(), ServerName: name, NextProtos: []string{proto}})
		if err != nil {
			return "", err
		}
		defer c.Close()
		b := make([]byte, 10)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	if _, err := dial("broken.example", HTTP1); err == nil {
		t.Error("a handshake that panicked succeeded")
	}
	if a := <-raised; a.Detail != "handshake" {
		t.Errorf("alert of %q", a.Detail)
	}
	_, _ = dial("app.example", HTTP1)
	if a := <-raised; !strings.Contains(a.Detail, HTTP1) {
		t.Errorf("alert of %q", a.Detail)
	}
	if got, err := dial("app.example", HTTP2); got != "fine" {
		t.Errorf("the next connection: %q %v", got, err)
	}
	if n := len(port.slots); n > 1 {
		t.Errorf("%d connections are still counted", n)
	}
}

// What newer connections push out is counted as that, whatever the handshake
// made of its closed socket.
func TestPushedOutConnectionsAreNamed(t *testing.T) {
	f := start(t, "127.0.0.1:0", Limits{HalfOpen: 1, Hello: 30 * time.Second})
	first, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for f.port.half.count() == 0 {
		time.Sleep(time.Millisecond) // until the other side has accepted
	}
	second, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.SetReadDeadline(time.Now().Add(5 * time.Second))
	var timeout net.Error
	if _, err := first.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("the oldest was not pushed out: %v", err)
	}
	counted := func() float64 {
		return testutil.ToFloat64(f.port.metrics.handshakes.WithLabelValues("unknown", reason.HandshakeLimit.String()))
	}
	for deadline := time.Now().Add(5 * time.Second); counted() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("counted %v as %s, want 1", counted(), reason.HandshakeLimit)
		}
	}
}

func TestLimitsOutOfRangeAreRefused(t *testing.T) {
	for _, l := range []Limits{{Connections: -1}, {ConnectionsPerSource: -1}, {HalfOpen: -1}, {HalfOpenPerSource: -1}, {Hello: -1}, {Handshake: time.Hour}} {
		_, err := New(Config{Handlers: map[string]Handler{HTTP1: func(context.Context, *Conn) {}}, Faces: &Faces{}, Limits: l})
		if err == nil || !strings.Contains(err.Error(), "out of range") {
			t.Errorf("%+v: %v", l, err)
		}
	}
}
