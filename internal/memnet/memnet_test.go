package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

func connect(t *testing.T, n *Network) (a, b net.Conn) {
	t.Helper()
	ln, err := n.Listen("tcp", "x:1")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = n.Dial(t.Context(), "tcp", "x:1"); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// The connections keep the rules of net.Conn.
func TestConnKeepsTheRules(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, c2 = connect(t, New(Config{Delay: time.Millisecond}))
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}

func read(t *testing.T, c net.Conn) (string, time.Duration) {
	t.Helper()
	began := time.Now()
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return string(b[:n]), time.Since(began)
}

func TestDelayPartitionAndVanishing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Delay: 100 * time.Millisecond})
		began := time.Now()
		a, b := connect(t, n)
		if took := time.Since(began); took != 200*time.Millisecond {
			t.Errorf("connected after %v, want a round trip of 200ms", took)
		}
		a.Write([]byte("one"))
		if s, took := read(t, b); s != "one" || took != 100*time.Millisecond {
			t.Errorf("%q after %v, want it after 100ms", s, took)
		}
		n.Partition()
		a.Write([]byte("two"))
		b.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := b.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read through a partition: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.Dial(ctx, "tcp", "x:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial through a partition: %v", err)
		}
		b.SetReadDeadline(time.Time{})
		n.Heal()
		if s, took := read(t, b); s != "two" || took != 300*time.Millisecond {
			t.Errorf("%q after %v, want it 300ms after the partition", s, took)
		}
		if _, err := n.Dial(t.Context(), "tcp", "x:1"); !errors.Is(err, errRefused) {
			t.Errorf("dial without a listener: %v", err)
		}
		if got := n.Vanish(); got != 1 {
			t.Errorf("%d connections vanished, want 1", got)
		}
		a.Write([]byte("three"))
		b.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := b.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read of what vanished: %v", err)
		}
		n.Cut()
		b.SetReadDeadline(time.Time{})
		if _, err := b.Read(make([]byte, 10)); !errors.Is(err, errReset) {
			t.Errorf("read after a cut: %v", err)
		}
	})
}

func TestLossDelaysAndKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Delay: 10 * time.Millisecond, Loss: .3, Seed: 3})
		a, b := connect(t, n)
		go func() {
			for i := range 200 {
				a.Write([]byte{byte(i)})
			}
			a.Close()
		}()
		got, err := io.ReadAll(b)
		if err != nil || len(got) != 200 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		for i, v := range got {
			if int(v) != i {
				t.Fatalf("byte %d is %d", i, v)
			}
		}
	})
}
