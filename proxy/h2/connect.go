package h2

import (
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// connect makes the exchange of an extended CONNECT (RFC 8441): the walk and the
// application see the GET of an HTTP/1.1 upgrade. Nothing that the client sends
// in DATA is read before Upgrade. It reports false when b is none.
func (s *stream) connect(b *block, protocol string) bool {
	if s.declared >= 0 || b.last {
		return false
	}
	s.x.Method, s.x.Connect = http.MethodGet, protocol
	return true
}

// Upgrade accepts an extended CONNECT by 200 with h, and hands over what the
// client sends in DATA. Of any other request it is refused: the connection is
// shared.
func (s *stream) Upgrade(h exchange.Header) (net.Conn, error) {
	if s.x.Connect == "" {
		return nil, errors.New("h2: upgrade on a shared connection")
	}
	if err := s.WriteHeader(http.StatusOK, h, -1, nil); err != nil {
		return nil, err
	}
	return tunnel{s}, s.Flush()
}

// tunnel is the stream of an accepted CONNECT. Each direction is for one
// goroutine, Close and the deadlines for any.
type tunnel struct{ s *stream }

func (t tunnel) Read(p []byte) (int, error) { return bodyReader(t).Read(p) }

func (t tunnel) Write(p []byte) (int, error) {
	n, err := t.s.Write(p)
	if err == nil {
		err = t.s.Flush()
	}
	return n, err
}

// Close fails what waits, in both directions. The stream itself ends with its
// walk.
func (t tunnel) Close() error {
	_ = t.SetWriteDeadline(past)
	return t.s.WakeReader()
}

// SetWriteDeadline ends writes that wait for the client.
func (t tunnel) SetWriteDeadline(d time.Time) error {
	s := t.s
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.writeBy = d
	if s.late == nil {
		s.late = time.AfterFunc(time.Until(d), s.writeLate)
	} else {
		s.late.Reset(time.Until(d))
	}
	return nil
}

// writeLate wakes those who wait, to look at the deadline.
func (s *stream) writeLate() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.wake.Broadcast()
	s.c.room.Broadcast()
}

func (t tunnel) LocalAddr() net.Addr  { return t.s.c.c.LocalAddr() }
func (t tunnel) RemoteAddr() net.Addr { return t.s.c.c.RemoteAddr() }

var errDeadline = errors.New("h2: a stream has no deadline for reading")

func (t tunnel) SetDeadline(time.Time) error     { return errDeadline }
func (t tunnel) SetReadDeadline(time.Time) error { return errDeadline }
