package main

import (
	"context"
	"fmt"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/test/badpath"
)

// cell is one situation. during runs beside the load until its context ends.
type cell struct {
	name    string
	path    *badpath.RelayConfig // of the links; nil: loopback
	ns      bool                 // in a network namespace of its own
	senders int                  // gateways, and agents, that are timed; default 4: their reports follow timers, and many timers make an open loop
	rows    int                  // grants in the list
	load    func(b *bench, o options) (plan, error)
	during  func(ctx context.Context, b *bench) error
}

var cells = []cell{
	{name: "idle"},
	{name: "rated", load: rated},
	{name: "cpu90", load: func(*bench, options) (plan, error) { return plan{Busy: .9}, nil }},
	{name: "delay200", senders: 12, path: &badpath.RelayConfig{Delay: 200 * time.Millisecond, Loss: .01, Seed: 1}},
	{name: "delay500", senders: 12, path: &badpath.RelayConfig{Delay: 500 * time.Millisecond, Loss: .01, Seed: 1}},
	{name: "blackhole", ns: true, during: vanish},
	{name: "restart", during: restart},
	{name: "outage", ns: true, during: outage},
	{name: "backlog", rows: 100_000, during: backlog},
	{name: "clock", during: step},
	{name: "planted", during: planted}, // 3.5 s of delay: must be FAIL
}

func cellOf(name string) (cell, error) {
	for _, c := range cells {
		if c.name == name {
			return c, nil
		}
	}
	return cell{}, fmt.Errorf("no cell %q", name)
}

// drain is how long the outboxes may take to empty afterwards. With the planted
// delay they need not: the first answers are enough.
func (c cell) drain() time.Duration {
	if c.name == "planted" {
		return 4 * time.Second
	}
	return 30 * time.Second
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
	return each(ctx, 2*time.Second, func() error {
		n, err := b.kernel.Vanish(nil)
		b.vanished += n
		return err
	})
}

// restart restarts the control center.
func restart(ctx context.Context, b *bench) error {
	every := 10 * time.Second
	if b.quick {
		every = 3 * time.Second
	}
	return each(ctx, every, func() error {
		b.restarting.Lock()
		defer b.restarting.Unlock()
		defer b.away()()
		if err := b.site.Stop(); err != nil {
			return err
		}
		return b.site.Start()
	})
}

// outage lets no packet pass for a while.
func outage(ctx context.Context, b *bench) error {
	every, long := 18*time.Second, 8*time.Second
	if b.quick {
		every, long = 6*time.Second, 2*time.Second
	}
	return each(ctx, every, func() error {
		back := b.away()
		if err := b.kernel.Cut(); err != nil {
			return err
		}
		time.Sleep(long)
		defer back()
		return b.kernel.Mend()
	})
}

// backlog lets another gateway replay, whose outbox holds 100,000 alerts, and
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
	b.note("%d lists of %d rows pulled beside, %d of %d backlog alerts replayed", listsOf(g), rowsOf(g), g.Status().Outbox[ctlclient.ClassAlert].Acked, records)
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

// planted delays every answer to an agent's alert.
func planted(ctx context.Context, b *bench) error {
	_, err := b.site.Chaos(ctx, control.ChaosPlan{Steps: []control.ChaosStep{{Rules: []control.ChaosRule{
		{Fault: "delay", Match: "T22", For: control.Duration(3500 * time.Millisecond)},
		{Fault: "delay", Match: "/ztna/v1/agent/outbox", For: control.Duration(3500 * time.Millisecond)}, // several in one message
	}}}})
	return err
}
