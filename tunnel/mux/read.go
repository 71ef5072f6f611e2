package mux

import (
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// The way of a record from the carrier: head, limits of its kind, flow, payload
// into the flow's chunk. The reader alone runs here. It never writes: what it
// has to say it queues.

// read takes records until the tunnel ends and returns why.
func (s *Session) read() (reason.Reason, error) {
	for {
		if err := s.fill(s.hdr[:]); err != nil {
			return s.broken(err)
		}
		h, r := ParseHeader(&s.hdr, !s.client)
		if r == reason.OK && !s.client && !s.established.Load() && h.Kind != Message && h.Kind != Ping && !(h.Kind == Close && h.Flow == 0) {
			r = reason.FrameMalformed
		}
		if r != reason.OK {
			return r, nil
		}
		select {
		case <-s.done: // what comes after the end has no effect
			return reason.TunnelClosed, nil
		default:
		}
		var err error
		switch h.Kind {
		case Data, Datagram:
			r, err = s.onData(h)
		case Window, Close:
			r, err = s.onControl(h)
		case Open:
			r, err = s.onOpen(h)
		case Message:
			r, err = s.onMessage(h)
		case Ping:
			r, err = s.onPing(h)
		}
		if err != nil {
			return s.broken(err)
		}
		if r != reason.OK {
			return r, nil
		}
	}
}

// broken says what an error of the carrier means.
func (s *Session) broken(err error) (reason.Reason, error) {
	var ne net.Error
	if !s.client && !s.established.Load() && errors.As(err, &ne) && ne.Timeout() {
		return reason.HelloTimeout, nil
	}
	return reason.TunnelClosed, err
}

// fill reads p full from the carrier.
func (s *Session) fill(p []byte) error {
	for n := 0; n < len(p); {
		k, err := s.conn.Read(p[n:])
		n += k
		if k > 0 && !s.alive.Load() {
			s.alive.Store(true)
		}
		if err != nil && n < len(p) {
			return err
		}
	}
	return nil
}

// skip reads n bytes and drops them.
func (s *Session) skip(n int) error {
	c := getChunk(min(n, chunkSize))
	defer putChunk(c)
	for n > 0 {
		k := min(n, len(c.buf))
		if err := s.fill(c.buf[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// find returns the flow of a record: nil and OK when it has ended, a fault when
// it never was.
func (s *Session) find(id uint32) (*Flow, reason.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flows[id]; f != nil {
		return f, reason.OK
	}
	if id > s.lastID && s.err == nil {
		return nil, reason.FrameMalformed
	}
	return nil, reason.OK
}

func (s *Session) onData(h Header) (reason.Reason, error) {
	f, r := s.find(h.Flow)
	if r != reason.OK {
		return r, nil
	}
	if f == nil {
		return reason.OK, s.skip(h.Length)
	}
	if h.Kind == Datagram && s.dg != nil && f.Datagrams() {
		c := getChunk(h.Length)
		defer putChunk(c)
		if err := s.fill(c.buf[:h.Length]); err != nil {
			return reason.OK, err
		}
		s.deliver(f, c.buf[:h.Length])
		return reason.OK, nil
	}
	take, r := f.admit(h.Kind, h.Length)
	if r != reason.OK {
		return r, nil
	}
	if !take {
		if h.Kind == Data {
			f.Reset(reason.ClientGone)
		}
		return reason.OK, s.skip(h.Length)
	}
	if h.Length == 0 {
		f.space(0)
		f.commit(0)
	}
	for n := h.Length; n > 0; {
		b := f.space(n)
		if b == nil {
			return reason.OK, s.skip(n)
		}
		if err := s.fill(b); err != nil {
			return reason.OK, err
		}
		f.commit(len(b))
		n -= len(b)
	}
	// Who waits for it goes before our next read: a word in a dialogue comes
	// sooner, and of a stream few chunks are in use, still warm.
	runtime.Gosched()
	return reason.OK, nil
}

func (s *Session) onControl(h Header) (reason.Reason, error) {
	var b [4]byte
	if err := s.fill(b[:h.Length]); err != nil {
		return reason.OK, err
	}
	if h.Kind == Close && h.Flow == 0 {
		r := reason.Reason(binary.BigEndian.Uint16(b[:]))
		if r == reason.OK {
			r = reason.TunnelClosed
		}
		s.fail(&ClosedError{Reason: r, Remote: true}, false)
		return r, nil
	}
	f, r := s.find(h.Flow)
	if r != reason.OK {
		return r, nil
	}
	if (h.Kind == Window || f == nil) && !s.windowRate() {
		return reason.FrameRate, nil
	}
	switch {
	case f == nil:
	case h.Kind == Window:
		return f.addCredit(int(min(binary.BigEndian.Uint32(b[:]), maxCredit+1))), nil
	case binary.BigEndian.Uint16(b[:]) == 0:
		if !f.peerEnd() {
			return reason.FrameMalformed, nil
		}
	default:
		f.die(reason.Reason(binary.BigEndian.Uint16(b[:])), true)
		s.forget(f)
	}
	return reason.OK, nil
}

// windowRate takes one WINDOW, or a record of a flow that has ended, from its
// allowance.
func (s *Session) windowRate() bool {
	sent := s.sent.Load()
	s.wins.left += float64((sent - s.sentSeen) / 4096)
	s.sentSeen = sent - (sent-s.sentSeen)%4096
	burst := max(s.cfg.WindowRate, int(s.wins.left))
	return s.wins.take(time.Now(), s.cfg.WindowRate, burst)
}

func (s *Session) onOpen(h Header) (reason.Reason, error) {
	c := getChunk(h.Length)
	defer putChunk(c)
	p := c.buf[:h.Length]
	if err := s.fill(p); err != nil {
		return reason.OK, err
	}
	window := int(binary.BigEndian.Uint32(p))
	if window > maxCredit {
		return reason.FrameMalformed, nil
	}
	if s.client {
		return s.onAnswer(h.Flow, window, p[4:]), nil
	}
	if !s.opens.take(time.Now(), s.cfg.OpenRate, s.cfg.OpenBurst) {
		return reason.FrameRate, nil
	}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return reason.OK, nil
	}
	if h.Flow <= s.lastID {
		s.mu.Unlock()
		return reason.FrameMalformed, nil
	}
	if s.live >= s.cfg.MaxFlows {
		s.lastID = h.Flow
		s.mu.Unlock()
		if s.control(Open, 0, h.Flow, u32(0), u16(reason.FlowLimit)) == ErrBusy {
			return reason.BudgetExceeded, nil
		}
		s.flush()
		return reason.OK, nil
	}
	f := s.newFlow(h.Flow, h.Flags&flagDatagram != 0)
	f.grant(window)
	s.adopt(f)
	s.mu.Unlock()
	s.cfg.Handler.Open(f, p[4:])
	return reason.OK, nil
}

// onAnswer takes the gateway's answer to one of our OPENs.
func (s *Session) onAnswer(id uint32, window int, p []byte) reason.Reason {
	f, r := s.find(id)
	if f == nil {
		return r
	}
	why, p := reason.Reason(binary.BigEndian.Uint16(p)), p[2:]
	if len(p) > 0 {
		if p, r = s.cfg.Answer(p); r != reason.OK {
			return r
		}
	}
	if !f.opened(window, why, p) {
		return reason.FrameMalformed
	}
	if why != reason.OK {
		s.forget(f)
	}
	return reason.OK
}

func (s *Session) onMessage(h Header) (reason.Reason, error) {
	if !s.msgs.take(time.Now(), s.cfg.MessageRate, s.cfg.MessageBurst) {
		return reason.FrameRate, nil
	}
	c := getChunk(h.Length)
	defer putChunk(c)
	if err := s.fill(c.buf[:h.Length]); err != nil {
		return reason.OK, err
	}
	return s.cfg.Handler.Message(c.buf[:h.Length]), nil
}

func (s *Session) onPing(h Header) (reason.Reason, error) {
	var b [8]byte
	if err := s.fill(b[:]); err != nil {
		return reason.OK, err
	}
	if !s.pings.take(time.Now(), s.cfg.PingRate, s.cfg.PingBurst) {
		return reason.FrameRate, nil
	}
	if h.Flags&flagAnswer != 0 {
		return reason.OK, nil
	}
	if s.control(Ping, flagAnswer, 0, b[:]) == ErrBusy {
		return reason.BudgetExceeded, nil
	}
	s.flush()
	return reason.OK, nil
}
