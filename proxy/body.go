package proxy

import (
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

var errBodyStopped = errors.New("proxy: the request's body is not read any more")

// body reads a request's body under the limits: its size, and a least rate
// that counts only the time spent in waiting for the client. The upstream's
// engine may still be reading it when the answer is complete; stop ends that
// before the stream goes back to its front end.
type body struct {
	x       *Exchange
	l       *Limits
	trickle bool // a stream of messages: no least rate

	touched atomic.Bool
	stopped atomic.Bool
	fault   atomic.Uint32 // a reason.Reason

	slow *time.Timer // of the read in progress

	mu     sync.Mutex    // held while reading
	total  int64         // guarded by mu
	waited time.Duration // guarded by mu
	ended  bool          // guarded by mu
}

func newBody(x *Exchange, l *Limits) *body {
	b := &body{x: x, l: l, trickle: strings.HasPrefix(x.Header.Get("Content-Type"), "application/grpc")}
	// A timer and not a deadline: on HTTP/2 a deadline that passes between two
	// reads would end the stream of a client that is fast enough.
	b.slow = time.AfterFunc(time.Hour, func() {
		_ = b.fail(reason.BodyTooSlow)
		x.WakeReader()
	})
	b.slow.Stop()
	return b
}

// Read reads from the client.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.touched.Store(true)
	if b.ended {
		return 0, io.EOF
	}
	if why := b.why(); why != reason.OK {
		return 0, denied(why, "request body")
	}
	if !b.trickle {
		allowed := b.l.BodyGrace + time.Duration(b.total/b.l.BodyRate)*time.Second - b.waited
		if allowed <= 0 {
			return 0, b.fail(reason.BodyTooSlow)
		}
		b.slow.Reset(allowed)
		defer b.slow.Stop()
	}
	if _, cut := b.x.CutReason(); cut || b.stopped.Load() {
		return 0, errBodyStopped
	}
	start := time.Now()
	n, err := b.x.Body.Read(p)
	b.waited += time.Since(start)
	b.total += int64(n)
	b.x.BytesIn.Add(int64(n))
	if b.total > b.l.BodyBytes && b.l.BodyBytes > 0 {
		return 0, b.fail(reason.BodyTooLarge)
	}
	switch {
	case err == nil:
	case err == io.EOF:
		b.ended = true
	default:
		return n, b.broken(err)
	}
	return n, err
}

func (b *body) why() reason.Reason { return reason.Reason(b.fault.Load()) }

func (b *body) fail(r reason.Reason) error {
	b.fault.CompareAndSwap(0, uint32(r))
	return denied(r, "request body")
}

func (b *body) broken(err error) error {
	if _, cut := b.x.CutReason(); cut || b.stopped.Load() {
		return errBodyStopped
	}
	switch {
	case b.why() != reason.OK:
		return denied(b.why(), "request body")
	case errors.Is(err, io.ErrUnexpectedEOF) || b.x.Over() || b.x.Carrier == exchange.H2 || b.x.Carrier == exchange.H3:
		return b.fail(reason.ClientGone)
	}
	return b.fail(reason.RequestMalformed)
}

// Close is stop: the upstream has answered and wants no more.
func (b *body) Close() error {
	b.stop()
	return nil
}

// stop ends reading and waits for a read in progress.
func (b *body) stop() {
	b.stopped.Store(true)
	if !b.mu.TryLock() {
		b.x.WakeReader()
		b.mu.Lock()
	}
	b.slow.Stop()
	b.mu.Unlock()
}
