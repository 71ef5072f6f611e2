package h1

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/sock"
	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/message"
)

// past is a deadline that is over.
var past = time.Unix(1, 0)

const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
	lookEvery   = time.Second // how often a client is looked for that waits for its answer
)

// conn is one client connection. Its goroutine alone reads; alarms ring on
// another.
type conn struct {
	s  *Server
	c  *exchange.Conn
	in message.Reader

	reading watch.Alarm // a head, or the next request, takes too long
	writing watch.Alarm // the client takes nothing
	looking watch.Alarm // time to see whether the client is there

	used bool        // the first request is awaited, or was
	idle atomic.Bool // waits for a request

	mu      sync.Mutex
	current *request // guarded by mu; nil between requests
}

func newConn(s *Server, c *exchange.Conn) *conn {
	hc := &conn{s: s, c: c}
	hc.in.Init(c)
	return hc
}

// serve serves the connection until its end.
func (c *conn) serve() {
	w := c.s.cfg.Watch
	w.Add(&c.reading, c.wake)
	w.Add(&c.writing, c.c.Reset)
	w.Add(&c.looking, c.look)
	defer func() {
		w.Remove(&c.reading)
		w.Remove(&c.writing)
		w.Remove(&c.looking)
		c.in.Drop()
		_ = c.c.Close()
	}()
	for c.await() && c.next() {
	}
}

// await waits for a request and reports whether one begins. Connections spend
// their time here: the frames on the stack are few and small, so that the
// collector can halve a stack that a request has grown.
func (c *conn) await() bool {
	wait := c.s.cfg.IdleTimeout
	if !c.used {
		wait, c.used = c.s.cfg.HeaderTimeout, true
	}
	c.reading.Arm(wait)
	c.idle.Store(true)
	if c.s.draining.Load() {
		return false
	}
	err := c.in.Wait()
	c.idle.Store(false)
	return err == nil
}

// next serves one request, and reports whether another one may follow.
func (c *conn) next() bool {
	c.reading.Arm(c.s.cfg.HeaderTimeout)
	r := requests.Get().(*request)
	if err := c.in.ReadRequest(&r.head, message.Limits{Bytes: c.s.cfg.HeaderBytes, Fields: 4 * c.s.cfg.HeaderFields}); err != nil {
		c.refuse(err)
		return false
	}
	if !c.reading.Disarm() {
		return false // too late: it has rung, and no body could be read
	}
	if c.s.draining.Load() { // the wake of the drain may have come in between
		_ = c.c.SetReadDeadline(time.Time{})
	}
	again := c.serveRequest(r)
	r.recycle()
	return again
}

func (c *conn) serveRequest(r *request) (again bool) {
	r.begin(c)
	c.setCurrent(r)
	c.looking.Arm(lookEvery)
	r.x.Begin(context.Background(), c.s.cfg.Now())
	err := c.s.cfg.Serve(&r.x)
	if err == nil && !r.taken {
		err = r.finish()
	}
	r.x.End()
	c.looking.Disarm()
	c.setCurrent(nil)
	switch {
	case r.taken:
		return false
	case err != nil:
		c.c.Reset()
		return false
	case !r.read.Load():
		// What comes must not be read as a request: this connection is never
		// used again.
		if !r.refused {
			c.linger()
		}
		return false
	case r.close:
		c.linger()
		return false
	}
	c.in.Release()
	return true
}

// refuse answers a head that breaks the grammar or takes too long.
func (c *conn) refuse(err error) {
	if !message.Malformed(err) {
		return // the client has gone, or was too slow
	}
	c.s.cfg.Malformed(c.c, err)
	answer := badRequest
	if errors.Is(err, message.ErrLong) || errors.Is(err, message.ErrFields) {
		answer = tooLarge
	}
	c.writing.Arm(c.s.cfg.WriteStall)
	_, err = io.WriteString(c.c, answer)
	c.writing.Disarm()
	if err == nil {
		c.linger()
	}
}

// linger takes what the client is still sending, so that a reset does not
// overtake the answer.
func (c *conn) linger() {
	c.writing.Arm(c.s.cfg.WriteStall)
	if w, ok := c.c.Conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	c.writing.Disarm()
	if c.c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, &c.in, lingerBytes)
	}
}

// wake fails the read that waits, and those that come.
func (c *conn) wake() { _ = c.c.SetReadDeadline(past) }

// wakeIdle ends the connection if it waits for a request.
func (c *conn) wakeIdle() {
	if c.idle.Load() {
		c.wake()
	}
}

func (c *conn) setCurrent(r *request) {
	c.mu.Lock()
	c.current = r
	c.mu.Unlock()
}

// look tells the exchange if its client has gone. mu is held throughout: after
// it the exchange may be another one.
func (c *conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.current
	if r == nil {
		return
	}
	r.x.Lasting()
	if sock.Ended(c.c.Conn) {
		r.x.Gone()
		return
	}
	c.looking.Arm(lookEvery)
}

const (
	badRequest = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" +
		"400 Bad Request: the request is malformed. 请求格式有误。\n"
	tooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" +
		"431: the request's head is too large. 请求头过大。\n"
)
