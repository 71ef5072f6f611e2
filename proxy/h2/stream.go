package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/message"
)

// stream is one request and the way of its answer. What c.mu guards is named so;
// the rest belongs to the goroutine of the walk.
type stream struct {
	c  *conn
	id uint32
	x  exchange.Exchange

	since  time.Duration   // by the watch
	kept   bool            // guarded by c.mu; somebody may know the stream beyond its end
	fields exchange.Header // where x.Header stands

	wake       sync.Cond // of c.mu: bytes, window or an end have come
	window     int64     // guarded by c.mu; what we may send
	recv       []byte    // guarded by c.mu; received and not read
	recvWindow int64     // guarded by c.mu; what the client may send
	unsent     int64     // guarded by c.mu; consumed and not granted again
	received   int64     // guarded by c.mu
	recvErr    error     // guarded by c.mu; io.EOF: the body is whole
	readErr    error     // guarded by c.mu; by WakeReader
	trailer    exchange.Header
	failed     error // guarded by c.mu; the stream was reset
	sentEnd    bool  // guarded by c.mu
	declared   int64 // Content-Length of the request, -1: none
	tooLarge   bool  // the head was cut short

	writeBy time.Time   // guarded by c.mu; the deadline of a tunnel's writes
	late    *time.Timer // guarded by c.mu; rings then
	stalled watch.Alarm // a window stays shut
	begun   bool        // the final head is written
	noBody  bool
	left    int64 // of a body of known length; -1: not known
	tail    exchange.Header
}

// streams are used again, by any connection.
var streams = sync.Pool{New: func() any { return &stream{fields: make(exchange.Header, 0, 16)} }}

func newStream(c *conn, id uint32) *stream {
	s := streams.Get().(*stream)
	s.c, s.id, s.since, s.window, s.recvWindow = c, id, c.s.cfg.Watch.Now(), c.initialWindow, streamWindow
	s.wake.L = &c.mu
	x := &s.x
	x.Conn, x.Stream, x.TellsLasting, x.Carrier = c.c, s, true, exchange.H2
	return s
}

// recycle lets another request have s, of which nobody knows.
func (s *stream) recycle() {
	if cap(s.fields) > 256 {
		return
	}
	clear(s.fields) // they hold whole heads
	*s = stream{fields: s.fields[:0]}
	streams.Put(s)
}

// run walks the request.
func (s *stream) run() {
	c := s.c
	defer c.s.live.Done()
	s.x.Begin(context.Background(), c.s.cfg.Now())
	var err error
	if s.tooLarge {
		s.x.Respond(http.StatusRequestHeaderFieldsTooLarge, nil, nil)
	} else {
		err = c.s.cfg.Serve(&s.x)
	}
	c.mu.Lock()
	if err == nil {
		err = s.finish()
	}
	switch {
	case s.failed != nil || c.failed != nil:
	case err != nil:
		s.resetLocked(http2.ErrCodeInternal)
	case s.recvErr != nil:
		c.resets = max(0, c.resets-1)
	default:
		s.resetLocked(http2.ErrCodeNo) // RFC 9113 §8.1: the rest of the body is not wanted
	}
	c.consumed(int64(len(s.recv)))
	s.recv = nil
	if s.recvErr == nil {
		s.recvErr = errEnded
	}
	delete(c.streams, s.id)
	c.closed[s.id/2%uint32(len(c.closed))] = s.id
	if c.leaving && len(c.streams) == 0 {
		_ = c.c.SetReadDeadline(past) // the reader closes
	}
	if s.late != nil {
		s.late.Stop()
	}
	known := s.kept || s.failed != nil || s.late != nil
	c.send()
	c.mu.Unlock()
	s.x.End()
	if !known && s.x.Free() {
		s.recycle()
	}
}

// failLocked ends the stream without a word. c.mu is held.
func (s *stream) failLocked(err error) {
	if s.failed == nil {
		s.failed = err
	}
	if s.recvErr == nil {
		s.recvErr = err
	}
	s.wake.Broadcast()
	s.c.room.Broadcast()
}

// resetLocked resets the stream. c.mu is held.
func (s *stream) resetLocked(code http2.ErrCode) {
	if s.failed != nil || s.c.failed != nil {
		return
	}
	_ = s.c.fr.WriteRSTStream(s.id, code)
	s.c.reset[s.id/2%uint32(len(s.c.reset))] = s.id
	s.failLocked(errEnded)
}

// errWoken is what a body's reads return after WakeReader.
var errWoken error = &net.OpError{Op: "read", Net: "h2", Err: errors.New("woken")}

type bodyReader struct{ s *stream }

// Read takes what has come of the body, and lets the client send more.
func (b bodyReader) Read(p []byte) (int, error) {
	s := b.s
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for len(s.recv) == 0 && s.recvErr == nil && s.readErr == nil {
		s.wake.Wait()
	}
	switch {
	case s.readErr != nil:
		return 0, s.readErr
	case len(s.recv) == 0:
		return 0, s.recvErr
	}
	n := copy(p, s.recv)
	if s.recv = s.recv[n:]; len(s.recv) == 0 {
		s.recv = nil
	}
	s.consumedLocked(int64(n))
	return n, nil
}

// consumedLocked grants windows again. c.mu is held.
func (s *stream) consumedLocked(n int64) {
	s.c.consumed(n)
	if s.unsent += n; s.unsent >= streamWindow/4 && s.recvErr == nil && s.c.failed == nil {
		_ = s.c.fr.WriteWindowUpdate(s.id, uint32(s.unsent))
		s.recvWindow += s.unsent
		s.unsent = 0
		s.c.sendElsewhere()
	}
}

// alive says why nothing can be sent. c.mu is held.
func (s *stream) alive() error {
	switch {
	case s.failed != nil:
		return s.failed
	case s.c.failed != nil:
		return s.c.failed
	case s.sentEnd:
		return errEnded
	case !s.writeBy.IsZero() && !time.Now().Before(s.writeBy):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// WriteInfo sends an informational answer.
func (s *stream) WriteInfo(status int, h exchange.Header) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.waitRoom(); err != nil {
		return err
	}
	at := s.c.beginBlock()
	s.c.out = appendStatus(s.c.out, status)
	s.c.fields(h)
	s.c.endBlock(at, s.id, false)
	s.c.send()
	return nil
}

// WriteHeader begins the final answer; it goes out with the first bytes of the
// body, or at the next Flush.
func (s *stream) WriteHeader(status int, h exchange.Header, length int64, trailers []string) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.waitRoom(); err != nil {
		return err
	}
	at := c.beginBlock()
	c.out = appendStatus(c.out, status)
	c.fields(h)
	if !h.Has("Date") {
		c.out = appendField(c.out, "date", message.Date(s.now()))
	}
	s.begun, s.left = true, -1
	s.noBody = s.x.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	if length >= 0 && len(trailers) == 0 {
		if trailers == nil {
			s.left = length
		}
		if status != http.StatusNoContent {
			c.out = appendLength(c.out, length)
		}
	}
	if len(trailers) > 0 {
		c.out = appendField(c.out, "trailer", strings.ToLower(strings.Join(trailers, ", ")))
	}
	s.sentEnd = s.noBody || s.left == 0
	c.endBlock(at, s.id, s.sentEnd)
	return nil
}

// now is the time, to a tick of the watch.
func (s *stream) now() time.Time {
	if w := s.c.s.cfg.Watch; w.Now() != s.since {
		return s.c.s.cfg.Now()
	}
	return s.x.Start
}

// Write sends a part of the body as the windows permit.
func (s *stream) Write(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.left >= 0 && int64(len(p)) > s.left {
		return 0, errors.New("h2: the body is longer than its head says")
	}
	total := 0
	for len(p) > 0 {
		n, err := s.reserve(len(p))
		if err != nil {
			return total, err
		}
		if s.left >= 0 {
			s.left -= int64(n)
			s.sentEnd = s.left == 0
		}
		c.writeData(s.id, s.sentEnd, p[:n])
		total += n
		p = p[n:]
	}
	if len(c.out) >= maxFrame {
		c.send()
	}
	return total, nil
}

// waitRoom waits until the client has taken enough of what is in the buffer: heads
// know no window, and answers without a body are nothing else. c.mu is held.
func (s *stream) waitRoom() error {
	for {
		if err := s.alive(); err != nil {
			return err
		}
		if len(s.c.out) < maxOut {
			return nil
		}
		if s.c.send(); len(s.c.out) >= maxOut && s.alive() == nil {
			s.c.room.Wait()
		}
	}
}

// reserve waits for room and window, and takes up to n bytes of it. c.mu is
// held.
func (s *stream) reserve(n int) (int, error) {
	c := s.c
	for {
		if err := s.alive(); err != nil {
			return 0, err
		}
		switch room := min(int64(n), s.window, c.window, int64(c.frame)); {
		case len(c.out) >= maxOut:
			if c.send(); len(c.out) >= maxOut && s.alive() == nil {
				c.room.Wait()
			}
		case room > 0:
			s.window -= room
			c.window -= room
			return int(room), nil
		default:
			if c.send(); min(s.window, c.window) <= 0 && s.alive() == nil {
				s.waitWindow()
			}
		}
	}
}

// waitWindow waits for the client to take something, for as long as it may.
// c.mu is held.
func (s *stream) waitWindow() {
	w := s.c.s.cfg.Watch
	s.kept = true // the alarm may ring late
	w.Add(&s.stalled, s.x.Abort)
	s.stalled.Arm(s.c.s.cfg.WriteStall)
	s.wake.Wait()
	w.Remove(&s.stalled)
}

// Flush sends what is in the connection's buffer.
func (s *stream) Flush() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.alive(); err != nil && err != errEnded {
		return err
	}
	s.c.send()
	return nil
}

// WriteTrailer sets the trailer.
func (s *stream) WriteTrailer(h exchange.Header) error {
	s.tail = h
	return nil
}

// finish ends the answer. c.mu is held; run sends.
func (s *stream) finish() error {
	switch {
	case s.failed != nil:
		return s.failed
	case !s.begun:
		return errors.New("h2: the walk has not answered")
	case s.sentEnd:
		return nil
	case s.left > 0:
		return errors.New("h2: the body is shorter than its head says")
	case len(s.tail) > 0:
		at := s.c.beginBlock()
		s.c.fields(s.tail)
		s.c.endBlock(at, s.id, true)
	default:
		s.c.writeData(s.id, true, nil)
	}
	s.sentEnd = true
	return nil
}

// CloseAfter does nothing: the connection is shared.
func (s *stream) CloseAfter() {}

// Abort resets the stream.
func (s *stream) Abort() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.resetLocked(http2.ErrCodeCancel)
	s.c.sendElsewhere()
}

// WakeReader fails reads of the body.
func (s *stream) WakeReader() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readErr = errWoken
	s.wake.Broadcast()
	return nil
}

var (
	_ exchange.Stream = (*stream)(nil)
	_ io.Reader       = bodyReader{}
)
