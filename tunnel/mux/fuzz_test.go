package mux

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

func FuzzParseHeader(f *testing.F) {
	for k := range 10 {
		f.Add([]byte{byte(k), 0, 0, 8, 0, 0, 0, 1}, true)
		f.Add([]byte{byte(k), 1, 0, 4, 0, 0, 0, 0}, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, agent bool) {
		if len(b) < HeaderSize {
			return
		}
		in := [HeaderSize]byte(b)
		h, r := ParseHeader(&in, agent)
		if r != reason.OK {
			return
		}
		var out [HeaderSize]byte
		putHeader(out[:], h)
		if out != in {
			t.Errorf("% x reads as %+v, which is written % x", in, h, out)
		}
		if h.Length > MaxPayload || h.Kind == Message && h.Length > MaxMessage || h.Kind == Open && h.Length > MaxOpen {
			t.Errorf("length %d of %v", h.Length, h.Kind)
		}
	})
}

// records turns fuzz input into records that are often well formed, so that the
// fuzzer gets past the parser: kind, flags, flow, a length, and the payload.
func records(b []byte) []byte {
	var out []byte
	for len(b) >= 5 {
		k, fl, id, n := Kind(b[0]%9), b[1]&1, uint32(b[2]%8), int(b[3])
		fill := b[4]
		b = b[5:]
		switch k {
		case Window:
			n = 4
		case Close:
			n, fl = 2, 0
		case Ping:
			n, id = 8, 0
		case Message:
			id = 0
		case Data:
			fl = 0
			if fill&1 == 1 {
				n *= 257
			}
		}
		p := make([]byte, n)
		for i := range p {
			p[i] = fill >> 4
		}
		out = appendRecord(out, k, fl, id, p)
	}
	return append(out, b...)
}

type busyHandler struct{}

func (h busyHandler) Open(f *Flow, payload []byte) {
	switch f.id % 4 {
	case 0:
		_ = f.Refuse(reason.AppNotGranted, payload)
	case 1:
		_ = f.Accept(payload)
		go func() { // an echo, which reads and writes
			_, _ = f.WriteTo(f)
			_ = f.Close()
		}()
	case 2:
		_ = f.Accept(nil) // never read
		go func() { <-f.s.done; _ = f.Close() }()
	case 3:
		go func() {
			_ = f.Accept(nil)
			f.Reset(reason.Locked)
			_ = f.Close()
		}()
	}
}

func (h busyHandler) Message([]byte) reason.Reason { return reason.OK }

// A whole session eats anything: it neither panics nor hangs, and holds no more
// than its budget.
func FuzzSession(f *testing.F) {
	f.Add([]byte("\x01\x00\x01\x08\x00\x02\x00\x01\x30\x10\x03\x00\x01\x04\x10\x04\x00\x01\x02\x00"), true)
	f.Add([]byte("\x01\x01\x02\x08\x00\x05\x00\x02\x30\x10\x05\x00\x02\xff\x10\x07\x00\x00\x08\x00"), true)
	f.Add([]byte("\x06\x00\x00\x08\x00\x01\x00\x03\x08\x00\x02\x00\x03\xff\x01"), true)
	f.Add([]byte("\x01\x00\x01\x08\x00"), false)
	f.Fuzz(func(t *testing.T, in []byte, server bool) {
		if len(in) > 4096 {
			return
		}
		a, b := net.Pipe()
		cfg := Config{Handler: busyHandler{}, Budget: 1 << 20, Farewell: 10 * time.Millisecond}
		var s *Session
		if server {
			s = Server(b, cfg)
			s.Establish()
		} else {
			s = Client(b, cfg)
		}
		drained := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, a); close(drained) }()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		if !server {
			for range 3 {
				if fl, err := s.Start(false, nil); err == nil {
					go func() {
						if _, err := fl.Wait(ctx); err == nil {
							_, _ = io.Copy(io.Discard, fl)
							_ = fl.Close()
						}
					}()
				}
			}
		}
		_ = a.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = a.Write(records(in))
		if c := s.Stats().Credit; c > 1<<20 {
			t.Errorf("%d bytes of credit", c)
		}
		_ = a.Close()
		if err := <-done; err == nil || ctx.Err() != nil {
			t.Errorf("Run returned %v", err)
		}
		<-drained
		// Every owner gets away, and nothing is left in the books.
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			if st := s.Stats(); st.Flows == 0 && st.Credit == 0 {
				break
			} else if time.Now().After(end) {
				t.Fatalf("left %+v", st)
			}
		}
	})
}

func TestCreditIsAHardBound(t *testing.T) {
	// 16 flows, each filled to its window by one-byte records: what is held is
	// the credit and a chunk or two a flow, not a chunk a record.
	p := memPair(t, Config{Budget: 64 << 10, MinWindow: 4 << 10, Window: 16 << 10, WindowRate: 1 << 20})
	for range 16 {
		a, g := p.open(t, false)
		defer a.Close()
		defer g.Close()
		g.mu.Lock()
		window := g.window
		g.mu.Unlock()
		go func() {
			for {
				if _, err := a.Write([]byte{1}); err != nil {
					return
				}
			}
		}()
		for {
			g.mu.Lock()
			n, chunks := g.buffered, 0
			for c := g.head; c != nil; c = c.next {
				chunks += len(c.buf)
			}
			g.mu.Unlock()
			if chunks > window+chunkSize {
				t.Fatalf("%d bytes of chunks for a window of %d", chunks, window)
			}
			if n == window {
				break
			}
			time.Sleep(time.Millisecond)
		}
		a.Reset(reason.ClientGone)
	}
	if c := p.gateway.Stats().Credit; c > 64<<10 {
		t.Errorf("credit %d", c)
	}
}
