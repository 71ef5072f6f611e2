//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	serverAddr  = "10.77.0.1"
	clientAddr  = "10.77.0.2"
	controlPort = 7000 // asks for the server's CPU time
	firstPort   = 7001 // of subjects[0], and so on
	small       = 64   // bytes of a round trip
	block       = 64 << 10
)

// subjects are what is measured: carrier, or carrier+sharing.
var subjects = []string{"tcp", "sealed", "tlcp", "tlcp+mux", "tlcp+yamux", "tlcp+smux", "tls", "tls+mux", "tls+yamux", "tls+smux", "sealed+mux"}

func subject(name string) (over, sharing) {
	c, m, _ := strings.Cut(name, "+")
	return carriers[c], muxes[m]
}

func portOf(name string) string { return fmt.Sprint(firstPort + slices.Index(subjects, name)) }

// serve is the far end: it takes every subject until stdin ends.
func serve(dir string) error {
	e, err := openEnd(dir, "gateway")
	if err != nil {
		return err
	}
	for _, name := range subjects {
		l, err := net.Listen("tcp", "0.0.0.0:"+portOf(name))
		if err != nil {
			return err
		}
		put, share := subject(name)
		go accept(l, func(c net.Conn) error {
			k, err := put(context.Background(), c, e, true)
			if err != nil {
				return err
			}
			return share.serve(k, func(st net.Conn) { _ = answer(st) })
		})
	}
	l, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", controlPort))
	if err != nil {
		return err
	}
	go accept(l, func(c net.Conn) error {
		var b [8]byte
		for {
			if _, err := io.ReadFull(c, b[:1]); err != nil {
				return err
			}
			binary.BigEndian.PutUint64(b[:], uint64(ownCPU()))
			if _, err := c.Write(b[:]); err != nil {
				return err
			}
		}
	})
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

func accept(l net.Listener, f func(net.Conn) error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			if err := f(c); err != nil && !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, "serve:", err)
			}
			c.Close()
		}()
	}
}

// ownCPU returns the process's CPU time in nanoseconds, of user and kernel.
func ownCPU() int64 {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err) // it has no other outcome for oneself
	}
	return r.Utime.Nano() + r.Stime.Nano()
}

// answer serves one stream: 'b' and a number of bytes to swallow, or 'p' and a
// number of round trips.
func answer(c net.Conn) error {
	var h [9]byte
	for {
		if _, err := io.ReadFull(c, h[:]); err != nil {
			return err
		}
		n := int64(binary.BigEndian.Uint64(h[1:]))
		if h[0] == 'b' {
			if err := swallow(c, n); err != nil {
				return err
			}
			if _, err := c.Write(h[:1]); err != nil {
				return err
			}
			continue
		}
		b := make([]byte, small)
		for range n {
			if _, err := io.ReadFull(c, b); err != nil {
				return err
			}
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
}

// asked reads what say wrote, and returns the number.
func asked(c net.Conn) (int64, error) {
	var h [9]byte
	_, err := io.ReadFull(c, h[:])
	return int64(binary.BigEndian.Uint64(h[1:])), err
}

var errEnough = errors.New("enough")

// sink takes so many bytes and then says errEnough.
type sink struct{ left int64 }

func (s *sink) Write(p []byte) (int, error) {
	s.left -= int64(len(p))
	if s.left <= 0 {
		return len(p), errEnough
	}
	return len(p), nil
}

// swallow reads n bytes, by the stream's own WriteTo where it has one: that is
// what a relay uses.
func swallow(c net.Conn, n int64) error {
	s := &sink{n}
	var err error
	if w, ok := c.(io.WriterTo); ok {
		_, err = w.WriteTo(s)
	} else {
		_, err = io.CopyBuffer(s, struct{ io.Reader }{c}, make([]byte, block))
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	if err == nil {
		return errShort
	}
	return err
}

// source gives so many bytes, as many at once as it is asked for.
type source struct{ left int64 }

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.left))
	s.left -= int64(n)
	return n, nil
}

// pour writes n bytes, by the flow's own ReadFrom, or in writes of 64 KiB.
func pour(c net.Conn, n int64) error {
	var err error
	var did int64
	if r, ok := c.(interface {
		io.ReaderFrom
		Datagrams() bool
	}); ok {
		did, err = r.ReadFrom(&source{n})
	} else {
		did, err = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{&source{n}}, make([]byte, block))
	}
	if err == nil && did != n {
		err = errShort
	}
	return err
}
