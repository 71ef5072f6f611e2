package badpath

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// echo serves connections that get back what they send.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

// What goes over a relay comes back whole and in order, and not before the
// delay of both directions; a loss costs its connection a time-out.
func TestRelayDelaysAndLoses(t *testing.T) {
	const delay = 20 * time.Millisecond
	r, err := NewRelay(RelayConfig{Target: echo(t), Delay: delay, Loss: .05, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sent := make([]byte, 100<<10)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	began := time.Now()
	c, err := r.Dial(context.Background(), "tcp", "ignored:1")
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*delay {
		t.Errorf("connected after %v, a handshake takes %v", took, 2*delay)
	}
	began = time.Now()
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	took := time.Since(began)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes came back: %v", len(got), len(sent), err)
	}
	if r.Lost() == 0 || took < 2*delay+leastWait {
		t.Errorf("%d segments were lost, and all took %v", r.Lost(), took)
	}
	t.Logf("%d of %d segments lost, %v for %d bytes", r.Lost(), 2*len(sent)/segment, took, len(sent))
}
