package h3

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// maxOut is how much of an answer is gathered before it is written.
const maxOut = 16 << 10

// stream is one request and the way of its answer. The body is read by one
// goroutine at a time, the answer is written by the walk's; what mu guards may be
// touched by both.
type stream struct {
	c   *conn
	str *quic.Stream
	x   exchange.Exchange
	r   reader

	tooLarge bool // the head was not read whole
	declared int64

	// Of the body's reader.
	left     uint64 // of a DATA frame
	received int64
	readErr  error // io.EOF: the body is whole
	ended    bool  // the client has ended its side
	trailer  exchange.Header

	mu    sync.Mutex
	out   []byte // guarded by mu; of the answer, not written yet
	begun bool   // guarded by mu; the final head is in out

	noBody  bool
	remains int64 // of a body of known length; -1: not known
	tail    exchange.Header
	broken  error // guarded by mu; a frame was not written whole
	handed  bool  // guarded by mu; to Upgrade's caller, who sets deadlines himself
}

func newStream(c *conn, str *quic.Stream) *stream {
	s := &stream{c: c, str: str, r: newReader(str), remains: -1, declared: -1}
	s.x = exchange.Exchange{Conn: c.c, Stream: s, Carrier: exchange.H3}
	return s
}

// run walks the request.
func (s *stream) run() error {
	s.x.Begin(s.str.Context(), s.c.s.cfg.Now()) // ends when the client wants no answer any more
	var err error
	if s.tooLarge {
		s.x.Respond(http.StatusRequestHeaderFieldsTooLarge, nil, nil)
	} else {
		err = s.c.s.cfg.Serve(&s.x)
	}
	if err == nil {
		err = s.finish()
	}
	s.x.End()
	var ce connError
	switch {
	case errors.As(s.readErr, &ce):
		s.c.malformed(s.readErr)
		s.c.fail(ce.code)
	case err != nil:
		s.reset(errInternal)
	}
	return err
}

// release gives the stream back: the client may begin another one. What of the
// body was not read is not wanted (RFC 9114 §4.1).
func (s *stream) release() {
	if !s.ended {
		s.str.CancelRead(quic.StreamErrorCode(errNo))
	}
	s.r.free()
	s.str.ReleaseStreamCredit()
}

func (s *stream) reset(why code) {
	s.str.CancelWrite(quic.StreamErrorCode(why))
	s.str.CancelRead(quic.StreamErrorCode(why))
}

// errWoken is what a body's reads return after WakeReader.
var errWoken error = &net.OpError{Op: "read", Net: "h3", Err: errors.New("woken")}

type bodyReader struct{ s *stream }

// Read takes what has come of the body.
func (b bodyReader) Read(p []byte) (int, error) {
	s := b.s
	if s.readErr != nil {
		return 0, s.readErr
	}
	if err := s.toData(); err != nil {
		s.readErr = err
		return 0, err
	}
	if uint64(len(p)) > s.left {
		p = p[:s.left]
	}
	n, err := s.r.Read(p)
	s.left -= uint64(n)
	s.received += int64(n)
	switch {
	case s.declared >= 0 && s.received > s.declared:
		s.readErr = streamError{errMessage, "a body longer than its head says"}
		s.reset(errMessage)
		return 0, s.readErr
	case err != nil && (n == 0 || s.left > 0) && !isTimeout(err):
		s.readErr = s.bodyErr(err)
		if n == 0 {
			return 0, s.readErr
		}
	case err != nil && n == 0:
		return 0, errWoken
	}
	return n, nil
}

// toData reads up to the payload of the next DATA frame. io.EOF: the body is
// whole.
func (s *stream) toData() error {
	for s.left == 0 {
		if s.ended {
			return s.whole()
		}
		s.please()
		t, n, err := s.r.header()
		if err == io.EOF {
			s.ended = true
			return s.whole()
		}
		if err == nil {
			err = s.bodyFrame(t, n)
		}
		if err != nil {
			return s.bodyErr(err)
		}
	}
	return nil
}

// bodyFrame takes the head of one frame after the first.
func (s *stream) bodyFrame(t, n uint64) error {
	switch {
	case s.trailer != nil && t <= frameHeaders:
		return connError{errFrameUnexpected}
	case t == frameData && n == 0:
		return s.r.skip(0)
	case t == frameData:
		s.left, s.r.unknown = n, 0
		return nil
	case t == frameHeaders:
		fields, large, err := s.fields(n)
		if large {
			err = connError{errExcessiveLoad}
		}
		if err != nil {
			return err
		}
		for _, f := range fields {
			if f.Name[0] == ':' || forbidden(f) {
				return streamError{errMessage, "trailer field " + f.Name}
			}
		}
		s.trailer = append(exchange.Header{}, fields...)
		return nil
	case t <= frameMaxPushID && t != 0xa && t != 0xb && t != 0xc:
		return connError{errFrameUnexpected}
	}
	return s.r.skip(n)
}

// whole is the end of the body, if that is what its head said.
func (s *stream) whole() error {
	if s.declared >= 0 && s.received != s.declared {
		s.reset(errMessage)
		return streamError{errMessage, "a body shorter than its head says"}
	}
	return io.EOF
}

// bodyErr is what an error of reading says to the walk. An end inside a frame is
// a fault of the connection.
func (s *stream) bodyErr(err error) error {
	var se streamError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return connError{errFrame}
	case isTimeout(err):
		return errWoken
	case errors.As(err, &se):
		s.reset(se.code)
	}
	return err
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// please tells a client that waits for it to send its body (RFC 9110 §10.1.1).
func (s *stream) please() {
	if s.received > 0 || !strings.EqualFold(s.x.Header.Get("Expect"), "100-continue") {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun && len(s.out) == 0 {
		s.begin(http.StatusContinue, nil)
		_ = s.str.TryWriteAll(s.out) // where there is no room, the client is not waiting
		s.out = s.out[:0]
	}
}

// announced returns the trailer fields that the head has announced.
func (s *stream) announced() exchange.Header { return s.trailer.Named(s.x.Announced) }

// block gathers a field section in memory of its own.
type block struct {
	b   []byte
	enc *qpack.Encoder
}

func (b *block) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	return len(p), nil
}

var blocks = sync.Pool{New: func() any {
	b := &block{}
	b.enc = qpack.NewEncoder(b)
	return b
}}

// section appends a HEADERS frame to out; fields says what is in it. mu is held.
func (s *stream) section(fields func(put func(name, value string))) {
	b := blocks.Get().(*block)
	fields(func(name, value string) {
		_ = b.enc.WriteField(qpack.HeaderField{Name: strings.ToLower(name), Value: exchange.Clean(value)}) // into memory
	})
	_ = b.enc.Close()
	s.out = appendFrame(s.out, frameHeaders, uint64(len(b.b)))
	s.out = append(s.out, b.b...)
	b.b = b.b[:0]
	blocks.Put(b)
}

// begin appends the head of an answer. mu is held.
func (s *stream) begin(status int, h exchange.Header, more ...exchange.Field) {
	s.section(func(put func(name, value string)) {
		put(":status", strconv.Itoa(status))
		for _, f := range h {
			put(f.Name, f.Value)
		}
		for _, f := range more {
			put(f.Name, f.Value)
		}
	})
}

// WriteInfo sends an informational answer.
func (s *stream) WriteInfo(status int, h exchange.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin(status, h)
	return s.flush()
}

// WriteHeader begins the final answer; it goes out with the first bytes of the
// body, or at the next Flush.
func (s *stream) WriteHeader(status int, h exchange.Header, length int64, trailers []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var more []exchange.Field
	if !h.Has("Date") {
		more = append(more, exchange.Field{Name: "date", Value: s.c.s.cfg.Now().UTC().Format(http.TimeFormat)})
	}
	s.begun = true
	s.noBody = s.x.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	if length >= 0 && len(trailers) == 0 {
		if trailers == nil {
			s.remains = length
		}
		if status != http.StatusNoContent {
			more = append(more, exchange.Field{Name: "content-length", Value: strconv.FormatInt(length, 10)})
		}
	}
	if len(trailers) > 0 {
		more = append(more, exchange.Field{Name: "trailer", Value: strings.ToLower(strings.Join(trailers, ", "))})
	}
	s.begin(status, h, more...)
	return nil
}

// Write sends a part of the body as the client takes it.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noBody {
		return 0, errors.New("h3: this answer has no body")
	}
	if s.remains >= 0 {
		if s.remains -= int64(len(p)); s.remains < 0 {
			return 0, errors.New("h3: the body is longer than its head says")
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.out = appendFrame(s.out, frameData, uint64(len(p)))
	if len(s.out)+len(p) <= maxOut {
		s.out = append(s.out, p...)
		return len(p), nil
	}
	if err := s.flush(); err != nil {
		return 0, err
	}
	return s.send(p)
}

// flush writes out. mu is held.
func (s *stream) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.send(s.out)
	s.out = s.out[:0]
	return err
}

// send writes p, for as long as the client takes something. mu is held.
func (s *stream) send(p []byte) (n int, err error) {
	if s.broken != nil {
		return 0, s.broken
	}
	if !s.handed {
		_ = s.str.SetWriteDeadline(time.Now().Add(s.c.s.cfg.WriteStall))
	}
	if n, err = s.str.Write(p); isTimeout(err) && !s.handed {
		s.reset(errExcessiveLoad)
	}
	s.broken = err
	return n, err
}

// Flush sends what is gathered.
func (s *stream) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush()
}

// WriteTrailer sets the trailer.
func (s *stream) WriteTrailer(h exchange.Header) error {
	s.tail = h
	return nil
}

// finish ends the answer.
func (s *stream) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.begun:
		return errors.New("h3: the walk has not answered")
	case s.remains > 0 && !s.noBody:
		return errors.New("h3: the body is shorter than its head says")
	case s.handed:
		s.handed = false
	case len(s.tail) > 0:
		s.section(func(put func(name, value string)) {
			for _, f := range s.tail {
				put(f.Name, f.Value)
			}
		})
	}
	if err := s.flush(); err != nil {
		return err
	}
	return s.str.Close()
}

// CloseAfter does nothing: the connection is shared.
func (s *stream) CloseAfter() {}

// Abort resets the stream. What waits to be sent is thrown away.
func (s *stream) Abort() {
	why := errInternal
	if _, cut := s.x.CutReason(); cut {
		why = errRequestCancelled
	}
	s.reset(why)
}

// WakeReader fails reads of the body.
func (s *stream) WakeReader() error { return s.str.SetReadDeadline(past) }

var (
	_ exchange.Stream = (*stream)(nil)
	_ io.Reader       = bodyReader{}
)
