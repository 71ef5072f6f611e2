package tunnel

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// silent returns a port on 127.0.0.1 on which a connect hangs: its backlog is
// full.
func silent(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*syscall.SockaddrInet4).Port
	for range 8 {
		c, err := net.DialTimeout("tcp", (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String(), 100*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the backlog does not fill")
	return 0
}

// dialing starts an Open that hangs in the gateway's dial.
func (w *world) dialing(ctx context.Context) (m *wire.AccessRequest, done chan error) {
	w.t.Helper()
	port := silent(w.t)
	w.srv.SetApps(mustApps(w.app(appID, uint16(port))))
	c := w.mustConnect(w.alice, nil)
	m = w.request(w.alice)
	m.Port = port
	done = make(chan error, 1)
	go func() {
		_, err := c.Open(ctx, "tcp", m)
		done <- err
	}()
	eventually(w.t, "a lease is held while dialing", func() bool { return w.access.Stats().Leases == 1 })
	return m, done
}

func TestGCR002_M57_RevocationEndsADial(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	_, done := w.dialing(t.Context())
	in := w.input()
	in.Grants, in.Version = in.Grants[1:], 2
	begin := time.Now()
	w.apply(in)
	if got := refusal(<-done); got != reason.GrantRevoked {
		t.Errorf("refused for %v", got)
	}
	if d := time.Since(begin); d > 3*time.Second { // the standard's limit; the goal is 100 ms
		t.Errorf("after %v", d)
	}
	eventually(t, "the lease is released", func() bool { return w.access.Stats().Leases == 0 })
}

func TestAgentThatGivesUpEndsTheDial(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	ctx, cancel := context.WithCancel(t.Context())
	_, done := w.dialing(ctx)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	begin := time.Now()
	eventually(t, "the lease is released", func() bool { return w.access.Stats().Leases == 0 })
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("after %v: the dial went on", d)
	}
}

func TestSilentApplicationIsATimeout(t *testing.T) {
	w := newWorld(t, "127.0.0.1", Limits{})
	_, done := w.dialing(t.Context())
	if got := refusal(<-done); got != reason.UpstreamTimeout {
		t.Errorf("refused for %v", got)
	}
}
