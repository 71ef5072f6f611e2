package h3

import (
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// connect makes the exchange of an extended CONNECT (RFC 9220): the walk and the
// application see the GET of an HTTP/1.1 upgrade. Nothing that the client sends
// after the head is read before Upgrade.
func (s *stream) connect(protocol string) error {
	if s.declared >= 0 {
		return streamError{errMessage, "CONNECT with Content-Length"}
	}
	s.x.Method, s.x.Connect = http.MethodGet, protocol
	return nil
}

// Upgrade accepts an extended CONNECT by 200 with h and hands over what the
// client sends in DATA from there on.
func (s *stream) Upgrade(h exchange.Header) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.x.Connect == "" {
		return nil, errors.New("h3: upgrade on a shared connection")
	}
	s.begun = true
	s.begin(http.StatusOK, h)
	if err := s.flush(); err != nil {
		return nil, err
	}
	s.handed = true
	return tunnel{s}, nil
}

// tunnel is the stream of an accepted CONNECT. Each direction is for one
// goroutine, Close for any.
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
	_ = t.s.str.SetWriteDeadline(past)
	return t.s.WakeReader()
}

func (t tunnel) LocalAddr() net.Addr                { return t.s.c.q.LocalAddr() }
func (t tunnel) RemoteAddr() net.Addr               { return t.s.c.q.RemoteAddr() }
func (t tunnel) SetDeadline(d time.Time) error      { return t.s.str.SetDeadline(d) }
func (t tunnel) SetReadDeadline(d time.Time) error  { return t.s.str.SetReadDeadline(d) }
func (t tunnel) SetWriteDeadline(d time.Time) error { return t.s.str.SetWriteDeadline(d) }
