package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/memnet"
	"github.com/yumen-zt/yumen/test/roles"
)

// cell is one situation. during runs beside the load until its context ends.
type cell struct {
	name   string
	net    *memnet.Config // nil: loopback sockets
	load   int            // agents that report as often as 10,000 with an interval of 60 s
	during func(ctx context.Context, b *bench) error
}

var cells = []cell{
	{name: "idle"},
	{name: "rated", load: 50},
	{name: "cpu90", during: burn},
	{name: "delay200", net: &memnet.Config{Delay: 200 * time.Millisecond, Loss: .01, Seed: 1}},
	{name: "delay500", net: &memnet.Config{Delay: 500 * time.Millisecond, Loss: .01, Seed: 1}},
	{name: "blackhole", net: &memnet.Config{}, during: vanish},
	{name: "restart", during: restart},
	{name: "backlog", during: backlog},
	{name: "clock", during: step},
	{name: "planted", during: planted}, // 3.5 s of delay: must be FAIL
}

// burn keeps every processor busy for nine tenths of the time.
func burn(ctx context.Context, _ *bench) error {
	var all sync.WaitGroup
	for range runtime.NumCPU() {
		all.Go(func() {
			for ctx.Err() == nil {
				for began := time.Now(); time.Since(began) < 9*time.Millisecond; {
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	all.Wait()
	return nil
}

// each calls f every d until ctx ends.
func each(ctx context.Context, d time.Duration, f func() error) error {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := f(); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// vanish makes the packets of every open connection vanish, again and again.
func vanish(ctx context.Context, b *bench) error {
	return each(ctx, 2*time.Second, func() error { b.net.Vanish(); return nil })
}

// restart restarts the control center.
func restart(ctx context.Context, b *bench) error {
	return each(ctx, 10*time.Second, func() error {
		b.restarting.Lock()
		defer b.restarting.Unlock()
		if err := b.site.Stop(); err != nil {
			return err
		}
		return b.site.Start()
	})
}

// backlog lets a second gateway replay, whose outbox holds 100,000 alerts, and
// pulls the list again and again.
func backlog(ctx context.Context, b *bench) error {
	const records = 100_000
	p, err := b.site.Enrol(ctx, "gateway", "backlog")
	if err != nil {
		return err
	}
	out := ctlclient.NewMemory(ctlclient.MemoryConfig{})
	g, err := b.site.Gateway(p, func(c *ctlclient.GatewayConfig) {
		c.Outbox = out
		c.PullInterval = 100 * time.Millisecond
	})
	if err != nil {
		return err
	}
	defer g.Stop()
	for i := range records {
		if ctx.Err() != nil {
			return nil
		}
		g.Raise(alert.Alert{Code: alert.AppDown, Detail: fmt.Sprintf("backlog %d", i)})
		if i%512 == 511 {
			time.Sleep(time.Millisecond) // the queue before the outbox holds 1,024
		}
	}
	<-ctx.Done()
	return nil
}

// step sets both clocks an hour forward and back.
func step(ctx context.Context, b *bench) error {
	forward := false
	return each(ctx, 5*time.Second, func() error {
		forward = !forward
		if forward {
			b.offset.Store(int64(time.Hour))
		} else {
			b.offset.Store(0)
		}
		return nil
	})
}

// planted delays every alert's answer.
func planted(ctx context.Context, b *bench) error {
	_, err := b.site.Chaos(ctx, control.ChaosPlan{Steps: []control.ChaosStep{{Rules: []control.ChaosRule{
		{Fault: "delay", Match: "T22", For: control.Duration(3500 * time.Millisecond)},
	}}}})
	return err
}

// bench is one running cell.
type bench struct {
	site   *roles.Site
	net    *memnet.Network
	offset atomic.Int64 // of the wall clocks

	restarting sync.Mutex

	mu      sync.Mutex
	samples map[string][]time.Duration // guarded by mu
	outage  int                        // guarded by mu
}

func (b *bench) now() time.Time { return time.Now().Add(time.Duration(b.offset.Load())) }

func (b *bench) sink(link string) func(ctlclient.Delivery) {
	return func(d ctlclient.Delivery) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch {
		case d.Outage:
			b.outage++
		case d.Err != nil:
			b.samples[link+" "+d.Type] = append(b.samples[link+" "+d.Type], infinite)
		default:
			b.samples[link+" "+d.Type] = append(b.samples[link+" "+d.Type], d.Took)
		}
	}
}

func folder() (string, func(), error) {
	dir, err := os.MkdirTemp("", "budget")
	return dir, func() { os.RemoveAll(dir) }, err
}
