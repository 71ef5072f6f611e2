package mux

import (
	"io"
	"net"
	"os"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// The way of received bytes: the reader asks space for room, reads the carrier
// into it, and commits it; the consumer peeks at it and advances.

// admit checks a DATA or DATAGRAM of n bytes against the flow's state. take is
// false when it is to be thrown away; a stream whose owner is done is reset
// then.
func (f *Flow) admit(k Kind, n int) (take bool, r reason.Reason) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.err != nil:
		return false, reason.OK
	case f.state == opening, f.gotEnd, f.datagrams != (k == Datagram):
		return false, reason.FrameMalformed
	case f.datagrams:
		if f.closed || f.buffered+chunkLen(n) > f.s.cfg.Datagrams {
			f.lost.Add(1)
			f.s.dropped.Add(1)
			return false, reason.OK
		}
		return true, reason.OK
	case n > f.credit:
		return false, reason.BudgetExceeded
	}
	f.credit -= n
	return !f.closed, reason.OK
}

// space returns room behind what was received, for up to n bytes: nil when the
// flow ended. The reader must commit it.
func (f *Flow) space(n int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil || f.closed {
		return nil
	}
	if f.tail == nil || f.datagrams || len(f.tail.buf)-f.tail.w < min(n, scrap) {
		c := getChunk(f.share(n))
		if f.tail == nil {
			f.head = c
		} else {
			f.tail.next = c
		}
		f.tail = c
	}
	f.filling = true
	t := f.tail
	if !f.datagrams {
		n = min(n, f.share(n))
	}
	return t.buf[t.w:min(len(t.buf), t.w+n)]
}

// scrap is room at the end of a chunk that is not worth a read.
const scrap = 64

// share is how much of n bytes goes into one chunk. What is more than a whole
// number of chunks goes first: the head of a record takes as much from the first
// record of the carrier, and so each read from then on is one of the carrier's.
func (f *Flow) share(n int) int {
	if f.datagrams || n <= chunkSize {
		return n
	}
	if k := n % chunkSize; k >= chunkSize/2 {
		return k
	}
	return chunkSize
}

// commit makes n bytes of the last space readable.
func (f *Flow) commit(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.filling = false
	if f.tail == nil {
		return // the flow ended meanwhile
	}
	f.tail.w += n
	if f.datagrams {
		n = len(f.tail.buf)
	}
	f.buffered += n
	f.rcond.Signal()
}

// peek waits for something to read and returns chunks to read from: up to
// len(to), or one datagram. io.EOF is the peer's end.
func (f *Flow) peek(to [][]byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.rdeadline.expired:
			return 0, os.ErrDeadlineExceeded
		case f.err != nil:
			return 0, f.err
		case f.closed:
			return 0, net.ErrClosed
		case f.buffered > 0:
			n := 0
			for c := f.head; c != nil && n < len(to); c = c.next {
				if f.datagrams {
					to[0] = c.buf[:c.w]
					return 1, nil
				}
				if c.w > c.r {
					to[n] = c.buf[c.r:c.w]
					n++
				}
			}
			return n, nil
		case f.gotEnd:
			return 0, io.EOF
		}
		f.rcond.Wait()
	}
}

// advance takes n bytes, or one datagram, and grants credit when half of the
// window is free again.
func (f *Flow) advance(n int) {
	f.in.Add(int64(n))
	f.mu.Lock()
	if f.err != nil || f.head == nil {
		f.mu.Unlock()
		return
	}
	if f.datagrams {
		c := f.head
		f.buffered -= len(c.buf)
		f.drop(c)
		f.mu.Unlock()
		return
	}
	f.buffered -= n
	f.consumed += n
	for n > 0 {
		c := f.head
		k := min(n, c.w-c.r)
		c.r += k
		n -= k
		if c.r < c.w || c == f.tail && f.filling {
			break
		}
		f.drop(c)
	}
	grant := 0
	if f.consumed >= f.window/2 && !f.gotEnd {
		grant = f.consumed + f.grow()
		f.credit += grant
		f.consumed = 0
	}
	f.mu.Unlock()
	if grant > 0 {
		f.s.owe(f, grant)
		f.s.kick()
	}
}

// drop gives the first chunk back; mu is held.
func (f *Flow) drop(c *chunk) {
	f.head = c.next
	if f.head == nil {
		f.tail = nil
	}
	putChunk(c)
}

// grow widens the window: one that started small, when the budget has room
// again, and one that is spent faster than credit comes back on so long a path,
// while its consumer keeps up. mu is held.
func (f *Flow) grow() int {
	want := f.s.cfg.Window - f.window
	now := time.Now()
	if f.buffered <= f.window/8 && f.window < f.s.cfg.MaxWindow && now.Sub(f.grantedAt) < 2*f.s.roundTrip(now) {
		more := min(2*f.window, f.s.cfg.MaxWindow) - f.window
		want = max(want, min(more, f.s.left()/4))
	}
	f.grantedAt = now
	if want <= 0 {
		return 0
	}
	n := f.s.borrow(want)
	f.window += n
	return n
}

// Read reads from the flow: bytes of the stream, or one datagram, whose rest is
// lost when p is shorter. After a reset it returns a [*ResetError].
func (f *Flow) Read(p []byte) (int, error) {
	f.rmu.Lock()
	defer f.rmu.Unlock()
	if len(p) == 0 && !f.datagrams {
		return 0, nil
	}
	var views [4][]byte
	k, err := f.peek(views[:])
	if err != nil {
		return 0, err
	}
	n := 0
	for _, v := range views[:k] {
		n += copy(p[n:], v)
	}
	f.advance(n)
	return n, nil
}

// WriteTo moves what the peer sends to dst until the peer's end, without a copy
// and without a buffer while it waits. It returns nil after the peer's end.
func (f *Flow) WriteTo(dst io.Writer) (int64, error) {
	f.rmu.Lock()
	defer f.rmu.Unlock()
	var total int64
	var views [4][]byte
	for {
		k, err := f.peek(views[:])
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := writeViews(dst, views[:k])
		total += n
		f.advance(int(n))
		if err != nil {
			return total, err
		}
	}
}

func writeViews(dst io.Writer, v [][]byte) (int64, error) {
	if len(v) == 1 {
		n, err := dst.Write(v[0])
		return int64(n), err
	}
	b := net.Buffers(v)
	return b.WriteTo(dst)
}

// end of the peer's direction. It reports false when it had ended before.
func (f *Flow) peerEnd() bool {
	f.mu.Lock()
	if f.err != nil {
		f.mu.Unlock()
		return true
	}
	if f.gotEnd || f.state == opening {
		f.mu.Unlock()
		return false
	}
	f.gotEnd = true
	both := f.sentEnd
	f.rcond.Broadcast()
	f.mu.Unlock()
	if both {
		f.s.forget(f)
	}
	return true
}

// deadline is one direction's; guarded by Flow.mu.
type deadline struct {
	timer   *time.Timer
	expired bool
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (f *Flow) setDeadline(d *deadline, t time.Time) {
	d.stop()
	d.expired = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.expired = true
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		f.mu.Lock()
		hit := d.timer == timer
		if hit {
			d.expired = true
			f.rcond.Broadcast()
			f.wcond.Broadcast()
		}
		f.mu.Unlock()
		if hit && d == &f.wdeadline {
			f.s.abandon(&f.pend, false)
		}
	})
	d.timer = timer
}

// SetReadDeadline bounds Read and WriteTo.
func (f *Flow) SetReadDeadline(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setDeadline(&f.rdeadline, t)
	f.rcond.Broadcast()
	return nil
}

// SetWriteDeadline bounds Write and ReadFrom: their wait for credit and for
// their turn, not the write of a record that has begun.
func (f *Flow) SetWriteDeadline(t time.Time) error {
	f.mu.Lock()
	f.setDeadline(&f.wdeadline, t)
	expired := f.wdeadline.expired
	f.wcond.Broadcast()
	f.mu.Unlock()
	if expired {
		f.s.abandon(&f.pend, false)
	}
	return nil
}

// SetDeadline bounds both directions.
func (f *Flow) SetDeadline(t time.Time) error {
	_ = f.SetReadDeadline(t)
	return f.SetWriteDeadline(t)
}
