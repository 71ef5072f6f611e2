//go:build linux

package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const (
	small       = 64   // bytes of a message
	pingsInTurn = 1500 // round trips before it is the other's turn
	pingTurns   = 3
)

// pingPong compares messages of 64 bytes there and back with crypto/tls: what
// ours costs the server more must not exceed what its cipher costs more.
type pingPong struct {
	on      cores
	lanes   [2]*echoLane // ours, Go's
	aeads   [2]cipher.AEAD
	results []*row
	err     error
}

// echoLane is a server's end, and a client that sends pings when it is told.
type echoLane struct {
	server, client shaker
	pings          chan int
	done           chan error
}

func newPingPong(m *material, on cores) *pingPong {
	p := &pingPong{on: on, results: []*row{
		{name: "64 B ping-pong, server CPU: ours less crypto/tls, less what SM4-GCM costs more than AES-128-GCM", unit: " µs", goal: 0},
		{name: "64 B ping-pong TLCP, server CPU", unit: " µs", none: true},
		{name: "64 B ping-pong crypto/tls, server CPU", unit: " µs", none: true},
		{name: "open and seal 64 B, SM4-GCM", unit: " µs", none: true},
		{name: "open and seal 64 B, AES-128-GCM", unit: " µs", none: true},
	}}
	p.err = p.open(m)
	return p
}

func (p *pingPong) rows() []*row { return p.results }

func (p *pingPong) open(m *material) error {
	for i, make2 := range []func(s, c net.Conn) (shaker, shaker){
		func(s, c net.Conn) (shaker, shaker) {
			return tlcp.Server(s, m.tlcpServer), tlcp.Client(c, m.tlcpClient)
		},
		func(s, c net.Conn) (shaker, shaker) { return tls.Server(s, m.tlsServer), tls.Client(c, m.tlsClient) },
	} {
		s, c, err := sockets()
		if err != nil {
			return err
		}
		l := &echoLane{pings: make(chan int), done: make(chan error, 1)}
		l.server, l.client = make2(s, c)
		go func() { l.done <- l.send(p.on.client) }()
		if err := l.server.HandshakeContext(context.Background()); err != nil {
			return err
		}
		p.lanes[i] = l
	}
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		return err
	}
	if p.aeads[1], err = cipher.NewGCM(block); err != nil {
		return err
	}
	p.aeads[0], err = sm4gcm.New(make([]byte, sm4gcm.KeySize))
	return err
}

// send is the client.
func (l *echoLane) send(core int) error {
	if err := errors.Join(pin(core), l.client.HandshakeContext(context.Background())); err != nil {
		l.client.Close()
		return err
	}
	b := make([]byte, small)
	for n := range l.pings {
		for range n {
			if _, err := l.client.Write(b); err != nil {
				return err
			}
			if _, err := io.ReadFull(l.client, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *echoLane) turn(n int) (time.Duration, error) {
	l.pings <- n
	b := make([]byte, small)
	start := threadCPU()
	for range n {
		if _, err := io.ReadFull(l.server, b); err != nil {
			return 0, err
		}
		if _, err := l.server.Write(b); err != nil {
			return 0, err
		}
	}
	return threadCPU() - start, nil
}

func cipherCost(a cipher.AEAD, n int) (time.Duration, error) {
	nonce, text := make([]byte, 12), make([]byte, small)
	aad := make([]byte, 13)
	sealed := a.Seal(nil, nonce, text, aad)
	out := make([]byte, 0, small+16)
	start := threadCPU()
	for range n {
		if _, err := a.Open(out, nonce, sealed, aad); err != nil {
			return 0, err
		}
		a.Seal(out, nonce, text, aad)
	}
	return threadCPU() - start, nil
}

func (p *pingPong) round() error {
	if p.err != nil {
		return p.err
	}
	type costs struct {
		lane, aead [2]time.Duration
		err        error
	}
	out := make(chan costs, 1)
	go func() {
		var c costs
		c.err = pin(p.on.server)
		for range pingTurns {
			for i := range 2 {
				if c.err != nil {
					break
				}
				var d, e time.Duration
				var err error
				d, c.err = p.lanes[i].turn(pingsInTurn)
				e, err = cipherCost(p.aeads[i], pingsInTurn)
				c.lane[i], c.aead[i] = c.lane[i]+d, c.aead[i]+e
				c.err = errors.Join(c.err, err)
			}
		}
		out <- c
	}()
	c := <-out
	if c.err != nil {
		return c.err
	}
	each := func(d time.Duration) float64 { return d.Seconds() * 1e6 / (pingTurns * pingsInTurn) }
	more, cipherMore := each(c.lane[0]-c.lane[1]), each(c.aead[0]-c.aead[1])
	for i, v := range []float64{more - cipherMore, each(c.lane[0]), each(c.lane[1]), each(c.aead[0]), each(c.aead[1])} {
		p.results[i].add(v)
	}
	return nil
}

func (p *pingPong) close() {
	for _, l := range p.lanes {
		if l == nil {
			continue
		}
		close(l.pings)
		<-l.done
		l.server.Close()
		l.client.Close()
	}
}
