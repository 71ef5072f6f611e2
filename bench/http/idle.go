//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/internal/adminsock"
)

// idle is what one idle connection costs a peer, in KiB of resident memory.
type idle struct{ small, large float64 }

// perSource is how many connections come from one loopback address: gateways
// limit those of one client.
const perSource = 200

// measureIdle finds what an idle connection costs each peer, after a small
// answer on it, and after a large one on others: the growth of its resident
// memory. The peers are fresh.
func (b *bench) measureIdle(ctx context.Context, rep *report, n int) error {
	for _, p := range b.peers {
		if p.extra {
			continue
		}
		fmt.Fprintf(os.Stderr, "%d idle connections, %s\n", 2*n, p.name)
		if err := b.idle(ctx, rep, p, n); err != nil {
			return fmt.Errorf("idle connections, %s: %w", p.name, err)
		}
	}
	rep.idleConns = n
	return nil
}

func (b *bench) idle(ctx context.Context, rep *report, p *peer, n int) error {
	var open []*client
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	grow := func(k int, path string) (kib float64, err error) {
		before, err := b.resident(ctx, p)
		if err != nil {
			return 0, err
		}
		more, err := b.open(ctx, p, k, path)
		open = append(open, more...)
		if err == nil {
			err = wait(ctx, 2*time.Second)
		}
		if err != nil {
			return 0, err
		}
		after, err := b.resident(ctx, p)
		return float64(after-before) / float64(k), err
	}
	for _, path := range []string{"/1k", "/100k"} { // what the first connections alone cost
		if _, err := grow(50, path); err != nil {
			return err
		}
	}
	small, err := grow(n, "/1k")
	if err != nil {
		return err
	}
	large, err := grow(n, "/100k")
	rep.idle[p] = idle{small, large}
	return err
}

// resident returns the memory of p in KiB. Yumen collects its garbage before:
// that of the handshakes goes when the next requests need room, and says nothing
// of the connections. The peers have given theirs back.
func (b *bench) resident(ctx context.Context, p *peer) (int, error) {
	if p.admin != "" {
		if err := adminsock.NewClient(p.admin).Do(ctx, "POST", "/memory/free", nil, nil); err != nil {
			return 0, fmt.Errorf("free memory: %w", err)
		}
	}
	return p.memory("VmRSS")
}

// open opens n connections and gets path once on each, eight at a time.
func (b *bench) open(ctx context.Context, p *peer, n int, path string) ([]*client, error) {
	var mu sync.Mutex
	var out []*client // guarded by mu
	var g errgroup.Group
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1+byte(i/perSource/250), 1+byte(i/perSource%250))}}
			c, err := b.dialBy(ctx, d, p)
			if err != nil {
				return err
			}
			mu.Lock()
			out = append(out, c)
			mu.Unlock()
			return c.get(path)
		})
	}
	return out, g.Wait()
}

// many is what became of very many connections at once.
type many struct {
	conns, served, failed int
	opened, took          time.Duration // to open them; for the requests
	resident              int           // KiB
}

// measureMany opens n connections to a Yumen of its own that has two cores, and
// sends requests over all of them.
func (b *bench) measureMany(ctx context.Context, rep *report, yumen string, n int) error {
	fmt.Fprintf(os.Stderr, "%d connections\n", n)
	if err := b.layoutCopy("many", b.ManyPort, b.ManyMetrics); err != nil {
		return err
	}
	cmd, err := b.spawn("many", []string{"GOMAXPROCS=2"}, yumen, "gateway", "run", "-c", b.at("many/yumen.yaml"))
	if err != nil {
		return err
	}
	p := &peer{name: "many", port: b.ManyPort, cmd: cmd, admin: b.at("many/state/admin.sock")}
	if err := b.ready(ctx, p); err != nil {
		return fmt.Errorf("start yumen for many connections: %w", err)
	}
	m := &many{conns: n}
	begin := time.Now()
	open, err := b.open(ctx, p, n, "/1k")
	defer func() {
		for _, c := range open {
			c.Close()
		}
		_ = cmd.Process.Signal(os.Interrupt)
	}()
	m.opened = time.Since(begin)
	if err != nil {
		return fmt.Errorf("open %d connections: %w", n, err)
	}
	const walkers, rounds = 64, 2
	begin = time.Now()
	var mu sync.Mutex
	var faults []error // guarded by mu
	var g errgroup.Group
	for w := range walkers {
		g.Go(func() error {
			for range rounds {
				for i := w; i < len(open); i += walkers {
					if err := open[i].get("/1k"); err != nil {
						mu.Lock()
						faults = append(faults, err)
						mu.Unlock()
					}
				}
			}
			return nil
		})
	}
	_ = g.Wait() // faults has what failed
	m.took = time.Since(begin)
	m.failed = len(faults)
	m.served = rounds*len(open) - m.failed
	if m.resident, err = b.resident(ctx, p); err != nil {
		return err
	}
	rep.many = m
	if m.failed > 0 {
		fmt.Fprintln(os.Stderr, "of the failed requests:", errors.Join(faults[:min(3, len(faults))]...))
	}
	return nil
}
