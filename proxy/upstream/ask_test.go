package upstream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/sock"
)

// pair returns two ends of a connection over the loopback.
func pair(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	here, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here.(*net.TCPConn), there.(*net.TCPConn)
}

func TestAskingAPlainSocket(t *testing.T) {
	if !sock.Built {
		t.Skip("package net does it here")
	}
	long := bytes.Repeat([]byte("head "), 20<<10)
	for name, c := range map[string]struct {
		out  []byte
		peer func(*testing.T, *net.TCPConn) // before the question
		then func(*net.TCPConn)             // when it has come
		want error
	}{
		"an answer":                              {out: []byte("question"), then: func(c *net.TCPConn) { _, _ = io.WriteString(c, "answer") }},
		"a head longer than the socket's buffer": {out: long, then: func(c *net.TCPConn) { _, _ = io.WriteString(c, "answer") }},
		"the end in place of an answer":          {out: []byte("question"), then: func(c *net.TCPConn) { c.Close() }, want: io.ErrUnexpectedEOF},
		"bytes before the question": {peer: func(t *testing.T, c *net.TCPConn) {
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}, want: errStale},
		"the end before the question": {peer: func(_ *testing.T, c *net.TCPConn) { c.Close() }, want: errStale},
		"a reset before the question": {peer: func(_ *testing.T, c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }, want: errStale},
		"no answer in time":           {out: []byte("question"), then: func(*net.TCPConn) {}, want: os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := pair(t)
			_ = ours.SetWriteBuffer(4 << 10)
			var a ask
			a.init(ours)
			in := make([]byte, 64)
			for range 2 { // the second time over the same connection
				if c.peer != nil {
					c.peer(t, theirs)
					for !sock.Readable(ours) {
						time.Sleep(time.Millisecond)
					}
				}
				heard := make(chan bool, 1)
				go func() {
					got := make([]byte, len(c.out))
					_, err := io.ReadFull(theirs, got)
					heard <- err == nil && bytes.Equal(got, c.out)
					if c.then != nil && err == nil {
						c.then(theirs)
					}
				}()
				if c.want == os.ErrDeadlineExceeded {
					time.AfterFunc(20*time.Millisecond, func() { _ = ours.SetDeadline(past) })
				}
				n, err := a.do(c.out, in)
				if c.want != nil {
					if !errors.Is(err, c.want) {
						t.Fatalf("got %v, want %v", err, c.want)
					}
					return
				}
				if err != nil || string(in[:n]) != "answer" || !<-heard {
					t.Fatalf("got %q, %v", in[:n], err)
				}
			}
		})
	}
}
