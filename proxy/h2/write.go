package h2

import (
	"errors"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// maxOut is how much may wait in the write buffer before streams wait for it.
const maxOut = 64 << 10

// send writes what is in the buffer, unless somebody else is doing so: he takes
// it along. mu is held, and released while it writes.
func (c *conn) send() {
	if c.sending {
		return
	}
	c.sending = true
	if len(c.streams) > 1 {
		// Streams that are about to put something here travel with us.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	for len(c.out) > 0 && c.failed == nil {
		buf := c.out
		c.out, c.control = nil, 0
		c.mu.Unlock()
		c.writing.Arm(c.s.cfg.WriteStall)
		err := c.c.WriteAll(buf)
		c.writing.Disarm()
		c.mu.Lock()
		if c.out == nil && cap(buf) <= 2*maxOut && len(c.streams) > 0 {
			c.out = buf[:0]
		}
		if err != nil && c.failed == nil {
			c.failed = err
			_ = c.c.SetReadDeadline(past) // the reader closes
			for _, s := range c.streams {
				s.wake.Broadcast()
			}
		}
		c.room.Broadcast()
	}
	c.sending = false
	c.room.Broadcast()
}

// sendElsewhere is send for those who must not wait: the reader, an alarm, a
// cut. mu is held.
func (c *conn) sendElsewhere() {
	if c.sending || c.failed != nil || len(c.out) == 0 {
		return
	}
	c.s.live.Add(1) // the connection is counted still
	go func() {
		defer c.s.live.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.send()
	}()
}

// consumed grants what was read of the connection's window again. mu is held.
func (c *conn) consumed(n int64) {
	if c.unsent += n; c.unsent >= connWindow/4 {
		_ = c.fr.WriteWindowUpdate(0, uint32(c.unsent))
		c.recvWindow += c.unsent
		c.unsent = 0
		c.sendElsewhere()
	}
}

// field encodes one field. mu is held.
func (c *conn) field(name, value string) {
	_ = c.enc.WriteField(hpack.HeaderField{Name: name, Value: clean(value), Sensitive: name == "set-cookie"})
}

// clean makes spaces of control characters: a value never ends its line where
// somebody passes it on over HTTP/1.1.
func clean(v string) string {
	for i := 0; i < len(v); i++ {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return strings.Map(func(r rune) rune {
				if r < ' ' && r != '\t' || r == 0x7f {
					return ' '
				}
				return r
			}, v)
		}
	}
	return v
}

// fields encodes h with names in lower case. mu is held.
func (c *conn) fields(h exchange.Header) {
	for i := range h {
		c.field(lower(h[i].Name), h[i].Value)
	}
}

// writeBlock puts the encoded fields into frames. mu is held.
func (c *conn) writeBlock(id uint32, end bool) {
	b := c.block.Bytes()
	first := true
	for first || len(b) > 0 {
		part := b[:min(len(b), c.frame)]
		b = b[len(part):]
		if first {
			_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndStream: end, EndHeaders: len(b) == 0})
		} else {
			_ = c.fr.WriteContinuation(id, len(b) == 0, part)
		}
		first = false
	}
	c.block.Reset()
}

// lower returns name in lower case, without memory of its own for usual names.
func lower(name string) string {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			if l, ok := usual[name]; ok {
				return l
			}
			return strings.ToLower(name)
		}
	}
	return name
}

var usual = func() map[string]string {
	m := map[string]string{}
	for _, n := range []string{"Accept-Ranges", "Access-Control-Allow-Origin", "Age", "Allow", "Cache-Control", "Connection", "Content-Disposition",
		"Content-Encoding", "Content-Language", "Content-Length", "Content-Range", "Content-Security-Policy", "Content-Type", "Date", "ETag", "Etag",
		"Expires", "Last-Modified", "Link", "Location", "Referrer-Policy", "Server", "Set-Cookie", "Strict-Transport-Security", "Trailer",
		"Vary", "Via", "X-Content-Type-Options", "X-Frame-Options", "X-Request-Id"} {
		m[n] = strings.ToLower(n)
	}
	return m
}()

// status encodes :status. mu is held.
func (c *conn) status(status int) { c.field(":status", strconv.Itoa(status)) }

var errEnded = errors.New("h2: the stream has ended")
