package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// fetch asks for path and returns when the answer begins; the caller reads and
// closes its body. A connection that stays silent is left for a fresh one.
func (c *caller) fetch(ctx context.Context, path string, head http.Header) (*http.Response, error) {
	type answer struct {
		resp *http.Response
		err  error
		stop context.CancelFunc
		n    int
	}
	const most = 2
	answers := make(chan answer, most)
	var stops [most]context.CancelFunc
	started := 0
	start := func(client *http.Client) {
		own, stop := context.WithCancel(ctx)
		n := started
		stops[n] = stop
		started++
		c.tries.Go(func() {
			req, err := http.NewRequestWithContext(own, http.MethodGet, c.base+path, nil)
			if err != nil {
				answers <- answer{nil, err, stop, n}
				return
			}
			if head != nil {
				req.Header = head.Clone()
			}
			resp, err := client.Do(req)
			if err != nil {
				err = down(err)
			}
			answers <- answer{resp, err, stop, n}
		})
	}
	start(c.kept)
	timer := time.NewTimer(hedges[0].after)
	defer timer.Stop()
	var first error
	for got := 0; ; {
		select {
		case <-timer.C:
			if started < most && c.hedges.take() {
				start(c.fresh)
			}
			continue
		case a := <-answers:
			got++
			if a.err == nil {
				for n, stop := range stops[:started] {
					if n != a.n {
						stop()
					}
				}
				if left := started - got; left > 0 {
					c.tries.Go(func() { // what comes too late
						for range left {
							if late := <-answers; late.resp != nil {
								late.resp.Body.Close()
							}
						}
					})
				}
				a.resp.Body = &fetched{a.resp.Body, a.stop}
				return a.resp, nil
			}
			a.stop()
			if first == nil {
				first = a.err
			}
			if got == started {
				return nil, first
			}
		}
	}
}

// fetched is the body of an answer; its end is the end of its request.
type fetched struct {
	io.ReadCloser
	stop context.CancelFunc
}

// Close implements [io.Closer].
func (f *fetched) Close() error {
	defer f.stop()
	return f.ReadCloser.Close()
}
