//go:build linux

package main

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const (
	batch  = 64 << 10 // bytes of a large write: four records
	record = 16 << 10 // payload of a record, and of a write
	inTurn = 4 << 20  // bytes of one way before it is the next one's turn
	turns  = 6        // of each in a round
)

// bulk compares E053, the sending side, with its cipher in memory and with its
// cipher over TCP without a protocol.
type bulk struct {
	on      cores
	aead    cipher.AEAD
	ours    *lane
	bare    *lane
	results []*row
	err     error
}

// lane is a connection, and what drains it.
type lane struct {
	write io.Writer
	conns []net.Conn
	done  chan error
}

func newBulk(m *material, on cores) *bulk {
	b := &bulk{on: on, results: []*row{
		{name: "bulk E053, writes of 64 KiB, sending side / bare SM4-GCM seal of 16 KiB in memory", goal: 0.92, atLeast: true},
		{name: "bulk E053, writes of 16 KiB, sending side / the same", none: true},
		{name: "bulk E053, writes of 16 KiB, sending side / same cipher over bare TCP", goal: 0.97, atLeast: true},
		{name: "bulk E053, writes of 64 KiB, sending side / same cipher over bare TCP, one record a write", none: true},
		{name: "bulk E053, writes of 64 KiB, sending side", unit: " MB/s", none: true},
		{name: "bulk E053, writes of 16 KiB, sending side", unit: " MB/s", none: true},
		{name: "same cipher over bare TCP, sending side", unit: " MB/s", none: true},
		{name: "bare SM4-GCM seal, 16 KiB", unit: " MB/s", none: true},
	}}
	b.err = b.open(m)
	return b
}

func (b *bulk) rows() []*row { return b.results }

func (b *bulk) open(m *material) (err error) {
	if b.aead, err = sm4gcm.New(make([]byte, sm4gcm.KeySize)); err != nil {
		return err
	}
	s, c, err := sockets()
	if err != nil {
		return err
	}
	server, client := tlcp.Server(s, m.tlcpServer), tlcp.Client(c, m.tlcpClient)
	shook := make(chan error, 1)
	go func() { shook <- client.HandshakeContext(context.Background()) }()
	if err := errors.Join(server.HandshakeContext(context.Background()), <-shook); err != nil {
		return err
	}
	b.ours = newLane(server, []net.Conn{server, client}, func() error { return drain(b.on.client, client, nil) })
	x, y, err := sockets()
	if err != nil {
		return err
	}
	w := &bareWriter{conn: x, aead: b.aead}
	b.bare = newLane(w, []net.Conn{x, y}, func() error { return drain(b.on.client, y, b.aead) })
	return nil
}

func newLane(w io.Writer, conns []net.Conn, drain func() error) *lane {
	l := &lane{write: w, conns: conns, done: make(chan error, 1)}
	go func() { l.done <- drain() }()
	return l
}

// drain reads until the end: plain bytes from a TLCP connection, sealed frames
// from a bare one, which it opens.
func drain(core int, c net.Conn, aead cipher.AEAD) error {
	if err := pin(core); err != nil {
		return err
	}
	buf, nonce := make([]byte, 5+record+2048), make([]byte, sm4gcm.NonceSize)
	for {
		if aead == nil {
			if _, err := c.Read(buf); err != nil {
				return nil // closed
			}
			continue
		}
		if _, err := io.ReadFull(c, buf[:5]); err != nil {
			return nil
		}
		frame := buf[5 : 5+int(binary.BigEndian.Uint16(buf[3:]))]
		if _, err := io.ReadFull(c, frame); err != nil {
			return err
		}
		copy(nonce[4:], frame[:8])
		if _, err := aead.Open(frame[8:8], nonce, frame[8:], buf[:5]); err != nil {
			return err
		}
	}
}

// bareWriter puts each write into a frame: five bytes of header, eight of
// nonce, the sealed bytes; what a record is, without a protocol around it.
type bareWriter struct {
	conn  net.Conn
	aead  cipher.AEAD
	seq   uint64
	nonce [sm4gcm.NonceSize]byte
	buf   [5 + 8 + record + sm4gcm.Overhead]byte
}

func (w *bareWriter) Write(p []byte) (int, error) {
	binary.BigEndian.PutUint64(w.nonce[4:], w.seq)
	w.seq++
	copy(w.buf[5:], w.nonce[4:])
	binary.BigEndian.PutUint16(w.buf[3:], uint16(8+len(p)+sm4gcm.Overhead))
	out := w.aead.Seal(w.buf[:13], w.nonce[:], p, w.buf[:5])
	_, err := w.conn.Write(out)
	return len(p), err
}

func (b *bulk) round() error {
	if b.err != nil {
		return b.err
	}
	type costs struct {
		d   [4]time.Duration
		err error
	}
	out := make(chan costs, 1)
	go func() { // the sender, on its core
		var c costs
		c.err = pin(b.on.server)
		large := make([]byte, batch)
		text, nonce, sealed := large[:record], make([]byte, sm4gcm.NonceSize), make([]byte, 0, record+sm4gcm.Overhead)
		ways := []struct {
			size int
			f    func() error
		}{
			{batch, func() error { _, err := b.ours.write.Write(large); return err }},
			{record, func() error { _, err := b.ours.write.Write(text); return err }},
			{record, func() error { _, err := b.bare.write.Write(text); return err }},
			{record, func() error { b.aead.Seal(sealed, nonce, text, nil); return nil }},
		}
		for range turns {
			for i, w := range ways {
				start := threadCPU()
				for n := 0; n < inTurn && c.err == nil; n += w.size {
					c.err = w.f()
				}
				c.d[i] += threadCPU() - start
			}
		}
		out <- c
	}()
	c := <-out
	if c.err != nil {
		return c.err
	}
	large, small, bare, memory := c.d[0].Seconds(), c.d[1].Seconds(), c.d[2].Seconds(), c.d[3].Seconds()
	const megabytes = float64(turns*inTurn) / 1e6
	for i, v := range []float64{
		memory / large, memory / small, bare / small, bare / large,
		megabytes / large, megabytes / small, megabytes / bare, megabytes / memory,
	} {
		b.results[i].add(v)
	}
	return nil
}

func (b *bulk) close() {
	for _, l := range []*lane{b.ours, b.bare} {
		if l == nil {
			continue
		}
		for _, c := range l.conns {
			c.Close()
		}
		<-l.done
	}
}
