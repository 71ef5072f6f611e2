package h2

import (
	"bytes"
	"errors"
	"runtime"
	"sync"

	"golang.org/x/net/http2"

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
		switch {
		case cap(buf) > 2*maxOut:
		case c.out == nil && len(c.streams) > 0:
			c.out = buf[:0]
		default:
			outs.Put(&buf)
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

// outs are write buffers: a connection without streams has none.
var outs = sync.Pool{New: func() any { b := make([]byte, 0, maxFrame); return &b }}

// hold makes sure that there is a write buffer. mu is held.
func (c *conn) hold() {
	if c.out == nil {
		c.out = (*outs.Get().(*[]byte))[:0]
	}
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

// frameHead is the length of the head of a frame (RFC 9113 §4.1).
const frameHead = 9

// appendFrame appends the head of a frame of n bytes.
func appendFrame(b []byte, n int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// writeData puts a DATA frame into the buffer. mu is held.
func (c *conn) writeData(id uint32, end bool, p []byte) {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	c.hold()
	c.out = append(appendFrame(c.out, len(p), http2.FrameData, flags, id), p...)
}

// beginBlock begins a block of fields in the buffer, which appendStatus and
// appendField fill and endBlock ends. mu is held throughout.
func (c *conn) beginBlock() (at int) {
	c.hold()
	at = len(c.out)
	c.out = append(c.out, make([]byte, frameHead)...)
	if c.table {
		c.out = append(c.out, emptyTable)
		c.table = false
	}
	return at
}

// endBlock makes frames of the block at at. mu is held.
func (c *conn) endBlock(at int, id uint32, end bool) {
	var flags http2.Flags
	if end {
		flags = http2.FlagHeadersEndStream
	}
	n := len(c.out) - at - frameHead
	if n <= c.frame {
		appendFrame(c.out[:at], n, http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id)
		return
	}
	rest := bytes.Clone(c.out[at+frameHead:])
	c.out = c.out[:at]
	for kind := http2.FrameHeaders; len(rest) > 0; kind, flags = http2.FrameContinuation, 0 {
		part := rest[:min(len(rest), c.frame)]
		if rest = rest[len(part):]; len(rest) == 0 {
			flags |= http2.FlagHeadersEndHeaders // the same bit in both
		}
		c.out = append(appendFrame(c.out, len(part), kind, flags, id), part...)
	}
}

// fields encodes h with names in lower case. mu is held.
func (c *conn) fields(h exchange.Header) {
	for i := range h {
		c.out = appendAny(c.out, h[i].Name, h[i].Value)
	}
}

var errEnded = errors.New("h2: the stream has ended")
