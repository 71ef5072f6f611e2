package mux

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// The way of a record to the carrier:
//
//  1. Control records are appended to writer.ctrl; a flow's DATA or DATAGRAM is
//     its one pending, which waits in writer.queue.
//  2. Whoever finds the pen free takes it and leads: writes control records
//     first, then its own record together with small ones that wait.
//  3. The leader wakes those whose records it wrote, and passes the pen to the
//     head of the queue, so that flows take turns.
//
// Nothing runs while there is nothing to write.

// errClosed is what a write meets after its flow or tunnel ended. Callers turn
// it into the reason.
var errClosed = errors.New("tunnel: closed")

// writer is the sending half of a session. The pen is the right to write to the
// carrier; mu is never held while that is done.
type writer struct {
	mu       sync.Mutex
	held     bool      // guarded by mu; somebody has the pen
	closed   bool      // guarded by mu; the tunnel has ended
	released sync.Cond // on mu; the pen was put down after closed
	ctrl     []byte    // guarded by mu; control records that wait
	spare    *chunk    // guarded by mu; what ctrl began in
	windows  []*Flow   // guarded by mu; flows that owe a WINDOW
	head     *pending  // guarded by mu; records that wait
	tail     *pending  // guarded by mu

	writes atomic.Uint64 // begun and ended writes; odd while one is under way
}

type pendingState uint8

const (
	idle pendingState = iota
	queued
	writing // a leader has it
	written
	leading // the pen was passed to its owner
	gone    // abandoned
)

// pending is a flow's place in the queue. A flow has one, so that flows take
// turns whatever they have to say. All of it is guarded by writer.mu.
type pending struct {
	b          []byte
	state      pendingState
	dead       bool // the flow was reset: nothing of it is written any more
	wake       chan struct{}
	next, prev *pending
}

func (w *writer) push(p *pending) {
	p.prev, p.next = w.tail, nil
	if w.tail != nil {
		w.tail.next = p
	} else {
		w.head = p
	}
	w.tail = p
}

func (w *writer) unlink(p *pending) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		w.head = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		w.tail = p.prev
	}
	p.next, p.prev = nil, nil
}

func (p *pending) signal(s pendingState) {
	p.state = s
	p.wake <- struct{}{} // of capacity 1, and one signal a wait
}

// control queues a control record. It never blocks. When too much waits, the
// peer takes nothing and asks for much: that ends the tunnel.
func (s *Session) control(k Kind, flags uint8, flow uint32, parts ...[]byte) error {
	w := &s.wr
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errClosed
	}
	if len(w.ctrl) >= s.cfg.Control {
		return ErrBusy
	}
	w.append(k, flags, flow, parts...)
	return nil
}

func (w *writer) append(k Kind, flags uint8, flow uint32, parts ...[]byte) {
	if w.ctrl == nil {
		w.spare = getChunk(smallChunk)
		w.ctrl = w.spare.buf[:0]
	}
	w.ctrl = appendRecord(w.ctrl, k, flags, flow, parts...)
}

// kick sees to it that what waits is written: by the caller, unless another has
// the pen.
func (s *Session) kick() {
	w := &s.wr
	w.mu.Lock()
	if w.held || w.closed {
		w.mu.Unlock()
		return
	}
	w.held = true
	w.mu.Unlock()
	_ = s.lead(nil)
}

// flush is kick for those who must not block.
func (s *Session) flush() {
	w := &s.wr
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held || w.closed || w.idle() {
		return
	}
	w.held = true
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		_ = s.lead(nil)
	}()
}

func (w *writer) idle() bool { return len(w.ctrl) == 0 && len(w.windows) == 0 && w.head == nil }

// write writes p.b, a whole record, and returns when that is done.
func (s *Session) write(p *pending) error {
	w := &s.wr
	w.mu.Lock()
	if w.closed || p.dead {
		w.mu.Unlock()
		return errClosed
	}
	if !w.held {
		w.held = true
		w.mu.Unlock()
		return s.lead(p)
	}
	p.state = queued
	w.push(p)
	w.mu.Unlock()
	<-p.wake
	w.mu.Lock()
	state := p.state
	p.state = idle
	w.mu.Unlock()
	switch state {
	case leading:
		return s.lead(p)
	case written:
		return nil
	}
	return errClosed
}

// lead writes with the pen in hand: everything in ctrl, and p (nil: a caller
// with no record of its own). It passes the pen on before it returns.
func (s *Session) lead(p *pending) error {
	w := &s.wr
	var dead bool
	for {
		w.mu.Lock()
		if w.closed {
			w.held = false
			w.released.Broadcast()
			w.mu.Unlock()
			return errClosed
		}
		out, spare := w.takeControl()
		if p != nil && p.dead {
			p, dead = nil, true
		}
		batch, all := w.gather(out, p)
		w.mu.Unlock()

		err := s.put(out, batch, p)

		w.mu.Lock()
		for _, q := range all {
			q.signal(written)
		}
		if spare != nil {
			putChunk(spare)
		}
		if batch != nil {
			putChunk(batch)
		}
		next := s.passOn(err)
		w.mu.Unlock()
		if err != nil {
			s.hear()
			s.fail(&ClosedError{Reason: reason.TunnelClosed, Remote: true, Cause: err}, false)
			return errClosed
		}
		if !next && dead {
			return errClosed
		}
		if !next {
			return nil
		}
		p = nil // control records came meanwhile, and nobody else to write them
	}
}

// passOn gives the pen to the head of the queue, or puts it down. It reports
// whether the caller must go on. mu is held.
func (s *Session) passOn(err error) bool {
	w := &s.wr
	switch {
	case w.closed || err != nil:
		w.held = false
		w.released.Broadcast()
	case w.head != nil:
		q := w.head
		w.unlink(q)
		q.signal(leading)
	case !w.idle():
		return true
	default:
		w.held = false
	}
	return false
}

// takeControl returns the control records that wait, and the chunk to give back
// after they are written. mu is held.
func (w *writer) takeControl() ([]byte, *chunk) {
	for i, f := range w.windows {
		if !f.pend.dead {
			w.append(Window, 0, f.id, u32(f.owed))
		}
		f.owed = 0
		w.windows[i] = nil
	}
	w.windows = w.windows[:0]
	if cap(w.windows) > 16 {
		w.windows = nil
	}
	out, spare := w.ctrl, w.spare
	w.ctrl, w.spare = nil, nil
	return out, spare
}

// gather copies the control records, p and small records that wait into one
// chunk, when that saves a write. Without it, out and p are written as they
// are. The pendings that it took from the queue are returned. mu is held.
func (w *writer) gather(out []byte, p *pending) (*chunk, []*pending) {
	n := len(out)
	if p != nil {
		n += len(p.b)
	}
	if n > chunkSize || w.head == nil && (p == nil || len(out) == 0) {
		return nil, nil
	}
	c := getChunk(recordSize)
	c.w = copy(c.buf, out)
	if p != nil {
		c.w += copy(c.buf[c.w:], p.b)
	}
	var all []*pending
	for w.head != nil && c.w+len(w.head.b) <= len(c.buf) {
		q := w.head
		w.unlink(q)
		q.state = writing
		c.w += copy(c.buf[c.w:], q.b)
		all = append(all, q)
	}
	return c, all
}

// put writes to the carrier; the pen is held.
func (s *Session) put(out []byte, batch *chunk, p *pending) error {
	w := &s.wr
	w.writes.Add(1)
	defer w.writes.Add(1)
	if batch != nil {
		_, err := s.conn.Write(batch.buf[:batch.w])
		return err
	}
	if len(out) > 0 {
		if _, err := s.conn.Write(out); err != nil {
			return err
		}
	}
	if p != nil {
		_, err := s.conn.Write(p.b)
		return err
	}
	return nil
}

// abandon takes p out of the queue. With dead, nothing of its flow is written
// from now on. A record that is being written is not waited for.
func (s *Session) abandon(p *pending, dead bool) {
	w := &s.wr
	w.mu.Lock()
	defer w.mu.Unlock()
	p.dead = p.dead || dead
	if p.state == queued {
		w.unlink(p)
		p.signal(gone)
	}
}

// owe notes that f has credit to grant.
func (s *Session) owe(f *Flow, n int) {
	w := &s.wr
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.owed == 0 {
		w.windows = append(w.windows, f)
	}
	f.owed += n
}

// since reports, of the time since the last call, whether one write was under
// way all along, and whether there was none at all.
func (w *writer) since(last *uint64) (stalled, quiet bool) {
	n := w.writes.Load()
	same := n == *last
	*last = n
	return same && n&1 == 1, same && n&1 == 0
}

// hear gives the reader a moment to come to the peer's last record, which may be
// there although nothing can be sent any more: it says why.
func (s *Session) hear() {
	moment := time.NewTimer(s.cfg.Farewell)
	defer moment.Stop()
	select {
	case <-s.done:
	case <-moment.C:
	}
}

// goodbye writes the last record, if there is time, and closes the carrier.
func (s *Session) goodbye(r reason.Reason, say bool) {
	defer s.wg.Done()
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.cfg.Farewell)) // frees a leader that is stuck
	w := &s.wr
	w.mu.Lock()
	w.closed = true
	for w.head != nil {
		q := w.head
		w.unlink(q)
		q.signal(gone)
	}
	for w.held {
		w.released.Wait()
	}
	if say {
		w.append(Close, 0, 0, u16(r))
	}
	out, spare := w.takeControl()
	w.mu.Unlock()
	if len(out) > 0 {
		if _, err := s.conn.Write(out); err != nil {
			s.abort()
		}
	}
	if spare != nil {
		putChunk(spare)
	}
	_ = s.conn.Close()
}

// abort closes what is under a TLS carrier, whose Close would wait to say so.
func (s *Session) abort() {
	if c, ok := s.conn.(interface{ NetConn() net.Conn }); ok {
		_ = c.NetConn().Close()
	}
}
