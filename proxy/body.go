package proxy

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// past is a deadline that wakes whoever waits.
var past = time.Unix(1, 0)

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

	mu     sync.Mutex    // held while reading
	total  int64         // guarded by mu
	waited time.Duration // guarded by mu
	ended  bool          // guarded by mu
}

func newBody(x *Exchange, l *Limits) *body {
	return &body{x: x, l: l, trickle: strings.HasPrefix(x.Header.Get("Content-Type"), "application/grpc")}
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
		allowed := b.l.BodyGrace + time.Duration(b.total)*time.Second/time.Duration(b.l.BodyRate) - b.waited
		if allowed <= 0 {
			return 0, b.fail(reason.BodyTooSlow)
		}
		_ = b.x.Stream.SetReadDeadline(time.Now().Add(allowed))
	}
	// Whoever stops or cuts sets its mark first and the deadline second: one of
	// both is seen here.
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
		_ = b.x.Stream.SetReadDeadline(time.Time{})
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
	case errors.Is(err, os.ErrDeadlineExceeded):
		return b.fail(reason.BodyTooSlow)
	case errors.Is(err, io.ErrUnexpectedEOF) || b.x.Context().Err() != nil || b.x.Carrier == exchange.H2:
		return b.fail(reason.ClientGone)
	}
	return b.fail(reason.RequestMalformed)
}

// Close does nothing: the stream is the front end's.
func (b *body) Close() error { return nil }

// stop ends reading and waits for a read in progress.
func (b *body) stop() {
	if b == nil {
		return
	}
	b.stopped.Store(true)
	if b.mu.TryLock() {
		if !b.ended {
			_ = b.x.Stream.SetReadDeadline(past) // the front end does not wait for the rest either
		}
		b.mu.Unlock()
		return
	}
	_ = b.x.Stream.SetReadDeadline(past)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		_ = b.x.Stream.SetReadDeadline(time.Time{})
	}
}
