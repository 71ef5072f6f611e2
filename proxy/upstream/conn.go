package upstream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/apps"
	"github.com/yumen-zt/yumen/internal/sock"
	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/message"
)

// past is a deadline that is over.
var past = time.Unix(1, 0)

// conn is one HTTP/1.1 connection to an upstream. It belongs to one exchange at
// a time; Abort alone may be called from elsewhere.
type conn struct {
	net.Conn
	e    *Engine
	u    *apps.Upstream
	in   message.Reader
	head message.Head

	single                     bool          // for one request: the PROXY header has named its client
	answerTimeout, idleTimeout time.Duration // the application's, or the engine's

	late    watch.Alarm // the answer takes too long
	aborted atomic.Bool
	timeout atomic.Bool // by late

	ask    ask    // of a plain socket
	answer answer // to the request in hand

	since  time.Duration // put into the pool, by the watch
	silent bool          // nothing has come since the request
}

func newConn(e *Engine, u *apps.Upstream, raw net.Conn) *conn {
	c := &conn{Conn: raw, e: e, u: u}
	c.in.Init(raw)
	c.ask.init(raw)
	e.cfg.Watch.Add(&c.late, func() {
		c.timeout.Store(true)
		c.Abort()
	})
	return c
}

// Abort fails whatever is being read and written, and what comes.
func (c *conn) Abort() {
	c.aborted.Store(true)
	_ = c.SetDeadline(past)
}

// close closes c for the exchange that has it.
func (c *conn) close() {
	if c.aborted.Load() {
		c.drop()
		return
	}
	c.e.cfg.Watch.Remove(&c.late)
	c.in.Drop()
	_ = c.Conn.Close()
}

// drop closes c without a farewell of TLS or TLCP, which would wait for an
// upstream that reads nothing: the sweep is on the goroutine of all alarms.
func (c *conn) drop() {
	c.e.cfg.Watch.Remove(&c.late)
	c.in.Drop()
	_ = sock.Bottom(c.Conn).Close()
}

// asks reports whether exchange looks at a pooled connection by itself before it
// sends req.
func (c *conn) asks(req *Request) bool {
	return c.ask.raw != nil && req.Body == nil && !c.aborted.Load()
}

// usable reports whether a pooled connection may carry another request. What
// has come since its last answer would be taken for the next one, so there is
// always a look.
func (c *conn) usable() bool { return !c.aborted.Load() && !sock.Readable(c.Conn) }

// clean reports whether nothing is left behind an answer in the buffers above the
// socket, where usable does not see it: the reader's, and those of TLS and TLCP.
func (c *conn) clean() bool {
	if c.in.Buffered() > 0 {
		return false
	}
	if _, plain := c.Conn.(*net.TCPConn); plain {
		return true
	}
	var b [1]byte
	_ = c.SetReadDeadline(past) // buffers only
	n, err := c.Conn.Read(b[:])
	_ = c.SetReadDeadline(time.Time{})
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

var errTimeout = fmt.Errorf("no answer in time: %w", errAnswerTimeout)

// errAnswerTimeout is a net.Error, as others that come of waiting.
var errAnswerTimeout net.Error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string   { return "timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return false }

var heads = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// roundTrip sends req and reads the head of its answer. After an error the
// connection is of no use.
func (c *conn) roundTrip(x *exchange.Exchange, req *Request) (*Response, error) {
	if !x.Hold(c) {
		return nil, errors.New("nobody waits for the answer")
	}
	res, err := c.exchange(x, req)
	if err != nil {
		x.Hold(nil)
		if c.timeout.Load() {
			err = errTimeout
		}
	}
	return res, err
}

func (c *conn) exchange(x *exchange.Exchange, req *Request) (*Response, error) {
	c.silent = true
	a := &c.answer
	a.c, a.x, a.req = c, x, req
	c.late.Arm(c.answerTimeout)
	b := heads.Get().(*[]byte)
	*b = appendRequest((*b)[:0], req)
	var err error
	if c.asks(req) {
		var n int
		if n, err = c.ask.do(*b, c.in.Room()); err == nil {
			c.in.Put(n)
		}
	} else if _, err = c.Write(*b); err != nil {
		err = fmt.Errorf("write request: %w", err)
	}
	if cap(*b) <= 16<<10 {
		heads.Put(b)
	}
	if err != nil {
		return nil, err
	}
	if req.Body != nil {
		a.sent, a.sending = make(chan error, 1), true
		c.late.Disarm() // begins again when the body is sent
		go a.send(a.sent)
	}
	if err := c.readHead(req); err != nil {
		if a.sent != nil {
			// What the upstream says does not matter when the body is at fault.
			if serr := a.stopSending(); serr != nil && !c.aborted.Load() {
				err = errors.Join(err, serr)
			}
		}
		return nil, err
	}
	err = errTimeout
	if a.inTime() {
		err = a.begin()
	}
	if err != nil {
		_ = a.stopSending() // err says what is at fault
		return nil, err
	}
	return &a.Response, nil
}

// appendRequest appends the head of req.
func appendRequest(b []byte, req *Request) []byte {
	b = append(b, req.Method...)
	b = append(b, ' ')
	b = append(b, req.Path...)
	if req.Query != "" {
		b = append(b, '?')
		b = append(b, req.Query...)
	}
	b = append(b, " HTTP/1.1\r\n"...)
	b = message.AppendField(b, "Host", req.Host)
	b = message.AppendFields(b, req.Header)
	switch {
	case req.Upgrade != "":
		b = append(b, "Connection: Upgrade\r\n"...)
		b = message.AppendField(b, "Upgrade", req.Upgrade)
	case req.Body == nil:
		switch req.Method {
		case "POST", "PUT", "PATCH":
			b = message.AppendLength(b, 0)
		}
	case req.chunked():
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for _, n := range req.Trailers {
			b = message.AppendField(b, "Trailer", n)
		}
	default:
		b = message.AppendLength(b, req.Length)
	}
	return append(b, "\r\n"...)
}

func (r *Request) chunked() bool { return r.Length < 0 || len(r.Trailers) > 0 }

// readHead reads heads until the final one, or 101.
func (c *conn) readHead(req *Request) error {
	for infos := 0; ; infos++ {
		err := c.in.ReadAnswer(&c.head, answerLimits)
		c.silent = c.silent && err != nil && c.in.Buffered() == 0
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		status := c.head.Status
		if status >= 200 || status == 101 {
			return nil
		}
		if infos >= maxInfos {
			return fmt.Errorf("read answer: more than %d informational ones", maxInfos)
		}
		if status == 100 || req.Informed == nil {
			continue
		}
		if err := req.Informed.Inform(status, c.head.Fields); err != nil {
			return err
		}
	}
}
