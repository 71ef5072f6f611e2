package mux

import (
	"github.com/yumen-zt/yumen/internal/reason"
)

// datagramCarrier is a carrier that can send a record apart from its stream: it
// arrives soon, or never. Such a record is a whole DATAGRAM, and nothing waits
// behind one that was lost.
type datagramCarrier interface {
	// SendDatagram reports false for one that is too large.
	SendDatagram(b []byte) (sent bool, err error)
	// ReceiveDatagram fails when the carrier has ended.
	ReceiveDatagram() ([]byte, error)
}

// apart sends a DATAGRAM record apart from the stream, if the carrier can.
func (s *Session) apart(record []byte) bool {
	if s.dg == nil {
		return false
	}
	sent, err := s.dg.SendDatagram(record)
	return sent && err == nil // else the stream says why
}

// receiveApart takes what comes apart from the stream, until the carrier ends.
// What breaks a rule is a fault as on the stream, but for what may come too
// early or too late on such a way.
func (s *Session) receiveApart() {
	defer s.wg.Done()
	for {
		b, err := s.dg.ReceiveDatagram()
		if err != nil {
			return // the reader meets it, too
		}
		s.alive.Store(true)
		if r := s.onApart(b); r != reason.OK {
			s.Close(r)
			return
		}
	}
}

func (s *Session) onApart(b []byte) reason.Reason {
	if len(b) < HeaderSize {
		return reason.FrameMalformed
	}
	h, r := ParseHeader((*[HeaderSize]byte)(b), !s.client)
	if r != reason.OK {
		return r
	}
	if h.Kind != Datagram || h.Length != len(b)-HeaderSize {
		return reason.FrameMalformed
	}
	if !s.client && !s.established.Load() {
		return reason.FrameMalformed
	}
	f, _ := s.find(h.Flow)
	if f == nil || !f.Datagrams() {
		return reason.OK // its OPEN is under way, or its CLOSE was faster
	}
	s.deliver(f, b[HeaderSize:])
	return reason.OK
}

// deliver gives a datagram to its flow, or drops it. Two goroutines may have one
// for the same flow.
func (s *Session) deliver(f *Flow, p []byte) {
	s.apartMu.Lock()
	defer s.apartMu.Unlock()
	take, r := f.admit(Datagram, len(p))
	if !take || r != reason.OK {
		return
	}
	if b := f.space(len(p)); b != nil || len(p) == 0 {
		f.commit(copy(b, p))
	}
}
