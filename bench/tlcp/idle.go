//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const (
	idleConns    = 2000
	smallRequest = 512
	largeRequest = 256 << 10
)

// idleMemory starts a server in a process of its own, opens connections, sends
// one request on each and asks how much its memory has grown; then the same
// with large requests on the same connections.
func idleMemory() ([]*row, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-idle-server")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer cmd.Wait() // its fault has been seen by then
	defer in.Close()
	out := bufio.NewReader(stdout)
	line := func() (string, error) {
		s, err := out.ReadString('\n')
		return strings.TrimSpace(s), err
	}
	addr, err := line()
	if err != nil {
		return nil, fmt.Errorf("start idle server: %w", err)
	}
	memory := func() (float64, error) {
		if _, err := io.WriteString(in, "memory\n"); err != nil {
			return 0, err
		}
		s, err := line()
		if err != nil {
			return 0, err
		}
		return strconv.ParseFloat(s, 64)
	}
	var conns []*tlcp.Conn
	defer func() {
		for _, c := range conns {
			c.NetConn().Close()
		}
	}()
	root, err := line()
	if err != nil {
		return nil, err
	}
	cfg := &tlcp.Config{ServerName: host}
	if cfg.RootCAs, err = poolOf(root); err != nil {
		return nil, err
	}
	open := func(n int) error {
		for range n {
			raw, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			c := tlcp.Client(raw, cfg)
			conns = append(conns, c)
			if err := c.HandshakeContext(context.Background()); err != nil {
				return err
			}
		}
		return nil
	}
	ask := func(size int) error {
		req := make([]byte, 4+size)
		binary.BigEndian.PutUint32(req, uint32(size))
		for _, c := range conns {
			sent := make(chan error, 1)
			go func() { _, err := c.Write(req); sent <- err }()
			if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
				return err
			}
			if err := <-sent; err != nil {
				return err
			}
		}
		return nil
	}
	// A few first, so that what is made once is there.
	if err := errors.Join(open(10), ask(largeRequest)); err != nil {
		return nil, err
	}
	base, err := memory()
	if err != nil {
		return nil, err
	}
	rows := []*row{
		{name: "idle connection after a request of 512 B, resident", unit: " KiB", goal: 14},
		{name: "idle connection after a request of 256 KiB, resident", unit: " KiB", goal: 24},
	}
	if err := open(idleConns); err != nil {
		return nil, err
	}
	for i, size := range []int{smallRequest, largeRequest} {
		if err := ask(size); err != nil {
			return nil, err
		}
		now, err := memory()
		if err != nil {
			return nil, err
		}
		rows[i].add((now - base) / idleConns)
	}
	return rows, nil
}

// idleServer answers every request with as many bytes, on a fresh goroutine
// behind the handshake, as the gateway's port does.
func idleServer() error {
	debug.SetGCPercent(100)
	m, root, err := serverMaterial()
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	fmt.Println(root)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				c := tlcp.Server(raw, m)
				if c.HandshakeContext(context.Background()) == nil {
					wg.Go(func() { answer(c) })
				}
			})
		}
	})
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		runtime.GC()
		debug.FreeOSMemory()
		kib, err := residentKiB()
		if err != nil {
			return err
		}
		fmt.Println(kib)
	}
	return nil // the parent has gone; so do we
}

func answer(c *tlcp.Conn) {
	defer c.Close()
	var head [4]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		if echoed(c, int64(binary.BigEndian.Uint32(head[:]))) != nil {
			return
		}
	}
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// echoed returns n bytes to where they came from, with a buffer that the
// connection does not keep.
func echoed(c *tlcp.Conn, n int64) error {
	b := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(b)
	_, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(c, n), *b)
	return err
}

func residentKiB() (int, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, errors.New("no VmRSS in /proc/self/status")
}
