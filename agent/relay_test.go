package agent

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// A local program that breaks its connection off must not look to the
// application as one that has finished, and the other way round.
func TestResetsAreCarriedThrough(t *testing.T) {
	ca := newLab(t)
	g := newLabGateway(t, ca, "GW000000001")
	r := labAgent(t, ca, nil)
	r.link.resources.Gateways = []wire.GatewayRef{g.ref}
	r.serve()
	open := func() (net.Conn, *mux.Flow) {
		c, code := socks(t, r.face("socks5"), "10.0.0.5:5432")
		if code != 0 {
			t.Fatalf("code %d", code)
		}
		var b [4]byte
		if _, err := io.WriteString(c, "ping"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "ping" {
			t.Fatalf("echo %q, %v", b, err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return c, g.flow
	}

	c, f := open()
	gone := make(chan struct{})
	f.OnReset(func() { close(gone) })
	reset(c)
	<-gone
	if got := f.Reason(); got != reason.ClientGone {
		t.Errorf("a broken local connection: the gateway heard %v", got)
	}
	r.wait("flow gone", func(s Status) bool { return s.Flows == 0 })

	c, f = open()
	f.Reset(reason.UpstreamUnreachable) // what the gateway says when the application breaks off
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a broken application: the local program saw %v", err)
	}
	r.wait("flow gone", func(s Status) bool { return s.Flows == 0 })
	for _, n := range r.a.notices.all() {
		t.Errorf("an end of an application's own making became a notice: %+v", n)
	}

	c, _ = open()
	if err := c.(*net.TCPConn).CloseWrite(); err != nil { // the application echoes, then ends, too
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("after a half-close: %q, %v", b, err)
	}
}
