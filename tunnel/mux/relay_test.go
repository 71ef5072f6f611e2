package mux

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// relayed returns an agent's flow whose gateway end is relayed to up, and the
// application's end of that connection.
func relayed(t *testing.T, datagrams bool, idle time.Duration) (f, g *Flow, app net.Conn, ended chan reason.Reason) {
	t.Helper()
	p := tcpPair(t, Config{})
	f, g = p.open(t, datagrams)
	var up net.Conn
	if datagrams {
		l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		up, err = net.Dial("udp", l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		app, err = net.DialUDP("udp", l.LocalAddr().(*net.UDPAddr), up.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
	} else {
		up, app = tcpConns(t)
	}
	ended = make(chan reason.Reason, 1)
	go func() { ended <- Relay(g, up, RelayConfig{Broken: reason.UpstreamUnreachable, Idle: idle}) }()
	t.Cleanup(func() { f.Close(); app.Close() })
	return f, g, app, ended
}

func TestRelayMovesBothWaysAndHalfCloses(t *testing.T) {
	f, _, app, ended := relayed(t, false, 0)
	src := make([]byte, 3<<20+7)
	rand.NewChaCha8([32]byte{2}).Read(src)
	want := sha256.Sum256(src)
	var wg sync.WaitGroup
	for _, e := range []struct {
		from, to interface {
			io.ReadWriter
			CloseWrite() error
		}
	}{{f, app.(*net.TCPConn)}, {app.(*net.TCPConn), f}} {
		wg.Go(func() {
			if _, err := e.from.Write(src); err != nil {
				t.Error(err)
			}
			e.from.CloseWrite()
		})
		wg.Go(func() {
			h := sha256.New()
			if _, err := io.Copy(h, e.to); err != nil {
				t.Error(err)
			}
			if [32]byte(h.Sum(nil)) != want {
				t.Error("the bytes differ")
			}
		})
	}
	wg.Wait()
	if r := <-ended; r != reason.OK {
		t.Errorf("ended for %v", r)
	}
}

func TestRelayResetFreesAStuckUpstreamAtOnce(t *testing.T) {
	f, g, app, ended := relayed(t, false, 0)
	go f.Write(make([]byte, 16<<20)) // the application reads nothing
	for g.BytesIn() == 0 {
		time.Sleep(time.Millisecond)
	}
	begin := time.Now()
	g.Reset(reason.GrantRevoked)
	if r := <-ended; r != reason.GrantRevoked {
		t.Errorf("ended for %v", r)
	}
	if d := time.Since(begin); d > 3*time.Second { // 100 ms on a machine of one's own
		t.Errorf("after %v", d)
	}
	// The application sees a reset, not an end that looks whole.
	app.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, app); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("application: %v", err)
	}
	var re *ResetError
	if _, err := f.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.GrantRevoked {
		t.Errorf("agent: %v", err)
	}
}

func TestRelayTellsOfABrokenUpstream(t *testing.T) {
	f, _, app, ended := relayed(t, false, 0)
	app.(*net.TCPConn).SetLinger(0)
	app.Close()
	var re *ResetError
	if _, err := io.Copy(io.Discard, f); !errors.As(err, &re) || re.Reason != reason.UpstreamUnreachable {
		t.Errorf("agent: %v", err)
	}
	if r := <-ended; r != reason.UpstreamUnreachable {
		t.Errorf("ended for %v", r)
	}
}

func TestRelayDatagrams(t *testing.T) {
	f, _, app, ended := relayed(t, true, 0)
	b := make([]byte, 2048)
	for _, want := range [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("x"), 1400)} {
		if _, err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		n, err := app.Read(b)
		if err != nil || !bytes.Equal(b[:n], want) {
			t.Fatalf("application got %d bytes, %v", n, err)
		}
		if _, err := app.Write(want); err != nil {
			t.Fatal(err)
		}
		if n, err = f.Read(b); err != nil || !bytes.Equal(b[:n], want) {
			t.Fatalf("agent got %d bytes, %v", n, err)
		}
	}
	f.Close()
	if r := <-ended; r != reason.OK {
		t.Errorf("ended for %v", r)
	}
}

func TestRelayEndsAnIdleAssociation(t *testing.T) {
	f, _, _, ended := relayed(t, true, 50*time.Millisecond)
	if r := <-ended; r != reason.IdleTimeout {
		t.Errorf("ended for %v", r)
	}
	var re *ResetError
	if _, err := f.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.IdleTimeout {
		t.Errorf("agent: %v", err)
	}
}
