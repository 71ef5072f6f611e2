//go:build linux

package main

import (
	"context"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"

	"github.com/yumen-zt/yumen/crypto/hello"
	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// over puts a carrier's protocol on a TCP connection.
type over func(ctx context.Context, c net.Conn, e *end, server bool) (net.Conn, error)

var carriers = map[string]over{
	"tcp":    func(_ context.Context, c net.Conn, _ *end, _ bool) (net.Conn, error) { return c, nil },
	"sealed": func(_ context.Context, c net.Conn, _ *end, _ bool) (net.Conn, error) { return newSealed(c) },
	"tls": func(ctx context.Context, c net.Conn, e *end, server bool) (net.Conn, error) {
		t := tls.Client(hello.Replay(c, nil), e.tls)
		if server {
			t = tls.Server(hello.Replay(c, nil), e.tls)
		}
		carrier.Tune(c)
		return carrier.Gather(t), t.HandshakeContext(ctx)
	},
	"tlcp": func(ctx context.Context, c net.Conn, e *end, server bool) (net.Conn, error) {
		t := tlcp.Client(c, e.tlcp)
		if server {
			t = tlcp.Server(c, e.tlcp)
		}
		carrier.Tune(c)
		defer t.Settle()
		return t, t.HandshakeContext(ctx)
	},
}

const frame = 16 << 10

// sealed is the bare stream that the goal names: frames of 16 KiB under
// SM4-GCM over TCP, four to a write, no handshake and no other rule.
type sealed struct {
	net.Conn
	out, in  cipher.AEAD
	wseq     uint64
	rseq     uint64
	wbuf     []byte
	rbuf     []byte
	rest     []byte
	wn, rn   [sm4gcm.NonceSize]byte
	buffered []byte
}

func newSealed(c net.Conn) (net.Conn, error) {
	a, err := sm4gcm.New(make([]byte, sm4gcm.KeySize))
	if err != nil {
		return nil, err
	}
	return &sealed{Conn: c, out: a, in: a, rbuf: make([]byte, 64<<10+4*(2+sm4gcm.Overhead))}, nil
}

// Write seals p frame by frame and hands it to the kernel at once.
func (s *sealed) Write(p []byte) (int, error) {
	s.wbuf = s.wbuf[:0]
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), frame)
		binary.BigEndian.PutUint64(s.wn[4:], s.wseq)
		s.wseq++
		s.wbuf = binary.BigEndian.AppendUint16(s.wbuf, uint16(n+sm4gcm.Overhead))
		s.wbuf = s.out.Seal(s.wbuf, s.wn[:], p[:n], nil)
		p = p[n:]
	}
	_, err := s.Conn.Write(s.wbuf)
	return total, err
}

// Read opens the next frame.
func (s *sealed) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if len(s.buffered) >= 2 {
			n := int(binary.BigEndian.Uint16(s.buffered))
			if len(s.buffered) >= 2+n {
				binary.BigEndian.PutUint64(s.rn[4:], s.rseq)
				s.rseq++
				b, err := s.in.Open(s.buffered[2:2], s.rn[:], s.buffered[2:2+n], nil)
				if err != nil {
					return 0, err
				}
				s.rest, s.buffered = b, s.buffered[2+n:]
				continue
			}
		}
		k := copy(s.rbuf, s.buffered)
		m, err := s.Conn.Read(s.rbuf[k:])
		s.buffered = s.rbuf[:k+m]
		if m == 0 && err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

var _ io.ReadWriter = (*sealed)(nil)
