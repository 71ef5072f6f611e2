package mux

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Flow is one stream, or one UDP association, in a tunnel. It is a [net.Conn];
// on an association each Read and Write is one datagram. Its owner calls Close
// in the end, also after a reset.
//
// Methods may be called from any goroutine.
type Flow struct {
	id        uint32
	datagrams bool
	s         *Session

	in, out atomic.Int64 // payload bytes taken by the consumer, and handed to the carrier
	lost    atomic.Int64 // datagrams

	rmu sync.Mutex // one consumer at a time
	wmu sync.Mutex // one producer at a time

	mu        sync.Mutex
	rcond     sync.Cond // on mu; something to read, or an end
	wcond     sync.Cond // on mu; credit, an answer, or an end
	state     flowState // guarded by mu
	err       error     // guarded by mu; *ResetError or *RefusedError, set once
	reply     []byte    // guarded by mu; the answer to our OPEN
	onReset   func()    // guarded by mu
	sentEnd   bool      // guarded by mu
	gotEnd    bool      // guarded by mu
	closed    bool      // guarded by mu; by the owner
	feeding   bool      // guarded by mu; ReadFrom is at work
	released  bool      // guarded by mu
	rdeadline deadline  // guarded by mu
	wdeadline deadline  // guarded by mu

	// The receiving side, guarded by mu.
	head, tail *chunk
	filling    bool // the reader writes behind tail.w
	buffered   int  // bytes between r and w of all chunks; of buffers for datagrams
	window     int  // the most that the peer may have under way or here
	credit     int  // what the peer may still send
	consumed   int  // read, and not granted again
	grantedAt  time.Time

	// The sending side.
	sendCredit int     // guarded by mu
	useful     int     // a quarter of the peer's first window, at most a record; set with it, guarded by mu
	pend       pending // write.go
	owed       int     // guarded by writer.mu; credit to grant
}

type flowState uint8

const (
	opening flowState = iota // OPEN sent or received, no answer yet
	open
)

// newFlow makes a flow with a receiving window from the budget.
func (s *Session) newFlow(id uint32, datagrams bool) *Flow {
	f := &Flow{id: id, datagrams: datagrams, s: s}
	f.rcond.L, f.wcond.L = &f.mu, &f.mu
	f.pend.wake = make(chan struct{}, 1)
	// A quarter of what is left at most, so that late flows get some, too.
	want := min(s.cfg.Window-s.cfg.MinWindow, s.left()/4)
	if datagrams {
		want = 0
	}
	f.window = s.cfg.MinWindow
	if want > 0 {
		f.window += s.borrow(want)
	}
	f.credit = f.window
	return f
}

// grant takes the peer's first window; mu is held, or nobody else has f yet.
func (f *Flow) grant(window int) { f.sendCredit, f.useful = window, min(window/4, MaxPayload) }

// ID returns the flow's number in its tunnel.
func (f *Flow) ID() uint32 { return f.id }

// Datagrams reports whether f is a UDP association.
func (f *Flow) Datagrams() bool { return f.datagrams }

// BytesIn returns how many payload bytes were read from f.
func (f *Flow) BytesIn() int64 { return f.in.Load() }

// BytesOut returns how many payload bytes were written to f.
func (f *Flow) BytesOut() int64 { return f.out.Load() }

// Dropped returns how many datagrams found the queue full.
func (f *Flow) Dropped() int64 { return f.lost.Load() }

// LocalAddr returns the carrier's local address.
func (f *Flow) LocalAddr() net.Addr { return f.s.conn.LocalAddr() }

// RemoteAddr returns the carrier's remote address.
func (f *Flow) RemoteAddr() net.Addr { return f.s.conn.RemoteAddr() }

// Wait returns the payload of the answer to Start. A refusal is a
// [*RefusedError]. When ctx ends first, the flow is reset. After an error the
// flow is closed.
func (f *Flow) Wait(ctx context.Context) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { f.Reset(reason.ClientGone) })
	defer stop()
	f.mu.Lock()
	for f.state == opening && f.err == nil {
		f.wcond.Wait()
	}
	reply, err := f.reply, f.err
	f.mu.Unlock()
	if err == nil {
		return reply, nil
	}
	f.Close()
	if why := ctx.Err(); why != nil {
		return nil, why
	}
	return nil, err
}

// Accept answers the peer's OPEN: the flow may carry data from now on.
func (f *Flow) Accept(payload []byte) error { return f.answer(reason.OK, payload) }

// Refuse answers the peer's OPEN with a reason, and ends the flow.
func (f *Flow) Refuse(r reason.Reason, payload []byte) error {
	err := f.answer(r, payload)
	f.Close()
	return err
}

func (f *Flow) answer(r reason.Reason, payload []byte) error {
	f.mu.Lock()
	if f.err != nil || f.state != opening || f.s.client {
		err := f.err
		f.mu.Unlock()
		if err == nil {
			err = errClosed
		}
		return err
	}
	f.state = open
	window := f.window
	// Under mu: no CLOSE of this flow may go before its answer.
	err := f.s.control(Open, 0, f.id, u32(window), u16(r), payload)
	f.mu.Unlock()
	if r != reason.OK {
		f.end(&ResetError{Reason: r})
		f.s.forget(f)
	}
	f.s.flush()
	return err
}

// opened takes the gateway's answer. It reports whether one was awaited.
func (f *Flow) opened(window int, r reason.Reason, payload []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != opening {
		return false
	}
	if f.err != nil {
		return true // we gave up meanwhile
	}
	if r != reason.OK {
		f.err = &RefusedError{Reason: r, Payload: payload}
	} else {
		f.state, f.reply = open, payload
		f.grant(window)
	}
	f.rcond.Broadcast()
	f.wcond.Broadcast()
	return true
}

// OnReset has g called once when f is reset, by either end or with the tunnel;
// at once when it already was. g must not block.
func (f *Flow) OnReset(g func()) {
	f.mu.Lock()
	dead := f.err != nil
	if !dead {
		f.onReset = g
	}
	f.mu.Unlock()
	if dead && g != nil {
		g()
	}
}

// Reset ends both directions at once and tells the peer why. Data that was not
// read or not written is dropped. It does not block. It reports whether f was
// still alive.
func (f *Flow) Reset(r reason.Reason) bool {
	if r == reason.OK {
		r = reason.TunnelClosed
	}
	f.mu.Lock()
	if f.err != nil || f.sentEnd && f.gotEnd {
		f.mu.Unlock()
		return false
	}
	early := f.state == opening && !f.s.client
	f.mu.Unlock()
	if early {
		return f.Refuse(r, nil) == nil
	}
	if !f.end(&ResetError{Reason: r}) {
		return false
	}
	if f.s.control(Close, 0, f.id, u16(r)) == ErrBusy {
		f.s.Close(reason.BudgetExceeded)
	}
	f.s.forget(f)
	f.s.flush()
	return true
}

// die ends f without a word to the peer.
func (f *Flow) die(r reason.Reason, remote bool) { f.end(&ResetError{Reason: r, Remote: remote}) }

// end sets why f ended, drops its buffers and wakes everybody.
func (f *Flow) end(err error) bool {
	f.mu.Lock()
	if f.err != nil {
		f.mu.Unlock()
		return false
	}
	f.err = err
	// Reader or consumer may be at work in a chunk: they are left to the
	// collector, not to the pool.
	f.head, f.tail, f.buffered = nil, nil, 0
	g := f.onReset
	f.onReset = nil
	f.rdeadline.stop()
	f.wdeadline.stop()
	f.rcond.Broadcast()
	f.wcond.Broadcast()
	f.mu.Unlock()
	f.s.abandon(&f.pend, true)
	if g != nil {
		g()
	}
	return true
}

// Reason returns why f ended: OK when it lives, or ended by both ends.
func (f *Flow) Reason() reason.Reason {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch err := f.err.(type) {
	case *ResetError:
		return err.Reason
	case *RefusedError:
		return err.Reason
	}
	return reason.OK
}

// CloseWrite ends our direction after what was written. It waits for a Write or
// ReadFrom that is under way.
func (f *Flow) CloseWrite() error {
	f.wmu.Lock()
	defer f.wmu.Unlock()
	f.mu.Lock()
	if f.err != nil || f.sentEnd || f.state == opening {
		defer f.mu.Unlock()
		return f.err
	}
	f.sentEnd = true
	both := f.gotEnd
	f.wcond.Broadcast()
	err := f.s.control(Close, 0, f.id, u16(reason.OK))
	f.mu.Unlock()
	if both {
		f.s.forget(f)
	}
	if err == ErrBusy {
		f.s.Close(reason.BudgetExceeded)
	}
	f.s.flush()
	return err
}

// Close ends our direction after what was written, and refuses what still
// comes. It does not wait for the peer.
func (f *Flow) Close() error {
	f.mu.Lock()
	f.closed = true
	f.rcond.Broadcast()
	f.wcond.Broadcast()
	// What came is never read; what a ReadFrom holds cannot be waited for.
	abrupt := f.state == opening || f.feeding || f.buffered > 0
	f.mu.Unlock()
	if abrupt {
		f.Reset(reason.ClientGone)
	} else {
		_ = f.CloseWrite()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head, f.tail, f.buffered = nil, nil, 0
	f.onReset = nil
	f.rdeadline.stop()
	f.wdeadline.stop()
	if !f.released {
		f.released = true
		f.s.retire(f.window)
	}
	return nil
}
