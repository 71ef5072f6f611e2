package h1

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/message"
)

// outSize is how much of an answer is gathered for one write: a record of TLS.
const outSize = 16 << 10

var outs = sync.Pool{New: func() any { b := make([]byte, 0, outSize+512); return &b }}

// request is one request and the way of its answer: the front end's half of an
// exchange.
type request struct {
	x     exchange.Exchange
	c     *conn
	head  message.Head
	body  message.Body
	since time.Duration // by the watch
	read  atomic.Bool   // body was read to its end; the upstream's engine reads it on a goroutine of its own

	mu        sync.Mutex
	continued bool // guarded by mu: 100 was sent, or must not be any more

	out     *[]byte // what is gathered; nil: nothing
	state   answer
	left    int64 // of a body of known length
	trailer exchange.Header
	close   bool // the connection ends with the answer
	refused bool // the answer came before the client was let send its body
	taken   bool // by an upgrade
}

// answer is how far an answer has come, and how its body is framed.
type answer uint8

const (
	notBegun answer = iota
	noBody
	byLength
	byChunks
	untilClose
	ended
)

// requests are used again: an idle connection has none.
var requests = sync.Pool{New: func() any { return new(request) }}

// recycle lets another connection have r, unless somebody may know it still.
func (r *request) recycle() {
	if !r.x.Free() || r.taken || r.out != nil {
		return
	}
	r.head.Clear()
	r.x, r.body, r.c, r.trailer = exchange.Exchange{}, message.Body{}, nil, nil
	r.read.Store(false)
	r.continued, r.state, r.left, r.close, r.refused = false, notBegun, 0, false, false
	requests.Put(r)
}

// begin makes an exchange of the head that was read.
func (r *request) begin(c *conn) {
	head, x := &r.head, &r.x
	r.c, r.since, r.close = c, c.s.cfg.Watch.Now(), head.Close || head.Minor == 0
	x.Conn, x.Stream, x.TellsLasting, x.Carrier, x.Proto = c.c, r, true, exchange.H1, "HTTP/1.1"
	x.Method, x.Authority, x.Target, x.Header = head.Method, authority(head), head.Target, head.Fields
	if head.Minor == 0 {
		x.Proto = "HTTP/1.0"
	}
	framing := message.None
	switch {
	case head.Chunked:
		framing, x.Length = message.ByChunks, -1
		x.Header = withoutEncoding(head.Fields)
	case head.Length > 0:
		framing, x.Length = message.ByLength, head.Length
	}
	head.Expect = head.Expect && head.Minor > 0 // RFC 9110 §10.1.1
	r.body.Init(&c.in, framing, head.Length, false, c.s.cfg.HeaderBytes)
	r.read.Store(r.body.Ended())
	if framing != message.None {
		r.x.Body = bodyReader{r}
		if framing == message.ByChunks && len(head.Trailers) > 0 {
			r.x.Announced = head.Trailers
			r.x.Trailer = r.announced
		}
	}
}

// authority returns the host that a request is for: the target's, where it
// names one (RFC 9112 §3.2.2), or Host.
func authority(head *message.Head) string {
	for _, scheme := range []string{"http://", "https://"} {
		if len(head.Target) >= len(scheme) && strings.EqualFold(head.Target[:len(scheme)], scheme) {
			a := head.Target[len(scheme):]
			if i := strings.IndexAny(a, "/?#"); i >= 0 {
				a = a[:i]
			}
			return a
		}
	}
	return head.Host
}

// withoutEncoding takes Transfer-Encoding out: it framed the body.
func withoutEncoding(h exchange.Header) exchange.Header {
	for i := range h {
		if strings.EqualFold(h[i].Name, "Transfer-Encoding") {
			return append(h[:i], h[i+1:]...)
		}
	}
	return h
}

// announced returns the trailer fields that the head has announced.
func (r *request) announced() exchange.Header {
	return r.body.Trailer.Named(r.x.Announced) // not the head's: an HTTP/2 upstream may ask late
}

// bodyReader reads the body for the walk. The first read is the client's leave
// to send it.
type bodyReader struct{ r *request }

func (b bodyReader) Read(p []byte) (int, error) {
	if b.r.head.Expect {
		if err := b.r.goOn(); err != nil {
			return 0, err
		}
	}
	n, err := b.r.body.Read(p)
	if err == io.EOF {
		b.r.read.Store(true)
	}
	return n, err
}

// goOn sends 100 unless an answer has begun.
func (r *request) goOn() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.continued {
		return nil
	}
	r.continued = true
	return r.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
}

// write writes to the client, under the eyes of the alarm.
func (r *request) write(p []byte) error {
	r.c.writing.Arm(r.c.s.cfg.WriteStall)
	err := r.c.c.WriteAll(p)
	r.c.writing.Disarm()
	return err
}

// WriteInfo sends an informational answer.
func (r *request) WriteInfo(status int, h exchange.Header) error {
	if r.head.Minor == 0 {
		return nil // RFC 9110 §15.2
	}
	b := message.AppendFields(message.AppendStatusLine(nil, status), h)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.write(append(b, "\r\n"...))
}

// WriteHeader begins the final answer; it goes out with the first bytes of the
// body, or at the next Flush.
func (r *request) WriteHeader(status int, h exchange.Header, length int64, trailers []string) error {
	r.mu.Lock()
	r.refused = r.head.Expect && !r.continued
	r.continued = true
	r.mu.Unlock()
	// A client that sends its body without leave would be misread, and one that was
	// cut is not read from any more.
	_, cut := r.x.CutReason()
	r.close = r.close || cut || !r.read.Load() || r.refused || r.c.s.draining.Load()

	r.out = outs.Get().(*[]byte)
	b := message.AppendStatusLine((*r.out)[:0], status)
	b = message.AppendFields(b, h)
	if !h.Has("Date") {
		b = message.AppendDate(b, r.now())
	}
	switch {
	case status < 200 || status == http.StatusNoContent:
		r.state = noBody
	case r.x.Method == http.MethodHead || status == http.StatusNotModified:
		r.state = noBody
		if length >= 0 {
			b = message.AppendLength(b, length)
		}
	case length >= 0 && len(trailers) == 0:
		r.state, r.left = byLength, length
		b = message.AppendLength(b, length)
	case r.head.Minor == 0:
		r.state, r.close = untilClose, true
	default:
		r.state = byChunks
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if len(trailers) > 0 {
			b = message.AppendField(b, "Trailer", strings.Join(trailers, ", "))
		}
	}
	if r.close {
		b = append(b, "Connection: close\r\n"...)
	}
	*r.out = append(b, "\r\n"...)
	return nil
}

// now is the time, to a tick of the watch.
func (r *request) now() time.Time {
	if w := r.c.s.cfg.Watch; w.Now() != r.since {
		return r.c.s.cfg.Now()
	}
	return r.x.Start
}

// errFraming is returned for a body that is not as its head has said.
var errFraming = errors.New("h1: the body is longer or shorter than its head says")

// Write sends a part of the body. Small parts wait for others.
func (r *request) Write(p []byte) (int, error) {
	switch r.state {
	case byLength:
		if int64(len(p)) > r.left {
			return 0, errFraming
		}
		r.left -= int64(len(p))
	case byChunks, untilClose:
	default:
		return 0, errFraming
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.out == nil {
		if r.state != byChunks && len(p) >= outSize/2 {
			return len(p), r.write(p)
		}
		r.out = outs.Get().(*[]byte)
	}
	if r.state == byChunks {
		*r.out = message.AppendChunk(*r.out, p)
	} else {
		*r.out = append(*r.out, p...)
	}
	if len(*r.out) < outSize {
		return len(p), nil
	}
	return len(p), r.Flush()
}

// Flush sends what is gathered.
func (r *request) Flush() error {
	if r.out == nil {
		return nil
	}
	err := r.write(*r.out)
	r.free()
	return err
}

func (r *request) free() {
	if r.out == nil {
		return
	}
	if cap(*r.out) <= 4*outSize {
		*r.out = (*r.out)[:0]
		outs.Put(r.out)
	}
	r.out = nil
}

// WriteTrailer sets the trailer.
func (r *request) WriteTrailer(h exchange.Header) error {
	r.trailer = h
	return nil
}

// finish ends the answer.
func (r *request) finish() error {
	defer r.free()
	switch r.state {
	case notBegun:
		return errors.New("h1: the walk has not answered")
	case byLength:
		if r.left > 0 {
			return errFraming
		}
	case byChunks:
		if r.out == nil {
			r.out = outs.Get().(*[]byte)
		}
		*r.out = message.AppendLastChunk(*r.out, r.trailer)
	}
	r.state = ended
	return r.Flush()
}

// ErrEarly is returned for an upgrade whose client went on before the answer.
var ErrEarly = errors.New("h1: bytes came before the upgrade was answered")

// Upgrade answers 101 and hands the connection over.
func (r *request) Upgrade(h exchange.Header) (net.Conn, error) {
	r.taken = true
	if r.c.in.Buffered() > 0 {
		r.c.c.Reset()
		return nil, ErrEarly
	}
	r.c.in.Release()
	b := message.AppendFields(message.AppendStatusLine(nil, http.StatusSwitchingProtocols), h)
	if err := r.write(append(b, "\r\n"...)); err != nil {
		r.c.c.Reset()
		return nil, fmt.Errorf("answer upgrade: %w", err)
	}
	return r.c.c.Conn, nil
}

// CloseAfter makes this answer the connection's last one.
func (r *request) CloseAfter() { r.close = true }

// Abort resets the connection.
func (r *request) Abort() { r.c.c.Reset() }

// WakeReader fails reads of the body.
func (r *request) WakeReader() error { return r.c.c.SetReadDeadline(past) }

var _ exchange.Stream = (*request)(nil)
