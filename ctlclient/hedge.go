package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
)

// The times of tries after the first, all with the same msgId. A silently dead
// path costs hedgeAfter and a handshake, less than the 3 s of clause 7.2. Where
// answers are known to take longer, the first hedge waits for what is usual,
// but never beyond hedgeLatest: it must still be in time.
const (
	hedgeAfter  = 700 * time.Millisecond
	hedgeLatest = 1200 * time.Millisecond
	hedgeStep   = 500 * time.Millisecond
)

// hedge is one more try of a message that has no answer yet.
type hedge struct {
	after time.Duration // since the message was given to post
	fresh bool          // over a connection of its own; else a kept one that is free
}

// plan returns the tries after the first. A handshake takes three round trips
// more than a kept connection: on a slow path those come first.
func (p *pace) plan() [5]hedge {
	usual := p.usual()
	d := min(max(usual, hedgeAfter), hedgeLatest)
	slow := usual > hedgeAfter
	return [...]hedge{{d, !slow}, {d + hedgeStep, false}, {d + 2*hedgeStep, !slow}, {3 * time.Second, true}, {6 * time.Second, true}}
}

// rescueFrom is how many of the tries of a plan there are before those for
// which a message need not have a hedge.
const rescueFrom = 3

// streams are the tries of a push stream: each on a connection of its own, for
// that is all that the connection is used for. A path on which a handshake takes
// long gets the time for it.
func (p *pace) streams() []hedge {
	d := max(hedgeAfter, 4*p.usual())
	return []hedge{{0, true}, {d, true}, {2 * d, true}}
}

// twice are the tries of a request whose answer is no message: over a kept
// connection, and when that stays silent once more.
func (p *pace) twice() []hedge {
	usual := p.usual()
	return []hedge{{0, false}, {max(hedgeAfter, 2*usual), usual <= hedgeAfter}}
}

// pace is how long answers take once there is a connection: mean and deviation
// as RFC 6298 has them for round trips. The zero value knows nothing yet.
type pace struct {
	mu   sync.Mutex
	mean time.Duration // guarded by mu; 0: nothing known
	dev  time.Duration // guarded by mu
}

// took notes an answer.
func (p *pace) took(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mean == 0 {
		p.mean, p.dev = d, d/2
		return
	}
	p.dev += ((d - p.mean).Abs() - p.dev) / 4
	p.mean += (d - p.mean) / 8
}

// usual is what an answer seldom takes longer than.
func (p *pace) usual() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mean + 4*p.dev
}

// The bounds of what hedging may add to the load of a control center that is
// merely slow. A link begins with a few hedges and earns more by answers that
// come in time, a fifth of one each. When a hedge is answered before the tries
// ahead of it the path was at fault, and nothing is taken for it, nor for the
// first message, which waits for a handshake. So a control center that answers
// nobody in time soon gets each message once.
const (
	hedgeStart = 4
	hedgeMost  = 24
	hedgeEarns = 0.2
	hedgeIdle  = 30 * time.Second // earns one, up to hedgeStart
)

// budget holds the hedges that a link may send, by the monotonic clock. The
// zero value holds hedgeStart.
type budget struct {
	mu   sync.Mutex
	used float64   // guarded by mu; below hedgeStart; negative when more were earned
	at   time.Time // guarded by mu

	sent, won, withheld atomic.Uint64
}

// take takes one hedge and reports whether there was one.
func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if !b.at.IsZero() && b.used > 0 {
		b.used = max(0, b.used-float64(now.Sub(b.at))/float64(hedgeIdle))
	}
	b.at = now
	if b.used+1 > hedgeStart {
		b.withheld.Add(1)
		return false
	}
	b.used++
	b.sent.Add(1)
	return true
}

// settle judges a message that the n-th try has answered, after hedges tries
// more than the first; inTime says that none was due, cold that nothing was
// known of the path.
func (b *budget) settle(n, hedges int, inTime, cold bool) {
	back := 0.0
	switch {
	case inTime:
		back = hedgeEarns
	case n > 0:
		b.won.Add(1)
		back = float64(hedges)
	case cold:
		back = float64(hedges)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used = max(hedgeStart-hedgeMost, b.used-back)
}

// Hedges counts tries after the first since the start.
type Hedges struct {
	Sent     uint64 `json:"sent"`
	Won      uint64 `json:"won"`      // answered before the tries ahead of them
	Withheld uint64 `json:"withheld"` // not sent: the budget was used up
}

func (b *budget) stats() Hedges { return Hedges{b.sent.Load(), b.won.Load(), b.withheld.Load()} }

// post seals body under h, sends it and returns the checked answer. A message
// that is urgent goes again, by the budget, while no answer comes. One that is
// refused for its sending time is sealed once more: a clock was set meanwhile.
//
// An error that wraps [ErrDown] says nothing about the message; a
// [*RefusedError] does.
func (c *caller) post(ctx context.Context, path string, h envelope.Header, body []byte, urgent bool) (*envelope.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.timeout)
	defer cancel()
	m, err := c.send(ctx, path, h, body, urgent)
	var no *RefusedError
	if errors.As(err, &no) && no.Reason == reason.MessageSkew {
		m, err = c.send(ctx, path, h, body, urgent)
	}
	return m, err
}

func (c *caller) send(ctx context.Context, path string, h envelope.Header, body []byte, urgent bool) (*envelope.Message, error) {
	h.Receiver = c.cfg.controlID
	m := c.keys.Load()
	raw, err := m.sender.Seal(h, body, m.sealTo)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", h.MsgType, err)
	}
	if !urgent {
		return c.exchange(ctx, c.kept, path, h.MsgType, raw)
	}
	return c.hedged(ctx, func(ctx context.Context, client *http.Client) (*envelope.Message, error) {
		return c.exchange(ctx, client, path, h.MsgType, raw)
	})
}

// hedged calls try, again by [pace.plan], and returns the first answer; without
// one, the first error. A try that lost goes on for its time, beside its caller:
// its connection is warm, or it is dead and gets known as such.
func (c *caller) hedged(ctx context.Context, try func(context.Context, *http.Client) (*envelope.Message, error)) (*envelope.Message, error) {
	type answer struct {
		n     int // of the try
		fresh bool
		m     *envelope.Message
		err   error
	}
	plan, cold := c.pace.plan(), c.pace.usual() == 0
	answers := make(chan answer, len(plan)+2)
	own, cancel := context.WithTimeout(c.life, c.cfg.timeout)
	gaveUp := context.AfterFunc(ctx, cancel)
	var tries sync.WaitGroup
	started, running, next := 0, 0, 0
	start := func(client *http.Client) {
		n := started
		started++
		running++
		tries.Add(1)
		c.tries.Go(func() {
			defer tries.Done()
			began := time.Now() // of the wait for the answer: there may be no connection yet
			m, err := try(httptrace.WithClientTrace(own, &httptrace.ClientTrace{
				GotConn: func(httptrace.GotConnInfo) { began = time.Now() },
			}), client)
			if answered(err) {
				c.silences.heard()
				if n == 0 {
					c.pace.took(time.Since(began))
				}
			}
			answers <- answer{n, client == c.fresh, m, err}
		})
	}
	began := time.Now()
	back := c.silences.begin()
	defer c.silences.end()
	start(c.kept)
	defer func() {
		gaveUp()
		c.tries.Go(func() { tries.Wait(); cancel() })
	}()
	timer := time.NewTimer(plan[0].after)
	defer timer.Stop()
	rescues := false
	again := func() {
		client := c.kept
		if plan[next].fresh {
			client = c.fresh
		}
		if next++; next < len(plan) {
			timer.Reset(time.Until(began.Add(plan[next].after)))
		}
		switch {
		case c.hedges.take():
			start(client)
		case next > rescueFrom && c.rescuing.CompareAndSwap(false, true):
			// Every connection may be dead, and no hedge is left to find out: one
			// message of the link may go again even so.
			rescues = true
			start(client)
		}
	}
	defer func() {
		if rescues {
			c.rescuing.Store(false)
		}
	}()
	var first error
	for {
		select {
		case <-timer.C:
			again()
		case <-back:
			if back = nil; time.Since(began) >= suspectAfter {
				start(c.kept)
			}
		case a := <-answers:
			running--
			if answered(a.err) {
				c.hedges.settle(a.n, started-1, next == 0, cold)
				c.leave(a.fresh && running > 0)
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

// leave closes the kept connections that are idle when a fresh one was answered
// while a kept one stayed silent: they are probably as dead, and each would cost
// the next messages the wait for a hedge. The messages that wait on others go
// again at once.
func (c *caller) leave(freshWon bool) {
	if freshWon {
		c.kept.CloseIdleConnections()
		c.silences.broken()
	}
}

// answered reports whether err, of a try, is the control center's answer.
func answered(err error) bool {
	var refused *RefusedError
	return err == nil || errors.As(err, &refused)
}

// fetch asks for path, by tries, the first of them at once, and returns when the
// answer begins; the caller reads and closes its body.
func (c *caller) fetch(ctx context.Context, path string, head http.Header, tries []hedge) (*http.Response, error) {
	type answer struct {
		n    int // of the try
		resp *http.Response
		err  error
	}
	answers := make(chan answer, len(tries))
	var stops []context.CancelFunc
	start := func(client *http.Client) {
		n := len(stops)
		own, stop := context.WithCancel(ctx)
		stops = append(stops, stop)
		c.tries.Go(func() {
			req, err := http.NewRequestWithContext(own, http.MethodGet, c.base+path, nil)
			if err != nil {
				answers <- answer{n, nil, err}
				return
			}
			if head != nil {
				req.Header = head.Clone()
			}
			resp, err := client.Do(req)
			if err != nil {
				err = down(err)
			}
			answers <- answer{n, resp, err}
		})
	}
	client := map[bool]*http.Client{false: c.kept, true: c.fresh}
	began, cold := time.Now(), c.pace.usual() == 0
	start(client[tries[0].fresh])
	timer := time.NewTimer(hedgeAfter)
	defer timer.Stop()
	await := func(next int) {
		if next < len(tries) {
			timer.Reset(time.Until(began.Add(tries[next].after)))
		}
	}
	next := 1
	await(next)
	var first error
	for got := 0; ; {
		select {
		case <-timer.C:
			if next < len(tries) {
				if c.hedges.take() {
					start(client[tries[next].fresh])
				}
				next++
				await(next)
			}
		case a := <-answers:
			got++
			if a.err != nil {
				stops[a.n]()
				if first == nil {
					first = a.err
				}
				if got == len(stops) {
					return nil, first
				}
				continue
			}
			c.hedges.settle(a.n, len(stops)-1, next == 1 && time.Since(began) < hedgeLatest, cold)
			c.leave(a.n > 0 && !tries[0].fresh)
			for n, stop := range stops {
				if n != a.n {
					stop()
				}
			}
			if left := len(stops) - got; left > 0 {
				c.tries.Go(func() { // what comes too late
					for range left {
						if late := <-answers; late.resp != nil {
							late.resp.Body.Close()
						}
					}
				})
			}
			a.resp.Body = &fetched{a.resp.Body, stops[a.n]}
			return a.resp, nil
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
