package upstream

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/message"
)

// answer is the answer to one request over HTTP/1.1, and the sending of the
// request's body beside it. It is its own Body, and the connection's: the
// answer to the next request stands in the same place.
type answer struct {
	Response
	c    *conn
	x    *exchange.Exchange
	req  *Request
	body message.Body
	sent chan error // nil: the request has no body, or its sending was waited for
	over bool       // by Close

	mu      sync.Mutex
	headed  bool // guarded by mu: the head is here, the time for it has ended
	sending bool // guarded by mu: the alarm is the body's
}

// begin judges the head and makes the body.
func (a *answer) begin() error {
	h := &a.c.head
	a.Status, a.Header, a.Length = h.Status, h.Fields, h.Length
	a.Response.Body = a
	if h.Status == 101 {
		if a.req.Upgrade == "" {
			return errors.New("101 to a request without upgrade")
		}
		a.Tunnel = &tunnel{a}
		a.Length = 0
		a.body.Init(&a.c.in, message.None, 0, true, maxAnswerHead)
		return nil
	}
	framing := message.UntilClose
	switch {
	case a.req.Method == "HEAD" || h.Status == 204 || h.Status == 304:
		framing = message.None
	case h.Chunked:
		framing = message.ByChunks
	case h.Length >= 0:
		framing = message.ByLength
	}
	a.body.Init(&a.c.in, framing, h.Length, true, maxAnswerHead)
	if framing == message.ByChunks && len(h.Trailers) > 0 {
		a.Trailers = h.Trailers
		a.Trailer = func() exchange.Header { return a.body.Trailer }
	}
	a.Response.body = &a.body
	return nil
}

// Read reads the body. One whose length is known goes on within the idle
// timeout; others may be events, which are rare.
func (a *answer) Read(p []byte) (int, error) {
	if a.Length < 0 || a.body.Ready() || a.uploads() {
		return a.body.Read(p)
	}
	a.c.late.Arm(a.c.idleTimeout)
	n, err := a.body.Read(p)
	if !a.c.late.Disarm() {
		return n, errTimeout
	}
	return n, err
}

// Close ends the answer. The connection goes back to the pool when both bodies
// were carried to their end, and the answer is that of its next request: it is
// closed once.
func (a *answer) Close() error {
	if !a.over {
		a.over = true
		a.end()
	}
	return nil
}

func (a *answer) end() {
	err := a.stopSending()
	a.x.Hold(nil)
	h := &a.c.head
	persists := !h.Close && (h.Minor == 1 || h.KeepAlive)
	if h.Status == 204 && (h.Chunked || h.Length > 0) { // RFC 9110 §8.6 forbids both: a body may come yet
		persists = false
	}
	if err != nil || a.c.single || a.Tunnel != nil || !persists || !a.body.Ended() || a.body.Framing() == message.UntilClose ||
		a.c.aborted.Load() || !a.c.clean() {
		a.c.close()
		return
	}
	c := a.c
	c.in.Release()
	clear(h.Fields[:cap(h.Fields)]) // its strings are a whole head
	*a = answer{}                   // it is c's, for the next request
	c.e.keep(c)
}

// uploads reports whether the request's body is still being sent: the alarm is
// its own then.
func (a *answer) uploads() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sending
}

// send sends the request's body, and begins the time for the answer.
func (a *answer) send(sent chan<- error) {
	err := a.sendBody()
	if err != nil && !errors.Is(err, errNotTaken) {
		a.c.Abort() // the upstream waits for what will not come
	}
	a.mu.Lock()
	a.sending = false
	if !a.headed {
		a.c.late.Arm(a.c.answerTimeout)
	}
	a.mu.Unlock()
	sent <- err
}

// errNotTaken is a body that the upstream would not take. It may have said why.
var errNotTaken = errors.New("send body")

// write sends a part of the body. An upstream that takes nothing for too long is
// given up.
func (a *answer) write(p []byte) error {
	a.c.late.Arm(a.c.idleTimeout)
	_, err := a.c.Write(p)
	a.c.late.Disarm()
	if err != nil {
		return fmt.Errorf("%w: %w", errNotTaken, err)
	}
	return nil
}

// inTime ends the time for the head. It reports false when that is over.
func (a *answer) inTime() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.headed = true
	return a.sending || a.c.late.Disarm()
}

// stopSending ends the sending of the body and waits for its end; nil: it was
// sent whole.
func (a *answer) stopSending() error {
	if a.sent == nil {
		return nil
	}
	sent := a.sent
	a.sent = nil
	select {
	case err := <-sent:
		return err
	default:
	}
	_ = a.req.Body.Close()
	a.c.Abort()
	if err := <-sent; err != nil {
		return err
	}
	return errors.New("the answer came before the body was sent")
}

// chunkRoom is what a chunk's framing takes.
const chunkRoom = 16

var parts = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (a *answer) sendBody() error {
	buf := parts.Get().(*[32 << 10]byte)
	defer parts.Put(buf)
	var framed []byte
	left := a.req.Length
	for {
		n, err := a.req.Body.Read(buf[:len(buf)-chunkRoom])
		if n > 0 {
			p := buf[:n]
			if a.req.chunked() {
				framed = message.AppendChunk(framed[:0], p)
				p = framed
			} else if left -= int64(n); left < 0 {
				return errors.New("send body: longer than its Content-Length")
			}
			if err := a.write(p); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("send body: %w", err)
		}
	}
	if !a.req.chunked() {
		if left > 0 {
			return fmt.Errorf("send body: %w", io.ErrUnexpectedEOF)
		}
		return nil
	}
	var trailer exchange.Header
	if len(a.req.Trailers) > 0 {
		trailer = a.req.Trailer().Named(a.req.Trailers)
	}
	return a.write(message.AppendLastChunk(framed[:0], trailer))
}

// tunnel is the connection behind a 101.
type tunnel struct{ a *answer }

func (t *tunnel) Read(p []byte) (int, error)  { return t.a.c.in.Read(p) }
func (t *tunnel) Write(p []byte) (int, error) { return t.a.c.Conn.Write(p) }
func (t *tunnel) Close() error                { return t.a.c.Conn.Close() }

// CloseWrite says to the upstream that no more comes.
func (t *tunnel) CloseWrite() error {
	if c, ok := t.a.c.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
