package tlcp

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"syscall"
)

// Settle makes an established connection small, for one of very many that will
// mostly be idle: the peer's certificates are dropped from its state, and while
// it waits for a record it holds no buffer, where the transport is a socket.
//
// Call it after the handshake, once nobody else uses the connection and
// whoever needs the certificates has them. A connection that renegotiates or
// resumes is not affected: sessions have their own.
func (c *Conn) Settle() {
	if !c.done.Load() {
		return
	}
	s := &c.state
	s.PeerCertificates, s.PeerSign, s.PeerEnc, s.VerifiedChain = nil, nil, nil, nil
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.lull = newLull(socketOf(c.conn))
}

// socketOf returns the TCP socket below conn, or nil: also where another protocol
// stands between, whose bytes are not ours to read.
func socketOf(conn net.Conn) syscall.Conn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case *tls.Conn, *Conn:
			return nil
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

// lull waits on a socket without a buffer; guarded by Conn.in.mu.
type lull struct {
	rc   syscall.RawConn
	poll func(fd uintptr) bool
	b    *[]byte
	n    int
	err  error
}

var lulls = sync.Pool{New: func() any { b := make([]byte, smallRead); return &b }}

func newLull(s syscall.Conn) *lull {
	if s == nil || !pollable {
		return nil
	}
	rc, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	l := &lull{rc: rc}
	l.poll = l.try
	return l
}

// wait gives the small buffer back, when nothing is in it, and takes another
// with the first bytes that come.
func (c *Conn) wait() error {
	l := c.lull
	if l == nil || c.large != nil || c.r != c.w {
		return nil
	}
	if l.b != nil {
		lulls.Put(l.b)
	}
	c.small, c.raw, c.r, c.w = nil, nil, 0, 0
	l.b, l.n, l.err = nil, 0, nil
	if err := l.rc.Read(l.poll); err != nil {
		return err
	}
	if l.b != nil {
		c.small = *l.b
		c.raw = c.small
	}
	c.w = l.n
	if l.err == nil && l.n == 0 {
		return io.EOF
	}
	return l.err
}
