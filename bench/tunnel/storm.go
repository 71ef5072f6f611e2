//go:build linux

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/agent"
	"github.com/yumen-zt/yumen/test/testbed"
	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// storm holds n tunnels to a real gateway, restarts it, and lets everyone
// return by the agents' own schedule. What counts is the time from the first
// accepted return to the last, and how many tries it took.
func storm(n int, t *table) (err error) {
	o := &testbed.Suite{}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	defer o.Close()
	l := idleGateway(o, n)
	d, cfg, err := idleDialer(l)
	if err != nil {
		return err
	}
	dial := func(ctx context.Context) (*carrier.Client, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // as an agent waits
		defer cancel()
		c, err := d.Dial(ctx, testbed.Loopback(false, l.Port))
		if err != nil {
			return nil, err
		}
		return carrier.Connect(ctx, c, *cfg)
	}
	all, err := fill(n, func() (*carrier.Client, error) { return dial(context.Background()) })
	if err != nil {
		closeAll(all)
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	var tries atomic.Int64
	back := make([]time.Time, n)
	for i, c := range all {
		wg.Go(func() {
			defer func() { c.Close() }()
			<-c.Done()
			var b agent.Backoff
			for ctx.Err() == nil {
				tries.Add(1)
				again, err := dial(ctx)
				if err == nil {
					c, back[i] = again, time.Now()
					return
				}
				select {
				case <-time.After(b.Next(err)):
				case <-ctx.Done():
				}
			}
		})
	}
	stopped := time.Now()
	if err := l.Stop(); err != nil {
		return err
	}
	again := testbed.Run(o, "restarted gateway", "gateway", "run", "-c", filepath.Join(l.Dir, "gateway", "gateway.yaml"))
	wg.Wait()
	spent := pidCPU(again.PID())
	slices.SortFunc(back, time.Time.Compare)
	if back[0].IsZero() {
		return fmt.Errorf("an agent was not back within a minute")
	}
	took := back[n-1].Sub(back[0])
	verdict := "missed"
	if took <= 5*time.Second {
		verdict = "met"
	}
	t.row(fmt.Sprintf("gateway restarted under %d agents: first return to last", n), fmt.Sprintf("%.1f s", took.Seconds()), "≤ 5 s", verdict)
	t.row("of it: CPU of the gateway for a return, its start included", fmt.Sprintf("%.2f ms", spent/float64(n)*1000), "", "")
	t.row("of it: from the stop to the first return; tries an agent", fmt.Sprintf("%.1f s; %.1f", back[0].Sub(stopped).Seconds(), float64(tries.Load())/float64(n)), "", "")
	return nil
}
