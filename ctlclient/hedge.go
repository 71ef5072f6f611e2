package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/crypto/envelope"
)

// hedge is one more try of a message that has no answer yet.
type hedge struct {
	after time.Duration // since the message was given to post
	fresh bool          // over a connection of its own; else a kept one that is free
}

// hedges are the tries after the first, all with the same msgId. A silently
// dead path costs the first step and a handshake, less than the 3 s of clause
// 7.2. A path with a round trip of a second and losses needs the ones on kept
// connections: a handshake of three round trips would come too late there.
var hedges = [...]hedge{
	{700 * time.Millisecond, true},
	{700 * time.Millisecond, false},
	{1200 * time.Millisecond, false},
	{1700 * time.Millisecond, false},
	{3 * time.Second, true},
	{6 * time.Second, true},
}

// The bounds of what hedging may add to the load of a control center that is
// merely slow, a link.
const (
	hedgeBurst = 48
	hedgeRate  = 4 // a second
)

// budget is a token bucket on the monotonic clock. The zero value is full.
type budget struct {
	mu   sync.Mutex
	used float64   // guarded by mu
	at   time.Time // guarded by mu
}

// take takes one token and reports whether there was one.
func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if !b.at.IsZero() {
		b.used = max(0, b.used-hedgeRate*now.Sub(b.at).Seconds())
	}
	b.at = now
	if b.used+1 > hedgeBurst {
		return false
	}
	b.used++
	return true
}

// post seals body under h, sends it and returns the checked answer. A message
// that is urgent goes again, by [hedges], while no answer comes.
//
// An error that wraps [ErrDown] says nothing about the message; a
// [*RefusedError] does.
func (c *caller) post(ctx context.Context, path string, h envelope.Header, body []byte, urgent bool) (*envelope.Message, error) {
	h.Receiver = c.cfg.controlID
	m := c.keys.Load()
	raw, err := m.sender.Seal(h, body, m.sealTo)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", h.MsgType, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.timeout)
	defer cancel()
	if !urgent {
		return c.exchange(ctx, c.kept, path, h.MsgType, raw)
	}
	return c.hedged(ctx, func(ctx context.Context, client *http.Client) (*envelope.Message, error) {
		return c.exchange(ctx, client, path, h.MsgType, raw)
	})
}

// hedged calls try, again by [hedges], and returns the first answer; without
// one, the first error. A try that lost goes on for its time, beside its caller:
// its connection is warm, or it is dead and gets known as such.
func (c *caller) hedged(ctx context.Context, try func(context.Context, *http.Client) (*envelope.Message, error)) (*envelope.Message, error) {
	type answer struct {
		m   *envelope.Message
		err error
	}
	answers := make(chan answer, len(hedges)+1)
	own, cancel := context.WithTimeout(c.life, c.cfg.timeout)
	gaveUp := context.AfterFunc(ctx, cancel)
	var tries sync.WaitGroup
	running, next := 0, 0
	start := func(client *http.Client) {
		running++
		tries.Add(1)
		c.tries.Go(func() {
			defer tries.Done()
			m, err := try(own, client)
			answers <- answer{m, err}
		})
	}
	began := time.Now()
	start(c.kept)
	defer func() {
		gaveUp()
		c.tries.Go(func() { tries.Wait(); cancel() })
	}()
	timer := time.NewTimer(hedges[0].after)
	defer timer.Stop()
	again := func() {
		client := c.kept
		if hedges[next].fresh {
			client = c.fresh
		}
		if next++; next < len(hedges) {
			timer.Reset(time.Until(began.Add(hedges[next].after)))
		}
		if c.hedges.take() {
			start(client)
		}
	}
	var first error
	for {
		select {
		case <-timer.C:
			again()
		case a := <-answers:
			running--
			var refused *RefusedError
			if a.err == nil || errors.As(a.err, &refused) {
				return a.m, a.err
			}
			if first == nil {
				first = a.err
			}
			if running == 0 && next == 0 { // a connection that broke says little: once more at once
				again()
			}
			if running == 0 {
				return a.m, first
			}
		case <-ctx.Done():
			if first == nil {
				first = down(ctx.Err())
			}
			return nil, first
		}
	}
}
