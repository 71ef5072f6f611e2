package h3

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

const (
	maxResets = 200         // streams that a client took back, more than it let end
	farewell  = time.Second // for the last bytes of answers, and for the client to close
	lookEvery = time.Second // whether the client has moved
)

// conn is one client connection.
type conn struct {
	s    *Server
	q    *quic.Conn
	c    *exchange.Conn
	quit context.CancelFunc // of accept

	idle watch.Alarm // no stream for long, or the farewell is over

	mu      sync.Mutex
	streams int              // guarded by mu; whose walk goes on
	next    quic.StreamID    // guarded by mu; above the newest request
	resets  int              // guarded by mu; streams taken back, less those that ended well
	leaving bool             // guarded by mu; GOAWAY was sent
	control *quic.SendStream // guarded by mu; ours, once it is open
	seen    [4]bool          // guarded by mu; the client's one-way streams by type
	maxPush uint64           // of the control stream's reader; 0: none
	away    uint64           // of the control stream's reader; the last GOAWAY
}

func newConn(s *Server, q *quic.Conn, c *exchange.Conn) *conn {
	return &conn{s: s, q: q, c: c, away: maxPushIDs}
}

// serve serves the connection until its end.
func (c *conn) serve() {
	s := c.s
	ctx, quit := context.WithCancel(context.Background())
	defer quit()
	c.quit = quit
	s.cfg.Watch.Add(&c.idle, c.rest)
	c.idle.Arm(s.cfg.IdleTimeout)
	defer s.cfg.Watch.Remove(&c.idle)
	if err := c.open(); err != nil {
		c.fail(errInternal)
		return
	}
	s.live.Add(1) // this connection is counted still
	go func() {
		defer s.live.Done()
		c.acceptOneWay()
	}()
	for {
		str, err := c.q.AcceptStream(ctx)
		if err != nil {
			break
		}
		if !c.admit(str) {
			continue
		}
		s.live.Add(1)
		go func() {
			defer s.live.Done()
			c.request(str)
		}()
	}
	c.fail(errNo) // of what is idle, or has said goodbye
}

// open says who we are: the control stream with the settings. There is no
// dynamic table, so the streams of QPACK are not needed (RFC 9204 §4.2).
func (c *conn) open() error {
	str, err := c.q.OpenUniStream()
	if err != nil {
		return err
	}
	var set []byte
	set = quicvarint.Append(set, settingMaxFieldSection)
	set = quicvarint.Append(set, uint64(c.s.cfg.HeaderBytes))
	set = quicvarint.Append(set, settingExtendedConnect)
	set = quicvarint.Append(set, 1)
	b := quicvarint.Append(nil, streamControl)
	b = appendFrame(b, frameSettings, uint64(len(set)))
	if _, err := str.Write(append(b, set...)); err != nil {
		return err
	}
	c.mu.Lock()
	c.control = str
	leaving := c.leaving
	c.mu.Unlock()
	if leaving { // drain came first
		c.goAway(0)
	}
	return nil
}

// admit counts a request, or refuses it: the client was told to go away.
func (c *conn) admit(str *quic.Stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.moved() {
		c.quit()
	}
	if c.leaving || c.moved() {
		str.CancelRead(quic.StreamErrorCode(errRequestRejected))
		str.CancelWrite(quic.StreamErrorCode(errRequestRejected))
		str.ReleaseStreamCredit()
		return false
	}
	c.next = str.StreamID() + 4
	c.streams++
	c.idle.Arm(lookEvery)
	return true
}

// request reads one request and walks it.
func (c *conn) request(str *quic.Stream) {
	s := newStream(c, str)
	err := s.head()
	begun := err == nil
	if begun {
		err = s.run()
	} else {
		c.refuse(s, err)
	}
	s.release()
	if !c.ended(!begun || err != nil && tookBack(str, err)) {
		c.malformed(connError{errExcessiveLoad})
		c.fail(errExcessiveLoad)
	}
}

// ended counts a request out, and reports whether the client behaves: one that
// takes streams back all the time makes work for nothing (CVE-2023-44487).
func (c *conn) ended(inVain bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams--; c.streams == 0 {
		if c.leaving {
			c.idle.Arm(farewell)
		} else {
			c.idle.Arm(c.s.cfg.IdleTimeout)
		}
	}
	if !inVain {
		c.resets = max(0, c.resets-1)
		return true
	}
	c.resets++
	return c.resets <= maxResets
}

// tookBack reports whether the client has reset a stream.
func tookBack(str *quic.Stream, err error) bool {
	var se *quic.StreamError
	if errors.As(context.Cause(str.Context()), &se) && se.Remote {
		return true
	}
	return errors.As(err, &se) && se.Remote
}

// moved reports whether the client has another address than the one that was
// judged. Policies speak of addresses, so what moves has to come anew; another
// port is a NAT that has forgotten.
func (c *conn) moved() bool {
	a, ok := c.q.RemoteAddr().(*net.UDPAddr)
	return ok && a.AddrPort().Addr().Unmap() != c.c.Remote.Addr().Unmap()
}

// rest is called when there was no stream for long: the client is told to go,
// and has a moment to do so. While there are streams it looks after them.
func (c *conn) rest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.streams > 0 && !c.moved():
		c.idle.Arm(lookEvery)
	case c.streams > 0:
		c.quit()
	case c.leaving:
		c.quit()
	default:
		c.leave()
	}
}

// refuse answers what is no request.
func (c *conn) refuse(s *stream, err error) {
	var ce connError
	var se streamError
	switch {
	case errors.As(err, &ce):
		c.malformed(err)
		c.fail(ce.code)
	case errors.As(err, &se):
		c.malformed(err)
		s.reset(se.code)
	case errors.Is(err, io.EOF):
		s.reset(errRequestIncomplete)
	case errors.Is(err, io.ErrUnexpectedEOF):
		c.malformed(err)
		c.fail(errFrame)
	default: // the client took it back, or was too slow
		s.reset(errRequestCancelled)
	}
}

func (c *conn) malformed(err error) { c.s.cfg.Malformed(c.c, err) }

// fail closes the connection. Every stream of it ends.
func (c *conn) fail(why code) {
	_ = c.q.CloseWithError(quic.ApplicationErrorCode(why), "")
	c.quit()
}

// drain tells the client to go away; streams in flight go on.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leaving {
		c.leave()
	}
}

// busy reports whether a walk goes on.
func (c *conn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams > 0
}

// leave tells the client so. mu is held.
func (c *conn) leave() {
	c.leaving = true
	if c.streams == 0 {
		c.idle.Arm(farewell)
	}
	if c.control != nil {
		c.goAway(uint64(c.next))
	}
}

// goAway says which requests will not be served (RFC 9114 §5.2).
func (c *conn) goAway(id uint64) {
	b := appendFrame(nil, frameGoAway, uint64(quicvarint.Len(id)))
	_ = c.control.TryWriteAll(quicvarint.Append(b, id)) // the client will see the end of the connection
}

// buffers for reading heads. Bodies are read past them.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 2<<10) }}

func newReader(from io.Reader) reader {
	b := readers.Get().(*bufio.Reader)
	b.Reset(from)
	return reader{Reader: b}
}

func (r *reader) free() {
	if r.Reader != nil {
		r.Reader.Reset(nil)
		readers.Put(r.Reader)
		r.Reader = nil
	}
}
