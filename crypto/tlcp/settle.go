package tlcp

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Settle makes an established connection small, for one of very many that will
// mostly be idle: the peer's certificates are dropped from its state, and where
// the transport is a socket, it holds no buffer while it waits for a record, and
// no expanded keys when records have become rare. In return it may read with a
// larger buffer while much comes.
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
	c.lull = newLull(c, socketOf(c.conn))
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
	c     *Conn
	rc    syscall.RawConn
	poll  func(fd uintptr) bool
	pool  *sync.Pool // of the buffer that comes next
	heard time.Time  // when the last bytes came that were waited for
	small *[]byte    // of lulls; Conn.small is the same
	b     *[]byte    // of the read that found something
	n     int
	err   error
}

// rare is the time between two records beyond which a connection is at rest.
const rare = 500 * time.Millisecond

var lulls = sync.Pool{New: func() any { b := make([]byte, smallRead); return &b }}

func newLull(c *Conn, s syscall.Conn) *lull {
	if s == nil || !pollable {
		return nil
	}
	rc, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	l := &lull{c: c, rc: rc}
	l.poll = l.try
	return l
}

// wait gives the buffer back, when nothing is in it, and takes another of the
// size that the last record asks for, with the first bytes that come.
func (c *Conn) wait() error {
	l := c.lull
	if l == nil || c.r != c.w {
		return nil
	}
	c.giveBack()
	if l.small != nil {
		lulls.Put(l.small)
	}
	c.small, c.raw, c.r, c.w = nil, nil, 0, 0
	l.small, l.b, l.n, l.err, l.pool = nil, nil, 0, nil, &lulls
	if c.last >= smallRead/2 {
		if l.pool = &recordPool; c.full {
			l.pool = &batchPool
		}
	}
	if err := l.rc.Read(l.poll); err != nil {
		return err
	}
	switch {
	case l.b == nil:
	case l.pool == &lulls:
		l.small, c.small = l.b, *l.b
		c.raw = c.small
		now := time.Now()
		c.sleepy.Store(now.Sub(l.heard) > rare)
		l.heard = now
	default:
		c.large, c.raw = l.b, *l.b
	}
	c.w = l.n
	c.full = c.w == len(c.raw)
	if l.err == nil && l.n == 0 {
		return io.EOF
	}
	return l.err
}

// rest lets the expanded keys go, where records have become rare: nothing has
// come.
func (c *Conn) rest() {
	if !c.sleepy.Load() {
		return
	}
	c.in.prot.rest()
	if c.out.mu.TryLock() { // else Write does it
		c.out.prot.rest()
		c.out.mu.Unlock()
	}
}
