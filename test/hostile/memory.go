package hostile

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Memory returns both ends of a connection in memory, for tests in a bubble
// where waiting costs nothing. Writes never block.
func Memory() (a, b net.Conn) {
	x, y := newStream(), newStream()
	return &memory{x, y}, &memory{y, x}
}

// stream is one direction.
type stream struct {
	mu      sync.Mutex
	more    *sync.Cond
	b       []byte // guarded by mu, as what follows
	ended   bool   // nothing more is written
	deaf    bool   // nothing more is read
	expired bool
	timer   *time.Timer
}

func newStream() *stream {
	s := &stream{}
	s.more = sync.NewCond(&s.mu)
	return s
}

func (s *stream) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.more.Broadcast()
}

type memory struct{ in, out *stream }

func (m *memory) Read(p []byte) (int, error) {
	s := m.in
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.b) == 0 && !s.ended && !s.deaf && !s.expired {
		s.more.Wait()
	}
	switch {
	case s.deaf:
		return 0, net.ErrClosed
	case s.expired:
		return 0, os.ErrDeadlineExceeded
	case len(s.b) == 0:
		return 0, io.EOF
	}
	n := copy(p, s.b)
	s.b = s.b[n:]
	return n, nil
}

func (m *memory) Write(p []byte) (int, error) {
	s := m.out
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.deaf {
		return 0, io.ErrClosedPipe
	}
	s.b = append(s.b, p...)
	s.more.Broadcast()
	return len(p), nil
}

func (m *memory) CloseWrite() error {
	m.out.set(func() { m.out.ended = true })
	return nil
}

func (m *memory) Close() error {
	m.CloseWrite()
	m.in.set(func() { m.in.deaf = true })
	return m.SetReadDeadline(time.Time{})
}

func (m *memory) SetReadDeadline(t time.Time) error {
	s := m.in
	s.set(func() {
		if s.timer != nil {
			s.timer.Stop()
		}
		s.expired = false
		if !t.IsZero() {
			s.timer = time.AfterFunc(time.Until(t), func() { s.set(func() { s.expired = true }) })
		}
	})
	return nil
}

func (m *memory) SetWriteDeadline(time.Time) error { return nil }
func (m *memory) SetDeadline(t time.Time) error    { return m.SetReadDeadline(t) }
func (m *memory) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "memory"} }
func (m *memory) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "memory"} }
