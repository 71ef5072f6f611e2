package bpf

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

const (
	samplesPerSecond = 1000
	sampleEvery      = 250 * time.Millisecond
	rebuildEvery     = 30 * time.Second
	noSamples        = 1<<32 - 1 // a mask: one in 2^32
)

type eventStats struct{ knocks, drops atomic.Uint64 }

// Counters is how many packets had each verdict since the maps were made.
type Counters [families][verdicts]uint64

// Dropped returns the drops of all families; knocks are none.
func (c *Counters) Dropped() (n uint64) {
	for f := range c {
		for v := DropMalformed; v < verdicts; v++ {
			if v != TakeKnock {
				n += c[f][v]
			}
		}
	}
	return n
}

// Counters returns the counters of all CPUs together.
func (g *Guard) Counters() (c Counters, err error) {
	m := g.maps[guardMapCounters]
	var perCPU []uint64
	var key uint32
	it := m.Iterate()
	for it.Next(&key, &perCPU) {
		for _, n := range perCPU {
			c[key/verdicts][key%verdicts] += n
		}
	}
	if err := it.Err(); err != nil {
		return c, fmt.Errorf("read guard counters: %w", err)
	}
	return c, nil
}

// Run tells of knocks and sampled drops, adapts the sampling to the rate of
// drops and keeps the prefilter small, until ctx is done. Either function may
// be nil; each is called by one goroutine.
func (g *Guard) Run(ctx context.Context, onKnock func(Knock), onDrop func(Drop)) error {
	var group errgroup.Group
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := g.adapt(); err != nil {
		return err
	}
	g.tune.store32(tuneSample, 0)
	defer g.tune.store32(tuneSample, noSamples)
	read := func(name string, take func([]byte)) error {
		r, err := ringbuf.NewReader(g.maps[name])
		if err != nil {
			return fmt.Errorf("read guard events: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { r.Close() })
		group.Go(func() error {
			defer cancel()
			defer stop()
			defer r.Close()
			var rec ringbuf.Record
			for {
				switch err := r.ReadInto(&rec); {
				case errors.Is(err, ringbuf.ErrClosed):
					return nil
				case err != nil:
					return fmt.Errorf("read guard events: %w", err)
				}
				take(rec.RawSample)
			}
		})
		return nil
	}
	err := read(guardMapKnocks, func(b []byte) {
		if e, ok := event[guardKnockEvent](b); ok && onKnock != nil {
			g.stats.knocks.Add(1)
			n := min(int(e.Length), len(e.Data))
			onKnock(Knock{Alias: aliasOf(e.Alias), Source: netip.AddrPortFrom(addressOf(e.Source.W), swap(e.SourcePort)), Data: e.Data[:n]})
		}
	})
	if err == nil {
		err = read(guardMapDrops, func(b []byte) {
			if e, ok := event[guardDropEvent](b); ok && onDrop != nil {
				g.stats.drops.Add(1)
				onDrop(Drop{
					Source: netip.AddrPortFrom(addressOf(e.Source.W), swap(e.SourcePort)), Port: swap(e.Port), Protocol: e.Protocol,
					Family: Family(e.Family), Verdict: Verdict(e.Verdict), Weight: e.Weight, Length: e.Length,
				})
			}
		})
	}
	if err != nil {
		cancel()
		return errors.Join(err, group.Wait())
	}
	group.Go(func() error {
		defer cancel()
		sample, rebuild := time.NewTicker(sampleEvery), time.NewTicker(rebuildEvery)
		defer sample.Stop()
		defer rebuild.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-sample.C:
				if err := g.adapt(); err != nil {
					return err
				}
				if !g.crowded() {
					continue
				}
			case <-rebuild.C:
			}
			if err := g.rebuildKnown(); err != nil {
				g.log.Warn("guard prefilter not rebuilt", zap.Error(err))
			}
		}
	})
	return group.Wait()
}

func event[T any](b []byte) (*T, bool) {
	if len(b) < int(unsafe.Sizeof(*new(T))) {
		return nil, false
	}
	return (*T)(unsafe.Pointer(&b[0])), true
}

// adapt chooses how many drops one sample stands for.
func (g *Guard) adapt() error {
	c, err := g.Counters()
	if err != nil {
		return err
	}
	g.cookies(&c)
	now := c.Dropped()
	rate := (now - g.sampled) * uint64(time.Second/sampleEvery)
	g.sampled = now
	var mask uint32
	if each := rate / samplesPerSecond; each > 0 {
		mask = 1<<min(bits.Len64(each), 31) - 1
	}
	g.tune.store32(tuneSample, mask)
	return nil
}

// calmFor is how long the rate must be below a half before SYN cookies end.
const calmFor = 5 * time.Second

// cookies switches SYN cookies by the rate of what comes to published ports.
func (g *Guard) cookies(c *Counters) {
	var n uint64
	for f := range c {
		n += c[f][PassPublished] + c[f][PassCookie] + c[f][DropRate]
	}
	rate := (n - g.published) * uint64(time.Second/sampleEvery)
	first := g.published == 0
	g.published = n
	limit := uint64(g.cfg.SYNCookies)
	on := g.tune.load32(tuneCookie) != 0
	switch {
	case limit == 0:
		if on { // of a configuration before
			g.tune.store32(tuneCookie, 0)
		}
	case rate >= limit && !first:
		g.stormy = Now()
		if !on {
			g.tune.store32(tuneCookie, 1)
			g.log.Warn("guard answers SYNs by cookies", zap.Uint64("packets_per_second", rate))
		}
	case rate >= limit/2:
		g.stormy = Now()
	case on && Now()-g.stormy > calmFor:
		g.tune.store32(tuneCookie, 0)
		g.log.Info("guard leaves SYNs to the stack again")
	}
}
