//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// client speaks HTTP/1.1 on one connection.
type client struct {
	net.Conn
	r    *bufio.Reader
	head []byte // of a request, behind its path
}

// clientConfig is the TLS of our own client: TLS 1.3 and X25519 alone, which
// every peer has, and no resumption.
func clientConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: hostName,
		CurvePreferences: []tls.CurveID{tls.X25519}, NextProtos: []string{"http/1.1"},
	}
}

// dial connects to p: over TLS, except to the application itself.
func (b *bench) dial(ctx context.Context, p *peer) (*client, error) {
	return b.dialBy(ctx, net.Dialer{Timeout: 10 * time.Second}, p)
}

func (b *bench) dialBy(ctx context.Context, d net.Dialer, p *peer) (*client, error) {
	c, err := d.DialContext(ctx, "tcp", p.addr())
	if err != nil {
		return nil, err
	}
	if p != b.direct {
		t := tls.Client(c, b.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, fmt.Errorf("handshake: %w", err)
		}
		c = t
	}
	head := fmt.Appendf(nil, " HTTP/1.1\r\nHost: %s:%d\r\nCookie: %s\r\n\r\n", hostName, p.port, b.cookie)
	return &client{c, bufio.NewReaderSize(c, 4<<10), head}, nil
}

// sizes are what the application answers.
var sizes = map[string]int64{"/1k": 1 << 10, "/100k": 100 << 10}

// get sends one request and reads its answer whole.
func (c *client) get(path string) error {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(append([]byte("GET "+path), c.head...)); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, res.Body)
	res.Body.Close()
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK || n != sizes[path]:
		return fmt.Errorf("answered %s and %d bytes", res.Status, n)
	}
	return nil
}

// fullHandshakes makes new connections, one request on each, four at a time.
func fullHandshakes(ctx context.Context, b *bench, p *peer, _ time.Duration) (sample, error) {
	const parallel = 4
	start := time.Now()
	var g errgroup.Group
	for range parallel {
		g.Go(func() error {
			for range handshakes / parallel {
				c, err := b.dial(ctx, p)
				if err != nil {
					return err
				}
				err = c.get("/1k")
				c.Close()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return sample{}, err
	}
	return sample{requests: handshakes, rate: handshakes / time.Since(start).Seconds()}, nil
}

// openLoop sends requests at a fixed rate, whatever the answers do. The time of
// a request that an answer before it made late begins when it was due; one that
// only our own timer made late begins when it is sent.
func openLoop(ctx context.Context, b *bench, p *peer, d time.Duration) (sample, error) {
	var mu sync.Mutex
	var all []time.Duration // guarded by mu
	var g errgroup.Group
	conns := make([]*client, rateConns)
	for i := range conns {
		c, err := b.dial(ctx, p)
		if err != nil {
			return sample{}, err
		}
		defer c.Close()
		if err := c.get("/1k"); err != nil {
			return sample{}, err
		}
		conns[i] = c
	}
	const gap = time.Second / fixedRate
	start := time.Now()
	for i, c := range conns {
		g.Go(func() error {
			var times []time.Duration
			for due := start.Add(time.Duration(i) * gap); due.Sub(start) < d; due = due.Add(rateConns * gap) {
				begin := due
				if wait := time.Until(due); wait > 0 {
					time.Sleep(wait)
					begin = time.Now()
				}
				if err := c.get("/1k"); err != nil {
					return err
				}
				times = append(times, time.Since(begin))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return sample{}, err
	}
	if len(all) < 100 {
		return sample{}, errors.New("too few requests for a percentile")
	}
	slices.Sort(all)
	return sample{
		requests: len(all), rate: float64(len(all)) / time.Since(start).Seconds(),
		p50: all[len(all)/2], p99: all[len(all)*99/100],
	}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
