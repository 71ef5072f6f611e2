//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
)

// The application: it reads to the end of a head and answers from memory, so
// that it costs the shared core as little as anything can.

func page(n int) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", n, bytes.Repeat([]byte("y"), n))
}

var (
	small    = page(1 << 10)
	large    = page(100 << 10)
	headEnd  = []byte("\r\n\r\n")
	forLarge = []byte("GET /100k")
)

// serveUpstream answers GET /1k and GET /100k on addr, until it is killed.
func serveUpstream(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			answer(c)
		}()
	}
}

// answer serves one connection until its end.
func answer(c net.Conn) {
	buf := make([]byte, 16<<10)
	have := 0
	for {
		n, err := c.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		for {
			i := bytes.Index(buf[:have], headEnd)
			if i < 0 {
				break
			}
			p := small
			if bytes.HasPrefix(buf, forLarge) {
				p = large
			}
			have = copy(buf, buf[i+len(headEnd):have])
			if _, err := c.Write(p); err != nil {
				return
			}
		}
		if have == len(buf) {
			return // no head is so long
		}
	}
}
